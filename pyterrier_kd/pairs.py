"""Training pairs by ids: published score files and ir_datasets' docpairs, of any size, with texts loaded when they are needed.

A frame of candidates holds its texts; forty million pairs cannot. Here queries and documents are numbers, a text is loaded once, when it is tokenised, and
only if training will see it. The scores of a file are the teacher.
"""

from __future__ import annotations

import gzip
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyterrier as pt

from .errors import DataError, some
from .groups import Groups
from .loaded_texts import Loaded, TextSource, loader_of

LINES = 1 << 20         # lines of a file, or pairs, that are read at once
COLUMNS = ["pos_score", "neg_score", "qid", "pos", "neg"]


@dataclass(frozen=True)
class TrainingPairs:
    """Queries with relevant and other documents, by ids; for ``Distiller.fit`` in place of a frame.

    Attributes:
        groups: The queries with their documents.
        qids: The queries' names.
        docnos: The documents' names.
    """

    groups: Groups
    qids: Sequence[str]
    docnos: np.ndarray

    def __len__(self) -> int:
        """The number of queries."""
        return len(self.groups)

    def qrels(self) -> pd.DataFrame:
        """The relevant documents as labels: ``qid``, ``docno``, ``label``."""
        query, rows = self._query_of(slice(None)), self.groups.label > 0
        return pd.DataFrame({"qid": np.array(self.qids, dtype=object)[query[rows]], "docno": self.docnos[self.groups.text[rows]], "label": 1})

    def _query_of(self, rows: np.ndarray | slice) -> np.ndarray:
        """The query of each of some rows, by number."""
        return np.repeat(np.arange(len(self.groups)), self.groups.sizes)[rows]

    def portions(self, rows: np.ndarray, size: int = 1 << 16) -> Iterator[np.ndarray]:
        """Sorted rows in portions of whole queries, of about ``size``."""
        query = self._query_of(rows)
        starts = np.flatnonzero(np.diff(query, prepend=-1))
        cuts = starts[np.unique(np.searchsorted(starts, np.arange(size, len(rows), size)).clip(max=len(starts) - 1))]
        yield from (part for part in np.split(rows, cuts) if len(part))

    def frame(self, rows: np.ndarray, field: str) -> pd.DataFrame:
        """Some rows of the groups as candidates, for a teacher: ``qid``, ``query``, ``docno`` and the text."""
        query = self._query_of(rows)
        documents = self.groups.text[rows]
        distinct, back = np.unique(documents, return_inverse=True)
        texts = self.groups.texts.some(distinct) if isinstance(self.groups.texts, Loaded) else [self.groups.texts[int(d)] for d in distinct]
        return pd.DataFrame({"qid": [self.qids[q] for q in query], "query": [self.groups.queries[q] for q in query], "docno": self.docnos[documents],
                             field: [texts[i] for i in back]})


def from_score_file(path: str | Path | Sequence[str | Path], queries: str | pd.DataFrame | Mapping[str, str], texts: TextSource, *, standardise: bool = False,
                    text_field: str = "text") -> TrainingPairs:
    """Reads a file of lines ``pos_score neg_score qid pos_docno neg_docno``, such as those published with arXiv:2010.02666.

    A document that stands beside a query on several lines gets the mean of its scores.

    Args:
        path: The file; tabs or spaces between the columns; gzipped or not. Several, of a teacher each, are an ensemble: a pair gets the mean of the
            scores that it has in the files (arXiv:2010.02666).
        queries: A PyTerrier dataset by name, topics as a frame, or a mapping from qid to query.
        texts: Where the documents' texts are: a PyTerrier dataset by name, a text loader (a transformer), or a mapping from docno to text.
        standardise: Whether each file's scores get mean 0 and standard deviation 1 first, for teachers of different scales. Default False.
        text_field: The field of a dataset or loader that holds the text. Default "text".

    Returns:
        Training data with the scores as teacher.

    Raises:
        DataError: If a line is not of this form, or a qid has no query.
    """
    paths = [Path(p) for p in ([path] if isinstance(path, str | Path) else path)]
    for missing in (p for p in paths if not p.is_file()):
        raise DataError(f"There is no file {str(missing)!r}. The scores published with arXiv:2010.02666 are at https://zenodo.org/record/4068216.")
    return collected([lines_of(p) for p in paths], queries_of(queries), loader_of(texts, text_field), ", ".join(map(str, paths)), standardise)


