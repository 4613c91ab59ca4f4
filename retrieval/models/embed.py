"""From pixels to vectors: every window of an image in one pass, and patches in batches.

Embedding an image at once shares the work that its overlapping windows have in common: at stride 8
a pixel lies in 64 windows. `embed_image` is the unit of work: an array in, vectors out, wherever it
runs.
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
"""Larger images are embedded tile by tile, so that memory does not grow with them."""
PATCH_BATCH = 32
"""Patches embedded at a time."""


def embed_image(encoder: Encoder, scaled: NDArray[np.float32], config: IndexConfig) -> WindowVectors:
    """Embed the windows of one image that show something.

    Windows lie on the stride; where it does not end at the right or lower edge there is one more
    column or row of them along it, so that no place is further than half a stride from a window. One
    is left out where less than `config.min_visible` of it is known, where it is flat (no pixel
    differs from its neighbours) and where the encoder sees nothing in it.

    Args:
        encoder: any `Encoder`.
        scaled: (h, w, b) float32 in [-1, 1], NaN = not known; h and w at least 64.
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
    """Where grids of windows begin along a side: at 0, and at the last place if the first leaves it out."""
    last = length_px - PATCH_PX
    return (0, last) if last % stride_px else (0,)


def _windows(
    encoder: Encoder, scaled: NDArray[np.float32], x: int, y: int, config: IndexConfig
) -> WindowVectors:
    """The grid of windows that begins at a pixel."""
    part = scaled[y:, x:]
    grid = WindowGrid(part.shape[0], part.shape[1], PATCH_PX, config.stride_px)
    dense = embed_dense(encoder, part, config.stride_px).reshape(grid.count, encoder.dim)
    keep = worth_indexing(part, config).reshape(-1) & dense.any(-1)
    return WindowVectors(grid.xy()[keep] + np.array([x, y], np.int32), dense[keep], grid.count)


def embed_dense(encoder: Encoder, scaled: NDArray[np.float32], stride_px: int) -> NDArray[np.float32]:
    """Embed all windows of an image on a stride of one's own.

    A stride that is a multiple of the encoder's takes every so many vectors; a finer one runs the
    encoder on shifted copies and interleaves what they give (shift and stitch, Long et al. 2015).

    Args:
        encoder: any `Encoder`.
        scaled: (h, w, b) float32.
        stride_px: a multiple or a divisor of the encoder's stride.

    Returns:
        (rows, cols, dim) float32, row r and column c for the window at (c * stride, r * stride).

    Raises:
        ConfigError: the stride fits the encoder's in neither way.
    """
    step = encoder.step_px
    if stride_px % step and step % stride_px:
        raise ConfigError(
            f"stride {stride_px} px does not fit the encoder's {step} px: take a multiple or a divisor of it"
        )
    grid = WindowGrid(scaled.shape[0], scaled.shape[1], PATCH_PX, stride_px)
    out = np.zeros((grid.rows, grid.cols, encoder.dim), np.float32)
    shifts = range(0, step, stride_px) if stride_px < step else (0,)
    every = max(1, step // stride_px)
    take = max(1, stride_px // step)
    for dy, dx in product(shifts, shifts):
        target = out[dy // stride_px :: every, dx // stride_px :: every]
        if target.size:
            _fill(target, encoder, scaled[dy:, dx:], take)
    return out


def _fill(target: NDArray[np.float32], encoder: Encoder, scaled: NDArray[np.float32], take: int) -> None:
    """Embed tiles side by side into `target`, taking every `take`-th vector of the encoder's own grid."""
    stride = encoder.step_px * take
    per_tile = max(1, (TILE_PX - PATCH_PX) // stride + 1)

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
    """Which windows of an image are neither hidden nor flat: (rows, cols) bool."""
    known = np.zeros(scaled.shape[:2], bool)
    differs = np.zeros((scaled.shape[0] - 1, scaled.shape[1] - 1), bool)
    for band in np.moveaxis(scaled, -1, 0):  # band by band: reductions over a short last axis are slow
        band = np.ascontiguousarray(band)
        here, left, above = band[1:, 1:], band[1:, :-1], band[:-1, 1:]
        number = band == band
        known |= number
        if number.all():
            differs |= (here != left) | (here != above)
        else:  # not "unequal": beside NaN nothing differs, and nodata's edge is no relief
            differs |= (here < left) | (here > left) | (here < above) | (here > above)
    seen = valid_share(known, PATCH_PX, config.stride_px) >= config.min_visible - 1e-6
    # One less than the window's edge: both neighbours of a pair must lie inside it.
    return seen & (valid_share(differs, PATCH_PX - 1, config.stride_px) > 0)


def embed_patches(
    encoder: Encoder, patches: NDArray[np.float32] | PatchPixels, progress: Progress = silent
) -> NDArray[np.float32]:
    """Embed patches, some batches side by side.

    Args:
        encoder: any `Encoder`.
        patches: (n, 64, 64, b) scaled, or as they were read.
        progress: told how many are done.

    Returns:
        (n, dim) float32 of unit length; zero for a patch without anything to see.
    """

    def embed(start: int) -> NDArray[np.float32]:
        rows = slice(start, start + PATCH_BATCH)
        scaled = patches[rows] if isinstance(patches, np.ndarray) else patches.scaled(rows)
        return encoder.embed(scaled)[:, 0, 0]

    out = np.zeros((len(patches), encoder.dim), np.float32)
    starts = range(0, len(patches), PATCH_BATCH)
    for start, vectors in zip(starts, parallel_map(embed, starts), strict=True):
        out[start : start + len(vectors)] = vectors
        progress("embedding patches", start + len(vectors), len(patches))
    return out
