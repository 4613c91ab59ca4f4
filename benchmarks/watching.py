"""What a process takes of memory and of the processor, told by itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread


def cpu() -> float:
    """Seconds of the processor that this process has taken."""
    return sum(os.times()[:2])


@contextmanager
def watched() -> Iterator[list[float]]:
    """The peak, in MB, of the memory of this process that is not a mapped file, looked at all the time."""
    peak, stop = [own_mb()], Event()

    def look() -> None:
        while not stop.wait(0.02):
            peak[0] = max(peak[0], own_mb())

    looking = Thread(target=look, daemon=True)
    looking.start()
    try:
        yield peak
    finally:
        stop.set()
        looking.join()


def own_mb() -> float:
    """Memory of this process that is not a mapped file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("RssAnon"))
