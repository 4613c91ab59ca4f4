"""Cut pairs of crops from one series: one place, two dates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tfrecords.errors import GridError
from tfrecords.grid import PATCH_PX, valid_share, window_count
from tfrecords.schema import BANDS, Series, check_finite, is_nodata, to_scaled

TRIES = 4
"""Pairs of dates to try for a crop before the series counts as exhausted."""
MIN_FALLBACK_VALID = 0.5
"""Least valid share of the one crop of a series that nowhere meets the plan's `max_nodata`."""


@dataclass(frozen=True)
class CropPlan:
    """How crops are drawn from series."""

    size_px: int = PATCH_PX
    """Side of a crop."""
    crops_per_series: int = 16
    """Pairs from one series in one epoch, at most; small series give fewer."""
    jitter_px: int = 0
    """Largest shift of the second crop of a pair, in pixels, in x and y."""
    shuffle: int = 4096
    """Pairs in the shuffle buffer, and prefetched pairs; 66 kB each at 64 px."""
    parallel_reads: int = 2
    """Files that are read, and series that are cut, at the same time; about 0.1 GB each."""
    seed: int = 0
    """The same seed gives the same sequence."""
    max_nodata: float = 0.1
    """Largest share of nodata in either crop of a pair, in [0, 1]."""
    min_gap_px: int = 16
    """Least distance of two crops of one series in one epoch, in x or in y."""
    shard_index: int = 0
    """This worker's number, from 0."""
    shard_count: int = 1
    """Number of workers; every series goes to exactly one of them."""

    def __post_init__(self) -> None:
        positive = (self.size_px, self.crops_per_series, self.shuffle, self.parallel_reads, self.min_gap_px)
        if min(positive) < 1 or min(self.jitter_px, self.seed) < 0 or not 0 <= self.max_nodata <= 1:
            raise GridError(
                f"{self}: expected size, crops, shuffle, reads and gap of 1 or more, jitter and seed of 0 or "
                f"more, max_nodata from 0 to 1"
            )
        if not 0 <= self.shard_index < self.shard_count:
            raise GridError(
                f"shard {self.shard_index} of {self.shard_count}: expected an index below the count"
            )


class Crops(NamedTuple):
    """Pairs of crops of one series; n may be 0."""

    anchor: NDArray[np.float32]
    """(n, size, size, 4) scaled, NaN where nodata; bands as stored, missing ones all NaN."""
    positive: NDArray[np.float32]
    """(n, size, size, 4) of another date, at the same pixel apart from the jitter."""
    x: NDArray[np.int64]
    """(n,) column of the anchor in the place's grid."""
    y: NDArray[np.int64]
    """(n,) row of the anchor in the place's grid."""
    dates: NDArray[np.int64]
    """(n, 2) numbers of the two dates in the series."""


class _PairPosition(NamedTuple):
    """Position and dates of a pair."""

    x: int
    y: int
    dx: int
    dy: int
    dates: tuple[int, int]
    valid: float


class _FreeWindows:
    """Valid share of all windows of a series, per date, and the windows far enough from earlier pairs."""

    def __init__(self, series: Series, size_px: int) -> None:
        height, width = series.pixels.shape[1:3]
        self.rows, self.cols = window_count(height, size_px, 1), window_count(width, size_px, 1)
        self.free = np.ones((self.rows, self.cols), np.bool_)
        nodata = is_nodata(series.pixels, series.nodata)
        all_valid = np.ones((self.rows, self.cols), np.float32)
        self.shares = [valid_share(~mask, size_px, 1) if mask.any() else all_valid for mask in nodata]

    def exclude(self, pair: _PairPosition, gap_px: int) -> None:
        """Exclude the neighbourhood of a pair."""
        rows = slice(max(0, pair.y - gap_px + 1), pair.y + gap_px)
        self.free[rows, max(0, pair.x - gap_px + 1) : pair.x + gap_px] = False


