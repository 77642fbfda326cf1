"""Named strategies: the papers' methods, as tuples of stages. They assemble parts and train nothing themselves.

    print(kd.strategies.standard_kd(alpha=0.5, temperature=5))

shows a method as its equation and its settings. One's own is ``Strategy("mine", (Stage(...), Stage(...)))``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .losses import MSE, Attention, Embedding, HardLabels, Hidden, Loss, MarginMSE, RankNet, SoftLabels, WeightedRankNet
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

    def with_settings(self, stage: str | None = None, **settings: Any) -> Strategy:
        """The same strategy with some settings replaced; None leaves a setting as it is.

        Args:
            stage: The name of the one stage that is changed. Default None: every stage.
            **settings: Settings of ``Stage``.

        Raises:
            ValueError: If no stage has this name.
        """
        names = [s.name for s in self.stages]
        if stage not in (None, *names):
            raise ValueError(f"{self.name} has the stages {names}, not {stage!r}.")
        given = {k: v for k, v in settings.items() if v is not None}
        if "epochs" in given:
            given.setdefault("steps", None)     # a stage's own number of steps would win otherwise
        return replace(self, stages=tuple(replace(s, **given) if stage in (None, s.name) else s for s in self.stages))

    def __repr__(self) -> str:
        lines = [f"{self.name}: {len(self.stages)} stage{'s' if len(self.stages) > 1 else ''}"]
        for i, s in enumerate(self.stages, start=1):
            length = f"{s.steps} steps" if s.steps else f"{s.epochs:g} epoch{'s' if s.epochs != 1 else ''}"
            dropout = "the model's dropout" if s.dropout is None else f"dropout {s.dropout:g}"
            seen = f"{s.batch_size} queries x {s.sampler.texts} texts a step" if s.corpus is None else f"{s.batch_size} texts of at most {s.length} tokens a step, from a corpus"
            lines.append(f"  {i}. {s.name}: L = {s.loss!r}")
            lines.append(f"     {length}, learning rate {s.learning_rate:g} ({s.schedule}, warm-up {s.warmup:g}), {seen}, {dropout}"
                         + (f", teacher {s.teacher!r}" if s.teacher is not None else ""))
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


def fine_tune(loss: Loss | None = None, texts: int = 2) -> Strategy:
    """Training on labels, without a teacher: RankNet as in arXiv:2010.02666, or another loss over labels.

    Args:
        loss: Default ``RankNet()``.
        texts: Texts a query. Default 2.
    """
    return single("fine_tune", loss or RankNet(), texts)


UNCLIPPED = 10_000.0        # the largest norm of a gradient in the code published with arXiv:2010.02666: in effect none


def cross_architecture(loss: Loss | None = None, texts: int = 2, tk: bool = False) -> Strategy:
    """Cross-architecture distillation with the settings of arXiv:2010.02666: 850,000 steps of 32 triples for 400,000 queries are 68 passes over pairs of texts.

    Its published code validates nDCG@10 every 4,000 steps and stops after 30 validations without a better one: ``Distiller(validate_every=4000, patience=30)``.
    It warms up by a number of steps that is not told; here there is no warm-up.

    Args:
        loss: ``MarginMSE()`` (default), ``MSE()`` or ``WeightedRankNet()``; without a teacher ``RankNet()``.
        texts: Texts a query. Default 2, the paper's triples.
        tk: Whether the student is a TK, whose rates are 1e-5, of its kernels 1e-4, instead of 7e-6.
    """
    rates = {r"\binteraction\.": 1e-4} if tk else {}
    stage = Stage(loss or MarginMSE(), epochs=68, learning_rate=1e-5 if tk else 7e-6, rates=rates, batch_size=32, schedule="cosine", warmup=0.0, weight_decay=0.0, clip=UNCLIPPED)
    return single("cross_architecture", stage.loss, texts, stage)


def tas_b(topics: Callable[[Sequence[str]], np.ndarray], in_batch: float = 0.75) -> Strategy:
    """TAS-Balanced: batches of one topic, balanced margins, dual supervision (arXiv:2104.06967).

    The teacher is a ``kd.BySignal``: of pairs a cross-encoder or an ensemble, within the batch a ColBERT, which its paper trains without mask
    tokens (``expansion=0``).

    Args:
        topics: Such as ``kd.QueryTopics(encoder)``.
        in_batch: Weight of the loss over the batch's other texts. Default 0.75.
    """
    loss = MarginMSE() + in_batch * MarginMSE(in_batch="anchored")
    stage = Stage(loss, epochs=68, learning_rate=7e-6, batch_size=32, schedule="cosine", warmup=0.0, weight_decay=0.0, clip=UNCLIPPED, topics=topics,
                  sampler=Sampler(texts=2, choose="bins"), name="tas_b")
    return Strategy("tas_b", (stage,))


def prettr_compression(join: int, depth: int) -> Strategy:
    """Pre-training of a PreTTR's compression (arXiv:2004.14255): the layers above it attend as they do without it. Only the compression is trained.

    The teacher is the same PreTTR without compression.

    Args:
        join: The first layer that reads both sides.
        depth: The number of layers.
    """
    return Strategy("prettr_compression", (Stage(Attention([(i, i) for i in range(join, depth)]), learning_rate=1e-3, rates={r"\bclassifier\.": 0.0}, name="compression"),))


# ---------------------------------------------------------------------- same-architecture distillation

LAYERS = Attention() + Hidden() + Embedding()       # unweighted, as in the papers

# arXiv:2009.07531, section 4: two epochs over 9 pairs a query (3.3 million pairs of 367,013 queries) are 9 passes over pairs of texts.
WITH_LAYERS = Stage(LAYERS, epochs=9, learning_rate=5e-5, batch_size=32, sampler=Sampler(texts=2))             # 64 pairs a step
SCORES_ONLY = Stage(SoftLabels(), epochs=9, learning_rate=1e-6, batch_size=64, sampler=Sampler(texts=2))       # 128 pairs a step


def standard_kd(alpha: float = 0.5, temperature: float = 1.0, texts: int = 2) -> Strategy:
    """Standard KD, alpha * L_soft + (1 - alpha) * L_hard (arXiv:2009.07531, section 4; its grid: T in 1, 5, 10, alpha in 0.2, 0.5, 0.7).

    Args:
        alpha: Weight of the teacher's soft labels in [0, 1]. Default 0.5.
        temperature: Of the soft labels. Default 1.
        texts: Texts a query. Default 2.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"standard_kd(alpha={alpha}) must be in [0, 1].")
    return single("standard_kd", alpha * SoftLabels(temperature=temperature) + (1 - alpha) * HardLabels(), texts, SCORES_ONLY)


