"""A smaller model made of a larger one's own weights: fewer layers, a narrower hidden state, or both.

Layers are copied whole. A narrower width keeps, of every attention head, its first dimensions: the same choice of
dimensions for the residual stream and for the inside of the heads, so that one set of indices cuts every matrix.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def layer_list(model: nn.Module, depth: int) -> str:
    """The name of the module list that holds a model's ``depth`` layers.

    Raises:
        ValueError: If there is none, as in models whose layers share their weights.
    """
    found = [name for name, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if not found:
        raise ValueError(f"{type(model).__name__} has no list of {depth} layers (do its layers share their weights?): they cannot be told apart, to choose, compare or count them.")
    return min(found, key=len)


def chosen_layers(layers: int | Sequence[int], depth: int) -> list[int]:
    """Which layers are kept.

    Args:
        layers: The layers by number, or how many: then evenly spaced, the first and the last among them.
        depth: The number of layers that there are.

    Raises:
        ValueError: If a layer does not exist, or none is kept.
    """
    if isinstance(layers, int):
        if not 1 <= layers <= depth:
            raise ValueError(f"shrink(layers={layers}) of a model with {depth} layers: pass 1 to {depth}, or a list of layers.")
        return [round(float(i)) for i in torch.linspace(0, depth - 1, layers).double()]
    kept = [int(i) for i in layers]
    if not kept or not all(0 <= i < depth for i in kept):
        raise ValueError(f"shrink(layers={kept}) of a model with {depth} layers: pass numbers from 0 to {depth - 1}.")
    return kept


def shrunk(model: Any, layers: int | Sequence[int] | None, hidden: int | None) -> Any:
    """A new transformers model with some of the layers, and some of the width, of ``model``.

    Args:
        model: A transformers model.
        layers: As in ``chosen_layers``; None keeps all.
        hidden: The new hidden size, a multiple of the number of attention heads; None keeps it. The inner size of
            the feed-forward layers shrinks in proportion.

    Returns:
        The new model, in eval mode; ``model`` is unchanged.
    """
    config = copy.deepcopy(model.config)
    depth, width = config.num_hidden_layers, config.hidden_size
    kept = list(range(depth)) if layers is None else chosen_layers(layers, depth)
    cut_config(config, kept, depth, hidden)
    small = type(model)(config)
    name = layer_list(model, depth)
    state = model.state_dict()
    index = Indices(config.num_attention_heads, width, hidden or width)
    with torch.no_grad():
        for key, value in small.state_dict().items():
            source = key
            if key.startswith(name + "."):
                i, rest = key[len(name) + 1:].split(".", 1)
                source = f"{name}.{kept[int(i)]}.{rest}"
            value.copy_(index.cut(state[source], value.shape))
    return small.eval()


def kinds_of(config: Any) -> tuple[str, ...]:
    """What each layer attends to: all tokens, unless the configuration says otherwise."""
    kinds = getattr(config, "layer_types", None)
    return tuple(kinds) if kinds else ("full_attention",) * int(config.num_hidden_layers)


def parsed_shape(shape: str) -> tuple[int, int]:
    """The layers and the hidden size of a shape such as "L3_H384".

    Raises:
        ValueError: If it is not written like that.
    """
    match = re.fullmatch(r"L([1-9]\d*)_H([1-9]\d*)", shape)
    if match is None:
        raise ValueError(f"{shape!r} is no shape: it is written L<layers>_H<hidden size>, such as 'L3_H384'.")
    return int(match[1]), int(match[2])


def random_model(model: Any, layers: int, hidden: int, seed: int) -> Any:
    """A model of the same kind as ``model`` with random weights.

    Args:
        model: A transformers model.
        layers: Its number of layers, at most as many as ``model`` has.
        hidden: Its hidden size, at most that of ``model`` and a multiple of its heads.
        seed: Of the weights.
    """
    config = copy.deepcopy(model.config)
    depth = config.num_hidden_layers
    if layers > depth:
        raise ValueError(f"A student of {layers} layers is deeper than the teacher's {depth}: pass at most {depth}.")
    cut_config(config, range(layers), depth, hidden)
    for key in ("intermediate_size", "hidden_dim"):
        if isinstance(getattr(config, key, None), int):
            setattr(config, key, {312: 1200}.get(hidden, 4 * hidden))
            break
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return type(model)(config).eval()


def cut_config(config: Any, kept: Sequence[int], depth: int, hidden: int | None) -> None:
    """Sets the sizes of a smaller model in its configuration."""
    for key, value in list(vars(config).items()):
        if isinstance(value, list | tuple) and len(value) == depth and key != "architectures":
            setattr(config, key, [value[i] for i in kept])     # settings of each layer, such as layer_types
    config.num_hidden_layers = len(kept)
    if hidden is None:
        return
    heads = config.num_attention_heads
    if hidden < heads or hidden % heads or hidden > config.hidden_size:
        raise ValueError(f"shrink(hidden={hidden}) must be a multiple of the {heads} attention heads and at most {config.hidden_size}.")
    for key in ("intermediate_size", "hidden_dim"):            # DistilBERT calls it hidden_dim
        if isinstance(getattr(config, key, None), int):
            setattr(config, key, getattr(config, key) * hidden // config.hidden_size)
            break
    for key in ("embedding_size", "pooler_hidden_size"):       # ELECTRA's embeddings and DeBERTa's pooler, where they are as wide as the rest
        if getattr(config, key, None) == config.hidden_size:
            setattr(config, key, hidden)
    config.hidden_size = hidden


class Indices:
    """Which entries of an axis a narrower model keeps.

    An axis of size m * width is read as m blocks of ``heads`` heads; of every head the first dimensions are kept.
    Other axes that shrink (an inner size that is no multiple of the width) keep evenly spaced entries.
    """

    def __init__(self, heads: int, width: int, new: int) -> None:
        self.heads, self.width, self.new = heads, width, new

    def axis(self, old: int, new: int) -> Tensor:
        """(new,) indices into an axis of size ``old``."""
        if old % self.width == 0 and new * self.width == old * self.new:
            per_head, kept = self.width // self.heads, self.new // self.heads
            blocks = old // per_head
            return (torch.arange(blocks)[:, None] * per_head + torch.arange(kept)[None, :]).flatten()
        return torch.linspace(0, old - 1, new).round().long()

    def cut(self, weight: Tensor, shape: torch.Size) -> Tensor:
        """``weight`` cut to ``shape``, axis by axis."""
        for axis, (old, new) in enumerate(zip(weight.shape, shape, strict=True)):
            if old != new:
                weight = weight.index_select(axis, self.axis(old, new).to(weight.device))
        return weight
