"""Cutting texts into windows of tokens at the starts of words, so that a slice has the tokens that it had in the whole.

A tokenizer treats the words of a text (its pre-tokens: words, numbers, marks) one by one. So a slice that begins where a word begins and
ends where one ends is read like the same words in the whole text, and its tokens can be counted, or taken over, without tokenising
again. Only a word that is longer than a window has to be cut inside.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tokenizers

from .errors import DataError

WHITE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"    # Unicode's, as tokenizers see it
LEAST = 4       # tokens of a window: the most bytes, and so tokens, of one character


@dataclass(frozen=True)
class Words:
    """A text as words of tokens.

    Attributes:
        text: The text.
        ids: (T,) int32 its token ids.
        starts: (W + 1,) where each word's tokens start; the last entry is T.
        chars: (W + 1,) where each word starts in the text; the last entry is its length.
        token_chars: (T,) where each token starts in the text.
    """

    text: str
    ids: np.ndarray
    starts: np.ndarray
    chars: np.ndarray
    token_chars: np.ndarray


@dataclass(frozen=True)
class Window:
    """A slice of a text.

    Attributes:
        text: The slice.
        ids: (T,) int32 the tokens that it has in the whole text; of a part of a word, those that it has on its own.
        start: Where the slice starts in the text.
    """

    text: str
    ids: np.ndarray
    start: int


class Splitter:
    """Cuts texts as a tokenizer reads them.

    Args:
        tokenizer: A fast transformers tokenizer.

    Raises:
        DataError: If it is a slow one, which does not say where its tokens come from.
    """

    def __init__(self, tokenizer: Any) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise DataError(f"Splitting needs a fast tokenizer, which knows where its tokens come from; {type(tokenizer).__name__} is a slow one. "
                            "Load it with AutoTokenizer.from_pretrained(name).")
        plain = json.loads(backend.to_str())
        plain.update(post_processor=None, truncation=None, padding=None)        # the first would trim spaces off the offsets
        self.backend = tokenizers.Tokenizer.from_str(json.dumps(plain))
        # in byte-level BPE a word owns the space before it: it has other tokens where there is none. Some put one before every text.
        self.spaced = self.backend.encode(" word").ids != self.backend.encode("word").ids
        parts = plain["pre_tokenizer"] or {}
        self.prefixed = any(p["type"] == "ByteLevel" and p["add_prefix_space"] for p in parts.get("pretokenizers", [parts]) if p)

    def placed(self, text: str, behind: bool) -> str:
        """A text as it stands behind something else: with a space of its own, where that changes its tokens."""
        return " " + text if behind and (self.spaced or self.prefixed) else text

    def ids(self, text: str, behind: bool = False) -> np.ndarray:
        """(T,) int32 tokens of a text on its own, or behind something else and a space."""
        return np.array(self.backend.encode(self.placed(text, behind)).ids, dtype=np.int32)

    def words(self, texts: Sequence[str], behind: Sequence[bool] | None = None) -> list[Words]:
        """Tokenises texts, each once.

        Args:
            texts: The texts.
            behind: Which of them stand behind something else and a space. Default: none.
        """
        placed = [self.placed(t, b) for t, b in zip(texts, behind or [False] * len(texts), strict=True)]
        return [self._words(text, encoding) for text, encoding in zip(placed, self.backend.encode_batch(placed), strict=True)]

    @staticmethod
    def _words(text: str, encoding: Any) -> Words:
        ids = np.array(encoding.ids, dtype=np.int32)
        number = np.array(encoding.word_ids, dtype=np.float64)     # NaN, which differs from everything, for special tokens in the text
        token_chars = np.fromiter(itertools.chain.from_iterable(encoding.offsets), dtype=np.int64, count=2 * len(ids))[::2]
        new = np.flatnonzero(np.diff(number, prepend=-1) != 0)
        return Words(text, ids, np.append(new, len(ids)), np.append(token_chars[new], len(text)), token_chars)

    def windows(self, words: Words, length: int, stride: int, behind: bool = False) -> Iterator[Window]:
        """Windows of at most ``length`` tokens, each from about ``stride`` tokens after the one before; together they hold every word.

        Args:
            words: What ``words`` made of a text.
            length: The most tokens of a window.
            stride: The most tokens from one start to the next; not above ``length``.
            behind: Whether the text stands behind something else and a space, as its windows will.

        Yields:
            At least one window; a text without words gives an empty one.
        """
        bounds = self._bounds(words, behind)
        starts, at, found = words.starts[bounds], 0, False
        while at < len(bounds) - 1:
            end = int(np.searchsorted(starts, starts[at] + length, side="right")) - 1
            if end == at:                                   # a word that is longer than a window
                made = self._parts(words, int(bounds[at]), int(bounds[at + 1]), length, behind)
                end = following = at + 1
            else:
                made = iter([self._window(words, int(bounds[at]), int(bounds[end]))])
                following = max(at + 1, int(np.searchsorted(starts, starts[at] + stride, side="right")) - 1)
            for window in made:
                if window.text:                             # none of white space alone
                    found = True
                    yield window
            at = following if end < len(bounds) - 1 else end
        if not found:
            yield Window("", words.ids[:0], len(words.text))

    def _bounds(self, words: Words, behind: bool) -> np.ndarray:
        """The words with which a window may begin, and the end: all, or those with a space of their own where only these are read alike."""
        numbers = np.arange(len(words.starts))
        if not (self.prefixed or (self.spaced and behind)):
            return numbers
        own = np.array([words.text[c] == " " for c in words.chars[:-1]], dtype=bool)
        own[:1] = True
        return numbers[np.append(own, True)]

    @staticmethod
    def _window(words: Words, first: int, last: int) -> Window:
        """The words first to last - 1, without words of white space at the end, which would be read differently there."""
        text = words.text[words.chars[first]:words.chars[last]].rstrip(WHITE)
        end = words.chars[first] + len(text)
        while last > first and words.chars[last - 1] >= end:
            last -= 1
        return Window(text, words.ids[words.starts[first]:words.starts[last]], int(words.chars[first]))

    def _parts(self, words: Words, first: int, last: int, length: int, behind: bool) -> Iterator[Window]:
        """The words first to last - 1, which are one long word, in parts that have at most ``length`` tokens on their own."""
        chars = np.unique(words.token_chars[words.starts[first]:words.starts[last]])
        ends = np.append(chars[1:], max(words.chars[last], chars[-1] + 1))
        at, low = int(words.chars[first]), 0
        while low < len(ends):
            high = min(low + length, len(ends))
            while True:
                part = words.text[at:ends[high - 1]].rstrip(WHITE)
                ids = self.ids(part.removeprefix(" "), behind) if behind else self.ids(part)
                if len(ids) <= length or high == low + 1:
                    break
                high = max(low + 1, low + (high - low) * length // (len(ids) + 1))
            yield Window(part, ids[:length], at)
            at, low = int(ends[high - 1]), high


def check_sizes(length: int, stride: int, who: str) -> None:
    """Refuses windows that would leave words out.

    Raises:
        ValueError: If the length is too small, or the stride is not in 1 to ``length``.
    """
    if length < LEAST:
        raise ValueError(f"{who}: length={length} is too short: a window needs at least {LEAST} tokens, which one character may have.")
    if not 1 <= stride <= length:
        raise ValueError(f"{who}: stride={stride} must be from 1 to length={length}: a longer one would leave words out of every passage.")
