"""A teacher is anything that scores: a ranker, any PyTerrier transformer or pipeline, a run, or a sum of those.

Whatever the user has becomes a weighted sum of *leaves*: PyTerrier's ``+`` and ``*`` are walked, never called, since ``+`` gives a
row that one side dropped the score 0. What a teacher says ahead of training is in ``teacher_scores``, while training runs in ``teacher_signals``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import pandas as pd
import pyterrier as pt
from pyterrier import _ops as operators

from .errors import TeacherError
from .rankers import Ranker


class Teacher:
    """A teacher, with what cannot be seen from outside.

    Args:
        teacher: A ranker, a transformer or pipeline, a run (a frame with ``qid``, ``docno``, ``score``), or another ``Teacher``.
        name: Names a transformer for good, so that its scores are kept from one fit to the next. Its ``repr`` tells nothing (two
            different functions look alike), so without a name they are kept for one fit. Use a new name for a new model.
        listwise: Whether a score depends on the query's other texts; such a teacher is asked about whole lists. Default False.
        logit: Whether its scores are probabilities that are to be turned back into log-odds. Default False.
        missing: What to do about rows that a run does not have: "error" (default) or "drop" (train without them).
    """

    def __init__(self, teacher: Any, name: str | None = None, *, listwise: bool = False, logit: bool = False,
                 missing: Literal["error", "drop"] = "error") -> None:
        if missing not in ("error", "drop"):
            raise ValueError(f"Teacher(missing={missing!r}) is unknown: it is 'error' or 'drop'.")
        self.teacher, self.name, self.listwise, self.logit, self.missing = teacher, name, listwise, logit, missing

    def __repr__(self) -> str:
        return f"Teacher({self.name or described(self.teacher)})"


class Ensemble:
    """The mean of several teachers' raw scores (the T2 teacher of arXiv:2010.02666).

    Args:
        teachers: The teachers.
        weights: One for each. Default: equal, summing to 1.
        standardise: Whether each teacher's scores are brought to mean 0 and standard deviation 1 first, over all candidates that training sees,
            where teachers' scales differ. Default False, as in the paper, whose three teachers are alike.
    """

    def __init__(self, teachers: Sequence[Any], weights: Sequence[float] | None = None, standardise: bool = False) -> None:
        self.teachers, self.standardise = list(teachers), standardise
        self.weights = [1 / len(self.teachers)] * len(self.teachers) if weights is None else list(weights)
        if not self.teachers or len(self.weights) != len(self.teachers):
            raise ValueError(f"Ensemble of {len(self.teachers)} teachers with {len(self.weights)} weights: it needs a teacher, and a weight for each.")

    def __repr__(self) -> str:
        return "Ensemble(" + ", ".join(described(t) for t in self.teachers) + ")"


class BySignal:
    """Another teacher for each signal (the dual supervision of arXiv:2104.06967).

    Args:
        in_batch: A two-sided ranker, which scores every query with every text of the batch while training runs.
        scores: Gives the scores of each query with its own texts, ahead of training. Default None: the data hold them (``kd.pairs``).
    """

    def __init__(self, in_batch: Any, scores: Any = None) -> None:
        self.in_batch, self.scores = in_batch, scores

    def __repr__(self) -> str:
        return f"BySignal(in_batch={described(self.in_batch)}, scores={'the data' if self.scores is None else described(self.scores)})"


def scores_by(teacher: Any) -> Any:
    """Who scores queries with their own texts: the teacher, or a part of it; None if nobody does."""
    return teacher.scores if isinstance(teacher, BySignal) else teacher


@dataclass(frozen=True, eq=False)
class Leaf:
    """One teacher of a sum.

    Attributes:
        source: The ranker, transformer or run.
        giver: Identifies its scores on disk, or None if they cannot be told from those of another.
        listwise, logit, missing: As in ``Teacher``.
        standardise: As in ``Ensemble``.
    """

    source: Any
    giver: str | None = None
    listwise: bool = False
    logit: bool = False
    missing: str = "error"
    standardise: bool = False

    def __repr__(self) -> str:
        return described(self.source)


Terms = tuple[tuple[float, Leaf], ...]


def described(teacher: Any) -> str:
    """A short name of a teacher for messages."""
    return f"a run of {len(teacher)} rows" if isinstance(teacher, pd.DataFrame) else str(teacher)


def terms_of(teacher: Any) -> Terms:
    """Turns what a user passes as teacher into a weighted sum of leaves.

    Raises:
        TeacherError: If it is nothing that scores.
    """
    if isinstance(student := getattr(teacher, "student_", None), Ranker):       # a Distiller that has been fitted
        return terms_of(student)
    if isinstance(teacher, Teacher):
        inner = terms_of(teacher.teacher)
        return tuple((w, named(leaf, teacher, i if len(inner) > 1 else None)) for i, (w, leaf) in enumerate(inner))
    if isinstance(teacher, Ensemble):
        terms = [(w, terms_of(t)) for w, t in zip(teacher.weights, teacher.teachers, strict=True)]
        if teacher.standardise and any(len(inner) > 1 for _, inner in terms):
            raise ValueError(f"{teacher!r}: standardise=True needs single teachers, not sums of others: standardise those that are summed.")
        return tuple((w * v, replace(leaf, standardise=teacher.standardise or leaf.standardise)) for w, inner in terms for v, leaf in inner)
    if isinstance(teacher, BySignal):
        raise TeacherError(f"{teacher!r} is no single teacher: use it as it is, for a loss over scores and in-batch scores such as MarginMSE() + MarginMSE(in_batch=True).")
    if isinstance(teacher, operators.Sum):
        return terms_of(teacher.left) + terms_of(teacher.right)
    if isinstance(teacher, operators.Compose) and len(teacher) > 1:
        *head, last = teacher
        before = head[0] if len(head) == 1 else operators.Compose(*head)
        if isinstance(last, operators.ScalarProduct):
            return tuple((last.scalar * w, leaf) for w, leaf in terms_of(before))
        if isinstance(last, operators.Sum):
            return terms_of(before >> last.left) + terms_of(before >> last.right)
    return ((1.0, leaf_of(teacher)),)


def leaf_of(teacher: Any) -> Leaf:
    """A teacher that is no sum of others."""
    if isinstance(teacher, Ranker):
        return Leaf(teacher, giver=f"ranker {teacher._key()!r}")
    if isinstance(teacher, pd.DataFrame):
        missing = [c for c in ("qid", "docno", "score") if c not in teacher.columns]
        if missing:
            raise TeacherError(f"A run as teacher needs the columns qid, docno and score; {missing} are missing among {list(teacher.columns)}.")
        return Leaf(teacher)
    if isinstance(teacher, pt.Transformer):
        return Leaf(teacher)
    raise TeacherError(f"{type(teacher).__name__} is no teacher: pass a kd ranker, a PyTerrier transformer or pipeline, a run as a frame, or a sum of those.")


def named(leaf: Leaf, teacher: Teacher, place: int | None) -> Leaf:
    """A leaf with what ``Teacher`` says of it; ``place`` is which leaf of a sum it is."""
    listwise = leaf.listwise or teacher.listwise
    giver = leaf.giver
    if giver is None and teacher.name and not isinstance(leaf.source, pd.DataFrame):
        giver = f"named {teacher.name!r} place={place} listwise={listwise}"
    missing = "drop" if "drop" in (leaf.missing, teacher.missing) else "error"
    return replace(leaf, giver=giver, listwise=listwise, logit=leaf.logit or teacher.logit, missing=missing)
