"""Tables 1 to 3 of Simplified TinyBERT (arXiv:2009.07531) on any collection of documents: six rankers, re-ranking by their best passages.

    python examples/simplified_tinybert.py --collection kd:pycode/modules --shape L3_H384 --seeds 0 1 2

Without --paper it is sized for a laptop: all rows train equally long, at one learning rate. With --paper each row has the paper's own
epochs, rates and batches, which need a GPU. What is done is kept in --out, and a second call goes on from there.
"""

import argparse
from pathlib import Path

import first_stage
import numpy as np
import pandas as pd
import pyterrier as pt
from pyterrier.measures import AP, RR, nDCG
from scipy.stats import ttest_rel
from training_passages import training_passages

import pyterrier_kd as kd
from pyterrier_kd import losses, passages, strategies

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--collection", default="kd:pycode", help="a PyTerrier dataset, or a folder; see first_stage.py")
parser.add_argument("--teacher", help="a folder or name of a trained cross-encoder; default: all-MiniLM-L6-v2, fine-tuned here")
parser.add_argument("--shape", default="L3_H384", help="of the student; the paper's are L6_H768, L6_H384, L3_H768, L3_H384")
parser.add_argument("--init", default="first", help="of the student: random, first, strided (layers of the pre-trained encoder), or a general TinyBERT")
parser.add_argument("--seeds", type=int, nargs="+", default=[0])
parser.add_argument("--queries", type=int, default=2000, help="training queries")
parser.add_argument("--negatives", type=int, default=7, help="other documents a training query")
parser.add_argument("--passages", type=int, default=2, help="passages a training document that share most words with the query; of these the teacher keeps its top 5")
parser.add_argument("--max-length", type=int, default=256, help="tokens of query and passage")
parser.add_argument("--depths", type=int, nargs="+", default=[10, 20, 50, 100], help="documents that are re-ranked; the last for Table 1")
parser.add_argument("--stride", type=float, default=1.0, help="of passages, as a part of their length")
parser.add_argument("--epochs", type=float, default=1)
parser.add_argument("--batch-size", type=int, default=8, help="queries a step, two passages each")
parser.add_argument("--learning-rate", type=float, default=3e-4)
parser.add_argument("--teacher-epochs", type=float, default=1)
parser.add_argument("--test-queries", type=int, default=200)
parser.add_argument("--paper", action="store_true", help="the paper's epochs, learning rates and batch sizes")
parser.add_argument("--out", default="simplified-tinybert")
args = parser.parse_args()
out = first_stage.kept_folder(args, free=("seeds",))

