"""A stage of a strategy as a value: a loss, and how it is trained. The loop that runs it is ``training``."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from .groups import Groups
from .losses import Loss
from .sampling import Sampler


@dataclass(frozen=True)
class Stage:
    """One stage of a strategy: a loss, and how it is trained.

    Args:
        loss: The loss, or a weighted sum of losses.
        epochs: Passes over the queries; may be a fraction. Default 1.
        steps: Optimiser steps, instead of epochs. Default None.
        learning_rate: Its highest value. Default 2e-5.
        batch_size: B, queries a step. Default 32.
        sampler: Chooses the texts of a query. Default: one relevant, where there is one, and one other.
        schedule: "linear" (default; down to 0), "cosine" (down to 0) or "constant".
        warmup: The fraction of the steps in which the learning rate rises to its value. Default 0.1.
        weight_decay: AdamW's, not on biases and normalisations. Default 0.01.
        dropout: A number sets every dropout of the student for this stage; None (default) leaves the model's. 0 trains
            markedly faster on a CPU.
        clip: The largest norm of the gradient. Default 1.
        accumulate: Parts into which a step's queries are split to save memory. Default 1.
        teacher: A teacher of this stage's own, in place of the distiller's. Default None.
        name: For the history and the printed strategy.
    """

    loss: Loss
    epochs: float = 1
    steps: int | None = None
    learning_rate: float = 2e-5
    batch_size: int = 32
    sampler: Sampler = field(default_factory=Sampler)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: float = 0.1
    weight_decay: float = 0.01
    dropout: float | None = None
    clip: float = 1.0
    accumulate: int = 1
    teacher: Any = None
    name: str = "train"

    def __post_init__(self) -> None:
        if self.schedule not in ("linear", "cosine", "constant"):
            raise ValueError(f"Stage(schedule={self.schedule!r}) is unknown: it is 'linear', 'cosine' or 'constant'.")
        if not (self.epochs > 0 and (self.steps is None or self.steps > 0) and self.batch_size > 0 and self.accumulate > 0):
            raise ValueError(f"Stage(epochs={self.epochs}, steps={self.steps}, batch_size={self.batch_size}, accumulate={self.accumulate}): all must be above 0.")
        if not isinstance(self.loss, Loss):
            raise ValueError(f"Stage(loss={self.loss!r}) is not a loss: pass one of kd.losses, such as kd.losses.MarginMSE().")

    def total(self, groups: Groups, processes: int) -> int:
        """The number of optimiser steps over some groups."""
        return self.steps or max(1, math.ceil(self.epochs * self.epoch(groups, processes)))

    def epoch(self, groups: Groups, processes: int) -> int:
        """The number of steps of one pass over some groups, of each of ``processes``."""
        each = groups.steps(self.batch_size) // processes
        if not each:
            raise ValueError(f"{len(groups)} queries make {groups.steps(self.batch_size)} batch(es) of {self.batch_size}, fewer than the {processes} processes.")
        return each

    def rate(self, progress: float) -> float:
        """The learning rate at ``progress`` in [0, 1], as a fraction of its highest value."""
        if progress < self.warmup:
            return progress / self.warmup
        rest = (1 - progress) / max(1e-9, 1 - self.warmup)
        return {"linear": rest, "cosine": 0.5 * (1 + math.cos(math.pi * (1 - rest))), "constant": 1.0}[self.schedule]


def rows_ahead(stage: Stage, groups: Groups, seed: tuple[int, ...], processes: int) -> np.ndarray:
    """(N,) bool: the rows that a training of this stage will see. Known ahead, since what a step sees depends on the seed alone."""
    total, epoch = stage.total(groups, processes), stage.epoch(groups, processes)
    used = np.zeros(len(groups.text), dtype=bool)
    for number, first in enumerate(range(0, total, epoch)):
        used |= groups.rows_of(stage.batch_size, stage.sampler, (*seed, number), min(epoch, total - first) * processes)
        if used.all():
            break
    return used
