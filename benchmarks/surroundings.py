"""Run small jobs where little is as usual, or with too little memory: the same outputs, or none.

Each surrounding is a separate process, because locale and time zone are read when Python starts. It runs
each job once. The outputs are compared with outputs of a plain process by their bytes.

A command with too little memory runs in a forked child. Its data segment is limited to what the backend
takes when it starts, and a share of what the command adds to that.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from children import fork, wait
from job import Job, outcome_of, snapshot, snapshots
from small_jobs import JOBS, import_all

FAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
"""The library that changes the clock of a process, where it is installed."""
NOBODY = 65534
"""User and group without rights."""
AS_NOBODY = (
    *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"),
    *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"),
)
"""Starts a process that may read all files, which may lie under /root, and write none."""
UNUSUAL_PATH = "Wald und Wüste 森林"
WHEN = 1_700_000_000
"""Time of all inputs."""
HOLD_PATHS = ("manifest.json", "images.csv", "calibration.json", "report.html", "vectors.parquet")
"""Endings of files that hold the path of an input, or the checksum of a file that does."""
WITH_PATHS = (
    *("query, all outputs: patches.csv", "query, all outputs: details.geojson"),
    *("query, all outputs: windows", "export, stac: catalogue"),
    *("ingest, images: made", "ingest, challenge: made"),
)
"""Outputs whose other files hold paths, too: the unusual path alone does not count for them."""
SHARE = 0.6
"""Part of the needed memory that a command gets."""


# --- surroundings -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Surrounding:
    """What is unusual around a process."""

    variables: Mapping[str, str] = field(default_factory=dict)
    """Environment variables."""
    inside: Sequence[str] = ()
    """Names of functions of this module that change the process from inside."""
    folder: str = "work"
    """Name of the folder of inputs and outputs."""
    prefix: Sequence[str] = ()
    """Command that starts Python."""


def jump() -> None:
    """Let the clock jump by up to three days, forward and back, many times a second."""
    chance = random.Random()  # models draw from the common one
    if "FAKETIME_TIMESTAMP_FILE" in os.environ:
        file = Path(os.environ["FAKETIME_TIMESTAMP_FILE"])

        def jumps() -> None:
            while True:
                file.write_text(f"{chance.randint(-3 * 86400, 3 * 86400):+d}\n")
                threading.Event().wait(0.05)

        threading.Thread(target=jumps, daemon=True).start()
    else:
        time.time = lambda clock=time.time: clock() + chance.randint(-3 * 86400, 3 * 86400)


def keep_to_owner() -> None:
    """Give new files to their owner alone."""
    os.umask(0o077)


def speak() -> None:
    """Use the numbers, letters and dates of the locale in the C library, too."""
    import locale

    locale.setlocale(locale.LC_ALL, "")


def _clock(folder: Path) -> dict[str, str]:
    if not FAKETIME:
        return {}
    file = folder / "clock"
    file.write_text("+0\n")
    file.chmod(0o666)
    more = {"FAKETIME_NO_CACHE": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    return {"LD_PRELOAD": str(FAKETIME[0]), "FAKETIME_TIMESTAMP_FILE": str(file), **more}


def _turkish(folder: Path) -> dict[str, str]:
    """Return the variables of a Turkish locale: a comma in numbers, and an i without a dot."""
    made = folder / "locales" / "tr_TR.UTF-8"
    made.parent.mkdir(exist_ok=True)
    tool = shutil.which("localedef")
    if tool and not made.exists():
        subprocess.run([tool, "-i", "tr_TR", "-f", "UTF-8", str(made)], capture_output=True, check=False)
    return {"LC_ALL": "tr_TR.UTF-8", "LOCPATH": str(made.parent)} if made.exists() else {}


def surroundings(folder: Path) -> dict[str, Surrounding]:
    """Return the surroundings that this machine allows; the first is a plain one.

    Args:
        folder: for files that they need.
    """
    home = {"HOME": "/nonexistent"}
    nobody = AS_NOBODY if os.getuid() == 0 and shutil.which("setpriv") else ()
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    found = {
        "plain": Surrounding(),
        "locale C": Surrounding(plain),
        "time zone": Surrounding({"TZ": "Pacific/Kiritimati"}),
        "clock jumps": Surrounding(_clock(folder), ("jump",)),
        "umask 077": Surrounding({}, ("keep_to_owner",)),
        "path": Surrounding({}, (), UNUSUAL_PATH),
        "other user": Surrounding(home, prefix=nobody),
    }
    if turkish := _turkish(folder):
        found["locale tr_TR"] = Surrounding(turkish, ("speak",))
    found["all"] = Surrounding(
        home | turkish | {"TZ": "Pacific/Kiritimati"} | _clock(folder),
        ("keep_to_owner", *(["speak"] if turkish else []), "jump"),
        UNUSUAL_PATH,
        nobody,
    )
    return found


def run_jobs(folder: Path, inside: Iterable[str], names: Iterable[str]) -> None:
    """Run jobs in this process, each in a separate folder, after changing the process.

    A job that fails prints why, leaves no output, and the next one runs.
    """
    for name in inside:
        globals()[name]()
    for name in names:
        work = folder / name
        work.mkdir()
        try:
            if model := JOBS[name].model:
                model(work)
            JOBS[name].inputs(work, 0)
            for path in work.rglob("*"):
                os.utime(path, (WHEN, WHEN))  # manifests identify some inputs by their time
            JOBS[name].run(work)
        except (Exception, SystemExit) as error:
            print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)


def outputs_in(surrounding: Surrounding, names: Sequence[str], folder: Path) -> dict[str, Any] | str:
    """Run jobs in a surrounding; return the snapshots of their outputs, or the end of its message.

    What failing jobs say is printed.
    """
    work = folder / surrounding.folder
    work.mkdir()
    if surrounding.prefix:
        os.chown(work, NOBODY, NOBODY)
    elsewhere = folder / "elsewhere"  # the working folder, in which only root can write
    elsewhere.mkdir(mode=0o555, exist_ok=True)
    task = json.dumps([str(work), list(surrounding.inside), list(names)])
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    variables = [f"{name}={value}" for name, value in surrounding.variables.items()]
    done = subprocess.run(
        # libfaketime cannot start before the user changes: `env` sets the variables after that.
        [
            *surrounding.prefix,
            "env",
            *variables,
            sys.executable,
            "-c",
            "import surroundings; surroundings.main()",
            task,
        ],
        cwd=elsewhere,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        errors="replace",
    )
    made = {f"{name}: {out}": snapshot(work / name / out) for name in names for out in JOBS[name].outputs}
    shutil.rmtree(work)
    left = [path.name for path in elsewhere.iterdir()]
    print(done.stderr[-3000:], end="", flush=True)
    if done.returncode or left:
        return f"{done.stderr[-300:]} {left or ''}"
    return made


def compare_surroundings(
    names: Sequence[str], jobs: Sequence[str], folder: Path
) -> dict[str, dict[str, Any]]:
    """Run jobs in surroundings; return the number of equal outputs, and the faults, by surrounding.

    Each is compared with a plain process in a folder of the same path. The unusual path is compared with a
    plain one, without the files that hold paths.

    Args:
        names: of `surroundings`; all without any.
        jobs: of `small_jobs`; all without any.
        folder: where to work; it exists, and other users may read it and the folder above.
    """
    for one in (folder, folder.parent):
        one.chmod(0o755)  # for another user
    jobs, counts = jobs or list(JOBS), dict[str, dict[str, Any]]()
    offered = surroundings(folder)

    @lru_cache
    def outputs(name: str) -> dict[str, Any] | str:
        return outputs_in(offered[name], jobs, folder)

    for name in names or [name for name in offered if name != "plain"]:
        yardstick = "path" if name != "path" and offered[name].folder == UNUSUAL_PATH else "plain"
        expected, found = outputs(yardstick), outputs(name)
        assert not isinstance(expected, str), expected
        one: dict[str, Any] = {"equal": 0, "faults": []}
        if isinstance(found, str):
            one["faults"].append(found)
        else:
            for output, files in expected.items():
                if name == "path" and output in WITH_PATHS:
                    continue
                held = HOLD_PATHS if name == "path" else ()
                if _without(held, files) == _without(held, found[output]) and files:
                    one["equal"] += 1
                else:
                    one["faults"].append(f"{output} differs")
        counts[name] = one
    return counts


def _without(endings: tuple[str, ...], files: Mapping[str, str]) -> dict[str, str]:
    """Return the files whose names have other endings."""
    return {name: known for name, known in files.items() if not name.endswith(endings)}


# --- memory -----------------------------------------------------------------------------------------------


def data_bytes(process: int | str = "self") -> int:
    """Return the size of a process's data segment; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmData")), 0)


