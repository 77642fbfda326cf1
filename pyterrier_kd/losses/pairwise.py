"""Losses over pairs of texts of one query: their margins and their order.

Every loss here takes n texts a query and averages over its pairs, so that with one positive and one negative it is
the formula of its paper. Where an order is needed it is that of the labels, or the teacher's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..signals import Batch, Needs, Signals
from .base import Loss, differences, masked_mean, pairs

Order = Literal["labels", "teacher"]


@dataclass(frozen=True)
class MarginMSE(Loss):
    """Mean squared difference of the margins of student and teacher (arXiv:2010.02666, eq. 6).

    mean of ((s_i - s_j) - (t_i - t_j))^2 over all pairs i < j of a query's texts: signed margins, raw scores.

    Args:
        in_batch: If True, the texts of a query are all texts of the batch. Both student and teacher must then report
            every query against every text, as two-sided rankers do. "anchored": of these only the margins between a query's relevant
            text and each text of the other queries (arXiv:2104.06967, section 3.3). Default False.
    """

    in_batch: bool | Literal["anchored"] = False

    def __post_init__(self) -> None:
        if self.in_batch not in (True, False, "anchored"):
            raise ValueError(f"{self!r} is unknown: in_batch is True, False or 'anchored'.")

    @property
    def needs(self) -> Needs:
        """Scores of both, or the in-batch scores of both."""
        signal = frozenset({"in_batch"}) if self.in_batch else frozenset({"scores"})
        return Needs(student=signal, teacher=signal, labels=self.in_batch == "anchored", texts=1 if self.in_batch else 2)

    def __call__(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Mean over all pairs of real texts; without forming them, by sum_{i<j} (d_i - d_j)^2 = n sum (d - mean d)^2."""
        if self.in_batch:
            gap = student.require("in_batch", by=self) - teacher.require("in_batch", by=self)   # (B, B*n)
            mask = batch.mask.flatten().expand_as(gap)
            if self.in_batch == "anchored":
                return self._anchored(gap, mask, batch)
        else:
            gap, mask = student.scores - teacher.scores, batch.mask                          # (B, n)
        count = mask.sum(1, keepdim=True)                                                    # (B, 1)
        gap = gap.masked_fill(~mask, 0.0)
        centred = (gap - gap.sum(1, keepdim=True) / count.clamp(min=1)).masked_fill(~mask, 0.0)
        squares = (count * centred**2).sum()
        return squares / (count * (count - 1) / 2).sum().clamp(min=1)

    @staticmethod
    def _anchored(gap: Tensor, mask: Tensor, batch: Batch) -> Tensor:
        """Mean over the margins between each query's first relevant text and the texts of other queries."""
        rows, texts = torch.arange(len(batch), device=gap.device), batch.mask.shape[1]
        anchor = rows * texts + ((batch.labels > 0) & batch.mask).float().argmax(1)           # (B,) columns
        others = mask & (torch.arange(gap.shape[1], device=gap.device)[None, :] // texts != rows[:, None])
        squares = (gap.gather(1, anchor[:, None]) - gap).square()
        return squares[others].sum() / others.sum().clamp(min=1)


@dataclass(frozen=True)
class RankNet(Loss):
    """log(1 + exp(-(s_i - s_j))), mean over the pairs in which text i should be above text j.

    Args:
        order: "labels" (default): the text with the higher label should be above (the papers' training without a
            teacher). "teacher": the text that the teacher ranks higher; only the order of the teacher's scores is
            read, so this is distillation from teachers that give an order and no usable scores (a language model's
            permutation, arXiv:2405.07920).
    """

    order: Order = "labels"

    @property
    def needs(self) -> Needs:
        """Scores of the student, and labels or the teacher's scores."""
        return order_needs(self.order)

    def __call__(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Mean over the ordered pairs; pairs that tie in the order do not count."""
        return masked_mean(F.softplus(-differences(student.scores)), above(self.order, teacher, batch))


@dataclass(frozen=True)
class WeightedRankNet(Loss):
    """RankNet with each pair weighted by the size of the teacher's margin (arXiv:2010.02666, eq. 7).

    log(1 + exp(-(s_i - s_j))) * |t_i - t_j|. The public code multiplies by the signed margin, which makes the loss
    unbounded below where the teacher prefers the other text; the size is what the paper writes.

    Args:
        order: "labels" (default, the paper's) or "teacher": which text of a pair should be above.
    """

    order: Order = "labels"

    @property
    def needs(self) -> Needs:
        """Scores of both, and labels unless the order is the teacher's."""
        return order_needs(self.order) | Needs(teacher=frozenset({"scores"}))

    def __call__(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Mean over the ordered pairs."""
        weighted = F.softplus(-differences(student.scores)) * differences(teacher.scores).abs()
        return masked_mean(weighted, above(self.order, teacher, batch))


@dataclass(frozen=True)
class PairwiseHinge(Loss):
    """max(0, margin - (s_i - s_j)), mean over the pairs in which text i should be above text j.

    Args:
        margin: The margin from which a pair costs nothing, default 1.
        order: "labels" (default) or "teacher".
    """

    margin: float = 1.0
    order: Order = "labels"

    @property
    def needs(self) -> Needs:
        """Scores of the student, and labels or the teacher's scores."""
        return order_needs(self.order)

    def __call__(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Mean over the ordered pairs."""
        return masked_mean(F.relu(self.margin - differences(student.scores)), above(self.order, teacher, batch))


def order_needs(order: Order) -> Needs:
    """What a pairwise loss needs for an order, and an error for an order that does not exist."""
    if order not in ("labels", "teacher"):
        raise ValueError(f"order={order!r} is unknown: it is 'labels' or 'teacher'.")
    teacher = frozenset({"scores"}) if order == "teacher" else frozenset()
    return Needs(teacher=teacher, labels=order == "labels", texts=2)


def above(order: Order, teacher: Signals, batch: Batch) -> Tensor:
    """(B, n, n) bool: True where text i of a query should be ranked above text j."""
    better = differences(batch.labels if order == "labels" else teacher.scores) > 0
    return torch.logical_and(better, pairs(batch.mask))
