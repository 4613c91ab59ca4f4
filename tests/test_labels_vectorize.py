"""Class maps to polygons: areas, holes, seams, common edges, and the files."""

import json

import pytest

pytest.importorskip("mercantile", reason="needs the extra `labels`")
pytest.importorskip("geopandas", reason="needs the extra `labels`")

import geopandas
import mercantile
import numpy as np
import shapely
from labelground import CORNER, run

from retrieval.errors import LabelsError
from retrieval.labels import rasterize, vectorize
from retrieval.labels.classes import Classes
from retrieval.labels.masks import write_png
from tfrecords.errors import OutputExistsError

UTM = "EPSG:32631"
GRID = (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_000_000.0)
CLASSES = Classes(("background", "town", "forest", "water"))
LAND = Classes(("town", "forest", "water"))


def regions(seed, size=96, count=3):
    """A map of a few large and many small connected areas."""
    rng = np.random.default_rng(seed)
    seeds = rng.uniform(0, size, (25, 2))
    kinds = rng.integers(0, count, 25)
    y, x = np.mgrid[:size, :size]
    near = ((x[..., None] - seeds[:, 0]) ** 2 + (y[..., None] - seeds[:, 1]) ** 2).argmin(-1)
    values = kinds[near].astype(np.uint8)
    spots = rng.integers(0, size, (40, 2))
    values[spots[:, 0], spots[:, 1]] = rng.integers(0, count, 40)
    return values


def read(path):
    return geopandas.read_parquet(path) if path.suffix == ".parquet" else geopandas.read_file(path)


@pytest.mark.parametrize("name", ["p.gpkg", "p.parquet", "p.geojson", "p.fgb"])
def test_polygons_cover_their_pixels_and_no_others(tmp_path, write_tif, name):
    values = regions(1, count=4)
    path = write_tif("m.tif", values[..., None], crs=UTM, transform=GRID)
    report = vectorize(path, tmp_path / name, classes=CLASSES)
    frame = read(tmp_path / name)
    assert len(frame) == report.features == sum(report.classes.values())
    assert frame.crs.equals("EPSG:4326" if name.endswith("geojson") else UTM, ignore_axis_order=True)
    frame = frame.to_crs(UTM)
    for index, kind in enumerate(CLASSES.names):
        area = frame[frame["class"] == kind].area.sum() / 100
        assert area == pytest.approx(0 if index == 0 else (values == index).sum(), rel=1e-4)
    assert frame.area_m2.sum() == pytest.approx(frame.area.sum(), rel=2e-3)
    assert frame.is_valid.all()


def test_back_to_a_mask_gives_the_map(tmp_path, write_tif):
    values = regions(2)
    values[:5] = 255
    path = write_tif("m.tif", values[..., None], crs=UTM, transform=GRID, nodata=255)
    vectorize(path, tmp_path / "p.gpkg", classes=LAND)
    rasterize(tmp_path / "p.gpkg", path, tmp_path / "again.tif", classes=LAND, attribute="class")
    import rasterio

    with rasterio.open(tmp_path / "again.tif") as dataset:
        assert np.array_equal(dataset.read(1), values)


def test_areas_merge_across_tiles_and_keep_their_holes(tmp_path):
    values = np.zeros((64, 64), np.uint8)
    values[10:50, 20:60] = 1
    values[25:40, 30:35] = 0  # a hole across the seam
    values[60:64, 0:3] = 1
    for dy in range(2):
        for dx in range(2):
            path = tmp_path / "tiles" / f"20/{CORNER.x + dx}/{CORNER.y + dy}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_png(path, values[32 * dy : 32 * dy + 32, 32 * dx : 32 * dx + 32], Classes.binary("house"))
    report = vectorize(tmp_path / "tiles", tmp_path / "p.gpkg", classes=Classes.binary("house"))
    frame = read(tmp_path / "p.gpkg")
    assert report.features == 2
    large = frame.geometry[frame.area.argmax()]
    assert len(large.exterior.coords) == 5 and [len(ring.coords) for ring in large.interiors] == [5]
    box = mercantile.xy_bounds(CORNER)
    step = (box.right - box.left) / 32
    assert large.bounds == pytest.approx(
        (box.left + 20 * step, box.top - 50 * step, box.left + 60 * step, box.top - 10 * step)
    )


