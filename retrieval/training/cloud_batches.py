"""Batches for the cloud network and the local descriptors (`retrieval.training.cloud_networks`).

The cloud network gets crops with pasted clouds of known opacity. The local descriptors get patches of one
date, most of them with hidden clouds, and regions of another date that contain them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX, AugmentConfig, CloudConfig
from retrieval.errors import TrainingError
from retrieval.models.cloud_mask import CloudMask
from retrieval.models.local_descriptors import STEP_PX
from retrieval.training.augment import add_noise, blurred, change_light, in_bytes, turned_alike
from retrieval.training.seasons import in_another_season
from retrieval.training.weather import add_haze, under_clouds
from tfrecords.schema import Series, to_scaled

CLOUDY = 0.12
"""Smallest opacity of cloud, averaged over 2 x 2 pixels."""
LEAST_KNOWN = 0.95
"""Smallest share of a crop with data."""

Draws = dict[tuple[str, ...], list[Series]]
"""Series by their bands."""


def by_bands(series: Sequence[Series], config: CloudConfig) -> Draws:
    """Return the series that are large enough, by their bands, for bands with enough places."""
    sets: Draws = {}
    for record in series:
        if min(record.pixels.shape[1:3]) >= config.region_px and len(record.pixels) > 1:
            sets.setdefault(record.bands, []).append(record)
    places = {bands: len({record.overlap_group for record in of_bands}) for bands, of_bands in sets.items()}
    chosen = {b: of_bands for b, of_bands in sorted(sets.items()) if places[b] >= config.min_places}
    if not chosen:
        raise TrainingError(
            f"{len(series)} series, at most {max(places.values(), default=0)} places with the same bands, "
            f"two dates and {config.region_px} px; expected {config.min_places}"
        )
    return chosen


def _some_bands(count: int, rng: np.random.Generator) -> list[int]:
    """Draw all bands, the first three, or a single one."""
    draw = rng.random()
    if count >= 3 and draw >= 0.5:
        return [0, 1, 2] if count > 3 and draw < 0.75 else [int(rng.integers(count))]
    return list(range(count))


def _set_of(sets: Draws, rng: np.random.Generator) -> list[Series]:
    """Draw the series of one set of bands; colour with near infrared twice as often."""
    weight = np.array([2.0 if {"B02", "B08"} <= set(bands) else 1.0 for bands in sets])
    return list(sets.values())[int(rng.choice(len(sets), p=weight / weight.sum()))]


def draw_clouds(
    sets: Draws, config: CloudConfig, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Draw a batch of crops, some under clouds.

    Returns:
        crops (n, 64, 64, b) scaled, and (n, 32, 32) 1 for cloud, else 0.
    """
    series, n = _set_of(sets, rng), config.cloud_batch
    columns = _some_bands(len(series[0].bands), rng)
    drawn: list[NDArray[Any]] = []
    while len(drawn) < n:
        record = series[int(rng.integers(len(series)))]
        y, x = (int(rng.integers(size - PATCH_PX + 1)) for size in record.pixels.shape[1:3])
        crop = record.pixels[int(rng.integers(len(record.pixels))), y : y + PATCH_PX, x : x + PATCH_PX]
        scaled = to_scaled(crop, record.units, record.nodata)[..., columns]
        if (~np.isnan(scaled).all(-1)).mean() >= LEAST_KNOWN:
            drawn.append(turned_alike(scaled, int(rng.integers(8))))
    crops, opacity = np.stack(drawn).astype(np.float32), np.zeros((n, PATCH_PX, PATCH_PX), np.float32)
    rows = np.flatnonzero(rng.random(n) < 0.5)
    lit = crops[rows]
    change_light(lit, AugmentConfig(), rng)
    crops[rows] = lit
    rows = np.flatnonzero(rng.random(n) < 0.65)
    clouded = under_clouds(crops[rows], rng.uniform(0.03, 0.85, len(rows)), rng)
    crops[rows], opacity[rows] = clouded.pixels, clouded.cloud
    _change(crops, ((0.15, lambda p: add_haze(p, rng)),), rng)
    add_noise(crops, 15.0, rng)
    _change(crops, ((0.2, lambda p: in_bytes(p, rng)),), rng)
    half = opacity.reshape(n, PATCH_PX // 2, 2, PATCH_PX // 2, 2).mean((2, 4))
    return np.clip(crops, -1, 1), (half > CLOUDY).astype(np.float32)


def _change(
    crops: NDArray[np.float32],
    changes: Sequence[tuple[float, Callable[[NDArray[Any]], NDArray[Any]]]],
    rng: np.random.Generator,
) -> None:
    """Apply each change to a share of the crops, in place."""
    for share, change in changes:
        rows = np.flatnonzero(rng.random(len(crops)) < share)
        if len(rows):
            crops[rows] = change(crops[rows])


def draw_pairs(
    sets: Draws,
    config: CloudConfig,
    rng: np.random.Generator,
    finder: CloudMask | None = None,
    season_share: float = 0.0,
) -> tuple[NDArray[Any], ...]:
    """Draw a batch of patches, most of them with hidden clouds, and of regions of other dates.

    Args:
        sets: series to draw from.
        config: the recipe.
        rng: random generator.
        finder: the cloud mask that hides clouds; patches then lie within a pixel of the search grid. None
            hides roughly the pasted clouds, and patches lie anywhere.
        season_share: share of patches in a season that the data lack.

    Returns:
        patches (n, 64, 64, b) and regions (n, r, r, b), scaled. offset (n, 2): x and y of each patch in its
        region. foreign (n, n): false where region j of another pair may show the ground of patch i.
    """
    series, n, side = _set_of(sets, rng), config.batch, config.region_px
    columns = _some_bands(len(series[0].bands), rng)
    area = np.sqrt([float(np.prod(record.pixels.shape[1:3])) for record in series])
    patches: list[NDArray[Any]] = []
    regions: list[NDArray[Any]] = []
    offsets: list[NDArray[Any]] = []
    where: list[tuple[int, int, int, int]] = []
    while len(patches) < n:
        number = int(rng.choice(len(series), p=area / area.sum()))
        record = series[number]
        dates = len(record.pixels)
        first = int(rng.integers(dates))
        for _ in range(config.regions_per_place):
            second = (first + int(rng.integers(1, dates))) % dates
            y, x = (int(rng.integers(size - side + 1)) for size in record.pixels.shape[1:3])
            both = record.pixels[[first, second], y : y + side, x : x + side]
            scaled = to_scaled(both, record.units, record.nodata)[..., columns]
            if (~np.isnan(scaled).all(-1)).mean((1, 2)).min() < LEAST_KNOWN or len(patches) == n:
                continue
            turned = turned_alike(scaled, int(rng.integers(8)))
            dx, dy = offset = rng.integers(0, side - PATCH_PX + 1, 2)
            if finder is not None:
                dx, dy = offset = _beside_grid(offset, rng)
            regions.append(turned[0])
            patches.append(turned[1][dy : dy + PATCH_PX, dx : dx + PATCH_PX])
            offsets.append(offset)
            where.append((number, record.overlap_group, x, y))
    drawn = np.stack(patches).astype(np.float32)
    if season_share:
        _change(drawn, ((season_share, lambda p: in_another_season(p, rng)),), rng)
    queries = _weathered(drawn, config, rng, finder)
    stored = np.clip(np.stack(regions).astype(np.float32), -1, 1)
    return queries, stored, np.array(offsets, np.float32), foreign_regions(where, side)


def foreign_regions(where: Sequence[tuple[int, int, int, int]], side: int) -> NDArray[np.bool_]:
    """Return (n, n) whether two regions share no ground; true on the diagonal."""
    number, group, x, y = (np.array(v) for v in zip(*where, strict=True))
    near = (np.abs(x[:, None] - x) < side) & (np.abs(y[:, None] - y) < side)
    shared = np.where(number[:, None] == number, near, group[:, None] == group)
    np.fill_diagonal(shared, False)
    return ~shared


def _beside_grid(offset: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Move offsets that lie half way between grid places of `STEP_PX` a pixel towards one of them."""
    between = offset % STEP_PX == STEP_PX // 2
    return np.where(between, offset + rng.choice([-1, 1], offset.shape), offset)


def _weathered(
    patches: NDArray[np.float32],
    config: CloudConfig,
    rng: np.random.Generator,
    finder: CloudMask | None,
) -> NDArray[np.float32]:
    """Change the light, add haze and blur to some, and clouds to most, hidden as in `draw_pairs`."""
    change_light(patches, AugmentConfig(), rng)
    _change(patches, ((0.2, lambda p: add_haze(p, rng)), (0.1, blurred)), rng)
    _change(patches, ((config.cloud_share, lambda p: _clouded(p, rng, hide=finder is None)),), rng)
    add_noise(patches, 15.0, rng)
    _change(patches, ((0.15, lambda p: in_bytes(p, rng)),), rng)
    patches = np.clip(patches, -1, 1)
    return patches if finder is None else np.where(finder(patches)[..., None], np.float32(np.nan), patches)


def _clouded(patches: NDArray[np.float32], rng: np.random.Generator, hide: bool) -> NDArray[np.float32]:
    """Paste clouds over patches; `hide` sets roughly the clouds to NaN."""
    clouded = under_clouds(patches, rng.uniform(0.2, 0.75, len(patches)), rng)
    if not hide:
        return clouded.pixels
    # No mask is perfect: some hide too little, some too much, a few nothing.
    hidden = clouded.cloud > rng.uniform(0.04, 0.35, (len(patches), 1, 1))
    hidden &= rng.random((len(patches), 1, 1)) < 0.92
    return np.where(hidden[..., None], np.float32(np.nan), clouded.pixels)
