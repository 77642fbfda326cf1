"""A loss is a value: it says what it needs, and computes a number from signals. Losses add and scale.

    standard_kd = 0.5 * SoftLabels(temperature=5) + 0.5 * HardLabels()

A sum of losses is a ``Total`` of weighted terms, so that the paper's equation is the line of code and its ``repr``.
A weight is a number, or a function of the progress of training in [0, 1]. ``bind`` gives the module that a training
runs: it owns what a loss learns (nothing, for losses over scores), and returns every term under its own name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..signals import Batch, Needs, Signals

Weight = float | Callable[[float], float]


class Loss(ABC):
    """Compares a student's signals with a teacher's signals or with labels."""

    @property
    @abstractmethod
    def needs(self) -> Needs:
        """The signals, labels and number of texts without which this loss cannot be computed."""

    @abstractmethod
    def __call__(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """The loss as a scalar float32 tensor.

        Args:
            student: Signals of the student, with gradients.
            teacher: Signals of the teacher, without; losses over labels alone do not read them.
            batch: The batch that both speak of.
        """

    def bind(self) -> BoundLoss:
        """The module that a training prepares and runs."""
        return BoundLoss(self)

    def __add__(self, other: Loss) -> Total:
        if not isinstance(other, Loss):
            return NotImplemented
        return Total(terms_of(self) + terms_of(other))

    def __mul__(self, weight: Weight) -> Total:
        if not isinstance(weight, int | float) and not callable(weight):
            return NotImplemented
        return Total(tuple(Term(product(weight, t.weight), t.loss) for t in terms_of(self)))

    __rmul__ = __mul__


@dataclass(frozen=True)
class Term:
    """One weighted loss of a sum."""

    weight: Weight
    loss: Loss

    def __repr__(self) -> str:
        if self.weight == 1:
            return repr(self.loss)
        name = getattr(self.weight, "__name__", repr(self.weight)) if callable(self.weight) else f"{self.weight:g}"
        return f"{name} * {self.loss!r}"


@dataclass(frozen=True)
class Total(Loss):
    """A weighted sum of losses."""

    terms: tuple[Term, ...]

    @property
    def needs(self) -> Needs:
        """The union of what the terms need."""
        needs = Needs(student=frozenset())
        for term in self.terms:
            needs |= term.loss.needs
        return needs

    def __call__(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """The weighted sum, with scheduled weights at the start of training."""
        return sum_of(self, student, teacher, batch, progress=0.0)[0]

    def __repr__(self) -> str:
        return " + ".join(repr(term) for term in self.terms)


class BoundLoss(nn.Module):
    """A loss ready for training: what it learns is a parameter of this module."""

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, student: Signals, teacher: Signals, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The total, and the unweighted value of every term by name; ``progress`` in [0, 1] sets scheduled weights."""
        return sum_of(self.loss, student, teacher, batch, progress)


def sum_of(loss: Loss, student: Signals, teacher: Signals, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of a loss's terms and each term's own value."""
    total = torch.zeros((), device=student.scores.device)
    values: dict[str, Tensor] = {}
    for term in terms_of(loss):
        value = term.loss(student, teacher, batch)
        weight = term.weight(progress) if callable(term.weight) else term.weight
        total = total + weight * value
        values[repr(term.loss)] = value.detach()
    return total, values


def terms_of(loss: Loss) -> tuple[Term, ...]:
    """The terms of a sum; a single loss is its own only term, of weight 1."""
    return loss.terms if isinstance(loss, Total) else (Term(1.0, loss),)


def product(a: Weight, b: Weight) -> Weight:
    """The product of two weights, either of which may be scheduled."""
    if a == 1 or b == 1:
        return b if a == 1 else a
    if callable(a) or callable(b):
        return lambda progress: value_at(a, progress) * value_at(b, progress)
    return a * b


def value_at(weight: Weight, progress: float) -> float:
    """The value of a weight at ``progress``."""
    return weight(progress) if callable(weight) else weight


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of ``values`` where ``mask`` (same shape, bool) is True; 0, with a gradient of 0, where it never is."""
    kept = values.masked_fill(~mask, 0.0)
    return kept.sum() / mask.sum().clamp(min=1)


def differences(values: Tensor) -> Tensor:
    """(B, n) -> (B, n, n): entry [b, i, j] is values[b, i] - values[b, j]."""
    return values.unsqueeze(2) - values.unsqueeze(1)


def pairs(mask: Tensor) -> Tensor:
    """(B, n) bool -> (B, n, n) bool: True where both texts are real."""
    return mask.unsqueeze(2) & mask.unsqueeze(1)
