"""Vector labels to masks: which pixels, which class, in which CRS, and errors."""

import json

import pytest

pytest.importorskip("mercantile", reason="needs the extra `labels`")
pytest.importorskip("pyogrio", reason="needs the extra `labels`")

import geopandas
import mercantile
import numpy as np
import rasterio
import shapely
from labelground import CORNER, image_tile, polygon, run, square, write_geojson
from PIL import Image

from retrieval.errors import LabelsError
from retrieval.labels import check, rasterize
from retrieval.labels.canvas import Canvas
from retrieval.labels.classes import read_classes
from retrieval.labels.grids import open_grid
from retrieval.labels.masks import classes_of, read_mask
from tfrecords.errors import MissingInputError, OutputExistsError

NAME = f"{CORNER.z}/{CORNER.x}/{CORNER.y}"
UTM = "EPSG:32631"
STEP = 10.0
WEST, NORTH = 500_000.0, 5_000_000.0


def inside(shapes, width=64, height=64):
    """Where the centres of pixels of the UTM raster lie in a geometry: the oracle."""
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    points = shapely.points(WEST + STEP * x, NORTH - STEP * y)
    return np.any([shapely.contains(shape, points) for shape in shapes], axis=0)


def ground(x, y, w, h):
    """A box in pixels of the UTM raster."""
    return shapely.box(WEST + STEP * x, NORTH - STEP * (y + h), WEST + STEP * (x + w), NORTH - STEP * y)


@pytest.fixture
def scene(write_tif):
    pixels = np.full((64, 64, 3), 9, np.uint8)
    return write_tif("scene.tif", pixels, crs=UTM, transform=(STEP, 0, WEST, 0, -STEP, NORTH))


def write(path, shapes, crs=UTM, **columns):
    frame = geopandas.GeoDataFrame(columns, geometry=list(shapes), crs=crs)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_file(path)
    return path


def mask_of(path):
    with rasterio.open(path) as dataset:
        return dataset.read(1)


SHAPES = [
    ground(2, 3, 20, 10).difference(ground(6, 5, 4, 4)),  # with a hole
    shapely.MultiPolygon([ground(30, 30, 5, 5), ground(40.3, 41.2, 7.7, 3)]),
    shapely.Polygon([(WEST + 300, NORTH - 20), (WEST + 610, NORTH - 35), (WEST + 420, NORTH - 260)]),
]


@pytest.mark.parametrize("ending", ["gpkg", "parquet", "fgb", "shp"])
def test_a_pixel_is_labelled_if_its_centre_lies_inside(tmp_path, scene, ending):
    report = rasterize(write(tmp_path / f"town.{ending}", SHAPES), scene, tmp_path / "m.tif")
    assert np.array_equal(mask_of(tmp_path / "m.tif"), inside(SHAPES))
    assert report.features == 3 and report.classes["town"] == inside(SHAPES).sum()
    with rasterio.open(tmp_path / "m.tif") as made, rasterio.open(scene) as image:
        assert (made.crs, made.transform, made.shape, made.nodata) == (
            image.crs,
            image.transform,
            image.shape,
            255,
        )
    assert classes_of(tmp_path / "m.tif").names == ("background", "town")
    assert not report.notes


def test_labels_in_another_crs_are_reprojected_and_noted(tmp_path, scene):
    frame = geopandas.GeoDataFrame(geometry=SHAPES, crs=UTM)
    for crs, name in (("EPSG:3035", "a.gpkg"), ("EPSG:4326", "b.geojson"), (None, "c.geojson")):
        frame.to_crs(crs or "EPSG:4326").to_file(tmp_path / name)
        if crs is None:
            text = json.loads((tmp_path / name).read_text())
            text.pop("crs", None)
            (tmp_path / name).write_text(json.dumps(text))
        report = rasterize(tmp_path / name, scene, tmp_path / f"{name}.tif")
        different = mask_of(tmp_path / f"{name}.tif") != inside(SHAPES)
        assert different.sum() <= 3  # an edge through a centre may fall to either side
        assert f"to {UTM}" in report.notes[0]


def test_labels_without_a_crs_are_refused(tmp_path, scene):
    with pytest.warns(UserWarning):
        write(tmp_path / "a.gpkg", SHAPES, crs=None)
    write(tmp_path / "b.shp", SHAPES)
    (tmp_path / "b.prj").unlink()
    write(tmp_path / "c.parquet", SHAPES, crs=None)
    for name in ("a.gpkg", "b.shp", "c.parquet"):
        with pytest.raises(LabelsError, match="no CRS"):
            rasterize(tmp_path / name, scene, tmp_path / "m.tif")
    assert not (tmp_path / "m.tif").exists()


