"""Predictions of a classifier: submissions, probabilities, maps of scenes, and their commands."""

from __future__ import annotations

import csv
import json

import keras
import numpy as np
import pytest
import rasterio
from labelled import CLASSES, pictures, write_class_folders, write_npz, write_numbered
from typer.testing import CliRunner

from retrieval.cli import app
from retrieval.errors import ConfigError, UnitsWarning
from retrieval.labels.masks import classes_of
from retrieval.models.registry import encoder_names
from retrieval.tasks.classifier import Classifier, Description, load_classifier, save_classifier
from retrieval.tasks.scene_map import classify_scene, nearest, window_starts
from tfrecords.errors import BandsError, GridError, OutputExistsError, UnitsError

RECIPE = {
    "width": 4,
    "blocks": 1,
    "steps": 4,
    "batch": 6,
    "unlabelled_batch": 6,
    "validate_every": 2,
    "compile": False,
}


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], prog_name="retrieve")


def by_band(size=(16, 16), form="byte", bands=("B04", "B03", "B02"), **more) -> Classifier:
    """A classifier whose class is the band with the largest mean: what it must answer is known."""
    pixels = keras.Input((*size, len(bands)))
    logits = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(8.0)(pixels))
    description = Description(CLASSES[: len(bands)], bands, size, form, **more)
    return Classifier(keras.Model(pixels, logits), description, "by band")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    out = tmp_path_factory.mktemp("model") / "model"
    save_classifier(by_band(), out, {}, {})
    return out


@pytest.fixture
def images(rng):
    pixels = rng.integers(0, 200, (9, 16, 16, 3)).astype(np.uint8)
    truth = np.array([2, 0, 1, 1, 0, 2, 2, 1, 0])
    pixels[np.arange(9), ..., truth] = 250
    return pixels, truth


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- submissions ------------------------------------------------------------------------------------


