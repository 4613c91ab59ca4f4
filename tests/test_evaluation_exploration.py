"""Numbers about images before a training: against slow restatements, and on images made for the purpose."""

from __future__ import annotations

import numpy as np
import pytest
from labelled import CLASSES, pictures

from retrieval.evaluation.exploration import (
    Split,
    block_means,
    explore,
    image_features,
    near_duplicates,
    principal_plane,
)

BANDS = ("B04", "B03", "B02")


def split(name, count, seed, labelled=True):
    pixels, labels = pictures(count, seed=seed)
    ids = tuple(map(str, range(count)))
    return Split(name, pixels, ids, labels if labelled else None)


def changed(original, pixels):
    return Split(original.name, pixels, original.ids, original.labels)


@pytest.fixture(scope="module")
def found():
    splits = [split("labelled", 30, 0), split("unlabelled", 60, 1, False), split("validation", 15, 2)]
    return explore(splits, CLASSES, BANDS, 255)


def test_counts_and_spectra_are_plain_means(found):
    labelled = found.splits[0]
    assert found.counts.tolist() == [[10, 10, 10], [0, 0, 0], [5, 5, 5]]
    assert found.spectra.shape == (6, 3)
    for row, group in enumerate(found.splits):
        np.testing.assert_allclose(found.spectra[row], group.pixels.reshape(-1, 3).mean(0))
    for row in range(3):
        of_class = labelled.pixels[labelled.labels == row]
        np.testing.assert_allclose(found.spectra[3 + row], of_class.reshape(-1, 3).mean(0))


def test_histograms_are_shares_that_agree_with_numpy(found):
    np.testing.assert_allclose(found.histograms.sum(-1), 1)
    values = np.clip(found.splits[1].pixels[..., 2].ravel(), found.bin_edges[0], found.bin_edges[-1])
    expected = np.histogram(values, found.bin_edges)[0] / values.size
    np.testing.assert_allclose(found.histograms[1, 2], expected)


def test_a_shift_of_light_is_measured(found):
    labelled = found.splits[0]
    assert all(abs(s.mean_difference).max() < 0.3 and s.distance.max() < 0.15 for s in found.shifts)
    dark = Split("unlabelled", labelled.pixels // 2, labelled.ids)
    shift = explore([labelled, dark], CLASSES, BANDS, 255).shifts[0]
    np.testing.assert_allclose(shift.spread_ratio, 0.5, atol=0.02)
    expected = (dark.pixels.mean((0, 1, 2)) - labelled.pixels.mean((0, 1, 2))) / labelled.pixels.std(
        (0, 1, 2)
    )
    np.testing.assert_allclose(shift.mean_difference, expected, rtol=1e-6)
    a, b = dark.pixels[..., 0].ravel(), labelled.pixels[..., 0].ravel()
    gap = max(abs((a <= v).mean() - (b <= v).mean()) for v in range(256))
    assert shift.distance[0] == pytest.approx(gap)


def test_copies_and_slightly_changed_images_are_near_duplicates(rng):
    first, second = split("labelled", 20, 0), split("validation", 10, 3)
    pixels = second.pixels.copy()
    pixels[2] = first.pixels[7]
    noisy = first.pixels[11].astype(int) + rng.integers(-4, 5, first.pixels[11].shape)
    pixels[5] = np.clip(noisy, 0, 255)
    inside = first.pixels.copy()
    inside[19] = inside[0]
    pairs = near_duplicates([changed(first, inside), changed(second, pixels)], 255, 10)
    assert [(d.splits, d.rows, d.is_copy) for d in pairs] == [
        ((0, 1), (7, 2), True),
        ((0, 1), (11, 5), False),
        ((0, 0), (0, 19), True),
    ]
    assert all(d.correlation >= 0.98 for d in pairs)
    assert len(near_duplicates([changed(first, inside)] * 3, 255, 4)) == 4


def test_flat_water_and_other_light_are_no_duplicates(rng):
    water = np.clip(60 + rng.normal(0, 2, (40, 32, 32, 3)), 0, 255).astype(np.uint8)
    assert near_duplicates([Split("labelled", water, tuple(map(str, range(40))))], 255, 10) == []
    same = split("labelled", 6, 0)
    bright = np.clip(same.pixels.astype(int) + 25, 0, 255).astype(np.uint8)
    assert near_duplicates([same, changed(same, bright)], 255, 10) == []


def test_duplicates_agree_with_a_slow_search():
    images = split("labelled", 40, 0)
    smooth = (images.pixels // 8 + 100).astype(np.uint8)  # many of a class become alike
    given = changed(images, np.concatenate([smooth[:20], images.pixels[20:]]))
    blocks = block_means(given.pixels)
    slow = set()
    for i in range(40):
        for j in range(i + 1, 40):
            a, b = (blocks[n] - blocks[n].mean(0) for n in (i, j))
            alike = (a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()) >= 0.98
            light = np.abs(blocks[i].mean(0) - blocks[j].mean(0)).max() <= 0.03 * 255
            if alike and light:
                slow.add((i, j))
    assert {d.rows for d in near_duplicates([given], 255, 10**6)} == slow


def test_block_means_are_means_of_blocks(rng):
    pixels = rng.integers(0, 9000, (2, 34, 17, 4)).astype(np.uint16)
    blocks = block_means(pixels).reshape(2, 8, 8, 4)
    np.testing.assert_allclose(blocks[1, 2, 3], pixels[1, 8:12, 6:8].mean((0, 1)))


def test_the_plane_holds_the_directions_of_largest_variance(rng):
    basis = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    features = rng.normal(size=(500, 6)) * np.array([9, 5, 1, 1, 1, 1]) @ basis
    points, explained = principal_plane([features[:300], features[300:]])
    assert [len(p) for p in points] == [300, 200]
    standard = (features - features.mean(0)) / features.std(0)
    singular = np.linalg.svd(standard, compute_uv=False) ** 2
    np.testing.assert_allclose(explained, singular[:2] / singular.sum())
    together = np.concatenate(points)
    np.testing.assert_allclose((together**2).sum(0), singular[:2])
    assert abs(np.corrcoef(together.T)[0, 1]) < 1e-9


def test_features_separate_the_classes(found):
    assert image_features(found.splits[0].pixels).shape == (30, 24)
    labels = found.splits[0].labels
    centres = np.array([found.points[0][labels == row].mean(0) for row in range(3)])
    nearest = np.linalg.norm(found.points[0][:, None] - centres, axis=-1).argmin(1)
    assert (nearest == labels).mean() > 0.9
