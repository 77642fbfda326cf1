"""The training loop: one stage of a strategy, on ``accelerate``.

A ``Stage`` (``stages``) says what is trained and how; a ``Training`` is a started stage. It runs k more steps, saves, and goes on:
early stopping, resumption and searches are its users. What step s sees (its batch, its dropout) is a function of the seed and
s alone, and the learning rate of the progress alone, so a saved training needs no random state to end in the same
weights as an unbroken one.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list
from safetensors.torch import save_file
from torch import Tensor, nn

from . import subnormal
from .atomic import atomic_folder, write_json
from .errors import CheckpointError, DataError, some
from .formats.checkpoints import read_json
from .losses import BoundLoss
from .signals import Batch, LayerNumbers, Signals, Texts
from .stages import Source, Stage

POSITION, BEST = "position.json", "best.safetensors"
NO_DECAY = re.compile(r"(bias|[Nn]orm\d*\.weight|\bmix|interaction\.(factors|scale))$")       # what scales is not decayed either


class Learner(Protocol):
    """What is trained: a ranker, seen from here."""

    model: nn.Module

    def signals(self, batch: Batch, tokens: Any, names: frozenset[str] = ..., layers: LayerNumbers = ...) -> Signals:
        """See ``Ranker.signals``."""

    def read(self, texts: Texts, layers: LayerNumbers) -> Signals:
        """See ``Ranker.read``."""


class Step(nn.Module):
    """The one module that is prepared for many processes: a whole step in ``forward``, so that gradients are synchronised."""

    def __init__(self, student: Learner, tokens: Any, teacher: Callable[[Any], Signals], loss: BoundLoss) -> None:
        super().__init__()
        self.model, self.loss = student.model, loss
        self.student, self.tokens, self.teacher = student, tokens, teacher

    def forward(self, batch: Any, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a ``Batch`` or of ``Texts``, and its terms."""
        target = self.teacher(batch)
        if isinstance(batch, Texts):
            student = self.student.read(batch, self.loss.student_layers)
        else:
            student = self.student.signals(batch, self.tokens, self.loss.loss.needs.student, self.loss.student_layers)
            subnormal.drop_gradients(student)
        loss: tuple[Tensor, dict[str, Tensor]] = self.loss(student, target, batch, progress)
        return loss


