"""Outputs appear whole: an interrupted writer leaves the former output in its place."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tfrecords import storage
from tfrecords.artifacts import (
    FORMAT_VERSION,
    MANIFEST,
    fingerprint,
    read_manifest,
    writing_file,
    writing_folder,
)
from tfrecords.errors import (
    DiskFullError,
    FormatVersionError,
    ManifestError,
    MissingInputError,
    OutputExistsError,
    UnfinishedOutputError,
)
from tfrecords.storage import scratch_beside

CONFIG = {"stride": 8}
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def write(path, parts, *, config=CONFIG, overwrite=False, stop_after=None, stop=ZeroDivisionError):
    """Write a folder of parts; raise `stop` when `stop_after` parts are finished."""
    with writing_folder(path, kind="index", config=config, overwrite=overwrite) as folder:
        made = []
        for number, (name, content) in enumerate(parts.items()):
            if number == stop_after:
                raise stop
            if not folder.done(name):
                made.append(name)
                with folder.part(name, {"size": len(content)}) as partial:
                    partial.write_bytes(content)
        folder.counts["parts"] = len(parts)
    return made


# --- fingerprints -----------------------------------------------------------------------------------


def test_fingerprint_depends_on_values_only():
    @dataclass(frozen=True)
    class Knobs:
        stride: int = 8

    same = [
        {"a": 1, "knobs": Knobs(), "p": Path("x/y"), "n": [1, 2]},
        {"n": (1, np.int64(2)), "p": "x/y", "knobs": {"stride": np.int32(8)}, "a": 1},
    ]
    assert len({fingerprint(c) for c in same}) == 1
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert len(fingerprint({})) == 64


# --- one file ---------------------------------------------------------------------------------------


def test_file_appears_whole_with_its_folder(tmp_path):
    goal = tmp_path / "deep" / "answers.csv"
    with writing_file(goal) as partial:
        assert partial.suffix == ".csv" and partial.parent == goal.parent
        partial.write_text("whole")
        assert not goal.exists()
    assert goal.read_text() == "whole" and names(tmp_path) == ["deep/answers.csv"]


def test_existing_file_is_kept(tmp_path):
    goal = tmp_path / "a.csv"
    goal.write_text("former")
    with pytest.raises(OutputExistsError, match="--overwrite"), writing_file(goal):
        pass
    assert goal.read_text() == "former"
    with writing_file(goal, overwrite=True) as partial:
        partial.write_text("new")
    assert goal.read_text() == "new"
    with pytest.raises(OutputExistsError, match="is a folder"), writing_file(tmp_path, overwrite=True):
        pass


@pytest.mark.parametrize("stop", [ZeroDivisionError, KeyboardInterrupt, SystemExit])
def test_interrupted_file_leaves_the_former_one(tmp_path, stop):
    goal = tmp_path / "a.csv"
    goal.write_text("former")
    with pytest.raises(stop), writing_file(goal, overwrite=True) as partial:
        partial.write_text("half")
        raise stop
    assert goal.read_text() == "former" and names(tmp_path) == ["a.csv"]


OF_GDAL = OSError("Write failed. See previous exception for details.")
OF_GDAL.__cause__ = RuntimeError("_tiffWriteProc:No space left on device.")


@pytest.mark.parametrize("error", [FULL, OF_GDAL, RuntimeError("libfoo: No space left on device")])
def test_full_disk_gives_a_named_error(tmp_path, error):
    goal = tmp_path / "a.csv"
    goal.write_text("former")
    with pytest.raises(DiskFullError, match=r"a\.csv"), writing_file(goal, overwrite=True) as partial:
        partial.write_text("half")
        raise error
    assert goal.read_text() == "former" and names(tmp_path) == ["a.csv"]


def test_unfinished_files_of_an_output_leave_nothing_beside_it(tmp_path):
    goal = tmp_path / "maps" / "a.tif"
    with scratch_beside(goal) as folder:
        assert folder.parent == goal.parent and folder.name.startswith(".")
        (folder / "plain.tif").write_bytes(b"half")
    assert list(goal.parent.iterdir()) == []
    goal.with_name(f".{goal.name}.scratch").mkdir()  # left by a killed run
    with pytest.raises(DiskFullError, match=r"maps/a\.tif: the disk is full"), scratch_beside(goal):
        raise OF_GDAL
    assert list(goal.parent.iterdir()) == []


def test_an_error_of_a_library_on_a_full_disk_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "is_full", lambda folder: folder == tmp_path)
    for writing in (writing_file, scratch_beside):
        with pytest.raises(DiskFullError, match="disk is full"), writing(tmp_path / "a.tif"):
            raise OSError("TIFFAppendToStrip:Write error at scanline 3")
        with pytest.raises(PermissionError), writing(tmp_path / "a.tif"):
            raise PermissionError(errno.EACCES, "Permission denied")


def test_errors_of_gdal_on_a_disk_without_room_for_a_file_name_it(tmp_path, monkeypatch):
    from rasterio._err import CPLE_OpenFailedError

    error = CPLE_OpenFailedError(3, 4, "Unable to create TIFF file")
    for writing in (writing_file, scratch_beside):
        with pytest.raises(CPLE_OpenFailedError), writing(tmp_path / "a.tif"):
            raise error
    state = list(os.statvfs(tmp_path))
    state[5:8] = 100, 0, 0  # files, free ones, those that users may make
    monkeypatch.setattr(os, "statvfs", lambda folder: os.statvfs_result(state))
    for writing in (writing_file, scratch_beside):
        with pytest.raises(DiskFullError, match="disk is full"), writing(tmp_path / "a.tif"):
            raise error


def test_no_output_is_begun_with_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "MEMORY_BYTES", 1 << 62)
    for writing in (writing_file, scratch_beside):
        with pytest.raises(MemoryError, match="MB left"), writing(tmp_path / "a.tif"):
            pytest.fail("a library would write here")
    assert names(tmp_path) == []


def test_disk_full_during_sync(tmp_path, monkeypatch):
    def fsync(handle):
        raise FULL

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(DiskFullError), writing_file(tmp_path / "a.csv") as partial:
        partial.write_text("in the cache only")
    assert names(tmp_path) == []


def test_leftovers_of_a_killed_run_do_not_block_the_next(tmp_path):
    (tmp_path / ".a.partial.csv").write_text("of a killed run")
    with writing_file(tmp_path / "a.csv") as partial:
        partial.write_text("new")
    assert names(tmp_path) == ["a.csv"]


# --- a folder ---------------------------------------------------------------------------------------

PARTS = {"a.bin": b"1", "deep/b.bin": b"22", "c.bin": b"333"}


def test_folder_appears_whole(tmp_path):
    goal = tmp_path / "index"
    with writing_folder(goal, kind="index", config=CONFIG) as folder:
        with folder.part("a.bin") as partial:
            partial.write_bytes(b"1")
        (folder.path / "table.csv").write_text("written without part()")
        folder.counts["windows"] = np.int64(7)
        folder.extra["bands"] = ("B04", "B03")
        assert not goal.exists()
    manifest = read_manifest(goal, "index")
    assert names(tmp_path) == ["index/a.bin", "index/manifest.json", "index/table.csv"]
    assert set(manifest.files) == {"a.bin", "table.csv"} and manifest.files["a.bin"]["bytes"] == 1
    assert manifest.counts == {"windows": 7} and manifest.extra == {"bands": ["B04", "B03"]}
    assert manifest.config == CONFIG and manifest.version == FORMAT_VERSION["index"]


def test_finished_folder_is_kept(tmp_path):
    goal = tmp_path / "index"
    write(goal, {"a.bin": b"former"})
    with pytest.raises(OutputExistsError, match="--overwrite"):
        write(goal, {"a.bin": b"new"})
    assert (goal / "a.bin").read_bytes() == b"former"
    write(goal, {"b.bin": b"new"}, overwrite=True)
    assert names(tmp_path) == ["index/b.bin", "index/manifest.json"]


def test_overwrite_never_replaces_foreign_folders(tmp_path):
    photos, file, other = tmp_path / "photos", tmp_path / "file", tmp_path / "series"
    photos.mkdir()
    (photos / "me.jpg").write_text("dear")
    file.write_text("dear")
    with writing_folder(other, kind="series", config={}) as folder:
        (folder.path / "x").write_text("dear")
    for goal in (photos, file, other):
        with pytest.raises(OutputExistsError):
            write(goal, PARTS, overwrite=True)
    assert names(tmp_path) == ["file", "photos/me.jpg", "series/manifest.json", "series/x"]


def test_empty_folder_is_filled(tmp_path):
    (tmp_path / "index").mkdir()
    write(tmp_path / "index", PARTS)
    assert read_manifest(tmp_path / "index", "index").counts == {"parts": 3}


@pytest.mark.parametrize("stop", [ZeroDivisionError, KeyboardInterrupt])
def test_interrupted_folder_resumes(tmp_path, stop):
    goal = tmp_path / "index"
    with pytest.raises(stop):
        write(goal, PARTS, stop_after=2, stop=stop)
    assert not goal.exists() and (tmp_path / "index.partial").is_dir()
    assert write(goal, PARTS) == ["c.bin"]
    assert names(tmp_path) == ["index/a.bin", "index/c.bin", "index/deep/b.bin", "index/manifest.json"]
    assert read_manifest(goal, "index").counts == {"parts": 3}


def test_meta_of_finished_parts_is_kept(tmp_path):
    with pytest.raises(ZeroDivisionError):
        write(tmp_path / "index", PARTS, stop_after=2)
    with writing_folder(tmp_path / "index", kind="index", config=CONFIG) as folder:
        assert folder.done("deep/b.bin") and folder.meta("deep/b.bin") == {"size": 2}
        assert not folder.done("c.bin")


def test_damaged_part_is_made_again(tmp_path):
    with pytest.raises(ZeroDivisionError):
        write(tmp_path / "index", PARTS, stop_after=2)
    (tmp_path / "index.partial" / "a.bin").write_bytes(b"2")
    assert write(tmp_path / "index", PARTS) == ["a.bin", "c.bin"]


def test_unused_parts_of_an_earlier_run_are_removed(tmp_path):
    goal = tmp_path / "index"
    with pytest.raises(ZeroDivisionError):
        write(goal, PARTS, stop_after=2)
    write(goal, {"a.bin": b"1"})
    assert names(goal) == ["a.bin", "manifest.json"]


def test_other_settings_are_refused_with_the_reason(tmp_path):
    goal = tmp_path / "index"
    with pytest.raises(ZeroDivisionError):
        write(goal, PARTS, stop_after=2)
    with pytest.raises(UnfinishedOutputError, match="stride was 8 and is 4"):
        write(goal, PARTS, config={"stride": 4})
    assert write(goal, PARTS, config={"stride": 4}, overwrite=True) == list(PARTS)
    assert read_manifest(goal, "index").config == {"stride": 4}


def test_run_without_finished_parts_leaves_no_folder(tmp_path):
    with pytest.raises(ZeroDivisionError):
        write(tmp_path / "index", PARTS, stop_after=0)
    assert list(tmp_path.iterdir()) == []


def test_foreign_partial_folder_is_kept(tmp_path):
    (tmp_path / "index.partial").mkdir()
    (tmp_path / "index.partial" / "dear").write_text("dear")
    with pytest.raises(UnfinishedOutputError, match="Remove or rename"):
        write(tmp_path / "index", PARTS, overwrite=True)
    assert names(tmp_path) == ["index.partial/dear"]


def test_second_writer_is_refused(tmp_path):
    with writing_folder(tmp_path / "index", kind="index", config=CONFIG) as folder:
        with pytest.raises(UnfinishedOutputError, match="another process"):
            write(tmp_path / "index", PARTS)
        (folder.path / "a").write_text("of the first")
    assert names(tmp_path) == ["index/a", "index/manifest.json"]


def test_output_of_another_run_is_not_replaced(tmp_path):
    goal = tmp_path / "index"
    with (
        pytest.raises(OutputExistsError),
        writing_folder(goal, kind="index", config=CONFIG) as folder,
        folder.part("a.bin") as partial,
    ):
        partial.write_bytes(b"1")
        goal.mkdir()
        (goal / "dear").write_text("dear")
    assert names(goal) == ["dear"]


@pytest.mark.parametrize("length", range(0, 400, 7))
def test_whole_lines_of_a_cut_journal_are_read(tmp_path, length):
    with pytest.raises(ZeroDivisionError):
        write(tmp_path / "index", PARTS, stop_after=2)
    journal = tmp_path / "index.partial" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:length])
    assert set(write(tmp_path / "index", PARTS)) >= {"c.bin"}
    assert {n: (tmp_path / "index" / n).read_bytes() for n in PARTS} == PARTS
    assert set(read_manifest(tmp_path / "index", "index").files) == set(PARTS)


@pytest.mark.parametrize("call", range(9))
def test_disk_full_at_any_sync(tmp_path, monkeypatch, call):
    goal = tmp_path / "index"
    write(goal, {"a.bin": b"former"})
    calls = iter(range(10**6))
    fsync = os.fsync

    def failing(handle):
        if next(calls) == call:
            raise FULL
        fsync(handle)

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(DiskFullError, match="Free some space"):
        write(goal, PARTS, overwrite=True)
    monkeypatch.undo()
    assert_former_or_new(goal)
    write(goal, PARTS, overwrite=True)
    assert (goal / "c.bin").read_bytes() == b"333"
    assert not [p for p in tmp_path.iterdir() if p != goal]


def assert_former_or_new(goal):
    """Under its name or put aside, one whole folder is there."""
    former = goal.with_name("index.former")
    manifest = read_manifest(goal if goal.exists() else former, "index")
    assert set(manifest.files) in ({"a.bin"}, set(PARTS))


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {root!r})
import tfrecords.artifacts.folder as folder_room
from tfrecords.artifacts import writing_folder
count = 0
if not {swap}:
    folder_room.exchange = lambda one, other: False
def stopping(real):
    def call(*args, **kwargs):
        global count
        result = real(*args, **kwargs)
        count += 1
        if count == {step}:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call
for owner, name in ((os, "fsync"), (os, "rename"), (os, "replace"), (os, "unlink"), (Path, "rename"),
                    (Path, "replace"), (Path, "unlink"), (os, "rmdir"), (Path, "mkdir"),
                    (folder_room, "exchange")):
    setattr(owner, name, stopping(getattr(owner, name)))
with writing_folder({goal!r}, kind="index", config={{"stride": 8}}, overwrite=True) as folder:
    for name, content in {parts!r}.items():
        if not folder.done(name):
            with folder.part(name) as partial:
                partial.write_bytes(content)
"""


