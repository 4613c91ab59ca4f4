"""What is correlated: structure tensors of patches and of images, at full, half and quarter resolution.

Level 0 is full resolution, each further level half of the one before. A patch's tensor at a level is
pooled from the patch's own corner, an image's from the image's, so that a template fits where its
corner lies on the level's grid. Large images are taken block by block.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from threading import Lock
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from retrieval.compiled import Compiled
from retrieval.config import PATCH_PX, TensorConfig
from retrieval.features import structure_tensor

LEVELS = (1, 2)
"""Levels that are kept of images and patches; level 0 is made where it is needed."""
BLOCK_PX = 2048
"""Side of the blocks that images are taken in; a multiple of every level's step."""
MARGIN_PX = 128
"""What a block sees beyond its end on each side, besides a patch: more than any radius."""
KEPT_BYTES = 512 << 20
"""Tensors of images that are kept for the next look."""
PATCHES = 1024
"""Patches whose tensors are made at a time."""
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

    tensor: NDArray[np.float16]
    """(n, h, w, 3)."""
    known: Known
    """(n, h, w, 1), or None."""

    @property
    def nbytes(self) -> int:
        """Memory that it takes."""
        return self.tensor.nbytes + (0 if self.known is None else self.known.nbytes)


def pyramid(scaled: NDArray[np.float32]) -> dict[int, Layer]:
    """Tensors of pictures at `LEVELS`.

    Args:
        scaled: (n, h, w, b) float32, NaN = not known.
    """
    tensor, visible = _full(scaled)
    layers = {}
    for level in LEVELS:
        tensor, visible = _halved(tensor, visible)
        layers[level] = Layer(tensor.astype(np.float16), None if visible.all() else visible > 0)
    return layers


class Templates:
    """Tensors of all patches in the bands that they share with some images."""

    def __init__(self, patches: PatchPixels, columns: Sequence[int]) -> None:
        """Make the levels that are kept, some patches at a time."""
        self._patches, self._columns = patches, list(columns)
        parts = [
            pyramid(self._scaled(slice(i, i + PATCHES))) for i in range(0, max(1, len(patches)), PATCHES)
        ]
        self._layers = {level: _joined([part[level] for part in parts]) for level in LEVELS}

    def _scaled(self, rows: slice | NDArray[np.intp]) -> NDArray[np.float32]:
        return np.asarray(self._patches.scaled(rows)[..., self._columns])

    def take(self, rows: NDArray[np.intp], level: int) -> tuple[NDArray[np.float32], Known]:
        """Tensors (m, s, s, 3) of some patches, and what is visible of them."""
        if level == 0:
            tensor, visible = _full(self._scaled(rows))
            return tensor, None if visible.all() else visible > 0
        layer = self._layers[level]
        known = None if layer.known is None else layer.known[rows]
        return layer.tensor[rows].astype(np.float32), None if known is None or known.all() else known


def _joined(parts: Sequence[Layer]) -> Layer:
    known: Known = None
    if any(p.known is not None for p in parts):
        known = np.concatenate(
            [np.ones((*p.tensor.shape[:3], 1), bool) if p.known is None else p.known for p in parts]
        )
    return Layer(np.concatenate([p.tensor for p in parts]), known)


