"""The commands from an area to the compared map, one after another, as the guide writes them."""

import json
from importlib import import_module

import pytest

pytest.importorskip("mercantile", reason="needs the extra `labels`")
pytest.importorskip("geopandas", reason="needs the extra `labels`")

import geopandas
import mercantile
from labelground import CORNER, image_tile, polygon, run, square, write_geojson
from segmentable import TINY

CALLS = {
    "labels": ("cover", "download", "check", "subset", "rasterize", "vectorize", "compare"),
    "segment": ("train", "predict", "evaluate"),
    "change": ("detect", "train", "evaluate"),
}


@pytest.mark.parametrize("room", list(CALLS))
def test_each_command_has_a_python_call_of_its_name(room):
    module = import_module("retrieval.labels" if room == "labels" else f"retrieval.tasks.{room}")
    for name in CALLS[room]:
        assert callable(getattr(module, name)) and name in module.__all__
        done = run(room, name, "--help")
        assert done.exit_code == 0 and f"retrieve {room} {name}" in done.output


def did(*words):
    """Run a command that must succeed; return what it prints."""
    done = run(*words)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_commands_lead_from_an_area_to_a_compared_map(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = mercantile.bounds(CORNER)
    last = mercantile.bounds(mercantile.Tile(CORNER.x + 5, CORNER.y + 3, 20))
    ring = [[w, n] for w in (first.west, last.east) for n in (first.north, last.south)]
    ring = [ring[0], ring[1], ring[3], ring[2], ring[0]]
    write_geojson(tmp_path / "area.geojson", [polygon(ring)])
    did("labels", "cover", "area.geojson", "--zoom", 20, "--split", "70/20/10", "--out", "cover.csv")
    lines = (tmp_path / "cover.csv").read_text().splitlines()
    assert lines[0] == "z,x,y,split" and len(lines) == 25
    tiles = [mercantile.Tile(CORNER.x + x, CORNER.y + y, 20) for x in range(4) for y in range(2)]
    houses = []
    for number, tile in enumerate(tiles):
        image_tile(tmp_path / "tiles", tile, number, size=64)
        houses.append(polygon(square(tile, 10, 10, 30, 64)))
    image_tile(tmp_path / "tiles", mercantile.Tile(CORNER.x * 2, CORNER.y * 2, 21), 9, size=64)
    write_geojson(tmp_path / "polygons.geojson", houses)
    for name, some in (("list", tiles[:6]), ("val", tiles[6:])):
        rows = "".join(f"{t.z},{t.x},{t.y},train\n" for t in some)
        (tmp_path / f"{name}.csv").write_text("z,x,y,split\n" + rows)
    did("labels", "subset", "tiles/", "--cover", "list.csv", "--out", "images", "--link")
    did("labels", "subset", "tiles/", "--cover", "val.csv", "--out", "images-val")
    for end in ("", "-val"):
        did("labels", "rasterize", "polygons.geojson", "--like", f"images{end}/", "--out", f"masks{end}/")
    checked = json.loads(did("labels", "check", "images/", "masks/", "--json"))
    assert checked["pairs"] == 6 and checked["classes"]["polygons"]["pixels"] == 6 * 900
    (tmp_path / "tiny.json").write_text(json.dumps(TINY.to_dict()))
    train = ("segment", "train", "images/", "masks/", "--validation", "images-val/", "masks-val/")
    did(*train, "--zoom", 20, "--out", "model", "--recipe", "tiny.json")
    did("segment", "predict", "images/", "--model", "model", "--out", "predicted/")
    figures = json.loads(did("segment", "evaluate", "predicted/", "masks/", "--json"))
    assert {"miou", "classes", "confusion", "accuracy", "macro_f1"} <= set(figures)
    did("labels", "vectorize", "masks/", "--out", "polygons.gpkg", "--min-area", 1)
    assert len(geopandas.read_file(tmp_path / "polygons.gpkg")) == 6
    page = ("--images", "images/", "--out", "compare.html", "--table", "compare.parquet")
    did("labels", "compare", "predicted/", "polygons.geojson", *page)
    table = geopandas.read_parquet(tmp_path / "compare.parquet")
    assert (table.feature >= 0).sum() == 6 and (tmp_path / "compare.html").stat().st_size > 10_000
    did("labels", "compare", "masks/", "polygons.geojson", "--table", "true.parquet")
    assert set(geopandas.read_parquet(tmp_path / "true.parquet").kind) == {"supported"}
