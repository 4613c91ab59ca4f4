"""A Dask cluster as an executor.

Dask starts and restarts the workers, moves tasks and results, and runs the task of a lost worker on another
one. This module keeps few tasks in progress, so that neither side holds many results. It returns results in
the order of the tasks, repeats the warnings of workers here, and turns Dask's errors into ours.
"""

from __future__ import annotations

import logging
import socket
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from retrieval.errors import ClusterError, DependencyError
from retrieval.kernels.executors import ordered_results
from tfrecords.artifacts.manifest import created_by
from tfrecords.errors import RetrieveError, RetrieveWarning

_In = TypeVar("_In")
_Out = TypeVar("_Out")

CONNECT_S, WORKERS_S = 10, 60
"""Seconds to wait for a scheduler, and for its first worker."""
POLL_S, LOST_S = 5, 300
"""Seconds between looks at the workers, and without any worker until a job ends."""
ATTEMPTS = 5
"""Workers that may die with a task before it counts as the reason."""


@dataclass(frozen=True)
class Outcome(Generic[_Out]):
    """What a worker returns."""

    result: _Out | None
    """Result of the task; None where it raised."""
    error: RetrieveError | None
    """Error of ours that the task raised. Its cause stays on the worker: it may not be picklable."""
    warned: tuple[RetrieveWarning, ...]
    """Warnings that the task gave."""


def run_task(function: Callable[[_In], _Out], task: _In) -> Outcome[_Out]:
    """Run a task on a worker, and keep its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RetrieveWarning)
        result, error = None, None
        try:
            result = function(task)
        except RetrieveError as raised:
            error = raised.with_traceback(None)
            error.__cause__ = error.__context__ = None
    messages = [w.message for w in caught if isinstance(w.message, RetrieveWarning)]
    return Outcome(result, error, tuple(messages))


@dataclass(frozen=True)
class _Submitted(Generic[_Out]):
    """A task on its way."""

    future: Any
    """Dask's future of an `Outcome`."""
    client: Any
    """The client that submitted it."""

    def result(self) -> _Out:
        """Return the result; give the warnings of the worker here."""
        from distributed import KilledWorker

        try:
            outcome = self._wait()
        except KilledWorker as error:
            raise ClusterError(
                f"{ATTEMPTS} workers died with the same task, perhaps out of memory. Give workers more "
                "memory (--memory), start fewer of them, and run the command again."
            ) from error
        for warning in outcome.warned:
            warnings.warn(warning, stacklevel=3)
        if outcome.error is not None:
            raise outcome.error
        return cast(_Out, outcome.result)

    def _wait(self) -> Outcome[_Out]:
        """Wait for the outcome, as long as there are workers."""
        alone_since: float | None = None
        while True:
            try:
                outcome: Outcome[_Out] = self.future.result(timeout=POLL_S)
                return outcome
            except TimeoutError:
                if self.future.done():  # perhaps by a TimeoutError that the task itself raised
                    return cast(Outcome[_Out], self.future.result())
            alone_since = None if self.client.nthreads() else alone_since or time.monotonic()
            if alone_since and time.monotonic() - alone_since > LOST_S:
                raise ClusterError(
                    f"all workers of the Dask cluster are gone for {LOST_S} s. Start workers, and run the "
                    "command again; finished outputs are kept."
                )

    def cancel(self) -> None:
        """Drop the task."""
        with suppress(Exception):  # the scheduler may be gone
            self.future.cancel()


