"""Structure tensors of images, cached between stages, and the regions around positions in them.

Strategy. Large images are taken in blocks of 2048 pixels with a margin. Blocks of one size share a slab, an
array of many blocks. One indexing operation then cuts the regions of many pairs in many images. The cache
gives up whole slabs, the least recently used first. Threads that work on batches at the same time start at
different blocks (`_locate_all`), so that they do not compute the same tensors at once.

A block that few sites need is not worth its tensors: these are computed around the sites, and not cached.
Once half of the work of a whole block went into its sites, the block is computed. So a few patches read
little of a large database, and many patches do at most half more than they would with whole blocks.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from itertools import cycle
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX
from retrieval.kernels.compiled import accelerated
from retrieval.kernels.executors import threads
from retrieval.matching.sites import (
    LocatedSites,
    Regions,
    Sites,
    local_energy_of,
    read_around,
    read_pixels,
    read_side,
)
from retrieval.matching.tensors import (
    LEVELS,
    Known,
    Layer,
    crop_windows,
    full_resolution,
    pyramid,
    select_bands,
    template_side,
    tensor_of,
)
from retrieval.types import Pixels

BLOCK_PX = 2048
"""Side of a block of an image; a multiple of every level's step."""
MARGIN_PX = 128
"""Margin of a block on each side, beyond a patch: more than any search radius."""
CACHE_BYTES = 512 << 20
"""Size of the cache."""
SLAB_BYTES = 32 << 20
"""Size of a slab, or of a single block if that is larger."""
BYTES_PER_PIXEL = 3
"""Cache that an image takes for each of its pixels."""
PIXELS_PER_READ = 1024
"""Pixels whose tensors take as long as a read of a small window."""
WORTH_SHARE = 0.5
"""Share of a block's work from which the block is worth its tensors."""

Block = tuple[int, int, int]
"""Image id, and column and row of a block of the image."""