def test_windows_of_a_large_raster_leave_no_seam(tmp_path, write_tif):
    values = np.zeros((2100, 2100), np.uint8)
    values[1000:2090, 1000:2090] = 1
    path = write_tif("m.tif", values[..., None], crs=UTM, transform=GRID, compress="deflate")
    assert vectorize(path, tmp_path / "p.gpkg").classes == {"class 1": 1}
    assert len(read(tmp_path / "p.gpkg").geometry[0].exterior.coords) == 5


def test_simplified_neighbours_keep_their_common_edges(tmp_path, write_tif):
    path = write_tif("m.tif", regions(3, 128)[..., None], crs=UTM, transform=GRID)
    vectorize(path, tmp_path / "raw.gpkg", classes=LAND)
    vectorize(path, tmp_path / "p.gpkg", classes=LAND, simplify_m=20)
    raw, frame = read(tmp_path / "raw.gpkg"), read(tmp_path / "p.gpkg")
    count = [shapely.get_num_coordinates(f.geometry.values).sum() for f in (raw, frame)]
    assert count[1] < count[0] / 2 and len(frame) == len(raw)
    assert shapely.coverage_is_valid(frame.geometry.values)  # neither gap nor overlap
    assert frame.area.sum() == pytest.approx(raw.area.sum(), rel=0.01)


def test_small_areas_are_left_out_by_their_size_on_the_ground(tmp_path, write_tif):
    values = np.zeros((40, 40), np.uint8)
    values[2:4, 2:4], values[10:13, 10:13] = 1, 1  # 400 and 900 m2
    path = write_tif("m.tif", values[..., None], crs=UTM, transform=GRID)
    report = vectorize(path, tmp_path / "p.gpkg", min_area_m2=500)
    assert (report.features, report.left_out) == (1, 1)
    assert read(tmp_path / "p.gpkg").area_m2[0] == pytest.approx(900, rel=2e-3)


def test_a_map_without_classes_becomes_an_empty_file(tmp_path, write_tif):
    path = write_tif("m.tif", np.zeros((9, 9, 1), np.uint8), crs=UTM, transform=GRID)
    for name in ("p.gpkg", "p.parquet", "p.geojson"):
        assert vectorize(path, tmp_path / name).features == 0
        assert len(read(tmp_path / name)) == 0


def test_bad_input_writes_nothing(tmp_path, write_tif):
    plain = write_tif("a.tif", np.zeros((9, 9, 1), np.uint8))
    wrong = write_tif("b.tif", np.full((9, 9, 1), 7, np.uint8), crs=UTM, transform=GRID)
    for zoom in (20, 21):
        path = tmp_path / "tiles" / f"{zoom}/5/5.png"
        path.parent.mkdir(parents=True)
        write_png(path, np.ones((8, 8), np.uint8), LAND)
    for source, out, message in (
        (plain, "p.gpkg", "no CRS"),
        (wrong, "p.gpkg", "class value 7"),
        (wrong, "p.shp", "Expected .gpkg"),
        (tmp_path / "tiles", "p.gpkg", "zoom 20, 21"),
    ):
        with pytest.raises(LabelsError, match=message):
            vectorize(source, tmp_path / out, classes=LAND)
    assert not list(tmp_path.glob("p*"))
    (tmp_path / "p.gpkg").write_text("mine")
    with pytest.raises(OutputExistsError):
        vectorize(wrong, tmp_path / "p.gpkg")


def test_the_command_prints_numbers(tmp_path, write_tif):
    path = write_tif("m.tif", regions(4)[..., None], crs=UTM, transform=GRID)
    done = run("labels", "vectorize", path, "--out", tmp_path / "p.gpkg", "--min-area", 300, "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["features"] == len(read(tmp_path / "p.gpkg")) and result["left_out"] > 0
