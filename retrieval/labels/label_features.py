"""Label features on the pixels of a class map, from a vector file or from masks; and mosaics of masks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import LabelsError
from retrieval.labels.classes import IGNORED, Classes
from retrieval.labels.files import RASTER_ENDINGS
from retrieval.labels.grids import Piece, open_grid
from retrieval.labels.masks import read_mask
from retrieval.labels.rasterizing import class_chooser, class_values
from retrieval.labels.stored_shapes import StoredShapes
from retrieval.labels.vectorizing import Lattice, lattices, polygons_of
from retrieval.labels.vectors import Shapes, VectorFile

SQUARE_PX = 512
"""Side of the tiles in which a raster is judged."""
CACHED_PIECES = 256

Part = tuple[Shapes, NDArray[np.int64], NDArray[np.int64]]
"""Features in pixels of a lattice, their classes, and their numbers in their file."""


@dataclass(frozen=True)
class LabelFeatures:
    """Label features on a lattice."""

    shapes: StoredShapes
    """n geometries in pixels of the lattice, by the tiles whose margin they meet."""
    values: NDArray[np.uint8]
    """(n,) classes."""
    rows: NDArray[np.int64]
    """(n,) numbers of the features in their file."""
    mask: Mosaic | None
    """The mask that the features come from; None for a vector file."""


@dataclass(frozen=True)
class LabelSource:
    """Where labels come from, and how they get their class."""

    path: Path
    """A vector file, a mask or a folder of masks."""
    attribute: str | None
    """Attribute that holds the class."""
    as_class: str | None
    """Class of all labels."""
    layer: str | None
    """Layer of the vector file."""
    zoom: int | None
    """Only the masks of this zoom."""

    def read(self, lattice: Lattice, classes: Classes, margin_px: int) -> tuple[LabelFeatures, list[str]]:
        """Return the features that meet the pieces of a lattice, and notes.

        Args:
            lattice: the pieces of the class map.
            classes: its classes.
            margin_px: pixels around a piece that count as met.

        Raises:
            LabelsError: an unknown class, a damaged file, or masks on other pixels.
        """
        import shapely

        mask, notes = None, list[str]()
        if self.path.is_dir() or self.path.suffix.lower() in RASTER_ENDINGS:
            mask = self._mask(lattice, classes)
            parts = _mask_parts(mask.lattice, classes)
        else:
            parts = self._vector_parts(lattice, classes, notes)
        stored = StoredShapes(lattice.boxes() + np.array([-1, -1, 1, 1]) * margin_px)
        values, rows, ground = [np.array([], np.uint8)], [np.array([], np.int64)], lattice.outline()
        shapely.prepare(ground)
        for shapes, kinds, numbers in parts:
            kept = np.flatnonzero(shapely.intersects(ground, shapes) & (kinds >= 0) & (kinds != IGNORED))
            stored.add(shapes[kept])
            values.append(kinds[kept].astype(np.uint8))
            rows.append(numbers[kept])
        return LabelFeatures(stored, np.concatenate(values), np.concatenate(rows), mask), notes

    def _vector_parts(self, lattice: Lattice, classes: Classes, notes: list[str]) -> Iterator[Part]:
        """Yield the features of a vector file, and add its notes."""
        file = VectorFile.open(self.path, self.layer)
        if self.attribute is not None:
            file.check_column(self.attribute)
        choose = class_chooser(classes, self.attribute, self.as_class)
        ground = np.array([lattice.outline().envelope], object)
        columns = [self.attribute] if self.attribute else []
        for batch in file.batches(lattice.crs.to_wkt(), columns, lattice.to_map(ground)[0].bounds):
            yield lattice.to_pixels(batch.shapes), class_values(batch, self.attribute, choose)[0], batch.rows
        notes += file.notes()

    def _mask(self, lattice: Lattice, classes: Classes) -> Mosaic:
        """Return the masks on the pixels of a lattice."""
        for other in lattices(open_grid(self.path, self.zoom, "mask", SQUARE_PX)):
            corner = lattice.corner_of(other.pieces[0])
            if corner is not None:
                corners = tuple((x + corner[0], y + corner[1]) for x, y in other.corners)
                return Mosaic(Lattice(lattice.crs, lattice.transform, other.pieces, corners), classes)
        raise LabelsError(
            f"{self.path}: masks on other pixels than the map. Expected the same grid, or a vector file."
        )


def _mask_parts(lattice: Lattice, classes: Classes) -> Iterator[Part]:
    """Yield the connected areas of masks."""
    first = 0
    for shapes, values in polygons_of(lattice, classes):
        yield shapes, values, np.arange(first, first + len(shapes))
        first += len(shapes)


class Mosaic:
    """Any rectangle of the masks of a lattice."""

    def __init__(
        self, lattice: Lattice, classes: Classes, read: Callable[[Piece], NDArray[np.uint8]] | None = None
    ) -> None:
        """Take the masks of a lattice, or what `read` returns for a piece."""
        import shapely

        self._boxes = lattice.boxes()
        self._tree = shapely.STRtree(shapely.box(*self._boxes.T))
        self.lattice, self._classes, self._read = lattice, classes, read or self._mask
        self._cache: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()

    def read(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Return a rectangle, 255 where there is no mask."""
        import shapely

        out = np.full((height, width), IGNORED, np.uint8)
        for number in self._tree.query(shapely.box(x, y, x + width, y + height)):
            west, north, east, south = (int(v) for v in self._boxes[number])
            left, right = max(x, west), min(x + width, east)
            top, bottom = max(y, north), min(y + height, south)
            if left < right and top < bottom:
                part = self._piece(int(number))[top - north : bottom - north, left - west : right - west]
                out[top - y : bottom - y, left - x : right - x] = part
        return out

    def _piece(self, number: int) -> NDArray[np.uint8]:
        if number not in self._cache:
            self._cache[number] = self._read(self.lattice.pieces[number])
            if len(self._cache) > CACHED_PIECES:
                self._cache.popitem(last=False)
        self._cache.move_to_end(number)
        return self._cache[number]

    def _mask(self, piece: Piece) -> NDArray[np.uint8]:
        assert piece.path is not None
        return read_mask(piece.path, self._classes, piece.window)
