"""Augmentation of images: what it may change, what it must keep, and that a seed repeats it."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from retrieval.tasks.augmentation import HIDDEN_SHARE, Warp, partly_hidden, relit, strong, warped, weak

STILL = Warp(0.0, 0.0, 0.0, 0.0)


def seed(number=3):
    return tf.constant([number, 7], tf.int32)


@pytest.fixture
def images(rng):
    return rng.normal(size=(64, 16, 16, 3)).astype(np.float32)


def orientations(image):
    """The eight flips and quarter turns of a square image, by name."""
    return [np.rot90(view, turn) for view in (image, image[::-1]) for turn in range(4)]


def test_without_a_warp_images_are_flipped_and_turned_exactly(images):
    out = np.asarray(warped(images, seed(), STILL))
    found = set()
    for image, view in zip(images, out, strict=True):
        errors = [np.abs(view - candidate).max() for candidate in orientations(image)]
        assert min(errors) < 1e-4
        found.add(int(np.argmin(errors)))
    assert found == set(range(8))


def test_images_that_are_not_square_keep_their_axes(rng):
    images = rng.normal(size=(32, 16, 20, 4)).astype(np.float32)
    out = np.asarray(warped(images, seed(), STILL))
    found = set()
    for image, view in zip(images, out, strict=True):
        flips = [image, image[::-1], image[:, ::-1], image[::-1, ::-1]]
        errors = [np.abs(view - candidate).max() for candidate in flips]
        assert min(errors) < 1e-4
        found.add(int(np.argmin(errors)))
    assert found == set(range(4))


def test_a_warp_stays_within_its_limits():
    y, x = np.mgrid[:33, :33].astype(np.float32)
    ramp = np.repeat(np.stack([x, y], -1)[None] - 16, 200, 0)
    out = np.asarray(warped(ramp, seed(), Warp(0.2, 0.0, 0.0, 0.0)))
    inner = np.abs(out[:, 12:21, 12:21]).max((1, 2, 3)) / 4  # 4 px from the centre, times the scale
    assert np.exp(-0.2) - 1e-3 <= inner.min() < 0.9 and 1.1 < inner.max() <= np.exp(0.2) + 1e-3
    shifted = np.asarray(warped(ramp, seed(), Warp(0.0, 0.0, 0.0, 0.1)))[:, 16, 16]
    assert 2.5 < np.abs(shifted).max() <= 3.3 + 1e-3


def test_a_seed_repeats_every_draw_and_another_differs(images):
    for change in (weak, lambda pixels, s: strong(pixels, s, 1.0)):
        first = np.asarray(change(images, seed()))
        np.testing.assert_array_equal(first, np.asarray(change(images, seed())))
        assert np.abs(first - np.asarray(change(images, seed(4)))).mean() > 0.1


def test_light_changes_with_its_strength_and_keeps_patterns(images):
    np.testing.assert_allclose(np.asarray(relit(images, seed(), 0.0)), images, atol=1e-5)
    out = np.asarray(relit(images, seed(), 1.0))
    assert 0.1 < np.abs(out.mean((1, 2)) - images.mean((1, 2))).mean() < 0.6
    grey_in, grey_out = images.mean(-1).reshape(64, -1), out.mean(-1).reshape(64, -1)
    correlation = [np.corrcoef(a, b)[0, 1] for a, b in zip(grey_in, grey_out, strict=True)]
    assert min(correlation) > 0.9


def test_one_square_is_hidden(images):
    out = np.asarray(partly_hidden(images, seed()))
    for image, view in zip(images, out, strict=True):
        changed = (image != view).any(-1)
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        if not len(rows):
            continue
        assert changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert max(len(rows), len(columns)) <= HIDDEN_SHARE * 16 + 1
        np.testing.assert_allclose(
            view[changed], np.broadcast_to(image.mean((0, 1)), view[changed].shape), atol=1e-5
        )
    # A square of less than a pixel, one in eight, may hide nothing.
    assert (images != out).any((1, 2, 3)).mean() > 0.75
