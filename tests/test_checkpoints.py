"""Folders: what is saved comes back, foreign ones are read exactly, damaged ones name what is wrong."""

import contextlib
import errno
import json
import shutil
import subprocess
import sys

import numpy as np
import pyterrier as pt
import pytest
import torch
import transformers
from conftest import make_config, make_cross, make_dot, make_tokenizer
from safetensors.torch import load_file, save_file

import pyterrier_kd as kd
from pyterrier_kd.errors import CheckpointError
from pyterrier_kd.formats import checkpoints
from pyterrier_kd.formats.checkpoints import weights_fingerprint

BOTH = pytest.mark.parametrize("make", [make_cross, make_dot], ids=["cross", "dot"])


def edit(folder, change) -> None:
    """Changes the weights of a folder."""
    weights = load_file(folder / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})


@BOTH
def test_save_and_load(make, frame, tmp_path) -> None:
    settings = {"text_field": "text", "query_prompt": "file ", "text_prompt": "read "}
    settings |= {"max_length": 20, "query_length": 8} if make is make_cross else {"doc_length": 20, "query_length": 9, "scale": 2.5, "pooling": "mean", "normalize": True}
    ranker = make(**settings)
    assert ranker.save(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    for loaded in (type(ranker)(str(tmp_path / "a" / "b"), device="cpu"), type(ranker).load(tmp_path / "a" / "b", device="cpu"), kd.load(tmp_path / "a" / "b", device="cpu"),
                   pt.Artifact.load(str(tmp_path / "a" / "b"), device="cpu")):
        assert loaded == ranker
        assert loaded.settings() == ranker.settings()
        assert np.allclose(loaded(frame.head(5))["score"], ranker(frame.head(5))["score"], atol=1e-6)


@BOTH
def test_a_saved_folder_is_transformers_own(make, tmp_path) -> None:
    ranker = make()
    ranker.save(tmp_path / "m")
    model = transformers.AutoModel.from_pretrained(tmp_path / "m")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "m")("apple tea")["input_ids"] == ranker.tokenizer("apple tea")["input_ids"]
    inner = ranker.model.bert if make is make_cross else ranker.model.encoder
    assert torch.equal(model.embeddings.word_embeddings.weight, inner.embeddings.word_embeddings.weight)
    assert json.loads((tmp_path / "m" / "pt_meta.json").read_text())["type"] == "neural_ranker"


@BOTH
def test_settings_given_at_loading_win(make, tmp_path) -> None:
    make(text_prompt="read ").save(tmp_path / "m")
    assert kd.load(tmp_path / "m", text_prompt="", text_field="body", device="cpu").settings()["text_field"] == "body"
    assert kd.load(tmp_path / "m", text_prompt="cook ", device="cpu").text_prompt == "cook "


def test_a_folder_of_another_kind(tmp_path) -> None:
    make_cross().save(tmp_path / "c")
    with pytest.raises(CheckpointError) as error:
        kd.BertDot(str(tmp_path / "c"))
    assert str(error.value) == f"{str(tmp_path / 'c')!r} holds a CrossEncoder, not a BertDot: load it with kd.load({str(tmp_path / 'c')!r})."
    transformers.BertForMaskedLM(make_config()).save_pretrained(tmp_path / "bare")
    make_tokenizer().save_pretrained(tmp_path / "bare")
    with pytest.raises(CheckpointError, match=r"does not say which ranker it is: load it with one of kd.CrossEncoder\(...\), kd.BertDot\(...\)."):
        kd.load(tmp_path / "bare")


# ---------------------------------------------------------------------- strict loading


@BOTH
def test_missing_and_unexpected_weights_are_named(make, tmp_path) -> None:
    ranker = make()
    key = ("bert." if make is make_cross else "") + "encoder.layer.1.output.dense.weight"
    for change, words in ((lambda w: {k: v for k, v in w.items() if k != key}, rf"missing weights '{key}'; unexpected weights none"),
                          (lambda w: {**w, "extra.weight": torch.ones(2)}, "missing weights none; unexpected weights 'extra.weight'")):
        ranker.save(tmp_path / "m")
        edit(tmp_path / "m", change)
        with pytest.raises(CheckpointError, match=words):
            kd.load(tmp_path / "m")


