"""Stored codes of pixels, decoded in one pass."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval.kernels.numba_loops import loop


@loop
def look_up(codes: NDArray[np.uint16], values: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """Write the value of each code.

    Args:
        codes: (n,).
        values: (65536,) value of each code.
        out: (n,); written to.
    """
    for k in range(len(codes)):
        out[k] = values[codes[k]]


@loop
def look_up_squares(
    codes: NDArray[np.uint16],
    corners: NDArray[np.int64],
    values: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Write the values of squares of a picture.

    Args:
        codes: (h, w, b).
        corners: (n, 2) x and y of each square, which lies inside the picture.
        values: (65536,) value of each code.
        out: (n, side, side, b); written to.
    """
    (height, width, bands), (count, side) = codes.shape, out.shape[:2]
    rows, squares = codes.reshape(height, width * bands), out.reshape(count, side, side * bands)
    for n in range(count):
        x, y = corners[n]
        for row in range(side):
            look_up(rows[y + row, x * bands : (x + side) * bands], values, squares[n, row])
