"""A ranker as a value and as a folder: what makes two rankers the same, and how one is kept.

PyTerrier shares the work of transformers that are equal, and stores of scores ask whose they are. So a ranker is identified by its weights and by
the settings on which its scores depend; its name plays no part. Its folder is a Hugging Face model folder and a PyTerrier artifact.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Self

import pyterrier as pt
import torch

from ..atomic import atomic_folder, write_json
from ..errors import CheckpointError
from ..formats.checkpoints import METADATA, read_json, weights_fingerprint
from ..tokens import tokenizer_fingerprint


class Saved(ABC):
    """What a ranker is told by, and how it is saved and loaded.

    Attributes:
        model: The torch module.
        tokenizer: Its transformers tokenizer.
        metadata_: What is known of how the weights came to be (teacher, strategy, losses, seed, measure, ...).
    """

    SETTINGS: ClassVar[tuple[str, ...]]

    model: Any      # a torch module; its own attributes (config, heads) depend on its kind
    tokenizer: Any
    name: str
    texts: pt.Transformer | None
    dtype: torch.dtype | None
    metadata_: dict[str, Any]
    _fingerprint: tuple[Any, str] | None
    _reads_by: tuple[Any, str] | None

    def settings(self) -> dict[str, Any]:
        """The settings on which scores depend, as JSON values."""
        values = {key: getattr(self, key) for key in self.SETTINGS}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @abstractmethod
    def _structure(self) -> dict[str, Any]:
        """How scores are computed of the weights, as far as settings do not tell."""

    def fingerprint(self) -> str:
        """16 hexadecimal digits that identify the model: its weights and what is computed of them; computed once for each state of the weights.

        Torch counts the changes of a tensor, but fused optimisers change it uncounted: norms tell as well.
        """
        held = [*self.model.parameters(), *self.model.buffers()]
        state = tuple((id(p), p.data_ptr(), p._version, float(p.detach().float().norm())) for p in held)
        if self._fingerprint is None or self._fingerprint[0] != state:
            self._fingerprint = (state, weights_fingerprint(self.model, json.dumps(self._structure(), sort_keys=True, default=str)))
        return self._fingerprint[1]

    def _key(self) -> tuple[Any, ...]:
        """What makes two rankers score alike; PyTerrier shares the work of transformers that are equal."""
        return (type(self).__name__, self.fingerprint(), self.reads_by(), repr(self.settings()), repr(self.texts), self.dtype)

    def reads_by(self) -> str:
        """16 hexadecimal digits that identify the tokenizer; computed once."""
        if self._reads_by is None or self._reads_by[0] is not self.tokenizer:
            self._reads_by = (self.tokenizer, tokenizer_fingerprint(self.tokenizer))
        return self._reads_by[1]

    def __eq__(self, other: object) -> bool:
        # two text loaders may look alike and load different texts: their own equality counts
        return self._key() == other._key() and self.texts == other.texts if isinstance(other, Saved) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        shown = f"{Path(self.name).name if Path(self.name).is_absolute() else self.name!r}, " if self.name else ""
        return f"{type(self).__name__}({shown}weights={self.fingerprint()[:6]})"

    def save(self, path: str | Path) -> Path:
        """Writes a folder that is a Hugging Face model folder and a PyTerrier artifact.

        The folder appears whole or not at all; if writing fails, what was at ``path`` stays as it was.

        Args:
            path: The folder; replaced if it holds a model already.

        Raises:
            FileExistsError: If it is a file, or holds other files, which would be lost.
            OSError: If the disk is full or cannot be written.
        """
        with atomic_folder(path, replaces="config.json") as folder:
            self._save_model(folder)
            self.tokenizer.save_pretrained(folder)
            write_json(folder / METADATA, {
                "type": "neural_ranker", "format": "kd", "package_hint": "pyterrier-kd", "ranker": type(self).__name__,
                "settings": self.settings(), "fingerprint": self.fingerprint(), **self.metadata_})
        return Path(path)

    @abstractmethod
    def _save_model(self, folder: Path) -> None:
        """Writes weights and configuration."""

    @classmethod
    def load(cls, path: Any, **settings: Any) -> Self:
        """Loads what ``save`` wrote; the same as the constructor with the folder's name.

        Raises:
            CheckpointError: If the folder is incomplete, damaged or of another kind of ranker.
        """
        return cls(str(path), **settings)    # type: ignore[call-arg]

    from_pretrained = load


WRITTEN = ("type", "format", "package_hint", "ranker", "settings", "fingerprint")     # anew, at every save


def stored_metadata(name: str, ranker: str, also: tuple[str, ...] = ()) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings that ``save`` wrote into a folder, and what it tells of its making; both {} for a foreign folder.

    Args:
        name: The folder.
        ranker: The kind that is wanted.
        also: Other kinds of which the weights can be taken, and what they read, though not their other settings.

    Raises:
        CheckpointError: If the folder holds another kind of ranker.
    """
    metadata = read_json(name, METADATA)
    if metadata.get("ranker") in also:
        return {k: metadata["settings"][k] for k in ("text_field", "query_prompt", "text_prompt")}, {"made_from": metadata["fingerprint"]}
    if metadata.get("ranker", ranker) != ranker:
        raise CheckpointError(f"{name!r} holds a {metadata['ranker']}, not a {ranker}: load it with kd.load({name!r}).")
    return metadata.get("settings", {}), {k: v for k, v in metadata.items() if k not in WRITTEN}
