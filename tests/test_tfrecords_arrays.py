"""Arrays and .npy files are stacks of images: units and shapes; others are refused by name."""

import numpy as np
import pytest

from tfrecords.errors import (
    ArrayError,
    BandsError,
    GridError,
    MissingInputError,
    UnitsError,
)
from tfrecords.read import (
    read_images,
    read_patches,
)
from tfrecords.schema import (
    BANDS,
    to_scaled,
)


def dn(rng, *shape):
    return rng.integers(300, 4000, shape).astype(np.uint16)


def test_images_of_an_array_and_of_its_file(tmp_path, rng):
    array = dn(rng, 3, 70, 90, 4)
    np.save(tmp_path / "a.npy", array)
    for source in (array, tmp_path / "a.npy", str(tmp_path / "a.npy")):
        images = read_images(source)
        assert len(images) == 3 and "3 images, dn, B04 B03 B02 B08" in images.note
        for _ in range(2):  # again and again
            got = list(images)
            assert [i.image_id for i in got] == [0, 1, 2]
            assert all(i.units == "dn" and i.nodata == 0 and i.bands == BANDS for i in got)
            np.testing.assert_array_equal(np.stack([i.pixels for i in got]), array)


def test_units_of_an_array_are_decided_once(rng):
    scaled = to_scaled(dn(rng, 3, 64, 64, 4), "dn", None)
    scaled[1] = 0.5  # alone it would be reflectance
    assert [i.units for i in read_images(scaled)] == ["scaled"] * 3
    bright = np.abs(scaled)
    images = read_images(bright)
    assert [i.units for i in images] == [
        "reflectance"
    ] * 3 and "a guess from the range; --units" in images.note
    stated = read_images(bright, units="scaled")
    assert next(iter(stated)).units == "scaled" and "scaled (as stated)" in stated.note
    assert next(iter(read_images(np.full((1, 64, 64, 3), 9, np.uint8)))).units == "byte"


def test_values_outside_the_units_are_refused(rng):
    with pytest.raises(UnitsError, match=r"image 0: .*units 'scaled'.*--units"):
        list(read_images(dn(rng, 1, 64, 64, 4), units="scaled"))
    with pytest.raises(UnitsError, match="unknown units 'meters'"):
        read_images(dn(rng, 1, 64, 64, 4), units="meters")
    late = np.full((40, 64, 64, 1), 0.5, np.float32)
    late[1] = -40  # not among those that are looked at first
    with pytest.raises(
        UnitsError, match=r"image 1: 4096 values \(e\.g\. -40\) are outside the range of units 'reflectance'"
    ):
        list(read_images(late))


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        (
            np.zeros((2, 64, 64), np.uint16),
            ArrayError,
            r"shape is \(2, 64, 64\); expected \(n, height, width, bands\)",
        ),
        (np.zeros((0, 64, 64, 4), np.uint16), MissingInputError, "it holds no images"),
        (np.zeros((2, 64, 64, 0), np.uint16), ArrayError, "expected"),
        (np.zeros((2, 63, 64, 4), np.uint16), GridError, "63 x 64 pixels.*at least 64 x 64"),
        (np.zeros((2, 64, 64, 4), bool), ArrayError, "dtype is bool"),
        (np.zeros((2, 64, 64, 4), complex), ArrayError, "dtype is complex128"),
        (np.zeros((2, 64, 64, 5), np.uint16), BandsError, "Name all 5 with --bands"),
        (np.full((2, 64, 64, 4), -3.5), UnitsError, "values from -3.5 to -3.5"),
    ],
)
def test_arrays_of_other_shapes_are_refused_as_images(tmp_path, array, error, message):
    with pytest.raises(error, match=message):
        read_images(array)
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(error, match=message):
        read_images(tmp_path / "a.npy")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(value):
    array = np.full((2, 64, 64, 4), 0.5, np.float32)
    array[1, 3, 4, 2] = value
    with pytest.raises(ArrayError, match=r"image 1: 1 values are NaN or infinite \(the first at \(3, 4, 2\)"):
        list(read_images(array))
    with pytest.raises(ArrayError, match="patches 0 to 1"):
        read_patches(array)


def test_unreadable_array_files_are_refused(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"not an array")
    with pytest.raises(ArrayError, match=r"a\.npy cannot be opened as an array"):
        read_images(tmp_path / "a.npy")
    np.save(tmp_path / "o.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ArrayError, match="cannot be opened"):
        read_images(tmp_path / "o.npy")
    np.save(tmp_path / "t.npy", np.zeros((2, 64, 64, 4)))
    whole = (tmp_path / "t.npy").read_bytes()
    for length in (0, 5, 60, 128, len(whole) - 1):
        (tmp_path / "t.npy").write_bytes(whole[:length])
        with pytest.raises(ArrayError, match="cannot be opened"):
            read_images(tmp_path / "t.npy")
