"""Tensors of images, kept for the next look, and the regions around positions in them.

Large images are taken block by block. Blocks of the same size lie on one shelf, an array, so that the
regions of many pairs in many images are cut out at once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import cycle
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX
from retrieval.kernels.compiled import threads
from retrieval.matching.tensors import (
    CODES,
    LEVELS,
    Known,
    Layer,
    Pixels,
    crop_windows,
    full_resolution,
    in_bands,
    pyramid,
    side,
    tensor_of,
)

BLOCK_PX = 2048
"""Side of the blocks that images are taken in; a multiple of every level's step."""
MARGIN_PX = 128
"""What a block sees beyond its end on each side, besides a patch: more than any radius."""
KEPT_BYTES = 512 << 20
"""Tensors of images that are kept for the next look."""
SHELF_BYTES = 32 << 20
"""Of these so much on one shelf, or a single block: a shelf is given up as a whole."""
BYTES_A_PIXEL = 3
"""What is kept of an image takes this much for each of its pixels."""

Block = tuple[int, int, int]
"""Image id, and the column and row of a block of the image."""


@dataclass(frozen=True)
class Sites:
    """Where templates are compared."""

    image_ids: NDArray[np.int64]
    """(m,); fastest where those in one block are behind each other."""
    at: NDArray[np.int64]
    """(m, 2) x and y in the level's pixels, of a template's corner."""
    columns: tuple[int, ...]
    """Bands that count."""
    radius: int
    """How far a template is moved, in the level's pixels."""
    level: int
    """0, 1 or 2."""

    def select(self, rows: NDArray[np.intp]) -> Sites:
        """Some of them."""
        return replace(self, image_ids=self.image_ids[rows], at=self.at[rows])


@dataclass(frozen=True)
class CachedSites:
    """Those of some sites that lie in pictures of one size, on one shelf."""

    rows: NDArray[np.intp]
    """(k,) which of the sites; those in one picture are behind each other."""
    pictures: NDArray[np.int16]
    """(p, h, w, 3) codes."""
    spread: NDArray[np.float32]
    """(p, h - s + 1, w - s + 1, 1) of every square as large as a template, s."""
    known: NDArray[np.bool_]
    """(p, h, w, 1), where `hidden`."""
    hidden: NDArray[np.bool_]
    """(k,) whether some of the picture is not visible."""
    which: NDArray[np.int64]
    """(k,) picture of each."""
    at: NDArray[np.int64]
    """(k, 2) x and y in it, of a template's corner."""


@dataclass(frozen=True)
class Regions:
    """What lies around positions, for templates to be moved in."""

    stored: NDArray[Any]
    """(m, s + 2 radius, s + 2 radius, 3), s the template's side: int16 codes, or at full resolution float32.
    What lies beyond the image's edge is arbitrary: no patch lies there."""
    known: Known
    """(m, s + 2 radius, s + 2 radius, 1), or None."""
    spread: NDArray[np.float32] | None
    """(m, 2 radius + 1, 2 radius + 1) sum of squares of the mean-free tensor under the template; None at full
    resolution."""

    def tensor(self, rows: Any = slice(None)) -> NDArray[np.float32]:
        """The tensor of some of them, float32."""
        stored = self.stored[rows]
        return stored if self.spread is None else tensor_of(stored)


