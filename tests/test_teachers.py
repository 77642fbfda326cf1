"""Teachers: whatever scores is asked once for each pair, checked, stored, and never taken for another."""

import os
import signal
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import torch
from conftest import make_cross, make_dot, make_frame

import pyterrier_kd as kd
import pyterrier_kd.teacher_scores as ahead
from pyterrier_kd.errors import MissingSignal, TeacherError
from pyterrier_kd.groups import from_frame
from pyterrier_kd.losses import MarginMSE
from pyterrier_kd.sampling import Sampler
from pyterrier_kd.score_store import ScoreStore, score_key
from pyterrier_kd.teacher_scores import teacher_scores
from pyterrier_kd.teacher_signals import live_signals, require_live
from pyterrier_kd.teachers import terms_of

IN_BATCH = MarginMSE(in_batch=True).bind()


class Counting(pt.Transformer):
    """Scores by a function of the row and counts what it is asked."""

    def __init__(self, function=lambda row: len(row["text"]) - 20.0, change=lambda frame: frame) -> None:
        self.function, self.change, self.asked = function, change, []

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        self.asked.append(len(inp))
        return self.change(inp.assign(score=[self.function(row) for _, row in inp.iterrows()]))

    def __repr__(self) -> str:
        return "Counting()"


def test_an_ensemble_can_standardise_its_teachers(frame) -> None:
    a, b = make_cross(seed=1), make_cross(seed=2)
    b.model.classifier.weight.data *= 100
    plain = [r(frame)["score"].to_numpy() for r in (a, b)]
    expected = sum((s - s.mean()) / s.std() for s in plain) / 2
    assert np.allclose(scores_of(kd.Ensemble([a, b], standardise=True), frame), expected, atol=1e-5)
    assert np.allclose(scores_of(kd.Ensemble([kd.Ensemble([a], standardise=True), b]), frame), (plain[0] - plain[0].mean()) / plain[0].std() / 2 + plain[1] / 2, atol=1e-4)
    same = frame.assign(score=3.0)
    assert np.allclose(scores_of(kd.Ensemble([same, a], standardise=True), frame), (plain[0] - plain[0].mean()) / plain[0].std() / 2, atol=1e-5)
    with pytest.raises(ValueError, match="standardise=True needs single teachers, not sums of others"):
        scores_of(kd.Ensemble([a + b, a], standardise=True), frame)
    with pytest.raises(ValueError, match="standardise=True needs all scores ahead of training"):
        kd.Distiller(make_dot(), kd.Ensemble([make_dot(seed=1), make_dot(seed=2)], standardise=True), loss=kd.losses.MarginMSE(in_batch=True), verbose=False).fit(frame)


def scores_of(teacher, frame, store=None) -> np.ndarray:
    return teacher_scores(teacher, frame, frame["text"].tolist(), store)


def test_a_ranker_teaches_what_it_scores(frame, cross) -> None:
    assert np.allclose(scores_of(cross, frame), cross(frame)["score"])


def test_a_sum_is_walked_to_its_leaves(frame) -> None:
    a, b, c = make_cross(0), make_dot(1), Counting()
    assert [w for w, _ in terms_of(0.5 * (a + b) + 2 * c)] == [0.5, 0.5, 2]
    expected = 0.5 * (a(frame)["score"] + b(frame)["score"]) + 2 * c(frame)["score"]
    assert np.allclose(scores_of(0.5 * (a + b) + 2 * c, frame), expected)
    mean = kd.Ensemble([a, b, kd.Ensemble([c])])
    assert np.allclose(scores_of(mean, frame), (a(frame)["score"] + b(frame)["score"] + c(frame)["score"]) / 3)
    weighted = kd.Ensemble([a, kd.Teacher(b)], weights=[3, -1])
    assert np.allclose(scores_of(weighted, frame), 3 * a(frame)["score"] - b(frame)["score"])


