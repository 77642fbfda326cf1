"""The papers' strategies, stages over a corpus, and students of TinyBERT's shapes."""

import itertools
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from conftest import WORDS, Stop, make_colbert, make_config, make_cross, make_dot, make_frame, make_qrels, make_tk, make_tokenizer, stopping_after

import pyterrier_kd as kd
from pyterrier_kd import losses, strategies
from pyterrier_kd.corpus import Corpus
from pyterrier_kd.errors import CheckpointError, DataError, LayerMismatch, MissingSignal, TeacherError
from pyterrier_kd.rankers.shrink import parsed_shape

FRAME = make_frame()
QRELS = make_qrels(FRAME)


def documents(count: int = 40) -> list[dict[str, str]]:
    """Documents as ``dataset.get_corpus_iter`` gives them; some long, some empty."""
    return [{"docno": f"d{i}", "text": " ".join(WORDS[(i * j) % len(WORDS)] for j in range(i % 7 * 9))} for i in range(count)]


class Lines:
    """A corpus that is read line by line, and counts how often."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.started, self.fail_at = 0, fail_at

    def __call__(self):
        self.started += 1
        for i, document in enumerate(documents()):
            if i == self.fail_at:
                raise OSError("the disk is gone")
            yield document


# ---------------------------------------------------------------------- as values


def test_each_strategy_is_its_papers_equation_and_settings() -> None:
    layers = losses.Attention() + losses.Hidden() + losses.Embedding()
    encoder, texts = make_dot(), ["a text"]
    simplified = strategies.simplified_tinybert()
    assert [s.loss for s in simplified.stages] == [layers + losses.SoftLabels() + losses.HardLabels()]
    assert (simplified.stages[0].learning_rate, simplified.stages[0].batch_size * simplified.stages[0].sampler.texts) == (5e-5, 64)
    two = strategies.tinybert()
    assert [s.loss for s in two.stages] == [layers, losses.SoftLabels()]
    assert [(s.learning_rate, s.batch_size * s.sampler.texts, s.schedule) for s in two.stages] == [(5e-5, 64, "constant"), (1e-6, 128, "linear")]
    assert strategies.tinybert(hard_label=True).stages[1].loss == losses.SoftLabels() + losses.HardLabels()
    assert strategies.tinybert(one_step=True).stages[0].loss == layers + losses.SoftLabels()
    assert (strategies.standard_kd().stages[0].learning_rate, strategies.standard_kd().stages[0].batch_size) == (1e-6, 64)
    general = strategies.lm_distill(texts, encoder).stages[0]
    assert (general.loss, general.epochs, general.batch_size, general.length, general.learning_rate, general.teacher) == (layers, 3, 256, 128, 5e-5, encoder)
    assert [s.name for s in strategies.tinybert(texts, encoder).stages] == ["general", "layers", "prediction"]
    assert [s.name for s in strategies.simplified_tinybert(texts, encoder).stages] == ["general", "layers and prediction"]
    assert [s.name for s in strategies.lm_distill_ranker_distill(texts, encoder).stages] == ["general", *(s.name for s in strategies.ranker_distill().stages)]
    assert strategies.lm_distill_fine_tune(texts, encoder).stages[1].loss == losses.HardLabels()
    for strategy, rates in ((strategies.cross_architecture(), (7e-6, {})), (strategies.cross_architecture(tk=True), (1e-5, {r"\binteraction\.": 1e-4})),
                            (strategies.tas_b(len), (7e-6, {}))):
        stage, = strategy.stages
        assert (stage.learning_rate, stage.rates) == rates
        assert (stage.batch_size, stage.sampler.texts, stage.schedule, stage.weight_decay, stage.clip) == (32, 2, "cosine", 0.0, 10_000.0)
    assert strategies.cross_architecture().stages[0].loss == losses.MarginMSE()
    assert strategies.tas_b(len).stages[0].loss == losses.MarginMSE() + 0.75 * losses.MarginMSE(in_batch="anchored")
    assert (strategies.tas_b(len).stages[0].sampler.choose, strategies.tas_b(len).stages[0].topics) == ("bins", len)
    for given in ({"corpus": texts}, {"encoder": encoder}):
        with pytest.raises(ValueError, match=r"A general stage needs both a corpus= of texts and an encoder= .* is missing"):
            strategies.tinybert(**given)


def test_strategies_print_as_equations_and_stages() -> None:
    assert str(strategies.simplified_tinybert()) == (
        "simplified_tinybert: 1 stage\n"
        "  1. layers and prediction: L = Attention() + Hidden() + Embedding() + SoftLabels(temperature=1.0) + HardLabels()\n"
        "     9 epochs, learning rate 5e-05 (linear, warm-up 0.1), 32 queries x 2 texts a step, the model's dropout")
    shown = str(strategies.lm_distill(Lines(), make_dot()))
    assert "256 texts of at most 128 tokens a step, from a corpus, the model's dropout, teacher BertDot(" in shown
    assert "0x" not in shown


def test_parameters_can_have_learning_rates_of_their_own(frame, qrels) -> None:
    student = make_cross(seed=1)
    stage = kd.Stage(losses.MarginMSE(), steps=3, learning_rate=1e-2, rates={r"\bbert\.encoder\.layer\.0\.": 0, "embeddings": 1e-6}, weight_decay=0)
    trained = kd.Distiller(student, make_cross(seed=4), strategy=stage, dropout=0, verbose=False).fit(frame, qrels).student_
    moved = {name: float((after - before).abs().max()) for (name, before), after in zip(student.model.named_parameters(), trained.model.parameters(), strict=True)}
    assert max(v for k, v in moved.items() if ".layer.0." in k) == 0
    assert 0 < max(v for k, v in moved.items() if "embeddings" in k) < 1e-5
    assert min(v for k, v in moved.items() if ".layer.1." in k and "weight" in k) > 1e-3
    assert hash(stage) == hash(kd.Stage(losses.MarginMSE(), steps=3, learning_rate=1e-2, weight_decay=0))
    with pytest.raises(ValueError, match=r"The stage 'train' trains nothing: all of its learning rates are 0"):
        kd.Distiller(student, make_cross(seed=4), strategy=kd.Stage(losses.MarginMSE(), steps=3, rates={"": 0}), verbose=False).fit(frame, qrels)
    with pytest.raises(ValueError, match=r"The stage 'train' has a learning rate for 'kernels', which no parameter's name holds; there are 'model"):
        kd.Distiller(student, make_cross(seed=4), strategy=kd.Stage(losses.MarginMSE(), steps=3, rates={"kernels": 1e-4}), verbose=False).fit(frame, qrels)


def test_batches_of_one_topic(frame, qrels) -> None:
    pytest.importorskip("faiss")
    few = make_frame(queries=30, texts=3)
    many = pd.concat([few.assign(qid=few["qid"] + word, query=few["query"] + f" {word}") for word in ("tea", "jam", "salt")], ignore_index=True)
    topics = kd.QueryTopics(make_dot(seed=3), count=2)
    found = topics(many["query"].unique())
    assert set(found) == {0, 1}
    assert (found == topics(many["query"].unique())).all()
    stage = kd.Stage(losses.MarginMSE(in_batch=True), steps=4, batch_size=8, topics=topics)
    assert kd.Distiller(make_dot(), make_dot(seed=4), strategy=stage, dropout=0, verbose=False).fit(many).history_["loss"].notna().all()


def test_a_stage_mines_its_candidates_with_the_student_as_it_then_is(frame, qrels, tmp_path, monkeypatch) -> None:
    pytest.importorskip("faiss")
    corpus, topics = frame[["docno", "text"]].drop_duplicates("docno").to_dict("records"), frame[["qid", "query"]].drop_duplicates()
    mined, seen = kd.Mined(corpus, topics, qrels, depth=6), []
    first = kd.Stage(losses.MarginMSE(), steps=4, learning_rate=3e-3, name="given")
    second = kd.Stage(losses.MarginMSE(), steps=4, learning_rate=3e-3, name="mined", candidates=lambda student: seen.append(student.fingerprint()) or mined(student))
    settings = {"strategy": (first, second), "dropout": 0, "verbose": False, "validate_every": 2}
    whole = kd.Distiller(make_dot(), make_cross(seed=4), **settings).fit(frame, qrels)
    assert whole.history_["stage"].tolist() == ["given", "given", "mined", "mined"]
    assert seen[0] not in (make_dot().fingerprint(), whole.student_.fingerprint())
    found = mined(whole.student_)
    assert found.groupby("qid").size().between(6, 7).all()
    assert found.merge(qrels, on=["qid", "docno"]).groupby("qid").size().tolist() == [1] * 6
    assert (found["text"] == found["docno"].map({d["docno"]: d["text"] for d in corpus})).all()
    assert kd.Mined(lambda: iter(corpus), topics, depth=2, first=1)(whole.student_)["rank"].tolist() == [1, 2] * 6
    # killed in the mined stage, it goes on with the same candidates
    with monkeypatch.context() as patch:
        stopping_after(patch, 7)
        with pytest.raises(Stop):
            kd.Distiller(make_dot(), make_cross(seed=4), checkpoint=tmp_path / "kept", **settings).fit(frame, qrels)
    another = replace(second, candidates=lambda student: mined(student).head(3))
    with pytest.raises(CheckpointError, match="holds another training"):
        kd.Distiller(make_dot(), make_cross(seed=4), checkpoint=tmp_path / "kept", **{**settings, "strategy": (first, another)}).fit(frame, qrels)
    anew = replace(second, candidates=lambda student: seen.append(student.fingerprint()) or mined(student))     # as in a new process: the same function elsewhere in memory
    again = kd.Distiller(make_dot(), make_cross(seed=4), checkpoint=tmp_path / "kept", **{**settings, "strategy": (first, anew)}).fit(frame, qrels)
    assert len(seen) == 2
    assert again.student_.fingerprint() == whole.student_.fingerprint()
    with pytest.raises(DataError, match="retrieves with the student, which must be a BertDot or a ColBERT"):
        mined(make_cross())
    with pytest.raises(DataError, match="retrieves with the student, which must be a BertDot or a ColBERT"):
        mined(make_tk())
    numbers = {d["docno"]: i for i, d in enumerate(corpus)}
    numbered = kd.Mined([{**d, "docno": numbers[d["docno"]]} for d in corpus], topics, qrels.assign(docno=qrels["docno"].map(numbers)), depth=6)(whole.student_)
    assert numbered["docno"].tolist() == [str(numbers[d]) for d in found["docno"]]
    with pytest.raises(DataError, match="can be read only once"):
        kd.Mined(iter(corpus), topics)
    with pytest.raises(ValueError, match="has both corpus= and candidates="):
        kd.Stage(losses.Hidden(), corpus=["a"], candidates=mined)


def test_tas_b_has_another_teacher_for_each_signal(frame, qrels) -> None:
    strategy = strategies.tas_b(lambda queries: np.arange(len(queries)) % 2).with_settings(steps=30, learning_rate=3e-3, batch_size=3)
    pairwise, by_batch = make_cross(seed=4), make_colbert(seed=5)
    distil = kd.Distiller(make_dot(), kd.BySignal(by_batch, scores=pairwise), strategy=strategy, dropout=0, verbose=False).fit(frame, qrels)
    history = distil.history_
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    assert history[["MarginMSE(in_batch=False)", "MarginMSE(in_batch='anchored')"]].notna().all(axis=None)
    with pytest.raises(DataError, match=r"needs scores of queries with their own texts, which these data do not hold: pass scores= to BySignal\(.*scores=the data\), or pairs of"):
        kd.Distiller(make_dot(), kd.BySignal(by_batch), strategy=strategy, verbose=False).fit(frame, qrels)
    with pytest.raises(MissingSignal, match="needs the signal 'in_batch' from the teacher"):
        kd.Distiller(make_dot(), kd.BySignal(make_cross(), scores=pairwise), strategy=strategy, verbose=False).fit(frame, qrels)
    with pytest.raises(TeacherError, match="is no single teacher"):
        kd.Distiller(make_dot(), kd.Ensemble([kd.BySignal(by_batch, scores=pairwise), pairwise]), loss=losses.MarginMSE(), verbose=False).fit(frame, qrels)


def test_one_stage_of_a_strategy_can_be_changed() -> None:
    changed = strategies.tinybert().with_settings("prediction", epochs=2, learning_rate=1e-3)
    assert [(s.epochs, s.learning_rate) for s in changed.stages] == [(9, 5e-5), (2, 1e-3)]
    with pytest.raises(ValueError, match=r"tinybert has the stages \['layers', 'prediction'\], not 'predictions'"):
        strategies.tinybert().with_settings("predictions", epochs=2)


# ---------------------------------------------------------------------- trained


@pytest.mark.parametrize("make", [strategies.tinybert, lambda c, e: strategies.tinybert(c, e, hard_label=True), lambda c, e: strategies.tinybert(c, e, one_step=True),
                                  strategies.simplified_tinybert, strategies.lm_distill, strategies.lm_distill_fine_tune, strategies.lm_distill_ranker_distill,
                                  lambda c, e: strategies.ranker_distill(), lambda c, e: strategies.standard_kd(0.2, 5.0)],
                         ids=["tinybert", "+ hard label", "+ one step", "simplified", "lm_distill", "lm + fine-tune", "lm + ranker", "ranker_distill", "standard_kd"])
def test_every_strategy_trains(make) -> None:
    teacher, encoder, student = make_cross(seed=1, layers=4, classes=2), make_dot(seed=2, layers=4), make_cross(seed=3, classes=2)
    strategy = make(Lines(), encoder).with_settings(steps=6, learning_rate=3e-3, batch_size=6, dropout=0, length=32)
    distiller = kd.Distiller(student, teacher, strategy=strategy, validate_every=2, verbose=False).fit(FRAME, QRELS, FRAME, QRELS)
    history = distiller.history_
    for stage in strategy.stages:
        of_stage = history[history["stage"] == stage.name]
        assert of_stage["step"].tolist() == [2, 4, 6]
        assert of_stage["loss"].iloc[-1] < of_stage["loss"].iloc[0]
        assert ("nDCG@10" in of_stage and of_stage["nDCG@10"].notna().all()) == bool(stage.loss.needs.student & {"scores"})
    assert distiller.student_ != student


def test_a_stage_that_trains_no_scores_keeps_its_last_weights_and_projections_go_on() -> None:
    teacher, student = make_cross(seed=1, layers=4, classes=2), make_cross(seed=3, classes=2)
    hidden = kd.Stage(losses.Hidden(), steps=4, learning_rate=1e-2, batch_size=6, warmup=0, schedule="constant", name="first")
    both = kd.Strategy("mine", (hidden, kd.Stage(losses.Hidden() + losses.SoftLabels(), steps=1, learning_rate=1e-9, batch_size=6, name="second")))
    history = kd.Distiller(student, teacher, strategy=both, dropout=0, validate_every=1, verbose=False).fit(FRAME, QRELS, FRAME, QRELS).history_
    first = history[history["stage"] == "first"]
    assert history["Hidden()"].iloc[-1] < first["Hidden()"].iloc[-1] * 1.05 < first["Hidden()"].iloc[0]
    assert first.get("nDCG@10", first["loss"] * np.nan).isna().all()


def test_projections_survive_a_stop_between_stages(tmp_path, monkeypatch) -> None:
    teacher, student = make_cross(seed=1, layers=4), make_cross(seed=3)
    teacher = teacher.clone()
    strategy = kd.Strategy("mine", tuple(kd.Stage(losses.Hidden(projection="shared") + losses.Embedding(projection="shared"), steps=4, learning_rate=3e-3, batch_size=6, name=n, corpus=c, length=32)
                                         for n, c in (("a", Lines()), ("b", None), ("c", Lines()))))
    whole = kd.Distiller(student, teacher, strategy=strategy, validate_every=2, verbose=False).fit(FRAME)
    run, calls = kd.training.Training.run, itertools.count()

    def stopping(self, *args):
        if next(calls) == 3:        # in the middle of the second stage
            raise RuntimeError("killed")
        return run(self, *args)

    monkeypatch.setattr(kd.training.Training, "run", stopping)
    settings = {"strategy": strategy, "validate_every": 2, "verbose": False, "checkpoint": tmp_path / "ck"}
    with pytest.raises(RuntimeError, match="killed"):
        kd.Distiller(student, teacher, **settings).fit(FRAME)
    monkeypatch.undo()
    monkeypatch.setattr("pyterrier.io.pyterrier_home", lambda: str(tmp_path))
    again = kd.Distiller(student, teacher, **settings).fit(FRAME)
    assert again.student_.fingerprint() == whole.student_.fingerprint()
    assert again.history_["loss"].tolist() == whole.history_["loss"].tolist()


# ---------------------------------------------------------------------- corpora


def test_a_corpus_is_read_in_windows_that_lose_nothing() -> None:
    corpus = Corpus(Lines(), make_tokenizer(), 20)
    windows = list(corpus.windows())
    assert " ".join(windows).split() == " ".join(d["text"] for d in documents()).split()
    assert max(len(make_tokenizer()(w)["input_ids"]) - 2 for w in windows) <= 20
    assert corpus.steps(8) == -(-len(windows) // 8)
    for epoch in (0, 1):
        batches = list(corpus.batches(8, None, (0, epoch)))
        assert len(batches) == corpus.steps(8)
        assert sorted(t for b in batches for t in b.texts) == sorted(windows)
    assert [b.texts for b in corpus.batches(8, None, (0, 0))] != [b.texts for b in corpus.batches(8, None, (0, 1))]
    assert [b.texts for b in corpus.batches(8, None, (0, 0), skip=3)] == [b.texts for b in corpus.batches(8, None, (0, 0))][3:]
    parts = [list(corpus.batches(8, None, (0, 0), part=(k, 2))) for k in range(2)]
    assert sorted(t for part in parts for b in part for t in b.texts) == sorted(windows)


def test_an_endless_corpus_needs_steps_and_is_read_no_further() -> None:
    read = []

    def endless():
        for i in itertools.count():
            read.append(i)
            yield " ".join(itertools.islice(itertools.cycle(WORDS), i % 20, i % 20 + 10))

    stage = kd.Stage(losses.Hidden(), steps=5, batch_size=4, corpus=endless, length=32, teacher=make_dot(seed=1, layers=4))
    history = kd.Distiller(make_cross(), strategy=stage, verbose=False).fit().history_
    assert history["step"].iloc[-1] == 5
    assert max(read) < 2000


@pytest.mark.parametrize("corpus", [[d["text"] for d in documents()], documents(), Lines(), tuple(documents())], ids=["texts", "dicts", "function", "tuple"])
def test_every_kind_of_corpus(corpus) -> None:
    distiller = kd.Distiller(make_cross(), strategy=strategies.lm_distill(corpus, make_cross(seed=1, layers=4)).with_settings(length=32), steps=2, batch_size=4, verbose=False)
    assert distiller.fit(None).history_["Hidden()"].notna().all()


def test_corpora_that_cannot_be_used_are_refused_at_once() -> None:
    def fit(corpus, length=32):
        strategy = strategies.lm_distill(corpus, make_dot(seed=1, layers=4)).with_settings(length=length)
        return kd.Distiller(make_cross(), strategy=strategy, steps=3, batch_size=4, verbose=False).fit()
    with pytest.raises(DataError, match=r"generator can be read only once: pass a list, .* such as dataset.get_corpus_iter without its brackets"):
        fit(d for d in documents())
    with pytest.raises(DataError, match="The corpus holds no text"):
        fit([])
    with pytest.raises(DataError, match=r"The corpus's text 1 has no text in \['text'\]: it has \['body'\]"):
        fit([{"body": "tea"}])
    with pytest.raises(DataError, match=r"The corpus's text 1 is of type int"):
        fit([3])
    for one in ("a text", pd.DataFrame(documents()), {"text": "tea"}):
        with pytest.raises(DataError, match="A corpus is many texts, but this is one"):
            fit(one)
    with pytest.raises(DataError, match=r"The corpus's text 2 is no valid Unicode"):
        fit(["tea", "tea \ud800 jam"])
    with pytest.raises(DataError, match="The corpus holds no text with words"):
        fit([" ", "\n"])
    once = iter(documents())
    with pytest.raises(DataError, match="it must start anew each time that it is read"):
        fit(lambda: once)
    reads = itertools.count()
    with pytest.raises(DataError, match=r"ended after \d+ of the \d+ steps of an epoch that were counted before"):
        kd.Distiller(make_cross(), strategy=strategies.lm_distill(lambda: documents(40 if next(reads) < 3 else 8), make_dot(seed=1, layers=4)).with_settings(length=32), batch_size=4, epochs=1, verbose=False).fit()
    with pytest.raises(ValueError, match=r"reads texts of 128 tokens, .* at most 64: pass length="):
        fit(documents(), length=None)
    with pytest.raises(DataError, match=r"The stage 'layers' trains on candidates: pass a frame"):
        kd.Distiller(make_cross(classes=2), make_cross(seed=1, layers=4, classes=2), strategy=strategies.tinybert(documents(), make_dot(layers=4)).with_settings(length=32, steps=1), verbose=False).fit()
    with pytest.raises(ValueError, match=r"needs \['scores'\], which texts without queries do not have: only losses over layers"):
        kd.Stage(losses.MarginMSE(), corpus=documents())
    with pytest.raises(LayerMismatch, match="has none to compare"):
        kd.Distiller(make_cross(), FRAME, strategy=kd.Stage(losses.Hidden(), corpus=documents(), length=32), verbose=False).fit()


def test_a_corpus_that_fails_midway_names_the_place_and_keeps_what_was_trained(tmp_path) -> None:
    lines = Lines()
    stage = kd.Stage(losses.Hidden(), epochs=3, batch_size=4, learning_rate=3e-3, corpus=lines, length=32, teacher=make_dot(seed=1, layers=4))
    whole = kd.Distiller(make_cross(), strategy=stage, validate_every=50, verbose=False).fit()
    distiller = kd.Distiller(make_cross(), strategy=stage, validate_every=50, checkpoint=tmp_path / "ck", verbose=False)
    counted = lines.started

    class Failing(Lines):
        def __call__(self):
            self.fail_at = 30 if self.started == counted - 1 else None     # in the last epoch
            return super().__call__()

    failing = Failing()
    bad = kd.Distiller(make_cross(), strategy=kd.Stage(**{**vars(stage), "corpus": failing}), validate_every=50, checkpoint=tmp_path / "ck", verbose=False)
    with pytest.raises(DataError, match=r"The corpus failed after its text 30: OSError: the disk is gone. What was trained before that is kept"):
        bad.fit()
    assert bad.student_ is not None
    assert bad.history_["step"].iloc[-1] > 10
    again = distiller.fit()
    assert again.history_["step"].iloc[-1] == whole.history_["step"].iloc[-1]
    assert again.student_.fingerprint() == whole.student_.fingerprint()


# ---------------------------------------------------------------------- shapes and costs


def bert_base() -> kd.CrossEncoder:
    """A random model of BERT-base's shape, with a small vocabulary."""
    config = transformers.BertConfig(vocab_size=len(make_tokenizer()), num_labels=2)
    return kd.CrossEncoder(transformers.BertForSequenceClassification(config), make_tokenizer(), device="cpu")


