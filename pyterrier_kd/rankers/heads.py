"""Classification heads: what makes logits of an encoder's last hidden states.

A cross-encoder's head is transformers' own; some published rankers have a single linear layer on the first token's hidden state instead
(arXiv:2010.02666, arXiv:2004.14255), which is ``FirstTokenModel``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..atomic import write_json
from ..errors import CheckpointError
from ..formats import bare_weights, sentence_transformers
from ..formats.bare_weights import Found
from ..formats.checkpoints import find_file, load_strict, read_json, tiny_bert_config
from .shrink import Indices, shrunk

HEAD = "first_token_head.safetensors"
NewHead = Literal["pooled", "first_token"]


class FirstTokenModel(nn.Module):
    """An encoder and a linear layer on the first token's last hidden state; reads as transformers' models for sequence classification do.

    Args:
        encoder: A transformers encoder.
        classes: C. Default 1.
        bias: Whether the layer has one. Default True.
        seed: Of the layer's weights. Default 0.
    """

    def __init__(self, encoder: Any, classes: int = 1, bias: bool = True, seed: int = 0) -> None:
        super().__init__()
        encoder.config.num_labels = classes
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.encoder, self.classifier = encoder, nn.Linear(encoder.config.hidden_size, classes, bias=bias)
            nn.init.normal_(self.classifier.weight, std=getattr(encoder.config, "initializer_range", 0.02))
        if bias:
            nn.init.zeros_(self.classifier.bias)

    @property
    def base_model(self) -> Any:
        """The encoder, by transformers' name."""
        return self.encoder

    @property
    def config(self) -> Any:
        """The encoder's configuration."""
        return self.encoder.config

    def forward(self, **inputs: Tensor) -> Any:
        """``logits`` (N, C)."""
        return SimpleNamespace(logits=self.classifier(self.encoder(**inputs).last_hidden_state[:, 0]))


def logits_of(model: Any, hidden: Tensor) -> Tensor:
    """(N, T, H) last hidden states -> (N, C) logits, by the head of a model for sequence classification.

    Raises:
        CheckpointError: If it is of a kind whose head is not known.
    """
    require_known_head(model)
    logits: Tensor = HEADS[type(model).__name__](model, hidden)
    return logits


HEADS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "FirstTokenModel": lambda model, hidden: model.classifier(hidden[:, 0]),
    "BertForSequenceClassification": lambda model, hidden: model.classifier(model.dropout(model.base_model.pooler(hidden))),
    "DistilBertForSequenceClassification": lambda model, hidden: model.classifier(model.dropout(torch.relu(model.pre_classifier(hidden[:, 0])))),
    **{f"{family}ForSequenceClassification": lambda model, hidden: model.classifier(hidden) for family in ("Electra", "Roberta", "XLMRoberta", "Camembert")},
}


def require_known_head(model: Any) -> None:
    """Refuses models whose head is not known.

    Raises:
        CheckpointError: If so.
    """
    if type(model).__name__ not in HEADS:
        raise CheckpointError(f"The head of a {type(model).__name__} is not known: use a model for sequence classification of BERT, DistilBERT, ELECTRA, RoBERTa, "
                              "XLM-RoBERTa or CamemBERT.")


