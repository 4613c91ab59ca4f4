"""The cloud masks of Level-1C: polygons (GML) before processing baseline 04.00, a raster of 60 m since.

Formats: S2 Products Specification Document, issues 13 to 15. MSK_CLOUDS holds polygons in map coordinates of
the tile. MSK_CLASSI holds three bands, opaque cloud, cirrus and snow, 1 where present.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.geo.pixel_window import PixelWindow
from retrieval.ingest.safe.tree import XML_BYTES, Tree
from retrieval.ingest.safe.xml import parse_xml
from tfrecords.errors import ProductError
from tfrecords.grid import pixel_to_map

CLASSI_PX = 6
"""Columns and rows of 10 m that a pixel of MSK_CLASSI covers."""


Ring = tuple[tuple[float, float], ...]
"""The corners of a closed line, in map coordinates."""


@dataclass(frozen=True)
class CloudPolygons:
    """Clouds as polygons in map coordinates."""

    polygons: tuple[tuple[Ring, ...], ...]
    """The rings of each polygon: the outer one, then the rings of its holes."""
    transform: tuple[float, ...]
    """(a, b, c, d, e, f) of the tile."""

    def hidden(self, window: PixelWindow) -> NDArray[np.bool_]:
        """Return the pixels of a window whose centre lies in a cloud, (h, w) bool."""
        from rasterio.features import rasterize
        from rasterio.transform import Affine

        shape = window.height, window.width
        if not self.polygons:
            return np.zeros(shape, bool)
        a, b, _, d, e, _ = self.transform
        c, f = pixel_to_map(self.transform, window.x0, window.y0)
        shapes = [{"type": "Polygon", "coordinates": rings} for rings in self.polygons]
        burnt: NDArray[Any] = rasterize(
            shapes, out_shape=shape, transform=Affine(a, b, float(c), d, e, float(f)), dtype="uint8"
        )
        return burnt.astype(bool)


def read_polygons(tree: Tree, name: str, transform: Sequence[float]) -> CloudPolygons:
    """Read a cloud mask of polygons.

    Args:
        tree: the product.
        name: the GML file in it.
        transform: of the tile.

    Raises:
        ProductError: the file is damaged, or a ring is not a list of coordinate pairs.
    """
    where = f"{tree.path}: {name}"
    root = parse_xml(tree.head(name, XML_BYTES + 1), where)
    polygons = []
    for element in root.iter():
        outer, holes = (
            [c for c in element if c.tag.endswith(f"}}{kind}")] for kind in ("exterior", "interior")
        )
        if outer:
            polygons.append(tuple(_ring(boundary, where) for boundary in (outer[0], *holes)))
    return CloudPolygons(tuple(polygons), tuple(transform))


def _ring(boundary: ElementTree.Element, where: str) -> Ring:
    """Return the ring of an `exterior` or `interior` element."""
    positions = next((element for element in boundary.iter() if element.tag.endswith("}posList")), None)
    try:
        size = 2 if positions is None else int(positions.get("srsDimension") or 2)
        values = [] if positions is None else [float(text) for text in (positions.text or "").split()]
    except ValueError:
        size, values = 2, []
    if size not in (2, 3) or len(values) < 3 * size or len(values) % size:
        raise ProductError(f"{where}: a ring is no list of coordinates. Download the product again")
    return tuple(zip(values[::size], values[1::size], strict=True))