def test_an_image_without_a_crs_is_refused(tmp_path, write_tif):
    labels = write(tmp_path / "a.gpkg", SHAPES)
    with pytest.raises(LabelsError, match="no CRS"):
        rasterize(labels, write_tif("x.tif", np.ones((8, 8, 1), np.uint8)), tmp_path / "m.tif")


def test_invalid_geometries_are_repaired_and_counted(tmp_path, scene):
    x, y = WEST, NORTH
    bow = shapely.Polygon([(x, y), (x + 401, y - 387), (x + 412, y), (x, y - 403)])
    path = write(tmp_path / "a.parquet", [bow, None, shapely.Polygon(), SHAPES[0]])
    report = rasterize(path, scene, tmp_path / "m.tif")
    assert np.array_equal(mask_of(tmp_path / "m.tif"), inside([shapely.make_valid(bow), SHAPES[0]]))
    assert report.notes == (
        "a.parquet: 1 invalid geometries repaired",
        "a.parquet: 2 features without a usable geometry left out",
    )


def test_points_and_lines_are_drawn(tmp_path, scene):
    point = shapely.Point(WEST + 55, NORTH - 75)
    line = shapely.LineString([(WEST + 100, NORTH - 305), (WEST + 500, NORTH - 305)])
    rasterize(write(tmp_path / "a.gpkg", [point, line]), scene, tmp_path / "m.tif")
    found = mask_of(tmp_path / "m.tif")
    assert found[7, 5] == 1 and found[30, 10:50].all() and found.sum() in (41, 42)


def test_a_collection_of_points_lines_and_polygons_is_drawn(tmp_path, scene):
    def middle(column, row):
        return WEST + STEP * (column + 0.5), NORTH - STEP * (row + 0.5)

    parts = [
        shapely.MultiPoint([middle(5, 5), middle(9, 5)]),
        shapely.MultiLineString([[middle(10, 30), middle(50, 30)], [middle(10, 40), middle(50, 40)]]),
        ground(2, 50, 7, 8),
    ]
    path = write(tmp_path / "a.gpkg", [shapely.GeometryCollection(parts)])
    expected = inside([parts[2]]).astype(int)
    expected[5, [5, 9]] = 1
    for width, rows in ((None, (0,)), (45, (-2, -1, 0, 1, 2))):
        rasterize(path, scene, tmp_path / "m.tif", line_width_m=width, overwrite=True)
        found = mask_of(tmp_path / "m.tif")
        for row in rows:
            assert found[[30 + row, 40 + row], 11:50].all()
        assert np.array_equal(found[:, :10], expected[:, :10])
        assert found[np.ix_([26, 34, 36, 44], range(64))].sum() == 0


@pytest.mark.parametrize("latitude", [0.0, 60.0])
def test_the_width_of_lines_is_in_metres_on_the_ground(tmp_path, latitude):
    tile = mercantile.tile(20, latitude, 18)
    image_tile(tmp_path / "tiles", tile)
    box = mercantile.bounds(tile)
    middle = (box.south + box.north) / 2
    line = {"type": "LineString", "coordinates": [[box.west - 0.01, middle], [box.east + 0.01, middle]]}
    path = write_geojson(tmp_path / "a.geojson", [{"type": "Feature", "properties": {}, "geometry": line}])
    rasterize(path, tmp_path / "tiles", tmp_path / "masks", line_width_m=12)
    rows = read_mask(tmp_path / "masks" / f"18/{tile.x}/{tile.y}.png")[:, 100].sum()
    metres = 156543.034 / 2**18 * np.cos(np.radians(latitude))
    assert abs(rows * metres - 12) <= metres


def test_a_wide_line_outside_of_the_images_reaches_into_them(tmp_path):
    tile = mercantile.tile(20, 60, 20)
    image_tile(tmp_path / "tiles", tile)
    box = mercantile.bounds(tile)
    metres = 156543.034 / 2**20 * np.cos(np.radians(60))  # of a pixel
    beyond = box.north + 5 / 111_320
    line = {"type": "LineString", "coordinates": [[box.west - 0.01, beyond], [box.east + 0.01, beyond]]}
    path = write_geojson(tmp_path / "a.geojson", [{"type": "Feature", "properties": {}, "geometry": line}])
    rasterize(path, tmp_path / "tiles", tmp_path / "masks", line_width_m=16)
    rows = read_mask(tmp_path / "masks" / f"20/{tile.x}/{tile.y}.png")[:, 100].sum()
    assert abs(rows * metres - 3) <= 2 * metres


