"""Features on the disk: what comes back, by number and by tile, and tables in batches."""

import json

import pytest

pytest.importorskip("geopandas", reason="needs the extra `labels`")

import geopandas
import numpy as np
import shapely
from geopandas.testing import assert_geodataframe_equal
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.labels import compared_rows
from retrieval.labels.compared_rows import ComparedRows
from retrieval.labels.stored_shapes import StoredShapes

BOXES = np.array([(10 * x, 10 * y, 10 * x + 10, 10 * y + 10) for y in range(3) for x in range(3)])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 8), max_size=4))
def test_features_come_back_by_number_and_by_tile(seed, parts):
    rng = np.random.default_rng(seed)
    stored, shapes = StoredShapes(BOXES), np.array([], object)
    for count in parts:
        x, y = rng.uniform(-5, 32, (2, count))
        added = np.array(shapely.box(x, y, x + rng.uniform(0, 12, count), y + 1), object)
        added[::3] = shapely.centroid(added[::3])
        stored.add(added)
        shapes = np.concatenate([shapes, added])
    assert len(stored) == len(shapes)
    order = rng.permutation(len(shapes))
    assert stored.read(order).tolist() == shapes[order].tolist()
    meets = np.array(
        [[shapely.box(*shape.bounds).intersects(shapely.box(*box)) for box in BOXES] for shape in shapes]
    )
    meets = meets.reshape(len(shapes), len(BOXES))
    for tile in range(len(BOXES)):
        assert stored.of_tiles(np.array([tile])).tolist() == np.flatnonzero(meets[:, tile]).tolist()
    tiles = np.flatnonzero(rng.random(len(BOXES)) < 0.4)
    assert stored.of_tiles(tiles).tolist() == np.flatnonzero(meets[:, tiles].any(axis=1)).tolist()
    first, count = stored.tiles_met()
    assert count.tolist() == meets.sum(axis=1).tolist()
    assert first.tolist() == [int(row.argmax()) if row.any() else -1 for row in meets]
    assert stored.tiles_of(shapes[:1]).tolist() == np.flatnonzero(meets[:1].any(axis=0)).tolist()


def frame(start, count, kind):
    """Rows of squares; the last one has two parts."""
    shapes = [shapely.box(n, 0, n + 0.5, n + 1) for n in range(start, start + count)]
    shapes[-1] = shapely.MultiPolygon([shapes[-1], shapely.box(-start, -9, 1 - start, -8)])
    columns = {"kind": [kind] * count, "iou": np.linspace(0, 1, count), "feature": np.arange(count)}
    return geopandas.GeoDataFrame(columns, geometry=shapes, crs="EPSG:32631")


@pytest.mark.parametrize("ending", ["parquet", "gpkg", "geojson"])
def test_a_table_in_batches_is_the_table(tmp_path, monkeypatch, ending):
    frames = [frame(0, 3, "supported"), frame(3, 4, "unseen"), frame(7, 2, "missing")]
    whole = ComparedRows(frames)
    whole.write(tmp_path / f"whole.{ending}")
    monkeypatch.setattr(compared_rows, "BATCH_ROWS", 4)
    rows = ComparedRows(frames)
    rows.write(tmp_path / f"parts.{ending}")
    assert rows.kinds == {"supported": 3, "unseen": 4, "missing": 2}
    assert_geodataframe_equal(rows.frame(), whole.frame())
    read = geopandas.read_parquet if ending == "parquet" else geopandas.read_file
    assert_geodataframe_equal(read(tmp_path / f"parts.{ending}"), read(tmp_path / f"whole.{ending}"))


def test_a_long_geoparquet_has_the_metadata_of_all_rows(tmp_path, monkeypatch):
    import pyarrow.parquet as pq

    monkeypatch.setattr(compared_rows, "BATCH_ROWS", 3)
    rows = ComparedRows([frame(0, 3, "supported"), frame(3, 4, "unseen")])
    rows.write(tmp_path / "t.parquet")
    with pq.ParquetFile(tmp_path / "t.parquet") as file:
        assert file.num_row_groups == 2
        geo = json.loads(file.schema_arrow.metadata[b"geo"])
    assert geo["columns"]["geometry"]["bbox"] == rows.frame().total_bounds.tolist()
    assert geo["columns"]["geometry"]["geometry_types"] == ["MultiPolygon", "Polygon"]
    box = geopandas.read_parquet(tmp_path / "t.parquet", bbox=(5.1, 0, 5.4, 9))
    assert box["feature"].tolist() == [2, 3]  # by the bounds of geometries