def test_costs_are_those_of_the_paper() -> None:
    with torch.device("meta"):
        sizes = {"L12_H768": (22.9, 109), "L6_H768": (11.5, 67), "L3_H384": (1.5, 17)}
        for shape, (gflops, millions) in sizes.items():
            layers, hidden = parsed_shape(shape)
            model = transformers.BertForSequenceClassification(transformers.BertConfig(num_hidden_layers=layers, hidden_size=hidden, intermediate_size=4 * hidden, num_labels=2))
            cost = kd.rankers.cost.cost_of(model, model.bert, 256)
            assert cost.gflops == pytest.approx(gflops, abs=0.06)
            assert cost.parameters / 1e6 == pytest.approx(millions, abs=0.6)
    assert str(make_cross().cost(64)) == "0.0M parameters, 0.0 GFLOPs for 64 tokens"
    assert make_dot().cost(64).gflops == make_cross().cost(64).gflops
    assert make_cross().cost(64).layer_parameters == 2 * (4 * 32 * 32 + 2 * 32 * 64)


def test_local_attention_costs_less() -> None:
    def cost(layers: list[str]) -> float:
        config = transformers.ModernBertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, local_attention=8, layer_types=layers, pad_token_id=0)
        model = transformers.ModernBertModel(config)
        return kd.rankers.cost.cost_of(model, model, 64).gflops
    full, local = cost(["full_attention"] * 2), cost(["full_attention", "sliding_attention"])
    assert (full - local) * 1e9 == 2 * 64 * 32 * (64 - 9)