def test_the_class_comes_from_an_attribute(tmp_path, scene):
    shapes = [
        ground(0, 0, 64, 64),
        ground(4, 4, 8, 8),
        ground(20, 20, 8, 8),
        ground(40, 40, 8, 8),
        ground(50, 50, 4, 4),
    ]
    kinds = ["wood", "lake", "pond", None, "cloud"]
    path = write(tmp_path / "a.gpkg", shapes, kind=kinds)
    (tmp_path / "c.csv").write_text(
        "name,value,colour\nforest,wood,#008000\nwater,lake,#0000ff\nwater,pond,\nignored,cloud,\n"
    )
    report = rasterize(path, scene, tmp_path / "m.tif", attribute="kind", classes=tmp_path / "c.csv")
    expected = np.zeros((64, 64), np.uint8)
    expected[4:12, 4:12] = expected[20:28, 20:28] = 1
    expected[50:54, 50:54] = 255
    assert np.array_equal(mask_of(tmp_path / "m.tif"), expected)
    assert report.notes == ("1 features without a value of kind left out",)
    with rasterio.open(tmp_path / "m.tif") as dataset:
        assert dataset.colormap(1)[0] == (0, 128, 0, 255)


def test_ground_without_a_label_is_255_where_there_is_no_background(tmp_path, scene):
    path = write(tmp_path / "a.gpkg", [ground(4, 4, 8, 8)])
    rasterize(path, scene, tmp_path / "m.tif", classes="deepglobe", as_class="water")
    assert set(np.unique(mask_of(tmp_path / "m.tif"))) == {4, 255}


def test_later_features_and_appended_files_cover_earlier_ones(tmp_path, scene):
    (tmp_path / "c.csv").write_text("name\nbackground\nfield\nroad\n")
    first = write(tmp_path / "a.gpkg", [ground(0, 0, 20, 20), ground(10, 10, 20, 20)], kind=["field", "road"])
    second = write(tmp_path / "b.gpkg", [ground(5, 5, 3, 40)])
    options = {"classes": tmp_path / "c.csv"}
    rasterize(first, scene, tmp_path / "m.tif", attribute="kind", **options)
    rasterize(second, scene, tmp_path / "m.tif", as_class="road", append=True, **options)
    expected = np.zeros((64, 64), np.uint8)
    expected[:20, :20], expected[10:30, 10:30], expected[5:45, 5:8] = 1, 2, 2
    assert np.array_equal(mask_of(tmp_path / "m.tif"), expected)
    with pytest.raises(MissingInputError, match="append"):
        rasterize(second, scene, tmp_path / "n.tif", append=True)
    with pytest.raises(OutputExistsError):
        rasterize(second, scene, tmp_path / "m.tif")


def test_a_raster_of_several_windows_equals_one_whole_pass(tmp_path, write_tif, rng):
    image = np.ones((2100, 2070, 1), np.uint8)
    image[2000:, 2000:] = 0
    like = write_tif(
        "big.tif", image, crs=UTM, transform=(STEP, 0, WEST, 0, -STEP, NORTH), nodata=0, compress="deflate"
    )
    corners = rng.uniform(0, 2000, (60, 2))
    shapes = [ground(x, y, *rng.uniform(3, 200, 2)) for x, y in corners]
    report = rasterize(write(tmp_path / "a.gpkg", shapes), like, tmp_path / "m.tif")
    transform = rasterio.Affine(STEP, 0, WEST, 0, -STEP, NORTH)
    whole = rasterio.features.rasterize(
        [(s, 1) for s in shapes], image.shape[:2], transform=transform, dtype="uint8"
    )
    whole[2000:, 2000:] = 255
    assert np.array_equal(mask_of(tmp_path / "m.tif"), whole)
    assert report.features == 60 * 1 and report.masks == 1


