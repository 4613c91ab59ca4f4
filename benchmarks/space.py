"""Run small jobs where too little can be written: a refusal in one sentence, the former output, and a rerun.

A job works on a file system in memory, which only root may mount. It gets a share of the bytes or of the
files that the job needs besides its inputs, or nothing can be written at all. A quota gives another number
of error, which `tests/test_tfrecords_artifacts.py` raises; the kernel of most machines has none on tmpfs.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from children import fork, wait
from job import Job, outcome_of, snapshots
from small_jobs import JOBS

LARGE = {"size": 2 << 30, "nr_inodes": 1 << 20}
"""Bytes and files of a file system with room for all."""
NOBODY = 65534
DAC_OVERRIDE = 1
"""Number of the right to write everywhere."""


# --- file systems -----------------------------------------------------------------------------------------


def _mount(place: Path, *options: str) -> None:
    command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(place)]
    subprocess.run(command, check=True, capture_output=True)


def can_mount(folder: Path) -> bool:
    """Return whether this process may mount a file system on a folder."""
    try:
        _mount(folder, "size=1m")
    except (OSError, subprocess.CalledProcessError):
        return False
    subprocess.run(["umount", str(folder)], check=True)
    return True


def limit(place: Path, **room: int) -> None:
    """Limit the bytes (`size`) or the files (`nr_inodes`) of a file system."""
    _mount(place, "remount", *(f"{name}={count}" for name, count in room.items()))


@contextmanager
def in_memory(place: Path, template: Path) -> Iterator[Path]:
    """Mount a file system on a folder and copy a template into it; unmount it at the end."""
    place.mkdir(exist_ok=True)
    _mount(place, *(f"{name}={count}" for name, count in LARGE.items()))
    try:
        shutil.copytree(template, place, dirs_exist_ok=True)
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def used(place: Path) -> dict[str, int]:
    """Return the bytes and files of a file system that are taken."""
    state = os.statvfs(place)
    size = (state.f_blocks - state.f_bfree) * state.f_frsize
    return {"size": size, "nr_inodes": state.f_files - state.f_ffree}


# --- what is missing --------------------------------------------------------------------------------------


def without_permission(run: Callable[[], object]) -> None:
    """Run without the right to write where others own the folder."""
    library = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    assert library.capget(header, data) == 0
    data[0] &= ~(1 << DAC_OVERRIDE)
    assert library.capset(header, data) == 0, os.strerror(ctypes.get_errno())
    run()


def peak_of(job: Job, place: Path) -> dict[str, int]:
    """Run a job in a child; return the most bytes and files that it takes besides its inputs."""
    before, most, stop = used(place), used(place), threading.Event()

    def watch() -> None:
        while not stop.is_set():
            for name, count in used(place).items():
                most[name] = max(most[name], count)
            time.sleep(0.001)

    watching = threading.Thread(target=watch)
    watching.start()
    code = wait(fork(lambda: job.run(place)))
    stop.set()
    watching.join()
    assert code == 0
    return {name: most[name] - before[name] for name in most}


def _withhold(what: str, place: Path, share: float, peak: dict[str, int]) -> None:
    """Take away what the job needs."""
    if what == "read-only":
        _mount(place, "remount", "ro")
    elif what == "no permission":
        for entry in (place, *place.rglob("*")):
            os.chown(entry, NOBODY, NOBODY)
    else:
        limit(place, **{what: used(place)[what] + int(share * peak[what])})


def _restore(what: str, place: Path) -> None:
    if what == "no permission":
        for entry in (place, *place.rglob("*")):
            os.chown(entry, os.getuid(), os.getgid())
    _mount(place, "remount", "rw", *(f"{name}={count}" for name, count in LARGE.items()))


WITHHELD = {"disk full": "size", "no inodes": "nr_inodes"} | {n: n for n in ("read-only", "no permission")}
"""What is missing, by the name of the fault."""


# --- the campaign -----------------------------------------------------------------------------------------


def withhold_space(names: Sequence[str], shares: Sequence[float], folder: Path) -> dict[str, dict[str, Any]]:
    """Run jobs without room or right to write; return what became of them, by fault.

    Args:
        names: of `small_jobs`; all without any. Those that only print are left out.
        shares: of the bytes and of the files that a job needs besides its inputs.
        folder: where to work; it exists.

    Returns:
        Counts, faults and sentences by fault; {} where no file system can be mounted.
    """
    if not can_mount(folder):
        return {}
    counts: dict[str, dict[str, Any]] = {name: {"seen": Counter(), "faults": []} for name in WITHHELD}
    for number, name in enumerate(name for name in names or JOBS if not JOBS[name].prints):
        room = folder / str(number)
        room.mkdir()
        _withhold_from(name, shares, room, counts)
        shutil.rmtree(room)
    return {name: {**of["seen"], "faults": of["faults"]} for name, of in counts.items()}


def _withhold_from(
    name: str, shares: Sequence[float], folder: Path, counts: dict[str, dict[str, Any]]
) -> None:
    """Run one job with each fault; add to the counts."""
    job, template, place = JOBS[name], folder / "template", folder / "work"
    place.mkdir()
    assert wait(fork(lambda: job.prepare(place))) == 0, name
    place.rename(template)
    former = snapshots(template, job.outputs)
    with in_memory(place, template):
        peak = peak_of(job, place)
        new = snapshots(place, job.outputs)
    for fault, what in WITHHELD.items():
        for share in shares if what in LARGE else (0.0,):
            with in_memory(place, template):
                _withhold(what, place, share, peak)
                said = folder / "said.txt"
                said.unlink(missing_ok=True)
                code, text = _attempt(job, place, said, what)
                found = _judge(job, place, code, text, former, new)
                _restore(what, place)
                left = snapshots(place, job.outputs)
                if not found and left != new:
                    found = "" if wait(fork(lambda: job.run(place))) == 0 else "the rerun failed"
                    if not found and snapshots(place, job.outputs) != new:
                        found = "the rerun has other bytes"
            outcome = "done" if code == 0 else "refused" if text.startswith("error:") else "stopped"
            counts[fault]["seen"][outcome] += 1
            if found:
                counts[fault]["faults"].append(f"{name} at {share:.2f}: {found}: {text[-300:]}")


def _attempt(job: Job, place: Path, said: Path, what: str) -> tuple[int, str]:
    """Run a job in a child; return its exit code and what it says."""

    def run() -> None:
        outcome_of(job, place, said)

    code = wait(fork((lambda: without_permission(run)) if what == "no permission" else run))
    return code, said.read_text() if said.exists() else ""


def _judge(
    job: Job, place: Path, code: int, text: str, former: list[dict[str, str]], new: list[dict[str, str]]
) -> str:
    """Return what is wrong with an attempt, "" if nothing is."""
    left = snapshots(place, job.outputs)
    if job.is_half(left, former, new):
        return "half an output"
    if code == 0:
        return "" if left == new else "it says done, and the output is not new"
    return "" if text.startswith("error:") and "\n" not in text.strip() else f"no sentence, code {code}"
