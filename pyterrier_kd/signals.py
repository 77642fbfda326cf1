"""What flows between rankers and losses.

A ranker reads a ``Batch`` and reports ``Signals``; a loss compares the signals of a student with those of a teacher.
Neither knows the other: a loss never sees a model, and a ranker never knows whether it teaches or learns. What a loss must
know of a model before training (how deep it is, what it reads) is its ``Architecture``.

Letters for shapes, used throughout the package:
    B queries, n texts a query, T tokens (Tq of a query, Td of a text), C classes, H hidden size, L layers, A heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from .errors import MissingSignal


@dataclass(frozen=True)
class Needs:
    """What a loss must be given.

    Attributes:
        student: Names of the signals that it reads from the student.
        teacher: Names of the signals that it reads from the teacher; empty for a loss over labels alone.
        labels: Whether it reads relevance labels, and so needs a positive for a query to count.
        texts: The least number of texts a query for which it says anything (2 for a loss over margins).
    """

    student: frozenset[str] = frozenset({"scores"})
    teacher: frozenset[str] = frozenset()
    labels: bool = False
    texts: int = 1

    def __or__(self, other: Needs) -> Needs:
        return Needs(self.student | other.student, self.teacher | other.teacher,
                     self.labels or other.labels, max(self.texts, other.texts))


@dataclass(frozen=True)
class Batch:
    """B queries with n texts each, as row numbers of the text tables that a student or teacher tokenised.

    Attributes:
        queries: (B,) rows of the query table.
        texts: (B, n) rows of the text table; 0 where ``mask`` is False.
        docs: (B, n) numbers that identify documents, so that one document met twice in a batch is known as such.
        labels: (B, n) float32 relevance labels; unjudged counts as 0.
        mask: (B, n) bool, False where a query has fewer than n texts.
        positives: (B, B*n) bool, True where a text of the batch is known to be relevant to a query of the batch.
        teacher: (B, n) float32 given teacher scores, or None.
    """

    queries: Tensor
    texts: Tensor
    docs: Tensor
    labels: Tensor
    mask: Tensor
    positives: Tensor
    teacher: Tensor | None = None

    def __len__(self) -> int:
        """B."""
        return len(self.queries)

    def pairs(self) -> int:
        """How many (query, text) pairs are real."""
        return int(self.mask.sum())

    def to(self, device: torch.device | str) -> Batch:
        """The same batch with its tensors on ``device``."""
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device) for k, v in moved.items() if v is not None})

    def split(self, parts: int) -> list[Batch]:
        """The batch in parts of consecutive queries, each seen as a batch of its own."""
        if parts == 1:
            return [self]
        texts = self.texts.shape[1]
        pieces = []
        for rows in torch.arange(len(self)).chunk(parts):
            columns = (rows[:, None] * texts + torch.arange(texts)[None, :]).flatten()
            pieces.append(replace(
                self, queries=self.queries[rows], texts=self.texts[rows], docs=self.docs[rows], labels=self.labels[rows], mask=self.mask[rows],
                positives=self.positives[rows][:, columns], teacher=None if self.teacher is None else self.teacher[rows]))
        return pieces

    def negatives(self) -> Tensor:
        """(B, B*n) bool: the texts of the batch that may serve as negatives of each query.

        Padding is out, known positives are out, and of a document that occurs several times only the first
        occurrence counts, so that a popular document does not weigh more.
        """
        docs, mask = self.docs.flatten(), self.mask.flatten()                                # (B*n,)
        order = torch.arange(len(docs), device=docs.device)
        same = (docs[:, None] == docs[None, :]) & mask[None, :]                              # (B*n, B*n)
        earlier = (same & (order[None, :] < order[:, None])).any(dim=1)                      # (B*n,)
        return (mask & ~earlier)[None, :] & ~self.positives


@dataclass(frozen=True)
class Texts:
    """A batch of B texts without queries, from a corpus: what layers are distilled on before any ranking is learned.

    Attributes:
        texts: The B texts, each short enough to be read whole.
    """

    texts: tuple[str, ...]

    def __len__(self) -> int:
        """B."""
        return len(self.texts)

    def pairs(self) -> int:
        """How many texts there are."""
        return len(self.texts)

    def to(self, device: torch.device | str) -> Texts:
        """Itself: every model tokenises the texts for itself, onto its own device."""
        return self

    def split(self, parts: int) -> list[Texts]:
        """The batch in parts."""
        size = -(-len(self) // parts)
        return [Texts(self.texts[i:i + size]) for i in range(0, len(self), size)]


@dataclass(frozen=True)
class Architecture:
    """What is to be known of an encoder's layers before it runs.

    Attributes:
        who: The ranker, for messages.
        sides: What is read together in one row: ("pair",), ("query", "text") or ("text",).
        depth: L, the number of layers, which are numbered from 0.
        heads: A.
        hidden: H.
        kinds: For each layer, what it attends to, such as "full_attention"; layers of different kinds cannot be compared.
        limit: The most tokens of a row, special ones included.
        reads: What decides which tokens stand where: tokenizer, special tokens, lengths. Two encoders that agree in all of it
            have the same tokens at the same places.
    """

    who: str
    sides: tuple[str, ...]
    depth: int
    heads: int
    hidden: int
    kinds: tuple[str, ...]
    limit: int
    reads: Mapping[str, object]


LayerNumbers = Mapping[str, frozenset[int]]     # which layers of each layer-wise signal are wanted
NO_LAYERS: LayerNumbers = {}


@dataclass(frozen=True)
class Layers:
    """What the layers of an encoder did with N rows of T tokens, for those layers alone that were asked for, by number.

    Attributes:
        mask: (N, T) bool, True for real tokens.
        embedding: (N, T, H) what the first layer reads, or None if not asked for.
        hidden: (N, T, H) what a layer gives to the next.
        queries, keys, values: (N, A, T, H/A) of a layer's attention, positions already applied where they are rotations.
        scale: The factor of a layer's query-key products: its attention scores are scale * queries @ keys^T.
        local: (N, 1, T, T) bool, the pairs that a layer attends to where it attends to near tokens only, else None.
    """

    mask: Tensor
    embedding: Tensor | None = None
    hidden: Mapping[int, Tensor] = field(default_factory=dict)
    queries: Mapping[int, Tensor] = field(default_factory=dict)
    keys: Mapping[int, Tensor] = field(default_factory=dict)
    values: Mapping[int, Tensor] = field(default_factory=dict)
    scale: Mapping[int, float] = field(default_factory=dict)
    local: Mapping[int, Tensor | None] = field(default_factory=dict)

    def attention(self, layer: int) -> Tensor:
        """(N, A, T, T) float32 attention scores of a layer, before the softmax and without a mask."""
        return self.scale[layer] * self.queries[layer].float() @ self.keys[layer].float().transpose(-1, -2)


@dataclass(frozen=True)
class Signals:
    """What a ranker says of a batch.

    Attributes:
        scores: (B, n) float32; zeros for ``Texts``, which have none.
        logits: (B, n, C) float32 of a ranker with classes; a single logit s stands for the two logits (0, s).
        in_batch: (B, B*n) float32, every query against every text of the batch, from rankers that have it cheaply.
        layers: What its layers did, in pieces of rows; student and teacher cut a batch into the same pieces.
        who: The name of the ranker or teacher, for messages.
    """

    scores: Tensor
    logits: Tensor | None = None
    in_batch: Tensor | None = None
    layers: tuple[Layers, ...] = ()
    who: str = "this ranker"

    def require(self, name: str, by: object) -> Tensor:
        """The signal ``name``, or an error that says who needs it and what to do.

        Args:
            name: "scores", "logits" or "in_batch".
            by: The loss that needs it.

        Raises:
            MissingSignal: If this ranker or teacher does not report it.
        """
        value: Tensor | None = getattr(self, name)
        if value is None:
            found = [name for name in ("scores", "logits", "in_batch") if getattr(self, name) is not None]
            raise missing_signal(name, by, self.who, found)
        return value


SCORES = frozenset({"scores", "logits", "in_batch"})
LAYERWISE = frozenset({"embedding", "hidden", "queries", "keys", "values"})     # from rankers whose layers can be listened to

REMEDIES = {
    **dict.fromkeys(LAYERWISE, "Use one ranker of this package, or a loss over scores such as MarginMSE() or SoftLabels()."),
    "in_batch": "Use a two-sided ranker such as BertDot, or a loss with in_batch=False.",
    "logits": "Use a CrossEncoder, or a loss over scores such as MSE().",
}


def missing_signal(name: str, by: object, who: str, found: list[str]) -> MissingSignal:
    """The error for a loss ``by`` that needs the signal ``name`` from ``who``, which reports only ``found``."""
    return MissingSignal(f"{by!r} needs the signal {name!r} from {who}, which reports only {found}. {REMEDIES.get(name, '')}".strip())
