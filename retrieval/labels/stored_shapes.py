"""Geometries on the disk, found by the tiles that their bounds meet.

A geometry in memory takes about 1 kB, even if it has four corners. So features wait as well-known binary in
a file without a name, which the system removes with its last user. Memory holds about 20 bytes for each.
"""

from __future__ import annotations

import tempfile
import weakref
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from retrieval.labels.vectors import Shapes


class StoredShapes:
    """Geometries in pixels of a lattice: first `add` all, then read them by number or by tile."""

    def __init__(self, boxes: NDArray[np.int64]) -> None:
        """Open an empty store.

        Args:
            boxes: (n, 4) west, north, east and south of each tile, pixels of the lattice.
        """
        import shapely

        self._file = tempfile.TemporaryFile(prefix="retrieve-labels-")
        weakref.finalize(self, self._file.close)
        self._boxes = shapely.STRtree(shapely.box(*boxes.T))
        self._count = 0
        self._sizes: list[NDArray[np.uint32]] = []
        self._pairs: list[NDArray[np.uint32]] = []

    def __len__(self) -> int:
        """Return the number of geometries."""
        return self._count

    def add(self, shapes: Shapes) -> None:
        """Append geometries.

        Args:
            shapes: (n,) geometries.
        """
        import shapely

        wkb = shapely.to_wkb(shapes)
        self._file.write(b"".join(wkb))
        self._sizes.append(np.array([len(one) for one in wkb], np.uint32))
        rows, tiles = self._boxes.query(shapes)
        self._pairs.append(np.stack([tiles, rows + self._count]).astype(np.uint32))
        self._count += len(shapes)

    def read(self, numbers: NDArray[np.int64]) -> Shapes:
        """Return geometries.

        Args:
            numbers: (n,) their places in the order in which they came.
        """
        import shapely

        found = []
        for start, end in zip(self._ends[numbers].tolist(), self._ends[numbers + 1].tolist(), strict=True):
            if self._file.tell() != start:
                self._file.seek(start)
            found.append(self._file.read(end - start))
        return np.asarray(shapely.from_wkb(np.array(found, object)), object)

    def of_tiles(self, tiles: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of the geometries whose bounds meet any of the tiles, ascending.

        Args:
            tiles: (n,) numbers of tiles, each once.
        """
        starts, numbers = self._by_tile
        parts = [numbers[starts[tile] : starts[tile + 1]] for tile in tiles]
        if len(parts) == 1:
            return parts[0].astype(np.int64)
        return np.unique(np.concatenate([np.array([], np.uint32), *parts])).astype(np.int64)

    def tiles_of(self, shapes: Shapes) -> NDArray[np.int64]:
        """Return the tiles that the bounds of any of the geometries meet, ascending."""
        return np.unique(self._boxes.query(shapes)[1])

    def tiles_met(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return the first tile that each geometry meets, -1 for none, and the number of its tiles."""
        starts, numbers = self._by_tile
        first, count = np.full(len(self), -1, np.int32), np.zeros(len(self), np.int32)
        for tile in range(len(starts) - 2, -1, -1):
            here = numbers[starts[tile] : starts[tile + 1]]
            first[here] = tile
            count[here] += 1
        return first, count

    @cached_property
    def _ends(self) -> NDArray[np.int64]:
        """First byte of each geometry, and the end of the last one, (n + 1,)."""
        ends = np.zeros(len(self) + 1, np.int64)
        if self._sizes:
            np.cumsum(np.concatenate(self._sizes), out=ends[1:])
        self._sizes.clear()
        return ends

    @cached_property
    def _by_tile(self) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
        """Where the geometries of each tile start, and their numbers in the order of the tiles."""
        tiles, numbers = np.concatenate([np.zeros((2, 0), np.uint32), *self._pairs], axis=1)
        self._pairs.clear()
        order = np.lexsort([numbers, tiles])
        starts = np.searchsorted(tiles[order], np.arange(len(self._boxes) + 1))
        return starts, numbers[order]
