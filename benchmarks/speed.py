"""Speed, as ratios within one run: re-ranking and training against sentence-transformers, and what a pipeline adds to the model.

    python benchmarks/speed.py [--rounds 5] [--only score,train,overhead] [--device cpu] [--data ../shared/data]

Contestants take turns (A B C A B C ...), so that a machine whose speed drifts slows all alike. A row gives the median of the
rounds, and of the round-by-round ratios the median with its extremes. The first round warms up and is not counted.
"""

import argparse
import gzip
import json
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import transformers

import pyterrier_kd as kd
from pyterrier_kd import losses
from pyterrier_kd.groups import from_frame
from pyterrier_kd.rankers.first_token import first_token_only
from pyterrier_kd.teacher_signals import given_signals
from pyterrier_kd.training import Training, accelerator_for

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import first_stage
import turns

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--only", default="score,train,overhead")
parser.add_argument("--device", default="cpu")
parser.add_argument("--data", default="../shared/data", help="the folder that holds nfcorpus and medquad")
args = parser.parse_args()
turns.quiet()


def ratio(ours: list[float], theirs: list[float]) -> str:
    """How many times faster we are: median (least to most)."""
    each = [b / a for a, b in zip(ours, theirs, strict=True)]
    return turns.spread(each)


def row(name: str, figure: str, comparison: str = "") -> None:
    """A row of the table."""
    print(f"{name:<62} {figure:>18}   {comparison}", flush=True)


