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
import numpy as np
import pandas as pd
import pyterrier as pt

from .errors import DataError, require_extra
from .fitting import Fit, FitSettings
from .frames import explained, fields_of, require_strings, row_texts
from .groups import Groups, clean_qrels, from_frame, parent_docno
from .rankers import Ranker
from .score_store import ScoreStore
from .signals import missing_signal
from .stages import Stage, rows_ahead
from .strategies import Strategy, as_strategy
from .teachers import teacher_scores, terms_of
from .training import processes

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
                 steps: int | None = None, learning_rate: float | None = None, batch_size: int | None = None, dropout: float | None = None,
                 measure: Any = DEFAULT_MEASURE, validate_every: int | None = None, patience: int | None = None,
                 checkpoint: str | Path | None = None, scores: str | Path | bool = True, texts: pt.Transformer | None = None,
                 precision: str | None = None, tracker: str | None = None, warm_start: bool = False, seed: int = 0, verbose: bool = True) -> None:
        self.student, self.teacher, self.strategy, self.loss = student, teacher, strategy, loss
        self.epochs, self.steps, self.learning_rate, self.batch_size, self.dropout = epochs, steps, learning_rate, batch_size, dropout
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

    def fit(self, tr: pd.DataFrame, qrels_tr: pd.DataFrame | None = None, va: pd.DataFrame | None = None,
            qrels_va: pd.DataFrame | None = None) -> Self:
        """Trains ``student_``.

        Args:
            tr: Candidates: ``qid``, ``query``, ``docno``, and the text unless there is a text loader. Passages, with docnos
                such as ``d1%p0``, get the labels of their documents.
            qrels_tr: Labels. Distillation needs none; losses over labels do.
            va: Candidates to validate on.
            qrels_va: Their labels; without them there is no validation.

        Returns:
            Itself.

        Raises:
            DataError: If rows or labels cannot be used, before anything long begins.
            MissingSignal: If student or teacher cannot give what a loss needs, likewise.
            TeacherError: If the teacher does not score every row; what it has scored is kept.
        """
        self.measure = measure_of(self.measure)
        strategy, start = self.stages(), self.student_ if self.warm_start and self.student_ is not None else self.student
        if self.tracker is not None and self.checkpoint is None:
            raise ValueError(f"Distiller(tracker={self.tracker!r}) writes into the checkpoint folder: pass checkpoint= as well.")
        if self.tracker == "tensorboard":
            require_extra("tensorboard", "demo", "Distiller(tracker='tensorboard')")
        frame, texts = self._candidates(tr, "fit")
        groups = from_frame(frame, texts, qrels_tr, "Distiller.fit")
        stage_groups = [self._usable(groups, stage, start) for stage in strategy.stages]
        validate = self._validation(va, qrels_va)
        for i, stage in enumerate(strategy.stages):
            if stage.loss.needs.teacher == {"scores"}:
                stage_groups[i] = self._with_scores(stage_groups[i], stage, (self.seed, i), frame, texts)
        settings = FitSettings(strategy, self.teacher, self.measure, self.validate_every, self.patience,
                               Path(self.checkpoint) if self.checkpoint is not None else None, self.precision, self.tracker, self.seed, self.verbose)
        fit = Fit(settings, start, stage_groups, validate)
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

    def _usable(self, groups: Groups, stage: Stage, student: Ranker) -> Groups:
        """The groups that a stage can learn from, once it is known that everybody can give what its loss needs."""
        needs = stage.loss.needs
        for name in sorted(needs.student - student.signal_names):
            raise missing_signal(name, stage.loss, f"the student {student!r}", sorted(student.signal_names))
        if needs.teacher and self.teacher is None and stage.teacher is None:
            raise DataError(f"{stage.loss!r} learns from a teacher: pass teacher= to the Distiller, or train on labels alone with strategies.fine_tune().")
        return groups.usable(needs, stage.loss)

    def _with_scores(self, groups: Groups, stage: Stage, seed: tuple[int, ...], frame: pd.DataFrame, texts: list[str]) -> Groups:
        """The groups with the teacher's scores, less the rows for which a run has none.

        The teacher is asked only for the rows that training will see, wherever these are known ahead.
        """
        teacher = self.teacher if stage.teacher is None else stage.teacher
        rows = groups.row
        if stage.sampler.choose == "random" and not any(leaf.listwise or leaf.missing == "drop" for _, leaf in terms_of(teacher)):
            rows = rows[rows_ahead(stage, groups, seed, processes())]
        rows, scores = np.sort(rows), np.zeros(len(frame))
        scores[rows] = teacher_scores(teacher, frame.iloc[rows].reset_index(drop=True), [texts[i] for i in rows], self._store(), self.verbose)
        return groups.with_teacher(scores).usable(stage.loss.needs, stage.loss)

    def _store(self) -> ScoreStore | None:
        if self.scores is False:
            return None
        return ScoreStore(Path(pt.io.pyterrier_home()) / "kd" / "teacher_scores.sqlite3" if self.scores is True else self.scores)

    def _validation(self, va: pd.DataFrame | None, qrels: pd.DataFrame | None) -> Callable[[Ranker], float] | None:
        """A function that measures a student on the validation candidates, or None without them."""
        if va is None or qrels is None:
            if va is not None:
                warnings.warn("Distiller.fit got validation candidates without qrels: it trains without validation.", stacklevel=3)
            return None
        frame, texts = self._candidates(va, "fit (validation)")
        qrels = clean_qrels(qrels, "Distiller.fit (validation)")
        qrels = qrels[qrels["qid"].isin(set(frame["qid"].astype(str)))]
        truth = qrels.rename(columns={"qid": "query_id", "docno": "doc_id", "label": "relevance"}).astype({"relevance": int})
        if not len(truth):
            warnings.warn(f"Distiller.fit: none of the validation qrels is about one of its {frame['qid'].nunique()} queries: it trains without validation.", stacklevel=3)
            return None
        rows = pd.DataFrame({"query_id": frame["qid"].astype(str), "doc_id": parent_docno(frame["docno"].astype(str))})
        if not len(rows.merge(truth[truth["relevance"] > 0], on=["query_id", "doc_id"])):
            warnings.warn(f"Distiller.fit: none of the {len(rows)} validation candidates is relevant by the {len(qrels)} qrels of their "
                          f"{frame['qid'].nunique()} queries; {self.measure} will be 0 throughout.", stacklevel=3)

        def validate(student: Ranker) -> float:
            run = rows.assign(score=student.score(frame["query"].tolist(), texts))
            best = run.groupby(["query_id", "doc_id"], as_index=False)["score"].max()        # MaxP; no change for whole documents
            return float(ir_measures.calc_aggregate([self.measure], truth, best)[self.measure])

        return validate


def measure_of(measure: Any) -> Any:
    """A measure of ir_measures, given as such or by its name.

    Raises:
        ValueError: If it is none.
    """
    try:
        parsed = ir_measures.parse_measure(measure) if isinstance(measure, str) else measure
    except (NameError, ValueError, SyntaxError) as error:
        raise ValueError(f"Distiller(measure={measure!r}) is no measure of ir_measures: {error}.") from error
    if not isinstance(parsed, ir_measures.measures.Measure):
        raise ValueError(f"Distiller(measure={measure!r}) is no measure of ir_measures, such as nDCG@10.")
    return parsed
