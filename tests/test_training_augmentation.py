"""Augmentation of training crops: seeds, bounds, bands, clouds."""

from collections import Counter
from dataclasses import replace

import numpy as np
from trainable import NO_AUGMENTATION, fractal_crops

from retrieval.config import (
    AugmentConfig,
)
from retrieval.training.augment import augment_pairs, blurred, drop_bands, in_bytes, turned
from retrieval.training.weather import add_haze, paste_clouds


def test_augmentation_is_seeded_bounded_and_leaves_its_input():
    a, p = fractal_crops(), fractal_crops(seed=1)
    p[3, :, :9] = np.nan
    before = a.copy()
    first, second = (augment_pairs(a, p, AugmentConfig(), np.random.default_rng(5)) for _ in range(2))
    assert first.shape == (24, 64, 64, 4) and first.dtype == np.float32
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(a, before)
    assert np.nanmin(first) >= -1 and np.nanmax(first) <= 1
    assert not np.isnan(first).all((1, 2, 3)).any()


def test_no_augmentation_changes_nothing():
    a, p = fractal_crops(), fractal_crops(seed=1)
    out = augment_pairs(a, p, NO_AUGMENTATION, np.random.default_rng(0))
    np.testing.assert_allclose(out, np.concatenate([a, p]), atol=1e-5)


def test_both_crops_of_a_pair_are_rotated_alike_in_all_eight_ways():
    a = fractal_crops(64)
    out = augment_pairs(a, a, replace(NO_AUGMENTATION, flip_rotate=True), np.random.default_rng(0))
    np.testing.assert_allclose(out[:64], out[64:], atol=1e-5)
    ways = [np.rot90(m, k) for m in (a[0], a[0][:, ::-1]) for k in range(4)]
    got = turned(np.repeat(a[:1], 8, axis=0), np.arange(8))
    for way, one in zip(ways, got, strict=True):
        np.testing.assert_array_equal(way, one)


def dropped(config, n=400):
    crops = np.zeros((2 * n, 64, 64, 4), np.float32)
    drop_bands(crops, config, np.random.default_rng(0))
    return ~np.isnan(crops[:, 0, 0]).reshape(2, n, 4)


def test_bands_are_dropped_together_or_apart_and_never_all():
    kept = dropped(replace(NO_AUGMENTATION, bands=0.5))
    assert (kept[0] == kept[1]).all() and kept.any(-1).all()
    sets = Counter(map(tuple, kept[0].tolist()))
    for wanted in (
        (True,) * 4,
        (True, True, True, False),
        (False, False, False, True),
        (False, True, False, False),
    ):
        assert sets[wanted] > 0
    assert 0.4 < (~kept[0].all(-1)).mean() < 0.6
    kept = dropped(replace(NO_AUGMENTATION, cross_bands=1.0))
    assert (kept[0] != kept[1]).any(-1).mean() > 0.5 and kept.any(-1).all()


def test_a_crop_keeps_the_last_band_that_it_has():
    crops = np.zeros((40, 64, 64, 4), np.float32)
    crops[..., 1:] = np.nan
    drop_bands(crops, replace(NO_AUGMENTATION, bands=1.0), np.random.default_rng(0))
    assert not np.isnan(crops[..., 0]).any()


def test_clouds_cover_the_requested_share_and_are_seeded():
    crops = fractal_crops(20)
    cover = np.linspace(0, 0.9, 20)
    out, hidden = paste_clouds(crops, cover, np.random.default_rng(0))
    again, _ = paste_clouds(crops, cover, np.random.default_rng(0))
    np.testing.assert_array_equal(out, again)
    changed = (np.abs(out - crops) > 0.25).any(-1).mean((1, 2))
    assert changed[0] == 0 and hidden[0].max() == 0
    assert ((hidden >= 0.5).mean((1, 2)) > cover - 0.03).all()
    assert (changed[5:] > 0.6 * cover[5:]).all()
    assert out.max() <= 1 and out.min() >= -1 and 0 <= hidden.min() and hidden.max() <= 1
    assert (out < crops - 0.03).any()  # shadows


def test_clouds_haze_and_blur_keep_nodata():
    crops = fractal_crops(4)
    crops[:, 10:20, 10:20] = np.nan
    rng = np.random.default_rng(0)
    for out in (paste_clouds(crops, np.full(4, 0.5), rng)[0], add_haze(crops, rng), blurred(crops)):
        assert np.isnan(out[:, 10:20, 10:20]).all() and not np.isnan(out[:, 30:]).any()


def test_haze_and_blur_thin_contrast_and_bytes_have_few_levels():
    crops = fractal_crops(6)
    contrast = np.abs(np.diff(crops, axis=1)).mean()
    for out in (add_haze(crops, np.random.default_rng(0)), blurred(crops)):
        assert np.abs(np.diff(out, axis=1)).mean() < 0.95 * contrast
    out = in_bytes(crops, np.random.default_rng(0))
    levels = (out + 1) * 127.5
    assert len(np.unique(out[0])) <= 256 and np.abs(levels - np.rint(levels)).max() < 1e-3


def test_masked_clouds_become_unknown_pixels():
    a = fractal_crops(16)
    config = replace(NO_AUGMENTATION, clouds=1.0, cover=0.7, masked=1.0)
    out = augment_pairs(a, a, config, np.random.default_rng(0))
    assert np.isnan(out).any((1, 2, 3)).sum() == 16  # one of each pair