def save_classifier(model: Any, folder: Path) -> None:
    """Writes a model for sequence classification, or an encoder and its first-token head, into a folder."""
    if isinstance(model, FirstTokenModel):
        model.encoder.save_pretrained(folder)
        save_file({k: v.contiguous() for k, v in model.classifier.state_dict().items()}, folder / HEAD)
    else:
        model.save_pretrained(folder)
        config = read_json(str(folder), "config.json")      # sentence-transformers would put scores through a sigmoid
        write_json(folder / "config.json", {**config, "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}})


def shrunk_classifier(model: Any, layers: int | Sequence[int] | None, hidden: int | None) -> Any:
    """A smaller model of the same weights; see ``shrunk``."""
    if not isinstance(model, FirstTokenModel):
        return shrunk(model, layers, hidden)
    small = FirstTokenModel(shrunk(model.encoder, layers, hidden), model.classifier.out_features, model.classifier.bias is not None)
    small.classifier.load_state_dict(model.classifier.state_dict() if hidden is None else {
        **model.classifier.state_dict(), "weight": Indices(model.config.num_attention_heads, model.config.hidden_size, hidden).cut(
            model.classifier.weight.data, torch.Size((model.classifier.out_features, hidden)))})
    return small.eval()


def scores_of(logits: Tensor) -> Tensor:
    """(..., C) logits -> (...) scores: the only logit, or the log-odds of the second class."""
    return logits[..., 0] if logits.shape[-1] == 1 else logits[..., 1] - logits[..., 0]


def load_classifier(name: str, classes: int | None, new_head: NewHead | None = None) -> tuple[Any, str, Found | None]:
    """The model of a checkpoint, with a new head where it has none.

    Args:
        name: A folder or hub name.
        classes: C of a new head. Default None: 1.
        new_head: What a new head is: "pooled", transformers' own; or "first_token", a ``FirstTokenModel``. Default None: "pooled".

    Returns:
        The model, "loaded" or "new" for its head, and what was found where the folder is one of bare weights.

    Raises:
        CheckpointError: If it is a sentence-transformers cross-encoder of several modules, or not a whole checkpoint.
    """
    if new_head not in (None, *get_args(NewHead)):
        raise ValueError(f"new_head={new_head!r} is unknown: it is 'pooled' or 'first_token'.")
    if sentence_transformers.kind_of(name) == "CrossEncoder" and len(sentence_transformers.module_kinds(name)) > 1:
        raise CheckpointError(f"{name!r} is a sentence-transformers cross-encoder made of the modules {sentence_transformers.module_kinds(name)}; "
                              "CrossEncoder reads those with a sequence-classification head.")
    if found := bare_weights.read(name):
        if found.ranker == "ColBERT":
            raise CheckpointError(f"{name!r} holds a ColBERT: load it with kd.ColBERT or kd.load.")
        model = FirstTokenModel(found.encoder, 1, bias="_classification_layer.bias" in found.weights)
        model.classifier.load_state_dict({k.removeprefix("_classification_layer."): v for k, v in found.weights.items()})
        return model.eval(), "loaded", found
    if head := find_file(name, HEAD):
        weights = load_file(head)
        model = FirstTokenModel(load_strict(transformers.AutoModel, name)[0], len(weights["weight"]), "bias" in weights)
        model.classifier.load_state_dict(weights)
        return model.eval(), "loaded", None
    try:
        config = tiny_bert_config(name) or transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:
        raise CheckpointError(f"{name!r} cannot be loaded as a model: {str(error).strip()[:500]}") from error
    has_head = any("SequenceClassification" in a for a in config.architectures or [])
    if has_head and classes not in (None, config.num_labels):
        raise CheckpointError(f"{name!r} has a head of {config.num_labels} class(es), not classes={classes}.")
    if has_head and new_head == "first_token":
        raise CheckpointError(f"{name!r} has a head of its own, and gets no new one: new_head={new_head!r} is for checkpoints of encoders.")
    if has_head:
        return *load_strict(transformers.AutoModelForSequenceClassification, name), None
    return *encoder_with_head(name, classes or 1, new_head or "pooled"), None


def encoder_with_head(name: str, classes: int, kind: NewHead) -> tuple[Any, str]:
    """The encoder of a checkpoint with a head, and "new" for it, unless the checkpoint holds one of which its configuration does not tell."""
    with torch.random.fork_rng():
        torch.manual_seed(0)            # the same start for every seed of a training, and again when it is resumed
        if kind == "first_token":
            return FirstTokenModel(load_strict(transformers.AutoModel, name)[0], classes).eval(), "new"
        return load_strict(transformers.AutoModelForSequenceClassification, name, new_head=True, num_labels=classes)