def test_named_sums_keep_their_leaves_apart(frame, tmp_path) -> None:
    store = ScoreStore(tmp_path / "s")
    a, b = Counting(lambda row: len(row["text"]) + 100.0), Counting(lambda row: -3.0 * len(row["text"]))
    expected = (a(frame)["score"] + b(frame)["score"]) / 2
    for _ in range(2):
        assert np.allclose(scores_of(kd.Teacher(kd.Ensemble([a, b]), name="e"), frame, store), expected)
        assert np.allclose(scores_of(kd.Teacher((a + b) * 0.5, name="sum"), frame, store), expected)
    assert len(a.asked) == len(b.asked) == 3


def test_what_an_inner_teacher_says_still_holds(frame) -> None:
    (_, leaf), = terms_of(kd.Teacher(kd.Teacher(Counting(), "inner", logit=True, listwise=True, missing="drop"), name="outer"))
    assert (leaf.logit, leaf.listwise, leaf.missing) == (True, True, "drop")
    assert "'inner'" in leaf.giver


def test_a_pipeline_that_ends_in_a_sum_is_walked_too(frame) -> None:
    shout = pt.apply.text(lambda row: row["text"] + " apple")
    a, b = make_cross(0), make_cross(1)
    leaves = terms_of(shout >> (a + 2 * b))
    assert [w for w, _ in leaves] == [1, 2]
    longer = frame.assign(text=frame["text"] + " apple")
    assert np.allclose(scores_of(shout >> (a + 2 * b), frame), a(longer)["score"] + 2 * b(longer)["score"], atol=1e-5)


def test_a_sum_does_not_fill_in_what_a_side_dropped(frame) -> None:
    dropping = Counting(change=lambda f: f.iloc[1:])
    with pytest.raises(TeacherError, match="dropped 1 of 30 rows"):
        scores_of(make_cross() + dropping, frame)


def test_what_is_no_teacher(frame) -> None:
    with pytest.raises(TeacherError) as error:
        scores_of("bert", frame)
    assert str(error.value) == "str is no teacher: pass a kd ranker, a PyTerrier transformer or pipeline, a run as a frame, or a sum of those."
    with pytest.raises(ValueError, match="Ensemble of 0 teachers with 0 weights"):
        kd.Ensemble([], weights=[])
    with pytest.raises(ValueError, match=r"Teacher\(missing='zero'\) is unknown: it is 'error' or 'drop'."):
        kd.Teacher(Counting(), missing="zero")


@pytest.mark.parametrize(("change", "message"), [
    (lambda f: f[f["docno"] != "d1x1"], "The teacher Counting() dropped 1 of 30 rows that it was asked about (first: ('q0', 'd1x1')). A teacher must score every candidate: "
                                        "take cutoffs (% k) and filters out of it, or filter the candidates before fit."),
    (lambda f: pd.concat([f, f.head(1)]), "The teacher Counting() has 1 (qid, docno) more than once (first: ('q0', 'd0x0')): which score counts is not clear."),
    (lambda f: f.assign(score=[np.nan, *f["score"][1:]]), "The teacher Counting() gave 1 of 30 rows a score that is NaN or infinite (first: ('q0', 'd0x0'))."),
    (lambda f: f.assign(score=[*f["score"][:-1], np.inf]), "The teacher Counting() gave 1 of 30 rows a score that is NaN or infinite (first: ('q5', 'd6x4'))."),
    (lambda f: f.drop(columns=["score"]), "The teacher Counting() returned no column 'score', but ['qid', 'query', 'docno', 'text', 'rank', 'url']: it must score the rows that it is given."),
])
def test_answers_that_cannot_be_used(frame, change, message) -> None:
    with pytest.raises(TeacherError) as error:
        scores_of(Counting(change=change), frame)
    assert str(error.value) == message


def test_a_teacher_may_reorder_and_add_rows(frame) -> None:
    expected = Counting()(frame)["score"].to_numpy()
    extra = frame.head(1).assign(docno="extra", score=1.0)
    found = scores_of(Counting(change=lambda f: pd.concat([f, extra]).sample(frac=1, random_state=0)), frame)
    assert np.allclose(found, expected)


