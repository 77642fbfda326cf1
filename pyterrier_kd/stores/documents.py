"""``DocumentStore``: what a ranker makes of each document, computed once and read while ranking.

    store = kd.DocumentStore("colbert.store")
    (colbert.doc_encoder() >> store).index(dataset.get_corpus_iter())
    pipeline = bm25 % 1000 >> store.scorer(colbert)                     # needs no document text

A store is stamped with what its vectors depend on, and refuses a ranker that would make others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import pyterrier as pt

from ..errors import CheckpointError, StoreError
from ..formats.checkpoints import METADATA, read_json
from ..rankers import TwoSided
from .docnos import Docnos
from .files import SCALES, TYPES, VECTORS, VERSION, StoredVectors, opened, settle
from .indexing import StoreIndexer
from .reranking import StoreScorer
from .retrieval import StoreRetriever
from .stamp import Stamp, quickly_told, text_settings


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
        self._open: tuple[str, StoredVectors, Docnos] | None = None
        if self.folder.is_file():
            raise StoreError(f"{self.folder} is a file; a store is a folder.")
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
        try:
            facts = read_json(str(self.folder), METADATA) if self.folder.is_dir() else {}
        except CheckpointError as error:
            raise StoreError(f"The store {self.folder} is damaged: {error}") from error
        if not facts and self.exists():
            raise StoreError(f"{self.folder} holds other files, and no store: pass another folder.")
        if not facts:
            raise StoreError(f"There is no store at {self.folder}: make one with (ranker.doc_encoder() >> DocumentStore({str(self.folder)!r})).index(corpus).")
        if (facts.get("type"), facts.get("format")) != (self.ARTIFACT_TYPE, self.ARTIFACT_FORMAT):
            raise StoreError(f"{self.folder} holds a {facts.get('type')}.{facts.get('format')}, not a store of document vectors.")
        if facts.get("version") != VERSION:
            raise StoreError(f"The store {self.folder} has version {facts.get('version')}, this release reads version {VERSION}: index the documents again.")
        return facts

    def __len__(self) -> int:
        """The number of documents."""
        return int(self.facts["documents"])

    @property
    def bytes_a_document(self) -> float:
        """Bytes of vectors, mean over documents."""
        sizes = self.facts["sizes"]
        return float((sizes[VECTORS] + sizes[SCALES]) / max(1, len(self)))

    def opened(self) -> tuple[str, StoredVectors, Docnos]:
        """What is on the disk now: what identifies it, the vectors, the names; opened again where the store was made anew."""
        facts = self.facts
        if self._dtype not in (None, facts["dtype"]):
            raise StoreError(f"The store {self.folder} holds {facts['dtype']}, not {self._dtype}.")
        if self._open is None or self._open[0] != facts["id"]:
            self._open = (facts["id"], opened(self.folder, facts), Docnos(self.folder))
        return self._open

    @property
    def vectors(self) -> StoredVectors:
        """The vectors, memory-mapped.

        Raises:
            StoreError: If a file is damaged, or of another type than was asked for.
        """
        return self.opened()[1]

    @property
    def docnos(self) -> Docnos:
        """The documents' names by number, and their numbers by name."""
        return self.opened()[2]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": None}        # another process opens the files itself

    def require(self, ranker: TwoSided, before: Stamp | None = None) -> Stamp:
        """Refuses a ranker whose vectors these are not.

        Args:
            ranker: The ranker.
            before: What an earlier call gave: unless the store or the ranker's settings or tokenizer changed since, its weights are not looked at again.

        Raises:
            StoreError: If so.
        """
        facts = self.facts
        if before is not None and facts["encoder"] == before.encoder and quickly_told(ranker) == before.told:
            return before
        own = Stamp.of(ranker)
        if facts["encoder"] != own.encoder:
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

    def retriever(self, ranker: TwoSided, num_results: int = 1000, *, neighbours: int = 128, probes: int | None = None, factory: str | None = None,
                  exhaustive: bool = False) -> StoreRetriever:
        """First-stage retrieval: the documents of each query vector's nearest token vectors, by their exact scores. Needs faiss.

        Args:
            ranker: Encodes queries, and compares.
            num_results: The most documents a query. Default 1000.
            neighbours: Token vectors that are looked up for each of a query's. Default 128.
            probes: Lists of the index that are looked into for each of a query's vectors. Default None: at least 8, and as many as hold 32 times
                the neighbours.
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
