"""Pairs of crops out of one series: one place, two dates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tfrecords.errors import GridError
from tfrecords.grid import PATCH_PX, valid_share, window_count
from tfrecords.schema import BANDS, Series, check_finite, is_nodata, to_scaled

TRIES = 4
"""Pairs of dates that are tried for a crop before the series is taken for exhausted."""
LEAST_VALID = 0.5
"""A series that is nowhere as free of nodata as the plan asks gives one crop if half of it is valid."""


@dataclass(frozen=True)
class CropPlan:
    """How crops are drawn from series."""

    size_px: int = PATCH_PX
    """Side of a crop."""
    crops_per_series: int = 16
    """Pairs from one series in one epoch, at most; small series have room for fewer."""
    jitter_px: int = 0
    """The second crop of a pair is moved by up to so many pixels in x and y."""
    shuffle: int = 4096
    """Pairs in the shuffle buffer, and as many ready ahead; 66 kB each at 64 px."""
    parallel_reads: int = 2
    """Files that are read, and series that are cut, at the same time; each holds some 0.1 GB."""
    seed: int = 0
    """The same seed gives the same sequence."""
    max_nodata: float = 0.1
    """Largest share of nodata in either crop of a pair, in [0, 1]."""
    min_gap_px: int = 16
    """Two crops of one series in one epoch differ by so much in x or in y, at least."""
    shard_index: int = 0
    """This worker's number, from 0."""
    shard_count: int = 1
    """How many workers share the data; every series goes to exactly one of them."""

    def __post_init__(self) -> None:
        ones = (self.size_px, self.crops_per_series, self.shuffle, self.parallel_reads, self.min_gap_px)
        if min(ones) < 1 or min(self.jitter_px, self.seed) < 0 or not 0 <= self.max_nodata <= 1:
            raise GridError(
                f"{self} can't be: size, crops, shuffle, reads and gap are 1 or more, jitter and seed 0 or "
                f"more, max_nodata from 0 to 1"
            )
        if not 0 <= self.shard_index < self.shard_count:
            raise GridError(f"shard {self.shard_index} of {self.shard_count}: expected 0 to the count less 1")


class Crops(NamedTuple):
    """Pairs of crops of one series; n may be 0."""

    anchor: NDArray[np.float32]
    """(n, size, size, 4) scaled, NaN where nodata; bands as stored, missing ones all NaN."""
    positive: NDArray[np.float32]
    """(n, size, size, 4) of another date, at the same pixel but for the jitter."""
    x: NDArray[np.int64]
    """(n,) column of the anchor in the place's grid."""
    y: NDArray[np.int64]
    """(n,) row likewise."""
    dates: NDArray[np.int64]
    """(n, 2) numbers of the two dates in the series."""


class _Spot(NamedTuple):
    """Where a pair is cut."""

    x: int
    y: int
    dx: int
    dy: int
    dates: tuple[int, int]
    valid: float


class _Ground:
    """Where windows of a series may lie: the shares of valid pixels, and the places not yet taken."""

    def __init__(self, series: Series, size_px: int) -> None:
        height, width = series.pixels.shape[1:3]
        self.rows, self.cols = window_count(height, size_px, 1), window_count(width, size_px, 1)
        self.free = np.ones((self.rows, self.cols), np.bool_)
        gone = is_nodata(series.pixels, series.nodata)
        whole = np.ones((self.rows, self.cols), np.float32)
        self.shares = [valid_share(~g, size_px, 1) if g.any() else whole for g in gone]

    def take(self, spot: _Spot, gap_px: int) -> None:
        """Close the neighbourhood of a pair."""
        rows = slice(max(0, spot.y - gap_px + 1), spot.y + gap_px)
        self.free[rows, max(0, spot.x - gap_px + 1) : spot.x + gap_px] = False