def kill_at(step, goal, swap):
    """Write in another process that kills itself after the given step; whether it was killed."""
    root = str(Path(__file__).parents[1])
    code = textwrap.dedent(KILLED).format(root=root, step=step, goal=str(goal), parts=PARTS, swap=swap)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode in (0, -signal.SIGKILL), run.stderr
    return run.returncode != 0


@pytest.mark.skipif(os.name == "nt", reason="no SIGKILL")
@pytest.mark.parametrize("swap", [True, False])
def test_kill_at_any_step_loses_nothing(tmp_path, swap):
    step, killed = 1 + swap, True
    while killed:
        goal = tmp_path / str(step) / "index"
        write(goal, {"a.bin": b"former"})
        killed = kill_at(step, goal, swap)
        assert_former_or_new(goal)
        assert goal.exists() or not (swap and sys.platform == "linux")
        write(goal, PARTS, overwrite=True)
        assert names(goal.parent) == ["index/a.bin", "index/c.bin", "index/deep/b.bin", "index/manifest.json"]
        assert read_manifest(goal, "index").counts == {"parts": 3}
        step += 1 if step < 4 else 3
    assert step > 20


@pytest.mark.skipif(sys.platform != "linux", reason="names change places in one step on Linux only")
def test_interruption_between_exchange_and_end(tmp_path, monkeypatch):
    goal = tmp_path / "index"
    write(goal, {"a.bin": b"former"})
    with monkeypatch.context() as patched, pytest.raises(ZeroDivisionError):
        patched.setattr(Path, "rename", lambda self, goal: 1 / 0)
        write(goal, PARTS, overwrite=True)
    assert set(read_manifest(goal, "index").files) == set(PARTS)
    with pytest.raises(OutputExistsError):  # whatever comes next puts things right first
        write(goal, PARTS)
    assert [p.name for p in tmp_path.iterdir()] == ["index"]


