"""Encode vectors and append their codes to a FAISS index.

FAISS's own `add` does the same; tests compare the two byte for byte. It encodes one pair of numbers of one
vector at a time, a third of the time of adding. Compiled for blocks of vectors, encoding takes a
twentieth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.index.device import load_faiss
from retrieval.index.kinds import DEFAULT_SIZES, Block, BlockSizes
from retrieval.index.vector_file import to_float32
from retrieval.kernels.compiled import Compiled
from retrieval.kernels.executors import prefetch_map, threads

ENCODE_ROWS = 4096
"""Vectors encoded at a time; the last group is padded, so that one compiled shape serves all."""
COMPILE_FROM = 100_000
"""Number of vectors from which compiling saves more than the second it takes."""
Encoded = tuple[NDArray[np.int64], NDArray[np.uint8]]
"""Cells (n,) of vectors, empty in an index without cells, and codes (n, bytes)."""
NO_CELLS = np.zeros(0, np.int64)
CODE_VALUES = 16
"""Values of a code of 4 bits."""
LANE_ORDER = [0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15]
"""Order in which FAISS stores the vectors of half a block, so that a SIMD register reads them in place."""


def add_codes(codes: Any, blocks: Iterable[Block], count: int, sizes: BlockSizes = DEFAULT_SIZES) -> None:
    """Encode vectors and append their codes in memory.

    FAISS doubles the memory of flat codes when it is full and copies them. For 60,000 images that would
    need all memory, so the memory for all codes is allocated at once.

    Args:
        codes: trained and empty, as `train_quantizer` and `trained_copy` return it.
        blocks: ids, which are ignored, and vectors of single or half precision.
        count: number of vectors.
        sizes: vectors in memory at a time.
    """
    faiss = load_faiss()
    inner = faiss.downcast_index(codes.index)
    flat = isinstance(inner, faiss.IndexPQFastScan)
    if flat:
        inner.codes.resize(-(-count // inner.bbs) * inner.get_block_stride())
    append = _append_flat if flat else _append_to_cells
    group: list[Encoded] = []
    for encoded in encode_blocks(codes, blocks, count):
        group.append(encoded)
        if sum(len(rows) for _, rows in group) >= sizes.append:
            append(inner, group)
            group = []
    if group:
        append(inner, group)
    codes.ntotal = inner.ntotal
    assert codes.ntotal == count, f"{codes.ntotal} vectors came, {count} were announced"


def encode_blocks(codes: Any, blocks: Iterable[Block], count: int) -> Iterator[Encoded]:
    """Yield cells and codes of each block of vectors; `add_codes` explains the arguments."""
    faiss = load_faiss()
    rotation, inner = faiss.downcast_VectorTransform(codes.chain.at(0)), faiss.downcast_index(codes.index)
    flat = isinstance(inner, faiss.IndexPQFastScan)
    faiss_threads = max(1, faiss.omp_get_max_threads() // threads())
    encode_rows = _encoder(inner.pq, count)

    def encode(block: Block) -> Encoded:
        faiss.omp_set_num_threads(faiss_threads)  # FAISS keeps this number per thread
        rotated = rotation.apply(to_float32(block[1]))
        cells = NO_CELLS if flat else inner.quantizer.assign(rotated, 1)[:, 0]
        return cells, encode_rows(rotated)

    return prefetch_map(encode, blocks)


def _encoder(quantizer: Any, count: int) -> Callable[[NDArray[np.float32]], NDArray[np.uint8]]:
    """Return a function from rotated vectors (n, dim), `count` in all, to codes (n, bytes), two in a byte."""
    centroids = load_faiss().vector_to_array(quantizer.centroids)
    centroids = centroids.reshape(quantizer.M, CODE_VALUES, quantizer.dsub)
    compiled = Compiled(_nearest_centroids(centroids), after=0 if count >= COMPILE_FROM else count)

    def encode(rotated: NDArray[np.float32]) -> NDArray[np.uint8]:
        parts = []
        for start in range(0, len(rotated), ENCODE_ROWS):
            rows = rotated[start : start + ENCODE_ROWS]
            padding = np.zeros((ENCODE_ROWS - len(rows), rows.shape[1]), np.float32)
            padded = np.concatenate([rows, padding]) if len(padding) else rows
            parts.append(compiled(padded)[: len(rows)])
        return np.concatenate(parts)

    return encode


def _nearest_centroids(centroids: NDArray[np.float32]) -> Callable[[Any], Any]:
    """Return a function that finds, for each group of numbers of a vector, the nearest of 16 centroids.

    Args:
        centroids: (codes, 16, numbers per code).
    """
    from keras import ops

    code_count, _, length = centroids.shape
    half_square = (centroids**2).sum(-1) / 2  # nearest: largest inner product minus this

    def nearest(rotated: Any) -> Any:
        numbers = [rotated[:, place::length] for place in range(length)]

        def closeness(value: int) -> Any:
            product = sum(n * centroids[:, value, place] for place, n in enumerate(numbers))
            return product - half_square[:, value]

        best = closeness(0)
        code = ops.zeros_like(best, dtype="int32")
        for value in range(1, CODE_VALUES):
            candidate = closeness(value)
            code = ops.where(candidate > best, value, code)
            best = ops.maximum(candidate, best)
        if code_count % 2:
            code = ops.pad(code, ((0, 0), (0, 1)))
        return ops.cast(code[:, 0::2] + CODE_VALUES * code[:, 1::2], "uint8")

    return nearest


# --- FAISS's layout of codes ----------------------------------------------------------------------
#
# FAISS compares a query with 32 vectors at once. It therefore stores codes in blocks of 32 vectors
# (`bbs`), not vector by vector: `_pack` makes such blocks. New vectors continue the last block, so each
# append computes blocks that begin with as many zeros as that block holds vectors, and ORs the first of
# them into it (`_write_blocks`). An index with cells has one such list of blocks per cell:
# `sort_into_cells` sorts the vectors of all cells at once, with every cell's blocks behind each other.
#
# HACK: FAISS offers no call to append codes that exist already, so both functions write into its memory
# through raw pointers (`rev_swig_ptr`). Tests compare the result with FAISS's own `add` byte for byte.


def _append_flat(flat: Any, group: list[Encoded]) -> None:
    """Append codes to an index without cells; its memory is allocated already."""
    faiss = load_faiss()
    codes, before = np.concatenate([rows for _, rows in group]), int(flat.ntotal)
    begun = before % flat.bbs
    rows = np.zeros((-(-(begun + len(codes)) // flat.bbs) * flat.bbs, codes.shape[1]), np.uint8)
    rows[begun:][: len(codes)] = codes
    memory = faiss.rev_swig_ptr(flat.codes.get(), flat.codes.size()).reshape(-1, flat.get_block_stride())
    _write_blocks(memory[before // flat.bbs :], _pack(rows, flat.bbs), bool(begun))
    flat.ntotal = before + len(codes)
    flat.ntotal2 = -(-flat.ntotal // flat.bbs) * flat.bbs


def _append_to_cells(index: Any, group: list[Encoded]) -> None:
    """Append codes and row numbers to the lists of their cells."""
    faiss = load_faiss()
    lists, block_rows = faiss.downcast_InvertedLists(index.invlists), index.bbs
    cells, codes = (np.concatenate(column) for column in zip(*group, strict=True))
    before = np.array([lists.list_size(cell) for cell in range(index.nlist)])
    sorted_cells = sort_into_cells(cells, codes, block_rows, before % block_rows)
    for cell, (rows, blocks) in enumerate(sorted_cells):
        if not len(rows):
            continue
        start, stop = int(before[cell]), int(before[cell]) + len(rows)
        lists.resize(cell, stop)
        ids = faiss.rev_swig_ptr(lists.get_ids(cell), stop)
        ids[start:] = index.ntotal + rows
        block_count = -(-stop // block_rows)
        memory = faiss.rev_swig_ptr(lists.get_codes(cell), block_count * blocks.shape[1])
        memory = memory.reshape(block_count, -1)
        _write_blocks(memory[start // block_rows :], blocks, bool(start % block_rows))
    index.ntotal += len(codes)


def sort_into_cells(
    cells: NDArray[Any], codes: NDArray[np.uint8], block_rows: int, begun: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
    """Sort vectors by cell and yield their codes in FAISS's blocks.

    Args:
        cells: (n,) cell of each vector, 0 to m - 1.
        codes: (n, bytes).
        block_rows: vectors in a block.
        begun: (m,) vectors that the last block of each cell holds already; here they are zeros.

    Yields:
        For each of the m cells its rows in `cells`, ascending, and its blocks; both may be empty.
    """
    order, counts = np.argsort(cells, kind="stable"), np.bincount(cells, minlength=len(begun))
    block_counts = -(-(begun + counts) // block_rows)
    start = block_rows * (np.cumsum(block_counts) - block_counts)  # of each cell, in padded rows
    first = np.cumsum(counts) - counts  # of each cell, in `order`
    rows = np.zeros((block_rows * int(block_counts.sum()), codes.shape[1]), np.uint8)
    rows[np.arange(len(order)) + np.repeat(start + begun - first, counts)] = codes[order]
    blocks = _pack(rows, block_rows)
    for cell in range(len(begun)):
        cell_blocks = blocks[start[cell] // block_rows :][: block_counts[cell]]
        yield order[first[cell] :][: counts[cell]], cell_blocks


def _write_blocks(memory: NDArray[np.uint8], blocks: NDArray[np.uint8], continues: bool) -> None:
    """Write blocks; the first one `continues` a block that holds vectors already."""
    if continues:
        memory[0] |= blocks[0]
    memory[continues : len(blocks)] = blocks[continues:]


def _pack(codes: NDArray[np.uint8], block_rows: int) -> NDArray[np.uint8]:
    """Return codes in blocks of 32 vectors; each byte holds the same code of two vectors, 16 apart.

    Args:
        codes: (a multiple of 32, bytes); 0 where there is no vector.
        block_rows: vectors in a block.

    Returns:
        (blocks, bytes per block).
    """
    half = len(LANE_ORDER)
    assert block_rows == 2 * half, f"FAISS compares {block_rows} vectors together; expected {2 * half}"
    # (2 halves, blocks, bytes, 16 lanes)
    lanes = codes.reshape(-1, 2, half, codes.shape[1])[:, :, LANE_ORDER].transpose(1, 0, 3, 2)
    packed = np.empty((lanes.shape[1], codes.shape[1], 2, half), np.uint8)
    packed[:, :, 0] = lanes[0] & 0x0F | lanes[1] << 4
    packed[:, :, 1] = lanes[0] >> 4 | lanes[1] & 0xF0
    return packed.reshape(len(packed), codes.shape[1] * block_rows)
