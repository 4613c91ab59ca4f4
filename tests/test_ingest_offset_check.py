"""The offset check: dates and offsets that the pixels contradict."""

from __future__ import annotations

import numpy as np
import pytest

from retrieval.ingest.dated_image import write_date
from retrieval.ingest.offset_check import (
    check_files,
    darkest_dn,
    find_suspect_dates,
    leaves_negatives,
    warn_of_suspect_dates,
)
from tfrecords.errors import ArrayError
from tfrecords.schema.records import Provenance


@pytest.mark.parametrize(
    ("darkest", "suspects"),
    [
        ({"a": 60, "b": 1060, "c": 90, "d": 40}, {"b": 1000}),
        ({"a": 60, "b": 300, "c": 5000}, {}),
        ({"a": 60}, {}),
        ({"b": 1060, "a": 60}, {"a": -1000, "b": 1000}),  # nobody knows which of two is right
        ({"a": 60, "b": 60, "c": 60, "d": 659}, {}),
        ({"a": 60, "b": 60, "c": 60, "d": 660}, {"d": 600}),
        ({"a": 60, "b": 60, "c": 60, "d": 1460}, {"d": 1400}),
        ({"a": 60, "b": 60, "c": 60, "d": 1461}, {}),
    ],
)
def test_dates_about_1000_dn_from_the_median_of_the_others_are_suspect(darkest, suspects):
    found = find_suspect_dates(darkest)
    assert found == suspects and list(found) == sorted(found)
    assert len(warn_of_suspect_dates("paris", darkest)) == bool(suspects)


def test_the_darkest_pixels_are_a_percentile_of_what_is_known():
    pixels = np.zeros((100, 100, 4), np.uint16)
    assert darkest_dn(pixels) is None
    pixels[:50] = np.arange(20_000).reshape(50, 100, 4) + 1
    assert darkest_dn(pixels) == pytest.approx(np.percentile(np.arange(1, 20_001), 0.1))


def test_an_offset_that_makes_many_pixels_negative_is_one_too_many():
    sea = np.array([0] * 50 + [950] * 50)  # dark water lies a little below zero
    assert not leaves_negatives(sea, -1000)
    assert leaves_negatives(np.where(sea, sea - 500, 0), -1000)
    assert not leaves_negatives(np.where(sea, sea - 500, 0), 0)
    assert not leaves_negatives(np.zeros(9), -1000)


CRS, GRID = "EPSG:32631", (10, 0, 4e5, 0, -10, 5e6)


def test_levels_are_compared_apart(tmp_path, rng):
    def write(date, low, level):
        pixels = rng.integers(low, 5000, (64, 64, 1)).astype(np.uint16)
        provenance = Provenance(f"S2A_MSIL{level}_{date}")
        write_date(tmp_path / "31TCJ" / f"{date}.tif", pixels, ("B04",), CRS, GRID, provenance)
        return tmp_path / "31TCJ" / f"{date}.tif"

    paths = [write("2022-05-01", 60, "2A"), write("2022-06-01", 60, "2A"), write("2022-07-01", 1060, "1C")]
    assert check_files(paths) == []
    write("2022-08-01", 1060, "2A")
    (warning,) = check_files(paths)
    assert "31TCJ: the darkest pixels of 2022-08-01 (+" in warning and "2022-07-01" not in warning
    paths[0].write_bytes(b"no TIFF")
    with pytest.raises(ArrayError, match=r"2022-05-01\.tif: damaged"):
        check_files(paths)
