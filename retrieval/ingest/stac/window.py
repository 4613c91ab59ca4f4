"""The pixels of each tile that a query needs, and the tiles that only repeat the ground of another tile."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from retrieval.geo.pixel_window import edge_points, transform_points, unwrap, window_of_box
from retrieval.geo.request import BoundingBox
from retrieval.ingest.stac.scene import Grid
from tfrecords.errors import GridError
from tfrecords.grid import PATCH_PX
from tfrecords.read.rasters import RESOLUTION_M

if TYPE_CHECKING:
    from shapely import Polygon

ROUNDING_PX = 1e-3
"""Edges of two tiles this close to each other lie on the same pixel edge."""
SAME_GROUND = 0.99
"""A tile is left out if another tile covers at least this share of its ground."""


def crop_to_box(grids: Sequence[Grid], bbox: BoundingBox) -> Grid:
    """Return the pixels of a tile that a box touches.

    Args:
        grids: red-band pixels of the tile's items, all in one CRS. The first grid sets the pixel lattice, and
            their union is the tile.
        bbox: the box.

    Returns:
        The pixels inside the tile that hold the box.

    Raises:
        GridError: the pixels are not 10 m, or less than one patch lies in the box.
    """
    first = grids[0]
    size = abs(first.transform[0])
    if abs(size / RESOLUTION_M - 1) > 0.01 or abs(-first.transform[4] / size - 1) > 1e-6:
        raise GridError(f"pixels of {size:g} units in {first.crs}; expected {RESOLUTION_M:g} m")
    tile = _union(grids)
    window = window_of_box(bbox, tile.crs, tile.transform, tile.width, tile.height, f"CRS {tile.crs[:40]}")
    width, height = (window.width, window.height) if window else (0, 0)
    if window is None or min(width, height) < PATCH_PX:
        raise GridError(
            f"{height} x {width} px (rows x columns) lie in the box; expected at least {PATCH_PX} each way, "
            f"{PATCH_PX * RESOLUTION_M:g} m"
        )
    return tile.crop(window)


def _union(grids: Sequence[Grid]) -> Grid:
    """Return the grid that covers all grids, on the lattice of the first."""
    first = grids[0]
    a, _, c, _, e, f = first.transform
    bounds = [grid.bounds for grid in grids]
    x0 = math.floor((min(left for left, *_ in bounds) - c) / a + ROUNDING_PX)
    x1 = math.ceil((max(right for *_, right, _ in bounds) - c) / a - ROUNDING_PX)
    y0 = math.floor((max(top for *_, top in bounds) - f) / e + ROUNDING_PX)
    y1 = math.ceil((min(bottom for _, bottom, *_ in bounds) - f) / e - ROUNDING_PX)
    return Grid(first.crs, (a, 0.0, c + a * x0, 0.0, e, f + e * y0), y1 - y0, x1 - x0)


def find_repeated(
    windows: Mapping[str, Grid], bbox: BoundingBox, dates: Mapping[str, int], existing: Collection[str] = ()
) -> dict[str, str]:
    """Find places whose ground another place covers too: neighbouring tiles overlap by 10 km.

    Args:
        windows: pixels of each place.
        bbox: the box of the query.
        dates: number of usable dates of each place.
        existing: places with files, which are kept.

    Returns:
        For each repeated place the place that covers it. The place with the most dates is kept, of equals
        the one with the most ground in the box, then the first by name.
    """
    ground = {name: _footprint(window, bbox) for name, window in windows.items()}
    order = sorted(
        ground, key=lambda name: (name not in existing, -dates[name], -round(ground[name].area, 9), name)
    )
    kept: list[str] = []
    repeated: dict[str, str] = {}
    for name in order:
        footprint = ground[name]
        for other in kept if name not in existing else ():
            shared = footprint.intersection(ground[other]).area
            if footprint.area > 0 and shared >= SAME_GROUND * footprint.area:
                repeated[name] = other
                break
        else:
            kept.append(name)
    return repeated


def _footprint(window: Grid, bbox: BoundingBox) -> Polygon:
    """Return the part of the box that a window covers, in degrees east of the box's western edge."""
    from shapely import Polygon, box

    longitude, latitude = transform_points(window.crs, "EPSG:4326", edge_points(window.bounds), window.crs)
    longitude = unwrap(longitude, bbox.west + bbox.width / 2)
    if np.ptp(longitude) > 180:  # opposite of a box that goes around the globe
        return Polygon()
    ring = Polygon(np.stack([longitude, latitude], axis=1))
    return ring.intersection(box(bbox.west, bbox.south, bbox.west + bbox.width, bbox.north))
