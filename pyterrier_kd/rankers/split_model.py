"""The torch module of PreTTR: a cross-encoder's layers in two parts, and what compresses the states between them."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask

from ..errors import CheckpointError
from ..signals import NO_LAYERS, LayerNumbers, Layers
from .first_token import first_token_only
from .heads import logits_of, require_known_head, scores_of
from .shrink import layer_list
from .taps import listening
from .vectors import Vectors

FAMILIES = ("BertModel", "DistilBertModel", "ElectraModel", "RobertaModel", "XLMRobertaModel", "CamembertModel")
COMPRESSION = "compression.safetensors"


class SplitModel(nn.Module):
    """The layers of a cross-encoder in two parts.

    Args:
        classifier: A model for sequence classification, or a ``FirstTokenModel``.
        join: The first layer that reads both sides.
        compression: e, dimensions of a text's compressed states; None: they are not compressed.
        seed: Of the compression's random weights. Default 0.
    """

    def __init__(self, classifier: Any, join: int, compression: int | None, seed: int = 0) -> None:
        super().__init__()
        self.classifier, self.join, self.compression = classifier, join, compression
        hidden = classifier.base_model.config.hidden_size
        if compression is not None:
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                self.squeeze, self.widen = nn.Linear(hidden, compression), nn.Linear(compression, hidden)
            self.norm = nn.LayerNorm(hidden, eps=getattr(classifier.config, "layer_norm_eps", 1e-12))

    @property
    def encoder(self) -> Any:
        """The transformers encoder."""
        return self.classifier.base_model

    @property
    def layers(self) -> Any:
        """Its layers."""
        return self.encoder.get_submodule(layer_list(self.encoder, self.encoder.config.num_hidden_layers))

    @property
    def interaction(self) -> Joined:
        """What compares the states of query and text."""
        return Joined(self)

    def run(self, layers: Sequence[Any], hidden: Tensor, mask: Tensor) -> Tensor:
        """(N, T, H) what some layers make of hidden states whose real tokens are those of an (N, T) mask."""
        attended = create_bidirectional_mask(config=self.encoder.config, inputs_embeds=hidden, attention_mask=mask)
        for layer in layers:
            out = layer(hidden, attended)
            hidden = out if isinstance(out, Tensor) else out[0]
        return hidden

    def below(self, inputs: dict[str, Tensor]) -> Tensor:
        """(N, T, H) one side's hidden states below ``join``."""
        embeddings = self.encoder.embeddings
        known = inspect.signature(embeddings.forward).parameters
        hidden = embeddings(**{name: value for name, value in inputs.items() if name in known})
        if hasattr(self.encoder, "embeddings_project"):
            hidden = self.encoder.embeddings_project(hidden)
        return self.run(self.layers[:self.join], hidden, inputs["attention_mask"])

    def compressed(self, hidden: Tensor) -> Tensor:
        """(N, T, H) -> (N, T, e)."""
        return hidden if self.compression is None else nn.functional.gelu(self.squeeze(hidden))

    def widened(self, states: Tensor) -> Tensor:
        """(N, T, e) -> (N, T, H)."""
        return states if self.compression is None else self.norm(self.widen(states))

    def above(self, hidden: Tensor, mask: Tensor, layers: LayerNumbers = NO_LAYERS) -> tuple[Tensor, Layers | None]:
        """(N,) float32 scores of joined states, and what the layers asked for did."""
        with listening(self.encoder, layers) if layers else first_token_only(self.encoder) as taps:
            hidden = self.run(self.layers[self.join:], hidden, mask)
        return scores_of(logits_of(self.classifier, hidden).float()), taps.layers(mask) if taps is not None else None


class Joined:
    """The upper layers as an interaction: the states of a query and of a text, one behind the other, are read together.

    Args:
        model: The model.
    """

    idempotent = False      # see ``Interaction``

    def __init__(self, model: SplitModel) -> None:
        self.model = model

    def read(self, queries: Vectors, texts: Vectors, layers: LayerNumbers = NO_LAYERS) -> tuple[Tensor, Layers | None]:
        """(N,) scores of N texts, each with its own query or all with one, and what the layers asked for did."""
        count = len(texts)
        mask = torch.cat([queries.mask.expand(count, -1), texts.mask], dim=1)
        hidden = torch.cat([queries.vectors.expand(count, -1, -1).float(), self.model.widened(texts.vectors.float())], dim=1)
        return self.model.above(hidden, mask.long(), layers)

    def pairs(self, queries: Vectors, texts: Vectors) -> Tensor:
        """(N,) scores; see ``read``."""
        return self.read(queries, texts)[0]


def in_two_parts(model: Any, weights: dict[str, Tensor], stored: dict[str, Any], join: int | None, compression: int | None, seed: int, name: str) -> tuple[SplitModel, bool]:
    """A cross-encoder's model in two parts, and whether its compression is new.

    Args:
        model: A transformers model for sequence classification, or a ``FirstTokenModel``.
        weights: Of a compression that was learned.
        stored: The settings of a folder.
        join: As passed.
        compression: As passed.
        seed: Of a new compression's weights.
        name: For messages.

    Raises:
        CheckpointError: If it is of a family or has a head that is not known, or weights are missing.
        ValueError: If ``join`` does not exist, or another compression has been learned.
    """
    encoder, learned = getattr(model, "base_model", model), stored.get("compression")
    if type(encoder).__name__ not in FAMILIES:
        raise CheckpointError(f"PreTTR splits the layers of {', '.join(f.removesuffix('Model') for f in FAMILIES)}; {name or 'this'} is a {type(encoder).__name__}.")
    require_known_head(model)
    if model.config.num_labels not in (1, 2):
        raise CheckpointError(f"PreTTR takes a head of 1 or 2 classes; {name or type(model).__name__} has {model.config.num_labels}.")
    depth = encoder.config.num_hidden_layers
    join = stored.get("join", depth // 2) if join is None else join
    if not 0 <= join < depth:
        raise ValueError(f"PreTTR(join={join}) of a model with {depth} layers: pass 0 to {depth - 1}, so that at least one layer reads query and text together.")
    if compression is not None and learned is not None and compression != learned:
        raise ValueError(f"PreTTR(compression={compression}): {name!r} has learned one to {learned} dimensions.")
    parts = SplitModel(model, join, learned if compression is None else compression, seed)
    own = {k for k in parts.state_dict() if not k.startswith("classifier.")}
    if weights.keys() != (own if weights or learned else set()):
        raise CheckpointError(f"{name!r}: {COMPRESSION} has the weights {sorted(weights)}, not {sorted(own)}.")
    parts.load_state_dict(weights, strict=False)
    return parts, parts.compression is not None and not weights
