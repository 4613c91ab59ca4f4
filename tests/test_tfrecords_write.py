"""Shards of series, files of images and patches: whole or not at all, resumed, and repeatable."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfrecords.artifacts import read_manifest
from tfrecords.errors import (
    ArrayError,
    DiskFullError,
    DuplicateIdError,
    ManifestError,
    MissingInputError,
    OutputExistsError,
    UnfinishedOutputError,
)
from tfrecords.read import count_records, read_images, read_patches, read_series
from tfrecords.schema import BANDS, Image, Patches, Series
from tfrecords.write import write_images, write_patches, write_series


def series(count, top=3000, **more):
    """Small series that are all different."""
    for number in range(count):
        pixels = np.random.default_rng(number).integers(1, top, (3, 5, 6, 4)).astype(np.uint16)
        yield Series(pixels, "dn", BANDS, 0.0, ("a", "b", "c"), f"place{number // 2}", x0=number, **more)


def images(*ids):
    for number in ids:
        pixels = np.random.default_rng(number).integers(1, 3000, (65, 70, 4)).astype(np.uint16)
        yield Image(number, pixels, "dn", BANDS, 0.0)


def patches(*ids):
    pixels = np.random.default_rng(0).integers(1, 3000, (len(ids), 64, 64, 4)).astype(np.uint16)
    return Patches(np.array(ids, np.int64), pixels, "dn", BANDS, 0.0)


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def same(got, sent):
    got, sent = list(got), list(sent)
    assert [(s.place, s.x0) for s in got] == [(s.place, s.x0) for s in sent]
    for a, b in zip(got, sent, strict=True):
        np.testing.assert_array_equal(a.pixels, b.pixels)


def test_series_go_into_shards_with_a_manifest(tmp_path):
    assert write_series(series(7), tmp_path / "s", per_shard=3) == 7
    shards = [f"series-{i:05d}.tfrecords" for i in range(3)]
    assert names(tmp_path) == ["s/manifest.json", *(f"s/{n}" for n in shards)]
    assert [count_records(tmp_path / "s" / n) for n in shards] == [3, 3, 1]
    manifest = read_manifest(tmp_path / "s", "series")
    assert manifest.counts == {"series": 7, "shards": 3, "places": 4}
    assert manifest.extra == {
        "bands": ["B04 B03 B02 B08"],
        "challenge": False,
        "dtypes": ["uint16"],
        "exact": True,
        "units": ["dn"],
    }
    same(read_series(tmp_path / "s"), series(7))


def test_the_same_series_give_the_same_bytes(tmp_path):
    for name in "ab":
        write_series(series(4), tmp_path / name, per_shard=2)
    files = [read_manifest(tmp_path / name, "series").files for name in "ab"]
    assert files[0] == files[1]


def test_nothing_to_write_is_refused(tmp_path):
    with pytest.raises(ArrayError, match="no series"):
        write_series([], tmp_path / "s")
    with pytest.raises(ArrayError, match="no images"):
        write_images([], tmp_path / "i.tfrecords")
    with pytest.raises(ArrayError, match="no patches"):
        write_patches(patches(), tmp_path / "p.tfrecords")
    assert names(tmp_path) == []


def test_finished_outputs_are_kept(tmp_path):
    write_series(series(2), tmp_path / "s")
    write_images(images(1), tmp_path / "i.tfrecords")
    write_patches(patches(1), tmp_path / "p.tfrecords")
    before = {n: (tmp_path / n).read_bytes() for n in names(tmp_path)}
    with pytest.raises(OutputExistsError):
        write_series(series(3), tmp_path / "s")
    with pytest.raises(OutputExistsError):
        write_images(images(2), tmp_path / "i.tfrecords")
    with pytest.raises(OutputExistsError):
        write_patches(patches(2), tmp_path / "p.tfrecords")
    assert {n: (tmp_path / n).read_bytes() for n in names(tmp_path)} == before
    write_series(series(3), tmp_path / "s", overwrite=True)
    write_images(images(2), tmp_path / "i.tfrecords", overwrite=True)
    write_patches(patches(2), tmp_path / "p.tfrecords", overwrite=True)
    assert len(list(read_series(tmp_path / "s"))) == 3
    assert [i.image_id for i in read_images(tmp_path / "i.tfrecords")] == [2]
    assert read_patches(tmp_path / "p.tfrecords").patch_ids.tolist() == [2]


def test_doubled_ids_are_refused(tmp_path):
    with pytest.raises(DuplicateIdError, match="image id 3 occurs twice"):
        write_images(images(1, 3, 3), tmp_path / "i.tfrecords")
    with pytest.raises(DuplicateIdError, match="patch id 4 occurs twice"):
        write_patches(patches(4, 1, 4), tmp_path / "p.tfrecords")
    assert names(tmp_path) == []


def breaking(items, after, error):
    """Items, and then an error instead of the next."""
    for number, item in enumerate(items):
        if number == after:
            raise error
        yield item


@pytest.mark.parametrize("error", [ZeroDivisionError(), KeyboardInterrupt()])
def test_interrupted_file_leaves_the_former(tmp_path, error):
    goal = tmp_path / "i.tfrecords"
    write_images(images(1, 2), goal)
    before = goal.read_bytes()
    with pytest.raises(type(error)):
        write_images(breaking(images(3, 4, 5), 2, error), goal, overwrite=True)
    assert goal.read_bytes() == before and names(tmp_path) == ["i.tfrecords"]


def test_interrupted_writing_of_series_resumes(tmp_path):
    goal, config = tmp_path / "s", {"source": "x"}
    with pytest.raises(ZeroDivisionError):
        write_series(breaking(series(7), 5, ZeroDivisionError()), goal, per_shard=2, config=config)
    assert names(tmp_path / "s.partial") == [
        "journal.jsonl",
        "series-00000.tfrecords",
        "series-00001.tfrecords",
    ]
    with pytest.raises(MissingInputError, match="no TFRecord"):
        list(read_series(goal))
    with pytest.raises(ManifestError, match="no manifest"):
        list(read_series(tmp_path / "s.partial"))
    finished = inodes(tmp_path / "s.partial")
    assert write_series(series(7), goal, per_shard=2, config=config) == 7
    assert {name: inodes(goal)[name] for name in finished} == finished  # not written again
    assert len(inodes(goal)) == len(finished) + 2
    assert read_manifest(goal, "series").counts == {"series": 7, "shards": 4, "places": 4}
    same(read_series(goal), series(7))


def inodes(folder):
    """The inode of each shard of a folder: another file has another number."""
    return {path.name: path.stat().st_ino for path in folder.glob("*.tfrecords")}


def test_run_without_configuration_starts_over(tmp_path):
    with pytest.raises(ZeroDivisionError):
        write_series(breaking(series(7), 5, ZeroDivisionError()), tmp_path / "s", per_shard=2)
    others = list(series(7))[3:]
    write_series(others, tmp_path / "s", per_shard=2)
    same(read_series(tmp_path / "s"), others)


def test_another_configuration_is_refused(tmp_path):
    with pytest.raises(ZeroDivisionError):
        write_series(
            breaking(series(3), 2, ZeroDivisionError()), tmp_path / "s", per_shard=2, config={"seed": 1}
        )
    with pytest.raises(UnfinishedOutputError, match="seed was 1 and is 2"):
        write_series(series(3), tmp_path / "s", per_shard=2, config={"seed": 2})


def test_full_disk_leaves_former_output_and_finished_shards(tmp_path, monkeypatch):
    write_series(series(2), tmp_path / "s")
    write_images(images(1), tmp_path / "i.tfrecords")
    calls = iter(range(100))
    real = tf.io.TFRecordWriter.write

    def write(self, record):
        if next(calls) >= 3:
            raise tf.errors.ResourceExhaustedError(None, None, "x; No space left on device")
        real(self, record)

    monkeypatch.setattr(tf.io.TFRecordWriter, "write", write)
    with pytest.raises(DiskFullError, match=r"finished parts stay in .*s\.partial"):
        write_series(series(7), tmp_path / "s", per_shard=2, config={}, overwrite=True)
    with pytest.raises(DiskFullError, match=r"i\.tfrecords: the disk is full"):
        write_images(images(2), tmp_path / "i.tfrecords", overwrite=True)
    monkeypatch.undo()
    same(read_series(tmp_path / "s"), series(2))
    assert [i.image_id for i in read_images(tmp_path / "i.tfrecords")] == [1]
    assert names(tmp_path / "s.partial") == ["journal.jsonl", "series-00000.tfrecords"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_error_of_tensorflow_on_a_full_disk():
    from tfrecords.write import write_records

    with pytest.raises(OSError, match="No space left"):
        write_records(Path("/dev/full"), [b"x" * 100])
    with pytest.raises(OSError, match="could not be written"):
        write_records(Path("/nowhere/x"), [b"x" * 100])


KILLED = """
import os, signal, sys
sys.path[:0] = [{root!r}, {tests!r}]
from test_tfrecords_write import series
from tfrecords.write import write_series
def dying():
    for item in series(7):
        if item.x0 == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        yield item
