"""The benchmark of change: which tiles it maps, and the thresholds that it compares."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("mercantile", reason="needs the extra `labels`")

from retrieval.tasks.change.training import ReadPlace

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import change


def place(shape, known):
    """Return a place of one band whose values number its pixels."""
    labels = np.where(known, np.uint8(0), np.uint8(255))
    values = np.arange(labels.size, dtype=np.float32).reshape(*shape, 1).repeat(3, -1)
    return ReadPlace(values, labels, labels, np.ones(shape, bool), ("B04",), ())


@pytest.mark.parametrize("shape", [(700, 300), (90, 600), (256, 256)])
def test_tiles_hold_each_labelled_pixel_once(shape, rng):
    known = np.zeros(shape, bool)
    known[:40, -30:] = True
    read = place(shape, known)
    seen_times = np.zeros(shape, int)
    for seen, inner, target in change.tiles_of(read):
        seen_times[target] += 1
        assert np.array_equal(read.inputs[seen][inner], read.inputs[target])
    assert (seen_times[known] == 1).all() and seen_times.max() == 1
    assert known.size <= 2 * 256 * 256 or (seen_times == 0).any()


def test_otsu_splits_where_the_classes_are_farthest_apart(rng):
    values = np.concatenate([rng.normal(0.2, 0.05, 3000), rng.normal(0.7, 0.05, 1000)])
    threshold = change.otsu_threshold(values)

    def between(at):
        low, high = values[values < at], values[values >= at]
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2

    best = max(between(at) for at in np.linspace(0.1, 0.8, 400))
    assert between(threshold) == pytest.approx(best, rel=0.01)


def test_the_threshold_of_the_largest_f1_is_found(rng):
    labels = (rng.random(4000) < 0.1).astype(np.uint8)
    probability = np.clip(0.3 * labels + 0.5 * rng.random(4000), 0, 1)

    def f1(at):
        found = probability >= at
        return 2 * (found & (labels == 1)).sum() / (found.sum() + labels.sum())

    assert f1(change.best_threshold(probability, labels)) == max(f1(at) for at in np.linspace(0.02, 0.98, 97))
