"""PreTTR: its scores by one pass with a block-diagonal mask, its join, compression, families, folders and stores."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from conftest import make_config, make_cross, make_frame, make_prettr, make_qrels, make_tokenizer

import pyterrier_kd as kd
from pyterrier_kd import losses
from pyterrier_kd.errors import CheckpointError, MissingSignal
from pyterrier_kd.rankers.heads import FirstTokenModel, logits_of, scores_of

SMALL = {"vocab_size": 120, "num_hidden_layers": 4, "num_attention_heads": 4, "num_labels": 1, "initializer_range": 0.2}
FAMILIES = {
    "bert": lambda: transformers.BertForSequenceClassification(make_config(num_labels=1, num_hidden_layers=4)),
    "distilbert": lambda: transformers.DistilBertForSequenceClassification(transformers.DistilBertConfig(vocab_size=120, dim=32, n_layers=4, n_heads=4, hidden_dim=64, num_labels=1, initializer_range=0.2, max_position_embeddings=64)),
    "electra": lambda: transformers.ElectraForSequenceClassification(transformers.ElectraConfig(**SMALL, embedding_size=16, hidden_size=32, intermediate_size=64, max_position_embeddings=64)),
    "roberta": lambda: transformers.RobertaForSequenceClassification(transformers.RobertaConfig(**SMALL, hidden_size=32, intermediate_size=64, max_position_embeddings=70, pad_token_id=0)),
    "first token": lambda: FirstTokenModel(transformers.DistilBertModel(transformers.DistilBertConfig(vocab_size=120, dim=32, n_layers=4, n_heads=4, hidden_dim=64, initializer_range=0.2, max_position_embeddings=64)), bias=False),
}


def one_pass(ranker: kd.PreTTR, query: str, text: str) -> float:
    """One row through all layers, with a mask that keeps query and text apart below the join: what PreTTR is by definition."""
    tokenizer, encoder = ranker.tokenizer, ranker.encoder
    q = [tokenizer.cls_token_id, *tokenizer(query, add_special_tokens=False)["input_ids"], tokenizer.sep_token_id, *[tokenizer.mask_token_id] * ranker.expansion]
    d = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.sep_token_id]
    base = 1 if "roberta" in encoder.config.model_type else 0
    positions = [*range(base, base + len(q)), *range(base + ranker.offset, base + ranker.offset + len(d))]
    inputs = {"input_ids": torch.tensor([q + d]), "position_ids": torch.tensor([positions])}
    if encoder.config.model_type != "distilbert":
        inputs["token_type_ids"] = torch.tensor([[0] * len(q) + [1] * len(d)])
    side = torch.tensor([0] * len(q) + [1] * len(d))
    apart, whole = (side[:, None] == side[None, :])[None, None], torch.ones(1, 1, len(side), len(side), dtype=torch.bool)
    encoder.set_attn_implementation("sdpa")
    with torch.no_grad():
        hidden = encoder.embeddings(**inputs)
        if hasattr(encoder, "embeddings_project"):
            hidden = encoder.embeddings_project(hidden)
        layers = encoder.transformer.layer if hasattr(encoder, "transformer") else encoder.encoder.layer
        for number, layer in enumerate(layers):
            hidden = layer(hidden, apart if number < ranker.join else whole)
        return float(scores_of(logits_of(ranker.model.classifier, hidden)))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("join", [0, 2, 3])
def test_scores_are_those_of_one_pass_with_a_block_diagonal_mask(family: str, join: int, frame: pd.DataFrame) -> None:
    torch.manual_seed(2)
    ranker = kd.PreTTR(FAMILIES[family]().eval(), make_tokenizer(), join=join, query_length=12, expansion=3, device="cpu")
    expected = [one_pass(ranker, q, t) for q, t in zip(frame["query"], frame["text"], strict=True)]
    assert np.allclose(ranker(frame)["score"], expected, rtol=1e-5, atol=1e-5)
    assert np.ptp(expected) > 1e-3


def test_joined_at_layer_0_it_is_the_cross_encoder_given_the_same_positions_and_segments() -> None:
    # queries that fill their length end where texts begin: then positions are those of the cross-encoder as well
    ranker = make_prettr(join=0, query_length=6)
    frame = pd.DataFrame({"qid": "1", "query": "how to find tea", "docno": ["a", "b"], "text": ["tea jam", "what is the apple"]})
    cross = kd.CrossEncoder(ranker.model.classifier, make_tokenizer(), device="cpu")
    assert np.allclose(ranker(frame)["score"], cross(frame)["score"], rtol=1e-5, atol=1e-5)
    assert not np.allclose(make_prettr(join=1, query_length=6)(frame)["score"], cross(frame)["score"], atol=1e-3)


@pytest.mark.parametrize("settings", [{}, {"join": 0}, {"compression": 8}, {"expansion": 4}], ids=repr)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 1e-2), ("int8", 5e-2)])
def test_from_a_store_of_states(settings: dict, dtype: str, tolerance: float, frame: pd.DataFrame, tmp_path: Path) -> None:
    ranker = make_prettr(**settings)
    store = (ranker.doc_encoder() >> kd.DocumentStore(tmp_path / "store", dtype=dtype)).index(frame[["docno", "text"]].drop_duplicates("docno").to_dict("records"))
    expected = ranker(frame)["score"]
    assert np.allclose(store.scorer(ranker)(frame.drop(columns="text"))["score"], expected, rtol=tolerance, atol=tolerance * np.ptp(expected))
    assert store.facts["width"] == (8 if "compression" in settings else 32)


@pytest.mark.parametrize("settings", [{}, {"join": 0, "expansion": 2}, {"compression": 8, "join": 1}], ids=repr)
def test_a_saved_folder_is_the_same_ranker(settings: dict, frame: pd.DataFrame, tmp_path: Path) -> None:
    ranker = make_prettr(**settings)
    ranker.save(tmp_path / "prettr")
    again = kd.load(tmp_path / "prettr", device="cpu")
    assert again == ranker
    assert again.settings() == ranker.settings()
    assert np.allclose(again(frame)["score"], ranker(frame)["score"], rtol=1e-6, atol=1e-6)
    if "compression" in settings:
        (tmp_path / "prettr" / "compression.safetensors").unlink()
        with pytest.raises(CheckpointError, match="compression.safetensors has the weights"):
            kd.load(tmp_path / "prettr")


def test_heads_on_the_first_token_are_kept_in_folders(frame: pd.DataFrame, tmp_path: Path) -> None:
    torch.manual_seed(5)
    ranker = kd.PreTTR(FAMILIES["first token"]().eval(), make_tokenizer(), query_length=12, device="cpu")
    ranker.save(tmp_path / "prettr")
    assert np.allclose(kd.load(tmp_path / "prettr", device="cpu")(frame)["score"], ranker(frame)["score"], rtol=1e-6, atol=1e-6)
    cross = kd.CrossEncoder(FirstTokenModel(transformers.BertModel(make_config())).eval(), make_tokenizer(), device="cpu")
    cross.save(tmp_path / "cross")
    again = kd.load(tmp_path / "cross", device="cpu")
    assert (again, again.classes) == (cross, 1)
    assert np.allclose(again(frame)["score"], cross(frame)["score"], rtol=1e-6, atol=1e-6)
    small = cross.shrink(layers=1, hidden=16)
    assert small(frame)["score"].notna().all()


def test_it_is_made_of_a_trained_cross_encoder(frame: pd.DataFrame, tmp_path: Path) -> None:
    cross = make_cross(seed=3, layers=4, text_prompt="the ")
    cross.save(tmp_path / "cross")
    student = kd.PreTTR(str(tmp_path / "cross"), query_length=12, device="cpu")
    assert (student.join, student.head_, student.text_prompt, student.offset) == (2, "loaded", "the ", 12)
    distil = kd.Distiller(student, cross, loss=losses.MarginMSE(), steps=30, learning_rate=2e-3, dropout=0, verbose=False).fit(frame, make_qrels(frame))
    assert distil.history_["loss"].iloc[-1] < distil.history_["loss"].iloc[0]


def test_students_of_fewer_layers_keep_their_join(frame: pd.DataFrame) -> None:
    ranker = make_prettr(layers=4, join=2)
    assert [ranker.shrink(layers=kept).join for kept in ([0, 1, 2], [0, 3], [0, 1], 4)] == [2, 1, 1, 2]
    assert ranker.shrink(layers=2, hidden=16)(frame)["score"].notna().all()
    with pytest.raises(ValueError, match=r"shrink\(hidden=16\): the compression of .* was learned for 32 dimensions"):
        make_prettr(compression=8).shrink(hidden=16)


def test_compression_learns_to_change_no_attention(frame: pd.DataFrame) -> None:
    plain = make_prettr(seed=4, layers=4, join=2)
    student = kd.PreTTR(plain.clone().model.classifier, make_tokenizer(), join=2, compression=16, query_length=12, device="cpu")
    distil = kd.Distiller(student, plain, strategy=kd.strategies.prettr_compression(2, 4), steps=80, learning_rate=3e-3, batch_size=8, dropout=0, verbose=False).fit(frame)
    before, after = (np.abs(r(frame)["score"] - plain(frame)["score"]).mean() for r in (student, distil.student_))
    assert after < before
    assert distil.history_["loss"].iloc[-1] < distil.history_["loss"].iloc[0] / 2
    assert all(torch.equal(p, q) for (name, p), (_, q) in zip(distil.student_.model.named_parameters(), student.model.named_parameters(), strict=True) if name.startswith("classifier."))


def test_what_is_refused(frame: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match=r"PreTTR\(join=2\) of a model with 2 layers: pass 0 to 1"):
        make_prettr(join=2)
    with pytest.raises(ValueError, match=r"PreTTR\(query_length=63, expansion=0\) leaves 1 of the model's 64 tokens to a text"):
        make_prettr(query_length=63)
    modern = transformers.ModernBertForSequenceClassification(transformers.ModernBertConfig(vocab_size=120, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, num_labels=1, pad_token_id=0))
    with pytest.raises(CheckpointError, match="PreTTR splits the layers of Bert, DistilBert, Electra, Roberta, XLMRoberta, Camembert; this is a ModernBertModel"):
        kd.PreTTR(modern, make_tokenizer())
    with pytest.raises(MissingSignal, match=r"The layers \[0\] of PreTTR\(.*\) read query and text apart: losses over layers see those from join=1 on"):
        kd.Distiller(make_prettr(), make_prettr(seed=1), loss=losses.Attention(), steps=1, verbose=False).fit(frame)
    layered = losses.Attention([(1, 1)]) + losses.Hidden([(1, 1)])
    history = kd.Distiller(make_prettr(), make_prettr(seed=1), loss=layered, steps=20, learning_rate=3e-3, dropout=0, verbose=False).fit(frame).history_
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]


def test_heads_that_are_none_are_refused_and_new_compressions_are_said(tmp_path: Path, frame: pd.DataFrame) -> None:
    with pytest.raises(CheckpointError, match="PreTTR takes a head of 1 or 2 classes; BertForSequenceClassification has 3"):
        kd.PreTTR(transformers.BertForSequenceClassification(make_config(num_labels=3)), make_tokenizer())
    with pytest.raises(CheckpointError, match="The head of a BertModel is not known"):
        kd.PreTTR(transformers.BertModel(make_config()), make_tokenizer())
    make_cross().save(tmp_path / "cross")
    with pytest.warns(UserWarning, match="has no compression: PreTTR made a new one with random weights"):
        first = kd.PreTTR(str(tmp_path / "cross"), compression=8, query_length=12, device="cpu")
    assert first.head_ == "new"
    with pytest.warns(UserWarning, match="has no compression"):
        assert kd.PreTTR(str(tmp_path / "cross"), compression=8, query_length=12, device="cpu") == first
    make_prettr(compression=8).save(tmp_path / "prettr")
    with pytest.raises(ValueError, match=r"PreTTR\(compression=4\): .* has learned one to 8 dimensions"):
        kd.PreTTR(str(tmp_path / "prettr"), compression=4)


def test_texts_are_cut_and_counted() -> None:
    ranker = make_prettr(doc_length=8)
    with pytest.warns(UserWarning, match="1 of 1 texts are longer than the model takes"):
        ranker.score(["tea"], ["tea " * 30])
    frame = make_frame()
    assert (kd.passages.split(ranker) >> ranker >> kd.passages.max_passage())(frame)["score"].notna().all()