class Slab:
    """Tensors of blocks of one size, behind each other; what is on it stays as it is."""

    def __init__(self, layers: dict[int, Layer], most: int) -> None:
        """Make room for blocks like this one, `most` at the most."""
        boxes = {level: np.add(one.codes.shape[1:3], 1 - side(level)) for level, one in layers.items()}
        each = sum(one.codes.nbytes + 4 * int(np.prod(boxes[level])) for level, one in layers.items())
        self.room = max(1, min(SHELF_BYTES // each, most))
        self.nbytes = self.room * each
        self.count = 0
        # Memory that nothing was written to takes none.
        self.codes = {k: np.empty((self.room, *one.codes.shape[1:]), np.int16) for k, one in layers.items()}
        self.spread = {k: np.empty((self.room, *boxes[k], 1), np.float32) for k in layers}
        self.known = {k: np.empty((self.room, *one.codes.shape[1:3], 1), bool) for k, one in layers.items()}
        self.hidden = {k: np.zeros(self.room, bool) for k in layers}  # where `known` says something

    def put(self, layers: dict[int, Layer], spread: dict[int, NDArray[np.float32]]) -> int:
        """Put a block on it; its number."""
        number = self.count
        for level, one in layers.items():
            self.codes[level][number], self.spread[level][number] = one.codes[0], spread[level]
            if one.known is not None:
                self.known[level][number], self.hidden[level][number] = one.known[0], True
        self.count += 1
        return number


class TensorCache:
    """Regions of images at any level; tensors of the images looked at last are kept."""

    def __init__(self, images: Pixels) -> None:
        """Read from `images` when asked."""
        self._images = images
        self._places: dict[tuple, tuple[Slab, int]] = {}
        self._shelves: OrderedDict[Slab, list[tuple]] = OrderedDict()  # what is on them; used last is last
        self._open: dict[tuple[int, ...], Slab] = {}  # by size: those with room
        self._lock = Lock()
        self._begin = cycle(range(threads()))

    def regions(self, sites: Sites) -> Regions:
        """What lies around positions, cut out."""
        ids, at, radius, level = sites.image_ids, sites.at, sites.radius, sites.level
        if level == 0:
            blocks, block = blocks_at(ids, at, level)
            pixels = np.empty((len(at), *[PATCH_PX + 2 * radius] * 2, len(sites.columns)), np.float32)
            order, count = np.argsort(block, kind="stable"), np.bincount(block, minlength=len(blocks))
            for one, rows in zip(blocks, np.split(order, np.cumsum(count)[:-1]), strict=True):
                pixels[rows] = self._pixels(one, at[rows], sites.columns, radius)
            return Regions(*full_resolution(pixels), None)
        size, shifts = side(level) + 2 * radius, 2 * radius + 1
        codes = np.empty((len(at), size, size, 3), np.int16)
        spread = np.empty((len(at), shifts, shifts, 1), np.float32)
        known: Known = None
        for spots in self.spots(sites):
            rows = spots.rows
            codes[rows] = crop_windows(spots.pictures, spots.which, spots.at, size, radius)
            spread[rows] = crop_windows(spots.spread, spots.which, spots.at, shifts, radius)
            rows, which, here = (v[spots.hidden] for v in (rows, spots.which, spots.at))
            if len(rows):
                known = np.ones((len(at), size, size, 1), bool) if known is None else known
                known[rows] = crop_windows(spots.known, which, here, size, radius)
        return Regions(codes, None if known is None or known.all() else known, spread[..., 0])

    def spots(self, sites: Sites) -> list[CachedSites]:
        """Where sites of level 1 or 2 lie among the tensors that are kept."""
        level = sites.level
        blocks, block = blocks_at(sites.image_ids, sites.at, level)
        places, corners = self._all_placed(blocks, sites.columns), [self._window(b)[:2] for b in blocks]
        here = sites.at - (np.array(corners, np.int64).reshape(-1, 2) >> level)[block]
        shelves = {shelf: n for n, shelf in enumerate(dict.fromkeys(shelf for shelf, _ in places))}
        of_block = np.array([(shelves[shelf], number) for shelf, number in places], np.int64).reshape(-1, 2)
        which, number = of_block[block].T
        order = np.argsort(block, kind="stable")  # what lies in one block stays in the processor's cache
        found = []
        for shelf, n in shelves.items():
            rows = order[which[order] == n]
            stored = shelf.codes[level], shelf.spread[level], shelf.known[level]
            found.append(
                CachedSites(rows, *stored, shelf.hidden[level][number[rows]], number[rows], here[rows])
            )
        return found

    def blocks(self, image_ids: Iterable[int]) -> list[Block]:
        """The blocks of images. Each reaches further than a patch and `MARGIN_PX` into the next ones."""
        sizes = ((i, *self._images.size(i)) for i in image_ids)
        return [
            (i, column, row)
            for i, height, width in sizes
            for row in range(-(-height // BLOCK_PX))
            for column in range(-(-width // BLOCK_PX))
        ]

    def block(self, block: Block, columns: tuple[int, ...]) -> tuple[int, int, NDArray[np.float32], Known]:
        """Half-resolution tensor of a block.

        Args:
            block: of `blocks`.
            columns: bands that count.

        Returns:
            x and y of the block's corner in the image, its tensor (h, w, 3), and what is visible of it.
        """
        x, y = self._window(block)[:2]
        shelf, number = self._placed(block, columns)
        known = shelf.known[1][number] if shelf.hidden[1][number] else None
        return x, y, tensor_of(shelf.codes[1][number]), known

    def group(self, image_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """For each of some images a number, equal for those whose tensors can be kept at the same time."""
        pixels = np.array([np.prod(self._images.size(int(i))) for i in image_ids], np.float64)
        return ((np.cumsum(pixels) - pixels) * (2 * BYTES_A_PIXEL) // KEPT_BYTES).astype(np.int64)

    def _pixels(
        self, block: Block, at: NDArray[np.int64], columns: tuple[int, ...], radius: int
    ) -> NDArray[np.float32]:
        """Pixels of regions in one block."""
        window = self._window(block)
        pixels = in_bands(self._images.scaled(block[0], window), columns)
        first = np.zeros(len(at), np.int64)
        return crop_windows(pixels[None], first, at - np.array(window[:2]), PATCH_PX + 2 * radius, radius)

    def _window(self, block: Block) -> tuple[int, int, int, int]:
        """Pixels that a block and its margin take, inside the image."""
        image_id, column, row = block
        height, width = self._images.size(image_id)
        x0, y0 = (max(0, n * BLOCK_PX - MARGIN_PX) for n in (column, row))
        x1, y1 = ((n + 1) * BLOCK_PX + PATCH_PX + MARGIN_PX for n in (column, row))
        return x0, y0, min(x1, width) - x0, min(y1, height) - y0

    def _all_placed(self, blocks: list[Block], columns: tuple[int, ...]) -> list[tuple[Slab, int]]:
        """Where the tensors of blocks are."""
        # Batches side by side begin at different images, so that they don't make the same tensors at once.
        first = next(self._begin) * len(blocks) // threads()
        turned = [self._placed(block, columns) for block in blocks[first:] + blocks[:first]]
        return turned[len(blocks) - first :] + turned[: len(blocks) - first]

    def _placed(self, block: Block, columns: tuple[int, ...]) -> tuple[Slab, int]:
        """Where the tensors of a block are; they are made anew unless they were kept."""
        key = (*block, columns)
        with self._lock:
            if key in self._places:
                self._shelves.move_to_end(self._places[key][0])
                return self._places[key]
        layers = pyramid(in_bands(self._images.scaled(block[0], self._window(block)), columns)[None])
        spread = {k: _spread(one.codes, side(k)) for k, one in layers.items()}
        with self._lock:
            if key not in self._places:
                shelf = self._with_room(layers)
                self._places[key] = shelf, shelf.put(layers, spread)
                self._shelves[shelf].append(key)
            return self._places[key]

    def _with_room(self, layers: dict[int, Layer]) -> Slab:
        """A shelf for one more block of a size; those that were used longest ago are given up for it."""
        size = layers[LEVELS[0]].codes.shape
        shelf = self._open.get(size)
        if shelf is None or shelf.count == shelf.room:
            # Images of a size of their own shall not take the room of many.
            shelf = self._open[size] = Slab(layers, 2 * shelf.room if shelf else 1)
            self._shelves[shelf] = []
            while sum(s.nbytes for s in self._shelves) > KEPT_BYTES and len(self._shelves) > 1:
                # Whoever is reading from it keeps it until it is done.
                gone, keys = self._shelves.popitem(last=False)
                for key in keys:
                    del self._places[key]
                self._open = {k: s for k, s in self._open.items() if s is not gone}
        return shelf


def _spread(codes: NDArray[np.int16], box: int) -> NDArray[np.float32]:
    """Sum of squares of the mean-free tensor in every box x box square of a picture (1, h, w, 3)."""
    from retrieval.kernels.correlation import local_energy

    return local_energy(np.ascontiguousarray(codes), box, 1 / CODES)[0, ..., None]


def blocks_at(
    image_ids: NDArray[np.int64], at: NDArray[np.int64], level: int
) -> tuple[list[Block], NDArray[np.int64]]:
    """The blocks that positions lie in, and which of these each lies in.

    Args:
        image_ids: (m,).
        at: (m, 2) x and y in the level's pixels.
        level: 0, 1 or 2.
    """
    column, row = (at // (BLOCK_PX >> level)).T
    many = np.array([image_ids, column, row])
    span = many.max(1, initial=0) + 1
    _, first, which = np.unique(
        (many[0] * span[1] + many[1]) * span[2] + many[2], return_index=True, return_inverse=True
    )
    return [(int(i), int(c), int(r)) for i, c, r in many[:, first].T], which
