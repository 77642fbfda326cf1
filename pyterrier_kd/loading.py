"""``kd.load``: a ranker from its folder, whichever kind it is.

Also what PyTerrier calls for the folder as an artifact, so that ``pt.Artifact.load(path)`` gives the same ranker.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

from .errors import CheckpointError
from .formats import bare_weights, multi_vector, sentence_transformers
from .formats.checkpoints import METADATA, read_json, tiny_bert_config
from .rankers import TK, BertDot, ColBERT, CrossEncoder, PreTTR, Ranker

RANKERS: dict[str, type[Ranker]] = {"CrossEncoder": CrossEncoder, "BertDot": BertDot, "ColBERT": ColBERT, "PreTTR": PreTTR, "TK": TK}
ENCODERS = frozenset(f"{family}Model" for family in ("Bert", "DistilBert", "Electra", "Roberta", "XLMRoberta", "Camembert", "MPNet", "ModernBert", "DebertaV2"))
SENTENCE_TRANSFORMERS = {"CrossEncoder": "CrossEncoder", "SentenceTransformer": "BertDot"}


def load(path: str | Path, **settings: Any) -> Ranker:
    """Loads a ranker, of the kind that its files tell.

    Args:
        path: A folder that ``save`` wrote, one of sentence-transformers, PyLate, colbert-ai, transformers or TinyBERT's code, the published ones of
            arXiv:2010.02666, a ``.dnn`` file, or a hub name. An encoder alone is a ``BertDot`` that takes the first token's vector.
        **settings: Settings of that ranker's constructor.

    Raises:
        CheckpointError: If the files do not tell what it is, or are no whole checkpoint.
    """
    name = os.fspath(path)
    kind = read_json(name, METADATA).get("ranker")
    if kind is None:
        kind = "ColBERT" if multi_vector.kind_of(name) else SENTENCE_TRANSFORMERS.get(sentence_transformers.kind_of(name) or "")
    architectures = [] if kind is not None else read_json(name, "config.json").get("architectures") or getattr(tiny_bert_config(name), "architectures", [])
    if any("SequenceClassification" in a for a in architectures):
        kind = "CrossEncoder"
    if "HF_ColBERT" in architectures:
        kind = "ColBERT"
    if kind is None and (found := bare_weights.read(name)):
        kind = found.ranker
    if kind is None and any(a in ENCODERS for a in architectures):      # without the head of its pre-training
        kind = "BertDot"
        if "pooling" not in settings:
            warnings.warn(f"{name!r} is an encoder that does not say how a text becomes one vector: kd.load takes the first token's, as arXiv:2010.02666 does. "
                          "Pass pooling='cls' or 'mean' to say which.", stacklevel=2)
    if kind not in RANKERS:
        raise CheckpointError(f"{name!r} does not say which ranker it is: load it with one of {', '.join(f'kd.{k}(...)' for k in RANKERS)}.")
    return RANKERS[kind](name, **settings)