def test_a_submission_has_one_row_for_each_image(tmp_path, model, images):
    pixels, truth = images
    np.savez(tmp_path / "test.npz", x=pixels)
    out, table = tmp_path / "s.csv", tmp_path / "p.parquet"
    done = run(
        "classify", "predict", tmp_path / "test.npz", "--model", model, "--out", out,
        "--probabilities", table, "--json",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["classes"] == {"Field": 3, "Forest": 3, "Water": 3}
    text = out.read_bytes().decode()
    assert text == "Id,Category\n" + "".join(f"{n},{CLASSES[t]}\n" for n, t in enumerate(truth))
    import pandas as pd

    frame = pd.read_parquet(table)
    assert list(frame) == ["Id", "p_Field", "p_Forest", "p_Water"]
    assert list(frame["Id"]) == [str(n) for n in range(9)]
    mean = pixels.mean((1, 2)) / 255 * 8
    expected = np.exp(mean) / np.exp(mean).sum(1, keepdims=True)
    np.testing.assert_allclose(frame.iloc[:, 1:].to_numpy(), expected, atol=1e-5)


def test_ids_of_files_are_numbers_or_stems(tmp_path, model, images):
    pixels, truth = images
    names = [CLASSES[t] for t in truth]
    write_numbered(tmp_path / "numbers.csv", pixels, names)
    write_class_folders(tmp_path / "stems", pixels, names)
    for source, name in (("numbers", "{}"), ("numbers.csv", "{}"), ("stems", "p{:04d}")):
        out = tmp_path / f"{source}.out"
        done = run("classify", "predict", tmp_path / source, "--model", model, "--out", out)
        assert done.exit_code == 0, done.output
        found = {row["Id"]: row["Category"] for row in rows_of(out)}
        assert found == {name.format(n): text for n, text in enumerate(names)}


def test_images_of_another_kind_give_one_error_and_no_file(tmp_path, model, images):
    pixels, _ = images
    np.savez(tmp_path / "four.npz", x=np.concatenate([pixels, pixels[..., :1]], -1))
    np.savez(tmp_path / "large.npz", x=np.tile(pixels, (1, 2, 2, 1)))
    np.savez(tmp_path / "dn.npz", x=pixels.astype(np.uint16) * 20)
    for name, text in (("four", "bands B04"), ("large", "32 x 32"), ("dn", "digital numbers")):
        done = run("classify", "predict", tmp_path / f"{name}.npz", "-m", model, "-o", tmp_path / "s.csv")
        assert done.exit_code == 1 and text in done.stderr
        assert not (tmp_path / "s.csv").exists()
    np.savez(tmp_path / "good.npz", x=pixels)
    done = run(
        "classify", "predict", tmp_path / "good.npz", "-m", tmp_path / "none", "-o", tmp_path / "s.csv"
    )
    assert done.exit_code == 1 and "no such folder" in done.stderr
    (tmp_path / "s.csv").write_text("mine")
    done = run("classify", "predict", tmp_path / "good.npz", "-m", model, "-o", tmp_path / "s.csv")
    assert done.exit_code == 1 and "--overwrite" in done.stderr
    assert (tmp_path / "s.csv").read_text() == "mine"


# --- training by command ----------------------------------------------------------------------------


def test_three_commands_lead_from_arrays_to_a_submission(tmp_path):
    for name, count, seed in (("train", 12, 0), ("unsup", 18, 1), ("valid", 9, 2)):
        pixels, labels = pictures(count, seed=seed, side=16)
        write_npz(tmp_path / f"{name}.npz", pixels, labels)
    (tmp_path / "recipe.json").write_text(json.dumps(RECIPE))
    train = [
        "classify", "train", tmp_path / "train.npz", "--unlabelled", tmp_path / "unsup.npz",
        "--validation", tmp_path / "valid.npz", "--classes", ", ".join(CLASSES),
        "--recipe", tmp_path / "recipe.json", "--licence", "MIT", "--out", tmp_path / "model", "--json",
    ]  # fmt: skip
    done = run(*train)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert (result["labelled"], result["unlabelled"], result["validation"]) == (12, 18, 9)
    assert "validation accuracy" in done.stderr
    page = json.loads((tmp_path / "model" / "manifest.json").read_text())
    assert page["extra"]["classes"] == list(CLASSES) and page["extra"]["licence"] == "MIT"
    done = run(
        "classify", "predict", tmp_path / "valid.npz", "--model", tmp_path / "model",
        "--out", tmp_path / "s.csv",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert len(rows_of(tmp_path / "s.csv")) == 9
    again = run(*train)
    assert again.exit_code == 1 and "exists and is kept" in again.stderr


def test_classes_come_from_a_file_and_unknown_settings_are_refused(tmp_path):
    pixels, labels = pictures(6, side=16)
    write_npz(tmp_path / "a.npz", pixels, labels)
    (tmp_path / "classes.txt").write_text("Field\nForest\n")
    train = ["classify", "train", tmp_path / "a.npz", "--out", tmp_path / "model"]
    done = run(*train, "--classes", tmp_path / "classes.txt")
    assert done.exit_code == 1 and "--classes names 2 classes" in done.stderr
    done = run(*train, "--classes", ",".join(f"class {n}" for n in range(99)))
    assert done.exit_code == 1 and "no image of class class 3" in done.stderr
    (tmp_path / "odd.txt").write_bytes(b"\xff\xfe")
    done = run(*train, "--classes", tmp_path / "odd.txt")
    assert done.exit_code == 2 and "UTF-8" in done.stderr
    (tmp_path / "recipe.json").write_text('{"widht": 4}')
    done = run(*train, "--recipe", tmp_path / "recipe.json")
    assert done.exit_code == 1 and "has no widht" in done.stderr
    assert not (tmp_path / "model").exists() and not (tmp_path / "model.training").exists()


# --- maps -------------------------------------------------------------------------------------------


def slow_map(pixels, known, side, stride):
    """Return the class of each pixel by definition: the nearest window's band with the largest mean."""
    height, width = pixels.shape[:2]
    starts = [sorted({*range(0, n - side + 1, stride), n - side}) for n in (height, width)]
    out = np.full((height, width), 255)
    for y in range(height):
        for x in range(width):
            top = min(starts[0], key=lambda s: abs(s + (side - 1) / 2 - y))
            left = min(starts[1], key=lambda s: abs(s + (side - 1) / 2 - x))
            part = np.s_[top : top + side, left : left + side]
            if known[y, x]:
                out[y, x] = pixels[part][known[part]].mean(0).argmax()
    return out


@pytest.mark.parametrize("stride", [5, 16])
def test_a_map_agrees_with_its_definition(tmp_path, rng, write_tif, stride):
    smooth = rng.uniform(0, 255, (6, 7, 3)).repeat(9, 0).repeat(7, 1)
    pixels = np.clip(smooth + rng.normal(0, 9, smooth.shape), 1, 255).astype(np.uint8)
    pixels[:20, :22] = 0
    known = pixels.any(-1)
    transform = (10.0, 0.0, 500000.0, 0.0, -10.0, 5500000.0)
    scene = write_tif(
        "scene.tif",
        pixels[..., ::-1],
        descriptions=("B02", "B03", "B04"),
        nodata=0,
        crs="EPSG:32631",
        transform=transform,
    )
    report = classify_scene(scene, by_band(), tmp_path / "map.tif", stride=stride, orientations=1)
    with rasterio.open(tmp_path / "map.tif") as made:
        np.testing.assert_array_equal(made.read(1), slow_map(pixels, known, 16, stride))
        assert (made.dtypes[0], made.nodata, made.crs.to_epsg()) == ("uint8", 255, 32631)
        assert made.transform[:6] == transform
        table = made.colormap(1)
        assert len({table[n][:3] for n in range(3)}) == 3
    assert classes_of(tmp_path / "map.tif").names == CLASSES
    assert report.nodata_share == pytest.approx(1 - known.mean())
    assert sum(report.shares.values()) == pytest.approx(1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["map.tif", "map.tif.aux.xml", "scene.tif"]


def test_a_scene_whose_bands_are_pages_has_the_same_map(tmp_path, rng, write_tif):
    pixels = rng.integers(1, 256, (40, 50, 3)).astype(np.uint8)
    names = ("B02", "B03", "B04")
    whole = write_tif("scene.tif", pixels, descriptions=names)
    for number, name in enumerate(names):
        append = {"APPEND_SUBDATASET": "YES"} if number else {}
        write_tif("pages.tif", pixels[..., [number]], descriptions=[name], **append)
    maps = []
    for scene in (whole, tmp_path / "pages.tif"):
        classify_scene(scene, by_band(), tmp_path / f"map_{scene.name}", stride=8, orientations=1)
        with rasterio.open(tmp_path / f"map_{scene.name}") as made:
            maps.append(made.read(1))
    np.testing.assert_array_equal(*maps)
    assert len(np.unique(maps[0])) > 1


def test_windows_cover_a_scene_and_each_pixel_has_the_nearest():
    for length, side, stride in ((70, 16, 5), (64, 64, 10), (65, 64, 10), (100, 16, 16)):
        starts = window_starts(length, side, stride)
        assert starts[0] == 0 and starts[-1] == length - side
        centres = starts + (side - 1) / 2
        for pixel, row in enumerate(nearest(starts, side, length)):
            assert abs(centres[row] - pixel) == np.abs(centres - pixel).min()
            assert starts[row] <= pixel < starts[row] + side


def test_a_scene_that_does_not_fit_the_model_is_refused(tmp_path, rng, write_tif):
    pixels = rng.integers(1, 255, (20, 20, 3)).astype(np.uint8)
    out = tmp_path / "map.tif"
    two = write_tif("two.tif", pixels[..., :2], descriptions=("B04", "B03"))
    with pytest.raises(BandsError, match="also needs B02"):
        classify_scene(two, by_band(), out)
    small = write_tif("small.tif", pixels[:10])
    with pytest.raises(GridError, match="at least 16 x 16"):
        classify_scene(small, by_band(), out)
    scene = write_tif("dn.tif", pixels.astype(np.uint16) * 30)
    with pytest.raises(UnitsError, match="digital numbers"):
        classify_scene(scene, by_band(), out)
    good = write_tif("good.tif", pixels)
    for stride in (0, 17):
        with pytest.raises(ConfigError, match="1 to 16"):
            classify_scene(good, by_band(), out, stride=stride)
    assert not out.exists()
    out.write_text("mine")
    with pytest.raises(OutputExistsError):
        classify_scene(good, by_band(), out)
    assert out.read_text() == "mine"


def test_the_command_writes_a_map(tmp_path, model, rng, write_tif):
    scene = write_tif("scene.tif", rng.integers(1, 255, (40, 50, 3)).astype(np.uint8))
    predict = ["classify", "predict", scene, "--model", model, "--out", tmp_path / "map.tif"]
    done = run(*predict, "--stride", 8, "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert (result["height"], result["width"], result["windows"]) == (40, 50, 4 * 6)
    done = run(*predict, "--probabilities", tmp_path / "p.parquet")
    assert done.exit_code == 2 and "needs a CSV" in done.stderr


# --- shipped models ---------------------------------------------------------------------------------


def test_a_shipped_classifier_is_listed_and_opens_by_its_name():
    found = {m["name"]: m for m in json.loads(run("models", "--json").stdout)["models"]}
    shipped = found["eurosat-rgb"]
    assert shipped["bands"] == ["B04", "B03", "B02"] and len(shipped["classes"]) == 10
    assert shipped["licence"] == "Apache-2.0" and 0.5 < shipped["size_mb"] <= 10
    assert found["siamese"]["bands"] == [] and found["siamese"]["classes"] == []
    assert set(encoder_names()) < set(found)
    model = load_classifier("eurosat-rgb")
    assert model.description.classes == tuple(shipped["classes"])
    text = run("models").stdout
    assert all(name in text for name in found) and "SeaLake" in text


def test_digital_numbers_and_their_rendering_have_the_same_classes(tmp_path, rng, write_tif):
    smooth = rng.uniform(100, 3500, (4, 5, 3)).repeat(32, 0).repeat(32, 1)
    dn = np.clip(smooth + rng.normal(0, 150, smooth.shape), 1, 4000).astype(np.uint16)
    dn[:30, :40] = 0
    byte = np.rint(1 + 254 * np.minimum(dn / 2750, 1)).astype(np.uint8)
    byte[:30, :40] = 0
    maps = []
    for name, pixels in (("dn", dn), ("byte", byte)):
        scene = write_tif(f"{name}.tif", pixels, descriptions=("B04", "B03", "B02"), nodata=0)
        out = tmp_path / f"{name}-map.tif"
        done = run("classify", "predict", scene, "--model", "eurosat-rgb", "--out", out, "--stride", 32)
        assert done.exit_code == 0, done.output
        with rasterio.open(out) as made:
            maps.append(made.read(1))
    np.testing.assert_array_equal(*maps)
    assert len(np.unique(maps[0])) > 2 and (maps[0][:30, :40] == 255).all()


def test_a_range_of_digital_numbers_is_checked_and_kept(tmp_path, images):
    model = by_band(dn_range=(0.0, 2750.0))
    save_classifier(model, tmp_path / "m", {}, {})
    assert load_classifier(tmp_path / "m").description.dn_range == (0.0, 2750.0)
    dn = (images[0].astype(np.uint16) + 1) * 10
    np.savez(tmp_path / "dn.npz", x=dn)
    done = run("classify", "predict", tmp_path / "dn.npz", "-m", tmp_path / "m", "-o", tmp_path / "s.csv")
    assert done.exit_code == 0, done.output
    assert [row["Category"] for row in rows_of(tmp_path / "s.csv")] == [CLASSES[t] for t in images[1]]
    for text in ("5", "9,3", "a,b", "-5,9"):
        done = run("classify", "train", tmp_path / "dn.npz", "-o", tmp_path / "n", "--dn-range", text)
        assert done.exit_code == 2 and "two rising numbers" in done.stderr


def test_a_scene_with_the_offset_in_its_numbers_gives_a_warning(tmp_path, rng, write_tif):
    model, ground = by_band(dn_range=(0.0, 2750.0)), rng.integers(100, 2000, (40, 50, 3)).astype(np.uint16)
    classify_scene(write_tif("plain.tif", ground), model, tmp_path / "plain-map.tif")
    with pytest.warns(UnitsWarning, match="offset of baseline 04.00"):
        classify_scene(write_tif("raw.tif", ground + 1000), model, tmp_path / "raw-map.tif")
