"""Losses over what layers do: attention scores, hidden states, embeddings (TinyBERT) and relations (MiniLMv2).

A layer map (``layer_maps``) says which teacher layer each student layer learns from; the value of a loss is the sum over the mapped layers. All means
are over real tokens, so padding changes nothing, and all arithmetic is in float32. Student and teacher must have the same tokens at
the same places, which is checked before training; the widths may differ, since hidden states go through a learned projection.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import LayerMismatch
from ..signals import Architecture, Batch, Layers, Needs, Signals
from .base import BoundTerm, Loss
from .layer_maps import Pairs, layer_pairs

SCORES_INSTEAD = "Use a loss over scores instead, such as MarginMSE() or SoftLabels()"


class LayerwiseLoss(Loss):
    """What the losses over layers share: whether two encoders can be compared, and in which layers."""

    reads: ClassVar[frozenset[str]]
    layers: Any = "uniform"

    def __post_init__(self) -> None:
        if isinstance(self.layers, Mapping):
            object.__setattr__(self, "layers", tuple(sorted((m, g) for m, g in self.layers.items() if g is not None)))
        elif not isinstance(self.layers, str) and isinstance(self.layers, Iterable):
            object.__setattr__(self, "layers", tuple(self.layers))
        elif self.layers not in ("uniform", "last", "skip"):
            raise ValueError(f"{type(self).__name__}(layers={self.layers!r}) is unknown: it is 'uniform', 'last', 'skip', a list of teacher layers, or a mapping.")

    def __repr__(self) -> str:
        """Only what differs from the defaults."""
        changed = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if getattr(self, f.name) != f.default]   # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(changed)})"

    @property
    def needs(self) -> Needs:
        """What it reads of both; no score, no label."""
        return Needs(student=self.reads, teacher=self.reads)

    def __call__(self, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """Not without knowing the two encoders: see ``bind``.

        Raises:
            LayerMismatch: Always.
        """
        raise LayerMismatch(f"{self!r} must know the layers of student and teacher first: use {self!r}.bind(student.architecture(), teacher.architecture()).")

    def bound(self, student: Architecture | None, teacher: Architecture | None, learned: nn.ModuleDict) -> BoundTerm:
        """The loss for these two encoders.

        Raises:
            LayerMismatch: If their tokens, layers or heads cannot be compared.
        """
        if student is None or teacher is None:
            raise LayerMismatch(f"{self!r} compares layers, and {'the student' if student is None else 'the teacher'} has none to compare. {SCORES_INSTEAD}.")
        self._check_tokens(student, teacher)
        pairs = self._pairs(student, teacher)
        compute = partial(self._over_pieces, self._compared(student, teacher, pairs, learned))
        return BoundTerm(compute, {name: frozenset(m for m, _ in pairs) for name in self.reads}, {name: frozenset(g for _, g in pairs) for name in self.reads})

    def _check_tokens(self, student: Architecture, teacher: Architecture) -> None:
        if student.sides != teacher.sides:
            raise LayerMismatch(f"{self!r} compares layers token by token, but the student {student.who} reads {' and '.join(student.sides)} and the teacher {teacher.who} "
                                f"reads {' and '.join(teacher.sides)}. {SCORES_INSTEAD}.")
        different = [key for key in student.reads if student.reads[key] != teacher.reads.get(key)]
        if different:
            values = "; ".join(f"{key}: {student.reads[key]!r} and {teacher.reads.get(key)!r}" for key in different)
            remedy = SCORES_INSTEAD if "tokenizer" in different else f"Give both the same {' and '.join(different)}, or use a loss over scores, such as MarginMSE() or SoftLabels()"
            raise LayerMismatch(f"{self!r} compares layers token by token, so the student {student.who} and the teacher {teacher.who} must read the same tokens; they differ in "
                                f"{values}. {remedy}.")

    def _pairs(self, student: Architecture, teacher: Architecture) -> Pairs:
        """The mapped layers."""
        return layer_pairs(self.layers, student.depth, teacher.depth)

    def _check_kinds(self, student: Architecture, teacher: Architecture, pairs: Pairs) -> None:
        """Layers that see other tokens cannot be compared in what they look at."""
        wrong = [(m, g) for m, g in pairs if student.kinds[m] != teacher.kinds[g]]
        if wrong:
            m, g = wrong[0]
            alike = [min((i for i in range(teacher.depth) if teacher.kinds[i] == student.kinds[k]), key=lambda i, aim=g: abs(i - aim), default=None) for k, g in pairs]  # type: ignore[misc]
            raise LayerMismatch(f"{self!r}: the student's layer {m} is {student.kinds[m]}, the teacher's layer {g} is {teacher.kinds[g]}. Map layers of the same kind, "
                                f"such as layers={alike}.")

    @abstractmethod
    def _compared(self, student: Architecture, teacher: Architecture, pairs: Pairs, learned: nn.ModuleDict) -> Any:
        """A function of two ``Layers``: for each mapped pair of layers a sum, and how many terms it has."""

    @staticmethod
    def _over_pieces(compared: Any, student: Signals, teacher: Signals, batch: Batch) -> Tensor:
        """The sum over layers of the mean over all pieces of a batch."""
        sums: list[Tensor] = []
        counts: list[Tensor] = []
        for mine, theirs in zip(student.layers, teacher.layers, strict=True):
            each = list(compared(mine, theirs))
            sums.append(torch.stack([s for s, _ in each]))
            counts.append(torch.stack([c.float() for _, c in each]))
        return (torch.stack(sums).sum(0) / torch.stack(counts).sum(0).clamp(min=1)).sum()


def real_pairs(student: Layers, m: int, teacher: Layers, g: int) -> Tensor | None:
    """(N, 1, T, T) bool, the pairs of tokens that both layers attend to, where these are not all; else None."""
    mine, theirs = student.local.get(m), teacher.local.get(g)
    if mine is None or theirs is None:
        return mine if theirs is None else theirs
    return mine & theirs


@dataclass(frozen=True, repr=False)
class Attention(LayerwiseLoss):
    """L_attn: mean squared difference of attention scores before the softmax (arXiv:1909.10351, eq. 7), summed over mapped layers.

    The mean is over heads and over pairs of real tokens. Both need the same number of heads, of any width.

    Args:
        layers: The layer map; see ``layer_pairs``. Default "uniform".
        reference: As the public code of TinyBERT has it: scores of padded keys count as 0, those of padded queries as
            they are, and the mean is over all T * T pairs, so that the value depends on the padding. Default False.
    """

    layers: Any = "uniform"
    reference: bool = False
    reads: ClassVar[frozenset[str]] = frozenset({"queries", "keys"})

    def _compared(self, student: Architecture, teacher: Architecture, pairs: Pairs, learned: nn.ModuleDict) -> Any:
        if student.heads != teacher.heads:
            raise LayerMismatch(f"{self!r} compares head with head, but the student {student.who} has {student.heads} heads and the teacher {teacher.who} {teacher.heads}. "
                                "Use Relations() instead, which needs no equal numbers of heads.")
        self._check_kinds(student, teacher, pairs)
        return partial(self._differences, pairs, student.heads)

    def _differences(self, pairs: Pairs, heads: int, student: Layers, teacher: Layers) -> Iterator[tuple[Tensor, Tensor]]:
        keys = student.mask[:, None, :, None]                                                # (N, 1, T, 1)
        queries = torch.ones_like(keys) if self.reference else keys
        everything = torch.tensor(student.mask.numel() * student.mask.shape[1], device=keys.device)
        for m, g in pairs:
            # one product gives the difference of the two: [q_S, -q_T] [k_S, k_T]^T, and masked tokens give 0
            q = torch.cat([student.scale[m] * student.queries[m].float(), -teacher.scale[g] * teacher.queries[g].float()], -1) * queries
            k = torch.cat([student.keys[m].float(), teacher.keys[g].float()], -1) * keys
            near = real_pairs(student, m, teacher, g)
            count = everything if self.reference else (student.mask.sum(1) ** 2).sum() if near is None else (near & queries).sum()
            yield SquaredProduct.apply(q, k, near), heads * count


class SquaredProduct(torch.autograd.Function):
    """The sum of squares of Q K^T, without the passes over it that automatic differentiation would make: its gradients are 2 (Q K^T) K and 2 (Q K^T)^T Q."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, near: Tensor | None) -> Tensor:
        """(N, A, T, D), (N, A, T, D) and the pairs that count, if these are not all -> a scalar."""
        product = q @ k.transpose(-1, -2)                                                    # (N, A, T, T)
        if near is not None:
            product *= near
        ctx.save_for_backward(q, k, product)
        return torch.linalg.vector_norm(product, dim=-1).square().sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """The gradients of q and k."""
        q, k, product = ctx.saved_tensors
        return 2 * gradient * (product @ k), 2 * gradient * (product.transpose(-1, -2) @ q), None


