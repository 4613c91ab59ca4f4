"""Structure tensors of patches and images at full, half and quarter resolution.

Level 0 is full resolution; each further level halves it. The tensor of a patch is pooled from the patch's
corner, the tensor of an image from the image's corner. So a template fits where its corner lies on the grid
of the level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX, TensorConfig
from retrieval.kernels.compiled import Compiled, accelerated, tile
from retrieval.kernels.executors import parallel_map
from retrieval.models.structure_tensor import structure_tensor
from retrieval.types import PatchPixels


@dataclass(frozen=True, eq=False)
class Arrays:
    """Images in memory, by id; implements `Pixels`."""

    arrays: Mapping[int, NDArray[np.float32]]
    """(h, w, b) scaled, NaN = nodata."""
    names: Mapping[int, tuple[str, ...]]
    """Names of the bands of each image."""

    def bands(self, image_id: int) -> tuple[str, ...]:
        """Return the names of an image's bands, in order."""
        return self.names[image_id]

    def size(self, image_id: int) -> tuple[int, int]:
        """Return height and width of an image."""
        height, width = self.arrays[image_id].shape[:2]
        return height, width

    def scaled(self, image_id: int, window: tuple[int, int, int, int] | None = None) -> NDArray[np.float32]:
        """Return an image or a window (x, y, width, height) of it, (h, w, b)."""
        x, y, width, height = window or (0, 0, *self.size(image_id)[::-1])
        return self.arrays[image_id][y : y + height, x : x + width]

    def squares(self, image_id: int, corners: NDArray[np.int64], side: int) -> NDArray[np.float32]:
        """Return squares of an image, (n, side, side, b), from their corners (n, 2)."""
        return crop_windows(self.arrays[image_id][None], np.zeros(len(corners), np.int64), corners, side, 0)


def crop_windows(
    pictures: NDArray[Any], picture: NDArray[np.int64], at: NDArray[np.int64], size: int, radius: int
) -> NDArray[Any]:
    """Crop windows (m, size, size, c) from pictures; each begins `radius` before its position.

    Beyond the edge of a picture its last pixels repeat.

    Args:
        pictures: (n, h, w, c), `size` or larger on both sides.
        picture: (m,) picture of each window.
        at: (m, 2) x and y.
        size: side of a window.
        radius: distance from the window's corner to the position.
    """
    pictures = np.ascontiguousarray(pictures)
    n, h, w, c = pictures.shape
    corner = at - radius
    inside = ((corner >= 0) & (corner + size <= (w, h))).all(1)
    out = np.empty((len(at), size, size, c), pictures.dtype)
    if inside.any():
        # Strategy: a strided view of all windows whose elements are whole rows of a window, typed as opaque
        # bytes ("V"). Indexing it copies a row at a time instead of a number at a time.
        pixel, row = c * pictures.itemsize, w * c * pictures.itemsize
        first_row = pictures.reshape(-1)[: size * c].view(f"V{size * pixel}")
        windows = np.lib.stride_tricks.as_strided(
            first_row, (n, h - size + 1, w - size + 1, size), (h * row, row, pixel, row), writeable=False
        )
        crops = windows[picture[inside], corner[inside, 1], corner[inside, 0]]
        crops = crops.view(pictures.dtype).reshape(-1, size, size, c)
        if inside.all():
            return crops
        out[inside] = crops
    beyond = corner[~inside]
    rows, cols = (
        np.clip(beyond[:, axis, None] + np.arange(size), 0, most) for axis, most in ((1, h - 1), (0, w - 1))
    )
    out[~inside] = pictures[picture[~inside, None, None], rows[:, :, None], cols[:, None, :]]
    return out


LEVELS = (1, 2)
"""Levels that are cached; level 0 is computed where it is needed."""
PATCHES = 256
"""Patches per batch: more take more memory and no less time."""
CODES = 4096.0
"""Codes per unit: cached tensors are int16, exact enough for values below 8. They become float32 in a
twentieth of the time that float16 takes."""
SIZE_STEP = 128
"""Larger pictures are padded with nodata to a multiple of this, in pixels."""
TILE_PX = 512
"""Still larger pictures are split into tiles of this side, so that one compiled shape serves all sizes."""

