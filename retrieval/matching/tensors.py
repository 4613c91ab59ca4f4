"""What is correlated: structure tensors of patches and of images, at full, half and quarter resolution.

Level 0 is full resolution, each further level half of the one before. A patch's tensor at a level is
pooled from the patch's own corner, an image's from the image's, so that a template fits where its
corner lies on the level's grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX, TensorConfig
from retrieval.kernels.compiled import Compiled, accelerated, parallel_map
from retrieval.models.structure_tensor import structure_tensor


@dataclass(frozen=True, eq=False)
class Arrays:
    """Pixels of images by id; one of `retrieval.matching.Pixels`."""

    arrays: Mapping[int, NDArray[np.float32]]
    """(h, w, b) scaled, NaN = not known."""
    names: Mapping[int, tuple[str, ...]]
    """Their bands."""

    def bands(self, image_id: int) -> tuple[str, ...]:
        """Names of an image's bands, in their order."""
        return self.names[image_id]

    def size(self, image_id: int) -> tuple[int, int]:
        """Height and width of an image."""
        height, width = self.arrays[image_id].shape[:2]
        return height, width

    def scaled(self, image_id: int, window: tuple[int, int, int, int] | None = None) -> NDArray[np.float32]:
        """An image or a window (x, y, width, height) of it, (h, w, b)."""
        x, y, width, height = window or (0, 0, *self.size(image_id)[::-1])
        return self.arrays[image_id][y : y + height, x : x + width]


def crop_windows(
    pictures: NDArray, which: NDArray[np.int64], at: NDArray[np.int64], size: int, radius: int
) -> NDArray:
    """Squares (m, size, size, c) of pictures (n, h, w, c) that begin `radius` before each position.

    Beyond a picture's edge its last pixels are repeated.

    Args:
        pictures: (n, h, w, c), `size` or larger on both sides.
        which: (m,) picture of each square.
        at: (m, 2) x and y.
        size: side of a square.
        radius: how far before its position a square begins.
    """
    pictures = np.ascontiguousarray(pictures)
    n, h, w, c = pictures.shape
    corner = at - radius
    inside = ((corner >= 0) & (corner + size <= (w, h))).all(1)
    out = np.empty((len(at), size, size, c), pictures.dtype)
    if inside.any():
        # All squares as a view whose elements are rows of a square: copied a row at a time, not a number.
        pixel, row = c * pictures.itemsize, w * c * pictures.itemsize
        first = pictures.reshape(-1)[: size * c].view(f"V{size * pixel}")
        every = np.lib.stride_tricks.as_strided(
            first, (n, h - size + 1, w - size + 1, size), (h * row, row, pixel, row), writeable=False
        )
        cut = every[which[inside], corner[inside, 1], corner[inside, 0]]
        cut = cut.view(pictures.dtype).reshape(-1, size, size, c)
        if inside.all():
            return cut
        out[inside] = cut
    beyond = corner[~inside]
    rows, cols = (
        np.clip(beyond[:, axis, None] + np.arange(size), 0, most) for axis, most in ((1, h - 1), (0, w - 1))
    )
    out[~inside] = pictures[which[~inside, None, None], rows[:, :, None], cols[:, None, :]]
    return out


LEVELS = (1, 2)
"""Levels that are kept of images and patches; level 0 is made where it is needed."""
PATCHES = 256
"""Patches whose tensors are made at a time: more take more memory and no less time."""
CODES = 4096.0
"""What is kept of a tensor is whole numbers, this many to one: exact enough for values below 8, and turned
into float32 in a twentieth of the time of float16."""
SIZE_STEP = 128
"""Larger pictures are filled up to a multiple of it, with nothing known."""
TILE_PX = 512
"""Still larger ones are taken in tiles, so that those of many sizes are of one shape: what is not compiled
for its shape takes ten times as long."""

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


def in_bands(pixels: NDArray[np.float32], columns: Sequence[int]) -> NDArray[np.float32]:
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


def _stem(scaled: NDArray[np.float32]) -> tuple[NDArray[Any], ...]:
    """The tensor of pictures and what is visible of it: in loops on a CPU."""
    if accelerated():
        return _STEM(_few_sizes(scaled))  # type: ignore[no-any-return]
    from retrieval.kernels.tensors import tensors

    return tensors(np.ascontiguousarray(scaled, np.float32), TensorConfig.noise)


def full_resolution(scaled: NDArray[np.float32]) -> tuple[NDArray[np.float32], Known]:
    """Structure tensor of pictures.

    Args:
        scaled: (n, h, w, b), NaN = not known.

    Returns:
        (n, h - 2, w - 2, 3), and what is visible of them.
    """
    h, w = scaled.shape[1:3]
    tensor, visible = (v[:, : h - 2, : w - 2] for v in _stem(scaled))
    return tensor, None if visible.all() else visible > 0


