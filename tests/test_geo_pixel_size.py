"""Chips whose pixel differs from the images': used as they are, resampled, or refused."""

import numpy as np
import pytest
from engine import digital, located, small_encoder, texture

from retrieval.geo.pixel_size import match_pixel_size, resample
from retrieval.pipeline import build_index
from retrieval.types import StoredImage
from tfrecords.errors import GridError
from tfrecords.read import read_queries
from tfrecords.read.pixel_size import pixel_sides_m
from tfrecords.schema import Chips, Image, Patches

CRS = "EPSG:32631"
DEGREE_M = 111_320


def stored(crs, transform, side=1000):
    return {0: StoredImage(0, "", side, side, ("B04",), crs, transform, None, 1)}


IMAGES = stored(CRS, (10, 0, 5e5, 0, -10, 5e6))


@pytest.mark.parametrize(
    ("crs", "transform", "sides"),
    [
        (CRS, (10, 0, 5e5, 0, -20, 5e6), (10, 20)),
        ("EPSG:4326", (1e-4, 0, 3, 0, -1e-4, 60), (5.58, 11.14)),
        ("EPSG:4326", (1e-4, 0, 3, 0, -1e-4, 0), (11.13, 11.06)),
        ("EPSG:3857", (20, 0, 3e5, 0, -20, 8_399_738), (10, 10)),  # 60 degrees north
        ("EPSG:2263", (30, 0, 1e6, 0, -30, 2e5), (9.14, 9.14)),  # US feet
    ],
)
def test_both_sides_are_measured_on_the_ground(crs, transform, sides):
    measured, _ = pixel_sides_m(crs, transform, [0], [0])
    assert measured[0] == pytest.approx(sides, rel=5e-3)


def test_a_local_system_has_no_known_size():
    local = 'LOCAL_CS["site",UNIT["metre",1]]'
    assert np.isnan(pixel_sides_m(local, (10, 0, 0, 0, -10, 0), [0], [0])[0]).all()


def chip(write_tif, side_x, side_y, *, crs=CRS, size=90, latitude=None):
    a, e = side_x, side_y
    origin = (5e5, 4.995e6)
    if crs == "EPSG:4326":
        a, e = side_x / (DEGREE_M * np.cos(np.radians(latitude))), side_y / 111_200
        origin = (3.0, latitude)
    pixels = digital(texture(size, size, seed=3))
    return read_queries(write_tif("c.tif", pixels, crs=crs, transform=(a, 0, origin[0], 0, -e, origin[1])))


@pytest.mark.parametrize("sides", [(10, 10), (10.5, 9.5), (9.5, 10.5)])
def test_up_to_five_per_cent_a_chip_is_used_as_it_is(write_tif, sides):
    queries = chip(write_tif, *sides)
    assert match_pixel_size(IMAGES, queries) is queries


@pytest.mark.parametrize(
    ("sides", "size"),
    [((8, 8), [72, 72]), ((15, 15), [135, 135]), ((10, 12), [108, 90]), ((9, 10), [90, 81])],
)
def test_up_to_a_factor_of_one_and_a_half_it_is_resampled_with_a_note(write_tif, sides, size):
    fitted = match_pixel_size(IMAGES, chip(write_tif, *sides))
    assert isinstance(fitted, Chips) and fitted.sizes.tolist() == [size]
    assert "1 of 1 chips resampled" in fitted.note and "10 x 10 m" in fitted.note
    assert fitted.read(0).pixels.shape[:2] == tuple(size)
    assert match_pixel_size(IMAGES, fitted) is fitted


@pytest.mark.parametrize("sides", [(6, 10), (10, 6), (20, 20), (10, 16)])
def test_beyond_it_is_refused(write_tif, sides):
    for options in ({}, {"crs": "EPSG:4326", "latitude": 45.1}):
        with pytest.raises(GridError, match=r"c\.tif: its pixels are .* on the ground.*10 x 10 m.*gdalwarp"):
            match_pixel_size(IMAGES, chip(write_tif, *sides, **options))


