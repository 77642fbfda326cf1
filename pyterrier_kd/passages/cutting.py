"""Cutting the documents of a frame into passages, counted in the tokens of the ranker that will read them.

A passage is a slice of the document's own text, from the start of a word to the end of one (``splitting``), with the title before it. Each
distinct document is tokenised once, however many queries and passages it has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt

from .. import scoring
from ..errors import DataError
from ..frames import explained, fields_of, require_strings
from ..rankers import Ranker
from ..splitting import LEAST, WHITE, Splitter, Window, Words, check_sizes
from ..tokens import tokenizer_fingerprint

ROWS = 256      # documents held at once
UNLIMITED = 1 << 40


@dataclass(frozen=True)
class Passages:
    """The passages of a document for one amount of room.

    Attributes:
        head: What stands before each passage: the title, as far as there is room for it.
        head_ids: Its tokens, those of the ranker's prompt before them.
        windows: The passages.
    """

    head: str
    head_ids: np.ndarray
    windows: list[Window]


class Cutter:
    """How documents are cut; see ``split`` for the arguments."""

    def __init__(self, reader: Any, length: int | None, stride: int | None, title: str | None, text_field: str | None) -> None:
        self.ranker: Ranker | None = reader if isinstance(reader, Ranker) else getattr(reader, "student", None)
        self.tokenizer = self.ranker.tokenizer if self.ranker is not None else reader
        self.splitter = Splitter(self.tokenizer)
        self.length, self.stride = length, stride
        fields = [text_field or "text"] if self.ranker is None else fields_of(self.ranker.text_field)
        if text_field not in (None, fields[-1]):
            raise ValueError(f"split(text_field={text_field!r}): this ranker reads {fields}, of which the last is split. Give the ranker that text_field= instead.")
        self.field, self.before = fields[-1], fields[:-1]
        self.title = None if self.before or title == self.field else title
        self.prompt = self.ranker.text_prompt if self.ranker is not None else ""
        self.prompt_ids = self.splitter.ids(self.prompt.removesuffix(" "))
        # what follows the prompt stands behind one space: the prompt's own, or one that is put there
        self.space = " " if self.prompt and not self.prompt.endswith(" ") else ""
        if length is None and self.ranker is None:
            raise ValueError("split(tokenizer) needs length=, in tokens: only a ranker says how much room it has.")
        most = int(self.ranker.room([""])[0]) if self.ranker is not None and length is None else length or 0
        check_sizes(most, most if stride is None else stride, "split")

    # ------------------------------------------------------------------ frames

    def checked(self, inp: pd.DataFrame, who: pt.Transformer) -> pd.DataFrame:
        """The frame, once it is known that it can be split."""
        columns = [*self.before, self.field]
        with explained(who, inp, columns), pt.validate.any(inp, context=who) as asked:
            asked.result_frame(extra_columns=["query", *columns], mode="candidates")
            asked.document_frame(extra_columns=columns, mode="documents")
        frame = inp.reset_index(drop=True)
        for column in [*columns, *(["query"] if "query" in frame.columns else [])] if len(frame) else []:
            require_strings(frame, column, who)
        return frame

    def sides(self, frame: pd.DataFrame) -> tuple[list[str], list[str]]:
        """What stands before each row's passages, and the text that is split."""
        columns = self.before or [c for c in (self.title,) if c is not None and c in frame.columns]
        parts = [frame[c].astype(object).fillna("").map(lambda part: str(part).strip(WHITE)) for c in columns]
        return [" ".join(filter(None, row)) for row in zip(*parts, strict=True)] if parts else [""] * len(frame), frame[self.field].tolist()

    def columns(self, frame: pd.DataFrame, heads: Sequence[str], passages: Sequence[str]) -> dict[str, pd.Series]:
        """The columns from which the ranker reads each passage with its head."""
        if not self.before:
            return {self.field: pd.Series([self.joined(head, passage) for head, passage in zip(heads, passages, strict=True)], dtype=object)}
        first, *others = self.before
        empty = {other: pd.Series([""] * len(frame), dtype=object) for other in others}
        slices = pd.Series([p.removeprefix(" ") for p in passages], dtype=object)
        return {**empty, first: pd.Series([self.space + head if head else "" for head in heads], dtype=object), self.field: slices}

    def joined(self, head: str, passage: str) -> str:
        """What the ranker reads after its prompt. A word's own space is that between the two."""
        if head:
            return f"{self.space}{head} {passage.removeprefix(' ')}" if passage else self.space + head
        return self.space + passage.removeprefix(" ") if self.prompt and passage else passage

    # ------------------------------------------------------------------ passages

    def rooms(self, frame: pd.DataFrame) -> np.ndarray:
        """(N,) the tokens that there are for head and passage in each row.

        Raises:
            DataError: If that depends on the query, there is none, and no length was given.
        """
        if self.ranker is None or not len(frame):
            return np.full(len(frame), UNLIMITED)
        if "query" in frame.columns:
            codes, queries = pd.factorize(frame["query"])
            return self.ranker.room(list(queries))[codes]
        room = int(self.ranker.room([""])[0])
        if self.length is None and room != int(self.ranker.room(["a"])[0]):
            raise DataError(f"{self!r}: these are documents without queries, so how much room there is beside a query is not known: pass length=.")
        return np.full(len(frame), room)

    def chunks(self, heads: Sequence[str], texts: Sequence[str]) -> Iterator[np.ndarray]:
        """Row numbers, in portions in which the rows of one document stand together."""
        codes, _ = pd.factorize(np.array([hash(pair) for pair in zip(heads, texts, strict=True)], dtype=np.int64))
        yield from scoring.windows(codes, ROWS)

    def in_order(self, heads: Sequence[str], texts: Sequence[str], rooms: np.ndarray) -> list[Passages]:
        """The passages of each row."""
        found: list[Any] = [None] * len(texts)
        for rows in self.chunks(heads, texts):
            for row, cut in zip(rows, self.cut([heads[i] for i in rows], [texts[i] for i in rows], rooms[rows]), strict=True):
                found[row] = cut
        return found

    def cut(self, heads: Sequence[str], texts: Sequence[str], rooms: np.ndarray, places: bool = True) -> list[Passages]:
        """The passages of some rows. Each distinct document is tokenised once, and split once for each amount of room.

        Args:
            heads: What stands before each row's passages.
            texts: The documents.
            rooms: The tokens that there are for head and passage.
            places: Whether the texts of most passages will be asked for, or only their tokens.

        Raises:
            DataError: If query and title leave too little room.
        """
        documents: dict[tuple[str, str], int] = {}
        numbers = [documents.setdefault(pair, len(documents)) for pair in zip(heads, texts, strict=True)]
        titles = self.splitter.words([head for head, _ in documents], [bool(self.prompt)] * len(documents))
        words = self.splitter.words([text for _, text in documents], [bool(self.prompt or head) for head, _ in documents], places)
        known: dict[tuple[int, int], Passages] = {}
        found = []
        for number, room in zip(numbers, rooms.tolist(), strict=True):
            if (number, room) not in known:
                known[number, room] = self._passages(titles[number], words[number], room)
            found.append(known[number, room])
        return found

    def _passages(self, title: Words, words: Words, room: int) -> Passages:
        """The passages of one document."""
        left = room - len(self.prompt_ids)
        half = max(1, left // 2)                            # a long title leaves at least half of the room to the passage
        head = next(self.splitter.windows(title, half, half, behind=bool(self.prompt)))
        head_ids = np.concatenate([self.prompt_ids, head.ids])
        left = room - len(head_ids)
        length = left if self.length is None else min(self.length, left)
        if length < LEAST:
            raise DataError(f"{self!r}: a query leaves {room} tokens for prompt, title and passage, too few: pass query_length= to the ranker, or a larger max_length=.")
        stride = max(1, length // 2) if self.stride is None else min(self.stride, length)
        windows = list(self.splitter.windows(words, length, stride, behind=bool(len(head_ids))))
        shown = head.text.removeprefix(" ")
        if not len(windows[0].ids):                     # then the head is read on its own
            head_ids = self.splitter.ids(self.prompt + self.joined(shown, ""))
        return Passages(shown, head_ids, windows)

    def fits(self, ranker: Ranker) -> bool:
        """Whether a ranker reads passages as they are counted here."""
        if fields_of(ranker.text_field) != [*self.before, self.field] or ranker.text_prompt != self.prompt:
            return False
        if self.ranker is not None and self.ranker.reads() == ranker.reads():
            return True
        return self.ranker is None and tokenizer_fingerprint(self.tokenizer) == ranker.reads_by()

    def key(self) -> tuple[Any, ...]:
        """What makes two cutters cut alike."""
        room = None if self.ranker is None else repr(self.ranker.reads())
        return (tokenizer_fingerprint(self.tokenizer), room, self.length, self.stride, self.title, self.field, tuple(self.before))

    def __repr__(self) -> str:
        return f"split(length={self.length}, stride={self.stride})"
