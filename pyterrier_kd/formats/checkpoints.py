"""Checkpoint folders: loaded strictly, identified by their weights.

Strict means that every weight of the model is in the checkpoint and every weight of the checkpoint is in the model.
Two exceptions are known by name: the heads that pre-training leaves behind are ignored, and a checkpoint of an encoder
without a ranking head gets a new one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.utils import logging as hf_logging
from transformers.utils.hub import cached_file

from ..errors import CheckpointError, some

METADATA = "pt_meta.json"
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "spm.model", "sentencepiece.bpe.model")
PRETRAINING_HEADS = re.compile(
    r"^(cls\.(predictions|seq_relationship)\.|lm_head\.|vocab_(transform|layer_norm|projector)\.|predictions\.|sop_classifier\."
    r"|discriminator_predictions\.|generator_(predictions|lm_head)\.|decoder\.|head\.(dense|norm)\.|(lm|mask)_predictions\.|fit_denses?\.)|(^|\.)position_ids$")

UNTOLD = re.compile(      # what a configuration has beside how scores are computed
    r"^_|^output_|name|version|architectures|dtype|dropout|label|use_cache|return_dict|initializer|problem_type|sentence_transformers|chunk_size|auto_map")


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Silences the progress bars and reports of transformers; what is wrong with a checkpoint, our own errors say."""
    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


def load_strict(auto_class: Any, name: str, *, new_head: bool = False, beside: Sequence[str] = (), **config: Any) -> tuple[nn.Module, str]:
    """Loads a transformers model and accounts for every weight.

    Args:
        auto_class: ``AutoModel`` or ``AutoModelForSequenceClassification``.
        name: A folder, or a name on the Hugging Face hub.
        new_head: Whether a checkpoint without a head gets a new one.
        beside: Weights of the checkpoint that are read elsewhere.
        **config: Overrides of the model's configuration, such as ``num_labels``.

    Returns:
        The model in float32 and eval mode, and "loaded" or "new" for its head.

    Raises:
        CheckpointError: If the folder is incomplete, damaged, or has missing or unexpected weights.
    """
    if (own := tiny_bert_config(name)) is not None:
        own.update(config)
        config = {"config": own}
    try:
        with quiet_loading():
            model, info = auto_class.from_pretrained(
                name, dtype=torch.float32, trust_remote_code=False, output_loading_info=True, **config)
    except Exception as error:          # each backend has its own exceptions for damaged files
        held = sorted(os.listdir(name)) if os.path.isdir(name) else "no such folder here, and not found on the hub"
        raise CheckpointError(f"{name!r} cannot be loaded as a model (found: {held}): {str(error).strip()[:500]}") from error
    missing, unexpected = set(info["missing_keys"]), set(info["unexpected_keys"])
    base = model.base_model_prefix + "."
    head = {k for k in model.state_dict() if not k.startswith(base)} if auto_class is not transformers.AutoModel else set()
    pooler = {k for k in model.state_dict() if re.search(r"(^|\.)pooler\.", k)}
    state = "loaded"
    if new_head and missing:
        missing -= head | pooler
        state = "new"
    if auto_class is transformers.AutoModel:
        missing -= pooler               # of an encoder we read the hidden states: its pooler is not used
    if auto_class is transformers.AutoModel or new_head:
        unexpected = {k for k in unexpected if not re.search(r"(^|\.)pooler\.", k)}
    unexpected = {k for k in unexpected - set(beside) if not PRETRAINING_HEADS.search(k)}
    if missing or unexpected:
        raise CheckpointError(f"{name!r} does not fit {type(model).__name__}: missing weights {some(sorted(missing)) or 'none'}; "
                              f"unexpected weights {some(sorted(unexpected)) or 'none'}. Load it as the kind of model that it was saved as.")
    return model.eval(), state


