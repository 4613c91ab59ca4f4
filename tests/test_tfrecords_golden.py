"""Files of every format version stay readable, and are still written byte for byte."""

import importlib.util
import lzma
from pathlib import Path

import numpy as np
import pytest

from tfrecords.artifacts import read_manifest
from tfrecords.read import read_images, read_patches, read_series
from tfrecords.schema import BANDS, Image, Patches, Series
from tfrecords.write import write_images, write_patches, write_records, write_series

GOLDEN = Path(__file__).parent / "golden"


def load(name):
    """A script in the folder of golden files, as a module."""
    spec = importlib.util.spec_from_file_location(name, GOLDEN / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = load("make_records")


@pytest.fixture
def golden(tmp_path):
    """A function that unpacks a golden file."""

    def unpack(name):
        path = tmp_path / name
        path.write_bytes(lzma.decompress((GOLDEN / f"{name}.xz").read_bytes()))
        return path

    return unpack


def test_the_challenges_series(golden, tmp_path):
    path = golden("challenge-series.tfrecords")
    got = list(read_series(path))
    assert len(got) == 2
    for record, series in enumerate(got):
        stored = make.challenge_pixels("challenge-series", record)
        assert series.pixels.shape == (12, 512, 512, 4) and series.bands == BANDS
        assert (series.units, series.nodata, series.place) == ("dn", 0, f"challenge-series#{record}")
        np.testing.assert_array_equal(series.pixels[7, :, :, 2], stored[:, :, 7 * 4 + 2])
    write_series(got, tmp_path / "again", challenge=True)
    assert (tmp_path / "again" / "series-00000.tfrecords").read_bytes() == path.read_bytes()


def test_the_challenges_images(golden, tmp_path):
    path = golden("challenge-images.tfrecords")
    got = list(read_images(path))
    assert [i.image_id for i in got] == [7, 6]
    for record, image in enumerate(got):
        assert (image.units, image.nodata, image.bands) == ("scaled", -1, BANDS)
        np.testing.assert_array_equal(image.pixels, make.challenge_pixels("challenge-images", record))
    write_images(got, tmp_path / "again.tfrecords", challenge=True)
    assert (tmp_path / "again.tfrecords").read_bytes() == path.read_bytes()


def test_the_challenges_patches(golden, tmp_path):
    path = golden("challenge-patches.tfrecords")
    got = read_patches(path)
    assert got.patch_ids.tolist() == [7, 6, 5]
    assert (got.units, got.nodata, got.bands) == ("scaled", -1, BANDS)
    expected = [make.challenge_pixels("challenge-patches", n) for n in range(3)]
    np.testing.assert_array_equal(got.pixels, expected)
    write_patches(got, tmp_path / "again.tfrecords", challenge=True)
    assert (tmp_path / "again.tfrecords").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("kind", ["challenge-images", "challenge-patches", "challenge-series"])
def test_the_challenges_files_are_what_tensorflow_writes(golden, tmp_path, kind):
    write_records(tmp_path / "tf.tfrecords", make.challenge_records(kind))
    assert (tmp_path / "tf.tfrecords").read_bytes() == golden(f"{kind}.tfrecords").read_bytes()


def same(got, sent, kind):
    """Field by field, pixels bit by bit."""
    for name in kind.__dataclass_fields__:
        if name != "note":
            np.testing.assert_equal(getattr(got, name), getattr(sent, name), err_msg=name)
    assert got.pixels.dtype == sent.pixels.dtype


def test_series_v1(tmp_path):
    folder = GOLDEN / "series-v1"
    for got, sent in zip(read_series(folder), make.our_series(), strict=True):
        same(got, sent, Series)
    write_series(make.our_series(), tmp_path / "again", per_shard=2)
    old, new = (read_manifest(f, "series") for f in (folder, tmp_path / "again"))
    assert (new.files, new.fingerprint, new.counts, new.extra) == (
        old.files,
        old.fingerprint,
        old.counts,
        old.extra,
    )


def test_images_v1(golden, tmp_path):
    path = golden("images-v1.tfrecords")
    for got, sent in zip(read_images(path), make.our_images(), strict=True):
        same(got, sent if sent.path else Image(**{**vars(sent), "path": str(path)}), Image)
    write_images(make.our_images(), tmp_path / "again.tfrecords")
    assert (tmp_path / "again.tfrecords").read_bytes() == path.read_bytes()


def test_patches_v1(golden, tmp_path):
    path = golden("patches-v1.tfrecords")
    got, sent = read_patches(path), make.our_patches()
    same(got, Patches(**{**vars(sent), "paths": (str(path),)}), Patches)
    write_patches(make.our_patches(), tmp_path / "again.tfrecords")
    assert (tmp_path / "again.tfrecords").read_bytes() == path.read_bytes()


def test_golden_files_are_small():
    files = [p for p in GOLDEN.rglob("*") if "v1" in str(p) or "v2" in str(p) or "challenge" in str(p)]
    assert max(p.stat().st_size for p in files) < 50_000
