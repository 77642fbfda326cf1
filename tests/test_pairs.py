"""Training pairs by ids: score files and docpairs are the frames that they stand for, and hold no text until it is needed."""

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
from conftest import WORDS, Stop, make_colbert, make_cross, make_dot, stopping_after

import pyterrier_kd as kd
from pyterrier_kd import losses, pairs
from pyterrier_kd.errors import DataError

QUERIES = {f"q{i}": f"how to find {WORDS[i]}" for i in range(8)}
TEXTS = {f"d{i}": " ".join(WORDS[(i * k) % len(WORDS)] for k in range(1, 8)) for i in range(40)}
LINES = [(f"q{i % 8}", f"d{i % 8}", f"d{8 + (7 * i) % 32}", 5.0 + i % 3, 1.0 - i % 5) for i in range(60)]


def score_file(path: Path, separator: str = "\t") -> Path:
    text = "".join(separator.join(map(str, (p, n, q, a, b))) + "\n" for q, a, b, p, n in LINES)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize(("name", "separator"), [("scores.tsv", "\t"), ("scores.txt", " "), ("scores.tsv.gz", "\t")])
def test_a_score_file_is_its_distinct_pairs_with_their_mean_scores(name: str, separator: str, tmp_path: Path) -> None:
    read = pairs.from_score_file(score_file(tmp_path / name, separator), QUERIES, TEXTS)
    flat = pd.DataFrame([(q, d, s, label) for q, a, b, p, n in LINES for d, s, label in ((a, p, 1.0), (b, n, 0.0))], columns=["qid", "docno", "score", "label"])
    expected = flat.groupby(["qid", "docno"], as_index=False).agg(score=("score", "mean"), label=("label", "max"))
    groups = read.groups
    found = pd.DataFrame({"qid": np.repeat(read.qids, groups.sizes), "docno": read.docnos[groups.text], "score": groups.teacher, "label": groups.label})
    merged = expected.merge(found, on=["qid", "docno"], suffixes=("", "_found"))
    assert len(merged) == len(expected) == len(found)
    assert np.allclose(merged["score"], merged["score_found"])
    assert np.allclose(merged["label"], merged["label_found"])
    assert len(read) == 8
    assert groups.queries == list(QUERIES.values())
    frame = read.frame(np.array([3, 0]), "text")
    assert frame["text"].tolist() == [TEXTS[d] for d in frame["docno"]]
    portions = list(read.portions(np.arange(len(groups.row)), size=10))
    assert len(portions) > 2
    assert np.concatenate(portions).tolist() == list(range(len(groups.row)))
    asked = [set(read.frame(p, "text")["qid"]) for p in portions]
    assert sum(map(len, asked)) == len(set().union(*asked)) == 8                # no query is in two


def test_files_of_several_teachers_are_an_ensemble(tmp_path: Path) -> None:
    rows = [("a", "q0", "d1", "d2", 4.0, 2.0), ("a", "q0", "d1", "d3", 6.0, 0.0), ("b", "q0", "d1", "d2", 50.0, 10.0), ("b", "q1", "d2", "d3", 30.0, 20.0)]
    for name in "ab":
        (tmp_path / name).write_text("".join(f"{p}\t{n}\t{q}\t{a}\t{b}\n" for own, q, a, b, p, n in rows if own == name))
    expected = {("q0", "d1"): (5 + 50) / 2, ("q0", "d2"): (2 + 10) / 2, ("q0", "d3"): 0.0, ("q1", "d2"): 30.0, ("q1", "d3"): 20.0}
    of_a, of_b = {"d1": 5.0, "d2": 2.0, "d3": 0.0}, {("q0", "d1"): 50.0, ("q0", "d2"): 10.0, ("q1", "d2"): 30.0, ("q1", "d3"): 20.0}
    a, b = np.array(list(of_a.values())), np.array(list(of_b.values()))
    scaled = {"d1": (5 - a.mean()) / a.std(), "d2": (2 - a.mean()) / a.std()}, {key: (value - b.mean()) / b.std() for key, value in of_b.items()}
    standard = {("q0", d): (scaled[0][d] + scaled[1]["q0", d]) / 2 for d in ("d1", "d2")} | {("q0", "d3"): -a.mean() / a.std()} | {k: scaled[1][k] for k in of_b if k[0] == "q1"}
    for settings, wanted in (({}, expected), ({"standardise": True}, standard)):
        read = pairs.from_score_file([tmp_path / "a", tmp_path / "b"], QUERIES, TEXTS, **settings)
        found = dict(zip(zip(np.repeat(read.qids, read.groups.sizes).tolist(), read.docnos[read.groups.text], strict=True), read.groups.teacher.tolist(), strict=True))
        assert found == pytest.approx(wanted)
    with pytest.raises(DataError, match="There is no file '.*/c'"):
        pairs.from_score_file([tmp_path / "a", tmp_path / "c"], QUERIES, TEXTS)


