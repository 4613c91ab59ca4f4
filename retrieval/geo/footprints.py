"""Where windows and images lie on the Earth: rings of longitude and latitude, as GeoJSON and as WKB.

What crosses the antimeridian is cut there into two parts, as RFC 7946 asks; its bounding box then
has a west that is greater than its east.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.types import StoredImage
from tfrecords.grid import pixel_to_map

_POLYGON = np.dtype(
    [("order", "u1"), ("kind", "<u4"), ("rings", "<u4"), ("points", "<u4"), ("ring", "<f8", (5, 2))]
)
"""A polygon of one ring of four corners, in well-known binary."""


def rings(image: StoredImage, x: NDArray, y: NDArray, width: int, height: int) -> NDArray[np.float64] | None:
    """Outlines of rectangles of an image.

    Args:
        image: a row of the index's table.
        x: (n,) columns of the top-left pixels.
        y: (n,) rows.
        width: columns of each rectangle.
        height: rows.

    Returns:
        (n, 5, 2) longitude and latitude in degrees, WGS 84, counterclockwise and closed; None where
        the image has no CRS.
    """
    if image.crs is None or image.transform is None:
        return None
    from rasterio.warp import transform

    right, down = np.array([0, 0, 1, 1]) * width, np.array([0, 1, 1, 0]) * height
    east, north = pixel_to_map(image.transform, np.asarray(x)[:, None] + right, np.asarray(y)[:, None] + down)
    lon, lat = transform(image.crs, "EPSG:4326", east.ravel().tolist(), north.ravel().tolist())
    corners = np.stack([lon, lat], axis=-1).reshape(-1, 4, 2)
    near = corners.copy()
    near[..., 0] = _unwrapped(corners[..., 0])
    step = np.roll(near, -1, axis=1)
    area = (near[..., 0] * step[..., 1] - step[..., 0] * near[..., 1]).sum(1)
    corners[area < 0] = corners[area < 0, ::-1]  # rows may run northwards
    return np.concatenate([corners, corners[:, :1]], axis=1)


def _unwrapped(lon: NDArray[np.float64]) -> NDArray[np.float64]:
    """Longitudes without the jump from 180 to -180, along the last axis."""
    crosses = np.ptp(lon, axis=-1, keepdims=True) > 180
    return np.where(crosses & (lon < 0), lon + 360, lon)


def boxes(outlines: NDArray[np.float64]) -> NDArray[np.float64]:
    """West, south, east and north of each outline, (n, 4); west is greater than east across 180 degrees."""
    lon, lat = _unwrapped(outlines[..., 0]), outlines[..., 1]
    east = lon.max(-1)
    return np.stack([lon.min(-1), lat.min(-1), np.where(east > 180, east - 360, east), lat.max(-1)], axis=-1)


def parts(outline: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """A ring (k, 2), or the two that it falls into at the antimeridian; none of no width."""
    lon = _unwrapped(outline[:, 0])
    if lon.max() <= 180:
        return [outline]
    whole = np.column_stack([lon, outline[:, 1]])
    west, east = _cut(whole, 1), _cut(whole, -1) - np.array([360, 0])
    return [part for part in (west, east) if np.ptp(part[:, 0]) > 0]


def _cut(ring: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """The part of a closed ring with a longitude below 180 (side 1) or above (side -1)."""
    found: list[NDArray[np.float64]] = []
    for a, b in pairwise(ring):
        inside, next_inside = side * (180 - a[0]) >= 0, side * (180 - b[0]) >= 0
        if inside:
            found.append(a)
        if inside != next_inside:
            found.append(np.array([180.0, a[1] + (b[1] - a[1]) * (180 - a[0]) / (b[0] - a[0])]))
    return np.array([*found, found[0]])


def geojson(outline: NDArray[np.float64]) -> dict[str, Any]:
    """The geometry of one outline: a polygon, or two of them across the antimeridian."""
    found = [part.round(7).tolist() for part in parts(outline)]
    if len(found) == 1:
        return {"type": "Polygon", "coordinates": found}
    return {"type": "MultiPolygon", "coordinates": [[ring] for ring in found]}


def wkb(outlines: NDArray[np.float64]) -> list[bytes]:
    """Well-known binary of each outline of four corners, (n, 5, 2)."""
    table = np.zeros(len(outlines), _POLYGON)
    table["order"], table["kind"], table["rings"], table["points"] = 1, 3, 1, 5
    table["ring"] = outlines
    raw, size = table.tobytes(), _POLYGON.itemsize
    found = [raw[start : start + size] for start in range(0, len(raw), size)]
    for row in np.flatnonzero(np.ptp(outlines[..., 0], axis=1) > 180):
        found[row] = _wkb_of(parts(outlines[row]))
    return found


def _wkb_of(cut: list[NDArray[np.float64]]) -> bytes:
    """Well-known binary of one part or several."""
    polygons = [struct.pack("<BIII", 1, 3, 1, len(ring)) + ring.astype("<f8").tobytes() for ring in cut]
    return polygons[0] if len(polygons) == 1 else struct.pack("<BII", 1, 6, len(cut)) + b"".join(polygons)
