"""What is correlated: structure tensors of patches and of images, at full, half and quarter resolution.

Level 0 is full resolution, each further level half of the one before. A patch's tensor at a level is
pooled from the patch's own corner, an image's from the image's, so that a template fits where its
corner lies on the level's grid. Large images are taken block by block.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from threading import Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from retrieval.compiled import Compiled, side_by_side, threads
from retrieval.config import PATCH_PX, TensorConfig
from retrieval.features import structure_tensor
from retrieval.refine.squares import squares

LEVELS = (1, 2)
"""Levels that are kept of images and patches; level 0 is made where it is needed."""
BLOCK_PX = 2048
"""Side of the blocks that images are taken in; a multiple of every level's step."""
MARGIN_PX = 128
"""What a block sees beyond its end on each side, besides a patch: more than any radius."""
KEPT_BYTES = 512 << 20
"""Tensors of images that are kept for the next look."""
BYTES_A_PIXEL = 3
"""What is kept of an image takes this much for each of its pixels."""
PATCHES = 256
"""Patches whose tensors are made at a time: more take more memory and no less time."""
CODES = 4096.0
"""What is kept of a tensor is whole numbers, this many to one: exact enough for values below 8, and turned
into float32 in a twentieth of the time of float16."""
SIZE_STEP = 128
"""Larger pictures are filled up to a multiple of it, with nothing known."""

Known = NDArray[np.bool_] | None
"""(n, s, s, 1) where something is visible; None where everything is."""
Block = tuple[int, int, int]
"""Image id, and the column and row of a block of the image."""


class Pixels(Protocol):
    """Where refinement reads pixels from: the store of an index, or arrays in a test."""

    def bands(self, image_id: int) -> tuple[str, ...]:
        """Names of an image's bands, in their order."""
        ...

    def size(self, image_id: int) -> tuple[int, int]:
        """Height and width of an image."""
        ...

    def scaled(self, image_id: int, window: tuple[int, int, int, int] | None = None) -> NDArray[np.float32]:
        """An image or a window (x, y, width, height) of it, (h, w, b) scaled, NaN = not known."""
        ...


class PatchPixels(Protocol):
    """The patches that are asked about; `tfrecords.schema.Patches` is one."""

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands, in their order."""
        ...

    def __len__(self) -> int: ...

    def scaled(self, rows: Any) -> NDArray[np.float32]:
        """Some patches by a slice or an array of rows, (n, 64, 64, b) scaled, NaN = not known."""
        ...


def shared_columns(asked: Sequence[str], stored: Sequence[str]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Columns of the bands that patch and image share; all of each where there are none."""
    both = [b for b in asked if b in stored]
    if not both:
        return tuple(range(len(asked))), tuple(range(len(stored)))
    return tuple(asked.index(b) for b in both), tuple(stored.index(b) for b in both)


def _in_bands(pixels: NDArray[np.float32], columns: Sequence[int]) -> NDArray[np.float32]:
    """Some bands of (..., b) pixels; a copy only where there are others."""
    if list(columns) == list(range(pixels.shape[-1])):
        return pixels
    return np.take(pixels, columns, axis=-1)


# --- tensors at levels ---------------------------------------------------------------------------


def _tensor(array: NDArray) -> Any:
    """An array as the backend's tensor."""
    from keras import ops

    return ops.convert_to_tensor(array)


_STEM = Compiled(lambda scaled: structure_tensor(_tensor(scaled), TensorConfig.noise))


