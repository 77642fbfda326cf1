"""Stores: the scores of a store are those of texts, in every type; interrupted, damaged, foreign and incomplete stores."""

import errno
import json
import os
import shutil
import subprocess
import sys
import unittest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import torch
from conftest import WORDS, make_colbert, make_cross, make_dot, make_frame, make_prettr, make_tk

import pyterrier_kd as kd
from pyterrier_kd.errors import DataError, StoreError
from pyterrier_kd.stores import docnos, files, indexing

RANKERS = {"BertDot": make_dot, "ColBERT": make_colbert, "ColBERT, long vectors": lambda **k: make_colbert(preset="matchmaker", skip=["tea"], **k)}


def corpus(frame: pd.DataFrame) -> list[dict]:
    return frame[["docno", "text"]].drop_duplicates("docno").to_dict("records")


def make_store(ranker: kd.Ranker, path: Path, frame: pd.DataFrame | None = None, **settings: object) -> kd.DocumentStore:
    return (ranker.doc_encoder() >> kd.DocumentStore(path, **settings)).index(corpus(make_frame() if frame is None else frame))


@pytest.mark.parametrize("name", RANKERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 1e-2), ("int8", 3e-2)])
def test_scores_from_a_store_are_those_of_the_texts(name: str, dtype: str, tolerance: float, frame: pd.DataFrame, tmp_path: Path) -> None:
    ranker = RANKERS[name]()
    store = make_store(ranker, tmp_path / "store", frame, dtype=dtype)
    expected, found = ranker(frame), store.scorer(ranker)(frame.drop(columns="text"))
    assert np.allclose(found["score"], expected["score"], rtol=tolerance, atol=tolerance)
    assert list(found.columns) == ["qid", "query", "docno", "url", "score", "rank"]
    assert len(store) == frame["docno"].nunique()
    assert store.facts["dtype"] == dtype
    if dtype != "float32":
        assert not np.array_equal(found["score"], expected["score"])
    again = pt.Artifact.load(str(tmp_path / "store"))
    assert isinstance(again, kd.DocumentStore)
    assert np.array_equal(again.scorer(ranker)(frame)["score"], found["score"])


def test_int8_is_exact_to_half_a_step() -> None:
    vectors = torch.cat([torch.randn(50, 16) * 5, torch.zeros(1, 16), torch.full((1, 16), 1e-6)])
    values, scales = files.quantised(vectors, "int8")
    back = values * scales[:, None].astype(np.float32)
    assert (np.abs(back - vectors.numpy()) <= 0.51 * scales[:, None].astype(np.float32)).all()
    with pytest.raises(StoreError, match=r"A vector has values that float16 does not hold \(largest 1e\+06\): make the store with dtype='float32'"):
        files.quantised(vectors + 1e6, "float16")


def test_a_store_counts_its_bytes(tmp_path: Path) -> None:
    ranker, texts = make_colbert(), ["tea jam", "tea"]
    store = make_store(ranker, tmp_path / "store", pd.DataFrame({"docno": ["a", "b"], "text": texts}))
    assert store.bytes_a_document == (5 + 4) * 16 * 2 / 2
    assert make_store(ranker, tmp_path / "small", pd.DataFrame({"docno": ["a", "b"], "text": texts}), dtype="int8").bytes_a_document == (5 + 4) * (16 + 2) / 2
    assert repr(store) == f"DocumentStore({str(tmp_path / 'store')!r})"
    assert store == kd.DocumentStore(tmp_path / "store")
    assert store.docnos.rows(["b", "c", "a"]).tolist() == [1, -1, 0]
    assert store.docnos.rows([]).tolist() == []