@dataclass(frozen=True)
class DaskExecutor:
    """Runs tasks on the workers of a Dask cluster; functions, tasks and results are pickled."""

    client: Any
    """A `distributed.Client`."""
    in_process = False

    def map(self, function: Callable[[_In], _Out], tasks: Iterable[_In]) -> Iterator[_Out]:
        """Yield the result of each task, in order; a task whose worker dies runs on another one.

        Raises:
            ClusterError: tasks kill their workers, or the scheduler is gone.
        """

        def submit(task: _In) -> _Submitted[_Out]:
            # An image of many megabytes is part of its task: data apart from it would die with a worker.
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Sending large graph", UserWarning)
                return _Submitted(self.client.submit(run_task, function, task, pure=False), self.client)

        try:
            yield from ordered_results(submit, tasks, 2 * self.slots())
        except _connection_errors() as error:
            raise ClusterError(
                f"the Dask scheduler at {self.client.scheduler.address} is gone ({type(error).__name__}). "
                "Start it and run the command again."
            ) from error

    def slots(self) -> int:
        """Return the number of tasks that the workers run at the same time, at least 1."""
        return max(1, sum(self.client.nthreads().values()))

    def sees(self, path: Path) -> bool:
        """Return whether all workers find a file or folder at its path, unchanged; False where one fails."""
        ours = _identity(path)
        try:
            return all(theirs == ours for theirs in self.client.run(_identity, path).values())
        except Exception:  # a worker that starts or ends; its error may be of any class
            return False

    @property
    def note(self) -> str:
        """Number of workers, address, and dashboard if there is one; one line."""
        address, dashboard = self.client.scheduler.address, self.client.dashboard_link
        shown = f", dashboard {dashboard}" if find_spec("bokeh") else ""
        return f"{len(self.client.nthreads())} Dask workers at {address}{shown}"


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Return number, size and time of change of a file or folder; None without it."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _connection_errors() -> tuple[type[BaseException], ...]:
    from distributed.client import FutureCancelledError
    from distributed.comm import CommClosedError

    return CommClosedError, FutureCancelledError


@contextmanager
def local_cluster(count: int, memory: str | None = None) -> Iterator[DaskExecutor]:
    """Start worker processes on this machine, one task at a time each.

    Args:
        count: workers.
        memory: limit of each, such as "4GB"; None shares the machine's memory equally.

    Yields:
        Their executor.
    """
    _require_dask()
    import dask
    from distributed import Client, LocalCluster

    settings = {
        "distributed.scheduler.allowed-failures": ATTEMPTS - 1,
        # Dask gives a place up whose process needs longer to start again, 15 s by default.
        "distributed.deploy.lost-worker-timeout": f"{LOST_S}s",
        "distributed.comm.timeouts.connect": f"{WORKERS_S}s",
        "distributed.worker.profile.enabled": False,
        # Dask would set the number of OpenMP threads in this process, too, and FAISS rounds by it.
        "distributed.nanny.pre-spawn-environ": {},
    }
    with dask.config.set(settings):
        cluster = LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            processes=True,
            memory_limit=memory or "auto",
            dashboard_address=":0",  # any free port: other clusters may run here
            silence_logs=logging.CRITICAL,
        )
        with cluster, Client(cluster) as client:
            yield DaskExecutor(client)


@contextmanager
def connected(address: str) -> Iterator[DaskExecutor]:
    """Connect to a running scheduler.

    Args:
        address: "//HOST:PORT".

    Yields:
        The executor of its workers; they stay when the block ends.

    Raises:
        ClusterError: no scheduler answers, it has no workers, or they run another release.
    """
    _require_dask()
    from distributed import Client

    host, _, port = address[2:].rpartition(":")
    try:
        socket.create_connection((host, int(port)), CONNECT_S).close()  # Dask itself retries a refusal
        client = Client(f"tcp:{address}", timeout=CONNECT_S)
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"no Dask scheduler answers at {address[2:]}. Start one with `dask scheduler`, or name its host "
            "and port."
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=WORKERS_S)
        except TimeoutError:
            raise ClusterError(
                f"the Dask scheduler at {address[2:]} has no workers. Start some with `dask worker "
                f"{address[2:]}`."
            ) from None
        try:
            releases = client.run(created_by)
        except Exception as error:  # of a worker, of any class
            raise ClusterError(
                f"the workers at {address[2:]} cannot run {created_by()} ({error}). Install it for them."
            ) from error
        other = {worker: release for worker, release in releases.items() if release != created_by()}
        if other:
            worker, release = next(iter(other.items()))
            raise ClusterError(
                f"worker {worker} runs {release}; expected {created_by()}. Install the same release for all "
                "workers."
            )
        yield DaskExecutor(client)


def _require_dask() -> None:
    if find_spec("distributed") is None:
        raise DependencyError("Dask is not installed. Run pip install 'patch-retrieval[distributed]'.")