def test_images_in_degrees_have_the_size_of_the_chips_latitude(write_tif):
    tall = stored("EPSG:4326", (1e-3, 0, 3, 0, -1e-2, 70), side=2000)  # 70 to 50 degrees north
    for latitude in (69, 51):
        ground = 1e-3 * DEGREE_M * np.cos(np.radians(latitude))
        queries = chip(write_tif, ground, 1112, crs="EPSG:4326", latitude=latitude)
        assert match_pixel_size(tall, queries) is queries


def test_the_nearest_of_several_images_counts(write_tif):
    images = IMAGES | {1: StoredImage(1, "", 99, 99, ("B04",), CRS, (20, 0, 5e5, 0, -20, 5e6), None, 1)}
    assert match_pixel_size(images, chip(write_tif, 16, 16)).sizes.tolist() == [[72, 72]]


def test_without_georeference_nothing_is_known(write_tif):
    queries = read_queries(write_tif("c.tif", digital(texture(90, 90))))
    assert match_pixel_size(IMAGES, queries) is queries
    assert match_pixel_size({0: StoredImage(0, "", 9, 9, ("B04",), None, None, None, 1)}, queries) is queries


def test_nodata_stays_nodata():
    pixels = np.full((90, 90, 1), 1000, np.uint16)
    pixels[:, 45:] = 0
    scaled = resample(Image(0, pixels, "dn", ("B04",), 0.0), 1.25, 1.25).scaled()
    assert scaled.shape == (72, 72, 1) and np.isnan(scaled[:, 37:]).all()
    assert scaled[:, :35] == pytest.approx(1000 / 2047.5 - 1)


@pytest.mark.parametrize("side", [8, 12.5])
@pytest.mark.parametrize("size", [64, 120])
def test_answers_of_resampled_chips_are_in_the_pixels_of_the_image(tmp_path, write_tif, side, size):
    """The image is the mean of 5 x 5 fine pixels of 2 m; the chip is the mean of others at the same place."""
    from scipy.ndimage import zoom

    fine = zoom(texture(150, 170, seed=5), (5, 5, 1), order=3, mode="nearest", grid_mode=True)
    ground = {"crs": CRS}
    write_tif("images/a.tif", blocks(fine, 5), transform=(10, 0, 5e5, 0, -10, 5e6), **ground)
    cells = {8: 4, 12.5: 6.25}[side]
    x, y = 20, 35
    if side == 12.5:
        rows = [zoom(fine, (0.8, 0.8, 1), order=1, mode="nearest", grid_mode=True)]
        cut = blocks(rows[0], 5)[y * 4 // 5 :, x * 4 // 5 :][:size, :size]
    else:
        cut = blocks(fine, int(cells))[y * 5 // 4 :, x * 5 // 4 :][:size, :size]
        x, y = x * 5 // 4 * 0.8, y * 5 // 4 * 0.8
    place = (side, 0, 5e5 + 10 * x, 0, -side, 5e6 - 10 * y)
    write_tif("chips/c.tif", cut, transform=place, **ground)
    index = build_index(tmp_path / "images", tmp_path / "index", encoder=small_encoder())
    found = located(index, tmp_path / "chips", tmp_path / "s.csv")
    row = found.details().iloc[0]
    assert abs(row.x + row.dx - x) <= 1 and abs(row.y + row.dy - y) <= 1
    assert row.off_m < 15 and "resampled" in found.patches.note
    assert [row.width, row.height] == [int(cut.shape[1] * side / 10), int(cut.shape[0] * side / 10)]


def blocks(fine, cells):
    """Return the means of blocks of fine pixels as digital numbers."""
    height, width = (n // cells * cells for n in fine.shape[:2])
    parts = fine[:height, :width].reshape(height // cells, cells, width // cells, cells, -1)
    return digital(np.clip(parts.mean((1, 3)), -0.99, 0.99))


def test_patches_become_chips_only_where_one_is_resampled(write_tif):
    assert isinstance(chip(write_tif, 10, 10, size=64), Patches)
    fitted = match_pixel_size(IMAGES, chip(write_tif, 8, 8, size=64))
    assert fitted.sizes.tolist() == [[64, 64]] and fitted.unpadded.tolist() == [[51, 51]]
    assert np.isnan(fitted.scaled_one(0)[51:]).all() and np.isfinite(fitted.scaled_one(0)[:51, :51]).all()
