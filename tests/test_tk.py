"""TK: kernels and positions by plain loops, word embeddings from files and encoders, folders."""

import gzip
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_cross, make_dot, make_qrels, make_tk, make_tokenizer
from safetensors.torch import load_file, save_file

import pyterrier_kd as kd
from pyterrier_kd import losses
from pyterrier_kd.errors import CheckpointError
from pyterrier_kd.rankers.interactions import MEANS
from pyterrier_kd.rankers.tk import positions


def slow_score(ranker: kd.TK, query: np.ndarray, text: np.ndarray) -> float:
    """Kernel pooling by plain loops over vectors of norm 1."""
    kernels = ranker.model.interaction
    weights = kernels.log_weights.weight[0].tolist()
    logs, means = [0.0] * len(MEANS), [0.0] * len(MEANS)
    for q in query.astype(np.float64):
        for k, mean in enumerate(MEANS):
            count = sum(math.exp(-(float(np.dot(q, t)) - mean) ** 2 / (2 * 0.1 ** 2)) for t in text)
            if kernels.variant == "improved":
                logs[k] += math.log(max(count * float(kernels.factors[k]), 1e-10))
            else:
                logs[k] += math.log2(max(count, 1e-10)) * float(kernels.scale)
                means[k] += count / (len(text) + 1) * float(kernels.scale)
    total = sum(w * x for w, x in zip(weights, logs, strict=True))
    if kernels.variant == "improved":
        return total
    own, other = kernels.branches.weight[0].tolist()
    return own * total + other * sum(w * x for w, x in zip(kernels.mean_weights.weight[0].tolist(), means, strict=True))


@pytest.mark.parametrize("variant", ["improved", "paper"])
def test_scores_are_those_of_plain_loops_over_its_own_vectors(variant: str, frame: pd.DataFrame) -> None:
    ranker = make_tk(variant=variant)
    if variant == "improved":
        ranker.model.interaction.factors.data = torch.linspace(0.5, 2, len(MEANS))
    queries, texts = ranker.encode_queries(frame["query"]), ranker.encode_docs(frame["text"])
    expected = [slow_score(ranker, q, t) for q, t in zip(queries, texts, strict=True)]
    assert np.allclose(ranker(frame)["score"], expected, rtol=1e-4, atol=1e-5)
    assert np.ptp(expected) > 1e-3


def test_vectors_are_embeddings_mixed_with_their_context(frame: pd.DataFrame) -> None:
    ranker = make_tk()
    ids = ranker.tokenizer(frame["text"][0], add_special_tokens=False)["input_ids"]
    embedded = ranker.model.embedding.weight[ids]
    ranker.model.mix.data.fill_(1.0)
    assert np.allclose(ranker.encode_docs([frame["text"][0]])[0], torch.nn.functional.normalize(embedded, dim=-1).detach(), atol=1e-6)
    ranker.model.mix.data.fill_(0.0)
    with torch.no_grad():
        context = ranker.model.contextualiser((embedded + positions(len(ids), 20, 500))[None])[0]
    assert np.allclose(ranker.encode_docs([frame["text"][0]])[0], torch.nn.functional.normalize(context, dim=-1), atol=1e-5)
    assert not np.allclose(ranker.encode_queries([frame["text"][0]])[0], ranker.encode_docs([frame["text"][0]])[0], atol=1e-3)      # other positions


def test_positions_are_sinusoids() -> None:
    found = positions(3, 7, 500)
    assert found.shape == (3, 7)
    for row in range(3):
        for wave in range(3):
            angle = (500 + row) / 10_000 ** (wave / 2)
            assert found[row, wave] == pytest.approx(math.sin(angle), abs=1e-4)
            assert found[row, 3 + wave] == pytest.approx(math.cos(angle), abs=1e-4)
    assert found[:, 6].tolist() == [0, 0, 0]


def test_texts_without_words_have_a_score() -> None:
    ranker = make_tk()
    scores = ranker.score(["tea", "", "tea"], ["", "tea jam", " "])
    assert np.isfinite(scores).all()
    assert scores[0] == pytest.approx(scores[2], rel=1e-5)


# ---------------------------------------------------------------------- embeddings


