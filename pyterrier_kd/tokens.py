"""Texts as token ids: each distinct text is tokenised once, pairs are assembled from ids.

A ``TokenTable`` holds the ids of many texts in one flat array, without special tokens. A ``Template`` knows which
special ids a tokenizer puts around one text and around a pair; it is read off the tokenizer itself, so any encoder's
tokenizer works. ``assemble`` puts both together into the tensors of a batch, padded to its own longest row only.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .errors import DataError, some

CHUNK = 8192            # texts tokenised at once: enough to keep a parallel tokenizer busy, small in memory
IN_MEMORY = 1 << 26     # ids (256 MiB) up to which a table stays in memory


@dataclass(frozen=True)
class TokenTable:
    """The ids of N texts.

    Attributes:
        ids: (total,) int32, all texts one after the other; memory-mapped where it is large.
        starts: (N + 1,) int64; text i is ids[starts[i]:starts[i + 1]].
        cut: How many of the texts were longer than the limit that they were cut to.
    """

    ids: np.ndarray
    starts: np.ndarray
    cut: int = 0

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        """The (T,) int32 ids of one text."""
        return self.ids[self.starts[row]:self.starts[row + 1]]

    @cached_property
    def lengths(self) -> np.ndarray:
        """(N,) int64 numbers of tokens."""
        return np.diff(self.starts)

    def take(self, rows: np.ndarray) -> TokenTable:
        """Some of the texts."""
        return TokenTable(np.concatenate([self[i] for i in rows]) if len(rows) else self.ids[:0], np.concatenate([[0], np.cumsum(self.lengths[rows])]), self.cut)

    def limited(self, limit: int) -> TokenTable:
        """The same texts, those of more than ``limit`` tokens cut to that."""
        lengths = self.lengths
        long = lengths > limit
        if not long.any():
            return self
        kept = np.arange(len(self.ids)) - np.repeat(self.starts[:-1], lengths) < limit
        return TokenTable(self.ids[kept], np.concatenate([[0], np.cumsum(np.minimum(lengths, limit))]), self.cut + int(long.sum()))


def tokenise(tokenizer: Any, texts: Sequence[str], limit: int, prompt: str = "") -> TokenTable:
    """Tokenises every text once, without special tokens.

    Args:
        tokenizer: A transformers tokenizer.
        texts: The N texts.
        limit: The most tokens of a text that are kept; the rest is cut, and counted.
        prompt: Text put before each text.

    Returns:
        A table of N rows, memory-mapped from a temporary file where it holds more than ``IN_MEMORY`` ids.
    """
    lengths = np.zeros(len(texts), dtype=np.int64)
    cut, parts, held, spill = 0, [], 0, None
    for start in range(0, len(texts), CHUNK):
        rows = encode(tokenizer, [prompt + t for t in texts[start:start + CHUNK]], limit + 1)
        cut += sum(len(r) > limit for r in rows)
        rows = [r[:limit] for r in rows]
        lengths[start:start + len(rows)] = [len(r) for r in rows]
        parts.append(np.fromiter((i for r in rows for i in r), dtype=np.int32))
        held += len(parts[-1])
        if held > IN_MEMORY:
            spill = spill or tempfile.TemporaryFile(prefix="kd-tokens-")                # noqa: SIM115 (lives as long as the table)
            for part in parts:
                part.tofile(spill)
            parts, held = [], 0
    if spill is not None:
        for part in parts:
            part.tofile(spill)
        spill.flush()
        flat: np.ndarray = np.memmap(spill, dtype=np.int32, mode="r")
    else:
        flat = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)
    return TokenTable(flat, np.concatenate([[0], np.cumsum(lengths)]), cut)


def encode(tokenizer: Any, texts: list[str], limit: int | None = None) -> list[list[int]]:
    """The ids of each text without special tokens, at most ``limit`` of them.

    Raises:
        DataError: If a text holds half of a surrogate pair, which no tokenizer reads.
    """
    try:
        ids: list[list[int]] = tokenizer(
            texts, add_special_tokens=False, truncation=limit is not None, max_length=limit, padding=False,
            return_attention_mask=False, return_token_type_ids=False, verbose=False,
        )["input_ids"]
    except (TypeError, UnicodeEncodeError) as error:
        if broken := [text[:60] for text in texts if any("\ud800" <= character <= "\udfff" for character in text)]:
            raise DataError(f"{len(broken)} of {len(texts)} texts hold half of a surrogate pair, which is no character: {some(broken)}. "
                            "Replace it: text.encode('utf-8', 'replace').decode().") from error
        raise
    return ids


@dataclass(frozen=True)
class Template:
    """The special ids that a tokenizer puts around its segments, and the type id of each piece.

    A row is ``pieces[0] + first segment + pieces[1] (+ second segment + pieces[2])``. ``types`` has the type ids of
    those pieces and segments in that order, or is None for a model that takes no type ids.
    """

    pieces: tuple[tuple[int, ...], ...]
    types: tuple[int, ...] | None

    @property
    def special(self) -> int:
        """The number of special tokens in a row."""
        return sum(len(p) for p in self.pieces)

    @classmethod
    def of(cls, tokenizer: Any, segments: int, types: bool) -> Template:
        """Reads the template off a tokenizer by encoding known words with and without special tokens.

        Args:
            tokenizer: A transformers tokenizer.
            segments: 1 for single texts, 2 for pairs.
            types: Whether the model takes type ids.

        Raises:
            DataError: If the tokenizer does not treat the segments of a pair independently of each other.
        """
        found = []
        for known in (("a", "b"), ("one two", "three")):
            words = known[:segments]
            row = tokenizer(*words, return_token_type_ids=True)
            found.append(cls._match(row["input_ids"], row.get("token_type_ids"), [encode(tokenizer, [w])[0] for w in words]))
        if found[0] is None or found[0] != found[1]:
            raise DataError(f"{type(tokenizer).__name__} does not encode the {segments} segment(s) of a row independently "
                            "of each other, which this package relies on. Use the model's fast tokenizer.")
        return found[0] if types else cls(found[0].pieces, None)

    @classmethod
    def _match(cls, row: list[int], types: list[int] | None, segments: list[list[int]]) -> Template | None:
        """Finds the segments in ``row``, in order; what stands between them is the template."""
        pieces, type_ids, at = [], [], 0
        types = types or [0] * len(row)
        for segment in segments:
            start = next((i for i in range(at, len(row)) if row[i:i + len(segment)] == segment), None)
            if start is None:
                return None
            pieces.append(tuple(row[at:start]))
            type_ids += [types[at] if start > at else 0, types[start]]
            at = start + len(segment)
        pieces.append(tuple(row[at:]))
        type_ids.append(types[at] if at < len(row) else 0)
        return cls(tuple(pieces), tuple(type_ids))


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """16 hexadecimal digits that identify how a tokenizer reads: its vocabulary, and what it makes of a few telling texts."""
    probe = ["Ärger in CAFÉS: don't re-read 3,141 naïve x_y's", "  two  spaces\tand 漢字 👍"]
    digest = hashlib.blake2b(repr(sorted(tokenizer.get_vocab().items())).encode("utf-8", "surrogatepass"), digest_size=8)
    digest.update(repr(encode(tokenizer, probe)).encode())
    return digest.hexdigest()


def assemble(template: Template, segments: Sequence[Sequence[np.ndarray]], pad_id: int, device: torch.device | str) -> dict[str, Tensor]:
    """The tensors of a batch of N rows, padded on the right to the longest row.

    Args:
        template: What stands around the segments.
        segments: For each row, its one or two arrays of ids.
        pad_id: The id of padding.
        device: Where the tensors go.

    Returns:
        ``input_ids`` and ``attention_mask`` of shape (N, T), int64, and ``token_type_ids`` where the template has them.
    """
    pieces = [np.asarray(p, dtype=np.int32) for p in template.pieces]
    rows = [np.concatenate(list(woven(pieces, row))) for row in segments]
    lengths = np.array([len(r) for r in rows])
    width = int(lengths.max())
    ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, :len(row)] = row
    real = np.arange(width)[None, :] < lengths[:, None]
    tensors = {"input_ids": ids, "attention_mask": real.astype(np.int64)}
    if template.types is not None:
        tensors["token_type_ids"] = type_ids(template, segments, width)
    return {name: torch.from_numpy(value).to(device, non_blocking=True) for name, value in tensors.items()}


def assemble_with_masks(template: Template, texts: Sequence[np.ndarray], counts: Sequence[int], mask_id: int, pad_id: int, device: torch.device | str, *,
                        before_end: bool = False, attended: bool = True) -> tuple[dict[str, Tensor], Tensor]:
    """The tensors of a batch of N texts with mask tokens behind each (query augmentation), padded on the right.

    Args:
        template: What stands around a text.
        texts: The ids of each text.
        counts: How many mask tokens each gets.
        mask_id: The id of the mask token.
        pad_id: The id of padding.
        device: Where the tensors go.
        before_end: Whether mask tokens stand before the closing special tokens, rather than behind them.
        attended: Whether other tokens attend to them.

    Returns:
        As ``assemble``; and (N, T) bool, True for all tokens but padding.
    """
    first, last = template.pieces
    pieces = (first, (), last) if before_end else (first, last, ())
    masks = [np.full(count, mask_id, dtype=np.int32) for count in counts]
    types = None if template.types is None else (template.types[1],) * 5
    inputs = assemble(Template(pieces, types), list(zip(texts, masks, strict=True)), pad_id, device)
    real = inputs["attention_mask"].bool()
    if not attended:
        starts = np.array([len(first) + len(text) + len(pieces[1]) for text in texts])[:, None]
        places = np.arange(real.shape[1])[None, :]
        added = (places >= starts) & (places < starts + np.asarray(counts)[:, None])
        inputs["attention_mask"] = inputs["attention_mask"].masked_fill(torch.from_numpy(added).to(device), 0)
    return inputs, real


def woven(pieces: Sequence[np.ndarray], segments: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """pieces[0], segments[0], pieces[1], ..., pieces[-1]."""
    for piece, segment in zip(pieces, segments, strict=False):
        yield piece
        yield segment
    yield pieces[-1]


def type_ids(template: Template, segments: Sequence[Sequence[np.ndarray]], width: int) -> np.ndarray:
    """(N, width) int64 type ids, 0 for padding."""
    assert template.types is not None
    out = np.zeros((len(segments), width), dtype=np.int64)
    if not any(template.types):
        return out
    pieces = [len(p) for p in template.pieces]
    for i, row in enumerate(segments):
        at = 0
        for j, type_id in enumerate(template.types):
            length = pieces[j // 2] if j % 2 == 0 else len(row[j // 2])
            out[i, at:at + length] = type_id
            at += length
    return out


def check_room(queries: Sequence[str], lengths: np.ndarray, special: int, max_length: int, who: str) -> None:
    """Refuses queries that would leave no room for a text.

    Args:
        queries: The queries.
        lengths: (N,) their numbers of tokens.
        special: The number of special tokens of a pair.
        max_length: What the model takes in all.
        who: Who asks, for the message.

    Raises:
        DataError: If a query and the special tokens fill ``max_length``.
    """
    full = np.flatnonzero(lengths + special >= max_length)
    if len(full):
        shortened = [q if len(q) <= 60 else q[:57] + "..." for q in (queries[int(i)] for i in full)]
        raise DataError(
            f"{who} reads {max_length} tokens, {special} of them special: {len(full)} of {len(queries)} queries "
            f"({int(lengths[full].max())} tokens the longest) leave no room for a text: {some(shortened)}. "
            f"Pass query_length= to cut queries, or a larger max_length=.")
