"""``kd.load``: a ranker from its folder, whichever kind it is.

Also what PyTerrier calls for the folder as an artifact, so that ``pt.Artifact.load(path)`` gives the same ranker.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .errors import CheckpointError
from .formats import sentence_transformers
from .formats.checkpoints import METADATA, read_json
from .rankers import BertDot, ColBERT, CrossEncoder, Ranker

RANKERS: dict[str, type[Ranker]] = {"CrossEncoder": CrossEncoder, "BertDot": BertDot, "ColBERT": ColBERT}
SENTENCE_TRANSFORMERS = {"CrossEncoder": "CrossEncoder", "SentenceTransformer": "BertDot", "MultiVectorEncoder": "ColBERT", "ColBERT": "ColBERT"}    # the last is PyLate's


def load(path: str | Path, **settings: Any) -> Ranker:
    """Loads a ranker, of the kind that its files tell.

    Args:
        path: A folder that ``save`` wrote, a sentence-transformers or Hugging Face folder, or a hub name.
        **settings: Settings of that ranker's constructor.

    Raises:
        CheckpointError: If the files do not tell what it is, or are no whole checkpoint.
    """
    name = os.fspath(path)
    kind = read_json(name, METADATA).get("ranker")
    if kind is None:
        kind = SENTENCE_TRANSFORMERS.get(sentence_transformers.kind_of(name) or "")
    architectures = read_json(name, "config.json").get("architectures") or [] if kind is None else []
    if any("SequenceClassification" in a for a in architectures):
        kind = "CrossEncoder"
    if "HF_ColBERT" in architectures:
        kind = "ColBERT"
    if kind not in RANKERS:
        raise CheckpointError(f"{name!r} does not say which ranker it is: load it with one of {', '.join(f'kd.{k}(...)' for k in RANKERS)}.")
    return RANKERS[kind](name, **settings)