@pytest.mark.parametrize("names", [["1"], ["D1", "D2", "D3"], [f"{i}" for i in range(20)], [f"d%p{i}" for i in range(12)], ["", "a", "%", "é", "\ud800", "a" * 300]], ids=len)
def test_names_are_found_as_they_are_written(names: list[str], tmp_path: Path) -> None:
    docnos.write(tmp_path, names)
    held = docnos.Docnos(tmp_path)
    assert held.named(range(len(names))) == names
    assert held.rows(names[::-1]).tolist() == list(range(len(names)))[::-1]
    assert held.rows(["001", "D01", "d%p", "1 ", "zz"]).tolist() == [-1] * 5


def test_names_whose_hashes_are_equal_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docnos, "hashed", lambda name: len(name) % 2)
    docnos.write(tmp_path, ["a", "bb", "c", "dd", "e"])
    assert docnos.Docnos(tmp_path).rows(["e", "c", "a", "dd", "x", "yy"]).tolist() == [4, 2, 0, 3, -1, -1]


# ---------------------------------------------------------------------- interrupted


class Stopped(Exception):
    """What stops a corpus."""


def stopping(records: list[dict], after: int) -> object:
    yield from records[:after]
    raise Stopped


def test_a_stopped_run_goes_on_where_it_stopped(frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "PORTION", 4)
    ranker, records = make_colbert(), corpus(frame)
    indexer = ranker.doc_encoder() >> kd.DocumentStore(tmp_path / "store")
    with pytest.raises(Stopped):
        indexer.index(stopping(records, 10))
    assert not (tmp_path / "store").exists()
    with open(tmp_path / ".store.unfinished" / "vectors.bin", "ab") as file:
        file.write(b"half a vector")
    encoded = []
    encode = kd.ColBERT.encode
    monkeypatch.setattr(kd.ColBERT, "encode", lambda self, side, table, *a: encoded.append(len(table)) or encode(self, side, table, *a))
    store = indexer.index(records)
    assert sum(encoded) == len(records) - 8
    monkeypatch.undo()
    assert not (tmp_path / ".store.unfinished").exists()
    assert np.allclose(store.scorer(ranker)(frame)["score"], ranker(frame)["score"], atol=1e-2)
    whole = make_store(ranker, tmp_path / "whole", frame).vectors
    assert np.allclose(store.vectors.flat, whole.flat, atol=1e-2)
    assert np.array_equal(store.vectors.starts, whole.starts)


def test_what_was_begun_is_only_finished_with_the_same(frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "PORTION", 4)
    ranker, records = make_colbert(), corpus(frame)
    store = kd.DocumentStore(tmp_path / "store")
    with pytest.raises(Stopped):
        store.indexer(ranker).index(stopping(records, 10))
    with pytest.raises(StoreError, match=r"was begun with another encoder: finish it with the same, or delete .*\.store\.unfinished to begin anew"):
        store.indexer(make_colbert(seed=3)).index(records)
    with pytest.raises(StoreError, match="its document 1 is 'd0x0', now it is '.*'. Index the same corpus, in the same order, or delete"):
        store.indexer(ranker).index(records[::-1])
    with pytest.raises(StoreError, match="holds 8 documents, these are 3: finish it with all of them"):
        store.indexer(ranker).index(records[:3])
    assert len(store.indexer(make_colbert(seed=3), overwrite=True).index(records)) == len(records)
    with pytest.raises(StoreError, match=r"There is a store at .* already: use it, or replace it with store.indexer\(ranker, overwrite=True\)"):
        store.indexer(ranker).index(records)
    assert len(store.indexer(ranker, overwrite=True).index(records[:5])) == len(store) == 5
    assert store.scorer(ranker)(frame[frame["docno"].isin([r["docno"] for r in records[:5]])])["score"].notna().all()


def test_an_equal_ranker_from_elsewhere_goes_on(frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "PORTION", 4)
    with pytest.raises(Stopped):
        kd.DocumentStore(tmp_path / "store").indexer(make_colbert()).index(stopping(corpus(frame), 10))
    make_colbert().save(tmp_path / "colbert")
    again = kd.load(tmp_path / "colbert", device="cpu")
    assert repr(again) != repr(make_colbert())
    assert len(make_store(again, tmp_path / "store", frame)) == len(corpus(frame))


