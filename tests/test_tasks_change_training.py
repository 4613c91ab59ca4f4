"""A network of change: trained on labelled places, then used by detect and evaluate."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("mercantile", reason="needs the extra `labels`")

from changeground import CLEAR, built, read, run, save, town

from retrieval.errors import ExamplesError, ModelError
from retrieval.tasks.change import detect, evaluate, train
from retrieval.tasks.change.learned import Learned, input_names
from retrieval.tasks.change.mapping import Options, align
from retrieval.tasks.change.pairs import open_pair
from retrieval.tasks.change.training import HELD_OUT, held_out_row, recipe_of
from retrieval.tasks.neighbourhood import indices_of
from retrieval.tasks.segment.model import load_segmenter
from tfrecords.errors import BandsError, OutputExistsError

SIDE = 160
FAST = Options(coregister=False, mask_clouds=False)
SMALL = recipe_of(
    {"width": 6, "stages": 2, "crop": 48, "steps": 60, "batch": 4, "warmup_steps": 10, "orientations": 1}
)


def write_place(folder, name, seed, squares, last_day=190):
    """Write two dates of a town, its labels, and return the labels."""
    scene = town(seed, SIDE)
    first = scene.observe(180, year=2017, sky=CLEAR, shift_xy_px=(0.0, 0.0)).dn
    last = scene.observe(last_day, year=2018, sky=CLEAR, shift_xy_px=(0.0, 0.0)).dn
    changed, truth = built(last, squares, seed)
    save(folder / "places" / name / "before.tif", first)
    save(folder / "places" / name / "after.tif", changed)
    save(folder / "labels" / f"{name}.tif", truth, nodata=255, bands=None)
    return truth


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two places, a place of other ground, and a model of the first two."""
    folder = tmp_path_factory.mktemp("change")
    squares = [(20, 20, 24), (90, 30, 30), (40, 90, 26), (100, 130, 20)]
    write_place(folder / "taught", "north", 1, squares)
    write_place(folder / "taught", "south", 2, [(x, y + 3, side) for x, y, side in squares])
    write_place(folder / "other", "east", 3, [(30, 100, 26), (110, 40, 24)])
    arguments = ("change", "train", folder / "taught/places", folder / "taught/labels")
    recipe = folder / "recipe.json"
    recipe.write_text(json.dumps(SMALL.to_dict()))
    options = ("--no-coregister", "--no-clouds", "--recipe", recipe, "--json")
    done = run(*arguments, "--out", folder / "model", *options)
    assert done.exit_code == 0, done.output
    return folder, json.loads(done.stdout)


def test_the_network_finds_change_on_other_ground(trained):
    folder, report = trained
    assert report["places"] == 2 and 0.02 < report["change_share"] < 0.2 and 0 < report["threshold"] < 1
    places = folder / "other/places", folder / "other/labels"
    figures = evaluate(*places, model=folder / "model", options=FAST).figures
    assert figures.threshold == report["threshold"]
    assert figures.pooled["f1"].value > 0.5


def test_detect_takes_the_model(trained, tmp_path):
    folder, report = trained
    dates = [folder / "other/places/east" / f"{date}.tif" for date in ("before", "after")]
    outputs = ("--out", tmp_path / "c.tif", "--probabilities", tmp_path / "p.tif", "--json")
    done = run("change", "detect", *dates, "--model", folder / "model", "--no-clouds", *outputs)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["threshold"] == report["threshold"]
    p = read(tmp_path / "p.tif")
    assert p.shape == (SIDE, SIDE) and 0 <= np.nanmin(p) and np.nanmax(p) <= 1
    raised = detect(*dates, tmp_path / "d.tif", model=folder / "model", threshold=0.999, options=FAST)
    assert raised.change_share <= json.loads(done.stdout)["change_share"]