def warm_up() -> int:
    """Start the backend with its threads, which abort the process where they get no memory.

    Returns:
        Size of the data segment after it.
    """
    import tensorflow as tf

    tf.function(lambda x: x @ x, jit_compile=True)(tf.ones((4, 4)))
    return data_bytes()


def need_of(job: Callable[[], object], said: Path) -> int:
    """Run a job in a child and return how much its data segment grows behind the start of the backend."""

    def run() -> None:
        said.write_text(str(warm_up()))
        job()

    child, largest, stop = fork(run), 0, threading.Event()

    def watch() -> None:
        nonlocal largest
        while not stop.is_set():
            largest = max(largest, data_bytes(child))
            time.sleep(0.002)

    watching = threading.Thread(target=watch)
    watching.start()
    code = wait(child)
    stop.set()
    watching.join()
    assert code == 0
    return largest - int(said.read_text())


def starve(names: Sequence[str], shares: Sequence[float], folder: Path) -> dict[str, dict[str, Any]]:
    """Run jobs with a share of the memory that they need; return what became of them, by job.

    Args:
        names: of `small_jobs`; all without any.
        shares: of the memory that a job needs besides the backend.
        folder: where to work; it exists.
    """
    counts = {}
    for number, name in enumerate(names or JOBS):
        room = folder / str(number)
        room.mkdir()
        counts[name] = _starve(name, shares, room)
        shutil.rmtree(room)
    return counts