def test_a_stopped_overwriting_goes_on_and_the_old_store_stays_until_then(frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "PORTION", 4)
    ranker, records = make_colbert(), corpus(frame)
    store = make_store(ranker, tmp_path / "store", frame.head(3), dtype="int8")
    with pytest.raises(Stopped):
        kd.DocumentStore(tmp_path / "store").indexer(ranker, overwrite=True).index(stopping(records, 10))
    assert len(store) == 3
    encoded = []
    encode = kd.ColBERT.encode
    monkeypatch.setattr(kd.ColBERT, "encode", lambda self, side, table, *a, **k: encoded.append(len(table)) or encode(self, side, table, *a, **k))
    new = kd.DocumentStore(tmp_path / "store").indexer(ranker, overwrite=True).index(records)
    assert sum(encoded) == len(records) - 8
    assert (len(new), new.facts["dtype"]) == (len(records), "int8")


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_killed_while_its_store_takes_its_place_loses_nothing(overwrite: bool, frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranker = make_colbert()
    if overwrite:
        make_store(ranker, tmp_path / "store", frame.head(3))
    renamed = []

    def killed(self: Path, target: Path) -> Path:
        if target == tmp_path / "store" or self == tmp_path / "store":
            if len(renamed) == int(overwrite):
                raise Stopped
            renamed.append(target)
        return rename(self, target)

    rename = Path.rename
    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(Stopped):
        kd.DocumentStore(tmp_path / "store").indexer(ranker, overwrite=overwrite).index(corpus(frame))
    monkeypatch.undo()
    store = kd.DocumentStore(tmp_path / "store")
    assert len(store) == len(corpus(frame))
    assert np.allclose(store.scorer(ranker)(frame)["score"], ranker(frame)["score"], atol=1e-2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["store"]


def test_settling_restores_what_was_replaced_and_leaves_other_folders_alone(frame: pd.DataFrame, tmp_path: Path) -> None:
    (tmp_path / ".store.old").mkdir()
    (tmp_path / ".store.old" / "notes.txt").write_text("mine")
    make_store(make_dot(), tmp_path / "store", frame)
    assert (tmp_path / ".store.old" / "notes.txt").read_text() == "mine"
    shutil.move(tmp_path / "store", tmp_path / ".store.0a1b2c3d.old")       # killed when the new one should have come
    assert kd.DocumentStore(tmp_path / "store").exists()
    shutil.copytree(tmp_path / "store", tmp_path / ".store.0a1b2c3d.old")   # killed when the new one had come
    assert kd.DocumentStore(tmp_path / "store").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".store.old", "store"]


def test_an_unfinished_store_that_is_damaged_is_refused(frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "PORTION", 4)
    with pytest.raises(Stopped):
        kd.DocumentStore(tmp_path / "store").indexer(make_colbert()).index(stopping(corpus(frame), 10))
    os.truncate(tmp_path / ".store.unfinished" / "vectors.bin", 7)
    with pytest.raises(StoreError, match=r"The unfinished store .* is damaged: vectors.bin has 7 bytes of \d+. Delete the folder to begin anew"):
        make_store(make_colbert(), tmp_path / "store", frame)


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files as on Unix")
def test_a_full_disk_loses_nothing(frame: pd.DataFrame, tmp_path: Path) -> None:
    program = f"""
import resource, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_stores import *
indexing.PORTION = 4
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
try:
    make_store(make_colbert(), Path({str(tmp_path / 'store')!r}), make_frame())
except OSError as error:
    print(error)
"""
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}).stdout
    kept = int(out.split(" documents are kept")[0].rsplit(" ", 1)[1])
    assert kept >= 4
    assert "could not be written further (File too large)" in out
    store = make_store(make_colbert(), tmp_path / "store", frame)
    assert np.allclose(store.scorer(make_colbert())(frame)["score"], make_colbert()(frame)["score"], atol=1e-2)


