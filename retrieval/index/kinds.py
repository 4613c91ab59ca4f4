"""The kinds of index, what each is made of in FAISS, and which one a number of windows gets.

    exact   float32 vectors, compared one by one
    fast    a code of 2 bits a number, all compared in registers; the likeliest ranked anew by
            half-precision vectors, which stay in the file and are read where they are needed
    ivf     the same, in cells, a quarter of which a query looks into

The codes are product quantization of pairs of numbers in 4 bits (fast-scan, André et al. 2017,
https://arxiv.org/abs/1704.07355), after a random rotation that gives every pair a like share of what there is
to tell. Measured in `docs/decisions/0009-index-kinds.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import IndexConfig, IndexKind
from retrieval.index.device import load_faiss, one_thread
from retrieval.index.vector_file import to_float16
from tfrecords.errors import DuplicateIdError

Blocks = Callable[[], Iterable[tuple[NDArray[np.int64], NDArray[Any]]]]
"""Gives blocks of (ids (m,), vectors (m, dim) of single or half precision) anew at each call: once to train,
once to add."""

CODE_TRAINING = 16_384
"""Vectors that the codes are learned from: a thousand for each of their 16 values."""
CELL_TRAINING = 64
"""Vectors per cell that cells are learned from; FAISS asks for 39 at least."""
LEAST = 39 * 16
"""Vectors below which nothing is learned and every kind is exact: FAISS would call it too few."""
ADDED = 16_384
"""Vectors that are added at a time, at least: 16 MB."""
MOST_CELLS = 1024
"""More cells cost more in the building than they save: a quarter of them is looked into in any case."""


def joined(
    blocks: Iterable[tuple[NDArray[np.int64], NDArray[Any]]],
) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
    """The same vectors in blocks of `ADDED` or more, of half precision where all of a block are.

    Raises:
        DuplicateIdError: an id comes twice, or ids do not ascend.
    """
    last = -1
    for ids, vectors in _larger(blocks):
        if len(ids):
            if ids[0] <= last or (np.diff(ids) <= 0).any():
                raise DuplicateIdError(
                    "window ids must ascend over all blocks; one is doubled or out of order"
                )
            last = int(ids[-1])
            yield np.ascontiguousarray(ids, np.int64), np.ascontiguousarray(vectors)


def _larger(
    blocks: Iterable[tuple[NDArray[np.int64], NDArray[Any]]],
) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
    waiting: list[tuple[NDArray[np.int64], NDArray[Any]]] = []
    for block in blocks:
        waiting.append(block)
        if sum(len(ids) for ids, _ in waiting) >= ADDED:
            yield np.concatenate([ids for ids, _ in waiting]), np.concatenate([v for _, v in waiting])
            waiting = []
    if waiting:
        yield np.concatenate([ids for ids, _ in waiting]), np.concatenate([v for _, v in waiting])


def as_float16(blocks: Blocks) -> Blocks:
    """The same vectors, of half precision."""
    return lambda: ((ids, to_float16(vectors)) for ids, vectors in blocks())


def most_exact(config: IndexConfig, device: str = "cpu") -> float:
    """Vectors up to which an index of a configuration is exact.

    Args:
        config: kind, and where "auto" changes.
        device: "cpu" or "gpu".
    """
    if config.kind == "exact":
        return np.inf
    if config.kind != "auto":
        return LEAST - 1
    return max(LEAST - 1, config.exact_below_gpu if device == "gpu" else config.exact_below)


def choose_kind(kind: IndexKind, count: int, config: IndexConfig, device: str = "cpu") -> IndexKind:
    """The kind that `count` vectors get.

    Args:
        kind: as asked for; "auto" goes by number, on a GPU up to more vectors.
        count: how many vectors.
        config: where "auto" changes.
        device: "cpu" or "gpu".

    Returns:
        "exact", "fast" or "ivf". Of fewer than `LEAST` vectors it is always "exact".
    """
    if count <= most_exact(replace(config, kind=kind), device):
        return "exact"
    if kind != "auto":
        return kind
    return "fast" if count <= config.fast_below else "ivf"


def ivf_cells(count: int) -> int:
    """Cells of so many vectors: the power of two nearest their root, `MOST_CELLS` at most."""
    return int(2 ** np.clip(np.round(np.log2(max(1.0, count**0.5))), 0, np.log2(MOST_CELLS)))


def train_quantizer(kind: IndexKind, sample: Blocks, known: int, dim: int, count: int) -> Any:
    """The codes of "fast" or "ivf" without vectors.

    Args:
        kind: "fast" or "ivf".
        sample: vectors to learn from: all, or some.
        known: how many these are.
        dim: their length.
        count: how many vectors the index gets.
    """
    cells = ivf_cells(count) if kind == "ivf" else 0
    return _trained(dim, cells, _sample(sample, max(CODE_TRAINING, CELL_TRAINING * cells), known))


def trained_copy(index: Any) -> Any:
    """The codes of what an index that learns has learned, without its vectors."""
    codes = load_faiss().clone_index(index.base_index)
    codes.reset()
    return codes


def refined(index: Any) -> Any:
    """The index itself where it ranks anew by full vectors, or None where it does not."""
    return index if isinstance(index, load_faiss().IndexRefine) else None


def set_probes(index: Any, probes: int) -> int:
    """Let queries look into so many cells of an index, into a quarter of them for 0.

    Returns:
        How many that is.
    """
    cells = load_faiss().extract_index_ivf(index)
    cells.nprobe = min(probes or max(1, cells.nlist // 4), cells.nlist)
    return int(cells.nprobe)


def _trained(dim: int, cells: int, sample: NDArray[np.float32]) -> Any:
    """Rotation and codes, in cells if any are wanted."""
    faiss = load_faiss()
    rotation = faiss.RandomRotationMatrix(dim, dim)
    rotation.init(1)
    turned = rotation.apply(sample)
    pairs = dim // 2 if dim % 2 == 0 else dim
    if cells:
        index = faiss.IndexIVFPQFastScan(
            _centres(turned, cells), dim, cells, pairs, 4, faiss.METRIC_INNER_PRODUCT
        )
        index.by_residual = False  # one table of a query for all cells
    else:
        index = faiss.IndexPQFastScan(dim, pairs, 4, faiss.METRIC_INNER_PRODUCT)
    index.pq.cp.min_points_per_centroid = 1
    with one_thread():
        index.train(turned[:: max(1, len(turned) // CODE_TRAINING)])
    whole = faiss.IndexPreTransform(rotation, index)
    assert whole.is_trained
    return whole


def _centres(turned: NDArray[np.float32], cells: int) -> Any:
    """An exact index of the cells' centres."""
    faiss = load_faiss()
    dim = turned.shape[1]
    clustering = faiss.Clustering(dim, cells)
    clustering.seed, clustering.spherical, clustering.niter, clustering.min_points_per_centroid = (
        1,
        True,
        10,
        1,
    )
    centres = faiss.IndexFlatIP(dim)
    clustering.train(turned, centres)
    return centres


def _sample(blocks: Blocks, wanted: int, count: int) -> NDArray[np.float32]:
    """So many of all `count` vectors, or all if they are fewer, evenly drawn, seeded."""
    rng = np.random.default_rng(0)
    picked = np.sort(rng.choice(count, min(wanted, count), replace=False))
    parts, start = [], 0
    for ids, vectors in blocks():
        mine = picked[(picked >= start) & (picked < start + len(ids))] - start
        parts.append(vectors[mine])
        start += len(ids)
    return np.concatenate(parts).astype(np.float32)
