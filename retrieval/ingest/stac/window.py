"""Which pixels of a tile are asked for, and which tiles would only bring the same ground again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from retrieval.ingest.stac.asked import Bbox
from retrieval.ingest.stac.scene import Grid
from tfrecords.errors import GridError
from tfrecords.grid import PATCH_PX
from tfrecords.read.rasters import RESOLUTION_M

if TYPE_CHECKING:
    from shapely import Polygon

LONLAT = "EPSG:4326"
SLACK_PX = 1e-3
"""An edge this near to a pixel's is that pixel's: what rounding of coordinates does."""
SAME_GROUND = 0.99
"""A tile that has so much of its ground in another one is left out."""


def window_of(grids: Sequence[Grid], bbox: Bbox) -> Grid:
    """Cut the ground asked for out of a place, along the pixels of its tile.

    Args:
        grids: Pixels of the red band of its items, all of one reference system; the first one's pixels are
            everybody's, and what all of them cover together is the tile.
        bbox: West, south, east, north in degrees.

    Returns:
        The pixels that hold the box, as far as the tile goes.

    Raises:
        GridError: The pixels are not of 10 m, or there is less than a patch of ground.
    """
    first = grids[0]
    size = abs(first.transform[0])
    if abs(size / RESOLUTION_M - 1) > 0.01 or abs(-first.transform[4] / size - 1) > 1e-6:
        raise GridError(f"its pixels are of {size:g} in {first.crs}; expected {RESOLUTION_M:g} m")
    parts = [grid.bounds for grid in grids]
    tile = (*(min(p[i] for p in parts) for i in (0, 1)), *(max(p[i] for p in parts) for i in (2, 3)))
    left, bottom, right, top = _inside(first.crs, tile, bbox)
    a, _, c, _, e, f = first.transform
    x0, x1 = math.floor((left - c) / a + SLACK_PX), math.ceil((right - c) / a - SLACK_PX)
    y0, y1 = math.floor((top - f) / e + SLACK_PX), math.ceil((bottom - f) / e - SLACK_PX)
    if min(x1 - x0, y1 - y0) < PATCH_PX:
        raise GridError(
            f"{max(y1 - y0, 0)} x {max(x1 - x0, 0)} px (rows x columns) of it are asked for; expected "
            f"{PATCH_PX} each way, {PATCH_PX * RESOLUTION_M:g} m"
        )
    return Grid(first.crs, (a, 0.0, c + a * x0, 0.0, e, f + e * y0), y1 - y0, x1 - x0)


def _inside(crs: str, tile: tuple[float, ...], bbox: Bbox) -> tuple[float, ...]:
    """What a tile and a box of degrees have in common, as bounds in the tile's map coordinates."""
    from rasterio.warp import transform_bounds

    try:
        west, south, east, north = transform_bounds(crs, LONLAT, *tile)
    except Exception as error:  # rasterio lets GDAL's own errors through, which have no public names
        raise GridError(f"its reference system {crs[:40]} is not known to PROJ") from error
    if west < east:  # else it lies across the antimeridian; then the whole box is projected
        bbox = max(bbox[0], west), max(bbox[1], south), min(bbox[2], east), min(bbox[3], north)
    if bbox[0] >= bbox[2] or bbox[1] >= bbox[3]:
        return tile[0], tile[1], tile[0], tile[1]
    asked = transform_bounds(LONLAT, crs, *bbox)
    low = (max(asked[0], tile[0]), max(asked[1], tile[1]))
    return (*low, min(asked[2], tile[2]), min(asked[3], tile[3]))


def repeated(windows: Mapping[str, Grid], bbox: Bbox) -> dict[str, str]:
    """Find places whose ground another one has as well: tiles overlap by 10 km.

    Args:
        windows: Pixels of each place.
        bbox: What was asked for, degrees.

    Returns:
        For each place that brings nothing new, the name of the one that has it. The place with the most of
        the ground asked for stays; of equals the first by name.
    """
    ground = {name: _ground(window, bbox) for name, window in windows.items()}
    order = sorted(ground, key=lambda name: (-round(ground[name].area, 9), name))
    kept: list[str] = []
    twice: dict[str, str] = {}
    for name in order:
        own = ground[name]
        for other in kept:
            if own.area > 0 and own.intersection(ground[other]).area >= SAME_GROUND * own.area:
                twice[name] = other
                break
        else:
            kept.append(name)
    return twice


def _ground(window: Grid, bbox: Bbox) -> Polygon:
    """What of the box a window covers, in degrees; empty where it lies across the antimeridian."""
    import numpy as np
    from rasterio.warp import transform
    from shapely import Polygon, box

    left, bottom, right, top = window.bounds
    along = np.linspace(0, 1, 21)
    x = np.concatenate([left + along * (right - left), right + 0 * along, right + along * (left - right)])
    y = np.concatenate([bottom + 0 * along, bottom + along * (top - bottom), top + 0 * along])
    longitude, latitude = transform(window.crs, LONLAT, x, y)
    if max(longitude) - min(longitude) > 180:
        return Polygon()
    return Polygon(zip(longitude, latitude, strict=True)).intersection(box(*bbox))
