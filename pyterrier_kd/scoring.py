"""Fast inference over any number of rows, in bounded memory.

Three ideas. (1) Rows are visited in windows, ordered by text, so that a text is prepared once a frame and released
when its window is done. (2) Within a window rows are sorted by length, longest first, so that a batch holds rows of
nearly one length and running out of memory shows at once. (3) A batch is as many rows as fit a budget of tokens, not a
number of rows: on a CPU 1,024 tokens keep a layer's activations in its cache, on a GPU many more are needed to fill it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import numpy as np
import torch

logger = logging.getLogger(__name__)

WINDOW = 1 << 15                                            # rows a window: large enough that sorting pays
TOKENS = {"cpu": 1024, "cuda": 1 << 16, "mps": 1 << 14}     # tokens a batch, by kind of device


def windows(codes: np.ndarray, size: int = WINDOW) -> Iterator[np.ndarray]:
    """Splits rows into windows in which the rows of one text stand together.

    Args:
        codes: (N,) int, which text each row has.
        size: The number of rows at which a window ends. It is exceeded only to keep the rows of a text together, and
            by no more than ``size``: a text with more rows than that goes on in the next window.

    Yields:
        Arrays of row numbers; together every row once.
    """
    order = np.argsort(codes, kind="stable")
    start = 0
    while start < len(order):
        end = min(start + size, len(order))
        last = codes[order[end - 1]]
        extended = end + int(np.searchsorted(codes[order[end:end + size]], last, side="right"))
        yield order[start:extended]
        start = extended


def length_batches(lengths: np.ndarray, tokens: int, rows: int | None = None) -> Iterator[np.ndarray]:
    """Batches of rows of similar length, longest first.

    Args:
        lengths: (N,) number of tokens of each row.
        tokens: The most tokens, padding included, in a batch; a row longer than that is a batch of its own.
        rows: The most rows in a batch, or None.

    Yields:
        Arrays of row numbers; together every row once.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        count = max(1, tokens // max(1, int(lengths[order[start]])))
        count = min(count, rows or count)
        yield order[start:start + count]
        start += count


def by_length(lengths: np.ndarray, forward: Callable[[np.ndarray], np.ndarray], tokens: int,
              progress: Callable[[int], object] | None = None, batch_size: int | None = None) -> np.ndarray:
    """Runs ``forward`` over all rows in batches of similar length, and puts the results back into row order.

    Where a batch does not fit the device's memory it is halved, as are all that follow.

    Args:
        lengths: (N,) number of tokens of each row, N > 0.
        forward: Takes row numbers, returns an array whose first axis is those rows.
        tokens: The budget of tokens a batch, padding included.
        progress: Called with the number of rows of each batch that is done.
        batch_size: The most rows in a batch, or None.

    Returns:
        (N, ...) float32.
    """
    result: np.ndarray | None = None
    todo = list(length_batches(lengths, tokens, batch_size))[::-1]
    while todo:
        rows = todo.pop()
        try:
            values = forward(rows)
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                raise
            torch.cuda.empty_cache()
            logger.warning("a batch of %d rows x %d tokens does not fit the memory: going on with halves", len(rows), lengths[rows].max())
            todo = [half for batch in [*todo, rows] for half in np.array_split(batch, 2)[::-1] if len(half)]
            continue
        if result is None:
            result = np.empty((len(lengths), *values.shape[1:]), dtype=np.float32)
        result[rows] = values
        if progress is not None:
            progress(len(rows))
    assert result is not None
    return result
