"""Executors by name, and a Dask cluster of two workers: the same bytes, kills, errors, warnings."""

import os
import pickle
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
from engine import digital, image_of, small_encoder, texture
from small_job import lines, run

import retrieval
from retrieval.distributed.executors import check_executor, open_executor
from retrieval.errors import ClusterError, ConfigError, NotFoundWarning
from retrieval.kernels.executors import SerialExecutor, ThreadExecutor
from retrieval.models.encoder import load_encoder
from tfrecords.read import ImageSource

pytest.importorskip("distributed")


OMP = os.environ.get("OMP_NUM_THREADS")


@pytest.fixture(scope="module")
def dask():
    """Two worker processes."""
    with open_executor("dask:2") as executor:
        yield executor


# ---------------------------------------------------------------- names


@pytest.mark.parametrize("name", ["serial", "threads:1", "threads:16", "dask:2", "dask://host.name:8786"])
def test_names_of_executors(name):
    assert check_executor(name)[0] == name.partition(":")[0]


@pytest.mark.parametrize(
    "name",
    "thread:2 threads threads:0 threads:-1 threads:2x dask dask: dask:0 dask:9999 dask://host "
    "dask://:8786 dask://host:x serial:1 Serial tcp://host:1".split(),
)
def test_other_names_are_refused(name):
    with pytest.raises(ConfigError, match="Expected serial, threads:N, dask:N or dask://HOST:PORT"):
        check_executor(name)


def test_memory_is_for_processes_of_this_machine():
    check_executor("dask:2", "1.5GB")
    with pytest.raises(ConfigError, match="Only dask:N takes a memory limit"):
        check_executor("threads:2", "4GB")
    with pytest.raises(ConfigError, match="Only dask:N"):
        check_executor("dask://host:8786", "4GB")
    with pytest.raises(ConfigError, match="Expected a size such as 4GB"):
        check_executor("dask:2", "4")


def test_executors_of_this_process():
    with open_executor("serial") as serial, open_executor("threads:3") as threads:
        assert serial == SerialExecutor() and threads == ThreadExecutor(3)
        assert serial.in_process and threads.in_process
        assert list(serial.map(abs, [-1, 2])) == list(threads.map(abs, [-1, 2])) == [1, 2]


def test_a_scheduler_that_is_not_there_is_one_sentence():
    with (
        pytest.raises(ClusterError, match=r"no Dask scheduler answers at 127\.0\.0\.1:9"),
        open_executor("dask://127.0.0.1:9"),
    ):
        pass


# ---------------------------------------------------------------- a cluster


def warned(number):
    warnings.warn(f"patch {number}", NotFoundWarning, stacklevel=1)
    return number


def refused(number):
    raise ConfigError(f"number {number} is refused")


def killed_once(task):
    """The square of a number; the first worker that gets 3 dies."""
    mark, number = task
    if number == 3 and not Path(mark).exists():
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number**2


def test_a_cluster_leaves_the_environment_of_this_process(dask):
    assert os.environ.get("OMP_NUM_THREADS") == OMP


def test_a_path_is_seen_where_all_workers_find_the_same_file(dask, tmp_path):
    (tmp_path / "images.npy").touch()
    for executor in (dask, SerialExecutor(), ThreadExecutor()):
        assert executor.sees(tmp_path / "images.npy") and executor.sees(tmp_path)
    own = Path("/proc/self/environ")  # another file in each process
    assert not (own.exists() and dask.sees(own))


def test_results_keep_the_order_of_tasks_and_few_are_in_progress(dask):
    drawn = []

    def tasks():
        for number in range(30):
            drawn.append(number)
            yield number

    results = dask.map(squared, tasks())
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    assert len(drawn) <= 3 + 2 * 2 + 1
    results.close()  # as after Ctrl-C: what waits is dropped
    assert list(dask.map(squared, range(5))) == [0, 1, 4, 9, 16]


def squared(number):
    return number**2


def test_warnings_and_errors_of_workers_arrive(dask):
    with pytest.warns(NotFoundWarning, match="patch 7"):
        assert list(dask.map(warned, [7])) == [7]
    with pytest.raises(ConfigError, match="number 8 is refused"):
        list(dask.map(refused, [8]))


def test_the_task_of_a_killed_worker_runs_on_another(dask, tmp_path):
    mark = str(tmp_path / "killed")
    assert list(dask.map(killed_once, [(mark, n) for n in range(8)])) == [n**2 for n in range(8)]
    assert Path(mark).exists()


def test_a_scheduler_is_found_by_its_address(dask):
    address = dask.client.scheduler.address.removeprefix("tcp:")
    with open_executor(f"dask:{address}") as executor:
        assert list(executor.map(abs, [-3])) == [3]
        assert "Dask workers at tcp://127.0.0.1" in executor.note


# ---------------------------------------------------------------- the same bytes


def test_encoders_travel_by_name_or_as_a_file():
    shipped, own = load_encoder("structure-tensor"), small_encoder()
    batch = texture(64, 72)[None]
    for encoder in (shipped, own):
        packed = pickle.dumps(encoder)
        other = pickle.loads(packed)
        assert (other.name, other.fingerprint) == (encoder.name, encoder.fingerprint)
        assert other.calibrations == encoder.calibrations
        np.testing.assert_array_equal(other.embed(batch), encoder.embed(batch))
    assert len(pickle.dumps(shipped)) < 2000 < len(pickle.dumps(own))


@pytest.fixture(scope="module")
def pixels():
    return [digital(texture(150, 160, seed=s)) for s in range(5)]


def files(folder):
    """Bytes of all files but the manifest and the encoder, which hold times."""
    names = [p for p in folder.rglob("*") if p.is_file() and p.suffix not in (".json", ".keras")]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in names}


def test_an_index_and_its_answers_are_the_same_bytes(dask, pixels, tmp_path):
    images = [image_of(p, 3 * i) for i, p in enumerate(pixels)]
    source = ImageSource("made by a test", len(images), lambda: iter(images), own_ids=True)
    queries = np.stack(
        [
            p[y : y + 64, x : x + 64]
            for p, x, y in zip(pixels, (3, 80, 41, 9, 60), (5, 70, 22, 0, 9), strict=True)
        ]
    )
    indexes, answers = [], []
    for number, executor in enumerate((SerialExecutor(), ThreadExecutor(2), dask)):
        out = tmp_path / str(number)
        index = retrieval.build_index(source, out, encoder="structure-tensor", executor=executor)
        indexes.append(files(out))
        answers.append(index.locate(queries, executor=executor))
    assert indexes[0] == indexes[1] == indexes[2]
    for other in answers[1:]:
        assert other[["image_id", "x", "y"]].equals(answers[0][["image_id", "x", "y"]])
        np.testing.assert_allclose(other, answers[0], atol=1e-4)  # what is compiled rounds otherwise
    assert answers[0].image_id.tolist() == [0, 3, 6, 9, 12]


def test_bad_executors_are_wrong_usage(here):
    for flags, text in (
        (("--executor", "spark"), "executor 'spark'. Expected serial"),
        (("--memory", "4GB"), "Only dask:N takes a memory limit"),
        (("--executor", "dask:2", "--memory", "lots"), "Expected a size such as 4GB"),
    ):
        np.save(here / "images.npy", np.full((1, 64, 64, 4), 5, np.uint16))
        done = run("index", here / "images.npy", "--out", here / "i", *flags)
        assert done.exit_code == 2 and text in " ".join(lines(done.stderr))
    assert not (here / "i").exists()
