"""kd:pycode: real functions, no docstring in any document, and nothing in two splits."""

import ast
import multiprocessing
from pathlib import Path

import pandas as pd
import pyterrier as pt
import pytest

from pyterrier_kd.datasets import KDDatasets, PyCode, PyCodeModules, functions, identifiers_split, pycode

SOURCE = '''
import os

def documented(a, b):
    """Adds the two numbers that it is given together.

    And more.
    """
    c = a + b
    # a comment
    text = """not a docstring, so it stays where it is"""
    def inner(x):
        "The inner docstring goes as well, of course"
        return x
    return inner(c)

class Thing:
    """Docstring of a class."""

    @property
    def value(self):
        """Returns the value of this thing as a number."""
        x = 1
        y = 2
        z = 3
        return x + y + z

    async def later(self): "Waits for a while and then gives it back"; return [
        1,
        2,
        3,
        4]

def short():
    """Does something very short that is no document."""
    return 1

def silent(a):
    b = a
    c = b
    d = c
    return d
if os.name:
    def conditional(é):
        """Überträgt die Wörter mit Umlauten in ASCII."""; é += 1
        b = é
        c = b
        d = c
        return d
'''


@pytest.fixture
def package(tmp_path) -> Path:
    root = tmp_path / "site" / "pkg"
    (root / "tests").mkdir(parents=True)
    (root / "__init__.py").write_text("")
    (root / "mod.py").write_text(SOURCE, encoding="utf-8")
    (root / "broken.py").write_text("def f(:\n")
    (root / "tests" / "test_mod.py").write_text(SOURCE)
    for i in range(60):
        (root / f"m{i}.py").write_text(f'X = {i}\ndef function_{i}(a):\n    """Computes the number {i} of the long list."""\n    b = a + {i}\n    c = b\n    d = c\n    return d\n')
    return root


@pytest.fixture
def small(package, monkeypatch, tmp_path) -> PyCode:
    monkeypatch.setattr(pycode, "installed", lambda: {"pkg": (package, "1.0")})
    return PyCode(tmp_path / "home")


def test_functions_lose_their_docstrings_and_nothing_else(package) -> None:
    found = {f.docno: f for f in functions.functions_of(functions.source_of("pkg", package, package / "mod.py"))}
    assert sorted(found) == ["pkg.mod.Thing.later", "pkg.mod.Thing.value", "pkg.mod.conditional", "pkg.mod.documented"]
    assert found["pkg.mod.documented"].summary == "Adds the two numbers that it is given together."
    assert found["pkg.mod.documented"].text == ('def documented(a, b):\n    c = a + b\n    # a comment\n    text = """not a docstring, so it stays where it is"""\n'
                                                "    def inner(x):\n        return x\n    return inner(c)")
    assert found["pkg.mod.Thing.value"].text.startswith("@property\ndef value(self):\n    x = 1\n")
    assert found["pkg.mod.Thing.later"].text == "async def later(self): ; return [\n    1,\n    2,\n    3,\n    4]"
    assert found["pkg.mod.conditional"].text.startswith("def conditional(é):\n    ; é += 1\n    b = é")
    assert found["pkg.mod.documented"].line == 4
    assert functions.source_of("pkg", package, package / "broken.py") is None
    assert package / "tests" / "test_mod.py" not in functions.source_files(package)


def test_the_collection_through_pyterrier(small) -> None:
    docs = list(small.get_corpus_iter(verbose=False))
    assert {"docno", "text", "title", "package", "path", "line"} == set(docs[0])
    assert len(docs) == 64
    for split in ("train", "valid", "test"):
        topics, qrels = small.get_topicsqrels(split)
        assert list(topics.columns) == ["qid", "query", "summary"]
        assert set(qrels["docno"]) <= {d["docno"] for d in docs}
        assert (qrels["label"] == 1).all()
    assert small.get_topics().equals(small.get_topics("test"))
    with pytest.raises(ValueError, match="kd:pycode has the variants train, valid, test, not 'dev'."):
        small.get_topics("dev")
    assert small._describe_component("topics") == ["train", "valid", "test"]
    assert small.get_corpus_lang() == small.get_topics_lang() == "en"


def test_whole_modules_as_documents(small, package) -> None:
    modules = PyCodeModules(small.home)
    (package / "copy1.py").write_text("a = 1\nb = 2\nc = 3\nd = 4\ne = 5\n")
    (package / "copy2.py").write_text("a = 1\nb = 2\nc = 3\nd = 4\n\ne = 5\n")
    docs = {d["docno"]: d["text"] for d in modules.get_corpus_iter(verbose=False)}
    assert "pkg.mod" in docs
    assert not {"pkg", "pkg.copy1", "pkg.copy2"} & set(docs)       # too short, or of a source that another has too
    assert "docstring" not in docs["pkg.mod"].replace("not a docstring", "").lower()
    functions_of = {d["docno"]: d["text"] for d in small.get_corpus_iter(verbose=False)}
    found = 0
    for split in ("train", "valid", "test"):
        topics, qrels = modules.get_topicsqrels(split)
        assert list(topics.columns) == ["qid", "query", "summary", "function", "begins"]
        assert set(qrels["docno"]) <= set(docs)
        assert set(topics["qid"]) <= set(small.get_topics(split)["qid"])
        for function, begins, docno in zip(topics["function"], topics["begins"], qrels["docno"], strict=True):
            after = " ".join(docs[docno].split()[begins:])
            assert after.startswith(" ".join(functions_of[function].split()[:6]))
            found += 1
    assert found >= 1


