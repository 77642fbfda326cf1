"""Splitting documents into passages that a ranker reads whole: the transformer before it."""

from __future__ import annotations

from typing import Any, ClassVar

import pandas as pd
import pyterrier as pt

from ..rankers import Ranker
from .cutting import Cutter
from .fused import SplitAndScore


class Split(pt.Transformer):
    """Splits documents into passages; see ``split``."""

    schematic: ClassVar[dict[str, Any]] = {"label": "Split", "help_url": None}

    def __init__(self, cutter: Cutter) -> None:
        self.cutter = cutter

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """One row a passage: docno ``d1%p0``, ``d1%p1``, ..., the passage in the text field, all other columns as they were.

        Args:
            inp: Candidates (``qid``, ``query``, ``docno``), or documents (``docno``), with the text field.
        """
        frame = self.cutter.checked(inp, self)
        heads, texts = self.cutter.sides(frame)
        rows, docnos, passages, cut_heads = [], [], [], []
        for row, cut in enumerate(self.cutter.in_order(heads, texts, self.cutter.rooms(frame))):
            for number, window in enumerate(cut.windows):
                rows.append(row)
                docnos.append(f"{frame['docno'].iat[row]}%p{number}")
                passages.append(window.text)
                cut_heads.append(cut.head)
        # the whole text would be copied for each of its passages otherwise
        out = frame.drop(columns=[self.cutter.field]).iloc[rows].reset_index(drop=True).assign(docno=pd.Series(docnos, dtype=object))
        return out.assign(**self.cutter.columns(out, cut_heads, passages))[frame.columns]

    def fuse_right(self, right: pt.Transformer) -> pt.Transformer | None:
        """Splitting and scoring as one step, if the ranker reads as this splitter counts."""
        ranker = right if isinstance(right, Ranker) else getattr(right, "student_", None)
        return SplitAndScore(self, self.cutter, right) if isinstance(ranker, Ranker) and self.cutter.fits(ranker) else None

    def __repr__(self) -> str:
        return repr(self.cutter)

    def __eq__(self, other: object) -> bool:
        return self.cutter.key() == other.cutter.key() if isinstance(other, Split) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.cutter.key())

    def subtransformers(self) -> dict[str, pt.Transformer]:
        """None: the ranker is only asked how it reads."""
        return {}


def split(reader: Any, length: int | None = None, stride: int | None = None, title: str | None = "title", text_field: str | None = None) -> Split:
    """A transformer that splits documents into passages which a ranker reads whole.

    Every word is in some passage, a passage is a slice of the text from the start of a word to the end of one, and has there the
    tokens that it has in the whole. Only a word longer than a passage is cut inside. An empty document is one empty passage.

    Args:
        reader: The ranker, or a ``Distiller``, that will read the passages; or a fast transformers tokenizer, with ``length``.
        length: The most tokens of a passage itself. Default None: what the ranker's limit leaves beside query, title and special
            tokens (256 in all in arXiv:2009.07531). Never more than that.
        stride: The most tokens from one passage's start to the next's. Default None: half the length, as in arXiv:1905.09217, section 3
            (arXiv:2009.07531, which cites it, gives none).
        title: The column put before each passage, if the frame has it. It gets at most half of the room. None: none. A ranker
            that reads several fields has the last one split, and the others before it.
        text_field: The column that is split. Default None: what the ranker reads; "text" for a tokenizer.

    Raises:
        ValueError: If the stride would leave words out, or the length is too short.
        DataError: If the tokenizer is a slow one.
    """
    return Split(Cutter(reader, length, stride, title, text_field))