Known = NDArray[np.bool_] | None
"""(n, s, s, 1) visible pixels; None where all are visible."""


def shared_columns(
    query_bands: Sequence[str], image_bands: Sequence[str]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the columns of the bands that query and image share; all of both where they share none."""
    shared = [b for b in query_bands if b in image_bands]
    if not shared:
        return tuple(range(len(query_bands))), tuple(range(len(image_bands)))
    return tuple(query_bands.index(b) for b in shared), tuple(image_bands.index(b) for b in shared)


def select_bands(pixels: NDArray[np.float32], columns: Sequence[int]) -> NDArray[np.float32]:
    """Return some bands of (..., b) pixels; a copy only where there are others."""
    if list(columns) == list(range(pixels.shape[-1])):
        return pixels
    return np.take(pixels, columns, axis=-1)


# --- tensors at levels ---------------------------------------------------------------------------


def _tensor(array: NDArray[Any]) -> Any:
    """Convert an array to the backend's tensor."""
    from keras import ops

    return ops.convert_to_tensor(array)


_STEM = Compiled(lambda scaled: structure_tensor(_tensor(scaled), TensorConfig.noise))


def _stem(scaled: NDArray[np.float32]) -> tuple[NDArray[Any], ...]:
    """Tensor and visibility of pictures; Numba loops compute it on a CPU."""
    if accelerated():
        return _STEM(_pad_to_few_sizes(scaled))
    from retrieval.kernels.tensors import tensors

    return tensors(np.ascontiguousarray(scaled, np.float32), TensorConfig.noise)


def full_resolution(scaled: NDArray[np.float32]) -> tuple[NDArray[np.float32], Known]:
    """Compute the structure tensor of pictures.

    Args:
        scaled: (n, h, w, b), NaN = nodata.

    Returns:
        (n, h - 2, w - 2, 3), and the visible pixels.
    """
    h, w = scaled.shape[1:3]
    tensor, visible = (v[:, : h - 2, : w - 2] for v in _stem(scaled))
    return tensor, None if visible.all() else visible > 0


def _pad_to_few_sizes(scaled: NDArray[np.float32]) -> NDArray[np.float32]:
    """Pad larger pictures with nodata, so that few sizes are compiled."""
    h, w = scaled.shape[1:3]
    more = (-h % SIZE_STEP, -w % SIZE_STEP) if max(h, w) > SIZE_STEP else (0, 0)
    if not any(more):
        return scaled
    return np.pad(scaled, ((0, 0), (0, more[0]), (0, more[1]), (0, 0)), constant_values=np.nan)


def _downsample2(tensor: Any, visible: Any) -> tuple[Any, Any]:
    """Mean over the visible pixels of 2 x 2; visible where at least half of them are."""
    from keras import ops

    h, w = tensor.shape[1] // 2 * 2, tensor.shape[2] // 2 * 2

    def summed(x: Any) -> Any:
        rows = x[:, :h:2, :w] + x[:, 1:h:2, :w]
        return rows[:, :, ::2] + rows[:, :, 1::2]

    share = summed(visible)
    seen = ops.cast(share >= 2, "float32")
    return summed(tensor * visible) / ops.maximum(share, 1.0) * seen, seen


def _quantized_levels(scaled: Any) -> tuple[Any, ...]:
    """Codes and visibility of every level, in turn."""
    from keras import ops

    level, out = structure_tensor(_tensor(scaled), TensorConfig.noise), []
    for _ in LEVELS:
        level = _downsample2(*level)
        codes = ops.clip(ops.round(level[0] * CODES), -32767, 32767)
        out += [ops.cast(codes, "int16"), level[1]]
    return tuple(out)


_LEVELS = Compiled(_quantized_levels)


def _levels(scaled: NDArray[np.float32]) -> tuple[NDArray[Any], ...]:
    """Codes and visibility of every level, in turn; Numba loops compute them on a CPU."""
    if accelerated():
        return _LEVELS(_pad_to_few_sizes(scaled))
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


def pyramid(scaled: NDArray[np.float32], tile_px: int = TILE_PX) -> dict[int, Layer]:
    """Compute the tensors of pictures at `LEVELS`.

    Args:
        scaled: (n, h, w, b) float32, NaN = nodata.
        tile_px: pictures larger than this are computed in tiles of this side.
    """
    h, w = scaled.shape[1:3]
    made = _levels(scaled) if max(h, w) <= tile_px else _levels_in_tiles(scaled, tile_px)
    layers = {}
    for number, level in enumerate(LEVELS):
        rows, cols = (h - 2) >> level, (w - 2) >> level
        codes, visible = (v[:, :rows, :cols] for v in made[2 * number : 2 * number + 2])
        layers[level] = Layer(codes, None if visible.all() else visible > 0)
    return layers


def _levels_in_tiles(scaled: NDArray[np.float32], tile_px: int) -> tuple[NDArray[Any], ...]:
    """Codes and visibility of every level, in turn, computed in tiles; equal to whole pictures."""
    h, w = scaled.shape[1:3]
    made: list[NDArray[Any]] = []
    for level in LEVELS:
        shape = len(scaled), (h - 2) >> level, (w - 2) >> level
        made += [np.empty((*shape, 3), np.int16), np.empty((*shape, 1), np.float32)]
    for y, x in product(range(0, h - 2, tile_px), range(0, w - 2, tile_px)):
        for number, part in enumerate(_levels(tile(scaled, y, x, tile_px + 2, np.nan))):
            level = LEVELS[number // 2]
            here = made[number][:, y >> level :, x >> level :][:, : tile_px >> level, : tile_px >> level]
            here[...] = part[:, : here.shape[1], : here.shape[2]]
    return tuple(made)


def tensor_of(codes: NDArray[np.int16]) -> NDArray[np.float32]:
    """Return the tensor of codes."""
    return codes * np.float32(1 / CODES)


class Templates:
    """Tensors of all queries in the bands that they share with some images."""

    def __init__(self, patches: PatchPixels, columns: Sequence[int], levels: Sequence[int] = LEVELS) -> None:
        """Compute the levels, a batch of patches at a time; level 0 is computed by `take`."""
        self._patches, self._columns = patches, columns
        self._layers: dict[int, Layer] = {}
        if set(levels) & set(LEVELS):
            starts = range(0, max(1, len(patches)), PATCHES)
            parts = list(parallel_map(lambda i: pyramid(self._scaled(slice(i, i + PATCHES))), starts))
            self._layers = {level: _concatenate([part[level] for part in parts]) for level in LEVELS}

    def _scaled(self, rows: slice | NDArray[np.intp]) -> NDArray[np.float32]:
        return select_bands(self._patches.scaled(rows), self._columns)

    def take(self, rows: NDArray[np.intp], level: int) -> tuple[NDArray[np.float32], Known]:
        """Return the tensors (m, s, s, 3) of some patches, and their visible pixels."""
        if level == 0:
            return full_resolution(self._scaled(rows))
        layer = self._layers[level]
        known = None if layer.known is None else layer.known[rows]
        return tensor_of(layer.codes[rows]), None if known is None or known.all() else known


def _concatenate(parts: Sequence[Layer]) -> Layer:
    known: Known = None
    if any(p.known is not None for p in parts):
        known = np.concatenate(
            [np.ones((*p.codes.shape[:3], 1), bool) if p.known is None else p.known for p in parts]
        )
    return Layer(np.concatenate([p.codes for p in parts]), known)


def template_side(level: int) -> int:
    """Return the side of a template in pixels of the level: a patch without the gradient's border."""
    return (PATCH_PX - 2) >> level