def from_docpairs(dataset: str, *, texts: TextSource = None, queries: str | pd.DataFrame | Mapping[str, str] | None = None, limit: int | None = None,
                  text_field: str = "text") -> TrainingPairs:
    """The docpairs of an ir_datasets dataset: a relevant and another document of a query each.

    Args:
        dataset: Its name, such as "irds:msmarco-passage/train/triples-small".
        texts: Where the documents' texts are. Default: the dataset itself. See ``from_score_file``.
        queries: Where the queries are. Default: the dataset itself.
        limit: The most docpairs that are read. Default None: all.
        text_field: The field that holds the text. Default "text".

    Returns:
        Training data without scores: a teacher is asked, or losses over labels are learned.

    Raises:
        DataError: If the dataset has no docpairs.
    """
    dataset = f"irds:{dataset.removeprefix('irds:')}"
    import ir_datasets
    source = ir_datasets.load(dataset.removeprefix("irds:"))
    if not source.has_docpairs():
        raise DataError(f"{dataset!r} has no docpairs; pass a dataset that has (such as irds:msmarco-passage/train/triples-small), or candidates as a frame.")

    def chunks() -> Iterator[pd.DataFrame]:
        rows: list[tuple[str, str, str]] = []
        for number, pair in enumerate(source.docpairs_iter()):
            if number == limit:
                break
            rows.append((pair.query_id, pair.doc_id_a, pair.doc_id_b))
            if len(rows) == LINES:
                yield pd.DataFrame(rows, columns=COLUMNS[2:])
                rows = []
        yield pd.DataFrame(rows, columns=COLUMNS[2:])

    return collected([chunks()], queries_of(dataset if queries is None else queries), loader_of(dataset if texts is None else texts, text_field), dataset)


