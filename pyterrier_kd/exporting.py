"""``kd.export``: a trained ranker in the files of other software.

``ranker.save`` writes folders from which transformers and sentence-transformers read the model; what those do not know (a scale, a cross-encoder's lengths
and prompts, a head on the first token, a fixed number of mask tokens) stands beside it for this package alone. What is written here is for software that reads something
else, and only where it would score as this package does: a setting that it does not have is an error, never left out.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .atomic import atomic_file, atomic_folder, write_json
from .errors import ExportError, require_extra
from .formats.checkpoints import read_json
from .formats.multi_vector import PUNCTUATION
from .formats.sentence_transformers import Dense, Normalize
from .rankers import BertDot, ColBERT, CrossEncoder, Ranker
from .rankers.base import takes_types
from .rankers.first_token import FROM_FIRST_TOKEN, first_token_only
from .rankers.heads import scores_of
from .tokens import tokenizer_fingerprint

IN_ONE_FILE = 400_000_000     # parameters, of which an ONNX file (at most 2 GB) cannot hold more in float32; they then stand beside it
BERT_BASE = {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "vocab_size": 30522}     # what pyterrier_colbert builds, whatever a file says
BERT_TOKENIZER = "515e440013b4b6a2"     # the fingerprint of its tokenizer


def export(ranker: Ranker, path: str | Path, format: str) -> Path:
    """Writes a ranker for other software.

    Args:
        ranker: What is written.
        path: The folder or file. An earlier export, or another .dnn file, is replaced.
        format: "colbert-v2", a folder of colbert-ai; "dnn", a file whose name ends so, that pyterrier_colbert loads; or "onnx", a folder with ``model.onnx``, the tokenizer
            and ``ranker.json``, which says what goes in and comes out: of a ``CrossEncoder`` scores (N,), of a ``BertDot`` vectors (N, H), of a
            ``ColBERT`` vectors (N, T, H). Needs the extra ``onnx``.

    Returns:
        The path.

    Raises:
        ExportError: If that software could not score as this ranker does.
        FileExistsError: If there are other files in the folder, or a folder where a file is to be.
        ImportError: If an extra is not installed.
        ValueError: If the format is unknown, or the path of a .dnn file does not end so.
    """
    if format not in WRITERS:
        raise ValueError(f"export(format={format!r}) is unknown: it is one of {', '.join(map(repr, WRITERS))}. sentence-transformers reads what save() writes.")
    WRITERS[format](ranker, Path(path))
    return Path(path)


def require_classic(ranker: Ranker, format: str) -> tuple[ColBERT, Tensor]:
    """A ColBERT that colbert-ai's code can be, and its projection.

    Raises:
        ExportError: If it is none.
    """
    if not isinstance(ranker, ColBERT):
        raise ExportError(f"export(format={format!r}) writes a ColBERT; this is {ranker!r}.")
    steps = list(ranker.model.steps)
    projected = len(steps) == 2 and isinstance(steps[0], Dense) and isinstance(steps[1], Normalize) and steps[0].linear.bias is None \
        and steps[0].activation_name == "Identity" and not steps[0].adds_input
    wanted = {"a projection without bias, then norm 1": projected, "expansion='fill'": ranker.expansion == "fill", "expand_before_end=False": not ranker.expand_before_end,
              "no prompts": not ranker.query_prompt and not ranker.text_prompt, "a marker on each side": bool(ranker.query_marker and ranker.text_marker),
              "skip=() or 'punctuation'": ranker.skip in ((), PUNCTUATION), "float32": ranker.dtype is None}
    lacking = [name for name, holds in wanted.items() if not holds]
    if lacking:
        raise ExportError(f"colbert's code scores with {', '.join(wanted)}; {ranker!r} lacks: {', '.join(lacking)}. Train one with preset='v1' or 'v2'.")
    return ranker, steps[0].linear.weight.detach().cpu()


def write_colbert_v2(ranker: Ranker, path: Path) -> None:
    """A folder of colbert-ai: the weights of its ``HF_ColBERT``, and ``artifact.metadata``."""
    colbert, weight = require_classic(ranker, "colbert-v2")
    prefix = colbert.encoder.base_model_prefix
    with atomic_folder(path, replaces="artifact.metadata") as folder:
        colbert.encoder.save_pretrained(folder)
        colbert.tokenizer.save_pretrained(folder)
        weights = {f"{prefix}.{name}": value.contiguous() for name, value in colbert.encoder.state_dict().items()}
        save_file({**weights, "linear.weight": weight.contiguous()}, folder / "model.safetensors", metadata={"format": "pt"})
        write_json(folder / "config.json", {**read_json(str(folder), "config.json"), "architectures": ["HF_ColBERT"]})
        reads = read_json(str(folder), "tokenizer_config.json")     # its readers mostly have a transformers below 5, which knows this setting by its older name
        write_json(folder / "tokenizer_config.json", {"additional_special_tokens" if key == "extra_special_tokens" else key: value for key, value in reads.items()})
        told = {"query_token_id": colbert.query_marker, "doc_token_id": colbert.text_marker, "query_token": "[Q]", "doc_token": "[D]", "query_maxlen": colbert.query_length,
                "doc_maxlen": colbert.doc_length, "dim": colbert.width, "similarity": "cosine", "mask_punctuation": bool(colbert.skip),
                "attend_to_mask_tokens": colbert.attend_expansion, "checkpoint": str(path)}
        write_json(folder / "artifact.metadata", told)


def write_dnn(ranker: Ranker, path: Path) -> None:
    """A ``.dnn`` file. Its reader builds bert-base-uncased and fills in what fits, silently: nothing else may be in it."""
    colbert, weight = require_classic(ranker, "dnn")
    config: Any = colbert.encoder.config
    found = {key: getattr(config, key, None) for key in BERT_BASE}
    if config.model_type != "bert" or found != BERT_BASE:
        raise ExportError(f"pyterrier_colbert builds bert-base-uncased for every .dnn file and would leave out silently what does not fit; this is a {config.model_type} "
                          f"of {found}, not of {BERT_BASE}.")
    if tokenizer_fingerprint(colbert.tokenizer) != BERT_TOKENIZER:
        raise ExportError("pyterrier_colbert reads with the tokenizer of bert-base-uncased; that of this ranker has another vocabulary, or reads otherwise.")
    settings = {"query_length": colbert.query_length, "doc_length": colbert.doc_length, "width": colbert.width, "skip": colbert.skip, "query_marker": colbert.query_marker,
                "text_marker": colbert.text_marker, "attend_expansion": colbert.attend_expansion}
    fixed = {"query_length": 32, "doc_length": 180, "width": 128, "skip": (), "query_marker": "[unused0]", "text_marker": "[unused1]", "attend_expansion": False}
    if settings != fixed:
        raise ExportError(f"pyterrier_colbert scores with {fixed}; this ranker has {({k: v for k, v in settings.items() if v != fixed[k]})}.")
    weights = {f"bert.{name}": value.detach().cpu() for name, value in colbert.encoder.state_dict().items() if not name.endswith("position_ids")}
    if path.suffix != ".dnn":
        raise ValueError(f"export(path={str(path)!r}, format='dnn'): its readers want a file whose name ends in .dnn.")
    if path.is_dir():
        raise FileExistsError(f"{path} is a folder; a .dnn is a file.")
    held = {"epoch": 0, "batch": 0, "model_state_dict": {**weights, "linear.weight": weight}, "optimizer_state_dict": {},
                "arguments": {"dim": colbert.width, "similarity": "cosine", "mask_punctuation": False, "query_maxlen": 32, "doc_maxlen": 180}}
    with atomic_file(path) as fresh:
        torch.save(held, fresh)


@contextlib.contextmanager
def quiet(name: str) -> Iterator[None]:
    """Within the block, a library says only what is an error."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


