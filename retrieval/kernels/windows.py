"""Windows of a parts index compared with patches, read in place, for the CPU.

Strategy. Parts are unpacked where they lie in the file, each once. One pass over a window then sums its
products with eight shifts of the patch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval.kernels.numba_loops import loop

SHIFTS_PER_PASS = 8
"""Shifts of a patch that one pass over a window sums."""


@loop
def compare_windows(
    parts: NDArray[np.uint8],
    scales: NDArray[np.float32],
    steps: NDArray[np.float32],
    corner: NDArray[np.int64],
    columns: NDArray[np.int64],
    patch: NDArray[np.float32],
    floor: float,
    best: NDArray[np.float32],
    shift: NDArray[np.int64],
) -> None:
    """Write the best cosine of each window with the shifts of a patch.

    Args:
        parts: (parts, d / 2 + 1), image after image, row after row. Byte j holds numbers j (low four bits)
            and j + d / 2 (high), 8 for 0. The last byte is the part's scale.
        scales: (256,) factor of each scale.
        steps: (d,) value of one unit of each number.
        corner: (m,) number of each window's first part.
        columns: (m,) parts in a row of its image.
        patch: (shifts, side, side * d) parts of the patch at each shift, a multiple of `SHIFTS_PER_PASS`
            shifts.
        floor: added to the energy of a window.
        best: (m,) the best cosine; written to.
        shift: (m,) its shift, the first of equal ones; written to.
    """
    shifts, side, length = patch.shape
    dim = len(steps)
    window, sums = np.empty(side * length, np.float32), np.empty(shifts, np.float32)
    rows = patch.reshape(shifts, side * length)
    for n in range(len(corner)):
        energy = np.float32(0)
        for row in range(side):
            for column in range(side):
                part = parts[corner[n] + row * columns[n] + column]
                start = (row * side + column) * dim
                _unpack(part, scales[part[dim // 2]], steps, window[start : start + dim])
        for k in range(len(window)):
            energy += window[k] * window[k]
        for first in range(0, shifts, SHIFTS_PER_PASS):
            _sum_products(window, rows[first : first + SHIFTS_PER_PASS], sums[first:])
        top = 0
        for k in range(1, shifts):
            if sums[k] > sums[top]:
                top = k
        best[n], shift[n] = sums[top] / np.float32(np.sqrt(energy + np.float32(floor))), top


@loop
def _unpack(
    part: NDArray[np.uint8], scale: float, steps: NDArray[np.float32], numbers: NDArray[np.float32]
) -> None:
    """Write the numbers of a part."""
    half = len(numbers) // 2
    for k in range(half):
        numbers[k] = np.float32(np.int32(part[k] & 15) - 8) * steps[k] * scale
    for k in range(half):
        numbers[half + k] = np.float32(np.int32(part[k] >> 4) - 8) * steps[half + k] * scale


@loop
def _sum_products(window: NDArray[np.float32], rows: NDArray[np.float32], sums: NDArray[np.float32]) -> None:
    """Sum the products of a window with eight rows."""
    r0, r1, r2, r3, r4, r5, r6, r7 = rows[0], rows[1], rows[2], rows[3], rows[4], rows[5], rows[6], rows[7]
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = np.float32(0)
    for k in range(len(window)):
        value = window[k]
        s0 += value * r0[k]
        s1 += value * r1[k]
        s2 += value * r2[k]
        s3 += value * r3[k]
        s4 += value * r4[k]
        s5 += value * r5[k]
        s6 += value * r6[k]
        s7 += value * r7[k]
    sums[0], sums[1], sums[2], sums[3] = s0, s1, s2, s3
    sums[4], sums[5], sums[6], sums[7] = s4, s5, s6, s7
