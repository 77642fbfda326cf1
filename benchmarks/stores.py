"""Ranking from stored documents: one query with 1,000 candidates of 200 tokens, against the cross-encoder of the same backbone; and indexing.

    python benchmarks/stores.py [--rounds 3] [--only latency,maxsim,indexing] [--device cpu] [--data ../shared/data]

1. latency: PreTTR (joined at half of its layers), ColBERT, BERT_DOT and TK re-rank from a store, frames and the query's encoding included; the
   cross-encoder reads query and texts. All are made of all-MiniLM-L6-v2.
2. maxsim: ColBERT's comparison alone against two limits measured beside it: reading the store's bytes from memory, and its products at the rate of
   large matrix products.
3. indexing: BERT_DOT encodes documents (into pyterrier_dr's index, and all at once) and queries, against pyterrier_dr's encoder of the same weights.

Contestants take turns; medians with the least and the most, ratios round by round.
"""

import argparse
import atexit
import gzip
import json
import shutil
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

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
import first_stage
import turns

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--only", default="latency,maxsim,indexing")
parser.add_argument("--candidates", type=int, default=1000)
parser.add_argument("--tokens", type=int, default=200)
parser.add_argument("--documents", type=int, default=20_000, help="for indexing")
parser.add_argument("--dtype", default="float16", help="of the stores")
parser.add_argument("--device", default="cpu")
parser.add_argument("--data", default="../shared/data", help="the folder that holds nfcorpus and medquad")
args = parser.parse_args()
turns.quiet()
QUERY = "what are the side effects of statins for older patients"


