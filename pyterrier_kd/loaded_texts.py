"""Texts that are known by the names of their documents, and loaded when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, overload

import numpy as np
import pandas as pd
import pyterrier as pt

from .errors import DataError, some

TextSource = str | Any       # a dataset by name, a text loader, or a mapping from docno to text


class Loaded(Sequence[str]):
    """Texts that are loaded whenever they are asked for.

    Args:
        docnos: Of which documents.
        load: Gives the texts of some docnos, in their order.
        kept: (N,) bool, which are wanted at all; the others are "". Default: all.
    """

    def __init__(self, docnos: np.ndarray, load: Callable[[list[str]], list[str]], kept: np.ndarray | None = None) -> None:
        self.docnos, self.load = docnos, load
        self.kept = np.ones(len(docnos), dtype=bool) if kept is None else kept

    def __len__(self) -> int:
        return len(self.docnos)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        """One text, or some."""
        if not isinstance(index, slice):
            return self.load([str(self.docnos[index])])[0] if self.kept[index] else ""
        kept = self.kept[index]
        found = iter(self.load([str(d) for d in self.docnos[index][kept]]))
        return [next(found) if k else "" for k in kept]

    def some(self, numbers: np.ndarray) -> list[str]:
        """The texts of some documents by number, loaded together."""
        return self.load([str(self.docnos[i]) for i in numbers])

    def only(self, kept: np.ndarray) -> Loaded:
        """The same texts, those that are not ``kept`` empty."""
        return Loaded(self.docnos, self.load, kept)


def loader_of(source: TextSource, field: str) -> Callable[[list[str]], list[str]]:
    """A function that loads the texts of some docnos."""
    if isinstance(source, Mapping):
        return partial(mapped_texts, source)
    dataset: Any = pt.get_dataset(source) if isinstance(source, str) else None
    loader: Any = source if dataset is None else dataset.text_loader(fields=[field])
    return partial(loaded_texts, loader, field)


def mapped_texts(texts: Mapping[str, str], docnos: list[str]) -> list[str]:
    """The texts of some docnos in a mapping.

    Raises:
        DataError: If one is missing.
    """
    lacking = [d for d in docnos if d not in texts]
    if lacking:
        raise DataError(f"{len(lacking)} of {len(docnos)} documents have no text: {some(lacking)}.")
    return [texts[d] for d in docnos]


def loaded_texts(loader: pt.Transformer, field: str, docnos: list[str]) -> list[str]:
    """The texts of some docnos by a text loader.

    Raises:
        DataError: If one is missing.
    """
    if not docnos:
        return []
    found = loader.transform(pd.DataFrame({"qid": "0", "query": "", "docno": docnos}))
    texts = dict(zip(found["docno"].astype(str), found[field], strict=True))
    return mapped_texts({d: t for d, t in texts.items() if isinstance(t, str)}, docnos)
