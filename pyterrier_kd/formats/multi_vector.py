"""Folders of late-interaction models (ColBERT): what follows the encoder, and which tokens are put into and left out of each side.

Three kinds are read: those of sentence-transformers' ``MultiVectorEncoder``, those of PyLate, and those of colbert-ai (``artifact.metadata``).
What ``write`` writes, sentence-transformers reads.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..atomic import write_json
from ..errors import CheckpointError, some
from .bare_weights import Found
from .checkpoints import find_file, read_json, read_weights
from .sentence_transformers import Dense, Normalize, read_dense, write_dense

PUNCTUATION = tuple(string.punctuation)
OWN_MODULES = "modules.kd.json"


@dataclass(frozen=True)
class Recipe:
    """What makes a late-interaction model of an encoder.

    Attributes:
        steps: Dense layers and normalisations of each token's vector, in order.
        settings: Those of ``ColBERT`` that the folder tells, by the names that they have there.
    """

    steps: tuple[nn.Module, ...]
    settings: Mapping[str, Any]


def read(name: str) -> Recipe | None:
    """What a folder tells, or None if it is not of a late-interaction model.

    Raises:
        CheckpointError: If it is of one that ``ColBERT`` is not.
    """
    if "HF_ColBERT" in (read_json(name, "config.json").get("architectures") or []):
        return read_colbert(name)
    if find_file(name, OWN_MODULES):
        return read_modules(name, OWN_MODULES, {})
    saved, kind = read_json(name, "config_sentence_transformers.json"), kind_of(name)
    if kind is None:
        return None
    if saved.get("similarity_fn_name") not in (None, "maxsim", "MaxSim"):
        raise CheckpointError(f"{name!r} compares by {saved['similarity_fn_name']!r}; ColBERT compares by the sum of the largest products.")
    if kind == "MultiVectorEncoder":
        return read_modules(name, "modules.json", native_settings(name, saved))
    found = read_modules(name, "modules.json", pylate_settings(saved))
    return Recipe((*found.steps, Normalize()), found.settings)


def kind_of(name: str) -> str | None:
    """"MultiVectorEncoder" for folders of sentence-transformers, "ColBERT" for those of PyLate, None for any other; older ones of PyLate tell by their prefixes alone."""
    saved = read_json(name, "config_sentence_transformers.json")
    if saved.get("model_type") in ("MultiVectorEncoder", "ColBERT"):
        return str(saved["model_type"])
    return "ColBERT" if any(key in saved for key in ("query_prefix", "document_prefix", "skiplist_words")) else None


def read_modules(name: str, filename: str, settings: Mapping[str, Any]) -> Recipe:
    """The modules that a file lists, and what they add to the settings."""
    steps: list[nn.Module] = []
    listed: Any = read_json(name, filename)
    for module in listed:
        kind = module["type"].rsplit(".", 1)[-1]
        config = read_json(name, f"{module['path']}/config.json") if module["path"] else {}
        if kind == "Dense":
            steps.append(read_dense(name, module["path"], {"activation_function": "Identity", **config}))
        elif kind == "Normalize":
            steps.append(Normalize())
        elif kind == "MultiVectorMask":
            if config.get("skiplist_tasks", ["document"]) != ["document"] or config.get("keep_only_token_ids"):
                raise CheckpointError(f"{name!r} leaves out tokens of queries, or keeps only some of documents ({config}); ColBERT leaves out tokens of documents alone.")
            settings = {**settings, "skip": list(config.get("skiplist_words") or [])}
        elif kind != "Transformer":
            raise CheckpointError(f"{name!r} has the sentence-transformers module {kind!r}, which ColBERT does not have: it takes Dense, MultiVectorMask and Normalize.")
    return Recipe(tuple(steps), settings)


def from_bare(found: Found) -> Recipe:
    """What follows the encoder in a ``.dnn`` file, or in the ColBERT of arXiv:2010.02666: its projection."""
    published = "compressor.weight" in found.weights
    weight = found.weights["compressor.weight" if published else "linear.weight"]
    dense = Dense(weight.shape[1], weight.shape[0], bias=published)
    dense.linear.load_state_dict({"weight": weight, **({"bias": found.weights["compressor.bias"]} if published else {})})
    if published:
        return Recipe((dense,), {})
    told = found.told           # the arguments of colbert's training
    return Recipe((dense, Normalize()), {"query_length": told.get("query_maxlen"), "doc_length": told.get("doc_maxlen"),
                                         "skip": {None: None, False: (), True: "punctuation"}[told.get("mask_punctuation")]})


def expansion_settings(length: int | None, attended: Any) -> dict[str, Any]:
    """Queries filled with [MASK] up to ``length`` tokens; 32 where a folder does not say."""
    return {"query_length": length or 32, "expansion": "fill", "attend_expansion": bool(attended)}


def native_settings(name: str, saved: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in a folder of sentence-transformers."""
    prompts, backbone = saved.get("prompts") or {}, read_json(name, "sentence_bert_config.json")
    limit = backbone.get("max_seq_length")
    settings = {"query_marker": "", "text_marker": "", "query_prompt": prompts.get("query") or "", "text_prompt": prompts.get("document") or "",
                "query_length": backbone.get("query_length") or limit, "doc_length": backbone.get("document_length") or limit, "expansion": 0}
    expansion = backbone.get("query_expansion")
    if not expansion:
        return settings
    if expansion.get("strategy") != "fixed" or expansion.get("token"):
        raise CheckpointError(f"{name!r} expands queries by {expansion}; ColBERT expands them with mask tokens to a fixed length, or by a fixed number.")
    return {**settings, **expansion_settings(expansion.get("length"), expansion.get("attend"))}


