"""A corpus as a source of training: texts without queries or labels, streamed for as many epochs as a stage has.

Long texts are cut into windows of tokens (``splitting``). Windows are shuffled within a buffer and batched by length. What epoch e holds is a
function of the seed, so a training that was stopped finds its place by reading on to it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .errors import DataError
from .signals import Texts
from .splitting import Splitter, check_sizes

BUFFER = 64         # batches among which windows are shuffled
CHUNK = 512         # texts tokenised at once


class Corpus:
    """Texts, cut into windows.

    Args:
        texts: What can be read again and again: a list, a frame's column, another iterable that starts anew each time, or a function that
            returns an iterator, such as ``dataset.get_corpus_iter`` (itself, not what it returns). Of texts or of dicts.
        tokenizer: By which windows are counted.
        length: The most tokens of a window, without special ones.
        fields: Of dicts, the fields that make the text, joined by a space.

    Raises:
        DataError: If it can be read only once, or holds no text.
    """

    def __init__(self, texts: Iterable[Any] | Callable[[], Iterable[Any]], tokenizer: Any, length: int, fields: Sequence[str] = ("text",)) -> None:
        if isinstance(texts, str | bytes | Path | Mapping | pd.DataFrame):
            raise DataError(f"A corpus is many texts, but this is one {type(texts).__name__}: pass a list of texts, a frame's column, dataset.get_corpus_iter, or a function "
                            "that reads your file.")
        if not callable(texts) and iter(texts) is texts:
            raise DataError(f"A corpus is read once an epoch, but {type(texts).__name__} can be read only once: pass a list, an object that starts anew each time, or the "
                            "function that makes it, such as dataset.get_corpus_iter without its brackets.")
        check_sizes(length, length, "Corpus")
        self.source, self.length, self.fields = texts, length, list(fields)
        self.splitter = Splitter(tokenizer)
        self._counted = 0                       # windows counted so far
        self._count: int | None = None          # all windows, once they are known
        if next(self.texts(), None) is None:
            raise DataError("The corpus holds no text.")

    def texts(self) -> Iterator[str]:
        """The texts, from the start.

        Raises:
            DataError: If reading fails midway, or an entry is no text; the message says where.
        """
        position = -1
        try:
            for position, entry in enumerate(self.source() if callable(self.source) else self.source):
                yield self._text(entry, position)
        except DataError:
            raise
        except Exception as error:      # a user's own iterator may raise anything
            raise DataError(f"The corpus failed after its text {position + 1}: {type(error).__name__}: {error}. What was trained before that is kept.") from error

    def _text(self, entry: Any, position: int) -> str:
        if isinstance(entry, Mapping):
            missing = [f for f in self.fields if not isinstance(entry.get(f), str)]
            if missing:
                raise DataError(f"The corpus's text {position + 1} has no text in {missing}: it has {sorted(entry)}. Pass text_field= to the student.")
            entry = " ".join(entry[f] for f in self.fields)
        if isinstance(entry, str) and not entry.isascii():
            try:
                entry.encode()
            except UnicodeEncodeError as error:
                raise DataError(f"The corpus's text {position + 1} is no valid Unicode ({error}): clean it with text.encode('utf-8', 'replace').decode().") from error
        if not isinstance(entry, str):
            raise DataError(f"The corpus's text {position + 1} is of type {type(entry).__name__}, not a text or a dict with {self.fields}.")
        return entry

    def windows(self) -> Iterator[str]:
        """The texts in windows, from the start; texts without words give none."""
        for chunk in chunks(self.texts(), CHUNK):
            for words in self.splitter.words(chunk):
                for window in self.splitter.windows(words, self.length, self.length):
                    if window.text:
                        yield window.text

    def head(self, count: int = 64) -> list[str]:
        """The first texts, by which a corpus is told from another."""
        return list(itertools.islice(self.texts(), count))

    def steps(self, batch_size: int, most: int | None = None) -> int:
        """The number of batches of an epoch, or ``most`` if it has more.

        The corpus is read once to count its windows, as far as is needed: an endless one needs ``most``.
        """
        limit = None if most is None else most * batch_size
        if self._count is None and (limit is None or self._counted < limit):
            counted = sum(1 for _ in itertools.islice(self.windows(), limit))
            self._counted = counted
            if limit is None or counted < limit:
                self._count = counted
        windows = self._counted if self._count is None else self._count
        if not windows:
            raise DataError("The corpus holds no text with words, or none when it was read a second time: it must start anew each time that it is read.")
        batches = -(-windows // batch_size)
        return batches if most is None else min(batches, most)

    def batches(self, batch_size: int, sampler: object, seed: Sequence[int], part: tuple[int, int] = (0, 1), skip: int = 0) -> Iterator[Texts]:
        """One epoch: every window once, in random order within a buffer; see ``Groups.batches``."""
        k, of = part
        yield from itertools.islice(self._epoch(batch_size, seed), k + skip * of, None, of)

    def _epoch(self, batch_size: int, seed: Sequence[int]) -> Iterator[Texts]:
        for number, held in enumerate(chunks(self.windows(), BUFFER * batch_size)):
            rng = np.random.default_rng([*seed, number])
            order = rng.permutation(len(held))
            order = order[np.argsort(np.array([len(held[i]) for i in order]), kind="stable")]
            batches = [order[i:i + batch_size] for i in range(0, len(order), batch_size)]
            for i in rng.permutation(len(batches)):
                yield Texts(tuple(held[j] for j in batches[i]))


def chunks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Consecutive lists of ``size`` items, the last one shorter."""
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk
