"""Which of a query's candidate texts a training sees: ``KeepTop`` filters them once, a ``Sampler`` chooses those of each step.

Another way to choose is another value of ``choose``, or another callable with this one's signature.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from .errors import DataError


@dataclass(frozen=True)
class Sampler:
    """Chooses the texts of a query for one step.

    Args:
        texts: n, how many texts. Default 2: the pairs of the papers.
        positives: How many of them are relevant, where there are as many (the rest are texts not known to be relevant, as
            far as there are any). Default 1. Where nothing is labelled, all are chosen alike.
        choose: How the others are chosen: "random" (default); "top", the highest teacher scores; "stratified", the range of the teacher's
            scores is cut into as many equal parts as texts are wanted, and the text nearest to a random point of each part is taken (so that of two
            texts without labels one is most often scored high and one low); or "bins", the range of the margins to the
            relevant text is cut into ``bins`` equal parts, one that holds texts is chosen at random, and a text in it (TAS-B's balanced margins,
            arXiv:2104.06967, section 3.2).
        bins: Parts for "bins". Default 10, the paper's.
    """

    texts: int = 2
    positives: int = 1
    choose: Literal["random", "top", "stratified", "bins"] = "random"
    bins: int = 10

    def __post_init__(self) -> None:
        if self.texts < 1 or not 0 <= self.positives <= self.texts or self.choose not in ("random", "top", "stratified", "bins") or self.bins < 1:
            raise ValueError(f"{self!r}: texts and bins must be at least 1, positives 0 to texts, choose 'random', 'top', 'stratified' or 'bins'.")

    def __call__(self, labels: np.ndarray, teacher: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
        """Positions of the chosen texts.

        Args:
            labels: (N,) labels of a group's texts.
            teacher: (N,) its teacher scores, or None.
            rng: The random numbers of this epoch and group.

        Returns:
            At most ``texts`` different positions, relevant ones first.
        """
        relevant = labels > 0
        chosen = rng.permutation(np.flatnonzero(relevant))[:self.positives]
        pool = np.flatnonzero(~relevant) if self.positives else np.arange(len(labels))
        rest = self._others(pool, teacher, self.texts - len(chosen), rng)
        if missing := self.texts - len(chosen) - len(rest):     # too few others: the remaining relevant ones
            spare = np.setdiff1d(np.flatnonzero(relevant), np.concatenate([chosen, rest]))
            rest = np.concatenate([rest, rng.permutation(spare)[:missing]])
        return np.concatenate([chosen, rest]).astype(np.int64)

    def _others(self, pool: np.ndarray, teacher: np.ndarray | None, count: int, rng: np.random.Generator) -> np.ndarray:
        """``count`` positions from ``pool``, or all of it if it has fewer."""
        if self.choose == "random" or len(pool) <= count:
            return rng.permutation(pool)[:count]
        if teacher is None:
            raise DataError(f"{self!r} chooses by teacher scores, but this stage has none ahead of training: use choose='random'.")
        scores = teacher[pool]
        if self.choose == "top":
            return pool[np.argsort(-scores, kind="stable")[:count]]
        if self.choose == "bins":
            return pool[self._by_bins(scores, count, rng)]
        left = list(rng.permutation(len(pool)))
        low, high = scores.min(), scores.max()
        chosen = []
        for aim in low + (rng.permutation(count) + rng.random(count)) * (high - low) / max(count, 1):
            nearest = min(left, key=lambda i: abs(scores[i] - aim))
            left.remove(nearest)
            chosen.append(nearest)
        return pool[np.array(chosen, dtype=np.int64)]

    def _by_bins(self, scores: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
        """``count`` positions, each from a bin that is chosen at random; margins to one relevant text have the bins of the scores themselves."""
        low, high = scores.min(), scores.max()
        bins = np.minimum((scores - low) / max(high - low, 1e-9) * self.bins, self.bins - 1).astype(np.int64)
        left = rng.permutation(len(scores))
        chosen = []
        for _ in range(count):
            wanted = rng.choice(np.unique(bins[left]))
            place = int(np.flatnonzero(bins[left] == wanted)[0])
            chosen.append(left[place])
            left = np.delete(left, place)
        return np.array(chosen, dtype=np.int64)


@dataclass(frozen=True)
class KeepTop:
    """Keeps the passages that the teacher scores highest, and trains on those alone (arXiv:2009.07531, section 4).

    The paper keeps "the five top-ranked passages", of what it does not say. Its 3.3 million pairs from 367,013 queries are 9.0 a
    query, more than five: so five of each document is the default here, and five of each query the other reading.

    Args:
        count: How many are kept. Default 5.
        per: "document" (default): of each document of a query. "query": of all passages of a query.
    """

    count: int = 5
    per: Literal["document", "query"] = "document"

    def __post_init__(self) -> None:
        if self.count < 1 or self.per not in ("document", "query"):
            raise ValueError(f"{self!r}: count must be at least 1, per 'document' or 'query'.")

    def __call__(self, starts: np.ndarray, parent: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """(N,) bool: the rows that are kept; of equal scores the earlier ones.

        Args:
            starts: (G + 1,) where each query's rows start.
            parent: (N,) the document that each row is a passage of.
            scores: (N,) the teacher's scores.
        """
        query = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
        same = (query, parent) if self.per == "document" else (query,)
        order = np.lexsort((np.arange(len(scores)), -scores, *same[::-1]))
        changed = np.any([np.diff(key[order], prepend=-1) != 0 for key in same], axis=0)
        first = np.maximum.accumulate(np.where(changed, np.arange(len(order)), 0))
        kept = np.zeros(len(scores), dtype=bool)
        kept[order[np.arange(len(order)) - first < self.count]] = True
        return kept