# ---------------------------------------------------------------------- runs


def test_a_run_teaches_by_its_ids(frame) -> None:
    run = frame[["qid", "docno"]].assign(score=np.arange(30.0) - 3).sample(frac=1, random_state=0)
    assert scores_of(run, frame).tolist() == (np.arange(30.0) - 3).tolist()
    with pytest.raises(TeacherError) as error:
        scores_of(run[run["score"] > -2], frame)
    assert str(error.value) == ("The teacher a run of 28 rows has no score for 2 of 30 candidates (first: ('q0', 'd0x0'), ('q0', 'd1x1')). "
                                "Cut the candidates to the run, or pass kd.Teacher(run, missing='drop') to train without those rows.")
    assert np.isnan(scores_of(kd.Teacher(run[run["score"] > -2], missing="drop"), frame)).tolist() == [True, True, *[False] * 28]
    with pytest.raises(TeacherError, match=r"has 1 scores that are NaN or infinite \(first: \('q0', 'd1x1'\)\)"):
        scores_of(frame[["qid", "docno"]].assign(score=[0.0, np.inf, *range(28)]), frame)
    with pytest.raises(TeacherError, match=r"needs the columns qid, docno and score; \['score'\] are missing"):
        scores_of(run.drop(columns="score"), frame)


# ---------------------------------------------------------------------- scores that look like probabilities


def test_probabilities_are_warned_of_and_can_be_undone(frame) -> None:
    logit = Counting(lambda row: len(row["text"]) / 10 - 3)
    squashed = Counting(lambda row: float(torch.sigmoid(torch.tensor(len(row["text"]) / 10 - 3, dtype=torch.float64))))
    with pytest.warns(UserWarning, match=r"All 30 scores of the teacher Counting\(\) lie in \[0, 1\], as after a sigmoid or softmax. That destroys the margins"):
        scores_of(squashed, frame)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert np.allclose(scores_of(kd.Teacher(squashed, logit=True), frame), scores_of(logit, frame), atol=1e-6)
        scores_of(make_dot(normalize=True, pooling="mean"), frame)      # a cosine is known as such
    with pytest.raises(TeacherError, match="was wrapped with logit=True, but its scores .* are no probabilities"):
        scores_of(kd.Teacher(logit, logit=True), frame)


# ---------------------------------------------------------------------- the store


def test_scores_are_asked_for_once(frame, tmp_path) -> None:
    store = ScoreStore(tmp_path / "deep" / "scores.sqlite3")
    teacher = Counting()
    first = scores_of(kd.Teacher(teacher, name="counting"), frame.head(20), store)
    assert teacher.asked == [20]
    second = scores_of(kd.Teacher(teacher, name="counting"), frame, store)
    assert teacher.asked == [20, 10]
    assert np.allclose(second[:20], first)
    scores_of(kd.Teacher(teacher, name="counting"), frame, store)
    assert teacher.asked == [20, 10]


def test_an_edited_text_or_query_is_asked_about_anew(frame, tmp_path) -> None:
    store, teacher = ScoreStore(tmp_path / "s"), Counting()
    scores_of(kd.Teacher(teacher, "n"), frame, store)
    frame.loc[2, "text"] += " more"
    assert scores_of(kd.Teacher(teacher, "n"), frame, store)[2] == len(frame.loc[2, "text"]) - 20
    frame.loc[frame["qid"] == "q1", "query"] = "another"
    scores_of(kd.Teacher(teacher, "n"), frame, store)
    assert teacher.asked == [30, 1, 5]


def test_what_the_teacher_reads_is_what_its_scores_are_filed_under(frame, tmp_path) -> None:
    store = ScoreStore(tmp_path / "s")
    frame["title"] = "the same title"
    titles = frame["title"].tolist()
    for teacher in (make_cross(0), kd.Teacher(Counting(), "n")):          # the student reads titles, the teacher texts
        transformer = teacher if isinstance(teacher, kd.Ranker) else teacher.teacher
        for _ in range(2):
            assert np.allclose(teacher_scores(teacher, frame, titles, store), transformer.transform(frame)["score"])
        changed = frame.assign(text=frame["text"] + " tea")
        assert np.allclose(teacher_scores(teacher, changed, titles, store), transformer.transform(changed)["score"])


