"""Word vectors in GloVe's text format, and a tokenizer of their words."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import transformers

from ..errors import CheckpointError

PAD, UNKNOWN = "[PAD]", "[UNK]"


def read_glove(path: str | Path, words: int | None = None) -> tuple[np.ndarray, Any]:
    """Reads a file of lines ``word value value ...``, gzipped or not, with or without the line of sizes that word2vec puts first.

    Args:
        path: The file.
        words: The most words, from the first; default None: all.

    Returns:
        (V, D) float32 vectors, of which the first, of padding, is 0 and the second, of unknown words, their mean; and a tokenizer that reads texts in lower
        case as words, numbers and marks.

    Raises:
        CheckpointError: If a line is not of this form, or the file cut short.
    """
    opener = gzip.open if str(path).endswith(".gz") else open
    vocabulary: dict[str, int] = {PAD: 0, UNKNOWN: 1}
    vectors: list[np.ndarray] = []
    with opener(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(whole_lines(lines, path)):
            parts = line.rstrip().split(" ")
            if number == 0 and len(parts) == 2:
                continue
            width = len(vectors[0]) if vectors else len(parts) - 1
            try:
                word, vector = " ".join(parts[:-width]), np.array(parts[-width:], dtype=np.float32)
                if not word or width < 2 or not np.isfinite(vector).all():
                    raise ValueError("no word, less than two values, or one that is no number")
            except ValueError as error:
                raise CheckpointError(f"{path}, line {number + 1}: not a word and {width} numbers ({error}): {line[:60]!r}") from error
            if word not in vocabulary:
                vocabulary[word] = len(vocabulary)
                vectors.append(vector)
            if words is not None and len(vectors) >= words:
                break
    if not vectors:
        raise CheckpointError(f"{path} holds no word vectors.")
    matrix = np.stack(vectors)
    return np.concatenate([np.zeros_like(matrix[:1]), matrix.mean(0, keepdims=True), matrix]), word_tokenizer(vocabulary)


def whole_lines(lines: Iterable[str], path: str | Path) -> Iterator[str]:
    """The lines of a text file.

    Raises:
        CheckpointError: If it is cut short, or no text in UTF-8.
    """
    try:
        yield from lines
    except (EOFError, UnicodeDecodeError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read to its end: {error}") from error


def word_tokenizer(vocabulary: dict[str, int]) -> Any:
    """A transformers tokenizer of whole words in lower case."""
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.normalizer = tokenizers.normalizers.Sequence([tokenizers.normalizers.NFC(), tokenizers.normalizers.Lowercase()])
    backend.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=PAD, unk_token=UNKNOWN)
