"""Tables as files, read back by other tools."""

import json

import geopandas
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import shapely

from retrieval.errors import ConfigError
from retrieval.geo.footprints import footprints
from retrieval.results.tables import write_table
from retrieval.types import StoredImage

UTM = (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_000_000.0)
IMAGES = {
    0: StoredImage(0, "", 200, 200, ("B04",), "EPSG:32631", UTM, None, 1),
    1: StoredImage(1, "", 200, 200, ("B04",), None, None, None, 1),
    2: StoredImage(2, "", 200, 200, ("B04",), "EPSG:4326", (1e-4, 0, 179.99, 0, -1e-4, 50.0), None, 1),
}


def table(ids=(0, 1, 2)):
    corner = np.zeros(len(ids))
    outlines = footprints(IMAGES, np.array(ids), corner, corner, 64, 64)
    shapes = [shape and shapely.to_wkt(shape, rounding_precision=8) for shape in outlines]
    columns = {"patch_id": np.arange(len(ids)), "ncc": np.linspace(0.5, 1, len(ids)).astype(np.float32)}
    columns["confidence"] = [0.9, *[np.nan] * (len(ids) - 1)]
    columns["source"] = pd.array(["S2A", *[None] * (len(ids) - 1)], dtype="string")
    return pd.DataFrame(columns | {"footprint": pd.array(shapes, dtype="string")})


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


def test_geojson_follows_the_rfc(tmp_path):
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
