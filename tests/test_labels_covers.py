"""Covers: the tiles of an area, their split by ground, and selections of tiles."""

import csv
import json
from collections import Counter

import pytest

pytest.importorskip("mercantile", reason="needs the extra `labels`")
pytest.importorskip("pyogrio", reason="needs the extra `labels`")

import mercantile
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
