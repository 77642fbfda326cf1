"""What a teacher says ahead of training: the score of each pair, from the store of scores or asked for.

Each leaf of a teacher is asked once for each (query, text), in chunks that are stored as they come, and must answer for every row; the weighted
sum is formed afterwards.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt

from .errors import TeacherError, some
from .frames import fields_of, row_texts
from .rankers import Ranker
from .score_store import ScoreStore, score_key
from .teachers import Leaf, terms_of

FIRST_CHUNK, CHUNK_SECONDS = 256, 30.0      # rows of the first chunk; then chunks grow until they take this long


def teacher_scores(teacher: Any, frame: pd.DataFrame, texts: Sequence[str], store: ScoreStore | None, verbose: bool = False) -> np.ndarray:
    """One score for every row, from the store or from the teacher.

    Args:
        teacher: Anything that ``terms_of`` takes.
        frame: Candidates: ``qid``, ``query``, ``docno``, and what else the teacher reads; unique (qid, docno).
        texts: The text of each row.
        store: Where scores are kept, or None.
        verbose: Whether to show a progress bar.

    Returns:
        (N,) float64, NaN only for rows that a run with missing="drop" does not have.

    Raises:
        TeacherError: If a teacher drops or repeats rows, or gives no finite score.
    """
    total = np.zeros(len(frame))
    for weight, leaf in terms_of(teacher):
        scores = run_scores(leaf, frame) if isinstance(leaf.source, pd.DataFrame) else asked_scores(leaf, frame, texts, store, verbose)
        warn_of_probabilities(leaf, scores)
        scores = log_odds(leaf, scores) if leaf.logit else scores
        total += weight * (standardised(scores) if leaf.standardise else scores)
    return total


def standardised(scores: np.ndarray) -> np.ndarray:
    """Scores with mean 0 and standard deviation 1; zeros where all are equal."""
    spread = np.nanstd(scores)
    result: np.ndarray = (scores - np.nanmean(scores)) / (spread if spread > 0 else 1.0)
    return result


def run_scores(leaf: Leaf, frame: pd.DataFrame) -> np.ndarray:
    """Scores from a run, by qid and docno."""
    run = keyed(leaf.source)
    bad = ~np.isfinite(run["_score"].to_numpy(dtype=np.float64))
    if bad.any():
        raise TeacherError(f"The teacher {leaf!r} has {int(bad.sum())} scores that are NaN or infinite (first: {first_rows(run, bad)}).")
    scores = joined(leaf, frame, run)
    lacking = np.isnan(scores)
    if lacking.any() and leaf.missing == "error":
        raise TeacherError(f"The teacher {leaf!r} has no score for {int(lacking.sum())} of {len(frame)} candidates (first: {first_rows(frame, lacking)}). "
                           "Cut the candidates to the run, or pass kd.Teacher(run, missing='drop') to train without those rows.")
    return scores


def asked_scores(leaf: Leaf, frame: pd.DataFrame, texts: Sequence[str], store: ScoreStore | None, verbose: bool) -> np.ndarray:
    """Scores from a transformer, each chunk stored as it comes."""
    keep = store is not None and leaf.giver is not None
    keys = keys_of(leaf, frame, texts) if keep else []
    scores = store.get(keys) if store is not None and keep else np.full(len(frame), np.nan)
    todo = np.flatnonzero(np.isnan(scores))
    size = FIRST_CHUNK
    with pt.tqdm(total=len(todo), desc=f"teacher {leaf!r}", unit="pair", disable=not verbose or not len(todo)) as bar:
        while len(todo):
            rows = next_chunk(frame["qid"].to_numpy(), todo, size)
            start = time.monotonic()
            scores[rows] = ask(leaf, frame.iloc[rows], [texts[i] for i in rows])
            if store is not None and keep:
                store.put([keys[i] for i in rows], scores[rows])
            bar.update(len(rows))
            todo = todo[len(rows):]
            if time.monotonic() - start < CHUNK_SECONDS / 2:
                size *= 2
    return scores


def keys_of(leaf: Leaf, frame: pd.DataFrame, texts: Sequence[str]) -> list[bytes]:
    """What each row's score is stored under: everything that the teacher may read, and for a list-wise teacher the whole list of its query."""
    assert leaf.giver is not None
    givers, texts = [leaf.giver] * len(frame), read_by(leaf, frame, texts)
    if leaf.listwise:
        lists = pd.Series(list(texts)).groupby(frame["qid"].to_numpy()).agg(lambda t: score_key("list", "", "\0".join(t)).hex())
        givers = [f"{leaf.giver} {lists[q]}" for q in frame["qid"]]
    return [score_key(g, q, t) for g, q, t in zip(givers, frame["query"], texts, strict=True)]