class Training:
    """A started stage.

    Args:
        stage: What is trained and how.
        student: The ranker whose model is trained, in place.
        tokens: What ``student.tokens`` made of the groups' queries and texts; None for a corpus.
        source: The training groups, or a corpus.
        teacher: Gives the target signals of a batch.
        loss: The stage's loss, bound to student and teacher.
        accelerator: From ``accelerator``.
        seed: Numbers that identify the training and the stage.

    Attributes:
        done: Steps done.
        total: Steps in all.
    """

    def __init__(self, stage: Stage, student: Learner, tokens: Any, source: Source, teacher: Callable[[Any], Signals], loss: BoundLoss,
                 accelerator: Accelerator, seed: tuple[int, ...]) -> None:
        self.stage, self.source, self.accelerator, self.seed = stage, source, accelerator, seed
        accelerator.free_memory()               # of an earlier stage, which would be saved again with this one
        module = Step(student, tokens, teacher, loss)
        self.module, self.optimizer = accelerator.prepare(module, optimizer_of(module, stage))
        self.done, self.total = 0, stage.total(source, accelerator.num_processes)
        self._batches: Iterator[Any] | None = None

    def run(self, steps: int, report: Callable[[float, int, float], None] | None = None) -> dict[str, float]:
        """Trains for at most ``steps`` more steps.

        Args:
            steps: The number of steps.
            report: Called after each with its loss, the number of pairs that it saw, and its seconds.

        Returns:
            Means over these steps of the loss and of each term, ``pairs/s``, and the learning rate and peak memory at the end.
        """
        sums: dict[str, float] = {}
        pairs, start, first = 0, time.perf_counter(), self.done
        training = self.module.training
        with torch.random.fork_rng(), dropout_of(self.module, self.stage.dropout):
            self.module.train()
            try:
                while self.done < min(first + steps, self.total):
                    began = time.perf_counter()
                    values, count = self._step()
                    pairs += count
                    for name, value in values.items():
                        sums[name] = sums.get(name, 0.0) + value
                    if report is not None:
                        report(values["loss"], count, time.perf_counter() - began)
            finally:
                self.module.train(training)
        count = max(1, self.done - first)
        seconds = time.perf_counter() - start
        return {**{k: v / count for k, v in sums.items()}, "pairs/s": pairs * self.accelerator.num_processes / max(seconds, 1e-9),
                "learning_rate": self.stage.learning_rate * self.stage.rate(max(0.0, self.done - 0.5) / self.total), "peak_memory_mb": peak_memory(self.accelerator.device)}

    def _step(self) -> tuple[dict[str, float], int]:
        """One optimiser step; its loss and terms, and the pairs that it saw."""
        progress = self.done / self.total
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * self.stage.rate((self.done + 0.5) / self.total)
        torch.manual_seed(hash((*self.seed, self.done, self.accelerator.process_index)) & 0x7FFFFFFF)
        batch = self._next()
        parts = batch.split(self.stage.accumulate)
        self.module.zero_grad()                 # also of parameters that are not trained
        values: dict[str, Tensor] = {}
        for i, part in enumerate(parts):
            last = i == len(parts) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.module):
                loss, terms = self.module(part.to(self.accelerator.device), progress)
                self.accelerator.backward(loss * (len(part) / len(batch)))
            for name, value in {"loss": loss.detach(), **terms}.items():
                values[name] = values.get(name, torch.zeros((), device=value.device)) + value * (len(part) / len(batch))
        if not math.isfinite(value_of := float(values["loss"])):
            raise FloatingPointError(f"the loss is {value_of} at step {self.done + 1} of stage {self.stage.name!r}: lower learning_rate (now "
                                     f"{self.stage.learning_rate}), or train in float32 (precision='no').")
        self.accelerator.clip_grad_norm_([p for group in self.optimizer.param_groups for p in group["params"]], self.stage.clip)
        self.optimizer.step()
        self.done += 1
        if self.done % subnormal.EVERY == 0:
            subnormal.drop_moments(self.optimizer)
        return {k: float(v) for k, v in values.items()}, batch.pairs()

    def _next(self) -> Any:
        """This process's next batch; epochs follow each other, each in its own order."""
        epoch = self.stage.epoch(self.source, self.accelerator.num_processes)
        if self._batches is None or self.done % epoch == 0:
            self._batches = self.source.batches(
                self.stage.batch_size, self.stage.sampler, (*self.seed, self.done // epoch),
                part=(self.accelerator.process_index, self.accelerator.num_processes), skip=self.done % epoch)
        batch = next(self._batches, None)
        if batch is None:
            raise DataError(f"The data of stage {self.stage.name!r} ended after {self.done % epoch} of the {epoch} steps of an epoch that were counted before: "
                            "a corpus must give the same texts each time that it is read.")
        return batch

    def save(self, path: Path, position: dict[str, Any], best: dict[str, Tensor] | None = None) -> None:
        """Writes everything that is needed to go on, whole or not at all.

        Args:
            path: The folder.
            position: What the caller wants to find again, as JSON values.
            best: The best weights so far.

        Raises:
            OSError: If the disk is full or cannot be written; what was at ``path`` stays.
        """
        main = self.accelerator.is_main_process
        with atomic_folder(path) if main else contextlib.nullcontext() as folder:
            shared = [str(folder)]
            if self.accelerator.num_processes > 1:
                broadcast_object_list(shared)
            self.accelerator.save_state(shared[0])
            if main:
                write_json(Path(shared[0]) / POSITION, {**position, "done": self.done, "total": self.total})
                if best is not None:
                    save_file({k: v.contiguous() for k, v in best.items()}, Path(shared[0]) / BEST)
            self.accelerator.wait_for_everyone()

    def restore(self, path: Path) -> None:
        """Goes back to what ``save`` wrote.

        Raises:
            CheckpointError: If the folder is damaged or of a training of another length.
        """
        position = read_json(str(path), POSITION)
        if position.get("total") != self.total:
            raise CheckpointError(f"{path} is of a training of {position.get('total')} steps, this one has {self.total}: remove the folder or pass another checkpoint=.")
        try:
            self.accelerator.load_state(str(path))
        except Exception as error:
            raise CheckpointError(f"{path} cannot be read ({error}): remove the folder to start afresh.") from error
        self.done, self._batches = int(position["done"]), None


def processes() -> int:
    """The number of processes of this training, as launchers say it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def accelerator_for(device: torch.device, precision: str | None, tracker: str | None, folder: Path | None) -> Accelerator:
    """An accelerator for a student's device.

    Args:
        device: Where the student is.
        precision: "no", "bf16" or "fp16"; None: bf16 on a GPU that has it, else float32.
        tracker: What accelerate calls a tracker, such as "tensorboard", or None.
        folder: Where a tracker writes.
    """
    if precision is None:
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "no"
    state = PartialState._shared_state
    stale = bool(state) and PartialState().num_processes == 1 and PartialState().device.type != device.type
    AcceleratorState._reset_state(reset_partial_state=stale)    # accelerate keeps the first precision and device of a process otherwise
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)     # an encoder's pooler, where the score is made without it
    return Accelerator(mixed_precision=precision, cpu=device.type == "cpu", log_with=tracker, project_dir=str(folder) if folder else None, kwargs_handlers=[unused])


def optimizer_of(module: nn.Module, stage: Stage) -> torch.optim.Optimizer:
    """AdamW, without decay on biases and normalisations, and with the stage's own rates for some parameters.

    Raises:
        ValueError: If a pattern of the stage's rates is found in no parameter's name.
    """
    named = [(n, p) for n, p in module.named_parameters() if p.requires_grad]
    for pattern in stage.rates:
        if not any(re.search(pattern, name) for name, _ in named):
            raise ValueError(f"The stage {stage.name!r} has a learning rate for {pattern!r}, which no parameter's name holds; there are {some(name for name, _ in named)}.")
    if not any(stage.rate_of(name) for name, _ in named):
        raise ValueError(f"The stage {stage.name!r} trains nothing: all of its learning rates are 0 ({dict(stage.rates)}).")
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        groups.setdefault((stage.rate_of(name), 0.0 if NO_DECAY.search(name) else stage.weight_decay), []).append(parameter)
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for _, p in named)
    return torch.optim.AdamW([{"params": held, "rate": rate, "weight_decay": decay} for (rate, decay), held in groups.items() if rate], lr=stage.learning_rate, fused=fused)


@contextlib.contextmanager
def dropout_of(module: nn.Module, probability: float | None) -> Iterator[None]:
    """Sets every dropout of a module, whether a layer or a number that its attention reads, for a while."""
    changed: list[tuple[nn.Module, str, float]] = []
    if probability is not None:
        for m in module.modules():
            names = ["p"] if isinstance(m, nn.Dropout) else [k for k, v in vars(m).items() if "dropout" in k and isinstance(v, float)]
            for name in names:
                changed.append((m, name, getattr(m, name)))
                setattr(m, name, float(probability))
    try:
        yield
    finally:
        for m, name, old in changed:
            setattr(m, name, old)


def peak_memory(device: torch.device) -> float:
    """The most memory so far in MiB: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if sys.platform == "win32":
        return float("nan")
    import resource  # not on Windows
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
