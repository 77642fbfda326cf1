"""The names of a store's documents, on disk: number by name and name by number, whatever the names look like.

Names stand end to end in one file. They are found by a hash of 8 bytes among sorted hashes, and then compared themselves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

NAMES, STARTS, HASHES, ORDER = "docnos.bin", "docnos.starts.npy", "docnos.hashes.npy", "docnos.order.npy"
FILES = (NAMES, STARTS, HASHES, ORDER)


def hashed(name: bytes) -> int:
    """8 bytes that hardly two names share."""
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")


class Docnos:
    """The names in a folder, memory-mapped.

    Args:
        folder: Where ``write`` wrote them.
    """

    def __init__(self, folder: Path) -> None:
        self.starts = np.load(folder / STARTS, mmap_mode="r")
        self.hashes, self.order = (np.load(folder / name, mmap_mode="r") for name in (HASHES, ORDER))
        self.names = np.memmap(folder / NAMES, dtype=np.uint8, mode="r") if self.starts[-1] else np.zeros(0, dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, number: int) -> str:
        """The name of a document."""
        return self.names[self.starts[number]:self.starts[number + 1]].tobytes().decode("utf-8", "surrogatepass")

    def named(self, numbers: Iterable[int]) -> list[str]:
        """The names of some documents."""
        return [self[int(number)] for number in numbers]

    def rows(self, names: Sequence[str]) -> np.ndarray:
        """(N,) int64 the numbers of documents by name; -1 for names that are not here."""
        wanted = np.array([hashed(name.encode("utf-8", "surrogatepass")) for name in names], dtype=np.uint64)
        first, found = np.searchsorted(self.hashes, wanted), np.full(len(names), -1, dtype=np.int64)
        for i, name in enumerate(names):
            place = int(first[i])
            while place < len(self.hashes) and self.hashes[place] == wanted[i]:
                if self[int(self.order[place])] == name:
                    found[i] = self.order[place]
                    break
                place += 1
        return found


def write(folder: Path, names: Sequence[str]) -> None:
    """Writes names for ``Docnos``."""
    encoded = [name.encode("utf-8", "surrogatepass") for name in names]
    (folder / NAMES).write_bytes(b"".join(encoded))
    np.save(folder / STARTS, np.concatenate([[0], np.cumsum([len(e) for e in encoded], dtype=np.int64)]).astype(np.int64))
    hashes = np.array([hashed(e) for e in encoded], dtype=np.uint64)
    order = np.argsort(hashes, kind="stable")
    np.save(folder / HASHES, hashes[order])
    np.save(folder / ORDER, order.astype(np.int64))