class Slab:
    """Tensors of blocks of one size in one array; a stored block never changes."""

    def __init__(self, layers: dict[int, Layer], max_blocks: int) -> None:
        """Allocate room for blocks of this size, at most `max_blocks`."""
        squares = {k: np.add(layer.codes.shape[1:3], 1 - template_side(k)) for k, layer in layers.items()}
        block_bytes = sum(v.codes.nbytes + 4 * int(np.prod(squares[k])) for k, v in layers.items())
        self.room = max(1, min(SLAB_BYTES // block_bytes, max_blocks))
        self.nbytes = self.room * block_bytes
        self.count = 0
        # Pages that nothing was written to take no memory.
        shape = {k: (self.room, *layer.codes.shape[1:]) for k, layer in layers.items()}
        self.codes = {k: np.empty(shape[k], np.int16) for k in layers}
        self.energy = {k: np.empty((self.room, *squares[k], 1), np.float32) for k in layers}
        self.known = {k: np.empty((*shape[k][:3], 1), bool) for k in layers}
        self.hidden = {k: np.zeros(self.room, bool) for k in layers}  # where `known` is valid

    def add(self, layers: dict[int, Layer], energy: dict[int, NDArray[np.float32]]) -> int:
        """Store a block and return its number."""
        number = self.count
        for level, layer in layers.items():
            self.codes[level][number], self.energy[level][number] = layer.codes[0], energy[level]
            if layer.known is not None:
                self.known[level][number], self.hidden[level][number] = layer.known[0], True
        self.count += 1
        return number


class TensorCache:
    """Regions of images at any level, cut from cached tensors."""

    def __init__(self, images: Pixels, cache_bytes: int = CACHE_BYTES) -> None:
        """Start empty; pixels are read from `images` when they are needed."""
        self._images, self._cache_bytes = images, cache_bytes
        self._blocks: dict[tuple[Any, ...], tuple[Slab, int]] = {}
        self._slabs: OrderedDict[Slab, list[tuple[Any, ...]]] = (
            OrderedDict()
        )  # keys of their blocks; last used is last
        self._open: dict[tuple[int, ...], Slab] = {}  # slabs with room, by block size
        self._share_around: dict[tuple[Any, ...], float] = {}  # work done around sites, by block
        self._lock = Lock()
        self._first_block = cycle(range(threads()))
        self._backward = cycle((False, True))

    @property
    def slabs(self) -> list[tuple[int, int]]:
        """Room and number of blocks of each slab, least recently used first."""
        return [(slab.room, slab.count) for slab in self._slabs]

    def regions(self, sites: Sites) -> Regions:
        """Cut the regions around sites."""
        if sites.level == 0:
            return Regions(*full_resolution(read_pixels(self._images, sites)), None)  # too large to be cached
        radius, count = sites.radius, len(sites.at)
        size, shifts = template_side(sites.level) + 2 * radius, 2 * radius + 1
        codes = np.empty((count, size, size, 3), np.int16)
        energy = np.empty((count, shifts, shifts, 1), np.float32)
        known: Known = None
        for group in self.locate(sites):
            codes[group.rows] = crop_windows(group.pictures, group.picture, group.at, size, radius)
            energy[group.rows] = crop_windows(group.energy, group.picture, group.at, shifts, radius)
            rows, picture, at = (v[group.hidden] for v in (group.rows, group.picture, group.at))
            if len(rows):
                known = np.ones((count, size, size, 1), bool) if known is None else known
                known[rows] = crop_windows(group.known, picture, at, size, radius)
        return Regions(codes, None if known is None or known.all() else known, energy[..., 0])

    def pixels(self, sites: Sites) -> NDArray[np.float32]:
        """Read the surroundings of sites of level 0, (m, s, s, b); NaN beyond the image's edge."""
        return read_pixels(self._images, sites, nan_beyond=True)

    def locate(self, sites: Sites) -> list[LocatedSites]:
        """Return the tensors around sites of level 1 or 2: a group for each slab, one for sites of others."""
        blocks, block = blocks_at(sites.image_ids, sites.at, sites.level)
        count = np.bincount(block, minlength=len(blocks)).tolist()
        few = np.array(
            [self._are_few(*of_block, sites) for of_block in zip(blocks, count, strict=True)], bool
        )
        order = np.argsort(block, kind="stable")  # sites of one block stay in the processor's cache
        alone = few[block[order]]
        whole, rows = np.flatnonzero(~few), order[~alone]
        of_site = np.searchsorted(whole, block[rows])
        groups = self._locate_in_slabs(sites, rows, [blocks[n] for n in whole], of_site)
        return [*groups, read_around(self._images, sites, order[alone])] if alone.any() else groups

    def _locate_in_slabs(
        self, sites: Sites, order: NDArray[np.intp], blocks: list[Block], block: NDArray[np.intp]
    ) -> list[LocatedSites]:
        """Locate some sites among the cached tensors of their blocks, a group for each slab."""
        level = sites.level
        stored, corners = self._locate_all(blocks, sites.columns), [self._window(b)[:2] for b in blocks]
        at = sites.at[order] - (np.array(corners, np.int64).reshape(-1, 2) >> level)[block]
        slabs = {slab: n for n, slab in enumerate(dict.fromkeys(slab for slab, _ in stored))}
        of_block = np.array([(slabs[slab], number) for slab, number in stored], np.int64).reshape(-1, 2)
        slab_of_site, number = of_block[block].T
        groups = []
        for slab, n in slabs.items():
            of_slab = slab_of_site == n
            arrays, picture = (slab.codes[level], slab.energy[level], slab.known[level]), number[of_slab]
            hidden = slab.hidden[level][picture]
            groups.append(LocatedSites(order[of_slab], *arrays, hidden, picture, at[of_slab]))
        return groups

    def _are_few(self, block: Block, count: int, sites: Sites) -> bool:
        """Return whether sites of a block are not worth its tensors, together with those before them."""
        if accelerated():  # which is fast where shapes recur
            return False
        key = (*block, sites.columns)
        with self._lock:
            share = self._share_around.get(key, 0.0) + self._share_of_work(block, count, sites)
            if key in self._blocks or share > WORTH_SHARE:
                return False
            self._share_around[key] = share
            return True

    def _share_of_work(self, block: Block, count: int, sites: Sites) -> float:
        """Work around some sites as a share of their block's; infinite where a region is larger than it."""
        side, (width, height) = read_side(sites), self._window(block)[2:]
        if min(width, height) < side:
            return float("inf")
        return count * (side**2 + PIXELS_PER_READ) / (width * height)

    def blocks(self, image_ids: Iterable[int]) -> list[Block]:
        """Return the blocks of images. Each extends a patch and `MARGIN_PX` into its neighbours."""
        sizes = ((i, *self._images.size(i)) for i in image_ids)
        return [
            (i, column, row)
            for i, height, width in sizes
            for row in range(-(-height // BLOCK_PX))
            for column in range(-(-width // BLOCK_PX))
        ]

    def block(self, block: Block, columns: tuple[int, ...]) -> tuple[int, int, NDArray[np.float32], Known]:
        """Return the half-resolution tensor of a block.

        Args:
            block: from `blocks`.
            columns: columns of the bands that count.

        Returns:
            x and y of the block's corner in the image, its tensor (h, w, 3), and its visible pixels.
        """
        x, y = self._window(block)[:2]
        slab, number = self._locate(block, columns)
        known = slab.known[1][number] if slab.hidden[1][number] else None
        return x, y, tensor_of(slab.codes[1][number]), known

    def group(self, image_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return a number for each image, equal for images whose tensors fit into the cache together."""
        pixels = np.array([np.prod(self._images.size(int(i))) for i in image_ids], np.float64)
        return ((np.cumsum(pixels) - pixels) * (2 * BYTES_PER_PIXEL) // CACHE_BYTES).astype(np.int64)

    def goes_backward(self) -> bool:
        """Return whether the next pass over the groups goes from the last to the first.

        Passes alternate. So each begins at the tensors that the pass before left in the cache.
        """
        return next(self._backward)

    def _window(self, block: Block) -> tuple[int, int, int, int]:
        """x, y, width and height of a block with its margin, inside the image."""
        image_id, column, row = block
        height, width = self._images.size(image_id)
        x0, y0 = (max(0, n * BLOCK_PX - MARGIN_PX) for n in (column, row))
        x1, y1 = ((n + 1) * BLOCK_PX + PATCH_PX + MARGIN_PX for n in (column, row))
        return x0, y0, min(x1, width) - x0, min(y1, height) - y0

    def _locate_all(self, blocks: list[Block], columns: tuple[int, ...]) -> list[tuple[Slab, int]]:
        """Slab and number of each block."""
        # Each thread starts at another block, so that no two compute the same tensors at once.
        first = next(self._first_block) * len(blocks) // threads()
        rotated = [self._locate(block, columns) for block in blocks[first:] + blocks[:first]]
        return rotated[len(blocks) - first :] + rotated[: len(blocks) - first]

    def _locate(self, block: Block, columns: tuple[int, ...]) -> tuple[Slab, int]:
        """Slab and number of a block; its tensors are computed unless they are cached."""
        key = (*block, columns)
        with self._lock:
            if key in self._blocks:
                self._slabs.move_to_end(self._blocks[key][0])
                return self._blocks[key]
        layers = pyramid(select_bands(self._images.scaled(block[0], self._window(block)), columns)[None])
        energy = {k: local_energy_of(layer.codes, k)[0] for k, layer in layers.items()}
        with self._lock:
            if key not in self._blocks:
                slab = self._slab_with_room(layers)
                self._blocks[key] = slab, slab.add(layers, energy)
                self._slabs[slab].append(key)
                self._share_around.pop(key, None)
            return self._blocks[key]

    def _slab_with_room(self, layers: dict[int, Layer]) -> Slab:
        """Return a slab with room for a block of this size; drop the least recently used slabs for it."""
        size = layers[LEVELS[0]].codes.shape
        slab = self._open.get(size)
        if slab is None or slab.count == slab.room:
            # A size that occurs once does not take the room of many blocks.
            slab = self._open[size] = Slab(layers, 2 * slab.room if slab else 1)
            self._slabs[slab] = []
            while sum(s.nbytes for s in self._slabs) > self._cache_bytes and len(self._slabs) > 1:
                # A thread that still reads from the dropped slab keeps it alive.
                dropped, keys = self._slabs.popitem(last=False)
                for key in keys:
                    del self._blocks[key]
                self._open = {k: s for k, s in self._open.items() if s is not dropped}
        return slab


def blocks_at(
    image_ids: NDArray[np.int64], at: NDArray[np.int64], level: int
) -> tuple[list[Block], NDArray[np.int64]]:
    """Return the distinct blocks of positions, and the block of each position.

    Args:
        image_ids: (m,).
        at: (m, 2) x and y, in pixels of the level.
        level: 0, 1 or 2.
    """
    column, row = (at // (BLOCK_PX >> level)).T
    keys = np.array([image_ids, column, row])
    span = keys.max(1, initial=0) + 1
    _, first, block = np.unique(
        (keys[0] * span[1] + keys[1]) * span[2] + keys[2], return_index=True, return_inverse=True
    )
    return [(int(i), int(c), int(r)) for i, c, r in keys[:, first].T], block