def test_a_disk_that_is_full_at_the_end_loses_nothing(frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.docnos, "write", full)
        with pytest.raises(OSError, match=r"store could not be finished \(No space left on device\): its \d+ documents are kept, and the same call finishes it"):
            make_store(make_colbert(), tmp_path / "store", frame)
    monkeypatch.setattr(kd.ColBERT, "encode", None)             # nothing is encoded again
    store = kd.DocumentStore(tmp_path / "store").indexer(make_colbert()).index(corpus(frame))
    monkeypatch.undo()
    assert np.allclose(store.scorer(make_colbert())(frame)["score"], make_colbert()(frame)["score"], atol=1e-2)


# ---------------------------------------------------------------------- refused


def test_the_vectors_of_another_encoder_are_refused(frame: pd.DataFrame, tmp_path: Path) -> None:
    store = make_store(make_colbert(), tmp_path / "store", frame)
    for other in (make_colbert(seed=4), make_colbert(doc_length=20), make_colbert(skip=["tea"]), make_colbert(normalize=False), make_colbert(text_prompt="the ")):
        with pytest.raises(StoreError, match=r"was made by ColBERT\(weights=.*\) with settings .*, whose vectors of texts are not those of .*Index the documents with this ranker"):
            store.scorer(other)
    for query_alone in (make_colbert(query_length=20), make_colbert(query_prompt="find "), make_colbert(expansion=0)):
        assert np.allclose(store.scorer(query_alone)(frame)["score"], query_alone(frame)["score"], atol=1e-2)


def test_stores_that_are_damaged_of_another_kind_or_version_or_not_there(frame: pd.DataFrame, tmp_path: Path) -> None:
    ranker = make_colbert()
    with pytest.raises(StoreError, match=r"There is no store at .*nowhere: make one with \(ranker.doc_encoder\(\) >> DocumentStore"):
        kd.DocumentStore(tmp_path / "nowhere").scorer(ranker)
    with pytest.raises(StoreError, match=r"must know whose vectors it holds: \(ranker.doc_encoder\(\) >> store\).index\(corpus\)"):
        kd.DocumentStore(tmp_path / "nowhere").index(corpus(frame))
    with pytest.raises(ValueError, match="dtype='int4'"):
        kd.DocumentStore(tmp_path / "nowhere", dtype="int4")
    store = make_store(ranker, tmp_path / "store", frame)
    with pytest.raises(StoreError, match="holds float16, not int8"):
        kd.DocumentStore(tmp_path / "store", dtype="int8").scorer(ranker)(frame)
    (tmp_path / "empty").mkdir()
    assert len(make_store(ranker, tmp_path / "empty", frame)) == len(store)
    scorer = store.scorer(ranker)
    store.indexer(make_colbert(seed=7), overwrite=True).index(corpus(frame))
    with pytest.raises(StoreError, match="whose vectors of texts are not those of"):
        scorer(frame)
    store.indexer(ranker, overwrite=True).index(corpus(frame))
    assert np.allclose(scorer(frame)["score"], ranker(frame)["score"], atol=1e-2)
    ranker.doc_length = 20                          # changed after the scorer was made
    with pytest.raises(StoreError, match="whose vectors of texts are not those of"):
        scorer(frame)
    ranker.doc_length = 64
    assert np.allclose(scorer(frame)["score"], ranker(frame)["score"], atol=1e-2)
    meta = tmp_path / "store" / "pt_meta.json"
    told = json.loads(meta.read_text())
    size = (tmp_path / "store" / "vectors.bin").stat().st_size
    os.truncate(tmp_path / "store" / "vectors.bin", size - 2)
    with pytest.raises(StoreError, match=f"is damaged: vectors.bin has {size - 2} bytes instead of {size}"):
        kd.DocumentStore(tmp_path / "store").scorer(ranker)(frame)
    (tmp_path / "store" / "vectors.bin").unlink()
    with pytest.raises(StoreError, match="is damaged: vectors.bin is missing"):
        kd.DocumentStore(tmp_path / "store").scorer(ranker)(frame)
    meta.write_text(json.dumps({**told, "version": 0}))
    with pytest.raises(StoreError, match="has version 0, this release reads version 1: index the documents again"):
        store.scorer(ranker)
    meta.write_text(json.dumps({k: v for k, v in told.items() if k != "version"}))
    with pytest.raises(StoreError, match="has version None, this release reads version 1"):
        store.scorer(ranker)
    meta.write_text(json.dumps(told)[:40])
    with pytest.raises(StoreError, match="The store .* is damaged: .*pt_meta.json is not valid JSON"):
        store.scorer(ranker)
    meta.write_text(json.dumps({**told, "type": "dense_index"}))
    with pytest.raises(StoreError, match="holds a dense_index.kd, not a store of document vectors"):
        kd.DocumentStore(tmp_path / "store")