# 1. Candidates, and for training the passages of documents that share most words with the query
(train, train_qrels), (valid, valid_qrels), (test, qrels) = first_stage.topics_and_qrels(args.collection).values()
test = test.sample(min(args.test_queries, len(test)), random_state=0)
candidates, engine = first_stage.bm25(args.collection, max(args.depths))
limits = {"max_length": args.max_length, "query_length": args.max_length // 2}
encoder = kd.CrossEncoder(first_stage.minilm(), classes=2, **limits)        # pre-trained; its head is new
room = int(encoder.room(["a query of some ten words, as most of them are"])[0])
stride = max(1, int(args.stride * room))


def cached(name: str, make: object) -> pd.DataFrame:
    """A frame that is made once."""
    if not (out / name).exists():
        make().to_pickle(out / f"{name}.part")
        (out / f"{name}.part").rename(out / name)
    return pd.read_pickle(out / name)


print(f"BM25 by {engine}; passages of {room} tokens, stride {stride}")
sizes = {"negatives": args.negatives, "passages": args.passages, "stride": stride}
learning = cached("train.pkl", lambda: training_passages(candidates, train, train_qrels, encoder, args.queries, **sizes))
checking = cached("valid.pkl", lambda: training_passages(candidates, valid, valid_qrels, encoder, 50, **sizes))
ranking = cached("test.pkl", lambda: candidates(test))
print(f"{learning['qid'].nunique()} training queries with {len(learning)} passages; {len(ranking)} candidates of {ranking['qid'].nunique()} test queries")


def trained(name: str, student: kd.CrossEncoder, teacher: object, strategy: kd.Strategy, seed: int, **settings: object) -> tuple[kd.CrossEncoder, float]:
    """A student and the seconds that its training took."""
    distil = kd.Distiller(student, teacher, strategy=strategy, seed=seed, measure=RR @ 10, **settings)
    return first_stage.kept(out / f"{name}-{seed}", distil, learning, train_qrels, checking, valid_qrels)


def sized(strategy: kd.Strategy) -> kd.Strategy:
    """A strategy at this machine's size, unless the paper's is asked for: one rate for all, so that rows differ in their losses alone."""
    return strategy if args.paper else strategy.with_settings(epochs=args.epochs, learning_rate=args.learning_rate, batch_size=args.batch_size, schedule="linear", warmup=0.1)


# 2. The teacher: a ranker of passages, trained on the one passage of each document that shares most words with the query
if args.teacher:
    teacher = kd.CrossEncoder(args.teacher, **limits)
else:
    # InfoNCE tells the documents of a query apart, hard labels make of the scores the probabilities that the students' soft labels are
    fine_tune = strategies.fine_tune(losses.InfoNCE(in_batch=False) + losses.HardLabels(), texts=1 + args.negatives)
    fine_tune = fine_tune.with_settings(epochs=args.teacher_epochs, learning_rate=1e-4, batch_size=8)
    by_words = learning[["qid", "docno", "score"]]
    teacher, _ = trained("teacher", encoder, by_words, fine_tune, 0, keep_top=kd.KeepTop(1), dropout=0, validate_every=10**9)

# 3. The students: the same start for every row, and the same passages, the teacher's top five of each document
start = kd.CrossEncoder.tiny_bert(args.shape, encoder, args.init)
two_steps = sized(strategies.tinybert())
layers, prediction = (kd.Strategy(stage.name, (stage,)) for stage in two_steps.stages)
with_labels = kd.Strategy("prediction", sized(strategies.tinybert(hard_label=True)).stages[1:])
settings = {"keep_top": kd.KeepTop(5), "validate_every": None if args.paper else max(1, int(args.epochs * args.queries / args.batch_size / 3))}
models, seconds = {"teacher": [teacher], "undistilled start": [start]}, {}
for seed in args.seeds:
    shared, of_layers = trained("layers", start, teacher, layers, seed, **settings)       # both two-step rows begin with it
    rows = {"Standard KD": (start, sized(strategies.standard_kd()), 0), "TinyBERT": (shared, prediction, of_layers), "+ hard label": (shared, with_labels, of_layers),
            "+ one step": (start, sized(strategies.tinybert(one_step=True)), 0), "Simplified TinyBERT": (start, sized(strategies.simplified_tinybert()), 0)}
    for name, (student, strategy, before) in rows.items():
        model, own = trained(name.replace(" ", "-").replace("+", "with"), student, teacher, strategy, seed, **settings)
        models.setdefault(name, []).append(model)
        seconds.setdefault(name, []).append(before + own)

# 4. Rank the test candidates by their best passages
runs: dict[str, list[pd.DataFrame]] = {"BM25": [ranking]}
for name, members in models.items():
    for ranker in members:
        pipeline = (passages.split(ranker, stride=stride) >> ranker >> passages.max_passage()).compile()
        ranker.verbose = True
        runs.setdefault(name, []).append(cached(f"run-{Path(ranker.name).name or 'start'}.pkl", lambda pipeline=pipeline: pipeline(ranking)[["qid", "query", "docno", "score"]]))

depth_of = ranking.set_index(["qid", "docno"])["rank"]


def per_query(depth: int, measures: list) -> pd.DataFrame:
    """Each row's measures for each query, mean over seeds, when ``depth`` documents are re-ranked."""
    named = {f"{name}@@{i}": run for name, members in runs.items() for i, run in enumerate(members)}
    cut = {name: run[depth_of.loc[pd.MultiIndex.from_frame(run[["qid", "docno"]])].to_numpy() < depth] for name, run in named.items()}
    cut = {name: pt.model.add_ranks(run.drop(columns="rank", errors="ignore").copy()) for name, run in cut.items()}
    values = pt.Experiment(list(cut.values()), test, qrels, measures, names=list(cut), perquery=True)
    values["name"] = values["name"].str.replace(r"@@\d+$", "", regex=True)
    return values.groupby(["measure", "name", "qid"], as_index=False)["value"].mean().pivot(index="qid", columns=["measure", "name"], values="value")


def p_value(values: pd.DataFrame, a: str, b: str) -> float:
    """Of a paired two-tailed t-test; 1 if the two are equal."""
    return 1.0 if (values[a] == values[b]).all() else float(ttest_rel(values[a], values[b]).pvalue)


# 5. The tables
MEASURES = [RR, RR @ 10, nDCG @ 10, AP]
names = ["BM25", *models]
best = per_query(max(args.depths), MEASURES)
table = pd.DataFrame([{"": name, **{str(m): best[str(m)][name].mean() for m in MEASURES},
                       **{f"p vs. {other}": p_value(best["RR@10"], name, other) for other in ("teacher", "Standard KD", "TinyBERT")}} for name in names])
print(f"\nTable 1. {args.collection}, {len(test)} test queries, {max(args.depths)} documents re-ranked; student {args.shape} ({start.cost(args.max_length)}), "
      f"teacher {teacher.cost(args.max_length)}; means of {len(args.seeds)} seed(s), p of RR@10 by a paired two-tailed t-test")
print(table.to_string(index=False, float_format="%.4f"))
for name in list(models)[2:]:
    spread = [per["RR@10"].mean() for per in [pt.Experiment([run], test, qrels, [RR @ 10]) for run in runs[name]]]
    print(f"  {name}: RR@10 by seed {', '.join(f'{s:.4f}' for s in spread)}")
rows = [{"documents": depth, **{name: per_query(depth, [RR @ 10])["RR@10"][name].mean() for name in ("teacher", "TinyBERT", "Simplified TinyBERT")}} for depth in args.depths]
print("\nTable 2. RR@10 when fewer documents are re-ranked\n" + pd.DataFrame(rows).to_string(index=False, float_format="%.4f"))
print("\nTable 3. Seconds of training, mean over seeds\n" + "\n".join(f"  {name}: {np.mean(s):.0f}" for name, s in seconds.items()))
print(f"  two steps to one: {np.mean(seconds['TinyBERT']) / np.mean(seconds['+ one step']):.2f} times")
