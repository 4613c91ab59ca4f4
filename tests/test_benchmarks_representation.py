"""The probes of `benchmarks/representation.py` find what is in a code, and nothing where nothing is."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import representation
    finally:
        sys.path.remove(str(BENCHMARKS))
    return representation


def test_recall_counts_the_crops_whose_nearest_is_their_own_ground(script, rng):
    codes = rng.normal(size=(20, 4))
    assert script.recall(codes, codes + 1e-3).mean() == 1
    swapped = codes.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    assert script.recall(codes, swapped).mean() == pytest.approx(18 / 20)


def test_regressions_find_a_date_and_a_mean_and_nothing_in_noise(script, rng):
    noise = rng.normal(size=(2, 2, 150, 6))  # half, date, crop, code
    dated = noise.copy()
    dated[:, 1, :, 2] += 6
    assert script.date_accuracy(list(dated), script.ridge).mean() >= 0.95
    assert 0.3 <= script.date_accuracy(list(noise), script.ridge).mean() <= 0.7
    codes = rng.normal(size=(2, 300, 6))
    means = codes[..., :2] * [1, -2] + 0.1 * rng.normal(size=(2, 300, 2)) + 5
    assert script.radiometry(list(zip(codes, means, strict=True)), script.ridge).mean() >= 0.9
    noise_means = rng.normal(size=(2, 300, 2))
    assert script.radiometry(list(zip(codes, noise_means, strict=True)), script.ridge).mean() <= 0.1


def test_the_adversary_finds_what_no_line_parts(script, rng):
    codes = rng.normal(size=(600, 4))
    classes = (codes[:, 0] * codes[:, 1] > 0).astype(float)
    learn, test = slice(0, 400), slice(400, 600)
    right = {
        name: (
            (getattr(script, name)(codes[learn], classes[learn], codes[test], True) > 0.5) == classes[test]
        ).mean()
        for name in ("ridge", "adversary")
    }
    assert right["ridge"] <= 0.65 and right["adversary"] >= 0.85


def test_a_figure_weighs_pairs_alike_and_has_an_interval(script, rng):
    credits = [np.ones(10), np.zeros(90)]
    blocks = [np.arange(10) // 2, 100 + np.arange(90) // 2]
    found = script.figure(credits, blocks)
    assert found["value"] == pytest.approx(0.5) and found["n"] == 100
    assert 0 <= found["low"] < 0.5 < found["high"] <= 1
    same = script.figure([np.full(40, 0.3)], [np.arange(40) // 4])
    assert [same[end] for end in ("low", "value", "high")] == pytest.approx([0.3] * 3)
