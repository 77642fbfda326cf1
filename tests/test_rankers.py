"""Rankers as PyTerrier re-rankers: rows, order and columns are kept, scores depend on nothing but the pair."""

import contextlib
import copy
import pickle

import numpy as np
import pandas as pd
import pyterrier as pt
import pytest
import torch
import transformers
from conftest import make_colbert, make_config, make_cross, make_dot, make_frame, make_prettr, make_tk, make_tokenizer

import pyterrier_kd as kd
from pyterrier_kd.errors import DataError
from pyterrier_kd.groups import from_frame
from pyterrier_kd.rankers import first_token
from pyterrier_kd.rankers.heads import FirstTokenModel
from pyterrier_kd.sampling import Sampler

MAKERS = [make_cross, make_dot, make_colbert, make_prettr, make_tk]
EVERY = pytest.mark.parametrize("make", MAKERS, ids=["cross", "dot", "colbert", "prettr", "tk"])
WITH_ENCODER = pytest.mark.parametrize("make", MAKERS[:4], ids=["cross", "dot", "colbert", "prettr"])      # of transformers; TK's own tests are in test_tk


class Loader(pt.Transformer):
    """Adds texts by docno, in another order than asked."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.table = frame.drop_duplicates("docno")[["docno", "text"]]

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        return inp.merge(self.table, on="docno").sort_values("docno")


@EVERY
def test_rows_order_columns_and_input_are_kept(make, frame) -> None:
    frame.index = [7] * len(frame)
    before = frame.copy()
    out = make()(frame)
    pd.testing.assert_frame_equal(frame, before)
    assert out.index.is_unique
    columns = [c for c in frame.columns if c not in ("score", "rank")]
    pd.testing.assert_frame_equal(out[columns], frame[columns].reset_index(drop=True))
    assert set(out.columns) == set(frame.columns)
    assert np.isfinite(out["score"]).all()
    for _, rows in out.groupby("qid"):
        assert sorted(rows["rank"]) == list(range(len(rows)))
        assert rows.sort_values("rank")["score"].is_monotonic_decreasing


@EVERY
@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_scores_do_not_depend_on_batch_or_order(make, batch_size, frame) -> None:
    expected = make()(frame).set_index(["qid", "docno"])["score"]
    ranker = make(batch_size=batch_size)
    for sample in (frame, frame.sample(frac=1, random_state=1), frame.head(7), frame.tail(1)):
        found = ranker(sample).set_index(["qid", "docno"])["score"]
        assert np.allclose(found, expected[found.index], rtol=1e-5, atol=1e-5)


@EVERY
def test_a_repeated_row_keeps_its_place_and_score(make, frame) -> None:
    twice = pd.concat([frame.head(3), frame.head(3)])
    out = make()(twice)
    assert len(out) == 6
    assert np.allclose(out["score"][:3], out["score"][3:])


@EVERY
def test_empty_frames_do_not_touch_the_model(make, frame, monkeypatch) -> None:
    ranker = make()
    monkeypatch.setattr(ranker.model, "forward", lambda **k: pytest.fail("the model ran"))
    out = ranker(frame.head(0))
    assert len(out) == 0
    assert {"qid", "query", "docno", "text", "score", "rank", "url"} == set(out.columns)


@EVERY
def test_score_and_transform_agree(make, frame) -> None:
    ranker = make()
    assert np.allclose(ranker.score(frame["query"], frame["text"]), ranker(frame)["score"])
    assert ranker.score([], []).shape == (0,)
    assert not ranker.warm_up().model.training


@EVERY
def test_missing_columns_say_which_are_there(make, frame) -> None:
    with pytest.raises(pt.validate.InputValidationError) as error:
        make()(frame.drop(columns=["text"]))
    name = type(make()).__name__
    assert error.value.args[0] == (
        f"{name} needs the column(s) ['text']; the frame has ['qid', 'query', 'docno', 'score', 'rank', 'url']. Texts are added by "
        "`>> dataset.text_loader()` before this stage or by texts=; another column is read with text_field=.")
    with pytest.raises(pt.validate.InputValidationError, match="needs the column"):
        make()(frame[["qid", "docno", "score"]])


@EVERY
@pytest.mark.parametrize("bad", [None, float("nan"), 3])
def test_missing_texts_say_which_rows(make, bad, frame) -> None:
    frame["text"] = frame["text"].astype(object)
    frame.loc[4, "text"] = bad
    with pytest.raises(DataError) as error:
        make()(frame)
    name = type(make()).__name__
    assert str(error.value) == (f"{name}: 1 of 30 rows have no string in the column 'text' (first: ('q0', 'd4x4')). "
                                "Drop those rows, or fill the column with frame['text'].fillna('').")


@EVERY
def test_an_empty_text_is_a_text(make, frame) -> None:
    frame.loc[0, "text"] = ""
    assert np.isfinite(make()(frame)["score"]).all()


@EVERY
def test_several_fields_are_joined(make, frame) -> None:
    frame["title"] = "apple pear"
    joined = make()(frame.assign(text=frame["title"] + " " + frame["text"]))["score"]
    assert np.allclose(make(text_field=["title", "text"])(frame)["score"], joined)
    other = frame.rename(columns={"text": "body"})
    assert np.allclose(make(text_field="body")(other)["score"], make()(frame)["score"])


@EVERY
def test_a_text_loader_serves_frames_without_texts(make, frame) -> None:
    frame = frame.drop_duplicates("docno")
    bare = frame.drop(columns=["text"])
    out = make(texts=Loader(frame))(bare)
    assert "text" not in out.columns
    assert np.allclose(out["score"], make()(frame)["score"])
    with pytest.raises(DataError, match="1 of 14 rows have no string in the column 'text'"):
        make(texts=Loader(frame.iloc[1:]))(bare.head(14))


@EVERY
def test_prompts_are_put_before_texts(make, frame) -> None:
    plain = make()
    prompted = make(query_prompt="file ", text_prompt="read ")
    changed = frame.assign(query="file " + frame["query"], text="read " + frame["text"])
    assert np.allclose(prompted(frame)["score"], plain(changed)["score"])
    assert prompted != plain


@EVERY
def test_long_texts_are_cut_and_reported_once(make, frame) -> None:
    frame["text"] = frame["text"] + " apple" * 100
    ranker = make()
    with pytest.warns(UserWarning, match="texts are longer than the model takes and were cut") as caught:
        ranker(frame)
        ranker(frame)
    assert sum("were cut" in str(w.message) for w in caught) == 1


def test_a_text_that_is_cut_only_beside_its_query_counts_too() -> None:
    ranker = make_cross(max_length=12)
    with pytest.warns(UserWarning, match="1 of 2 texts are longer than the model takes"):
        ranker.score(["apple tea rice"] * 2, ["bread " * 8, "bread"])


def test_a_query_that_leaves_no_room_is_an_error_before_any_forward(frame, monkeypatch) -> None:
    ranker = make_cross(max_length=16)
    monkeypatch.setattr(ranker.model, "forward", lambda **k: pytest.fail("the model ran"))
    frame.loc[3, "query"] = "apple " * 20
    with pytest.raises(DataError) as error:
        ranker(frame)
    assert str(error.value) == (f"{ranker!r} reads 16 tokens, 3 of them special: 1 of 7 queries (16 tokens the longest) leave no room for a text: "
                                "'apple apple apple apple apple apple apple apple apple app...'. Pass query_length= to cut queries, or a larger max_length=.")


def test_query_length_cuts_queries(frame) -> None:
    frame["query"] = frame["query"] + " apple" * 30
    ranker = make_cross(max_length=32, query_length=4)
    cut = frame.assign(query=[" ".join(q.split()[:4]) for q in frame["query"]])
    assert np.allclose(ranker(frame)["score"], ranker(cut)["score"])


def test_cross_encoder_equals_transformers(frame, cross) -> None:
    tokens = cross.tokenizer(frame["query"].tolist(), frame["text"].tolist(), padding=True, truncation="only_second", max_length=64, return_tensors="pt")
    with torch.no_grad():
        expected = cross.model(**tokens).logits[:, 0].numpy()
    assert np.allclose(cross(frame)["score"], expected, atol=1e-5)


def test_two_classes_score_by_their_log_odds(frame) -> None:
    ranker = make_cross(classes=2)
    tokens = ranker.tokenizer(frame["query"].tolist(), frame["text"].tolist(), padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = ranker.model(**tokens).logits
    assert np.allclose(ranker(frame)["score"], (logits[:, 1] - logits[:, 0]).numpy(), atol=1e-4)


def test_other_numbers_of_classes_are_refused() -> None:
    with pytest.raises(kd.errors.CheckpointError) as error:
        make_cross(classes=3)
    assert str(error.value) == "CrossEncoder takes a head of 1 or 2 classes; BertForSequenceClassification has 3."


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("normalize", [False, True])
def test_bert_dot_equals_transformers(frame, pooling, normalize) -> None:
    ranker = make_dot(pooling=pooling, normalize=normalize, scale=3.0)

    def encode(texts: list[str]) -> torch.Tensor:
        rows = []
        for text in texts:       # one at a time: no padding
            with torch.no_grad():
                hidden = ranker.model.encoder(**ranker.tokenizer(text, return_tensors="pt")).last_hidden_state[0]
            vector = hidden[0] if pooling == "cls" else hidden.mean(0)
            rows.append(vector / vector.norm() if normalize else vector)
        return torch.stack(rows)

    expected = 3.0 * (encode(frame["query"].tolist()) * encode(frame["text"].tolist())).sum(1)
    assert np.allclose(ranker(frame)["score"], expected.numpy(), atol=1e-4)
    with pytest.raises(ValueError, match="is unknown: it is 'cls' or 'mean'"):
        make_dot(pooling="max")


def test_each_distinct_text_and_query_is_encoded_once(frame, monkeypatch) -> None:
    ranker, seen = make_dot(), []
    forward = ranker.model.forward
    monkeypatch.setattr(ranker.model, "forward", lambda **k: seen.append(len(k["input_ids"])) or forward(**k))
    frame["text"] = [f"apple {WORDS}" for WORDS in (["bread", "tea"] * 15)]
    ranker(frame)
    assert sum(seen) == frame["query"].nunique() + 2


def test_bert_dot_reads_the_columns_of_a_bi_encoder(frame, dot) -> None:
    queries = dot(frame[["qid", "query"]].drop_duplicates())
    assert queries["query_vec"].iloc[0].shape == (32,)
    assert queries["query_vec"].iloc[0].dtype == np.float32
    documents = dot(frame[["docno", "text"]])
    assert documents["doc_vec"].iloc[0].shape == (32,)
    expected = dot(frame)["score"]
    vectors = frame.merge(queries[["qid", "query_vec"]], on="qid").assign(doc_vec=documents["doc_vec"].to_numpy())
    for columns in (["query", "doc_vec"], ["query_vec", "text"], ["query_vec", "doc_vec"]):
        out = dot(vectors[["qid", "docno", *columns]])
        assert np.allclose(out["score"], expected, atol=1e-4)
        assert "rank" in out.columns
    assert len(dot(vectors[["qid", "docno", "query_vec", "doc_vec"]].head(0))) == 0
    assert np.allclose(np.stack(dot.query_encoder()(frame)["query_vec"]), np.stack(vectors["query_vec"]), atol=1e-6)
    assert np.allclose(np.stack(dot.doc_encoder()(frame)["doc_vec"]), np.stack(vectors["doc_vec"]), atol=1e-6)
    assert dot.text_scorer() == dot
    assert dot.scorer() is dot.text_scorer()
    assert dot.encode_docs([]).shape == (0, 32)
    assert dot.encode_queries(iter(["apple", "tea"])).shape == (2, 32)


def test_sides_cut_ranks_before_they_encode(dot) -> None:
    assert dot.doc_encoder().fuse_rank_cutoff(5) == pt.RankCutoff(5) >> dot.doc_encoder()
    assert dot.query_encoder().fuse_rank_cutoff(5) is None
    assert dot.doc_encoder() != dot.query_encoder()
    assert hash(dot.doc_encoder()) == hash(make_dot().doc_encoder())
    assert repr(dot.doc_encoder()).endswith(".doc_encoder()")


@EVERY
def test_equality_and_hash_cover_weights_and_settings(make) -> None:
    ranker = make()
    assert ranker == make()
    assert hash(ranker) == hash(make())
    assert ranker != make(seed=1)
    assert ranker != make(text_field="body")
    assert ranker != "a string"
    assert make(batch_size=4) == ranker         # does not change a score
    assert repr(ranker).endswith(f"weights={ranker.fingerprint()[:6]})")
    with torch.no_grad():
        next(ranker.model.parameters()).add_(1)
    assert ranker != make()


@pytest.mark.parametrize("fused", [False, True])
def test_a_fused_optimiser_changes_the_fingerprint_although_torch_does_not_count_its_changes(fused) -> None:
    ranker = make_dot()
    before = ranker.fingerprint()
    optimizer = torch.optim.AdamW(ranker.model.parameters(), fused=fused)
    ranker.model(**ranker.tokenizer("apple", return_tensors="pt")).sum().backward()
    optimizer.step()
    assert ranker.fingerprint() != before


@EVERY
def test_two_text_loaders_that_look_alike_make_two_rankers(make) -> None:
    one, two = pt.apply.generic(lambda f: f.assign(text="apple")), pt.apply.generic(lambda f: f.assign(text="tea"))
    assert repr(one) == repr(two)
    assert make(texts=one) != make(texts=two)
    assert make(texts=one) == make(texts=one)


def test_the_batch_size_is_a_number_for_those_who_read_it() -> None:
    ranker = make_cross()
    assert ranker.batch_size == 1024
    ranker.batch_size = 3
    assert ranker.batch_size == ranker.rows_a_batch == 3


@pytest.mark.parametrize("kind", [kd.CrossEncoder, kd.PreTTR])
def test_a_new_head_on_the_first_token(kind, frame, tmp_path) -> None:
    encoder = make_dot()
    encoder.encoder.save_pretrained(tmp_path / "encoder")
    encoder.tokenizer.save_pretrained(tmp_path / "encoder")
    lengths = {"query_length": 16, "doc_length": 64} if kind is kd.PreTTR else {}
    with pytest.warns(UserWarning, match="new one with random weights"):
        ranker = kind(str(tmp_path / "encoder"), new_head="first_token", device="cpu", **lengths)
    assert ranker.head_ == "new"
    expected = kind(FirstTokenModel(encoder.encoder), encoder.tokenizer, device="cpu", **lengths)
    assert np.allclose(ranker(frame)["score"], expected(frame)["score"], atol=1e-6)
    with pytest.warns(UserWarning, match="new one with random weights"):
        pooled = kind(str(tmp_path / "encoder"), device="cpu", **lengths)
    assert not np.allclose(ranker(frame)["score"], pooled(frame)["score"], atol=1e-3)
    ranker.save(tmp_path / "ranker")
    again = kd.load(tmp_path / "ranker", device="cpu")
    assert again == ranker
    assert np.array_equal(again(frame)["score"], ranker(frame)["score"])
    student = kd.Distiller(ranker, frame.assign(score=range(len(frame))), strategy=kd.strategies.margin_mse(texts=3), steps=30, learning_rate=1e-2, batch_size=4, scores=False, verbose=False)
    history = student.fit(frame).history_["loss"]
    assert history.iloc[-1] < history.iloc[0] / 2
    with pytest.raises(ValueError, match="new_head='linear' is unknown: it is 'pooled' or 'first_token'"):
        kind(str(tmp_path / "encoder"), new_head="linear", device="cpu")
    make_cross().save(tmp_path / "cross")
    with pytest.raises(kd.errors.CheckpointError, match="has a head of its own, and gets no new one"):
        kind(str(tmp_path / "cross"), new_head="first_token", device="cpu")


def test_a_model_object_needs_its_tokenizer() -> None:
    for kind, model in ((kd.CrossEncoder, make_cross().model), (kd.BertDot, make_dot().model)):
        with pytest.raises(ValueError, match=rf"{kind.__name__}\(model, tokenizer\): a model object needs its tokenizer as the second argument."):
            kind(model)


@pytest.mark.parametrize("make", [make_dot], ids=["dot"])
def test_encode_queries_torch_keeps_gradients(make) -> None:
    ranker = make(scale=2.0)
    vectors = ranker.encode_queries_torch(["apple tea", "rice"])
    assert vectors.requires_grad
    assert np.allclose(vectors.detach().numpy(), ranker.encode_queries(["apple tea", "rice"]), atol=1e-6)


@EVERY
def test_copies_are_independent(make, frame) -> None:
    ranker = make()
    expected = ranker(frame)["score"]
    for twin in (ranker.clone(), copy.deepcopy(ranker), pickle.loads(pickle.dumps(ranker))):
        assert twin == ranker
        with torch.no_grad():
            next(twin.model.parameters()).add_(1)
        assert twin != ranker
        assert np.allclose(ranker(frame)["score"], expected)


@EVERY
def test_a_damaged_model_is_an_error_not_a_ranking(make, frame) -> None:
    ranker = make()
    with torch.no_grad():
        next(ranker.model.parameters()).fill_(float("nan"))
    with pytest.raises(DataError, match="30 scores of 30 that are not finite"):
        ranker(frame)


@WITH_ENCODER
def test_bfloat16_is_close_and_float32_the_default(make, frame) -> None:
    exact, rough = make()(frame)["score"], make(dtype="bfloat16")(frame)["score"]
    assert not np.allclose(exact, rough, rtol=1e-6)
    assert np.corrcoef(exact, rough)[0, 1] > 0.99


# ---------------------------------------------------------------------- smaller models


@WITH_ENCODER
@pytest.mark.parametrize(("layers", "kept"), [(2, [0, 5]), (3, [0, 2, 5]), ([1, 4], [1, 4]), (range(2), [0, 1]), (1, [0])])
def test_shrink_keeps_the_layers_that_are_asked_for(make, layers, kept, frame) -> None:
    ranker = make(layers=6)
    small = ranker.shrink(layers)
    inner = (lambda r: r.model.bert) if make is make_cross else (lambda r: r.model.encoder)
    assert inner(small).config.num_hidden_layers == len(kept)
    for i, old in enumerate(kept):
        for (name, new), source in zip(inner(small).encoder.layer[i].state_dict().items(), inner(ranker).encoder.layer[old].state_dict().values(), strict=True):
            assert torch.equal(new, source), name
    assert torch.equal(inner(small).embeddings.word_embeddings.weight, inner(ranker).embeddings.word_embeddings.weight)
    assert small != ranker
    assert np.isfinite(small(frame)["score"]).all()


@WITH_ENCODER
def test_shrink_to_all_layers_is_the_same_ranker(make, frame) -> None:
    ranker = make()
    assert np.allclose(ranker.shrink(2)(frame)["score"], ranker(frame)["score"])
    assert np.allclose(ranker.shrink(hidden=32)(frame)["score"], ranker(frame)["score"])


@WITH_ENCODER
def test_shrink_the_width_keeps_each_heads_first_dimensions(make, frame) -> None:
    ranker = make()
    small = ranker.shrink(layers=1, hidden=16)
    assert np.isfinite(small(frame)["score"]).all()
    inner = (lambda r: r.model.bert) if make is make_cross else (lambda r: r.model.encoder)
    kept = [h * 8 + j for h in range(4) for j in range(4)]
    assert torch.equal(inner(small).encoder.layer[0].attention.self.query.weight, inner(ranker).encoder.layer[0].attention.self.query.weight[kept][:, kept])
    assert inner(small).config.intermediate_size == 32


@WITH_ENCODER
@pytest.mark.parametrize(("settings", "message"), [
    ({"layers": 3}, "shrink(layers=3) of a model with 2 layers: pass 1 to 2, or a list of layers."),
    ({"layers": [0, 2]}, "shrink(layers=[0, 2]) of a model with 2 layers: pass numbers from 0 to 1."),
    ({"layers": []}, "shrink(layers=[]) of a model with 2 layers: pass numbers from 0 to 1."),
    ({"hidden": 18}, "shrink(hidden=18) must be a multiple of the 4 attention heads and at most 32."),
])
def test_shrink_refuses_what_does_not_fit(make, settings, message) -> None:
    with pytest.raises(ValueError) as error:
        make().shrink(**settings)
    assert str(error.value) == message


def test_layers_that_share_weights_cannot_be_shrunk() -> None:
    config = transformers.AlbertConfig(vocab_size=len(make_tokenizer()), embedding_size=16, hidden_size=32, num_attention_heads=4, intermediate_size=64, num_hidden_layers=3)
    ranker = kd.BertDot(transformers.AlbertModel(config), make_tokenizer(), device="cpu")
    with pytest.raises(ValueError, match="do its layers share their weights"):
        ranker.shrink(2)


# ---------------------------------------------------------------------- encoders of other families

SMALL = {"vocab_size": 120, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 4, "intermediate_size": 64, "max_position_embeddings": 80}
FAMILIES = {
    "distilbert": transformers.DistilBertConfig(vocab_size=120, dim=32, n_heads=4, n_layers=4, hidden_dim=64, max_position_embeddings=80),
    "electra": transformers.ElectraConfig(**SMALL, embedding_size=32),
    "electra-narrow": transformers.ElectraConfig(**SMALL, embedding_size=16),
    "roberta": transformers.RobertaConfig(**SMALL, pad_token_id=0, type_vocab_size=1),
    "modernbert": transformers.ModernBertConfig(**SMALL, pad_token_id=0, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3, reference_compile=False),
    "deberta": transformers.DebertaV2Config(**SMALL, type_vocab_size=0, relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=16),
    "mpnet": transformers.MPNetConfig(**SMALL),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_other_encoders_score_shrink_and_save(family, frame, tmp_path) -> None:
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    config = copy.deepcopy(FAMILIES[family])
    config.num_labels = 1
    cross = kd.CrossEncoder(transformers.AutoModelForSequenceClassification.from_config(config), tokenizer, device="cpu")
    dot = kd.BertDot(transformers.AutoModel.from_config(config), tokenizer, device="cpu")
    for ranker in (cross, dot):
        full = ranker(frame)["score"]
        alone = [ranker(frame.iloc[[i]])["score"].iloc[0] for i in range(0, 30, 7)]
        assert np.allclose(full[::7], alone, atol=1e-4)
        small = ranker.shrink(layers=2)
        assert small.model.config.num_hidden_layers == 2 if ranker is cross else small.model.encoder.config.num_hidden_layers == 2
        small.save(tmp_path / family)
        assert np.allclose(kd.load(tmp_path / family, device="cpu")(frame)["score"], small(frame)["score"], atol=1e-5)
        if family not in ("electra-narrow",):
            assert np.isfinite(ranker.shrink(layers=2, hidden=16)(frame)["score"]).all()


@pytest.mark.parametrize("make", [make_cross, make_dot, lambda: make_dot().query_encoder(), lambda: make_dot().doc_encoder(), make_colbert],
                         ids=["cross", "dot", "query", "doc", "colbert"])
def test_pyterriers_own_tests_pass(make) -> None:
    import unittest
    suite = unittest.defaultTestLoader.loadTestsFromTestCase(pt.testing.transformer_test_class(make))
    result = unittest.TestResult()
    suite.run(result)
    assert result.testsRun >= 2
    assert not result.failures, result.failures
    assert not result.errors, result.errors


def test_max_length_is_what_the_model_takes() -> None:
    assert make_cross().max_length == 64
    assert make_cross(max_length=500).max_length == 64
    assert make_dot(doc_length=20).doc_length == 20
    assert make_dot(doc_length=999).doc_length == 64
    model = transformers.BertForSequenceClassification(make_config(num_labels=1, max_position_embeddings=40))
    assert kd.CrossEncoder(model, make_tokenizer(), device="cpu").max_length == 40


def test_wide_frames_are_scored_in_windows(frame, monkeypatch) -> None:
    ranker = make_cross()
    expected = ranker(frame)["score"]
    monkeypatch.setattr(kd.rankers.base.scoring.windows, "__defaults__", (4,))
    assert np.allclose(ranker(frame)["score"], expected, atol=1e-5)
    frame2 = make_frame(queries=3, texts=4)
    assert len(ranker(frame2)) == 12


# ---------------------------------------------------------------------- the last layer for the first token alone


@pytest.mark.parametrize("family", ["bert", "electra", "roberta"])
def test_the_last_layer_for_one_token_changes_no_score_and_no_gradient(family, frame) -> None:
    torch.manual_seed(0)
    config = make_config(num_labels=1) if family == "bert" else copy.deepcopy(FAMILIES[family])
    config.num_labels, config.initializer_range = 1, 0.2
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    tokens = make_tokenizer()(frame["query"].tolist(), frame["text"].tolist(), padding=True, return_tensors="pt")
    tokens = {k: v for k, v in tokens.items() if k != "token_type_ids" or config.type_vocab_size > 1}
    found = []
    for context in (contextlib.nullcontext(), first_token.first_token_only(model.base_model)):
        model.zero_grad()
        with context:
            logits = model(**tokens).logits
            hidden = model.base_model(**tokens).last_hidden_state
        logits.pow(2).sum().backward()
        found.append((logits, hidden, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    (logits, hidden, gradients), (fast, first, fast_gradients) = found
    assert first.shape[1] == 1 < hidden.shape[1]
    assert torch.allclose(fast, logits, atol=1e-5)
    assert torch.allclose(first[:, 0], hidden[:, 0], atol=1e-5)
    assert set(gradients) == set(fast_gradients)
    for name, gradient in gradients.items():
        assert torch.allclose(fast_gradients[name], gradient, rtol=1e-3, atol=1e-4), name
    assert "forward" not in vars(first_token.last_layer(model.base_model))       # and the model is as it was


def test_it_is_used_where_the_first_token_is_read_and_nowhere_else(frame, monkeypatch) -> None:
    calls = []
    original = first_token.forward_first
    monkeypatch.setattr(first_token, "forward_first", lambda *a, **k: calls.append(1) or original(*a, **k))
    for ranker, used in ((make_cross(), True), (make_dot(pooling="cls"), True), (make_dot(pooling="mean"), False)):
        calls.clear()
        ranker(frame)
        assert bool(calls) == used
    config = FAMILIES["distilbert"]
    assert first_token.last_layer(transformers.AutoModel.from_config(config)) is None


@EVERY
def test_training_sees_the_scores_that_ranking_gives(make, frame) -> None:
    ranker = make()
    frame = frame.drop(index=[1, 8])                    # groups of several sizes, so that the batch has padding
    groups = from_frame(frame, frame["text"].tolist(), None, "test")
    batch = next(groups.batches(6, Sampler(texts=8, positives=0), (0,)))
    assert not batch.mask.all()
    with torch.no_grad():
        scores = ranker.signals(batch, ranker.tokens(groups.queries, groups.texts)).scores
    pairs = [(groups.queries[q], groups.texts[t], scores[i, j]) for i, q in enumerate(batch.queries.tolist()) for j, t in enumerate(batch.texts[i].tolist()) if batch.mask[i, j]]
    queries, texts, found = zip(*pairs, strict=True)
    assert len(pairs) > 20
    assert np.allclose(found, ranker.score(queries, texts), rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------- what cannot be scored, and who is equal


@EVERY
def test_pairs_that_are_none_are_refused(make) -> None:
    ranker = make()
    with pytest.raises(ValueError, match="score: 3 queries for 1 texts; pairs have one of each"):
        ranker.score(["tea", "jam", "egg"], ["fig"])
    with pytest.raises(DataError, match=r"1 of 2 texts are no strings \(first: number 1, None\)"):
        ranker.score(["tea", "tea"], ["jam", None])
    with pytest.raises(DataError, match=r"1 of 2 queries are no strings \(first: number 0, 3\)"):
        ranker.score([3, "tea"], ["jam", "egg"])
    with pytest.raises(DataError, match=r"1 of 2 texts hold half of a surrogate pair, which is no character: 'jam \\ud83d'. Replace it"):
        ranker.score(["tea", "tea"], ["jam \ud83d", "fig"])


def test_sides_that_are_none_are_refused() -> None:
    for ranker in (make_dot(), make_colbert()):
        with pytest.raises(DataError, match=r"1 of 2 texts are no strings"):
            ranker.encode_docs(["jam", None])


@EVERY
def test_categories_are_strings(make) -> None:
    frame, ranker = make_frame(), make()
    expected = ranker(frame)["score"]
    assert np.array_equal(ranker(frame.astype({"query": "category", "text": "category"}))["score"], expected)


def test_rankers_that_score_differently_are_not_equal() -> None:
    assert make_tk(heads=5) != make_tk(heads=2)
    one = make_dot()
    other = kd.BertDot(transformers.BertModel(make_config(num_attention_heads=2)), make_tokenizer(), device="cpu")
    other.model.load_state_dict(one.model.state_dict())
    assert other != one
    words = transformers.BertTokenizerFast(vocab={w: i for i, w in enumerate(reversed(list(make_tokenizer().get_vocab())))}, model_max_length=64)
    assert kd.BertDot(one.encoder, words, device="cpu") != one
    assert make_dot(dtype="float32") == one
    assert make_dot(dtype="bfloat16") != one
    activated = make_colbert()
    changed = activated.clone()
    changed.model.steps[0].activation_name = "Tanh"
    assert changed != activated


@pytest.mark.parametrize(("make", "settings"), [(make_dot, {"doc_length": 2}), (make_colbert, {"query_length": 3}), (make_prettr, {"query_length": 2})])
def test_lengths_that_leave_no_token_are_refused(make, settings) -> None:
    with pytest.raises(ValueError, match=r"_length=\d\) leaves no token for a (query|text) beside its \d special ones"):
        make(**settings)(make_frame())


def test_a_copy_of_a_frozen_ranker_has_vectors_of_its_own() -> None:
    frozen = make_dot().frozen(torch.device("cpu"))
    assert "represent" in vars(frozen)
    for copied in (frozen.clone(), frozen.shrink(1)):
        assert "represent" not in vars(copied)
