"""Published checkpoints of bare weights: each format from random weights, scores against transformers alone; the golden values of the real ones (hub)."""

import argparse
import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from conftest import make_tokenizer

import pyterrier_kd as kd
from pyterrier_kd.errors import CheckpointError

QUERY = "what is the transformers library"
FIRST = ("We are very happy to show you the \U0001f917 Transformers library for pre-trained language models. We are helping the community work together towards the goal of "
         "advancing NLP \U0001f525.")
SECOND = "Hmm I don't like this new movie about transformers that i got from my local library. Those transformers are robots?"


class Secret:
    """What a file of weights does not hold."""


def distilbert() -> transformers.DistilBertModel:
    torch.manual_seed(1)
    return transformers.DistilBertModel(transformers.DistilBertConfig(vocab_size=120, dim=128, n_layers=4, n_heads=2, hidden_dim=64, initializer_range=0.1, max_position_embeddings=64)).eval()


def published(folder: Path, weights: dict, config: dict) -> Path:
    make_tokenizer().save_pretrained(folder)
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def read(encoder: transformers.PreTrainedModel, ids: list[int], **more: object) -> torch.Tensor:
    with torch.no_grad():
        return encoder(input_ids=torch.tensor([ids]), **more).last_hidden_state[0]


def test_bert_cat(frame: pd.DataFrame, tmp_path: Path) -> None:
    encoder, head, tokenizer = distilbert(), torch.nn.Linear(128, 1), make_tokenizer()
    weights = {**{f"bert_model.{k}": v for k, v in encoder.state_dict().items()}, **{f"_classification_layer.{k}": v for k, v in head.state_dict().items()}}
    folder = published(tmp_path, weights, {"model_type": "BERT_Cat", "architectures": ["BERT_Cat"], "bert_model": "distilbert-base-uncased", "trainable": True})
    ranker = kd.load(folder, device="cpu")
    assert isinstance(ranker, kd.CrossEncoder)
    expected = [float(head(read(encoder, tokenizer(q, t)["input_ids"])[0])) for q, t in zip(frame["query"], frame["text"], strict=True)]
    assert np.allclose(ranker(frame)["score"], expected, atol=1e-4)
    ranker.save(tmp_path / "again")
    assert np.allclose(kd.load(tmp_path / "again", device="cpu")(frame)["score"], expected, atol=1e-4)
    torch.save({**weights, "bert_model.more": torch.zeros(1)}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="does not fit DistilBertModel: missing weights none; unexpected weights 'more'"):
        kd.load(folder)
    torch.save({k: v for k, v in weights.items() if k != "_classification_layer.bias"}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"has beside its encoder the weights \['_classification_layer.weight'\]; \['_classification_layer.bias', '_classification_layer.weight'\] are needed"):
        kd.load(folder)
    (folder / "pytorch_model.bin").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        kd.load(folder)


def test_colbert(frame: pd.DataFrame, tmp_path: Path) -> None:
    encoder, dense, tokenizer = distilbert(), torch.nn.Linear(128, 128), make_tokenizer()
    weights = {**{f"bert_model.{k}": v for k, v in encoder.state_dict().items()}, **{f"compressor.{k}": v for k, v in dense.state_dict().items()}}
    ranker = kd.load(published(tmp_path, weights, {"model_type": "ColBERT", "bert_model": "distilbert-base-uncased", "compression_dim": 128, "return_vecs": False}), device="cpu")
    assert isinstance(ranker, kd.ColBERT)
    assert (ranker.expansion, ranker.attend_expansion, ranker.normalize, ranker.query_marker) == (8, True, False, "")
    expected = []
    for q, t in zip(frame["query"], frame["text"], strict=True):
        query = dense(read(encoder, tokenizer(q)["input_ids"] + [tokenizer.mask_token_id] * 8))
        expected.append(float((query @ dense(read(encoder, tokenizer(t)["input_ids"])).T).amax(1).sum()))
    assert np.allclose(ranker(frame)["score"], expected, rtol=1e-4)
    ranker.save(tmp_path / "again")
    assert np.allclose(kd.load(tmp_path / "again", device="cpu")(frame)["score"], expected, rtol=1e-4)
    with pytest.raises(CheckpointError, match="holds a ColBERT: load it with kd.ColBERT or kd.load"):
        kd.CrossEncoder(tmp_path)


