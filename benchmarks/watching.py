"""Memory and processor time of this process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread


def cpu() -> float:
    """Return the processor seconds of this process."""
    return sum(os.times()[:2])


@contextmanager
def watched() -> Iterator[list[float]]:
    """Record the peak memory of this process without mapped files, in MB."""
    peak, stop = [anonymous_mb()], Event()

    def look() -> None:
        while not stop.wait(0.02):
            peak[0] = max(peak[0], anonymous_mb())

    looking = Thread(target=look, daemon=True)
    looking.start()
    try:
        yield peak
    finally:
        stop.set()
        looking.join()


def anonymous_mb() -> float:
    """Return the memory of this process without mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("RssAnon"))
