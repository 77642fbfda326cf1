"""What the stages of a fit train on: a corpus, or groups that a stage's loss can learn from, with the scores of its teacher.

A teacher of scores is asked before training, once for each row that training will see; what it says is kept in a ``ScoreStore``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt

from .corpus import Corpus
from .errors import DataError
from .frames import fields_of
from .groups import Groups, from_frame
from .pairs import TrainingPairs
from .rankers import Ranker
from .sampling import KeepTop
from .score_store import ScoreStore
from .stages import Stage, rows_ahead
from .strategies import Strategy
from .teacher_scores import teacher_scores
from .teachers import BySignal, scores_by, terms_of
from .training import processes

Candidates = tuple[pd.DataFrame, list[str]] | TrainingPairs      # a frame sorted by query with the text of each row, or pairs by ids
TrainedOn = Groups | Corpus


@dataclass(frozen=True)
class TrainingData:
    """Makes the training data of a fit.

    Attributes:
        strategy: The stages.
        student: What is trained.
        teacher: Of the stages that have none of their own, or None.
        candidates: What all stages train on that have no corpus and make no candidates of their own; None without.
        qrels: The labels of the candidates that are a frame, and of those that stages make; None without.
        keep_top: Which passages are trained on, by the teacher's scores, or None.
        scores: The file in which teacher scores are kept. True: in PyTerrier's home; False: none.
        seed: The fit's.
        verbose: Whether to show progress bars.
    """

    strategy: Strategy
    student: Ranker
    teacher: Any
    candidates: Candidates | None
    qrels: pd.DataFrame | None
    keep_top: KeepTop | None
    scores: str | Path | bool
    seed: int
    verbose: bool

    @cached_property
    def labels(self) -> pd.DataFrame | None:
        """The labels of candidates that a stage makes for itself."""
        return self.candidates.qrels() if isinstance(self.candidates, TrainingPairs) else self.qrels

    @cached_property
    def store(self) -> ScoreStore | None:
        """Where teacher scores are kept, or None; PyTerrier's home is made only if it is needed."""
        if self.scores is False:
            return None
        return ScoreStore(Path(pt.io.pyterrier_home()) / "kd" / "teacher_scores.sqlite3" if self.scores is True else self.scores)

    def sources(self) -> list[TrainedOn | None]:
        """What each stage trains on, without a teacher's scores; None where it makes candidates of its own.

        Raises:
            DataError: If a stage has nothing to learn from.
        """
        groups = self.candidates.groups if isinstance(self.candidates, TrainingPairs) else None if self.candidates is None else self._groups(self.candidates)
        return [self._source(stage, groups) for stage in self.strategy.stages]

    def _source(self, stage: Stage, groups: Groups | None) -> TrainedOn | None:
        if stage.corpus is not None:
            special = len(self.student.tokenizer("")["input_ids"])
            return Corpus(stage.corpus, self.student.tokenizer, stage.length - special, fields_of(self.student.text_field))
        if stage.candidates is not None:
            if stage.loss.needs.labels and self.labels is None:
                raise DataError(f"{stage.loss!r} learns from labels: pass qrels to fit for the candidates that the stage {stage.name!r} makes.")
            return None
        if groups is None:
            raise DataError(f"The stage {stage.name!r} trains on candidates: pass a frame of them as fit's first argument. Only stages with a corpus need none.")
        return learnable(stage, groups)

    def with_scores(self, sources: Sequence[TrainedOn | None]) -> list[TrainedOn | None]:
        """The groups with the teacher's scores, where a stage's loss reads only those, less the rows for which a run has none.

        Raises:
            TeacherError: If a teacher does not score every row; what it has scored is kept.
        """
        if self.candidates is None:
            return list(sources)
        every = None if self.keep_top is None else self._scored(scores_by(self.teacher), self.candidates, np.arange(rows_in(self.candidates)))
        taught: list[TrainedOn | None] = []
        for index, source in enumerate(sources):
            if isinstance(source, Groups):
                if self.keep_top is not None and every is not None:
                    loss = self.strategy.stages[index].loss
                    source = source.select_rows(self.keep_top(source.starts, source.parent, every[source.row])).usable(loss.needs, loss)
                source = self._taught(index, source, self.candidates)
            taught.append(source)
        return taught

    def mined(self, index: int, candidates: tuple[pd.DataFrame, list[str]]) -> Groups:
        """The groups of a stage that has made candidates of its own, by its number."""
        return self._taught(index, learnable(self.strategy.stages[index], self._groups(candidates)), candidates)

    def _groups(self, candidates: tuple[pd.DataFrame, list[str]]) -> Groups:
        return from_frame(*candidates, self.labels, "Distiller.fit")

    def _taught(self, index: int, source: Groups, candidates: Candidates) -> Groups:
        """The groups of one stage with its teacher's scores. The teacher is asked only for the rows that training will see, wherever these are known ahead."""
        stage = self.strategy.stages[index]
        teacher, needs = stage.taught_by(self.teacher), stage.loss.needs.teacher
        teacher = scores_by(teacher) if needs == {"scores"} or (isinstance(teacher, BySignal) and "scores" in needs) else None
        if teacher is None:
            return source
        rows = source.row
        if stage.sampler.choose == "random" and not any(leaf.listwise or leaf.missing == "drop" for _, leaf in terms_of(teacher)):
            rows = rows[rows_ahead(stage, source, (self.seed, index), processes())]
        rows, scores = np.sort(rows), np.zeros(rows_in(candidates))
        scores[rows] = self._scored(teacher, candidates, rows)
        return source.with_teacher(scores).usable(stage.loss.needs, stage.loss)

    def _scored(self, teacher: Any, candidates: Candidates, rows: np.ndarray) -> np.ndarray:
        """A teacher's scores of some rows of the candidates."""
        if isinstance(candidates, TrainingPairs):
            field = fields_of(self.student.text_field)[0]
            # what is brought to one scale needs all scores at once
            whole = any(leaf.standardise for _, leaf in terms_of(teacher))
            frames = (candidates.frame(portion, field) for portion in ([rows] if whole else candidates.portions(rows)))
            return np.concatenate([teacher_scores(teacher, frame, frame[field].tolist(), self.store, self.verbose) for frame in frames])
        frame, texts = candidates
        return teacher_scores(teacher, frame.iloc[rows].reset_index(drop=True), [texts[j] for j in rows], self.store, self.verbose)


def rows_in(candidates: Candidates) -> int:
    """The number of rows that groups were made of."""
    return len(candidates.groups.row) if isinstance(candidates, TrainingPairs) else len(candidates[0])


def learnable(stage: Stage, groups: Groups) -> Groups:
    """The groups from which a stage's loss can learn, with their topics where it has any."""
    usable = groups.usable(stage.loss.needs, stage.loss)
    return usable if stage.topics is None else replace(usable, topic=np.asarray(stage.topics(usable.queries)))
