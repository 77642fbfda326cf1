"""From the scores of passages to the scores of their documents: one row a document, with one of its passages' columns."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyterrier as pt

from ..errors import DataError
from ..frames import require_unique
from ..groups import parent_docno

KINDS = ("max", "first", "mean", "k_max_mean")


class Aggregate(pt.Transformer):
    """Scores documents by their passages; see ``max_passage`` and its kin.

    Documents keep the order in which they first appear. A document's row is that of the passage that counts, with the document's
    docno: the best one, or for ``first`` and ``mean`` the first one. Of equal passages the earlier one counts.

    Args:
        kind: "max", "first", "mean" or "k_max_mean".
        k: For "k_max_mean", how many passages count.
    """

    schematic: ClassVar[dict[str, Any]] = {"label": "MaxP", "help_url": None}

    def __init__(self, kind: str, k: int = 1) -> None:
        if kind not in KINDS or k < 1:
            raise ValueError(f"Aggregate(kind={kind!r}, k={k}): kind must be one of {', '.join(KINDS)}, k at least 1.")
        self.kind, self.k = kind, k

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """One row a document.

        Args:
            inp: Columns ``qid``, ``docno`` (such as ``d1%p0``; a docno without ``%p`` and a number is a document of one passage), ``score``.
        """
        pt.validate.result_frame(inp, extra_columns=["score"], context=self)
        frame = inp.drop(columns=["rank"], errors="ignore").reset_index(drop=True)
        if not len(frame):
            return pt.model.add_ranks(frame.assign(score=pd.Series(dtype="float64")))
        require_unique(frame, "passages", self)
        parent = parent_docno(frame["docno"].astype(str))
        documents = frame.groupby(["qid", parent.rename("parent")], sort=False).ngroup().to_numpy()
        number = frame["docno"].astype(str).str.extract(r"%p(\d+)$")[0].fillna(0).astype(int).to_numpy() * (self.kind == "first")
        order = np.lexsort((np.arange(len(frame)), number, documents))
        starts = np.flatnonzero(np.diff(documents[order], prepend=-1))
        scores = frame["score"].to_numpy(dtype=np.float64)[order]
        if not np.isfinite(scores).all():
            raise DataError(f"{self!r}: {int((~np.isfinite(scores)).sum())} of {len(scores)} passages have no finite score.")
        values, chosen = self.of(scores, starts)
        rows = order[chosen]
        return pt.model.add_ranks(frame.iloc[rows].assign(docno=parent.iloc[rows], score=values).reset_index(drop=True))

    def of(self, scores: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The scores of D documents.

        Args:
            scores: (N,) of all passages, those of a document together and in their order.
            starts: (D,) where each document's passages start.

        Returns:
            (D,) scores, and (D,) which passage's columns each document gets.
        """
        if self.kind == "first":
            return scores[starts], starts
        sizes = np.diff(np.append(starts, len(scores)))
        if self.kind == "mean":
            return np.add.reduceat(scores, starts) / sizes, starts
        documents = np.repeat(np.arange(len(starts)), sizes)
        best_first = np.lexsort((np.arange(len(scores)), -scores, documents))
        if self.kind == "max":
            return scores[best_first[starts]], best_first[starts]
        counted = np.arange(len(scores)) - starts[documents] < self.k
        return np.add.reduceat(np.where(counted, scores[best_first], 0.0), starts) / np.minimum(sizes, self.k), best_first[starts]

    def __eq__(self, other: object) -> bool:
        return (self.kind, self.k) == (other.kind, other.k) if isinstance(other, Aggregate) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.kind, self.k))

    def __repr__(self) -> str:
        return f"k_max_mean({self.k})" if self.kind == "k_max_mean" else f"{self.kind}_passage()"


def max_passage() -> Aggregate:
    """MaxP: a document has the score, and the columns, of its best passage."""
    return Aggregate("max")


def first_passage() -> Aggregate:
    """FirstP: a document has the score of its first passage. Compiled, only first passages are scored."""
    return Aggregate("first")


def mean_passage() -> Aggregate:
    """AvgP: a document has the mean score of its passages, and the columns of the first."""
    return Aggregate("mean")


def k_max_mean(k: int) -> Aggregate:
    """A document has the mean score of its k best passages (of all, if it has fewer), and the columns of the best."""
    return Aggregate("k_max_mean", k)
