"""Topics of queries: with a stage's ``topics`` the queries of a batch are alike, so that each other's texts are hard negatives (TAS-B, arXiv:2104.06967)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .errors import require_extra
from .rankers import BertDot

PER_TOPIC = 39      # queries a topic: as many as faiss wants to see for each centroid


@dataclass(frozen=True)
class QueryTopics:
    """Clusters queries by their vectors, once, with k-means. Needs faiss.

    Args:
        encoder: Makes the vectors: a trained bi-encoder.
        count: How many topics; with fewer than 39 queries a topic as many as there can be. Default 2000 (arXiv:2104.06967, for 400,000 queries).
        seed: Of the first centroids. Default 0.
    """

    encoder: BertDot
    count: int = 2000
    seed: int = 0

    def __call__(self, queries: Sequence[str]) -> np.ndarray:
        """(G,) the number of each query's topic."""
        faiss = require_extra("faiss", "dense", "QueryTopics")
        vectors = np.ascontiguousarray(self.encoder.encode_queries(queries), dtype=np.float32)
        clusters = max(1, min(self.count, len(vectors) // PER_TOPIC))
        means = faiss.Kmeans(vectors.shape[1], clusters, niter=20, seed=self.seed + 1234, max_points_per_centroid=10**6)
        means.train(vectors)
        _, nearest = means.index.search(vectors, 1)
        topic: np.ndarray = nearest[:, 0].astype(np.int64)
        return topic