@dataclass(frozen=True, repr=False)
class Hidden(LayerwiseLoss):
    """L_hidn: mean squared difference of projected hidden states (arXiv:1909.10351, eq. 8), summed over mapped layers.

    The mean is over real tokens and dimensions. Of encoders that normalise before a layer rather than after it, the states are
    those that one layer gives to the next.

    Args:
        layers: The layer map; see ``layer_pairs``. Default "uniform".
        projection: "own" (default): a learned matrix from the student's width to the teacher's, as in the paper. "shared": one with a
            bias, the same for ``Hidden`` and ``Embedding``, as in the public code. None: none, for equal widths.
    """

    layers: Any = "uniform"
    projection: Literal["own", "shared"] | None = "own"
    reads: ClassVar[frozenset[str]] = frozenset({"hidden"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.projection not in ("own", "shared", None):
            raise ValueError(f"{type(self).__name__}(projection={self.projection!r}) is unknown: it is 'own', 'shared' or None.")

    def _compared(self, student: Architecture, teacher: Architecture, pairs: Pairs, learned: nn.ModuleDict) -> Any:
        return partial(self._differences, pairs, projected(self, self.projection, student.hidden, teacher.hidden, learned))

    def _differences(self, pairs: Pairs, project: nn.Module, student: Layers, teacher: Layers) -> Iterator[tuple[Tensor, Tensor]]:
        for m, g in pairs:
            yield squares(project(student.hidden[m].float()), teacher.hidden[g].float(), student.mask)


@dataclass(frozen=True, repr=False)
class Embedding(LayerwiseLoss):
    """L_emb: mean squared difference of projected embeddings, which the first layers read (arXiv:1909.10351, eq. 9).

    Args:
        projection: As in ``Hidden``.
    """

    projection: Literal["own", "shared"] | None = "own"
    reads: ClassVar[frozenset[str]] = frozenset({"embedding"})

    def __post_init__(self) -> None:
        if self.projection not in ("own", "shared", None):
            raise ValueError(f"Embedding(projection={self.projection!r}) is unknown: it is 'own', 'shared' or None.")

    def _pairs(self, student: Architecture, teacher: Architecture) -> Pairs:
        return ()

    def _compared(self, student: Architecture, teacher: Architecture, pairs: Pairs, learned: nn.ModuleDict) -> Any:
        return partial(self._difference, projected(self, self.projection, student.hidden, teacher.hidden, learned))

    def _difference(self, project: nn.Module, student: Layers, teacher: Layers) -> Iterator[tuple[Tensor, Tensor]]:
        assert student.embedding is not None
        assert teacher.embedding is not None
        yield squares(project(student.embedding.float()), teacher.embedding.float(), student.mask)


@dataclass(frozen=True, repr=False)
class Relations(LayerwiseLoss):
    """How tokens relate to each other in a layer: self-attention relations (arXiv:2012.15828, eq. 5 to 7).

    Queries, keys and values are each compared with themselves, softmax(X X^T / sqrt(d)), and the student's distribution is
    drawn to the teacher's: KL divergence, mean over real tokens and relation heads, summed over queries, keys, values
    and mapped layers. The numbers of heads and the widths may differ; nothing is learned.

    Args:
        layers: The layer map; see ``layer_pairs``. Default {-1: -1}: the last layer from the last, as in the paper for
            teachers of 12 layers.
        heads: The number of relation heads, which must divide both widths. Default None: the largest up to 48, the paper's.
    """

    layers: Any = ((-1, -1),)
    heads: int | None = None
    reads: ClassVar[frozenset[str]] = frozenset({"queries", "keys", "values"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heads is not None and self.heads < 1:
            raise ValueError(f"Relations(heads={self.heads}) must be at least 1.")

    def _compared(self, student: Architecture, teacher: Architecture, pairs: Pairs, learned: nn.ModuleDict) -> Any:
        self._check_kinds(student, teacher, pairs)
        common = math.gcd(student.hidden, teacher.hidden)
        heads = max(h for h in range(1, 49) if common % h == 0) if self.heads is None else self.heads
        if common % heads:
            raise LayerMismatch(f"{self!r}: heads={heads} must divide the hidden sizes of both, {student.hidden} and {teacher.hidden}: pass a divisor of {common}.")
        return partial(self._divergences, pairs, heads)

    def _divergences(self, pairs: Pairs, heads: int, student: Layers, teacher: Layers) -> Iterator[tuple[Tensor, Tensor]]:
        mask = student.mask[:, None, None, :] & student.mask[:, None, :, None]               # (N, 1, T, T)
        for m, g in pairs:
            near = real_pairs(student, m, teacher, g)
            seen = mask if near is None else mask & near
            total = torch.zeros((), device=mask.device)
            for name in ("queries", "keys", "values"):
                target, own = (relations(getattr(side, name)[layer].float(), heads, seen) for side, layer in ((teacher, g), (student, m)))
                total = total + (target.exp() * (target - own)).masked_fill(~seen, 0.0).sum()
            yield total, heads * student.mask.sum()


def relations(vectors: Tensor, heads: int, seen: Tensor) -> Tensor:
    """(N, A, T, H/A) -> (N, R, T, T) log-probabilities of R relation heads; those of unseen tokens mean nothing."""
    x = vectors.transpose(1, 2).flatten(2).unflatten(-1, (heads, -1)).transpose(1, 2)        # (N, R, T, H/R)
    scores = x @ x.transpose(-1, -2) / math.sqrt(x.shape[-1])
    return F.log_softmax(scores.masked_fill(~seen, torch.finfo(scores.dtype).min), dim=-1)


def squares(student: Tensor, teacher: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of squared differences of two (N, T, H) over real tokens, and their number of entries."""
    return ((student - teacher) * mask.unsqueeze(-1)).square().sum(), mask.sum() * teacher.shape[-1]


def projected(loss: Loss, projection: str | None, student: int, teacher: int, learned: nn.ModuleDict) -> nn.Module:
    """The projection from the student's width to the teacher's, made where it is not there yet.

    The paper does not say how it starts: where widths agree ours is the identity, else orthogonal, which keeps lengths.
    """
    if projection is None:
        if student != teacher:
            raise LayerMismatch(f"{loss!r} needs equal hidden sizes, not {student} and {teacher}: let it learn a projection (projection='own').")
        return nn.Identity()
    name = f"{'shared' if projection == 'shared' else type(loss).__name__.lower()}_{student}_{teacher}"
    if name not in learned:
        linear = nn.Linear(student, teacher, bias=projection == "shared")
        if projection == "shared":
            nn.init.normal_(linear.weight, std=0.02)        # BERT's, as in the public code
            nn.init.zeros_(linear.bias)
        elif student == teacher:
            nn.init.eye_(linear.weight)
        else:
            nn.init.orthogonal_(linear.weight)
        learned[name] = linear
    return learned[name]
