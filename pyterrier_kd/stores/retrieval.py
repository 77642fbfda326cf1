"""First-stage retrieval from a store of token vectors: near neighbours of each of a query's vectors, then exact scores of their documents.

The neighbours come from a faiss index over all token vectors, which is built at the first use and kept beside them; whichever documents they belong to
are candidates, and are scored by their own vectors. So scores are exact, and only documents can be missed of which no vector is near to any of
the query's (arXiv:2004.12832, section 3.6).
"""

from __future__ import annotations

import math
import uuid
import warnings
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyterrier as pt

from ..errors import StoreError, require_extra
from ..frames import explained, require_strings
from ..rankers import TwoSided
from ..rankers.interactions import Dot, MaxSim
from ..rankers.vectors import Ragged
from .files import StoredVectors

BLOCK = 1 << 16         # vectors that are added to an index at once
TRAINED = 64            # vectors a list from which an index learns its lists
LARGE = 1 << 34         # bytes of float16 vectors beyond which an index holds them compressed


class StoreRetriever(pt.Transformer):
    """Retrieves from a store; see ``DocumentStore.retriever``."""

    schematic: ClassVar[dict[str, Any]] = {"label": "Store retriever", "help_url": None}

    def __init__(self, store: Any, ranker: TwoSided, num_results: int, neighbours: int, probes: int, factory: str | None, exhaustive: bool) -> None:
        self.stamp = store.require(ranker)
        if not exhaustive and not isinstance(ranker.model.interaction, Dot | MaxSim):
            raise StoreError(f"{type(ranker).__name__} does not compare by products of vectors, of which an index finds the largest: pass exhaustive=True to score every document, "
                             "or re-rank another retriever's documents with store.scorer(ranker).")
        self.store, self.ranker, self.num_results, self.exhaustive = store, ranker, num_results, exhaustive
        self.neighbours, self.probes, self.factory = neighbours, probes, factory
        self._index: tuple[StoredVectors, Any] | None = None

    @property
    def index(self) -> Any:
        """The faiss index over all token vectors, built if there is none yet."""
        vectors = self.store.vectors
        if self._index is None or self._index[0] is not vectors:
            self._index = (vectors, token_index(self.store.folder, vectors, self.factory, self.ranker.verbose))
            set_probes(self._index[1], self.probes)
        return self._index[1]

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """The best documents of each query.

        Args:
            inp: A frame with ``qid`` and ``query``, one row a query; other columns are kept.
        """
        with explained(self, inp, ["query"]):
            pt.validate.query_frame(inp, extra_columns=["query"], context=self)
        if self.store.facts["encoder"] != self.stamp:
            self.store.require(self.ranker)
        topics = inp.reset_index(drop=True)
        if not len(topics):
            return topics.assign(docno=pd.Series(dtype=object), score=pd.Series(dtype="float64"), rank=pd.Series(dtype="int64"))
        require_strings(topics, "query", self)
        codes, queries = pd.factorize(topics["query"])
        ranker = self.ranker
        found = []
        with ranker._inference():
            prepared = ranker._prepare_queries(list(queries))
            for query in pt.tqdm(range(len(queries)), desc=f"{type(ranker).__name__} retriever", unit="q", disable=not ranker.verbose):
                found.append(self._best(prepared, query))
        rows = np.concatenate([np.full(len(found[code][0]), i) for i, code in enumerate(codes)])
        docs = np.concatenate([found[code][0] for code in codes])
        scores = np.concatenate([found[code][1] for code in codes])
        out = topics.drop(columns=["docno", "score", "rank"], errors="ignore").iloc[rows].reset_index(drop=True)
        return pt.model.add_ranks(out.assign(docno=np.array(self.store.docnos.named(docs), dtype=object), score=scores.astype("float64")))

    def _best(self, queries: Ragged, query: int) -> tuple[np.ndarray, np.ndarray]:
        """The numbers and scores of a query's best documents, best first."""
        vectors: StoredVectors = self.store.vectors
        if self.exhaustive:
            docs = np.arange(len(vectors.starts) - 1)
        else:
            own = queries.flat[queries.starts[query]:queries.starts[query + 1]].float().cpu().numpy()
            # where a document has one vector, as many neighbours are needed as documents
            near = self.index.search(np.ascontiguousarray(own), self.num_results if isinstance(self.ranker.model.interaction, Dot) else self.neighbours)[1]
            docs = np.unique(np.searchsorted(vectors.starts, np.unique(near[near >= 0]), side="right") - 1)
        scores = self.ranker._score_rows(queries, np.full(len(docs), query), vectors, docs, lambda _: None)
        best = np.argsort(-scores, kind="stable")[:self.num_results]
        return docs[best], self.ranker._finite(scores[best])

    def fuse_rank_cutoff(self, k: int) -> pt.Transformer | None:
        """Retrieves no more than is kept."""
        if k >= self.num_results:
            return self
        return StoreRetriever(self.store, self.ranker, k, self.neighbours, self.probes, self.factory, self.exhaustive)

    def _key(self) -> tuple[Any, ...]:
        return (self.store, self.ranker, self.num_results, self.neighbours, self.probes, self.factory, self.exhaustive)

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, StoreRetriever) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return f"{self.store!r}.retriever({self.ranker!r}, num_results={self.num_results})"

    def subtransformers(self) -> dict[str, pt.Transformer]:
        """None: the ranker is only asked for queries."""
        return {}


def token_index(folder: Path, vectors: StoredVectors, factory: str | None, verbose: bool) -> Any:
    """The faiss index over the vectors of a store, by inner product; read from its folder, or built and put there.

    Args:
        folder: The store's.
        vectors: Its vectors.
        factory: What faiss calls the kind of index. Default None: an inverted file with about four times the root of the number of vectors as
            lists; vectors in float16, or where that would take more than 16 GB, in one byte for every four dimensions.
        verbose: Whether to show a progress bar.
    """
    faiss = require_extra("faiss", "dense", "DocumentStore.retriever")
    count, width = vectors.flat.shape
    lists = 2 ** max(0, round(math.log2(4 * math.sqrt(max(1, count)))))
    lists = max(1, min(lists, count // TRAINED))
    factory = factory or (f"IVF{lists},SQfp16" if 2 * count * width <= LARGE or width % 4 else f"IVF{lists},PQ{width // 4}")
    path = folder / f"tokens-{factory.replace(',', '-')}.faiss"
    if path.exists():
        index = faiss.read_index(str(path))
        if index.ntotal == count and index.d == width:
            return index
    index = faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT)
    wanted = TRAINED * max(lists, 1024)
    sample = np.arange(count) if count <= wanted else np.unique(np.random.default_rng(0).integers(0, count, wanted))
    index.train(vectors.at(sample))
    for start in pt.tqdm(range(0, count, BLOCK), desc="index of token vectors", unit="block", disable=not verbose):
        index.add(vectors.at(np.arange(start, min(start + BLOCK, count))))
    fresh = folder / f".{path.name}.{uuid.uuid4().hex[:8]}"
    try:
        faiss.write_index(index, str(fresh))
        fresh.rename(path)
    except Exception as error:          # faiss has errors of its own
        fresh.unlink(missing_ok=True)
        warnings.warn(f"The index of token vectors could not be kept at {path}, and will be built again: {error}", stacklevel=3)
    return index


def set_probes(index: Any, probes: int) -> None:
    """Sets into how many of its lists an inverted file looks, whatever stands before it; other indexes have none."""
    faiss = require_extra("faiss", "dense", "DocumentStore.retriever")
    try:
        faiss.extract_index_ivf(index).nprobe = probes
    except RuntimeError:
        return
