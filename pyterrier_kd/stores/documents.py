"""``DocumentStore``: what a ranker makes of each document, computed once and read while ranking.

    store = kd.DocumentStore("colbert.store")
    (colbert.doc_encoder() >> store).index(dataset.get_corpus_iter())
    pipeline = bm25 % 1000 >> store.scorer(colbert)                     # needs no document text

A store is stamped with what its vectors depend on, and refuses a ranker that would make others.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import pyterrier as pt

from ..errors import DataError, StoreError, some
from ..formats.checkpoints import METADATA, read_json
from ..frames import explained, fields_of, require_strings, row_texts
from ..rankers import TwoSided
from ..tokens import tokenizer_fingerprint
from .docnos import Docnos
from .files import SCALES, TYPES, VECTORS, StoredVectors, Writer, opened, settle, unfinished
from .retrieval import StoreRetriever

VERSION = 1
PORTION = 1024      # documents written at once
QUERY_SETTINGS = frozenset({"query_prompt", "query_length", "query_marker", "expansion", "expand_before_end", "attend_expansion", "scale"})


def text_settings(ranker: TwoSided) -> dict[str, Any]:
    """The settings on which a ranker's vectors of texts depend."""
    return {**{k: v for k, v in ranker.settings().items() if k not in QUERY_SETTINGS}, "dtype": str(ranker.dtype or "float32")}


def text_fingerprint(ranker: TwoSided) -> str:
    """16 hexadecimal digits for all on which a ranker's vectors of texts depend."""
    told = json.dumps([type(ranker).__name__, ranker.fingerprint(), tokenizer_fingerprint(ranker.tokenizer), text_settings(ranker)], sort_keys=True)
    return hashlib.blake2b(told.encode(), digest_size=8).hexdigest()


class DocumentStore(pt.Artifact, pt.Indexer):
    """Vectors of documents on disk.

    Args:
        path: The folder; need not exist yet.
        dtype: How values are kept: "float16", "float32", or "int8" with a factor for each vector. Default: what the store has, of a new one "float16".

    Raises:
        StoreError: If the folder holds another kind of artifact, or a store of another version.
        ValueError: If ``dtype`` is unknown.
    """

    ARTIFACT_TYPE = "document_vectors"
    ARTIFACT_FORMAT = "kd"
    ARTIFACT_PACKAGE_HINT = "pyterrier-kd"
    schematic: ClassVar[dict[str, Any]] = {"label": "DocumentStore", "help_url": None}

    def __init__(self, path: str | Path, dtype: str | None = None) -> None:
        super().__init__(path)
        if dtype not in (None, *TYPES):
            raise ValueError(f"DocumentStore(dtype={dtype!r}) is unknown: it is one of {', '.join(map(repr, TYPES))}.")
        self.folder, self._dtype = Path(path), dtype
        if self.exists():
            _ = self.facts

    # ------------------------------------------------------------------ what it holds

    def exists(self) -> bool:
        """Whether there is anything in the folder."""
        settle(self.folder)
        return self.folder.is_dir() and any(self.folder.iterdir())

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the store says of itself.

        Raises:
            StoreError: If there is none, or of another kind or version.
        """
        facts = read_json(str(self.folder), METADATA) if self.folder.is_dir() else {}
        if not facts:
            raise StoreError(f"There is no store at {self.folder}: make one with (ranker.doc_encoder() >> DocumentStore({str(self.folder)!r})).index(corpus).")
        if (facts.get("type"), facts.get("format")) != (self.ARTIFACT_TYPE, self.ARTIFACT_FORMAT):
            raise StoreError(f"{self.folder} holds a {facts.get('type')}.{facts.get('format')}, not a store of document vectors.")
        if facts["version"] != VERSION:
            raise StoreError(f"The store {self.folder} has version {facts['version']}, this release reads version {VERSION}: index the documents again.")
        return facts

    def __len__(self) -> int:
        """The number of documents."""
        return int(self.facts["documents"])

    @property
    def bytes_a_document(self) -> float:
        """Bytes of vectors, mean over documents."""
        sizes = self.facts["sizes"]
        return float((sizes[VECTORS] + sizes[SCALES]) / max(1, len(self)))

    @cached_property
    def vectors(self) -> StoredVectors:
        """The vectors, memory-mapped.

        Raises:
            StoreError: If a file is damaged, or of another type than was asked for.
        """
        facts = self.facts
        if self._dtype not in (None, facts["dtype"]):
            raise StoreError(f"The store {self.folder} holds {facts['dtype']}, not {self._dtype}.")
        return opened(self.folder, facts)

    @cached_property
    def docnos(self) -> Docnos:
        """The documents' names by number, and their numbers by name."""
        _ = self.vectors        # whose opening checks all files
        return Docnos(self.folder)

    def require(self, ranker: TwoSided) -> str:
        """Refuses a ranker whose vectors these are not.

        Returns:
            What identifies the vectors.

        Raises:
            StoreError: If so.
        """
        facts, own = self.facts, text_fingerprint(ranker)
        if facts["encoder"] != own:
            raise StoreError(f"The store {self.folder} was made by {facts['encoder_name']} with settings {facts['settings']}, whose vectors of texts are not those of {ranker!r} "
                             f"({text_settings(ranker)}). Index the documents with this ranker, or score with that one.")
        return own

    # ------------------------------------------------------------------ indexing

    def index(self, iter: Iterable[Mapping[str, Any]], **_: Any) -> DocumentStore:
        """Not by itself: a store must know who encodes. See ``indexer``."""
        raise StoreError(f"{self!r} must know whose vectors it holds: (ranker.doc_encoder() >> store).index(corpus); behind other stages, "
                         "(... >> store.indexer(ranker)).index(corpus).")

    def indexer(self, ranker: TwoSided, overwrite: bool = False) -> StoreIndexer:
        """What encodes and stores documents; the same as ``ranker.doc_encoder() >> store``.

        Args:
            ranker: Encodes.
            overwrite: Whether to replace a store that is here, and what another ranker began. Default False.
        """
        return StoreIndexer(self, ranker, overwrite)

    # ------------------------------------------------------------------ ranking

    def scorer(self, ranker: TwoSided, missing: Literal["error", "text"] = "error") -> StoreScorer:
        """A re-ranker that reads the documents' vectors from this store.

        Args:
            ranker: Encodes queries, and compares.
            missing: What to do with documents that are not here: "error" (default), or "text", to encode their texts, which the frame then must have.
        """
        return StoreScorer(self, ranker, missing)

    def retriever(self, ranker: TwoSided, num_results: int = 1000, *, neighbours: int = 128, probes: int = 8, factory: str | None = None,
                  exhaustive: bool = False) -> StoreRetriever:
        """First-stage retrieval: the documents of each query vector's nearest token vectors, by their exact scores. Needs faiss.

        Args:
            ranker: Encodes queries, and compares.
            num_results: The most documents a query. Default 1000.
            neighbours: Token vectors that are looked up for each of a query's. Default 128.
            probes: Lists of the index that are looked into for each of them. Default 8.
            factory: What faiss calls the kind of index. Default None: an inverted file with vectors in float16, "IVF...,SQfp16".
            exhaustive: Whether to score every document instead. Default False.
        """
        return StoreRetriever(self, ranker, num_results, neighbours, probes, factory, exhaustive)

    def __repr__(self) -> str:
        return f"DocumentStore({str(self.folder)!r})"

    def __eq__(self, other: object) -> bool:
        return self.folder.absolute() == other.folder.absolute() if isinstance(other, DocumentStore) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.folder.absolute())


