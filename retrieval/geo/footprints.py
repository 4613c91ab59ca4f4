"""Footprints of windows on the map, and the GeoParquet columns that hold them.

A footprint is a shapely polygon in longitude and latitude, WGS 84. One that crosses the 180th meridian
is cut there into two polygons (RFC 7946, section 3.1.9).
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from retrieval.geo.coordinates import Images, to_lonlat

DECIMALS = 8
"""Decimals of a footprint's degrees: about 1 mm."""
BOX = ("xmin", "ymin", "xmax", "ymax")
"""Members of a bounding-box column."""
MULTIPOLYGON = 6
"""Shapely's type id of a multipolygon."""


def footprints(
    images: Images,
    image_ids: NDArray[Any],
    x: NDArray[Any],
    y: NDArray[Any],
    width: ArrayLike,
    height: ArrayLike,
) -> NDArray[np.object_]:
    """Return the outline of each window on the map.

    Args:
        images: the index's image table.
        image_ids: (n,) image of each window; -1 for none.
        x: (n,) columns of the top-left pixels, fractions allowed.
        y: (n,) rows of the top-left pixels.
        width: columns of each window, one number or (n,).
        height: rows of each window, one number or (n,).

    Returns:
        (n,) shapely polygons, counterclockwise; a multipolygon of a western and an eastern part across
        the 180th meridian; None where the image has no CRS.
    """
    import shapely

    width, height = np.asarray(width), np.asarray(height)
    corners = [(0, 0), (0, 1), (1, 1), (1, 0), (0, 0)]
    points = [to_lonlat(images, image_ids, x + i * width, y + j * height) for i, j in corners]
    rings = np.round(np.moveaxis(np.array(points), -1, 0), DECIMALS)  # (n, 5, 2)
    shapes = np.full(len(rings), None, object)
    located = np.isfinite(rings).all((1, 2))
    if located.any():
        crosses = np.ptp(rings[..., 0], axis=1) > 180
        rings[crosses, :, 0] %= 360
        shapes[located] = shapely.orient_polygons(shapely.polygons(rings[located]))
        for row in np.flatnonzero(located & crosses):
            shapes[row] = _split_at_180(shapes[row])
    return shapes


def _split_at_180(shape: Any) -> Any:
    """Cut a polygon with longitudes of 0 to 360 at 180; the parts have longitudes of -180 to 180."""
    import shapely

    west = shapely.intersection(shape, shapely.box(0, -90, 180, 90))
    east = shapely.intersection(shape, shapely.box(180, -90, 360, 90))
    east = shapely.transform(east, lambda xy: xy - [360, 0])
    parts = [part for part in (west, east) if part.area > 0]
    return shapely.orient_polygons(parts[0] if len(parts) == 1 else shapely.multipolygons(parts))


def bounding_boxes(shapes: NDArray[np.object_]) -> NDArray[np.float64]:
    """Return the west, south, east and north of each footprint.

    Args:
        shapes: (n,) from `footprints`.

    Returns:
        (n, 4) degrees. West is greater than east across the 180th meridian (RFC 7946, section 5.2); NaN
        where there is no footprint.
    """
    import shapely

    boxes = shapely.bounds(shapes).reshape(-1, 4)
    for row in np.flatnonzero(shapely.get_type_id(shapes) == MULTIPOLYGON):
        west, east = shapes[row].geoms
        boxes[row, [0, 2]] = west.bounds[0], east.bounds[2]
    return np.asarray(boxes)


class GeometryColumn:
    """The geometry column of a GeoParquet 1.1 file that is written in pieces.

    Source: https://geoparquet.org/releases/v1.1.0/

    Args:
        name: name of the geometry column.
        bbox: name of a column of bounding boxes; "" for none.
    """

    def __init__(self, name: str, bbox: str = "") -> None:
        self.name, self.bbox = name, bbox
        self.types: set[str] = set()
        """Geometry types of the rows so far; empty where no row has a geometry."""
        self._bounds = np.array([np.inf, np.inf, -np.inf, -np.inf])

    def fields(self) -> list[tuple[str, Any]]:
        """Return the names and Arrow types of the columns."""
        import pyarrow as pa

        box = pa.struct([(side, pa.float64()) for side in BOX])
        return [(self.name, pa.binary()), *([(self.bbox, box)] if self.bbox else [])]

    def arrays(self, shapes: NDArray[np.object_]) -> dict[str, Any]:
        """Return the Arrow arrays of the next rows by column name, null where there is no geometry.

        Args:
            shapes: (n,) shapely geometries or None.
        """
        import pyarrow as pa
        import shapely

        known = shapes[~shapely.is_missing(shapes)]
        self.types |= {shape.geom_type for shape in known}
        if len(known):
            bounds = shapely.bounds(known)
            self._bounds[:2] = np.minimum(self._bounds[:2], bounds[:, :2].min(axis=0))
            self._bounds[2:] = np.maximum(self._bounds[2:], bounds[:, 2:].max(axis=0))
        columns = {self.name: pa.array(shapely.to_wkb(shapes), pa.binary())}
        if self.bbox:
            sides = [pa.array(side) for side in bounding_boxes(shapes).T]
            missing = pa.array(shapely.is_missing(shapes))
            columns[self.bbox] = pa.StructArray.from_arrays(sides, names=list(BOX), mask=missing)
        return columns

    def metadata(self) -> str:
        """Return the value of the file's key `geo`; without a `crs` it is WGS 84."""
        column: dict[str, Any] = {
            "encoding": "WKB",
            "geometry_types": sorted(self.types),
            "orientation": "counterclockwise",
            "edges": "planar",
        }
        if self.bbox:
            column["covering"] = {"bbox": {side: [self.bbox, side] for side in BOX}}
        if self.types:
            column["bbox"] = self._bounds.tolist()
        return json.dumps({"version": "1.1.0", "primary_column": self.name, "columns": {self.name: column}})