def load_tokenizer(name: str, of: str = "") -> Any:
    """The tokenizer of a checkpoint.

    Args:
        name: A folder or hub name.
        of: The checkpoint, where its tokenizer is elsewhere.

    Raises:
        CheckpointError: If the folder holds none. (transformers would make an empty one, to which every word is unknown.)
    """
    own = tiny_bert_config(name)
    try:
        if not any(find_file(name, f) for f in VOCABULARIES):
            raise FileNotFoundError(f"none of {', '.join(VOCABULARIES)} is there")
        with quiet_loading():
            return transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False, **({} if own is None else {"config": own}))
    except Exception as error:
        hint = f" It is that of {of!r}: pass tokenizer=." if of not in ("", name) else ""
        raise CheckpointError(f"{name!r} has no tokenizer that can be loaded: {str(error).strip()[:300]}{hint}") from error


def tiny_bert_config(name: str) -> Any:
    """The configuration of a folder that TinyBERT's code wrote (arXiv:1909.10351, arXiv:2009.07531), or None for any other.

    Those have a ``bert_config.json``, or a ``config.json`` without the model's type: neither of which transformers reads. Whether there is a head, and of
    how many classes, is known from the weights.
    """
    told = read_json(name, "config.json") or read_json(name, "bert_config.json")
    if "model_type" in told or not {"hidden_size", "num_hidden_layers", "num_attention_heads"} <= told.keys():
        return None
    head = read_weights(name).get("classifier.weight")
    headed = {"num_labels": len(head), "architectures": ["BertForSequenceClassification"]} if head is not None else {"architectures": ["BertModel"]}
    return transformers.BertConfig.from_dict({**headed, **told})


def read_weights(name: str) -> dict[str, Tensor]:
    """The weights of a folder or hub repository; {} where it has none in one file.

    Raises:
        CheckpointError: If the file is damaged, or holds more than weights.
    """
    try:
        if path := find_file(name, "model.safetensors"):
            return load_file(path)
        if path := find_file(name, "pytorch_model.bin"):
            return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        raise CheckpointError(f"{name!r} cannot be read as weights: {str(error).strip()[:300]}") from error
    return {}


def model_limit(config: Any, tokenizer: Any) -> int:
    """The most tokens that a model and its tokenizer take; 512 where neither says."""
    limits = []
    if isinstance(positions := getattr(config, "max_position_embeddings", None), int) and positions > 0:
        limits.append(positions - first_position(config))
    if tokenizer.model_max_length < 1_000_000:
        limits.append(tokenizer.model_max_length)
    return min(limits) if limits else 512


def first_position(config: Any) -> int:
    """The number of a row's first position; RoBERTa's family counts from pad_token_id + 1 on."""
    return (config.pad_token_id or 0) + 1 if "roberta" in config.model_type or config.model_type in ("camembert", "mpnet") else 0


def find_file(name: str, filename: str, certain: bool = False) -> Path | None:
    """A file of a folder or hub repository, or None where it has none.

    Args:
        name: A folder, or a name on the hub.
        filename: The file.
        certain: Whether not knowing is an error: whether a repository has a file cannot be known without a network,
            unless that was asked before.

    Raises:
        CheckpointError: If it cannot be known and ``certain`` is set.
    """
    if os.path.isdir(name):
        path = Path(name) / filename
        return path if path.is_file() else None
    try:
        with quiet_loading():
            found = cached_file(name, filename, _raise_exceptions_for_missing_entries=False)
        return Path(found) if found else None
    except OSError as error:
        if not certain:
            return None
        raise CheckpointError(f"{name!r}: it cannot be known whether it has a {filename}, which says how its scores are made ({str(error).strip()[:200]}). "
                              "Download the whole repository and pass its folder.") from error


def read_json(name: str, filename: str, certain: bool = False) -> dict[str, Any]:
    """A JSON file of a folder or hub repository, or {} where it has none; see ``find_file``.

    Raises:
        CheckpointError: If it is not JSON.
    """
    path = find_file(name, filename, certain)
    if path is None:
        return {}
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return value
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error


def structure_of(config: Any) -> dict[str, Any]:
    """What a transformers configuration says of how scores are computed: all but names, versions, and what concerns training or output."""
    return {key: value for key, value in config.to_dict().items() if not UNTOLD.search(key)}


def weights_fingerprint(model: nn.Module, beside: str = "") -> str:
    """16 hexadecimal digits that identify a model's weights (their names, shapes, types and values), and what is told ``beside`` them."""
    digest = hashlib.blake2b(beside.encode(), digest_size=8)
    for name, value in sorted(model.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