def cut_crops(series: Series, plan: CropPlan, rng: np.random.Generator) -> Crops:
    """Draw pairs of crops from a series.

    Args:
        series: t dates of (h, w, b).
        plan: how.
        rng: source of chance; the same state gives the same crops.

    Returns:
        Up to `plan.crops_per_series` pairs, at least `min_gap_px` from each other. A series smaller
        than a crop gives none; one that is nowhere as free of nodata as the plan asks gives its best
        one of a few tries, if at least half of it is valid.

    Raises:
        ArrayError: a value in a crop is NaN or infinite without being nodata.
    """
    spots = _spots(series, plan, rng)
    anchor, positive = (
        np.empty((len(spots), plan.size_px, plan.size_px, len(BANDS)), np.float32) for _ in "ap"
    )
    for row, spot in enumerate(spots):
        anchor[row] = _cut(series, spot.dates[0], spot.x, spot.y, plan.size_px)
        positive[row] = _cut(series, spot.dates[1], spot.x + spot.dx, spot.y + spot.dy, plan.size_px)
    return Crops(
        anchor,
        positive,
        np.array([series.x0 + s.x for s in spots], np.int64),
        np.array([series.y0 + s.y for s in spots], np.int64),
        np.array([s.dates for s in spots], np.int64).reshape(-1, 2),
    )


def _spots(series: Series, plan: CropPlan, rng: np.random.Generator) -> list[_Spot]:
    """Places and dates of the pairs."""
    if min(series.pixels.shape[1:3]) < plan.size_px:
        return []
    ground = _Ground(series, plan.size_px)
    spots: list[_Spot] = []
    best: _Spot | None = None
    while len(spots) < plan.crops_per_series:
        spot, fallback = _draw(ground, plan, rng)
        if not spots and fallback is not None and (best is None or fallback.valid > best.valid):
            best = fallback
        if spot is None:
            break
        ground.take(spot, plan.min_gap_px)
        spots.append(spot)
    return spots or ([best] if best else [])


def _draw(ground: _Ground, plan: CropPlan, rng: np.random.Generator) -> tuple[_Spot | None, _Spot | None]:
    """One pair that the plan allows, or none after a few tries; and the best that was seen until then."""
    best: _Spot | None = None
    rows, cols = ground.rows, ground.cols
    for _ in range(TRIES):
        first = int(rng.integers(len(ground.shares)))
        second = (first + int(rng.integers(1, len(ground.shares)))) % len(ground.shares)
        dy = int(np.clip(rng.integers(-plan.jitter_px, plan.jitter_px + 1), 1 - rows, rows - 1))
        dx = int(np.clip(rng.integers(-plan.jitter_px, plan.jitter_px + 1), 1 - cols, cols - 1))
        top, left = max(0, -dy), max(0, -dx)
        here = slice(top, rows - max(0, dy)), slice(left, cols - max(0, dx))
        there = slice(top + dy, here[0].stop + dy), slice(left + dx, here[1].stop + dx)
        valid = np.minimum(ground.shares[first][here], ground.shares[second][there])
        open_ = np.flatnonzero(ground.free[here] & (valid >= 1 - plan.max_nodata))
        flat = int(rng.choice(open_)) if len(open_) else int(valid.argmax())
        y, x = divmod(flat, valid.shape[1])
        spot = _Spot(x + left, y + top, dx, dy, (first, second), float(valid[y, x]))
        if len(open_):
            return spot, None
        if spot.valid >= LEAST_VALID and (best is None or spot.valid > best.valid):
            best = spot
    return None, best


def _cut(series: Series, date: int, x: int, y: int, size_px: int) -> NDArray[np.float32]:
    """One crop: (size, size, 4) scaled."""
    pixels = series.pixels[date, y : y + size_px, x : x + size_px]
    check_finite(pixels, series.nodata, f"date {date} at x={x}, y={y}")
    crop = np.full((size_px, size_px, len(BANDS)), np.nan, np.float32)
    chosen = _four(series.bands)
    crop[..., : len(chosen)] = to_scaled(pixels, series.units, series.nodata)[..., chosen]
    return crop


def _four(bands: tuple[str, ...]) -> list[int]:
    """Which bands a crop has: all as stored; of more than four ours first, in our order, then others."""
    if len(bands) <= len(BANDS):
        return list(range(len(bands)))
    ours = [bands.index(b) for b in BANDS if b in bands]
    return (ours + [i for i in range(len(bands)) if i not in ours])[: len(BANDS)]
