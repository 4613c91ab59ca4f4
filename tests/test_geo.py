"""Longitude and latitude of what was found."""

import numpy as np
import pytest

from retrieval.geo.coordinates import lonlat
from retrieval.types import StoredImage

UTM31 = (10.0, 0.0, 500_000.0, 0.0, -10.0, 5_000_000.0)


def stored(image_id, crs, transform):
    return StoredImage(image_id, "", 100, 100, ("B04",), crs, transform, None, 1)


IMAGES = {
    0: stored(0, "EPSG:32631", UTM31),
    1: stored(1, None, None),
    2: stored(2, "EPSG:4326", (0.001, 0.0, 10.0, 0.0, -0.001, 50.0)),
    3: stored(3, "EPSG:32631", None),
}


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
