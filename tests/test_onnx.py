"""ONNX files: what onnxruntime computes of them is what the ranker does, for any batch and length."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import transformers
from conftest import make_colbert, make_cross, make_dot, make_prettr, make_tk

import pyterrier_kd as kd
from pyterrier_kd.errors import ExportError
from pyterrier_kd.tokens import assemble


def run(folder: Path, inputs: dict) -> np.ndarray:
    """What an ONNX file gives."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install onnxruntime")
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == json.loads((folder / "ranker.json").read_text())["inputs"]
    return session.run(None, {name: np.asarray(value, dtype=np.int64) for name, value in inputs.items()})[0]


@pytest.mark.parametrize("classes", [1, 2])
def test_a_cross_encoder_gives_its_scores(classes: int, frame: pd.DataFrame, tmp_path: Path) -> None:
    ranker = make_cross(classes=classes)
    expected = ranker(frame)["score"].to_numpy()
    assert kd.export(ranker, tmp_path / "onnx", "onnx") == tmp_path / "onnx"
    inputs = ranker.tokenizer(frame["query"].tolist(), frame["text"].tolist(), padding=True, truncation="only_second", max_length=ranker.max_length)
    assert np.allclose(run(tmp_path / "onnx", inputs), expected, atol=1e-5)
    assert np.allclose(ranker(frame)["score"], expected)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "onnx")("tea").input_ids == ranker.tokenizer("tea").input_ids


@pytest.mark.parametrize("settings", [{}, {"pooling": "mean", "normalize": True}], ids=repr)
def test_a_bi_encoder_gives_its_vectors(settings: dict, frame: pd.DataFrame, tmp_path: Path) -> None:
    ranker = make_dot(**settings)
    kd.export(ranker, tmp_path / "onnx", "onnx")
    found = run(tmp_path / "onnx", ranker.tokenizer(frame["text"].tolist(), padding=True))
    assert np.allclose(found, ranker.encode_docs(frame["text"]), atol=1e-5)
    assert json.loads((tmp_path / "onnx" / "ranker.json").read_text())["pooling"] == ranker.pooling


def test_colbert_gives_a_vector_a_token(frame: pd.DataFrame, tmp_path: Path) -> None:
    ranker = make_colbert(skip=())
    kd.export(ranker, tmp_path / "onnx", "onnx")
    table = ranker.table("text", frame["text"].tolist())
    inputs = assemble(ranker.templates["text"], [(table[i],) for i in range(len(table))], 0, "cpu")
    found, real = run(tmp_path / "onnx", inputs), inputs["attention_mask"].bool().numpy()
    for vectors, mask, expected in zip(found, real, ranker.encode_docs(frame["text"]), strict=True):
        assert np.allclose(vectors[mask], expected, atol=1e-5)


def test_what_is_not_one_network_is_not_exported(tmp_path: Path) -> None:
    for ranker in (make_prettr(), make_tk()):
        with pytest.raises(ExportError, match=r"export\(format='onnx'\) writes a CrossEncoder, BertDot or ColBERT, each of which is one network; this is"):
            kd.export(ranker, tmp_path / "x", "onnx")
    assert not (tmp_path / "x").exists()


def test_other_files_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for path, message in ((tmp_path, "is a folder with other files"), (tmp_path / "thesis.txt", "is a file")):
        with pytest.raises(FileExistsError, match=message):
            kd.export(make_cross(), path, "onnx")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
    (tmp_path / "ranker.json").write_text("{}")                     # what export wrote, it may replace
    kd.export(make_dot(), tmp_path, "onnx")
    assert not (tmp_path / "thesis.txt").exists()


def test_without_the_extra_the_error_says_what_to_install(tmp_path: Path) -> None:
    code = f"""
import sys; sys.modules["onnxscript"] = None; sys.path.insert(0, {str(Path(__file__).parent)!r})
from conftest import make_cross, kd
kd.export(make_cross(), {str(tmp_path / "x")!r}, "onnx")"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'pyterrier-kd[onnx]'" in found.stderr
