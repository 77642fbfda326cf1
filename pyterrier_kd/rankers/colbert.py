"""ColBERT: each token of query and text is one vector, the score is the sum over the query's of the best match in the text.

A text's vectors do not know the query, so they can be kept (``kd.DocumentStore``); comparing them costs a small part of what a cross-encoder costs.
The published variants differ in small things that change scores: which marker stands before each side, how many mask tokens are put behind a
query and whether they are attended to, which tokens of a text are left out, whether vectors have norm 1. Each is a setting, and ``preset``
names the sets of them that have been published.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyterrier as pt
import torch
import transformers
from torch import nn

from ..errors import CheckpointError, some
from ..formats import bare_weights, multi_vector
from ..formats.checkpoints import load_strict, load_tokenizer, model_limit
from ..formats.sentence_transformers import Dense, Normalize
from ..frames import TextFields
from ..signals import LayerNumbers, Layers
from ..tokens import Template, TokenTable, assemble, assemble_with_masks
from .base import require_tokenizer, takes_types
from .saved import stored_metadata
from .side_models import TokenModel
from .taps import listening
from .two_sided import Side, TwoSided
from .vectors import Vectors

CLASSIC = {"dim": 128, "bias": False, "normalize": True, "query_marker": "[unused0]", "text_marker": "[unused1]", "query_length": 32, "doc_length": 180,
           "expansion": "fill", "expand_before_end": False, "attend_expansion": False, "skip": ()}
PRESETS: dict[str, Mapping[str, Any]] = {
    # arXiv:2004.12832 and its code at v0.2; there the padding of a batch can be a text's best vector, here padding is never compared
    "v1": CLASSIC,
    # arXiv:2112.01488 and colbert-ai
    "v2": {**CLASSIC, "doc_length": 220, "skip": multi_vector.PUNCTUATION},
    # PyLate
    "pylate": {**CLASSIC, "query_marker": "[Q]", "text_marker": "[D]", "skip": multi_vector.PUNCTUATION},
    # arXiv:2010.02666, whose vectors have all of the encoder's dimensions
    "matchmaker": {"dim": None, "bias": True, "normalize": False, "query_marker": "", "text_marker": "", "query_length": 30, "doc_length": 200,
                   "expansion": 8, "expand_before_end": False, "attend_expansion": True, "skip": ()},
}


class ColBERT(TwoSided):
    """Scores a query and a text by the sum, over the query's token vectors, of the largest product with one of the text's.

    Args:
        model: A folder or hub name (late-interaction models of sentence-transformers, PyLate and colbert-ai are read with all their settings; a
            plain encoder gets a new projection), a ``.dnn`` file, or a transformers encoder.
        tokenizer: The model's tokenizer. Default: the folder's; of a ``.dnn`` file, and of published weights without one, that of the
            model that they were made from.
        preset: Where neither the folder nor an argument says: "v1" (arXiv:2004.12832), "v2" (arXiv:2112.01488), "pylate", or
            "matchmaker" (arXiv:2010.02666). Default: "v2".
        dim: H, dimensions of a vector, of a new projection. Default: the preset's, 128; of "matchmaker" the encoder's.
        normalize: Whether vectors have norm 1.
        query_marker: A token of the vocabulary that stands before each query; "" for none.
        text_marker: A token of the vocabulary that stands before each text; "" for none.
        expansion: How many mask tokens are put behind a query: "fill", up to ``query_length``; a number; or 0.
        expand_before_end: Whether they stand before the closing special token, rather than behind it.
        attend_expansion: Whether other tokens attend to them.
        skip: Tokens of texts that have no vector, or "punctuation".
        query_length: The most tokens of a query, special ones included; mask tokens too where they fill it.
        doc_length: The most tokens of a text, special ones included.
        batch_size: The most rows a batch. Default None: as many as fit a budget of tokens.
        text_field: The column, or several to be joined by a space, that holds the text. Default "text".
        query_prompt: Text put before each query, behind the marker. Default: what the folder says, else "".
        text_prompt: Text put before each text, behind the marker. Default: what the folder says, else "".
        texts: A text loader, for frames without the text field.
        device: Default: CUDA, else MPS, else CPU.
        dtype: Compute in this dtype by autocast, such as "bfloat16". Default: float32. Vectors are always float32.
        verbose: Whether to show a progress bar. Default False.
        seed: Of a new projection's weights, and of tokens that are added. Default 0.

    Raises:
        CheckpointError: If the folder is not a whole checkpoint of such a model, or its vocabulary lacks a marker.
        ValueError: If a setting is unknown.
    """

    SETTINGS: ClassVar[tuple[str, ...]] = (*TwoSided.SETTINGS, "normalize", "query_marker", "text_marker", "expansion", "expand_before_end", "attend_expansion", "skip")
    schematic: ClassVar[dict[str, Any]] = {"label": "ColBERT", "help_url": None}

    def __init__(self, model: Any, tokenizer: Any = None, *, preset: str | None = None, dim: int | None = None, normalize: bool | None = None,
                 query_marker: str | None = None, text_marker: str | None = None, expansion: int | str | None = None, expand_before_end: bool | None = None,
                 attend_expansion: bool | None = None, skip: str | Sequence[str] | None = None,
                 query_length: int | None = None, doc_length: int | None = None, batch_size: int | None = None, text_field: TextFields | None = None,
                 query_prompt: str | None = None, text_prompt: str | None = None, texts: pt.Transformer | None = None,
                 device: str | torch.device | None = None, dtype: torch.dtype | str | None = None, verbose: bool = False, seed: int = 0) -> None:
        if preset is not None and preset not in PRESETS:
            raise ValueError(f"ColBERT(preset={preset!r}) is unknown: it is one of {', '.join(map(repr, PRESETS))}.")
        name, recipe = "", None
        stored: dict[str, Any] = {}
        metadata: dict[str, Any] = {}
        if isinstance(model, str | Path):
            name = str(model)
            stored, metadata = stored_metadata(name, "ColBERT")
            if (bare := bare_weights.read(name)) and bare.ranker == "ColBERT":
                recipe, model, tokenizer = multi_vector.from_bare(bare), bare.encoder, tokenizer or load_tokenizer(bare.tokenizer, of=name)
                preset = preset or ("v1" if bare_weights.is_dnn(name) else "matchmaker")
            else:
                recipe, tokenizer = multi_vector.read(name), tokenizer or load_tokenizer(name)
                model = load_strict(transformers.AutoModel, name, beside=("linear.weight",) if recipe else ())[0]
        require_tokenizer(tokenizer, "ColBERT")
        given = {"dim": dim, "query_marker": query_marker, "text_marker": text_marker, "expansion": expansion, "expand_before_end": expand_before_end,
                 "attend_expansion": attend_expansion, "skip": skip, "query_length": query_length, "doc_length": doc_length,
                 "query_prompt": query_prompt, "text_prompt": text_prompt}
        told = {"query_prompt": "", "text_prompt": "", **(recipe.settings if recipe is not None else {}), **stored}
        chosen = {**PRESETS[preset or "v2"], **{k: v for part in (told, given) for k, v in part.items() if v is not None}}
        known = tokenizer.get_vocab()               # in PyLate's a marker holds the space behind it, which not all who write of it do
        self.query_marker, self.text_marker = (m if m in known else m.strip() for m in (chosen["query_marker"], chosen["text_marker"]))
        if skip not in (None, "punctuation") and isinstance(skip, str):
            raise ValueError(f"ColBERT(skip={skip!r}) is unknown: it is 'punctuation', or a list of tokens.")
        new = recipe is None and not isinstance(model, TokenModel)
        if isinstance(model, TokenModel):
            model = TokenModel(model.encoder, list(model.steps))        # what follows the encoder stays as it is there; the encoder is shared
        else:
            model = TokenModel(model, recipe.steps if recipe is not None else new_steps(model, chosen, normalize, seed))
        if dim not in (None, model.width):
            raise ValueError(f"ColBERT(dim={dim}): the projection of {name or 'this model'} gives {model.width} dimensions.")
        tokenizer, model.encoder = with_markers(tokenizer, model.encoder, [self.query_marker, self.text_marker], add=preset == "pylate", name=name, seed=seed)
        super().__init__(model, tokenizer, name=name, batch_size=batch_size, text_field=text_field or stored.get("text_field", "text"),
                         query_prompt=chosen["query_prompt"], text_prompt=chosen["text_prompt"], texts=texts, device=device, dtype=dtype, verbose=verbose)
        if new:
            self.head_ = "new"
            if name:
                warnings.warn(f"{name!r} has no projection: ColBERT made a new one with random weights; train it before use.", stacklevel=2)
        self.metadata_ = metadata
        self.expansion, self.expand_before_end, self.attend_expansion = chosen["expansion"], bool(chosen["expand_before_end"]), bool(chosen["attend_expansion"])
        self.skip = multi_vector.PUNCTUATION if chosen["skip"] == "punctuation" else tuple(chosen["skip"])
        self._check(normalize)
        limit = model_limit(self.encoder.config, tokenizer)
        self.query_length, self.doc_length = min(chosen["query_length"], limit - (0 if self.expansion == "fill" else self.expansion)), min(chosen["doc_length"], limit)
        self.templates = {"query": self._template(self.query_marker), "text": self._template(self.text_marker)}
        unknown = tokenizer.unk_token_id
        ids = [tokenizer.convert_tokens_to_ids(token) for token in self.skip]
        lost = [token for token, i in zip(self.skip, ids, strict=True) if i is None or (i == unknown and token != tokenizer.unk_token)]
        if lost and skip not in (None, "punctuation"):
            raise ValueError(f"ColBERT(skip=...): {some(lost)} are not single tokens of the vocabulary.")
        self.skipped = torch.tensor(sorted({i for i in ids if i is not None and i != unknown}), dtype=torch.long)

    def _template(self, marker: str) -> Template:
        """What stands around a text, its marker behind the first special token."""
        plain = Template.of(self.tokenizer, 1, types=takes_types(self.encoder, self.tokenizer))
        first, last = plain.pieces
        return Template(((*first, self.tokenizer.convert_tokens_to_ids(marker)), last), plain.types) if marker else plain

    def _check(self, normalize: bool | None) -> None:
        """Refuses settings that do not fit."""
        if self.expansion != "fill" and (not isinstance(self.expansion, int) or self.expansion < 0):
            raise ValueError(f"ColBERT(expansion={self.expansion!r}) is unknown: it is 'fill', or a number of mask tokens.")
        if self.expansion and self.tokenizer.mask_token_id is None:
            raise ValueError(f"ColBERT(expansion={self.expansion!r}) puts mask tokens behind queries, but {type(self.tokenizer).__name__} has none: pass expansion=0.")
        self.model.set_normalizes(normalize)

    @property
    def normalize(self) -> bool:
        """Whether vectors have norm 1."""
        return bool(self.model.normalizes)

    def _reads(self) -> tuple[tuple[str, ...], dict[str, Any]]:
        return ("query", "text"), {"special tokens": tuple(template.pieces for template in self.templates.values()), **{key: getattr(self, key) for key in (
            "query_length", "doc_length", "query_prompt", "text_prompt", "expansion", "expand_before_end", "attend_expansion")}}

    # ------------------------------------------------------------------ sides

    def _special(self, side: Side) -> int:
        return self.templates[side].special

    def _masks(self, length: int) -> int:
        """How many mask tokens are put behind a query of ``length`` tokens."""
        return max(0, self.query_length - self._special("query") - length) if self.expansion == "fill" else int(self.expansion)

    def _read_side(self, side: Side, table: TokenTable, rows: np.ndarray, layers: LayerNumbers) -> tuple[Vectors, Layers | None]:
        texts, pad = [table[i] for i in rows], self.tokenizer.pad_token_id or 0
        if side == "query":
            masks = [self._masks(len(text)) for text in texts]
            inputs, counts = assemble_with_masks(self.templates["query"], texts, masks, self.tokenizer.mask_token_id or 0, pad, self.device,
                                                 before_end=self.expand_before_end, attended=self.attend_expansion)
        else:
            inputs = assemble(self.templates["text"], [(text,) for text in texts], pad, self.device)
            counts = inputs["attention_mask"].bool() & ~torch.isin(inputs["input_ids"], self.skipped.to(self.device))
            counts[:, 0] |= ~counts.any(1)          # a text whose every token is skipped still has a vector
        with listening(self.encoder, layers) if layers else contextlib.nullcontext() as taps:
            vectors = self.model(**inputs)
        return Vectors(vectors, counts), taps.layers(inputs["attention_mask"]) if taps is not None else None

    # ------------------------------------------------------------------ copies and folders

    def _save_model(self, folder: Path) -> None:
        self.encoder.save_pretrained(folder)
        multi_vector.write(folder, self.model.steps, self.settings())


def new_steps(encoder: Any, settings: Mapping[str, Any], normalize: bool | None, seed: int) -> list[nn.Module]:
    """A new projection with random weights, and normalisation unless it is not wanted."""
    hidden = encoder.config.hidden_size
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        dense = Dense(hidden, settings["dim"] or hidden, bias=settings["bias"])
        nn.init.normal_(dense.linear.weight, std=getattr(encoder.config, "initializer_range", 0.02))
    return [dense, Normalize()] if (settings["normalize"] if normalize is None else normalize) else [dense]


def with_markers(tokenizer: Any, encoder: Any, markers: Sequence[str], add: bool, name: str, seed: int) -> tuple[Any, Any]:
    """A tokenizer that reads each marker as one token, also where it is written in a text (as sentence-transformers writes it), and the encoder for it.

    Args:
        tokenizer: Stays as it is.
        encoder: Stays as it is; where tokens are added, a copy gets room for them.
        markers: The markers; "" for none.
        add: Whether markers that the vocabulary lacks are added to it.
        name: For messages.
        seed: Of the embeddings of tokens that are added.

    Raises:
        CheckpointError: If the vocabulary lacks a marker and none is to be added.
    """
    known = tokenizer.get_vocab()
    for marker in filter(None, markers):
        if marker not in known and not add:
            raise CheckpointError(f"ColBERT: the vocabulary of {name or type(encoder).__name__!r} has no marker {marker!r}. Pass preset='pylate', which adds markers of its own, "
                                  "preset='matchmaker', which needs none, or query_marker= and text_marker=.")
    fresh = [transformers.AddedToken(marker, normalized=False, special=True) for marker in markers if marker and tokenizer.tokenize(marker) != [marker]]
    if fresh:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.add_special_tokens({"additional_special_tokens": fresh})
    if len(tokenizer) > encoder.get_input_embeddings().num_embeddings:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            encoder = copy.deepcopy(encoder)
            encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return tokenizer, encoder
