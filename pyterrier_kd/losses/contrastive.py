"""Contrastive losses: a relevant text against all others at hand, those of other queries included."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..signals import Batch, Needs, Signals
from .base import Loss, masked_mean


@dataclass(frozen=True)
class InfoNCE(Loss):
    """-log exp(s+ / t) / (exp(s+ / t) + sum_negatives exp(s / t)), mean over the (query, relevant text) pairs.

    Negatives are the texts of the batch that are not known to be relevant to the query; a document that occurs
    several times in the batch counts once.

    Args:
        temperature: t > 0, default 1 (0.05 is usual for cosine scores).
        in_batch: If True (default), the texts of the other queries are negatives too; the student must then report
            every query against every text, as two-sided rankers do. If False, only the query's own texts.
    """

    temperature: float = 1.0
    in_batch: bool = True

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"InfoNCE(temperature=...) must be above 0, not {self.temperature}.")

    @property
    def needs(self) -> Needs:
        """Scores (of the whole batch) of the student, and labels."""
        student = frozenset({"scores", "in_batch"}) if self.in_batch else frozenset({"scores"})
        return Needs(student=student, labels=True, texts=1 if self.in_batch else 2)

    def __call__(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Mean over the relevant texts of the batch."""
        if self.in_batch:
            others, negatives = student.require("in_batch", by=self), batch.negatives()      # (B, B*n)
        else:
            others, negatives = student.scores, batch.mask & (batch.labels <= 0)             # (B, n)
        relevant = batch.mask & (batch.labels > 0)                                           # (B, n)
        positive = student.scores / self.temperature
        rest = (others / self.temperature).masked_fill(~negatives, -torch.inf)
        rest = rest.logsumexp(1, keepdim=True).expand_as(positive)                           # (B, n)
        return masked_mean(torch.logaddexp(positive, rest) - positive, relevant)
