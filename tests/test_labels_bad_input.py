"""Bad labels at the command line: one clear error or one note, and nothing half-written."""

import pytest

pytest.importorskip("mercantile", reason="needs the extra `labels`")
pytest.importorskip("geopandas", reason="needs the extra `labels`")

import geopandas
import numpy as np
import shapely
from labelground import run
from PIL import Image

from retrieval.labels.classes import Classes
from retrieval.labels.masks import read_mask, write_png

UTM = "EPSG:32631"
STEP, WEST, NORTH = 10.0, 500_000.0, 5_000_000.0
LAND = Classes(("background", "town", "water"))
SIDE = 64


def ground(x, y, w, h):
    """A box in pixels of the raster."""
    return shapely.box(WEST + STEP * x, NORTH - STEP * (y + h), WEST + STEP * (x + w), NORTH - STEP * y)


HOUSE = ground(10, 10, 20, 20)
x, y = WEST + 100, NORTH - 100
BOW = shapely.Polygon([(x, y), (x + 201, y - 197), (x + 203, y), (x, y - 204)])
"""An outline that crosses itself."""


@pytest.fixture
def here(tmp_path, write_tif):
    """A scene, its map with a town, and the file of classes."""
    grid = {"crs": UTM, "transform": (STEP, 0, WEST, 0, -STEP, NORTH)}
    write_tif("scene.tif", np.full((SIDE, SIDE, 3), 9, np.uint8), **grid)
    values = np.zeros((SIDE, SIDE, 1), np.uint8)
    values[10:30, 10:30] = 1
    write_tif("map.tif", values, **grid)
    (tmp_path / "classes.csv").write_text("name\nbackground\ntown\nwater\n")
    return tmp_path


def labels(here, shape=HOUSE, crs=UTM, name="labels.gpkg", kind="town"):
    frame = geopandas.GeoDataFrame({"kind": [kind]}, geometry=[shape], crs=UTM)
    frame = frame.to_crs(crs) if crs else frame.set_crs(None, allow_override=True)
    if name.endswith("parquet"):
        frame.to_parquet(here / name)
    else:
        frame.to_file(here / name)
    return here / name


def command(here, job, path):
    """Rasterize labels, or compare them with the map."""
    how = ("--classes", here / "classes.csv", "--attribute", "kind")
    if job == "rasterize":
        return run("labels", job, path, "--like", here / "scene.tif", "--out", here / "out.tif", *how)
    outputs = ("--out", here / "out.html", "--table", here / "out.gpkg", "--tiles", here / "out.csv")
    return run("labels", job, here / "map.tif", path, *outputs, *how)


JOBS = pytest.mark.parametrize("job", ["rasterize", "compare"])


@JOBS
@pytest.mark.parametrize(
    ("crs", "name"),
    [("EPSG:3035", "labels.gpkg"), ("EPSG:4326", "labels.geojson"), ("EPSG:3857", "a.parquet")],
)
def test_another_crs_is_noted_and_changes_nothing(here, job, crs, name):
    done = command(here, job, labels(here, crs=crs, name=name))
    assert done.exit_code == 0, done.output
    assert f"{name}: reprojected from {crs} to {UTM}" in done.stderr
    if job == "rasterize":
        assert abs(int(read_mask(here / "out.tif").sum()) - 400) <= 40  # an edge through centres of pixels
    else:
        assert "1 supported, 0 unsupported" in done.stdout


@JOBS
def test_a_geometry_that_crosses_itself_is_repaired_and_counted(here, job):
    done = command(here, job, labels(here, BOW))
    assert done.exit_code == 0, done.output
    assert "labels.gpkg: 1 invalid geometries repaired" in done.stderr


@JOBS
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"crs": None, "name": "labels.parquet"}, "no CRS. Expected one"),
        ({"shape": ground(500, 500, 9, 9)}, "Expected labels of the same ground"),
        ({"shape": shapely.Polygon()}, "Expected labels of the same ground"),
        ({"kind": "harbour"}, "class value 'harbour': unknown. Expected background, town, water"),
    ],
    ids=["without a CRS", "empty after clipping", "an empty geometry", "an unknown class"],
)
def test_each_bad_file_gives_one_error_and_no_output(here, job, wrong, message):
    done = command(here, job, labels(here, **wrong))
    assert done.exit_code == 1 and "Traceback" not in done.output
    errors = [line for line in done.stderr.splitlines() if "Error" in line or message in line]
    assert len(errors) == 1 and message in done.stderr
    assert not list(here.glob("out*"))


def test_masks_of_other_sizes_bands_and_kinds_are_named_and_a_missing_label_too(here):
    for number in range(4):
        for folder in ("images", "masks"):
            (here / folder).mkdir(exist_ok=True)
        pixels = np.zeros((8, 8, 4 if number == 0 else 3), np.uint8)  # alpha is no band
        Image.fromarray(pixels).save(here / "images" / f"{number}.png")
        write_png(here / "masks" / f"{number}.png", np.zeros((8, 8), np.uint8), LAND)
    (here / "images" / "4.png").write_bytes((here / "images" / "3.png").read_bytes())
    check = ("labels", "check", here / "images", here / "masks", "--classes", here / "classes.csv")
    done = run(*check, "--json", "--strict")
    assert done.exit_code == 1 and '"without_mask": ["4"]' in " ".join(done.stdout.split())
    (here / "images" / "4.png").unlink()
    assert run(*check, "--strict").exit_code == 0
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(here / "images" / "1.png")
    write_png(here / "masks" / "2.png", np.zeros((8, 9), np.uint8), LAND)
    (here / "colours.csv").write_text("name,colour\nbackground,#000000\ntown,#ffffff\n")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(here / "masks" / "3.png")
    done = run(*check[:4], "--classes", here / "colours.csv", "--strict")
    assert done.exit_code == 1
    for text in (
        "the image has 1 bands; most have 3",
        "8x8 pixels and the mask 9x8",
        "the mask is of colours",
    ):
        assert text in done.output
