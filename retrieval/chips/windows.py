"""Which windows of a chip are looked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX, ChipConfig, IndexConfig
from retrieval.embed import worth_indexing


@dataclass(frozen=True, eq=False)
class Windows:
    """The windows of a chip that are looked for; one at least."""

    offsets: NDArray[np.int64]
    """(w, 2) x and y of their top-left pixels in the chip."""
    pixels: NDArray[np.float32]
    """(w, 64, 64, b) scaled, NaN = not known."""
    bands: tuple[str, ...]
    """Names of the bands, in their order."""

    def __len__(self) -> int:
        return len(self.offsets)


def cut_windows(scaled: NDArray[np.float32], bands: Sequence[str], config: ChipConfig) -> Windows:
    """Choose windows of a chip, and cut them out.

    Args:
        scaled: (h, w, b) the chip, h and w 64 or more, NaN = not known.
        bands: names of its b bands.
        config: how many windows, and how much of each must be known.

    Returns:
        Windows side by side, as few as leave no more than 32 pixels at the borders, those left out that
        are flat or hidden; of more than `config.windows` as many, spread evenly. The middle one
        where all are flat or hidden, so that a chip has an answer whatever it shows.
    """
    height, width = scaled.shape[:2]
    y, x = (v.ravel() for v in np.meshgrid(starts(height), starts(width), indexing="ij"))
    one = IndexConfig(stride_px=PATCH_PX, min_visible=config.min_visible)
    cut = np.stack([scaled[b : b + PATCH_PX, a : a + PATCH_PX] for b, a in zip(y, x, strict=True)])
    seen = np.array([bool(worth_indexing(window, one).all()) for window in cut])
    if not seen.any():
        seen[len(seen) // 2] = True
    offsets = np.stack([x, y], -1)[seen]
    chosen = _spread(offsets, config.windows)
    return Windows(offsets[chosen], cut[seen][chosen], tuple(bands))


def starts(length_px: int) -> NDArray[np.int64]:
    """Where windows begin along a side of a chip: as many as fit in best, evenly from end to end.

    Args:
        length_px: 64 or more.

    Returns:
        Ascending; the middle alone under 96 pixels, where two windows would show much the same.
    """
    rest = length_px - PATCH_PX
    count = 1 + (rest + PATCH_PX // 2) // PATCH_PX
    if count == 1:
        return np.array([rest // 2], np.int64)
    return np.rint(np.linspace(0, rest, count)).astype(np.int64)


def _spread(points: NDArray[np.int64], most: int) -> NDArray[np.intp]:
    """Rows of up to `most` points far from each other, ascending: each next one is the farthest from all.

    Source: T. Gonzalez, Clustering to minimize the maximum intercluster distance (1985).
    """
    if len(points) <= most:
        return np.arange(len(points))
    middle = points.mean(0)
    chosen = [int(np.argmin(((points - middle) ** 2).sum(1)))]
    gap = ((points - points[chosen[0]]) ** 2).sum(1)
    while len(chosen) < most:
        chosen.append(int(np.argmax(gap)))
        gap = np.minimum(gap, ((points - points[chosen[-1]]) ** 2).sum(1))
    return np.sort(np.array(chosen))
