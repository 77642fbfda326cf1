"""What a store's vectors depend on: the ranker, its weights and tokenizer, and the settings that concern texts."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from ..errors import StoreError
from ..rankers import TwoSided

QUERY_SETTINGS = frozenset({"query_prompt", "query_length", "query_marker", "expansion", "expand_before_end", "attend_expansion", "scale"})


@dataclass(frozen=True)
class Stamp:
    """What tells a ranker's vectors of texts from those of others.

    Attributes:
        encoder: The ranker's ``text_fingerprint``.
        told: Its ``text_settings`` and how it reads, which are part of that and quickly compared.
    """

    encoder: str
    told: tuple[dict[str, Any], str]

    @classmethod
    def of(cls, ranker: TwoSided) -> Stamp:
        """A ranker's."""
        return cls(text_fingerprint(ranker), quickly_told(ranker))


def quickly_told(ranker: TwoSided) -> tuple[dict[str, Any], str]:
    """What a stamp says besides the weights."""
    return text_settings(ranker), ranker.reads_by()


def text_settings(ranker: TwoSided) -> dict[str, Any]:
    """The settings on which a ranker's vectors of texts depend."""
    return {**{k: v for k, v in ranker.settings().items() if k not in QUERY_SETTINGS}, "dtype": str(ranker.dtype or "float32")}


def text_fingerprint(ranker: TwoSided) -> str:
    """16 hexadecimal digits for all on which a ranker's vectors of texts depend.

    Raises:
        StoreError: If it has none.
    """
    if not isinstance(ranker, TwoSided):
        hint = " Pass its .student_." if hasattr(ranker, "student_") else ""
        raise StoreError(f"A store holds what a ranker makes of texts alone; {ranker!r} does not read them alone (BertDot, ColBERT, PreTTR and TK do).{hint}")
    told = json.dumps([type(ranker).__name__, ranker.fingerprint(), ranker.reads_by(), text_settings(ranker)], sort_keys=True)
    return hashlib.blake2b(told.encode(), digest_size=8).hexdigest()
