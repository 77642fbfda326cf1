"""The main table of arXiv:2010.02666 on any collection: five architectures, each without a teacher, with one, and with an ensemble.

    python examples/cross_architecture.py --collection kd:pycode --seeds 0 1 2

Teachers are cross-encoders fine-tuned here from all-MiniLM-L6-v2; students have half of its layers (TK its word embeddings). BERT_CAT reads the
texts of the candidates, all others rank from a store. Also prints what a query with 1,000 candidates costs, how many bytes a document takes, and
how BERT_DOT and ColBERT retrieve without BM25; draws effectiveness against latency. What is done is kept in --out.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import first_stage
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyterrier as pt
from pyterrier.measures import AP, RR, R, nDCG
from scipy.stats import ttest_rel

import pyterrier_kd as kd
from pyterrier_kd import losses, strategies

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--collection", default="kd:pycode", help="a PyTerrier dataset, or a folder; see first_stage.py")
parser.add_argument("--students", nargs="+", default=["BERT_CAT", "PreTT", "ColBERT", "BERT_DOT", "TK"])
parser.add_argument("--loss", default="margin_mse", choices=["margin_mse", "mse", "weighted_ranknet"])
parser.add_argument("--seeds", type=int, nargs="+", default=[0])
parser.add_argument("--teachers", type=int, default=2, help="of the ensemble; the first is the single teacher")
parser.add_argument("--queries", type=int, default=2000, help="training queries")
parser.add_argument("--texts", type=int, default=4, help="texts a query and step")
parser.add_argument("--steps", type=int, default=500, help="of a student, 8 queries each")
parser.add_argument("--teacher-steps", type=int, default=300)
parser.add_argument("--learning-rate", type=float, default=3e-4)
parser.add_argument("--max-length", type=int, default=96, help="tokens of a text")
parser.add_argument("--depth", type=int, default=50, help="documents that are re-ranked")
parser.add_argument("--test-queries", type=int, default=200)
parser.add_argument("--out", default="cross-architecture")
args = parser.parse_args()
out = first_stage.kept_folder(args, free=("seeds", "students"))
LOSSES = {"margin_mse": losses.MarginMSE(), "mse": losses.MSE(), "weighted_ranknet": losses.WeightedRankNet()}
MEASURES = [RR @ 10, nDCG @ 10, AP]

# 1. Candidates
(train, train_qrels), (valid, valid_qrels), (test, qrels) = first_stage.topics_and_qrels(args.collection).values()
test = test.sample(min(args.test_queries, len(test)), random_state=0)
candidates, engine = first_stage.bm25(args.collection, args.depth)
learning = (candidates % 20)(train.sample(min(args.queries, len(train)), random_state=0))
checking = (candidates % 20)(valid.sample(min(60, len(valid)), random_state=0))
ranking = candidates(test)
sizes = {"query_length": 32, "doc_length": args.max_length}


def trained(name: str, student: kd.Ranker, teacher: object, strategy: kd.Strategy, seed: int, **settings: object) -> kd.Ranker:
    """A student, from its folder if it is there."""
    folder = out / f"{name}-{seed}"
    if not (folder / "pt_meta.json").exists():
        print(f"\n{name}, seed {seed}", flush=True)
        distil = kd.Distiller(student, teacher, strategy=strategy, seed=seed, measure=nDCG @ 10, dropout=0, **settings)
        distil.fit(learning, train_qrels, checking, valid_qrels).student_.save(folder)
    return kd.load(folder)


# 2. Teachers: cross-encoders of all layers that differ in their seeds, and so in their heads and in what they were shown
fine_tune = strategies.fine_tune(losses.InfoNCE(in_batch=False) + losses.HardLabels(), texts=8).with_settings(steps=args.teacher_steps, learning_rate=1e-4, batch_size=8)
teachers = []
for number in range(args.teachers):
    whole = kd.CrossEncoder(first_stage.minilm(), max_length=args.max_length + 32, query_length=32)
    teachers.append(trained("teacher", whole, None, fine_tune, number, validate_every=10**9))

# 3. Students: the same three layers of the pre-trained encoder, and the same steps, for all
half = kd.BertDot(first_stage.minilm(), pooling="cls", normalize=False, **sizes).shrink(layers=3)
head = kd.CrossEncoder(first_stage.minilm(), max_length=args.max_length + 32, query_length=32).shrink(layers=3)
tokenizer = half.tokenizer
starts = {
    "BERT_CAT": head,
    "PreTT": kd.PreTTR(head.clone().model, tokenizer, join=2, **sizes),
    "ColBERT": kd.ColBERT(half.clone().encoder, tokenizer, preset="v2", **sizes),
    "BERT_DOT": half,
    "TK": kd.TK.new(first_stage.minilm(), **sizes),
}
taught = {"none": None, "one": teachers[0], "ensemble": kd.Ensemble(teachers)}
students: dict[tuple[str, str], list[kd.Ranker]] = {}
for seed in args.seeds:
    for architecture in args.students:
        for by, teacher in taught.items():
            loss = losses.RankNet() if teacher is None else LOSSES[args.loss]
            # scores of cosines (ColBERT) and kernels (TK) start far smaller than a teacher's margins
            rates = {r"\binteraction\.": 1e-2, r"\bmix\b": 1e-2} if architecture == "TK" else {}
            stage = kd.Stage(loss, steps=args.steps, learning_rate=args.learning_rate, rates=rates, batch_size=8, sampler=kd.Sampler(texts=args.texts))
            name = f"{architecture}-{by}" + ("" if teacher is None else f"-{args.loss}")
            students.setdefault((architecture, by), []).append(trained(name, starts[architecture], teacher, kd.Strategy(name, (stage,)), seed))

# 4. Rank the test candidates: from stores, where an architecture has them
documents = list({d: {"docno": d, "text": t} for d, t in zip(ranking["docno"], ranking["text"], strict=True)}.values())


def scorer(model: kd.Ranker, folder: Path) -> tuple[pt.Transformer, float]:
    """What scores candidates with a model, and the bytes of a stored document."""
    if not isinstance(model, kd.BertDot | kd.ColBERT | kd.PreTTR | kd.TK):
        return model, 0.0
    store = kd.DocumentStore(folder)
    if not folder.exists():
        (model.doc_encoder() >> store).index(documents)
    return store.scorer(model), store.bytes_a_document


def latency(system: pt.Transformer) -> float:
    """Milliseconds for one query with 1,000 candidates, median of five."""
    one = ranking.head(1)[["qid", "query"]].merge(pd.DataFrame(documents).head(1000), how="cross")
    system(one)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        system(one)
        times.append(1000 * (time.perf_counter() - start) * 1000 / len(one))
    return statistics.median(times)


by_teachers = [teacher(ranking) for teacher in teachers]
summed = ranking.assign(score=np.mean([run["score"].to_numpy() for run in by_teachers], axis=0))
runs: dict[str, list[pd.DataFrame]] = {"BM25": [ranking], "teacher": [by_teachers[0]], "ensemble": [summed]}
rows = []
for (architecture, by), members in students.items():
    systems = [scorer(model, out / f"{architecture}-{by}-{args.loss}-{seed}.store") for model, seed in zip(members, args.seeds, strict=True)]
    name = f"{architecture}, {by}"
    runs[name] = [system(ranking) for system, _ in systems]
    rows.append({"name": name, "architecture": architecture, "teacher": by, "ms a query of 1,000": latency(systems[0][0]), "bytes a document": systems[0][1]})
flat = {f"{name}@@{i}": pt.model.add_ranks(run.drop(columns="rank", errors="ignore").copy()) for name, members in runs.items() for i, run in enumerate(members)}
values = pt.Experiment(list(flat.values()), test, qrels, MEASURES, names=list(flat), perquery=True)
values = values.assign(seed=values["name"].str.rpartition("@@")[2], name=values["name"].str.partition("@@")[0])
mean = values.groupby(["measure", "name", "qid"], as_index=False)["value"].mean().pivot(index="qid", columns=["measure", "name"], values="value")

# 5. The table
table = pd.DataFrame([{"name": name, **{str(m): mean[str(m)][name].mean() for m in MEASURES}} for name in runs]).merge(pd.DataFrame(rows), on="name", how="left")


def p_value(name: str) -> float:
    """Of a paired two-tailed t-test of nDCG@10 against the same student without a teacher."""
    other = f"{name.partition(', ')[0]}, none"
    if other not in runs or name == other:
        return float("nan")
    return float(ttest_rel(mean["nDCG@10"][name], mean["nDCG@10"][other]).pvalue)


table["p against none"] = [p_value(name) for name in table["name"]]
shown = table.drop(columns=["architecture", "teacher"])
print(f"\n{args.collection}, {len(test)} test queries, {args.depth} documents re-ranked (BM25 by {engine}), {args.loss}; means of {len(args.seeds)} seed(s); p of nDCG@10\n"
      + shown.to_string(index=False, float_format="%.4g", na_rep=""))
by_seed = values[values["measure"] == "nDCG@10"].groupby(["name", "seed"])["value"].mean()
for name in [n for n in runs if len(runs[n]) > 1]:
    print(f"  {name}: nDCG@10 by seed {', '.join(f'{v:.4f}' for v in by_seed[name])}")

# 6. Without BM25: all documents that candidates of any query named, by vectors alone
recall = {"BM25": ranking}
for architecture in [a for a in ("BERT_DOT", "ColBERT") if a in args.students]:
    store = kd.DocumentStore(out / f"{architecture}-one-{args.loss}-{args.seeds[0]}.store")
    model = students[architecture, "one"][0]
    recall[f"{architecture}, one"] = store.retriever(model, 1000)(test)
    recall[f"{architecture}, one, every document scored"] = store.retriever(model, 1000, exhaustive=True)(test)
dense = pt.Experiment(list(recall.values()), test, qrels, [RR @ 10, nDCG @ 10, R @ 1000], names=list(recall))
print(f"\nRetrieval among the {len(documents)} documents that are a candidate of any test query\n" + dense.to_string(index=False, float_format="%.4g"))

# 7. The figure
figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
for by, marker in {"none": "o", "one": "s", "ensemble": "^"}.items():
    points = table[table["teacher"] == by]
    axes.scatter(points["ms a query of 1,000"], points["nDCG@10"], marker=marker, label={"none": "no teacher", "one": "one teacher", "ensemble": "ensemble"}[by])
for _, point in table[table["teacher"] == "ensemble"].iterrows():
    axes.annotate(point["architecture"], (point["ms a query of 1,000"], point["nDCG@10"]), xytext=(4, 4), textcoords="offset points", fontsize=8)
axes.axhline(table.loc[table["name"] == "BM25", "nDCG@10"].iloc[0], color="grey", linestyle=":", label="BM25")
axes.set(xscale="log", xlabel="ms for a query with 1,000 candidates", ylabel="nDCG@10", title=args.collection)
axes.legend(fontsize=8)
figure.savefig(out / "latency.png", dpi=120)
(out / "table.json").write_text(json.dumps(table.replace({np.nan: None}).to_dict("records"), indent=1))
print(f"\nsaved {out / 'latency.png'}")
