"""Lengths and areas on the ground, for geometries in any CRS.

Each geometry is measured in the UTM zone of its centre, whose scale is right to 0.1 %, and near the poles in
UPS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.labels.vectors import Shapes, mover

UTM_LIMITS = (-80.0, 84.0)
"""Latitudes between which UTM is defined, degrees."""


def areas_m2(shapes: Shapes, crs: Any) -> NDArray[np.float64]:
    """Return the areas of geometries, m².

    Args:
        shapes: (n,) geometries.
        crs: their CRS, anything that pyproj understands.
    """
    import shapely

    areas = np.zeros(len(shapes))
    for rows, there, _ in _zones(shapes, crs):
        areas[rows] = shapely.area(there(shapes[rows]))
    return areas


def buffer_m(shapes: Shapes, crs: Any, distance_m: float) -> Shapes:
    """Return geometries widened by a distance on the ground, with flat ends of lines.

    Args:
        shapes: (n,) geometries.
        crs: their CRS.
        distance_m: metres to each side.
    """
    import shapely

    wide = shapes.copy()
    for rows, there, back in _zones(shapes, crs):
        wide[rows] = back(shapely.buffer(there(shapes[rows]), distance_m, cap_style="flat"))
    return wide


def _zones(
    shapes: Shapes, crs: Any
) -> Iterator[tuple[NDArray[np.int64], Callable[[Shapes], Shapes], Callable[[Shapes], Shapes]]]:
    """Yield the rows of each UTM zone, and the functions that bring geometries there and back."""
    import shapely
    from pyproj import CRS, Transformer

    source = CRS.from_user_input(crs)
    bounds = shapely.bounds(shapes)
    centres = (bounds[:, :2] + bounds[:, 2:]) / 2
    to_degrees = Transformer.from_crs(source, "OGC:CRS84", always_xy=True)
    longitude, latitude = to_degrees.transform(centres[:, 0], centres[:, 1])
    codes = np.array([zone_code(x, y) for x, y in zip(longitude, latitude, strict=True)], int)
    for code in np.unique(codes):
        there = Transformer.from_crs(source, int(code), always_xy=True)
        back = Transformer.from_crs(int(code), source, always_xy=True)
        yield np.flatnonzero(codes == code), mover(there), mover(back)


def zone_code(longitude: float, latitude: float) -> int:
    """Return the EPSG code of the UTM zone of a place, or of UPS near the poles."""
    if not UTM_LIMITS[0] <= latitude <= UTM_LIMITS[1]:
        return 5041 if latitude > 0 else 5042
    zone = int((longitude + 180) // 6) % 60 + 1
    return (32600 if latitude >= 0 else 32700) + zone
