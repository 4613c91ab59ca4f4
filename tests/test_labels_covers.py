"""Covers: the tiles of an area or the windows of rasters, their split by ground, and selections of them."""

import csv
import json
from collections import Counter

import pytest

pytest.importorskip("mercantile", reason="needs the extra `labels`")
pytest.importorskip("pyogrio", reason="needs the extra `labels`")

import mercantile
import numpy as np
import rasterio
import rasterio.warp
import shapely
from labelground import CORNER, image_tile, polygon, run, square, write_geojson

from retrieval.errors import LabelsError
from retrieval.geo.request import BoundingBox
from retrieval.labels import cover, subset
from retrieval.labels.covers import assign, parse_split, read_cover
from tfrecords.errors import MissingInputError, OutputExistsError

TOULOUSE = BoundingBox(1.35, 43.55, 1.45, 43.62)


def rows_of(path):
    with path.open() as file:
        return [(int(r["z"]), int(r["x"]), int(r["y"]), r["split"]) for r in csv.DictReader(file)]


def test_a_box_is_covered_by_the_tiles_that_it_meets(tmp_path):
    report = cover(TOULOUSE, tmp_path / "c.csv", zoom=15)
    found = {mercantile.Tile(x, y, z) for z, x, y, _ in rows_of(tmp_path / "c.csv")}
    assert found == set(mercantile.tiles(*TOULOUSE.as_tuple(), zooms=15))
    assert report.tiles == len(found) and (tmp_path / "c.csv").read_text().startswith("z,x,y,split\n")


def test_a_window_that_cannot_be_written_does_not_blame_its_scene(tmp_path):
    resource = pytest.importorskip("resource")
    pixels = np.random.default_rng(0).integers(0, 60_000, (3, 256, 256)).astype(np.uint16)
    place = {"crs": "EPSG:32631", "transform": rasterio.Affine(10, 0, 5e5, 0, -10, 5e6)}
    with rasterio.open(tmp_path / "a.tif", "w", "GTiff", 256, 256, 3, dtype="uint16", **place) as scene:
        scene.write(pixels)
    (tmp_path / "w.csv").write_text("name,col_off,row_off,width,height\na,0,0,256,256\n")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))  # as on a disk that gets full
    try:
        with pytest.raises(OSError, match="Write failed"):
            subset(tmp_path / "a.tif", tmp_path / "w.csv", tmp_path / "cut")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    subset(tmp_path / "a.tif", tmp_path / "w.csv", tmp_path / "cut")
    with rasterio.open(tmp_path / "cut" / "a_0_0.tif") as cut:
        assert np.array_equal(cut.read(), pixels)


def test_a_polygon_is_covered_as_a_slow_comparison_of_all_tiles_says(tmp_path):
    outer = [[1.30, 43.50], [1.52, 43.47], [1.57, 43.66], [1.41, 43.58], [1.30, 43.50]]
    hole = [[1.42, 43.51], [1.50, 43.51], [1.50, 43.57], [1.42, 43.57], [1.42, 43.51]]
    path = write_geojson(tmp_path / "a.geojson", [polygon(outer, hole)])
    cover(path, tmp_path / "c.csv", zoom=16)
    shape = shapely.Polygon(outer, [hole])
    near = mercantile.tiles(*shape.bounds, zooms=16)
    expected = {t for t in near if shape.intersects(shapely.box(*mercantile.bounds(t)))}
    found = {mercantile.Tile(x, y, z) for z, x, y, _ in rows_of(tmp_path / "c.csv")}
    assert found == expected and len(expected) < 1000


def test_the_outline_of_a_tile_is_covered_by_its_own_tiles_alone(tmp_path):
    box = mercantile.bounds(CORNER)
    path = write_geojson(tmp_path / "a.geojson", [polygon(square(CORNER, 0, 0, 256))])
    cover(path, tmp_path / "c.csv", zoom=22, split="100/0/0")
    assert {r[:3] for r in rows_of(tmp_path / "c.csv")} == {
        (t.z, t.x, t.y) for t in mercantile.children(CORNER, zoom=22)
    }
    assert box.west < box.east


