"""The rows of kd:pycode: which functions are documents, which summaries are queries, and which split each belongs to.

Everything is decided by hashes of names, so the same packages give the same collection everywhere. A split is chosen by
module, so that what a student learns from one function does not come back in a test on its neighbour.
"""

from __future__ import annotations

import gc
import gzip
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyterrier as pt

from .functions import Function, functions_of, installed, source_files

SPLITS = ("train", "valid", "test")
MOST_TOPICS = {"valid": 300, "test": 200}


def fraction(text: str) -> float:
    """A number in [0, 1) that looks random and depends on ``text`` alone."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


def split_of(module: str) -> str:
    """"train" (80%), "valid" (10%) or "test" (10%), by module."""
    place = fraction(f"split {module}")
    return "train" if place < 0.8 else "valid" if place < 0.9 else "test"


def all_functions(verbose: bool) -> Iterator[Function]:
    """Every function of the installed packages."""
    files = [(package, root, file) for package, (root, _) in installed().items() for file in source_files(root)]
    collecting = gc.isenabled()
    gc.disable()        # syntax trees are many small objects that no cycle keeps: looking for cycles among them costs a third
    try:
        for package, root, file in pt.tqdm(files, desc="kd:pycode", unit="file", disable=not verbose):
            yield from functions_of(package, root, file)
    finally:
        if collecting:
            gc.enable()


def documents_of(functions: Iterable[Function]) -> list[Function]:
    """The functions that are documents: with a name, a source and a summary that no other has."""
    rows = list(functions)
    keys = ((lambda f: f.docno), (lambda f: normal(f.text)), (lambda f: normal(query_of(f.summary))))
    counts = [Counter(map(key, rows)) for key in keys]
    return [f for f in rows if all(count[key(f)] == 1 for key, count in zip(keys, counts, strict=True))]


def normal(text: str) -> str:
    """A text without the differences that do not make it another text."""
    return " ".join(text.lower().split())


def query_of(summary: str) -> str:
    """A summary as a query for any parser: its words, without punctuation."""
    return " ".join(re.findall(r"\w+", summary))


def topics_of(documents: Iterable[Function]) -> dict[str, list[Function]]:
    """The functions whose summaries are queries, by split."""
    chosen: dict[str, list[Function]] = {split: [] for split in SPLITS}
    for f in documents:
        chosen[split_of(f.module)].append(f)
    return {split: sorted(sorted(fs, key=lambda f: fraction(f"topic {f.docno}"))[:MOST_TOPICS.get(split)], key=lambda f: f.docno)
            for split, fs in chosen.items()}


def build(folder: Path, verbose: bool) -> None:
    """Writes the collection into an empty folder: ``docs.jsonl.gz`` and ``topics.<split>.jsonl``."""
    documents = documents_of(all_functions(verbose))
    with gzip.open(folder / "docs.jsonl.gz", "wt", encoding="utf-8", compresslevel=3) as out:
        for f in documents:
            out.write(json.dumps({"docno": f.docno, "text": f.text, "title": f.docno, "package": f.package, "path": f.path, "line": f.line}) + "\n")
    for split, functions in topics_of(documents).items():
        rows: list[dict[str, Any]] = [
            {"qid": f"{split}{i}", "query": query_of(f.summary), "summary": f.summary, "docno": f.docno} for i, f in enumerate(functions)]
        (folder / f"topics.{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")


def version() -> str:
    """Identifies the packages and the way in which they are read."""
    held = sorted(f"{name}={version}" for name, (_, version) in installed().items())
    return hashlib.blake2b(json.dumps([1, *held]).encode(), digest_size=6).hexdigest()
