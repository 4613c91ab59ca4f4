"""How much two dates differ at each pixel, beyond season and light, without labels.

Strategy. Light, haze and season change most of the ground alike: in each band they act, to first order, as a
gain and an offset. These are fitted by iteratively reweighted moments: pixels that differ lose their weight,
so change does not bend the fit. The normalized differences are smoothed, which removes noise, the rest of the
misregistration and single-pixel parallax. Their mean over about a mile is removed: haze and season vary from
region to region. Each band is divided by the spread of its differences, up to which
19 of 20 pixels differ: harvest and growth widen it, rare change does not. The score is the length of this
vector: change vector analysis in units of the scene's own unrest.

Sources: R. D. Johnson, E. S. Kasischke, Change vector analysis (1998). A. A. Nielsen, The regularized
iteratively reweighted MAD method (2007), for the weights. M. J. Canty, A. A. Nielsen, Automatic radiometric
normalization (2008).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.tasks.change.pairs import Mask, Pixels

SMOOTHING_PX = 1.5
"""Standard deviation of the Gaussian that smooths the differences."""
REACH_PX = 6
"""Pixels that the Gaussian reaches: four standard deviations."""
REGION_PX = 161
"""Side of the square whose mean difference is removed from its middle; odd."""
MARGIN_PX = REACH_PX + REGION_PX // 2
"""Pixels around a pixel that its score depends on."""
ROUNDS = 10
"""Iterations of the weights."""
MIN_PIXELS = 256
"""Pixels without which no normalization is fitted."""
_MAD = 1.4826
"""Standard deviation of a normal distribution by its median absolute deviation."""
_Q95 = 1 / 1.96
"""The same by the absolute deviation that 95 % do not exceed."""
_WIDEST = 3.0
"""Most by which the second may exceed the first: else change on more than a twentieth would hide itself."""
_FLOOR = 1e-4
"""Smallest spread, in scaled units: a tenth of the sensor's noise."""


@dataclass(frozen=True)
class Normalization:
    """Gain and offset of each date and band, and the spread of what remains."""

    means: tuple[tuple[float, ...], tuple[float, ...]]
    """Mean of the unchanged pixels, by date and band, scaled units."""
    deviations: tuple[tuple[float, ...], tuple[float, ...]]
    """Their standard deviation."""
    centre: tuple[float, ...]
    """Median of the smoothed differences by band."""
    spread: tuple[float, ...]
    """Their spread, as a standard deviation: by the 95 % quantile, up to three times that by the median."""


def fit_normalization(blocks: Sequence[tuple[Pixels, Pixels, Mask]]) -> Normalization | None:
    """Fit the normalization to parts of two dates.

    Args:
        blocks: (h, w, b) of both dates, scaled, and the pixels that show ground on both, (h, w).

    Returns:
        The normalization; None where fewer than 256 pixels show ground.
    """
    bands = blocks[0][0].shape[-1]
    dates = [[_values(blocks, date, band) for band in range(bands)] for date in (0, 1)]
    if len(dates[0][0]) < MIN_PIXELS:
        return None
    means, deviations = _moments(dates)
    del dates
    plain = Normalization(means, deviations, (0.0,) * bands, (1.0,) * bands)
    smooth = [_smoothed(plain, *block)[block[2]] for block in blocks]
    centre, spread = zip(
        *(_centre_and_spread([part[:, band] for part in smooth]) for band in range(bands)), strict=True
    )
    return Normalization(means, deviations, centre, spread)


def _values(blocks: Sequence[tuple[Pixels, Pixels, Mask]], date: int, band: int) -> NDArray[np.float32]:
    """Return the values (m,) of a band of a date where ground shows."""
    return np.concatenate([block[date][..., band][block[2]] for block in blocks])


def _centre_and_spread(parts: Sequence[NDArray[np.float32]]) -> tuple[float, float]:
    """Return the median of the smoothed differences of a band, and their spread."""
    values = np.concatenate(parts)
    centre = np.median(values)
    inner, outer = np.quantile(np.abs(values - centre), (0.5, 0.95))
    spread = np.clip(_Q95 * outer, _MAD * inner, _WIDEST * _MAD * inner)
    return float(centre), float(max(spread, _FLOOR))


Moments = tuple[tuple[float, ...], tuple[float, ...]]


