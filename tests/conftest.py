"""Small random models and frames: every test is offline, deterministic and fast.

Run: make test (or pytest; slower tests with pytest -m slow, those for a GPU with pytest -m gpu).
"""

import itertools
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")

import pandas as pd
import pyterrier as pt
import pytest
import torch
import transformers

import pyterrier_kd as kd
from pyterrier_kd.training import Training

WORDS = ["apple", "bread", "cheese", "dates", "egg", "fig", "grape", "honey", "ice", "jam", "kiwi", "lemon", "mango", "nut", "olive", "pear", "quince", "rice", "salt", "tea", "how", "what", "where", "is", "the", "of", "a", "in", "to", "find", "cook", "eat", "sort", "list", "file", "read"]
torch.set_num_threads(1)        # tiny models are slower with more


def make_tokenizer() -> transformers.PreTrainedTokenizerBase:
    """A BERT tokenizer over a few words, letters and digits."""
    pieces = [*WORDS, *"abcdefghijklmnopqrstuvwxyz0123456789", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz0123456789"), ".", "-", "%"]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys(pieces)]
    return transformers.BertTokenizerFast(vocab={w: i for i, w in enumerate(vocabulary)}, model_max_length=64)


def make_config(**changes: object) -> transformers.BertConfig:
    """A BERT of 2 layers, hidden size 32."""
    sizes = {"vocab_size": len(make_tokenizer()), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 64,
             "initializer_range": 0.2}      # ten times the usual: texts of a random model look alike otherwise
    return transformers.BertConfig(**{**sizes, **changes})


def make_cross(seed: int = 0, classes: int = 1, layers: int = 2, **settings: object) -> kd.CrossEncoder:
    """A random cross-encoder, with scores far enough apart to rank by."""
    torch.manual_seed(seed)
    model = transformers.BertForSequenceClassification(make_config(num_labels=classes, num_hidden_layers=layers))
    model.classifier.weight.data *= 5
    return kd.CrossEncoder(model, make_tokenizer(), device="cpu", **settings)


def make_dot(seed: int = 0, layers: int = 2, **settings: object) -> kd.BertDot:
    """A random bi-encoder."""
    torch.manual_seed(seed)
    return kd.BertDot(transformers.BertModel(make_config(num_hidden_layers=layers)), make_tokenizer(), device="cpu", **settings)


def make_colbert(seed: int = 0, layers: int = 2, preset: str = "pylate", **settings: object) -> kd.ColBERT:
    """A random late-interaction model of 16 dimensions."""
    torch.manual_seed(seed)
    settings = {"dim": 16, "query_length": 16, **settings}
    return kd.ColBERT(transformers.BertModel(make_config(num_hidden_layers=layers)), make_tokenizer(), preset=preset, device="cpu", **settings)


def make_prettr(seed: int = 0, layers: int = 2, **settings: object) -> kd.PreTTR:
    """A random PreTTR, joined at half of its layers."""
    torch.manual_seed(seed)
    model = transformers.BertForSequenceClassification(make_config(num_labels=1, num_hidden_layers=layers))
    model.classifier.weight.data *= 5
    return kd.PreTTR(model, make_tokenizer(), device="cpu", **{"query_length": 12, **settings})


def make_tk(seed: int = 0, layers: int = 2, **settings: object) -> kd.TK:
    """A TK over random word embeddings."""
    tokenizer = make_tokenizer()
    embeddings = torch.randn(len(tokenizer), 20, generator=torch.Generator().manual_seed(seed))
    ranker = kd.TK.new(embeddings, tokenizer, layers=layers, seed=seed, feed_forward=32, device="cpu", **{"doc_length": 64, **settings})
    ranker.model.interaction.log_weights.weight.data *= 20
    return ranker


def make_frame(queries: int = 6, texts: int = 5) -> pd.DataFrame:
    """Candidates: some queries with some texts each; extra columns as a first stage leaves them."""
    rows = []
    for i in range(queries):
        for j in range(texts):
            words = [WORDS[(7 * i + 5 * j + k * k) % len(WORDS)] for k in range(3 + (i * j) % 11)]
            rows.append({"qid": f"q{i}", "query": f"how to find {WORDS[i]}", "docno": f"d{(3 * i + j) % 13}x{j}", "text": " ".join(words), "score": 10.0 - j, "rank": j, "url": f"u{j}"})
    return pd.DataFrame(rows)


def make_qrels(frame: pd.DataFrame, each: int = 1) -> pd.DataFrame:
    """The last candidates of every query are relevant."""
    last = frame.groupby("qid").tail(each)
    return pd.DataFrame({"qid": last["qid"], "docno": last["docno"], "label": 1}).reset_index(drop=True)


class Stop(Exception):
    """Stands for a kill: nothing after it runs."""


def stopping_after(monkeypatch: pytest.MonkeyPatch, steps: int, error: type[BaseException] = Stop) -> None:
    """From here on, training is killed after so many optimiser steps in all."""
    original, done = Training._step, itertools.count()

    def limited(self: Training) -> object:
        if next(done) >= steps:
            raise error
        return original(self)

    monkeypatch.setattr(Training, "_step", limited)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    """Fixed seeds, a home of PyTerrier's own for each test, and no look-up of help pages."""
    torch.manual_seed(0)
    monkeypatch.setattr(pt.documentation, "objects_inv", lambda *a, **k: {}, raising=False)
    monkeypatch.setattr(pt.io, "pyterrier_home", lambda: str(tmp_path / "pyterrier"))


@pytest.fixture
def frame() -> pd.DataFrame:
    return make_frame()


@pytest.fixture
def qrels(frame: pd.DataFrame) -> pd.DataFrame:
    return make_qrels(frame)


@pytest.fixture
def cross() -> kd.CrossEncoder:
    return make_cross()


@pytest.fixture
def dot() -> kd.BertDot:
    return make_dot()
