"""The short form of the campaign of faults: `benchmarks/faults.py` with few kills, readers and writers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


forking = pytest.mark.skipif(not hasattr(os, "fork"), reason="children are forked")


def python(folder, *arguments):
    """Run Python where it finds the benchmarks and the package."""
    paths = os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )


@forking
def test_a_child_that_hangs_tells_where(tmp_path):
    told = python(
        tmp_path,
        "-c",
        "import threading, time, children\n"
        "def waits_for_ever(): threading.Thread(target=sleeps).start(); threading.Event().wait()\n"
        "def sleeps(): time.sleep(99)\n"
        "try: children.wait(children.fork(waits_for_ever), patience_s=0.5)\n"
        "except TimeoutError as error: print(error)\n",
    )
    assert told.returncode == 0, told.stderr
    assert "did not end within 0.5 s" in told.stdout and "s of a processor" in told.stdout
    assert "in waits_for_ever" in told.stdout and "in sleeps" in told.stdout


def counted(folder, *campaign):
    """Run a part of the campaign and return its counts."""
    script = str(ROOT / "benchmarks" / "faults.py")
    done = python(folder, script, "--seed", "5", "--json", "counts.json", *campaign)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "counts.json").read_text())


@forking
def test_no_fault_gives_a_wrong_or_lost_output(tmp_path):
    sections = ("--only", "kills", "--only", "readers", "--only", "writers")
    commands = {"index", "add", "remove", "query", "ingest", "train", "classify predict", "segment predict"}
    flags = [flag for name in sorted(commands) for flag in ("--job", name)]
    counts = counted(tmp_path, *sections, *flags, "--kills", "8", "--rounds", "4", "--readers", "2")
    assert set(counts["kills"]) == commands
    for name, of_command in counts["kills"].items():
        assert of_command["faults"] == [], name
        assert of_command["former"] + of_command["new"] + of_command["between"] == 1, name
    seen, written = counts["readers"], counts["writers"]
    assert seen.pop("whole") > 0 and seen.pop("changes") == 4
    assert set(seen) <= {"refused: IndexMismatchError"}
    assert written.pop("added") > 0 and written.pop("leftovers") == 0
    assert set(written) <= {"refused: IndexMismatchError", "refused: UnfinishedOutputError"}


@forking
def test_locale_clock_user_and_path_change_no_output(tmp_path):
    jobs = ("ingest", "classify predict", "segment predict")
    flags = [flag for name in jobs for flag in ("--job", name)]
    (counts,) = counted(tmp_path, "--only", "surroundings", "--surrounding", "all", *flags)[
        "surroundings"
    ].values()
    assert counts == {"equal": 5, "faults": []}


@forking
def test_too_little_memory_leaves_no_half_output(tmp_path):
    campaign = ("--only", "memory", "--job", "ingest", "--job", "classify predict", "--starvings", "3")
    for name, of in counted(tmp_path, *campaign)["memory"].items():
        assert of.pop("faults") == [] and of.pop("need_mb")[0] > 0, name
        assert sum(of.values()) == 3, name


@forking
def test_a_full_disk_and_a_folder_without_right_to_write_leave_no_half_output(tmp_path):
    counts = counted(tmp_path, "--only", "space", "--job", "labels subset", "--starvings", "2")["space"]
    if not counts:
        pytest.skip("only root may mount a file system")
    assert set(counts) == {"disk full", "no inodes", "read-only", "no permission"}
    for name, of in counts.items():
        assert of.pop("faults") == [] and not of.get("stopped"), name
        assert of["refused"] > 0, name


@forking
def test_many_questions_from_four_threads_have_the_same_answers_and_no_growth(tmp_path):
    found = counted(tmp_path, "--only", "soak", "--queries", "60")["soak"]
    assert (found["queries"], found["wrong"]) == (60, 0)
    assert found["growth"]["descriptors"] == [0] and found["growth"]["threads"][0] <= 0
    assert found["growth"]["memory_kb"][0] < 30_000
