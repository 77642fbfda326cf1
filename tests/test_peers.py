"""Peers that need other versions of our packages: each gets an environment of its own, which takes minutes and gigabytes (pytest -m peer).

KD_PEERS names a folder that keeps the environments for the next time.
"""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import transformers
from conftest import make_config, make_tokenizer

import pyterrier_kd as kd


def environment(name: str, requirements: list[str], kept: Path) -> str:
    """The Python of an environment with a peer, made where it is not there yet."""
    folder = Path(os.environ.get("KD_PEERS") or kept) / name
    python = folder / "bin" / "python"
    if not (folder / "made").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *requirements], check=True)
        (folder / "made").touch()
    return str(python)


def scores_by(python: str, script: str, *arguments: str) -> list[float]:
    """What a script of ``peers/`` prints, run by a peer's Python."""
    done = subprocess.run([python, str(Path(__file__).parent / "peers" / script), *arguments], env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def pylate(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Python of an environment with PyLate."""
    return environment("pylate", ["pylate>=1.6,<2"], tmp_path_factory.mktemp("peers"))


@pytest.fixture(scope="module")
def colbert_ai(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Python of an environment with colbert-ai."""
    return environment("colbert_ai", ["colbert-ai==0.2.22", "transformers>=4.40,<5", "torch>=2.5,<2.13", "faiss-cpu"], tmp_path_factory.mktemp("peers"))


@pytest.mark.peer
@pytest.mark.parametrize("settings", [{}, {"query_length": 12, "attend_to_expansion_tokens": True}, {"do_query_expansion": False, "skiplist_words": ["tea"]},
                                      {"query_prefix": "[unused3]", "document_prefix": "[unused4]"}], ids=repr)
def test_folders_that_pylate_wrote_give_its_scores(settings: dict, pylate: str, frame: pd.DataFrame, tmp_path: Path) -> None:
    transformers.BertModel(make_config(max_position_embeddings=320)).save_pretrained(tmp_path / "bert")
    make_tokenizer().save_pretrained(tmp_path / "bert")
    pairs = frame[["query", "text"]].to_numpy().tolist()
    expected = scores_by(pylate, "pylate_scores.py", str(tmp_path / "bert"), str(tmp_path / "pylate"), json.dumps(pairs), json.dumps(settings))
    ranker = kd.load(tmp_path / "pylate", device="cpu")
    assert isinstance(ranker, kd.ColBERT)
    assert np.allclose(ranker(frame)["score"], expected, atol=1e-4)


def marked(folder: Path) -> tuple[transformers.BertModel, transformers.PreTrainedTokenizerFast]:
    """A BERT with colbert-ai's markers in its vocabulary, also in ``folder``."""
    tokenizer = transformers.BertTokenizerFast(vocab={w: i for i, w in enumerate([*make_tokenizer().get_vocab(), "[unused0]", "[unused1]"])}, model_max_length=64)
    encoder = transformers.BertModel(make_config(vocab_size=len(tokenizer)))
    encoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return encoder, tokenizer


@pytest.mark.peer
@pytest.mark.parametrize("given", [{}, {"query_maxlen": 16, "attend_to_mask_tokens": True}, {"dim": 8, "doc_maxlen": 10}], ids=repr)
def test_folders_that_colbert_ai_wrote_give_its_scores(given: dict, colbert_ai: str, frame: pd.DataFrame, tmp_path: Path) -> None:
    marked(tmp_path / "bert")
    pairs = json.dumps(frame[["query", "text"]].to_numpy().tolist())
    settings = {"query_maxlen": 32, "doc_maxlen": 40, "dim": 16, **given}
    expected = scores_by(colbert_ai, "colbert_ai_scores.py", str(tmp_path / "bert"), str(tmp_path / "written"), pairs, json.dumps(settings))
    ranker = kd.load(tmp_path / "written", device="cpu")
    assert isinstance(ranker, kd.ColBERT)
    with pytest.warns(UserWarning, match="longer than the model takes") if "doc_maxlen" in given else contextlib.nullcontext():
        assert np.allclose(ranker(frame)["score"], expected, atol=1e-4)


@pytest.mark.peer
def test_colbert_ai_gives_the_scores_of_folders_that_are_exported(colbert_ai: str, frame: pd.DataFrame, tmp_path: Path) -> None:
    ranker = kd.ColBERT(*marked(tmp_path / "bert"), preset="v2", dim=16, query_length=16, doc_length=40, device="cpu")
    kd.export(ranker, tmp_path / "exported", "colbert-v2")
    found = scores_by(colbert_ai, "colbert_ai_scores.py", str(tmp_path / "exported"), "", json.dumps(frame[["query", "text"]].to_numpy().tolist()), "{}")
    assert np.allclose(ranker(frame)["score"], found, atol=1e-4)
