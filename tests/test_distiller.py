"""Distiller: an estimator in a pipeline, that trains a copy, stops and goes on, and never loses what it has."""

import errno
import unittest
import warnings

import ir_measures
import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import torch
from conftest import Stop, make_cross, make_dot, make_frame, make_qrels, stopping_after

import pyterrier_kd as kd
from pyterrier_kd import losses, subnormal, training
from pyterrier_kd.errors import CheckpointError, DataError


def distiller_of(student=None, teacher=None, **settings) -> kd.Distiller:
    """A short training: 12 steps of 4 queries x 3 texts, three validations."""
    stage = kd.Stage(losses.MarginMSE(), sampler=kd.Sampler(texts=3), steps=12, batch_size=4, learning_rate=3e-3)
    defaults = {"strategy": stage, "validate_every": 4, "verbose": False}
    return kd.Distiller(student or make_cross(1), make_cross(5) if teacher is None else teacher, **{**defaults, **settings})


def weights_of(ranker: kd.Ranker) -> str:
    return ranker.fingerprint()


def test_fit_trains_a_copy_and_returns_itself(frame, qrels) -> None:
    student = make_cross(1)
    before = weights_of(student)
    distiller = distiller_of(student)
    assert distiller.fit(frame, qrels) is distiller
    assert weights_of(student) == before
    assert weights_of(distiller.student_) != before
    assert not distiller.student_.model.training
    history = distiller.history_
    assert history["step"].tolist() == [4, 8, 12]
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    assert {"stage", "step", "loss", "MarginMSE(in_batch=False)", "pairs/s", "learning_rate", "peak_memory_mb"} <= set(history.columns)
    np.testing.assert_allclose(distiller.transform(frame)["score"], distiller.student_(frame)["score"])


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_a_single_step_trains(frame, schedule) -> None:
    distiller = distiller_of(strategy=kd.Stage(losses.MSE(), steps=1, schedule=schedule)).fit(frame)
    assert distiller.student_ != distiller.student
    assert distiller.history_["learning_rate"].iloc[-1] > 0


def test_a_text_loader_serves_fitting_and_ranking(frame, qrels) -> None:
    from test_rankers import Loader
    frame = frame.drop_duplicates("docno")
    bare = frame.drop(columns=["text"])
    distiller = distiller_of(texts=Loader(frame))
    assert list(distiller.transform(bare.head(0)).columns) == [*bare.columns[:-3], "url", "score", "rank"]
    distiller.fit(bare, qrels, bare, qrels)
    out = distiller.transform(bare)
    assert "text" not in out.columns
    assert distiller.student.texts is None
    np.testing.assert_allclose(out["score"], distiller_of().fit(frame, qrels, frame, qrels).transform(frame)["score"], rtol=1e-4, atol=1e-4)


def test_a_measure_may_be_named(frame, qrels) -> None:
    assert "RR@5" in distiller_of(measure="RR@5").fit(frame, qrels, frame, qrels).history_.columns
    for measure in ("nDGC@5", 10):
        with pytest.raises(ValueError, match=rf"Distiller\(measure={measure!r}\) is no measure of ir_measures"):
            distiller_of(teacher=Untouchable(), measure=measure).fit(frame, qrels, frame, qrels)


def test_distillation_needs_no_qrels(frame) -> None:
    assert distiller_of().fit(frame).student_ is not None


def test_the_student_comes_to_agree_with_its_teacher(frame) -> None:
    teacher = make_dot(3)
    student = make_dot(4)
    distiller = distiller_of(student, teacher, steps=150, dropout=0).fit(frame)
    def agreement(ranker) -> float:
        return np.corrcoef(ranker(frame)["score"].groupby(frame["qid"]).transform(lambda s: s - s.mean()),
                           teacher(frame)["score"].groupby(frame["qid"]).transform(lambda s: s - s.mean()))[0, 1]
    assert agreement(distiller.student_) > max(0.6, agreement(student) + 0.2)


