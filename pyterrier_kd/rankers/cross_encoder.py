"""Cross-encoder (BERT_CAT, monoBERT, TinyBERT): query and text are read together, the head makes the score.

Any encoder with a sequence-classification class in transformers. One logit is the score; of two classes the score is
logit[1] - logit[0], the log-odds of relevance, from which softmax over the two classes can be had again. Scores are
always raw: no sigmoid, which would squeeze the margins that distillation lives on.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyterrier as pt
import torch
from torch import Tensor

from .. import scoring
from ..errors import CheckpointError
from ..formats.checkpoints import load_tokenizer, model_limit
from ..frames import TextFields
from ..signals import LAYERWISE, NO_LAYERS, Batch, LayerNumbers, Layers, Signals
from ..tokens import Template, TokenTable, assemble, check_room, tokenise
from .base import Ranker, Tokens, require_tokenizer, takes_types
from .first_token import FROM_FIRST_TOKEN, first_token_only
from .heads import NewHead, load_classifier, save_classifier, scores_of, shrunk_classifier
from .saved import stored_metadata
from .shrink import parsed_shape, random_model
from .taps import listening, reach


class CrossEncoder(Ranker):
    """Scores a query and a text read together.

    Args:
        model: A folder or hub name, or a transformers model for sequence classification with 1 or 2 labels. A
            checkpoint of an encoder without a head gets a new one: ``head_`` is then "new" and a warning says so.
        tokenizer: The model's tokenizer. Default: the folder's; of published weights without one, that of the model that they were made from.
        max_length: The most tokens of query, text and special tokens together. Default: what the model takes.
        query_length: The most tokens of a query; longer ones are cut. Default None: queries are never cut, and one
            that leaves no room for a text is an error.
        classes: 1 or 2 logits of a new head. Default 1.
        new_head: What a new head is. Default "pooled": transformers' own, of BERT a layer with tanh and a linear one (monoBERT), which bounds scores.
            "first_token": a linear layer on the first token's last hidden state (arXiv:2010.02666), which does not.
        batch_size: The most rows a batch. Default None: as many as fit a budget of tokens.
        text_field: The column, or several to be joined by a space, that holds the text. Default "text".
        query_prompt: Text put before each query. Default "".
        text_prompt: Text put before each text. Default "".
        texts: A text loader, for frames without the text field.
        device: Default: CUDA, else MPS, else CPU.
        dtype: Compute in this dtype by autocast, such as "bfloat16". Default: float32.
        verbose: Whether to show a progress bar. Default False.

    Raises:
        CheckpointError: If the folder is not a whole checkpoint of such a model.
    """

    SETTINGS: ClassVar[tuple[str, ...]] = (*Ranker.SETTINGS, "max_length", "query_length")
    signal_names: ClassVar[frozenset[str]] = frozenset({"scores", "logits"}) | LAYERWISE
    schematic: ClassVar[dict[str, Any]] = {"label": "CrossEncoder", "help_url": None}

    def __init__(self, model: Any, tokenizer: Any = None, *, max_length: int | None = None, query_length: int | None = None,
                 classes: int | None = None, new_head: NewHead | None = None, batch_size: int | None = None, text_field: TextFields | None = None,
                 query_prompt: str | None = None, text_prompt: str | None = None, texts: pt.Transformer | None = None,
                 device: str | torch.device | None = None, dtype: torch.dtype | str | None = None, verbose: bool = False) -> None:
        name = ""
        head = "loaded"
        stored: dict[str, Any] = {}
        metadata: dict[str, Any] = {}
        if isinstance(model, str | Path):
            name = str(model)
            stored, metadata = stored_metadata(name, "CrossEncoder")
            model, head, bare = load_classifier(name, classes, new_head)
            tokenizer = tokenizer or load_tokenizer(bare.tokenizer if bare else name, of=name)
        require_tokenizer(tokenizer, "CrossEncoder")
        if model.config.num_labels not in (1, 2):
            raise CheckpointError(f"CrossEncoder takes a head of 1 or 2 classes; {name or type(model).__name__} has {model.config.num_labels}.")
        super().__init__(model, tokenizer, name=name, batch_size=batch_size, text_field=text_field or stored.get("text_field", "text"),
                         query_prompt=stored.get("query_prompt", "") if query_prompt is None else query_prompt,
                         text_prompt=stored.get("text_prompt", "") if text_prompt is None else text_prompt,
                         texts=texts, device=device, dtype=dtype, verbose=verbose)
        if head == "new":
            warnings.warn(f"{name!r} has no ranking head: CrossEncoder made a new one with random weights; train it before use.", stacklevel=2)
        self.head_, self.metadata_, self.classes = head, metadata, model.config.num_labels
        limit = model_limit(model.config, tokenizer)
        self.max_length = min(max_length or stored.get("max_length") or limit, limit)
        self.query_length = query_length or stored.get("query_length")
        self.template = Template.of(tokenizer, 2, types=takes_types(model, tokenizer))

    # ------------------------------------------------------------------ scoring

    def _prepare_queries(self, queries: list[str]) -> TokenTable:
        table = tokenise(self.tokenizer, queries, self.query_length or self.max_length, self.query_prompt)
        check_room(queries, table.lengths, self.template.special, self.max_length, repr(self))
        return table

    def room(self, queries: Sequence[str]) -> np.ndarray:
        """(N,) the tokens that are left for a text beside each query; see ``Ranker.room``."""
        left: np.ndarray = self.max_length - self.template.special - self._prepare_queries(list(queries)).lengths
        return left

    def _prepare_texts(self, table: TokenTable) -> TokenTable:
        return table

    def _tokenise_texts(self, texts: Sequence[str]) -> TokenTable:
        return tokenise(self.tokenizer, texts, self.max_length - self.template.special, self.text_prompt)

    def _cut_texts(self, queries: TokenTable, query_rows: np.ndarray, texts: TokenTable, text_rows: np.ndarray) -> int:
        whole = queries.lengths[query_rows] + texts.lengths[text_rows] + self.template.special
        return len(np.unique(text_rows[whole > self.max_length]))

    def _score_rows(self, queries: TokenTable, query_rows: np.ndarray, texts: TokenTable, text_rows: np.ndarray,
                    progress: Callable[[int], object]) -> np.ndarray:
        def forward(rows: np.ndarray) -> np.ndarray:
            logits, _ = self._logits(queries, query_rows[rows], texts, text_rows[rows])
            scores: np.ndarray = scores_of(logits).cpu().numpy()
            return scores

        return scoring.by_length(self._lengths(queries, query_rows, texts, text_rows), forward, self._tokens_a_batch(), progress, self.rows_a_batch)

    def _lengths(self, queries: TokenTable, query_rows: np.ndarray, texts: TokenTable, text_rows: np.ndarray) -> np.ndarray:
        """(N,) tokens of each pair after cutting."""
        lengths: np.ndarray = np.minimum(queries.lengths[query_rows] + texts.lengths[text_rows] + self.template.special, self.max_length)
        return lengths

    def _logits(self, queries: TokenTable, query_rows: np.ndarray, texts: TokenTable, text_rows: np.ndarray,
                layers: LayerNumbers = NO_LAYERS) -> tuple[Tensor, Layers | None]:
        """(N, C) float32 logits of N pairs, and what the layers asked for did."""
        room = self.max_length - self.template.special
        pairs = [(q := queries[i], texts[j][:room - len(q)]) for i, j in zip(query_rows, text_rows, strict=True)]
        inputs = assemble(self.template, pairs, self.tokenizer.pad_token_id or 0, self.device)
        reads_first = type(self.model).__name__ in FROM_FIRST_TOKEN and reach(layers) < self.encoder.config.num_hidden_layers - 1
        with (first_token_only(self.encoder) if reads_first else contextlib.nullcontext(),
              listening(self.encoder, layers) if layers else contextlib.nullcontext() as taps):
            logits: Tensor = self.model(**inputs).logits
        return logits.float(), taps.layers(inputs["attention_mask"]) if taps is not None else None

    @property
    def encoder(self) -> Any:
        """The transformers encoder below the head."""
        return self.model.base_model

    def _reads(self) -> tuple[tuple[str, ...], dict[str, Any]]:
        return ("pair",), {"special tokens": self.template.pieces, "max_length": self.max_length, "query_length": self.query_length,
                           "query_prompt": self.query_prompt, "text_prompt": self.text_prompt}

    # ------------------------------------------------------------------ training

    def tokens(self, queries: Sequence[str], texts: Sequence[str]) -> Tokens:
        """Tokenises queries and texts; see ``Ranker.tokens``."""
        table = self._tokenise_texts(texts)
        self._report_cut(table.cut, len(texts))
        return Tokens(self._prepare_queries(list(queries)), table)

    def signals(self, batch: Batch, tokens: Tokens, names: frozenset[str] = frozenset({"scores"}), layers: LayerNumbers = NO_LAYERS) -> Signals:
        """Scores and logits of a batch, and what layers do; see ``Ranker.signals``.

        The pairs run in pieces of similar length: less padding, and on a CPU activations that stay in its cache.
        """
        self._require_signals(names)
        rows = batch.mask.flatten().nonzero().squeeze(1)                                     # (N,) the real pairs
        query_rows = batch.queries.repeat_interleave(batch.mask.shape[1])[rows].cpu().numpy()
        text_rows = batch.texts.flatten()[rows].cpu().numpy()
        lengths = self._lengths(tokens.queries, query_rows, tokens.texts, text_rows)
        # where layers are compared, another ranker must make the same pieces of this batch
        pieces = list(scoring.length_batches(lengths, self._tokens_a_batch(), None if layers else self.rows_a_batch))
        said = [self._logits(tokens.queries, query_rows[p], tokens.texts, text_rows[p], layers) for p in pieces]
        logits = torch.cat([piece for piece, _ in said])
        order = rows[torch.from_numpy(np.concatenate(pieces)).to(rows.device)]
        flat = logits.new_zeros(batch.mask.numel(), logits.shape[-1]).index_copy(0, order, logits)
        shaped = flat.view(*batch.mask.shape, -1)                                            # (B, n, C)
        return Signals(scores_of(shaped), logits=shaped, layers=tuple(heard for _, heard in said if heard is not None), who=type(self).__name__)

    # ------------------------------------------------------------------ copies and folders

    @classmethod
    def tiny_bert(cls, shape: str, teacher: CrossEncoder, init: str | Path | Sequence[int] = "random", seed: int = 0) -> CrossEncoder:
        """A student of one of TinyBERT's shapes, which reads what the teacher reads.

        Args:
            shape: Layers and hidden size, such as "L3_H384", "L4_H312", "L6_H384", "L3_H768" or "L6_H768". It has as many
                heads as the teacher, and four times its hidden size inside (1,200 for 312, as the published ones).
            teacher: Gives tokenizer, settings and kind of model, and for some values of ``init`` the weights.
            init: "random" (default); "first", the teacher's first layers; "strided", evenly spaced ones, the first and the last among them; a
                list of teacher layers; or the folder or hub name of a general TinyBERT of this shape. A narrower student keeps, of
                every head, the first dimensions.
            seed: Of random weights. Default 0.

        Raises:
            ValueError: If the shape does not fit the teacher, or ``init`` the shape.
        """
        layers, hidden = parsed_shape(shape)
        if isinstance(init, str) and init not in ("random", "first", "strided") and "/" not in init and not Path(init).is_dir():
            raise ValueError(f"tiny_bert(init={init!r}) is unknown: it is 'random', 'first', 'strided', a list of teacher layers, or a folder or hub name of a model.")
        if isinstance(init, Path) or (isinstance(init, str) and init not in ("random", "first", "strided")):
            student = cls(init, classes=teacher.classes, max_length=teacher.max_length, query_length=teacher.query_length, text_field=teacher.text_field,
                          query_prompt=teacher.query_prompt, text_prompt=teacher.text_prompt, texts=teacher.texts, device=teacher.device, dtype=teacher.dtype,
                          batch_size=teacher.rows_a_batch, verbose=teacher.verbose)
            found = student.encoder.config
            if (found.num_hidden_layers, found.hidden_size) != (layers, hidden):
                raise ValueError(f"tiny_bert({shape!r}, init={str(init)!r}): this checkpoint is L{found.num_hidden_layers}_H{found.hidden_size}.")
            return student
        if init == "random":
            student = teacher.shrink()
            student.model = random_model(teacher.model, layers, hidden, seed).to(teacher.device).eval()
            student.head_, student.metadata_ = "new", {"random": shape}
            return student
        named = list(range(layers)) if init in ("first", "strided") else [int(i) for i in init]
        if len(named) != layers:
            raise ValueError(f"tiny_bert({shape!r}, init={named}) names {len(named)} teacher layers for {layers}.")
        return teacher.shrink(layers if init == "strided" else named, None if hidden == teacher.encoder.config.hidden_size else hidden)

    def _shrunk_model(self, layers: int | Sequence[int] | None, hidden: int | None) -> torch.nn.Module:
        model: torch.nn.Module = shrunk_classifier(self.model, layers, hidden)
        return model

    def _save_model(self, folder: Path) -> None:
        save_classifier(self.model, folder)