def test_texts_are_loaded_by_docno(small) -> None:
    docs = list(small.get_corpus_iter(verbose=False))
    frame = pd.DataFrame({"qid": "1", "docno": [docs[5]["docno"], docs[0]["docno"], docs[5]["docno"]], "url": ["a", "b", "c"]}, index=[3, 3, 4])
    out = small.text_loader(["text", "path"])(frame)
    assert out["text"].tolist() == [docs[5]["text"], docs[0]["text"], docs[5]["text"]]
    assert out["url"].tolist() == ["a", "b", "c"]
    assert list(small.text_loader()(frame.head(0)).columns) == ["qid", "docno", "url", "text"]
    with pytest.raises(KeyError, match="1 docnos are not in kd:pycode, such as 'x'"):
        small.text_loader()(pd.DataFrame({"docno": ["x"]}))
    with pytest.raises(ValueError, match="kd:pycode documents have the fields text, title, package, path, line, not 'body'."):
        small.text_loader("body")


def test_pyterrier_finds_it() -> None:
    dataset = pt.get_dataset("kd:pycode")
    assert isinstance(dataset, PyCode)
    assert repr(dataset) == "PyCode()"
    assert list(KDDatasets().list_dataset_names()) == ["pycode", "pycode/modules"]
    assert repr(pt.get_dataset("kd:pycode/modules")) == "PyCodeModules()"
    with pytest.raises(KeyError):
        pt.get_dataset("kd:nothing")


def test_duplicates_are_left_out() -> None:
    def function(name: str, text: str, summary: str) -> functions.Function:
        return functions.Function(name, "m", "p", "m.py", 1, text, summary, 0)
    rows = [function("a", "x", "one summary"), function("b", "y", "One  summary!"), function("c", "z", "another"), function("d", "Z ", "third"), function("e", "w", "fourth"),
            function("f", "v", "fifth"), function("f", "u", "sixth")]
    assert [f.docno for f in pycode.documents_of(rows)] == ["e"]
    assert pycode.query_of("Wraps `x` (now): isn't it?") == "Wraps x now isn t it"
    assert identifiers_split("readJson_file HTTPServer") == "read Json file HTTPServer"


def build_at(home: str, root: str, queue) -> None:
    pycode.installed = lambda: {"pkg": (Path(root), "1.0")}
    queue.put(len(list(PyCode(home).get_corpus_iter(verbose=False))))


def test_two_processes_at_once_build_one_good_collection(package, tmp_path) -> None:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    workers = [context.Process(target=build_at, args=(str(tmp_path / "home"), str(package), queue)) for _ in range(3)]
    for worker in workers:
        worker.start()
    assert [queue.get(timeout=100) for _ in workers] == [64] * 3
    for worker in workers:
        worker.join()
    assert len(list((tmp_path / "home").iterdir())) == 1


def test_a_build_that_fails_leaves_nothing_behind(small, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(pycode, "topics_of", lambda documents: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        small.folder(verbose=False)
    assert list((tmp_path / "home").iterdir()) == []
    monkeypatch.undo()


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> PyCode:
    """The functions of the real packages of this machine; of the largest, a part."""
    home = tmp_path_factory.mktemp("pycode")
    roots = functions.installed()
    assert {"python", "numpy", "torch", "pandas", "pyterrier"} <= set(roots)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pycode, "installed", lambda: {name: roots[name] for name in ("python", "numpy", "pyterrier", "accelerate", "pandas")})
        dataset = PyCode(home)
        folder = dataset.folder(verbose=False)
    dataset.folder = lambda verbose=True: folder
    return dataset


def test_no_document_contains_a_docstring(real) -> None:
    docs = list(real.get_corpus_iter(verbose=False))
    assert len(docs) > 3000
    parsed = 0
    for doc in docs:
        try:
            tree = ast.parse(doc["text"])
        except SyntaxError:         # what is left of `def f(): "doc"` has no body
            continue
        parsed += 1
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                assert ast.get_docstring(node) is None, doc["docno"]
    assert parsed > 0.97 * len(docs)


def test_nothing_is_in_two_splits(real) -> None:
    docs = {d["docno"]: d for d in real.get_corpus_iter(verbose=False)}
    seen: dict[str, dict[str, str]] = {"query": {}, "document": {}, "module": {}}
    for split in ("train", "valid", "test"):
        topics, qrels = real.get_topicsqrels(split)
        assert len(topics) == len(qrels) > 50
        for query, docno in zip(topics["query"], qrels["docno"], strict=True):
            module = docs[docno]["path"] + docs[docno]["package"]
            for kind, value in (("query", " ".join(query.lower().split())), ("document", docno), ("module", module)):
                assert seen[kind].setdefault(value, split) == split, (kind, value)
    assert len(seen["query"]) == len(seen["document"])


def test_queries_are_words_of_the_right_number(real) -> None:
    for split in ("valid", "test"):
        for query in real.get_topics(split)["query"]:
            assert all(c.isalnum() or c in "_ " for c in query)
            assert 5 <= len(query.split()) <= 40