def cut_crops(series: Series, plan: CropPlan, rng: np.random.Generator) -> Crops:
    """Draw pairs of crops from a series.

    Args:
        series: t dates of (h, w, b).
        plan: number, size and distance of crops.
        rng: random generator; the same state gives the same crops.

    Returns:
        Up to `plan.crops_per_series` pairs, at least `min_gap_px` from each other. A series smaller than a
        crop gives none. A series that nowhere meets `max_nodata` gives the best of a few tries, if at least
        half of it is valid.

    Raises:
        ArrayError: a value in a crop is NaN or infinite without being nodata.
    """
    pairs = _draw_pairs(series, plan, rng)
    anchor, positive = (
        np.empty((len(pairs), plan.size_px, plan.size_px, len(BANDS)), np.float32) for _ in "ap"
    )
    for row, pair in enumerate(pairs):
        anchor[row] = _cut(series, pair.dates[0], pair.x, pair.y, plan.size_px)
        positive[row] = _cut(series, pair.dates[1], pair.x + pair.dx, pair.y + pair.dy, plan.size_px)
    return Crops(
        anchor,
        positive,
        np.array([series.x0 + pair.x for pair in pairs], np.int64),
        np.array([series.y0 + pair.y for pair in pairs], np.int64),
        np.array([pair.dates for pair in pairs], np.int64).reshape(-1, 2),
    )


def _draw_pairs(series: Series, plan: CropPlan, rng: np.random.Generator) -> list[_PairPosition]:
    """Draw positions and dates of the pairs."""
    if min(series.pixels.shape[1:3]) < plan.size_px:
        return []
    windows = _FreeWindows(series, plan.size_px)
    pairs: list[_PairPosition] = []
    best: _PairPosition | None = None
    while len(pairs) < plan.crops_per_series:
        pair, fallback = _draw_pair(windows, plan, rng)
        if not pairs and fallback is not None and (best is None or fallback.valid > best.valid):
            best = fallback
        if pair is None:
            break
        windows.exclude(pair, plan.min_gap_px)
        pairs.append(pair)
    return pairs or ([best] if best else [])


def _draw_pair(
    windows: _FreeWindows, plan: CropPlan, rng: np.random.Generator
) -> tuple[_PairPosition | None, _PairPosition | None]:
    """Return a pair that fits the plan, or None after a few tries; and the best pair until then."""
    best: _PairPosition | None = None
    rows, cols = windows.rows, windows.cols
    for _ in range(TRIES):
        first = int(rng.integers(len(windows.shares)))
        second = (first + int(rng.integers(1, len(windows.shares)))) % len(windows.shares)
        dy = int(np.clip(rng.integers(-plan.jitter_px, plan.jitter_px + 1), 1 - rows, rows - 1))
        dx = int(np.clip(rng.integers(-plan.jitter_px, plan.jitter_px + 1), 1 - cols, cols - 1))
        top, left = max(0, -dy), max(0, -dx)
        here = slice(top, rows - max(0, dy)), slice(left, cols - max(0, dx))
        there = slice(top + dy, here[0].stop + dy), slice(left + dx, here[1].stop + dx)
        valid = np.minimum(windows.shares[first][here], windows.shares[second][there])
        allowed = np.flatnonzero(windows.free[here] & (valid >= 1 - plan.max_nodata))
        flat = int(rng.choice(allowed)) if len(allowed) else int(valid.argmax())
        y, x = divmod(flat, valid.shape[1])
        pair = _PairPosition(x + left, y + top, dx, dy, (first, second), float(valid[y, x]))
        if len(allowed):
            return pair, None
        if pair.valid >= MIN_FALLBACK_VALID and (best is None or pair.valid > best.valid):
            best = pair
    return None, best


def _cut(series: Series, date: int, x: int, y: int, size_px: int) -> NDArray[np.float32]:
    """Return one crop, (size, size, 4) scaled."""
    pixels = series.pixels[date, y : y + size_px, x : x + size_px]
    check_finite(pixels, series.nodata, f"date {date} at x={x}, y={y}")
    crop = np.full((size_px, size_px, len(BANDS)), np.nan, np.float32)
    chosen = _choose_bands(series.bands)
    crop[..., : len(chosen)] = to_scaled(pixels, series.units, series.nodata)[..., chosen]
    return crop


def _choose_bands(bands: tuple[str, ...]) -> list[int]:
    """Return the bands of a crop: up to four as stored; of more, `BANDS` first, then others."""
    if len(bands) <= len(BANDS):
        return list(range(len(bands)))
    ours = [bands.index(b) for b in BANDS if b in bands]
    return (ours + [i for i in range(len(bands)) if i not in ours])[: len(BANDS)]
