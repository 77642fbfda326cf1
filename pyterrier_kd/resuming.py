"""From where a fit goes on: what a training is known by, its best student so far, and the folder that holds both.

The folder holds ``last/`` (all that is needed to end in the same weights as an unbroken run), ``best/`` (the best student so far, a
ranker's folder like any other), and the candidates that stages made for themselves. All appear whole or not at all.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.torch import load_file
from torch import Tensor, nn

from .atomic import atomic_file, recover
from .corpus import Corpus
from .errors import CheckpointError
from .formats.checkpoints import read_json
from .groups import Groups
from .loaded_texts import Loaded
from .rankers import Ranker
from .training import BEST, POSITION, Training

ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")      # of a function in memory, another in each process
LEARNED = "learned by losses: "     # before the names of projections among the best weights


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


def identity_of(settings: Iterable[Any], sources: Sequence[Groups | Corpus | None]) -> str:
    """Identifies settings and data, so that a folder is never resumed by another training.

    Not the teacher's scores, which may differ in their last digits when they are computed again; see ``teacher_summary``.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in settings:
        digest.update(told(part).encode())
    for source in sources:
        if source is None:
            continue
        if isinstance(source, Groups):
            for array in (source.text, source.starts, source.label):
                digest.update(np.ascontiguousarray(array).tobytes())
        texts = source.head() if isinstance(source, Corpus) else (*source.queries, *(source.texts.docnos if isinstance(source.texts, Loaded) else source.texts))
        for text in texts:
            digest.update(text.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def teacher_summary(sources: Sequence[Groups | Corpus | None]) -> list[float]:
    """Mean and spread of each stage's teacher scores: enough to tell two teachers apart."""
    known = [g.teacher for g in sources if isinstance(g, Groups) and g.teacher is not None]
    return [float(f(t)) for t in known for f in (np.mean, np.std)]


class Best:
    """The best student of a stage so far, by validation.

    Attributes:
        value: Its measure; minus infinity before the first validation.
        step: The step after which it was measured; 0 before the first.
        waited: The validations since then.
        weights: Its weights, and those that the losses have learned beside it; None before the first.
    """

    def __init__(self) -> None:
        self.value, self.step, self.waited = -np.inf, 0, 0
        self.weights: dict[str, Tensor] | None = None

    def offer(self, value: float, step: int, model: nn.Module, learned: nn.Module) -> None:
        """Takes the weights as they are now if ``value`` is the highest so far."""
        if value > self.value:
            self.value, self.step, self.waited = value, step, 0
            state = {**model.state_dict(), **{LEARNED + k: v for k, v in learned.state_dict().items()}}
            self.weights = {k: v.detach().cpu().clone() for k, v in state.items()}
        else:
            self.waited += 1

    def restore(self, model: nn.Module, learned: nn.Module) -> None:
        """Puts the best weights back, where validation found any."""
        if self.weights is not None:
            model.load_state_dict({k: v for k, v in self.weights.items() if not k.startswith(LEARNED)})
            learned.load_state_dict({k.removeprefix(LEARNED): v for k, v in self.weights.items() if k.startswith(LEARNED)})


class FitFolder:
    """The checkpoint folder of a fit.

    Args:
        path: The folder.
        identity: What the training is known by, see ``identity_of``.
        summary: What its teachers' scores are known by, see ``teacher_summary``.
    """

    def __init__(self, path: Path, identity: str, summary: list[float]) -> None:
        self.path, self.last, self.identity, self.summary = path, path / "last", identity, summary

    def found(self) -> tuple[dict[str, Any], Best]:
        """Where the training stopped, and its best student then; {} of a new training.

        Raises:
            CheckpointError: If the folder holds another training.
        """
        best = Best()
        recover(self.last)
        for unfinished in self.path.glob(f".{self.last.name}.*.new"):      # of a process that was killed while it wrote
            shutil.rmtree(unfinished, ignore_errors=True)
        if not (self.last / POSITION).is_file():     # and never a repository of that name on the hub
            return {}, best
        position = read_json(str(self.last), POSITION)
        if position["identity"] != self.identity or not np.allclose(position["teacher"], self.summary, rtol=1e-3, atol=1e-6):
            raise CheckpointError(f"{self.path} holds another training (its student, teacher, strategy, seed or data differ from this one's): "
                                  "pass another checkpoint=, or remove the folder.")
        best.waited = position["waited"]
        if position["best_step"]:
            best.value, best.step, best.weights = position["best_value"], position["best_step"], load_file(self.last / BEST)
        return position, best

    def save(self, training: Training, stage: int, history: list[dict[str, Any]], best: Best, student: Ranker) -> None:
        """Writes the state of a training, and its student where that is the best so far.

        Raises:
            OSError: If the disk is full or cannot be written; what was there stays.
        """
        training.save(self.last, {"identity": self.identity, "teacher": self.summary, "stage": stage, "history": history, "waited": best.waited,
                                  "best_step": best.step, "best_value": best.value if best.step else None}, best.weights)
        if training.accelerator.is_main_process and best.step in (0, training.done):
            student.save(self.path / "best")

    def candidates(self, stage: int) -> pd.DataFrame | None:
        """The candidates that a stage made for itself, if it did."""
        path = self._candidates(stage)
        return pd.read_json(path, orient="records", lines=True, dtype={"qid": str, "docno": str}) if path.is_file() else None

    def keep_candidates(self, stage: int, frame: pd.DataFrame) -> None:
        """Keeps the candidates that a stage made for itself."""
        with atomic_file(self._candidates(stage)) as fresh:
            frame.to_json(fresh, orient="records", lines=True, compression="gzip")

    def _candidates(self, stage: int) -> Path:
        return self.path / f"candidates-{stage}.jsonl.gz"
