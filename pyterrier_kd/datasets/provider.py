"""kd:pycode as a PyTerrier dataset: search the functions, or the modules, of the installed Python packages in plain English.

Built at first use from what is installed, in under a minute, and kept in PyTerrier's home under a name that
changes with the packages.
"""

from __future__ import annotations

import gzip
import json
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyterrier as pt

from ..errors import some
from . import pycode

FIELDS = ("text", "title", "package", "path", "line")


class KDDatasets(pt.datasets.DatasetProvider):
    """The provider behind the prefix ``kd:``."""

    def get_dataset(self, name: str) -> pt.datasets.Dataset:
        """The dataset of that name.

        Raises:
            KeyError: If there is none.
        """
        if name not in DATASETS:
            raise KeyError(name)
        return DATASETS[name]()

    def list_dataset_names(self) -> Iterable[str]:
        """The names after the prefix."""
        return list(DATASETS)


class PyCode(pt.datasets.Dataset):
    """The functions of the Python standard library and of installed packages, without their docstrings.

    A query is the first paragraph of a function's docstring; the function that it was taken from is relevant. Topics and
    qrels have the variants "train", "valid" (300) and "test" (200, the default), split by module.

    Args:
        home: Where it is kept. Default: in PyTerrier's home.
    """

    name, documents = "kd:pycode", "docs.jsonl.gz"

    def __init__(self, home: str | Path | None = None) -> None:
        self.home = home

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def folder(self, verbose: bool = True) -> Path:
        """The folder that holds the collection, which is built if it is not there.

        Two processes may build at once: each writes a folder of its own, and the first to finish is kept.
        """
        path = Path(self.home or Path(pt.io.pyterrier_home()) / "kd") / f"pycode-{pycode.version()}"
        if not path.is_dir():
            fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
            fresh.mkdir(parents=True)
            try:
                pycode.build(fresh, verbose)
                fresh.rename(path)
            except OSError:
                if not path.is_dir():           # otherwise another process was first
                    raise
            finally:
                shutil.rmtree(fresh, ignore_errors=True)
        return path

    def _docs(self, verbose: bool = False) -> Iterator[dict[str, Any]]:
        with gzip.open(self.folder(verbose) / self.documents, "rt", encoding="utf-8") as lines:
            for line in pt.tqdm(lines, desc=f"{self.name} documents", unit="doc", disable=not verbose):
                yield json.loads(line)

    def get_corpus_iter(self, *, verbose: bool = True) -> Iterator[dict[str, Any]]:
        """The documents: ``docno``, ``text``, ``title``, ``package``, ``path``, ``line``."""
        return self._docs(verbose)

    def get_corpus_lang(self) -> str:
        """English, as far as code is."""
        return "en"

    def _topics(self, variant: str | None) -> list[dict[str, Any]]:
        variant = variant or "test"
        if variant not in pycode.SPLITS:
            raise ValueError(f"{self.name} has the variants {', '.join(pycode.SPLITS)}, not {variant!r}.")
        lines = (self.folder() / f"topics.{variant}.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def get_topics(self, variant: str | None = None) -> pd.DataFrame:
        """Columns ``qid``, ``query`` (words only, safe for any parser) and ``summary`` (as it was written).

        Args:
            variant: "train", "valid" or "test" (default).
        """
        return pd.DataFrame(self._topics(variant), columns=["qid", "query", "summary"])

    def get_topics_lang(self) -> str:
        """English."""
        return "en"

    def get_qrels(self, variant: str | None = None) -> pd.DataFrame:
        """Columns ``qid``, ``docno``, ``label``; see ``get_topics``."""
        return pd.DataFrame(self._topics(variant), columns=["qid", "docno"]).assign(label=1)

    def text_loader(self, fields: str | list[str] = "text", *, verbose: bool = False) -> pt.Transformer:
        """A transformer that adds the fields of each document to a frame with ``docno``.

        Args:
            fields: Some of "text" (default), "title", "package", "path", "line".
            verbose: Whether to show a progress bar.
        """
        fields = [fields] if isinstance(fields, str) else list(fields)
        unknown = [f for f in fields if f not in FIELDS]
        if unknown:
            raise ValueError(f"{self.name} documents have the fields {', '.join(FIELDS)}, not {some(unknown)}.")
        table = pd.DataFrame(self._docs(verbose)).set_index("docno")[fields]
        return TextLoader(table, self.name)

    def _describe_component(self, component: str) -> bool | list[str] | None:
        held: dict[str, bool | list[str]] = {"topics": list(pycode.SPLITS), "qrels": list(pycode.SPLITS), "corpus": True}
        return held.get(component)


class PyCodeModules(PyCode):
    """The same queries over whole modules, without their docstrings: long documents of which the passage that answers is known.

    The module that holds the function is relevant. Topics also have ``function``, its name, and ``begins``, the number of the module's
    words before it. Queries whose module is no document (its source is another's too) are left out.
    """

    name, documents = "kd:pycode/modules", "modules.jsonl.gz"

    def _topics(self, variant: str | None) -> list[dict[str, Any]]:
        rows = super()._topics(variant)
        return [{**row, "docno": row["module"], "function": row["docno"]} for row in rows if row["module"] is not None]

    def get_topics(self, variant: str | None = None) -> pd.DataFrame:
        """Columns ``qid``, ``query``, ``summary``, ``function`` and ``begins``; see ``PyCode.get_topics``."""
        return pd.DataFrame(self._topics(variant), columns=["qid", "query", "summary", "function", "begins"])


DATASETS = {"pycode": PyCode, "pycode/modules": PyCodeModules}


class TextLoader(pt.Transformer):
    """Adds columns of a table, by docno.

    Args:
        table: A frame indexed by docno.
        name: Of the dataset, for messages.
    """

    schematic = {"label": "Text loader", "help_url": None}

    def __init__(self, table: pd.DataFrame, name: str) -> None:
        self.table, self.name = table, name

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """The frame with the table's columns added; a docno that the table does not have is an error."""
        pt.validate.columns(inp, includes=["docno"], context=self)
        unknown = ~inp["docno"].isin(self.table.index)
        if unknown.any():
            raise KeyError(f"{int(unknown.sum())} docnos are not in {self.name}, such as {some(inp.loc[unknown, 'docno'])}: was the index built from another collection?")
        rows = self.table.loc[inp["docno"].tolist()]
        return inp.assign(**{c: rows[c].to_numpy() for c in self.table.columns})

    def __repr__(self) -> str:
        return f"TextLoader({list(self.table.columns)})"