# --- files of another folder ------------------------------------------------------------------------


@pytest.mark.parametrize("links", [True, False])
def test_adopted_files_stay_when_their_folder_is_removed(tmp_path, monkeypatch, links):
    goal = tmp_path / "index"
    write(goal, PARTS)
    known = {n: k for n, k in read_manifest(goal, "index").files.items() if n != "c.bin"}
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", lambda *a: (_ for _ in ()).throw(OSError("none here")))
    inode = (goal / "deep/b.bin").stat().st_ino
    with writing_folder(goal, kind="index", config={"stride": 9}, overwrite="finished") as folder:
        folder.adopt(goal, known)
        with folder.part("d.bin") as partial:
            partial.write_bytes(b"4")
    assert names(goal) == ["a.bin", "d.bin", "deep/b.bin", "manifest.json"]
    assert ((goal / "deep/b.bin").stat().st_ino == inode) is links
    assert {n: read_manifest(goal, "index").files[n] for n in known} == known


def test_adopted_files_are_linked_once_and_damage_is_named(tmp_path):
    other, goal = tmp_path / "other", tmp_path / "index"
    write(other, PARTS)
    known = read_manifest(other, "index").files
    with (
        pytest.raises(ZeroDivisionError),
        writing_folder(goal, kind="index", config=CONFIG) as folder,
    ):
        folder.adopt(other, known)
        raise ZeroDivisionError
    shutil.rmtree(other)
    with writing_folder(goal, kind="index", config=CONFIG) as folder:
        folder.adopt(other, known)
    assert {n: (goal / n).read_bytes() for n in PARTS} == PARTS
    with (
        pytest.raises(ManifestError, match="missing"),
        writing_folder(tmp_path / "third", kind="index", config=CONFIG) as folder,
    ):
        folder.adopt(other, known)


