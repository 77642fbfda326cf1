"""How the benchmarks measure: contestants take turns, so that a machine whose speed drifts slows all alike; the first round warms up and is not counted."""

import statistics
import time
import warnings
from collections.abc import Callable

import torch
import transformers


def quiet() -> None:
    """Nothing but figures is printed."""
    warnings.filterwarnings("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def rounds(contestants: dict[str, Callable[[], object]], count: int, device: str) -> dict[str, list[float]]:
    """Seconds of each contestant in each of ``count`` rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for i in range(count + 1):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            if i:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def spread(values: list[float], digits: int = 2) -> str:
    """Median (least to most)."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
