"""PreTTR: a cross-encoder whose lower layers read query and text apart, so that the text's part can be computed once.

In the layers below ``join`` no token of the query attends to one of the text, nor the other way round; the layers from ``join`` on read both
together, as a cross-encoder does. What the lower layers make of a text is its states, which a ``kd.DocumentStore`` keeps; they can be
compressed on their way (arXiv:2004.14255). A text's positions begin at a fixed number, since the query's length is not known when it is stored.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyterrier as pt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .. import scoring
from ..errors import MissingSignal
from ..formats.checkpoints import find_file, first_position, load_tokenizer, model_limit
from ..frames import TextFields
from ..signals import LAYERWISE, NO_LAYERS, Batch, LayerNumbers, Layers, Signals
from ..tokens import Template, TokenTable, assemble, assemble_with_masks
from .base import Tokens, require_tokenizer, takes_types
from .heads import NewHead, load_classifier, save_classifier, shrunk_classifier
from .saved import stored_metadata
from .shrink import chosen_layers
from .split_model import COMPRESSION, SplitModel, in_two_parts
from .two_sided import Side, TwoSided
from .vectors import Vectors

PUBLISHED = {"join": 3, "expansion": 8, "query_length": 30, "doc_length": 200}     # of the checkpoint published with arXiv:2010.02666


class PreTTR(TwoSided):
    """A cross-encoder whose lower layers read query and text apart.

    Args:
        model: A folder or hub name of a cross-encoder, of an encoder (which gets a new head), or one that ``save`` wrote; or a transformers
            model for sequence classification. Of the families of BERT, DistilBERT, ELECTRA and RoBERTa.
        tokenizer: The model's tokenizer. Default: the folder's; of published weights without one, that of the model that they were made from.
        join: The first layer that reads both sides, from 0 (a cross-encoder) to the number of layers less 1. Default: half of the layers.
        compression: Dimensions of a text's compressed states. Default None: all of the hidden size.
        query_length: The most tokens of a query, special ones included. Default 30 (arXiv:2010.02666).
        doc_length: The most tokens of a text, special ones included. Default 200 (arXiv:2010.02666), or what is left of the model's limit.
        expansion: How many mask tokens are put behind a query. Default 0; arXiv:2010.02666 has 8.
        classes: Classes of a new head, 1 or 2. Default 1.
        new_head: What a new head is, "pooled" (default) or "first_token"; see ``CrossEncoder``.
        batch_size: The most rows a batch. Default None: as many as fit a budget of tokens.
        text_field: The column, or several to be joined by a space, that holds the text. Default "text".
        query_prompt: Text put before each query.
        text_prompt: Text put before each text.
        texts: A text loader, for frames without the text field.
        device: Default: CUDA, else MPS, else CPU.
        dtype: Compute in this dtype by autocast, such as "bfloat16". Default: float32.
        verbose: Whether to show a progress bar. Default False.
        seed: Of a new compression's weights. Default 0.

    Raises:
        CheckpointError: If the folder is not a whole checkpoint of such a model, or of another family.
        ValueError: If ``join`` does not exist, or query and text do not fit into the model.
    """

    SETTINGS: ClassVar[tuple[str, ...]] = (*TwoSided.SETTINGS, "join", "compression", "expansion", "offset")
    signal_names: ClassVar[frozenset[str]] = frozenset({"scores"}) | LAYERWISE
    schematic: ClassVar[dict[str, Any]] = {"label": "PreTTR", "help_url": None}

    def __init__(self, model: Any, tokenizer: Any = None, *, join: int | None = None, compression: int | None = None, query_length: int | None = None,
                 doc_length: int | None = None, expansion: int | None = None, classes: int | None = None, new_head: NewHead | None = None, batch_size: int | None = None,
                 text_field: TextFields | None = None, query_prompt: str | None = None, text_prompt: str | None = None, texts: pt.Transformer | None = None,
                 device: str | torch.device | None = None, dtype: torch.dtype | str | None = None, verbose: bool = False, seed: int = 0) -> None:
        name, head = "", "loaded"
        stored: dict[str, Any] = {}
        metadata: dict[str, Any] = {}
        weights: dict[str, Tensor] = {}
        if isinstance(model, str | Path):
            name = str(model)
            stored, metadata = stored_metadata(name, "PreTTR", also=("CrossEncoder",))
            model, head, bare = load_classifier(name, classes, new_head)
            tokenizer = tokenizer or load_tokenizer(bare.tokenizer if bare else name, of=name)
            if bare is not None and bare.ranker == "PreTTR":
                stored = PUBLISHED | {"join": bare.told.get("join_layer_idx", PUBLISHED["join"])}
            if path := find_file(name, COMPRESSION):
                weights = load_file(path)
        require_tokenizer(tokenizer, "PreTTR")
        parts, compresses = in_two_parts(model, weights, stored, join, compression, seed, name)
        super().__init__(parts, tokenizer, name=name, batch_size=batch_size, text_field=text_field or stored.get("text_field", "text"),
                         query_prompt=stored.get("query_prompt", "") if query_prompt is None else query_prompt,
                         text_prompt=stored.get("text_prompt", "") if text_prompt is None else text_prompt,
                         texts=texts, device=device, dtype=dtype, verbose=verbose)
        if name and (head == "new" or compresses):
            missing = " and ".join([*(["ranking head"] if head == "new" else []), *(["compression"] if compresses else [])])
            warnings.warn(f"{name!r} has no {missing}: PreTTR made a new one with random weights; train it before use.", stacklevel=2)
        head = "new" if compresses else head
        self.head_, self.metadata_ = head, metadata
        self.expansion = stored.get("expansion", 0) if expansion is None else expansion
        if self.expansion and tokenizer.mask_token_id is None:
            raise ValueError(f"PreTTR(expansion={expansion}) puts mask tokens behind queries, but {type(tokenizer).__name__} has none.")
        limit = model_limit(self.encoder.config, tokenizer)
        self.query_length = query_length or stored.get("query_length") or 30
        self.offset = self.query_length + self.expansion
        self.doc_length = min(doc_length or stored.get("doc_length") or 200, limit - self.offset)
        if self.doc_length < 2:
            raise ValueError(f"PreTTR(query_length={self.query_length}, expansion={self.expansion}) leaves {limit - self.offset} of the model's {limit} tokens to a text.")
        pair = Template.of(tokenizer, 2, types=takes_types(self.encoder, tokenizer))
        first, middle, last = pair.pieces
        types = pair.types or (0,) * 5
        of_query, of_text = (None if pair.types is None else (kind,) * 3 for kind in (types[1], types[3]))
        self.templates = {"query": Template((first, middle), of_query), "text": Template(((), last), of_text)}

    @property
    def encoder(self) -> Any:
        """The transformers encoder."""
        return self.model.encoder

    @property
    def join(self) -> int:
        """The first layer that reads both sides."""
        return int(self.model.join)

    @property
    def compression(self) -> int | None:
        """Dimensions of a text's compressed states, or None."""
        return self.model.compression

    @property
    def width(self) -> int:
        """The number of dimensions of a text's states."""
        return self.compression or int(self.encoder.config.hidden_size)

    def _reads(self) -> tuple[tuple[str, ...], dict[str, Any]]:
        return ("pair",), {"special tokens": tuple(template.pieces for template in self.templates.values()), **{
            key: getattr(self, key) for key in ("query_length", "doc_length", "query_prompt", "text_prompt", "expansion")}}

    # ------------------------------------------------------------------ sides

    def _special(self, side: Side) -> int:
        return self.templates[side].special

    def _compared(self) -> int:
        return self._tokens_a_batch()

    def _beside(self) -> int:
        return self.offset

    def _read_side(self, side: Side, table: TokenTable, rows: np.ndarray, layers: LayerNumbers) -> tuple[Vectors, Layers | None]:
        texts, pad = [table[i] for i in rows], self.tokenizer.pad_token_id or 0
        inputs, real = assemble_with_masks(self.templates["query"], texts, [self.expansion] * len(texts), self.tokenizer.mask_token_id or 0, pad, self.device) \
            if side == "query" else self._text_inputs(texts, pad)
        start = first_position(self.encoder.config) + (0 if side == "query" else self.offset)
        inputs["position_ids"] = torch.arange(start, start + real.shape[1], device=self.device)[None, :].expand(len(texts), -1)
        hidden = self.model.below(inputs)
        return Vectors(hidden if side == "query" else self.model.compressed(hidden), real), None

    def _text_inputs(self, texts: Sequence[np.ndarray], pad: int) -> tuple[dict[str, Tensor], Tensor]:
        inputs = assemble(self.templates["text"], [(text,) for text in texts], pad, self.device)
        return inputs, inputs["attention_mask"].bool()

    def signals(self, batch: Batch, tokens: Tokens, names: frozenset[str] = frozenset({"scores"}), layers: LayerNumbers = NO_LAYERS) -> Signals:
        """Scores of a batch, and what the layers that read both sides do; see ``Ranker.signals``.

        Raises:
            MissingSignal: If a layer below ``join`` is asked for, or another signal that there is not.
        """
        self._require_signals(names)
        lower = sorted({number for name, numbers in layers.items() for number in numbers if number < self.join} | ({0} if "embedding" in layers and self.join else set()))
        if lower:
            raise MissingSignal(f"The layers {lower} of {self!r} read query and text apart: losses over layers see those from join={self.join} on. Name them, such as "
                                f"Attention([({self.join}, {self.join})]).")
        rows = batch.mask.flatten().nonzero().squeeze(1)                                     # (N,) the real pairs
        of_query = torch.arange(len(batch), device=rows.device).repeat_interleave(batch.mask.shape[1])[rows]
        distinct, of_text = np.unique(batch.texts.flatten()[rows].cpu().numpy(), return_inverse=True)
        queries, _ = self.represent("query", tokens.queries, batch.queries.cpu().numpy())
        texts, _ = self.represent("text", tokens.texts, distinct)
        lengths = (tokens.queries.lengths[batch.queries.cpu().numpy()][of_query.cpu().numpy()] + tokens.texts.lengths[distinct[of_text]])
        pieces = list(scoring.length_batches(lengths + self.offset, self._tokens_a_batch(), None if layers else self.rows_a_batch))
        said = []
        for piece in pieces:
            own = texts.take(torch.from_numpy(of_text[piece]).to(rows.device))
            width = int(own.mask.sum(1).max())
            said.append(self.model.interaction.read(queries.take(of_query[torch.from_numpy(piece).to(rows.device)]), Vectors(own.vectors[:, :width], own.mask[:, :width]), layers))
        order = rows[torch.from_numpy(np.concatenate(pieces)).to(rows.device)]
        scores = torch.cat([scores for scores, _ in said])
        flat = scores.new_zeros(batch.mask.numel()).index_copy(0, order, scores)
        return Signals(flat.view(batch.mask.shape), layers=tuple(heard for _, heard in said if heard is not None), who=type(self).__name__)

    # ------------------------------------------------------------------ copies and folders

    def _shrunk_model(self, layers: int | Sequence[int] | None, hidden: int | None) -> nn.Module:
        if hidden not in (None, self.encoder.config.hidden_size) and self.compression is not None:
            raise ValueError(f"shrink(hidden={hidden}): the compression of {self!r} was learned for {self.encoder.config.hidden_size} dimensions.")
        kept = chosen_layers(layers, self.encoder.config.num_hidden_layers) if layers is not None else range(self.encoder.config.num_hidden_layers)
        small = SplitModel(shrunk_classifier(self.model.classifier, layers, hidden), min(sum(number < self.join for number in kept), len(kept) - 1), self.compression)
        small.load_state_dict({k: v for k, v in self.model.state_dict().items() if not k.startswith("classifier.")}, strict=False)
        return small

    def _save_model(self, folder: Path) -> None:
        save_classifier(self.model.classifier, folder)
        if self.compression is not None:
            save_file({k: v.contiguous() for k, v in self.model.state_dict().items() if not k.startswith("classifier.")}, folder / COMPRESSION)