def test_several_models_answer_with_their_mean(trained, tmp_path):
    folder, report = trained
    dates = [folder / "other/places/east" / f"{date}.tif" for date in ("before", "after")]
    model = load_segmenter(folder / "model")
    blurred = model.calibrated(3.0, 0.9)
    place = open_pair(*dates)
    with place.open() as opened:
        aligned = align(opened, place, FAST)
        alone, other, both = (
            np.concatenate([strip for _, strip, _ in Learned(*models).strips(aligned)])
            for models in ((model,), (blurred,), (model, blurred))
        )
    assert np.allclose(both, (alone + other) / 2, atol=1e-5) and not np.allclose(alone, other, atol=1e-2)
    assert Learned(model, blurred).threshold == pytest.approx((report["threshold"] + 0.9) / 2)
    twice = [word for _ in range(2) for word in ("--model", folder / "model")]
    done = run("change", "detect", *dates, *twice, "--no-clouds", "--out", tmp_path / "c.tif", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["threshold"] == pytest.approx(report["threshold"])


def test_a_model_states_its_inputs(trained):
    model = load_segmenter(trained[0] / "model")
    assert model.description.bands == input_names(("B04", "B03", "B02", "B08"))
    assert Learned(model).bands == ("B04", "B03", "B02", "B08")


def test_each_bad_input_gives_one_error(trained, tmp_path):
    folder, _ = trained
    taught = folder / "taught/places", folder / "taught/labels"
    with pytest.raises(OutputExistsError):
        train(*taught, folder / "model", SMALL, options=FAST)
    write_place(tmp_path, "calm", 4, [])
    with pytest.raises(ExamplesError):
        train(tmp_path / "places", tmp_path / "labels", tmp_path / "model", SMALL, options=FAST)
    assert not (tmp_path / "model").exists()
    dates = [folder / "other/places/east" / f"{date}.tif" for date in ("before", "after")]
    few = []
    for number, date in enumerate(dates):
        pixels = np.stack([read(date, 1), read(date, 2)], axis=-1)
        few.append(save(tmp_path / f"{number}.tif", pixels, bands=("B04", "B03")))
    with pytest.raises(BandsError, match="the model takes B04 B03 B02 B08"):
        detect(*few, tmp_path / "c.tif", model=folder / "model", options=FAST)
    model = load_segmenter(folder / "model")
    with pytest.raises(ModelError, match="retrieve change train"):
        Learned(type(model)(model.network, _renamed(model.description), "other"))
    red = replace(model.description, bands=input_names(("B04", "B03", "B02", "B11")))
    with pytest.raises(ModelError, match="Expected the same bands"):
        Learned(model, replace(model, description=red, name="red"))


def _renamed(description):
    return replace(description, bands=tuple(f"band {i}" for i in range(len(description.bands))))


def test_the_held_out_rows_hold_a_fifth_of_the_labels(rng):
    labels = np.full((200, 50), 255, np.uint8)
    labels[30:130] = rng.integers(0, 2, (100, 50))
    row = held_out_row(labels)
    assert (labels[row:] != 255).sum() / (labels != 255).sum() == pytest.approx(HELD_OUT, abs=0.02)
    assert held_out_row(labels[:20]) == 20


def test_trees_find_change_on_other_ground(trained, tmp_path):
    folder, _ = trained
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"trees": 15, "sample": 8000, "indices": True}))
    arguments = ("change", "train", folder / "taught/places", folder / "taught/labels")
    options = ("--no-coregister", "--no-clouds", "--method", "trees", "--recipe", recipe, "--json")
    done = run(*arguments, "--out", tmp_path / "model", *options)
    assert done.exit_code == 0, done.output
    page = json.loads(done.stdout)
    assert page["trees"] == 15 and page["places"] == 2 and page["miou"] is None
    model = load_segmenter(tmp_path / "model")
    assert page["threshold"] == model.description.threshold
    assert model.network.indices == indices_of(4, 2, 12)
    places, labels = folder / "other/places", folder / "other/labels"
    found = evaluate(places, labels, model=tmp_path / "model", options=FAST).figures
    assert found.pooled["f1"].value > 0.8 and found.threshold == page["threshold"]
    both = evaluate(places, labels, model=[tmp_path / "model", folder / "model"], options=FAST).figures
    assert both.pooled["f1"].value > 0.7
    refused = run(*arguments, "--out", tmp_path / "other", *options, "--steps", "5")
    assert refused.exit_code == 2 and "--steps" in refused.output
