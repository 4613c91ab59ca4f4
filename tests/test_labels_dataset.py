"""Checks of data sets: pairs by name, classes and their weights, and what is wrong with a pair."""

import json
import math

import pytest

pytest.importorskip("mercantile", reason="needs the extra `labels`")

import mercantile
import numpy as np
from labelground import CORNER, image_tile, run
from PIL import Image

from retrieval.errors import LabelsError
from retrieval.labels import check
from retrieval.labels.classes import Classes, read_classes
from retrieval.labels.files import find_pairs, name_of
from retrieval.labels.masks import classes_of, create_map, finish_map, read_mask, write_png
from tfrecords.errors import MissingInputError

DEEPGLOBE = read_classes("deepglobe")
BUILDING = Classes.binary("building")


@pytest.fixture
def pairs(tmp_path):
    """Four tiles with masks: 0, 64, 128 and 192 of 1024 pixels are buildings, the last has 256 ignored."""
    for n, tile in enumerate(mercantile.children(mercantile.parent(CORNER))):
        path = image_tile(tmp_path / "images", tile, n, alpha=n % 2 == 0, size=32)
        values = np.zeros((32, 32), np.uint8)
        values[: 2 * n] = 1
        values[24:] = 255 if n == 3 else 0
        mask = tmp_path / "masks" / path.relative_to(tmp_path / "images")
        mask.parent.mkdir(parents=True, exist_ok=True)
        write_png(mask, values, BUILDING)
    return tmp_path


def test_shares_weights_and_masks_without_a_label(pairs):
    report = check(pairs / "images", pairs / "masks", classes=BUILDING)
    building = report.classes["building"]
    assert (building.pixels, building.masks) == (64 + 128 + 192, 3)
    assert building.share == pytest.approx(384 / (4096 - 256))
    assert building.weight == pytest.approx(1 / math.log(1.02 + 0.1))
    assert report.classes["background"].share == pytest.approx(0.9)
    assert report.ignored_share == pytest.approx(256 / 4096)
    first = mercantile.children(mercantile.parent(CORNER))[0]
    assert report.without_label == (f"{first.z}/{first.x}/{first.y}",)
    assert report.is_clean and not report.odd  # alpha is no band


def test_missing_and_odd_pairs_are_listed(pairs):
    names = find_pairs(pairs / "images", pairs / "masks").names
    size, value, colours, cut = (pairs / "masks" / f"{name}.png" for name in names)
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(size)
    Image.fromarray(np.full((32, 32), 7, np.uint8)).save(value)
    (pairs / "images" / f"{names[3]}.png").write_bytes(cut.read_bytes()[:60])
    image_tile(pairs / "images", mercantile.Tile(1, 1, 20), size=32)
    image_tile(pairs / "masks", mercantile.Tile(2, 2, 20), size=32)
    done = run("labels", "check", pairs / "images", pairs / "masks", "--json", "--strict")
    assert done.exit_code == 1
    report = json.loads(done.stdout)
    assert report["without_mask"] == ["20/1/1"] and report["without_image"] == ["20/2/2"]
    assert "32x32 pixels and the mask 16x16" in report["odd"][names[0]]
    assert names[3] in report["odd"] and colours.exists()
    report = check(pairs / "images", pairs / "masks", classes=BUILDING)
    assert "class value 7" in report.odd[names[1]] and "0 to 1 (background, building)" in report.odd[names[1]]
    assert report.classes["building"].pixels == 64  # of the one good pair


def test_unlike_bands_and_kinds_of_masks_are_odd(pairs):
    names = find_pairs(pairs / "images", pairs / "masks").names
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(pairs / "images" / f"{names[0]}.png")
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(pairs / "masks" / f"{names[1]}.png")
    (pairs / "c.csv").write_text("name,colour\nbackground,#000000\nbuilding,#ffffff\n")
    odd = check(pairs / "images", pairs / "masks", classes=pairs / "c.csv").odd
    assert odd[names[0]] == "the image has 1 bands; most have 3"
    assert odd[names[1]] == "the mask is of colours; most are of indices"


def test_images_and_masks_may_share_a_folder(tmp_path):
    for name in ("1", "2"):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / f"{name}_sat.jpg")
    colours = DEEPGLOBE.to_colours(np.arange(64, dtype=np.uint8).reshape(8, 8) % 6)
    Image.fromarray(colours).save(tmp_path / "1_mask.png")
    found = find_pairs(tmp_path, tmp_path)
    assert found.names == ("1",) and found.without_mask == ["2"]
    assert found.images["1"].name == "1_sat.jpg" and found.masks["1"].name == "1_mask.png"
    report = check(tmp_path, tmp_path, classes="deepglobe")
    assert [c.pixels for c in report.classes.values()] == [11, 11, 11, 11, 10, 10]
    assert "--classes" in check(tmp_path, tmp_path).odd["1"]