@pytest.mark.parametrize("block_tiles", [1, 2, 99])
def test_masks_burnt_in_blocks_equal_one_whole_pass(tmp_path, rng, block_tiles):
    tiles = [mercantile.Tile(CORNER.x + dx, CORNER.y + dy, CORNER.z) for dy in range(3) for dx in range(3)]
    (tmp_path / "c.csv").write_text("z,x,y,split\n" + "".join(f"{t.z},{t.x},{t.y},train\n" for t in tiles))
    grid = open_grid(tmp_path / "c.csv")
    step = grid.pieces[0].transform.a
    west, north = grid.pieces[0].bounds[0], grid.pieces[0].bounds[3]
    x, y = west + step * rng.uniform(0, 760, 80), north - step * rng.uniform(0, 760, 80)
    shapes = shapely.box(x, y, x + step * rng.uniform(2, 300, 80), y + step * rng.uniform(2, 300, 80))
    values = rng.integers(1, 5, 80)
    canvas = Canvas(grid, 0, tmp_path, None, block_px=block_tiles * 256**2)
    boxes = shapely.box(*np.array([piece.bounds for piece in grid.pieces]).T)
    for batch in np.array_split(np.arange(80), 3):
        rows, numbers = shapely.STRtree(boxes).query(shapes[batch], predicate="intersects")
        canvas.add(shapes[batch], values[batch], rows, numbers)
    found = np.block([[canvas.finished(3 * dy + dx) for dx in range(3)] for dy in range(3)])
    whole = rasterio.features.rasterize(
        list(zip(shapes, values, strict=True)), (768, 768), transform=grid.pieces[0].transform, dtype="uint8"
    )
    assert np.array_equal(found, whole)
    assert not list(tmp_path.glob("*.npy"))


def test_xyz_tiles_become_palette_pngs_and_hidden_pixels_255(tmp_path):
    below = mercantile.Tile(CORNER.x, CORNER.y + 1, CORNER.z)
    image_tile(tmp_path / "tiles", CORNER, 1, alpha=True)
    image_tile(tmp_path / "tiles", below, 2)
    path = tmp_path / "tiles" / f"{NAME}.png"
    with Image.open(path) as image:
        pixels = np.array(image)
    pixels[:, 250:, 3] = 0
    Image.fromarray(pixels).save(path)
    labels = write_geojson(
        tmp_path / "house.geojson", [polygon(square(CORNER, 200, 240, 53), square(CORNER, 210, 250, 4))]
    )
    report = rasterize(labels, tmp_path / "tiles", tmp_path / "masks")
    expected = np.zeros((512, 256), np.uint8)
    expected[240:293, 200:253] = 1
    expected[250:254, 210:214] = 0
    expected[:256, 250:] = 255
    found = [read_mask(tmp_path / "masks" / f"20/{t.x}/{t.y}.png") for t in (CORNER, below)]
    assert np.array_equal(np.concatenate(found), expected)
    assert report.masks == 2 and report.classes["house"] == (expected == 1).sum()
    with Image.open(tmp_path / "masks" / f"{NAME}.png") as image:
        assert image.mode == "P"
    assert list(check(tmp_path / "tiles", tmp_path / "masks").classes) == ["background", "house"]


def test_a_cover_and_a_folder_of_rasters_are_grids_too(tmp_path, write_tif):
    labels = write_geojson(tmp_path / "house.geojson", [polygon(square(CORNER, 20, 30, 40))])
    (tmp_path / "c.csv").write_text(f"z,x,y,split\n{CORNER.z},{CORNER.x},{CORNER.y},val\n")
    rasterize(labels, tmp_path / "c.csv", tmp_path / "masks")
    assert read_mask(tmp_path / "masks" / f"{NAME}.png").sum() == 1600
    for zone, east in ((31, WEST), (32, WEST + 640)):
        crs = f"EPSG:326{zone}"
        write_tif(
            f"scenes/{zone}/a_sat.tif",
            np.ones((64, 64, 1), np.uint8),
            crs=crs,
            transform=(STEP, 0, east, 0, -STEP, NORTH),
        )
    first = geopandas.GeoSeries([ground(3, 3, 9, 9)], crs=UTM).to_crs(4326)
    second = geopandas.GeoSeries([ground(70, 3, 5, 5)], crs="EPSG:32632").to_crs(4326)
    write(tmp_path / "two.gpkg", [*first, *second], crs=4326)
    rasterize(tmp_path / "two.gpkg", tmp_path / "scenes", tmp_path / "maps")
    assert [int(mask_of(tmp_path / "maps" / f"{zone}/a.tif").sum()) for zone in (31, 32)] == [81, 25]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attribute": "colour", "classes": "deepglobe"}, "no attribute 'colour'. Expected one of kind"),
        ({"attribute": "kind", "classes": "deepglobe"}, "class value 'house': unknown"),
        ({"classes": "deepglobe"}, "--attribute"),
        ({"classes": "deepglobe", "as_class": "sea"}, "--class sea: unknown"),
        ({"classes": "deepglobe", "as_class": "water", "attribute": "kind"}, "exclude"),
        ({"line_width_m": 0.0}, "above 0"),
        ({"layer": "other"}, "no layer 'other'"),
    ],
)
def test_bad_options_write_nothing(tmp_path, scene, options, message):
    path = write(tmp_path / "a.gpkg", [SHAPES[0]], kind=["house"])
    before = sorted(tmp_path.iterdir())
    with pytest.raises(LabelsError, match=message):
        rasterize(path, scene, tmp_path / "m.tif", **options)
    assert sorted(tmp_path.iterdir()) == before


