"""Squares of a picture around many positions, cut out at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def squares(picture: NDArray, at: NDArray[np.int64], size: int, radius: int) -> NDArray:
    """Squares (m, size, size, c) of a picture (h, w, c) that begin `radius` before each position.

    Beyond the picture's edge its last pixels are repeated.

    Args:
        picture: (h, w, c), `size` or larger on both sides.
        at: (m, 2) x and y.
        size: side of a square.
        radius: how far before its position a square begins.
    """
    picture = np.ascontiguousarray(picture)
    h, w, c = picture.shape
    corner = at - radius
    inside = ((corner >= 0) & (corner + size <= (w, h))).all(1)
    out = np.empty((len(at), size, size, c), picture.dtype)
    if inside.any():
        # All squares as a view whose elements are rows of a square: copied a row at a time, not a number.
        pixel, row = c * picture.itemsize, w * c * picture.itemsize
        first = picture.reshape(-1)[: size * c].view(f"V{size * pixel}")
        every = np.lib.stride_tricks.as_strided(
            first, (h - size + 1, w - size + 1, size), (row, pixel, row), writeable=False
        )
        cut = every[corner[inside, 1], corner[inside, 0]].view(picture.dtype).reshape(-1, size, size, c)
        if inside.all():
            return cut
        out[inside] = cut
    beyond = corner[~inside]
    rows, cols = (
        np.clip(beyond[:, axis, None] + np.arange(size), 0, most) for axis, most in ((1, h - 1), (0, w - 1))
    )
    out[~inside] = picture[rows[:, :, None], cols[:, None, :]]
    return out
