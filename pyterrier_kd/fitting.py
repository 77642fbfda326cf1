"""A fit under way: stages one after the other, each in slices of steps with a validation and a checkpoint after each slice."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyterrier as pt

from .corpus import Corpus
from .errors import DataError
from .groups import Groups
from .losses import BoundLoss
from .rankers import Ranker
from .resuming import Best, FitFolder, identity_of, teacher_summary, told
from .signals import SCORES, Signals
from .stages import Stage, rows_ahead
from .strategies import Strategy
from .teacher_signals import given_signals, live_signals
from .teachers import described
from .training import Training, accelerator_for, processes

VALIDATIONS = 10        # a stage, unless told otherwise


@dataclass(frozen=True)
class FitSettings:
    """What a fit is told; see ``Distiller``."""

    strategy: Strategy
    teacher: Any
    measure: Any
    validate_every: int | None
    patience: int | None
    folder: Path | None
    precision: str | None
    tracker: str | None
    seed: int
    verbose: bool


class Fit:
    """One fit under way: its stages, its best student so far, its place on disk.

    Args:
        settings: What does not change.
        start: The student to start from; a copy is trained.
        sources: The training groups of each stage, with teacher scores where the stage's loss reads only those, or its corpus; None where a stage
            makes candidates of its own.
        losses: The loss of each stage, bound to student and teacher.
        validate: Measures a student, or None.
        renew: Makes the groups of a stage, by its number, of candidates that it has made.

    Attributes:
        history: A row for each slice of steps.
        stopped: Whether it was interrupted from the keyboard.
    """

    def __init__(self, settings: FitSettings, start: Ranker, sources: Sequence[Groups | Corpus | None], losses: list[BoundLoss],
                 validate: Callable[[Ranker], float] | None, renew: Callable[[int, pd.DataFrame], Groups]) -> None:
        self.settings, self.sources, self.losses, self.validate, self.renew = settings, list(sources), losses, validate, renew
        self.learned = losses[0].learned        # one for all stages
        self.student = start.clone()
        self.accelerator = accelerator_for(start.device, settings.precision, settings.tracker, settings.folder)
        if self.accelerator.num_processes != processes():
            raise RuntimeError(f"Distiller.fit: accelerate runs {self.accelerator.num_processes} processes, the launcher's WORLD_SIZE says {processes()}: launch with torchrun.")
        self.student.device = self.accelerator.device
        self.student.model.to(self.accelerator.device)
        own = [(told(stage.candidates), told(stage.topics)) for stage in settings.strategy.stages]
        facts = (settings.strategy.stages, own, settings.seed, start.fingerprint(), start.settings(), self.accelerator.num_processes, str(settings.measure),
                 described(settings.teacher), self.accelerator.mixed_precision)
        self.identity = identity_of(facts, sources)
        self.folder = FitFolder(settings.folder, self.identity, teacher_summary(sources)) if settings.folder is not None else None
        self.history: list[dict[str, Any]] = []
        self.best = Best()
        self.stopped = False

    def run(self) -> None:
        """Trains every stage, from where the folder says; Ctrl-C ends it with the best student so far."""
        position: dict[str, Any] = {}
        if self.folder is not None:
            position, self.best = self.folder.found()
            self.history = position.get("history", [])
        if self.settings.tracker is not None:
            self.accelerator.init_trackers("pyterrier_kd", config={"strategy": repr(self.settings.strategy), "seed": self.settings.seed})
        try:
            for index, stage in enumerate(self.settings.strategy.stages):
                if index >= position.get("stage", 0):
                    self._stage(index, stage, position if index == position.get("stage") else {})
        except KeyboardInterrupt:
            self.stopped = True
            warnings.warn(self._kept(), stacklevel=3)
        finally:
            if self.settings.tracker is not None:
                self.accelerator.end_training()

    def result(self) -> tuple[Ranker, pd.DataFrame]:
        """The best student so far, with where it comes from, and the history."""
        self.best.restore(self.student.model, self.learned)
        self.student.model.eval()
        self.student.name = ""
        settings = self.settings
        self.student.metadata_ = {
            "teacher": described(settings.teacher) if settings.teacher is not None else None, "strategy": repr(settings.strategy), "seed": settings.seed,
            "data": self.identity, "steps": int(self.history[-1]["step"]) if self.history else 0,
            **({str(settings.measure): self.best.value} if self.best.weights is not None else {})}
        return self.student, pd.DataFrame(self.history)

    def _stage(self, index: int, stage: Stage, position: dict[str, Any]) -> None:
        """Trains one stage in slices of steps, with a validation and a checkpoint after each."""
        loss, tokens = self.losses[index], None
        source = self.sources[index] = self._source(index, stage)
        seed = (self.settings.seed, index)
        if isinstance(source, Groups):
            source = source.with_texts(rows_ahead(stage, source, seed, self.accelerator.num_processes))
            tokens = self.student.tokens(source.queries, source.texts)
        training = Training(stage, self.student, tokens, source, self._teacher(stage, source, loss), loss, self.accelerator, seed)
        if not position:
            self.best = Best()
        elif self.folder is not None and position["done"]:
            training.restore(self.folder.last)
        every = self.settings.validate_every or max(1, training.total // VALIDATIONS)
        with self._bar(stage, training) as report:
            while training.done < training.total and not self._patience_over():
                try:
                    row = training.run(every - training.done % every, report)
                except DataError:           # a corpus that failed midway
                    if training.done:
                        self.history.append({"stage": stage.name, "step": training.done})
                        self._checkpoint(training, index)
                    raise
                self._record(stage, training, row)
                self._checkpoint(training, index)
        self.best.restore(self.student.model, self.learned)

    def _source(self, index: int, stage: Stage) -> Groups | Corpus:
        """What a stage trains on, made of the student as it is now where the stage says so."""
        source = self.sources[index]
        if source is not None:
            return source
        assert stage.candidates is not None
        if self.folder is not None and (kept := self.folder.candidates(index)) is not None:
            return self.renew(index, kept)
        self.student.model.eval()
        frame = stage.candidates(self.student)
        if self.folder is not None and self.accelerator.is_main_process:
            self.folder.keep_candidates(index, frame)
        return self.renew(index, frame)

    def _teacher(self, stage: Stage, source: Groups | Corpus, loss: BoundLoss) -> Callable[[Any], Signals]:
        """What gives a stage its target signals."""
        if stage.loss.needs.teacher <= {"scores"}:
            return given_signals
        return live_signals(stage.taught_by(self.settings.teacher), source if isinstance(source, Groups) else None, loss, self.accelerator.device)

    @contextlib.contextmanager
    def _bar(self, stage: Stage, training: Training) -> Iterator[Callable[[float, int, float], None]]:
        """A progress bar with loss, measure, pairs a second and the time left."""
        disable = not self.settings.verbose or not self.accelerator.is_main_process
        with pt.tqdm(total=training.total, initial=training.done, desc=f"{stage.name}", unit="step", disable=disable) as bar:
            pairs, training_seconds = 0, 1e-9

            def report(loss: float, count: int, seconds: float) -> None:
                nonlocal pairs, training_seconds
                pairs, training_seconds = pairs + count, training_seconds + seconds
                bar.update(1)
                shown = {"loss": f"{loss:.4g}", "pairs/s": f"{pairs / training_seconds:.0f}"}
                bar.set_postfix(shown | ({str(self.settings.measure): f"{self.best.value:.4f} at {self.best.step}"} if self.best.step else {}))

            yield report

    def _record(self, stage: Stage, training: Training, row: dict[str, float]) -> None:
        """Validates, keeps the best weights, and adds a row to the history.

        A stage that does not train the scores is not measured by them: its last weights are kept.
        """
        record: dict[str, Any] = {"stage": stage.name, "step": training.done, **row}
        if self.validate is not None and stage.loss.needs.student & SCORES:
            value = self.validate(self.student)
            record[str(self.settings.measure)] = value
            self.best.offer(value, training.done, self.student.model, self.learned)
        self.history.append(record)
        if self.settings.tracker is not None:
            self.accelerator.log({f"{stage.name}/{k}": v for k, v in record.items() if k not in ("stage", "step")}, step=training.done)

    def _patience_over(self) -> bool:
        return self.settings.patience is not None and self.best.waited >= self.settings.patience

    def _kept(self) -> str:
        """What is left of a training that was interrupted."""
        step = self.history[-1]["step"] if self.history else 0
        best = f"the best student so far ({self.settings.measure} {self.best.value:.4f} at step {self.best.step})" if self.best.weights is not None else "the student as it is now"
        again = f"; fit again to go on from {self.settings.folder}" if self.settings.folder is not None else ""
        return f"Distiller.fit was interrupted after step {step} of stage {self.history[-1]['stage'] if self.history else 'one'!r}: student_ is {best}{again}."

    def _checkpoint(self, training: Training, stage: int) -> None:
        """Writes the state; a disk that is full or read-only costs a warning, not the training."""
        if self.folder is None:
            return
        try:
            self.folder.save(training, stage, self.history, self.best, self.student)
        except OSError as error:
            warnings.warn(f"Distiller.fit: {error}. Training goes on; the previous checkpoint stays.", stacklevel=3)
