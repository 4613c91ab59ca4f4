"""Ask one opened index for a long time from four threads: the same answers, and no growth."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

THREADS = 4


def measured() -> dict[str, int]:
    """Return the resident memory in kB, the descriptors and the threads of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    memory = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    folders = {"descriptors": "/proc/self/fd", "threads": "/proc/self/task"}
    return {"memory_kb": memory} | {name: len(list(Path(path).iterdir())) for name, path in folders.items()}


def soak(ask: Callable[[int], Any], kinds: int, queries: int, warm_up: int = 100) -> dict[str, Any]:
    """Ask from four threads; return counts, and growth since the first queries.

    Args:
        ask: returns the answer to a question by its number; arrays or tuples that compare.
        kinds: number of questions; the same question must always have the same answer.
        queries: how often to ask, besides the warm-up.
        warm_up: questions before the first measurement.
    """
    expected = [ask(number) for number in range(kinds)]
    wrong, lock = Counter[str](), threading.Lock()

    def check(number: int) -> None:
        if not np.array_equal(ask(number % kinds), expected[number % kinds]):
            with lock:
                wrong["answers"] += 1

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(check, range(warm_up)))
        before = measured()
        list(pool.map(check, range(queries)))
        after = measured()
    growth = {name: [after[name] - before[name]] for name in after}
    return {"queries": queries, "wrong": wrong["answers"], "growth": growth}
