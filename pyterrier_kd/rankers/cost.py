"""What a ranker costs: its parameters, and the arithmetic of one row, counted from its matrices rather than measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from .shrink import kinds_of, layer_list


@dataclass(frozen=True)
class Cost:
    """What a ranker costs.

    Attributes:
        parameters: All parameters, embeddings included.
        layer_parameters: Those of the layers' matrices alone, which are used for every token.
        gflops: 10^9 multiply-adds of the layers for one row of ``tokens`` tokens, as in Table 1 of arXiv:2009.07531: the layers' matrices and
            the products of attention; a multiplication with its addition counts once. Embeddings, normalisation and the head are left out.
        tokens: T, the tokens of a row.
    """

    parameters: int
    layer_parameters: int
    gflops: float
    tokens: int

    def __str__(self) -> str:
        return f"{self.parameters / 1e6:.1f}M parameters, {self.gflops:.1f} GFLOPs for {self.tokens} tokens"


def cost_of(model: nn.Module, encoder: Any, tokens: int) -> Cost:
    """The cost of a model.

    Args:
        model: The whole model.
        encoder: The transformers encoder in it.
        tokens: T, the tokens of a row.
    """
    config = encoder.config
    layers = encoder.get_submodule(layer_list(encoder, config.num_hidden_layers))
    matrices = sum(m.weight.numel() for m in layers.modules() if isinstance(m, nn.Linear))
    seen = [tokens if kind == "full_attention" else min(tokens, 2 * config.sliding_window + 1) for kind in kinds_of(config)]
    attention = sum(2 * tokens * width * config.hidden_size for width in seen)
    return Cost(sum(p.numel() for p in model.parameters()), matrices, (matrices * tokens + attention) / 1e9, tokens)
