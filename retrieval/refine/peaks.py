"""Where a correlation peaks: the highest point that is allowed, and the offset below the pixel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Peaks:
    """Where the correlation peaked, in whole pixels of the full resolution."""

    x: NDArray[np.int64]
    """(m,) column, in the image."""
    y: NDArray[np.int64]
    """(m,) row."""
    dx: NDArray[np.float32]
    """(m,) sub-pixel offset to add to x, in pixels of the level, in [-0.5, 0.5]."""
    dy: NDArray[np.float32]
    """(m,) likewise for y."""
    ncc: NDArray[np.float32]
    """(m,) height of the peak, in [-1, 1]."""


def find_peaks(surface: NDArray[np.float32], at: NDArray, level: int, limit: NDArray) -> Peaks:
    """Highest point of each surface whose patch lies inside the image, and the parabola's offset.

    Args:
        surface: (m, 2 radius + 1, 2 radius + 1) NCC around each position.
        at: (m, 2) x and y that the middle stands for, in the level's pixels.
        level: 0 is full resolution, each further one half of that before.
        limit: (m, 2) largest x and y of a patch, in full-resolution pixels.
    """
    n, side = surface.shape[:2]
    radius = side // 2
    shift = np.arange(side) - radius
    position = at[:, None, :] + shift[None, :, None]  # (m, side, 2)
    inside = (position >= 0) & (position <= (limit >> level)[:, None, :])
    allowed = np.where(inside[:, :, None, 1] & inside[:, None, :, 0], surface, -2.0)
    # Where nothing stands out (a flat patch) the answer is the candidate's own window, not a corner.
    allowed[:, radius, radius] += 1e-6
    iy, ix = np.divmod(allowed.reshape(n, -1).argmax(1), side)
    i = np.arange(n)
    peak = surface[i, iy, ix]
    dx = _parabola(surface[i, iy, np.maximum(ix - 1, 0)], peak, surface[i, iy, np.minimum(ix + 1, side - 1)])
    dy = _parabola(surface[i, np.maximum(iy - 1, 0), ix], peak, surface[i, np.minimum(iy + 1, side - 1), ix])
    edge_x, edge_y = (ix == 0) | (ix == side - 1), (iy == 0) | (iy == side - 1)
    return Peaks(
        np.clip(at[:, 0] + shift[ix] << level, 0, limit[:, 0]),
        np.clip(at[:, 1] + shift[iy] << level, 0, limit[:, 1]),
        np.where(edge_x, 0, dx).astype(np.float32),
        np.where(edge_y, 0, dy).astype(np.float32),
        peak.astype(np.float32),
    )


def _parabola(before: NDArray, peak: NDArray, after: NDArray) -> NDArray:
    """Offset of the top of the parabola through three neighbours, in [-0.5, 0.5]; 0 where it has none."""
    bend = before - 2 * peak + after
    top = (before - after) / np.where(bend < -1e-9, 2 * bend, 1)
    return np.where(bend < -1e-9, np.clip(top, -0.5, 0.5), 0)
