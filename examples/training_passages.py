"""Passages to train a ranker on, where only whole documents are judged.

Which passage of a relevant document answers is not known. Of each document only those are taken that share most words with the query: cheap, and
enough for a ranker that then learns to tell them apart.
"""

import re

import numpy as np
import pandas as pd
import pyterrier as pt

import pyterrier_kd as kd


def tokens(text: str) -> set[str]:
    """The words of a text, those of identifiers apart."""
    return set(re.findall(r"\w+", kd.datasets.identifiers_split(text).lower()))


def shared_words(frame: pd.DataFrame) -> pd.DataFrame:
    """How many of the query's words each passage holds, rarer words counting more."""
    texts = [tokens(t) for t in frame["text"]]
    seen = pd.Series([w for t in texts for w in t]).value_counts()
    return frame.assign(score=[sum(np.log(1 + len(texts) / seen[w]) for w in tokens(q) & t) for q, t in zip(frame["query"], texts, strict=True)])


def training_passages(candidates: pt.Transformer, topics: pd.DataFrame, qrels: pd.DataFrame, ranker: kd.CrossEncoder, queries: int, *,
                      negatives: int = 3, passages: int = 4, stride: int | None = None) -> pd.DataFrame:
    """Passages of each query's relevant document and of some others, from the candidates.

    Args:
        candidates: A first stage that brings the texts.
        topics: The queries; those whose relevant document is not among the first 20 candidates are left out.
        qrels: Their relevant documents.
        ranker: Who will read the passages.
        queries: How many queries.
        negatives: Other documents a query.
        passages: Passages a document.
        stride: Of the passages, in tokens.
    """
    found = (candidates % 20)(topics.sample(min(2 * queries, len(topics)), random_state=0))
    label = found.merge(qrels, on=["qid", "docno"], how="left")["label"].fillna(0).to_numpy() > 0
    found = found.assign(relevant=label).sample(frac=1, random_state=0).sort_values("relevant", ascending=False, kind="stable")
    found = found[found.groupby("qid")["relevant"].transform("any")].groupby("qid").head(1 + negatives)
    found = found[found["qid"].isin(found["qid"].drop_duplicates().sample(frac=1, random_state=1).head(queries))]
    split = shared_words(kd.passages.split(ranker, stride=stride)(found.drop(columns="relevant").sort_values("qid").reset_index(drop=True)))
    parent = split["docno"].str.replace(r"%p\d+$", "", regex=True)
    return split.sort_values("score", ascending=False, kind="stable").groupby(["qid", parent]).head(passages).sort_values(["qid", "docno"]).reset_index(drop=True)