def test_a_stage_that_mines_after_one_on_pairs_has_their_labels_and_needs_a_teacher(tmp_path: Path) -> None:
    read = pairs.from_score_file(score_file(tmp_path / "scores.tsv"), QUERIES, TEXTS)
    assert sorted(zip(*(read.qrels()[c] for c in ("qid", "docno")), strict=True)) == sorted({(q, a) for q, a, *_ in LINES})
    topics = pd.DataFrame({"qid": list(QUERIES), "query": list(QUERIES.values())})
    mined = kd.Mined([{"docno": d, "text": t} for d, t in TEXTS.items()], topics, read.qrels(), depth=6)
    settings = {"steps": 2, "batch_size": 4, "dropout": 0, "verbose": False}
    with pytest.raises(DataError, match="needs scores of the candidates that the stage 'again' makes for itself: pass a teacher= to the Distiller or to the stage"):
        kd.Distiller(make_dot(), strategy=(kd.Stage(losses.MarginMSE()), kd.Stage(losses.MarginMSE(), candidates=mined, name="again")), **settings).fit(read)
    with pytest.raises(DataError, match=r"needs scores of the candidates that the stage 'train' makes for itself: pass scores= to BySignal"):
        kd.Distiller(make_dot(), kd.BySignal(make_colbert()), strategy=kd.Stage(losses.MarginMSE() + losses.MarginMSE(in_batch=True), candidates=mined), **settings).fit(read)
    for stage in (kd.Stage(losses.MarginMSE(), candidates=mined, teacher=make_cross(seed=3)), kd.Stage(losses.RankNet(), candidates=mined)):
        history = kd.Distiller(make_dot(), strategy=(kd.Stage(losses.MarginMSE()), stage), **settings).fit(read).history_
        assert history["loss"].notna().all()
        assert history["step"].tolist() == [1, 2, 1, 2]
    with pytest.raises(DataError, match="learns from labels: pass qrels to fit for the candidates that the stage 'train' makes"):
        kd.Distiller(make_dot(), strategy=kd.Stage(losses.RankNet(), candidates=mined), **settings).fit()


def test_a_student_learns_from_the_scores_of_a_file_and_only_reads_what_it_sees(tmp_path: Path) -> None:
    asked = []

    class Asked(dict):
        def __getitem__(self, key: str) -> str:
            asked.append(key)
            return super().__getitem__(key)

    read = pairs.from_score_file(score_file(tmp_path / "scores.tsv"), QUERIES, Asked(TEXTS))
    assert asked == []
    distil = kd.Distiller(make_dot(), loss=losses.MarginMSE(), steps=1, batch_size=2, dropout=0, verbose=False).fit(read)
    assert 2 <= len(asked) == len(set(asked)) <= 4
    assert distil.history_["loss"].notna().all()
    distil = kd.Distiller(make_colbert(), loss=losses.MarginMSE(), steps=40, batch_size=8, learning_rate=3e-3, dropout=0, verbose=False).fit(read)
    assert distil.history_["loss"].iloc[-1] < distil.history_["loss"].iloc[0]
    with_labels = kd.Distiller(make_cross(), loss=losses.RankNet(), steps=20, batch_size=8, learning_rate=1e-3, dropout=0, verbose=False).fit(read)
    assert with_labels.history_["loss"].iloc[-1] < with_labels.history_["loss"].iloc[0]


def test_pairs_are_the_frame_that_they_stand_for(tmp_path: Path) -> None:
    read = pairs.from_score_file(score_file(tmp_path / "scores.tsv"), QUERIES, TEXTS)
    frame = read.frame(np.arange(len(read.groups.row)), "text")
    run = frame[["qid", "docno"]].assign(score=read.groups.teacher.astype(float))
    qrels = frame[["qid", "docno"]].assign(label=read.groups.label)
    settings = {"loss": losses.KLDivergence(), "steps": 5, "batch_size": 8, "dropout": 0, "verbose": False, "strategy": kd.Stage(losses.KLDivergence(), sampler=kd.Sampler(texts=40, positives=0))}
    by_pairs = kd.Distiller(make_cross(), **settings).fit(read).history_["loss"]
    by_frame = kd.Distiller(make_cross(), run, **settings).fit(frame, qrels).history_["loss"]
    assert np.allclose(by_pairs, by_frame, rtol=1e-4)
    teacher = make_cross(seed=3)
    asked = kd.Distiller(make_cross(), teacher, **settings).fit(read).history_["loss"]
    assert np.allclose(asked, kd.Distiller(make_cross(), teacher, **settings).fit(frame, qrels).history_["loss"], rtol=1e-4)
    assert not np.allclose(asked, by_pairs, rtol=1e-2)


def test_a_stopped_training_on_pairs_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = pairs.from_score_file(score_file(tmp_path / "scores.tsv"), QUERIES, TEXTS)
    settings = {"loss": losses.MarginMSE(), "steps": 4, "batch_size": 4, "dropout": 0, "verbose": False, "validate_every": 2}
    whole = kd.Distiller(make_colbert(), **settings).fit(read)
    with monkeypatch.context() as patch:
        stopping_after(patch, 3)
        with pytest.raises(Stop):
            kd.Distiller(make_colbert(), checkpoint=tmp_path / "kept", **settings).fit(read)
    stopping_after(monkeypatch, 2)          # it needs no more than those that were lost
    again = kd.Distiller(make_colbert(), checkpoint=tmp_path / "kept", **settings).fit(read)
    assert again.student_.fingerprint() == whole.student_.fingerprint()
    with pytest.raises(ValueError, match="pairs have labels of their own, and one text a document"):
        kd.Distiller(make_dot(), **settings).fit(read, pd.DataFrame({"qid": [], "docno": [], "label": []}))


