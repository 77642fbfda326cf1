"""Python functions and what their docstrings say of them, read from source files without importing anything.

The document is a function's source, or its whole module's, with no docstring in it; the query is the first paragraph of the function's
docstring. So the words of the query are not in the document, and a search has to match meaning with code.
"""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.metadata
import inspect
import platform
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGES = ("accelerate", "ir_datasets", "ir_measures", "matplotlib", "networkx", "numpy", "pandas", "pyterrier", "safetensors", "scipy",
            "sklearn", "statsmodels", "sympy", "tokenizers", "torch", "tqdm", "transformers")
LEAST_LINES, QUERY_WORDS = 5, (5, 40)
Definition = ast.FunctionDef | ast.AsyncFunctionDef
SKIPPED = {"test", "tests", "testing", "site-packages", "dist-packages", "idlelib", "lib2to3", "__pycache__"}


class Function(NamedTuple):
    """A function: where it stands, its source without docstrings, its summary, and how many words of its module stand before it."""

    docno: str
    module: str
    package: str
    path: str
    line: int
    text: str
    summary: str
    begins: int


class Module(NamedTuple):
    """A whole source file: its source without docstrings."""

    docno: str
    package: str
    path: str
    text: str


class SourceFile(NamedTuple):
    """A source file that was read: where it stands, its lines, and what they say."""

    module: str
    package: str
    path: str
    lines: list[str]
    tree: ast.Module


def installed() -> dict[str, tuple[Path, str]]:
    """The roots that are searched, by package: its folder and its version. The standard library comes first."""
    found = {"python": (Path(sysconfig.get_paths()["stdlib"]), platform.python_version())}
    for name in PACKAGES:
        spec = importlib.machinery.PathFinder.find_spec(name)
        if spec is not None and spec.submodule_search_locations:
            found[name] = (Path(next(iter(spec.submodule_search_locations))), version_of(name))
    return found


def version_of(name: str) -> str:
    """The installed version of a package, whose distribution may have another name."""
    for distribution in (name, {"sklearn": "scikit-learn"}.get(name, name)):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "unknown"


def source_files(root: Path) -> list[Path]:
    """The modules below a folder, without its tests, in a fixed order."""
    return sorted(p for p in root.rglob("*.py") if not SKIPPED & set(p.relative_to(root).parts[:-1]))


def source_of(package: str, root: Path, file: Path) -> SourceFile | None:
    """A source file, or None if it is no Python of this version."""
    try:
        source = file.read_text(encoding="utf-8")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")         # of invalid escapes in other people's code
            tree = ast.parse(source)
    except (SyntaxError, ValueError, OSError, RecursionError):
        return None
    relative = file.relative_to(root)
    parts = [*([] if package == "python" else [package]), *relative.with_suffix("").parts]
    return SourceFile(".".join(parts[:-1] if parts[-1] == "__init__" else parts), package, relative.as_posix(), source.split("\n"), tree)      # the lines that ast counts


def functions_of(source: SourceFile) -> Iterator[Function]:
    """The functions and methods of a source file that are long enough and have a summary."""
    held = without_docstrings(source.lines, source.tree)
    words, total = {}, 0
    for number in range(1, len(source.lines) + 1):
        words[number] = total
        total += len(held.get(number, "").split())
    for name, node in definitions(source.tree, ""):
        summary = summary_of(node)
        text = joined(without_docstrings(source.lines, node)) if summary else ""
        if text.count("\n") + 1 >= LEAST_LINES:
            yield Function(f"{source.module}.{name}", source.module, source.package, source.path, node.lineno, text, summary, words[first_line(node)])


def module_of(source: SourceFile) -> Module:
    """A source file as a document."""
    return Module(source.module, source.package, source.path, joined(without_docstrings(source.lines, source.tree)))


def definitions(node: ast.AST, prefix: str) -> Iterator[tuple[str, Definition]]:
    """The functions of a module and the methods of its classes, with qualified names; functions within functions belong to them."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Definition):
            yield f"{prefix}{child.name}", child
        elif isinstance(child, ast.ClassDef):
            yield from definitions(child, f"{prefix}{child.name}.")
        elif not isinstance(child, ast.expr):
            yield from definitions(child, prefix)


def statements(node: ast.AST) -> Iterator[ast.AST]:
    """A statement and all within it; expressions hold no docstrings and are passed over."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.expr):
            yield from statements(child)


def docstring_of(node: ast.AST) -> ast.Expr | None:
    """The statement that is the docstring of a function, class or module."""
    if not isinstance(node, Definition | ast.ClassDef | ast.Module) or not node.body:
        return None
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        return first
    return None


def first_line(node: Definition) -> int:
    """The number of a function's first line, decorators included."""
    return min([node.lineno, *(d.lineno for d in node.decorator_list)])


def without_docstrings(lines: list[str], node: Definition | ast.Module) -> dict[int, str]:
    """The lines of a function, decorators included, or of a module, by number: without docstrings, its own or those within it, and empty lines."""
    start, end = (1, len(lines)) if isinstance(node, ast.Module) else (first_line(node), node.end_lineno)
    assert end is not None
    kept = dict(enumerate(lines[start - 1:end], start=start))
    for inner in statements(node):
        doc = docstring_of(inner)
        if doc is None:
            continue
        assert doc.end_lineno is not None
        assert doc.end_col_offset is not None
        before, after = encoded(lines[doc.lineno - 1])[:doc.col_offset], encoded(lines[doc.end_lineno - 1])[doc.end_col_offset:]
        for number in range(doc.lineno, doc.end_lineno + 1):
            kept.pop(number, None)
        rest = (before + after).decode("utf-8", "replace")       # what shares the docstring's lines, as in `def f(): "doc"; return 1`
        if rest.strip(" \t;"):
            kept[doc.lineno] = rest
    return {number: line for number, line in sorted(kept.items()) if line.strip()}


def joined(lines: dict[int, str]) -> str:
    """Lines as a text that begins at the left."""
    return inspect.cleandoc("\n" + "\n".join(lines.values()))


def encoded(line: str) -> bytes:
    """A line as ``ast`` counts its columns."""
    return line.encode("utf-8")


def summary_of(node: Definition) -> str:
    """The first paragraph of a docstring on one line, or "" where it has not the length of a query."""
    doc = docstring_of(node)
    if doc is None or not isinstance(doc.value, ast.Constant):
        return ""
    paragraph = re.split(r"\n\s*\n", inspect.cleandoc(str(doc.value.value)), maxsplit=1)[0]
    summary = " ".join(paragraph.split())
    least, most = QUERY_WORDS
    return summary if least <= len(re.findall(r"\w+", summary)) <= most else ""


def identifiers_split(text: str) -> str:
    """Words of identifiers apart, for searches by word: ``readJson_file`` -> ``read Json file``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_+", " ", text)