def tinybert(corpus: Any = None, encoder: Any = None, *, hard_label: bool = False, one_step: bool = False) -> Strategy:
    """TinyBERT for ranking (arXiv:1909.10351, with the settings of arXiv:2009.07531): layers first, then scores.

    With a corpus a general stage comes first, in which the layers of a pre-trained encoder are learned on plain texts. Without one, start from
    a student that has seen it, such as a general TinyBERT checkpoint or the first layers of the teacher (``CrossEncoder.tiny_bert``).

    Args:
        corpus: Texts for the general stage; see ``Stage``. Default None: no general stage.
        encoder: The pre-trained encoder that teaches the general stage, a ranker; its head is not used.
        hard_label: Whether the labels teach too ("+ hard label"). Default False.
        one_step: Whether layers and scores are learned at once ("+ one step"). Default False.
    """
    name = "tinybert" + (" + hard label" if hard_label else "") + (" + one step" if one_step else "")
    return Strategy(name, (*general_stage(corpus, encoder), *task_stages(hard_label, one_step, WITH_LAYERS, SCORES_ONLY)))


def simplified_tinybert(corpus: Any = None, encoder: Any = None) -> Strategy:
    """Simplified TinyBERT: TinyBERT with hard labels in one step (arXiv:2009.07531, eq. 2). See ``tinybert``."""
    return replace(tinybert(corpus, encoder, hard_label=True, one_step=True), name="simplified_tinybert")