def _full(scaled: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Structure tensor (n, h - 2, w - 2, 3) and visibility (n, h - 2, w - 2, 1)."""
    h, w = scaled.shape[1:3]
    # Few sizes, so that what was compiled for one is used again.
    more = (-h % SIZE_STEP, -w % SIZE_STEP) if max(h, w) > SIZE_STEP else (0, 0)
    if any(more):
        scaled = np.pad(scaled, ((0, 0), (0, more[0]), (0, more[1]), (0, 0)), constant_values=np.nan)
    tensor, visible = _STEM(scaled)
    return tensor[:, : h - 2, : w - 2], visible[:, : h - 2, : w - 2]


def _halved(tensor: NDArray, visible: NDArray) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Means over 2 x 2 of what is visible; visible where at least half of it is."""
    n, h, w = (tensor.shape[0], tensor.shape[1] // 2, tensor.shape[2] // 2)

    def summed(x: NDArray) -> NDArray:
        x = x[:, : 2 * h, : 2 * w]
        rows = x[:, ::2] + x[:, 1::2]
        return rows[:, :, ::2] + rows[:, :, 1::2]

    if visible.all():
        return summed(tensor) * np.float32(0.25), np.ones((n, h, w, 1), np.float32)
    share = summed(visible)
    seen = (share >= 2).astype(np.float32)
    return summed(tensor * visible) / np.maximum(share, 1) * seen, seen


@dataclass(frozen=True)
class Layer:
    """Tensors at one level."""

    codes: NDArray[np.int16]
    """(n, h, w, 3), `CODES` x the tensor."""
    known: Known
    """(n, h, w, 1), or None."""


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


def pyramid(scaled: NDArray[np.float32]) -> dict[int, Layer]:
    """Tensors of pictures at `LEVELS`.

    Args:
        scaled: (n, h, w, b) float32, NaN = not known.
    """
    tensor, visible = _full(scaled)
    layers = {}
    for level in LEVELS:
        tensor, visible = _halved(tensor, visible)
        layers[level] = Layer(_codes(tensor), None if visible.all() else visible > 0)
    return layers


def _codes(tensor: NDArray[np.float32]) -> NDArray[np.int16]:
    return np.clip(np.rint(tensor * np.float32(CODES)), -32767, 32767).astype(np.int16)


def tensor_of(codes: NDArray[np.int16]) -> NDArray[np.float32]:
    """The tensor that codes stand for."""
    return codes * np.float32(1 / CODES)


class Templates:
    """Tensors of all patches in the bands that they share with some images."""

    def __init__(self, patches: PatchPixels, columns: Sequence[int], levels: Sequence[int] = LEVELS) -> None:
        """Make the levels that will be asked for, some patches at a time; level 0 is made when asked."""
        self._patches, self._columns = patches, columns
        self._layers: dict[int, Layer] = {}
        if set(levels) & set(LEVELS):
            starts = range(0, max(1, len(patches)), PATCHES)
            parts = list(side_by_side(lambda i: pyramid(self._scaled(slice(i, i + PATCHES))), starts))
            self._layers = {level: _joined([part[level] for part in parts]) for level in LEVELS}

    def _scaled(self, rows: slice | NDArray[np.intp]) -> NDArray[np.float32]:
        return _in_bands(self._patches.scaled(rows), self._columns)

    def take(self, rows: NDArray[np.intp], level: int) -> tuple[NDArray[np.float32], Known]:
        """Tensors (m, s, s, 3) of some patches, and what is visible of them."""
        if level == 0:
            tensor, visible = _full(self._scaled(rows))
            return tensor, None if visible.all() else visible > 0
        layer = self._layers[level]
        known = None if layer.known is None else layer.known[rows]
        return tensor_of(layer.codes[rows]), None if known is None or known.all() else known


def _joined(parts: Sequence[Layer]) -> Layer:
    known: Known = None
    if any(p.known is not None for p in parts):
        known = np.concatenate(
            [np.ones((*p.codes.shape[:3], 1), bool) if p.known is None else p.known for p in parts]
        )
    return Layer(np.concatenate([p.codes for p in parts]), known)


@dataclass(frozen=True)
class _Block:
    """A block of an image at one level."""

    codes: NDArray[np.int16]  # (h, w, 3)
    known: NDArray[np.bool_] | None  # (h, w, 1)
    spread: NDArray[np.float32]  # (h - s + 1, w - s + 1, 1)

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.spread.nbytes + (0 if self.known is None else self.known.nbytes)


class Ground:
    """Regions of images at any level; tensors of the images looked at last are kept."""

    def __init__(self, images: Pixels) -> None:
        """Read from `images` when asked."""
        self._images = images
        self._kept: OrderedDict[tuple, dict[int, _Block]] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()
        self._begin = cycle(range(threads()))

    def regions(
        self,
        image_ids: NDArray[np.int64],
        at: NDArray[np.int64],
        columns: tuple[int, ...],
        radius: int,
        level: int,
    ) -> Regions:
        """Regions around positions.

        Args:
            image_ids: (m,); fastest where those in one block are behind each other.
            at: (m, 2) x and y in the level's pixels, of a template's corner.
            columns: bands that count.
            radius: how far a template is moved, in the level's pixels.
            level: 0, 1 or 2.
        """
        m = len(at)
        if level == 0:
            pixels = np.empty((m, *[PATCH_PX + 2 * radius] * 2, len(columns)), np.float32)
            for block, rows in _groups(image_ids, at, level):
                pixels[rows] = self._pixels(block, at[rows], columns, radius)
            tensor, visible = _full(pixels)
            return Regions(tensor, None if visible.all() else visible > 0, None)
        size, shifts = side(level) + 2 * radius, 2 * radius + 1
        codes = np.empty((m, size, size, 3), np.int16)
        spread = np.empty((m, shifts, shifts, 1), np.float32)
        known: Known = None
        groups = list(_groups(image_ids, at, level))
        # Batches side by side begin at different images, so that they don't make the same tensors at once.
        first = next(self._begin) * len(groups) // threads()
        for block, rows in groups[first:] + groups[:first]:
            layer = self._layers(block, columns)[level]
            here = at[rows] - (np.array(self._window(block)[:2]) >> level)
            codes[rows] = squares(layer.codes, here, size, radius)
            spread[rows] = squares(layer.spread, here, shifts, radius)
            if layer.known is not None:
                known = np.ones((m, size, size, 1), bool) if known is None else known
                known[rows] = squares(layer.known, here, size, radius)
        return Regions(codes, None if known is None or known.all() else known, spread[..., 0])

    def blocks(
        self, image_id: int, columns: tuple[int, ...]
    ) -> Iterator[tuple[int, int, NDArray[np.float32], Known]]:
        """Half-resolution tensors of a whole image, block by block.

        Args:
            image_id: which.
            columns: bands that count.

        Yields:
            x and y of the block's corner in the image, its tensor (h, w, 3), and what is visible of it.
            Blocks overlap by more than a patch.
        """
        height, width = self._images.size(image_id)
        for row in range(-(-height // BLOCK_PX)):
            for column in range(-(-width // BLOCK_PX)):
                block = (image_id, column, row)
                x, y = self._window(block)[:2]
                layer = self._layers(block, columns)[1]
                yield x, y, tensor_of(layer.codes), layer.known

    def group(self, image_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """For each of some images a number, equal for those whose tensors can be kept at the same time."""
        pixels = np.array([np.prod(self._images.size(int(i))) for i in image_ids], np.float64)
        return ((np.cumsum(pixels) - pixels) * (2 * BYTES_A_PIXEL) // KEPT_BYTES).astype(np.int64)

    def _pixels(
        self, block: Block, at: NDArray[np.int64], columns: tuple[int, ...], radius: int
    ) -> NDArray[np.float32]:
        """Pixels of regions in one block."""
        window = self._window(block)
        pixels = _in_bands(self._images.scaled(block[0], window), columns)
        return squares(pixels, at - np.array(window[:2]), PATCH_PX + 2 * radius, radius)

    def _window(self, block: Block) -> tuple[int, int, int, int]:
        """Pixels that a block and its margin take, inside the image."""
        image_id, column, row = block
        height, width = self._images.size(image_id)
        x0, y0 = (max(0, n * BLOCK_PX - MARGIN_PX) for n in (column, row))
        x1, y1 = ((n + 1) * BLOCK_PX + PATCH_PX + MARGIN_PX for n in (column, row))
        return x0, y0, min(x1, width) - x0, min(y1, height) - y0

    def _layers(self, block: Block, columns: tuple[int, ...]) -> dict[int, _Block]:
        """Tensors of a block, made anew unless they were kept."""
        key = (*block, columns)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        layers = pyramid(_in_bands(self._images.scaled(block[0], self._window(block)), columns)[None])
        made = {
            level: _Block(one.codes[0], None if one.known is None else one.known[0], spread)
            for level, one in layers.items()
            for spread in [_spread(one.codes[0], side(level))]
        }
        with self._lock:
            self._bytes += sum(layer.nbytes for layer in made.values()) if key not in self._kept else 0
            self._kept[key] = made
            while self._bytes > KEPT_BYTES and len(self._kept) > 1:
                _, gone = self._kept.popitem(last=False)
                self._bytes -= sum(layer.nbytes for layer in gone.values())
        return made


def side(level: int) -> int:
    """Side of a template, in the level's pixels: a patch less the gradient's border."""
    return (PATCH_PX - 2) >> level


def _spread(codes: NDArray[np.int16], box: int) -> NDArray[np.float32]:
    """Sum of squares of the mean-free tensor in every box x box square: (h - box + 1, w - box + 1, 1)."""
    h, w = codes.shape[:2]
    planes = np.empty((4, h, w), np.float64)
    np.multiply(np.moveaxis(codes, -1, 0), 1 / CODES, out=planes[:3])
    np.einsum("chw,chw->hw", planes[:3], planes[:3], out=planes[3])
    total = np.zeros((4, h + 1, w + 1), np.float64)
    np.cumsum(np.cumsum(planes, 1), 2, out=total[:, 1:, 1:])
    rows = total[:, box:] - total[:, :-box]
    sums = rows[:, :, box:] - rows[:, :, :-box]
    spread = sums[3] - np.einsum("chw,chw->hw", sums[:3], sums[:3]) / box**2
    return spread.astype(np.float32)[..., None]


def _groups(
    image_ids: NDArray[np.int64], at: NDArray[np.int64], level: int
) -> Iterator[tuple[Block, NDArray[np.intp]]]:
    """Rows of the positions that lie in one block of one image."""
    where = np.column_stack([image_ids, at // (BLOCK_PX >> level)])
    order = np.lexsort(where.T[::-1])
    where = where[order]
    starts = np.flatnonzero((np.diff(where, axis=0, prepend=-1) != 0).any(1))
    for a, b in pairwise([*starts, len(at)]):
        yield (int(where[a, 0]), int(where[a, 1]), int(where[a, 2])), order[a:b]
