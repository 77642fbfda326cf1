"""What a two-sided ranker makes of texts: some vectors each, one of a bi-encoder, one a token of late interaction.

A batch holds them padded (``Vectors``), which tensors need; many texts are kept end to end (``Ragged``), and those that are compared with a query
are padded to the longest of a few texts of similar length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Vectors:
    """The vectors of N texts, padded.

    Attributes:
        vectors: (N, T, H).
        mask: (N, T) bool, True for those that count.
    """

    vectors: Tensor
    mask: Tensor

    def __len__(self) -> int:
        """N."""
        return len(self.mask)

    def take(self, rows: Tensor | Sequence[int] | slice) -> Vectors:
        """Some of the texts."""
        return Vectors(self.vectors[rows], self.mask[rows])

    @classmethod
    def joined(cls, pieces: Sequence[Vectors]) -> Vectors:
        """The texts of several pieces, padded to the longest of all."""
        width = max(piece.mask.shape[1] for piece in pieces)
        wider = [width - piece.mask.shape[1] for piece in pieces]
        return cls(torch.cat([nn.functional.pad(p.vectors, (0, 0, 0, more)) for p, more in zip(pieces, wider, strict=True)]),
                   torch.cat([nn.functional.pad(p.mask, (0, more)) for p, more in zip(pieces, wider, strict=True)]))


class Scratch:
    """Memory of the CPU that the pieces of a computation use one after the other: asking the system anew for each costs as much as what is done with it."""

    def __init__(self) -> None:
        self._held: dict[torch.dtype, Tensor] = {}

    def __call__(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of any content, until the next of this type is asked for."""
        size = math.prod(shape)
        if dtype not in self._held or len(self._held[dtype]) < size:
            self._held[dtype] = torch.empty(size, dtype=dtype)
        return self._held[dtype][:size].view(shape)


class Held(Protocol):
    """The vectors of many texts, wherever they are."""

    @property
    def lengths(self) -> np.ndarray:
        """(N,) int64 numbers of vectors."""

    @property
    def cut(self) -> int:
        """How many of the texts were longer than their ranker reads."""

    def padded(self, rows: np.ndarray, device: torch.device | str, repeated: bool = False, scratch: Scratch | None = None) -> Vectors:
        """Some of the texts, padded to the longest of them, as float32; see ``Ragged.padded``."""


@dataclass(frozen=True)
class Ragged:
    """The vectors of N texts, end to end.

    Attributes:
        flat: (total, H), those that count alone.
        starts: (N + 1,) int64; text i has flat[starts[i]:starts[i + 1]].
        cut: How many of the texts were longer than their ranker reads.
    """

    flat: Tensor
    starts: np.ndarray
    cut: int = 0

    def __len__(self) -> int:
        """N."""
        return len(self.starts) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """(N,) int64 numbers of vectors."""
        return np.diff(self.starts)

    @classmethod
    def of(cls, texts: Sequence[Tensor], width: int, cut: int = 0) -> Ragged:
        """From the (T, H) vectors of each text."""
        starts = np.concatenate([[0], np.cumsum([len(t) for t in texts])]).astype(np.int64)
        return cls(torch.cat(list(texts)) if texts else torch.empty(0, width), starts, cut)

    def padded(self, rows: np.ndarray, device: torch.device | str, repeated: bool = False, scratch: Scratch | None = None) -> Vectors:
        """Some of the texts, padded to the longest of them, as float32.

        Args:
            rows: (n,) which.
            device: Where they go.
            repeated: Whether padding counts: it repeats a text's last vector. Default False.
            scratch: Where the vectors may be put; they then stand until the next are. Default None: in memory of their own.
        """
        lengths = self.lengths[rows]
        places = np.arange(lengths.max())[None, :]                                           # (1, T)
        mask = torch.from_numpy((places < lengths[:, None]) | (repeated & (lengths[:, None] > 0)))
        index = torch.from_numpy((self.starts[rows][:, None] + np.minimum(places, lengths[:, None] - 1)).ravel()).to(self.flat.device)
        if scratch is None or not self.flat.is_cpu or torch.device(device).type != "cpu":
            found = self.flat.index_select(0, index).to(device).float()      # on a CPU several times as fast as indexing
        else:
            shape = (len(index), self.flat.shape[1])
            found = torch.index_select(self.flat, 0, index, out=scratch(shape, self.flat.dtype))
            found = found if found.dtype == torch.float32 else scratch(shape, torch.float32).copy_(found)
        return Vectors(found.view(*mask.shape, -1), mask.to(device))
