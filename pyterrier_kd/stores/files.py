"""The files of a store: vectors end to end, memory-mapped, and written so that a killed run goes on where it stopped.

While a store is written its files grow in a hidden folder beside its place. After each portion they are forced to the disk and ``progress.json`` says how
long each of them then was: whatever stands behind that is of a portion that was cut short, and is cut off. When all is written the folder says what it holds
(``pt_meta.json``), and then takes its place; if that is interrupted, the next to come finishes it (``settle``).
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
import uuid
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import torch
from torch import Tensor

from ..atomic import atomic_file, beside, forced, recover, write_json
from ..errors import StoreError
from ..formats.checkpoints import METADATA, read_json
from ..rankers.vectors import Ragged, Scratch, Vectors
from . import docnos

VERSION = 1
VECTORS, SCALES, COUNTS, DOCNOS, STARTS, PROGRESS, LOCK = "vectors.bin", "scales.bin", "counts.bin", "docnos.jsonl", "starts.npy", "progress.json", "lock"
GROWING = (VECTORS, SCALES, COUNTS, DOCNOS)
TYPES = {"float32": np.float32, "float16": np.float16, "int8": np.int8}


class StoreBusy(StoreError):
    """Another process is writing the store."""


@dataclass(frozen=True)
class StoredVectors:
    """The vectors of N documents in a file; see ``Ragged``.

    Attributes:
        flat: (total, H) memory-mapped, of the store's type.
        scales: (total,) float16, the factor of each int8 vector; None for other types.
        starts: (N + 1,) int64.
    """

    flat: Tensor
    scales: Tensor | None
    starts: np.ndarray
    cut: int = 0

    @cached_property
    def lengths(self) -> np.ndarray:
        """(N,) int64 numbers of vectors."""
        return np.diff(self.starts)

    def at(self, places: np.ndarray) -> np.ndarray:
        """(N, H) float32 some of the vectors."""
        found = self.flat[torch.from_numpy(places)].float()
        return (found if self.scales is None else found * self.scales[torch.from_numpy(places)].float()[:, None]).numpy()

    @cached_property
    def _parts(self) -> tuple[Ragged, Ragged | None]:
        return Ragged(self.flat, self.starts), None if self.scales is None else Ragged(self.scales[:, None], self.starts)

    def padded(self, rows: np.ndarray, device: torch.device | str, repeated: bool = False, scratch: Scratch | None = None) -> Vectors:
        """Some of the documents, padded to the longest of them, as float32; see ``Ragged.padded``."""
        values, scales = self._parts
        found = values.padded(rows, device, repeated, scratch)
        return found if scales is None else Vectors(found.vectors.mul_(scales.padded(rows, device).vectors), found.mask)


def quantised(flat: Tensor, dtype: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Vectors as they are stored: (total, H), and for int8 the (total,) float16 factors that give them back.

    Raises:
        StoreError: If a value is too large for float16.
    """
    if not torch.isfinite(flat).all():
        raise StoreError("A vector has values that are no numbers: the ranker's weights are damaged, or its dtype is too narrow.")
    if dtype != "int8":
        with np.errstate(over="ignore"):
            values = flat.cpu().numpy().astype(TYPES[dtype])
        if not np.isfinite(values).all():
            raise StoreError(f"A vector has values that {dtype} does not hold (largest {float(flat.abs().max()):.3g}): make the store with dtype='float32'.")
        return values, None
    scales = (flat.abs().amax(1) / 127).clamp(min=2.0 ** -14).half()                         # the least normal number of float16
    return (flat / scales.float()[:, None]).round().clamp(-127, 127).to(torch.int8).cpu().numpy(), scales.cpu().numpy()


def unfinished(path: Path) -> Path:
    """Where a store is until it is finished."""
    path = path.absolute()
    return path.with_name(f".{path.name}.unfinished")


def settle(path: Path) -> None:
    """Finishes what a killed run left half done when its store was to take its place; one process at a time."""
    path = path.absolute()
    fresh, lock = unfinished(path), path.with_name(f".{path.name}.settling")
    if not (fresh / METADATA).exists() and not replaced(path):
        return
    with filelock.FileLock(lock):
        if (fresh / METADATA).exists():                     # no other process was faster
            if path.exists():
                path.rename(beside(path, "old"))
            fresh.rename(path)
            for name in (COUNTS, DOCNOS, PROGRESS, LOCK):
                (path / name).unlink(missing_ok=True)
        recover(path)
        for old in replaced(path):
            shutil.rmtree(old, ignore_errors=True)
    with contextlib.suppress(OSError):
        lock.unlink()


def replaced(path: Path) -> list[Path]:
    """What a new store has taken the place of, or was about to."""
    return list(path.parent.glob(f".{glob.escape(path.name)}.????????.old"))