def test_no_pair_two_of_one_name_and_nothing_there_are_errors(tmp_path):
    for name in ("a/1.png", "b/2.png", "c/3.tif", "c/3.jp2"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(MissingInputError, match="no mask has the name"):
        check(tmp_path / "a", tmp_path / "b")
    with pytest.raises(LabelsError, match="one name"):
        check(tmp_path / "c", tmp_path / "a")
    with pytest.raises(MissingInputError, match="no such"):
        check(tmp_path / "d", tmp_path / "a")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("855_sat.jpg", "855"),
        ("a/855_mask.png", "a/855"),
        ("20/1/2.png", "20/1/2"),
        ("a.b/c", "a.b/c"),
        ("_sat.jpg", "_sat"),
    ],
)
def test_names_of_files(path, name):
    assert name_of(path) == name or path == "_sat.jpg"


# --- classes ------------------------------------------------------------------------------------


def test_deepglobe_has_the_classes_of_the_challenge():
    assert DEEPGLOBE.names == ("urban", "agriculture", "rangeland", "forest", "water", "barren")
    assert DEEPGLOBE.unlabelled == 255 and BUILDING.unlabelled == 0
    colours = np.array([[[0, 250, 140], [3, 2, 1], [200, 130, 255]]], np.uint8)
    assert DEEPGLOBE.to_indices(colours).tolist() == [[0, 255, 5]]  # by the threshold 128


def test_colours_and_indices_are_inverse():
    indices = np.array([[0, 1, 2, 3, 4, 5, 255]], np.uint8)
    assert np.array_equal(DEEPGLOBE.to_indices(DEEPGLOBE.to_colours(indices)), indices)


def test_a_file_of_classes_names_values_and_colours(tmp_path):
    rows = "name,value,colour\nroad,primary,#ff8000\nroad,secondary,\nwater,3,#0000ff\nunknown,x,#010203\n"
    (tmp_path / "c.csv").write_text(rows)
    classes = read_classes(tmp_path / "c.csv")
    assert classes.names == ("road", "water") and classes.colours == ((255, 128, 0), (0, 0, 255))
    assert [classes.index_of(v) for v in ("primary", "secondary", 3.0, 3, "x")] == [0, 0, 1, 1, 255]
    assert classes.to_indices(np.array([[[255, 128, 0], [1, 2, 3]]], np.uint8)).tolist() == [[0, 255]]
    with pytest.raises(LabelsError, match="'tertiary': unknown"):
        classes.index_of("tertiary")
    with pytest.raises(LabelsError, match="#ff8001: no class"):
        classes.to_indices(np.array([[[255, 128, 1]]], np.uint8))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class\na\n", "columns class"),
        ("name\n", "no classes"),
        ("name,colour\na,red\n", "line 2: colour 'red'"),
        ("name,value\na,1\nb,1\n", "line 3: value '1' stands for two"),
        ("name,colour\na,#000001\nb,#000001\n", "line 3: colour"),
        ("name,value\n,1\n", "line 2: no name"),
    ],
)
def test_bad_files_of_classes(tmp_path, text, message):
    (tmp_path / "c.csv").write_text(text)
    with pytest.raises(LabelsError, match=message):
        read_classes(tmp_path / "c.csv")
    with pytest.raises(LabelsError, match="no such file"):
        read_classes(tmp_path / "none.csv")


def test_a_class_map_keeps_indices_colours_and_names(tmp_path):
    import rasterio

    values = np.array([[0, 1, 255], [1, 0, 0]], np.uint8)
    create_map(tmp_path / "plain.tif", 3, 2, "EPSG:32631", rasterio.Affine(10, 0, 5e5, 0, -10, 5e6), 255)
    with rasterio.open(tmp_path / "plain.tif", "r+") as dataset:
        dataset.write(values, 1)
    finish_map(tmp_path / "plain.tif", tmp_path / "map.tif", BUILDING)
    assert np.array_equal(read_mask(tmp_path / "map.tif", BUILDING), values)
    with rasterio.open(tmp_path / "map.tif") as dataset:
        assert dataset.nodata == 255 and dataset.colormap(1)[1][:3] == BUILDING.colours[1]
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    assert classes_of(tmp_path / "map.tif") == BUILDING
    assert "<Category>building</Category>" in (tmp_path / "map.tif.aux.xml").read_text()


def test_a_palette_png_keeps_indices_and_colours(tmp_path):
    values = np.array([[0, 1, 255, 1]], np.uint8)
    write_png(tmp_path / "m.png", values, BUILDING)
    assert np.array_equal(read_mask(tmp_path / "m.png", BUILDING), values)
    with Image.open(tmp_path / "m.png") as image:
        assert image.mode == "P"
        shown = image.convert("RGBA")
    assert shown.getpixel((1, 0)) == (*BUILDING.colours[1], 255) and shown.getpixel((2, 0))[3] == 0