def test_documents_that_are_missing_are_an_error_or_read_from_their_texts(frame: pd.DataFrame, tmp_path: Path) -> None:
    ranker = make_colbert()
    some = frame[frame["docno"] != "d0x0"]
    store = make_store(ranker, tmp_path / "store", some, dtype="float32")
    with pytest.raises(DataError, match=r"1 of \d+ documents are not in the store: 'd0x0'. Index them, or pass missing='text' to encode their texts"):
        store.scorer(ranker)(frame)
    assert np.allclose(store.scorer(ranker, missing="text")(frame)["score"], ranker(frame)["score"], atol=1e-5)
    nowhere = frame.head(2).assign(docno=["x", "y"])
    assert np.allclose(store.scorer(ranker, missing="text")(nowhere)["score"], ranker(nowhere)["score"], atol=1e-5)
    with pytest.raises(pt.validate.InputValidationError, match=r"ColBERT needs the column\(s\) \['text'\]"):
        store.scorer(ranker, missing="text")(frame.drop(columns="text"))
    with pytest.raises(ValueError, match="missing='drop'"):
        store.scorer(ranker, missing="drop")
    loader = pt.apply.text(lambda row: frame.set_index("docno")["text"].to_dict()[row["docno"]])
    with_loader = make_colbert(texts=loader)
    assert np.allclose(store.scorer(with_loader, missing="text")(frame.drop(columns="text"))["score"], ranker(frame)["score"], atol=1e-5)


def test_bad_corpora_are_refused(tmp_path: Path) -> None:
    ranker = make_colbert()
    for records, message in [([{"docno": "a", "text": "tea"}] * 2, "The docno 'a' comes twice, the second time as document 2"), ([], "the corpus holds no document"),
                             ([{"docno": "a", "body": "tea"}], r"Document 1 has the fields \['body', 'docno'\]; a store needs 'docno' and \['text'\]"),
                             ([{"docno": "a", "text": None}], "1 of 1 rows have no string in the column 'text'")]:
        with pytest.raises(DataError, match=message):
            (ranker.doc_encoder() >> kd.DocumentStore(tmp_path / "store")).index(records)
    store = make_store(ranker, tmp_path / "empty", pd.DataFrame({"docno": ["a", "b c", "ü/😀"], "text": ["", "  ", " ".join(WORDS)]}))
    frame = pd.DataFrame({"qid": "1", "query": "tea", "docno": ["ü/😀", "a", "b c"], "text": [" ".join(WORDS), "", "  "]})
    assert np.allclose(store.scorer(ranker)(frame)["score"], ranker(frame)["score"], atol=1e-2)
    assert len(store.scorer(ranker)(frame.head(0))) == 0


# ---------------------------------------------------------------------- retrieval