@pytest.mark.parametrize("packed", [False, True])
def test_word_vectors_come_from_a_file_in_gloves_format(packed: bool, tmp_path: Path) -> None:
    lines = "tea 0.1 0.2 0.3 0.4\njam 1 0 0 0\n. 0 0 0 1\nnew york 0 1 0 0\ntea 9 9 9 9\n"
    path = tmp_path / ("glove.txt.gz" if packed else "glove.txt")
    (gzip.open if packed else open)(path, "wt", encoding="utf-8").write(lines) if not packed else path.write_bytes(gzip.compress(lines.encode()))
    ranker = kd.TK.new(path, device="cpu")
    assert ranker.tokenizer("Tea, JAM. unheard", add_special_tokens=False)["input_ids"] == [2, 1, 3, 4, 1]
    weights = ranker.model.embedding.weight.detach()
    assert np.allclose(weights[0], 0)
    assert np.allclose(weights[1], weights[2:].mean(0))
    assert np.allclose(weights[2], [0.1, 0.2, 0.3, 0.4])
    assert len(weights) == 6
    assert ranker.model.sizes["heads"] == 4
    assert np.isfinite(ranker.score(["tea"], ["jam"])).all()
    assert len(kd.TK.new(path, words=2, device="cpu").model.embedding.weight) == 4
    ranker.save(tmp_path / "tk")
    again = kd.load(tmp_path / "tk", device="cpu")
    assert again.tokenizer("Tea, JAM. unheard", add_special_tokens=False)["input_ids"] == [2, 1, 3, 4, 1]


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("2 4\ntea 1 2 3 4\njam 1 2 x 4\n")
    with pytest.raises(CheckpointError, match=r"a.txt, line 3: not a word and 4 numbers .*: 'jam 1 2 x 4"):
        kd.TK.new(tmp_path / "a.txt")
    (tmp_path / "b.txt").write_text("")
    with pytest.raises(CheckpointError, match="holds no word vectors"):
        kd.TK.new(tmp_path / "b.txt")
    with pytest.raises(ValueError, match=r"TK.new\(heads=3\) of embeddings with 20 dimensions: the heads must divide them"):
        make_tk(heads=3)
    with pytest.raises(ValueError, match=r"TK.new got embeddings of shape \(50, 20\) for a tokenizer of \d+ tokens: each token needs a row"):
        kd.TK.new(np.zeros((50, 20)), make_tokenizer())
    with pytest.raises(ValueError, match=r"TK.new\(variant='2021'\) is unknown: it is 'improved' or 'paper'"):
        make_tk(variant="2021")


def test_word_vectors_come_from_an_encoder(frame: pd.DataFrame, tmp_path: Path) -> None:
    cross = make_cross()
    ranker = kd.TK.new(cross, device="cpu")
    theirs, own = cross.encoder.get_input_embeddings().weight, ranker.model.embedding.weight
    assert float(own.square().mean()) == pytest.approx(1)           # or they would vanish beside positions and context
    assert own is not theirs
    assert torch.allclose(own * theirs.square().mean().sqrt(), theirs, rtol=1e-5, atol=1e-8)
    assert ranker(frame)["score"].notna().all()
    dot = make_dot()
    dot.save(tmp_path / "dot")
    again = kd.TK.new(str(tmp_path / "dot"), device="cpu").model.embedding.weight
    assert torch.equal(again, kd.TK.new(dot, device="cpu").model.embedding.weight)


# ---------------------------------------------------------------------- folders, sizes, training


@pytest.mark.parametrize("variant", ["improved", "paper"])
def test_a_saved_folder_is_the_same_ranker(variant: str, frame: pd.DataFrame, tmp_path: Path) -> None:
    ranker = make_tk(variant=variant, query_length=9)
    ranker.save(tmp_path / "tk")
    again = kd.load(tmp_path / "tk", device="cpu")
    assert again == ranker
    assert np.allclose(again(frame)["score"], ranker(frame)["score"], atol=1e-6)
    weights = load_file(tmp_path / "tk" / "model.safetensors")
    save_file({k: v for k, v in weights.items() if k != "mix"}, tmp_path / "tk" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"is no whole TK: (.|\n)*mix"):
        kd.load(tmp_path / "tk")
    with pytest.raises(CheckpointError, match=r"holds no TK. A new one is made of word embeddings: TK.new"):
        make_dot().save(tmp_path / "dot")
        (tmp_path / "dot" / "pt_meta.json").unlink()
        kd.TK(tmp_path / "dot")


def test_a_student_of_fewer_layers_and_what_it_costs(frame: pd.DataFrame) -> None:
    ranker = make_tk()
    small = ranker.shrink(layers=1)
    assert small.model.sizes["layers"] == 1
    assert small(frame)["score"].notna().all()
    assert small.cost(100).gflops < ranker.cost(100).gflops
    assert ranker.cost(100).layer_parameters == 2 * (4 * 20 * 20 + 2 * 20 * 32)
    with pytest.raises(ValueError, match="TK has the width of its word embeddings, 20"):
        ranker.shrink(hidden=10)


def test_it_learns_and_gives_its_score_from_a_store(frame: pd.DataFrame, tmp_path: Path) -> None:
    stage = kd.Stage(losses.MarginMSE(), steps=40, learning_rate=3e-3, rates={"interaction": 3e-2}, sampler=kd.Sampler(texts=4))
    distil = kd.Distiller(make_tk(), make_cross(seed=4, layers=4), strategy=stage, verbose=False).fit(frame, make_qrels(frame))
    assert distil.history_["loss"].iloc[-1] < distil.history_["loss"].iloc[0]
    ranker = distil.student_
    store = (ranker.doc_encoder() >> kd.DocumentStore(tmp_path / "store")).index(frame[["docno", "text"]].drop_duplicates("docno").to_dict("records"))
    assert np.allclose(store.scorer(ranker)(frame.drop(columns="text"))["score"], ranker(frame)["score"], rtol=1e-2, atol=1e-2)
    assert make_tokenizer().pad_token_id == 0
