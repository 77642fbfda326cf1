"""Folders of sentence-transformers: which modules follow the encoder, with which settings, and which prompts.

Read without that library and written so that it reads them: ``modules.json`` lists a transformer, a pooling, and any
number of dense layers and normalisations.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..atomic import write_json
from ..errors import CheckpointError
from .checkpoints import find_file, read_json

ACTIVATIONS: dict[str, type[nn.Module]] = {"Tanh": nn.Tanh, "Identity": nn.Identity, "ReLU": nn.ReLU, "GELU": nn.GELU, "Sigmoid": nn.Sigmoid}
POOLINGS = {"cls": "cls", "cls_token": "cls", "mean": "mean", "mean_tokens": "mean"}     # both ways in which it has been written
QUERY_PROMPTS, TEXT_PROMPTS = ("query",), ("document", "passage", "corpus")


class Dense(nn.Module):
    """A linear layer and its activation, (N, in) -> (N, out); with ``residual`` the input is added, through a matrix where its width is another."""

    def __init__(self, inputs: int, outputs: int, bias: bool = True, activation: str = "Identity", residual: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs, bias=bias)
        self.activation_name = activation
        self.activation = ACTIVATIONS[activation]()
        self.adds_input = residual
        self.residual = nn.Linear(inputs, outputs, bias=False) if residual and inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, in) -> (N, out)."""
        out: Tensor = self.activation(self.linear(x))
        return out if not self.adds_input else out + (x if self.residual is None else self.residual(x))


class Normalize(nn.Module):
    """Division by the L2 norm, (N, H) -> (N, H)."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, H) -> (N, H) of norm 1."""
        return nn.functional.normalize(x, dim=-1)


@dataclass(frozen=True)
class Recipe:
    """What follows the encoder in a sentence-transformers folder.

    Attributes:
        pooling: "cls" or "mean".
        steps: Dense layers and normalisations, in order.
        max_length: The most tokens of a text, or None where the folder does not say.
        query_prompt: Put before each query.
        text_prompt: Put before each text.
        similarity: How vectors are compared, "dot" or another; where the folder does not say, "dot".
    """

    pooling: str
    steps: tuple[nn.Module, ...]
    max_length: int | None
    query_prompt: str
    text_prompt: str
    similarity: str = "dot"


def kind_of(name: str) -> str | None:
    """What sentence-transformers saved here: "CrossEncoder", "SentenceTransformer", ..., or None for other folders."""
    if find_file(name, "modules.json") is None:
        return None
    return str(read_json(name, "config_sentence_transformers.json").get("model_type", "SentenceTransformer"))


def module_kinds(name: str) -> list[str]:
    """The modules that ``modules.json`` lists, in order."""
    listed: Any = read_json(name, "modules.json")
    return [module["type"].rsplit(".", 1)[-1] for module in listed]


def read(name: str) -> Recipe | None:
    """Reads the modules after the encoder, or None where the folder is not from sentence-transformers.

    Raises:
        CheckpointError: If a module is of a kind that a single-vector bi-encoder does not have.
    """
    listed: Any = read_json(name, "modules.json", certain=True)
    if not listed:
        return None
    pooling: str | None = None
    steps: list[nn.Module] = []
    for module in listed:
        kind = module["type"].rsplit(".", 1)[-1]
        config = read_json(name, f"{module['path']}/config.json") if module["path"] else {}
        if kind == "Pooling":
            pooling = pooling_mode(name, config)
        elif kind == "Dense":
            steps.append(read_dense(name, module["path"], config))
        elif kind == "Normalize":
            steps.append(Normalize())
        elif kind not in ("Transformer", "Dropout"):
            raise CheckpointError(f"{name!r} has the sentence-transformers module {kind!r}, which BertDot does not have: "
                                  "it takes a Transformer, a Pooling, and any Dense and Normalize modules.")
    if pooling is None:
        raise CheckpointError(f"{name!r} has no Pooling module, so its texts have no single vector: it is not a BertDot.")
    settings = read_json(name, "config_sentence_transformers.json")
    prompts = settings.get("prompts") or {}
    default = prompts.get(settings.get("default_prompt_name") or "", "")
    query_prompt, text_prompt = (next((prompts[n] for n in names if prompts.get(n)), default) for names in (QUERY_PROMPTS, TEXT_PROMPTS))
    return Recipe(pooling, tuple(steps), read_json(name, "sentence_bert_config.json").get("max_seq_length"), query_prompt, text_prompt,
                  settings.get("similarity_fn_name") or "dot")


