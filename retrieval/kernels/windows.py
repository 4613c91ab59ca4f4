"""Windows of a parts index compared with patches, read in place, for the CPU.

Strategy. Parts are unpacked where they lie in the file, for four windows at a time. Four windows are then
multiplied with four shifts of the patch in one pass: each number that is loaded serves four products.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval.kernels.numba_loops import loop

TILE = 4
"""Windows, and shifts of a patch, that are multiplied at a time."""
HALF = 32
"""Numbers of a part in the low bits, and as many in the high bits: a constant, so that loops unroll."""


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
        parts: (parts, `HALF` + 1), image after image, row after row. Byte j holds numbers j (low four bits)
            and j + `HALF` (high), 8 for 0. The last byte is the part's scale.
        scales: (256,) factor of each scale.
        steps: (2 `HALF`,) value of one unit of each number.
        corner: (m,) number of each window's first part.
        columns: (m,) parts in a row of its image.
        patch: (shifts, side, side, numbers) parts of the patch at each shift, a multiple of `TILE` shifts:
            all numbers, or the first `HALF`, which then count alone.
        floor: added to the energy of a window.
        best: (m,) the best cosine; written to.
        shift: (m,) its shift, the first of equal ones; written to.
    """
    shifts, side, _, numbers = patch.shape
    rows = patch.reshape(shifts, side * side * numbers)
    windows = np.zeros((TILE, rows.shape[1]), np.float32)
    energy, sums = np.empty(TILE, np.float32), np.empty((TILE, shifts), np.float32)
    for first in range(0, len(corner), TILE):
        tile = slice(first, min(first + TILE, len(corner)))
        _unpack(parts, scales, steps, corner[tile], columns[tile], side, numbers, windows, energy)
        for k in range(0, shifts, TILE):
            _multiply(windows, rows[k : k + TILE], sums[:, k : k + TILE])
        for n in range(tile.start, tile.stop):
            top, of_window = 0, sums[n - first]
            for k in range(1, shifts):
                if of_window[k] > of_window[top]:
                    top = k
            length_of_window = np.float32(np.sqrt(energy[n - first] + np.float32(floor)))
            best[n], shift[n] = of_window[top] / length_of_window, top


@loop
def _unpack(
    parts: NDArray[np.uint8],
    scales: NDArray[np.float32],
    steps: NDArray[np.float32],
    corner: NDArray[np.int64],
    columns: NDArray[np.int64],
    side: int,
    numbers: int,
    windows: NDArray[np.float32],
    energy: NDArray[np.float32],
) -> None:
    """Write the first numbers of the parts of windows, and the sums of their squares."""
    for n in range(len(corner)):
        window = windows[n]
        for row in range(side):
            for column in range(side):
                part = parts[corner[n] + row * columns[n] + column]
                scale, out = scales[part[HALF]], window[(row * side + column) * numbers :]
                if numbers == HALF:
                    for k in range(HALF):
                        out[k] = np.float32(np.int32(part[k] & 15) - 8) * steps[k] * scale
                else:
                    for k in range(HALF):
                        both = np.int32(part[k])
                        out[k] = np.float32((both & 15) - 8) * steps[k] * scale
                        out[HALF + k] = np.float32((both >> 4) - 8) * steps[HALF + k] * scale
        # This sum has a separate loop, because it would prevent the loop above from unrolling.
        total = np.float32(0)
        for k in range(len(window)):
            total += window[k] * window[k]
        energy[n] = total


@loop
def _multiply(windows: NDArray[np.float32], rows: NDArray[np.float32], sums: NDArray[np.float32]) -> None:
    """Write the inner products (4, 4) of four windows with four rows."""
    w0, w1, w2, w3 = windows[0], windows[1], windows[2], windows[3]
    r0, r1, r2, r3 = rows[0], rows[1], rows[2], rows[3]
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = np.float32(0)
    c0 = c1 = c2 = c3 = d0 = d1 = d2 = d3 = np.float32(0)
    for k in range(windows.shape[1]):
        w, x, y, z = w0[k], w1[k], w2[k], w3[k]
        p, q, r, s = r0[k], r1[k], r2[k], r3[k]
        a0, a1, a2, a3 = a0 + w * p, a1 + w * q, a2 + w * r, a3 + w * s
        b0, b1, b2, b3 = b0 + x * p, b1 + x * q, b2 + x * r, b3 + x * s
        c0, c1, c2, c3 = c0 + y * p, c1 + y * q, c2 + y * r, c3 + y * s
        d0, d1, d2, d3 = d0 + z * p, d1 + z * q, d2 + z * r, d3 + z * s
    sums[0, 0], sums[0, 1], sums[0, 2], sums[0, 3] = a0, a1, a2, a3
    sums[1, 0], sums[1, 1], sums[1, 2], sums[1, 3] = b0, b1, b2, b3
    sums[2, 0], sums[2, 1], sums[2, 2], sums[2, 3] = c0, c1, c2, c3
    sums[3, 0], sums[3, 1], sums[3, 2], sums[3, 3] = d0, d1, d2, d3
