"""Bi-encoder (BERT_DOT): query and text are each one vector, their dot product is the score.

The text side does not know the query, so it can be computed once: within a frame each distinct text is encoded once, and
in a dense index once for all. Columns and methods are those of a ``pyterrier_dr.BiEncoder``, so a ``BertDot`` goes
wherever that goes: ``(dense >> FlexIndex(path)).index(corpus)``, ``dense >> index.retriever()``.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pyterrier as pt
import torch
import transformers
from torch import Tensor, nn

from .. import scoring
from ..errors import DataError, require_extra
from ..formats import sentence_transformers as st
from ..formats.checkpoints import load_strict, load_tokenizer, model_limit
from ..frames import TextFields, explained, fields_of, row_texts
from ..signals import LAYERWISE, Batch, LayerNumbers, Layers, Signals
from ..tokens import Template, TokenTable, assemble, tokenise
from .base import NO_LAYERS, Ranker, Tokens, require_tokenizer, takes_types
from .dot_model import DotModel
from .saved import stored_metadata
from .shrink import Indices, shrunk
from .side import Side
from .taps import listening, reach


class BertDot(Ranker):
    """Scores a query and a text by the dot product of their vectors.

    Args:
        model: A folder or hub name (a sentence-transformers bi-encoder is read with its pooling, dense layers,
            normalisation and prompts; a plain encoder, with ``pooling``), or a transformers encoder.
        tokenizer: The model's tokenizer; only with a model object.
        pooling: "cls" or "mean". Default: what the folder says, else "cls" (arXiv:2010.02666).
        normalize: Whether vectors have norm 1. Default: what the folder says, else False.
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

    SETTINGS: ClassVar[tuple[str, ...]] = (*Ranker.SETTINGS, "query_length", "doc_length", "scale", "pooling", "normalize")
    signal_names: ClassVar[frozenset[str]] = frozenset({"scores", "in_batch"}) | LAYERWISE
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
            tokenizer = load_tokenizer(name)
            recipe = st.read(name) or st.Recipe("cls", (), None, "", "")
            model = DotModel(load_strict(transformers.AutoModel, name)[0], recipe.pooling, recipe.steps)
            query_prompt = recipe.query_prompt if query_prompt is None else query_prompt
            text_prompt = recipe.text_prompt if text_prompt is None else text_prompt
            limit = recipe.max_length
        require_tokenizer(tokenizer, "BertDot")
        if not isinstance(model, DotModel):
            model = DotModel(model, pooling or "cls", [])
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
        steps = list(self.model.steps)
        ends = bool(steps) and isinstance(steps[-1], st.Normalize)
        self.normalize = ends if normalize is None else normalize
        if self.normalize != ends:
            self.model.steps = nn.ModuleList([*steps, st.Normalize()] if self.normalize else steps[:-1])

    # ------------------------------------------------------------------ vectors

    def _vectors(self, table: TokenTable, rows: np.ndarray, layers: LayerNumbers = NO_LAYERS) -> tuple[Tensor, Layers | None]:
        """(N, H) vectors of some rows of a token table, with gradients if the model is in training, and what the layers asked for did."""
        inputs = assemble(self.template, [(table[i],) for i in rows], self.tokenizer.pad_token_id or 0, self.device)
        last = self.encoder.config.num_hidden_layers - 1
        with listening(self.encoder, layers) if layers else contextlib.nullcontext() as taps:
            vectors: Tensor = self.model(whole=reach(layers) >= last, **inputs)
        return vectors, taps.layers(inputs["attention_mask"]) if taps is not None else None

    @property
    def encoder(self) -> Any:
        """The transformers encoder that both sides share."""
        return self.model.encoder

    def _reads(self) -> tuple[tuple[str, ...], dict[str, Any]]:
        return ("query", "text"), {"special tokens": self.template.pieces, "query_length": self.query_length, "doc_length": self.doc_length,
                                   "query_prompt": self.query_prompt, "text_prompt": self.text_prompt}

    def _encode(self, table: TokenTable, progress: Callable[[int], object] | None = None) -> np.ndarray:
        """(N, H) float32 vectors of a whole token table."""
        if not len(table):
            return np.empty((0, 0), dtype=np.float32)
        return scoring.by_length(table.lengths + self.template.special, lambda rows: self._vectors(table, rows)[0].cpu().numpy(),
                                 self._tokens_a_batch(), progress, self.rows_a_batch)

    def _table(self, texts: Sequence[str], length: int, prompt: str) -> TokenTable:
        return tokenise(self.tokenizer, texts, length - self.template.special, prompt)

    def _encode_all(self, texts: Iterable[str], length: int, prompt: str) -> np.ndarray:
        """(N, H) float32 vectors of texts, each distinct one encoded once."""
        codes, distinct = pd.factorize(np.asarray(list(texts), dtype=object))
        with self._inference():
            vectors = self._encode(self._table(list(distinct), length, prompt))
        return vectors[codes] if len(codes) else vectors

    def encode_queries(self, texts: Iterable[str], batch_size: int | None = None) -> np.ndarray:
        """Encodes queries.

        Args:
            texts: N queries.
            batch_size: Accepted for the sake of ``pyterrier_dr``; batches are made by a budget of tokens.

        Returns:
            (N, H) float32 vectors, times ``scale``; (0, 0) for no queries.
        """
        vectors = self._encode_all(texts, self.query_length, self.query_prompt)
        return vectors if self.scale == 1 else vectors * np.float32(self.scale)

    def encode_queries_torch(self, texts: Iterable[str], batch_size: int | None = None) -> Tensor:
        """Encodes queries with gradients, if the model is in training: (N, H) float32, times ``scale``."""
        table = self._table(list(texts), self.query_length, self.query_prompt)
        return self.scale * self.represent(table, np.arange(len(table)))[0]

    def encode_docs(self, texts: Iterable[str], batch_size: int | None = None) -> np.ndarray:
        """Encodes texts: (N, H) float32 vectors; see ``encode_queries``."""
        return self._encode_all(texts, self.doc_length, self.text_prompt)

    # ------------------------------------------------------------------ scoring of frames

    def _prepare_queries(self, queries: list[str]) -> np.ndarray:
        return self._encode(self._table(queries, self.query_length, self.query_prompt)) * np.float32(self.scale)

    def room(self, queries: Sequence[str]) -> np.ndarray:
        """(N,) the tokens of a text, whatever the query; see ``Ranker.room``."""
        return np.full(len(queries), self.doc_length - self.template.special)

    def _tokenise_texts(self, texts: Sequence[str]) -> TokenTable:
        return self._table(texts, self.doc_length, self.text_prompt)

    def _prepare_texts(self, table: TokenTable) -> tuple[np.ndarray, int]:
        return self._encode(table), table.cut

    def _cut_texts(self, queries: np.ndarray, query_rows: np.ndarray, texts: tuple[np.ndarray, int], text_rows: np.ndarray) -> int:
        return texts[1]

    def _score_rows(self, queries: np.ndarray, query_rows: np.ndarray, texts: tuple[np.ndarray, int], text_rows: np.ndarray,
                    progress: Callable[[int], object]) -> np.ndarray:
        vectors = texts[0]
        scores = np.empty(len(query_rows), dtype=np.float32)
        for rows in np.array_split(np.arange(len(scores)), max(1, len(scores) // 4096)):     # two (4096, H) arrays at a time
            scores[rows] = np.einsum("ij,ij->i", queries[query_rows[rows]], vectors[text_rows[rows]])
        progress(len(scores))
        return scores

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Encodes or scores, by the columns that are there, as a ``pyterrier_dr.BiEncoder`` does.

        ``query`` (or ``query_vec``) and the text field (or ``doc_vec``): ``score`` and ``rank``. Only ``query``: adds
        ``query_vec``. Only the text field: adds ``doc_vec``.
        """
        mode = self._mode(inp)
        if mode == "vectors":
            return self._score_vectors(inp)
        if mode == "query":
            return self.query_encoder().transform(inp)
        if mode == "text":
            return self.doc_encoder().transform(inp)
        return self.rerank(inp)

    def _mode(self, inp: pd.DataFrame) -> str | None:
        """What a frame's columns ask for: "vectors", "score", "query" or "text"; the first that fits."""
        fields = fields_of(self.text_field)
        with explained(self, inp, ["query", *fields]), pt.validate.any(inp, context=self) as asked:
            for query in ("query_vec", "query"):
                asked.result_frame(extra_columns=[query, "doc_vec"], mode="vectors")
            asked.result_frame(extra_columns=["query_vec", *fields], mode="vectors")
            asked.result_frame(extra_columns=["query", *([] if self.texts else fields)], mode="score")
            asked.columns(includes=["query"], excludes=["docno"], mode="query")
            asked.columns(includes=fields, excludes=["query"], mode="text")
        mode: str | None = asked.mode
        return mode

    def _score_vectors(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Scores a frame in which one or both sides are vectors already."""
        pt.validate.columns(inp, includes=["qid", "docno"], context=self)
        out = inp.drop(columns=["score", "rank"], errors="ignore").reset_index(drop=True)
        if not len(out):
            return pt.model.add_ranks(out.assign(score=pd.Series(dtype="float64")))
        queries = np.stack(out["query_vec"].tolist()) if "query_vec" in out.columns else self.encode_queries(out["query"])
        texts = np.stack(out["doc_vec"].tolist()) if "doc_vec" in out.columns else self.encode_docs(row_texts(out, fields_of(self.text_field), None, self))
        if queries.shape[1] != texts.shape[1]:
            raise DataError(f"{self!r}: the query vectors have {queries.shape[1]} dimensions and the document vectors {texts.shape[1]}: they are not of one encoder.")
        return pt.model.add_ranks(out.assign(score=np.einsum("ij,ij->i", queries, texts).astype("float64")))

    def query_encoder(self, verbose: bool | None = None, batch_size: int | None = None) -> pt.Transformer:
        """A transformer that adds ``query_vec``."""
        return Side(self, "query")

    def doc_encoder(self, verbose: bool | None = None, batch_size: int | None = None) -> pt.Transformer:
        """A transformer that adds ``doc_vec``."""
        return Side(self, "doc")

    def text_scorer(self, verbose: bool | None = None, batch_size: int | None = None) -> pt.Transformer:
        """A transformer that scores rows; this ranker itself."""
        return self

    scorer = text_scorer

    @property
    def sim_fn(self) -> Any:
        """``pyterrier_dr.SimFn.dot``."""
        return require_extra("pyterrier_dr", "dense", "BertDot.sim_fn").SimFn.dot

    # ------------------------------------------------------------------ training

    def tokens(self, queries: Sequence[str], texts: Sequence[str]) -> Tokens:
        """Tokenises queries and texts; see ``Ranker.tokens``."""
        table = self._tokenise_texts(texts)
        self._report_cut(table.cut, len(texts))
        return Tokens(self._table(queries, self.query_length, self.query_prompt), table)

    def represent(self, table: TokenTable, rows: np.ndarray, layers: LayerNumbers = NO_LAYERS) -> tuple[Tensor, tuple[Layers, ...]]:
        """(N, H) vectors of rows of a token table, with gradients in training, and what the layers asked for did.

        The rows run in pieces of similar length.
        """
        # where layers are compared, another ranker must make the same pieces of this batch
        pieces = list(scoring.length_batches(table.lengths[rows] + self.template.special, self._tokens_a_batch(), None if layers else self.rows_a_batch))
        said = [self._vectors(table, rows[p], layers) for p in pieces]
        vectors = torch.cat([piece for piece, _ in said])
        back = torch.from_numpy(np.argsort(np.concatenate(pieces))).to(vectors.device)
        return vectors[back], tuple(heard for _, heard in said if heard is not None)

    def frozen(self, device: torch.device) -> BertDot:
        """See ``Ranker.frozen``; this one remembers the vectors that it has computed."""
        twin = super().frozen(device)
        assert isinstance(twin, BertDot)
        twin.represent = Memory(twin.represent, device)                                              # type: ignore[method-assign]
        return twin

    def signals(self, batch: Batch, tokens: Tokens, names: frozenset[str] = frozenset({"scores"}), layers: LayerNumbers = NO_LAYERS) -> Signals:
        """Scores of a batch, and of every query with every text of it, and what layers do; see ``Ranker.signals``."""
        self._require_signals(names)
        texts_of, real = batch.texts.cpu().numpy(), batch.mask.cpu().numpy()
        distinct = np.unique(texts_of[real])                                                 # (U,), those of padding not among them
        local = np.where(real, np.searchsorted(distinct, texts_of), 0)                       # (B, n)
        queries, of_queries = self.represent(tokens.queries, batch.queries.cpu().numpy(), layers)    # (B, H)
        texts, of_texts = self.represent(tokens.texts, distinct, layers)                     # (U, H)
        every = self.scale * queries @ texts.T                                               # (B, U)
        columns = torch.from_numpy(local.reshape(batch.texts.shape)).to(every.device)
        in_batch = every[:, columns.flatten()] if "in_batch" in names else None
        return Signals(every.gather(1, columns), in_batch=in_batch, layers=of_queries + of_texts, who=type(self).__name__)

    # ------------------------------------------------------------------ copies and folders

    def _shrunk_model(self, layers: int | Sequence[int] | None, hidden: int | None) -> nn.Module:
        encoder = shrunk(self.model.encoder, layers, hidden)
        steps = copy.deepcopy(list(self.model.steps))
        config = self.model.encoder.config
        if hidden is not None and hidden != config.hidden_size:
            index = Indices(config.num_attention_heads, config.hidden_size, hidden)
            first = next((s for s in steps if isinstance(s, st.Dense)), None)
            if first is not None:       # only the first dense layer reads the encoder's width
                weight = first.linear.weight
                first.linear.weight = nn.Parameter(index.cut(weight.data, torch.Size((weight.shape[0], hidden))))
                first.linear.in_features = hidden
        return DotModel(encoder, self.model.pooling, steps)

    def _save_model(self, folder: Path) -> None:
        self.model.encoder.save_pretrained(folder)
        recipe = st.Recipe(self.model.pooling, tuple(self.model.steps), max(self.query_length, self.doc_length), self.query_prompt, self.text_prompt)
        st.write(folder, recipe, self.model.encoder.config.hidden_size)


class Memory:
    """``BertDot.represent`` of a model that does not change: each row of a token table is encoded at most once.

    Vectors are kept on the CPU, in memory; (rows, H) float32 for each table. What layers do is not kept.
    """

    def __init__(self, represent: Callable[..., tuple[Tensor, tuple[Layers, ...]]], device: torch.device) -> None:
        self.represent, self.device = represent, device
        self.known: dict[int, tuple[TokenTable, np.ndarray, Tensor]] = {}

    def __call__(self, table: TokenTable, rows: np.ndarray, layers: LayerNumbers = NO_LAYERS) -> tuple[Tensor, tuple[Layers, ...]]:
        """(N, H) vectors of rows of ``table``, and what the layers asked for did."""
        if layers:
            return self.represent(table, rows, layers)
        if id(table) not in self.known:
            width = self.represent(table, rows[:1])[0].shape[1]
            self.known[id(table)] = (table, np.zeros(len(table), dtype=bool), torch.empty(len(table), width))
        _, done, vectors = self.known[id(table)]
        todo = np.unique(rows[~done[rows]])
        if len(todo):
            vectors[torch.from_numpy(todo)] = self.represent(table, todo)[0].cpu()
            done[todo] = True
        return vectors[torch.from_numpy(rows)].to(self.device), ()
