"""What flows between rankers and losses.

A ranker reads a ``Batch`` and reports ``Signals``; a loss compares the signals of a student with those of a teacher.
Neither knows the other: a loss never sees a model, and a ranker never knows whether it teaches or learns.

Letters for shapes, used throughout the package:
    B queries, n texts a query, T tokens (Tq of a query, Td of a text), C classes, H hidden size, L layers, A heads.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .errors import MissingSignal


@dataclass(frozen=True)
class Needs:
    """What a loss must be given.

    Attributes:
        student: Names of the signals that it reads from the student.
        teacher: Names of the signals that it reads from the teacher; empty for a loss over labels alone.
        labels: Whether it reads relevance labels, and so needs a positive for a query to count.
        texts: The least number of texts a query for which it says anything (2 for a loss over margins).
    """

    student: frozenset[str] = frozenset({"scores"})
    teacher: frozenset[str] = frozenset()
    labels: bool = False
    texts: int = 1

    def __or__(self, other: Needs) -> Needs:
        return Needs(self.student | other.student, self.teacher | other.teacher,
                     self.labels or other.labels, max(self.texts, other.texts))


@dataclass(frozen=True)
class Batch:
    """B queries with n texts each, as row numbers of the text tables that a student or teacher tokenised.

    Attributes:
        queries: (B,) rows of the query table.
        texts: (B, n) rows of the text table; 0 where ``mask`` is False.
        docs: (B, n) numbers that identify documents, so that one document met twice in a batch is known as such.
        labels: (B, n) float32 relevance labels; unjudged counts as 0.
        mask: (B, n) bool, False where a query has fewer than n texts.
        positives: (B, B*n) bool, True where a text of the batch is known to be relevant to a query of the batch.
        teacher: (B, n) float32 given teacher scores, or None.
    """

    queries: Tensor
    texts: Tensor
    docs: Tensor
    labels: Tensor
    mask: Tensor
    positives: Tensor
    teacher: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on ``device``."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device) for k, v in moved.items() if v is not None})

    def negatives(self) -> Tensor:
        """(B, B*n) bool: the texts of the batch that may serve as negatives of each query.

        Padding is out, known positives are out, and of a document that occurs several times only the first
        occurrence counts, so that a popular document does not weigh more.
        """
        docs, mask = self.docs.flatten(), self.mask.flatten()                                # (B*n,)
        order = torch.arange(len(docs), device=docs.device)
        same = (docs[:, None] == docs[None, :]) & mask[None, :]                              # (B*n, B*n)
        earlier = (same & (order[None, :] < order[:, None])).any(dim=1)                      # (B*n,)
        return (mask & ~earlier)[None, :] & ~self.positives


@dataclass(frozen=True)
class Signals:
    """What a ranker says of a batch.

    Attributes:
        scores: (B, n) float32.
        logits: (B, n, C) float32 of a ranker with classes; a single logit s stands for the two logits (0, s).
        in_batch: (B, B*n) float32, every query against every text of the batch, from rankers that have it cheaply.
        who: The name of the ranker or teacher, for messages.
    """

    scores: Tensor
    logits: Tensor | None = None
    in_batch: Tensor | None = None
    who: str = "this ranker"

    def require(self, name: str, by: object) -> Tensor:
        """The signal ``name``, or an error that says who needs it and what to do.

        Args:
            name: "scores", "logits" or "in_batch".
            by: The loss that needs it.

        Raises:
            MissingSignal: If this ranker or teacher does not report it.
        """
        value: Tensor | None = getattr(self, name)
        if value is None:
            found = [f.name for f in fields(self) if f.name != "who" and getattr(self, f.name) is not None]
            raise missing_signal(name, by, self.who, found)
        return value


REMEDIES = {
    "in_batch": "Use a two-sided ranker such as BertDot, or a loss with in_batch=False.",
    "logits": "Use a CrossEncoder, or a loss over scores such as MSE().",
}


def missing_signal(name: str, by: object, who: str, found: list[str]) -> MissingSignal:
    """The error for a loss ``by`` that needs the signal ``name`` from ``who``, which reports only ``found``."""
    return MissingSignal(f"{by!r} needs the signal {name!r} from {who}, which reports only {found}. {REMEDIES.get(name, '')}".strip())