def test_same_seed_same_weights_whatever_was_random_before(frame) -> None:
    first = weights_of(distiller_of().fit(frame).student_)
    torch.manual_seed(99)
    np.random.seed(5)                                                                        # noqa: NPY002
    again = distiller_of()
    torch.rand(7)
    state = torch.random.get_rng_state()
    assert weights_of(again.fit(frame).student_) == first
    assert torch.equal(torch.random.get_rng_state(), state)          # and training leaves the caller's random state alone
    assert weights_of(distiller_of(seed=1).fit(frame).student_) != first


def test_a_second_fit_starts_afresh_unless_it_is_told_to_go_on(frame) -> None:
    distiller = distiller_of()
    first = weights_of(distiller.fit(frame).student_)
    assert weights_of(distiller.fit(frame).student_) == first
    distiller.warm_start = True
    assert weights_of(distiller.fit(frame).student_) != first


def test_validation_keeps_the_best_student(frame, qrels) -> None:
    distiller = distiller_of(measure=ir_measures.RR @ 10, learning_rate=0.5)     # far too high: it gets worse
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        distiller.fit(frame, qrels, frame, qrels)
    values = distiller.history_["RR@10"]
    run = distiller.transform(frame).rename(columns={"qid": "query_id", "docno": "doc_id"})
    truth = qrels.rename(columns={"qid": "query_id", "docno": "doc_id", "label": "relevance"})
    assert ir_measures.calc_aggregate([ir_measures.RR @ 10], truth, run)[ir_measures.RR @ 10] == pytest.approx(values.max())
    assert distiller.student_.metadata_["RR@10"] == pytest.approx(values.max())


def test_patience_stops_early(frame, qrels) -> None:
    distiller = distiller_of(steps=400, validate_every=1, patience=2, learning_rate=1e-9).fit(frame, qrels, frame, qrels)
    assert len(distiller.history_) == 3


def test_validation_of_passages_is_by_document() -> None:
    frame = make_frame()
    passages = pd.concat([frame.assign(docno=frame["docno"] + "%p0", text="apple"), frame.assign(docno=frame["docno"] + "%p1")])
    qrels = make_qrels(frame)
    whole = distiller_of(make_cross(1), learning_rate=1e-9).fit(passages, qrels, passages, qrels)
    scores = whole.student_(passages)
    best = scores.assign(docno=scores["docno"].str[:-3]).groupby(["qid", "docno"], as_index=False)["score"].max()
    truth = qrels.rename(columns={"qid": "query_id", "docno": "doc_id", "label": "relevance"})
    expected = ir_measures.calc_aggregate([ir_measures.nDCG @ 10], truth, best.rename(columns={"qid": "query_id", "docno": "doc_id"}))
    assert whole.history_["nDCG@10"].iloc[-1] == pytest.approx(expected[ir_measures.nDCG @ 10], abs=1e-6)


# ---------------------------------------------------------------------- in pipelines