@pytest.mark.parametrize("kind", ["Point", "LineString"])
def test_points_and_lines_are_covered(tmp_path, kind):
    coordinates = [1.4001, 43.6] if kind == "Point" else [[1.4001, 43.6], [1.4201, 43.6]]
    feature = {"type": "Feature", "properties": {}, "geometry": {"type": kind, "coordinates": coordinates}}
    cover(write_geojson(tmp_path / "a.geojson", [feature]), tmp_path / "c.csv", zoom=16, split="1/0/0")
    first, last = mercantile.tile(1.4001, 43.6, 16), mercantile.tile(1.4201, 43.6, 16)
    expected = {(16, x, first.y) for x in range(first.x, (first if kind == "Point" else last).x + 1)}
    assert {r[:3] for r in rows_of(tmp_path / "c.csv")} == expected


def test_a_box_across_the_antimeridian_has_tiles_on_both_sides(tmp_path):
    cover(BoundingBox(179.9, -17, -179.9, -16.9), tmp_path / "c.csv", zoom=12, split="1/0/0")
    columns = {x for _, x, _, _ in rows_of(tmp_path / "c.csv")}
    assert min(columns) == 0 and max(columns) == 2**12 - 1


def test_no_block_is_in_two_splits_and_the_shares_are_met(tmp_path):
    report = cover(TOULOUSE, tmp_path / "c.csv", zoom=18)
    splits = {}
    for z, x, y, name in rows_of(tmp_path / "c.csv"):
        block = mercantile.parent(mercantile.Tile(x, y, z), zoom=report.block_zoom)
        assert splits.setdefault(block, name) == name
    assert len(splits) == report.blocks >= 20 and report.block_zoom < 18
    shares = [report.splits[name] / report.tiles for name in ("train", "val", "test")]
    assert shares == pytest.approx([0.7, 0.2, 0.1], abs=0.05)


def test_the_seed_decides_the_split(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        cover(TOULOUSE, tmp_path / name, zoom=16, seed=seed)
    a, b, c = ((tmp_path / name).read_text() for name in "abc")
    assert a == b != c


def test_a_gap_keeps_splits_apart(tmp_path):
    cover(TOULOUSE, tmp_path / "c.csv", zoom=16, gap=2)
    rows = rows_of(tmp_path / "c.csv")
    assert {name for *_, name in rows} == {"train", "val", "test"}
    for z, x, y, name in rows:
        near = [other for oz, ox, oy, other in rows if oz == z and max(abs(ox - x), abs(oy - y)) <= 2]
        assert set(near) == {name}


def test_a_folder_of_tiles_keeps_its_zooms_and_no_ground_is_in_two_splits(tmp_path):
    blocks = [mercantile.Tile(100 + 7 * n, 50 + 3 * n, 8) for n in range(12)]
    for n, block in enumerate(blocks):
        for tile in mercantile.children(mercantile.children(block)[0], zoom=10):
            image_tile(tmp_path / "tiles", tile, n, size=8)
            image_tile(tmp_path / "tiles", mercantile.children(tile)[1], n, size=8)
    report = cover(tmp_path / "tiles", tmp_path / "c.csv")
    rows = rows_of(tmp_path / "c.csv")
    assert Counter(z for z, *_ in rows) == {10: 48, 11: 48} and report.tiles == 96
    split_of = {(z, x, y): name for z, x, y, name in rows}
    for (z, x, y), name in split_of.items():
        if z == 11:
            assert split_of[10, x // 2, y // 2] == name
    cover(tmp_path / "tiles", tmp_path / "one.csv", zoom=9, split="1/1/1")
    assert {z for z, *_ in rows_of(tmp_path / "one.csv")} == {9}


def test_a_raster_in_utm_is_covered(tmp_path, write_tif, rng):
    pixels = rng.integers(1, 255, (100, 120, 1)).astype("uint8")
    transform = (10.0, 0.0, 370_000.0, 0.0, -10.0, 4_830_000.0)
    path = write_tif("scenes/a.tif", pixels, crs="EPSG:32631", transform=transform)
    for source in (path, path.parent):
        cover(source, tmp_path / "c.csv", zoom=14, split="1/0/0", overwrite=True)
        from rasterio.warp import transform_bounds

        box = transform_bounds("EPSG:32631", "EPSG:4326", 370_000, 4_829_000, 371_200, 4_830_000)
        assert {r[1:3] for r in rows_of(tmp_path / "c.csv")} <= {
            t[:2] for t in mercantile.tiles(*box, zooms=14)
        }
        assert rows_of(tmp_path / "c.csv")
    with pytest.raises(LabelsError, match="no CRS"):
        cover(write_tif("b.tif", pixels), tmp_path / "d.csv", zoom=14)


def test_every_split_gets_a_block_and_the_large_shares_get_most():
    blocks = [mercantile.Tile(n, 0, 10) for n in range(5) for _ in range(16)]
    for seed in range(5):
        counts = Counter(assign(blocks, (0.7, 0.2, 0.1), seed).values())
        assert counts == {"train": 3, "val": 1, "test": 1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"zoom": 31}, "out of range"),
        ({"zoom": None}, "--zoom"),
        ({"zoom": 15, "split": "70/x"}, "70/20/10"),
        ({"zoom": 15, "split": "0/0/0"}, "70/20/10"),
        ({"zoom": 15, "block_zoom": 16}, "--block-zoom"),
        ({"zoom": 15, "block_zoom": 2}, "too few"),
    ],
)
def test_bad_requests_write_nothing(tmp_path, arguments, message):
    with pytest.raises(LabelsError, match=message):
        cover(TOULOUSE, tmp_path / "c.csv", **arguments)
    assert not list(tmp_path.iterdir())


