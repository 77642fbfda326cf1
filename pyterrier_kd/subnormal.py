"""Numbers that are too small to change anything, and cost a CPU dearly.

Below 1.2e-38 a float32 is subnormal, and a CPU computes with it many times as slowly. Training makes such numbers without end: the gradient of a pair
that a ranker has settled falls with the exponential of its margin, and is carried back through the whole model; the optimiser's mean of the gradients of
a word that is not seen any more falls by a tenth each step. What leads to them is set to 0 on the way.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .signals import Signals

GRADIENT = 1e-16        # of a score: beside the optimiser's epsilon of 1e-8 it moves no weight
MOMENT = 1e-30          # of the optimiser, likewise; from here it takes 170 steps to the subnormal numbers
EVERY = 100             # steps between two looks at the optimiser's moments


def drop_gradients(signals: Signals) -> None:
    """Lets gradients of scores that are next to nothing be exactly 0, on a CPU."""
    for scores in (signals.scores, signals.in_batch, signals.logits):
        if scores is not None and scores.is_cpu and scores.requires_grad:
            scores.register_hook(lambda gradient: without_least(gradient, GRADIENT))


def drop_moments(optimizer: torch.optim.Optimizer) -> None:
    """Sets an optimiser's moments that are next to nothing to 0, on a CPU."""
    for state in optimizer.state.values():
        for moment in state.values():
            if torch.is_tensor(moment) and moment.is_cpu and moment.dim():
                moment.copy_(without_least(moment, MOMENT))


def without_least(values: Tensor, least: float) -> Tensor:
    """Values with 0 for those nearer to it than ``least``."""
    return values.masked_fill(values.abs() < least, 0.0)