def pooling_mode(name: str, config: dict[str, Any]) -> str:
    """"cls" or "mean", from either of the two ways in which it has been written."""
    modes = config.get("pooling_mode") or [k[len("pooling_mode_"):] for k, v in config.items() if k.startswith("pooling_mode_") and v is True]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1 or modes[0] not in POOLINGS or not config.get("include_prompt", True):
        raise CheckpointError(f"{name!r} pools by {modes} (include_prompt={config.get('include_prompt', True)}); BertDot pools by 'cls' or 'mean', prompt included.")
    return POOLINGS[modes[0]]


def read_dense(name: str, folder: str, config: dict[str, Any]) -> Dense:
    """A dense module with its weights."""
    activation = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rsplit(".", 1)[-1]
    if activation not in ACTIVATIONS:
        raise CheckpointError(f"{name!r}: the activation {activation!r} of {folder!r} is not one of {sorted(ACTIVATIONS)}.")
    dense = Dense(config["in_features"], config["out_features"], bias=config.get("bias", True), activation=activation, residual=config.get("use_residual", False))
    if path := find_file(name, f"{folder}/model.safetensors"):
        weights = load_file(path)
    elif path := find_file(name, f"{folder}/pytorch_model.bin"):
        weights = torch.load(path, map_location="cpu", weights_only=True)
    else:
        raise CheckpointError(f"{name!r}: the dense module {folder!r} has no weights.")
    missing, unexpected = dense.load_state_dict({k: v.float() for k, v in weights.items()}, strict=False)
    if missing or unexpected:
        raise CheckpointError(f"{name!r}: the dense module {folder!r} has missing weights {missing} and unexpected weights {unexpected}.")
    return dense


def write_dense(folder: Path, dense: Dense, places: dict[str, str]) -> None:
    """Writes a dense module into a folder of its own.

    Args:
        folder: The module's folder, which exists.
        dense: The module.
        places: What it reads and writes, where that is not the pooled vector.
    """
    write_json(folder / "config.json", {
        "in_features": dense.linear.in_features, "out_features": dense.linear.out_features, "bias": dense.linear.bias is not None,
        "activation_function": f"torch.nn.modules.{'linear' if dense.activation_name == 'Identity' else 'activation'}.{dense.activation_name}",
        **({"use_residual": True} if dense.adds_input else {}), **places})
    save_file({k: v.contiguous() for k, v in dense.state_dict().items()}, folder / "model.safetensors")


def write(folder: Path, recipe: Recipe, width: int) -> None:
    """Writes ``recipe`` beside an encoder that was saved into ``folder``.

    Args:
        folder: The folder of the encoder.
        recipe: What follows the encoder.
        width: The encoder's hidden size.
    """
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    pooling = {"word_embedding_dimension": width, "include_prompt": True}
    pooling |= {f"pooling_mode_{n}": POOLINGS.get(n) == recipe.pooling for n in ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens")}
    (folder / "1_Pooling").mkdir()
    write_json(folder / "1_Pooling" / "config.json", pooling)
    for i, step in enumerate(recipe.steps, start=2):
        kind = type(step).__name__
        modules.append((f"{i}_{kind}", kind))
        (folder / f"{i}_{kind}").mkdir()
        if isinstance(step, Dense):
            write_dense(folder / f"{i}_{kind}", step, {})
    listed = [{"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"} for i, (path, kind) in enumerate(modules)]
    write_json(folder / "modules.json", listed)                                              # type: ignore[arg-type]
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": recipe.max_length, "do_lower_case": False})
    write_json(folder / "config_sentence_transformers.json", {
        "prompts": {"query": recipe.query_prompt, "document": recipe.text_prompt}, "default_prompt_name": None,
        "similarity_fn_name": "dot", "model_type": "SentenceTransformer"})
