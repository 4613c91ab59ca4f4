"""What goes wrong on a cluster: a full disk of a worker, a lost scheduler, a straggler; a rerun continues."""

import errno
import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from engine import digital, image_of, texture

import retrieval
from retrieval.distributed import dask_executor
from retrieval.distributed.executors import open_executor
from retrieval.errors import ClusterError
from retrieval.models.encoder import FakeEncoder
from tfrecords.errors import DiskFullError
from tfrecords.read import ImageSource

pytest.importorskip("distributed")

FAKE = FakeEncoder()
COUNT = 6


@pytest.fixture(scope="module")
def images():
    return [image_of(digital(texture(80, 88, seed=s)), 2 * s) for s in range(COUNT)]


def build(images, out, executor=None):
    source = ImageSource("made by a test", COUNT, lambda: iter(images), own_ids=True)
    return retrieval.build_index(source, out, encoder=FAKE, shards=3, executor=executor)


def same_vectors(index, images, folder):
    whole = build(images, folder)
    for ours, theirs in zip(index.folder.vectors.vectors(), whole.folder.vectors.vectors(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


class FullOnce:
    """Runs a function on a worker whose disk is full, until the mark exists."""

    def __init__(self, function, mark):
        self.function, self.mark = function, Path(mark)

    def __call__(self, task):
        if self.mark.exists() or not task.folder.name.endswith("1"):
            return self.function(task)

        def full(*_, **__):
            self.mark.touch()
            raise OSError(errno.ENOSPC, "No space left on device")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(np, "save", full)
            return self.function(task)


class Changed:
    """An executor that runs functions in another way."""

    in_process = False

    def __init__(self, inner, change):
        self.inner, self.change = inner, change

    def slots(self):
        return self.inner.slots()

    def sees(self, path):
        return self.inner.sees(path)

    def map(self, function, tasks):
        return self.inner.map(self.change(function), tasks)


def test_a_full_disk_of_a_worker_is_one_sentence(images, tmp_path):
    out, mark = tmp_path / "s", tmp_path / "full"
    with open_executor("dask:2") as dask:
        changed = Changed(dask, lambda function: FullOnce(function, mark))
        with pytest.raises(DiskFullError, match="finished parts stay in"):
            build(images, out, changed)
        assert not (out / "shards.json").exists()
        index = build(images, out, changed)
    same_vectors(index, images, tmp_path / "whole")
    assert len(index.folder.images) == COUNT


def slow_first(number):
    time.sleep(2 if number == 0 else 0)
    return number


@contextmanager
def cluster_of_processes():
    """Start a scheduler and a worker as a user does; yield their processes and the port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    commands = (
        [*program, "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"],
        [
            *(sys.executable, "-m", "distributed.cli.dask_worker", f"127.0.0.1:{port}"),
            *("--nthreads", "2", "--no-nanny", "--no-dashboard", "--death-timeout", "60"),
        ],
    )
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
    processes = []
    try:
        for command in commands:
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            processes.append(subprocess.Popen(command, env=environment, **quiet))
            until = time.monotonic() + 60
            while time.monotonic() < until:
                with suppress(OSError):
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                time.sleep(0.2)
        yield processes, port
    finally:
        for process in processes:
            process.kill()
            process.wait()


class Killing:
    """An executor whose scheduler is killed after the first result."""

    in_process = False

    def __init__(self, inner, scheduler):
        self.inner, self.scheduler = inner, scheduler

    def slots(self):
        return self.inner.slots()

    def sees(self, path):
        return self.inner.sees(path)

    def map(self, function, tasks):
        results = self.inner.map(function, tasks)
        yield next(results)
        self.scheduler.kill()
        yield from results


def test_a_straggler_keeps_the_order_and_a_lost_scheduler_is_one_sentence(images, tmp_path):
    out = tmp_path / "s"
    with cluster_of_processes() as ((scheduler, _), port), open_executor(f"dask://127.0.0.1:{port}") as dask:
        assert list(dask.map(slow_first, range(8))) == list(range(8))
        with pytest.raises(ClusterError, match="is gone"):
            build(images, out, Killing(dask, scheduler))
    assert not (out / "shards.json").exists()
    index = build(images, out)
    same_vectors(index, images, tmp_path / "whole")


def test_a_cluster_without_workers_is_one_sentence(monkeypatch):
    monkeypatch.setattr(dask_executor, "POLL_S", 0.2)
    monkeypatch.setattr(dask_executor, "LOST_S", 1)
    with cluster_of_processes() as ((_, worker), port), open_executor(f"dask://127.0.0.1:{port}") as dask:
        results = dask.map(slow_first, range(1, 40))
        assert next(results) == 1
        worker.kill()
        with pytest.raises(ClusterError, match="all workers of the Dask cluster are gone"):
            list(results)


def raise_timeout(_):
    raise TimeoutError("of the task")


def test_a_timeout_of_a_task_is_its_own_error(monkeypatch):
    monkeypatch.setattr(dask_executor, "POLL_S", 0.2)
    with open_executor("dask:1") as dask:
        assert list(dask.map(slow_first, [0])) == [0]
        with pytest.raises(TimeoutError, match="of the task"):
            list(dask.map(raise_timeout, [1]))
