"""Calibration by the benchmarks: which places are held out."""

import sys
from pathlib import Path

import numpy as np

from retrieval.evaluation.calibration_fit import fit_calibration
from retrieval.types import RankedCandidates

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import calibrate  # noqa: E402
import tables  # noqa: E402


def test_calibration_holds_out_a_group_and_its_variants(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("cities", "cities, RGB only", "venice", "flood"):
        n = 60
        odds = rng.normal(0, 3, n)
        right = rng.random(n) < 1 / (1 + np.exp(-odds))
        zero = np.zeros((n, 1), np.int64)
        found = RankedCandidates(
            zero, zero, zero, *(np.zeros((n, 1), np.float32),) * 2, *np.full((2, n, 1), 0.5), odds[:, None]
        )
        answers = np.stack([np.where(right, 0, 8), np.zeros(n), np.zeros(n)], 1).astype(np.int64)
        fields = {f: getattr(found, f) for f in RankedCandidates.__dataclass_fields__}
        np.savez(tmp_path / f"evidence-{calibrate.slug(name)}-enc.npz", **fields, answers=answers)
    groups = calibrate.measured(tmp_path, "enc")
    assert sorted(groups) == ["cities", "cities-RGB-only", "flood", "venice"]
    stated = calibrate.left_out(groups)
    # Without its twin the fit to the others is the same for both.
    others = fit_calibration(*calibrate.joined({k: groups[k] for k in ("flood", "venice")}))
    for name in ("cities", "cities-RGB-only"):
        np.testing.assert_allclose(stated[name], others.probability(groups[name].features))
    summary, (_, right) = calibrate.summary(groups, stated), calibrate.joined(groups)
    probability = np.concatenate([*stated.values()])
    error = summary["groups"]["venice"]["error"]
    assert 0 < error["low"] <= error["value"] <= error["high"] < 0.5
    assert sum(b["answers"] for b in summary["reliability"]) == len(right) == 240
    assert summary["error"] < 0.15 and summary["coverage"][0]["covers"] == (probability >= 0.5).mean()
    calibrate.draw(probability, right, "made up", tmp_path / "c.svg")
    assert 10_000 < (tmp_path / "c.svg").stat().st_size < 300_000
    text = tables.calibration_table({"encoder": "enc"} | summary)
    assert "images/calibration-enc.svg" in text and "| venice | 60 |" in text


def test_several_dates_are_held_out_with_the_group_of_their_places(tmp_path):
    found = {"venice-with-3-dates": "venice", "belgium-with-12-dates": "fields-and-forest"}
    found |= {"oscd-with-2-dates": "cities", "cities-near-infrared-only": "cities", "my-own": "my-own"}
    assert calibrate.families(found) == found
    one = np.zeros((1, 1), np.int64)
    fields = dict.fromkeys(RankedCandidates.__dataclass_fields__, one)
    features = np.array([[4.0, 3.0, 0.5, 0.25]])
    answers = np.zeros((1, 3), np.int64)
    file = tmp_path / "evidence-venice-with-3-dates-enc.npz"
    np.savez(file, **fields, answers=answers, features=features)
    measured = calibrate.measured(tmp_path, "enc")["venice-with-3-dates"]
    assert measured.features.tolist() == features.tolist() and measured.right.all()
