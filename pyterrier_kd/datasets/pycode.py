"""The rows of kd:pycode: which functions and modules are documents, which summaries are queries, and which split each belongs to.

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

from .functions import LEAST_LINES, Function, Module, SourceFile, functions_of, installed, module_of, source_files, source_of

SPLITS = ("train", "valid", "test")
MOST_TOPICS = {"valid": 300, "test": 200}


def fraction(text: str) -> float:
    """A number in [0, 1) that looks random and depends on ``text`` alone."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


def split_of(module: str) -> str:
    """"train" (80%), "valid" (10%) or "test" (10%), by module."""
    place = fraction(f"split {module}")
    return "train" if place < 0.8 else "valid" if place < 0.9 else "test"


def all_sources(verbose: bool) -> Iterator[SourceFile]:
    """Every source file of the installed packages."""
    files = [(package, root, file) for package, (root, _) in installed().items() for file in source_files(root)]
    collecting = gc.isenabled()
    gc.disable()        # syntax trees are many small objects that no cycle keeps: looking for cycles among them costs a third
    try:
        for package, root, file in pt.tqdm(files, desc="kd:pycode", unit="file", disable=not verbose):
            source = source_of(package, root, file)
            if source is not None:
                yield source
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


def modules_of(modules: Iterable[Module]) -> dict[str, Module]:
    """The modules that are documents, by name: long enough, with a name and a source that no other has."""
    rows = list(modules)
    names, texts = Counter(m.docno for m in rows), Counter(normal(m.text) for m in rows)
    return {m.docno: m for m in rows if m.text.count("\n") + 1 >= LEAST_LINES and names[m.docno] == texts[normal(m.text)] == 1}


def build(folder: Path, verbose: bool) -> None:
    """Writes the collection into an empty folder: ``docs.jsonl.gz``, ``modules.jsonl.gz`` and ``topics.<split>.jsonl``."""
    functions: list[Function] = []
    modules: list[Module] = []
    for source in all_sources(verbose):
        modules.append(module_of(source))
        functions += functions_of(source)
    documents, held = documents_of(functions), modules_of(modules)
    write(folder / "docs.jsonl.gz", ({"docno": f.docno, "text": f.text, "title": f.docno, "package": f.package, "path": f.path, "line": f.line} for f in documents))
    write(folder / "modules.jsonl.gz", ({"docno": m.docno, "text": m.text, "title": m.docno, "package": m.package, "path": m.path, "line": 1} for m in held.values()))
    for split, chosen in topics_of(documents).items():
        rows: list[dict[str, Any]] = [
            {"qid": f"{split}{i}", "query": query_of(f.summary), "summary": f.summary, "docno": f.docno, "module": f.module if f.module in held else None, "begins": f.begins}
            for i, f in enumerate(chosen)]
        (folder / f"topics.{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes rows as compressed JSON lines."""
    with gzip.open(path, "wt", encoding="utf-8", compresslevel=3) as out:
        for row in rows:
            out.write(json.dumps(row) + "\n")


def version() -> str:
    """Identifies the packages and the way in which they are read."""
    held = sorted(f"{name}={version}" for name, (_, version) in installed().items())
    return hashlib.blake2b(json.dumps([2, *held]).encode(), digest_size=6).hexdigest()