def _moments(dates: Sequence[Sequence[NDArray[np.float32]]]) -> tuple[Moments, Moments]:
    """Return means and standard deviations of the unchanged pixels, by date.

    Args:
        dates: for each date the values (m,) of each band. Bands follow each other, so that few arrays of m
            numbers are in memory.
    """
    bands = len(dates[0])
    weight = np.ones(len(dates[0][0]))
    for _ in range(ROUNDS):
        mean, deviation = np.zeros((2, bands)), np.zeros((2, bands))
        distance = np.zeros(len(weight))
        weight = weight / weight.sum()
        for band in range(bands):
            gap: NDArray[np.float64] = np.zeros(len(weight))
            for date, sign in ((0, -1.0), (1, 1.0)):
                values = dates[date][band].astype(np.float64)
                mean[date, band] = values @ weight
                values -= mean[date, band]
                deviation[date, band] = max(float(np.sqrt((values * values) @ weight)), _FLOOR)
                gap += values * (sign / deviation[date, band])
            spread = max(_MAD * float(np.median(np.abs(gap - np.median(gap)))), _FLOOR)
            distance += (gap / spread) ** 2
        weight = 1 / (1 + distance / bands)
    return (_floats(mean[0]), _floats(mean[1])), (_floats(deviation[0]), _floats(deviation[1]))


def _floats(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(map(float, values))


def change_score(first: Pixels, second: Pixels, ground: Mask, fitted: Normalization) -> NDArray[np.float32]:
    """Return the score of change: 1 is the scene's own unrest in one band.

    Args:
        first: (h, w, b) of the first date, scaled.
        second: of the second one.
        ground: (h, w) pixels that show ground on both; others count nowhere.
        fitted: from `fit_normalization`.

    Returns:
        (h, w) 0 or more; 0 where `ground` is false. A pixel depends on those within `MARGIN_PX`.
    """
    vector = normalized_difference(first, second, ground, fitted)
    return np.asarray(np.sqrt((vector * vector).sum(-1)))


def normalized_difference(
    first: Pixels, second: Pixels, ground: Mask, fitted: Normalization
) -> NDArray[np.float32]:
    """Return the smoothed differences in units of the scene's own unrest, (h, w, b); see `change_score`."""
    smooth = _smoothed(fitted, first, second, ground)
    vector = (smooth - np.array(fitted.centre, np.float32)) / np.array(fitted.spread, np.float32)
    return np.where(ground[..., None], vector, np.float32(0)).astype(np.float32)


def _smoothed(fitted: Normalization, first: Pixels, second: Pixels, ground: Mask) -> NDArray[np.float32]:
    """Return the smoothed normalized differences (h, w, b); pixels that show no ground have no weight."""
    m0, m1 = np.array(fitted.means, np.float32)
    s0, s1 = np.array(fitted.deviations, np.float32)
    gap = np.where(ground[..., None], (second - m1) / s1 - (first - m0) / s0, np.float32(0))
    known = ground.astype(np.float32)[..., None]
    total = _blurred(np.concatenate([gap, known], -1).astype(np.float32))
    smooth = (total[..., :-1] / np.maximum(total[..., -1:], 1e-6)).astype(np.float32)
    smooth[~ground] = 0
    smooth -= _regional_mean(smooth, ground)
    smooth[~ground] = 0
    return smooth


def _regional_mean(values: NDArray[np.float32], ground: Mask) -> NDArray[np.float32]:
    """Return the mean of (h, w, c) over the visible ground of the square around each pixel."""
    known = ground.astype(np.float64)[..., None]
    total = np.concatenate([values.astype(np.float64), known], -1)
    half = REGION_PX // 2
    for axis in (0, 1):
        width = [(0, 0)] * 3
        width[axis] = (half + 1, half)
        sums = np.cumsum(np.pad(total, width), axis=axis)
        length = total.shape[axis]
        ends = np.arange(length) + REGION_PX
        total = np.take(sums, ends, axis=axis) - np.take(sums, ends - REGION_PX, axis=axis)
    return (total[..., :-1] / np.maximum(total[..., -1:], 1.0)).astype(np.float32)


def _blurred(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (h, w, c) under a Gaussian; beyond the edge all is 0."""
    at = np.arange(-REACH_PX, REACH_PX + 1)
    kernel = np.exp(-0.5 * (at / SMOOTHING_PX) ** 2)
    kernel = (kernel / kernel.sum()).astype(np.float32)
    height, width = values.shape[:2]
    padded = np.pad(values, ((REACH_PX,) * 2, (0, 0), (0, 0)))
    rows = np.zeros_like(values)
    for i, weight in enumerate(kernel):
        rows += padded[i : i + height] * weight
    padded = np.pad(rows, ((0, 0), (REACH_PX,) * 2, (0, 0)))
    out = np.zeros_like(values)
    for i, weight in enumerate(kernel):
        out += padded[:, i : i + width] * weight
    return out
