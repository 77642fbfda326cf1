"""Splitting, scoring and aggregating as one step: the tokens of a document are made once and cut, no frame of passages is.

``split >> ranker >> max_passage()`` tokenises each document to split it, and each of its passages again to score them. ``compile()`` makes
this step of it, whose scores are the same.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyterrier as pt

from ..frames import require_unique
from ..rankers import Ranker
from ..tokens import TokenTable
from .aggregate import Aggregate
from .cutting import Cutter, Passages


class SplitAndScore(pt.Transformer):
    """``split >> ranker``, as a step on the way to ``RankByPassages``.

    Args:
        split: Splits.
        cutter: How it does.
        scorer: A ranker, or a ``Distiller``, whose student ranks.
    """

    schematic: ClassVar[dict[str, Any]] = {"label": "Split and score", "help_url": None}

    def __init__(self, split: pt.Transformer, cutter: Cutter, scorer: pt.Transformer) -> None:
        self.split, self.cutter, self.scorer = split, cutter, scorer

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """What the two do one after the other."""
        return self.scorer.transform(self.split.transform(inp))

    def fuse_right(self, right: pt.Transformer) -> pt.Transformer | None:
        """The whole as one step."""
        return RankByPassages(self.cutter, self.scorer, right) if isinstance(right, Aggregate) else None

    def subtransformers(self) -> dict[str, pt.Transformer]:
        """Its two parts."""
        return {"split": self.split, "scorer": self.scorer}

    def __repr__(self) -> str:
        return f"({self.split!r} >> {self.scorer!r})"


class RankByPassages(pt.Transformer):
    """``split >> ranker >> aggregate`` in one step.

    Args:
        cutter: Splits.
        scorer: A ranker, or a ``Distiller``, whose student ranks as it is when it is asked.
        aggregate: Makes the scores of documents.
    """

    schematic: ClassVar[dict[str, Any]] = {"label": "Rank by passages", "help_url": None}

    def __init__(self, cutter: Cutter, scorer: pt.Transformer, aggregate: Aggregate) -> None:
        self.cutter, self.scorer, self.aggregate = cutter, scorer, aggregate

    @property
    def ranker(self) -> Ranker:
        """The ranker that scores."""
        ranker: Ranker = self.scorer if isinstance(self.scorer, Ranker) else self.scorer.student_       # type: ignore[attr-defined]
        return ranker

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Re-ranks documents: the same rows in the same order, with ``score``, ``rank`` and the passage that counts.

        Args:
            inp: Candidates: ``qid``, ``query``, ``docno`` and the text field.
        """
        pt.validate.result_frame(inp, extra_columns=["query", *self.cutter.before, self.cutter.field], context=self)
        frame = self.cutter.checked(inp, self).drop(columns=["score", "rank"], errors="ignore")
        frame = frame.assign(docno=frame["docno"].astype(str))
        if not len(frame):
            return pt.model.add_ranks(frame.assign(score=pd.Series(dtype="float64")))
        require_unique(frame, "documents", self)
        heads, texts = self.cutter.sides(frame)
        rooms = self.cutter.rooms(frame)
        codes, queries = pd.factorize(frame["query"])
        scores, passages, kept_heads = np.empty(len(frame)), [""] * len(frame), [""] * len(frame)
        with self.ranker.scoring_tokens(list(queries)) as score:
            for rows in self.cutter.chunks(heads, texts):
                cuts = self.cutter.cut([heads[i] for i in rows], [texts[i] for i in rows], rooms[rows], places=False)
                table, starts, text_rows = self._table(cuts)
                sizes = np.diff(np.append(starts, len(text_rows)))
                each = score(np.repeat(codes[rows], sizes), table, text_rows).astype(np.float64)
                scores[rows], chosen = self.aggregate.of(each, starts)
                for row, cut, number in zip(rows.tolist(), cuts, (chosen - starts).tolist(), strict=True):
                    passages[row], kept_heads[row] = cut.windows[number].text, cut.head
        return pt.model.add_ranks(frame.assign(**self.cutter.columns(frame, kept_heads, passages), score=scores))

    def _table(self, cuts: list[Passages]) -> tuple[TokenTable, np.ndarray, np.ndarray]:
        """The tokens of all distinct passages, where each row's passages start among all, and which of the table each is."""
        places: dict[int, np.ndarray] = {}
        parts: list[np.ndarray] = []
        lengths: list[int] = []
        for cut in cuts:
            if id(cut) in places:
                continue
            windows = cut.windows[:1] if self.aggregate.kind == "first" else cut.windows
            places[id(cut)] = np.arange(len(lengths), len(lengths) + len(windows))
            for window in windows:
                parts += [cut.head_ids, window.ids]
                lengths.append(len(cut.head_ids) + len(window.ids))
        table = TokenTable(np.concatenate(parts), np.concatenate([[0], np.cumsum(lengths)]))
        rows = [places[id(cut)] for cut in cuts]
        return table, np.concatenate([[0], np.cumsum([len(r) for r in rows])[:-1]]).astype(np.int64), np.concatenate(rows)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RankByPassages):
            return NotImplemented
        return (self.cutter.key(), self.scorer, self.aggregate) == (other.cutter.key(), other.scorer, other.aggregate)

    def __hash__(self) -> int:
        return hash((self.cutter.key(), self.scorer, self.aggregate))

    def __repr__(self) -> str:
        return f"({self.cutter!r} >> {self.scorer!r} >> {self.aggregate!r})"

    def subtransformers(self) -> dict[str, pt.Transformer]:
        """What scores."""
        return {"scorer": self.scorer}
