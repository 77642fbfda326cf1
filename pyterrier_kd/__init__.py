"""pyterrier_kd: small, fast neural rankers, distilled from big ones inside PyTerrier pipelines.

The names below are imported when they are first used, so that importing the package costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import datasets, errors, losses, passages, strategies
    from .distiller import Distiller
    from .loading import load
    from .rankers import BertDot, ColBERT, CrossEncoder, Ranker
    from .sampling import KeepTop, Sampler
    from .stages import Stage
    from .stores import DocumentStore
    from .strategies import Strategy
    from .teachers import Ensemble, Teacher

_MODULES = ("datasets", "errors", "losses", "passages", "strategies")
_NAMES = {
    "BertDot": "rankers", "ColBERT": "rankers", "CrossEncoder": "rankers", "Distiller": "distiller", "DocumentStore": "stores", "Ensemble": "teachers",
    "KeepTop": "sampling", "Ranker": "rankers", "Sampler": "sampling", "Stage": "stages", "Strategy": "strategies", "Teacher": "teachers", "load": "loading",
}

__all__ = [
    "BertDot", "ColBERT", "CrossEncoder", "Distiller", "DocumentStore", "Ensemble", "KeepTop", "Ranker", "Sampler", "Stage", "Strategy", "Teacher",
    "datasets", "errors", "load", "losses", "passages", "strategies",
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