class Exported(nn.Module):
    """What an ONNX file computes: the tensors of a batch in, scores or vectors out.

    Args:
        ranker: Whose model it is; a copy of it is run, in float32 and on the CPU.
        names: Of the tensors, in order.
    """

    def __init__(self, ranker: Ranker, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = copy.deepcopy(ranker.model).cpu().float().eval(), names

    def forward(self, *tensors: Tensor) -> Tensor:
        """(N, T) each -> (N,), (N, H) or (N, T, H)."""
        with first_token_only(self.model.base_model) if type(self.model).__name__ in FROM_FIRST_TOKEN else contextlib.nullcontext():
            found = self.model(**dict(zip(self.names, tensors, strict=True)))
        return found if isinstance(found, Tensor) else scores_of(found.logits)


def write_onnx(ranker: Ranker, path: Path) -> None:
    """A folder with ``model.onnx``, whose batch and length are free, the tokenizer's files, and ``ranker.json``."""
    if not isinstance(ranker, CrossEncoder | BertDot | ColBERT):
        raise ExportError(f"export(format='onnx') writes a CrossEncoder, BertDot or ColBERT, each of which is one network; this is {ranker!r}.")
    for module in ("onnx", "onnxscript"):
        require_extra(module, "onnx", "export(format='onnx')")
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if takes_types(ranker.encoder, ranker.tokenizer) else [])]
    output = "scores" if isinstance(ranker, CrossEncoder) else "vectors"
    batch = torch.ones(2, 7, dtype=torch.long)      # any; the first two ids of each row differ from padding
    example = tuple(batch * (5 if name == "input_ids" else name == "attention_mask") for name in names)
    with atomic_folder(path, replaces="ranker.json") as folder:
        with quiet("torch.onnx"), torch.no_grad():
            torch.onnx.export(Exported(ranker, names), example, folder / "model.onnx", input_names=names, output_names=[output], dynamo=True, verbose=False,
                              external_data=sum(p.numel() for p in ranker.model.parameters()) > IN_ONE_FILE, dynamic_shapes=(tuple({0: "batch", 1: "tokens"} for _ in names),))
        ranker.tokenizer.save_pretrained(folder)
        told = {"ranker": type(ranker).__name__, "inputs": names, "output": output, **{k: v for k, v in ranker.settings().items() if k != "text_field"}}
        write_json(folder / "ranker.json", told)


WRITERS: dict[str, Callable[[Ranker, Path], None]] = {"colbert-v2": write_colbert_v2, "dnn": write_dnn, "onnx": write_onnx}
