"""Figures of maps of change: against hand-made counts, and by place through the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("mercantile", reason="needs the extra `labels`")

from changeground import CLEAR, built, run, save, town
from realdata import real_data

from retrieval.errors import LabelsError
from retrieval.evaluation.change import measure_change, tally
from retrieval.tasks.change import evaluate
from tfrecords.errors import GridError, MissingInputError

SIDE = 128
FAST = ("--no-clouds", "--no-coregister")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Two places with labels, one without labels, labels without a place, and a place of one date."""
    folder = tmp_path_factory.mktemp("places")
    for seed, name in ((1, "north"), (2, "south/hill"), (3, "unlabelled")):
        scene = town(seed, SIDE)
        first = scene.observe(180, year=2017, sky=CLEAR, shift_xy_px=(0.0, 0.0)).dn
        middle = scene.observe(20, year=2018, sky=CLEAR, shift_xy_px=(0.0, 0.0)).dn
        last = scene.observe(190, year=2018, sky=CLEAR, shift_xy_px=(0.0, 0.0)).dn
        changed, truth = built(last, [(20, 30, 24), (80, 70, 20)], seed)
        for date, pixels in (("2017-06-29", first), ("2018-01-20", middle), ("2018-07-09", changed)):
            save(folder / "places" / name / f"{date}.tif", pixels)
        if name != "unlabelled":
            truth[:10] = 255
            save(folder / "labels" / f"{name}.tif", truth, nodata=255, bands=None)
    save(folder / "places" / "single" / "2018.tif", first)
    save(folder / "labels" / "single.tif", truth, nodata=255, bands=None)
    save(folder / "labels" / "nowhere.tif", truth, nodata=255, bands=None)
    return folder


def restated(values, labels):
    """Return F1, IoU, precision and recall, pixel by pixel."""
    both = map_only = labels_only = 0
    for value, label in zip(values.ravel().tolist(), labels.ravel().tolist(), strict=True):
        if label != 255:
            both += value == 1 and label == 1
            map_only += value == 1 and label == 0
            labels_only += value != 1 and label == 1
    return (
        2 * both / (2 * both + map_only + labels_only),
        both / (both + map_only + labels_only),
        both / (both + map_only),
        both / (both + labels_only),
    )


def test_figures_agree_with_a_slow_restatement(rng):
    maps = {name: rng.choice([0, 1, 255], shape) for name, shape in (("a", (300, 270)), ("b", (40, 600)))}
    labels = {name: rng.choice([0, 1, 255], m.shape, p=[0.6, 0.3, 0.1]) for name, m in maps.items()}
    maps, labels = ({k: v.astype(np.uint8) for k, v in part.items()} for part in (maps, labels))
    figures = measure_change({name: tally(maps[name], labels[name]) for name in maps}, 0.5)
    together = (np.concatenate([part[name].ravel() for name in maps]) for part in (maps, labels))
    for found, expected in ((figures.pooled, restated(*together)), (figures.places["b"], None)):
        expected = expected or restated(maps["b"], labels["b"])
        assert [found[name].value for name in ("f1", "iou", "precision", "recall")] == pytest.approx(expected)
        assert all(one.low <= one.value <= one.high for one in found.values())
    known = sum(int((mask != 255).sum()) for mask in labels.values())
    assert figures.pooled["f1"].n == known and figures.blocks == 2 * 2 + 3
    hidden = sum(int(((maps[n] == 255) & (labels[n] != 255)).sum()) for n in maps)
    assert figures.hidden_share == pytest.approx(hidden / known)


def test_hidden_change_counts_as_missed():
    labels = np.zeros((20, 20), np.uint8)
    labels[:10] = 1
    values = labels.copy()
    values[:5] = 255
    assert measure_change({"a": tally(values, labels)}, 0.5).pooled["recall"].value == 0.5


