"""Frames as rankers, teachers and the distiller read them: which columns there must be, and the text of each row.

Checks are PyTerrier's own, so that it can inspect a pipeline; messages say which columns are there and what to do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt

from .errors import DataError, some

TextFields = str | Sequence[str]


def fields_of(text_field: TextFields) -> list[str]:
    """The text fields as a list."""
    return [text_field] if isinstance(text_field, str) else list(text_field)


@contextlib.contextmanager
def explained(who: Any, inp: pd.DataFrame, columns: list[str]) -> Iterator[None]:
    """Checks of PyTerrier's own, with a message that says which columns are there and what to do."""
    try:
        yield
    except pt.validate.InputValidationError as error:
        missing = [c for c in ["qid", "docno", *columns] if c not in inp.columns] if len(error.modes) > 1 else list(error.modes[0].missing_columns)
        extra = sorted({c for mode in error.modes for c in mode.extra_columns})
        message = f"{type(who).__name__} needs the column(s) {missing}; the frame has {list(inp.columns)}."
        if not missing:
            message = f"{type(who).__name__} takes no frame with the column(s) {extra}; this one has {list(inp.columns)}."
        if set(missing) - {"qid", "docno", "query"}:
            message += " Texts are added by `>> dataset.text_loader()` before this stage or by texts=; another column is read with text_field=."
        raise pt.validate.InputValidationError(message, error.modes) from None


def require_strings(frame: pd.DataFrame, column: str, who: Any) -> None:
    """Refuses missing values and anything but strings in a column."""
    bad = np.array([not isinstance(value, str) for value in frame[column]], dtype=bool)
    if bad.any():
        keys = [c for c in ("qid", "docno") if c in frame.columns]
        rows = [tuple(r) for r in frame.loc[bad, keys].head(3).itertuples(index=False)]
        raise DataError(f"{type(who).__name__}: {int(bad.sum())} of {len(frame)} rows have no string in the column {column!r} "
                        f"(first: {some(rows)}). Drop those rows, or fill the column with frame[{column!r}].fillna('').")


def require_unique(frame: pd.DataFrame, what: str, who: Any) -> None:
    """Refuses rows of the same query and document."""
    repeated = frame.duplicated(["qid", "docno"])
    if repeated.any():
        raise DataError(f"{who!r}: {int(repeated.sum())} {what} stand there again (first: {frame.loc[repeated, ['qid', 'docno']].iloc[0].tolist()}): "
                        "drop duplicates of (qid, docno) before.")


def distinct(values: Iterable[Any], what: str, who: Any) -> tuple[np.ndarray, list[str]]:
    """The distinct strings of N, and (N,) int64 which of them each is.

    Raises:
        DataError: If one is no string.
    """
    held = np.array([*values, None], dtype=object)[:-1]         # an array of objects, whatever they are
    codes, found = pd.factorize(held)
    if (codes < 0).any() or not all(isinstance(value, str) for value in found):
        bad = [i for i, value in enumerate(held) if not isinstance(value, str)]
        raise DataError(f"{type(who).__name__}: {len(bad)} of {len(held)} {what} are no strings (first: number {bad[0]}, {held[bad[0]]!r}).")
    return codes, list(found)


def row_texts(frame: pd.DataFrame, fields: list[str], loader: pt.Transformer | None, who: Any) -> list[str]:
    """The text of each row: its fields joined by a space, from the frame or from a text loader.

    Raises:
        DataError: If a text is missing.
    """
    if loader is not None:
        documents = frame[[c for c in ("qid", "query", "docno") if c in frame.columns]].drop_duplicates("docno").reset_index(drop=True)
        loaded = loader.transform(documents).drop_duplicates("docno")
        loaded = loaded[["docno", *fields]].assign(docno=loaded["docno"].astype(str))
        frame = frame[["qid", "docno"]].assign(docno=frame["docno"].astype(str)).merge(loaded, on="docno", how="left")
    for field in fields:
        require_strings(frame, field, who)
    if len(fields) == 1:
        return list(frame[fields[0]].tolist())
    return [" ".join(p for p in parts if p) for parts in zip(*(frame[f].tolist() for f in fields), strict=True)]
