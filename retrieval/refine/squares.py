"""Squares around many positions in pictures of one size, cut out at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def squares(
    pictures: NDArray, which: NDArray[np.int64], at: NDArray[np.int64], size: int, radius: int
) -> NDArray:
    """Squares (m, size, size, c) of pictures (n, h, w, c) that begin `radius` before each position.

    Beyond a picture's edge its last pixels are repeated.

    Args:
        pictures: (n, h, w, c), `size` or larger on both sides.
        which: (m,) picture of each square.
        at: (m, 2) x and y.
        size: side of a square.
        radius: how far before its position a square begins.
    """
    pictures = np.ascontiguousarray(pictures)
    n, h, w, c = pictures.shape
    corner = at - radius
    inside = ((corner >= 0) & (corner + size <= (w, h))).all(1)
    out = np.empty((len(at), size, size, c), pictures.dtype)
    if inside.any():
        # All squares as a view whose elements are rows of a square: copied a row at a time, not a number.
        pixel, row = c * pictures.itemsize, w * c * pictures.itemsize
        first = pictures.reshape(-1)[: size * c].view(f"V{size * pixel}")
        every = np.lib.stride_tricks.as_strided(
            first, (n, h - size + 1, w - size + 1, size), (h * row, row, pixel, row), writeable=False
        )
        cut = every[which[inside], corner[inside, 1], corner[inside, 0]]
        cut = cut.view(pictures.dtype).reshape(-1, size, size, c)
        if inside.all():
            return cut
        out[inside] = cut
    beyond = corner[~inside]
    rows, cols = (
        np.clip(beyond[:, axis, None] + np.arange(size), 0, most) for axis, most in ((1, h - 1), (0, w - 1))
    )
    out[~inside] = pictures[which[~inside, None, None], rows[:, :, None], cols[:, None, :]]
    return out