def _starve(name: str, shares: Sequence[float], folder: Path) -> dict[str, Any]:
    """Run one job with shares of the memory that it needs; all runs are at the same path."""
    job, template, work, said = JOBS[name], folder / "template", folder / "work", folder / "said.txt"
    work.mkdir()
    assert wait(fork(lambda: job.prepare(work))) == 0, name
    shutil.copytree(work, template)
    need = need_of(lambda: job.run(work), folder / "base.txt")
    former, new = (snapshots(where, job.outputs) for where in (template, work))
    seen, faults = Counter[str](), list[str]()
    for share in shares:
        shutil.rmtree(work)
        shutil.copytree(template, work)
        said.unlink(missing_ok=True)
        room = int(share * need)
        code = wait(fork(lambda room=room: _limited(job, work, room, said)))
        left = snapshots(work, job.outputs)
        if job.is_half(left, former, new):
            faults.append(f"{share:.2f}: half an output")
        elif code == 0 and left != new:
            faults.append(f"{share:.2f}: another output")
        outcome = said.read_text() if said.exists() else ""
        seen["done" if code == 0 else "refused" if outcome.startswith("error:") else "stopped"] += 1
        if code != 0 and not outcome.startswith("error:"):
            print(f"{name} at {share:.2f}: {code} {outcome[-1500:]}", flush=True)
    return {**seen, "faults": faults, "need_mb": [round(need / 1e6)]}


def _limited(job: Job, work: Path, room: int, said: Path) -> None:
    """Run a job whose data segment may grow by `room` bytes, and write what it says if it fails."""
    resource.setrlimit(resource.RLIMIT_DATA, (warm_up() + room, resource.RLIM_INFINITY))
    outcome_of(job, work, said)


def main() -> None:
    """Run jobs in this process: folder, names of functions, names of jobs as JSON."""
    folder, inside, names = json.loads(sys.argv[1])
    if "FAKETIME_TIMESTAMP_FILE" in os.environ:  # libfaketime makes each sleep an invalid one
        time.sleep = lambda seconds: threading.Event().wait(seconds)
    import_all()
    run_jobs(Path(folder), inside, names)