def test_a_head_that_is_half_there_is_an_error(tmp_path) -> None:
    make_cross().save(tmp_path / "m")
    edit(tmp_path / "m", lambda w: {k: v for k, v in w.items() if k != "classifier.bias"})
    with pytest.raises(CheckpointError, match=r"missing weights 'classifier.bias'; unexpected weights none. Load it as the kind of model that it was saved as."):
        kd.CrossEncoder(str(tmp_path / "m"))


@BOTH
def test_a_folder_that_is_cut_short(make, tmp_path) -> None:
    ranker = make()
    ranker.save(tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="cannot be loaded as a model .found: .*'model.safetensors'"):
        kd.load(tmp_path / "m")
    weights.unlink()
    with pytest.raises(CheckpointError, match="cannot be loaded as a model"):
        kd.load(tmp_path / "m")
    ranker.save(tmp_path / "m")
    (tmp_path / "m" / "pt_meta.json").write_text("{cut")
    with pytest.raises(CheckpointError, match=r"pt_meta.json is not valid JSON"):
        kd.load(tmp_path / "m")


@BOTH
def test_a_folder_without_a_tokenizer(make, tmp_path) -> None:
    make().save(tmp_path / "m")
    for file in (tmp_path / "m").glob("tokenizer*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="has no tokenizer that can be loaded"):
        kd.load(tmp_path / "m")


def test_no_such_folder(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="cannot be loaded as a model"):
        kd.CrossEncoder(str(tmp_path / "nowhere"))


def test_an_encoder_without_a_head_gets_a_new_one_and_says_so(frame, tmp_path) -> None:
    make_tokenizer().save_pretrained(tmp_path / "m")
    for model in (transformers.BertModel(make_config()), transformers.BertForPreTraining(make_config()), transformers.BertForMaskedLM(make_config())):
        model.save_pretrained(tmp_path / "m")
        with pytest.warns(UserWarning, match=r"has no ranking head: CrossEncoder made a new one with random weights; train it before use."):
            ranker = kd.CrossEncoder(str(tmp_path / "m"), device="cpu")
        assert ranker.head_ == "new"
        assert ranker.classes == 1
        assert torch.equal(ranker.model.bert.encoder.layer[1].output.dense.weight, model.base_model.encoder.layer[1].output.dense.weight)
        dot = kd.BertDot(str(tmp_path / "m"), device="cpu")
        assert torch.equal(dot.model.encoder.encoder.layer[1].output.dense.weight, model.base_model.encoder.layer[1].output.dense.weight)
    with pytest.warns(UserWarning, match="has no ranking head"):
        assert kd.CrossEncoder(str(tmp_path / "m"), classes=2, device="cpu").classes == 2
    make_cross().save(tmp_path / "c")
    assert kd.CrossEncoder(str(tmp_path / "c")).head_ == "loaded"
    with pytest.raises(CheckpointError, match=r"has a head of 1 class\(es\), not classes=2"):
        kd.CrossEncoder(str(tmp_path / "c"), classes=2)


BASES = {
    "roberta": lambda **s: transformers.RobertaConfig(**s), "modernbert": lambda **s: transformers.ModernBertConfig(**s, reference_compile=False),
    "deberta": lambda **s: transformers.DebertaV2Config(**s), "distilbert": lambda **s: transformers.DistilBertConfig(vocab_size=120, dim=32, n_heads=4, n_layers=2, hidden_dim=64),
    "electra": lambda **s: transformers.ElectraConfig(**s, embedding_size=32), "albert": lambda **s: transformers.AlbertConfig(**s, embedding_size=16), "mpnet": lambda **s: transformers.MPNetConfig(**s),
}


@pytest.mark.parametrize("auto", [transformers.AutoModel, transformers.AutoModelForMaskedLM, transformers.AutoModelForPreTraining], ids=["base", "mlm", "pretraining"])
@pytest.mark.parametrize("family", BASES)
def test_pretrained_encoders_of_every_family_load(family, auto, frame, tmp_path) -> None:
    sizes = {"vocab_size": 120, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64, "max_position_embeddings": 80, "pad_token_id": 0}
    config = BASES[family](**sizes)
    try:
        model = auto.from_config(config)
    except ValueError:
        pytest.skip(f"transformers has no {auto.__name__} for {family}")
    model.save_pretrained(tmp_path / "m")
    make_tokenizer().save_pretrained(tmp_path / "m")
    with pytest.warns(UserWarning, match="has no ranking head"):
        cross = kd.CrossEncoder(str(tmp_path / "m"), device="cpu")
    dot = kd.BertDot(str(tmp_path / "m"), device="cpu")
    source = {k: v for k, v in model.base_model.state_dict().items() if "pooler" not in k}
    for loaded in (cross.model.base_model, dot.model.encoder):
        weights = loaded.state_dict()
        assert all(torch.equal(weights[k], v) for k, v in source.items())
    assert np.isfinite(cross(frame)["score"]).all()
    assert np.isfinite(dot(frame)["score"]).all()


def test_what_tinybert_left_in_its_folders_is_known(tmp_path) -> None:
    transformers.BertForPreTraining(make_config()).save_pretrained(tmp_path / "m")
    make_tokenizer().save_pretrained(tmp_path / "m")
    edit(tmp_path / "m", lambda w: {**w, "fit_denses.0.weight": torch.ones(2), "fit_dense.bias": torch.ones(2)})
    assert kd.BertDot(str(tmp_path / "m"), device="cpu").name


def test_a_repository_that_cannot_be_asked_is_not_taken_for_a_plain_encoder(monkeypatch) -> None:
    monkeypatch.setattr(checkpoints, "cached_file", lambda *a, **k: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(CheckpointError, match=r"it cannot be known whether it has a modules.json, which says how its scores are made \(no network\)"):
        checkpoints.read_json("somebody/model", "modules.json", certain=True)
    assert checkpoints.read_json("somebody/model", "pt_meta.json") == {}


def test_half_precision_checkpoints_are_computed_in_float32(frame, tmp_path) -> None:
    model = transformers.BertForSequenceClassification(make_config(num_labels=1)).half()
    model.save_pretrained(tmp_path / "m")
    make_tokenizer().save_pretrained(tmp_path / "m")
    ranker = kd.CrossEncoder(str(tmp_path / "m"), device="cpu")
    assert {p.dtype for p in ranker.model.parameters()} == {torch.float32}


def test_pickled_weights_are_read_without_running_code(tmp_path) -> None:
    ranker = make_cross()
    ranker.save(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    torch.save(ranker.model.state_dict(), tmp_path / "m" / "pytorch_model.bin")
    assert kd.load(tmp_path / "m", device="cpu").fingerprint() == ranker.fingerprint()

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "pwned"), "w"))

    torch.save({"bert": Evil()}, tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(CheckpointError):
        kd.load(tmp_path / "m")
    assert not (tmp_path / "pwned").exists()


def test_remote_code_is_never_run(tmp_path) -> None:
    make_cross().save(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"}}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    (tmp_path / "m" / "evil.py").write_text(f"open({str(tmp_path / 'pwned')!r}, 'w')")
    with pytest.raises(CheckpointError):
        kd.CrossEncoder(str(tmp_path / "m"))
    assert not (tmp_path / "pwned").exists()


# ---------------------------------------------------------------------- writing


@BOTH
def test_a_save_that_fails_leaves_the_old_folder(make, tmp_path, monkeypatch) -> None:
    ranker = make()
    ranker.save(tmp_path / "m")
    before = ranker.fingerprint()
    with torch.no_grad():
        next(ranker.model.parameters()).add_(1)
    monkeypatch.setattr(type(ranker.tokenizer), "save_pretrained", lambda *a, **k: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError) as error:
        ranker.save(tmp_path / "m")
    assert str(error.value) == f"[Errno {errno.ENOSPC}] could not write {tmp_path / 'm'}: No space left on device; what was there before is unchanged"
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "pyterrier") == ["m"]
    monkeypatch.undo()
    assert kd.load(tmp_path / "m", device="cpu").fingerprint() == before


@pytest.mark.skipif(shutil.which("mount") is None or subprocess.run(["id", "-u"], capture_output=True, text=True, check=False).stdout.strip() != "0", reason="needs a root user to mount a small disk")
def test_a_disk_that_is_really_full(tmp_path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not mount")
    try:
        small, large = make_cross(), make_cross(layers=90)
        small.save(disk / "m")
        with pytest.raises(OSError, match="could not write"):
            large.save(disk / "m")
        assert kd.load(disk / "m", device="cpu") == small
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_folder_with_other_files_is_not_replaced(tmp_path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"is a folder with other files \('thesis.tex'\), which would be lost: pass a new folder."):
        make_cross().save(tmp_path / "project")
    with pytest.raises(FileExistsError, match=r"is a file, which would be lost: pass a new folder."):
        make_cross().save(tmp_path / "project" / "thesis.tex")
    assert (tmp_path / "project" / "thesis.tex").read_text() == "years of work"


def test_loading_stays_a_function_after_pyterrier_loaded_an_artifact(tmp_path) -> None:
    make_cross().save(tmp_path / "m")
    code = f"import pyterrier as pt, pyterrier_kd as kd; a = pt.Artifact.load({str(tmp_path / 'm')!r}); b = kd.load({str(tmp_path / 'm')!r}); assert a == b"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_fingerprints_tell_weights_apart() -> None:
    a, b = make_cross(0).model, make_cross(1).model
    assert weights_fingerprint(a) != weights_fingerprint(b)
    assert weights_fingerprint(a) == weights_fingerprint(make_cross(0).model)
    assert weights_fingerprint(a.bfloat16()) != weights_fingerprint(make_cross(0).model)


def test_quiet_loading_puts_everything_back() -> None:
    from transformers.utils import logging
    before = (logging.get_verbosity(), logging.is_progress_bar_enabled())
    with checkpoints.quiet_loading():
        pass
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


# ---------------------------------------------------------------------- sentence-transformers


@pytest.fixture
def encoder(tmp_path) -> str:
    torch.manual_seed(1)
    transformers.BertModel(make_config()).save_pretrained(tmp_path / "encoder")
    make_tokenizer().save_pretrained(tmp_path / "encoder")
    return str(tmp_path / "encoder")


TEXTS = ["apple bread", "tea", "how to find a list in the file where quince olive nut", ""]


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("modules", ["", "normalize", "dense", "dense normalize", "normalize dense dense"])
def test_bi_encoders_of_sentence_transformers_are_read_exactly(encoder, tmp_path, pooling, modules) -> None:
    st = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer import modules as m
    parts = [m.Transformer(encoder), m.Pooling(32, pooling_mode=pooling)]
    width = 32
    for kind in modules.split():
        if kind == "normalize":
            parts.append(m.Normalize())
        else:
            parts.append(m.Dense(width, width // 2, activation_function=torch.nn.Tanh()))
            width //= 2
    model = st.SentenceTransformer(modules=parts, device="cpu", prompts={"query": "find ", "document": "read "})
    model.max_seq_length = 12
    model.save_pretrained(str(tmp_path / "st"))
    said = contextlib.nullcontext() if modules.endswith("normalize") else pytest.warns(UserWarning, match="by 'cosine' and does not normalise them.*Pass normalize=True")
    with said:
        ranker = kd.load(tmp_path / "st", device="cpu")
    assert isinstance(ranker, kd.BertDot)
    assert ranker.pooling == pooling
    assert ranker.doc_length == 12
    assert np.allclose(ranker.encode_queries(TEXTS), model.encode_query(TEXTS), atol=1e-6)
    assert np.allclose(ranker.encode_docs(TEXTS), model.encode_document(TEXTS), atol=1e-6)
    for saved in (ranker, ranker.shrink(1)):
        saved.save(tmp_path / "ours")
        theirs = st.SentenceTransformer(str(tmp_path / "ours"), device="cpu")
        assert np.allclose(theirs.encode_document(TEXTS), saved.encode_docs(TEXTS), atol=1e-6)
        assert np.allclose(theirs.encode_query(TEXTS), saved.encode_queries(TEXTS), atol=1e-6)
        kd.load(tmp_path / "ours", device="cpu")        # written with its similarity: nothing to warn of


def test_a_folder_that_compares_by_the_cosine(encoder, frame, tmp_path) -> None:
    st = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer import modules as m
    model = st.SentenceTransformer(modules=[m.Transformer(encoder), m.Pooling(32)], device="cpu")
    model.save_pretrained(str(tmp_path / "st"))
    cosines = [float(model.similarity(model.encode_query(q), model.encode_document(t))) for q, t in zip(frame["query"], frame["text"], strict=True)]
    assert np.allclose(kd.load(tmp_path / "st", normalize=True, device="cpu")(frame)["score"], cosines, atol=1e-6)
    assert not np.allclose(kd.load(tmp_path / "st", normalize=False, device="cpu")(frame)["score"], cosines, atol=1e-2)


def test_a_narrower_student_with_a_dense_layer(encoder, tmp_path) -> None:
    st = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer import modules as m
    st.SentenceTransformer(modules=[m.Transformer(encoder), m.Pooling(32), m.Dense(32, 8)], device="cpu").save_pretrained(str(tmp_path / "st"))
    small = kd.BertDot(str(tmp_path / "st"), normalize=False, device="cpu").shrink(layers=1, hidden=16)
    assert small.encode_docs(TEXTS).shape == (4, 8)
    small.save(tmp_path / "small")
    assert np.allclose(kd.load(tmp_path / "small", device="cpu").encode_docs(TEXTS), small.encode_docs(TEXTS), atol=1e-6)


def test_cross_encoders_of_sentence_transformers_give_raw_logits(encoder, frame, tmp_path) -> None:
    st = pytest.importorskip("sentence_transformers")
    model = st.CrossEncoder(encoder, num_labels=1, device="cpu")
    model.save_pretrained(str(tmp_path / "ce"))
    ranker = kd.load(tmp_path / "ce", device="cpu")
    assert isinstance(ranker, kd.CrossEncoder)
    pairs = list(zip(frame["query"], frame["text"], strict=True))
    assert np.allclose(ranker(frame)["score"], model.predict(pairs, activation_fn=torch.nn.Identity()), atol=1e-5)
    assert not np.allclose(ranker(frame)["score"], model.predict(pairs, activation_fn=torch.nn.Sigmoid()), atol=1e-3)
    ranker.save(tmp_path / "ours")
    theirs = st.CrossEncoder(str(tmp_path / "ours"), device="cpu")
    assert np.allclose(theirs.predict(pairs), ranker(frame)["score"], atol=1e-5)


@pytest.mark.parametrize(("file", "content", "message"), [
    ("modules.json", [{"type": "sentence_transformers.models.Transformer", "path": ""}, {"type": "x.LSTM", "path": "1"}], "has the sentence-transformers module 'LSTM', which BertDot does not have"),
    ("modules.json", [{"type": "sentence_transformers.models.Transformer", "path": ""}], "has no Pooling module, so its texts have no single vector: it is not a BertDot."),
    ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, r"pools by \['max_tokens'\] \(include_prompt=True\); BertDot pools by 'cls' or 'mean', prompt included."),
    ("1_Pooling/config.json", {"pooling_mode": "mean", "include_prompt": False}, r"\(include_prompt=False\)"),
])
def test_modules_that_a_bert_dot_does_not_have(tmp_path, file, content, message) -> None:
    make_dot().save(tmp_path / "m")
    (tmp_path / "m" / "pt_meta.json").unlink()
    (tmp_path / "m" / file).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        kd.BertDot(str(tmp_path / "m"))


def test_a_default_prompt_serves_both_sides(tmp_path) -> None:
    make_dot().save(tmp_path / "m")
    (tmp_path / "m" / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"x": "find "}, "default_prompt_name": "x"}))
    ranker = kd.BertDot(str(tmp_path / "m"), device="cpu")
    assert (ranker.query_prompt, ranker.text_prompt) == ("find ", "find ")


def test_a_missing_extra_says_the_pip_line() -> None:
    from pyterrier_kd.errors import require_extra
    with pytest.raises(ImportError) as error:
        require_extra("no_such_package", "dense", "BertDot.sim_fn")
    assert str(error.value) == "BertDot.sim_fn needs the package 'no_such_package', which is not installed: pip install 'pyterrier-kd[dense]'"
    assert sys.modules.get("no_such_package") is None
