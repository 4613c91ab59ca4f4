"""The shipped classifier on the validation images that it was not trained on."""

from __future__ import annotations

import json

import pytest
from realdata import real_data
from typer.testing import CliRunner

from retrieval.cli import app

FLOOR = 0.92
"""Accuracy, two hundredths below the measured one."""


@pytest.mark.data
def test_the_shipped_classifier_keeps_its_accuracy():
    labelled = real_data("eurosat") / "valid.csv"
    evaluate = ["classify", "evaluate", str(labelled), "--model", "eurosat-rgb", "--json"]
    done = CliRunner().invoke(app, evaluate, prog_name="retrieve")
    assert done.exit_code == 0, done.output
    page = json.loads(done.stdout)
    assert page["accuracy"]["n"] == 1500
    assert page["accuracy"]["value"] >= FLOOR and page["macro_f1"]["value"] >= FLOOR
    assert page["ece"]["value"] <= 0.05
