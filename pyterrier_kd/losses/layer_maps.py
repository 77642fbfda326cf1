"""Which teacher layer each student layer learns from. Layers are numbered from 0."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from ..errors import LayerMismatch

LayerMap = Literal["uniform", "last", "skip"] | Sequence[int | None] | Mapping[int, int]
Pairs = tuple[tuple[int, int], ...]


def layer_pairs(layers: LayerMap | Pairs, student: int, teacher: int) -> Pairs:
    """Which student layer learns from which teacher layer; layers are numbered from 0.

    Args:
        layers: "uniform": layer m of M from layer m * N / M of N, counted from 1 and rounded (arXiv:1909.10351). "last": the student's
            layers from the teacher's last ones. "skip": every (N / M)-th, the student's last layer left out (both arXiv:1908.09355). A
            list: for each student layer a teacher layer, or None. A mapping: from student layers to teacher layers, negative ones
            counted from the end.
        student: M, the student's number of layers.
        teacher: N, the teacher's.

    Raises:
        LayerMismatch: If a layer does not exist, or none is mapped.
    """
    if isinstance(layers, str):
        if student > teacher:
            raise LayerMismatch(f"layers={layers!r} maps a student of {student} layers to a teacher of {teacher}, which has fewer: pass a list of {student} teacher layers.")
        uniform = [math.floor((m + 1) * teacher / student + 0.5) - 1 for m in range(student)]
        chosen: Iterable[tuple[int, int | None]] = enumerate({
            "uniform": uniform, "last": [m + teacher - student for m in range(student)], "skip": uniform[:-1]}[layers])
    elif layers and all(isinstance(entry, tuple) for entry in layers):
        chosen = [(m % student if -student <= m < student else m, g % teacher if -teacher <= g < teacher else g) for m, g in layers]   # type: ignore[misc]
    else:
        chosen = list(enumerate(layers))                                                             # type: ignore[arg-type]
        if len(chosen) != student:
            raise LayerMismatch(f"layers={list(layers)} names {len(list(layers))} teacher layers for a student of {student} layers: one for each is needed, None for none.")
    pairs = tuple((m, g) for m, g in chosen if g is not None)
    wrong = [(m, g) for m, g in pairs if not (0 <= m < student and 0 <= g < teacher)]
    if wrong or not pairs:
        raise LayerMismatch(f"layers={layers!r} maps {f'the (student, teacher) layers {wrong}' if wrong else 'no layer'}: the student has the layers 0 to {student - 1}, "
                            f"the teacher 0 to {teacher - 1}.")
    return pairs
