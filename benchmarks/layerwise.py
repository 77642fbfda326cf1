"""What learning from layers costs: a training step with L_attn + L_hidn + L_emb against one with the scores alone, teacher included in both.

Both steps run teacher (forward) and student (forward and backward) on the same pairs. Steps of the two kinds take turns, medians of
their ratio are printed with the least and the most, and the memory that a step of each needs on top of the models.

    python benchmarks/layerwise.py [--device cuda] [--tokens 256] [--pairs 16] [--rounds 5]
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import transformers

import pyterrier_kd as kd
from pyterrier_kd.losses import MSE, Attention, Embedding, Hidden
from pyterrier_kd.rankers.shrink import parsed_shape
from pyterrier_kd.signals import Batch
from pyterrier_kd.tokens import TokenTable

LAYERS = Attention() + Hidden() + Embedding()
SHAPES = [("L12_H768", "L6_H768"), ("L12_H768", "L3_H384"), ("L6_H384", "L3_H384")]


def ranker(shape: str, device: str) -> kd.CrossEncoder:
    """A random BERT of some shape, with 12 heads."""
    layers, hidden = parsed_shape(shape)
    torch.manual_seed(0)
    config = transformers.BertConfig(hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=12, intermediate_size=4 * hidden, num_labels=2)
    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(1000, 3000))])}
    return kd.CrossEncoder(transformers.BertForSequenceClassification(config), transformers.BertTokenizerFast(vocab=vocabulary), device=device)


def pairs(count: int, tokens: int, device: str) -> tuple[Batch, kd.rankers.Tokens]:
    """A batch of pairs of random words; lengths from 0.6 to 1 times ``tokens``."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(int(0.6 * tokens), tokens + 1, (count,), generator=generator) - 13
    table = TokenTable(torch.randint(5, 2000, (int(lengths.sum()),), generator=generator).int().numpy(), torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]).numpy())
    queries = TokenTable(torch.randint(5, 2000, (10 * count,), generator=generator).int().numpy(), torch.arange(0, 10 * count + 1, 10).numpy())
    rows = torch.arange(count)
    zeros = torch.zeros(count, 1)
    batch = Batch(rows, rows[:, None], rows[:, None], zeros, zeros == 0, torch.eye(count, dtype=torch.bool), zeros)
    return batch.to(device), kd.rankers.Tokens(queries, table)


def step(student: kd.CrossEncoder, teacher: kd.CrossEncoder, bound: torch.nn.Module, batch: Batch, tokens: kd.rankers.Tokens) -> float:
    """Seconds of one step."""
    synchronise = torch.cuda.synchronize if student.device.type == "cuda" else lambda: None
    synchronise()
    start = time.perf_counter()
    with torch.no_grad():
        target = teacher.signals(batch, tokens, layers=bound.teacher_layers)
    student.model.train()
    loss, _ = bound(student.signals(batch, tokens, layers=bound.student_layers), target, batch, 0.0)
    loss.backward()
    student.model.zero_grad()
    synchronise()
    return time.perf_counter() - start


def peak(kind: str, shapes: tuple[str, str], args: argparse.Namespace) -> float:
    """MiB that one step needs on top of the models, in a process of its own."""
    call = [sys.executable, __file__, "--device", args.device, "--tokens", str(args.tokens), "--pairs", str(args.pairs), "--peak", kind, *shapes]
    return float(subprocess.run(call, check=True, capture_output=True, text=True).stdout.split()[-1])


def memory(device: str, most: bool) -> float:
    """Memory in MiB: now, or the most since it was last asked for (of a process, on Linux)."""
    if device == "cuda":
        return (torch.cuda.max_memory_allocated() if most else torch.cuda.memory_allocated()) / 2**20
    value = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM" if most else "VmRSS"))
    Path("/proc/self/clear_refs").write_text("5")
    return int(value.split()[1]) / 2**10


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--device", default="cpu")
parser.add_argument("--tokens", type=int, default=256)
parser.add_argument("--pairs", type=int, default=16)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
args = parser.parse_args()

for shapes in [tuple(args.peak[1:])] if args.peak else SHAPES:
    teacher, student = (ranker(shape, args.device) for shape in shapes)
    batch, tokens = pairs(args.pairs, args.tokens, args.device)
    losses = {"scores": MSE(), "layers": LAYERS + MSE()}
    bound = {name: loss.bind(student.architecture(), teacher.architecture()).to(args.device) for name, loss in losses.items()}
    if args.peak:
        before = memory(args.device, most=False)
        step(student, teacher, bound[args.peak[0]], batch, tokens)
        print(memory(args.device, most=True) - before)
        continue
    for name in bound:
        step(student, teacher, bound[name], batch, tokens)
    times = [{name: step(student, teacher, bound[name], batch, tokens) for name in bound} for _ in range(args.rounds)]
    ratios = [t["layers"] / t["scores"] for t in times]
    print(f"{shapes[0]} -> {shapes[1]}, {args.pairs} pairs of {args.tokens} tokens on {args.device}: {statistics.median(t['scores'] for t in times):.3f} s with the scores alone; "
          f"with three losses over layers {statistics.median(ratios):.2f} times ({min(ratios):.2f} to {max(ratios):.2f}); "
          f"memory of a step {peak('scores', shapes, args):.0f} and {peak('layers', shapes, args):.0f} MiB", flush=True)
