"""Forked children of the campaigns of faults: they start in milliseconds, and tell where they hang."""

from __future__ import annotations

import faulthandler
import os
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

PATIENCE_S = 900
"""Time after which a child counts as hanging. A machine with other work stretches seconds to minutes."""
TOLD_S = 20
"""Time that a hanging child has to write where it is."""
LOOK_S, KILL_LOOK_S = 0.01, 0.0005
"""Time between two looks at a child, and at one that is to be killed at an exact moment."""
_PLACES = Path(tempfile.gettempdir())


def place_of(child: int) -> Path:
    """Return the file to which a child writes the places of its threads, at `SIGUSR2`."""
    return _PLACES / f"patch-retrieval-child-{child}.txt"


def fork(job: Callable[[], object]) -> int:
    """Run a job in a child and return its process id; the exit code is 0, or 1 with a traceback."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        place = place_of(os.getpid())
        with place.open("w") as file:
            faulthandler.register(signal.SIGUSR2, file=file, all_threads=True)
            job()
            place.unlink()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def wait(child: int, kill_after_s: float | None = None, patience_s: float = PATIENCE_S) -> int:
    """Wait for a child; return its exit code, or minus the signal that ended it.

    Args:
        child: its process id.
        kill_after_s: kill it after this time.
        patience_s: without `kill_after_s`, time until it counts as hanging.

    Raises:
        TimeoutError: it hangs. The text has the stacks of its threads, and its state in the kernel.
    """
    end = time.monotonic() + (patience_s if kill_after_s is None else kill_after_s)
    try:
        while time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(LOOK_S if kill_after_s is None else KILL_LOOK_S)
        told = _where(child) if kill_after_s is None else ""
        os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if kill_after_s is None:
            raise TimeoutError(f"a child did not end within {patience_s:g} s\n{told}")
        return code
    finally:
        place_of(child).unlink(missing_ok=True)


def _where(child: int) -> str:
    """Return the stacks of a child's threads, its state and the time it has computed."""
    state = [line for line in _read(f"/proc/{child}/status").splitlines() if line.startswith("State")]
    used = _read(f"/proc/{child}/stat").rpartition(")")[2].split()[11:13]
    ticks = os.sysconf("SC_CLK_TCK")
    seconds = sum(map(int, used)) / ticks if used else float("nan")
    os.kill(child, signal.SIGUSR2)
    end = time.monotonic() + TOLD_S
    while not (stacks := _read(str(place_of(child)))) and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(0.2)  # all threads
    stacks = _read(str(place_of(child))) or stacks
    return f"{' '.join(state)}, {seconds:.1f} s of a processor\n{stacks or 'it did not say where it is'}"


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
