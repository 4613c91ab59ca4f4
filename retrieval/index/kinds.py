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
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import IndexConfig, IndexKind
from retrieval.index.device import load_faiss
from tfrecords.errors import DuplicateIdError

Blocks = Callable[[], Iterable[tuple[NDArray[np.int64], NDArray[np.float32]]]]
"""Gives blocks of (ids (m,), vectors (m, dim)) anew at each call: once to train, once to add."""

CODE_TRAINING = 16_384
"""Vectors that the codes are learned from: a thousand for each of their 16 values."""
CELL_TRAINING = 64
"""Vectors per cell that cells are learned from; FAISS asks for 39 at least."""
LEAST = 39 * 16
"""Vectors below which nothing is learned and every kind is exact: FAISS would call it too few."""
ADDED = 65_536
"""Vectors that are added at a time, at least: 64 MB."""
MOST_CELLS = 1024
"""More cells cost more in the building than they save: a quarter of them is looked into in any case."""


def joined(
    blocks: Iterable[tuple[NDArray[np.int64], NDArray[np.float32]]],
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    """The same vectors in blocks of `ADDED` or more: with each block FAISS packs its cells anew.

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
            yield np.ascontiguousarray(ids, np.int64), np.ascontiguousarray(vectors, np.float32)


def _larger(
    blocks: Iterable[tuple[NDArray[np.int64], NDArray[np.float32]]],
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    waiting: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = []
    for block in blocks:
        waiting.append(block)
        if sum(len(ids) for ids, _ in waiting) >= ADDED:
            yield np.concatenate([ids for ids, _ in waiting]), np.concatenate([v for _, v in waiting])
            waiting = []
    if waiting:
        yield np.concatenate([ids for ids, _ in waiting]), np.concatenate([v for _, v in waiting])


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
    if count < LEAST:
        return "exact"
    if kind != "auto":
        return kind
    if count <= (config.exact_below_gpu if device == "gpu" else config.exact_below):
        return "exact"
    return "fast" if count <= config.fast_below else "ivf"


def ivf_cells(count: int) -> int:
    """Cells of so many vectors: the power of two nearest their root, `MOST_CELLS` at most."""
    return int(2 ** np.clip(np.round(np.log2(max(1.0, count**0.5))), 0, np.log2(MOST_CELLS)))


def empty_codes(kind: IndexKind, sample: Blocks, known: int, dim: int, count: int) -> Any:
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


def emptied(index: Any) -> Any:
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


def add_codes(
    codes: Any, blocks: Iterable[tuple[NDArray[np.int64], NDArray[np.float32]]], count: int
) -> None:
    """Put vectors into an index of codes.

    FAISS doubles the room for flat codes when it is full, and copies them: of 60,000 images that would be
    all memory. So the room for all is made at once.

    Args:
        codes: empty, as `empty_codes` and `emptied` give it.
        blocks: ids, which are left out, and vectors.
        count: how many vectors there are.
    """
    faiss = load_faiss()
    inner = faiss.downcast_index(codes.index)
    inner.pq.sync_transposed_centroids()  # two thirds of the time; near-ties may get another code
    flat = inner if isinstance(inner, faiss.IndexPQFastScan) else None
    if flat is not None:
        flat.codes.resize(_packed(flat, count))
    for _, vectors in blocks:
        if flat is not None:  # FAISS expects zeros
            room = slice(_packed(flat, flat.ntotal), _packed(flat, flat.ntotal + len(vectors)))
            faiss.rev_swig_ptr(flat.codes.get(), flat.codes.size())[room] = 0
        codes.add(vectors)
    assert codes.ntotal == count, f"{codes.ntotal} vectors came, {count} were announced"


def _packed(flat: Any, count: int) -> int:
    """Bytes of so many flat codes, in blocks that are compared together."""
    return int(-(-count // flat.bbs) * flat.get_block_stride())


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
    with _one_thread():
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


@contextmanager
def _one_thread() -> Iterator[None]:
    """FAISS on one thread: of a hundred tiny clusterings each is over before a second thread has woken.

    On two cores that others use too, two threads took 6 to 20 s where one takes 0.6.
    """
    faiss = load_faiss()
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


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
