"""What trees see of a pixel: its bands, and level, spread and texture of the ground around it.

Strategy. Land cover shows in texture: fields, crowns and roofs differ at the finest pixels, also where their
colours agree. So images are reduced to blocks, and each block keeps the energy of its gradients, of its
Laplacian and of a band-pass with its mean. Means over squares of several sizes add the surroundings, and
the coherence of the structure tensor tells rows and roads from crowns. All sums are over squares, so their
cost does not depend on their size. Normalized differences of the means of two bands, such as indices of
vegetation and water, do not depend on the brightness of a scene. A tree compares one number with a limit, so
it needs many splits to see how two dates differ. Their differences are separate features.

Sources: M. Unser, Sum and difference histograms for texture classification, 1986. J. Bigun and
G. H. Granlund, Optimal orientation detection of linear symmetry, 1987, on coherence. S. K. McFeeters, The use
of the normalized difference water index in the delineation of open water features, 1996.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.kernels.squares import means_of_squares

Map = NDArray[np.float32]
_WIDE = 9
"""Side of the square against which the band-pass compares, pixels."""
_NARROW = 9
"""Side of squares up to which neighbours are added one by one."""
_LEAST_SUM = 0.02
"""Smallest sum by which a difference is divided, in shares of the full scale: below it, noise decides."""
MOST_PAIRS = 15
"""Most pairs of bands of a date whose normalized difference is a feature: all pairs of six bands."""
Pairs = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Indices:
    """Pairs of numbers that give a feature of a block and of each square."""

    pairs: Pairs = ()
    """Channels whose normalized difference is a feature."""
    gaps: Pairs = ()
    """Numbers whose difference is a feature, the first less the second. Channels are counted first, then
    normalized differences."""

    def __len__(self) -> int:
        """Return the features of a block or a square."""
        return len(self.pairs) + len(self.gaps)


NONE = Indices()


def features(pixels: NDArray[Any], reduction: int, sides: Sequence[int], indices: Indices = NONE) -> Map:
    """Return the features of each block of an image.

    Args:
        pixels: (y, x, c), finite; both sides are multiples of `reduction`.
        reduction: side of a block in pixels; 1 takes each pixel alone.
        sides: sides of the squares in blocks, odd.
        indices: pairs that give further features of the block and of each square.

    Returns:
        (y / reduction, x / reduction, f); see `feature_count` for f.
    """
    values = np.asarray(pixels, np.float32)
    means = block_means(values, reduction)
    texture, tensor = _texture(values, reduction, means)
    parts, levels = [means, texture], [means]
    c, both = means.shape[-1], means.shape[-1] + texture.shape[-1]
    around = np.concatenate([means, texture, means * means, tensor], -1)
    for side in sides:
        level = square_means(around, side)
        spread = np.sqrt(np.maximum(level[..., both : both + c] - level[..., :c] ** 2, 0))
        parts += [level[..., :both], spread, _coherence(level[..., both + c :])]
        levels.append(level[..., :c])
    parts += [_indices_of(level, indices) for level in levels if len(indices)]
    return np.concatenate(parts, -1).astype(np.float32, copy=False)


def indices_of(bands: int, dates: int, channels: int | None = None) -> Indices:
    """Return the indices of pixels whose channels are the bands of one date after the other.

    They are normalized differences of pairs of bands of a date: at most `MOST_PAIRS`, the closest bands
    first. With several dates, the changes of bands and of indices from the first date to the last follow.

    Args:
        bands: number of bands of a date.
        dates: number of dates.
        channels: number of channels, where others follow the dates; None for the bands of all dates.
    """
    near = sorted(combinations(range(bands), 2), key=lambda pair: (pair[1] - pair[0], pair))[:MOST_PAIRS]
    pairs = tuple((date * bands + i, date * bands + j) for date in range(dates) for i, j in near)
    firsts = [*range(bands), *range(channels or bands * dates, (channels or bands * dates) + len(near))]
    steps = [(dates - 1) * bands] * bands + [(dates - 1) * len(near)] * len(near)
    gaps = tuple((one + step, one) for one, step in zip(firsts, steps, strict=True))
    return Indices(pairs, gaps if dates > 1 else ())


def view_px(reduction: int, sides: Sequence[int]) -> int:
    """Return how far the features of a block see beyond it, pixels."""
    own = 1 if reduction == 1 else _WIDE // 2
    return own + reduction * (max(sides, default=1) // 2)


def feature_count(channels: int, reduction: int, scales: int, indices: int = 0) -> int:
    """Return the number of features of a block."""
    own = channels * (2 if reduction == 1 else 5)
    return own + scales * (own + channels + 1) + indices * (1 + scales)


def _indices_of(values: Map, indices: Indices) -> Map:
    """Return the normalized differences of channels of (y, x, c), and the differences of `gaps`."""
    first, second = (values[..., [pair[n] for pair in indices.pairs]] for n in (0, 1))
    normalized = (first - second) / np.maximum(first + second, np.float32(_LEAST_SUM))
    every = np.concatenate([values, normalized], -1)
    first, second = (every[..., [gap[n] for gap in indices.gaps]] for n in (0, 1))
    return np.concatenate([normalized, first - second], -1)


def _texture(values: Map, reduction: int, means: Map) -> tuple[Map, Map]:
    """Return the texture of blocks (y, x, c or 4 c), and their structure tensor (y, x, 3) over all bands."""
    down, across = _slope(values, 0), _slope(values, 1)
    energy = block_means(down * down + across * across, reduction)
    tensor = np.stack(
        [(across * across).sum(-1), (down * down).sum(-1), (across * down).sum(-1)], -1, dtype=np.float32
    )
    parts = [np.sqrt(energy)]
    if reduction > 1:
        square = block_means(values * values, reduction)
        near = square_means(values, 3)
        band = near - square_means(values, _WIDE)
        fine = values - near
        parts += [np.sqrt(np.maximum(square - means * means, 0))]
        parts += [np.sqrt(block_means(part * part, reduction)) for part in (fine, band)]
    return np.concatenate(parts, -1), block_means(tensor, reduction)


def _slope(values: Map, axis: int) -> Map:
    """Return half the difference of both neighbours along an axis; the border repeats."""
    width = [(1, 1) if n == axis else (0, 0) for n in range(3)]
    padded = np.pad(values, width, mode="edge")
    count = values.shape[axis]
    ends = np.take(padded, range(2, count + 2), axis), np.take(padded, range(count), axis)
    return (ends[0] - ends[1]) * np.float32(0.5)


def _coherence(tensor: Map) -> Map:
    """Return how much one direction prevails, 0 to 1, of a tensor (..., 3), as (..., 1)."""
    xx, yy, xy = np.moveaxis(tensor, -1, 0)
    total = xx + yy
    ratio = np.sqrt((xx - yy) ** 2 + 4 * xy**2) / np.maximum(total, 1e-12)
    return np.where(total > 1e-12, np.clip(ratio, 0, 1), 0)[..., None].astype(np.float32)


def _narrow_means(values: Map, side: int) -> Map:
    """Return what `square_means` does, by adding neighbours one by one: faster for a few."""
    half = side // 2
    for axis in (0, 1):
        count = values.shape[axis]
        sums, widths = np.zeros_like(values), np.zeros(count, np.float32)
        for shift in range(-half, half + 1):
            first, last = max(-shift, 0), count - max(shift, 0)
            if first < last:
                here, there = ([slice(None)] * 3 for _ in range(2))
                here[axis], there[axis] = slice(first, last), slice(first + shift, last + shift)
                sums[tuple(here)] += values[tuple(there)]
                widths[first:last] += 1
        values = sums / widths.reshape([-1 if n == axis else 1 for n in range(3)])
    return values


def block_means(values: Map, side: int) -> Map:
    """Return the means (y / side, x / side, c) of blocks of (y, x, c)."""
    if side == 1:
        return values
    y, x, c = values.shape
    return values.reshape(y // side, side, x // side, side, c).mean((1, 3), dtype=np.float32)


def square_means(values: Map, side: int) -> Map:
    """Return the mean of (y, x, c) over the square around each pixel, as far as it lies in the image.

    Args:
        values: (y, x, c).
        side: of the square, odd.
    """
    if side <= _NARROW:
        return _narrow_means(values, side)
    return np.asarray(means_of_squares(np.ascontiguousarray(values), side // 2))