class Ground:
    """Regions of images at any level; tensors of the images looked at last are kept."""

    def __init__(self, images: Pixels) -> None:
        """Read from `images` when asked."""
        self._images = images
        self._kept: OrderedDict[tuple, dict[int, Layer]] = OrderedDict()
        self._bytes = 0
        self._lock = Lock()

    def regions(
        self,
        image_ids: NDArray[np.int64],
        at: NDArray[np.int64],
        columns: tuple[int, ...],
        radius: int,
        level: int,
    ) -> tuple[NDArray[np.float32], Known]:
        """Regions around positions, for templates to be moved in.

        Args:
            image_ids: (m,), equal ones behind each other.
            at: (m, 2) x and y in the level's pixels, of a template's corner.
            columns: bands that count.
            radius: how far a template is moved, in the level's pixels.
            level: 0, 1 or 2.

        Returns:
            (m, s + 2 radius, s + 2 radius, 3), s the template's side, and what is visible. What lies
            beyond the image's edge is arbitrary: no patch lies there.
        """
        parts = [self._part(*group, columns, radius, level) for group in _groups(image_ids, at, level)]
        cut = np.concatenate([part for part, _ in parts])
        if level == 0:
            tensor, visible = _full(cut)
            return tensor, None if visible.all() else visible > 0
        if all(known is None for _, known in parts):
            return cut.astype(np.float32), None
        shown = [np.ones((*part.shape[:3], 1), bool) if known is None else known for part, known in parts]
        return cut.astype(np.float32), np.concatenate(shown)

    def _part(
        self, block: Block, at: NDArray[np.int64], columns: tuple[int, ...], radius: int, level: int
    ) -> tuple[NDArray, Known]:
        """Regions in one block: pixels at full resolution, else tensors, and what is visible of these."""
        window = self._window(block)
        at = at - (np.array(window[:2]) >> level)
        if level == 0:
            pixels = self._images.scaled(block[0], window)[..., list(columns)]
            return _cut(pixels, at, PATCH_PX + 2 * radius, radius), None
        layer = self._layers(block, columns)[level]
        size = ((PATCH_PX - 2) >> level) + 2 * radius
        known = None if layer.known is None else _cut(layer.known[0], at, size, radius)
        return _cut(layer.tensor[0], at, size, radius), None if known is None or known.all() else known

    def _window(self, block: Block) -> tuple[int, int, int, int]:
        """Pixels that a block and its margin take, inside the image."""
        image_id, column, row = block
        height, width = self._images.size(image_id)
        x0, y0 = (max(0, n * BLOCK_PX - MARGIN_PX) for n in (column, row))
        x1, y1 = ((n + 1) * BLOCK_PX + PATCH_PX + MARGIN_PX for n in (column, row))
        return x0, y0, min(x1, width) - x0, min(y1, height) - y0

    def _layers(self, block: Block, columns: tuple[int, ...]) -> dict[int, Layer]:
        """Tensors of a block, made anew unless they were kept."""
        key = (*block, columns)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = pyramid(self._images.scaled(block[0], self._window(block))[..., list(columns)][None])
        with self._lock:
            self._bytes += sum(layer.nbytes for layer in made.values()) if key not in self._kept else 0
            self._kept[key] = made
            while self._bytes > KEPT_BYTES and len(self._kept) > 1:
                _, gone = self._kept.popitem(last=False)
                self._bytes -= sum(layer.nbytes for layer in gone.values())
        return made


def _groups(
    image_ids: NDArray[np.int64], at: NDArray[np.int64], level: int
) -> Iterator[tuple[Block, NDArray[np.int64]]]:
    """Runs of positions that lie in one block of one image."""
    where = np.column_stack([image_ids, at // (BLOCK_PX >> level)])
    starts = np.flatnonzero((np.diff(where, axis=0, prepend=-1) != 0).any(1))
    for a, b in pairwise([*starts, len(at)]):
        yield (int(where[a, 0]), int(where[a, 1]), int(where[a, 2])), at[a:b]


def _cut(picture: NDArray, at: NDArray[np.int64], size: int, radius: int) -> NDArray:
    """Squares (m, size, size, c) of a picture (h, w, c) that begin `radius` before each position."""
    padded = np.pad(picture, ((radius, radius + 1), (radius, radius + 1), (0, 0)), mode="edge")
    h, w, c = padded.shape
    row, column, item = padded.strides
    # All squares as a view, rows of pixels and channels in one piece: copied many times faster.
    squares = np.lib.stride_tricks.as_strided(
        padded, (h - size + 1, w - size + 1, size, size * c), (row, column, row, item), writeable=False
    )
    return np.ascontiguousarray(squares[at[:, 1], at[:, 0]]).reshape(len(at), size, size, c)
