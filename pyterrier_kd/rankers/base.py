"""A ranker: a trainable scorer of (query, text) pairs, and a PyTerrier transformer.

Used twice. In a pipeline, ``transform`` scores the rows of a frame: it visits them in windows, prepares each distinct
query and text once, and asks the architecture for the scores of the rows. In training, ``signals`` scores a ``Batch``
with gradients. An architecture implements only what differs: how a side is prepared, and how two sides make a score.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import pyterrier as pt
import torch

from .. import scoring
from ..errors import DataError
from ..formats.checkpoints import model_limit, structure_of
from ..formats.sentence_transformers import Dense
from ..frames import TextFields, distinct, explained, fields_of, require_strings, row_texts
from ..signals import NO_LAYERS, Architecture, Batch, LayerNumbers, Layers, Signals, Texts, missing_signal
from ..tokens import Template, TokenTable, assemble, tokenise
from .cost import Cost, cost_of
from .saved import Saved
from .shrink import kinds_of
from .taps import listening

BROUGHT = 1024      # documents that PyTerrier brings at once when it indexes


@dataclass(frozen=True)
class Tokens:
    """The token tables of the queries and texts that the rows of a ``Batch`` point into."""

    queries: TokenTable
    texts: TokenTable


class Ranker(Saved, pt.Transformer, ABC):
    """What all rankers share. See ``CrossEncoder`` and ``BertDot``.

    Attributes:
        model: The torch module.
        tokenizer: Its transformers tokenizer.
        head_: "loaded" or "new": whether the weights that make a score came from the checkpoint.
        metadata_: What is known of how the weights came to be (teacher, strategy, losses, seed, measure, ...).
    """

    SETTINGS: ClassVar[tuple[str, ...]] = ("text_field", "query_prompt", "text_prompt")
    signal_names: ClassVar[frozenset[str]] = frozenset({"scores"})

    def __init__(self, model: Any, tokenizer: Any, *, name: str, batch_size: int | None, text_field: TextFields,
                 query_prompt: str, text_prompt: str, texts: pt.Transformer | None, device: str | torch.device | None,
                 dtype: torch.dtype | str | None, verbose: bool) -> None:
        self.device = torch.device(device) if device is not None else best_device()
        self.model, self.tokenizer, self.name = model.to(self.device).eval(), tokenizer, name
        self.rows_a_batch, self.text_field, self.texts = batch_size, text_field, texts
        self.query_prompt, self.text_prompt, self.verbose = query_prompt, text_prompt, verbose
        asked = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        self.dtype = None if asked == torch.float32 else asked
        self.head_ = "loaded"
        self.metadata_: dict[str, Any] = {}
        self._fingerprint: tuple[Any, str] | None = None
        self._reads_by: tuple[Any, str] | None = None
        self._cut_reported = False

    @property
    def batch_size(self) -> int:
        """The most rows a batch, as a number for those who read it; where none was given, 1,024.

        PyTerrier reads it when it indexes, and brings so many documents at once: of many, those of one length make a batch.
        """
        return self.rows_a_batch or BROUGHT

    @batch_size.setter
    def batch_size(self, rows: int | None) -> None:
        self.rows_a_batch = rows

    # ------------------------------------------------------------------ what an architecture implements

    @abstractmethod
    def tokens(self, queries: Sequence[str], texts: Sequence[str]) -> Tokens:
        """Tokenises the queries and texts that batches will point into."""

    @abstractmethod
    def signals(self, batch: Batch, tokens: Tokens, names: frozenset[str] = frozenset({"scores"}), layers: LayerNumbers = NO_LAYERS) -> Signals:
        """Scores a batch, with gradients if the model is in training.

        Args:
            batch: The batch; its rows point into ``tokens``.
            tokens: What ``tokens`` returned for the texts of the training.
            names: The signals asked for.
            layers: Of signals of layers, the layers asked for.

        Raises:
            MissingSignal: If a signal is asked for that this architecture does not have.
        """

    @property
    @abstractmethod
    def encoder(self) -> Any:
        """The transformers encoder inside the model."""

    @abstractmethod
    def _reads(self) -> tuple[tuple[str, ...], dict[str, Any]]:
        """The sides that are read together, and the settings on which the tokens of a row depend; see ``Architecture``."""

    @abstractmethod
    def _prepare_queries(self, queries: list[str]) -> Any:
        """Whatever the distinct queries of a frame are turned into before any row is scored."""

    @abstractmethod
    def _tokenise_texts(self, texts: Sequence[str]) -> TokenTable:
        """The tokens of texts, with the prompt, cut to the model's limit."""

    @abstractmethod
    def _prepare_texts(self, table: TokenTable) -> Any:
        """Whatever the tokens of the distinct texts of a window are turned into."""

    @abstractmethod
    def room(self, queries: Sequence[str]) -> np.ndarray:
        """(N,) the tokens that are left for a text, its prompt included, beside each query."""

    @abstractmethod
    def _cut_texts(self, queries: Any, query_rows: np.ndarray, texts: Any, text_rows: np.ndarray) -> int:
        """How many of the prepared texts are not read to their end in some of N pairs."""

    @abstractmethod
    def _score_rows(self, queries: Any, query_rows: np.ndarray, texts: Any, text_rows: np.ndarray,
                    progress: Callable[[int], object]) -> np.ndarray:
        """(N,) float32 scores of N pairs, given as rows of what was prepared."""

    def _structure(self) -> dict[str, Any]:
        dense = [part for part in self.model.modules() if isinstance(part, Dense)]
        return {"config": structure_of(self.encoder.config), "activations": [part.activation_name + (" and the input" if part.adds_input else "") for part in dense]}

    # ------------------------------------------------------------------ scoring

    def score(self, queries: Sequence[str], texts: Sequence[str]) -> np.ndarray:
        """Scores pairs given as two lists.

        Args:
            queries: N queries.
            texts: N texts.

        Returns:
            (N,) float32 scores, independent of the order and number of the pairs.

        Raises:
            DataError: If one is no string, a query leaves no room for a text, or a score is not finite.
            ValueError: If there are not as many queries as texts.
        """
        if len(queries) != len(texts):
            raise ValueError(f"{type(self).__name__}.score: {len(queries)} queries for {len(texts)} texts; pairs have one of each.")
        query_codes, distinct_queries = distinct(queries, "queries", self)
        found = distinct(texts, "texts", self)
        with self._inference():
            return self._score_texts(self._prepare_queries(distinct_queries) if len(query_codes) else None, query_codes, *found)

    def _score_texts(self, prepared: Any, query_codes: np.ndarray, text_codes: np.ndarray, distinct_texts: Sequence[str]) -> np.ndarray:
        """(N,) scores of N pairs, given as rows of the prepared queries and of distinct texts."""
        scores = np.empty(len(query_codes), dtype=np.float32)
        cut = 0
        with pt.tqdm(total=len(scores), desc=type(self).__name__, unit="pair", disable=not (self.verbose and len(scores))) as bar:
            for rows in scoring.windows(text_codes, self._window()):
                codes, local = np.unique(text_codes[rows], return_inverse=True)
                side = self._prepare_texts(self._tokenise_texts([distinct_texts[code] for code in codes]))
                cut += self._cut_texts(prepared, query_codes[rows], side, local)
                scores[rows] = self._score_rows(prepared, query_codes[rows], side, local, bar.update)
        self._report_cut(cut, len(distinct_texts))
        return self._finite(scores)

    @contextlib.contextmanager
    def scoring_tokens(self, queries: list[str]) -> Iterator[Callable[[np.ndarray, TokenTable, np.ndarray], np.ndarray]]:
        """Within the block, a function that scores texts given as tokens, which fit beside their queries.

        Args:
            queries: The distinct queries.

        Yields:
            A function of (N,) numbers of queries, a table of tokens and (N,) rows of it, which returns (N,) float32 scores.
        """
        with self._inference():
            prepared = self._prepare_queries(queries)

            def score(query_rows: np.ndarray, table: TokenTable, text_rows: np.ndarray) -> np.ndarray:
                table = table.limited(int(self.room([""])[0]))
                scores = np.empty(len(query_rows), dtype=np.float32)
                with pt.tqdm(total=len(query_rows), desc=type(self).__name__, unit="pair", disable=not self.verbose) as bar:
                    for rows in scoring.windows(text_rows, self._window()):
                        texts, local = np.unique(text_rows[rows], return_inverse=True)
                        side = self._prepare_texts(table if len(texts) == len(table) else table.take(texts))
                        self._report_cut(self._cut_texts(prepared, query_rows[rows], side, local) or table.cut, len(table))
                        scores[rows] = self._score_rows(prepared, query_rows[rows], side, local, bar.update)
                return self._finite(scores)

            yield score

    def _finite(self, scores: np.ndarray) -> np.ndarray:
        """Refuses scores that are no numbers."""
        if not np.isfinite(scores).all():
            raise DataError(f"{self!r} gave {int((~np.isfinite(scores)).sum())} scores of {len(scores)} that are not finite: "
                            "its weights are damaged, or its dtype is too narrow (dtype=None computes in float32).")
        return scores

    @contextlib.contextmanager
    def _inference(self) -> Iterator[None]:
        """The model without gradients or dropout, in this ranker's dtype; afterwards it trains again if it did before."""
        training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode(), autocast(self.device, self.dtype):
                yield
        finally:
            self.model.train(training)

    def _window(self) -> int:
        """How many rows of a frame are prepared at once."""
        return scoring.WINDOW

    def _tokens_a_batch(self) -> int:
        """The budget of tokens of a batch on this ranker's device."""
        return scoring.TOKENS.get(self.device.type, scoring.TOKENS["cuda"])

    def _require_signals(self, names: frozenset[str]) -> None:
        """Refuses signals that this architecture does not have."""
        for wanted in sorted(names - self.signal_names):
            raise missing_signal(wanted, "This loss", repr(self), sorted(self.signal_names))

    # ------------------------------------------------------------------ layers

    def architecture(self, alone: bool = False) -> Architecture:
        """What losses over layers must know of this ranker.

        Args:
            alone: Whether it reads texts without queries, see ``read``. Default False.
        """
        config = self.encoder.config
        sides, reads = (("text",), {"tokenizer": self.reads_by(), "special tokens": self._single().pieces}) if alone else (self._reads()[0], self.reads())
        limit = model_limit(config, self.tokenizer)
        return Architecture(repr(self), sides, config.num_hidden_layers, config.num_attention_heads, config.hidden_size, kinds_of(config), limit, reads)

    def reads(self) -> dict[str, Any]:
        """All on which the tokens of a row depend."""
        return {"tokenizer": self.reads_by(), **self._reads()[1]}

    def _single(self) -> Template:
        """What stands around a text that is read alone."""
        return Template.of(self.tokenizer, 1, types=takes_types(self.encoder, self.tokenizer))

    def read(self, texts: Texts, layers: LayerNumbers) -> Signals:
        """What the layers do with texts alone, without queries, prompts or scores, and with gradients if the model is in training.

        Args:
            texts: The texts; what exceeds the model's limit is cut.
            layers: The layers asked for, by signal.
        """
        template = self._single()
        table = tokenise(self.tokenizer, texts.texts, model_limit(self.encoder.config, self.tokenizer) - template.special)
        pieces: list[Layers] = []
        for rows in scoring.length_batches(table.lengths, self._tokens_a_batch()):
            inputs = assemble(template, [(table[i],) for i in rows], self.tokenizer.pad_token_id or 0, self.device)
            with listening(self.encoder, layers) as taps:
                self.encoder(**inputs)
            pieces.append(taps.layers(inputs["attention_mask"]))
        return Signals(torch.zeros(len(texts), 1, device=self.device), layers=tuple(pieces), who=type(self).__name__)

    # ------------------------------------------------------------------ frames

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Re-ranks; see ``rerank``."""
        return self.rerank(inp)

    def rerank(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Scores by the texts: the same rows in the same order, with ``score`` and ``rank`` set.

        Args:
            inp: A frame with ``qid``, ``query``, ``docno`` and the text field(s); others are kept as they are.
        """
        frame, texts = self._checked(inp)
        if not len(frame):
            return pt.model.add_ranks(frame.assign(score=pd.Series(dtype="float64")))
        return pt.model.add_ranks(frame.assign(score=self.score(frame["query"].tolist(), texts).astype("float64")))

    def _checked(self, inp: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
        """A copy of the frame without scores, and the text of each row."""
        columns = ["query", *([] if self._loader(inp) else fields_of(self.text_field))]
        with explained(self, inp, columns):
            pt.validate.result_frame(inp, extra_columns=columns, context=self)
        out = inp.drop(columns=["score", "rank"], errors="ignore").reset_index(drop=True)
        if not len(out):
            return out, []
        require_strings(out, "query", self)
        return out, self._texts_of(out)

    def _loader(self, frame: pd.DataFrame) -> pt.Transformer | None:
        """The text loader, where a frame needs it."""
        return None if all(f in frame.columns for f in fields_of(self.text_field)) else self.texts

    def _texts_of(self, frame: pd.DataFrame) -> list[str]:
        """The text of each row."""
        if not (loader := self._loader(frame)):
            with explained(self, frame, fields_of(self.text_field)):
                pt.validate.columns(frame, includes=fields_of(self.text_field), context=self)
        return row_texts(frame, fields_of(self.text_field), loader, self)

    def _report_cut(self, cut: int, total: int) -> None:
        """Says once that texts were longer than the model takes."""
        if cut and not self._cut_reported:
            self._cut_reported = True
            warnings.warn(f"{self!r}: {cut} of {total} texts are longer than the model takes and were cut (reported once). "
                          "For long documents, split them into passages: kd.passages.split(ranker) >> ranker >> kd.passages.max_passage().",
                          stacklevel=4)

    # ------------------------------------------------------------------ copies

    def clone(self) -> Self:
        """A ranker of its own with the same weights; training one leaves the other as it is."""
        return self._with_model(copy.deepcopy(self.model), copy.deepcopy(self.metadata_))

    def _with_model(self, model: torch.nn.Module, metadata: dict[str, Any]) -> Self:
        """A copy with another model, which knows nothing that was remembered of this one's."""
        twin = copy.copy(self)
        twin.model, twin.metadata_, twin._fingerprint = model, metadata, None
        return twin

    def frozen(self, device: torch.device) -> Ranker:
        """A copy that will not change, on ``device``: a teacher at work. An architecture may let it remember."""
        twin = self.clone()
        twin.model = twin.model.to(device).eval().requires_grad_(False)
        twin.device = device
        return twin

    def shrink(self, layers: int | Sequence[int] | None = None, hidden: int | None = None) -> Self:
        """A smaller ranker made of this one's weights: the usual start of a student.

        Args:
            layers: How many layers (evenly spaced, the first and the last among them), or a list of layer numbers;
                ``range(k)`` keeps the first k. None (default) keeps all.
            hidden: The hidden size, a multiple of the number of attention heads. None (default) keeps it.

        Raises:
            ValueError: If a layer does not exist, or the hidden size does not fit.
        """
        return self._with_model(self._shrunk_model(layers, hidden).to(self.device).eval(), {"shrunk_from": self.fingerprint()})

    @abstractmethod
    def _shrunk_model(self, layers: int | Sequence[int] | None, hidden: int | None) -> torch.nn.Module:
        """The torch module of ``shrink``."""

    def cost(self, tokens: int = 256) -> Cost:
        """Parameters, and multiply-adds for one row of ``tokens`` tokens: a pair where query and text are read together, else one side. See ``Cost``."""
        return cost_of(self.model, self.encoder, tokens)

    def warm_up(self) -> Self:
        """Scores one pair, so that what a device does only once is not counted in the first query's time."""
        self.score(["warm"], ["up"])
        return self

    schematic: ClassVar[dict[str, Any]] = {"label": "Ranker", "help_url": None}

    def subtransformers(self) -> dict[str, pt.Transformer]:
        """None: a text loader is a setting, no stage of its own."""
        return {}


def require_tokenizer(tokenizer: Any, who: str) -> None:
    """Refuses a model object that comes without its tokenizer."""
    if tokenizer is None:
        raise ValueError(f"{who}(model, tokenizer): a model object needs its tokenizer as the second argument.")


def takes_types(encoder: torch.nn.Module, tokenizer: Any) -> bool:
    """Whether a model reads the type ids that its tokenizer gives."""
    accepted = "token_type_ids" in inspect.signature(encoder.forward).parameters
    return accepted and "token_type_ids" in tokenizer.model_input_names and getattr(encoder.config, "type_vocab_size", 0) > 1


def best_device() -> torch.device:
    """CUDA where there is one, else MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Computes in ``dtype`` where one is given, in float32 otherwise."""
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)
