"""Two-sided rankers: query and text are read apart, and what was made of each is compared.

So the text's side can be computed once: within a frame each distinct text is read once, in an index or a store once for all. An architecture says
how a side is read (``_read_side``) and its model holds the interaction that compares.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import pyterrier as pt
import torch
from torch import Tensor

from .. import scoring
from ..errors import DataError
from ..frames import distinct, explained, fields_of
from ..signals import LAYERWISE, NO_LAYERS, Batch, LayerNumbers, Layers, Signals
from ..tokens import TokenTable, tokenise
from .base import Ranker, Tokens
from .interactions import Dot, MaxSim
from .side import OneSide
from .vectors import Held, Ragged, Scratch, Vectors

Side = Literal["query", "text"]
COMPARED = {"cpu": 1 << 13, "cuda": 1 << 20}    # vectors of texts that are compared with a query at once, by kind of device: on a CPU they stay in its cache
FEW = 8                 # texts of a query for which a comparison of their own is not worth it
HELD = 1 << 28          # bytes of texts' vectors that are held at once while a frame is scored


class TwoSided(Ranker):
    """What rankers share that read query and text apart. See ``BertDot`` and ``ColBERT``.

    Attributes:
        query_length: The most tokens of a query, special ones included.
        doc_length: The most tokens of a text, special ones included.
    """

    SETTINGS: ClassVar[tuple[str, ...]] = (*Ranker.SETTINGS, "query_length", "doc_length")
    signal_names: ClassVar[frozenset[str]] = frozenset({"scores", "in_batch"}) | LAYERWISE

    VECTORS: ClassVar[str] = "embs"     # the end of the names of columns with vectors, as in pyterrier_dr and pyterrier_colbert

    query_length: int
    doc_length: int

    # ------------------------------------------------------------------ what an architecture implements

    @abstractmethod
    def _special(self, side: Side) -> int:
        """The number of special tokens around a text of one side, which count in its length."""

    @abstractmethod
    def _read_side(self, side: Side, table: TokenTable, rows: np.ndarray, layers: LayerNumbers) -> tuple[Vectors, Layers | None]:
        """The vectors of some rows of a token table, with gradients if the model is in training, and what the layers asked for did."""

    @property
    def encoder(self) -> Any:
        """The transformers encoder that both sides share."""
        return self.model.encoder

    @property
    def width(self) -> int:
        """The number of dimensions of a vector."""
        return int(self.model.width)

    @property
    def retrieves(self) -> bool:
        """Whether scores are made of single products, so that the nearest vectors find the best texts."""
        return isinstance(self.model.interaction, Dot | MaxSim)

    def _shrunk_model(self, layers: int | Sequence[int] | None, hidden: int | None) -> torch.nn.Module:
        small: torch.nn.Module = self.model.shrunk(layers, hidden)
        return small

    # ------------------------------------------------------------------ sides

    def table(self, side: Side, texts: Sequence[str]) -> TokenTable:
        """The tokens of queries or texts with their prompt, cut to what is read of them."""
        length, prompt = (self.query_length, self.query_prompt) if side == "query" else (self.doc_length, self.text_prompt)
        if length <= self._special(side):
            name = "query_length" if side == "query" else "doc_length"
            raise ValueError(f"{type(self).__name__}({name}={length}) leaves no token for a {side} beside its {self._special(side)} special ones.")
        return tokenise(self.tokenizer, texts, length - self._special(side), prompt)

    def represent(self, side: Side, table: TokenTable, rows: np.ndarray, layers: LayerNumbers = NO_LAYERS) -> tuple[Vectors, tuple[Layers, ...]]:
        """The vectors of rows of a token table, with gradients in training, and what the layers asked for did.

        The rows run in pieces of similar length.
        """
        # where layers are compared, another ranker must make the same pieces of this batch
        pieces = list(scoring.length_batches(table.lengths[rows] + self._special(side), self._tokens_a_batch(), None if layers else self.rows_a_batch))
        said = [self._read_side(side, table, rows[p], layers) for p in pieces]
        vectors = Vectors.joined([piece for piece, _ in said])
        back = torch.from_numpy(np.argsort(np.concatenate(pieces))).to(vectors.mask.device)
        return vectors.take(back), tuple(heard for _, heard in said if heard is not None)

    def encode(self, side: Side, table: TokenTable, progress: Callable[[int], object] | None = None, device: torch.device | str = "cpu") -> Ragged:
        """The vectors of a whole token table.

        Args:
            side: Which side the texts are.
            table: Their tokens.
            progress: Called with the number of texts of each batch that is done.
            device: Where the vectors are kept. Default: in the computer's memory.
        """
        found: list[Any] = [None] * len(table)

        def forward(rows: np.ndarray) -> np.ndarray:
            vectors, _ = self._read_side(side, table, rows, NO_LAYERS)
            for row, own in zip(rows.tolist(), vectors.vectors[vectors.mask].float().to(device).split(vectors.mask.sum(1).tolist()), strict=True):
                found[row] = own
            return np.zeros(len(rows))

        if len(table):
            scoring.by_length(table.lengths + self._special(side), forward, self._tokens_a_batch(), progress, self.rows_a_batch)
        return Ragged.of(found, self.width, table.cut)

    def _encoded(self, side: Side, texts: Iterable[str]) -> tuple[np.ndarray, Ragged]:
        """The vectors of N texts' distinct ones, and (N,) which of these each is."""
        codes, found = distinct(texts, "queries" if side == "query" else "texts", self)
        with self._inference():
            return codes, self.encode(side, self.table(side, found))

    def _encode_all(self, side: Side, texts: Iterable[str]) -> Any:
        """For each text its (T, H) float32 vectors, each distinct one encoded once."""
        codes, encoded = self._encoded(side, texts)
        flat = encoded.flat.cpu().numpy()
        return [flat[encoded.starts[i]:encoded.starts[i + 1]] for i in codes]

    def encode_queries(self, texts: Iterable[str], batch_size: int | None = None) -> Any:
        """Encodes queries.

        Args:
            texts: N queries.
            batch_size: Accepted for the sake of ``pyterrier_dr``; batches are made by a budget of tokens.

        Returns:
            N arrays (T, H) float32; of a ``BertDot`` one array (N, H).
        """
        return self._encode_all("query", texts)

    def encode_docs(self, texts: Iterable[str], batch_size: int | None = None) -> Any:
        """Encodes texts; see ``encode_queries``. Tokens that are left out have no vector."""
        return self._encode_all("text", texts)

    # ------------------------------------------------------------------ frames

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Encodes or scores, by the columns that are there, as a ``pyterrier_dr.BiEncoder`` does.

        ``query`` (or ``query_vec``) and the text field (or ``doc_vec``): ``score`` and ``rank``. Vectors are used where a frame has both
        sides', or lacks a side's text; they must be this ranker's. Only ``query``: adds ``query_vec``. Only the text field: adds ``doc_vec``.
        Of rankers with several vectors a text the columns are ``query_embs`` and ``doc_embs``, each value a (T, H) array.
        """
        mode = self._mode(inp)
        if mode == "vectors":
            return self._score_vectors(inp)
        if mode == "query":
            return self.query_encoder().transform(inp)
        if mode == "text":
            return self.doc_encoder().transform(inp)
        return self.rerank(inp)

    def vectors_of(self, side: Side) -> str:
        """The column of a side's vectors."""
        return f"{'query' if side == 'query' else 'doc'}_{self.VECTORS}"

    def _mode(self, inp: pd.DataFrame) -> str | None:
        """What a frame's columns ask for: "vectors", "score", "query" or "text"; the first that fits."""
        fields, query, text = fields_of(self.text_field), self.vectors_of("query"), self.vectors_of("text")
        with explained(self, inp, ["query", *fields]), pt.validate.any(inp, context=self) as asked:
            asked.result_frame(extra_columns=[query, text], mode="vectors")
            asked.result_frame(extra_columns=["query", *fields], mode="score")          # one side's vectors may be those of another ranker
            for columns in (["query", text], [query, *fields]):
                asked.result_frame(extra_columns=columns, mode="vectors")
            if self.texts:
                asked.result_frame(extra_columns=["query"], mode="score")
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
        query, text = self.vectors_of("query"), self.vectors_of("text")
        codes, queries = self._vectors_in(out[query]) if {query, text} <= set(out.columns) else self._queries_of(out)
        with self._inference():
            if text in out.columns:
                rows, texts = self._vectors_in(out[text])
                scores = self._finite(self._score_rows(queries, codes, texts, rows, lambda _: None))
            else:
                scores = self._score_texts(queries, codes, *distinct(self._texts_of(out), "texts", self))
        return pt.model.add_ranks(out.assign(score=scores.astype("float64")))

    def _queries_of(self, frame: pd.DataFrame) -> tuple[np.ndarray, Ragged]:
        """(N,) which query each row has, and their vectors: of its queries, or where the frame has none the vectors in its column of them."""
        return self._encoded("query", frame["query"]) if "query" in frame.columns else self._vectors_in(frame[self.vectors_of("query")])

    def _vectors_in(self, column: pd.Series) -> tuple[np.ndarray, Ragged]:
        """(N,) which of the distinct arrays each row has, and these.

        Raises:
            DataError: If one is no array of this ranker's vectors.
        """
        values = column.tolist()
        _, first, codes = np.unique([id(value) for value in values], return_index=True, return_inverse=True)     # a query's rows share its array
        found = []
        for row in first:
            try:
                array = np.atleast_2d(np.asarray(values[row], dtype=np.float32))
            except (TypeError, ValueError):
                array = np.empty((0, 0), dtype=np.float32)
            if array.ndim != 2 or not len(array) or array.shape[1] != self.width:
                what = f"shape {np.shape(values[row])}" if np.ndim(values[row]) else repr(values[row])
                raise DataError(f"{self!r}: row {row} of the column {column.name!r} has {what}; vectors of this ranker have {self.width} dimensions.")
            found.append(torch.from_numpy(np.ascontiguousarray(array)))
        return codes, Ragged.of(found, self.width)

    def room(self, queries: Sequence[str]) -> np.ndarray:
        """(N,) the tokens of a text, whatever the query; see ``Ranker.room``."""
        return np.full(len(queries), self.doc_length - self._special("text"))

    def _window(self) -> int:
        return max(256, min(scoring.WINDOW, HELD // (4 * self.width * self._vectors_a_text())))

    def _vectors_a_text(self) -> int:
        """The most vectors of a text."""
        return self.doc_length

    def _compared(self) -> int:
        """How many vectors of texts are compared with a query at once."""
        return COMPARED.get(self.device.type, COMPARED["cuda"])

    def _beside(self) -> int:
        """How many vectors of a query join those of each text, in counting how many are compared at once."""
        return 0

    def _prepare_queries(self, queries: list[str]) -> Ragged:
        return self.encode("query", self.table("query", queries))

    def _tokenise_texts(self, texts: Sequence[str]) -> TokenTable:
        return self.table("text", texts)

    def _prepare_texts(self, table: TokenTable) -> Ragged:
        return self.encode("text", table, device=self.device)       # a window of texts is small enough

    def _cut_texts(self, queries: Ragged, query_rows: np.ndarray, texts: Held, text_rows: np.ndarray) -> int:
        return texts.cut

    def _score_rows(self, queries: Ragged, query_rows: np.ndarray, texts: Held, text_rows: np.ndarray, progress: Callable[[int], object]) -> np.ndarray:
        scores, interaction, scratch = np.empty(len(query_rows), dtype=np.float32), self.model.interaction, Scratch()
        order = np.argsort(query_rows, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(query_rows[order])) + 1) if len(order) else []
        few = [rows for rows in groups if len(rows) < FEW]
        # queries with many texts one by one, each against its texts; the texts of the others together, each with its own query
        for rows in [*(rows for rows in groups if len(rows) >= FEW), *([np.concatenate(few)] if few else [])]:
            alone = query_rows[rows[0]] == query_rows[rows[-1]]
            query = queries.padded(query_rows[rows[:1]], self.device) if alone else None

            def compare(some: np.ndarray, rows: np.ndarray = rows, query: Vectors | None = query) -> np.ndarray:
                own = query if query is not None else queries.padded(query_rows[rows[some]], self.device)
                theirs = texts.padded(text_rows[rows[some]], self.device, interaction.idempotent, scratch)      # repeated, so that there are no products to mask
                found: np.ndarray = interaction.pairs(own, theirs).float().cpu().numpy()
                return found

            scores[rows] = scoring.by_length(texts.lengths[text_rows[rows]] + self._beside(), compare, self._compared(), progress)
        return scores

    def query_encoder(self, verbose: bool | None = None, batch_size: int | None = None) -> pt.Transformer:
        """A transformer that adds ``query_vec``, or ``query_embs`` where a query has several vectors."""
        return OneSide(self, "query")

    def doc_encoder(self, verbose: bool | None = None, batch_size: int | None = None) -> pt.Transformer:
        """A transformer that adds ``doc_vec`` or ``doc_embs``; before a ``kd.DocumentStore``, what indexes."""
        return OneSide(self, "doc")

    def text_scorer(self, verbose: bool | None = None, batch_size: int | None = None) -> pt.Transformer:
        """A transformer that scores rows; this ranker itself."""
        return self

    scorer = text_scorer

    # ------------------------------------------------------------------ training

    def tokens(self, queries: Sequence[str], texts: Sequence[str]) -> Tokens:
        """Tokenises queries and texts; see ``Ranker.tokens``."""
        table = self._tokenise_texts(texts)
        self._report_cut(table.cut, len(texts))
        return Tokens(self.table("query", queries), table)

    def signals(self, batch: Batch, tokens: Tokens, names: frozenset[str] = frozenset({"scores"}), layers: LayerNumbers = NO_LAYERS) -> Signals:
        """Scores of a batch, and of every query with every text of it, and what layers do; see ``Ranker.signals``."""
        self._require_signals(names)
        texts_of, real = batch.texts.cpu().numpy(), batch.mask.cpu().numpy()
        distinct = np.unique(texts_of[real])                                                 # (U,), those of padding not among them
        local = torch.from_numpy(np.where(real, np.searchsorted(distinct, texts_of), 0))     # (B, n)
        queries, of_queries = self.represent("query", tokens.queries, batch.queries.cpu().numpy(), layers)
        texts, of_texts = self.represent("text", tokens.texts, distinct, layers)
        columns = local.to(texts.mask.device)
        in_batch: Tensor | None = None
        if "in_batch" in names:
            every = self.model.interaction.every(queries, texts)                             # (B, U)
            scores, in_batch = every.gather(1, columns), every[:, columns.flatten()]
        else:
            own = torch.arange(len(queries), device=columns.device).repeat_interleave(columns.shape[1])
            scores = self.model.interaction.pairs(queries.take(own), texts.take(columns.flatten())).view(columns.shape)
        return Signals(scores, in_batch=in_batch, layers=of_queries + of_texts, who=type(self).__name__)
