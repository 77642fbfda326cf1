"""One side of a two-sided ranker as a transformer, for indexing and for retrieval."""

from __future__ import annotations

from typing import Any, ClassVar

import pandas as pd
import pyterrier as pt

from ..frames import fields_of, require_strings, row_texts


class OneSide(pt.Transformer):
    """Adds the vector, or the vectors, of the query or of the text.

    Args:
        ranker: A ranker with ``encode_queries`` and ``encode_docs``.
        side: "query" or "doc".
    """

    schematic: ClassVar[dict[str, Any]] = {"label": "Encode one side", "help_url": None}

    def __init__(self, ranker: Any, side: str) -> None:
        self.ranker, self.side = ranker, side
        self.text_field, self.verbose, self.batch_size = ranker.text_field, ranker.verbose, ranker.batch_size

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Adds ``query_vec`` or ``doc_vec``; of rankers with several vectors a text, ``query_embs`` or ``doc_embs``."""
        columns = ["query"] if self.side == "query" else fields_of(self.ranker.text_field)
        pt.validate.columns(inp, includes=columns, context=self)
        if self.side == "query":
            require_strings(inp, "query", self)
            encoded = self.ranker.encode_queries(inp["query"])
        else:
            encoded = self.ranker.encode_docs(row_texts(inp, columns, None, self))
        return inp.assign(**{f"{self.side}_{self.ranker.VECTORS}": list(encoded)})

    def __rshift__(self, right: Any) -> pt.Transformer:
        """``>>``; a store of documents is told whose vectors it gets."""
        if self.side == "doc" and getattr(right, "ARTIFACT_FORMAT", None) == "kd":
            indexer: pt.Transformer = right.indexer(self.ranker)
            return indexer
        composed: pt.Transformer = super().__rshift__(right)
        return composed

    def fuse_rank_cutoff(self, k: int) -> pt.Transformer | None:
        """Cuts before texts are encoded rather than after."""
        return pt.RankCutoff(k) >> self if self.side == "doc" else None

    def __eq__(self, other: object) -> bool:
        return self.side == other.side and self.ranker == other.ranker if isinstance(other, OneSide) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.side, self.ranker))

    def __repr__(self) -> str:
        return f"{self.ranker!r}.{self.side}_encoder()"

    def subtransformers(self) -> dict[str, pt.Transformer]:
        """None: the ranker is no stage of its own."""
        return {}
