"""``pt.get_dataset("kd:...")``: collections that are on every machine where this package is installed."""

from .functions import identifiers_split
from .provider import KDDatasets, PyCode, PyCodeModules

__all__ = ["KDDatasets", "PyCode", "PyCodeModules", "identifiers_split"]
