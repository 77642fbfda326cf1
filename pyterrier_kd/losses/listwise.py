"""Losses over the whole list of texts of a query: its distribution of scores, or its ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..signals import Batch, Needs, Signals
from .base import Loss, differences, masked_mean, pairs


@dataclass(frozen=True)
class ListNet(Loss):
    """Cross-entropy of the student's distribution over the list with the teacher's (top-one probabilities).

    -sum_i softmax(t / t_T)_i log softmax(s / t_S)_i, mean over queries.

    Args:
        student_temperature: t_S > 0, default 1.
        teacher_temperature: t_T > 0, default 1.
    """

    student_temperature: float = 1.0
    teacher_temperature: float = 1.0

    def __post_init__(self) -> None:
        if not (self.student_temperature > 0 and self.teacher_temperature > 0):
            raise ValueError(f"The temperatures of {self!r} must be above 0.")

    @property
    def needs(self) -> Needs:
        """Scores of both, for lists of at least two."""
        return Needs(teacher=frozenset({"scores"}), texts=2)

    def __call__(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Mean over the queries with a text."""
        cross, _ = self._entropies(student, teacher, batch)
        return masked_mean(cross, batch.mask.any(1))

    def _entropies(self, student: Signals, teacher: Signals, batch: Batch) -> tuple[Tensor, Tensor]:
        """(B,) cross-entropies of student with teacher, and (B,) entropies of the teacher."""
        ours = log_distribution(student.scores / self.student_temperature, batch.mask)       # (B, n)
        theirs = log_distribution(teacher.scores / self.teacher_temperature, batch.mask)
        target = theirs.exp().masked_fill(~batch.mask, 0.0)
        cross = -(target * ours.masked_fill(~batch.mask, 0.0)).sum(1)
        entropy = -(target * theirs.masked_fill(~batch.mask, 0.0)).sum(1)
        return cross, entropy


@dataclass(frozen=True)
class KLDivergence(ListNet):
    """``ListNet`` less the teacher's own entropy, so that a student that matches its teacher has loss 0."""

    def __call__(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Mean over the queries with a text."""
        cross, entropy = self._entropies(student, teacher, batch)
        return masked_mean(cross - entropy, batch.mask.any(1))


@dataclass(frozen=True)
class LambdaLoss(Loss):
    """A bound on 1 - nDCG over pairs of texts (Wang et al. 2018, the LambdaLoss framework).

    sum over pairs with label_i > label_j of w_ij log2(1 + exp(-sigma (s_i - s_j))), mean over queries, where with
    G = (2^label - 1) / ideal DCG, r the student's current rank and D(r) = log2(1 + r)
        "lambdarank": w_ij = |G_i - G_j| |1/D(r_i) - 1/D(r_j)|
        "ndcg2":      w_ij = |G_i - G_j| |1/D(|r_i - r_j|) - 1/D(|r_i - r_j| + 1)|
    Texts with equal scores share their average rank, so that the loss does not depend on the order of a list.

    Args:
        weighting: "ndcg2" (default) or "lambdarank".
        k: Only pairs with a text among the student's first k count; None (default): all.
        sigma: Steepness, default 1.
    """

    weighting: Literal["ndcg2", "lambdarank"] = "ndcg2"
    k: int | None = None
    sigma: float = 1.0

    def __post_init__(self) -> None:
        if self.weighting not in ("ndcg2", "lambdarank"):
            raise ValueError(f"LambdaLoss(weighting={self.weighting!r}) is unknown: it is 'ndcg2' or 'lambdarank'.")

    @property
    def needs(self) -> Needs:
        """Scores of the student, and labels."""
        return Needs(labels=True, texts=2)

    def __call__(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Mean over the queries that have a relevant text."""
        gain = (torch.pow(2.0, batch.labels) - 1).masked_fill(~batch.mask, 0.0)              # (B, n)
        ideal = gain.sort(dim=1, descending=True).values
        places = torch.arange(1, ideal.shape[1] + 1, device=ideal.device)
        best = (ideal / torch.log2(1.0 + places)).sum(1)                                     # (B,)
        gain = gain / best.clamp(min=1e-9).unsqueeze(1)
        rank = ranks(student.scores.detach(), batch.mask)                                    # (B, n)
        cost = F.softplus(-self.sigma * differences(student.scores)) / math.log(2)
        counts = (differences(batch.labels) > 0) & pairs(batch.mask)
        if self.k is not None:
            counts &= (torch.minimum(rank.unsqueeze(2), rank.unsqueeze(1)) <= self.k)
        weight = differences(gain).abs() * self._discount(rank)
        each = (weight * cost).masked_fill(~counts, 0.0).sum((1, 2))
        return masked_mean(each, best > 0)

    def _discount(self, rank: Tensor) -> Tensor:
        """(B, n, n) difference of the discounts of two ranks."""
        if self.weighting == "lambdarank":
            return differences(1 / torch.log2(1 + rank)).abs()
        apart = differences(rank).abs().clamp(min=1)        # texts that tie stand next to each other at the least
        return (1 / torch.log2(1 + apart) - 1 / torch.log2(2 + apart)).abs()


@dataclass(frozen=True)
class ADRMSE(Loss):
    """Discounted squared difference of the teacher's ranks and the student's soft ranks (arXiv:2405.07920).

    mean_i (r_i - r'_i)^2 / log2(r_i + 1) with r'_i = 1 + sum_{j != i} sigmoid(alpha (s_j - s_i)). It reads only the
    order of the teacher's scores; texts that the teacher ties share their average rank.

    Args:
        alpha: Steepness of the soft ranks, default 1.
    """

    alpha: float = 1.0

    @property
    def needs(self) -> Needs:
        """Scores of both, for lists of at least two."""
        return Needs(teacher=frozenset({"scores"}), texts=2)

    def __call__(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Mean over the real texts of the batch."""
        rank = ranks(teacher.scores, batch.mask)
        beaten = torch.sigmoid(self.alpha * -differences(student.scores))                    # [b, i, j]: is j above i?
        other = pairs(batch.mask) & ~torch.eye(rank.shape[1], dtype=torch.bool, device=rank.device)
        soft = 1 + beaten.masked_fill(~other, 0.0).sum(2)
        return masked_mean((rank - soft) ** 2 / torch.log2(rank + 1), batch.mask)


def log_distribution(scores: Tensor, mask: Tensor) -> Tensor:
    """(B, n) log-softmax over the real texts of each query; a query without any gets zeros."""
    empty = ~mask.any(1, keepdim=True)
    return F.log_softmax(scores.masked_fill(~(mask | empty), -torch.inf), dim=1)


def ranks(scores: Tensor, mask: Tensor) -> Tensor:
    """(B, n) float ranks from 1 at the highest score, equal scores sharing their average rank."""
    gap = differences(scores)
    real = mask.unsqueeze(1)
    higher = ((gap < 0) & real).sum(2)
    equal = ((gap == 0) & real).sum(2)
    return higher + (equal + 1) / 2
