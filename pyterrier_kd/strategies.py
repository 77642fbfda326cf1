"""Named strategies: the papers' methods, as tuples of stages. They assemble parts and train nothing themselves.

    print(kd.strategies.standard_kd(alpha=0.5, temperature=5))

shows a method as its equation and its settings. One's own is ``Strategy("mine", (Stage(...), Stage(...)))``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from .losses import MSE, HardLabels, Loss, MarginMSE, RankNet, SoftLabels, WeightedRankNet
from .sampling import Sampler
from .stages import Stage


@dataclass(frozen=True)
class Strategy:
    """Stages that are trained one after the other.

    Args:
        name: The method's name.
        stages: The stages.
    """

    name: str
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        if not self.stages or not all(isinstance(s, Stage) for s in self.stages):
            raise ValueError(f"Strategy({self.name!r}) needs at least one Stage, and nothing else, in stages=.")

    def with_settings(self, **settings: Any) -> Strategy:
        """The same strategy with some settings of every stage replaced; None leaves a setting as it is."""
        given = {k: v for k, v in settings.items() if v is not None}
        if "epochs" in given:
            given.setdefault("steps", None)     # a stage's own number of steps would win otherwise
        return replace(self, stages=tuple(replace(s, **given) for s in self.stages))

    def __repr__(self) -> str:
        lines = [f"{self.name}: {len(self.stages)} stage{'s' if len(self.stages) > 1 else ''}"]
        for i, s in enumerate(self.stages, start=1):
            length = f"{s.steps} steps" if s.steps else f"{s.epochs:g} epoch{'s' if s.epochs != 1 else ''}"
            dropout = "the model's dropout" if s.dropout is None else f"dropout {s.dropout:g}"
            lines.append(f"  {i}. {s.name}: L = {s.loss!r}")
            lines.append(f"     {length}, learning rate {s.learning_rate:g} ({s.schedule}, warm-up {s.warmup:g}), "
                         f"{s.batch_size} queries x {s.sampler.texts} texts a step, {dropout}")
        return "\n".join(lines)


def single(name: str, loss: Loss, texts: int, stage: Stage | None = None) -> Strategy:
    """A strategy of one stage."""
    return Strategy(name, (replace(stage or Stage(loss), loss=loss, sampler=Sampler(texts=texts), name=name),))


def margin_mse(texts: int = 2, in_batch: bool = False) -> Strategy:
    """Margin-MSE (arXiv:2010.02666, eq. 6); the paper trains 850,000 steps at learning rate 7e-6.

    Args:
        texts: Texts a query. Default 2, the paper's pairs.
        in_batch: Whether all texts of a batch count for each of its queries; for two-sided students and teachers.
    """
    return single("margin_mse", MarginMSE(in_batch=in_batch), texts)


def mse(texts: int = 2) -> Strategy:
    """Pointwise MSE on the teacher's scores (arXiv:2010.02666, section 4)."""
    return single("mse", MSE(), texts)


def weighted_ranknet(texts: int = 2) -> Strategy:
    """RankNet on the labels, weighted by the teacher's margins (arXiv:2010.02666, eq. 7)."""
    return single("weighted_ranknet", WeightedRankNet(), texts)


def rank_only(texts: int = 8) -> Strategy:
    """RankNet on the teacher's order alone, for teachers whose scores mean nothing (arXiv:2405.07920)."""
    return single("rank_only", RankNet(order="teacher"), texts)


def standard_kd(alpha: float = 0.5, temperature: float = 1.0, texts: int = 2) -> Strategy:
    """Alpha * L_soft + (1 - alpha) * L_hard (arXiv:2009.07531, section 4; its grid: T in 1, 5, 10, alpha in 0.2, 0.5, 0.7).

    Args:
        alpha: Weight of the teacher's soft labels in [0, 1]. Default 0.5.
        temperature: Of the soft labels. Default 1.
        texts: Texts a query. Default 2.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"standard_kd(alpha={alpha}) must be in [0, 1].")
    return single("standard_kd", alpha * SoftLabels(temperature=temperature) + (1 - alpha) * HardLabels(), texts)


def fine_tune(loss: Loss | None = None, texts: int = 2) -> Strategy:
    """Training on labels, without a teacher: RankNet as in arXiv:2010.02666, or another loss over labels.

    Args:
        loss: Default ``RankNet()``.
        texts: Texts a query. Default 2.
    """
    return single("fine_tune", loss or RankNet(), texts)


def as_strategy(strategy: Strategy | Stage | Iterable[Stage] | Loss | None) -> Strategy:
    """A strategy from what a user may pass: a strategy, a stage or several, a loss, or None (Margin-MSE)."""
    if strategy is None:
        return margin_mse()
    if isinstance(strategy, Strategy):
        return strategy
    if isinstance(strategy, Loss):
        return Strategy("custom", (Stage(strategy),))
    return Strategy("custom", (strategy,) if isinstance(strategy, Stage) else tuple(strategy))
