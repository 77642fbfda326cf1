"""Hard negatives from the student itself: for a stage's ``candidates`` a corpus is retrieved from with the student as it is when the stage begins.

What the student ranks high and is not relevant is what it has yet to learn. Two or three such stages, one after the other, follow it as it gets better.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from .errors import DataError
from .frames import fields_of
from .rankers import TwoSided
from .stores import DocumentStore


class Mined:
    """Candidates by the student's own retrieval; for a ``BertDot`` or a ``ColBERT``.

    The whole corpus is encoded each time.

    Args:
        corpus: Documents with ``docno`` and the student's text fields; an iterable that starts anew each time, or a function that returns an iterator, such
            as ``dataset.get_corpus_iter``.
        topics: The training queries: ``qid`` and ``query``.
        qrels: Where given, a query's relevant documents are among its candidates also if they are not retrieved. Default None.
        depth: Documents a query. Default 100.
        first: Documents of the top that are passed over, since unjudged relevant ones are most often there. Default 0.
    """

    def __init__(self, corpus: Iterable[Mapping[str, Any]] | Callable[[], Iterable[Mapping[str, Any]]], topics: pd.DataFrame, qrels: pd.DataFrame | None = None, *,
                 depth: int = 100, first: int = 0) -> None:
        if not callable(corpus) and iter(corpus) is corpus:
            raise DataError(f"Mined reads the corpus once for each stage, but {type(corpus).__name__} can be read only once: pass a list, or the function that makes it.")
        self.corpus, self.topics, self.depth, self.first = corpus, topics.assign(qid=topics["qid"].astype(str)), depth, first
        self.qrels = None if qrels is None else qrels.assign(qid=qrels["qid"].astype(str), docno=qrels["docno"].astype(str))

    def __call__(self, student: Any) -> pd.DataFrame:
        """The candidates: ``qid``, ``query``, ``docno``, ``score``, ``rank`` and the text fields.

        Raises:
            DataError: If the student does not retrieve.
        """
        if not (isinstance(student, TwoSided) and student.retrieves):
            raise DataError(f"{self!r} retrieves with the student, which must be a BertDot or a ColBERT; {student!r} cannot. Write a function that makes candidates of it.")
        fields = fields_of(student.text_field)
        with tempfile.TemporaryDirectory(prefix="kd-mined-") as folder:
            store = DocumentStore(Path(folder) / "store").indexer(student).index(self._documents())
            found = store.retriever(student, self.depth + self.first).transform(self.topics[["qid", "query"]])
            del store
        found = found[found["rank"] >= self.first]
        if self.qrels is not None:
            relevant = self.qrels[self.qrels["label"] > 0][["qid", "docno"]].merge(self.topics[["qid", "query"]], on="qid")
            found = pd.concat([found, relevant.assign(score=float("nan"), rank=-1)], ignore_index=True).drop_duplicates(["qid", "docno"])
        wanted = set(found["docno"])
        texts = {str(d["docno"]): [d[field] for field in fields] for d in self._documents() if str(d["docno"]) in wanted}
        found = found[found["docno"].isin(list(texts))].reset_index(drop=True)       # a judged document may not be in the corpus
        return found.assign(**{field: [texts[docno][i] for docno in found["docno"]] for i, field in enumerate(fields)})

    def _documents(self) -> Iterable[Mapping[str, Any]]:
        return self.corpus() if callable(self.corpus) else self.corpus

    def __repr__(self) -> str:
        return f"Mined({len(self.topics)} topics, depth={self.depth}, first={self.first})"
