"""Coordinates, footprints and offsets of windows."""

import json

import geopandas
import numpy as np
import pytest
import shapely

from retrieval.geo.coordinates import lonlat, offsets_m
from retrieval.geo.footprints import GeometryColumn, bounding_boxes, footprints
from retrieval.types import StoredImage
from tfrecords.schema import Georeference

UTM31 = (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_000_000.0)


def stored(image_id, crs, transform, width=100, height=100):
    return StoredImage(image_id, "", width, height, ("B04",), crs, transform, None, 1)


IMAGES = {
    0: stored(0, "EPSG:32631", UTM31),
    1: stored(1, None, None),
    2: stored(2, "EPSG:4326", (0.001, 0.0, 10.0, 0.0, -0.001, 50.0)),
    3: stored(3, "EPSG:32631", None),
    4: stored(4, "EPSG:4326", (1e-4, 0, 179.99, 0, -1e-4, 50.0), 200, 200),
    5: stored(5, "EPSG:32631", (10.0, 0, 5e5, 0, 10.0, 4.99e6), 200, 200),
    6: stored(6, "EPSG:32660", (10.0, 0, 645_000.0, 0, -10.0, 7_000_000.0), 2000, 500),
}


def outlines(ids, x=0, y=0, width=64, height=64):
    n = len(ids)
    return footprints(IMAGES, np.array(ids), np.full(n, float(x)), np.full(n, float(y)), width, height)


LOCAL = 'LOCAL_CS["site",UNIT["metre",1]]'


@pytest.mark.parametrize("crs", [LOCAL, 'LOCAL_CS["site",UNIT["foot",0.3048]]'])
def test_local_systems_have_no_position_on_the_earth(crs):
    images = {0: stored(0, "EPSG:32631", UTM31), 1: stored(1, crs, UTM31), 2: IMAGES[2]}
    ids, x = np.array([1, 0, 1, 2, 0]), np.full(5, 18.0)
    lon, lat = lonlat(images, ids, x, x)
    assert np.isnan(lon).tolist() == np.isnan(lat).tolist() == [True, False, True, False, False]
    chip = Georeference("EPSG:32631", UTM31)
    local = Georeference(crs, UTM31)
    size = np.full(5, 64)
    east, north = offsets_m(images, ids, x, x, [chip, local, local, local, chip], size, size)
    assert np.isnan(east[:4]).all() and np.isnan(north[:4]).all()
    assert (east[4], north[4]) == (180, -180)


# --- centres --------------------------------------------------------------------------------------


def test_centres_of_patches():
    lon, lat = lonlat(IMAGES, np.array([2, 0]), np.array([0, 68]), np.array([18, 0]))
    assert (lon[0], lat[0]) == pytest.approx((10.032, 49.95))
    # 500 000 m east is the zone's meridian, 3 degrees; the centre is 1000 m east of it
    assert lon[1] == pytest.approx(3 + 1000 / (111_320 * np.cos(np.radians(45.15))), abs=3e-4)
    assert lat[1] == pytest.approx(45.15, abs=0.01)


def test_fractions_of_a_pixel_count():
    lon, _ = lonlat(IMAGES, np.array([2, 2]), np.array([1.25, 1.0]), np.array([0, 0]))
    assert lon[0] - lon[1] == pytest.approx(0.00025)


def test_without_a_crs_or_an_answer_it_is_nan():
    lon, lat = lonlat(IMAGES, np.array([1, -1, 3, 77, 2]), np.zeros(5), np.zeros(5))
    assert np.isnan(lon[:4]).all() and np.isnan(lat[:4]).all() and np.isfinite(lon[4])


def test_no_answers():
    lon, lat = lonlat(IMAGES, np.array([], np.int64), np.array([]), np.array([]))
    assert lon.shape == lat.shape == (0,)
    assert outlines([]).shape == (0,) and bounding_boxes(outlines([])).shape == (0, 4)


# --- footprints -----------------------------------------------------------------------------------


def test_footprints_are_the_windows_counterclockwise():
    square, no_crs, east_of_180, upside_down = outlines([0, 1, 4, 5], x=10, y=20, width=64, height=32)
    assert no_crs is None
    for shape in (square, upside_down):
        assert shape.exterior.is_ccw and len(shape.exterior.coords) == 5
    back = geopandas.GeoSeries([square], crs="EPSG:4326").to_crs("EPSG:32631")[0]
    expected = shapely.box(500_100, 5_000_000 - 520, 500_740, 5_000_000 - 200)
    assert shapely.hausdorff_distance(back, expected) < 0.01
    back = geopandas.GeoSeries([upside_down], crs="EPSG:4326").to_crs("EPSG:32631")[0]
    expected = shapely.box(500_100, 4_990_000 + 200, 500_740, 4_990_000 + 520)
    assert shapely.hausdorff_distance(back, expected) < 0.01
    assert east_of_180.geom_type == "Polygon" and east_of_180.bounds[2] < 180