def pylate_settings(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in a folder of PyLate, whose prefixes are tokens of the vocabulary."""
    settings = {"query_marker": saved.get("query_prefix") or "", "text_marker": saved.get("document_prefix") or "", "doc_length": saved.get("document_length"),
                "skip": list(PUNCTUATION if saved.get("skiplist_words") is None else saved["skiplist_words"])}
    if saved.get("do_query_expansion") is False:
        return {**settings, "query_length": saved.get("query_length"), "expansion": 0}
    return {**settings, **expansion_settings(saved.get("query_length"), saved.get("attend_to_expansion_tokens"))}


def read_colbert(name: str) -> Recipe:
    """A folder of colbert-ai: the projection beside the encoder's weights, the settings in ``artifact.metadata``."""
    path = find_file(name, "artifact.metadata")
    try:
        told = json.loads(path.read_text(encoding="utf-8")) if path else {}
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if told.get("similarity", "cosine") != "cosine":
        raise CheckpointError(f"{name!r} compares by {told['similarity']!r}; of colbert-ai's, ColBERT reads those that compare by cosine.")
    weight = projection(name)
    dense = Dense(weight.shape[1], weight.shape[0], bias=False)
    dense.linear.weight = nn.Parameter(weight.float())
    settings = {"query_marker": told.get("query_token_id") or "[unused0]", "text_marker": told.get("doc_token_id") or "[unused1]",
                "doc_length": told.get("doc_maxlen") or 220, "skip": list(PUNCTUATION) if told.get("mask_punctuation", True) else [],
                **expansion_settings(told.get("query_maxlen"), told.get("attend_to_mask_tokens"))}
    return Recipe((dense, Normalize()), settings)


def projection(name: str) -> torch.Tensor:
    """(dim, hidden) the weight ``linear.weight`` beside an encoder's own."""
    weights = read_weights(name)
    if "linear.weight" not in weights:
        raise CheckpointError(f"{name!r} has no linear.weight, the projection of a colbert-ai model; it has {some(sorted(weights))}.")
    return weights["linear.weight"]


def write(folder: Path, steps: nn.ModuleList, settings: Mapping[str, Any]) -> None:
    """Writes what follows an encoder that was saved into ``folder``, so that sentence-transformers reads it.

    Args:
        folder: The folder of the encoder.
        steps: Dense layers and normalisations.
        settings: Those of ``ColBERT``. Where sentence-transformers has none such (a fixed number of mask tokens, or some before the end), the modules are
            listed where only this package looks.
    """
    modules = [("", "base.modules.transformer.Transformer")]
    for step in steps:
        path = f"{len(modules)}_{type(step).__name__}"
        modules.append((path, f"base.modules.{type(step).__name__.lower()}.{type(step).__name__}"))
        (folder / path).mkdir()
        places = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
        if isinstance(step, Dense):
            write_dense(folder / path, step, places)
        else:
            write_json(folder / path / "config.json", places)
    path = f"{len(modules)}_MultiVectorMask"
    modules.append((path, "multi_vector_encoder.modules.multi_vector_mask.MultiVectorMask"))
    (folder / path).mkdir()
    write_json(folder / path / "config.json", {"skiplist_words": list(settings["skip"]), "skiplist_tasks": ["document"], "keep_only_token_ids": None})
    listed = [{"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.{kind}"} for i, (path, kind) in enumerate(modules)]
    if settings["expansion"] not in (0, "fill") or (settings["expansion"] and settings["expand_before_end"]):
        write_json(folder / OWN_MODULES, listed)                                             # type: ignore[arg-type]
        return
    write_json(folder / "modules.json", listed)                                              # type: ignore[arg-type]
    expansion = {"strategy": "fixed", "attend": settings["attend_expansion"], "token": None, "length": settings["query_length"]}
    write_json(folder / "sentence_bert_config.json", {
        "transformer_task": "feature-extraction", "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        "module_output_name": "token_embeddings", "document_length": settings["doc_length"], "query_length": settings["query_length"],
        "query_expansion": expansion if settings["expansion"] else None})
    write_json(folder / "config_sentence_transformers.json", {
        "prompts": {"query": settings["query_marker"] + settings["query_prompt"], "document": settings["text_marker"] + settings["text_prompt"]}, "default_prompt_name": None,
        "similarity_fn_name": "maxsim", "model_type": "MultiVectorEncoder"})