def test_prettr(frame: pd.DataFrame, tmp_path: Path) -> None:
    encoder, head, tokenizer = distilbert(), torch.nn.Linear(128, 1, bias=False), make_tokenizer()
    weights = {**encoder.state_dict(), "_classification_layer.weight": head.weight}
    ranker = kd.load(published(tmp_path, weights, {**encoder.config.to_dict(), "architectures": ["BERT_Cat_PreTTR"]}), device="cpu")
    assert isinstance(ranker, kd.PreTTR)
    assert (ranker.join, ranker.expansion, ranker.offset) == (3, 8, 38)
    scores = ranker(frame.assign(text=frame["text"].str.split().str[:5].str.join(" ")))["score"]
    row = frame.iloc[0]
    q = tokenizer(row["query"])["input_ids"] + [tokenizer.mask_token_id] * 8
    d = tokenizer(" ".join(row["text"].split()[:5]))["input_ids"][1:]
    apart = torch.zeros(len(q) + len(d), dtype=torch.bool)
    apart[len(q):] = True
    with torch.no_grad():
        hidden = encoder.embeddings(torch.tensor([q + d]), position_ids=torch.tensor([[*range(len(q)), *range(38, 38 + len(d))]]))
        for number, layer in enumerate(encoder.transformer.layer):
            hidden = layer(hidden, (apart[:, None] == apart[None, :])[None, None] if number < 3 else None)
        assert float(head(hidden[0, 0])) == pytest.approx(scores[0], abs=1e-4)
    told = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**told, "join_layer_idx": 2}))
    assert kd.load(tmp_path, device="cpu").join == 2
    assert kd.PreTTR(tmp_path, join=1, device="cpu").join == 1