def test_students_of_tinyberts_shapes(tmp_path) -> None:
    teacher = bert_base()
    random = kd.CrossEncoder.tiny_bert("L4_H312", teacher)
    assert (random.encoder.config.num_hidden_layers, random.encoder.config.hidden_size, random.encoder.config.intermediate_size, random.encoder.config.num_attention_heads) == (4, 312, 1200, 12)
    assert random.head_ == "new"
    assert kd.CrossEncoder.tiny_bert("L4_H312", teacher).fingerprint() == random.fingerprint()
    assert kd.CrossEncoder.tiny_bert("L4_H312", teacher, seed=1).fingerprint() != random.fingerprint()
    for init, kept in (("first", [0, 1, 2]), ("strided", [0, 6, 11]), ([1, 5, 9], [1, 5, 9])):
        student = kd.CrossEncoder.tiny_bert("L3_H768", teacher, init)
        for mine, theirs in enumerate(kept):
            assert torch.equal(student.encoder.encoder.layer[mine].output.dense.weight, teacher.encoder.encoder.layer[theirs].output.dense.weight)
    narrow = kd.CrossEncoder.tiny_bert("L3_H384", teacher, "first")
    assert torch.equal(narrow.encoder.encoder.layer[0].attention.self.query.weight[:32, :32], teacher.encoder.encoder.layer[0].attention.self.query.weight[:32, :32])
    assert narrow.max_length == teacher.max_length
    assert np.isfinite(narrow.score(["find tea"], ["tea and jam"])).all()
    random.save(tmp_path / "general")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = kd.CrossEncoder.tiny_bert("L4_H312", teacher, tmp_path / "general")
        assert loaded.fingerprint() == random.fingerprint()
        with pytest.raises(ValueError, match=r"this checkpoint is L4_H312"):
            kd.CrossEncoder.tiny_bert("L3_H384", teacher, str(tmp_path / "general"))
    with pytest.raises(CheckpointError):
        kd.CrossEncoder.tiny_bert("L3_H384", teacher, str(tmp_path / "nothing"))
    for shape, message in (("L3H384", "is no shape: it is written L<layers>_H<hidden size>"), ("L13_H384", "deeper than the teacher's 12"), ("L3_H1000", "must be a multiple of the 12 attention heads")):
        with pytest.raises(ValueError, match=message):
            kd.CrossEncoder.tiny_bert(shape, teacher)
    with pytest.raises(ValueError, match="names 2 teacher layers for 3"):
        kd.CrossEncoder.tiny_bert("L3_H384", teacher, [0, 1])


def test_a_general_tinybert_as_published_is_read(tmp_path) -> None:
    """The layout of TinyBERT's own folders: ``fit_denses`` and heads of pre-training beside the encoder."""
    torch.manual_seed(0)
    model = transformers.BertForPreTraining(make_config(hidden_size=48, num_hidden_layers=3))
    model.fit_denses = torch.nn.ModuleList([torch.nn.Linear(48, 64) for _ in range(4)])
    model.save_pretrained(tmp_path / "general")
    make_tokenizer().save_pretrained(tmp_path / "general")
    teacher = make_cross(layers=4, classes=2)
    with pytest.warns(UserWarning, match="no ranking head"):
        student = kd.CrossEncoder.tiny_bert("L3_H48", teacher, str(tmp_path / "general"))
    assert torch.equal(student.encoder.encoder.layer[2].output.dense.weight, model.bert.encoder.layer[2].output.dense.weight)
    assert (student.head_, student.classes, student.max_length) == ("new", 2, 64)
    distiller = kd.Distiller(student, teacher, strategy=strategies.simplified_tinybert(), steps=2, batch_size=4, verbose=False)
    assert len(distiller.fit(FRAME, QRELS).history_) == 2
