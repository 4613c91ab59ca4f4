"""A GeoTIFF or a vector file that a library could not write whole never gets its name."""

import errno
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
from rasterio.shutil import copy

from tfrecords.errors import DiskFullError
from tfrecords.geotiff import ends_within_file, silent_georeference
from tfrecords.storage import writing_file


def write_tif(path, pixels, **profile):
    """Write pixels (y, x, b) as a GeoTIFF."""
    height, width, count = pixels.shape
    shape = dict(height=height, width=width, count=count, dtype=pixels.dtype)
    with silent_georeference(), rasterio.open(path, "w", driver="GTiff", **shape, **profile) as dataset:
        dataset.write(np.moveaxis(pixels, -1, 0))
    return path


def cut(path, removed):
    """Remove the last bytes of a file."""
    path.write_bytes(path.read_bytes()[:-removed])


@pytest.mark.parametrize(
    "profile", [{}, {"compress": "deflate"}, {"tiled": True, "blockxsize": 64, "blockysize": 64}]
)
def test_a_cut_geotiff_is_noticed(tmp_path, rng, profile):
    path = write_tif(tmp_path / "a.tif", rng.integers(0, 255, (150, 130, 3)).astype(np.uint8), **profile)
    whole = path.read_bytes()
    assert ends_within_file(path)
    for removed in (1, 100, len(whole) // 2, len(whole) - 10):
        path.write_bytes(whole[:-removed])
        assert not ends_within_file(path)


def test_blocks_of_overviews_count_and_those_of_sparse_files_may_be_missing(tmp_path, rng):
    plain = write_tif(tmp_path / "a.tif", rng.integers(0, 255, (1200, 1100, 1)).astype(np.uint8))
    with silent_georeference():
        copy(plain, tmp_path / "cog.tif", driver="COG", overviews="AUTO", blocksize=256)
    with silent_georeference(), rasterio.open(tmp_path / "cog.tif") as dataset:
        assert dataset.overviews(1)
    assert ends_within_file(tmp_path / "cog.tif")
    cut(tmp_path / "cog.tif", 20)
    assert not ends_within_file(tmp_path / "cog.tif")
    shape = dict(height=512, width=512, count=1, dtype="uint8", tiled=True, sparse_ok=True)
    with silent_georeference(), rasterio.open(tmp_path / "s.tif", "w", driver="GTiff", **shape):
        pass
    assert ends_within_file(tmp_path / "s.tif")


@pytest.mark.parametrize(("free", "expected"), [(0, DiskFullError), (1 << 40, OSError)])
def test_a_geotiff_that_lacks_blocks_never_gets_its_name(tmp_path, rng, monkeypatch, free, expected):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    goal = tmp_path / "a.tif"
    goal.write_bytes(b"former")
    with pytest.raises(expected) as caught, writing_file(goal, overwrite=True) as partial:
        write_tif(partial, rng.integers(0, 255, (90, 90, 1)).astype(np.uint8))
        cut(partial, 500)
    if expected is OSError:
        assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(goal))
    assert goal.read_bytes() == b"former" and [p.name for p in tmp_path.iterdir()] == ["a.tif"]


def test_any_error_of_a_library_on_a_full_disk_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=4096))
    with pytest.raises(DiskFullError, match=r"a\.gpkg: the disk is full"), writing_file(tmp_path / "a.gpkg"):
        raise RuntimeError("cannot write feature")


def test_a_vector_file_that_lost_its_end_is_refused(tmp_path, monkeypatch):
    geopandas = pytest.importorskip("geopandas", reason="needs the extra `labels`")
    from shapely.geometry import box

    from retrieval.labels.vectorizing import write_vectors

    areas = [box(n, 40, n + 0.5, 41) for n in range(20)]
    frame = geopandas.GeoDataFrame({"class": ["field"] * 20}, geometry=areas, crs="EPSG:4326")
    write_vectors(frame, tmp_path / "whole.geojson")
    to_file = geopandas.GeoDataFrame.to_file

    def unfinished(self, path, **more):
        to_file(self, path, **more)
        cut(path, 300)

    monkeypatch.setattr(geopandas.GeoDataFrame, "to_file", unfinished)
    with pytest.raises(OSError, match="Input/output"):
        write_vectors(frame, tmp_path / "a.geojson")
    assert [p.name for p in tmp_path.iterdir()] == ["whole.geojson"]
