"""First-stage retrieval from a store of token vectors: near neighbours of each of a query's vectors, then exact scores of their documents.

The neighbours come from a faiss index over all token vectors, which is built at the first use and kept beside them; whichever documents they belong to
are candidates, and are scored by their own vectors. So scores are exact, and only documents can be missed of which no vector is near to any of
the query's (arXiv:2004.12832, section 3.6).
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyterrier as pt

from ..errors import StoreError
from ..frames import explained, fields_of
from ..rankers import TwoSided
from ..rankers.interactions import Dot
from ..rankers.vectors import Ragged
from .files import StoredVectors
from .neighbours import set_probes, token_index


class StoreRetriever(pt.Transformer):
    """Retrieves from a store; see ``DocumentStore.retriever``."""

    schematic: ClassVar[dict[str, Any]] = {"label": "Store retriever", "help_url": None}

    def __init__(self, store: Any, ranker: TwoSided, num_results: int, neighbours: int, probes: int | None, factory: str | None, exhaustive: bool) -> None:
        self.stamp = store.require(ranker)
        if not (exhaustive or ranker.retrieves):
            raise StoreError(f"{type(ranker).__name__} does not compare by products of vectors, of which an index finds the largest: pass exhaustive=True to score every document, "
                             "or re-rank another retriever's documents with store.scorer(ranker).")
        self.store, self.ranker, self.num_results, self.exhaustive = store, ranker, num_results, exhaustive
        # where a document has one vector, as many neighbours are needed as documents, also when later fewer of them are kept
        self.neighbours = max(neighbours, num_results) if isinstance(ranker.model.interaction, Dot) else neighbours
        self.probes, self.factory = probes, factory
        self._index: tuple[str, Any] | None = None

    def _index_of(self, held: str, vectors: StoredVectors) -> Any:
        """The faiss index over all token vectors of what the store holds, built if there is none yet."""
        if self._index is None or self._index[0] != held:
            self._index = (held, token_index(self.store.folder, held, vectors, self.factory, self.ranker.verbose))
            set_probes(self._index[1], self.probes, self.neighbours)
        return self._index[1]

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """The best documents of each query.

        Args:
            inp: A frame with ``qid`` and ``query``, one row a query; or without queries but with this ranker's vectors of them, ``query_embs``, of a
                ``BertDot`` ``query_vec``. Other columns are kept, but for texts.
        """
        with explained(self, inp, ["query"]), pt.validate.any(inp, context=self) as asked:
            for column in ("query", self.ranker.vectors_of("query")):
                asked.query_frame(extra_columns=[column], mode=column)
        self.stamp = self.store.require(self.ranker, self.stamp)
        topics = inp.reset_index(drop=True)
        if not len(topics):
            return topics.assign(docno=pd.Series(dtype=object), score=pd.Series(dtype="float64"), rank=pd.Series(dtype="int64"))
        ranker = self.ranker
        codes, queries = ranker._queries_of(topics)
        found, (held, vectors, docnos) = [], self.store.opened()
        index = None if self.exhaustive else self._index_of(held, vectors)
        with ranker._inference():
            for query in pt.tqdm(range(len(queries)), desc=f"{type(ranker).__name__} retriever", unit="q", disable=not ranker.verbose):
                found.append(self._best(queries, query, vectors, index))
        rows = np.concatenate([np.full(len(found[code][0]), i) for i, code in enumerate(codes)])
        docs = np.concatenate([found[code][0] for code in codes])
        scores = np.concatenate([found[code][1] for code in codes])
        out = topics.drop(columns=["score", "rank", *fields_of(ranker.text_field)], errors="ignore").iloc[rows].reset_index(drop=True)
        return pt.model.add_ranks(out.assign(docno=np.array(docnos.named(docs), dtype=object), score=scores.astype("float64")))

    def _best(self, queries: Ragged, query: int, vectors: StoredVectors, index: Any) -> tuple[np.ndarray, np.ndarray]:
        """The numbers and scores of a query's best documents, best first; without an index, of all."""
        if index is None:
            docs = np.arange(len(vectors.starts) - 1)
        else:
            own = queries.flat[queries.starts[query]:queries.starts[query + 1]].float().cpu().numpy()
            near = index.search(np.ascontiguousarray(own), self.neighbours)[1]
            docs = np.unique(np.searchsorted(vectors.starts, np.unique(near[near >= 0]), side="right") - 1)
        scores = self.ranker._score_rows(queries, np.full(len(docs), query), vectors, docs, lambda _: None)
        best = np.argsort(-scores, kind="stable")[:self.num_results]
        return docs[best], self.ranker._finite(scores[best])

    def fuse_rank_cutoff(self, k: int) -> pt.Transformer | None:
        """Retrieves no more than is kept."""
        if k >= self.num_results:
            return self
        return StoreRetriever(self.store, self.ranker, k, self.neighbours, self.probes, self.factory, self.exhaustive)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_index": None}       # another process reads the index itself

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
