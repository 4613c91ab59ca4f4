"""Vectors put into an index of codes: turned, assigned to cells, coded, blocks side by side, then packed.

FAISS does the same by `add`, which tests hold against this, byte for byte. Its coding of two numbers in 4
bits takes a third of the time of all that adding is, one vector and one pair after the other; compiled for
blocks of vectors it takes a twentieth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.index.device import load_faiss
from retrieval.index.vector_file import to_float32
from retrieval.kernels.compiled import Compiled, ahead, threads

CODED = 4096
"""Vectors that are coded at a time, the last ones filled up: one shape, for which it is compiled."""
WORTH = 100_000
"""Vectors from which on compiling is worth its second."""
PACKED = 262_144
"""Vectors that are packed at a time, at least."""
Placed = tuple[NDArray[np.int64], NDArray[np.uint8]]
"""Cells of vectors, none in an index without, and their codes."""
NO_CELLS = np.zeros(0, np.int64)
VALUES = 16
"""Values of a code."""
TURNS = [0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15]
"""Order in which FAISS keeps each sixteen of the 32 vectors of a block, for registers' sake."""


def add_codes(codes: Any, blocks: Iterable[tuple[NDArray[np.int64], NDArray[Any]]], count: int) -> None:
    """Put vectors into an index of codes, in memory.

    FAISS doubles the room for flat codes when it is full, and copies them: of 60,000 images that would be
    all memory. So the room for all is made at once.

    Args:
        codes: empty, as `empty_codes` and `emptied` give it.
        blocks: ids, which are left out, and vectors of single or half precision.
        count: how many vectors there are.
    """
    faiss = load_faiss()
    inner = faiss.downcast_index(codes.index)
    flat = isinstance(inner, faiss.IndexPQFastScan)
    if flat:
        inner.codes.resize(-(-count // inner.bbs) * inner.get_block_stride())
    append = _append_flat if flat else _append_to_cells
    waiting: list[Placed] = []
    for part in placed(codes, blocks, count):
        waiting.append(part)
        if sum(len(c) for _, c in waiting) >= PACKED:
            append(inner, waiting)
            waiting = []
    if waiting:
        append(inner, waiting)
    codes.ntotal = inner.ntotal
    assert codes.ntotal == count, f"{codes.ntotal} vectors came, {count} were announced"


def placed(
    codes: Any, blocks: Iterable[tuple[NDArray[np.int64], NDArray[Any]]], count: int
) -> Iterator[Placed]:
    """Cells and codes of vectors, a block at a time; the arguments are those of `add_codes`."""
    faiss = load_faiss()
    rotation, inner = faiss.downcast_VectorTransform(codes.chain.at(0)), faiss.downcast_index(codes.index)
    flat = isinstance(inner, faiss.IndexPQFastScan)
    cores, code = faiss.omp_get_max_threads() // threads(), _coding(inner.pq, count)

    def place(block: tuple[NDArray[np.int64], NDArray[Any]]) -> Placed:
        faiss.omp_set_num_threads(max(1, cores))  # of this thread alone
        turned = rotation.apply(to_float32(block[1]))
        cells = NO_CELLS if flat else inner.quantizer.assign(turned, 1)[:, 0]
        return cells, code(turned)

    return ahead(place, blocks)


def _coding(quantizer: Any, count: int) -> Callable[[NDArray[np.float32]], NDArray[np.uint8]]:
    """What gives the codes of turned vectors (n, dim), of `count` in all: two in a byte, (n, bytes)."""
    centroids = load_faiss().vector_to_array(quantizer.centroids).reshape(quantizer.M, VALUES, quantizer.dsub)
    nearest = Compiled(_nearest(centroids), after=0 if count >= WORTH else count)

    def code(turned: NDArray[np.float32]) -> NDArray[np.uint8]:
        parts = []
        for start in range(0, len(turned), CODED):
            some = turned[start : start + CODED]
            few = len(some)
            if few < CODED:
                some = np.concatenate([some, np.zeros((CODED - few, some.shape[1]), np.float32)])
            parts.append(nearest(some)[:few])
        return np.concatenate(parts)

    return code


def _nearest(centroids: NDArray[np.float32]) -> Callable[[Any], Any]:
    """Which of the 16 values is nearest to each few numbers of a vector.

    Args:
        centroids: (codes, 16, numbers of a code).
    """
    from keras import ops

    number, _, length = centroids.shape
    less = (centroids**2).sum(-1) / 2  # the nearest has the largest inner product less half its square

    def nearest(turned: Any) -> Any:
        numbers = [turned[:, s::length] for s in range(length)]

        def likeness(value: int) -> Any:
            return sum(n * centroids[:, value, s] for s, n in enumerate(numbers)) - less[:, value]

        best = likeness(0)
        code = ops.zeros_like(best, dtype="int32")
        for value in range(1, VALUES):
            this = likeness(value)
            code = ops.where(this > best, value, code)
            best = ops.maximum(this, best)
        if number % 2:
            code = ops.pad(code, ((0, 0), (0, 1)))
        return ops.cast(code[:, 0::2] + VALUES * code[:, 1::2], "uint8")

    return nearest


def _append_flat(flat: Any, parts: list[Placed]) -> None:
    """Put codes behind those of an index without cells, in the room that is there."""
    faiss = load_faiss()
    codes, before = np.concatenate([c for _, c in parts]), int(flat.ntotal)
    rows = np.zeros((-(-(before % flat.bbs + len(codes)) // flat.bbs) * flat.bbs, codes.shape[1]), np.uint8)
    rows[before % flat.bbs :][: len(codes)] = codes
    room = faiss.rev_swig_ptr(flat.codes.get(), flat.codes.size()).reshape(-1, flat.get_block_stride())
    _put(room[before // flat.bbs :], _packed(rows, flat.bbs), bool(before % flat.bbs))
    flat.ntotal = before + len(codes)
    flat.ntotal2 = -(-flat.ntotal // flat.bbs) * flat.bbs


def _append_to_cells(index: Any, parts: list[Placed]) -> None:
    """Put codes behind those of their cells, under their rows."""
    faiss = load_faiss()
    lists, size = faiss.downcast_InvertedLists(index.invlists), index.bbs
    cells, codes = (np.concatenate(some) for some in zip(*parts, strict=True))
    before = np.array([lists.list_size(c) for c in range(index.nlist)])
    for cell, (rows, blocks) in enumerate(by_cell(cells, codes, size, before % size)):
        if not len(rows):
            continue
        was, now = int(before[cell]), int(before[cell]) + len(rows)
        lists.resize(cell, now)
        ids = faiss.rev_swig_ptr(lists.get_ids(cell), now)
        ids[was:] = index.ntotal + rows
        held = -(-now // size)
        room = faiss.rev_swig_ptr(lists.get_codes(cell), held * blocks.shape[1]).reshape(held, -1)
        _put(room[was // size :], blocks, bool(was % size))
    index.ntotal += len(codes)


def by_cell(
    cells: NDArray[Any], codes: NDArray[np.uint8], size: int, begun: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
    """Vectors sorted by their cells, and their codes as FAISS compares them.

    Args:
        cells: (n,) of each vector, 0 to m - 1.
        codes: (n, bytes).
        size: vectors in a block.
        begun: (m,) how many the first block of each cell holds already, of which zeros come here.

    Yields:
        For each of the m cells its rows in `cells`, ascending, and its blocks; both may be empty.
    """
    order, counts = np.argsort(cells, kind="stable"), np.bincount(cells, minlength=len(begun))
    blocks = -(-(begun + counts) // size)
    start, first = size * (np.cumsum(blocks) - blocks), np.cumsum(counts) - counts
    rows = np.zeros((size * int(blocks.sum()), codes.shape[1]), np.uint8)
    rows[np.arange(len(order)) + np.repeat(start + begun - first, counts)] = codes[order]
    whole = _packed(rows, size)
    for cell in range(len(begun)):
        yield order[first[cell] :][: counts[cell]], whole[start[cell] // size :][: blocks[cell]]


def _put(room: NDArray[np.uint8], blocks: NDArray[np.uint8], begun: bool) -> None:
    """Write blocks, the first beside what is in it where it is begun."""
    if begun:
        room[0] |= blocks[0]
    room[begun : len(blocks)] = blocks[begun:]


def _packed(codes: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Codes as FAISS compares them: blocks of 32 vectors, of which one byte holds the same of two.

    Args:
        codes: (a multiple of 32, bytes); 0 where no vector is.
        size: vectors in a block.

    Returns:
        (blocks, bytes of a block).
    """
    assert size == 2 * len(TURNS), f"FAISS compares {size} vectors together; expected {2 * len(TURNS)}"
    to_float16 = codes.reshape(-1, 2, len(TURNS), codes.shape[1])[:, :, TURNS].transpose(1, 0, 3, 2)
    both = np.empty((to_float16.shape[1], codes.shape[1], 2, len(TURNS)), np.uint8)
    both[:, :, 0] = to_float16[0] & 0x0F | to_float16[1] << 4
    both[:, :, 1] = to_float16[0] >> 4 | to_float16[1] & 0xF0
    return both.reshape(len(both), codes.shape[1] * size)
