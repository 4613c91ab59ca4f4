"""The cloud masks of Level-1C: polygons (GML) before processing baseline 04.00, a raster of 60 m since.

Formats: S2 Products Specification Document, issues 13 to 15. MSK_CLOUDS holds polygons in map coordinates of
the tile. MSK_CLASSI holds three bands, opaque cloud, cirrus and snow, 1 where present.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.geo.pixel_window import PixelWindow
from retrieval.ingest.safe.metadata import parse_xml
from retrieval.ingest.safe.tree import XML_BYTES, Tree
from tfrecords.errors import ProductError
from tfrecords.grid import pixel_to_map

CLASSI_PX = 6
"""Columns and rows of 10 m that a pixel of MSK_CLASSI covers."""


@dataclass(frozen=True)
class CloudPolygons:
    """Clouds as rings in map coordinates."""

    rings: tuple[tuple[tuple[float, float], ...], ...]
    """The outer ring of each polygon."""
    transform: tuple[float, ...]
    """(a, b, c, d, e, f) of the tile."""

    def hidden(self, window: PixelWindow) -> NDArray[np.bool_]:
        """Return the pixels of a window whose centre lies in a cloud, (h, w) bool."""
        from rasterio.features import rasterize
        from rasterio.transform import Affine

        shape = window.height, window.width
        if not self.rings:
            return np.zeros(shape, bool)
        a, b, _, d, e, _ = self.transform
        c, f = pixel_to_map(self.transform, window.x0, window.y0)
        shapes = [{"type": "Polygon", "coordinates": [ring]} for ring in self.rings]
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
    rings = []
    for exterior in (element for element in root.iter() if element.tag.rpartition("}")[2] == "exterior"):
        for positions in (element for element in exterior.iter() if element.tag.endswith("}posList")):
            size = int(positions.get("srsDimension") or 2)
            try:
                values = [float(text) for text in (positions.text or "").split()]
            except ValueError:
                values = []
            if size not in (2, 3) or len(values) < 3 * size or len(values) % size:
                raise ProductError(f"{where}: a ring is no list of coordinates. Download the product again")
            rings.append(tuple(zip(values[::size], values[1::size], strict=True)))
    return CloudPolygons(tuple(rings), tuple(transform))
