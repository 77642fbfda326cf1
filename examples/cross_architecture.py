"""The main table of arXiv:2010.02666 on any collection: five architectures, each without a teacher, with one, and with an ensemble.

    python examples/cross_architecture.py --collection ../shared/data/medquad --also ../shared/data/nfcorpus --seeds 0 1 2

Teachers are cross-encoders fine-tuned here from all-MiniLM-L6-v2; students have half of its layers (TK its word embeddings). BERT_CAT reads the
texts of the candidates, all others rank from a store. Also prints what a query with 1,000 candidates costs, how many bytes a document takes, and
how BERT_DOT and ColBERT retrieve from the whole collection, without BM25; draws effectiveness against latency. What is done is kept in --out.
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
parser.add_argument("--also", nargs="*", default=[], help="other collections, on which the same students are evaluated")
parser.add_argument("--students", nargs="+", default=["BERT_CAT", "PreTT", "ColBERT", "BERT_DOT", "TK"])
parser.add_argument("--losses", nargs="+", default=["margin_mse"], choices=["margin_mse", "mse", "weighted_ranknet"], help="the first for all; others with one teacher")
parser.add_argument("--seeds", type=int, nargs="+", default=[0])
parser.add_argument("--teachers", type=int, default=2, help="of the ensemble; the first is the single teacher")
parser.add_argument("--queries", type=int, default=2000, help="training queries of the teachers")
parser.add_argument("--student-queries", type=int, help="those of them that students see; default: all")
parser.add_argument("--labelled", type=int, help="students without a teacher learn from the labels of so many of them, those with one see no labels. Default: all see all labels")
parser.add_argument("--texts", type=int, default=2, help="texts a query and step")
parser.add_argument("--batch-size", type=int, default=16, help="queries a step of a student")
parser.add_argument("--steps", type=int, default=500, help="of a student")
parser.add_argument("--teacher-steps", type=int, default=300, help="8 queries each")
parser.add_argument("--teacher-texts", type=int, default=8, help="texts a query and step")
parser.add_argument("--learning-rate", type=float, default=3e-4)
parser.add_argument("--precision", choices=["no", "bf16", "fp16"], help="of training; bf16 is 1.6 times as fast on a CPU that has it")
parser.add_argument("--max-length", type=int, default=96, help="tokens of a text")
parser.add_argument("--depth", type=int, default=50, help="documents that are re-ranked")
parser.add_argument("--test-queries", type=int, default=200)
parser.add_argument("--out", default="cross-architecture")
args = parser.parse_args()
if args.labelled is not None and not 0 < args.labelled <= (args.student_queries or args.queries):
    parser.error("--labelled must be above 0, and not above the number of queries that students see")
out = first_stage.kept_folder(args, free=("seeds", "students", "losses", "also"))
LOSSES = {"margin_mse": losses.MarginMSE(), "mse": losses.MSE(), "weighted_ranknet": losses.WeightedRankNet(order="teacher" if args.labelled else "labels")}
MEASURES = [RR @ 10, nDCG @ 10, AP]

# 1. Candidates
(train, train_qrels), (valid, valid_qrels), _ = first_stage.topics_and_qrels(args.collection).values()
candidates, engine = first_stage.bm25(args.collection, 20)
learning = candidates(train.sample(min(args.queries, len(train)), random_state=0))
checking = candidates(valid.sample(min(60, len(valid)), random_state=0))
students_see, labelled = (learning[learning["qid"].isin(learning["qid"].unique()[:count])] for count in (args.student_queries, args.labelled or args.student_queries))
sizes = {"query_length": 32, "doc_length": args.max_length}


def trained(name: str, data: pd.DataFrame, labels: pd.DataFrame | None, student: kd.Ranker, teacher: object, strategy: kd.Strategy, seed: int, **settings: object) -> kd.Ranker:
    """A ranker that has learned from some of the training candidates."""
    distil = kd.Distiller(student, teacher, strategy=strategy, seed=seed, measure=nDCG @ 10, dropout=0, precision=args.precision, **settings)
    return first_stage.kept(out / f"{name}-{seed}", distil, data, labels, checking, valid_qrels)[0]


# 2. Teachers: cross-encoders of all layers that differ in their seeds, and so in what they were shown
fine_tune = strategies.fine_tune(losses.RankNet(), texts=args.teacher_texts)
fine_tune = fine_tune.with_settings(steps=args.teacher_steps, learning_rate=1e-4, batch_size=8)
teachers = []
for number in range(args.teachers):
    whole = kd.CrossEncoder(first_stage.minilm(), new_head="first_token", max_length=args.max_length + 32, query_length=32)
    teachers.append(trained("teacher", learning, train_qrels, whole, None, fine_tune, number, validate_every=10**9))

# 3. Students: the same three layers of the pre-trained encoder, and the same steps, for all
half = kd.BertDot(first_stage.minilm(), pooling="cls", normalize=False, **sizes).shrink(layers=3)
head = kd.CrossEncoder(first_stage.minilm(), new_head="first_token", max_length=args.max_length + 32, query_length=32).shrink(layers=3)
tokenizer = half.tokenizer
starts = {
    "BERT_CAT": head,
    "PreTT": kd.PreTTR(head.clone().model, tokenizer, **sizes),
    "ColBERT": kd.ColBERT(half.clone().encoder, tokenizer, preset="matchmaker", dim=128, **sizes),
    "BERT_DOT": half,
    "TK": kd.TK.new(first_stage.minilm(), **sizes),
}
first = LOSSES[args.losses[0]]
taught = {"none": (None, losses.RankNet()), "one": (teachers[0], first), **({"ensemble": (kd.Ensemble(teachers), first)} if len(teachers) > 1 else {}),
          **{f"one, {name}": (teachers[0], LOSSES[name]) for name in args.losses[1:]}}
students: dict[tuple[str, str], list[kd.Ranker]] = {}
for seed in args.seeds:
    for architecture in args.students:
        for by, (teacher, loss) in taught.items():
            # TK's kernels begin at random, unlike its word embeddings and all that is pre-trained
            rates = {r"\binteraction\.": 1e-2, r"\bmix\b": 1e-2} if architecture == "TK" else {}
            # without labels a text of the upper half of the teacher's range and one of the lower take the place of a relevant and an irrelevant one
            unlabelled = args.labelled and teacher is not None
            data, labels, choose = (students_see, None, "stratified") if unlabelled else (labelled, train_qrels, "random")
            stage = kd.Stage(loss, steps=args.steps, learning_rate=args.learning_rate, rates=rates, batch_size=args.batch_size, sampler=kd.Sampler(texts=args.texts, choose=choose))
            name = f"{architecture}-{by}".replace(", ", "-") + ("" if teacher is None or ", " in by else f"-{args.losses[0]}")
            student = trained(name, data, labels, starts[architecture], teacher, kd.Strategy(name, (stage,)), seed, validate_every=max(1, args.steps // 4))
            students.setdefault((architecture, by), []).append(student)


# 4. A collection's test candidates, ranked from stores, where an architecture has them
class Tested:
    """A collection's test queries and candidates, and what was computed for them."""

    def __init__(self, name: str) -> None:
        self.name = name
        test, self.qrels = first_stage.topics_and_qrels(name)["test"]
        self.topics = test.sample(min(args.test_queries, len(test)), random_state=0)
        best, self.engine = first_stage.bm25(name, 1000)
        self.retrieved = best(self.topics)
        self.ranking = self.retrieved[self.retrieved["rank"] < args.depth].reset_index(drop=True)
        self.documents = self.ranking[["docno", "text"]].drop_duplicates("docno").to_dict("records")
        self.place = out / Path(name.replace(":", "-")).name
        self.place.mkdir(exist_ok=True)

    def stored(self, model: kd.Ranker, name: str, dtype: str = "float16", whole: bool = False) -> kd.DocumentStore:
        """A model's vectors of the candidates, or of the whole collection."""
        store = kd.DocumentStore(self.place / f"{name}.{'whole.' * whole}{dtype}.store")
        if store.exists():
            return store
        documents = ({"docno": docno, "text": text} for docno, text in first_stage.corpus(self.name).items()) if whole else self.documents
        return (model.doc_encoder() >> kd.DocumentStore(store.folder, dtype=dtype)).index(documents)

    def ranked(self, name: str, system: pt.Transformer) -> pd.DataFrame:
        """The candidates by a system's scores, computed once."""
        path = self.place / f"run-{name}.pkl"
        if not path.exists():
            system(self.ranking)[["qid", "query", "docno", "score"]].to_pickle(path)
        return pt.model.add_ranks(pd.read_pickle(path))

    def latency(self, system: pt.Transformer) -> float:
        """Milliseconds for one query with 1,000 candidates, median of five."""
        thousand = pd.DataFrame(self.documents * (1 + 1000 // len(self.documents))).head(1000)
        one = self.ranking.head(1)[["qid", "query"]].merge(thousand, how="cross")
        system(one)
        times = []
        for _ in range(5):
            start = time.perf_counter()
            system(one)
            times.append(1000 * (time.perf_counter() - start))
        return statistics.median(times)

    def experiment(self, runs: dict[str, pd.DataFrame], measures: list, **settings: object) -> pd.DataFrame:
        """The measures of some runs."""
        return pt.Experiment(list(runs.values()), self.topics, self.qrels, measures, names=list(runs), **settings)


def p_value(means: pd.DataFrame, name: str) -> float:
    """Of a paired two-tailed t-test against the same student without a teacher."""
    other = f"{name.partition(', ')[0]}, none"
    return float("nan") if other not in means.columns or name == other else float(ttest_rel(means[name], means[other]).pvalue)


def main_table(tested: Tested) -> pd.DataFrame:
    """Prints and returns the measures of all students, with what they cost."""
    by_teachers = [tested.ranked(f"teacher-{i}", teacher) for i, teacher in enumerate(teachers)]
    runs = {"BM25": [tested.ranking], "teacher": [by_teachers[0]]}
    if "ensemble" in taught:
        pairs = pd.MultiIndex.from_frame(by_teachers[0][["qid", "docno"]])
        mean_scores = np.mean([run.set_index(["qid", "docno"])["score"].loc[pairs] for run in by_teachers], axis=0)
        runs["ensemble"] = [pt.model.add_ranks(by_teachers[0].drop(columns="rank").assign(score=mean_scores))]
    rows = []
    for (architecture, by), members in students.items():
        name, costs = f"{architecture}, {by}", {}
        for model, seed in zip(members, args.seeds, strict=True):
            folder = f"{architecture}-{by}-{args.losses[0]}-{seed}".replace(", ", "-")
            store = tested.stored(model, folder) if isinstance(model, kd.BertDot | kd.ColBERT | kd.PreTTR | kd.TK) else None
            system = store.scorer(model) if store is not None else model
            runs.setdefault(name, []).append(tested.ranked(folder, system))
            costs = costs or {"ms a query of 1,000": tested.latency(system), "bytes a document": store.bytes_a_document if store is not None else 0.0}
        rows.append({"name": name, "architecture": architecture, "teacher": by, **costs})
    values = tested.experiment({f"{name}@@{i}": run for name, members in runs.items() for i, run in enumerate(members)}, MEASURES, perquery=True)
    values = values.assign(seed=values["name"].str.rpartition("@@")[2], name=values["name"].str.partition("@@")[0])
    mean = values.groupby(["measure", "name", "qid"], as_index=False)["value"].mean().pivot(index="qid", columns=["measure", "name"], values="value")
    table = pd.DataFrame([{"name": name, **{str(m): mean[str(m)][name].mean() for m in MEASURES}} for name in runs]).merge(pd.DataFrame(rows), on="name", how="left")
    table["p against none"] = [p_value(mean["nDCG@10"], name) for name in table["name"]]
    print(f"\n{tested.name}, {len(tested.topics)} test queries, {args.depth} documents re-ranked (BM25 by {tested.engine}), {args.losses[0]}; means of {len(args.seeds)} seed(s); "
          "p of nDCG@10\n" + table.drop(columns=["architecture", "teacher"]).to_string(index=False, float_format="%.4g", na_rep=""))
    by_seed = values[values["measure"] == "nDCG@10"].groupby(["name", "seed"])["value"].mean()
    for name in [n for n in runs if len(runs[n]) > 1]:
        print(f"  {name}: nDCG@10 by seed {', '.join(f'{v:.4f}' for v in by_seed[name])}")
    (tested.place / "table.json").write_text(json.dumps(table.replace({np.nan: None}).to_dict("records"), indent=1))
    return table


# 5. What a type of store costs, and retrieval from the whole collection without BM25
def tables_of_stores(tested: Tested) -> None:
    """Prints both."""
    by_type, recall = {}, {"BM25": tested.retrieved}
    for architecture in [a for a in args.students if a != "BERT_CAT"]:
        model, name = students[architecture, "one"][0], f"{architecture}-one-{args.losses[0]}-{args.seeds[0]}"
        for dtype in ("float32", "float16", "int8"):
            by_type[f"{architecture}, {dtype}"] = tested.ranked(f"{name}-{dtype}", tested.stored(model, name, dtype).scorer(model))
        if architecture in ("BERT_DOT", "ColBERT"):
            for label, exhaustive in (("", False), (", every document scored", True)):
                recall[f"{architecture}, one{label}"] = tested.stored(model, name, whole=True).retriever(model, 1000, exhaustive=exhaustive)(tested.topics)
    if by_type:
        print("\nnDCG@10 by type of store, one teacher, first seed\n" + tested.experiment(by_type, [nDCG @ 10]).to_string(index=False, float_format="%.4f"))
    print(f"\nRetrieval from all {len(first_stage.corpus(tested.name))} documents\n"
          + tested.experiment(recall, [RR @ 10, nDCG @ 10, R @ 1000]).to_string(index=False, float_format="%.4g"))
    for name in [n for n in recall if n.endswith("scored")]:
        every, found = (run[run["rank"] < 100] for run in (recall[name], recall[name.removesuffix(", every document scored")]))
        print(f"  {name.partition(',')[0]}: {len(every.merge(found, on=['qid', 'docno'])) / len(every):.4f} of the best 100 of all documents are found")


tables = {}
for collection in (args.collection, *args.also):
    tested = Tested(collection)
    tables[collection] = main_table(tested)
    tables_of_stores(tested)
table = tables[args.collection]

# 6. The figure
figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
drawn = {by: style for by, style in {"none": ("o", "no teacher"), "one": ("s", "one teacher"), "ensemble": ("^", "ensemble")}.items() if by in taught}
for by, (marker, label) in drawn.items():
    points = table[table["teacher"] == by]
    axes.scatter(points["ms a query of 1,000"], points["nDCG@10"], marker=marker, label=label)
for _, point in table[table["teacher"] == list(drawn)[-1]].iterrows():
    axes.annotate(point["architecture"], (point["ms a query of 1,000"], point["nDCG@10"]), xytext=(4, 4), textcoords="offset points", fontsize=8)
axes.axhline(table.loc[table["name"] == "BM25", "nDCG@10"].iloc[0], color="grey", linestyle=":", label="BM25")
axes.set(xscale="log", xlabel="ms for a query with 1,000 candidates", ylabel="nDCG@10", title=args.collection)
axes.legend(fontsize=8)
figure.savefig(out / "latency.png", dpi=120)
print(f"\nsaved {out / 'latency.png'}")
