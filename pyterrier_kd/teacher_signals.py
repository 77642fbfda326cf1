"""What a teacher says while training runs: scores that were computed ahead, or all that a ranker can tell of each batch.

Scores of pairs are computed once and stored (``teacher_scores``). In-batch scores and what layers do are not: there the teacher runs beside the
student, without gradients and dropout, and only the layers that a loss compares are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from .groups import Groups
from .losses import BoundLoss
from .rankers import Ranker
from .signals import LAYERWISE, Architecture, Batch, Signals, Texts, missing_signal
from .teachers import BySignal, terms_of


def given_signals(batch: Batch) -> Signals:
    """Signals made of the scores that were computed ahead; zeros where a loss reads no teacher."""
    return Signals(batch.teacher if batch.teacher is not None else torch.zeros_like(batch.labels), who="a teacher known by its scores")


def architecture_of(teacher: Any, alone: bool) -> Architecture | None:
    """The architecture of a teacher, None if it has no layers to look at.

    Args:
        teacher: Anything that ``terms_of`` takes, or None.
        alone: Whether texts are read without queries.
    """
    if isinstance(teacher, BySignal):
        teacher = teacher.in_batch
    terms = terms_of(teacher) if teacher is not None else ()
    if len(terms) != 1 or not isinstance(terms[0][1].source, Ranker):
        return None
    return terms[0][1].source.architecture(alone)


def require_live(teacher: Any, loss: BoundLoss) -> None:
    """Refuses a teacher that cannot say what a loss needs while training runs.

    Raises:
        MissingSignal: If a part of it is no ranker, or a ranker without these signals; or layers are asked of a sum.
    """
    names = loss.loss.needs.teacher
    if isinstance(teacher, BySignal):
        names, teacher = names - {"scores"}, teacher.in_batch
    terms = terms_of(teacher)
    for _, leaf in terms:
        if leaf.standardise:
            raise ValueError(f"{teacher!r}: standardise=True needs all scores ahead of training, but {loss.loss!r} asks its teacher while training runs.")
        if leaf.logit and isinstance(leaf.source, Ranker):
            raise ValueError(f"Teacher({leaf!r}, logit=True): a ranker of this package gives raw scores already, and {loss.loss!r} asks it while training runs. Leave logit= out.")
        has = leaf.source.signal_names if isinstance(leaf.source, Ranker) else frozenset({"scores"})
        for name in sorted(names - has):
            raise missing_signal(name, loss.loss, f"the teacher {leaf!r}", sorted(has))
    if len(terms) > 1 and (layerwise := sorted(names & LAYERWISE)):
        raise missing_signal(layerwise[0], loss.loss, f"the teacher {teacher!r}, a sum of {len(terms)}", sorted(names - LAYERWISE))


def live_signals(teacher: Any, groups: Groups | None, loss: BoundLoss, device: torch.device) -> Callable[[Any], Signals]:
    """A function that runs the teacher's rankers on each ``Batch`` or ``Texts``.

    Args:
        teacher: Anything that ``require_live`` lets pass.
        groups: The training groups, whose texts each ranker tokenises for itself; None for a corpus.
        loss: The loss that needs the signals.
        device: Where training runs; the teacher goes there.
    """
    names = loss.loss.needs.teacher
    if isinstance(teacher, BySignal):
        live = live_signals(teacher.in_batch, groups, loss, device)
        return lambda batch: replace(live(batch), scores=batch.teacher)
    sources = []
    for weight, leaf in terms_of(teacher):
        frozen = leaf.source.frozen(device)
        sources.append((weight, frozen, None if groups is None else frozen.tokens(groups.queries, groups.texts)))

    def signals(batch: Any) -> Signals:
        with torch.no_grad():
            if isinstance(batch, Texts):
                read: Signals = sources[0][1].read(batch, loss.teacher_layers)
                return read
            parts = [(weight, ranker.signals(batch, tokens, names, loss.teacher_layers)) for weight, ranker, tokens in sources]
        if len(parts) == 1 and math.isclose(parts[0][0], 1.0):
            return parts[0][1]
        sums = {name: sum((w * getattr(s, name) for w, s in parts), torch.zeros((), device=device)) for name in (names - LAYERWISE) | {"scores"}}
        return Signals(scores=sums["scores"], in_batch=sums.get("in_batch"), logits=sums.get("logits"), layers=parts[0][1].layers, who=repr(teacher))

    return signals
