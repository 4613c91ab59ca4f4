"""Windows of an image, and pixel and map coordinates.

`x` is the column and `y` the row of a window's top-left pixel, both 0-based. A window covers the
half-open ranges `[x, x + size)` and `[y, y + size)`. Map coordinates belong to pixel *corners*:
pixel coordinate (0, 0) is the outer corner of the first pixel, (0.5, 0.5) its centre, as in
rasterio. The windows of an image are numbered row by row: `ordinal = row * cols + col`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tfrecords.errors import GridError

PATCH_PX = 64
"""Side of a patch and of every indexed window, in pixels."""


def window_count(length_px: int, size_px: int, stride_px: int) -> int:
    """Return how many windows fit along one side.

    Args:
        length_px: length of the side, at least 0.
        size_px: side of a window, at least 1.
        stride_px: distance between neighbouring windows, at least 1.

    Returns:
        `1 + (length - size) // stride`; 0 where the side is shorter than a window.
    """
    return 0 if length_px < size_px else 1 + (length_px - size_px) // stride_px


@dataclass(frozen=True)
class WindowGrid:
    """The windows of one image, in row-major order."""

    height_px: int
    """Rows of the image."""
    width_px: int
    """Columns of the image."""
    size_px: int = PATCH_PX
    """Side of a window, at least 1."""
    stride_px: int = 8
    """Distance between neighbouring windows, at least 1."""

    def __post_init__(self) -> None:
        if min(self.height_px, self.width_px) < 0 or min(self.size_px, self.stride_px) < 1:
            raise GridError(
                f"grid of windows: height {self.height_px}, width {self.width_px}, size {self.size_px}, "
                f"stride {self.stride_px}; expected lengths of 0 or more, size and stride of 1 or more"
            )

    @property
    def rows(self) -> int:
        """Number of windows from top to bottom."""
        return window_count(self.height_px, self.size_px, self.stride_px)

    @property
    def cols(self) -> int:
        """Number of windows from left to right."""
        return window_count(self.width_px, self.size_px, self.stride_px)

    @property
    def count(self) -> int:
        """Number of windows."""
        return self.rows * self.cols

    def xy(self) -> NDArray[np.int32]:
        """Return the top-left pixels of all windows, (count, 2) as (x, y), row-major."""
        y, x = np.mgrid[: self.rows, : self.cols].astype(np.int32) * np.int32(self.stride_px)
        return np.stack([x.ravel(), y.ravel()], axis=1)

    def ordinal(self, x: ArrayLike, y: ArrayLike) -> NDArray[np.int64]:
        """Return the rows of `xy()` that hold these top-left pixels.

        Args:
            x: columns, whole numbers of any shape.
            y: rows, same shape.

        Returns:
            int64 in [0, count), same shape.

        Raises:
            GridError: a position is outside the grid or off its stride.
        """
        x64, y64 = np.asarray(x, dtype=np.int64), np.asarray(y, dtype=np.int64)
        col, row = x64 // self.stride_px, y64 // self.stride_px
        off = (x64 % self.stride_px != 0) | (y64 % self.stride_px != 0)
        off |= (col < 0) | (col >= self.cols) | (row < 0) | (row >= self.rows)
        if off.any():
            first = np.flatnonzero(off.ravel())[0]
            raise GridError(
                f"no window starts at x={x64.ravel()[first]}, y={y64.ravel()[first]}: windows start at "
                f"multiples of {self.stride_px} and there are {self.cols} x {self.rows} (columns x rows)"
            )
        return row * self.cols + col


def valid_share(valid: NDArray[np.bool_], size_px: int, stride_px: int) -> NDArray[np.float32]:
    """Return the share of valid pixels in every window, by an integral image.

    Args:
        valid: (h, w) bool, True where a pixel is valid.
        size_px: side of a window, at least 1.
        stride_px: distance between neighbouring windows, at least 1.

    Returns:
        (rows, cols) float32 in [0, 1]; an empty array where no window fits.
    """
    grid = WindowGrid(valid.shape[0], valid.shape[1], size_px, stride_px)
    if not grid.count:
        return np.zeros((grid.rows, grid.cols), np.float32)
    if valid.all():  # true for most images
        return np.ones((grid.rows, grid.cols), np.float32)
    total = np.zeros((valid.shape[0] + 1, valid.shape[1] + 1), np.int32)
    np.cumsum(np.cumsum(valid, axis=0, dtype=np.int32), axis=1, out=total[1:, 1:])
    top = np.arange(grid.rows) * stride_px
    left = np.arange(grid.cols) * stride_px
    rows = total[top + size_px] - total[top]  # (rows, w + 1)
    inside = rows[:, left + size_px] - rows[:, left]
    share: NDArray[np.float32] = inside.astype(np.float32) / np.float32(size_px * size_px)
    return share


def overlap(x0: Any, y0: Any, x1: Any, y1: Any, size_px: int = PATCH_PX) -> Any:
    """Return whether two windows of one grid share a pixel.

    Args:
        x0: column of the first window, a number or an array.
        y0: its row.
        x1: column of the second window; the four broadcast against each other.
        y1: its row.
        size_px: side of both windows.

    Returns:
        bool, in the broadcast shape.
    """
    dx = np.abs(np.subtract(x0, x1, dtype=np.int64))
    dy = np.abs(np.subtract(y0, y1, dtype=np.int64))
    return (dx < size_px) & (dy < size_px)


def pixel_to_map(transform6: Sequence[float], x: Any, y: Any) -> tuple[Any, Any]:
    """Return the map coordinates of pixel coordinates.

    Args:
        transform6: (a, b, c, d, e, f) as in rasterio: `X = a x + b y + c`, `Y = d x + e y + f`.
        x: columns; whole numbers are the left edges of pixels, + 0.5 their centres.
        y: rows, likewise the upper edges.

    Returns:
        (X, Y) in the units of the CRS, float64 of the broadcast shape.
    """
    a, b, c, d, e, f = transform6[:6]
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    return a * x + b * y + c, d * x + e * y + f


def map_to_pixel(transform6: Sequence[float], map_x: Any, map_y: Any) -> tuple[Any, Any]:
    """Return the pixel coordinates of map coordinates; the inverse of `pixel_to_map`.

    Args:
        transform6: (a, b, c, d, e, f) as in rasterio.
        map_x: X in the units of the CRS.
        map_y: Y likewise.

    Returns:
        (x, y) float64; the pixel that holds the point is `floor(x), floor(y)`.

    Raises:
        GridError: the transform has no inverse.
    """
    a, b, c, d, e, f = transform6[:6]
    area = a * e - b * d
    if area == 0 or not np.isfinite(area):
        raise GridError(
            f"transform {tuple(transform6[:6])}: pixels have no area; expected an affine transform with an "
            "inverse"
        )
    dx, dy = np.asarray(map_x, np.float64) - c, np.asarray(map_y, np.float64) - f
    return (e * dx - b * dy) / area, (a * dy - d * dx) / area


def padded_window(pixels: NDArray[Any], x: int, y: int, width: int, height: int) -> NDArray[Any]:
    """Return a window that may lie partly or wholly outside its image.

    Args:
        pixels: (h, w, b) floats.
        x: column of its top-left pixel; may be negative.
        y: row; may be negative.
        width: columns.
        height: rows.

    Returns:
        (height, width, b), NaN outside the image.
    """
    out = np.full((height, width, pixels.shape[2]), np.nan, pixels.dtype)
    part = pixels[max(0, y) : max(0, y + height), max(0, x) : max(0, x + width)]
    top, left = max(0, -y), max(0, -x)
    out[top : top + part.shape[0], left : left + part.shape[1]] = part
    return out