class Writer:
    """Writes a store portion by portion.

    Args:
        path: Where the store will be.
        facts: What the store's metadata will say; a run is continued only by one with the same.
        named: Facts that may differ all the same, being mere names.

    Attributes:
        docnos: The documents that are written already, in order.

    Raises:
        StoreError: If what was begun there is of other facts, or damaged, or another process writes it.
    """

    def __init__(self, path: Path, facts: Mapping[str, Any], named: frozenset[str] = frozenset()) -> None:
        self.path, self.facts, self.folder = path, dict(facts), unfinished(path)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = filelock.FileLock(self.folder / LOCK, timeout=0)        # given up when the process ends, however it does
        try:
            self.lock.acquire()
        except filelock.Timeout:
            raise StoreBusy(f"Another process is writing the store {path}: let it finish, or stop it.") from None
        try:
            self.docnos = self._begun(named)
        except BaseException:
            self.lock.release()
            raise

    def _begun(self, named: frozenset[str]) -> list[str]:
        """The documents that are whole on the disk; what stands behind them is cut off."""
        path = self.path
        progress = read_json(str(self.folder), PROGRESS)
        before = progress.get("facts", self.facts)
        differ = sorted(k for k in {*self.facts, *before} - named if self.facts.get(k) != before.get(k))
        if differ:
            raise StoreError(f"An unfinished store at {path} was begun with another {', '.join(differ)}: finish it with the same, or delete {self.folder} to begin anew.")
        for name, size in progress.get("sizes", dict.fromkeys(GROWING, 0)).items():
            with open(self.folder / name, "ab") as file:
                if file.tell() < size:
                    raise StoreError(f"The unfinished store {self.folder} is damaged: {name} has {file.tell()} bytes of {size}. Delete the folder to begin anew.")
                file.truncate(size)
        with open(self.folder / DOCNOS, encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    def add(self, names: Sequence[str], texts: Ragged) -> None:
        """Writes a portion; when it returns, the portion is on the disk.

        Raises:
            OSError: If the disk is full; what was written before stays, and a later run goes on from there.
        """
        values, scales = quantised(texts.flat, self.facts["dtype"])
        portions = {VECTORS: values.tobytes(), SCALES: b"" if scales is None else scales.tobytes(), COUNTS: texts.lengths.astype(np.int32).tobytes(),
                    DOCNOS: "".join(json.dumps(name) + "\n" for name in names).encode()}
        sizes = {}
        try:
            for name, portion in portions.items():
                with open(self.folder / name, "ab") as file:
                    file.write(portion)
                    file.flush()
                    os.fsync(file.fileno())
                    sizes[name] = file.tell()
            with atomic_file(self.folder / PROGRESS) as fresh:
                write_json(fresh, {"facts": self.facts, "sizes": sizes})
        except OSError as error:
            raise OSError(error.errno, f"the store {self.path} could not be written further ({error.strerror}): {len(self.docnos)} documents are kept, and the same call goes on "
                          "with the next") from error
        self.docnos += names

    def finish(self, width: int) -> None:
        """Puts the store into its place.

        Raises:
            OSError: If the disk is full; what was written stays, and a later run finishes it.
        """
        try:
            self._finish(width)
        except OSError as error:
            raise OSError(error.errno, f"the store {self.path} could not be finished ({error.strerror}): its {len(self.docnos)} documents are kept, and the same call "
                          "finishes it") from error
        self.close()

    def _finish(self, width: int) -> None:
        counts = np.fromfile(self.folder / COUNTS, dtype=np.int32)
        if len(counts) != len(self.docnos):
            raise StoreError(f"The unfinished store {self.folder} is damaged: it has {len(self.docnos)} documents, and vectors of {len(counts)}. Delete the folder to begin anew.")
        np.save(self.folder / STARTS, np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]))
        docnos.write(self.folder, self.docnos)
        held = (VECTORS, SCALES, STARTS, *docnos.FILES)
        for name in held:
            forced(self.folder / name)
        sizes = {name: (self.folder / name).stat().st_size for name in held}
        # from here on it is finished, wherever it is
        told = {**self.facts, "id": uuid.uuid4().hex, "width": width, "documents": len(self.docnos), "vectors": int(counts.sum()), "sizes": sizes}
        with atomic_file(self.folder / METADATA) as fresh:
            write_json(fresh, told)
        settle(self.path)

    def close(self) -> None:
        """Lets others write."""
        self.lock.release()


def opened(path: Path, facts: Mapping[str, Any]) -> StoredVectors:
    """The vectors of a finished store.

    Raises:
        StoreError: If a file is missing or shorter than it was.
    """
    for name, size in facts["sizes"].items():
        found = (path / name).stat().st_size if (path / name).exists() else -1
        if found != size:
            raise StoreError(f"The store {path} is damaged: {name} has {found} bytes instead of {size}." if found >= 0 else f"The store {path} is damaged: {name} is missing.")
    flat = mapped(path / VECTORS, TYPES[facts["dtype"]], (facts["vectors"], facts["width"]))
    scales = mapped(path / SCALES, np.float16, (facts["vectors"],)) if facts["dtype"] == "int8" else None
    return StoredVectors(flat, scales, np.load(path / STARTS))


def mapped(path: Path, dtype: Any, shape: tuple[int, ...]) -> Tensor:
    """A file as a tensor that is only read, as it is used."""
    if not shape[0]:
        return torch.from_numpy(np.empty(shape, dtype=dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)        # that torch could write to what cannot be written to: nobody does
        return torch.from_numpy(np.memmap(path, dtype=dtype, mode="r", shape=shape))
