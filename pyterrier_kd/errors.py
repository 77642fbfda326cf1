"""The errors of this package.

Every message names who raised it, what was needed, what was found and what to do. All of them are ``ValueError``
or ``ImportError``, so that callers who know nothing of this package can still catch them.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any


class DataError(ValueError):
    """The rows, texts or labels that were passed cannot be used as they are."""


class MissingSignal(ValueError):
    """A loss needs a signal that a ranker or a teacher does not report."""


class LayerMismatch(ValueError):
    """The layers of a student and a teacher cannot be compared in the way that a loss wants."""


class CheckpointError(ValueError):
    """A folder does not hold what a checkpoint of this kind must hold."""


class ExportError(ValueError):
    """Other software could not score as a ranker that is to be exported does."""


class StoreError(ValueError):
    """A store of document vectors is missing, damaged, of another kind, or another encoder's."""


class TeacherError(ValueError):
    """A teacher did not give one finite score for every row that it was asked about."""


def some(items: Iterable[Any], limit: int = 3) -> str:
    """Names the first few of ``items`` for a message: ``'a', 'b', 'c' and 4 more``."""
    items = list(items)
    named = ", ".join(repr(item) for item in items[:limit])
    return named + (f" and {len(items) - limit} more" if len(items) > limit else "")


def require_columns(columns: Sequence[str], needed: Sequence[str], who: str, hint: str = "") -> None:
    """Raises an error that says which of the ``needed`` columns are missing, and which columns are there.

    Args:
        columns: The columns that a frame has.
        needed: The columns that it must have.
        who: Who needs them, for the message.
        hint: What to do about it, for the message.

    Raises:
        DataError: If any of ``needed`` is missing.
    """
    missing = [c for c in needed if c not in columns]
    if missing:
        raise DataError(f"{who} needs the column(s) {missing}; the frame has {list(columns)}. {hint}".strip())


def require_extra(module: str, extra: str, who: str) -> ModuleType:
    """Imports an optional dependency, or says which extra brings it.

    Args:
        module: The module to import.
        extra: The extra of this package that installs it.
        who: Who needs it, for the message.

    Raises:
        ImportError: If it is not installed; the message holds the pip line.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        line = f"pip install 'pyterrier-kd[{extra}]'"
        raise ImportError(f"{who} needs the package {module!r}, which is not installed: {line}") from error
