"""Pixels that stay in their files: every operation gives the same as on the array."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.kernels.executors import parallel_map
from tfrecords.errors import MissingInputError, RecordError
from tfrecords.read import read_patches
from tfrecords.read.lazy_pixels import LazyPixels
from tfrecords.read.records import find_bytes
from tfrecords.schema import BANDS, Patches
from tfrecords.write import write_patches


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two files of 5 and 3 patches, one with a number that half precision can't hold, and the pixels."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(1, 4000, (8, 64, 64, 4)).astype(np.uint16)
    folder = tmp_path_factory.mktemp("pixels")
    for name, rows in (("a", slice(0, 5)), ("b", slice(5, 8))):
        some = pixels[rows]
        if name == "b":
            some[0, 0, 0] = 30_001
        patches = Patches(np.arange(8)[rows] + 10**6, some, "dn", BANDS, 0.0)
        write_patches(patches, folder / f"{name}.tfrecords")
    return folder, pixels


@given(st.data())
def test_indexing_gives_the_same_as_the_array(files, data):
    folder, pixels = files
    held = read_patches(f"{folder}/*.tfrecords").pixels
    keys = st.one_of(
        st.integers(-8, 7),
        st.slices(8),
        st.lists(st.integers(-8, 7), max_size=9).map(lambda v: np.array(v, np.int64)),
        st.lists(st.booleans(), min_size=8, max_size=8).map(np.array),
        st.tuples(st.slices(8), st.slices(64), st.just(slice(None)), st.integers(0, 3)),
        st.tuples(st.integers(0, 7), st.slices(64)),
        st.just((..., slice(0, 1))),
    )
    key = data.draw(keys)
    np.testing.assert_array_equal(held[key], pixels[key])
    assert np.asarray(held[key]).dtype == pixels.dtype and np.shape(held[key]) == pixels[key].shape


def test_lazy_pixels_have_the_attributes_of_an_array(files):
    folder, pixels = files
    found = read_patches(f"{folder}/*.tfrecords")
    held = found.pixels
    assert isinstance(held, LazyPixels) and (held.shape, held.ndim, len(held)) == (pixels.shape, 4, 8)
    assert held.dtype == np.uint16 and found.patch_ids.tolist() == list(range(10**6, 10**6 + 8))
    assert isinstance(found.select(slice(2, 4)).pixels, LazyPixels)
    np.testing.assert_array_equal(np.asarray(held[1:], np.float32), pixels[1:].astype(np.float32))
    np.testing.assert_array_equal(found.scaled([7, 0]), found.scaled()[[7, 0]])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(held)), pixels)


def test_threads_read_in_parallel(files):
    folder, pixels = files
    held = read_patches(f"{folder}/*.tfrecords").pixels
    for row, one in enumerate(parallel_map(lambda i: np.asarray(held[i % 8 : i % 8 + 1]), range(400))):
        assert (one == pixels[row % 8 : row % 8 + 1]).all()


def test_changed_file_is_named(tmp_path):
    path = tmp_path / "p.tfrecords"
    pixels = np.random.default_rng(0).integers(1, 4000, (2, 64, 64, 4)).astype(np.uint16)
    write_patches(Patches(np.arange(2), pixels, "dn", BANDS, 0.0), path)
    held = read_patches(path).pixels
    np.testing.assert_array_equal(held, pixels)
    whole = path.read_bytes()
    for changed in (whole[:40_000], whole[::-1], b""):
        path.write_bytes(changed)
        for row in (0, 1):
            with pytest.raises(RecordError, match=r"p\.tfrecords.*changed"):
                held[row]
    path.unlink()
    with pytest.raises(MissingInputError, match=r"p\.tfrecords cannot be read"):
        held[0]


@given(st.binary(max_size=90), st.binary(min_size=1, max_size=90), st.binary(max_size=9))
def test_find_bytes_returns_the_first_offset(before, data, behind):
    whole = before + data + behind
    assert find_bytes(whole, data) == whole.index(data)
    assert find_bytes(64 * b"a" + b"b" + whole, 64 * b"a" + b"b" + whole) == 0
    assert find_bytes(200 * b"a" + b"b", 70 * b"a" + b"b") == 130
