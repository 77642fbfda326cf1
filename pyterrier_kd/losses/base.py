"""A loss is a value: it says what it needs, and computes a number from signals. Losses add and scale.

    standard_kd = 0.5 * SoftLabels(temperature=5) + 0.5 * HardLabels()

A sum of losses is a ``Total`` of weighted terms, so that the paper's equation is the line of code and its ``repr``.
A weight is a number, or a function of the progress of training in [0, 1]. ``bind`` gives the module that a training
runs: it knows which layers each term reads, owns what a loss learns (projections; nothing, for losses over scores), and
returns every term under its own name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..signals import Architecture, Batch, LayerNumbers, Needs, Signals

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

    def bind(self, student: Architecture | None = None, teacher: Architecture | None = None, learned: nn.ModuleDict | None = None) -> BoundLoss:
        """The module that a training prepares and runs.

        Args:
            student: The student's architecture; only losses over layers ask for it.
            teacher: The teacher's, None if it has no layers to look at.
            learned: What has been learned by losses before, such as projections, which these losses share and add to.

        Raises:
            LayerMismatch: If a loss cannot compare the layers of the two.
        """
        return BoundLoss(self, student, teacher, nn.ModuleDict() if learned is None else learned)

    def bound(self, student: Architecture | None, teacher: Architecture | None, learned: nn.ModuleDict) -> BoundTerm:
        """This loss for a student and a teacher; for most losses the same for all. See ``bind``."""
        return BoundTerm(self)

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
class BoundTerm:
    """A loss for a given student and teacher.

    Attributes:
        compute: The loss of (student signals, teacher signals, batch).
        student: The layers that it reads of the student.
        teacher: The layers that it reads of the teacher.
    """

    compute: Callable[[Signals, Signals, Batch], Tensor]
    student: LayerNumbers = field(default_factory=dict)
    teacher: LayerNumbers = field(default_factory=dict)


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
        total: Tensor = self.bind()(student, teacher, batch, 0.0)[0]
        return total

    def __repr__(self) -> str:
        return " + ".join(repr(term) for term in self.terms)


class BoundLoss(nn.Module):
    """A loss ready for training: what it learns is a parameter of this module.

    Attributes:
        student_layers: The layers that it reads of the student, by signal.
        teacher_layers: The layers that it reads of the teacher.
    """

    def __init__(self, loss: Loss, student: Architecture | None, teacher: Architecture | None, learned: nn.ModuleDict) -> None:
        super().__init__()
        self.loss, self.learned = loss, learned
        self.terms = [(term, term.loss.bound(student, teacher, learned)) for term in terms_of(loss)]
        self.student_layers = united(bound.student for _, bound in self.terms)
        self.teacher_layers = united(bound.teacher for _, bound in self.terms)

    def forward(self, student: Signals, teacher: Signals, batch: Batch, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The total, and the unweighted value of every term by name; ``progress`` in [0, 1] sets scheduled weights."""
        with torch.autocast(student.scores.device.type, enabled=False):      # losses are computed in float32
            total = torch.zeros((), device=student.scores.device)
            values: dict[str, Tensor] = {}
            for term, bound in self.terms:
                value = bound.compute(student, teacher, batch)
                total = total + value_at(term.weight, progress) * value
                values[repr(term.loss)] = value.detach()
            return total, values


def united(asked: Iterable[LayerNumbers]) -> LayerNumbers:
    """All layers that several terms read."""
    union: dict[str, frozenset[int]] = {}
    for layers in asked:
        for name, numbers in layers.items():
            union[name] = union.get(name, frozenset()) | numbers
    return union


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
