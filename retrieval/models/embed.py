"""From pixels to vectors: all windows of an image in one pass, and patches in batches.

One pass shares the work of overlapping windows: at stride 8 a pixel lies in 64 windows. `embed_image` is the
unit of work: an array in, vectors out.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX, IndexConfig
from retrieval.errors import ConfigError
from retrieval.kernels.executors import parallel_map
from retrieval.types import Encoder, PatchPixels, Progress, WindowVectors, silent
from tfrecords.grid import WindowGrid, valid_share

TILE_PX = 768
"""Side of the tiles of larger images, which bound the memory."""
PATCH_BATCH = 32
"""Patches per batch."""


def embed_image(encoder: Encoder, scaled: NDArray[np.float32], config: IndexConfig) -> WindowVectors:
    """Embed the windows of an image that show texture.

    Windows lie on the stride. If the stride misses the right or lower edge, one more column or row of windows
    follows the edge. No place is further than half a stride from a window. A window is left out if less than
    `config.min_visible` of it has data, if it is flat, or if its vector is zero.

    Args:
        encoder: any `Encoder`.
        scaled: (h, w, b) float32, NaN = nodata; h and w at least 64.
        config: stride and visibility.

    Returns:
        Positions and unit vectors, in row-major order.
    """
    height, width = scaled.shape[:2]
    corners = product(_starts(height, config.stride_px), _starts(width, config.stride_px))
    parts = [_windows(encoder, scaled, x, y, config) for y, x in corners]
    xy, vectors = (np.concatenate([getattr(p, name) for p in parts]) for name in ("xy", "vectors"))
    order = np.lexsort(xy.T)
    return WindowVectors(xy[order], vectors[order], sum(p.windows for p in parts))


def _starts(length_px: int, stride_px: int) -> tuple[int, ...]:
    """Return the starts of the grids along a side: 0, and the last position if that grid misses it."""
    last = length_px - PATCH_PX
    return (0, last) if last % stride_px else (0,)


def _windows(
    encoder: Encoder, scaled: NDArray[np.float32], x: int, y: int, config: IndexConfig
) -> WindowVectors:
    """Embed the grid of windows that starts at a pixel."""
    part = scaled[y:, x:]
    grid = WindowGrid(part.shape[0], part.shape[1], PATCH_PX, config.stride_px)
    dense = embed_dense(encoder, part, config.stride_px).reshape(grid.count, encoder.dim)
    keep = worth_indexing(part, config).reshape(-1) & dense.any(-1)
    return WindowVectors(grid.xy()[keep] + np.array([x, y], np.int32), dense[keep], grid.count)


def embed_dense(
    encoder: Encoder, scaled: NDArray[np.float32], stride_px: int, tile_px: int = TILE_PX
) -> NDArray[np.float32]:
    """Embed all windows of an image on a given stride.

    A multiple of the encoder's stride subsamples its vectors. A finer stride runs the encoder on shifted
    copies and interleaves the results (shift and stitch, Long et al. 2015).

    Args:
        encoder: any `Encoder`.
        scaled: (h, w, b) float32.
        stride_px: a multiple or a divisor of the encoder's stride.
        tile_px: side of the tiles of a larger image.

    Returns:
        (rows, cols, dim) float32, row r and column c for the window at (c * stride, r * stride).

    Raises:
        ConfigError: the stride is neither.
    """
    step = encoder.step_px
    if stride_px % step and step % stride_px:
        raise ConfigError(
            f"stride {stride_px} px does not fit the encoder's {step} px: take a multiple or a divisor of it"
        )
    grid = WindowGrid(scaled.shape[0], scaled.shape[1], PATCH_PX, stride_px)
    out = np.zeros((grid.rows, grid.cols, encoder.dim), np.float32)
    shifts = range(0, step, stride_px) if stride_px < step else (0,)
    factor = max(1, step // stride_px)
    take = max(1, stride_px // step)
    for dy, dx in product(shifts, shifts):
        target = out[dy // stride_px :: factor, dx // stride_px :: factor]
        if target.size:
            _fill(target, encoder, scaled[dy:, dx:], take, tile_px)
    return out


def _fill(
    target: NDArray[np.float32], encoder: Encoder, scaled: NDArray[np.float32], take: int, tile_px: int
) -> None:
    """Embed tiles into `target` in parallel, and take every `take`-th vector of the encoder's grid."""
    stride = encoder.step_px * take
    per_tile = max(1, (tile_px - PATCH_PX) // stride + 1)

    def embed(corner: tuple[int, int]) -> None:
        row, col = corner
        part = target[row : row + per_tile, col : col + per_tile]
        y, x = row * stride, col * stride
        height, width = ((n - 1) * stride + PATCH_PX for n in part.shape[:2])
        part[...] = encoder.embed(scaled[None, y : y + height, x : x + width])[0, ::take, ::take]

    rows, cols = (range(0, size, per_tile) for size in target.shape[:2])
    for _ in parallel_map(embed, product(rows, cols)):
        pass


def worth_indexing(scaled: NDArray[np.float32], config: IndexConfig) -> NDArray[np.bool_]:
    """Return the windows of an image that are neither hidden nor flat: (rows, cols) bool."""
    known = np.zeros(scaled.shape[:2], bool)
    differs = np.zeros((scaled.shape[0] - 1, scaled.shape[1] - 1), bool)
    for band in np.moveaxis(scaled, -1, 0):  # band by band: reductions over a short last axis are slow
        band = np.ascontiguousarray(band)
        centre, left, above = band[1:, 1:], band[1:, :-1], band[:-1, 1:]
        number = band == band
        known |= number
        if number.all():
            differs |= (centre != left) | (centre != above)
        else:  # not "unequal": next to NaN nothing differs, and the edge of nodata is no texture
            differs |= (centre < left) | (centre > left) | (centre < above) | (centre > above)
    visible = valid_share(known, PATCH_PX, config.stride_px) >= config.min_visible - 1e-6
    # One less than the window's edge: both neighbours of a pair must lie inside it.
    return visible & (valid_share(differs, PATCH_PX - 1, config.stride_px) > 0)


def embed_patches(
    encoder: Encoder,
    patches: NDArray[np.float32] | PatchPixels,
    progress: Progress = silent,
    batch: int = PATCH_BATCH,
) -> NDArray[np.float32]:
    """Embed patches, batches in parallel.

    Args:
        encoder: any `Encoder`.
        patches: (n, 64, 64, b) scaled, or as they were read.
        progress: hears of each batch.
        batch: patches per batch.

    Returns:
        (n, dim) float32 of unit length; zero for a patch without texture.
    """

    def embed(start: int) -> NDArray[np.float32]:
        rows = slice(start, start + batch)
        scaled = patches[rows] if isinstance(patches, np.ndarray) else patches.scaled(rows)
        return encoder.embed(scaled)[:, 0, 0]

    out = np.zeros((len(patches), encoder.dim), np.float32)
    starts = range(0, len(patches), batch)
    for start, vectors in zip(starts, parallel_map(embed, starts), strict=True):
        out[start : start + len(vectors)] = vectors
        progress("embedding patches", start + len(vectors), len(patches))
    return out