def texts_of(collection: str) -> tuple[list[str], list[str]]:
    """Queries and texts of a collection."""
    folder = Path(args.data) / collection
    with gzip.open(folder / "corpus.jsonl.gz", "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["text"] for line in lines]
    topics = pd.read_csv(folder / "topics.train.tsv", sep="\t", names=["qid", "query"], dtype=str, quoting=3, keep_default_na=False)
    return topics["query"].tolist(), texts


def arithmetic(lengths: np.ndarray, config: transformers.PretrainedConfig) -> float:
    """Floating-point operations of an encoder on rows of these lengths, padding not counted, of the last layer what its first token needs."""
    layers, hidden, inner = config.num_hidden_layers, config.hidden_size, config.intermediate_size
    t = lengths.astype(float)
    whole = 8 * t * hidden**2 + 4 * t * hidden * inner + 4 * t**2 * hidden
    last = 4 * t * hidden**2 + 4 * hidden**2 + 4 * hidden * inner + 4 * t * hidden
    return float(((layers - 1) * whole + last).sum())


def matrix_rate() -> float:
    """Operations a second of the best of 5 float32 products of two 2,048 x 2,048 matrices."""
    a, b = torch.randn(2, 2048, 2048, device=args.device)
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        (a @ b).sum().item()
        best = max(best, 2 * 2048**3 / (time.perf_counter() - start))
    return best


def checkpoint(folder: str) -> str:
    """all-MiniLM-L6-v2 with a ranking head of fixed random weights."""
    torch.manual_seed(0)
    ranker = kd.CrossEncoder(first_stage.minilm(), device="cpu")
    ranker.model.classifier.weight.data *= 20
    ranker.save(folder)
    return folder


def score(folder: str) -> None:
    """Re-ranking against CrossEncoder.predict, same weights and pairs."""
    from sentence_transformers import CrossEncoder
    queries, texts = texts_of("nfcorpus")
    pairs = [(queries[i % 100], texts[i]) for i in range(256)]
    columns = [list(c) for c in zip(*pairs, strict=True)]
    ours = kd.load(folder, max_length=256, device=args.device)
    theirs = CrossEncoder(folder, max_length=256, device=args.device, activation_fn=torch.nn.Identity())
    lengths = np.array([len(i) for i in ours.tokenizer(*columns, truncation=True, max_length=256)["input_ids"]])
    expected = theirs.predict(pairs)
    gap = np.abs(ours.score(*columns) - expected) / np.maximum(1, np.abs(expected))
    rates: list[float] = []
    contestants = {"ours": lambda: ours.score(*columns)}
    contestants |= {f"predict, batch {b}": (lambda b=b: theirs.predict(pairs, batch_size=b)) for b in (32, 4, 8, 16)}
    seconds = turns.rounds({**contestants, "matrix": lambda: rates.append(matrix_rate())}, args.rounds, args.device)
    mine = seconds["ours"]
    useful = arithmetic(lengths, ours.model.config) / statistics.median(mine) / max(rates)
    row("re-rank 256 nfcorpus pairs, 256 tokens: pairs/s", f"{256 / statistics.median(mine):.0f}")
    for name, other in seconds.items():
        if name.startswith("predict"):
            row(f"  sentence-transformers {name}{' (its default)' if name.endswith(' 32') else ''}", f"{256 / statistics.median(other):.0f}", f"x {ratio(mine, other)}")
    row("  largest difference of a score, relative to max(1, |score|)", f"{gap.max():.1e}")
    row("  useful arithmetic, of this machine's matrix rate", f"{useful:.2f}", f"matrix rate {max(rates) / 1e9:.0f} GFLOP/s")


def train(folder: str, dropout: float) -> None:
    """Training against CrossEncoderTrainer with MarginMSELoss: same model, pairs, batch and dropout."""
    from datasets import Dataset
    from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import MarginMSELoss
    steps, batch = 2, 16
    queries, texts = texts_of("medquad")
    rng = np.random.default_rng(0)
    count = steps * batch
    chosen = rng.choice(len(texts), (count, 2), replace=False)
    columns = {"query": queries[:count], "positive": [texts[i] for i in chosen[:, 0]], "negative": [texts[i] for i in chosen[:, 1]]}
    margins = rng.normal(size=count).astype(float)
    frame = pd.DataFrame([{"qid": str(i), "query": columns["query"][i], "docno": f"{i}{side}", "text": columns[side][i], "score": margins[i] * (side == "positive")}
                          for i in range(count) for side in ("positive", "negative")])

    ranker = kd.load(folder, max_length=256, device=args.device)
    groups = from_frame(frame, frame["text"].tolist(), None, "benchmark").with_teacher(frame["score"].to_numpy())
    stage = kd.Stage(losses.MarginMSE(), steps=steps, batch_size=batch, learning_rate=1e-5, dropout=dropout)

    def ours() -> None:
        training = Training(stage, ranker, ranker.tokens(groups.queries, groups.texts), groups, given_signals, accelerator_for(ranker.device, "no", None, None), (0,))
        training.run(steps)

    model = CrossEncoder(folder, max_length=256, device=args.device)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    data = Dataset.from_dict({**columns, "score": margins})
    settings = CrossEncoderTrainingArguments(tempfile.mkdtemp(), per_device_train_batch_size=batch, max_steps=steps, learning_rate=1e-5, save_strategy="no", report_to=[],
                                             disable_tqdm=True, logging_strategy="no", use_cpu=args.device == "cpu")
    trainer = CrossEncoderTrainer(model, settings, train_dataset=data, loss=MarginMSELoss(model))
    seconds = turns.rounds({"ours": ours, "theirs": trainer.train}, args.rounds, args.device)
    pairs = 2 * count
    row(f"train on medquad pairs, 256 tokens, 32 a step, dropout {dropout:g}: pairs/s", f"{pairs / statistics.median(seconds['ours']):.1f}")
    row("  sentence-transformers CrossEncoderTrainer, MarginMSELoss", f"{pairs / statistics.median(seconds['theirs']):.1f}", f"x {ratio(seconds['ours'], seconds['theirs'])}")


def overhead(folder: str) -> None:
    """What Distiller.transform adds to the bare forward passes, for 100 queries x 100 texts."""
    queries, texts = texts_of("nfcorpus")
    frame = pd.DataFrame([{"qid": str(i), "query": queries[i], "docno": f"d{(37 * i + j) % len(texts)}", "text": texts[(37 * i + j) % len(texts)], "score": -float(j), "rank": j}
                          for i in range(100) for j in range(100)])
    distiller = kd.Distiller(kd.load(folder, max_length=32, device=args.device).shrink(layers=3))
    distiller.student_ = ranker = distiller.student
    passes: list[dict[str, torch.Tensor]] = []
    forward = ranker.model.forward
    ranker.model.forward = lambda **inputs: passes.append(inputs) or forward(**inputs)
    distiller.transform(frame)
    ranker.model.forward = forward

    def bare() -> None:
        with torch.inference_mode(), first_token_only(ranker.model.base_model):     # as transform runs them
            for inputs in passes:
                ranker.model(**inputs).logits.float().cpu()

    seconds = turns.rounds({"transform": lambda: distiller.transform(frame), "bare": bare}, args.rounds, args.device)
    each = [a / b - 1 for a, b in zip(seconds["transform"], seconds["bare"], strict=True)]
    row("Distiller.transform, 100 queries x 100 texts of 32 tokens, 3 layers: s", f"{statistics.median(seconds['transform']):.1f}")
    row("  the same forward passes alone", f"{statistics.median(seconds['bare']):.1f}", f"overhead {statistics.median(each):+.1%} ({min(each):+.1%} to {max(each):+.1%})")


def processor() -> str:
    """The name of the processor."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0] if names else platform.processor()


def main() -> None:
    """Runs what is asked for."""
    device = torch.cuda.get_device_name() if args.device == "cuda" else f"{processor()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    print(f"{device}; torch {torch.__version__}, transformers {transformers.__version__}; {args.rounds} rounds in turn")
    with tempfile.TemporaryDirectory() as folder:
        checkpoint(folder)
        wanted = args.only.split(",")
        if "score" in wanted:
            score(folder)
        if "train" in wanted:
            train(folder, 0.1)
            train(folder, 0.0)
        if "overhead" in wanted:
            overhead(folder)


main()
