"""Series, their folders, and damage of any TFRecord: one clear error, or the right pixels."""

import shutil

import numpy as np
import pytest
import tensorflow as tf

from tfrecords.artifacts import writing_folder
from tfrecords.errors import (
    FormatVersionError,
    ManifestError,
    MissingInputError,
    RecordError,
    RetrieveError,
)
from tfrecords.read import (
    count_records,
    read_series,
    series_files,
)
from tfrecords.schema import (
    Series,
    encode_series,
)
from tfrecords.write import write_series


def records(path, *raw):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in raw:
            writer.write(record)
    return path


def small_series(count=3, **more):
    for number in range(count):
        pixels = np.random.default_rng(number).integers(1, 60000, (2, 2, 3, 1)).astype(np.uint16)
        yield Series(pixels, "dn", ("unknown",), 0.0, ("a", "b"), f"p{number}", x0=number, **more)


@pytest.fixture(scope="module")
def shard(tmp_path_factory):
    """A tiny file of three series, and what is in it."""
    folder = tmp_path_factory.mktemp("shard") / "s"
    write_series(small_series(), folder)
    return folder / "series-00000.tfrecords"


def outcome(path):
    """Pixels and places of a file, or the name of the error, which names the file."""
    try:
        return [(s.place, s.x0, s.nodata, s.pixels.tobytes()) for s in read_series(path)]
    except RetrieveError as err:
        assert isinstance(err, (RecordError, MissingInputError)) and path.name in str(err)
        assert isinstance(err, MissingInputError) or "record " in str(err)
        return type(err)


def test_any_prefix_of_a_file_is_an_error(shard, tmp_path):
    content = shard.read_bytes()
    path = tmp_path / "cut.tfrecords"
    assert len(content) < 1500
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert outcome(path) is (RecordError if length else MissingInputError), length


def test_any_flipped_byte_of_a_file_is_an_error(shard, tmp_path):
    # One record: each try costs TensorFlow some 20 ms.
    content = shard.read_bytes()[: len(shard.read_bytes()) // 3]
    path = tmp_path / "flipped.tfrecords"
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        assert outcome(path) is RecordError, position


def test_the_number_of_the_damaged_record_is_right(shard, tmp_path):
    content, path = shard.read_bytes(), tmp_path / "x.tfrecords"
    third = len(content) // 3
    for record in range(3):
        damaged = bytearray(content)
        damaged[record * third + third // 2] ^= 255
        path.write_bytes(damaged)
        with pytest.raises(RecordError, match=rf"x\.tfrecords: record {record} \(counted from 0\)"):
            list(read_series(path))


def test_file_of_another_format_is_refused(tmp_path):
    path = tmp_path / "x.tfrecords"
    path.write_bytes(b"\x1f\x8b\x08" + b"zipped" * 30)
    with pytest.raises(RecordError, match="compressed: gunzip it"):
        count_records(path)
    path.write_bytes(b"something else altogether")
    with pytest.raises(RecordError, match="not a TFRecord file"):
        count_records(path)
    records(path, b"no example")
    with pytest.raises(RecordError, match=r"record 0 .*not a tf\.train\.Example"):
        list(read_series(path))


def test_sources_of_series(shard, tmp_path):
    for name in (
        "b.tfrecords",
        "a.tfrecords",
        "sub/c.tfrecords",
        "test_images.tfrecords",
        "test_patches.tfrecords",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(shard, tmp_path / name)
    named = [p.relative_to(tmp_path).as_posix() for p in series_files(tmp_path)]
    assert named == ["a.tfrecords", "b.tfrecords", "sub/c.tfrecords"]
    assert [p.name for p in series_files(f"{tmp_path}/[ab].tfrecords")] == ["a.tfrecords", "b.tfrecords"]
    assert series_files([tmp_path / "b.tfrecords", shard]) == (tmp_path / "b.tfrecords", shard)
    assert len(list(read_series(shard))) == 3
    (tmp_path / "none").mkdir()
    for nothing in (tmp_path / "none", tmp_path / "x", f"{tmp_path}/*.tfr", []):
        with pytest.raises(MissingInputError, match="no TFRecord files of series"):
            read_series(nothing)
    with pytest.raises(MissingInputError, match="cannot be read: No such file"):
        list(read_series([tmp_path / "x.tfrecords"]))


def test_a_folder_is_checked_against_its_manifest(tmp_path):
    folder = tmp_path / "s"
    write_series(small_series(4), folder, per_shard=2)
    shutil.copy(folder / "series-00000.tfrecords", folder / "stray.tfrecords")
    assert len(list(read_series(folder))) == 4
    (folder / "series-00001.tfrecords").rename(tmp_path / "moved")
    with pytest.raises(ManifestError, match=r"series-00001\.tfrecords is missing"):
        read_series(folder)
    (folder / "series-00001.tfrecords").write_bytes((tmp_path / "moved").read_bytes()[:-1])
    with pytest.raises(ManifestError, match=r"series-00001\.tfrecords has \d+ bytes"):
        read_series(folder)
    (tmp_path / "moved").rename(folder / "series-00001.tfrecords")
    page = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(page.replace('"version": 1', '"version": 2'))
    with pytest.raises(FormatVersionError):
        read_series(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(ManifestError, match="damaged"):
        read_series(folder)
    with writing_folder(tmp_path / "index", kind="index", config={}) as other:
        (other.path / "x").write_text("x")
    with pytest.raises(MissingInputError, match="no TFRecord files of series"):
        read_series(tmp_path / "index")


def test_series_with_nan_are_refused(tmp_path):
    pixels = np.full((2, 3, 3, 1), 0.5, np.float32)
    pixels[1, 2, 0] = np.nan
    one = Series(pixels, "reflectance", ("unknown",), None, ("a", "b"), "p")
    with pytest.raises(RecordError, match=r"record 0 .*1 values are NaN"):
        list(read_series(records(tmp_path / "x.tfrecords", encode_series(one))))
