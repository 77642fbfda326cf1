"""Imports point down: a module imports only from lower layers, or from above itself in the order of its own layer.

And what importing the package does: next to nothing.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import pyterrier_kd

ROOT = Path(pyterrier_kd.__file__).parent
LAYERS = [
    ["errors", "signals"],
    ["atomic", "subnormal", "tokens", "scoring", "formats.checkpoints", "formats.sentence_transformers", "formats.bare_weights", "formats.multi_vector", "formats.word_vectors", "score_store", "frames", "splitting", "corpus", "losses", "sampling", "loaded_texts", "groups", "pairs", "stages"],
    ["rankers", "training"],
    ["strategies", "teachers", "teacher_scores", "teacher_signals", "topics", "loading", "exporting", "passages", "stores", "mining", "datasets"],
    ["binding", "training_data", "resuming", "fitting", "validation", "distiller"],
]
WITHIN = {
    "losses": ["base", "layer_maps", "pointwise", "pairwise", "listwise", "contrastive", "layerwise"],
    "rankers": ["shrink", "cost", "first_token", "taps", "vectors", "heads", "interactions", "side_models", "split_model", "side", "saved", "base", "two_sided", "cross_encoder", "bert_dot", "colbert", "prettr", "tk"],
    "passages": ["aggregate", "cutting", "fused", "split"],
    "stores": ["docnos", "files", "stamp", "indexing", "reranking", "neighbours", "retrieval", "documents"],
    "datasets": ["functions", "pycode", "provider"],
}
SIBLINGS = {"losses": {"pointwise", "pairwise", "listwise", "contrastive", "layerwise"}, "rankers": {"cross_encoder", "bert_dot", "colbert", "prettr", "tk"}}


def module_of(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {module_of(p): p for p in sorted(ROOT.rglob("*.py")) if p != ROOT / "__init__.py"}


def imports_of(name: str) -> set[str]:
    """The modules of this package that a module imports, TYPE_CHECKING and function bodies included."""
    path, found = MODULES[name], set()
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {a.name.removeprefix("pyterrier_kd.") for a in node.names if a.name.startswith("pyterrier_kd")}
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = package.split(".") if package else []
            base = base[:len(base) - node.level + 1]
            target = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{target}.{alias.name}".lstrip(".")
                found.add(inner if inner in MODULES else target)
    return found - {""}


def place_of(name: str) -> tuple[int, int]:
    for height, layer in enumerate(LAYERS):
        for position, member in enumerate(layer):
            if name == member or name.startswith(member + "."):
                return height, position
    raise AssertionError(f"{name} is in no layer: put it into LAYERS where it belongs")


@pytest.mark.parametrize("name", [m for m in MODULES if m != "formats"])
def test_imports_point_down(name: str) -> None:
    height, position = place_of(name)
    folder, _, own = name.partition(".")
    for other in imports_of(name):
        if other == "formats":
            continue
        if folder in WITHIN and (other == folder or other.startswith(folder + ".")):
            if own and other != folder:
                order = WITHIN[folder]
                assert order.index(other.partition(".")[2]) < order.index(own), f"{name} imports {other}, which comes after it"
                assert not {own, other.partition(".")[2]} <= SIBLINGS.get(folder, set()), f"{name} imports its sibling {other}"
            continue
        assert place_of(other) < (height, position), f"{name} imports {other}, which is not below it"
        if height == 2:
            assert place_of(other)[0] < 2, f"{name} imports {other}: rankers and the training loop do not know each other"


def test_losses_know_no_model_and_formats_no_ranker() -> None:
    for name in MODULES:
        if name.startswith("losses"):
            assert all(i.startswith(("losses", "signals", "errors")) for i in imports_of(name)), name
        if name.startswith("formats"):
            assert not any(i.startswith("rankers") for i in imports_of(name)), name


def test_every_module_says_its_idea_first() -> None:
    for name, path in {**MODULES, "": ROOT / "__init__.py"}.items():
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), name


LIGHT = """
import logging, socket, sys
def no_network(*args): raise AssertionError("the network was opened")
socket.socket.connect = no_network
handlers, level = list(logging.getLogger().handlers), logging.getLogger().level
import pyterrier_kd
for heavy in ("torch", "transformers", "pyterrier", "faiss", "jnius", "pyterrier_dr"):
    assert heavy not in sys.modules, heavy
for name in pyterrier_kd.__all__:
    getattr(pyterrier_kd, name)
import pyterrier as pt
assert not pt.java.started()
for heavy in ("faiss", "pyterrier_dr", "sentence_transformers", "matplotlib", "pyterrier_pisa"):
    assert heavy not in sys.modules, heavy
assert (list(logging.getLogger().handlers), logging.getLogger().level) == (handlers, level)
"""


def test_importing_it_starts_nothing() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", LIGHT], capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode == 0, done.stderr


def test_unknown_names_say_which_there_are() -> None:
    with pytest.raises(AttributeError, match=r"module 'pyterrier_kd' has no attribute 'Destiller'; it has TK, BertDot, BySignal, ColBERT, CrossEncoder, Distiller"):
        pyterrier_kd.Destiller
    assert set(pyterrier_kd.__all__) <= set(dir(pyterrier_kd))


def test_the_version_is_that_of_the_distribution() -> None:
    from importlib.metadata import version
    assert version("pyterrier-kd") == pyterrier_kd.__version__
