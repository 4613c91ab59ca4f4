"""Pixel windows: rectangles of an image's pixels, and the window that a bounding box covers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from retrieval.geo.request import BoundingBox
from tfrecords.errors import GridError
from tfrecords.grid import map_to_pixel, pixel_to_map

EDGE_POINTS = 21
"""Points on each edge of a rectangle that is projected: straight edges become curves."""
ROUNDING_PX = 1e-6
"""A coordinate this close to the edge of a pixel lies on it."""

Bounds = tuple[float, float, float, float]
"""Left, bottom, right, top; in degrees west, south, east, north."""
Points = tuple[NDArray[np.float64], NDArray[np.float64]]
"""x and y, each (n,)."""


@dataclass(frozen=True)
class PixelWindow:
    """A rectangle of pixels of an image."""

    x0: int
    """First column."""
    y0: int
    """First row."""
    width: int
    """Columns."""
    height: int
    """Rows."""

    @property
    def centre(self) -> tuple[float, float]:
        """Column and row of its centre."""
        return self.x0 + self.width / 2, self.y0 + self.height / 2

    def blocks(self, rows_px: int, columns_px: int) -> list[PixelWindow]:
        """Split the window at the block boundaries of the image, so that no stored block is read twice.

        Args:
            rows_px: rows of a block.
            columns_px: columns of a block.

        Returns:
            The pieces, row by row.
        """
        rows = _spans(self.y0, self.height, rows_px)
        columns = _spans(self.x0, self.width, columns_px)
        return [PixelWindow(x, y, right - x, below - y) for y, below in rows for x, right in columns]


def _spans(first: int, length: int, side: int) -> list[tuple[int, int]]:
    """Return the begin and the end of each piece of an axis."""
    cuts = [first, *range((first // side + 1) * side, first + length, side), first + length]
    return list(pairwise(cuts))


def window_of_box(
    box: BoundingBox | None,
    crs: str | None,
    transform: Sequence[float] | None,
    width: int,
    height: int,
    name: str,
) -> PixelWindow | None:
    """Return the pixels of an image that a box touches.

    Args:
        box: the box; None = the whole image.
        crs: the image's coordinate reference system (CRS).
        transform: (a, b, c, d, e, f) from pixel corners to map coordinates.
        width: columns of the image.
        height: rows of the image.
        name: the image's name in error messages.

    Returns:
        The window; None where box and image do not meet.

    Raises:
        GridError: the image has no CRS, PROJ cannot transform its coordinates, or it covers a pole.
    """
    if box is None:
        return PixelWindow(0, 0, width, height)
    if not crs or transform is None:
        raise GridError(f"{name}: no CRS, so --bbox cannot be located in it. Omit --bbox")
    longitude, latitude = transform_points(
        crs, "EPSG:4326", pixel_to_map(transform, *edge_points((0, height, width, 0))), name
    )
    if np.abs(latitude).max() > 89 or np.ptp(longitude % 360) > 180 < np.ptp((longitude + 180) % 360):
        raise GridError(f"{name}: covers a pole, where --bbox is not supported. Omit --bbox")
    # Longitudes are counted from the image's own, so that nothing jumps at the antimeridian.
    longitude = unwrap(longitude, longitude[0])
    common = _intersection(box, (longitude.min(), latitude.min(), longitude.max(), latitude.max()))
    if common is None:
        return None
    x, y = map_to_pixel(transform, *transform_points("EPSG:4326", crs, edge_points(common), name))
    left, top = max(0, _floor(x.min())), max(0, _floor(y.min()))
    right, below = min(width, _ceil(x.max())), min(height, _ceil(y.max()))
    return PixelWindow(left, top, right - left, below - top) if right > left and below > top else None


def _floor(value: float) -> int:
    return int(np.floor(value + ROUNDING_PX))


def _ceil(value: float) -> int:
    return int(np.ceil(value - ROUNDING_PX))


def edge_points(bounds: Bounds) -> Points:
    """Return points along the edges of a rectangle: a closed ring of 4 × `EDGE_POINTS`, corners twice.

    Args:
        bounds: left, bottom, right, top.
    """
    left, bottom, right, top = bounds
    along = np.linspace(0, 1, EDGE_POINTS)
    x, y = left + (right - left) * along, bottom + (top - bottom) * along
    return (
        np.concatenate([x, np.full_like(y, right), x[::-1], np.full_like(y, left)]),
        np.concatenate([np.full_like(x, bottom), y, np.full_like(x, top), y[::-1]]),
    )


def unwrap(longitude: NDArray[np.float64], centre: float) -> NDArray[np.float64]:
    """Return longitudes within 180 degrees of `centre`, beyond ±180 where necessary."""
    return np.asarray(centre + (longitude - centre + 180) % 360 - 180)


def transform_points(source: str, target: str, points: Points, name: str) -> Points:
    """Transform coordinates from one CRS to another.

    Args:
        source: CRS of `points`, anything that PROJ understands.
        target: CRS of the result.
        points: x and y.
        name: the image's name in error messages.

    Returns:
        x and y.

    Raises:
        GridError: PROJ cannot transform them.
    """
    from rasterio.warp import transform

    problem = f"{name}: PROJ cannot transform its CRS to longitude and latitude"
    try:
        moved = np.array(transform(source, target, *points), np.float64)
    except Exception as error:  # rasterio lets GDAL's own errors through, which have no public names
        raise GridError(problem) from error
    if not np.isfinite(moved).all():
        raise GridError(f"{problem} at this place")
    return moved[0], moved[1]


def _intersection(box: BoundingBox, bounds: Bounds) -> Bounds | None:
    """Return what a box and other bounds share, in longitudes of `bounds`; None where they do not meet."""
    low, high = max(box.south, bounds[1]), min(box.north, bounds[3])
    for turn in (-360, 0, 360):
        left, right = max(box.west + turn, bounds[0]), min(box.west + turn + box.width, bounds[2])
        if left < right and low < high:
            return float(left), float(low), float(right), float(high)
    return None
