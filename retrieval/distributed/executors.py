"""Executors by name, as `--executor` accepts them.

    serial              one task after the other, in this process
    threads:4           four threads of this process
    dask:2              two worker processes on this machine
    dask://HOST:PORT    the workers of a running Dask scheduler

A name is checked before anything is opened.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from retrieval.errors import ConfigError
from retrieval.kernels.executors import SerialExecutor, ThreadExecutor
from retrieval.types import Executor

FORMS = "serial, threads:N, dask:N or dask://HOST:PORT"
"""The names of executors, for messages."""
MAX_COUNT = 1024
"""Most threads or processes on one machine."""


def check_executor(name: str, memory: str | None = None) -> tuple[str, str]:
    """Return kind and argument of an executor's name: ("dask", "2"), ("dask", "//host:8786").

    Args:
        name: one of `FORMS`.
        memory: limit of each worker process, such as "4GB"; only "dask:N" takes one.

    Raises:
        ConfigError: the name or the memory is not one of these.
    """
    kind, _, argument = name.partition(":")
    counted = kind in ("threads", "dask") and re.fullmatch("[0-9]{1,4}", argument)
    address = kind == "dask" and re.fullmatch(r"//[^/:\s]+:[0-9]{1,5}", argument)
    if name != "serial" and not address and not (counted and 1 <= int(argument) <= MAX_COUNT):
        raise ConfigError(f"executor {name!r}. Expected {FORMS}, with N from 1 to {MAX_COUNT}.")
    if memory is not None:
        if address or kind != "dask":
            raise ConfigError(f"memory {memory!r} with executor {name!r}. Only dask:N takes a memory limit.")
        if not re.fullmatch(r"[0-9]+(\.[0-9]+)?\s*[kMGT]i?B", memory):
            raise ConfigError(f"memory {memory!r}. Expected a size such as 4GB or 800MB.")
    return kind, argument


@contextmanager
def open_executor(name: str, memory: str | None = None) -> Iterator[Executor]:
    """Open an executor by its name; a cluster that it starts ends with the block.

    Args:
        name: "serial", "threads:N", "dask:N" or "dask://HOST:PORT".
        memory: limit of each worker process of "dask:N", such as "4GB"; a worker beyond it is restarted, and
            its task runs once more.

    Yields:
        The executor.

    Raises:
        ConfigError: see `check_executor`.
        DependencyError: Dask is not installed.
        ClusterError: no scheduler answers, it has no workers, or they run another release.
    """
    kind, argument = check_executor(name, memory)
    if kind == "serial":
        yield SerialExecutor()
    elif kind == "threads":
        yield ThreadExecutor(int(argument))
    else:
        from retrieval.distributed.dask_executor import connected, local_cluster

        with connected(argument) if argument[:1] == "/" else local_cluster(int(argument), memory) as executor:
            yield executor
