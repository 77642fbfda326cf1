"""Distiller: the estimator in which student, teacher and strategy meet.

``fit`` turns a frame of candidates into training groups, asks the teacher, and trains a copy of the student, stage by stage;
``transform`` ranks with the student that came out. So it stands in a pipeline like any re-ranker, and
``pipeline.fit(...)`` trains it.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self

import ir_measures
import pandas as pd
import pyterrier as pt

from .binding import bound_losses
from .errors import DataError, require_extra
from .fitting import Fit, FitSettings
from .frames import explained, fields_of, require_strings, row_texts
from .groups import Groups
from .pairs import TrainingPairs
from .rankers import Ranker
from .sampling import KeepTop
from .strategies import Strategy, as_strategy
from .teachers import scores_by
from .training_data import TrainingData
from .validation import measure_of, validation

DEFAULT_MEASURE = ir_measures.nDCG @ 10


class Distiller(pt.Estimator):
    """Trains a student ranker from a teacher, inside a pipeline.

    Args:
        student: A ranker. ``fit`` trains a copy; the student itself stays as it is.
        teacher: Anything that scores: a ranker, a transformer or pipeline, a run, sums of those, ``kd.Teacher``,
            ``kd.Ensemble``. None: training on labels alone.
        strategy: One of ``kd.strategies``, a ``Stage`` or several, or a loss. Default ``margin_mse()``.
        loss: Replaces the loss of every stage.
        epochs: Replaces the epochs of every stage.
        steps: Replaces the length of every stage, in optimiser steps.
        learning_rate: Replaces the learning rate of every stage.
        batch_size: Replaces the queries a step of every stage.
        dropout: Replaces the dropout of every stage.
        keep_top: Trains only on the passages that the teacher scores highest, ``kd.KeepTop(5)``. Default None: on all.
        measure: What validation maximises, a measure of ir_measures. Default nDCG@10.
        validate_every: Steps between validations. Default: ten a stage.
        patience: Stop a stage after so many validations without a better value. Default None: never.
        checkpoint: A folder from which an interrupted fit goes on, and in which ``best`` is the best student so far.
        scores: The file of teacher scores. Default: in PyTerrier's home; False: keep none.
        texts: A text loader, for frames without texts. Default: the student's.
        precision: "no", "bf16" or "fp16". Default: bf16 on a GPU that has it, else float32.
        tracker: What accelerate calls a tracker, such as "tensorboard"; it writes into the checkpoint folder.
        warm_start: Whether a second ``fit`` goes on from the first's student. Default False.
        seed: Same seed, same data: same weights, on one machine. Default 0.
        verbose: Whether to show progress bars. Default True.

    Attributes:
        student_: The trained ranker; None before ``fit``.
        history_: A frame with a row for each validation: stage, step, loss, each term, measure, pairs/s, memory.
    """

    schematic: ClassVar[dict[str, Any]] = {"label": "Distiller", "help_url": None}

    def __init__(self, student: Ranker, teacher: Any = None, *, strategy: Any = None, loss: Any = None, epochs: float | None = None,
                 steps: int | None = None, learning_rate: float | None = None, batch_size: int | None = None, dropout: float | None = None, keep_top: KeepTop | None = None,
                 measure: Any = DEFAULT_MEASURE, validate_every: int | None = None, patience: int | None = None,
                 checkpoint: str | Path | None = None, scores: str | Path | bool = True, texts: pt.Transformer | None = None,
                 precision: str | None = None, tracker: str | None = None, warm_start: bool = False, seed: int = 0, verbose: bool = True) -> None:
        self.student, self.teacher, self.strategy, self.loss = student, teacher, strategy, loss
        self.epochs, self.steps, self.learning_rate, self.batch_size, self.dropout = epochs, steps, learning_rate, batch_size, dropout
        self.keep_top = keep_top
        self.measure, self.validate_every, self.patience = measure, validate_every, patience
        self.checkpoint, self.scores, self.texts = checkpoint, scores, texts
        self.precision, self.tracker, self.warm_start, self.seed, self.verbose = precision, tracker, warm_start, seed, verbose
        self.student_: Ranker | None = None
        self.history_ = pd.DataFrame()

    # ------------------------------------------------------------------ ranking

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Ranks with the trained student; see ``Ranker.transform``.

        Raises:
            RuntimeError: If there are rows, and ``fit`` has not been called.
        """
        if self.student_ is not None:
            return self.student_.rerank(inp)
        if len(inp):
            raise RuntimeError("This Distiller is not fitted: call fit(candidates, qrels) on it or on its pipeline, or rank with its .student as it is.")
        return self._with_loader(self.student).rerank(inp)

    def _with_loader(self, student: Ranker) -> Ranker:
        """The student with this distiller's text loader, if it has one."""
        if self.texts is None:
            return student
        student = copy.copy(student)
        student.texts = self.texts
        return student

    def subtransformers(self) -> dict[str, pt.Transformer]:
        """The student; the teacher takes no part in ranking."""
        return {"student": self.student_ or self.student}

    def __repr__(self) -> str:
        return f"Distiller({self.student_!r})" if self.student_ is not None else f"Distiller({self.student!r}, not fitted)"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Distiller):
            return NotImplemented
        return self is other or (self.student_ is not None and self.student_ == other.student_)

    def __hash__(self) -> int:
        return hash(("Distiller", self.student_)) if self.student_ is not None else id(self)

    # ------------------------------------------------------------------ training

    def stages(self) -> Strategy:
        """The strategy with this distiller's own settings in place."""
        return as_strategy(self.strategy).with_settings(loss=self.loss, epochs=self.epochs, steps=self.steps, learning_rate=self.learning_rate,
                                                        batch_size=self.batch_size, dropout=self.dropout)

    def fit(self, tr: pd.DataFrame | TrainingPairs | None = None, qrels_tr: pd.DataFrame | None = None, va: pd.DataFrame | None = None,
            qrels_va: pd.DataFrame | None = None) -> Self:
        """Trains ``student_``.

        Args:
            tr: Candidates: ``qid``, ``query``, ``docno``, and the text unless there is a text loader. Passages, with docnos
                such as ``d1%p0``, get the labels of their documents. Or pairs by ids, from ``kd.pairs``, which have labels, and may have
                scores that stand in for a teacher. None if all stages train on a corpus.
            qrels_tr: Labels. Distillation needs none (``Sampler(choose="stratified")`` then chooses texts that differ by the teacher's scores); losses over
                labels do.
            va: Candidates to validate on.
            qrels_va: Their labels; without them there is no validation.

        Returns:
            Itself.

        Raises:
            DataError: If rows or labels cannot be used, before anything long begins.
            MissingSignal: If student or teacher cannot give what a loss needs, likewise.
            LayerMismatch: If the layers of the two cannot be compared as a loss wants, likewise.
            TeacherError: If the teacher does not score every row; what it has scored is kept.
        """
        self.measure = measure_of(self.measure)
        strategy, start = self.stages(), self.student_ if self.warm_start and self.student_ is not None else self.student
        if self.keep_top is not None and (not isinstance(self.keep_top, KeepTop) or scores_by(self.teacher) is None):
            raise ValueError(f"Distiller(keep_top={self.keep_top!r}) keeps the passages that the teacher scores highest: it needs a teacher= that scores pairs, and a value "
                             "such as kd.KeepTop(5).")
        if self.tracker is not None and self.checkpoint is None:
            raise ValueError(f"Distiller(tracker={self.tracker!r}) writes into the checkpoint folder: pass checkpoint= as well.")
        if self.tracker == "tensorboard":
            require_extra("tensorboard", "demo", "Distiller(tracker='tensorboard')")
        if isinstance(tr, TrainingPairs) and (qrels_tr is not None or len(fields_of(start.text_field)) > 1):
            raise ValueError("Distiller.fit got pairs by ids together with qrels, or a student that reads several fields: pairs have labels of their own, and one text a document.")
        losses = bound_losses(strategy, start, self.teacher, self.seed, given=isinstance(tr, TrainingPairs) and tr.groups.teacher is not None)
        candidates = tr if tr is None or isinstance(tr, TrainingPairs) else self._candidates(tr, "fit")
        data = TrainingData(strategy, start, self.teacher, candidates, qrels_tr, self.keep_top, self.scores, self.seed, self.verbose)
        sources = data.sources()
        validate = self._validation(va, qrels_va)       # whose rows are checked before the teacher is asked
        sources = data.with_scores(sources)
        settings = FitSettings(strategy, self.teacher, self.measure, self.validate_every, self.patience,
                               Path(self.checkpoint) if self.checkpoint is not None else None, self.precision, self.tracker, self.seed, self.verbose)

        def renew(index: int, frame: pd.DataFrame) -> Groups:
            return data.mined(index, self._candidates(frame, f"fit (the candidates of stage {strategy.stages[index].name!r})"))

        fit = Fit(settings, start, sources, losses, validate, renew)
        try:
            fit.run()
        finally:
            if fit.history or fit.stopped:      # whatever happened, what was learned is not lost
                student, self.history_ = fit.result()
                self.student_ = self._with_loader(student)
        return self

    def _candidates(self, frame: pd.DataFrame, role: str) -> tuple[pd.DataFrame, list[str]]:
        """A frame of candidates sorted by query, and the text of each row."""
        fields, loader = fields_of(self.student.text_field), self.texts or self.student.texts
        loaded = loader is not None and not all(f in frame.columns for f in fields)
        columns = ["query", *([] if loaded else fields)]
        with explained(self, frame, columns):
            pt.validate.result_frame(frame, extra_columns=columns, context=self)
        if not len(frame):
            raise DataError(f"Distiller.{role} got an empty frame of candidates. Do the topics match the index?")
        frame = frame.sort_values("qid", kind="stable").reset_index(drop=True)
        require_strings(frame, "query", self)
        return frame, row_texts(frame, fields, loader if loaded else None, self)

    def _validation(self, va: pd.DataFrame | None, qrels: pd.DataFrame | None) -> Callable[[Ranker], float] | None:
        """A function that measures a student on the validation candidates, or None without them."""
        if va is None or qrels is None:
            if va is not None:
                warnings.warn("Distiller.fit got validation candidates without qrels: it trains without validation.", stacklevel=3)
            return None
        return validation(*self._candidates(va, "fit (validation)"), qrels, self.measure)
