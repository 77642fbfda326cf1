"""pyterrier_kd: small, fast neural rankers, distilled from big ones inside PyTerrier pipelines.

The names below are imported when they are first used, so that importing the package costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import datasets, errors, losses, pairs, passages, strategies
    from .distiller import Distiller
    from .exporting import export
    from .loading import load
    from .mining import Mined
    from .rankers import TK, BertDot, ColBERT, CrossEncoder, PreTTR, Ranker
    from .sampling import KeepTop, Sampler
    from .stages import Stage
    from .stores import DocumentStore
    from .strategies import Strategy
    from .teachers import BySignal, Ensemble, Teacher
    from .topics import QueryTopics

_MODULES = ("datasets", "errors", "losses", "pairs", "passages", "strategies")
_NAMES = {
    "BertDot": "rankers", "BySignal": "teachers", "ColBERT": "rankers", "CrossEncoder": "rankers", "Distiller": "distiller", "DocumentStore": "stores",
    "Ensemble": "teachers", "KeepTop": "sampling", "Mined": "mining", "PreTTR": "rankers", "QueryTopics": "topics", "Ranker": "rankers", "Sampler": "sampling",
    "Stage": "stages", "Strategy": "strategies", "TK": "rankers", "Teacher": "teachers", "export": "exporting", "load": "loading",
}

__all__ = [
    "TK", "BertDot", "BySignal", "ColBERT", "CrossEncoder", "Distiller", "DocumentStore", "Ensemble", "KeepTop", "Mined", "PreTTR", "QueryTopics", "Ranker", "Sampler",
    "Stage", "Strategy", "Teacher", "datasets", "errors", "export", "load", "losses", "pairs", "passages", "strategies",
]


def __getattr__(name: str) -> Any:
    """Imports a public name at its first use."""
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name in _NAMES:
        value = getattr(importlib.import_module(f".{_NAMES[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
