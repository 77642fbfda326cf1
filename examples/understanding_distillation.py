"""Three ways to a small ranker (arXiv:2007.11088), for students of 6 and 4 layers: what each needs, and what each gives.

    python examples/understanding_distillation.py --collection kd:pycode

Ranker Distill: a random student learns from a ranker. LM Distill + Fine-Tuning: it learns from a pre-trained encoder on plain texts, then from
labels. LM Distill + Ranker Distill: from both teachers. Draws the measure against the training examples of the last stage, and prints
what each costs before training for a task, for each task, and for each query. What is done is kept in --out.
"""

import argparse
import json

import first_stage
import matplotlib.pyplot as plt
import pandas as pd
import pyterrier as pt
from pyterrier.measures import RR, nDCG

import pyterrier_kd as kd
from pyterrier_kd import losses, strategies

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--collection", default="kd:pycode", help="a PyTerrier dataset, or a folder; see first_stage.py")
parser.add_argument("--teacher", help="a trained cross-encoder; default: the encoder, fine-tuned here")
parser.add_argument("--encoder", help="a pre-trained encoder; default: all-MiniLM-L6-v2")
parser.add_argument("--shapes", nargs="+", default=["L6_H384", "L4_H312"], help="of the students; the paper's are L6_H768 and L4_H312")
parser.add_argument("--queries", type=int, default=1500, help="training queries")
parser.add_argument("--lm-steps", type=int, default=150, help="in the stage on the corpus")
parser.add_argument("--steps", type=int, default=200, help="in each stage on queries")
parser.add_argument("--batch-size", type=int, default=8, help="queries a step, two texts each; texts of the corpus: four times as many")
parser.add_argument("--learning-rate", type=float, default=3e-4)
parser.add_argument("--max-length", type=int, default=128)
parser.add_argument("--depth", type=int, default=20)
parser.add_argument("--test-queries", type=int, default=200)
parser.add_argument("--paper", action="store_true", help="the published epochs, learning rates and batch sizes")
parser.add_argument("--out", default="understanding-distillation")
args = parser.parse_args()
out = first_stage.kept_folder(args, free=("shapes",))

# 1. Candidates, corpus, encoder and teacher
(train, train_qrels), (valid, valid_qrels), (topics, qrels) = first_stage.topics_and_qrels(args.collection).values()
topics = topics.sample(min(args.test_queries, len(topics)), random_state=0)
candidates, engine = first_stage.bm25(args.collection, args.depth)
corpus = list(first_stage.corpus(args.collection).values())
limits = {"max_length": args.max_length, "query_length": args.max_length // 2}
encoder = kd.CrossEncoder(args.encoder or first_stage.minilm(), classes=2, **limits)
learning, checking = candidates(train.sample(min(args.queries, len(train)), random_state=0)), candidates(valid.sample(min(60, len(valid)), random_state=0))


def trained(name: str, student: kd.CrossEncoder, teacher: object, strategy: kd.Strategy, every: int = 10**9, **settings: object) -> kd.CrossEncoder:
    """A student, with its history and seconds kept beside it."""
    distil = kd.Distiller(student, teacher, strategy=strategy, validate_every=every, measure=nDCG @ 10, **settings)
    return first_stage.kept(out / name, distil, learning, train_qrels, checking, valid_qrels)[0]


def sized(strategy: kd.Strategy, steps: int) -> kd.Strategy:
    """A strategy at this machine's size, unless the published one is asked for."""
    size = args.batch_size * (1 if strategy.stages[0].corpus is None else 4)
    return strategy if args.paper else strategy.with_settings(steps=steps, learning_rate=args.learning_rate, batch_size=size)


def seconds(name: str) -> float:
    """How long a training took."""
    return json.loads((out / name / "seconds.json").read_text())


# InfoNCE tells the documents of a query apart, hard labels make of the scores the probabilities that the students' soft labels are
fine_tune = strategies.fine_tune(losses.InfoNCE(in_batch=False) + losses.HardLabels(), texts=8).with_settings(epochs=1, learning_rate=1e-4, batch_size=8)
teacher = kd.CrossEncoder(args.teacher, **limits) if args.teacher else trained("teacher", encoder, None, fine_tune, dropout=0)

# 2. The three procedures for each shape; both that begin with LM Distill share it, as a search engine that trains rankers often would
every = max(1, args.steps // 6)
systems, rows, curves = {"BM25": candidates, "teacher": candidates >> teacher}, [], {}
for shape in args.shapes:
    random = kd.CrossEncoder.tiny_bert(shape, teacher)
    general = trained(f"{shape}-lm", random, None, sized(strategies.lm_distill(corpus, encoder), args.lm_steps))
    procedures = {
        "Ranker Distill": (random, teacher, strategies.ranker_distill(), 0.0),
        "LM Distill + Fine-Tuning": (general, None, kd.Strategy("fine_tune", strategies.lm_distill_fine_tune(corpus, encoder).stages[1:]), seconds(f"{shape}-lm")),
        "LM Distill + Ranker Distill": (general, teacher, strategies.ranker_distill(), seconds(f"{shape}-lm")),
    }
    for name, (student, own, strategy, once) in procedures.items():
        key = f"{shape}-{name.lower().replace(' + ', '-').replace(' ', '-')}"
        model = trained(key, student, own, sized(strategy, args.steps), every)
        systems[f"{shape} {name}"] = candidates >> model
        history = pd.read_csv(out / key / "history.csv")
        last = history[history["stage"] == history["stage"].iloc[-1]]
        before = 0 if history["stage"].nunique() == 1 else history.loc[history["stage"] != history["stage"].iloc[-1], "step"].max()
        pairs = strategy.stages[-1].batch_size * strategy.stages[-1].sampler.texts if args.paper else 2 * args.batch_size
        curves[f"{shape} {name}"] = ((last["step"] + before) * pairs, last["nDCG@10"])
        rows.append({"name": f"{shape} {name}", "once (s)": once, "each ranker (s)": seconds(key), "GFLOPs a pair": model.cost(args.max_length).gflops})

# 3. What was kept
for system in systems.values():
    system(topics.head(1))
table = pt.Experiment(list(systems.values()), topics, qrels, [nDCG @ 10, RR @ 10, "mrt"], names=list(systems), baseline=1, correction="holm", verbose=True)
table = table[["name", "nDCG@10", "RR@10", "nDCG@10 p-value", "mrt"]].merge(pd.DataFrame(rows), on="name", how="left")
print(f"\n{args.collection}, {len(topics)} test queries, {args.depth} documents re-ranked (BM25 by {engine}); offline cost once for all rankers and for each; online cost a query "
      f"in ms; p against the teacher\n" + table.to_string(index=False, float_format="%.4g"))

# 4. Convergence
figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
for name, (examples, measure) in curves.items():
    axes.plot(examples, measure, marker="o", linestyle="-" if name.startswith(args.shapes[0]) else "--", label=name)
axes.set(xlabel="training examples (query and text)", ylabel="nDCG@10 on validation queries", title=args.collection)
axes.legend(fontsize=8)
figure.savefig(out / "convergence.png", dpi=120)
print(f"\nsaved {out / 'convergence.png'}")
