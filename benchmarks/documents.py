"""Long documents: what a small student gains end to end, and what the compiled pipeline saves outside the model.

    python benchmarks/documents.py [--documents 40] [--rounds 5] [--device cpu] [--data ../shared/data/wikiboolq]

1. L3_H384 against L12_H768 (random weights, BERT's vocabulary) re-rank the same real articles by their best passages of 256 tokens, through
   ``split >> ranker >> max_passage()``, tokenisation and frames included.
2. The same pipeline over BM25's candidates for many queries, compiled and not: total time less the time in the model's forward passes.

Contestants take turns; medians with the least and the most of the ratios round by round.
"""

import argparse
import gzip
import json
import statistics
import sys
import time
import warnings
from pathlib import Path

import pandas as pd
import torch
import transformers

import pyterrier_kd as kd
from pyterrier_kd import passages
from pyterrier_kd.rankers.shrink import parsed_shape

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import first_stage
import turns

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--documents", type=int, default=40)
parser.add_argument("--queries", type=int, default=50)
parser.add_argument("--collection", default="kd:pycode/modules", help="for the second; see examples/first_stage.py")
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--device", default="cpu")
parser.add_argument("--data", default="../shared/data/wikiboolq")
args = parser.parse_args()
warnings.filterwarnings("ignore")


def ranker(shape: str) -> kd.CrossEncoder:
    """A random BERT with 12 heads."""
    layers, hidden = parsed_shape(shape)
    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(first_stage.minilm())
    config = transformers.BertConfig(vocab_size=len(tokenizer), hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=12, intermediate_size=4 * hidden, num_labels=2)
    return kd.CrossEncoder(transformers.BertForSequenceClassification(config), tokenizer, max_length=256, device=args.device)


class Clock:
    """Adds up the time in a model's forward passes."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.seconds, self.start = 0.0, 0.0
        model.register_forward_pre_hook(self.begin)
        model.register_forward_hook(self.end)

    def begin(self, *_: object) -> None:
        """A forward pass begins."""
        self.wait()
        self.start = time.perf_counter()

    def end(self, *_: object) -> None:
        """It ends."""
        self.wait()
        self.seconds += time.perf_counter() - self.start

    @staticmethod
    def wait() -> None:
        """Until the device has done what it was given."""
        if args.device == "cuda":
            torch.cuda.synchronize()


def timed(pipeline: object, frame: pd.DataFrame) -> tuple[float, pd.DataFrame]:
    """Seconds of one run, and what it gives."""
    start = time.perf_counter()
    out = pipeline(frame)
    Clock.wait()
    return time.perf_counter() - start, out


with gzip.open(f"{args.data}/corpus.jsonl.gz", "rt", encoding="utf-8") as lines:
    articles = [json.loads(line) for line, _ in zip(lines, range(args.documents), strict=False)]
frame = pd.DataFrame(articles)[["docno", "title", "text"]].assign(qid="1", query="is the state of new york part of new england")

# 1. Speed
large, small = ranker("L12_H768"), ranker("L3_H384")
few = frame.head(max(1, args.documents // 10))
contestants = {r: (passages.split(r) >> r >> passages.max_passage()).compile() for r in (large, small)}
times: dict[object, list[float]] = {r: [] for r in contestants}
for number in range(args.rounds + 1):
    for r, pipeline in contestants.items():
        seconds, _ = timed(pipeline, few)
        if number:
            times[r].append(seconds)
count = len(passages.split(large)(few))
flops = large.cost(256).gflops / small.cost(256).gflops
print(f"{len(few)} articles, {count} passages of at most 256 tokens on {args.device}: L12_H768 {statistics.median(times[large]):.2f} s, "
      f"L3_H384 {statistics.median(times[small]):.3f} s: {turns.spread([a / b for a, b in zip(times[large], times[small], strict=True)])} times faster; "
      f"by multiply-adds {flops:.1f} times", flush=True)

# 2. What is outside the model: the same for every model, so a tiny one serves
tiny = ranker("L1_H12")
topics = first_stage.topics_and_qrels(args.collection)["test"][0].head(args.queries)
frame = (first_stage.bm25(args.collection, 10)[0])(topics)
clock = Clock(tiny.model)
plain = passages.split(tiny) >> tiny >> passages.max_passage()
contestants = {"plain": plain, "compiled": plain.compile()}
outside: dict[str, list[float]] = {name: [] for name in contestants}
scores = {}
for number in range(args.rounds + 1):
    for name, pipeline in contestants.items():
        clock.seconds = 0.0
        seconds, scores[name] = timed(pipeline, frame)
        if number:
            outside[name].append(seconds - clock.seconds)
difference = (scores["plain"]["score"] - scores["compiled"]["score"]).abs().max()
count = len(passages.split(tiny)(frame))
print(f"{args.collection}, {len(topics)} queries, {len(frame)} candidates ({frame['docno'].nunique()} documents) in {count} passages: "
      f"outside the model {statistics.median(outside['plain']):.2f} s, compiled {statistics.median(outside['compiled']):.2f} s: "
      f"{turns.spread([a / b for a, b in zip(outside['plain'], outside['compiled'], strict=True)])} times less; largest difference of scores {difference:.1e}")
