"""Areas of a class map that its labels lack: found tile by tile, merged across tiles, the likeliest first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Area:
    """An area of one class of the map without a label of that class."""

    shape: Any
    """Polygon in pixels of the lattice."""
    value: int
    """The class."""
    conflict: bool
    """Whether another class is labelled there."""
    probability: float
    """Mean probability of the class; NaN without probabilities."""

    @property
    def pixels(self) -> int:
        """Pixels in it."""
        return int(self.shape.area)


class Areas:
    """Collects the areas of the tiles of one lattice."""

    def __init__(self) -> None:
        self._parts: dict[tuple[int, bool], list[tuple[Any, float]]] = {}

    def add(
        self,
        value: int,
        conflict: bool,
        mask: NDArray[np.bool_],
        corner: tuple[int, int],
        likely: NDArray[np.float32] | None,
    ) -> None:
        """Add the areas of a tile.

        Args:
            value: the class.
            conflict: whether another class is labelled there.
            mask: (h, w) the pixels.
            corner: column and row of the tile on the lattice.
            likely: (h, w) probability of the class; None without.
        """
        from rasterio import Affine
        from rasterio.features import rasterize, shapes
        from shapely.geometry import shape

        place = Affine.translation(*corner)
        found = shapes(mask.astype(np.uint8), mask, connectivity=4, transform=place)
        geometries = [shape(geometry) for geometry, _ in found]
        if not geometries:
            return
        sums = np.full(len(geometries), np.nan)
        if likely is not None:
            numbers = rasterize(
                zip(geometries, range(1, len(geometries) + 1), strict=True),
                mask.shape,
                transform=place,
                dtype=np.int32,
            )
            sums = np.bincount(numbers.ravel(), likely.ravel(), len(geometries) + 1)[1:]
        parts = self._parts.setdefault((value, conflict), [])
        parts += zip(geometries, sums.tolist(), strict=True)

    def merged(self, smallest_px: int, least: float) -> list[Area]:
        """Return the areas, merged across tiles: the likeliest first, of equal ones the largest.

        Args:
            smallest_px: pixels below which an area is left out.
            least: probability below which an area is left out; 0 for none.
        """
        areas = [area for key in self._parts for area in self._merged(*key)]
        kept = [area for area in areas if area.pixels >= smallest_px and not area.probability < least]
        return sorted(kept, key=lambda area: (-np.nan_to_num(area.probability), -area.pixels))

    def _merged(self, value: int, conflict: bool) -> Iterator[Area]:
        import shapely

        shapes = np.array([shape for shape, _ in self._parts[value, conflict]], object)
        sums = np.array([total for _, total in self._parts[value, conflict]])
        merged = shapely.get_parts(shapely.union_all(shapes))
        part, whole = shapely.STRtree(merged).query(shapely.point_on_surface(shapes), predicate="intersects")
        totals = np.bincount(whole, sums[part], len(merged))
        for shape, total in zip(shapely.simplify(merged, 0), totals, strict=True):
            yield Area(shape, value, conflict, float(total / shape.area))
