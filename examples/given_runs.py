"""Distilling without labels and without a teacher at hand: from the runs that other systems left, alone or together.

    python examples/given_runs.py --data ../shared/data/trecdl21 --runs SPLADE BM25 BM25_RM3

The student learns from the runs' scores for queries that nobody judged, and re-ranks BM25's candidates of judged ones. The folder holds
``corpus.jsonl.gz``, ``topics.<judged>.tsv``, ``qrels.<judged>.trec``, ``unjudged.<unjudged>.tsv`` and ``run.<year>.<system>.res.gz``.
"""

import argparse

import first_stage
import pandas as pd
import pyterrier as pt
from pyterrier.measures import RR, nDCG

import pyterrier_kd as kd

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", default="../shared/data/trecdl21")
parser.add_argument("--runs", nargs="+", default=["SPLADE", "BM25", "BM25_RM3"], help="the first is the single teacher, all are the ensemble")
parser.add_argument("--judged", default="dl21")
parser.add_argument("--unjudged", default="dl22")
parser.add_argument("--layers", type=int, default=3, help="of all-MiniLM-L6-v2 that the student keeps")
parser.add_argument("--steps", type=int, default=300)
parser.add_argument("--learning-rate", type=float, default=1e-4)
parser.add_argument("--max-length", type=int, default=96)
parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
args = parser.parse_args()

# 1. Topics, runs and texts
texts = first_stage.corpus(args.data)
topics, unjudged = (first_stage.read_topics(f"{args.data}/{name}.tsv") for name in (f"topics.{args.judged}", f"unjudged.{args.unjudged}"))
qrels = pt.io.read_qrels(f"{args.data}/qrels.{args.judged}.trec")


def run_of(system: str, year: str, queries: pd.DataFrame) -> pd.DataFrame:
    """A given run, with queries and texts."""
    run = pt.io.read_results(f"{args.data}/run.{year}.{system}.res.gz").merge(queries, on="qid")
    return run.assign(text=run["docno"].map(texts))


given = [run_of(system, args.unjudged, unjudged) for system in args.runs]
candidates = pd.concat(given)[["qid", "query", "docno", "text"]].drop_duplicates(["qid", "docno"])


def filled(run: pd.DataFrame) -> pd.DataFrame:
    """A run that has a score for every candidate: what it did not find gets its lowest of the query."""
    scores = candidates[["qid", "docno"]].merge(run[["qid", "docno", "score"]], how="left")
    return scores.assign(score=scores["score"].fillna(scores["qid"].map(run.groupby("qid")["score"].min())))


# 2. A student for each teacher: one run, and the mean of all. Each run's scores have a scale of their own (SPLADE's here are millions), so they
# are standardised
student = kd.BertDot(first_stage.minilm(), normalize=False, query_length=32, doc_length=args.max_length).shrink(args.layers)
teachers = {args.runs[0]: kd.Ensemble([filled(given[0])], standardise=True), "the mean of all runs": kd.Ensemble([filled(run) for run in given], standardise=True)}
ranking = run_of("BM25", args.judged, topics)
systems = {"BM25": ranking, "undistilled": student(ranking)}
for seed in args.seeds:
    for name, teacher in teachers.items():
        distil = kd.Distiller(student, teacher, strategy=kd.strategies.margin_mse(texts=8), steps=args.steps, learning_rate=args.learning_rate, batch_size=8, dropout=0, seed=seed)
        systems[f"distilled from {name}, seed {seed}"] = distil.fit(candidates).student_(ranking)
systems[f"{args.runs[0]} itself, its own candidates"] = run_of(args.runs[0], args.judged, topics)

# 3. What was learned
table = pt.Experiment(list(systems.values()), topics, qrels, [nDCG @ 10, RR(rel=2) @ 10], names=list(systems), baseline=1, correction="holm")
print(f"{len(topics)} judged queries, {len(unjudged)} unjudged ones to learn from; p against undistilled (Holm)\n"
      + table[[c for c in table.columns if not c.endswith(("+", "-", "reject", "p-value"))]].to_string(index=False, float_format="%.4g"))