def test_a_cover_is_kept_and_a_polar_area_has_no_tile(tmp_path):
    (tmp_path / "c.csv").write_text("mine")
    with pytest.raises(OutputExistsError):
        cover(TOULOUSE, tmp_path / "c.csv", zoom=12)
    with pytest.raises(LabelsError, match="no tile"):
        cover(BoundingBox(0, 87, 5, 88), tmp_path / "d.csv", zoom=12)
    assert parse_split("3/1") == (0.75, 0.25, 0)


def test_the_command_prints_the_numbers(tmp_path):
    done = run("labels", "cover", "--bbox", TOULOUSE, "--zoom", 15, "--out", tmp_path / "c.csv", "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["tiles"] == sum(result["splits"].values()) == len(rows_of(tmp_path / "c.csv"))
    assert run("labels", "cover", "--out", tmp_path / "d.csv").exit_code == 2


# --- subset -------------------------------------------------------------------------------------


@pytest.fixture
def tiles(tmp_path):
    some = mercantile.children(mercantile.parent(CORNER))
    for n, tile in enumerate(some):
        image_tile(tmp_path / "tiles", tile, n, size=8)
    lines = [f"{t.z},{t.x},{t.y},{'train' if n < 3 else 'val'}" for n, t in enumerate(some)]
    (tmp_path / "c.csv").write_text("z,x,y,split\n" + "\n".join(lines) + "\n")
    return some


@pytest.mark.parametrize("link", [False, True])
def test_chosen_tiles_are_copied_or_linked(tmp_path, tiles, link):
    report = subset(tmp_path / "tiles", tmp_path / "c.csv", tmp_path / "s", split="train", link=link)
    assert report.files == 3 and report.missing == ()
    for tile in tiles[:3]:
        name = f"{tile.z}/{tile.x}/{tile.y}.png"
        assert (tmp_path / "s" / name).is_symlink() == link
        assert (tmp_path / "s" / name).read_bytes() == (tmp_path / "tiles" / name).read_bytes()
    assert len(list((tmp_path / "s").rglob("*.png"))) == 3


def test_names_choose_files_and_missing_ones_are_listed(tmp_path, tiles):
    tile = tiles[1]
    (tmp_path / "n.csv").write_text(f"name,why\n{tile.z}/{tile.x}/{tile.y},hard\nnowhere,\n")
    done = run(
        "labels",
        "subset",
        tmp_path / "tiles",
        "--cover",
        tmp_path / "n.csv",
        "--out",
        tmp_path / "s",
        "--json",
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["missing"] == ["nowhere"] and json.loads(done.stdout)["files"] == 1


def test_bad_selections_write_nothing(tmp_path, tiles):
    (tmp_path / "x.csv").write_text("z,x,y\n3,9,1\n")
    (tmp_path / "y.csv").write_text("a,b\n1,2\n")
    (tmp_path / "z.csv").write_text("z,x,y\n3,1,1\n")
    for name, error in (
        ("x", LabelsError),
        ("y", LabelsError),
        ("z", MissingInputError),
        ("no", MissingInputError),
    ):
        with pytest.raises(error):
            subset(tmp_path / "tiles", tmp_path / f"{name}.csv", tmp_path / "s")
    assert not list(tmp_path.glob("s*"))
    assert len(read_cover(tmp_path / "c.csv", "val")) == 1


def test_few_coarse_tiles_with_finer_ones_are_blocks_themselves(tmp_path):
    for n, tile in enumerate(mercantile.children(mercantile.parent(CORNER))[:3]):
        for one in (tile, *mercantile.children(tile)):
            image_tile(tmp_path / "tiles", one, n, size=8)
    report = cover(tmp_path / "tiles", tmp_path / "c.csv")
    assert (report.block_zoom, report.blocks, set(report.splits.values())) == (20, 3, {5})
    with pytest.raises(LabelsError, match="too few"):
        cover(tmp_path / "tiles", tmp_path / "d.csv", zoom=20)


# --- windows ------------------------------------------------------------------------------------------

UTM = "EPSG:32631"
GRID = (10.0, 0.0, 400_000.0, 0.0, -10.0, 4_830_000.0)


def windows_of(path):
    with path.open() as file:
        return [
            (row["name"], *(int(row[n]) for n in ("col_off", "row_off", "width", "height")), row["split"])
            for row in csv.DictReader(file)
        ]


@pytest.fixture
def two_scenes(tmp_path, write_tif):
    """Two dates of one place; the second lies 300 px further east, and 7 off the first one's windows."""
    numbers = np.arange(600 * 700 * 2, dtype=np.uint32).reshape(600, 700, 2) % 60_000
    (tmp_path / "scenes").mkdir()
    for name, dx in (("scenes/a.tif", 0), ("scenes/b.tif", 307)):
        grid = (10.0, 0.0, GRID[2] + 10 * dx, *GRID[3:])
        write_tif(
            name, (numbers + dx).astype(np.uint16), crs=UTM, transform=grid, descriptions=("B04", "B08")
        )
    return tmp_path / "scenes"


def test_windows_cut_a_raster_whole_and_split_it_by_blocks(tmp_path, two_scenes):
    report = cover(two_scenes / "a.tif", tmp_path / "w.csv", window=64, split="60/20/20")
    found = windows_of(tmp_path / "w.csv")
    seen = np.zeros((600, 700), int)
    for name, x, y, width, height, _ in found:
        assert name == "a"
        seen[y : y + height, x : x + width] += 1
    assert (seen == 1).all() and report.tiles == len(found) == 10 * 11
    assert {row[-1] for row in found} == {"train", "val", "test"} and report.blocks >= 20
    assert (tmp_path / "w.csv").read_text().startswith("name,col_off,row_off,width,height,split\n")
    again = cover(two_scenes / "a.tif", tmp_path / "again.csv", window=64, split="60/20/20")
    assert (tmp_path / "again.csv").read_bytes() == (
        tmp_path / "w.csv"
    ).read_bytes() and again.notes == report.notes


@pytest.mark.parametrize("gap", [0, 1])
def test_no_ground_of_two_dates_is_in_two_splits(tmp_path, two_scenes, gap):
    report = cover(None, tmp_path / "w.csv", like=two_scenes, window=64, gap=gap)
    left_out = 2 * 10 * 11 - report.tiles
    assert left_out > 0 and f"{left_out} windows within {gap}" in report.notes[0]
    split_at = np.full((600 + 128, 1007 + 128), "", object)
    found = windows_of(tmp_path / "w.csv")
    for name, x, y, width, height, split in found:
        x += 307 if name == "b" else 0
        ground = split_at[y + 64 : y + 64 + height, x + 64 : x + 64 + width]
        assert set(ground.ravel()) <= {"", split}
        ground[:] = split
    for name, x, y, width, height, split in found:  # and none within the gap
        x += 307 if name == "b" else 0
        m = 64 * gap
        near = split_at[64 + y - m : 64 + y + height + m, 64 + x - m : 64 + x + width + m]
        assert set(near.ravel()) <= {"", split}


def test_an_area_chooses_the_windows_that_share_its_ground(tmp_path, two_scenes):
    def lonlat(x, y):
        east, north = GRID[2] + 10 * x, GRID[5] - 10 * y
        return [float(v[0]) for v in rasterio.warp.transform(UTM, "OGC:CRS84", [east], [north])]

    ring = [lonlat(*at) for at in ((70, 70), (180, 70), (180, 250), (70, 250), (70, 70))]
    path = write_geojson(tmp_path / "area.geojson", [polygon(ring)])
    cover(path, tmp_path / "w.csv", like=two_scenes / "a.tif", window=64, split="100/0/0")
    expected = {(x, y) for x in (64, 128) for y in (64, 128, 192)}
    assert {row[1:3] for row in windows_of(tmp_path / "w.csv")} == expected
    box = BoundingBox(*shapely.Polygon(ring).bounds)
    cover(box, tmp_path / "b.csv", like=two_scenes / "a.tif", window=64, split="100/0/0")
    assert {row[1:3] for row in windows_of(tmp_path / "b.csv")} >= expected


def test_windows_become_files_that_keep_pixels_bands_and_place(tmp_path, two_scenes):
    table = tmp_path / "w.csv"
    done = run("labels", "cover", two_scenes, "--window", 200, "--split", "50/50/0", "--out", table, "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    rows = [row for row in windows_of(table) if row[-1] == "val"]
    assert result["splits"]["val"] == len(rows) > 0
    done = run("labels", "subset", two_scenes, "--cover", table, "--split", "val", "--out", tmp_path / "v")
    assert done.exit_code == 0, done.output
    files = {path.name for path in (tmp_path / "v").glob("*.tif")}
    assert files == {f"{name}_{x}_{y}.tif" for name, x, y, *_ in rows}
    for name, x, y, width, height, _ in rows:
        with (
            rasterio.open(tmp_path / "v" / f"{name}_{x}_{y}.tif") as cut,
            rasterio.open(two_scenes / f"{name}.tif") as whole,
        ):
            assert (cut.read() == whole.read()[:, y : y + height, x : x + width]).all()
            assert cut.crs == whole.crs and cut.descriptions == ("B04", "B08") and cut.nodata == whole.nodata
            assert cut.transform @ (0, 0) == whole.transform @ (x, y)


def test_windows_of_an_image_cut_its_mask_which_is_called_otherwise(tmp_path, two_scenes, write_tif):
    values = np.arange(600 * 700).reshape(600, 700, 1) % 3
    mask = write_tif("labels.tif", values.astype(np.uint8), crs=UTM, transform=GRID, nodata=255)
    cover(two_scenes / "a.tif", tmp_path / "w.csv", window=128)
    chosen = subset(mask, tmp_path / "w.csv", tmp_path / "masks")
    assert chosen.files == 5 * 6 and not chosen.missing
    with rasterio.open(tmp_path / "masks" / "a_128_512.tif") as cut:
        assert (cut.read(1) == values[512:, 128:256, 0]).all() and cut.nodata == 255


def test_bad_windows_are_refused_and_write_nothing(tmp_path, two_scenes, write_tif):
    plain = write_tif("plain.tif", np.zeros((64, 64, 1), np.uint8))
    far = write_geojson(tmp_path / "far.geojson", [polygon(square(CORNER, 0, 0, 9))])
    for area, options, message in (
        (two_scenes, {"zoom": 12, "window": 64}, "Leave one out"),
        (two_scenes, {"like": two_scenes}, "Expected --zoom for XYZ tiles, or --window"),
        (TOULOUSE, {"window": 64}, "no pixels to cut"),
        (far, {"window": 64, "like": two_scenes}, "covers no window"),
        (two_scenes, {"window": 8}, "Expected 16 to"),
        (plain, {"window": 64}, "no CRS"),
        (two_scenes / "a.tif", {"window": 700}, "too few"),
        (None, {}, "no area"),
    ):
        with pytest.raises(LabelsError, match=message):
            cover(area, tmp_path / "w.csv", **options)
    assert not (tmp_path / "w.csv").exists()
    for line, message in (
        ("a,0,0,64,x,train", "line 2: no window"),
        ("a,-1,0,64,64,train", "line 2: no window"),
        ("a,680,0,64,64,train", "reaches column 744"),
    ):
        (tmp_path / "bad.csv").write_text(f"name,col_off,row_off,width,height,split\n{line}\n")
        with pytest.raises(LabelsError, match=message):
            subset(two_scenes, tmp_path / "bad.csv", tmp_path / "out")
    (tmp_path / "bad.csv").write_text("name,col_off,row_off,width,height,split\na,0,0,64,64,train\n")
    with pytest.raises(LabelsError, match="Omit --link"):
        subset(two_scenes, tmp_path / "bad.csv", tmp_path / "out", link=True)
    (tmp_path / "bad.csv").write_text("name,col_off,row_off,width,height,split\nc,0,0,64,64,train\n")
    with pytest.raises(MissingInputError, match="no raster has one of the 1 names"):
        subset(two_scenes, tmp_path / "bad.csv", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    wrong = run("labels", "cover", two_scenes, "--bbox", "0,0,1,1", "--out", tmp_path / "w.csv")
    assert wrong.exit_code == 2
