"""Encoding documents into a store, portion by portion, so that a run that was stopped goes on where it stopped."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import pandas as pd
import pyterrier as pt

from ..errors import DataError, StoreError
from ..frames import fields_of, row_texts
from ..rankers import TwoSided
from .files import VERSION, StoreBusy, Writer, unfinished
from .stamp import text_fingerprint, text_settings

PORTION = 1024      # documents written at once


class StoreIndexer(pt.Indexer):
    """Encodes documents into a store. A run that was stopped goes on where it stopped, if it gets the same documents.

    Args:
        store: Where to.
        ranker: Encodes.
        overwrite: Whether to replace what is there.
    """

    schematic: ClassVar[dict[str, Any]] = {"label": "Index vectors", "help_url": None}

    def __init__(self, store: Any, ranker: TwoSided, overwrite: bool = False) -> None:
        self.store, self.ranker, self.overwrite = store, ranker, overwrite

    def index(self, iter: Iterable[Mapping[str, Any]], **_: Any) -> Any:
        """Encodes and stores a corpus.

        Args:
            iter: Documents: ``docno`` and the ranker's text field(s).

        Returns:
            The store.

        Raises:
            StoreError: If there is a store already, or the documents are not those with which an unfinished run began.
            DataError: If a docno comes twice, or a document has no text.
            OSError: If the disk is full; a later run goes on from there.
        """
        store, ranker = self.store, self.ranker
        there = store.exists()
        if there and not self.overwrite:
            raise StoreError(f"There is a store at {store.folder} already: use it, or replace it with store.indexer(ranker, overwrite=True).")
        dtype = store._dtype or (store.facts["dtype"] if there else "float16")
        facts = {"type": store.ARTIFACT_TYPE, "format": store.ARTIFACT_FORMAT, "package_hint": store.ARTIFACT_PACKAGE_HINT, "version": VERSION, "dtype": dtype,
                 "encoder": text_fingerprint(ranker), "encoder_name": repr(ranker), "settings": text_settings(ranker)}
        try:
            writer = Writer(store.folder, facts, named=frozenset({"encoder_name"}))
        except StoreError as error:
            if not self.overwrite or isinstance(error, StoreBusy):
                raise
            shutil.rmtree(unfinished(store.folder))
            writer = Writer(store.folder, facts)
        try:
            self._write(writer, iter)
        finally:
            writer.close()
        return store

    def _write(self, writer: Writer, iter: Iterable[Mapping[str, Any]]) -> None:
        """Writes what is not written yet, and finishes the store."""
        store, ranker = self.store, self.ranker
        seen: set[str] = set()
        with pt.tqdm(desc=f"{type(ranker).__name__} store", unit="doc", initial=len(writer.docnos), disable=not ranker.verbose) as bar:
            for portion in portions(iter, fields_of(ranker.text_field), seen, writer):
                texts = row_texts(pd.DataFrame(portion), fields_of(ranker.text_field), None, ranker)
                with ranker._inference():
                    encoded = ranker.encode("text", ranker.table("text", texts))
                writer.add([str(document["docno"]) for document in portion], encoded)
                ranker._report_cut(encoded.cut, len(portion))
                bar.update(len(portion))
        if not seen:
            raise DataError(f"{self!r}: the corpus holds no document.")
        if len(seen) < len(writer.docnos):
            raise StoreError(f"An unfinished store at {store.folder} holds {len(writer.docnos)} documents, these are {len(seen)}: finish it with all of them, or delete "
                             f"{writer.folder} to begin anew.")
        writer.finish(ranker.width)

    def __repr__(self) -> str:
        return f"({self.ranker!r}.doc_encoder() >> {self.store!r})"


def portions(documents: Iterable[Mapping[str, Any]], fields: list[str], seen: set[str], writer: Writer) -> Iterator[list[Mapping[str, Any]]]:
    """The documents that are not written yet, in portions.

    Args:
        documents: All.
        fields: The text fields that each must have.
        seen: Gets the docnos that have been met.
        writer: Knows which are written already.

    Raises:
        DataError: If a docno comes twice, or a document has no docno or text field.
        StoreError: If the documents do not begin with those that are written.
    """
    def fresh() -> Iterator[Mapping[str, Any]]:
        for position, document in enumerate(documents):
            if not {"docno", *fields} <= document.keys():
                raise DataError(f"Document {position + 1} has the fields {sorted(document)}; a store needs 'docno' and {fields}.")
            docno = str(document["docno"])
            if docno in seen:
                raise DataError(f"The docno {docno!r} comes twice, the second time as document {position + 1}: a store holds each document once.")
            seen.add(docno)
            if position >= done:
                yield document
            elif docno != writer.docnos[position]:
                raise StoreError(f"An unfinished store holds other documents: its document {position + 1} is {writer.docnos[position]!r}, now it is {docno!r}. Index the same "
                                 f"corpus, in the same order, or delete {writer.folder} to begin anew.")

    done = len(writer.docnos)
    remaining = fresh()
    while portion := list(itertools.islice(remaining, PORTION)):
        yield portion
