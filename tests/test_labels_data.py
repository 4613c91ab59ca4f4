"""Labels on real data: building footprints on aerial tiles, and masks of land cover in colours."""

import pytest

pytest.importorskip("mercantile", reason="needs the extra `labels`")
pytest.importorskip("geopandas", reason="needs the extra `labels`")

import geopandas
import mercantile
import numpy as np
import shapely
from PIL import Image
from realdata import real_data

from retrieval.labels import check, compare, cover, rasterize, vectorize
from retrieval.labels.classes import Classes, read_classes
from retrieval.labels.masks import read_mask, write_png

pytestmark = pytest.mark.data


def test_buildings_become_masks_polygons_and_a_comparison(tmp_path):
    data = real_data("buildings")
    report = rasterize(data / "val.geojson", data / "val", tmp_path / "masks", zoom=20)
    assert report.masks == 4 and report.features > 0
    found = check(data / "val", tmp_path / "masks", zoom=20)
    assert found.is_clean and 0.02 < found.classes["val"].share < 0.8
    polygons = vectorize(tmp_path / "masks", tmp_path / "p.gpkg", min_area_m2=4, simplify_m=0.3)
    assert 0 < polygons.features <= report.features
    same = compare(tmp_path / "masks", data / "val.geojson")
    assert same.quality == 100 and same.features["unsupported"] == same.features["missing"] == 0


def test_a_house_that_is_removed_from_the_map_is_found(tmp_path):
    data = real_data("buildings")
    rasterize(data / "val.geojson", data / "val", tmp_path / "masks", zoom=19)
    path = next((tmp_path / "masks").rglob("*.png"))
    tile = mercantile.Tile(int(path.parent.name), int(path.stem), 19)
    box = mercantile.xy_bounds(tile)
    houses = geopandas.read_file(data / "val.geojson").to_crs(3857)
    houses = houses[houses.within(shapely.box(*box))]
    house = houses.geometry[houses.area.idxmax()]
    step = (box.right - box.left) / 256
    west, south, east, north = house.bounds
    rows = slice(int((box.top - north) / step), int((box.top - south) / step) + 1)
    columns = slice(int((west - box.left) / step), int((east - box.left) / step) + 1)
    mask = read_mask(path)
    mask[rows, columns] = 0
    write_png(path, mask, Classes.binary("val"))
    assert compare(tmp_path / "masks", data / "val.geojson").features["unsupported"] >= 1


def test_zooms_of_the_same_ground_share_a_split(tmp_path):
    report = cover(real_data("buildings"), tmp_path / "c.csv")
    assert (report.tiles, report.block_zoom, report.blocks) == (105, 19, 5)


def test_colours_of_land_cover_are_read_at_the_threshold():
    data = real_data("deepglobe") / "val"
    classes = read_classes("deepglobe")
    report = check(data, data, classes=classes)
    assert report.is_clean and report.pairs == 2 and report.classes["water"].share > 0.6
    path = data / "855_mask.png"
    with Image.open(path) as image:
        bits = np.array(image) >= 128
    indices = read_mask(path, classes)
    known = indices != 255
    assert np.array_equal(classes.to_colours(indices)[known] >= 128, bits[known])
    assert not bits[~known].any()
