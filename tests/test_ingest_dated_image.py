"""One date of a place as a GeoTIFF: digital numbers, hidden pixels, tags."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from retrieval.ingest.dated_image import hidden_mask, to_dn, write_date
from tfrecords.errors import ArrayError, OutputExistsError
from tfrecords.read import read_images
from tfrecords.schema.records import Provenance
from tfrecords.storage import writing_file


def test_nodata_stays_nodata_and_ground_never_becomes_nodata() -> None:
    stored = np.array([0, 1, 999, 1000, 1001, 65535], np.uint16)
    assert to_dn(stored, -1000).tolist() == [0, 1, 1, 1, 1, 64535]
    assert to_dn(stored, 0).tolist() == stored.tolist()
    assert to_dn(np.array([0, 500]), 0, quantification=1000).tolist() == [0, 5000]


def test_hidden_scene_classes() -> None:
    assert np.flatnonzero(hidden_mask(np.arange(12))).tolist() == [0, 1, 3, 8, 9, 10]
    assert hidden_mask(np.arange(12), snow=True)[11]


def test_a_written_date_is_read_back_unchanged(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(1, 4000, (80, 96, 2)).astype(np.uint16)
    pixels[:9] = 0
    where = Provenance("S2A_X", "2024-07-06T10:30:00Z", "05.10", 12.5)
    path = tmp_path / "place" / "2024-07-06.tif"
    write_date(path, pixels, ("B04", "B08"), "EPSG:32631", (10, 0, 4e5, 0, -10, 5e6), where)
    image = next(iter(read_images(path)))
    assert (image.pixels == pixels).all() and image.bands == ("B04", "B08") and image.nodata == 0
    assert image.crs == "EPSG:32631" and image.transform == (10, 0, 4e5, 0, -10, 5e6)
    import rasterio

    with rasterio.open(path) as dataset:
        assert Provenance.from_tags(dataset.tags()) == where
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    with pytest.raises(OutputExistsError):
        write_date(path, pixels, ("B04", "B08"), None, None, where)
    with pytest.raises(ArrayError, match="3 bands"):
        write_date(path, pixels, ("B04", "B08", "B03"), None, None, where)


def test_missing_or_invalid_tags_are_unknown() -> None:
    assert Provenance.from_tags({}) == Provenance()
    assert Provenance.from_tags({"CLOUD_COVER": "much"}).cloud_cover is None


def test_an_error_names_the_output_and_not_its_hidden_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / ("a" * 250 + ".tif")  # the temporary name is too long for a file system
    with pytest.raises(OSError, match=r"a{250}\.tif") as error, writing_file(path) as temporary:
        temporary.write_bytes(b"x")
    assert "/.a" not in str(error.value) and error.value.filename == str(path)
    with pytest.raises(RuntimeError) as other, writing_file(tmp_path / "b.tif") as temporary:
        raise RuntimeError(f"Attempt to create '{temporary}' and {tmp_path}/.b.blocks.tif failed")
    assert str(other.value) == f"Attempt to create '{tmp_path}/b.tif' and {tmp_path}/b.tif failed"
