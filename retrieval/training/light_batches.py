"""Batches for the representation: crops of some places, each on two dates.

A batch depends on the random generator only. All crops of a date have one light, also where it is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX, AugmentConfig, RepresentationConfig
from retrieval.errors import TrainingError
from retrieval.models.representation import placed_bands
from retrieval.training.augment import change_light, turned_alike
from tfrecords.schema import BANDS, Series, to_scaled

LEAST_KNOWN = 0.95
"""Smallest share of a crop with data, on both dates."""
COLOURS = 3
"""Bands before the near infrared: red, green and blue."""
ROOM_PX = 32
"""Rows and columns together by which a crop can move in a series."""
FULL_PX = 250**2
"""Pixels from which on a place is drawn as often as any other."""
_TRIES = 12
"""Positions to try for each crop."""
_LIGHT = AugmentConfig()
"""Strength of the changes of light."""


@dataclass(frozen=True, eq=False)
class Sights:
    """Crops of places on two dates."""

    crops: NDArray[np.float32]
    """(places, 2, crops, 64, 64, 4) scaled, NaN = nodata or no band."""
    series: NDArray[np.int64]
    """(places,) number of each place's series."""


def usable_series(series: Sequence[Series]) -> list[Series]:
    """Return the series with room for different crops.

    Raises:
        TrainingError: no series has.
    """
    usable = [s for s in series if min(_room(s)) >= 0 and sum(_room(s)) >= ROOM_PX]
    if not usable:
        raise TrainingError(
            f"{len(series)} series: none has room for crops. Expected {PATCH_PX} x {PATCH_PX + ROOM_PX} px "
            "or more. Give larger series."
        )
    return usable


def _room(series: Series) -> tuple[int, int]:
    """Return the rows and columns that a crop can move by."""
    height, width = series.pixels.shape[1:3]
    return height - PATCH_PX, width - PATCH_PX


def _chances(series: Sequence[Series]) -> NDArray[np.float64]:
    """Return the probability of each series: places are alike from `FULL_PX` pixels on, others rarer."""
    area = np.array([float(np.prod(record.pixels.shape[1:3])) for record in series])
    _, place = np.unique([record.place for record in series], return_inverse=True)
    of_place = np.bincount(place, area)
    chance = area / of_place[place] * np.minimum(of_place[place] / FULL_PX, 1.0)
    return chance / chance.sum()


def draw_sights(
    series: Sequence[Series], config: RepresentationConfig, rng: np.random.Generator, *, relit: bool
) -> Sights:
    """Draw a batch.

    Args:
        series: from `usable_series`; places are drawn alike, small ones more rarely.
        config: number of places and crops, and how often light and bands change.
        rng: random generator.
        relit: whether dates get another light and places lose bands.

    Raises:
        TrainingError: hardly any place has crops with data on two dates.
    """
    chances = _chances(series)
    taken: list[NDArray[np.float32]] = []
    numbers: list[int] = []
    for _ in range(_TRIES * config.places):
        number = int(rng.choice(len(series), p=chances))
        crops = _crops(series[number], config.crops, rng)
        if crops is not None:
            taken.append(crops)
            numbers.append(number)
        if len(taken) == config.places:
            break
    else:
        raise TrainingError(
            f"{len(series)} series: {len(taken)} of {config.places} places with {config.crops} crops known "
            "on two dates. Give series with less nodata, or lower places."
        )
    crops = np.stack(taken)
    if relit:
        _relight(crops, config, rng)
        _lose_infrared(crops, config, rng)
    return Sights(crops, np.array(numbers))


def _crops(series: Series, count: int, rng: np.random.Generator) -> NDArray[np.float32] | None:
    """Draw the same crops of two dates: (2, count, 64, 64, 4); None if too few have data."""
    first = int(rng.integers(len(series.pixels)))
    second = (first + int(rng.integers(1, len(series.pixels)))) % len(series.pixels)
    found: list[NDArray[np.float32]] = []
    for _ in range(_TRIES * count):
        y, x = (int(rng.integers(room + 1)) for room in _room(series))
        part = series.pixels[[first, second], y : y + PATCH_PX, x : x + PATCH_PX]
        scaled = to_scaled(part, series.units, series.nodata)
        if (~np.isnan(scaled).all(-1)).mean((1, 2)).min() >= LEAST_KNOWN:
            found.append(scaled)
        if len(found) == count:
            return placed_bands(turned_alike(np.stack(found, 1), int(rng.integers(8))), series.bands)
    return None


def _relight(crops: NDArray[np.float32], config: RepresentationConfig, rng: np.random.Generator) -> None:
    """Change the light of some dates in place: all crops of a date alike."""
    places, dates, count = crops.shape[:3]
    for place, date in zip(*np.nonzero(rng.random((places, dates)) < config.relight), strict=True):
        lit = crops[place, date].reshape(1, count * PATCH_PX, PATCH_PX, len(BANDS))
        change_light(lit, _LIGHT, rng)
        crops[place, date] = lit.reshape(crops.shape[2:]).clip(-1, 2.2)


def _lose_infrared(
    crops: NDArray[np.float32], config: RepresentationConfig, rng: np.random.Generator
) -> None:
    """Remove the near infrared of some places that have all colours, on both dates: users have RGB only."""
    for place in np.flatnonzero(rng.random(len(crops)) < config.band_loss):
        if not np.isnan(crops[place, ..., :COLOURS]).all((0, 1, 2, 3)).any():
            crops[place, ..., COLOURS:] = np.nan
