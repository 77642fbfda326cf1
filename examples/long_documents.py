"""Does the best passage of a document say more than its first? MaxP, FirstP and their kin, by one ranker on one collection of long documents.

    python examples/long_documents.py --collection kd:pycode/modules

The ranker is all-MiniLM-L6-v2, fine-tuned here on the collection's training queries (and kept in --out), or any cross-encoder by --teacher.
"""

import argparse
from pathlib import Path

import first_stage
import pyterrier as pt
from pyterrier.measures import RR, nDCG
from training_passages import training_passages

import pyterrier_kd as kd
from pyterrier_kd import losses, passages, strategies

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--collection", default="kd:pycode/modules", help="a PyTerrier dataset, or a folder; see first_stage.py")
parser.add_argument("--teacher", help="a folder or name of a trained cross-encoder")
parser.add_argument("--queries", type=int, default=1500, help="training queries")
parser.add_argument("--steps", type=int, default=190, help="training steps of 8 queries x 4 passages")
parser.add_argument("--max-length", type=int, default=256, help="tokens of query and passage")
parser.add_argument("--depth", type=int, default=10, help="documents that are re-ranked")
parser.add_argument("--stride", type=float, default=1.0, help="of passages, as a part of their length")
parser.add_argument("--test-queries", type=int, default=200)
parser.add_argument("--out", default="long-documents")
args = parser.parse_args()

# 1. First stage and ranker
(train, train_qrels), _, (topics, qrels) = first_stage.topics_and_qrels(args.collection).values()
topics = topics.sample(min(args.test_queries, len(topics)), random_state=0)
candidates, engine = first_stage.bm25(args.collection, max(20, args.depth))
folder = Path(args.teacher or args.out)
if not (folder / "config.json").exists():
    encoder = kd.CrossEncoder(first_stage.minilm(), max_length=args.max_length, query_length=args.max_length // 2)
    learning = training_passages(candidates, train, train_qrels, encoder, args.queries, stride=int(encoder.room(["a query of some words"])[0]))
    fine_tune = strategies.fine_tune(losses.InfoNCE(in_batch=False), texts=4).with_settings(steps=args.steps, learning_rate=1e-4, batch_size=8)
    distil = kd.Distiller(encoder, learning[["qid", "docno", "score"]], strategy=fine_tune, keep_top=kd.KeepTop(1), dropout=0)
    distil.fit(learning, train_qrels).student_.save(folder)
ranker = kd.CrossEncoder(str(folder), max_length=args.max_length, query_length=args.max_length // 2, verbose=True)

# 2. Score every passage once; then documents by their first, best, three best, and all
run = (candidates % args.depth)(topics)
split = passages.split(ranker, stride=max(1, int(args.stride * ranker.room(["a query of some words"])[0])))
cut = split(run)
print(f"{len(run)} documents in {len(cut)} passages")
scored = ranker(cut)
systems = {"BM25": run, "first passage": passages.first_passage()(scored), "best passage": passages.max_passage()(scored),
           "mean of the best three": passages.k_max_mean(3)(scored), "mean of all": passages.mean_passage()(scored)}
table = pt.Experiment(list(systems.values()), topics, qrels, [nDCG @ 10, RR @ 10], names=list(systems), baseline=1, correction="holm")
print(f"{args.collection}, {len(topics)} test queries, {args.depth} documents re-ranked (BM25 by {engine}); p against the first passage")
print(table[[c for c in table.columns if not c.endswith(("+", "-", "reject"))]].to_string(index=False, float_format="%.4g"))
if "function" in topics.columns:        # the passage that answers is known
    best = systems["best passage"].merge(qrels, on=["qid", "docno"]).merge(topics[["qid", "function"]], on="qid")
    held = [f"def {name.split('.')[-1]}(" in text for name, text in zip(best["function"], best["text"], strict=True)]
    print(f"the best passage of the relevant document holds the beginning of the function in {sum(held)} of {len(held)} cases")