def lines_of(path: Path) -> Iterator[pd.DataFrame]:
    """A score file in portions.

    Raises:
        DataError: If a line has not five columns, or a score is no number.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        first = lines.readline()
    if len(first.split()) != len(COLUMNS):
        raise DataError(f"{path}: a line has {len(first.split())} columns instead of 5 (pos_score neg_score qid pos_docno neg_docno): {first[:80]!r}")
    done = 0
    try:
        with pd.read_csv(path, sep=r"\s+" if "\t" not in first else "\t", header=None, names=COLUMNS, dtype=str, chunksize=LINES, quoting=3, keep_default_na=False) as chunks:
            for chunk in chunks:
                scores = chunk[COLUMNS[:2]].apply(pd.to_numeric, errors="coerce").astype("float32")
                bad = ~np.isfinite(scores.to_numpy()).all(1) | (chunk[COLUMNS[2:]] == "").any(axis=1).to_numpy()
                if bad.any():
                    line = int(np.flatnonzero(bad)[0])
                    raise DataError(f"{path}, line {done + line + 1}: not two scores and three ids: {' '.join(map(str, chunk.iloc[line]))[:80]!r}")
                yield chunk.assign(**scores)
                done += len(chunk)
    except (pd.errors.ParserError, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: {error}") from error


def collected(files: Iterable[Iterable[pd.DataFrame]], query_of: Callable[[list[str]], list[str]], load: Callable[[list[str]], list[str]], name: str,
              standardise: bool = False) -> TrainingPairs:
    """Pairs as groups: each query with its distinct documents, a label and the mean of their scores.

    Raises:
        DataError: If there are none.
    """
    qids: dict[str, int] = {}
    docnos: dict[str, int] = {}
    read = [read_pairs(chunks, qids, docnos) for chunks in files]
    if not docnos:
        raise DataError(f"{name} holds no pairs.")
    query, doc, label = (np.concatenate([own[column] for own in read]) for column in ("query", "doc", "label"))
    keys, row = np.unique(query.astype(np.int64) * len(docnos) + doc, return_inverse=True)
    labels = np.zeros(len(keys), dtype=bool)
    np.logical_or.at(labels, row[label], True)
    by_file = np.split(row, np.cumsum([len(own["query"]) for own in read])[:-1])
    teacher = mean_scores(by_file, [own["score"] for own in read], len(keys), standardise) if all("score" in own for own in read) else None
    of_query, text = keys // len(docnos), (keys % len(docnos)).astype(np.int64)
    starts = np.searchsorted(of_query, np.arange(len(qids) + 1))
    names, documents = list(qids), np.array(list(docnos), dtype=object)
    relevant = [text[a:b][labels[a:b]] for a, b in itertools.pairwise(starts)]
    groups = Groups(queries=query_of(names), texts=Loaded(documents, load), length=np.ones(len(documents), dtype=np.int64), starts=starts, row=np.arange(len(keys)), text=text,
                    doc=text, parent=text, label=labels.astype(np.float32), relevant=relevant, teacher=teacher)
    return TrainingPairs(groups, names, documents)


def read_pairs(chunks: Iterable[pd.DataFrame], qids: dict[str, int], docnos: dict[str, int]) -> dict[str, np.ndarray]:
    """The columns ``query``, ``doc``, ``label`` and, where there are scores, ``score`` of 2N rows, two a pair; names that are new are added to those known."""
    parts: dict[str, list[np.ndarray]] = {"query": [], "doc": [], "label": [], "score": []}
    for chunk in chunks:
        query = numbered(chunk["qid"], qids)
        for side in ("pos", "neg"):
            parts["query"].append(query)
            parts["doc"].append(numbered(chunk[side], docnos))
            parts["label"].append(np.full(len(chunk), side == "pos"))
            if f"{side}_score" in chunk.columns:
                parts["score"].append(chunk[f"{side}_score"].to_numpy(dtype=np.float32))
    return {column: np.concatenate(held) for column, held in parts.items() if held}


def mean_scores(rows: Sequence[np.ndarray], scores: Sequence[np.ndarray], size: int, standardise: bool) -> np.ndarray:
    """(size,) float32: of each pair the mean over the files that have it, of the mean of its scores in each."""
    total, files = np.zeros(size), np.zeros(size)
    for row, score in zip(rows, scores, strict=True):
        counts = np.bincount(row, minlength=size)
        has = counts > 0
        mean = np.bincount(row, score.astype(np.float64), minlength=size)[has] / counts[has]
        total[has] += (mean - mean.mean()) / (mean.std() or 1.0) if standardise else mean
        files += has
    return (total / files).astype(np.float32)


def numbered(names: pd.Series, known: dict[str, int]) -> np.ndarray:
    """(N,) int32 numbers of names, new ones after those that are known."""
    codes, distinct = pd.factorize(names)
    return np.array([known.setdefault(str(name), len(known)) for name in distinct], dtype=np.int32)[codes]


def queries_of(source: str | pd.DataFrame | Mapping[str, str]) -> Callable[[list[str]], list[str]]:
    """A function that gives the queries of some qids."""
    if isinstance(source, str):
        source = pt.get_dataset(source).get_topics()
    if isinstance(source, pd.DataFrame):
        column = "query" if "query" in source.columns else "text"
        source = dict(zip(source["qid"].astype(str), source[column], strict=True))
    held: Mapping[str, str] = source

    def queries(qids: list[str]) -> list[str]:
        lacking = [q for q in qids if not isinstance(held.get(q), str)]
        if lacking:
            raise DataError(f"{len(lacking)} of {len(qids)} qids have no query among {len(held)}: {some(lacking)}. Are these the topics of the pairs?")
        return [held[q] for q in qids]

    return queries


__all__ = ["TrainingPairs", "from_docpairs", "from_score_file"]
