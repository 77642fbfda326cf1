"""TK: word embeddings, put into context by a small transformer of their own, compared by kernels (arXiv:2002.01854).

No pre-trained language model is run, only its word embeddings at most are taken over: so it is by far the cheapest ranker to read a text with.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pyterrier as pt
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..atomic import write_json
from ..errors import CheckpointError, MissingSignal
from ..formats.checkpoints import find_file, load_strict, load_tokenizer, read_json
from ..formats.word_vectors import read_glove
from ..frames import TextFields
from ..signals import Architecture, LayerNumbers, Layers
from ..tokens import Template, TokenTable, assemble
from .base import Ranker, require_tokenizer
from .cost import Cost
from .interactions import KernelPooling
from .saved import stored_metadata
from .shrink import chosen_layers
from .two_sided import Side, TwoSided
from .vectors import Vectors

TEXTS_FROM = 500        # a text's first position: query and text are told apart by it
ALONE = Template(((), ()), None)


class TKModel(nn.Module):
    """Word embeddings, contextualisation and kernels.

    Args:
        words: V.
        width: D.
        layers: Of the transformer.
        heads: Of its attention; a divisor of D.
        feed_forward: Its inner size.
        variant: Of the kernels; see ``KernelPooling``.
    """

    def __init__(self, words: int, width: int, layers: int, heads: int, feed_forward: int, variant: str) -> None:
        super().__init__()
        self.sizes = {"words": words, "width": width, "layers": layers, "heads": heads, "feed_forward": feed_forward, "variant": variant}
        self.embedding = nn.Embedding(words, width, padding_idx=0)
        layer = nn.TransformerEncoderLayer(width, heads, feed_forward, dropout=0.0, batch_first=True)
        self.contextualiser = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.mix = nn.Parameter(torch.full((1,), 0.5))
        self.interaction = KernelPooling(variant)

    def forward(self, ids: Tensor, mask: Tensor, first: int) -> Tensor:
        """(N, T, D) vectors of norm 1.

        Args:
            ids: (N, T).
            mask: (N, T) bool, True for real tokens.
            first: The position of the first token.
        """
        with torch.autocast(ids.device.type, enabled=False):        # kernels of width 0.1 need float32
            embedded = self.embedding(ids)
            places = positions(ids.shape[1], embedded.shape[2], first).to(ids.device)
            context = self.contextualiser(embedded + places, src_key_padding_mask=~mask)
            return nn.functional.normalize(self.mix * embedded + (1 - self.mix) * context, dim=-1, eps=1e-13)


def unit_scale(embeddings: Tensor) -> Tensor:
    """An encoder's (V, D) word embeddings with a root mean square of 1.

    Their own scale says nothing, since encoders normalise what they read. Here it matters: BERT's, of a root mean square near 0.05, would vanish beside
    the positions (0.7) and the normalised context (1) that they are mixed with, and training would depend on luck.
    """
    weights = embeddings.detach().float()
    scaled: Tensor = weights / weights.square().mean().sqrt().clamp(min=1e-12)
    return scaled


def positions(count: int, width: int, first: int) -> Tensor:
    """(count, width) sinusoids of the positions from ``first`` on: the sines of all wave lengths, then the cosines (arXiv:1706.03762, 3.5)."""
    waves = torch.exp(torch.arange(width // 2) * -(math.log(10_000) / max(1, width // 2 - 1)))
    angles = torch.arange(first, first + count)[:, None] * waves[None, :]
    return nn.functional.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, width % 2))


class TK(TwoSided):
    """Kernels over contextualised word embeddings.

    Args:
        model: A folder that ``save`` wrote, or a ``TKModel``. New ones come from ``TK.new``.
        tokenizer: The model's tokenizer; only with a model object. Its special tokens are not used.
        query_length: The most tokens of a query. Default 30 (arXiv:2010.02666).
        doc_length: The most tokens of a text. Default 200 (arXiv:2010.02666).
        batch_size: The most rows a batch. Default None: as many as fit a budget of tokens.
        text_field: The column, or several to be joined by a space, that holds the text. Default "text".
        query_prompt: Text put before each query.
        text_prompt: Text put before each text.
        texts: A text loader, for frames without the text field.
        device: Default: CUDA, else MPS, else CPU.
        verbose: Whether to show a progress bar. Default False.

    Raises:
        CheckpointError: If the folder is not a whole TK.
    """

    signal_names: ClassVar[frozenset[str]] = frozenset({"scores", "in_batch"})
    schematic: ClassVar[dict[str, Any]] = {"label": "TK", "help_url": None}

    def __init__(self, model: Any, tokenizer: Any = None, *, query_length: int | None = None, doc_length: int | None = None, batch_size: int | None = None,
                 text_field: TextFields | None = None, query_prompt: str | None = None, text_prompt: str | None = None, texts: pt.Transformer | None = None,
                 device: str | torch.device | None = None, verbose: bool = False) -> None:
        name = ""
        stored: dict[str, Any] = {}
        metadata: dict[str, Any] = {}
        if isinstance(model, str | Path):
            name = str(model)
            stored, metadata = stored_metadata(name, "TK")
            model, tokenizer = load_model(name), load_tokenizer(name)
        require_tokenizer(tokenizer, "TK")
        super().__init__(model, tokenizer, name=name, batch_size=batch_size, text_field=text_field or stored.get("text_field", "text"),
                         query_prompt=stored.get("query_prompt", "") if query_prompt is None else query_prompt,
                         text_prompt=stored.get("text_prompt", "") if text_prompt is None else text_prompt,
                         texts=texts, device=device, dtype=None, verbose=verbose)
        self.metadata_ = metadata
        self.query_length = query_length or stored.get("query_length") or 30
        self.doc_length = doc_length or stored.get("doc_length") or 200

    @classmethod
    def new(cls, embeddings: str | Path | Ranker, tokenizer: Any = None, *, layers: int = 2, heads: int | None = None, feed_forward: int = 300, variant: str = "improved",
            words: int | None = None, seed: int = 0, **settings: Any) -> Self:
        """A TK with random weights over given word embeddings.

        Args:
            embeddings: A file in GloVe's format; the folder or hub name of an encoder, or a ranker, whose word embeddings (and tokenizer) are taken over,
                brought to a root mean square of 1; or an array (V, D), with ``tokenizer``.
            tokenizer: Only with an array.
            layers: Of the transformer. Default 2.
            heads: Of its attention. Default: 10, or the most below that divide D.
            feed_forward: Its inner size. Default 300.
            variant: Of the kernels, "improved" or "paper"; see ``KernelPooling``.
            words: The most words of a file that are read. Default None: all.
            seed: Of random weights. Default 0.
            **settings: Those of the constructor.

        Raises:
            CheckpointError: If the embeddings cannot be read.
            ValueError: If ``heads`` does not divide D, tokens have no embedding, or ``variant`` is unknown.
        """
        if variant not in ("improved", "paper"):
            raise ValueError(f"TK.new(variant={variant!r}) is unknown: it is 'improved' or 'paper'.")
        matrix: Any = embeddings
        if isinstance(embeddings, Ranker):
            matrix, tokenizer = unit_scale(embeddings.encoder.get_input_embeddings().weight), embeddings.tokenizer
        elif isinstance(embeddings, str | Path) and Path(embeddings).is_file():
            matrix, tokenizer = read_glove(embeddings, words)
        elif isinstance(embeddings, str | Path):
            encoder: Any = load_strict(transformers.AutoModel, str(embeddings))[0]
            matrix, tokenizer = unit_scale(encoder.get_input_embeddings().weight), load_tokenizer(str(embeddings))
        weights = torch.as_tensor(matrix).detach().float().cpu().clone()
        if weights.ndim != 2 or len(weights) < len(tokenizer):
            raise ValueError(f"TK.new got embeddings of shape {tuple(weights.shape)} for a tokenizer of {len(tokenizer)} tokens: each token needs a row.")
        width = weights.shape[1]
        heads = heads or next(h for h in range(10, 0, -1) if width % h == 0)
        if width % heads:
            raise ValueError(f"TK.new(heads={heads}) of embeddings with {width} dimensions: the heads must divide them.")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = TKModel(len(weights), width, layers, heads, feed_forward, variant)
        model.embedding.weight.data.copy_(weights)
        ranker = cls(model, tokenizer, **settings)
        ranker.head_ = "new"
        return ranker

    @property
    def encoder(self) -> Any:
        """TK has no transformers encoder."""
        raise AttributeError("TK has no encoder of transformers")

    def architecture(self, alone: bool = False) -> Architecture:
        """None that losses over layers could compare; see ``Ranker.architecture``."""
        raise MissingSignal(f"{self!r} has no layers that could be compared with another ranker's: use a loss over scores such as MarginMSE().")

    @property
    def width(self) -> int:
        """D."""
        return int(self.model.sizes["width"])

    def _reads(self) -> tuple[tuple[str, ...], dict[str, Any]]:
        return ("query", "text"), {"special tokens": (), "query_length": self.query_length, "doc_length": self.doc_length,
                                   "query_prompt": self.query_prompt, "text_prompt": self.text_prompt}

    def _special(self, side: Side) -> int:
        return 0

    def _read_side(self, side: Side, table: TokenTable, rows: np.ndarray, layers: LayerNumbers) -> tuple[Vectors, Layers | None]:
        unknown = np.array([self.tokenizer.unk_token_id or 0], dtype=np.int32)               # what a text without words reads as
        inputs = assemble(ALONE, [(table[i] if len(table[i]) else unknown,) for i in rows], self.tokenizer.pad_token_id or 0, self.device)
        mask = inputs["attention_mask"].bool()
        return Vectors(self.model(inputs["input_ids"], mask, 0 if side == "query" else TEXTS_FROM), mask), None

    def _structure(self) -> dict[str, Any]:
        return dict(self.model.sizes)

    def cost(self, tokens: int = 256) -> Cost:
        """Parameters, and multiply-adds for one side of ``tokens`` tokens; see ``Cost``."""
        matrices = sum(p.numel() for p in self.model.contextualiser.parameters() if p.dim() == 2)
        attention = 2 * tokens * tokens * self.width * self.model.sizes["layers"]
        return Cost(sum(p.numel() for p in self.model.parameters()), matrices, (matrices * tokens + attention) / 1e9, tokens)

    def _shrunk_model(self, layers: int | Sequence[int] | None, hidden: int | None) -> nn.Module:
        if hidden not in (None, self.width):
            raise ValueError(f"shrink(hidden={hidden}): TK has the width of its word embeddings, {self.width}.")
        sizes = self.model.sizes
        kept = chosen_layers(layers, sizes["layers"]) if layers is not None else list(range(sizes["layers"]))
        small = TKModel(**{**sizes, "layers": len(kept)})
        own = self.model.contextualiser.layers
        others = {k: v for k, v in self.model.state_dict().items() if ".layers." not in k}
        small.load_state_dict({**others, **{f"contextualiser.layers.{i}.{k}": v for i, old in enumerate(kept) for k, v in own[old].state_dict().items()}})
        return small

    def _save_model(self, folder: Path) -> None:
        write_json(folder / "config.json", {"architectures": ["TK"], "model_type": "tk", **self.model.sizes})
        save_file({k: v.contiguous() for k, v in self.model.state_dict().items()}, folder / "model.safetensors")


def load_model(name: str) -> TKModel:
    """The model of a folder.

    Raises:
        CheckpointError: If it is not a whole TK.
    """
    config, path = read_json(name, "config.json"), find_file(name, "model.safetensors")
    if config.get("model_type") != "tk" or path is None:
        raise CheckpointError(f"{name!r} holds no TK. A new one is made of word embeddings: TK.new({name!r}).")
    try:
        model = TKModel(**{key: config[key] for key in ("words", "width", "layers", "heads", "feed_forward", "variant")})
        model.load_state_dict(load_file(path))
    except Exception as error:          # damaged files have many errors
        raise CheckpointError(f"{name!r} is no whole TK: {str(error).strip()[:500]}") from error
    return model
