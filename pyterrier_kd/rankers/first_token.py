"""The last layer for the first token alone, where a score is made from that token.

A head or a pooling that reads only the first token's last hidden state makes most of the last layer's work superfluous: its
queries, its attention output and its feed-forward part are needed for one position, its keys and values for all. Of
L layers this saves about 0.8 / L of the arithmetic, in scoring and in training, and changes no score (MacAvaney et al., SIGIR 2020, do
the same in PreTTR). Layers of BERT's make only; all others run as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

LAYERS = ("BertLayer", "ElectraLayer", "RobertaLayer", "XLMRobertaLayer", "CamembertLayer")
FROM_FIRST_TOKEN = ("FirstTokenModel", *(f"{family}ForSequenceClassification" for family in ("Bert", "Electra", "Roberta", "XLMRoberta", "Camembert")))


def last_layer(encoder: Any) -> nn.Module | None:
    """The last layer of an encoder, if it is of a known make."""
    layers = getattr(getattr(encoder, "encoder", None), "layer", None)
    if not layers or type(layers[-1]).__name__ not in LAYERS or getattr(encoder.config, "is_decoder", False):
        return None
    known = getattr(encoder.config, "position_embedding_type", "absolute") in (None, "absolute")
    return layers[-1] if known else None


@contextlib.contextmanager
def first_token_only(encoder: Any) -> Iterator[None]:
    """Within the block, an encoder's last hidden states are those of the first token alone: (N, 1, H)."""
    layer = last_layer(encoder)
    if layer is None:
        yield
        return
    layer.forward = partial(forward_first, layer, partial(type(layer).forward, layer))
    try:
        yield
    finally:
        vars(layer).pop("forward", None)    # another thread may have been here: it then runs the whole layer, to the same score


def forward_first(layer: Any, whole: Callable[..., Tensor], hidden: Tensor, attention_mask: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
    """(N, T, H) -> (N, 1, H): what ``layer.forward`` gives for the first token."""
    if attention_mask is not None and attention_mask.dim() != 4:     # a format of other attention kernels
        return whole(hidden, attention_mask, *args, **kwargs)
    attention, first = layer.attention.self, hidden[:, :1]

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (attention.num_attention_heads, -1)).transpose(1, 2)          # (N, A, T, H/A)

    mask = None if attention_mask is None else attention_mask[:, :, :1]                      # (N, 1, 1, T)
    dropout = attention.dropout.p if layer.training else 0.0
    context = F.scaled_dot_product_attention(heads(attention.query(first)), heads(attention.key(hidden)), heads(attention.value(hidden)), mask, dropout)
    attended = layer.attention.output(context.transpose(1, 2).flatten(2), first)
    out: Tensor = layer.feed_forward_chunk(attended)
    return out
