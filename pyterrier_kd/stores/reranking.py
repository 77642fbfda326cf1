"""Re-ranking documents by their vectors in a store: what a two-sided ranker does with a frame, without the frame's texts."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import pyterrier as pt

from ..errors import DataError, some
from ..frames import distinct, explained
from ..rankers import TwoSided


class StoreScorer(pt.Transformer):
    """Re-ranks documents by their vectors in a store; see ``DocumentStore.scorer``."""

    schematic: ClassVar[dict[str, Any]] = {"label": "Store scorer", "help_url": None}

    def __init__(self, store: Any, ranker: TwoSided, missing: Literal["error", "text"]) -> None:
        if missing not in ("error", "text"):
            raise ValueError(f"scorer(missing={missing!r}) is unknown: it is 'error' or 'text'.")
        self.stamp = store.require(ranker)
        self.store, self.ranker, self.missing = store, ranker, missing

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """The same rows in the same order, with ``score`` and ``rank`` set.

        Args:
            inp: A frame with ``qid``, ``docno`` and ``query``; or without queries but with this ranker's vectors of them, ``query_embs``, of a ``BertDot``
                ``query_vec``.

        Raises:
            DataError: If documents are not in the store and ``missing`` is "error".
        """
        with explained(self, inp, ["query"]), pt.validate.any(inp, context=self) as asked:
            for column in ("query", self.ranker.vectors_of("query")):
                asked.result_frame(extra_columns=[column], mode=column)
        self.stamp = self.store.require(self.ranker, self.stamp)
        out = inp.drop(columns=["score", "rank"], errors="ignore").reset_index(drop=True)
        if not len(out):
            return pt.model.add_ranks(out.assign(score=pd.Series(dtype="float64")))
        docs, names = distinct(out["docno"].astype(str), "docnos", self)
        _, vectors, docnos = self.store.opened()
        rows = docnos.rows(names)[docs]
        lost = rows < 0
        if lost.any() and self.missing == "error":
            unknown = [names[i] for i in np.unique(docs[lost])]
            raise DataError(f"{self!r}: {len(unknown)} of {len(names)} documents are not in the store: {some(sorted(unknown))}. Index them, or pass "
                            "missing='text' to encode their texts.")
        ranker = self.ranker
        texts = ranker._texts_of(out[lost].reset_index(drop=True)) if lost.any() else []
        codes, queries = ranker._queries_of(out)
        scores = np.empty(len(out), dtype=np.float32)
        with ranker._inference(), pt.tqdm(total=len(out), desc=type(ranker).__name__, unit="pair", disable=not ranker.verbose) as bar:
            scores[~lost] = ranker._score_rows(queries, codes[~lost], vectors, rows[~lost], bar.update)
            if texts:
                scores[lost] = ranker._score_texts(queries, codes[lost], *distinct(texts, "texts", ranker))
        return pt.model.add_ranks(out.assign(score=ranker._finite(scores).astype("float64")))

    def __eq__(self, other: object) -> bool:
        return (self.store, self.ranker, self.missing) == (other.store, other.ranker, other.missing) if isinstance(other, StoreScorer) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.store, self.ranker, self.missing))

    def __repr__(self) -> str:
        return f"{self.store!r}.scorer({self.ranker!r})"

    def subtransformers(self) -> dict[str, pt.Transformer]:
        """None: the ranker is only asked for queries."""
        return {}