def _few_sizes(scaled: NDArray[np.float32]) -> NDArray[np.float32]:
    """Larger pictures filled up with nothing: what was compiled for one size is used again."""
    h, w = scaled.shape[1:3]
    more = (-h % SIZE_STEP, -w % SIZE_STEP) if max(h, w) > SIZE_STEP else (0, 0)
    if not any(more):
        return scaled
    return np.pad(scaled, ((0, 0), (0, more[0]), (0, more[1]), (0, 0)), constant_values=np.nan)


def _halved(tensor: Any, visible: Any) -> tuple[Any, Any]:
    """Means over 2 x 2 of what is visible; visible where at least half of it is."""
    from keras import ops

    h, w = tensor.shape[1] // 2 * 2, tensor.shape[2] // 2 * 2

    def summed(x: Any) -> Any:
        rows = x[:, :h:2, :w] + x[:, 1:h:2, :w]
        return rows[:, :, ::2] + rows[:, :, 1::2]

    share = summed(visible)
    seen = ops.cast(share >= 2, "float32")
    return summed(tensor * visible) / ops.maximum(share, 1.0) * seen, seen


def _coded_levels(scaled: Any) -> tuple[Any, ...]:
    """Codes and visibility at every level, behind each other."""
    from keras import ops

    level, out = structure_tensor(_tensor(scaled), TensorConfig.noise), []
    for _ in LEVELS:
        level = _halved(*level)
        codes = ops.clip(ops.round(level[0] * CODES), -32767, 32767)
        out += [ops.cast(codes, "int16"), level[1]]
    return tuple(out)


_LEVELS = Compiled(_coded_levels)


def _levels(scaled: NDArray[np.float32]) -> tuple[NDArray[Any], ...]:
    """`_coded_levels` of pictures: in loops on a CPU."""
    if accelerated():
        return _LEVELS(_few_sizes(scaled))  # type: ignore[no-any-return]
    from retrieval.kernels.tensors import downsample2, quantize_int16

    level, out = _stem(scaled), list[NDArray[Any]]()
    for _ in LEVELS:
        level = downsample2(*level)
        out += [quantize_int16(level[0], CODES), level[1]]
    return tuple(out)


@dataclass(frozen=True)
class Layer:
    """Tensors at one level."""

    codes: NDArray[np.int16]
    """(n, h, w, 3), `CODES` x the tensor."""
    known: Known
    """(n, h, w, 1), or None."""


def pyramid(scaled: NDArray[np.float32]) -> dict[int, Layer]:
    """Tensors of pictures at `LEVELS`.

    Args:
        scaled: (n, h, w, b) float32, NaN = not known.
    """
    h, w = scaled.shape[1:3]
    made = _levels(scaled) if max(h, w) <= TILE_PX else _levels_in_tiles(scaled)
    layers = {}
    for number, level in enumerate(LEVELS):
        rows, cols = (h - 2) >> level, (w - 2) >> level
        codes, visible = (v[:, :rows, :cols] for v in made[2 * number : 2 * number + 2])
        layers[level] = Layer(codes, None if visible.all() else visible > 0)
    return layers


def _levels_in_tiles(scaled: NDArray[np.float32]) -> tuple[NDArray[Any], ...]:
    """Codes and visibility at every level, behind each other, as of the whole pictures."""
    h, w = scaled.shape[1:3]
    made: list[NDArray[Any]] = []
    for level in LEVELS:
        shape = len(scaled), (h - 2) >> level, (w - 2) >> level
        made += [np.empty((*shape, 3), np.int16), np.empty((*shape, 1), np.float32)]
    for y, x in product(range(0, h - 2, TILE_PX), range(0, w - 2, TILE_PX)):
        for number, part in enumerate(_levels(tile(scaled, y, x, TILE_PX + 2, np.nan))):
            level = LEVELS[number // 2]
            here = made[number][:, y >> level :, x >> level :][:, : TILE_PX >> level, : TILE_PX >> level]
            here[...] = part[:, : here.shape[1], : here.shape[2]]
    return tuple(made)


def tile(pictures: NDArray, y: int, x: int, size: int, beyond: float) -> NDArray:
    """A square of pictures (n, h, w, c), filled up where it reaches beyond them."""
    part = pictures[:, y : y + size, x : x + size]
    rest = [(0, size - length) for length in part.shape[1:3]]
    return np.pad(part, ((0, 0), *rest, (0, 0)), constant_values=beyond)


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
            parts = list(parallel_map(lambda i: pyramid(self._scaled(slice(i, i + PATCHES))), starts))
            self._layers = {level: _joined([part[level] for part in parts]) for level in LEVELS}

    def _scaled(self, rows: slice | NDArray[np.intp]) -> NDArray[np.float32]:
        return in_bands(self._patches.scaled(rows), self._columns)

    def take(self, rows: NDArray[np.intp], level: int) -> tuple[NDArray[np.float32], Known]:
        """Tensors (m, s, s, 3) of some patches, and what is visible of them."""
        if level == 0:
            return full_resolution(self._scaled(rows))
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


def side(level: int) -> int:
    """Side of a template, in the level's pixels: a patch less the gradient's border."""
    return (PATCH_PX - 2) >> level
