"""Windows of a parts index compared with patches, read in place, for the CPU.

Strategy. A row of a window is contiguous in the file, so nothing is gathered. Each number is converted once.
One pass over a window then sums its products with eight shifts of the patch.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval.kernels.numba_loops import loop

SHIFTS_PER_PASS = 8
"""Shifts of a patch that one pass over a window sums."""


@loop
def compare_windows(
    parts: NDArray[np.int8],
    corner: NDArray[np.int64],
    columns: NDArray[np.int64],
    patch: NDArray[np.float32],
    step: float,
    floor: float,
    best: NDArray[np.float32],
    shift: NDArray[np.int64],
) -> None:
    """Write the best cosine of each window with the shifts of a patch.

    Args:
        parts: (parts, d), image after image, row after row.
        corner: (m,) number of each window's first part.
        columns: (m,) parts in a row of its image.
        patch: (shifts, side, side * d) parts of the patch at each shift, a multiple of `SHIFTS_PER_PASS`
            shifts.
        step: value of one unit of the parts.
        floor: added to the energy of a window.
        best: (m,) the best cosine; written to.
        shift: (m,) its shift, the first of equal ones; written to.
    """
    shifts, side, length = patch.shape
    numbers, dim = parts.reshape(parts.size), parts.shape[1]
    window, sums = np.empty(side * length, np.float32), np.empty(shifts, np.float32)
    rows = patch.reshape(shifts, side * length)
    for n in range(len(corner)):
        energy = np.float32(0)
        for row in range(side):
            first = (corner[n] + row * columns[n]) * dim
            source, target = numbers[first : first + length], window[row * length : (row + 1) * length]
            for k in range(length):
                target[k] = np.float32(source[k])
            for k in range(length):
                energy += target[k] * target[k]
        for first in range(0, shifts, SHIFTS_PER_PASS):
            _sum_products(window, rows[first : first + SHIFTS_PER_PASS], sums[first:])
        top = 0
        for k in range(1, shifts):
            if sums[k] > sums[top]:
                top = k
        scale = np.float32(step / np.sqrt(step * step * np.float64(energy) + floor))
        best[n], shift[n] = sums[top] * scale, top


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
