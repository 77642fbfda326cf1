"""Bi-encoder (BERT_DOT): query and text are each one vector, their dot product is the score.

The text side does not know the query, so it can be computed once: within a frame each distinct text is encoded once, and
in a dense index once for all. Columns and methods are those of a ``pyterrier_dr.BiEncoder``, so a ``BertDot`` goes
wherever that goes: ``(dense >> FlexIndex(path)).index(corpus)``, ``dense >> index.retriever()``.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pyterrier as pt
import torch
import transformers
from torch import Tensor, nn

from ..errors import require_extra
from ..formats import sentence_transformers as st
from ..formats.checkpoints import load_strict, load_tokenizer, model_limit
from ..frames import TextFields
from ..signals import NO_LAYERS, LayerNumbers, Layers
from ..tokens import Template, TokenTable, assemble
from .base import require_tokenizer, takes_types
from .saved import stored_metadata
from .side_models import DotModel
from .taps import listening, reach
from .two_sided import Side, TwoSided
from .vectors import Vectors


class BertDot(TwoSided):
    """Scores a query and a text by the dot product of their vectors.

    Args:
        model: A folder or hub name (a sentence-transformers bi-encoder is read with its pooling, dense layers,
            normalisation and prompts; a plain encoder, with ``pooling``), or a transformers encoder.
        tokenizer: The model's tokenizer. Default: the folder's.
        pooling: "cls" or "mean". Default: what the folder says, else "cls" (arXiv:2010.02666).
        normalize: Whether vectors have norm 1. Default: whether the folder ends in a module that normalises; a warning tells of a folder that
            does not and yet compares by the cosine, which is what sentence-transformers writes of models that never said.
        scale: Factor on the score, put on the query's side; use it where normalised scores are too small for margins.
            Default 1.
        query_length: The most tokens of a query, special ones included. Default: what the model takes.
        doc_length: The most tokens of a text, special ones included. Default: what the model takes.
        batch_size: The most rows a batch. Default None: as many as fit a budget of tokens.
        text_field: The column, or several to be joined by a space, that holds the text. Default "text".
        query_prompt: Text put before each query. Default: what the folder says, else "".
        text_prompt: Text put before each text. Default: what the folder says, else "".
        texts: A text loader, for frames without the text field.
        device: Default: CUDA, else MPS, else CPU.
        dtype: Compute in this dtype by autocast, such as "bfloat16". Default: float32. Vectors are always float32.
        verbose: Whether to show a progress bar. Default False.

    Raises:
        CheckpointError: If the folder is not a whole checkpoint of such a model.
    """

    VECTORS: ClassVar[str] = "vec"
    SETTINGS: ClassVar[tuple[str, ...]] = (*TwoSided.SETTINGS, "scale", "pooling", "normalize")
    schematic: ClassVar[dict[str, Any]] = {"label": "BertDot", "help_url": None}

    def __init__(self, model: Any, tokenizer: Any = None, *, pooling: str | None = None, normalize: bool | None = None,
                 scale: float | None = None, query_length: int | None = None, doc_length: int | None = None, batch_size: int | None = None,
                 text_field: TextFields | None = None, query_prompt: str | None = None, text_prompt: str | None = None,
                 texts: pt.Transformer | None = None, device: str | torch.device | None = None, dtype: torch.dtype | str | None = None,
                 verbose: bool = False) -> None:
        name = ""
        stored: dict[str, Any] = {}
        metadata: dict[str, Any] = {}
        limit: int | None = None
        if isinstance(model, str | Path):
            name = str(model)
            stored, metadata = stored_metadata(name, "BertDot")
            tokenizer = tokenizer or load_tokenizer(name)
            recipe = st.read(name) or st.Recipe("cls", (), None, "", "")
            model = DotModel(load_strict(transformers.AutoModel, name)[0], recipe.pooling, recipe.steps)
            query_prompt = recipe.query_prompt if query_prompt is None else query_prompt
            text_prompt = recipe.text_prompt if text_prompt is None else text_prompt
            limit = recipe.max_length
            if normalize is None and recipe.similarity != "dot" and not model.normalizes:
                choice = "normalize=True for the cosine, or " if recipe.similarity == "cosine" else ""
                warnings.warn(f"{name!r} compares vectors by {recipe.similarity!r} and does not normalise them: BertDot takes their dot product. "
                              f"Pass {choice}normalize=False if the dot product is what it was trained for.", stacklevel=2)
        require_tokenizer(tokenizer, "BertDot")
        # what follows the encoder of a model that is passed stays as it is there; the encoder is shared
        model = DotModel(model.encoder, model.pooling, list(model.steps)) if isinstance(model, DotModel) else DotModel(model, pooling or "cls", [])
        super().__init__(model, tokenizer, name=name, batch_size=batch_size, text_field=text_field or stored.get("text_field", "text"),
                         query_prompt=query_prompt or "", text_prompt=text_prompt or "", texts=texts, device=device, dtype=dtype, verbose=verbose)
        self.metadata_ = metadata
        self._set_head(pooling, normalize)
        self.scale = float(stored.get("scale", 1.0) if scale is None else scale)
        limit = min(limit or 10**9, model_limit(self.model.encoder.config, tokenizer))
        most = model_limit(self.model.encoder.config, tokenizer)
        self.query_length = min(query_length or stored.get("query_length") or limit, most)
        self.doc_length = min(doc_length or stored.get("doc_length") or limit, most)
        self.template = Template.of(tokenizer, 1, types=takes_types(self.model.encoder, tokenizer))

    def _set_head(self, pooling: str | None, normalize: bool | None) -> None:
        """Overrides what the folder says of pooling and normalisation."""
        if pooling not in (None, "cls", "mean"):
            raise ValueError(f"BertDot(pooling={pooling!r}) is unknown: it is 'cls' or 'mean'.")
        self.pooling = self.model.pooling = pooling or self.model.pooling
        self.model.set_normalizes(normalize)
        self.normalize = self.model.normalizes

    # ------------------------------------------------------------------ vectors

    def _read_side(self, side: Side, table: TokenTable, rows: np.ndarray, layers: LayerNumbers) -> tuple[Vectors, Layers | None]:
        inputs = assemble(self.template, [(table[i],) for i in rows], self.tokenizer.pad_token_id or 0, self.device)
        last = self.encoder.config.num_hidden_layers - 1
        with listening(self.encoder, layers) if layers else contextlib.nullcontext() as taps:
            vectors: Tensor = self.model(whole=reach(layers) >= last, **inputs)
        if side == "query" and self.scale != 1:
            vectors = vectors * self.scale
        return Vectors(vectors[:, None], torch.ones(len(rows), 1, dtype=torch.bool, device=vectors.device)), taps.layers(inputs["attention_mask"]) if taps is not None else None

    def _special(self, side: Side) -> int:
        return self.template.special

    def _vectors_a_text(self) -> int:
        return 1

    def _reads(self) -> tuple[tuple[str, ...], dict[str, Any]]:
        return ("query", "text"), {"special tokens": self.template.pieces, "query_length": self.query_length, "doc_length": self.doc_length,
                                   "query_prompt": self.query_prompt, "text_prompt": self.text_prompt}

    def _encode_all(self, side: Side, texts: Iterable[str]) -> np.ndarray:
        """(N, H) float32 vectors of texts, each distinct one encoded once."""
        codes, encoded = self._encoded(side, texts)
        vectors: np.ndarray = encoded.flat.cpu().numpy()
        return vectors[codes] if len(codes) else vectors

    def encode_queries_torch(self, texts: Iterable[str], batch_size: int | None = None) -> Tensor:
        """Encodes queries with gradients, if the model is in training: (N, H) float32, times ``scale``."""
        table = self.table("query", list(texts))
        return self.represent("query", table, np.arange(len(table)))[0].vectors[:, 0]

    @property
    def sim_fn(self) -> Any:
        """``pyterrier_dr.SimFn.dot``."""
        return require_extra("pyterrier_dr", "dense", "BertDot.sim_fn").SimFn.dot

    # ------------------------------------------------------------------ copies and folders

    def frozen(self, device: torch.device) -> BertDot:
        """See ``Ranker.frozen``; this one remembers the vectors that it has computed."""
        twin = super().frozen(device)
        assert isinstance(twin, BertDot)
        twin.represent = Memory(twin.represent, device)                                              # type: ignore[method-assign]
        return twin

    def _with_model(self, model: nn.Module, metadata: dict[str, Any]) -> Self:
        twin = super()._with_model(model, metadata)
        vars(twin).pop("represent", None)       # of a frozen one
        return twin

    def _save_model(self, folder: Path) -> None:
        self.model.encoder.save_pretrained(folder)
        recipe = st.Recipe(self.model.pooling, tuple(self.model.steps), max(self.query_length, self.doc_length), self.query_prompt, self.text_prompt)
        st.write(folder, recipe, self.model.encoder.config.hidden_size)


class Memory:
    """``BertDot.represent`` of a model that does not change: each row of a token table is encoded at most once.

    Vectors are kept on the CPU, in memory; (rows, H) float32 for each table. What layers do is not kept.
    """

    def __init__(self, represent: Callable[..., tuple[Vectors, tuple[Layers, ...]]], device: torch.device) -> None:
        self.represent, self.device = represent, device
        self.known: dict[tuple[Side, int], tuple[TokenTable, np.ndarray, Tensor]] = {}

    def __call__(self, side: Side, table: TokenTable, rows: np.ndarray, layers: LayerNumbers = NO_LAYERS) -> tuple[Vectors, tuple[Layers, ...]]:
        """The vectors of rows of ``table``, and what the layers asked for did."""
        if layers:
            return self.represent(side, table, rows, layers)
        if (side, id(table)) not in self.known:
            width = self.represent(side, table, rows[:1])[0].vectors.shape[-1]
            self.known[side, id(table)] = (table, np.zeros(len(table), dtype=bool), torch.empty(len(table), 1, width))
        _, done, vectors = self.known[side, id(table)]
        todo = np.unique(rows[~done[rows]])
        if len(todo):
            vectors[torch.from_numpy(todo)] = self.represent(side, table, todo)[0].vectors.cpu()
            done[todo] = True
        held = vectors[torch.from_numpy(rows)].to(self.device)
        return Vectors(held, torch.ones(len(rows), 1, dtype=torch.bool, device=self.device)), ()
