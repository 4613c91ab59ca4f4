"""Parallel execution: executors, and maps over threads.

An `Executor` (`retrieval.types`) maps a function over independent tasks and keeps their order.
`SerialExecutor` and `ThreadExecutor` run in this process. NumPy, Numba and the backend release Python's lock
while they compute, so threads share memory and use all cores.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from retrieval.kernels.compiled import accelerated

_In = TypeVar("_In")
_Out = TypeVar("_Out")
_Result = TypeVar("_Result", covariant=True)

MAX_THREADS = 4
"""Most threads that run at the same time: each holds a batch in memory."""


@dataclass(frozen=True)
class SerialExecutor:
    """Runs one task after the other in the caller's thread."""

    in_process = True

    def map(self, function: Callable[[_In], _Out], tasks: Iterable[_In]) -> Iterator[_Out]:
        """Yield the result of each task, in order."""
        return map(function, tasks)

    def slots(self) -> int:
        """Return 1."""
        return 1

    def sees(self, path: Path) -> bool:
        """Return True."""
        return True


@dataclass(frozen=True)
class ThreadExecutor:
    """Runs tasks on threads of this process."""

    count: int | None = None
    """Threads; None for one a core, and a single one where an accelerator computes."""
    in_process = True

    def map(self, function: Callable[[_In], _Out], tasks: Iterable[_In]) -> Iterator[_Out]:
        """Yield the result of each task, in order; a single task runs in the caller's thread."""
        return parallel_map(function, tasks, self.count)

    def slots(self) -> int:
        """Return the number of threads."""
        return self.count or threads()

    def sees(self, path: Path) -> bool:
        """Return True."""
        return True


@cache
def threads() -> int:
    """Return the useful number of threads: one a core, and a single one where an accelerator computes."""
    return 1 if accelerated() else min(MAX_THREADS, cores())


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def limit_tf_threads(core_count: int | None = None) -> None:
    """Keep TensorFlow from splitting each step over all cores while several batches run at the same time.

    Otherwise its threads and ours wait for each other: on two cores a query takes a third longer. Call it
    before TensorFlow starts, in a process that indexes or queries. Training runs one batch at a time and is
    faster without. `TF_NUM_INTRAOP_THREADS` stays as it is where it is set.

    Args:
        core_count: cores to share; None for the cores of this process.
    """
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", str(max(1, (core_count or cores()) // MAX_THREADS)))


def parallel_map(
    function: Callable[[_In], _Out], tasks: Iterable[_In], count: int | None = None
) -> Iterator[_Out]:
    """Yield the result of each task, in order; several tasks run at the same time.

    Args:
        function: tasks share no memory that it writes to.
        tasks: all are drawn at once; a single one runs in the caller's thread.
        count: threads; None for `threads()`.
    """
    count, batch = count or threads(), list(tasks)
    if count == 1 or len(batch) == 1:
        yield from map(function, batch)
        return
    with ThreadPoolExecutor(count) as pool:
        yield from pool.map(function, batch)


def map_batches(
    function: Callable[[NDArray[Any]], NDArray[Any]], rows: NDArray[Any], size: int
) -> Iterator[NDArray[Any]]:
    """Yield the results of a compiled function for batches of rows, in order, on threads.

    A smaller last batch repeats its last row up to a full batch. A single batch repeats it up to a power of
    two. So the function is compiled for few shapes.

    Args:
        function: (m, ...) to (m, ...); each row gives a row.
        rows: (n, ...).
        size: rows of a batch.
    """

    def run(start: int) -> NDArray[Any]:
        batch = rows[start : start + size]
        padded = size if len(rows) > size else 1 << (len(batch) - 1).bit_length()
        return function(batch[np.minimum(np.arange(padded), len(batch) - 1)])[: len(batch)]

    return parallel_map(run, range(0, len(rows), size))


def prefetch_map(
    function: Callable[[_In], _Out],
    tasks: Iterable[_In],
    size: Callable[[_In], int] = lambda _: 0,
    room: int = 1,
    count: int | None = None,
) -> Iterator[_Out]:
    """Yield the result of each task, in order, while later tasks already run.

    The caller's thread draws the tasks, a few ahead. Where drawing a task or running it fails, the results of
    earlier tasks still come first.

    Args:
        function: tasks share no memory that it writes to.
        tasks: at most one more than there are threads is in progress.
        size: of a task.
        room: no task is drawn while those in progress reach this size together: a large one runs alone.
        count: threads; None for `threads()`.
    """
    count = count or threads()
    if count == 1:
        yield from map(function, tasks)
        return
    with ThreadPoolExecutor(count) as pool:
        yield from ordered_results(lambda task: pool.submit(function, task), tasks, count, size, room)


class Maps(Protocol):
    """The part of an executor that `stream_map` calls."""

    def map(self, function: Callable[[_In], _Out], tasks: Iterable[_In], /) -> Iterator[_Out]:
        """Yield the result of each task, in order."""
        ...


def stream_map(
    executor: Maps,
    function: Callable[[_In], _Out],
    tasks: Iterable[_In],
    size: Callable[[_In], int] = lambda _: 0,
    room: int = 1,
) -> Iterator[_Out]:
    """Yield the result of each task, in order, on any executor, with few tasks and results in memory.

    Args:
        executor: where the tasks run; threads draw tasks as `prefetch_map` does.
        function: see `prefetch_map`; pickled where tasks run in other processes.
        tasks: drawn a few ahead.
        size: of a task, for threads.
        room: size of the tasks in progress together, for threads.
    """
    if isinstance(executor, ThreadExecutor):
        return prefetch_map(function, tasks, size, room, executor.count)
    return executor.map(function, tasks)


class Pending(Protocol[_Result]):
    """A task that was submitted, here or to a cluster."""

    def result(self) -> _Result:
        """Wait for the result; raise what the task raised."""
        ...

    def cancel(self) -> Any:
        """Keep the task from starting if it waits."""
        ...


def ordered_results(
    submit: Callable[[_In], Pending[_Out]],
    tasks: Iterable[_In],
    count: int,
    size: Callable[[_In], int] = lambda _: 0,
    room: int = 1,
) -> Iterator[_Out]:
    """Yield the result of each task, in order, while later tasks already run; see `prefetch_map`.

    Args:
        submit: starts a task; called in the caller's thread.
        tasks: at most `count` + 1 are in progress.
        count: tasks that can run at the same time.
        size: of a task.
        room: no task is drawn while those in progress reach this size together.
    """
    pending: deque[tuple[Pending[_Out], int]] = deque()
    source = iter(tasks)
    try:
        while True:
            while len(pending) > count or (pending and sum(s for _, s in pending) >= room):
                yield pending.popleft()[0].result()
            try:
                task = next(source)
            except StopIteration:
                break
            except BaseException as error:  # raised in its turn
                failed: Future[_Out] = Future()
                failed.set_exception(error)
                pending.append((failed, 0))
                break
            pending.append((submit(task), size(task)))
        while pending:
            yield pending.popleft()[0].result()
    finally:
        for future, _ in pending:
            future.cancel()
