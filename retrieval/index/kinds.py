"""The kinds of index, their parts in FAISS, and the kind that a number of windows gets.

    exact   float32 vectors; a query is compared with all of them
    fast    a code of 2 bits per number; a query is compared with all codes, and the nearest candidates are
            re-ranked by vectors of half precision, which stay in the file until they are read
    ivf     the same codes in cells; a query reads a quarter of the cells

The codes are product quantization of pairs of numbers in 4 bits (fast-scan). Source: André et al. 2017,
https://arxiv.org/abs/1704.07355. A random rotation comes first: it spreads the variance evenly over the
pairs. Measurements are in `docs/decisions/0009-index-kinds.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import IndexConfig, IndexKind
from retrieval.index.device import load_faiss, one_thread
from retrieval.index.vector_file import to_float16
from tfrecords.errors import DuplicateIdError

Block = tuple[NDArray[np.int64], NDArray[Any]]
"""Window ids (m,), ascending, and vectors (m, dim) of single or half precision."""
Blocks = Callable[[], Iterable[Block]]
"""Return the blocks of all vectors; each pass over them (train, add, write) calls it once more."""

CODE_TRAINING = 16_384
"""Vectors that train the codes: a thousand for each of their 16 values."""
CELL_TRAINING = 64
"""Vectors per cell that train the cells; FAISS asks for at least 39."""
MIN_TRAINING = 39 * 16
"""With fewer vectors every kind is exact: FAISS warns that it has too few to train."""
MAX_CELLS = 1024
"""More cells cost more to build than they save: a query reads a quarter of them in any case."""


@dataclass(frozen=True)
class BlockSizes:
    """How many vectors each step of building holds in memory at a time; the result does not depend on it."""

    group: int = 16_384
    """Vectors that are encoded and written together, at least: 16 MB."""
    append: int = 262_144
    """Vectors whose codes are appended to an index in memory together, at least."""
    sort: int = 500_000
    """Vectors that are sorted into cells together, about: 170 MB."""


DEFAULT_SIZES = BlockSizes()


def regroup_blocks(blocks: Iterable[Block], size: int = BlockSizes.group) -> Iterator[Block]:
    """Yield the same vectors in blocks of `size` or more, the last one perhaps smaller.

    Raises:
        DuplicateIdError: an id is doubled, or ids do not ascend.
    """
    last_id = -1
    for ids, vectors in _grouped(blocks, size):
        if len(ids):
            if ids[0] <= last_id or (np.diff(ids) <= 0).any():
                raise DuplicateIdError(
                    "window ids: an id is doubled or out of order. Ids must ascend over all blocks."
                )
            last_id = int(ids[-1])
            yield np.ascontiguousarray(ids, np.int64), np.ascontiguousarray(vectors)


def _grouped(blocks: Iterable[Block], size: int) -> Iterator[Block]:
    group: list[Block] = []
    for block in blocks:
        group.append(block)
        if sum(len(ids) for ids, _ in group) >= size:
            yield _concatenate(group)
            group = []
    if group:
        yield _concatenate(group)


def _concatenate(group: list[Block]) -> Block:
    return np.concatenate([ids for ids, _ in group]), np.concatenate([vectors for _, vectors in group])


def as_float16(blocks: Blocks) -> Blocks:
    """Return the same blocks with vectors of half precision."""
    return lambda: ((ids, to_float16(vectors)) for ids, vectors in blocks())


def max_exact_windows(config: IndexConfig, device: str = "cpu") -> float:
    """Return the largest number of windows with which an index is exact.

    Args:
        config: kind, and the limits of "auto".
        device: "cpu" or "gpu".
    """
    if config.kind == "exact":
        return np.inf
    if config.kind != "auto":
        return MIN_TRAINING - 1
    return max(MIN_TRAINING - 1, config.exact_below_gpu if device == "gpu" else config.exact_below)


def choose_kind(kind: IndexKind, count: int, config: IndexConfig, device: str = "cpu") -> IndexKind:
    """Return the kind that `count` vectors get.

    Args:
        kind: the requested kind; "auto" depends on `count`, with a higher limit on a GPU.
        count: number of vectors.
        config: the limits of "auto".
        device: "cpu" or "gpu".

    Returns:
        "exact", "fast" or "ivf"; always "exact" with fewer than `MIN_TRAINING` vectors.
    """
    if count <= max_exact_windows(replace(config, kind=kind), device):
        return "exact"
    if kind != "auto":
        return kind
    return "fast" if count <= config.fast_below else "ivf"


def ivf_cells(count: int) -> int:
    """Return the number of cells for `count` vectors: the power of two nearest to the root, at most 1024."""
    return int(2 ** np.clip(np.round(np.log2(max(1.0, count**0.5))), 0, np.log2(MAX_CELLS)))


def train_quantizer(kind: IndexKind, sample: Blocks, sample_count: int, dim: int, count: int) -> Any:
    """Train the codes of "fast" or "ivf" and return them without vectors.

    Args:
        kind: "fast" or "ivf".
        sample: the vectors to train with: all, or a part.
        sample_count: number of vectors in `sample`.
        dim: length of a vector.
        count: number of vectors that the index will hold.
    """
    cells = ivf_cells(count) if kind == "ivf" else 0
    drawn = _draw(sample, max(CODE_TRAINING, CELL_TRAINING * cells), sample_count)
    return _train(dim, cells, drawn)


def trained_copy(index: Any) -> Any:
    """Return the trained codes of a "fast" or "ivf" index without its vectors."""
    codes = load_faiss().clone_index(index.base_index)
    codes.reset()
    return codes


def set_nprobe(codes: Any, nprobe: int) -> int:
    """Set how many cells a query reads, 0 for a quarter of them, and return that number."""
    cells = load_faiss().extract_index_ivf(codes)
    cells.nprobe = min(nprobe or max(1, cells.nlist // 4), cells.nlist)
    return int(cells.nprobe)


def _train(dim: int, cells: int, sample: NDArray[np.float32]) -> Any:
    """Train rotation, codes and, if there are any, cells."""
    faiss = load_faiss()
    rotation = faiss.RandomRotationMatrix(dim, dim)
    rotation.init(1)
    rotated = rotation.apply(sample)
    pairs = dim // 2 if dim % 2 == 0 else dim
    if cells:
        centres = _train_centres(rotated, cells)
        index = faiss.IndexIVFPQFastScan(centres, dim, cells, pairs, 4, faiss.METRIC_INNER_PRODUCT)
        index.by_residual = False  # one lookup table of a query serves all cells
    else:
        index = faiss.IndexPQFastScan(dim, pairs, 4, faiss.METRIC_INNER_PRODUCT)
    index.pq.cp.min_points_per_centroid = 1
    with one_thread():
        index.train(rotated[:: max(1, len(rotated) // CODE_TRAINING)])
    codes = faiss.IndexPreTransform(rotation, index)
    assert codes.is_trained
    return codes


def _train_centres(rotated: NDArray[np.float32], cells: int) -> Any:
    """Return an exact index of the cells' centres (spherical k-means, seeded)."""
    faiss = load_faiss()
    dim = rotated.shape[1]
    clustering = faiss.Clustering(dim, cells)
    clustering.seed, clustering.niter, clustering.min_points_per_centroid = 1, 10, 1
    clustering.spherical = True
    centres = faiss.IndexFlatIP(dim)
    clustering.train(rotated, centres)
    return centres


def _draw(blocks: Blocks, wanted: int, count: int) -> NDArray[np.float32]:
    """Return `wanted` of all `count` vectors, evenly drawn with a fixed seed, or all if there are fewer."""
    rng = np.random.default_rng(0)
    rows = np.sort(rng.choice(count, min(wanted, count), replace=False))
    parts, start = [], 0
    for ids, vectors in blocks():
        parts.append(vectors[rows[(rows >= start) & (rows < start + len(ids))] - start])
        start += len(ids)
    return np.concatenate(parts).astype(np.float32)