def test_a_figure_without_change_is_undefined_in_json():
    nothing = np.zeros((20, 20), np.uint8)
    page = measure_change({"a": tally(nothing, nothing)}, 0.5).to_dict()
    assert page["f1"] == {"value": None, "low": None, "high": None, "n": 400}
    json.dumps(page, allow_nan=False)


def test_interval_of_many_blocks_holds_the_share_that_made_them(rng):
    labels = np.zeros((2048, 2048), np.uint8)
    labels[:, ::2] = 1
    values = np.where(rng.random(labels.shape) < 0.8, labels, 0).astype(np.uint8)
    recall = measure_change({"a": tally(values, labels)}, 0.5).pooled["recall"]
    assert recall.low < 0.8 < recall.high and recall.high - recall.low < 0.01


def test_places_are_measured_and_others_are_named(places):
    done = run("change", "evaluate", places / "places", places / "labels", *FAST, "--json")
    assert done.exit_code == 0, done.output
    page = json.loads(done.stdout)
    assert set(page["places"]) == {"north", "south/hill"}
    assert page["f1"]["value"] > 0.6 and page["threshold"] == 0.21
    assert page["f1"]["n"] == 2 * SIDE * (SIDE - 10)
    for text in ("without labels are skipped: unlabelled", "without a place are skipped: nowhere"):
        assert text in done.stderr
    assert "places of one date are skipped: single" in done.stderr
    assert "3 dates; the first and the last are compared" in done.stderr


def test_the_table_names_each_place(places):
    done = run("change", "evaluate", places / "places", places / "labels", *FAST)
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["pooled", "north", "south/hill"]


def test_a_threshold_above_all_finds_nothing(places):
    report = evaluate(places / "places", places / "labels", threshold=1.0)
    assert report.figures.pooled["recall"].value == 0


def test_each_bad_input_gives_one_error(places, tmp_path):
    with pytest.raises(MissingInputError):
        evaluate(tmp_path / "none", places / "labels")
    with pytest.raises(MissingInputError):
        evaluate(places / "places", tmp_path / "none")
    mask = np.zeros((SIDE, SIDE), np.uint8)
    save(tmp_path / "others" / "elsewhere.tif", mask, bands=None)
    with pytest.raises(LabelsError, match="no mask has the name"):
        evaluate(places / "places", tmp_path / "others")
    save(tmp_path / "wrong" / "north.tif", np.full_like(mask, 7), nodata=255, bands=None)
    with pytest.raises(LabelsError, match="class value 7"):
        evaluate(places / "places", tmp_path / "wrong")
    save(tmp_path / "small" / "north.tif", mask[:60], nodata=255, bands=None, crs=None)
    with pytest.raises(GridError):
        evaluate(places / "places", tmp_path / "small")
    save(tmp_path / "undated" / "north" / "image.tif", mask, bands=None)
    with pytest.raises(MissingInputError, match="no date"):
        evaluate(tmp_path / "undated", places / "labels")


def test_labels_on_another_grid_are_warped_with_a_note(places, tmp_path):
    mask = np.zeros((SIDE // 2, SIDE // 2), np.uint8)
    mask[15:27, 10:22] = 1
    save(tmp_path / "north.tif", mask, transform=(20, 0, 500_000, 0, -20, 5_000_000), nodata=255, bands=None)
    report = evaluate(places / "places", tmp_path)
    assert any("labels on another grid" in note for note in report.notes)
    assert report.figures.pooled["recall"].value > 0.6


def test_a_real_city_keeps_its_f1(tmp_path):
    """A floor under the measured figure without labels, 0.456 for Hong Kong."""
    city = real_data("s2", "val", "oscd") / "hongkong"
    labels = real_data("labels", "change", "oscd") / "hongkong.tif"
    for folder, source in (("places", city), ("labels", labels)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / source.name).symlink_to(source)
    report = evaluate(tmp_path / "places", tmp_path / "labels")
    assert report.figures.pooled["f1"].value >= 0.43
    assert max(map(abs, report.shifts["hongkong"])) < 2
