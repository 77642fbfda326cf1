"""Checkpoints that hold weights and next to nothing about them: colbert's ``.dnn`` files, and the rankers published with arXiv:2010.02666.

Neither has a configuration of its encoder that transformers could read. The encoder is rebuilt from the names and shapes of its weights, of which each must find
its place; what stands beside it (a projection, a head) tells which ranker it is.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from ..errors import CheckpointError, some
from .checkpoints import find_file, read_json, read_weights

ATTENTION_HEADS = {128: 2, 256: 4, 512: 8, 768: 12, 1024: 16}     # attention heads of BERTs by their width, where all that are published have as many


@dataclass(frozen=True)
class Found:
    """A ranker's parts.

    Attributes:
        ranker: "CrossEncoder", "ColBERT" or "PreTTR".
        encoder: The transformers encoder.
        weights: What stands beside it.
        tokenizer: Where its tokenizer is: the folder itself, or the name of the model that it was made from.
        told: What the checkpoint says besides.
    """

    ranker: str
    encoder: Any
    weights: Mapping[str, Tensor]
    tokenizer: str
    told: Mapping[str, Any] = field(default_factory=dict)


def is_dnn(name: str) -> bool:
    """Whether a name is that of a ``.dnn`` file."""
    return name.endswith(".dnn") and Path(name).is_file()


def read_dnn(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights of a ``.dnn`` file, and the arguments of its training, as far as it has them.

    Raises:
        CheckpointError: If the file is damaged, or holds more than weights.
    """
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):        # the arguments
            held = torch.load(name, map_location="cpu", weights_only=True)
        arguments = held.get("arguments") or {}
        weights = {key.removeprefix("module."): value for key, value in held.get("model_state_dict", held).items()}
    except Exception as error:
        raise CheckpointError(f"{name!r} cannot be read as weights: {str(error).strip()[:300]}") from error
    return weights, dict(arguments) if isinstance(arguments, Mapping) else vars(arguments)


def read(name: str) -> Found | None:
    """The parts of such a checkpoint, or None for any other.

    Raises:
        CheckpointError: If weights are missing or unexpected.
    """
    if is_dnn(name):
        weights, arguments = read_dnn(name)
        if "linear.weight" not in weights:
            raise CheckpointError(f"{name!r} has no linear.weight, the projection of a ColBERT; it has {some(sorted(weights))}.")
        if arguments.get("similarity", "cosine") != "cosine":
            raise CheckpointError(f"{name!r} compares by {arguments['similarity']!r}; of colbert's files, ColBERT reads those that compare by cosine.")
        inner = {k.removeprefix("bert."): v for k, v in weights.items() if k.startswith("bert.")}
        return Found("ColBERT", encoder_of(inner, name), beside(weights, {"linear.weight"}, "bert.", name), str(arguments.get("model") or "bert-base-uncased"), arguments)
    config = read_json(name, "config.json")
    if config.get("model_type") not in ("BERT_Cat", "ColBERT", "distilbert"):
        return None
    if config["model_type"] == "distilbert" and any(hasattr(transformers, architecture) for architecture in config.get("architectures") or []):
        return None                             # one of transformers' own
    weights = read_weights(name)
    tokenizer = name if any(find_file(name, file) for file in ("tokenizer.json", "vocab.txt")) else str(config.get("bert_model", "distilbert-base-uncased"))
    if config["model_type"] == "distilbert":
        if "_classification_layer.weight" not in weights:
            return None
        inner = {k: v for k, v in weights.items() if not k.startswith("_classification_layer.")}
        return Found("PreTTR", encoder_of(inner, name, config.get("n_heads")), beside(weights, {"_classification_layer.weight"}, "", name), tokenizer, config)
    inner = {k.removeprefix("bert_model."): v for k, v in weights.items() if k.startswith("bert_model.")}
    if config["model_type"] == "BERT_Cat" and "transformer.layer.0.attention.q_lin.weight" not in inner:
        raise CheckpointError(f"{name!r} is a BERT_Cat of another encoder than DistilBERT: how its published code reads the first token of those is not known here.")
    wanted, kind = ({"_classification_layer.weight", "_classification_layer.bias"}, "CrossEncoder") if config["model_type"] == "BERT_Cat" else \
        ({"compressor.weight", "compressor.bias"}, "ColBERT")
    return Found(kind, encoder_of(inner, name), beside(weights, wanted, "bert_model.", name), tokenizer)


def beside(weights: Mapping[str, Tensor], wanted: set[str], prefix: str, name: str) -> dict[str, Tensor]:
    """The weights beside the encoder's, in float32.

    Raises:
        CheckpointError: If they are not those that are wanted.
    """
    found = {k: v.float() for k, v in weights.items() if (k in wanted if not prefix else not k.startswith(prefix))}
    if found.keys() != wanted:
        raise CheckpointError(f"{name!r} has beside its encoder the weights {sorted(found)}; {sorted(wanted)} are needed.")
    return found


def encoder_of(weights: Mapping[str, Tensor], name: str, heads: int | None = None) -> Any:
    """A BERT or DistilBERT of the shapes of its weights.

    Args:
        weights: By transformers' names, without a prefix.
        name: For messages.
        heads: Attention heads. Default: those of published BERTs of this width.

    Raises:
        CheckpointError: If weights are missing or unexpected.
    """
    weights = {k: v.float() for k, v in weights.items() if not k.endswith("position_ids")}
    distil = "transformer.layer.0.attention.q_lin.weight" in weights
    layer = re.compile(r"^transformer\.layer\.(\d+)\." if distil else r"^encoder\.layer\.(\d+)\.")
    depth = len({m.group(1) for k in weights if (m := layer.match(k))})
    try:
        words, positions = weights["embeddings.word_embeddings.weight"], weights["embeddings.position_embeddings.weight"]
        inner = weights["transformer.layer.0.ffn.lin1.weight" if distil else "encoder.layer.0.intermediate.dense.weight"]
    except KeyError as error:
        raise CheckpointError(f"{name!r} holds no encoder of BERT's or DistilBERT's make: it has no {error}; it has {some(sorted(weights))}.") from error
    hidden = words.shape[1]
    if not (heads := heads or ATTENTION_HEADS.get(hidden)):
        raise CheckpointError(f"{name!r} holds an encoder of {hidden} dimensions and does not say how many attention heads it has: published ones of this width differ. "
                              f"Widths that are known: {', '.join(map(str, ATTENTION_HEADS))}.")
    config: Any
    if distil:
        config = transformers.DistilBertConfig(vocab_size=len(words), dim=hidden, n_layers=depth, n_heads=heads, hidden_dim=len(inner), max_position_embeddings=len(positions))
        encoder: Any = transformers.DistilBertModel(config)
    else:
        config = transformers.BertConfig(vocab_size=len(words), hidden_size=hidden, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=len(inner),
                                         max_position_embeddings=len(positions), type_vocab_size=len(weights["embeddings.token_type_embeddings.weight"]))
        encoder = transformers.BertModel(config, add_pooling_layer="pooler.dense.weight" in weights)
    missing, unexpected = encoder.load_state_dict(weights, strict=False)
    missing = [k for k in missing if not k.endswith("position_ids")]
    if missing or unexpected:
        raise CheckpointError(f"{name!r} does not fit {type(encoder).__name__}: missing weights {some(missing) or 'none'}; unexpected weights {some(unexpected) or 'none'}.")
    return encoder.eval()