def texts(count: int, tokens: int) -> list[str]:
    """Texts of just so many word pieces, cut out of real ones."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(first_stage.minilm())
    found: list[str] = []
    for name in ("nfcorpus", "medquad"):
        with gzip.open(f"{args.data}/{name}/corpus.jsonl.gz", "rt", encoding="utf-8") as lines:
            joined = " ".join(json.loads(line)["text"] for line in lines)
        offsets = tokenizer(joined, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        starts = range(0, len(offsets) - tokens, tokens)
        found += [joined[offsets[i][0]:offsets[i + tokens - 1][1]] for i in starts]
        if len(found) >= count:
            return found[:count]
    return (found * (1 + count // len(found)))[:count]


minilm = first_stage.minilm()
documents = pd.DataFrame({"docno": [str(i) for i in range(args.candidates)], "text": texts(args.candidates, args.tokens)})
frame = documents.assign(qid="1", query=QUERY)
sizes = {"query_length": 32, "doc_length": args.tokens + 4}
rankers = {
    "PreTTR": kd.PreTTR(minilm, device=args.device, **sizes),
    "ColBERT": kd.ColBERT(minilm, preset="v2", device=args.device, **sizes),
    "BERT_DOT": kd.BertDot(minilm, device=args.device, **sizes),
    "TK": kd.TK.new(minilm, device=args.device, **sizes),
}
folder = Path(tempfile.mkdtemp(prefix="kd-stores-"))
atexit.register(shutil.rmtree, folder, ignore_errors=True)
stores = {}
if args.only != "indexing":
    for name, ranker in rankers.items():
        start = time.perf_counter()
        stores[name] = (ranker.doc_encoder() >> kd.DocumentStore(folder / name, dtype=args.dtype)).index(documents.to_dict("records"))
        seconds_taken, size = time.perf_counter() - start, stores[name].bytes_a_document
        print(f"{name}: indexed {len(documents)} texts of {args.tokens} tokens in {seconds_taken:.1f} s, {size:.0f} bytes each ({args.dtype})", flush=True)

if "latency" in args.only:
    cross = kd.CrossEncoder(minilm, device=args.device)
    scorers = {name: stores[name].scorer(ranker) for name, ranker in rankers.items()}
    seconds = turns.rounds({"CrossEncoder": lambda: cross(frame), **{name: lambda scorer=scorer: scorer(frame) for name, scorer in scorers.items()}}, args.rounds, args.device)
    print(f"\n1 query, {len(frame)} candidates of {args.tokens} tokens, on {args.device}: cross-encoder {turns.spread(seconds['CrossEncoder'])} s; from a store")
    for name in rankers:
        ratios = [a / b for a, b in zip(seconds["CrossEncoder"], seconds[name], strict=True)]
        print(f"  {name}: {turns.spread([1000 * s for s in seconds[name]], 1)} ms, {turns.spread(ratios, 1)} times faster")

if "maxsim" in args.only:
    colbert, vectors = rankers["ColBERT"], stores["ColBERT"].vectors
    with colbert._inference():
        query = colbert._prepare_queries([QUERY])
        rows, none = np.random.default_rng(0).permutation(len(documents)), np.zeros(len(documents), dtype=np.int64)
        flat = np.array(vectors.flat.numpy()).view(np.uint8).reshape(-1)
        words = torch.from_numpy(flat[:len(flat) // 8 * 8].view(np.int64))
        large = torch.randn(2048, 2048, device=args.device)
        limits_and_own = {"maxsim": lambda: colbert._score_rows(query, none, vectors, rows, lambda _: None), "bytes": lambda: words.sum(), "products": lambda: large @ large}
        seconds = turns.rounds(limits_and_own, args.rounds, args.device)
    multiplied = vectors.flat.shape[0] * vectors.flat.shape[1] * int(query.lengths[0])
    limits = {"bytes": seconds["bytes"], "products": [s * multiplied / 2048 ** 3 for s in seconds["products"]]}
    slower = max(limits, key=lambda name: statistics.median(limits[name]))
    milliseconds = {name: turns.spread([1000 * s for s in values], 1) for name, values in {"maxsim": seconds["maxsim"], **limits}.items()}
    count, width = vectors.flat.shape
    print(f"\nMaxSim of {len(documents)} texts, {count} vectors of {width}, with {int(query.lengths[0])} of the query: {milliseconds['maxsim']} ms; reading the bytes "
          f"{milliseconds['bytes']} ms, the products {milliseconds['products']} ms; "
          f"{turns.spread([a / b for a, b in zip(limits[slower], seconds['maxsim'], strict=True)])} of the slower limit ({slower})")

if "indexing" in args.only:
    from pyterrier_dr import FlexIndex, SBertBiEncoder

    theirs, ours = SBertBiEncoder(minilm, device=args.device), kd.BertDot(minilm, device=args.device)
    held = texts(args.documents, 100)
    lengths = np.random.default_rng(0).integers(10, 100, len(held))
    held = [" ".join(text.split()[:n]) for text, n in zip(held, lengths, strict=True)]
    queries = held[:1000]
    queries = [" ".join(q.split()[:8]) for q in queries]
    rows = [{"docno": str(i), "text": text} for i, text in enumerate(held)]

    def indexed(encoder: object) -> FlexIndex:
        """An index of all texts by an encoder."""
        index = FlexIndex(tempfile.mkdtemp(dir=folder) + "/x.flex", verbose=False)
        (encoder.doc_encoder() >> index).index(iter(rows))
        return index

    seconds = turns.rounds({"ours": lambda: indexed(ours), "theirs": lambda: indexed(theirs), "ours, all at once": lambda: ours.encode_docs(held),
                            "theirs, all at once": lambda: theirs.encode_docs(held)}, args.rounds, args.device)
    rates = {name: turns.spread([len(held) / s for s in values], 0) for name, values in seconds.items()}
    for kind, what in (("", "into a FlexIndex"), (", all at once", "by one call of encode_docs")):
        print(f"\nencode {len(held)} texts on {args.device} {what}: {rates['ours' + kind]} a second, pyterrier_dr {rates['theirs' + kind]}: "
              f"{turns.spread([b / a for a, b in zip(seconds['ours' + kind], seconds['theirs' + kind], strict=True)])} times")
    asked = turns.rounds({"ours": lambda: ours.encode_queries(queries), "theirs": lambda: theirs.encode_queries(queries)}, args.rounds, args.device)
    print(f"encode {len(queries)} queries: {turns.spread([b / a for a, b in zip(asked['ours'], asked['theirs'], strict=True)])} times; "
          f"largest difference of a value {np.abs(ours.encode_docs(held[:100]) - theirs.encode_docs(held[:100])).max():.1e}")
