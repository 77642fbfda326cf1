"""Losses over single (query, text) pairs: each pair's score against the teacher's score or against its label."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..signals import Batch, Needs, Signals
from .base import Loss, masked_mean


@dataclass(frozen=True)
class MSE(Loss):
    """Mean squared difference of student and teacher scores.

    For pairs of a positive and a negative this is the pointwise MSE of cross-architecture distillation,
    (MSE(S+, T+) + MSE(S-, T-)) / 2 (arXiv:2010.02666, section 4).
    """

    @property
    def needs(self) -> Needs:
        """Scores of both."""
        return Needs(teacher=frozenset({"scores"}))

    def __call__(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Mean over the real pairs of the batch."""
        return masked_mean((student.scores - teacher.scores) ** 2, batch.mask)


@dataclass(frozen=True)
class SoftLabels(Loss):
    """Cross-entropy of the student's class distribution with the teacher's: L_soft of arXiv:2009.07531, eq. 1.

    -sum_c softmax(z_T / t)_c log softmax(z_S / t)_c, mean over pairs. Two things differ between public codes: the
    reference code of TinyBERT averages over the classes as well (half of this value for two classes), and some
    multiply by t^2; neither is done here, as neither is in the paper.

    Args:
        temperature: t > 0, default 1.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"SoftLabels(temperature=...) must be above 0, not {self.temperature}.")

    @property
    def needs(self) -> Needs:
        """Scores of both; logits are read where they are reported."""
        return Needs(teacher=frozenset({"scores"}))

    def __call__(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Mean over the real pairs of the batch."""
        target = F.softmax(class_logits(teacher) / self.temperature, dim=-1)                 # (B, n, C)
        log_probability = F.log_softmax(class_logits(student) / self.temperature, dim=-1)    # (B, n, C)
        return masked_mean(-(target * log_probability).sum(-1), batch.mask)


@dataclass(frozen=True)
class HardLabels(Loss):
    """Cross-entropy of the student's two classes with the relevance label: L_hard of arXiv:2009.07531, eq. 2.

    A label above 0 is the relevant class.
    """

    @property
    def needs(self) -> Needs:
        """Scores of the student, and labels."""
        return Needs(labels=True)

    def __call__(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Mean over the real pairs of the batch."""
        log_probability = F.log_softmax(class_logits(student), dim=-1)                       # (B, n, 2)
        relevant = (batch.labels > 0).long().unsqueeze(-1)
        return masked_mean(-log_probability.gather(-1, relevant).squeeze(-1), batch.mask)


@dataclass(frozen=True)
class BinaryCrossEntropy(Loss):
    """Binary cross-entropy of the score, read as a log-odds, with the relevance label.

    The same as ``HardLabels`` at ``positive_weight=1``; the weight makes up for lists with few positives.

    Args:
        positive_weight: Factor on the terms of relevant texts, default 1.
    """

    positive_weight: float = 1.0

    @property
    def needs(self) -> Needs:
        """Scores of the student, and labels."""
        return Needs(labels=True)

    def __call__(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Mean over the real pairs of the batch."""
        relevant = (batch.labels > 0).float()
        weight = torch.full((), self.positive_weight, device=relevant.device)
        each = F.binary_cross_entropy_with_logits(student.scores, relevant, reduction="none", pos_weight=weight)
        return masked_mean(each, batch.mask)


def class_logits(signals: Signals) -> Tensor:
    """(B, n, C) logits; a ranker with a single score s stands for the two logits (0, s)."""
    if signals.logits is not None and signals.logits.shape[-1] > 1:
        return signals.logits
    return torch.stack([torch.zeros_like(signals.scores), signals.scores], dim=-1)
