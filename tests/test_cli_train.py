"""`retrieve train` of the small networks and `retrieve calibrate`, through the command line."""

import json

import numpy as np
import pytest
from engine import SMALL, digital, projection, texture
from typer.testing import CliRunner

from retrieval.cli import app
from retrieval.evaluation.submission import write_submission
from retrieval.models.encoder import save_encoder
from retrieval.models.networks import tensor_model
from tfrecords.schema import BANDS, Series
from tfrecords.write import write_series

TINY = {
    "cloud": {"cloud_width": 2, "cloud_steps": 2, "cloud_batch": 4, "min_places": 2},
    "local": {"dim": 4, "steps": 2, "found_steps": 1, "batch": 4, "regions_per_place": 2, "min_places": 2},
    "verifier": {
        "width": 4,
        "rounds": 1,
        "queries": 12,
        "confusions": 4,
        "min_places": 2,
        "steps": 2,
        "batch": 4,
        "candidates": 3,
    },
    "representation": {
        "shared_dim": 16,
        "exclusive_dim": 4,
        "places": 2,
        "crops": 6,
        "steps": 2,
    },
}


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], prog_name="retrieve")


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """Three places of generated ground on two dates."""
    folder = tmp_path_factory.mktemp("train") / "series"
    grounds = [0.5 * texture(128, 136, seed=number) - 0.4 for number in range(3)]
    write_series(
        (
            Series(
                np.stack([digital(g), digital(0.8 * g)]),
                "dn",
                BANDS,
                0.0,
                ("2020-01-01", "2020-07-01"),
                f"place{number}",
                overlap_group=number,
            )
            for number, g in enumerate(grounds)
        ),
        folder,
    )
    return folder


@pytest.mark.parametrize("model", list(TINY))
def test_every_network_trains_from_the_command_line(series, tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.json").write_text(json.dumps(TINY[model]))
    done = run("train", series, "--model", model, "--recipe", "tiny.json", "--quiet", "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["out"] == f"{model}.keras" and (tmp_path / f"{model}.keras").exists()
    assert all(np.isfinite(value) for name, value in result.items() if name != "out")
    done = run("train", series, "--model", model, "--recipe", "tiny.json")
    assert done.exit_code == 1 and "exists and is kept" in done.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", "verifier", "--loss", "infonce"], "--loss is a flag of --model encoder"),
        (["--cloud-network", "c.keras"], "--cloud-network is a flag of --model local"),
        (["--model", "cloud", "--validation", "v"], "--validation is a flag of --model encoder"),
    ],
)
def test_flags_of_another_model_are_refused(arguments, message):
    done = run("train", "series", *arguments)
    assert done.exit_code == 2 and message in " ".join(done.stderr.split())


def test_a_calibrated_index_has_confidence_and_an_uncalibrated_one_warns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_encoder(tensor_model(projection(SMALL.dim), SMALL), tmp_path / "custom.keras")
    images = np.stack([digital(texture(160, 160, seed=s)) for s in range(2)])
    np.save("images.npy", images)
    xy = [(4 * i, 90 - 4 * i) for i in range(20)]
    elsewhere = digital(texture(160, 160, seed=9))
    grounds = (images[0], images[1], elsewhere)
    np.save("patches.npy", np.stack([g[y : y + 64, x : x + 64] for g in grounds for x, y in xy]))
    at = np.array(xy * 3)
    write_submission(
        "answers.csv", np.arange(60), np.r_[np.repeat([0, 1], 20), np.arange(20) % 2], at[:, 0], at[:, 1]
    )
    assert run("index", "images.npy", "--encoder", "custom.keras", "--quiet").exit_code == 0
    done = run("query", "patches.npy")
    assert done.exit_code == 0 and "confidence not calibrated" in done.stdout
    assert "warning" in done.stderr and "retrieve calibrate PATCHES ANSWERS --index index" in done.stderr
    done = run("query", "patches.npy", "--out", "b.csv", "--min-confidence", 0.5)
    assert done.exit_code == 1 and "needs a calibration" in done.stderr
    done = run("calibrate", "patches.npy", "answers.csv", "--out", "custom.calibration.json")
    assert done.exit_code == 0, done.output
    assert "60 answers" in done.stdout and (tmp_path / "custom.calibration.json").exists()
    done = run("query", "patches.npy", "--out", "c.csv", "--json", "--min-confidence", 0.5)
    assert done.exit_code == 0 and "warning" not in done.stderr
    assert 0.4 < json.loads(done.stdout)["mean_confidence"] < 0.9
