"""Losses bound to those who are to give what they need, before anything long begins.

A loss says by ``needs`` which signals it reads, of whom. Here the student, each stage's teacher and the data are asked whether they have them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .errors import DataError
from .losses import BoundLoss
from .rankers import Ranker
from .signals import LAYERWISE, LayerNumbers, Texts, missing_signal
from .stages import Stage
from .strategies import Strategy
from .teacher_signals import architecture_of, require_live
from .teachers import BySignal, scores_by, terms_of


def bound_losses(strategy: Strategy, student: Ranker, teacher: Any, seed: int, given: bool = False) -> list[BoundLoss]:
    """The losses of all stages, bound to the student and to each stage's teacher; what they learn is shared from stage to stage.

    Args:
        strategy: The stages.
        student: What is trained.
        teacher: Of the stages that have none of their own; may be None.
        seed: Of what losses learn.
        given: Whether the data hold scores that stand in for a teacher's. Default False.

    Raises:
        DataError: If there is no teacher for a loss that needs one.
        LayerMismatch: If layers are to be compared that cannot be.
        MissingSignal: If student or teacher cannot say what a loss needs.
    """
    for stage in strategy.stages:
        for name in sorted(stage.loss.needs.student - student.signal_names):
            raise missing_signal(name, stage.loss, f"the student {student!r}", sorted(student.signal_names))
        require_teacher(stage, teacher, given)
    learned = nn.ModuleDict()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return [_bound(stage, student, stage.taught_by(teacher), learned) for stage in strategy.stages]


def require_teacher(stage: Stage, teacher: Any, given: bool) -> None:
    """Refuses a stage whose loss learns from scores or signals that nobody gives.

    Raises:
        DataError: Then.
    """
    own, needs, known = stage.taught_by(teacher), stage.loss.needs.teacher, given and stage.candidates is None
    if "scores" in needs and scores_by(own) is None and not known and (given or isinstance(own, BySignal)):
        where = f"the candidates that the stage {stage.name!r} makes for itself" if given else "queries with their own texts, which these data do not hold"
        hint = f"pass scores= to {own!r}" if isinstance(own, BySignal) else "pass a teacher= to the Distiller or to the stage"
        raise DataError(f"{stage.loss!r} needs scores of {where}: {hint}" + (", or pairs of kd.pairs.from_score_file." if not given else "."))
    if own is None and needs - ({"scores"} if known else set()):
        raise DataError(f"{stage.loss!r} learns from a teacher: pass teacher= to the Distiller, or train on labels alone with strategies.fine_tune().")


def _bound(stage: Stage, student: Ranker, teacher: Any, learned: nn.ModuleDict) -> BoundLoss:
    """A stage's loss, bound to the student and to the stage's own teacher."""
    alone, compares = stage.corpus is not None, stage.loss.needs.student & LAYERWISE
    mine, theirs = (student.architecture(alone), architecture_of(teacher, alone)) if compares else (None, None)
    bound = stage.loss.bind(mine, theirs, learned)
    if not stage.loss.needs.teacher <= {"scores"}:
        require_live(teacher, bound)
    for architecture in (mine, theirs):
        if alone and architecture is not None and stage.length > architecture.limit:
            raise ValueError(f"The stage {stage.name!r} reads texts of {stage.length} tokens, {architecture.who} at most {architecture.limit}: pass length= to the stage.")
    require_heard(student, bound.student_layers)
    if theirs is not None:
        require_heard(terms_of(teacher)[0][1].source, bound.teacher_layers)
    return bound


def require_heard(ranker: Ranker, layers: LayerNumbers) -> None:
    """Listens to a ranker once, so that layers which cannot be heard are known before training.

    Raises:
        MissingSignal: If they cannot.
    """
    if layers:
        with torch.no_grad():
            ranker.read(Texts(("a text",)), layers)
