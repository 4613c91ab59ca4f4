"""No change of the code changes an answer, unless its commit refreezes them and says why."""

import json

import pytest
from frozen import CITIES, GOLDEN, in_fresh_process, machine
from realdata import real_data

TOLERANCE = 1e-6
"""Largest difference of a number in a table, on the machine that froze them."""
ELSEWHERE = 2e-3
"""The same on another processor or with other libraries, where sums are rounded in another order."""


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN.read_text())


def same_machine(golden):
    return golden["machine"] == machine()


def compare(got, expected, tolerance, where=""):
    """Compare nested plain values: numbers within a tolerance, everything else exactly."""
    if isinstance(expected, dict):
        assert sorted(got) == sorted(expected), where
        for name in expected:
            compare(got[name], expected[name], tolerance, f"{where}/{name}")
    elif isinstance(expected, list):
        assert len(got) == len(expected), where
        for number, pair in enumerate(zip(got, expected, strict=True)):
            compare(*pair, tolerance, f"{where}/{number}")
    elif isinstance(expected, float) and expected == expected:
        assert got == pytest.approx(expected, abs=tolerance), where
    else:
        assert got == expected or (got != got and expected != expected), where


def compare_all(got, expected, exact):
    """Compare frozen values; off the machine that froze them only what does not hang on rounding."""
    if not exact:
        for side in (got, expected):
            for name in [name for name in side if name.startswith("index")]:
                side[name]["files"].pop("vectors.faiss")
                side[name]["manifest"]["extra"].pop("recall", None)
            for name in ("challenge", "chip", "masked", "cloudy", "later"):
                first = side.get(name) and side[name]["details"]
                side.pop(name, None)
                if first:
                    side[name] = {k: first[k][:1] for k in ("image_id", "x", "y", "confidence")}
    compare(got, expected, TOLERANCE if exact else ELSEWHERE)


def test_answers_on_generated_ground_are_the_frozen_ones(golden):
    compare_all(json.loads(in_fresh_process("generated")), golden["generated"], same_machine(golden))


@pytest.mark.data
def test_answers_on_real_cities_are_the_frozen_ones(golden):
    real_data(*CITIES)
    compare_all(json.loads(in_fresh_process("real")), golden["real"], same_machine(golden))