def test_vectors_of_another_encoder_are_not_used(frame) -> None:
    vectors = frame.assign(query_vec=[np.ones(32, dtype=np.float32)] * 30)
    ranker = make_dot()
    assert np.allclose(scores_of(ranker, vectors), ranker(frame)["score"])
    assert np.allclose(ranker(vectors)["score"], ranker(frame)["score"])           # nor by the ranker itself, where query and text are there
    with pytest.raises(kd.errors.DataError, match=r"row 0 of the column 'query_vec' has shape \(3,\); vectors of this ranker have 32 dimensions"):
        ranker(frame.assign(query_vec=[np.ones(3, dtype=np.float32)] * 30).drop(columns="query"))


def test_two_teachers_never_share_scores(frame, tmp_path) -> None:
    store = ScoreStore(tmp_path / "s")
    a, b = make_cross(0), make_cross(1)
    assert not np.allclose(scores_of(a, frame, store), scores_of(b, frame, store))
    assert np.allclose(scores_of(b, frame, store), b(frame)["score"])
    short = make_cross(0, max_length=12)
    with pytest.warns(UserWarning, match="were cut"):
        assert np.allclose(scores_of(short, frame, store), short(frame)["score"])
    with torch.no_grad():
        next(a.model.parameters()).mul_(1.5)
    assert np.allclose(scores_of(a, frame, store), a(frame)["score"])


def test_unnamed_transformers_are_not_kept(frame, tmp_path) -> None:
    # two different functions look exactly alike from outside
    store = ScoreStore(tmp_path / "s")
    one, two = pt.apply.doc_score(lambda row: 2.0), pt.apply.doc_score(lambda row: 3.0)
    assert repr(one) == repr(two)
    assert set(scores_of(one, frame, store)) == {2.0}
    assert set(scores_of(two, frame, store)) == {3.0}
    assert set(scores_of(kd.Teacher(one, name="two"), frame, store)) == {2.0}
    assert set(scores_of(kd.Teacher(two, name="three"), frame, store)) == {3.0}


def test_a_listwise_teacher_is_asked_about_whole_lists(frame, tmp_path) -> None:
    store = ScoreStore(tmp_path / "s")
    teacher = Counting(change=lambda f: f.assign(score=f.groupby("qid")["score"].transform(lambda s: s - s.mean())))
    listwise = kd.Teacher(teacher, name="list", listwise=True)
    scores_of(listwise, frame, store)
    scores_of(listwise, frame, store)
    assert teacher.asked == [30]
    shorter = frame.drop(index=[0])             # the list of q0 is another list now, all others are known
    found = scores_of(listwise, shorter.reset_index(drop=True), store)
    assert teacher.asked == [30, 4]
    assert found[:4].mean() == pytest.approx(0)


