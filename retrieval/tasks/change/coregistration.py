"""The shift between two dates, found by the engine's own correlation, and its removal.

Strategy. Squares spread over the image are correlated as structure tensors, which keep the edges that a
change of season leaves. The mean of their correlation surfaces has one peak: clouds, water and new buildings
spoil some squares, but agree on no shift. A parabola gives the place of the peak below the pixel. It is exact
near 0 only, so the shift is removed and the rest is measured again.

Source: M. Guizar-Sicairos et al., Efficient subpixel image registration algorithms (2008), on iteration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.config import TensorConfig
from retrieval.kernels.compiled import Compiled
from retrieval.matching.ncc import ncc
from retrieval.matching.surfaces import find_peaks
from retrieval.models.structure_tensor import BORDER_PX, structure_tensor
from retrieval.tasks.change.pairs import OpenPair, Pixels, squares

SQUARE_PX = 64
"""Side of the squares that are correlated."""
RADIUS_PX = 8
"""Largest shift that is searched along an axis."""
MOST_SQUARES = 144
"""Largest number of squares."""
MIN_KNOWN = 0.5
"""Share of a square that must hold data on both dates."""
MIN_NCC = 0.1
"""Mean correlation at the peak below which the dates do not fit anywhere."""
MIN_RISE = 4.0
"""Height of the peak over the surface's mean, in its standard deviations, below which it is noise."""
ROUNDS = 3
"""Measurements of the shift; each one after the first measures the remainder."""
_MARGIN = RADIUS_PX + BORDER_PX
_BATCH = 16


@dataclass(frozen=True)
class Shift:
    """Where the second date lies relative to the first."""

    dx: float
    """Columns: ground of column x of the first date is at x + dx in the second, pixels."""
    dy: float
    """Rows, likewise."""
    ncc: float
    """Mean correlation of the squares at this shift, -1 to 1."""
    squares: int
    """Squares that were correlated."""
    found: bool = True
    """Whether the correlation has a clear peak; else dx and dy are 0."""


NO_SHIFT = Shift(0.0, 0.0, 0.0, 0, found=False)


def measure_shift(pair: OpenPair) -> Shift:
    """Measure the shift of the second date against the first.

    Args:
        pair: two dates on one grid.

    Returns:
        The shift, up to 8 pixels along each axis. `found` is false where no shift fits: on open water, under
        cloud, or for an image smaller than a square.
    """
    corners = squares(pair.height, pair.width, SQUARE_PX, MOST_SQUARES)
    side = SQUARE_PX + 2 * _MARGIN
    first = [pair.read(0, x - _MARGIN, y - _MARGIN, side, side) for x, y in corners]
    kept = [i for i, pixels in enumerate(first) if _known(pixels) >= MIN_KNOWN]
    shift = NO_SHIFT
    for _ in range(ROUNDS):
        second = [
            read_shifted(pair, corners[i][0] - _MARGIN, corners[i][1] - _MARGIN, side, side, shift)
            for i in kept
        ]
        both = [
            (first[i], other) for i, other in zip(kept, second, strict=True) if _known(other) >= MIN_KNOWN
        ]
        rest = _measure(both)
        if not rest.found:
            return NO_SHIFT
        shift = Shift(shift.dx + rest.dx, shift.dy + rest.dy, rest.ncc, rest.squares)
        if max(abs(rest.dx), abs(rest.dy)) < 0.01:
            break
    return shift if max(abs(shift.dx), abs(shift.dy)) <= RADIUS_PX else NO_SHIFT


def _known(pixels: Pixels) -> float:
    return float(1 - np.isnan(pixels).all(-1).mean())


def _measure(both: Sequence[tuple[Pixels, Pixels]]) -> Shift:
    """Return the peak of the mean correlation surface of squares with their margin."""
    if not both:
        return NO_SHIFT
    surfaces = []
    for start in range(0, len(both), _BATCH):
        part = list(both[start : start + _BATCH])
        filled = part + [part[-1]] * (_BATCH - len(part))  # one shape: each is compiled
        first, second = (np.stack([dates[i] for dates in filled]) for i in (0, 1))
        surfaces.append(_SURFACES(first, second)[: len(part)])
    mean = np.concatenate(surfaces).mean(0)
    middle = np.array([[RADIUS_PX, RADIUS_PX]])
    peak = find_peaks(mean[None], middle, 0, np.array([[2 * RADIUS_PX, 2 * RADIUS_PX]]))
    x, y, height = int(peak.x[0]), int(peak.y[0]), float(peak.ncc[0])
    rise = (height - mean.mean()) / max(float(mean.std()), 1e-9)
    at_edge = {0, 2 * RADIUS_PX} & {x, y}
    if height < MIN_NCC or rise < MIN_RISE or at_edge:
        return NO_SHIFT
    dx, dy = x - RADIUS_PX + float(peak.dx[0]), y - RADIUS_PX + float(peak.dy[0])
    return Shift(dx, dy, height, len(both))


def _surfaces(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    tensor, known = structure_tensor(first, TensorConfig.noise)
    inner = np.s_[:, RADIUS_PX:-RADIUS_PX, RADIUS_PX:-RADIUS_PX]
    region, visible = structure_tensor(second, TensorConfig.noise)
    return ncc(tensor[inner], region, known[inner], visible)


_SURFACES = Compiled(_surfaces)


def read_shifted(pair: OpenPair, x: int, y: int, height: int, width: int, shift: Shift) -> Pixels:
    """Return a window of the second date, moved onto the first.

    Whole pixels move as they are. The rest is interpolated by a cubic over four pixels along each axis (Keys
    1981), which keeps edges sharper than a line does. Where one of the four has no data, the nearest pixel
    counts. So a move hides no ground along nodata.

    Args:
        pair: the dates.
        x: first column on the first date.
        y: first row.
        height: rows.
        width: columns.
        shift: from `measure_shift`.

    Returns:
        (height, width, b) scaled; NaN where the nearest pixel is.
    """
    left, top = int(np.floor(shift.dx)), int(np.floor(shift.dy))
    pixels = pair.read(1, x + left - 1, y + top - 1, height + 3, width + 3)
    across, down = cubic_weights(shift.dx - left), cubic_weights(shift.dy - top)
    rows = _weighted([pixels[i : i + height] for i in range(4)], down)
    between = _weighted([rows[:, i : i + width] for i in range(4)], across)
    first, second = 1 + round(shift.dx - left), 1 + round(shift.dy - top)
    nearest = pixels[second : second + height, first : first + width]
    return np.where(np.isnan(between), nearest, between)


def _weighted(parts: Sequence[Pixels], weights: NDArray[np.float32]) -> Pixels:
    """Return the weighted sum of parts; parts of weight 0 do not count, not even their NaN."""
    used = [(part, weight) for part, weight in zip(parts, weights, strict=True) if weight]
    out = used[0][0] * used[0][1]
    for part, weight in used[1:]:
        out = out + part * weight
    return out


def cubic_weights(offset: float) -> NDArray[np.float32]:
    """Return the weights of the pixels at -1, 0, 1 and 2 for a place between 0 and 1 (Keys 1981, a = -0.5).

    Args:
        offset: 0 to 1; below 0.01, or above 0.99, it counts as whole.
    """
    t = round(offset) if min(offset, 1 - offset) < 0.01 else offset
    square, cube = t * t, t * t * t
    weights = [
        -0.5 * cube + square - 0.5 * t,
        1.5 * cube - 2.5 * square + 1,
        -1.5 * cube + 2 * square + 0.5 * t,
        0.5 * cube - 0.5 * square,
    ]
    return np.array(weights, np.float32)
