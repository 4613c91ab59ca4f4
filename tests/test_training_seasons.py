"""Seasons that the data lack: ground cover in clusters, recoloured, and under snow."""

import numpy as np
import pytest

from retrieval.config import CloudConfig
from retrieval.training.cloud_batches import by_bands, draw_pairs
from retrieval.training.seasons import ground_cover, in_another_season, recoloured, snowed
from tfrecords.schema import BANDS, Series

EDGE = 4
"""Pixels next to a border that belong to both sides."""


def halves(bands=4, low=-0.6, high=-0.2, seed=0, count=8):
    """Two kinds of ground with texture, the border in the middle column."""
    rng = np.random.default_rng(seed)
    crops = np.where(np.arange(64)[:, None] < 32, low, high) + np.zeros((count, 64, 64, bands))
    return (crops + rng.normal(0, 0.04, crops.shape)).astype(np.float32)


def sides(crops):
    """The pixels of each side, away from the border: two of (n, m, b)."""
    return [
        c.reshape(len(crops), -1, crops.shape[-1])
        for c in (crops[:, :, : 32 - EDGE], crops[:, :, 32 + EDGE :])
    ]


@pytest.mark.parametrize("bands", [4, 1])
def test_clusters_are_the_kinds_of_ground(bands):
    left, right = sides(ground_cover(halves(bands), 2, np.random.default_rng(1))[..., None])
    assert (left == left[:, :1]).all() and (right == right[:, :1]).all()
    assert (left[:, 0] != right[:, 0]).all()


@pytest.mark.parametrize("change", [recoloured, snowed, in_another_season])
def test_a_change_is_seeded_keeps_nodata_and_its_input(change):
    crops = halves()
    crops[0, :9, :9] = np.nan
    crops[1, ..., 3] = np.nan  # a band without data
    crops[2] = np.nan
    before = crops.copy()
    changed = change(crops, np.random.default_rng(5))
    np.testing.assert_array_equal(crops, before)
    np.testing.assert_array_equal(np.isnan(changed), np.isnan(crops))
    assert changed.dtype == np.float32 and np.nanmax(np.abs(changed)) < 10
    np.testing.assert_array_equal(changed, change(crops, np.random.default_rng(5)))
    assert not np.array_equal(changed, change(crops, np.random.default_rng(6)), equal_nan=True)


def test_kinds_of_ground_are_recoloured_independently():
    """The step at the border gets any size and sign, and so does the texture of each side."""
    crops = halves(count=60)
    step, sign = [], []
    for number in range(3):
        changed = recoloured(crops, np.random.default_rng(number))
        left, right = (side.mean(1) for side in sides(changed))
        step.append(right - left)
        sign.append([_slope(a, b) for a, b in zip(sides(crops), sides(changed), strict=True)])
    step, (left, right) = np.concatenate(step), np.concatenate(sign, 1)
    assert 0.1 < (step < 0).mean() < 0.5 and step.std() > 0.2
    for side in (left, right):
        assert 0.1 < (side < 0).mean() < 0.5
    assert abs(np.corrcoef(left.ravel(), right.ravel())[0, 1]) < 0.3


def _slope(before, after):
    """Contrast of the texture after a change, by that before: (n, b)."""
    before, after = before - before.mean(1, keepdims=True), after - after.mean(1, keepdims=True)
    return (before * after).sum(1) / (before**2).sum(1)


def test_snow_is_bright_and_flat_and_forest_dark():
    crops = halves(count=150)
    changed = snowed(crops, np.random.default_rng(2))
    level = np.stack([side.mean((1, 2)) for side in sides(changed)])
    spread = np.stack([np.median(side.std(1), 1) for side in sides(changed)])
    open_ground, forest = level > 0.5, level < -0.4
    assert open_ground.mean() > 0.2 and forest.mean() > 0.2
    assert np.median(spread[open_ground]) < 0.6 * np.median(spread[forest])
    # Either side of the border may be the open one.
    assert min((open_ground[0] & forest[1]).mean(), (open_ground[1] & forest[0]).mean()) > 0.03


def test_only_the_patches_of_a_batch_change_their_season():
    config = CloudConfig(batch=8, regions_per_place=2, min_places=2)
    rng = np.random.default_rng(0)
    series = [
        Series(
            place=str(number),
            pixels=rng.integers(300, 4000, (2, 160, 160, 4)).astype(np.uint16),
            units="dn",
            bands=BANDS,
            nodata=0.0,
            dates=("2020-01-01", "2020-07-01"),
            overlap_group=number,
        )
        for number in range(3)
    ]
    sets = by_bands(series, config)
    plain, changed = (
        draw_pairs(sets, config, np.random.default_rng(3), season_share=share) for share in (0.0, 1.0)
    )
    assert not np.array_equal(plain[0], changed[0], equal_nan=True)
    for a, b in zip(plain[1:], changed[1:], strict=True):
        np.testing.assert_array_equal(a, b)
