"""Long documents: split into passages, ranked by passages, and put together again.

    candidates >> kd.passages.split(student) >> student >> kd.passages.max_passage()

``compile()`` makes one step of such a pipeline, which tokenises each document once.
"""

from .aggregate import Aggregate, first_passage, k_max_mean, max_passage, mean_passage
from .split import Split, split

__all__ = ["Aggregate", "Split", "first_passage", "k_max_mean", "max_passage", "mean_passage", "split"]
