"""Training groups: a query and its candidate texts, with labels and teacher scores, in flat arrays.

A frame of candidates joined with qrels becomes ``Groups``. A ``Sampler`` (``sampling``) chooses n of a group's texts; ``batches``
turns one epoch into a sequence of ``Batch``. What an epoch holds is a function of the seed and the epoch alone, so that
a training that was stopped finds its place again without having saved any random state.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from .errors import DataError, some
from .loaded_texts import Loaded
from .sampling import Sampler
from .signals import Batch, Needs

BUCKET = 16     # batches among which texts are sorted by length


@dataclass(frozen=True)
class Groups:
    """G queries with their candidate texts; group g has the rows starts[g]:starts[g + 1].

    Attributes:
        queries: The G queries.
        texts: The U distinct texts.
        length: (U,) their numbers of characters.
        starts: (G + 1,) where each group's rows start.
        row: (N,) which row of the frame each came from.
        text: (N,) which text a row has.
        doc: (N,) a number for its docno.
        parent: (N,) a number for the document that its docno is a passage of, itself for whole documents.
        label: (N,) relevance labels, 0 where unjudged.
        relevant: For each group the numbers (as in ``parent``) of the documents known to be relevant.
        teacher: (N,) teacher scores known ahead, or None.
        topic: (G,) a number for each query's topic, where batches are to hold queries of one topic, or None.
    """

    queries: Sequence[str]
    texts: Sequence[str]
    length: np.ndarray
    starts: np.ndarray
    row: np.ndarray
    text: np.ndarray
    doc: np.ndarray
    parent: np.ndarray
    label: np.ndarray
    relevant: Sequence[np.ndarray]
    teacher: np.ndarray | None = None
    topic: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def sizes(self) -> np.ndarray:
        """(G,) numbers of texts."""
        return np.diff(self.starts)

    def steps(self, batch_size: int, most: int | None = None) -> int:
        """The number of batches of an epoch, or ``most`` if it has more."""
        counts = np.array([len(self)]) if self.topic is None else np.unique(self.topic, return_counts=True)[1]
        batches = int((-(-counts // batch_size)).sum())
        return batches if most is None else min(batches, most)

    def usable(self, needs: Needs, who: object) -> Groups:
        """The groups from which a loss can learn.

        Args:
            needs: What the loss needs.
            who: The loss, for the message.

        Returns:
            These groups, without those that have too few texts or no relevant text; a warning counts them.

        Raises:
            DataError: If none is left.
        """
        few = self.sizes < needs.texts
        lacking = np.array([not (self.label[a:b] > 0).any() for a, b in zip(self.starts[:-1], self.starts[1:], strict=True)], dtype=bool)
        lacking &= needs.labels
        keep = ~(few | lacking)
        if keep.all():
            return self
        counts = (f"of {len(self)} queries {int(few.sum())} have fewer than {needs.texts} candidates"
                  + (f" and {int((lacking & ~few).sum())} have no relevant candidate" if needs.labels else ""))
        if not keep.any():
            hint = "Pass qrels whose docnos are among the candidates, retrieve deeper, " if needs.labels else "Retrieve deeper, "
            raise DataError(f"{who!r} has nothing to learn from: {counts}. {hint}or use a loss that needs less.")
        warnings.warn(f"{who!r}: {counts}; they are left out.", stacklevel=3)
        return self.select(np.flatnonzero(keep))

    def select(self, groups: np.ndarray) -> Groups:
        """Some of the groups, by number."""
        rows = np.concatenate([np.arange(self.starts[g], self.starts[g + 1]) for g in groups])
        chosen = replace(self, queries=[self.queries[g] for g in groups], relevant=[self.relevant[g] for g in groups],
                         topic=None if self.topic is None else self.topic[groups])
        return chosen._with_rows(rows, self.sizes[groups])

    def with_teacher(self, scores: np.ndarray) -> Groups:
        """The groups with teacher scores, without the texts that have none (NaN).

        Args:
            scores: A score for every row of the frame that the groups were made from.
        """
        teacher = scores[self.row]
        known = ~np.isnan(teacher)
        sizes = np.add.reduceat(known, self.starts[:-1], dtype=np.int64)
        return replace(self, teacher=teacher.astype(np.float32))._with_rows(np.flatnonzero(known), sizes)

    def select_rows(self, kept: np.ndarray) -> Groups:
        """The groups with some of their rows, without the groups that have none left.

        Args:
            kept: (N,) bool.
        """
        sizes = np.add.reduceat(kept, self.starts[:-1], dtype=np.int64)
        return self._with_rows(np.flatnonzero(kept), sizes).select(np.flatnonzero(sizes))

    def with_texts(self, used: np.ndarray) -> Groups:
        """The groups with the texts of the rows ``used`` alone; the others become empty and cost nothing to tokenise."""
        kept = np.zeros(len(self.texts), dtype=bool)
        kept[self.text[used]] = True
        texts = self.texts.only(kept) if isinstance(self.texts, Loaded) else [t if k else "" for t, k in zip(self.texts, kept, strict=True)]
        return replace(self, texts=texts)

    def _with_rows(self, rows: np.ndarray, sizes: np.ndarray) -> Groups:
        """Some of the rows, of which each group has ``sizes``."""
        return replace(self, starts=np.concatenate([[0], np.cumsum(sizes)]), row=self.row[rows], text=self.text[rows], doc=self.doc[rows],
                       parent=self.parent[rows], label=self.label[rows], teacher=None if self.teacher is None else self.teacher[rows])

    def batches(self, batch_size: int, sampler: Sampler, seed: Sequence[int], part: tuple[int, int] = (0, 1), skip: int = 0) -> Iterator[Batch]:
        """One epoch: every group once, in random order.

        Among the groups of ``BUCKET`` consecutive batches those with texts of similar length are put together, then the
        batches are shuffled again: less padding, and still a random order. With topics a batch holds queries of one topic instead.

        Args:
            batch_size: B, the number of queries of a batch; the last one may have fewer.
            sampler: Chooses each query's texts.
            seed: Numbers that identify this epoch.
            part: (k, of): this process takes every ``of``-th batch from the k-th on. A remainder that would not give every process
                the same number of batches is left out.
            skip: The number of its own batches that this process passes over, because they are done.
        """
        k, of = part
        plan = self._plan(batch_size, seed)
        for groups in plan[:len(plan) // of * of][k::of][skip:]:
            yield self._batch(groups, sampler, seed)

    def _plan(self, batch_size: int, seed: Sequence[int]) -> list[np.ndarray]:
        """The groups of each batch of an epoch."""
        rng = np.random.default_rng([*seed])
        order = rng.permutation(len(self))
        if self.topic is not None:
            order = order[np.argsort(self.topic[order], kind="stable")]
            topics = np.split(order, np.flatnonzero(np.diff(self.topic[order])) + 1)
            plan = [topic[i:i + batch_size] for topic in topics for i in range(0, len(topic), batch_size)]
            return [plan[i] for i in rng.permutation(len(plan))]
        size = np.add.reduceat(self.length[self.text], self.starts[:-1]) / np.maximum(self.sizes, 1)
        plan = []
        for i in range(0, len(order), BUCKET * batch_size):
            bucket = order[i:i + BUCKET * batch_size]
            bucket = bucket[np.argsort(size[bucket], kind="stable")]
            plan += [bucket[j:j + batch_size] for j in range(0, len(bucket), batch_size)]
        return [plan[i] for i in rng.permutation(len(plan))]

    def rows_of(self, batch_size: int, sampler: Sampler, seed: Sequence[int], batches: int) -> np.ndarray:
        """(N,) bool: the rows that the first ``batches`` batches of an epoch will hold, of all processes."""
        used = np.zeros(len(self.text), dtype=bool)
        for groups in self._plan(batch_size, seed)[:batches]:
            for rows in self._chosen(groups, sampler, seed):
                used[rows] = True
        return used

    def _chosen(self, groups: np.ndarray, sampler: Sampler, seed: Sequence[int]) -> list[np.ndarray]:
        """The rows of each group's sample, which depends on the seed and the group's own number only."""
        chosen = []
        for g in groups:
            a, b = self.starts[g], self.starts[g + 1]
            chosen.append(a + sampler(self.label[a:b], None if self.teacher is None else self.teacher[a:b], np.random.default_rng([*seed, int(g)])))
        return chosen

    def _batch(self, groups: np.ndarray, sampler: Sampler, seed: Sequence[int]) -> Batch:
        """The batch of some groups."""
        chosen = self._chosen(groups, sampler, seed)
        width = max(len(c) for c in chosen)
        rows = np.zeros((len(groups), width), dtype=np.int64)
        mask = np.zeros((len(groups), width), dtype=bool)
        for i, c in enumerate(chosen):
            rows[i, :len(c)], mask[i, :len(c)] = c, True
        parents = self.parent[rows].ravel()
        positives = np.stack([np.isin(parents, self.relevant[g]) for g in groups]) & mask.ravel()
        return Batch(
            queries=torch.from_numpy(groups.astype(np.int64)), texts=torch.from_numpy(np.where(mask, self.text[rows], 0)),
            docs=torch.from_numpy(np.where(mask, self.doc[rows], -1)), labels=torch.from_numpy(np.where(mask, self.label[rows], 0).astype(np.float32)),
            mask=torch.from_numpy(mask), positives=torch.from_numpy(positives),
            teacher=None if self.teacher is None else torch.from_numpy(np.where(mask, self.teacher[rows], 0).astype(np.float32)))


def parent_docno(docno: pd.Series, qrels: pd.DataFrame | None = None) -> pd.Series:
    """The document that a passage was cut from: what stands before a last ``%p`` with a number, or the docno itself.

    Args:
        docno: The docnos.
        qrels: Where given, a docno that is judged as it stands is a document, whatever it looks like.
    """
    parent = docno.str.replace(r"%p\d+$", "", regex=True)
    return parent if qrels is None else parent.where(~docno.isin(set(qrels["docno"].astype(str))), docno)


def from_frame(frame: pd.DataFrame, texts: Sequence[str], qrels: pd.DataFrame | None, who: str) -> Groups:
    """Groups the rows of a candidate frame by query and joins labels.

    Args:
        frame: Columns ``qid``, ``query``, ``docno``; passages have docnos such as ``d1%p0`` and get their document's label.
        texts: The text of each row.
        qrels: Columns ``qid``, ``docno``, ``label``, or None.
        who: Who asks, for messages.

    Raises:
        DataError: If a (qid, docno) occurs twice, or a qid has two queries.
    """
    if not len(frame):
        raise DataError(f"{who} got no rows to train on: the frame of candidates is empty. Do the topics match the index?")
    repeated = frame.duplicated(["qid", "docno"])
    if repeated.any():
        first = [tuple(r) for r in frame.loc[repeated, ["qid", "docno"]].head(3).itertuples(index=False)]
        raise DataError(f"{who}: {int(repeated.sum())} of {len(frame)} rows repeat a (qid, docno) that was there before (first: {some(first)}). "
                        "Use frame.drop_duplicates(['qid', 'docno']).")
    frame = frame[["qid", "query", "docno"]].assign(_row=np.arange(len(frame)), qid=frame["qid"].astype(str), docno=frame["docno"].astype(str))
    queries = frame.drop_duplicates(["qid", "query"])
    if queries["qid"].duplicated().any():
        raise DataError(f"{who}: the qids {some(queries.loc[queries['qid'].duplicated(), 'qid'])} have more than one query.")
    order = frame.sort_values("qid", kind="stable")
    codes, _ = pd.factorize(order["qid"])
    starts = np.concatenate([np.searchsorted(codes, np.arange(codes[-1] + 1)), [len(codes)]])
    text, distinct = pd.factorize(np.asarray(texts, dtype=object)[order["_row"].to_numpy()])
    parents, names = pd.factorize(parent_docno(order["docno"], qrels if qrels is not None and "docno" in qrels.columns else None))
    label, relevant = joined_labels(order["qid"], pd.Series(names[parents], index=order.index), names, qrels, who)
    return Groups(
        queries=order["query"].to_numpy()[starts[:-1]].tolist(), texts=list(distinct), length=np.array([len(t) for t in distinct]), starts=starts,
        row=order["_row"].to_numpy(), text=text.astype(np.int64), doc=pd.factorize(order["docno"])[0].astype(np.int64), parent=parents.astype(np.int64),
        label=label, relevant=relevant)


def joined_labels(qid: pd.Series, parent: pd.Series, names: pd.Index, qrels: pd.DataFrame | None, who: str) -> tuple[np.ndarray, list[np.ndarray]]:
    """(N,) labels of rows sorted by qid, and for each query the numbers of its relevant documents."""
    qids = qid.drop_duplicates()
    if qrels is None:
        return np.zeros(len(qid), dtype=np.float32), [np.empty(0, dtype=np.int64)] * len(qids)
    qrels = clean_qrels(qrels, who)
    rows = pd.DataFrame({"qid": qid.to_numpy(), "docno": parent.to_numpy()})
    label = rows.merge(qrels, on=["qid", "docno"], how="left")["label"].fillna(0).to_numpy(dtype=np.float32)
    if not (label > 0).any():
        judged = set(qrels["qid"])
        warnings.warn(f"{who}: none of the {len(rows)} candidates is relevant by the {len(qrels)} qrels; "
                      f"{sum(q in judged for q in qids)} of {len(qids)} queries have qrels (qids such as {some(qids, 2)}; in the qrels {some(qrels['qid'].drop_duplicates(), 2)}, "
                      f"docnos such as {some(rows['docno'].head(2))}; in the qrels {some(qrels['docno'].head(2))}).", stacklevel=4)
    numbers = pd.Series(np.arange(len(names)), index=names)
    known = qrels[(qrels["label"] > 0) & qrels["docno"].isin(names)]
    by_query = {q: numbers[d.to_numpy()].to_numpy() for q, d in known.groupby("qid")["docno"]}
    return label, [by_query.get(q, np.empty(0, dtype=np.int64)) for q in qids]


def clean_qrels(qrels: pd.DataFrame, who: str) -> pd.DataFrame:
    """Qrels with string qids and docnos, numeric labels and no duplicates, whatever their types were.

    Raises:
        DataError: If a column is missing or a label is not a number.
    """
    missing = [c for c in ("qid", "docno", "label") if c not in qrels.columns]
    if missing:
        raise DataError(f"{who}: the qrels need the columns qid, docno and label; {missing} are missing among {list(qrels.columns)}.")
    label = pd.to_numeric(qrels["label"], errors="coerce")
    if label.isna().any():
        raise DataError(f"{who}: {int(label.isna().sum())} of {len(qrels)} qrels have a label that is not a number: {some(qrels.loc[label.isna(), 'label'])}.")
    clean = pd.DataFrame({"qid": qrels["qid"].astype(str).to_numpy(), "docno": qrels["docno"].astype(str).to_numpy(), "label": label.to_numpy()})
    return clean.sort_values("label", kind="stable").drop_duplicates(["qid", "docno"], keep="last").reset_index(drop=True)
