"""What is correlated: structure tensors of patches and of images, at full, half and quarter resolution.

Level 0 is full resolution, each further level half of the one before. A patch's tensor at a level is
pooled from the patch's own corner, an image's from the image's, so that a template fits where its
corner lies on the level's grid. Large images are taken block by block.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

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

Known = NDArray[np.bool_] | None
"""(n, s, s, 1) where something is visible; None where everything is."""


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


def _full(scaled: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Structure tensor (n, h - 2, w - 2, 3) and visibility (n, h - 2, w - 2, 1)."""
    from keras import ops

    tensor, visible = structure_tensor(ops.convert_to_tensor(scaled), TensorConfig.noise)
    return ops.convert_to_numpy(tensor), ops.convert_to_numpy(visible)


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

    def regions(
        self,
        block: tuple[int, int, int],
        columns: tuple[int, ...],
        at: NDArray[np.int64],
        radius: int,
        level: int,
    ) -> tuple[NDArray[np.float32], Known]:
        """Regions around positions, for templates to be moved in.

        Args:
            block: image id, and the block's column and row.
            columns: bands that count.
            at: (m, 2) x and y in the level's pixels, of a template's corner, in that block.
            radius: how far a template is moved, in the level's pixels.
            level: 0, 1 or 2.

        Returns:
            (m, s + 2 radius, s + 2 radius, 3), s the template's side, and what is visible. What lies
            beyond the image's edge is arbitrary: no patch lies there.
        """
        x0, y0, width, height = self._window(block)
        at = at - (np.array([x0, y0]) >> level)
        size = PATCH_PX + 2 * radius if level == 0 else ((PATCH_PX - 2) >> level) + 2 * radius
        if level == 0:
            pixels = self._images.scaled(block[0], (x0, y0, width, height))[..., list(columns)]
            tensor, visible = _full(_cut(pixels, at, size, radius))
            return tensor, None if visible.all() else visible > 0
        layer = self._layers(block, columns)[level]
        cut = _cut(layer.tensor[0], at, size, radius).astype(np.float32)
        known = None if layer.known is None else _cut(layer.known[0], at, size, radius)
        return cut, None if known is None or known.all() else known

    def _window(self, block: tuple[int, int, int]) -> tuple[int, int, int, int]:
        """Pixels that a block and its margin take, inside the image."""
        image_id, column, row = block
        height, width = self._images.size(image_id)
        x0, y0 = (max(0, n * BLOCK_PX - MARGIN_PX) for n in (column, row))
        x1, y1 = ((n + 1) * BLOCK_PX + PATCH_PX + MARGIN_PX for n in (column, row))
        return x0, y0, min(x1, width) - x0, min(y1, height) - y0

    def _layers(self, block: tuple[int, int, int], columns: tuple[int, ...]) -> dict[int, Layer]:
        """Tensors of a block, made anew unless they were kept."""
        key = (*block, columns)
        if key not in self._kept:
            pixels = self._images.scaled(block[0], self._window(block))[..., list(columns)]
            self._kept[key] = pyramid(pixels[None])
            self._bytes += sum(layer.nbytes for layer in self._kept[key].values())
            while self._bytes > KEPT_BYTES and len(self._kept) > 1:
                _, gone = self._kept.popitem(last=False)
                self._bytes -= sum(layer.nbytes for layer in gone.values())
        self._kept.move_to_end(key)
        return self._kept[key]


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