write_series(dying(), {goal!r}, per_shard=2, config={{}}, overwrite=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
def test_killed_writer_leaves_the_former_output_and_resumes(tmp_path):
    goal = tmp_path / "s"
    write_series(series(2), goal)
    tests = Path(__file__).parent
    code = textwrap.dedent(KILLED).format(root=str(tests.parent), tests=str(tests), goal=str(goal))
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == -signal.SIGKILL
    same(read_series(goal), series(2))
    write_series(series(7), goal, per_shard=2, config={}, overwrite=True)
    same(read_series(goal), series(7))
    assert {p.name for p in tmp_path.iterdir()} == {"s"}


def test_the_challenges_files_hold_its_features_only(tmp_path):
    full = Image(1, np.full((512, 512, 4), 900, np.uint16), "dn", BANDS, 0.0)
    write_images([full], tmp_path / "i.tfrecords", challenge=True)
    write_patches(patches(5), tmp_path / "p.tfrecords", challenge=True)
    for name, features in (("i", {"image_raw", "image_id"}), ("p", {"patch_raw", "patch_id"})):
        raw = next(tf.data.TFRecordDataset(str(tmp_path / f"{name}.tfrecords")).as_numpy_iterator())
        assert set(tf.train.Example.FromString(raw).features.feature) == features
    with pytest.raises(ArrayError, match="the challenge's record"):
        write_images(images(1), tmp_path / "small.tfrecords", challenge=True)
    with pytest.raises(ArrayError, match="the challenge's record"):
        write_series(series(1), tmp_path / "s", challenge=True)


def test_series_are_read_as_written(tmp_path):
    write_images(images(4, 0, 2**31 - 1), tmp_path / "i.tfrecords")
    got = list(read_images(tmp_path / "i.tfrecords"))
    for a, b in zip(got, images(4, 0, 2**31 - 1), strict=True):
        assert a.image_id == b.image_id and a.units == b.units and a.bands == b.bands
        np.testing.assert_array_equal(a.pixels, b.pixels)
    write_patches(patches(4, 0, 2**31 - 1), tmp_path / "p.tfrecords")
    read = read_patches(tmp_path / "p.tfrecords")
    assert read.patch_ids.tolist() == [4, 0, 2**31 - 1] and read.units == "dn"
    np.testing.assert_array_equal(read.pixels, patches(1, 2, 3).pixels)