def test_overwrite_finished_keeps_unfinished_folders(tmp_path):
    goal = tmp_path / "index"
    write(goal, {"a.bin": b"former"})
    with pytest.raises(ZeroDivisionError):
        write(goal, PARTS, stop_after=2, overwrite=True)
    with (
        pytest.raises(UnfinishedOutputError, match="stride was 8 and is 9"),
        writing_folder(goal, kind="index", config={"stride": 9}, overwrite="finished"),
    ):
        pass
    assert (goal / "a.bin").read_bytes() == b"former"


# --- reading ----------------------------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path):
    write(tmp_path / "index", PARTS)
    return tmp_path / "index"


def test_any_flipped_byte_of_a_folder_is_noticed(finished):
    """Of every file, every byte: a named error, or a manifest that says the same."""
    whole = read_manifest(finished, "index")
    for name in names(finished):
        content = (finished / name).read_bytes()
        for position in range(0, len(content), 1 if name != MANIFEST else 5):
            damaged = bytearray(content)
            damaged[position] ^= 0x15
            (finished / name).write_bytes(damaged)
            try:
                assert read_manifest(finished, "index") == whole
                assert name == MANIFEST
            except ManifestError as err:
                assert name in str(err) or str(finished) in str(err)
        (finished / name).write_bytes(content)


