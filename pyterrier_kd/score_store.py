"""Teacher scores on disk: asked for once, kept for every later student.

A score is filed under who gave it and the very texts that it is about, so an edited document or another model never
meets an old score. SQLite's write-ahead log makes every written chunk survive a killed process, and lets several
processes use one file. (``pyterrier_caching.ScorerCache`` files by query and docno alone: not enough here.)
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

LOOKUP = 900    # keys a query: below SQLite's least limit on variables


def score_key(giver: str, query: str, text: str) -> bytes:
    """16 bytes that identify one score."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (giver, query, text):
        encoded = part.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.digest()


class ScoreStore:
    """A file of scores.

    Args:
        path: The file; made, with its folder, at the first use.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            connection = sqlite3.connect(self.path, timeout=60, isolation_level=None)
            try:
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute("PRAGMA synchronous=NORMAL")
                connection.execute("CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, score REAL NOT NULL) WITHOUT ROWID")
                yield connection
            finally:
                connection.close()
        except sqlite3.Error as error:
            raise OSError(f"the teacher scores in {self.path} cannot be read or written: {error}. What is stored stays; pass another file as scores=, "
                          "or scores=False to keep none.") from error

    def get(self, keys: Sequence[bytes]) -> np.ndarray:
        """(N,) float64 scores, NaN where there is none."""
        found: dict[bytes, float] = {}
        with self._open() as connection:
            for start in range(0, len(keys), LOOKUP):
                some = keys[start:start + LOOKUP]
                marks = ",".join("?" * len(some))
                found.update(connection.execute(f"SELECT key, score FROM scores WHERE key IN ({marks})", some))
        return np.array([found.get(k, np.nan) for k in keys], dtype=np.float64)

    def put(self, keys: Sequence[bytes], scores: Iterable[float]) -> None:
        """Writes scores; when this returns, a killed process does not lose them."""
        with self._open() as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?)", zip(keys, map(float, scores), strict=True))
            connection.execute("COMMIT")