# arXiv:2007.11088 distils as TinyBERT does; rates and lengths here are those that TinyBERT's public code recommends for a task.
TASK_LAYERS = Stage(LAYERS, epochs=10, learning_rate=5e-5, batch_size=16, sampler=Sampler(texts=2))            # 32 pairs a step
TASK_SCORES = Stage(SoftLabels(), epochs=3, learning_rate=3e-5, batch_size=16, sampler=Sampler(texts=2))


def ranker_distill() -> Strategy:
    """Ranker Distill (arXiv:2007.11088): a student, random in the paper, learns a ranker's layers, then its scores."""
    return Strategy("ranker_distill", task_stages(False, False, TASK_LAYERS, TASK_SCORES))


def lm_distill(corpus: Any, encoder: Any) -> Strategy:
    """LM Distill (arXiv:2007.11088): the student learns the layers of a pre-trained encoder on plain texts; TinyBERT's general stage.

    Args:
        corpus: The texts; see ``Stage``.
        encoder: The pre-trained encoder, a ranker; its head is not used.
    """
    return Strategy("lm_distill", general_stage(corpus, encoder))


def lm_distill_fine_tune(corpus: Any, encoder: Any) -> Strategy:
    """LM Distill + Fine-Tuning (arXiv:2007.11088): ``lm_distill``, then training on labels, which needs no ranker as teacher."""
    return Strategy("lm_distill_fine_tune", (*general_stage(corpus, encoder), replace(TASK_SCORES, loss=HardLabels(), name="fine_tune")))


def lm_distill_ranker_distill(corpus: Any, encoder: Any) -> Strategy:
    """LM Distill + Ranker Distill (arXiv:2007.11088): ``lm_distill``, then ``ranker_distill``."""
    return Strategy("lm_distill_ranker_distill", (*general_stage(corpus, encoder), *ranker_distill().stages))


def general_stage(corpus: Any, encoder: Any) -> tuple[Stage, ...]:
    """TinyBERT's general distillation: 3 epochs over texts of 128 tokens, 256 a step (arXiv:1909.10351); () without a corpus.

    Raises:
        ValueError: If only one of the two is given.
    """
    if (corpus is None) != (encoder is None):
        raise ValueError("A general stage needs both a corpus= of texts and an encoder= whose layers are learned on it, "
                         f"a ranker made from a pre-trained model; {'encoder' if encoder is None else 'corpus'} is missing.")
    if corpus is None:
        return ()
    return (Stage(LAYERS, epochs=3, learning_rate=5e-5, batch_size=256, corpus=corpus, length=128, teacher=encoder, name="general"),)


def task_stages(hard_label: bool, one_step: bool, layers: Stage, scores: Stage) -> tuple[Stage, ...]:
    """The stages over queries: layers, then scores; or both at once, with the settings of the first."""
    prediction = SoftLabels() + HardLabels() if hard_label else SoftLabels()
    if one_step:
        return (replace(layers, loss=LAYERS + prediction, name="layers and prediction"),)
    return replace(layers, schedule="constant", warmup=0.0, name="layers"), replace(scores, loss=prediction, name="prediction")


def as_strategy(strategy: Strategy | Stage | Iterable[Stage] | Loss | None) -> Strategy:
    """A strategy from what a user may pass: a strategy, a stage or several, a loss, or None (Margin-MSE)."""
    if strategy is None:
        return margin_mse()
    if isinstance(strategy, Strategy):
        return strategy
    if isinstance(strategy, Loss):
        return Strategy("custom", (Stage(strategy),))
    return Strategy("custom", (strategy,) if isinstance(strategy, Stage) else tuple(strategy))