def test_bad_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no file '.*none.tsv'. The scores published with arXiv:2010.02666 are at"):
        pairs.from_score_file(tmp_path / "none.tsv", QUERIES, TEXTS)
    for text, message in [("1 2 q1 d1\n", "a line has 4 columns instead of 5"), ("1\t2\tq1\td1\td9\n1\tx\tq1\td1\td9\n", "line 2: not two scores and three ids: '1 x q1 d1 d9'"),
                          ("1\t2\tq1\td1\td9\n1\t2\tq1\n", "line 2: not two scores and three ids"), ("1\t2\tq1\td1\td9\nnan\t2\tq1\td1\td9\n", "line 2: not two scores"),
                          ("1\t2\tq1\td1\td9\n1\t2\tq1\td1\td9\td10\n", "Expected 5 fields in line 2, saw 6"), ("", "a line has 0 columns"),
                          ("1\t2\tz\td1\td9\n", "1 of 1 qids have no query among 8: 'z'")]:
        (tmp_path / "bad.tsv").write_text(text)
        with pytest.raises(DataError, match=message):
            pairs.from_score_file(tmp_path / "bad.tsv", QUERIES, TEXTS)
    (tmp_path / "bad.tsv").write_text("1\t2\tq1\td1\tdx\n")
    with pytest.raises(DataError, match=r"1 of 2 documents have no text: 'dx'"):
        kd.Distiller(make_dot(), loss=losses.MarginMSE(), steps=1, verbose=False).fit(pairs.from_score_file(tmp_path / "bad.tsv", QUERIES, TEXTS))
    (tmp_path / "bad.tsv").write_text("1\t2\tq1\td1\td2\n")
    with pytest.raises(DataError, match="learns from a teacher: pass teacher= to the Distiller"):
        kd.Distiller(make_dot(), loss=losses.MarginMSE(in_batch=True), steps=1, verbose=False).fit(pairs.from_score_file(tmp_path / "bad.tsv", QUERIES, TEXTS))


def test_texts_and_queries_come_from_loaders_and_frames(tmp_path: Path) -> None:
    loader = pt.apply.text(lambda row: TEXTS[row["docno"]])
    topics = pd.DataFrame({"qid": list(QUERIES), "query": list(QUERIES.values())})
    read = pairs.from_score_file(score_file(tmp_path / "scores.tsv"), topics, loader)
    assert read.groups.texts[:3] == [TEXTS[d] for d in read.docnos[:3]]
    assert read.groups.texts[1] == TEXTS[read.docnos[1]]
    only = read.groups.texts.only(np.arange(len(read.docnos)) == 1)
    assert only[:3] == ["", TEXTS[read.docnos[1]], ""]
    assert only[0] == ""


def test_docpairs_of_ir_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    import ir_datasets
    from ir_datasets.formats import GenericDocPair

    class Source:
        @staticmethod
        def has_docpairs() -> bool:
            return True

        @staticmethod
        def docpairs_iter() -> object:
            return (GenericDocPair(q, a, b) for q, a, b, _, _ in LINES)

    monkeypatch.setattr(ir_datasets, "load", lambda name: Source())
    read = pairs.from_docpairs("irds:some/triples", queries=QUERIES, texts=TEXTS)
    assert read.groups.teacher is None
    assert read.groups.label.sum() == 8
    asked = []
    monkeypatch.setattr(pairs, "queries_of", lambda name: asked.append(name) or (lambda qids: [QUERIES[q] for q in qids]))
    monkeypatch.setattr(pairs, "loader_of", lambda name, field: asked.append(name) or (lambda docnos: [TEXTS[d] for d in docnos]))
    assert len(pairs.from_docpairs("some/triples")) == len(pairs.from_docpairs("irds:some/triples")) == 8
    assert asked == ["irds:some/triples"] * 4           # PyTerrier's name of the dataset, however it was given
    monkeypatch.undo()
    monkeypatch.setattr(ir_datasets, "load", lambda name: Source())
    assert len(pairs.from_docpairs("irds:some/triples", queries=QUERIES, texts=TEXTS, limit=3)) == 3
    with pytest.raises(DataError, match="learns from a teacher"):
        kd.Distiller(make_dot(), loss=losses.MarginMSE(), steps=1, verbose=False).fit(read)
    assert kd.Distiller(make_dot(), make_cross(), loss=losses.MarginMSE(), steps=1, dropout=0, verbose=False).fit(read).history_["loss"].notna().all()
    monkeypatch.setattr(Source, "has_docpairs", staticmethod(lambda: False))
    with pytest.raises(DataError, match="'irds:some' has no docpairs; pass a dataset that has"):
        pairs.from_docpairs("irds:some")
