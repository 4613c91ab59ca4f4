"""Chips around labelled points and inside labelled polygons of GeoTIFFs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("geopandas", reason="needs the extra `labels`")

import geopandas
import shapely

from retrieval.cli import app
from retrieval.errors import ExamplesError, LabelsError
from retrieval.tasks.ground_labels import MAX_CHIPS, Ground, cut_labelled
from retrieval.tasks.sources import read_labelled
from tfrecords.errors import BandsError, GridError

LEFT, TOP, METRES = 500_000.0, 5_500_000.0, 10.0
TRANSFORM = (METRES, 0.0, LEFT, 0.0, -METRES, TOP)
SIZE = 16


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], prog_name="retrieve")


@pytest.fixture
def scenes(tmp_path, rng, write_tif):
    """Two dates of one place, 100 x 120 pixels whose first band counts the columns and second the rows."""
    y, x = np.mgrid[:100, :120]
    for date in (1, 2):
        pixels = np.stack([x + 1, y + 1, np.full_like(x, date)], -1).astype(np.uint8)
        write_tif(
            f"{date}.tif",
            pixels,
            folder=tmp_path / "scenes",
            descriptions=("B04", "B03", "B02"),
            crs="EPSG:32631",
            transform=TRANSFORM,
        )
    return tmp_path / "scenes"


def at(x, y):
    """The ground of a pixel coordinate."""
    return LEFT + METRES * x, TOP - METRES * y


def box(x0, y0, x1, y1):
    return shapely.Polygon([at(x0, y0), at(x1, y0), at(x1, y1), at(x0, y1)])


def written(path, shapes, names, crs="EPSG:32631", **options):
    geopandas.GeoDataFrame({"class": names}, geometry=shapes, crs=crs).to_file(path, **options)
    return path


def test_a_chip_is_centred_on_its_point_and_stays_inside(tmp_path, scenes):
    points = [shapely.Point(at(60, 40)), shapely.Point(at(1, 99)), shapely.Point(at(119.5, 0.5))]
    labels = written(tmp_path / "l.gpkg", points, ["a", "b", "b"])
    chips = cut_labelled(labels, Ground(scenes, "class", SIZE))
    corners = [(int(p[0, 0, 0]) - 1, int(p[0, 0, 1]) - 1) for p in chips.pixels]
    assert corners == [(52, 32), (0, 84), (104, 0)] * 2
    assert chips.labels == ["a", "b", "b"] * 2 and len(set(chips.ids)) == 6
    assert [int(p[0, 0, 2]) for p in chips.pixels] == [1, 1, 1, 2, 2, 2]
    assert all(p.shape == (SIZE, SIZE, 3) for p in chips.pixels)


def test_chips_of_a_polygon_lie_inside_of_it(tmp_path, scenes):
    holed = box(3, 5, 90, 80).difference(box(30, 30, 50, 50))
    small, beyond = box(95, 10, 99, 14), box(110, 90, 200, 200)
    labels = written(tmp_path / "l.gpkg", [holed, small, beyond], ["a", "b", "c"])
    chips = cut_labelled(labels, Ground(scenes / "1.tif", "class", SIZE))
    found = {}
    for pixels, name in zip(chips.pixels, chips.labels, strict=True):
        found.setdefault(name, []).append((int(pixels[0, 0, 0]) - 1, int(pixels[0, 0, 1]) - 1))
    expected = [
        (x, y)
        for y in range(5, 100 - SIZE + 1, SIZE)
        for x in range(3, 120 - SIZE + 1, SIZE)
        if holed.covers(box(x, y, x + SIZE, y + SIZE))
    ]
    assert found["a"] == expected and len(expected) > 5
    assert len(found["b"]) == len(found["c"]) == 1
    x, y = found["b"][0]
    assert x <= 95 and 99 <= x + SIZE and y <= 10 and 14 <= y + SIZE
    assert found["c"] == [(104, 84)]


def test_a_large_polygon_gives_a_bounded_number(tmp_path, write_tif):
    pixels = np.ones((160, 160, 3), np.uint8)
    scene = write_tif("s.tif", pixels, crs="EPSG:32631", transform=TRANSFORM)
    labels = written(tmp_path / "l.gpkg", [box(0, 0, 160, 160)], ["a"])
    assert len(cut_labelled(labels, Ground(scene, "class", SIZE)).pixels) == MAX_CHIPS


def test_another_crs_is_reprojected_with_a_note(tmp_path, scenes):
    points = [shapely.Point(at(60.2, 40.3)), shapely.Point(at(20.2, 20.3))]
    metric = written(tmp_path / "m.gpkg", points, ["a", "b"])
    moved = geopandas.read_file(metric).to_crs("EPSG:4326")
    moved.to_file(tmp_path / "d.geojson", driver="GeoJSON")
    first, second = (
        cut_labelled(path, Ground(scenes, "class", SIZE)) for path in (metric, tmp_path / "d.geojson")
    )
    np.testing.assert_array_equal(first.pixels, second.pixels)
    assert first.notes == [] and any("reprojected from" in text for text in second.notes)


def test_labels_without_a_chip_are_counted(tmp_path, scenes, write_tif):
    holed = np.full((100, 120, 3), 9, np.uint8)
    holed[:30] = 0
    write_tif("2.tif", holed, folder=scenes, nodata=0, crs="EPSG:32631", transform=TRANSFORM,
              descriptions=("B04", "B03", "B02"))  # fmt: skip
    points = [shapely.Point(at(*xy)) for xy in ((60, 10), (60, 60), (500, 60), (-3, 2), (50, 50))]
    labels = written(tmp_path / "l.gpkg", points, ["a", "b", "a", "b", None])
    chips = cut_labelled(labels, Ground(scenes, "class", SIZE))
    assert sorted(chips.labels) == ["a", "b", "b"]
    text = " ".join(chips.notes)
    for part in ("labels outside of all images: 2", "labels without class: 1", "chips with nodata: 1"):
        assert part in text


@pytest.mark.filterwarnings("ignore:'crs' was not provided:UserWarning")
@pytest.mark.parametrize("fault", ["crs", "outside", "attribute", "line", "plain image", "bands"])
def test_bad_labels_give_one_error(tmp_path, scenes, write_tif, fault):
    shape, crs, ground = shapely.Point(at(60, 40)), "EPSG:32631", Ground(scenes, "class", SIZE)
    kinds = {
        "crs": (LabelsError, "no CRS"),
        "outside": (ExamplesError, "none of its 1 labels lies on an image"),
        "attribute": (LabelsError, "no attribute 'kind'"),
        "line": (LabelsError, "is a LineString"),
        "plain image": (GridError, "no CRS or transform"),
        "bands": (BandsError, "Expected the same bands"),
    }
    if fault == "crs":
        crs = None
    elif fault == "outside":
        shape = shapely.Point(0, 0)
    elif fault == "attribute":
        ground = Ground(scenes, "kind", SIZE)
    elif fault == "line":
        shape = shapely.LineString([at(1, 1), at(9, 9)])
    elif fault == "plain image":
        write_tif("3.tif", np.ones((40, 40, 3), np.uint8), folder=scenes, descriptions=("B04", "B03", "B02"))
    else:
        write_tif("3.tif", np.ones((40, 40, 1), np.uint8), folder=scenes, crs="EPSG:32631",
                  transform=TRANSFORM)  # fmt: skip
    labels = written(tmp_path / "l.gpkg", [shape], ["a"], crs=crs)
    kind, text = kinds[fault]
    with pytest.raises(kind, match=text):
        cut_labelled(labels, ground)


def test_commands_learn_from_points(tmp_path, scenes):
    points = [shapely.Point(at(x, 30)) for x in (10, 20, 30, 90, 100, 110)]
    labels = written(tmp_path / "l.geojson", points, ["west"] * 3 + ["east"] * 3, driver="GeoJSON")
    (tmp_path / "r.json").write_text(json.dumps({"width": 4, "blocks": 1, "steps": 2, "batch": 4}))
    where = ["--images", scenes, "--attribute", "class"]
    model = tmp_path / "model"
    train = [
        "classify",
        "train",
        labels,
        *where,
        "--size",
        SIZE,
        "--recipe",
        tmp_path / "r.json",
        "-o",
        model,
    ]
    done = run(*train, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["labelled"] == 12
    done = run("classify", "evaluate", labels, *where, "--model", model, "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["accuracy"]["n"] == 12
    examples = read_labelled(labels, ground=Ground(scenes, "class", SIZE))
    assert examples.classes == ("east", "west") and examples.images.bands == ("B04", "B03", "B02")
    done = run("classify", "train", labels, "-o", tmp_path / "n")
    assert done.exit_code == 1 and "--images" in done.stderr
    done = run("classify", "train", labels, "--attribute", "class", "-o", tmp_path / "n")
    assert done.exit_code == 2 and "Name their GeoTIFFs with --images" in done.stderr