class Source(pt.Transformer):
    """A first stage: the candidates of the queries that it is asked for."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame = frame

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        pt.validate.query_frame(inp, extra_columns=["query"], context=self)
        return inp[["qid"]].merge(self.frame, on="qid").reset_index(drop=True)


def test_a_pipeline_fits_it_by_position_and_ranks_with_it(frame, qrels) -> None:
    topics = frame[["qid", "query"]].drop_duplicates()
    pipeline = Source(frame) >> distiller_of()
    pipeline.fit(topics, qrels)
    assert pipeline[1].student_ is not None
    out = pipeline(topics)
    assert len(out) == len(frame)
    pipeline.fit(topics, None)
    pipeline.fit(topics, qrels, topics, qrels)
    assert "nDCG@10" in pipeline[1].history_.columns


@pytest.mark.parametrize("title", [False, True])
def test_passages_inside_a_pipeline(title) -> None:
    frame = make_frame()
    frame["text"] = frame["text"] + " apple bread cheese dates egg"
    topics, qrels = frame[["qid", "query"]].drop_duplicates(), make_qrels(frame)
    distiller = distiller_of(loss=losses.RankNet())
    pipeline = Source(frame) >> pt.text.sliding("text", length=4, stride=2, prepend_attr=None) >> distiller >> pt.text.max_passage()
    pipeline.fit(topics, qrels)
    out = pipeline(topics)
    assert len(out) == len(frame)
    assert set(out["docno"]) == set(frame["docno"])


def test_an_experiment_gives_the_same_figures_linear_and_as_a_tree(frame, qrels) -> None:
    topics = frame[["qid", "query"]].drop_duplicates()
    source, teacher = Source(frame), make_cross(5)
    one, two = distiller_of(teacher=teacher).fit(frame), distiller_of(teacher=teacher, seed=3).fit(frame)
    student = one.student
    systems = [source, source >> teacher, source >> student, source >> one, source >> two, source >> one.student_]
    tables = {}
    for plan in ("linear", "tree"):
        tables[plan] = pt.Experiment(systems, topics, qrels, [pt.measures.nDCG @ 10, pt.measures.RR @ 10], names=list("abcdef"), baseline=1,
                                     correction="holm", plan=plan, validate="error")
    pd.testing.assert_frame_equal(tables["linear"], tables["tree"])
    for position, system in enumerate(systems):
        alone = pt.Evaluate(system(topics), qrels, [pt.measures.nDCG @ 10])
        assert tables["tree"]["nDCG@10"][position] == pytest.approx(alone["nDCG@10"])
    assert tables["tree"]["nDCG@10"][3] == tables["tree"]["nDCG@10"][5]


def test_equal_only_if_trained_to_the_same_weights(frame) -> None:
    distiller = distiller_of()
    assert distiller == distiller
    assert distiller != distiller_of()
    assert isinstance(hash(distiller), int)
    assert repr(distiller) == f"Distiller({distiller.student!r}, not fitted)"
    distiller.fit(frame)
    other = distiller_of().fit(frame)
    assert distiller == other
    assert hash(distiller) == hash(other)
    assert distiller != distiller_of(seed=1).fit(frame)
    assert repr(distiller) == f"Distiller({distiller.student_!r})"
    assert distiller != 3


@pytest.mark.parametrize("fitted", [False, True])
def test_pyterriers_own_tests_pass(fitted, frame) -> None:
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(pt.testing.transformer_test_class(lambda: distiller_of().fit(frame) if fitted else distiller_of()))
    result = unittest.TestResult()
    suite.run(result)
    assert result.testsRun >= 2
    assert not result.failures, result.failures
    assert not result.errors, result.errors


def test_unfitted_it_knows_its_columns_and_refuses_rows(frame) -> None:
    distiller = distiller_of()
    assert list(distiller.transform(frame.head(0)).columns) == list(make_cross()(frame.head(0)).columns)
    with pytest.raises(RuntimeError) as error:
        distiller.transform(frame)
    assert str(error.value) == "This Distiller is not fitted: call fit(candidates, qrels) on it or on its pipeline, or rank with its .student as it is."


# ---------------------------------------------------------------------- bad input, before anything long


class Untouchable(pt.Transformer):
    """A teacher that must not be asked."""

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        pytest.fail("the teacher was asked before the input was checked")


@pytest.mark.parametrize(("change", "error", "message"), [
    (lambda f: f.head(0), DataError, "Distiller.fit got an empty frame of candidates. Do the topics match the index?"),
    (lambda f: f.assign(text=[None, *f["text"][1:]]), DataError, "Distiller: 1 of 30 rows have no string in the column 'text' (first: ('q0', 'd0x0')). Drop those rows, or fill the column with frame['text'].fillna('')."),
    (lambda f: pd.concat([f, f.head(1)]), DataError, "Distiller.fit: 1 of 31 rows repeat a (qid, docno) that was there before (first: ('q0', 'd0x0')). Use frame.drop_duplicates(['qid', 'docno'])."),
    (lambda f: f.groupby("qid").head(1), DataError, "MarginMSE(in_batch=False) has nothing to learn from: of 6 queries 6 have fewer than 2 candidates. Retrieve deeper, or use a loss that needs less."),
])
def test_bad_frames(frame, change, error, message) -> None:
    with pytest.raises(error) as caught:
        distiller_of(teacher=Untouchable()).fit(change(frame))
    assert str(caught.value) == message


def test_frames_without_texts_or_queries(frame) -> None:
    for column in ("text", "query"):
        with pytest.raises(pt.validate.InputValidationError, match=rf"Distiller needs the column\(s\) \['{column}'\]; the frame has \['qid', "):
            distiller_of(teacher=Untouchable()).fit(frame.drop(columns=column))


def test_a_loss_over_labels_needs_labels(frame, qrels) -> None:
    with pytest.raises(DataError, match="6 have no relevant candidate"):
        distiller_of(teacher=Untouchable(), loss=losses.RankNet()).fit(frame)
    with pytest.warns(UserWarning, match="of 6 queries 0 have fewer than 2 candidates and 2 have no relevant candidate; they are left out."):
        distiller_of(loss=losses.RankNet()).fit(frame, qrels[2:])


def test_a_loss_over_a_teacher_needs_one(frame) -> None:
    with pytest.raises(DataError) as error:
        kd.Distiller(make_cross(), verbose=False).fit(frame)
    assert str(error.value) == ("MarginMSE(in_batch=False) learns from a teacher: pass teacher= to the Distiller, or train on labels alone with strategies.fine_tune().")


def test_validation_without_qrels_or_overlap_is_said(frame, qrels) -> None:
    with pytest.warns(UserWarning, match="got validation candidates without qrels: it trains without validation"):
        distiller_of().fit(frame, qrels, frame)
    with pytest.warns(UserWarning, match="none of the validation qrels is about one of its 6 queries: it trains without validation"):
        distiller_of().fit(frame, qrels, frame, qrels.assign(qid="elsewhere"))
    with pytest.warns(UserWarning, match="none of the 30 validation candidates is relevant by the 6 qrels of their 6 queries; nDCG@10 will be 0 throughout"):
        distiller_of().fit(frame, qrels, frame, qrels.assign(docno="elsewhere"))


def test_bad_settings(frame) -> None:
    with pytest.raises(ValueError, match=r"Distiller\(tracker='tensorboard'\) writes into the checkpoint folder: pass checkpoint= as well."):
        distiller_of(tracker="tensorboard").fit(frame)
    with pytest.raises(ValueError, match="is not a loss: pass one of kd.losses"):
        kd.Stage("mse")
    with pytest.raises(ValueError, match="schedule='wavy'"):
        kd.Stage(losses.MSE(), schedule="wavy")
    with pytest.raises(ValueError, match="all must be above 0"):
        kd.Stage(losses.MSE(), epochs=0)
    with pytest.raises(ValueError, match="needs at least one Stage"):
        kd.Strategy("empty", ())


def test_a_loss_that_is_not_finite_stops_training(frame) -> None:
    class Broken(losses.MSE):
        def __call__(self, student, teacher, batch):
            return super().__call__(student, teacher, batch) * float("nan")
    with pytest.raises(FloatingPointError, match="the loss is nan at step 1 of stage 'train': lower learning_rate"):
        distiller_of(loss=Broken()).fit(frame)


def test_a_run_with_missing_rows_can_be_a_teacher(frame) -> None:
    run = frame[["qid", "docno"]].assign(score=np.arange(30.0))[3:]
    distiller_of(teacher=kd.Teacher(run, missing="drop")).fit(frame)
    with pytest.raises(kd.errors.TeacherError, match="has no score for 3 of 30 candidates"):
        distiller_of(teacher=run).fit(frame)


# ---------------------------------------------------------------------- teacher scores are kept


def counting_teacher(asked: list) -> kd.Teacher:
    return kd.Teacher(pt.apply.doc_score(lambda row: asked.append((row["qid"], row["docno"])) or float(len(row["text"]))), name="length")


def test_a_second_student_does_not_ask_the_teacher_again(frame, tmp_path) -> None:
    asked: list = []
    whole = {"strategy": kd.Stage(losses.MSE(), steps=3, batch_size=6, sampler=kd.Sampler(texts=5))}
    for _ in range(2):
        distiller_of(teacher=counting_teacher(asked), scores=tmp_path / "scores", **whole).fit(frame)
    assert len(asked) == 30
    distiller_of(teacher=counting_teacher(asked), scores=False, **whole).fit(frame)
    assert len(asked) == 60


def test_the_teacher_is_asked_only_for_what_training_will_see(frame, qrels, monkeypatch) -> None:
    seen: set = set()
    step = training.Training._step
    names = dict(zip(frame["query"] + frame["text"], zip(frame["qid"], frame["docno"], strict=True), strict=True))

    def remember(self):
        batch = next(self.source.batches(self.stage.batch_size, self.stage.sampler, (*self.seed, self.done // 3), skip=self.done % 3))
        seen.update(names[self.source.queries[q] + self.source.texts[t]] for b, q in enumerate(batch.queries.tolist())
                    for i, t in enumerate(batch.texts[b].tolist()) if batch.mask[b, i])
        return step(self)

    monkeypatch.setattr(training.Training, "_step", remember)
    for texts, steps in ((2, 1), (2, 5), (3, 4)):
        asked: list = []
        seen.clear()
        stage = kd.Stage(losses.MSE(), steps=steps, batch_size=2, sampler=kd.Sampler(texts=texts))
        distiller_of(teacher=counting_teacher(asked), strategy=stage, scores=False).fit(frame, qrels)
        assert set(asked) == seen
        assert len(asked) == len(seen) < 30


def test_training_on_labels_needs_no_home(frame, qrels, monkeypatch) -> None:
    def no_home() -> str:
        raise PermissionError("the home cannot be made")

    monkeypatch.setattr(pt.io, "pyterrier_home", no_home)
    student = make_dot()
    taught = kd.Distiller(student, strategy=kd.Stage(losses.RankNet(), steps=1, batch_size=2), verbose=False).fit(frame, qrels)
    assert weights_of(taught.student_) != weights_of(student)
    with pytest.raises(PermissionError, match="the home cannot be made"):      # where a teacher's scores are kept
        kd.Distiller(student, make_cross(), strategy=kd.Stage(losses.MarginMSE(), steps=1, batch_size=2), verbose=False).fit(frame)


def test_training_on_what_is_needed_is_training_on_everything(frame, qrels, monkeypatch) -> None:
    stage = kd.Stage(losses.MarginMSE(), steps=5, batch_size=2, dropout=0)
    few = distiller_of(strategy=stage).fit(frame, qrels)
    import pyterrier_kd.fitting
    import pyterrier_kd.training_data
    monkeypatch.setattr(pyterrier_kd.training_data, "rows_ahead", lambda stage, groups, seed, processes: np.ones(len(groups.row), dtype=bool))
    monkeypatch.setattr(pyterrier_kd.fitting, "rows_ahead", lambda stage, groups, seed, processes: np.ones(len(groups.row), dtype=bool))
    assert weights_of(distiller_of(strategy=stage).fit(frame, qrels).student_) == weights_of(few.student_)


@pytest.mark.parametrize("sampler", [kd.Sampler(texts=2, choose="top"), kd.Sampler(texts=2, choose="stratified")])
def test_a_sampler_that_reads_scores_needs_all_of_them(frame, sampler) -> None:
    asked: list = []
    distiller_of(teacher=counting_teacher(asked), strategy=kd.Stage(losses.MSE(), steps=1, batch_size=2, sampler=sampler), scores=False).fit(frame)
    assert len(asked) == 30


# ---------------------------------------------------------------------- stages


def test_stages_follow_each_other_with_teachers_of_their_own(frame, qrels) -> None:
    stages = (kd.Stage(losses.MSE(), steps=4, batch_size=3, name="scores", teacher=make_dot(7)),
              kd.Stage(losses.RankNet(), steps=6, batch_size=3, name="labels"))
    distiller = kd.Distiller(make_cross(), strategy=kd.Strategy("two", stages), validate_every=3, verbose=False).fit(frame, qrels)
    assert distiller.history_[["stage", "step"]].to_numpy().tolist() == [["scores", 3], ["scores", 4], ["labels", 3], ["labels", 6]]
    assert distiller.student_.metadata_["strategy"] == repr(kd.Strategy("two", stages))


def test_settings_of_the_distiller_replace_those_of_every_stage() -> None:
    distiller = kd.Distiller(make_cross(), strategy=kd.strategies.standard_kd(alpha=0.2, temperature=5), epochs=3, learning_rate=1e-3, batch_size=8, dropout=0.0)
    assert repr(distiller.stages()) == (
        "standard_kd: 1 stage\n  1. standard_kd: L = 0.2 * SoftLabels(temperature=5) + 0.8 * HardLabels()\n"
        "     3 epochs, learning rate 0.001 (linear, warm-up 0.1), 8 queries x 2 texts a step, dropout 0")


@pytest.mark.parametrize("strategy", [kd.strategies.margin_mse(), kd.strategies.margin_mse(texts=4), kd.strategies.mse(), kd.strategies.weighted_ranknet(), kd.strategies.rank_only(),
                                      kd.strategies.standard_kd(alpha=0.5, temperature=2), kd.strategies.fine_tune(), kd.strategies.fine_tune(losses.InfoNCE(in_batch=False), texts=4),
                                      losses.MSE() + losses.RankNet(), kd.Stage(losses.MSE())], ids=lambda s: getattr(s, "name", repr(s))[:20])
def test_named_strategies_train(strategy, frame, qrels) -> None:
    teacher = None if getattr(strategy, "name", "") == "fine_tune" else make_cross(5)
    distiller = kd.Distiller(make_dot(), teacher, strategy=strategy, steps=2, batch_size=4, verbose=False).fit(frame, qrels)
    assert distiller.student_ != distiller.student


def test_alpha_is_checked() -> None:
    with pytest.raises(ValueError, match=r"standard_kd\(alpha=2\) must be in \[0, 1\]"):
        kd.strategies.standard_kd(alpha=2)


def test_epochs_win_over_a_stages_own_steps() -> None:
    stage = kd.Stage(losses.MSE(), steps=7)
    assert kd.Distiller(make_cross(), strategy=stage, epochs=2).stages().stages[0].steps is None
    assert kd.Distiller(make_cross(), strategy=stage, epochs=2, steps=3).stages().stages[0].steps == 3


@pytest.mark.parametrize(("schedule", "values"), [("linear", [0, 1, 0.5, 0]), ("cosine", [0, 1, 0.5, 0]), ("constant", [0, 1, 1, 1])])
def test_schedules(schedule, values) -> None:
    stage = kd.Stage(losses.MSE(), schedule=schedule, warmup=0.2)
    assert [stage.rate(p) for p in (0, 0.2, 0.6, 1)] == pytest.approx(values, abs=1e-9)


def test_dropout_is_set_for_a_stage_and_put_back(frame) -> None:
    student = make_cross()
    seen = []
    class Spy(losses.MSE):
        def __call__(self, s, t, b):
            seen.append({m.p for m in module.modules() if isinstance(m, torch.nn.Dropout)})
            return super().__call__(s, t, b)
    distiller = kd.Distiller(student, make_cross(5), strategy=kd.Stage(Spy(), steps=1, dropout=0.37), verbose=False)
    module = torch.nn.Module()
    original = training.Step.__init__
    def remember(self, *args):
        nonlocal module
        original(self, *args)
        module = self
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Step, "__init__", remember)
        distiller.fit(frame)
    assert seen == [{0.37}]
    assert {m.p for m in distiller.student_.model.modules() if isinstance(m, torch.nn.Dropout)} == {0.1}


def test_parts_of_a_step_add_up_to_the_step(frame) -> None:
    whole, parts = (distiller_of(strategy=kd.Stage(losses.MSE(), steps=3, batch_size=4, accumulate=n, dropout=0), validate_every=1).fit(frame) for n in (1, 2))
    assert np.allclose(whole.history_["loss"], parts.history_["loss"], rtol=1e-3)
    assert np.allclose(whole.transform(frame)["score"], parts.transform(frame)["score"], atol=1e-2)


# ---------------------------------------------------------------------- stopping and going on


@pytest.mark.parametrize("dropout", [None, 0.0])
@pytest.mark.parametrize("stop", [2, 5, 8, 11])
def test_a_resumed_training_ends_in_the_same_weights(frame, qrels, tmp_path, dropout, stop, monkeypatch) -> None:
    monkeypatch.setattr(subnormal, "EVERY", 2)
    unbroken = distiller_of(dropout=dropout).fit(frame, qrels, frame, qrels)
    with pytest.MonkeyPatch.context() as patch:
        stopping_after(patch, stop, Stop)
        with pytest.raises(Stop):
            distiller_of(dropout=dropout, checkpoint=tmp_path / "ck").fit(frame, qrels, frame, qrels)
    resumed = distiller_of(dropout=dropout, checkpoint=tmp_path / "ck").fit(frame, qrels, frame, qrels)
    assert weights_of(resumed.student_) == weights_of(unbroken.student_)
    columns = ["stage", "step", "loss", "nDCG@10"]
    pd.testing.assert_frame_equal(resumed.history_[columns], unbroken.history_[columns])
    with pytest.MonkeyPatch.context() as patch:                     # what is finished is not trained again
        stopping_after(patch, 0, Stop)
        again = distiller_of(dropout=dropout, checkpoint=tmp_path / "ck").fit(frame, qrels, frame, qrels)
    assert weights_of(again.student_) == weights_of(unbroken.student_)


def test_two_stages_resume_in_the_second(frame, qrels, tmp_path, monkeypatch) -> None:
    def two(**settings) -> kd.Distiller:
        stages = (kd.Stage(losses.MSE(), steps=4, batch_size=3, name="one"), kd.Stage(losses.RankNet(), steps=8, batch_size=3, name="two"))
        return kd.Distiller(make_cross(1), make_cross(5), strategy=kd.Strategy("s", stages), validate_every=2, verbose=False, **settings)
    unbroken = two().fit(frame, qrels)
    with pytest.MonkeyPatch.context() as patch:
        stopping_after(patch, 5, Stop)
        with pytest.raises(Stop):
            two(checkpoint=tmp_path / "ck").fit(frame, qrels)
    resumed = two(checkpoint=tmp_path / "ck").fit(frame, qrels)
    assert weights_of(resumed.student_) == weights_of(unbroken.student_)
    assert resumed.history_["step"].tolist() == unbroken.history_["step"].tolist() == [2, 4, 2, 4, 6, 8]


def test_ctrl_c_keeps_the_best_student_so_far(frame, qrels, monkeypatch) -> None:
    stopping_after(monkeypatch, 9, KeyboardInterrupt)
    distiller = distiller_of()
    with pytest.warns(UserWarning, match=r"Distiller.fit was interrupted after step 8 of stage 'train': student_ is the best student so far \(nDCG@10 0\.\d+ at step [48]\)\."):
        distiller.fit(frame, qrels, frame, qrels)
    assert distiller.student_ is not None
    assert distiller.history_["step"].tolist() == [4, 8]
    distiller.transform(frame)


def test_an_error_in_training_does_not_lose_the_student(frame, qrels, monkeypatch) -> None:
    stopping_after(monkeypatch, 9, Stop)
    distiller = distiller_of()
    with pytest.raises(Stop):
        distiller.fit(frame, qrels, frame, qrels)
    assert distiller.student_ != distiller.student
    assert distiller.history_["step"].tolist() == [4, 8]


def test_a_folder_is_not_resumed_by_another_training(frame, tmp_path) -> None:
    distiller_of(checkpoint=tmp_path / "ck").fit(frame)
    for other in (distiller_of(seed=2, checkpoint=tmp_path / "ck"), distiller_of(make_cross(8), checkpoint=tmp_path / "ck"),
                  distiller_of(learning_rate=1e-5, checkpoint=tmp_path / "ck"), distiller_of(teacher=make_cross(6), checkpoint=tmp_path / "ck")):
        with pytest.raises(CheckpointError, match=r"holds another training \(its student, teacher, strategy, seed or data differ from this one's\)"):
            other.fit(frame)
    one, two = pt.apply.doc_score(lambda row: len(row["text"]) + 0.5), pt.apply.doc_score(lambda row: -2.0 * len(row["text"]))
    distiller_of(teacher=one, checkpoint=tmp_path / "foreign").fit(frame)
    distiller_of(teacher=one, checkpoint=tmp_path / "foreign").fit(frame)
    with pytest.raises(CheckpointError, match="holds another training"):        # although both look alike from outside
        distiller_of(teacher=two, checkpoint=tmp_path / "foreign").fit(frame)
    with pytest.raises(CheckpointError, match="holds another training"):
        distiller_of(checkpoint=tmp_path / "ck").fit(frame.assign(text=frame["text"] + " tea"))


def test_a_damaged_checkpoint_is_an_error_that_says_what_to_do(frame, tmp_path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stopping_after(patch, 5, Stop)
        with pytest.raises(Stop):
            distiller_of(checkpoint=tmp_path / "ck").fit(frame)
    file = tmp_path / "ck" / "last" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"cannot be read .*: remove the folder to start afresh."):
        distiller_of(checkpoint=tmp_path / "ck").fit(frame)


def test_a_full_disk_costs_a_warning_and_the_last_good_checkpoint_stays(frame, qrels, tmp_path) -> None:
    original, calls = training.Training.save, []
    with pytest.MonkeyPatch.context() as patch:

        def full(self, path, position, best=None):
            calls.append(1)
            if len(calls) > 1:
                patch.setattr(self.accelerator, "save_state", lambda folder: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
            original(self, path, position, best)

        patch.setattr(training.Training, "save", full)
        with pytest.warns(UserWarning, match=r"Distiller.fit: \[Errno 28\] could not write .*last: No space left on device; what was there before is unchanged. Training goes on; the previous checkpoint stays."):
            distiller = distiller_of(checkpoint=tmp_path / "ck").fit(frame, qrels, frame, qrels)
    assert distiller.history_["step"].tolist() == [4, 8, 12]
    assert kd.load(tmp_path / "ck" / "best", device="cpu") is not None
    unbroken = distiller_of().fit(frame, qrels, frame, qrels)
    resumed = distiller_of(checkpoint=tmp_path / "ck").fit(frame, qrels, frame, qrels)
    assert weights_of(resumed.student_) == weights_of(unbroken.student_)


def test_the_best_student_is_a_folder_like_any_other(frame, qrels, tmp_path) -> None:
    distiller = distiller_of(checkpoint=tmp_path / "ck").fit(frame, qrels, frame, qrels)
    best = kd.load(tmp_path / "ck" / "best", device="cpu")
    assert weights_of(best) == weights_of(distiller.student_)


def test_provenance_is_saved_with_the_student(frame, qrels, tmp_path) -> None:
    distiller = distiller_of().fit(frame, qrels, frame, qrels)
    distiller.student_.save(tmp_path / "student")
    loaded = kd.load(tmp_path / "student", device="cpu")
    assert loaded.metadata_ == distiller.student_.metadata_
    assert set(loaded.metadata_) == {"teacher", "strategy", "seed", "data", "steps", "nDCG@10"}
    assert loaded.metadata_["teacher"].startswith("CrossEncoder(")


def test_tensorboard_gets_every_figure(frame, tmp_path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    distiller = distiller_of(tracker="tensorboard", checkpoint=tmp_path / "ck").fit(frame)
    files = list((tmp_path / "ck").rglob("events.out.*"))
    found = {}
    for file in files:
        events = EventAccumulator(str(file.parent)).Reload()
        found |= {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    assert [e.step for e in found["train/loss"]] == [4, 8, 12]
    assert [e.value for e in found["train/loss"]] == pytest.approx(distiller.history_["loss"].tolist(), rel=1e-5)
