"""The torch module of a bi-encoder: an encoder, a pooling of what it gives, and what follows."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from torch import Tensor, nn

from .first_token import first_token_only


class DotModel(nn.Module):
    """An encoder, a pooling of its last hidden states, and what follows: (N, T) ids -> (N, H) vectors."""

    def __init__(self, encoder: nn.Module, pooling: str, steps: Sequence[nn.Module]) -> None:
        super().__init__()
        self.encoder, self.pooling, self.steps = encoder, pooling, nn.ModuleList(steps)

    def forward(self, whole: bool = False, **inputs: Tensor) -> Tensor:
        """(N, H) float32 vectors; ``whole`` runs the last layer for all tokens even where the first is enough."""
        with first_token_only(self.encoder) if self.pooling == "cls" and not whole else contextlib.nullcontext():
            hidden = self.encoder(**inputs).last_hidden_state.float()                        # (N, T, H)
        if self.pooling == "cls":
            vectors = hidden[:, 0]
        else:
            real = inputs["attention_mask"].unsqueeze(-1).float()
            vectors = (hidden * real).sum(1) / real.sum(1).clamp(min=1e-9)
        for step in self.steps:
            vectors = step(vectors)
        return vectors.float()
