"""A stage of a strategy as a value: a loss, what it is trained on, and how. The loop that runs it is ``training``."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd

from .groups import Groups
from .losses import Loss
from .sampling import Sampler
from .signals import SCORES


class Source(Protocol):
    """Where a stage's batches come from: ``Groups`` of queries with their texts, or a ``Corpus`` of texts."""

    def steps(self, batch_size: int, most: int | None = None) -> int:
        """The number of batches of an epoch, or ``most`` if it has more."""

    def batches(self, batch_size: int, sampler: Sampler, seed: Sequence[int], part: tuple[int, int] = (0, 1), skip: int = 0) -> Iterator[Any]:
        """The batches of one epoch; see ``Groups.batches``."""


@dataclass(frozen=True)
class Stage:
    """One stage of a strategy: a loss, and how it is trained.

    Args:
        loss: The loss, or a weighted sum of losses.
        epochs: Passes over the queries; may be a fraction. Default 1.
        steps: Optimiser steps, instead of epochs. Default None.
        learning_rate: Its highest value. Default 2e-5.
        rates: Learning rates of their own for parameters in whose names a pattern (a regular expression) is found, ``{"embedding": 1e-5}``; 0 leaves
            them as they are. Default: none.
        batch_size: B, queries a step; texts a step where there is a corpus. Default 32.
        sampler: Chooses the texts of a query. Default: one relevant, where there is one, and one other.
        candidates: Makes this stage's candidates of the student as it is when the stage begins, such as ``kd.Mined(corpus, topics)``: its own
            hard negatives. Default None: those that ``fit`` gets.
        topics: Gives each query the number of its topic, such as ``kd.QueryTopics(encoder)``; a batch then holds queries of one topic alone. For losses
            over all texts of a batch. Default None.
        corpus: Texts to train on instead of queries and candidates: an iterable of texts or dicts that starts anew each time, or a
            function that returns an iterator, such as ``dataset.get_corpus_iter``. For losses over layers. Default None.
        length: The most tokens of a text of the corpus, special ones included; longer texts are cut into several. Default 128.
        schedule: "linear" (default; down to 0), "cosine" (down to 0) or "constant".
        warmup: The fraction of the steps in which the learning rate rises to its value. Default 0.1.
        weight_decay: AdamW's, not on biases and normalisations. Default 0.01.
        dropout: A number sets every dropout of the student for this stage; None (default) leaves the model's. 0 trains
            markedly faster on a CPU.
        clip: The largest norm of the gradient. Default 1.
        accumulate: Parts into which a step's queries are split to save memory, each a batch of its own whose loss counts by its queries. Default 1.
        teacher: A teacher of this stage's own, in place of the distiller's. Default None.
        name: For the history and the printed strategy.
    """

    loss: Loss
    epochs: float = 1
    steps: int | None = None
    learning_rate: float = 2e-5
    rates: Mapping[str, float] = field(default_factory=dict, hash=False)
    batch_size: int = 32
    sampler: Sampler = field(default_factory=Sampler)
    candidates: Callable[[Any], pd.DataFrame] | None = None
    topics: Callable[[Sequence[str]], np.ndarray] | None = None
    corpus: Any = field(default=None, repr=False)
    length: int = 128
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

        if self.corpus is not None and self.candidates is not None:
            raise ValueError(f"Stage(name={self.name!r}) has both corpus= and candidates=: it trains on the one or on the other.")
        if self.corpus is not None and (beyond := self.loss.needs.student & SCORES or self.loss.needs.labels):
            raise ValueError(f"Stage(loss={self.loss!r}, corpus=...) needs {'labels' if beyond is True else sorted(beyond)}, which texts without queries do not have: "
                             "only losses over layers can be trained on a corpus, such as Attention() + Hidden() + Embedding().")

    def rate_of(self, name: str) -> float:
        """The highest learning rate of a parameter."""
        return next((rate for pattern, rate in self.rates.items() if re.search(pattern, name)), self.learning_rate)

    def taught_by(self, teacher: Any) -> Any:
        """This stage's own teacher, or else ``teacher``, that of the whole training."""
        return teacher if self.teacher is None else self.teacher

    def total(self, source: Source, processes: int) -> int:
        """The number of optimiser steps over a source."""
        return self.steps or max(1, math.ceil(self.epochs * self.epoch(source, processes)))

    def epoch(self, source: Source, processes: int) -> int:
        """The number of steps of one pass over a source, of each of ``processes``; no more than there will be at all."""
        batches = source.steps(self.batch_size, None if self.steps is None else self.steps * processes)
        if batches < processes:
            raise ValueError(f"The data of stage {self.name!r} make {batches} batch(es) of {self.batch_size}, fewer than the {processes} processes.")
        return batches // processes

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
