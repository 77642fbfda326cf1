"""Validation: a student's measure over documents, each with the score of its best passage."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import ir_measures
import pandas as pd

from .groups import clean_qrels, parent_docno
from .rankers import Ranker


def validation(frame: pd.DataFrame, texts: list[str], qrels: pd.DataFrame, measure: Any) -> Callable[[Ranker], float] | None:
    """A function that measures a ranker on candidates, or None if the qrels say nothing of their queries.

    Args:
        frame: Candidates: ``qid``, ``query``, ``docno``; passages count for their documents by the best of them (MaxP).
        texts: The text of each row.
        qrels: Columns ``qid``, ``docno``, ``label``.
        measure: A measure of ir_measures.
    """
    qrels = clean_qrels(qrels, "Distiller.fit (validation)")
    qrels = qrels[qrels["qid"].isin(set(frame["qid"].astype(str)))]
    truth = qrels.rename(columns={"qid": "query_id", "docno": "doc_id", "label": "relevance"}).astype({"relevance": int})
    if not len(truth):
        warnings.warn(f"Distiller.fit: none of the validation qrels is about one of its {frame['qid'].nunique()} queries: it trains without validation.", stacklevel=4)
        return None
    rows = pd.DataFrame({"query_id": frame["qid"].astype(str), "doc_id": parent_docno(frame["docno"].astype(str), qrels)})
    if not len(rows.merge(truth[truth["relevance"] > 0], on=["query_id", "doc_id"])):
        warnings.warn(f"Distiller.fit: none of the {len(rows)} validation candidates is relevant by the {len(qrels)} qrels of their "
                      f"{frame['qid'].nunique()} queries; {measure} will be 0 throughout.", stacklevel=4)

    def validate(student: Ranker) -> float:
        run = rows.assign(score=student.score(frame["query"].tolist(), texts))
        best = run.groupby(["query_id", "doc_id"], as_index=False)["score"].max()            # no change for whole documents
        return float(ir_measures.calc_aggregate([measure], truth, best)[measure])

    return validate


def measure_of(measure: Any) -> Any:
    """A measure of ir_measures, given as such or by its name.

    Raises:
        ValueError: If it is none.
    """
    try:
        parsed = ir_measures.parse_measure(measure) if isinstance(measure, str) else measure
    except (NameError, ValueError, SyntaxError) as error:
        raise ValueError(f"Distiller(measure={measure!r}) is no measure of ir_measures: {error}.") from error
    if not isinstance(parsed, ir_measures.measures.Measure):
        raise ValueError(f"Distiller(measure={measure!r}) is no measure of ir_measures, such as nDCG@10.")
    return parsed