@pytest.mark.parametrize("names", ["torch", "tensorflow"])
@pytest.mark.parametrize("file", ["bert_config.json", "config.json"])
def test_folders_of_tinyberts_code(names: str, file: str, frame: pd.DataFrame, tmp_path: Path) -> None:
    torch.manual_seed(3)
    config = transformers.BertConfig(vocab_size=len(make_tokenizer()), hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96, max_position_embeddings=64,
                                     initializer_range=0.2)
    model = transformers.BertForSequenceClassification(config).eval()
    weights = {**model.state_dict(), "fit_dense.weight": torch.zeros(64, 48), "fit_dense.bias": torch.zeros(64)}
    if names == "tensorflow":
        weights = {k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): v for k, v in weights.items()}
    torch.save(weights, tmp_path / "pytorch_model.bin")
    told = {key: getattr(config, key) for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings",
                                                  "hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "type_vocab_size")}
    (tmp_path / file).write_text(json.dumps({**told, "pre_trained": "", "training": ""}))
    (tmp_path / "vocab.txt").write_text("\n".join(sorted(make_tokenizer().get_vocab(), key=make_tokenizer().get_vocab().get)))
    ranker = kd.load(tmp_path, device="cpu")
    assert isinstance(ranker, kd.CrossEncoder)
    assert (ranker.classes, ranker.head_, len(ranker.tokenizer)) == (2, "loaded", len(make_tokenizer()))
    with torch.no_grad():
        logits = [model(**make_tokenizer()(q, t, return_tensors="pt")).logits[0] for q, t in zip(frame["query"], frame["text"], strict=True)]
    assert np.allclose(ranker(frame)["score"], [float(a[1] - a[0]) for a in logits], atol=1e-5)
    torch.save({k: v for k, v in weights.items() if "classifier" not in k}, tmp_path / "pytorch_model.bin")         # a general one
    with pytest.warns(UserWarning, match="no ranking head"):
        assert kd.CrossEncoder(tmp_path, classes=2, device="cpu").head_ == "new"
    torch.save({k: v for k, v in weights.items() if "layer.1.output.dense" not in k}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="missing weights 'bert.encoder.layer.1.output.dense"):
        kd.load(tmp_path, device="cpu")


def test_plain_encoders_are_not_taken_for_any_of_them(tmp_path: Path) -> None:
    distilbert().save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="is an encoder that does not say how a text becomes one vector: kd.load takes the first token's"):
        ranker = kd.load(tmp_path, device="cpu")
    assert isinstance(ranker, kd.BertDot)
    assert (ranker.pooling, ranker.normalize) == ("cls", False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kd.load(tmp_path, pooling="mean", device="cpu").pooling == "mean"
    transformers.GPT2Model(transformers.GPT2Config(vocab_size=120, n_embd=32, n_layer=1, n_head=2)).save_pretrained(tmp_path / "causal")
    with pytest.raises(CheckpointError, match="does not say which ranker it is"):        # its first token's vector knows nothing of the others
        kd.load(tmp_path / "causal")
    config = transformers.DistilBertConfig.from_pretrained(tmp_path)
    transformers.DistilBertForMaskedLM(config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="does not say which ranker it is"):
        kd.load(tmp_path)


@pytest.mark.parametrize("half", [False, True])
def test_dnn_files(half: bool, frame: pd.DataFrame, tmp_path: Path) -> None:
    torch.manual_seed(2)
    tokenizer = transformers.BertTokenizerFast(vocab={w: i for i, w in enumerate([*make_tokenizer().get_vocab(), "[unused0]", "[unused1]"])}, model_max_length=64)
    encoder = transformers.BertModel(transformers.BertConfig(vocab_size=len(tokenizer), hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
                                                            max_position_embeddings=64, initializer_range=0.1)).eval()
    linear = torch.nn.Linear(128, 16, bias=False)
    weights = {**{f"module.bert.{k}": v for k, v in encoder.state_dict().items()}, "module.bert.embeddings.position_ids": torch.arange(64)[None], "module.linear.weight": linear.weight.data}
    weights = {k: v.half() if half and v.is_floating_point() else v for k, v in weights.items()}
    torch.save({"epoch": 0, "batch": 7, "model_state_dict": weights, "optimizer_state_dict": {}, "arguments": argparse.Namespace(dim=16)}, tmp_path / "colbert.dnn")
    ranker = kd.ColBERT(tmp_path / "colbert.dnn", tokenizer, device="cpu")
    assert (ranker.width, ranker.query_length, ranker.query_marker) == (16, 32, "[unused0]")

    def vectors(text: str, marker: str, masks: bool) -> torch.Tensor:
        ids = tokenizer(text)["input_ids"]
        ids.insert(1, tokenizer.convert_tokens_to_ids(marker))
        added = 32 - len(ids) if masks else 0
        hidden = read(encoder, ids + [tokenizer.mask_token_id] * added, attention_mask=torch.tensor([[1] * len(ids) + [0] * added]))
        return torch.nn.functional.normalize(linear(hidden), dim=-1)

    expected = [float((vectors(q, "[unused0]", True) @ vectors(t, "[unused1]", False).T).amax(1).sum()) for q, t in zip(frame["query"], frame["text"], strict=True)]
    assert np.allclose(ranker(frame)["score"], expected, atol=2e-2 if half else 1e-4)
    told = argparse.Namespace(dim=16, similarity="cosine", query_maxlen=24, doc_maxlen=40, mask_punctuation=True)
    torch.save({"model_state_dict": weights, "arguments": told}, tmp_path / "told.dnn")
    ranker = kd.ColBERT(tmp_path / "told.dnn", tokenizer, device="cpu")
    assert (ranker.query_length, ranker.doc_length, "." in ranker.skip) == (24, 40, True)
    torch.save({"model_state_dict": weights, "arguments": {"mask_punctuation": False, "model": "/a/folder/elsewhere"}}, tmp_path / "told.dnn")
    assert kd.ColBERT(tmp_path / "told.dnn", tokenizer, preset="v2", device="cpu").skip == ()
    with pytest.raises(CheckpointError, match=r"'/a/folder/elsewhere' has no tokenizer that can be loaded: .* It is that of '.*told.dnn': pass tokenizer="):
        kd.load(tmp_path / "told.dnn")
    torch.save({"model_state_dict": weights, "arguments": {"similarity": "l2"}}, tmp_path / "l2.dnn")
    with pytest.raises(CheckpointError, match="compares by 'l2'; of colbert's files, ColBERT reads those that compare by cosine"):
        kd.load(tmp_path / "l2.dnn")
    torch.save({"model_state_dict": {k: v for k, v in weights.items() if "linear" not in k}}, tmp_path / "none.dnn")
    with pytest.raises(CheckpointError, match="has no linear.weight, the projection of a ColBERT"):
        kd.load(tmp_path / "none.dnn")

    torch.save({"model_state_dict": weights, "more": Secret}, tmp_path / "objects.dnn")
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        kd.load(tmp_path / "objects.dnn")


@pytest.mark.hub
@pytest.mark.parametrize(("name", "kind", "first", "second"), [
    ("sebastian-hofstaetter/distilbert-cat-margin_mse-T2-msmarco", kd.CrossEncoder, 5.899686, 2.280338),
    ("sebastian-hofstaetter/distilbert-dot-margin_mse-T2-msmarco", kd.BertDot, 108.828568, 99.586525),
    ("sebastian-hofstaetter/colbert-distilbert-margin_mse-T2-msmarco", kd.ColBERT, 106.463821, 99.997032),
    ("sebastian-hofstaetter/prettr-distilbert-split_at_3-margin_mse-T2-msmarco", kd.PreTTR, 5.672976, 1.376568)])
def test_golden_values(name: str, kind: type, first: float, second: float) -> None:
    # PreTTR's text positions begin behind the padded query of a batch in the published code: here the query is 7 tokens and 8 masks long
    ranker = kind(name, device="cpu", **({"query_length": 7} if kind is kd.PreTTR else {}))
    assert ranker.score([QUERY, QUERY], [FIRST, SECOND]) == pytest.approx([first, second], abs=1e-3)
