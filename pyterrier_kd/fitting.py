"""A fit under way: stages one after the other, validation, the best student so far, and a place on disk to go on from.

The checkpoint folder holds ``last/`` (all that is needed to end in the same weights as an unbroken run) and ``best/`` (the best
student so far, a ranker's folder like any other). Both appear whole or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .atomic import atomic_file, recover
from .corpus import Corpus
from .errors import CheckpointError, DataError
from .formats.checkpoints import read_json
from .groups import Groups
from .loaded_texts import Loaded
from .losses import BoundLoss
from .rankers import Ranker
from .signals import LAYERWISE, SCORES, LayerNumbers, Signals, Texts
from .stages import Stage, rows_ahead
from .strategies import Strategy
from .teacher_signals import architecture_of, given_signals, live_signals, require_live
from .teachers import described, terms_of
from .training import BEST, POSITION, Training, accelerator_for, processes

VALIDATIONS = 10        # a stage, unless told otherwise
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")      # of a function in memory, another in each process
LEARNED = "learned by losses: "     # before the names of projections among the best weights


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


def bound_losses(strategy: Strategy, student: Ranker, teacher: Any, seed: int) -> list[BoundLoss]:
    """The losses of all stages, bound to the student and to each stage's teacher; what they learn is shared from stage to stage.

    Raises:
        LayerMismatch: If layers are to be compared that cannot be.
        MissingSignal: If a teacher cannot say what a loss needs.
    """
    learned = nn.ModuleDict()
    bound = []
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for stage in strategy.stages:
            own, alone, compares = stage.taught_by(teacher), stage.corpus is not None, stage.loss.needs.student & LAYERWISE
            mine, theirs = (student.architecture(alone), architecture_of(own, alone)) if compares else (None, None)
            bound.append(stage.loss.bind(mine, theirs, learned))
            if not stage.loss.needs.teacher <= {"scores"}:
                require_live(own, bound[-1])
            for architecture in (mine, theirs):
                if alone and architecture is not None and stage.length > architecture.limit:
                    raise ValueError(f"The stage {stage.name!r} reads texts of {stage.length} tokens, {architecture.who} at most {architecture.limit}: pass length= to the stage.")
            require_heard(student, bound[-1].student_layers)
            if theirs is not None:
                require_heard(terms_of(own)[0][1].source, bound[-1].teacher_layers)
    return bound


def require_heard(ranker: Ranker, layers: LayerNumbers) -> None:
    """Listens to a ranker once, so that layers which cannot be heard are known before training.

    Raises:
        MissingSignal: If they cannot.
    """
    if layers:
        with torch.no_grad():
            ranker.read(Texts(("a text",)), layers)


def told(value: Any) -> str:
    """What identifies a value in other processes, too.

    Of a function its code and the constants that it has from outside, of an object without a repr of its own what it holds.
    """
    if (code := getattr(value, "__code__", None)) is not None:
        outside = [cell.cell_contents for cell in value.__closure__ or ()]
        value = (value.__qualname__, code.co_code, code.co_consts, value.__defaults__, [v for v in outside if isinstance(v, str | int | float | tuple)])
    elif ADDRESS.search(repr(value)):
        value = (type(value).__qualname__, vars(value) if hasattr(value, "__dict__") else ())
    return ADDRESS.sub("", repr(value))


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
        self.given = self.sources.copy()        # what was there before training, which identifies it
        self.learned = losses[0].learned        # one for all stages
        self.student = start.clone()
        self.accelerator = accelerator_for(start.device, settings.precision, settings.tracker, settings.folder)
        if self.accelerator.num_processes != processes():
            raise RuntimeError(f"Distiller.fit: accelerate runs {self.accelerator.num_processes} processes, the launcher's WORLD_SIZE says {processes()}: launch with torchrun.")
        self.student.device = self.accelerator.device
        self.student.model.to(self.accelerator.device)
        self.identity = self._identity(start)
        self.history: list[dict[str, Any]] = []
        self.best_value, self.best_step, self.waited = -np.inf, 0, 0
        self.best_weights: dict[str, Tensor] | None = None
        self.stopped = False

    def _identity(self, start: Ranker) -> str:
        """Identifies data and settings, so that a folder is never resumed by another training.

        Not the teacher's scores, which may differ in their last digits when they are computed again: ``_teacher_summary``.
        """
        digest = hashlib.blake2b(digest_size=8)
        own = [(told(stage.candidates), told(stage.topics)) for stage in self.settings.strategy.stages]
        for part in (self.settings.strategy.stages, own, self.settings.seed, start.fingerprint(), start.settings(), self.accelerator.num_processes, str(self.settings.measure),
                     described(self.settings.teacher), self.accelerator.mixed_precision):
            digest.update(told(part).encode())
        for source in self.given:
            if source is None:
                continue
            if isinstance(source, Groups):
                for array in (source.text, source.starts, source.label):
                    digest.update(np.ascontiguousarray(array).tobytes())
            texts = source.head() if isinstance(source, Corpus) else (*source.queries, *(source.texts.docnos if isinstance(source.texts, Loaded) else source.texts))
            for text in texts:
                digest.update(text.encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def _teacher_summary(self) -> list[float]:
        """Mean and spread of each stage's teacher scores: enough to tell two teachers apart."""
        known = [g.teacher for g in self.given if isinstance(g, Groups) and g.teacher is not None]
        return [float(f(t)) for t in known for f in (np.mean, np.std)]

    def run(self) -> None:
        """Trains every stage, from where the folder says; Ctrl-C ends it with the best student so far."""
        position = self._found()
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
        self._take_best()
        self.student.model.eval()
        self.student.name = ""
        settings = self.settings
        self.student.metadata_ = {
            "teacher": described(settings.teacher) if settings.teacher is not None else None, "strategy": repr(settings.strategy), "seed": settings.seed,
            "data": self.identity, "steps": int(self.history[-1]["step"]) if self.history else 0,
            **({str(settings.measure): self.best_value} if self.best_weights is not None else {})}
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
            self.best_value, self.best_step, self.waited, self.best_weights = -np.inf, 0, 0, None
        elif (last := self._last()) is not None and position["done"]:
            training.restore(last)
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
        self._take_best()

    def _source(self, index: int, stage: Stage) -> Groups | Corpus:
        """What a stage trains on, made of the student as it is now where the stage says so."""
        source = self.sources[index]
        if source is not None:
            return source
        assert stage.candidates is not None
        kept = self.settings.folder / f"candidates-{index}.jsonl.gz" if self.settings.folder is not None else None
        if kept is not None and kept.is_file():
            return self.renew(index, pd.read_json(kept, orient="records", lines=True, dtype={"qid": str, "docno": str}))
        self.student.model.eval()
        frame = stage.candidates(self.student)
        if kept is not None and self.accelerator.is_main_process:
            with atomic_file(kept) as fresh:
                frame.to_json(fresh, orient="records", lines=True, compression="gzip")
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
                bar.set_postfix(shown | ({str(self.settings.measure): f"{self.best_value:.4f} at {self.best_step}"} if self.best_step else {}))

            yield report

    def _record(self, stage: Stage, training: Training, row: dict[str, float]) -> None:
        """Validates, keeps the best weights, and adds a row to the history.

        A stage that does not train the scores is not measured by them: its last weights are kept.
        """
        record: dict[str, Any] = {"stage": stage.name, "step": training.done, **row}
        if self.validate is not None and stage.loss.needs.student & SCORES:
            value = self.validate(self.student)
            record[str(self.settings.measure)] = value
            if value > self.best_value:
                self.best_value, self.best_step, self.waited = value, training.done, 0
                state = {**self.student.model.state_dict(), **{LEARNED + k: v for k, v in self.learned.state_dict().items()}}
                self.best_weights = {k: v.detach().cpu().clone() for k, v in state.items()}
            else:
                self.waited += 1
        self.history.append(record)
        if self.settings.tracker is not None:
            self.accelerator.log({f"{stage.name}/{k}": v for k, v in record.items() if k not in ("stage", "step")}, step=training.done)

    def _patience_over(self) -> bool:
        return self.settings.patience is not None and self.waited >= self.settings.patience

    def _take_best(self) -> None:
        """Goes back to the best weights of this stage, where validation found any."""
        if self.best_weights is not None:
            self.student.model.load_state_dict({k: v for k, v in self.best_weights.items() if not k.startswith(LEARNED)})
            self.learned.load_state_dict({k.removeprefix(LEARNED): v for k, v in self.best_weights.items() if k.startswith(LEARNED)})

    def _kept(self) -> str:
        """What is left of a training that was interrupted."""
        step = self.history[-1]["step"] if self.history else 0
        best = f"the best student so far ({self.settings.measure} {self.best_value:.4f} at step {self.best_step})" if self.best_weights is not None else "the student as it is now"
        again = f"; fit again to go on from {self.settings.folder}" if self.settings.folder is not None else ""
        return f"Distiller.fit was interrupted after step {step} of stage {self.history[-1]['stage'] if self.history else 'one'!r}: student_ is {best}{again}."

    # ------------------------------------------------------------------ the checkpoint folder: last/, best.safetensors, best/

    def _last(self) -> Path | None:
        """Where the latest state is."""
        return self.settings.folder / "last" if self.settings.folder is not None else None

    def _found(self) -> dict[str, Any]:
        """The position that the folder holds, or {}.

        Raises:
            CheckpointError: If it is another training's.
        """
        last = self._last()
        if last is None:
            return {}
        recover(last)
        for unfinished in last.parent.glob(f".{last.name}.*.new"):      # of a process that was killed while it wrote
            shutil.rmtree(unfinished, ignore_errors=True)
        if not (last / POSITION).is_file():     # and never a repository of that name on the hub
            return {}
        position = read_json(str(last), POSITION)
        if position["identity"] != self.identity or not np.allclose(position["teacher"], self._teacher_summary(), rtol=1e-3, atol=1e-6):
            raise CheckpointError(f"{self.settings.folder} holds another training (its student, teacher, strategy, seed or data differ from this one's): "
                                  "pass another checkpoint=, or remove the folder.")
        self.history, self.waited = position["history"], position["waited"]
        if position["best_step"]:
            self.best_value, self.best_step = position["best_value"], position["best_step"]
            self.best_weights = load_file(last / BEST)
        return position

    def _checkpoint(self, training: Training, stage: int) -> None:
        """Writes the state; a disk that is full or read-only costs a warning, not the training."""
        last = self._last()
        if last is None or self.settings.folder is None:
            return
        position = {"identity": self.identity, "teacher": self._teacher_summary(), "stage": stage, "history": self.history, "waited": self.waited, "best_step": self.best_step,
                    "best_value": self.best_value if self.best_step else None}
        try:
            training.save(last, position, self.best_weights)
            if self.accelerator.is_main_process and self.best_step in (0, training.done):
                self.student.save(self.settings.folder / "best")
        except OSError as error:
            warnings.warn(f"Distiller.fit: {error}. Training goes on; the previous checkpoint stays.", stacklevel=3)
