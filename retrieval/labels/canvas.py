"""The masks of many pieces, burnt block by block from features that come in any order.

Features come in the order of their file, masks are written in the order of the pieces. So a feature waits on
the disk, in the spool of each block of pieces that it touches. A block is burnt when its first mask is asked
for. Memory holds the masks of one block, however large the file and the area are. The spools take about the
size of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.labels.classes import IGNORED
from retrieval.labels.grids import Grid, Piece, hidden_pixels

BLOCK_PX = 2**26
"""Pixels of the masks of a block, which are in memory together; a larger piece is a whole block."""

Mask = NDArray[np.uint8]


class Canvas:
    """The masks of the pieces of a grid: first `add` all features, then ask for the masks in order."""

    def __init__(
        self,
        grid: Grid,
        fill: int,
        scratch: Path,
        base: Callable[[Piece], Mask | None] | None,
        block_px: int = BLOCK_PX,
    ) -> None:
        """Prepare empty masks.

        Args:
            grid: the pieces.
            fill: class of ground without a feature.
            scratch: an empty folder for the spools.
            base: returns the former mask of a piece, or None; None for no former masks.
            block_px: pixels of a block.
        """
        self._grid, self._fill, self._scratch, self._base = grid, fill, scratch, base
        self._block_of = _blocks(grid, block_px)
        self._burnt = -1
        self._masks: dict[int, Mask] = {}

    def add(
        self,
        shapes: NDArray[np.object_],
        values: NDArray[np.int64],
        rows: NDArray[np.int64],
        numbers: NDArray[np.int64],
    ) -> None:
        """Keep features for the blocks that they touch; later ones cover earlier ones.

        Args:
            shapes: (n,) geometries in the CRS of the pieces.
            values: (n,) classes.
            rows: (m,) rows of `shapes` that touch a piece.
            numbers: (m,) these pieces.
        """
        import shapely

        blocks = self._block_of[numbers]
        for block in np.unique(blocks):
            mine = np.unique(rows[blocks == block])
            wkb = shapely.to_wkb(shapes[mine])
            with self._spool(int(block)).open("ab") as file:
                np.save(file, values[mine].astype(np.uint8))
                np.save(file, np.array([len(one) for one in wkb], np.int64))
                np.save(file, np.frombuffer(b"".join(wkb), np.uint8))

    def finished(self, number: int) -> Mask:
        """Return the mask of a piece (h, w), with 255 where its image has no data; pieces come in order."""
        block = int(self._block_of[number])
        assert block >= self._burnt
        if block != self._burnt:
            self._burn(block)
        mask = self._masks[number]
        hidden = hidden_pixels(self._grid.pieces[number])
        if hidden is not None:
            mask[hidden] = IGNORED
        return mask

    def _burn(self, block: int) -> None:
        """Burn the features of a block into its masks, which take the place of those in memory."""
        import shapely
        from rasterio.features import rasterize as burn

        numbers = np.flatnonzero(self._block_of == block)
        self._masks = {}
        self._masks = {int(number): self._empty(int(number)) for number in numbers}
        self._burnt = block
        bounds = np.array([self._grid.pieces[number].bounds for number in numbers])
        tree = shapely.STRtree(shapely.box(*bounds.T))
        for shapes, values in self._spooled(block):
            rows, places = tree.query(shapes, predicate="intersects")
            order = np.lexsort((rows, places))
            rows, places = rows[order], places[order]
            found, starts = np.unique(places, return_index=True)
            for place, mine in zip(found, np.split(rows, starts[1:]), strict=True):
                number = int(numbers[place])
                pairs = [(shapes[row], int(values[row])) for row in mine]
                burn(pairs, out=self._masks[number], transform=self._grid.pieces[number].transform)
        self._spool(block).unlink(missing_ok=True)

    def _empty(self, number: int) -> Mask:
        piece = self._grid.pieces[number]
        former = self._base(piece) if self._base else None
        return former if former is not None else np.full((piece.height, piece.width), self._fill, np.uint8)

    def _spool(self, block: int) -> Path:
        return self._scratch / f"{block}.npy"

    def _spooled(self, block: int) -> Iterator[tuple[NDArray[np.object_], NDArray[np.uint8]]]:
        """Yield the features of a block as they were added."""
        import shapely

        path = self._spool(block)
        if not path.exists():
            return
        with path.open("rb") as file:
            while file.tell() < path.stat().st_size:
                values, lengths, data = (np.load(file, allow_pickle=False) for _ in range(3))
                text, ends = data.tobytes(), np.cumsum(lengths)
                wkb = [text[end - length : end] for length, end in zip(lengths, ends, strict=True)]
                yield np.asarray(shapely.from_wkb(wkb), object), values


def _blocks(grid: Grid, block_px: int) -> NDArray[np.int64]:
    """Return the block of each piece (n,): pieces that follow each other, in one CRS."""
    blocks, block, pixels, crs = np.zeros(len(grid.pieces), np.int64), 0, 0, None
    for number, piece in enumerate(grid.pieces):
        size = piece.width * piece.height
        if pixels and (pixels + size > block_px or piece.crs != crs):
            block, pixels = block + 1, 0
        blocks[number], pixels, crs = block, pixels + size, piece.crs
    return blocks