def test_long_work_is_stored_in_chunks_that_end_with_a_query(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(ahead, "FIRST_CHUNK", 7)
    monkeypatch.setattr(ahead, "CHUNK_SECONDS", 0.0)
    frame, store = make_frame(queries=6, texts=5), ScoreStore(tmp_path / "s")
    teacher = Counting()
    teacher.function = lambda row: 1 / 0 if row["qid"] == "q4" else len(row["text"]) - 20.0
    with pytest.raises(ZeroDivisionError):
        scores_of(kd.Teacher(teacher, "n"), frame, store)
    assert teacher.asked == [10, 10, 10]
    again = Counting()
    scores_of(kd.Teacher(again, "n"), frame, store)
    assert again.asked == [10]


KILLED = """
    import os, signal, sys
    import pandas as pd, pyterrier as pt, pyterrier_kd as kd
    import pyterrier_kd.teacher_scores as ahead
    from pyterrier_kd.score_store import ScoreStore
    ahead.FIRST_CHUNK, ahead.CHUNK_SECONDS = 10, 0.0
    frame = pd.DataFrame([{"qid": f"q{i}", "query": f"query {i}", "docno": f"d{j}", "text": f"text {i} {j}"} for i in range(20) for j in range(10)])
    asked = []
    def score(row):
        asked.append(row["qid"])
        if row["qid"] == "q13" and sys.argv[2] == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        return float(len(asked)) + 1
    teacher = kd.Teacher(pt.apply.doc_score(score), name="mortal")
    ahead.teacher_scores(teacher, frame, frame["text"].tolist(), ScoreStore(sys.argv[1]))
    print(len(asked))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_scores_survive_a_killed_process(tmp_path) -> None:
    code = [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path / "scores")]
    environment = os.environ | {"PYTERRIER_HOME": str(tmp_path)}
    first = subprocess.run([*code, "die"], capture_output=True, text=True, env=environment, check=False)
    assert first.returncode == -signal.SIGKILL
    second = subprocess.run([*code, "live"], capture_output=True, text=True, env=environment, check=True)
    assert int(second.stdout.split()[-1]) == 70      # 13 of 20 queries were stored


def test_a_store_that_cannot_be_used_says_so(tmp_path) -> None:
    (tmp_path / "s").write_bytes(b"this is no database, and long enough to be looked at" * 50)
    with pytest.raises(OSError, match=r"the teacher scores in .* cannot be read or written: file is not a database"):
        ScoreStore(tmp_path / "s").get([b"k"])
    keys = [score_key("g", "q", str(i)) for i in range(2000)]
    store = ScoreStore(tmp_path / "t")
    store.put(keys[::2], range(1000))
    found = store.get(keys)
    assert np.isnan(found[1::2]).all()
    assert found[::2].tolist() == list(range(1000))
    assert score_key("a", "bc", "d") != score_key("ab", "c", "d")


# ---------------------------------------------------------------------- live signals


def test_live_signals_are_the_rankers_own_and_each_text_is_encoded_once(frame, monkeypatch) -> None:
    teacher, count = make_dot(3), []
    groups = from_frame(frame, frame["text"].tolist(), None, "test")
    live = live_signals(teacher, groups, IN_BATCH, torch.device("cpu"))
    forward = kd.rankers.bert_dot.DotModel.forward
    monkeypatch.setattr(kd.rankers.bert_dot.DotModel, "forward", lambda self, **k: count.append(len(k["input_ids"])) or forward(self, **k))
    for epoch in range(3):
        for batch in groups.batches(3, Sampler(texts=5), (epoch,)):
            signals = live(batch)
            for b, g in enumerate(batch.queries.tolist()):
                texts = [groups.texts[i] for i in batch.texts.flatten().tolist()]
                expected = teacher.encode_queries([groups.queries[g]]) @ teacher.encode_docs(texts).T if epoch == 2 else signals.in_batch[b].numpy()
                assert np.allclose(signals.in_batch[b].numpy(), expected, atol=1e-4)
            assert not signals.scores.requires_grad
        if epoch == 1:
            assert sum(count) <= frame["text"].nunique() + len(groups) + 4
    assert teacher.model.encoder.embeddings.word_embeddings.weight.requires_grad


def test_live_signals_of_a_sum(frame) -> None:
    a, b = make_dot(0), make_dot(1)
    groups = from_frame(frame, frame["text"].tolist(), None, "test")
    batch = next(groups.batches(4, Sampler(texts=3), (0,)))
    parts = [live_signals(t, groups, IN_BATCH, torch.device("cpu"))(batch).in_batch for t in (a, b)]
    both = live_signals(kd.Ensemble([a, b]), groups, IN_BATCH, torch.device("cpu"))(batch)
    assert torch.allclose(both.in_batch, (parts[0] + parts[1]) / 2, atol=1e-5)
    with pytest.raises(MissingSignal, match=r"MarginMSE\(in_batch=True\) needs the signal 'in_batch' from the teacher CrossEncoder"):
        require_live(a + make_cross(), IN_BATCH)
