"""Tables as files, read back by other tools."""

import json

import geopandas
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import shapely

from retrieval.errors import ConfigError
from retrieval.geo.coordinates import check_resolution, offsets_m
from retrieval.geo.footprints import footprints
from retrieval.results.tables import write_table
from retrieval.types import StoredImage
from tfrecords.errors import GridError
from tfrecords.schema import Georeference

UTM = (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_000_000.0)
IMAGES = {
    0: StoredImage(0, "", 200, 200, ("B04",), "EPSG:32631", UTM, None, 1),
    1: StoredImage(1, "", 200, 200, ("B04",), None, None, None, 1),
    2: StoredImage(2, "", 200, 200, ("B04",), "EPSG:4326", (1e-4, 0, 179.99, 0, -1e-4, 50.0), None, 1),
    3: StoredImage(3, "", 200, 200, ("B04",), "EPSG:32631", (10.0, 0, 5e5, 0, 10.0, 4.99e6), None, 1),
}


def outlines(ids, x=0, y=0, width=64, height=64):
    n = len(ids)
    return footprints(IMAGES, np.array(ids), np.full(n, float(x)), np.full(n, float(y)), width, height)


def table(ids=(0, 1, 2)):
    shapes = [shape and shapely.to_wkt(shape, rounding_precision=8) for shape in outlines(list(ids))]
    columns = {"patch_id": np.arange(len(ids)), "ncc": np.linspace(0.5, 1, len(ids)).astype(np.float32)}
    columns["confidence"] = [0.9, *[np.nan] * (len(ids) - 1)]
    columns["source"] = pd.array(["S2A", *[None] * (len(ids) - 1)], dtype="string")
    return pd.DataFrame(columns | {"footprint": pd.array(shapes, dtype="string")})


# --- files ----------------------------------------------------------------------------------------


def test_geoparquet_is_read_by_geopandas_and_by_plain_pandas(tmp_path):
    frame, path = table(), tmp_path / "m.parquet"
    write_table(frame, path)
    back = geopandas.read_parquet(path)
    assert back.crs.to_epsg() == 4326 or back.crs.to_string() == "OGC:CRS84"
    assert back.geometry.name == "footprint" and back.geometry[1] is None
    assert shapely.equals(back.geometry[0], shapely.from_wkt(frame.footprint[0]))
    plain = pd.read_parquet(path)
    assert plain.patch_id.tolist() == [0, 1, 2] and plain.source[0] == "S2A"
    assert shapely.from_wkb(plain.footprint[0]).geom_type == "Polygon"
    geo = json.loads(pq.read_schema(path).metadata[b"geo"])
    assert geo["version"] == "1.1.0" and geo["primary_column"] == "footprint"
    column = geo["columns"]["footprint"]
    assert column["encoding"] == "WKB" and column["geometry_types"] == ["Polygon"]
    assert column["bbox"] == pytest.approx(back.total_bounds.tolist())


def test_without_a_crs_it_is_a_plain_parquet(tmp_path):
    write_table(table(ids=(1, 1)), tmp_path / "m.parquet")
    assert b"geo" not in (pq.read_schema(tmp_path / "m.parquet").metadata or {})
    assert pd.read_parquet(tmp_path / "m.parquet").footprint.isna().all()


def test_geojson_is_as_the_rfc_has_it(tmp_path):
    frame, path = table(), tmp_path / "m.geojson"
    write_table(frame, path)
    content = json.loads(path.read_text())
    assert list(content) == ["type", "features"] and content["type"] == "FeatureCollection"
    first, second, _ = content["features"]
    assert first["properties"] == {"patch_id": 0, "ncc": 0.5, "confidence": 0.9, "source": "S2A"}
    assert second["geometry"] is None
    assert second["properties"] == {"patch_id": 1, "ncc": 0.75, "confidence": None, "source": None}
    back = geopandas.read_file(path)
    assert shapely.equals(back.geometry[0], shapely.from_wkt(frame.footprint[0])) and len(back) == 3


def test_empty_tables(tmp_path):
    for ending in ("parquet", "csv", "geojson"):
        write_table(table()[:0], tmp_path / f"m.{ending}")
    assert json.loads((tmp_path / "m.geojson").read_text())["features"] == []
    assert len(pd.read_parquet(tmp_path / "m.parquet")) == 0
    with pytest.raises(ConfigError, match=r"\.geojson"):
        write_table(table(), tmp_path / "m.json")


# --- how far off, and of what size ----------------------------------------------------------------


def off(image_id, chip, x=50.0, y=60.0):
    one = np.array([64])
    at = np.array([image_id]), np.array([x]), np.array([y])
    return [float(v[0]) for v in offsets_m(IMAGES, *at, [chip], one, one)]


def test_how_far_off_in_metres_on_the_ground():
    here = Georeference("EPSG:32631", (10.0, 0, 500_480.0, 0, -10.0, 5_000_000 - 630.0))
    assert off(0, here) == pytest.approx([20, 30])  # the answer lies to the north-east of what the chip says
    assert off(0, here, x=48.0, y=63.0) == pytest.approx([0, 0])
    assert np.isnan(off(1, here)).all() and np.isnan(off(0, None)).all() and np.isnan(off(-1, here)).all()


def test_how_far_off_across_systems():
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


def test_chips_of_another_resolution_are_refused_with_the_way_out():
    fine, coarse = (Georeference("EPSG:32631", (s, 0, 5e5, 0, -s, 5e6)) for s in (10.2, 20.0))
    degrees = Georeference("EPSG:4326", (0.01, 0, 3, 0, -0.01, 50))
    check_resolution(IMAGES, [fine, None, degrees], ["a", "b", "c"])
    check_resolution({1: IMAGES[1]}, [coarse], ["a"])
    with pytest.raises(GridError, match=r"b\.tif: its pixels are 20 m wide. .* 10 m. .*gdalwarp -tr 10 10"):
        check_resolution(IMAGES, [fine, coarse], ["a.tif", "b.tif"])
