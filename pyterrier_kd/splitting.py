"""Cutting texts into windows of tokens at the starts of words, so that a slice has the tokens that it had in the whole.

A tokenizer treats the words of a text (its pre-tokens: words, numbers, marks) one by one. So a slice that begins where a word begins and
ends where one ends is read like the same words in the whole text, and its tokens can be counted, or taken over, without tokenising
again. Only a word that is longer than a window has to be cut inside.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tokenizers

from .errors import DataError

WHITE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"    # Unicode's, as tokenizers see it
LEAST = 4           # tokens of a window: the most bytes, and so tokens, of one character
PART = 4096         # characters of a text that are tokenised at once where nobody asked yet where the tokens stand
BREAK = re.compile(r"(?<=[A-Za-z0-9]) (?=[A-Za-z0-9])")     # where a text can be cut in two without any token of it changing


class Words:
    """A text as words of tokens. Where in the text these stand is found for a part of the text when it is asked for, unless it is known.

    Args:
        text: The text.
        ids: (T,) int32 its token ids.
        starts: (W + 1,) where each word's tokens start; the last entry is T.
        parts: (P + 1,) where each part of the text starts; the last entry is its length.
        tokens: (P + 1,) where each part's tokens start; the last entry is T.
        places: Finds where each of the tokens of a part starts in it.
    """

    def __init__(self, text: str, ids: np.ndarray, starts: np.ndarray, parts: np.ndarray, tokens: np.ndarray, places: Callable[[str], np.ndarray]) -> None:
        self.text, self.ids, self.starts, self.parts, self.tokens, self.places = text, ids, starts, parts, tokens, places
        self.found: dict[int, np.ndarray] = {}

    def chars(self, first: int, last: int) -> np.ndarray:
        """(last - first,) where the tokens first to last - 1 start in the text; that after the last one starts at its end."""
        low, high = np.searchsorted(self.tokens, [first, last - 1], side="right") - 1
        found = []
        for part in range(low, min(high, len(self.parts) - 2) + 1):
            if part not in self.found:
                self.found[part] = self.places(self.text[self.parts[part]:self.parts[part + 1]]) + self.parts[part]
            found.append(self.found[part])
        known = np.concatenate([*found, [len(self.text)]])
        return known[first - self.tokens[low]:last - self.tokens[low]]

    def slice(self, first: int, last: int) -> tuple[int, str]:
        """Where the tokens first to last - 1 start in the text, and the text from there to the next token, without white space at its end."""
        start, end = int(self.chars(first, first + 1)[0]), int(self.chars(last, last + 1)[0])
        return start, self.text[start:end].rstrip(WHITE)


@dataclass(frozen=True)
class Window:
    """A slice of a text.

    Attributes:
        words: The text.
        first: The first of its tokens.
        last: The one after the last.
        ids: (T,) int32 the tokens that it has in the whole text; of a part of a word, those that it has on its own.
    """

    words: Words
    first: int
    last: int
    ids: np.ndarray

    @property
    def start(self) -> int:
        """Where the slice starts in the text."""
        return self.words.slice(self.first, self.last)[0]

    @property
    def text(self) -> str:
        """The slice."""
        return self.words.slice(self.first, self.last)[1]


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
        # BERT's words are between white space and marks, and each token that does not begin one says so. Then where tokens stand need not be known to cut.
        self.begins: np.ndarray | None = None
        if plain["model"]["type"] == "WordPiece" and parts.get("type") == "BertPreTokenizer" and not any(" " in added["content"] for added in plain["added_tokens"]):
            self.begins = np.ones(self.backend.get_vocab_size(), dtype=bool)
            self.begins[[i for token, i in self.backend.get_vocab().items() if token.startswith(plain["model"]["continuing_subword_prefix"])]] = False

    def placed(self, text: str, behind: bool) -> str:
        """A text as it stands behind something else: with a space of its own, where that changes its tokens."""
        return " " + text if behind and (self.spaced or self.prefixed) else text

    def ids(self, text: str, behind: bool = False) -> np.ndarray:
        """(T,) int32 tokens of a text on its own, or behind something else and a space."""
        return np.array(self.backend.encode(self.placed(text, behind)).ids, dtype=np.int32)

    def words(self, texts: Sequence[str], behind: Sequence[bool] | None = None, places: bool = True) -> list[Words]:
        """Tokenises texts, each once.

        Args:
            texts: The texts.
            behind: Which of them stand behind something else and a space. Default: none.
            places: Whether to find at once where all tokens stand, which most of the time goes into. Default True. Otherwise
                that is found by tokenising a part of a text again when it is asked for.
        """
        placed = [self.placed(t, b) for t, b in zip(texts, behind or [False] * len(texts), strict=True)]
        if self.begins is not None and not places:
            return self._by_parts(placed, self.begins)
        return [self._words(text, encoding) for text, encoding in zip(placed, self.backend.encode_batch(placed), strict=True)]

    @staticmethod
    def _words(text: str, encoding: Any) -> Words:
        """A text of which all is known."""
        ids = np.array(encoding.ids, dtype=np.int32)
        chars = char_starts(encoding)
        number = np.array(encoding.word_ids, dtype=np.float64)     # NaN, which differs from everything, for special tokens in the text
        new = (np.diff(number, prepend=-1) != 0) & (np.diff(chars, prepend=-1) != 0)        # one character can be several words, such as those of a fraction
        return Words(text, ids, np.append(np.flatnonzero(new), len(ids)), np.array([0, len(text)]), np.array([0, len(ids)]), lambda _: chars)

    def _by_parts(self, texts: Sequence[str], begins: np.ndarray) -> list[Words]:
        """Texts of which only the tokens are known."""
        bounds = [part_bounds(text) for text in texts]
        encoded = iter(self.backend.encode_batch_fast([text[a:b] for text, ends in zip(texts, bounds, strict=True) for a, b in itertools.pairwise(ends)]))
        found = []
        for text, ends in zip(texts, bounds, strict=True):
            parts = [np.array(encoding.ids, dtype=np.int32) for encoding in itertools.islice(encoded, len(ends) - 1)]
            ids = np.concatenate(parts)
            starts = np.append(np.flatnonzero(begins[ids]), len(ids))
            found.append(Words(text, ids, starts, np.array(ends), np.cumsum([0, *map(len, parts)]), lambda part: char_starts(self.backend.encode(part))))
        return found

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
        starts = words.starts[bounds]
        # the word after the last that fits, and the last one that is near enough to begin the next window, for each word
        ends = (np.searchsorted(starts, starts[:-1] + length, side="right") - 1).tolist()
        following = (np.searchsorted(starts, starts[:-1] + stride, side="right") - 1).tolist()
        at, found, last = 0, False, len(bounds) - 1
        while at < last:
            end = ends[at]
            if end == at:                                   # a word that is longer than a window
                made = self._parts(words, int(starts[at]), int(starts[at + 1]), length, behind)
                end = after = at + 1
            else:
                made = iter([self._window(words, int(bounds[at]), int(bounds[end]))])
                after = max(at + 1, following[at])
            for window in made:
                if len(window.ids):                         # none of white space alone
                    found = True
                    yield window
            at = after if end < last else end
        if not found:
            yield Window(words, len(words.ids), len(words.ids), words.ids[:0])

    def _bounds(self, words: Words, behind: bool) -> np.ndarray:
        """The words with which a window may begin, and the end: all, or those with a space of their own where only these are read alike."""
        numbers = np.arange(len(words.starts))
        if not (self.prefixed or (self.spaced and behind)):
            return numbers
        own = np.array([words.text[c] == " " for c in words.chars(0, len(words.ids))[words.starts[:-1]]], dtype=bool)
        own[:1] = True
        return numbers[np.append(own, True)]

    def _window(self, words: Words, first: int, last: int) -> Window:
        """The words first to last - 1, without words of white space at the end, which would be read differently there."""
        token, end = int(words.starts[first]), int(words.starts[last])
        if self.begins is None:                             # else no word is white space
            start, text = words.slice(token, end)
            chars = words.chars(token, end)
            while last > first and chars[words.starts[last - 1] - token] >= start + len(text):
                last -= 1
        return Window(words, token, end, words.ids[token:words.starts[last]])

    def _parts(self, words: Words, first: int, last: int, length: int, behind: bool) -> Iterator[Window]:
        """The tokens first to last - 1, which are one long word, in parts that have at most ``length`` tokens on their own."""
        _, tokens = np.unique(words.chars(first, last), return_index=True)      # of several tokens of one character, the first
        bounds = [*(first + tokens).tolist(), last]
        low = 0
        while low < len(bounds) - 1:
            high = min(low + length, len(bounds) - 1)
            while True:
                _, part = words.slice(bounds[low], bounds[high])
                ids = self.ids(part.removeprefix(" "), behind) if behind else self.ids(part)
                if len(ids) <= length or high == low + 1:
                    break
                high = max(low + 1, low + (high - low) * length // (len(ids) + 1))
            yield Window(words, bounds[low], bounds[high], ids[:length])
            low = high


def char_starts(encoding: Any) -> np.ndarray:
    """(T,) where each token of an encoding starts in its text."""
    return np.fromiter(itertools.chain.from_iterable(encoding.offsets), dtype=np.int64, count=2 * len(encoding.ids))[::2]


def part_bounds(text: str) -> list[int]:
    """Where the parts of a text start that can be tokenised apart, and its end."""
    bounds = [0]
    while found := BREAK.search(text, bounds[-1] + PART):
        bounds.append(found.end())
    return [*bounds, len(text)]


def check_sizes(length: int, stride: int, who: str) -> None:
    """Refuses windows that would leave words out.

    Raises:
        ValueError: If the length is too small, or the stride is not in 1 to ``length``.
    """
    if length < LEAST:
        raise ValueError(f"{who}: length={length} is too short: a window needs at least {LEAST} tokens, which one character may have.")
    if not 1 <= stride <= length:
        raise ValueError(f"{who}: stride={stride} must be from 1 to length={length}: a longer one would leave words out of every passage.")