def read_by(leaf: Leaf, frame: pd.DataFrame, texts: Sequence[str]) -> Sequence[str]:
    """What a teacher reads of each row besides the query: a ranker its own text fields, any other transformer all strings."""
    if isinstance(leaf.source, Ranker):
        fields = fields_of(leaf.source.text_field)
        return row_texts(frame, fields, None, leaf.source) if all(f in frame.columns for f in fields) else texts
    columns = [c for c in sorted(frame.columns) if c not in ("qid", "query") and not pd.api.types.is_numeric_dtype(frame[c]) and not c.endswith(("_vec", "_embs", "_toks"))]
    return ["\0".join(map(str, row)) for row in zip(texts, *(frame[c] for c in columns), strict=True)]


def next_chunk(qids: np.ndarray, todo: np.ndarray, size: int) -> np.ndarray:
    """The first rows of ``todo`` up to ``size``, and on to the end of the last query (rows of a query stand together)."""
    end = min(size, len(todo))
    while end < len(todo) and qids[todo[end]] == qids[todo[end - 1]]:
        end += 1
    return todo[:end]


def ask(leaf: Leaf, rows: pd.DataFrame, texts: Sequence[str]) -> np.ndarray:
    """Asks a transformer about some rows, and checks its answer."""
    question = rows.reset_index(drop=True)
    if "text" not in question.columns:
        question = question.assign(text=list(texts))
    answer = leaf.source.rerank(question) if isinstance(leaf.source, Ranker) else leaf.source.transform(question)
    if "score" not in answer.columns:
        raise TeacherError(f"The teacher {leaf!r} returned no column 'score', but {list(answer.columns)}: it must score the rows that it is given.")
    answer = keyed(answer)
    scores = joined(leaf, question, answer)
    dropped = ~pd.MultiIndex.from_frame(keyed(question)[["qid", "docno"]]).isin(pd.MultiIndex.from_frame(answer[["qid", "docno"]]))
    if dropped.any():
        raise TeacherError(f"The teacher {leaf!r} dropped {int(dropped.sum())} of {len(rows)} rows that it was asked about (first: {first_rows(question, dropped)}). "
                           "A teacher must score every candidate: take cutoffs (% k) and filters out of it, or filter the candidates before fit.")
    if not np.isfinite(scores).all():
        bad = ~np.isfinite(scores)
        raise TeacherError(f"The teacher {leaf!r} gave {int(bad.sum())} of {len(rows)} rows a score that is NaN or infinite (first: {first_rows(question, bad)}).")
    return scores


def keyed(frame: pd.DataFrame) -> pd.DataFrame:
    """(qid, docno) as strings, whatever they were, and ``_score`` where the frame has scores."""
    columns = {"qid": frame["qid"].astype(str).to_numpy(), "docno": frame["docno"].astype(str).to_numpy()}
    return pd.DataFrame(columns | ({"_score": frame["score"].to_numpy()} if "score" in frame.columns else {}))


def joined(leaf: Leaf, frame: pd.DataFrame, answer: pd.DataFrame) -> np.ndarray:
    """(N,) scores in the order of ``frame``, whatever the order of the answer; NaN where there is none."""
    repeated = answer.duplicated(["qid", "docno"])
    if repeated.any():
        raise TeacherError(f"The teacher {leaf!r} has {int(repeated.sum())} (qid, docno) more than once (first: {first_rows(answer, repeated.to_numpy())}): "
                           "which score counts is not clear.")
    return keyed(frame)[["qid", "docno"]].merge(answer, on=["qid", "docno"], how="left")["_score"].to_numpy(dtype=np.float64)


def first_rows(frame: pd.DataFrame, which: np.ndarray) -> str:
    """The first few (qid, docno) of some rows."""
    return some([tuple(r) for r in frame.loc[np.asarray(which), ["qid", "docno"]].itertuples(index=False)])


def warn_of_probabilities(leaf: Leaf, scores: np.ndarray) -> None:
    """Warns of scores that look like probabilities. Our own rankers are known to give raw scores, or cosines."""
    known = scores[~np.isnan(scores)]
    if leaf.logit or isinstance(leaf.source, Ranker) or len(known) < 8 or known.min() < 0 or known.max() > 1 or known.min() == known.max():
        return
    warnings.warn(f"All {len(known)} scores of the teacher {leaf!r} lie in [0, 1], as after a sigmoid or softmax. That destroys the margins that a student learns "
                  "from: logits of 5 and 10 both become 1.00. Let it give raw logits (sentence-transformers: CrossEncoder(..., activation_fn=torch.nn.Identity())), "
                  "or turn them back with kd.Teacher(teacher, logit=True).", stacklevel=4)


def log_odds(leaf: Leaf, scores: np.ndarray) -> np.ndarray:
    """Probabilities as log-odds, kept off 0 and 1 by the resolution of float32."""
    if np.nanmin(scores) < 0 or np.nanmax(scores) > 1:
        raise TeacherError(f"The teacher {leaf!r} was wrapped with logit=True, but its scores ({np.nanmin(scores):.3g} to {np.nanmax(scores):.3g}) are no probabilities.")
    clipped = np.clip(scores, 2.0**-24, 1 - 2.0**-24)
    odds: np.ndarray = np.log(clipped) - np.log1p(-clipped)
    return odds
