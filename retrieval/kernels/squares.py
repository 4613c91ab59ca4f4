"""Means over squares of any size in one pass over the columns and one over the rows of an image.

Strategy. The sum of a run of pixels is the difference of two cumulative sums, so a mean costs the same for
any side. Numbers come in the order of memory: the columns a few at a time, whose cumulative sums stay in the
cache, then row by row. NumPy takes twice as long, because each step writes an array of the image.

Source: F. C. Crow, Summed-area tables for texture mapping, 1984; here along one axis at a time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval.kernels.numba_loops import loop

LANES = 64
"""Columns that are summed together."""


@loop
def means_of_squares(values: NDArray[np.float32], half: int) -> NDArray[np.float32]:
    """Return the mean over the square around each pixel, as far as it lies in the image.

    Args:
        values: (y, x, c), contiguous.
        half: pixels of the square on each side of its middle.

    Returns:
        (y, x, c); sums are float64.
    """
    y, x, c = values.shape
    down = _means_down(values.reshape(y, x * c), half)
    out = np.empty((y, x, c), np.float32)
    sums = np.zeros((x + 1, c), np.float64)
    for row in range(y):
        for column in range(x):
            for k in range(c):
                sums[column + 1, k] = sums[column, k] + down[row, column * c + k]
        for column in range(x):
            first, last = max(column - half, 0), min(column + half + 1, x)
            for k in range(c):
                out[row, column, k] = (sums[last, k] - sums[first, k]) / (last - first)
    return out


@loop
def _means_down(values: NDArray[np.float32], half: int) -> NDArray[np.float64]:
    """Return the mean of (y, n) over the run of rows around each."""
    y, n = values.shape
    out = np.empty((y, n), np.float64)
    sums = np.zeros((y + 1, LANES), np.float64)
    for start in range(0, n, LANES):
        width = min(LANES, n - start)
        for row in range(y):
            for k in range(width):
                sums[row + 1, k] = sums[row, k] + values[row, start + k]
        for row in range(y):
            first, last = max(row - half, 0), min(row + half + 1, y)
            for k in range(width):
                out[row, start + k] = (sums[last, k] - sums[first, k]) / (last - first)
    return out
