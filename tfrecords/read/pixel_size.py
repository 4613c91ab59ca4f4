"""Both sides of a pixel in metres on the ground, in any coordinate reference system."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tfrecords.grid import pixel_to_map
from tfrecords.schema import Georeference

DEGREE = np.pi / 180
WGS84_A, WGS84_E2 = 6378137.0, 0.0066943799901413165
"""Semi-major axis of the ellipsoid in metres, and its squared eccentricity."""

Points = tuple[NDArray[np.float64], NDArray[np.float64]]


def east_north_m(start: Points, end: Points) -> Points:
    """Return the way between near points in longitude and latitude as metres to the east and to the north."""
    sin = np.sin(start[1] * DEGREE)
    normal = WGS84_A / np.sqrt(1 - WGS84_E2 * sin**2)
    meridian = normal * (1 - WGS84_E2) / (1 - WGS84_E2 * sin**2)
    dx = (end[0] - start[0] + 180) % 360 - 180
    return dx * DEGREE * normal * np.sqrt(1 - sin**2), (end[1] - start[1]) * DEGREE * meridian


def pixel_sides_m(
    crs: str, transforms: ArrayLike, x: ArrayLike, y: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the size of pixels on the ground.

    A map unit is not a metre on the ground. A degree of longitude shrinks towards the poles, and so does a
    metre of Web Mercator. Pixels are therefore measured in longitude and latitude.

    Args:
        crs: the coordinate reference system of all.
        transforms: (n, 6) or (6,): (a, b, c, d, e, f) from pixel corners to map coordinates.
        x: (n,) columns at which to measure.
        y: (n,) rows.

    Returns:
        Sides (n, 2) in metres, along a row and along a column, and latitudes (n,) in degrees; NaN where PROJ
        cannot transform the CRS.
    """
    x, y = (np.atleast_1d(np.asarray(v, np.float64)) for v in (x, y))
    six = np.broadcast_to(np.asarray(transforms, np.float64), (len(x), 6)).T
    around = [(-0.5, 0), (0.5, 0), (0, -0.5), (0, 0.5)]
    points = [_lonlat(crs, *pixel_to_map(six, x + i, y + j)) for i, j in around]  # type: ignore[arg-type]
    across = np.hypot(*east_north_m(points[0], points[1]))
    down = np.hypot(*east_north_m(points[2], points[3]))
    return np.stack([across, down], -1), (points[0][1] + points[1][1]) / 2


def middle_sides_m(
    places: Sequence[Georeference | None], sizes: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the size of the middle pixel of images or chips.

    Args:
        places: n georeferences; None if unknown.
        sizes: (n, 2) rows and columns.

    Returns:
        Sides (n, 2) and latitudes (n,), as `pixel_sides_m`; NaN without a georeference.
    """
    sides, latitude = np.full((len(places), 2), np.nan), np.full(len(places), np.nan)
    by_crs: dict[str, list[int]] = defaultdict(list)
    for row, place in enumerate(places):
        if place is not None:
            by_crs[place.crs].append(row)
    for crs, rows in by_crs.items():
        transforms = [place.transform for row in rows if (place := places[row])]
        height, width = sizes[rows].T
        sides[rows], latitude[rows] = pixel_sides_m(crs, transforms, width / 2, height / 2)
    return sides, latitude


def size_text(sides: Sequence[float] | NDArray[np.float64]) -> str:
    """Return the sides of a pixel as text: "8.52 x 13 m"."""
    return f"{sides[0]:.3g} x {sides[1]:.3g} m"


def _lonlat(crs: str, east: NDArray[np.float64], north: NDArray[np.float64]) -> Points:
    """Return map coordinates in degrees, WGS 84; NaN where PROJ cannot transform them."""
    from rasterio.warp import transform

    try:
        longitude, latitude = np.array(transform(crs, "EPSG:4326", east.tolist(), north.tolist()), np.float64)
    except Exception:  # rasterio lets GDAL's own errors through, which have no public names
        return np.full(len(east), np.nan), np.full(len(east), np.nan)
    valid = np.isfinite(longitude) & np.isfinite(latitude) & (np.abs(latitude) <= 90)
    return np.where(valid, longitude, np.nan), np.where(valid, latitude, np.nan)