def many(count: int = 300) -> pd.DataFrame:
    """Documents of random words."""
    rng = np.random.default_rng(0)
    return pd.DataFrame({"docno": [f"d{i}" for i in range(count)], "text": [" ".join(rng.choice(WORDS, rng.integers(2, 12))) for _ in range(count)]})


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_retrieval_finds_what_scoring_everything_finds(dtype: str, tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    ranker, docs = make_colbert(seed=2), many()
    store = make_store(ranker, tmp_path / "store", docs, dtype=dtype)
    topics = pd.DataFrame({"qid": ["1", "2", "3"], "query": ["how to find tea", "what is the jam", "how to find tea"], "extra": [7, 8, 9]})
    every = store.retriever(ranker, 20, exhaustive=True)(topics)
    assert list(every.columns) == ["qid", "query", "extra", "docno", "score", "rank"]
    assert every["qid"].value_counts().to_dict() == {"1": 20, "2": 20, "3": 20}
    pairs = topics.merge(docs, how="cross")
    expected = pairs.assign(score=store.scorer(ranker)(pairs)["score"]).sort_values(["qid", "score"], ascending=[True, False]).groupby("qid").head(20)
    assert np.allclose(every["score"], expected["score"], atol=1e-5)
    assert every["rank"].tolist() == [*range(20)] * 3
    recall = []
    for neighbours in (1, 8, 64):
        found = store.retriever(ranker, 20, neighbours=neighbours, probes=10**6)(topics)
        both = found.merge(every, on=["qid", "docno"], suffixes=("", "_every"))
        recall.append(len(both) / len(every))
        assert np.allclose(both["score"], both["score_every"], atol=1e-5)
    assert recall[0] < recall[2]        # few neighbours miss documents, many do not
    assert recall[2] >= 0.95
    assert len(list((tmp_path / "store").glob("tokens-*.faiss"))) == 1
    assert store.retriever(ranker, 20)(topics.head(0)).columns.tolist() == ["qid", "query", "extra", "docno", "score", "rank"]
    assert (store.retriever(ranker, 20) % 5).compile().num_results == 5
    dense = make_dot(seed=1)
    vectors = make_store(dense, tmp_path / "dense", docs)
    assert len(vectors.retriever(dense, 250, factory="Flat")(topics)) == 750       # more than the neighbours of one vector
    best = vectors.retriever(dense, 200, exhaustive=True)(topics)[["qid", "docno"]]
    assert len(best.merge(vectors.retriever(dense, 200)(topics))) == len(best)      # so many neighbours need more lists than one neighbour does
    assert len(best.merge(vectors.retriever(dense, 200, probes=1)(topics))) < len(best)


def test_rankers_that_compare_otherwise_only_retrieve_by_scoring_everything(tmp_path: Path) -> None:
    ranker = make_tk()
    store = make_store(ranker, tmp_path / "store", many(20))
    with pytest.raises(StoreError, match="TK does not compare by products of vectors, of which an index finds the largest: pass exhaustive=True"):
        store.retriever(ranker)
    assert len(store.retriever(ranker, 5, exhaustive=True)(pd.DataFrame({"qid": ["1"], "query": ["tea"]}))) == 5


# ---------------------------------------------------------------------- as a transformer


def test_pyterriers_own_tests_pass(tmp_path: Path) -> None:
    ranker = make_colbert()
    store = make_store(ranker, tmp_path / "store", pd.DataFrame({"docno": ["1", "2", "3", "d1"], "text": WORDS[:4]}))
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(pt.testing.transformer_test_class(lambda: store.scorer(ranker)))
    result = unittest.TestResult()
    suite.run(result)
    assert not result.failures, result.failures
    assert not result.errors, result.errors
    assert store.scorer(ranker) == kd.DocumentStore(tmp_path / "store").scorer(make_colbert())
    assert hash(store.scorer(ranker)) == hash(kd.DocumentStore(tmp_path / "store").scorer(make_colbert()))


def test_columns_of_vectors_are_those_of_other_plugins(frame: pd.DataFrame) -> None:
    ranker = make_colbert()
    assert ranker.query_encoder()(frame)["query_embs"][0].shape == (16, 16)
    assert ranker.doc_encoder()(frame)["doc_embs"][0].shape == (6, 16)
    assert make_dot().doc_encoder()(frame)["doc_vec"][0].shape == (32,)
    assert isinstance(ranker.doc_encoder() >> pt.RankCutoff(3), pt.Compose | pt.Transformer)


@pytest.mark.parametrize("make", [make_dot, make_colbert, make_prettr, make_tk])
def test_columns_of_vectors_are_scored(make: Any, frame: pd.DataFrame, tmp_path: Path) -> None:
    ranker = make()
    query, text = ranker.vectors_of("query"), ranker.vectors_of("text")
    queries = ranker(frame[["qid", "query"]].drop_duplicates())
    vectors = frame.merge(queries[["qid", query]], on="qid").assign(**{text: ranker(frame[["docno", "text"]])[text].to_numpy()})
    assert {type(value) for value in [*vectors[query], *vectors[text]]} == {np.ndarray}
    expected = ranker(frame)["score"]
    for columns in (["query", text], [query, "text"], [query, text]):
        assert np.allclose(ranker(vectors[["qid", "docno", *columns]])["score"], expected, atol=1e-5), columns
    copied = vectors.assign(**{query: [torch.from_numpy(value.copy()) for value in vectors[query]]})        # as other plugins have them; no two rows share theirs
    assert np.allclose(ranker(copied)["score"], expected, atol=1e-5)
    assert ranker(vectors[["qid", "docno", query, text]].head(0)).columns.tolist() == ["qid", "docno", query, text, "score", "rank"]
    # what became of a query's vectors on the way counts, in a store too
    half = frame["docno"].drop_duplicates().iloc[::2]
    store = make_store(ranker, tmp_path / "store", frame[frame["docno"].isin(half)], dtype="float32")
    changed = queries.assign(**{query: [2 * value for value in queries[query]]}).drop(columns="query")
    asked = frame[["qid", "docno", "text"]].merge(changed, on="qid")
    assert np.allclose(store.scorer(ranker, missing="text")(asked)["score"], ranker(asked)["score"], atol=1e-5)
    found = store.retriever(ranker, exhaustive=True)(changed)
    assert np.allclose(found["score"], store.scorer(ranker)(found)["score"], atol=1e-5)
    assert not np.allclose(store.scorer(ranker, missing="text")(asked)["score"], store.scorer(ranker, missing="text")(frame)["score"], atol=1e-3)
    both = frame.merge(changed, on="qid")           # where there are queries, what stands beside them may be another ranker's
    assert np.array_equal(store.scorer(ranker, missing="text")(both)["score"], store.scorer(ranker, missing="text")(frame)["score"])
    with pytest.raises(DataError, match=rf"row 0 of the column '{query}' has shape \(3,\); vectors of this ranker have {ranker.width} dimensions"):
        ranker(asked.assign(**{query: [np.ones(3)] * len(asked)}))
    with pytest.raises(DataError, match=rf"row 1 of the column '{query}' has None"):
        store.scorer(ranker, missing="text")(asked.assign(**{query: [asked[query][0], None, *asked[query][2:]]}))


def test_two_processes_do_not_write_one_store(frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexing, "PORTION", 4)
    ranker, seen = make_colbert(), []

    def documents() -> object:
        for document in corpus(frame):
            if len(seen) == 9:          # in the middle, another comes
                for overwrite in (False, True):
                    with pytest.raises(StoreError, match="Another process is writing the store .*: let it finish, or stop it"):
                        kd.DocumentStore(tmp_path / "store").indexer(ranker, overwrite=overwrite).index(corpus(frame))
            seen.append(document)
            yield document

    store = kd.DocumentStore(tmp_path / "store").indexer(ranker).index(documents())
    assert np.allclose(store.scorer(ranker)(frame)["score"], ranker(frame)["score"], atol=1e-2)
    assert not (tmp_path / "store" / "lock").exists()


def test_a_store_that_is_made_anew_is_read_anew(frame: pd.DataFrame, tmp_path: Path) -> None:
    first, second = make_dot(seed=1), make_dot(seed=2)
    held = make_store(first, tmp_path / "store", frame)
    assert np.allclose(held.scorer(first)(frame)["score"], first(frame)["score"], rtol=1e-2)
    kd.DocumentStore(tmp_path / "store").indexer(second, overwrite=True).index(corpus(frame))
    assert np.allclose(held.scorer(second)(frame)["score"], second(frame)["score"], rtol=1e-2)
    faiss = pytest.importorskip("faiss")
    assert faiss is not None
    topics = frame[["qid", "query"]].drop_duplicates()
    assert np.allclose(held.retriever(second, 5)(topics)["score"], held.retriever(second, 5, exhaustive=True)(topics)["score"])


def test_rows_without_a_docno_or_query_are_refused(frame: pd.DataFrame, tmp_path: Path) -> None:
    ranker = make_colbert()
    scorer = make_store(ranker, tmp_path / "store", frame).scorer(ranker)
    for column, message in (("docno", r"1 of 30 docnos are no strings \(first: number 3, "), ("query", r"1 of 30 queries are no strings \(first: number 3, ")):
        broken = frame.astype({column: object})
        broken.loc[3, column] = None
        with pytest.raises(DataError, match=message):
            scorer(broken)


def test_what_is_pickled_opens_the_files_itself(frame: pd.DataFrame, tmp_path: Path) -> None:
    import pickle
    ranker = make_dot()
    store = make_store(ranker, tmp_path / "store", frame)
    expected = store.scorer(ranker)(frame)
    copied = pickle.loads(pickle.dumps(store))
    assert copied._open is None
    assert np.array_equal(copied.scorer(ranker)(frame)["score"], expected["score"])


def test_places_and_rankers_that_cannot_be_are_refused(frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    with pytest.raises(StoreError, match="other holds other files, and no store: pass another folder"):
        kd.DocumentStore(tmp_path / "other")
    with pytest.raises(StoreError, match="is a file; a store is a folder"):
        kd.DocumentStore(tmp_path / "other" / "thesis.txt")
    monkeypatch.chdir(tmp_path / "other")
    with pytest.raises(StoreError, match="holds other files, and no store"):
        kd.DocumentStore(".")
    with pytest.raises(StoreError, match="does not read them alone"):
        kd.DocumentStore(tmp_path / "new").indexer(make_cross()).index(corpus(frame))
    with pytest.raises(StoreError, match=r"Pass its \.student_"):
        kd.DocumentStore(tmp_path / "new").indexer(kd.Distiller(make_dot(), make_cross())).index(corpus(frame))
    assert not any(path.name.startswith(".new") for path in tmp_path.iterdir())
    with pytest.raises(StoreError, match="values that are no numbers: the ranker's weights are damaged"):
        files.quantised(torch.tensor([[float("nan"), 1.0]]), "int8")


def test_a_cutoff_that_is_fused_finds_the_same_documents(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 5)) for _ in range(300)]
    ranker = make_dot()
    store = make_store(ranker, tmp_path / "store", pd.DataFrame({"docno": [str(i) for i in range(300)], "text": texts}))
    pipeline = store.retriever(ranker, 200, factory="PQ4x4") % 5
    topics = pd.DataFrame({"qid": ["1", "2"], "query": ["find tea", "how to cook rice"]})
    assert pipeline.compile()(topics)["docno"].tolist() == pipeline(topics)["docno"].tolist()
    assert pipeline.compile() != pipeline
