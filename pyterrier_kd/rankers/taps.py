"""Listening to an encoder's layers while it runs, at the speed of its fused attention.

Attention scores before the softmax cannot be had from a fused kernel, nor from ``output_attentions``, which with such a kernel gives
nothing and without one gives probabilities after dropout. So the attention function itself is replaced, for one forward pass,
by one that keeps the queries and keys that it is given (rotated already, where a model rotates them) and then calls the same
fused kernel. Hidden states come from hooks. Only the layers that were asked for are kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from ..errors import MissingSignal
from ..signals import LAYERWISE, LayerNumbers, Layers
from .shrink import layer_list

LISTENED, TAP = "pyterrier_kd_listened", "_pyterrier_kd_tap"
PROJECTIONS = frozenset({"queries", "keys", "values"})


def listened_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any) -> tuple[Tensor, None]:
    """Scaled-dot-product attention, after telling the module's tap, if it has one, what it reads."""
    tap = vars(module).get(TAP)
    if tap is not None:
        tap(query, key, value, attention_mask, kwargs)
    result: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return result


AttentionInterface.register(LISTENED, listened_attention)
AttentionMaskInterface.register(LISTENED, sdpa_mask)     # without it transformers passes no mask at all, silently


class Taps:
    """What has been heard of an encoder so far; see ``listening``."""

    def __init__(self, encoder: Any, wanted: LayerNumbers) -> None:
        self.encoder, self.wanted = encoder, wanted
        self.heard: dict[str, dict[int, Any]] = {name: {} for name in (*LAYERWISE, "scale", "local")}

    def attention(self, layer: int, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, kwargs: dict[str, Any]) -> None:
        """Keeps what one layer's attention reads."""
        for name, tensor in (("queries", query), ("keys", key), ("values", value)):
            if layer in self.wanted.get(name, ()):
                self.heard[name][layer] = tensor
        scaling = kwargs.get("scaling")
        self.heard["scale"][layer] = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
        self.heard["local"][layer] = mask if kwargs.get("sliding_window") is not None else None

    def layers(self, mask: Tensor) -> Layers:
        """What was heard.

        Args:
            mask: (N, T), not 0 for real tokens.

        Raises:
            MissingSignal: If the encoder's attention cannot be listened to.
        """
        for name in PROJECTIONS & set(self.wanted):
            missing = sorted(self.wanted[name] - set(self.heard[name]))
            if missing:
                raise MissingSignal(f"The layers {missing} of {type(self.encoder).__name__} do not say what their attention reads (transformers' attention "
                                    "interface does not reach them): Attention() and Relations() cannot be had of this model. Use Hidden() and Embedding() alone.")
        heard = self.heard
        return Layers(mask.bool(), heard["embedding"].get(0), heard["hidden"], heard["queries"], heard["keys"], heard["values"], heard["scale"], heard["local"])


@contextlib.contextmanager
def listening(encoder: Any, wanted: LayerNumbers) -> Iterator[Taps]:
    """Within the block, one forward pass of ``encoder`` tells its layers.

    Args:
        encoder: A transformers encoder.
        wanted: For each layer-wise signal the numbers of its layers; "embedding" needs none.
    """
    taps = Taps(encoder, wanted)
    with contextlib.ExitStack() as stack:
        layers: Any = encoder.get_submodule(layer_list(encoder, encoder.config.num_hidden_layers))
        if "embedding" in wanted:
            def first(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                taps.heard["embedding"][0] = args[0] if args else kwargs["hidden_states"]

            stack.callback(layers[0].register_forward_pre_hook(first, with_kwargs=True).remove)
        for number in sorted(wanted.get("hidden", ())):
            def output(module: nn.Module, args: tuple[Any, ...], out: Any, number: int = number) -> None:
                taps.heard["hidden"][number] = out if isinstance(out, Tensor) else out[0]

            stack.callback(layers[number].register_forward_hook(output).remove)
        tapped = sorted(frozenset[int]().union(*(wanted.get(name, frozenset()) for name in PROJECTIONS)))
        if tapped:
            stack.enter_context(listened(encoder))
        for number in tapped:
            stack.enter_context(tapped_layer(layers[number], number, taps))
        yield taps


@contextlib.contextmanager
def listened(encoder: nn.Module) -> Iterator[None]:
    """Within the block, the encoder's attention is the one that can be listened to."""
    configs: list[Any] = list({id(m.config): m.config for m in encoder.modules() if hasattr(m, "config")}.values())
    before = [config._attn_implementation for config in configs]
    for config in configs:
        config._attn_implementation = LISTENED
    try:
        yield
    finally:
        for config, kernel in zip(configs, before, strict=True):
            config._attn_implementation = kernel


@contextlib.contextmanager
def tapped_layer(layer: nn.Module, number: int, taps: Taps) -> Iterator[None]:
    """Within the block, whichever module of a layer calls the attention function tells ``taps``."""
    def tap(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, kwargs: dict[str, Any]) -> None:
        taps.attention(number, query, key, value, mask, kwargs)

    for module in layer.modules():
        vars(module)[TAP] = tap
    try:
        yield
    finally:
        for module in layer.modules():
            vars(module).pop(TAP, None)


def reach(wanted: LayerNumbers) -> int:
    """The highest layer that is asked for, -1 if none is."""
    return max((number for numbers in wanted.values() for number in numbers), default=-1)