def test_any_cut_file_of_a_folder_is_noticed(finished):
    for name in names(finished):
        content = (finished / name).read_bytes()
        for length in range(0, len(content) - 1, 1 if name != MANIFEST else 5):
            (finished / name).write_bytes(content[:length])
            with pytest.raises(ManifestError):
                read_manifest(finished, "index", verify="sizes")
        (finished / name).write_bytes(content)


def test_verification_can_be_limited_to_sizes(finished):
    (finished / "c.bin").write_bytes(b"334")
    with pytest.raises(ManifestError, match=r"c\.bin was changed"):
        read_manifest(finished, "index")
    assert read_manifest(finished, "index", verify="sizes").counts == {"parts": 3}
    (finished / "c.bin").unlink()
    with pytest.raises(ManifestError, match=r"c\.bin is missing"):
        read_manifest(finished, "index", verify="sizes")
    assert read_manifest(finished, "index", verify=False).counts == {"parts": 3}


def test_error_names_another_kind_or_version(finished):
    with pytest.raises(ManifestError, match="is of kind 'index'; expected 'series'"):
        read_manifest(finished, "series")
    page = json.loads((finished / MANIFEST).read_text())
    (finished / MANIFEST).write_text(json.dumps(page | {"version": 99}))
    with pytest.raises(FormatVersionError, match=r"format version 99.*reads version 1"):
        read_manifest(finished, "index")


def test_missing_folder_and_manifest_are_named(tmp_path):
    with pytest.raises(MissingInputError, match="no such folder"):
        read_manifest(tmp_path / "index", "index")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match=r"no manifest\.json"):
        read_manifest(tmp_path / "empty", "index")
    with pytest.raises(ZeroDivisionError):
        write(tmp_path / "index", PARTS, stop_after=2)
    with pytest.raises(MissingInputError, match=r"index\.partial is unfinished"):
        read_manifest(tmp_path / "index", "index")
