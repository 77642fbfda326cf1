"""The faiss index over all vectors of a store, built once and kept beside them."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyterrier as pt

from ..atomic import atomic_file
from ..errors import require_extra
from .files import StoredVectors

BLOCK = 1 << 16         # vectors that are added to an index at once
TRAINED = 64            # vectors a list from which an index learns its lists
LEAST_PROBES, AMONG = 8, 32     # lists that are looked into, and vectors in them for each neighbour: with 8 lists alone a thousand neighbours are all that is in them
COMPRESSED = 1 << 34         # bytes of float16 vectors beyond which an index holds them compressed


def token_index(folder: Path, held: str, vectors: StoredVectors, factory: str | None, verbose: bool) -> Any:
    """The faiss index over the vectors of a store, by inner product; read from its folder, or built and put there.

    Args:
        folder: The store's.
        held: What identifies that which the store holds.
        vectors: Its vectors.
        factory: What faiss calls the kind of index. Default None: an inverted file with about four times the root of the number of vectors as
            lists; vectors in float16, or where that would take more than 16 GB, in one byte for every four dimensions.
        verbose: Whether to show a progress bar.
    """
    faiss = require_extra("faiss", "dense", "DocumentStore.retriever")
    count, width = vectors.flat.shape
    lists = 2 ** max(0, round(math.log2(4 * math.sqrt(max(1, count)))))
    lists = max(1, min(lists, count // TRAINED))
    factory = factory or (f"IVF{lists},SQfp16" if 2 * count * width <= COMPRESSED or width % 4 else f"IVF{lists},PQ{width // 4}")
    path = folder / f"tokens-{held[:8]}-{factory.replace(',', '-')}.faiss"
    if path.exists():
        index = faiss.read_index(str(path))
        if index.ntotal == count and index.d == width:
            return index
    index = faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT)
    wanted = TRAINED * max(lists, 1024)
    sample = np.arange(count) if count <= wanted else np.unique(np.random.default_rng(0).integers(0, count, wanted))
    index.train(vectors.at(sample))
    for start in pt.tqdm(range(0, count, BLOCK), desc="index of token vectors", unit="block", disable=not verbose):
        index.add(vectors.at(np.arange(start, min(start + BLOCK, count))))
    try:
        with atomic_file(path) as fresh:
            faiss.write_index(index, str(fresh))
    except Exception as error:          # faiss has errors of its own
        warnings.warn(f"The index of token vectors could not be kept at {path}, and will be built again: {error}", stacklevel=3)
    return index


def set_probes(index: Any, probes: int | None, neighbours: int) -> None:
    """Sets into how many of its lists an inverted file looks, whatever stands before it; other indexes have none.

    Args:
        index: The index.
        probes: How many. Default None: at least 8, and as many as hold 32 times the neighbours on average.
        neighbours: How many neighbours are looked up.
    """
    faiss = require_extra("faiss", "dense", "DocumentStore.retriever")
    try:
        lists = faiss.extract_index_ivf(index)
    except RuntimeError:
        return
    enough = max(LEAST_PROBES, math.ceil(AMONG * neighbours * lists.nlist / max(1, index.ntotal)))
    lists.nprobe = min(probes or enough, lists.nlist)