def test_a_footprint_over_the_180th_meridian_is_cut_in_two():
    (shape,) = outlines([4], x=80)
    assert shape.geom_type == "MultiPolygon" and shape.is_valid
    assert (shape.bounds[0], shape.bounds[2]) == (-180, 180)
    assert shape.area == pytest.approx((64e-4) ** 2, rel=1e-6)
    assert all(part.exterior.is_ccw for part in shape.geoms)


def test_a_projected_image_over_the_180th_meridian_is_cut_in_two():
    (shape,) = outlines([6], width=2000, height=500)
    west, east = shape.geoms
    assert west.bounds[2] == 180 and west.bounds[0] > 170
    assert east.bounds[0] == -180 and east.bounds[2] < -170
    moved = shapely.transform(east, lambda xy: np.add(xy, [360, 0]))
    whole = geopandas.GeoSeries([shapely.union(west, moved)], crs="EPSG:4326").to_crs("EPSG:32660")[0]
    assert whole.area == pytest.approx(20_000 * 5_000, rel=1e-3)
    (box,) = bounding_boxes(np.array([shape]))
    assert box[0] > 170 and box[2] < -170 and box[1] < box[3]


@pytest.mark.parametrize("x", [36, 100])
def test_a_footprint_that_touches_the_180th_meridian_stays_whole(x):
    (shape,) = outlines([4], x=x)
    assert shape.geom_type == "Polygon" and shape.area == pytest.approx((64e-4) ** 2, rel=1e-6)
    assert bounding_boxes(np.array([shape]))[0].tolist() == list(shape.bounds)


def test_boxes_are_nan_where_there_is_no_footprint():
    boxes = bounding_boxes(outlines([1, 0, 4], x=80))
    assert np.isnan(boxes[0]).all() and boxes[1, 0] < boxes[1, 2] and boxes[2, 0] > boxes[2, 2]


def test_a_geometry_column_knows_the_types_and_the_bounds_of_all_its_rows():
    column = GeometryColumn("place", bbox="box")
    assert "bbox" not in json.loads(column.metadata())["columns"]["place"]
    first = column.arrays(outlines([0, 1]))
    second = column.arrays(outlines([4], x=80))
    assert shapely.from_wkb(first["place"][0].as_py()).equals(outlines([0])[0])
    assert first["place"][1].as_py() is None and first["box"][1].as_py() is None
    box = second["box"][0].as_py()
    assert box["xmin"] > 179 and box["xmax"] < -179
    about = json.loads(column.metadata())
    assert (about["version"], about["primary_column"]) == ("1.1.0", "place")
    about = about["columns"]["place"]
    assert about["geometry_types"] == ["MultiPolygon", "Polygon"]
    west, _, east, north = about["bbox"]
    assert (west, east) == (-180, 180) and north == pytest.approx(50)
    assert about["covering"]["bbox"]["xmin"] == ["box", "xmin"]


# --- offsets and resolution -----------------------------------------------------------------------


def off(image_id, chip, x=50.0, y=60.0):
    one = np.array([64])
    at = np.array([image_id]), np.array([x]), np.array([y])
    return [float(v[0]) for v in offsets_m(IMAGES, *at, [chip], one, one)]


def test_offsets_are_metres_on_the_ground():
    here = Georeference("EPSG:32631", (10.0, 0, 500_480.0, 0, -10.0, 5_000_000 - 630.0))
    assert off(0, here) == pytest.approx([20, 30])  # the answer lies to the north-east of what the chip says
    assert off(0, here, x=48.0, y=63.0) == pytest.approx([0, 0])
    assert np.isnan(off(1, here)).all() and np.isnan(off(0, None)).all() and np.isnan(off(-1, here)).all()


def test_offsets_across_systems():
    """The same chip in degrees, and an image in degrees: the same metres, but for the grid's own turn."""
    from rasterio.warp import transform

    (lon,), (lat,) = transform("EPSG:32631", "EPSG:4326", [500_480.0 + 320], [5_000_000 - 630.0 - 320])
    size = 1e-4
    chip = Georeference("EPSG:4326", (size, 0, lon - 32 * size, 0, -size, lat + 32 * size))
    assert off(0, chip) == pytest.approx([20, 30], abs=0.05)
    degrees = StoredImage(0, "", 9, 9, ("B04",), "EPSG:4326", (size, 0, lon, 0, -size, lat), None, 1)
    chip = Georeference("EPSG:4326", (size, 0, lon, 0, -size, lat))
    one = np.array([64])
    east, north = offsets_m(
        {0: degrees}, np.array([0]), np.array([10.0]), np.array([-10.0]), [chip], one, one
    )
    assert north[0] == pytest.approx(111.1, abs=0.1)
    assert east[0] == pytest.approx(111.3 * np.cos(np.radians(lat)), abs=0.2)
