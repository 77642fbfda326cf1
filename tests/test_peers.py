"""Peers that need other versions of our packages: each gets an environment of its own, which takes minutes and gigabytes (pytest -m peer).

KD_PEERS names a folder that keeps the environments for the next time.
"""

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


@pytest.fixture(scope="module")
def pylate(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Python of an environment with PyLate."""
    folder = Path(os.environ.get("KD_PEERS") or tmp_path_factory.mktemp("peers")) / "pylate"
    python = folder / "bin" / "python"
    if not (folder / "made").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "pylate>=1.6,<2"], check=True)
        (folder / "made").touch()
    return str(python)


@pytest.mark.peer
@pytest.mark.parametrize("settings", [{}, {"query_length": 12, "attend_to_expansion_tokens": True}, {"do_query_expansion": False, "skiplist_words": ["tea"]},
                                      {"query_prefix": "[unused3]", "document_prefix": "[unused4]"}], ids=repr)
def test_folders_that_pylate_wrote_give_its_scores(settings: dict, pylate: str, frame: pd.DataFrame, tmp_path: Path) -> None:
    transformers.BertModel(make_config(max_position_embeddings=320)).save_pretrained(tmp_path / "bert")
    make_tokenizer().save_pretrained(tmp_path / "bert")
    pairs = frame[["query", "text"]].to_numpy().tolist()
    command = [pylate, str(Path(__file__).parent / "peers" / "pylate_scores.py"), str(tmp_path / "bert"), str(tmp_path / "pylate"), json.dumps(pairs), json.dumps(settings)]
    done = subprocess.run(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = json.loads(done.stdout.splitlines()[-1])
    ranker = kd.load(tmp_path / "pylate", device="cpu")
    assert isinstance(ranker, kd.ColBERT)
    assert np.allclose(ranker(frame)["score"], expected, atol=1e-4)