class StoreIndexer(pt.Indexer):
    """Encodes documents into a store. A run that was stopped goes on where it stopped, if it gets the same documents.

    Args:
        store: Where to.
        ranker: Encodes.
        overwrite: Whether to replace what is there.
    """

    schematic: ClassVar[dict[str, Any]] = {"label": "Index vectors", "help_url": None}

    def __init__(self, store: DocumentStore, ranker: TwoSided, overwrite: bool = False) -> None:
        self.store, self.ranker, self.overwrite = store, ranker, overwrite

    def index(self, iter: Iterable[Mapping[str, Any]], **_: Any) -> DocumentStore:
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
        except StoreError:
            if not self.overwrite:
                raise
            shutil.rmtree(unfinished(store.folder))
            writer = Writer(store.folder, facts)
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
        for name in ("vectors", "docnos"):
            vars(store).pop(name, None)
        return store

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


class StoreScorer(pt.Transformer):
    """Re-ranks documents by their vectors in a store; see ``DocumentStore.scorer``."""

    schematic: ClassVar[dict[str, Any]] = {"label": "Store scorer", "help_url": None}

    def __init__(self, store: DocumentStore, ranker: TwoSided, missing: Literal["error", "text"]) -> None:
        if missing not in ("error", "text"):
            raise ValueError(f"scorer(missing={missing!r}) is unknown: it is 'error' or 'text'.")
        self.stamp = store.require(ranker)
        self.store, self.ranker, self.missing = store, ranker, missing

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """The same rows in the same order, with ``score`` and ``rank`` set.

        Args:
            inp: A frame with ``qid``, ``query`` and ``docno``.

        Raises:
            DataError: If documents are not in the store and ``missing`` is "error".
        """
        with explained(self, inp, ["query"]):
            pt.validate.result_frame(inp, extra_columns=["query"], context=self)
        if self.store.facts["encoder"] != self.stamp:
            self.store.require(self.ranker)
        out = inp.drop(columns=["score", "rank"], errors="ignore").reset_index(drop=True)
        if not len(out):
            return pt.model.add_ranks(out.assign(score=pd.Series(dtype="float64")))
        require_strings(out, "query", self)
        docs, names = pd.factorize(out["docno"].astype(str))
        rows = self.store.docnos.rows(list(names))[docs]
        lost = rows < 0
        if lost.any() and self.missing == "error":
            unknown = names[np.unique(docs[lost])]
            raise DataError(f"{self!r}: {len(unknown)} of {len(names)} documents are not in the store: {some(sorted(unknown))}. Index them, or pass "
                            "missing='text' to encode their texts.")
        ranker = self.ranker
        unstored, texts = ranker._checked(inp.reset_index(drop=True)[lost]) if lost.any() else (out.head(0), [])
        codes, queries = pd.factorize(out["query"])
        scores = np.empty(len(out), dtype=np.float32)
        with ranker._inference(), pt.tqdm(total=len(out), desc=type(ranker).__name__, unit="pair", disable=not ranker.verbose) as bar:
            prepared = ranker._prepare_queries(list(queries))
            scores[~lost] = ranker._score_rows(prepared, codes[~lost], self.store.vectors, rows[~lost], bar.update)
        if len(unstored):
            scores[lost] = ranker.score(unstored["query"].tolist(), texts)
        return pt.model.add_ranks(out.assign(score=ranker._finite(scores).astype("float64")))

    def __eq__(self, other: object) -> bool:
        return (self.store, self.ranker, self.missing) == (other.store, other.ranker, other.missing) if isinstance(other, StoreScorer) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.store, self.ranker, self.missing))

    def __repr__(self) -> str:
        return f"{self.store!r}.scorer({self.ranker!r})"

    def subtransformers(self) -> dict[str, pt.Transformer]:
        """None: the ranker is only asked for queries."""
        return {}