def test_bad_files_write_nothing(tmp_path, scene):
    far = write(tmp_path / "far.gpkg", [shapely.box(0, 0, 10, 10)])
    (tmp_path / "torn.geojson").write_text('{"type": "FeatureCollection", "features": [{"type"')
    (tmp_path / "text.parquet").write_text("no")
    geopandas.GeoDataFrame(geometry=[SHAPES[0]], crs=UTM).to_file(tmp_path / "two.gpkg", layer="a")
    geopandas.GeoDataFrame(geometry=[SHAPES[0]], crs=UTM).to_file(tmp_path / "two.gpkg", layer="b")
    for path, message in (
        (far, "none of its"),
        (tmp_path / "torn.geojson", "torn.geojson"),
        (tmp_path / "text.parquet", "not GeoParquet"),
        (tmp_path / "two.gpkg", "several layers; name one with --layer. Expected one of a, b"),
    ):
        with pytest.raises(LabelsError, match=message):
            rasterize(path, scene, tmp_path / "m.tif")
    with pytest.raises(MissingInputError):
        rasterize(tmp_path / "none.gpkg", scene, tmp_path / "m.tif")
    with pytest.raises(LabelsError, match=r"Expected \.tif"):
        rasterize(far, scene, tmp_path / "m.png")
    assert not list(tmp_path.glob("m.*"))


def test_the_command_prints_shares(tmp_path, scene):
    labels = write(tmp_path / "town.gpkg", [ground(0, 0, 32, 64)])
    done = run("labels", "rasterize", labels, "--like", scene, "--out", tmp_path / "m.tif")
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == f"{tmp_path / 'm.tif'}: 1 masks, 1 features; background 50.00%, town 50.00%"
    done = run("labels", "rasterize", labels, "--like", scene, "--out", tmp_path / "m.tif")
    assert done.exit_code == 1 and "exists and is kept" in done.stderr


def test_masks_of_colours_become_indices_and_colours_again(tmp_path, write_tif):
    deepglobe = read_classes("deepglobe")
    values = (np.arange(64, dtype=np.uint8).reshape(8, 8) % 7).clip(0, 6)
    values[values == 6] = 255
    (tmp_path / "colours").mkdir()
    Image.fromarray(deepglobe.to_colours(values)).save(tmp_path / "colours" / "855_mask.png")
    grid = {"crs": UTM, "transform": (STEP, 0, WEST, 0, -STEP, NORTH)}
    write_tif("colours/9_mask.tif", deepglobe.to_colours(values), **grid)
    arguments = ("--classes", "deepglobe", "--json")
    done = run("labels", "rasterize", tmp_path / "colours", "--out", tmp_path / "masks", *arguments)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["masks"] == 2
    for name in ("855.png", "9.tif"):
        assert np.array_equal(read_mask(tmp_path / "masks" / name), values)
        assert classes_of(tmp_path / "masks" / name).names == deepglobe.names
    with rasterio.open(tmp_path / "masks" / "9.tif") as dataset:
        assert dataset.crs == UTM and dataset.bounds.left == WEST
    back = ("labels", "rasterize", tmp_path / "masks" / "855.png", "--out", tmp_path / "c.png", "--colours")
    assert run(*back, *arguments).exit_code == 0
    with Image.open(tmp_path / "c.png") as image:
        assert np.array_equal(np.array(image), deepglobe.to_colours(values))
    assert run("labels", "rasterize", tmp_path / "colours", "--out", tmp_path / "x").exit_code == 2
    assert run("labels", "rasterize", "a.gpkg", "--out", tmp_path / "x").exit_code == 2
    wrong = run(
        "labels", "rasterize", tmp_path / "masks" / "855.png", "--out", tmp_path / "c.jpg", *arguments
    )
    assert wrong.exit_code == 1 and "Expected .png" in wrong.stderr
    assert list(tmp_path.glob("x*")) == []
