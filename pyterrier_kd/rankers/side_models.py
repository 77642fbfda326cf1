"""The torch modules of rankers that read one side at a time: an encoder, what follows it, and how two sides are compared.

The modules that follow are those of a sentence-transformers folder (dense layers, normalisation), applied to one pooled vector or to each token's.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..formats.sentence_transformers import Dense, Normalize
from .first_token import first_token_only
from .interactions import Dot, Interaction, MaxSim
from .shrink import Indices, shrunk


class SideModel(nn.Module):
    """An encoder and what follows.

    Attributes:
        encoder: A transformers encoder.
        steps: Dense layers and normalisations, in order.
        interaction: How the vectors of two sides make a score.
    """

    def __init__(self, encoder: nn.Module, steps: Sequence[nn.Module], interaction: Interaction) -> None:
        super().__init__()
        self.encoder, self.steps, self.interaction = encoder, nn.ModuleList(steps), interaction

    @property
    def width(self) -> int:
        """H: what the last dense layer gives, or the encoder."""
        given = [step.linear.out_features for step in self.steps if isinstance(step, Dense)]
        config: Any = self.encoder.config
        return given[-1] if given else int(config.hidden_size)

    @property
    def normalizes(self) -> bool:
        """Whether vectors have norm 1 at last."""
        return len(self.steps) > 0 and isinstance(self.steps[-1], Normalize)

    def set_normalizes(self, wanted: bool | None) -> None:
        """Adds a last normalisation or takes it away; None leaves it."""
        if wanted not in (None, self.normalizes):
            self.steps = nn.ModuleList([*self.steps, Normalize()] if wanted else list(self.steps)[:-1])

    def finished(self, vectors: Tensor) -> Tensor:
        """(..., H) float32: what the steps make of what the encoder gives."""
        for step in self.steps:
            vectors = step(vectors)
        return vectors.float()

    def shrunk(self, layers: int | Sequence[int] | None, hidden: int | None) -> Self:
        """A smaller model of the same weights; see ``Ranker.shrink``."""
        small = copy.deepcopy(self)
        small.encoder = shrunk(self.encoder, layers, hidden)
        config: Any = self.encoder.config
        first = next((step for step in small.steps if isinstance(step, Dense)), None)
        if first is not None and hidden not in (None, config.hidden_size):      # only the first dense layer reads the encoder's width
            assert hidden is not None
            if first.adds_input and first.residual is None:
                raise ValueError(f"shrink(hidden={hidden}): the dense layer behind the encoder adds its input of {config.hidden_size} dimensions.")
            index = Indices(config.num_attention_heads, config.hidden_size, hidden)
            for linear in filter(None, (first.linear, first.residual)):
                linear.weight = nn.Parameter(index.cut(linear.weight.data, torch.Size((linear.out_features, hidden))))
                linear.in_features = hidden
        return small


class DotModel(SideModel):
    """One vector a text, from a pooling of the encoder's last hidden states: (N, T) ids -> (N, H)."""

    def __init__(self, encoder: nn.Module, pooling: str, steps: Sequence[nn.Module]) -> None:
        super().__init__(encoder, steps, Dot())
        self.pooling = pooling

    def forward(self, whole: bool = False, **inputs: Tensor) -> Tensor:
        """(N, H) float32 vectors; ``whole`` runs the last layer for all tokens even where the first is enough."""
        with first_token_only(self.encoder) if self.pooling == "cls" and not whole else contextlib.nullcontext():
            hidden = self.encoder(**inputs).last_hidden_state.float()                        # (N, T, H)
        if self.pooling == "cls":
            return self.finished(hidden[:, 0])
        real = inputs["attention_mask"].unsqueeze(-1).float()
        return self.finished((hidden * real).sum(1) / real.sum(1).clamp(min=1e-9))


class TokenModel(SideModel):
    """A vector a token: (N, T) ids -> (N, T, H)."""

    def __init__(self, encoder: nn.Module, steps: Sequence[nn.Module]) -> None:
        super().__init__(encoder, steps, MaxSim())

    def forward(self, **inputs: Tensor) -> Tensor:
        """(N, T, H) float32 vectors."""
        return self.finished(self.encoder(**inputs).last_hidden_state.float())
