"""The flag `--executor` of each command: the same bytes in sequence, on threads and on a Dask cluster."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("distributed")

from small_job import run
from stac_ground import clear
from stac_job import ASKED

from retrieval.distributed.executors import open_executor

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from job import snapshot, write_tif
from small_jobs import JOBS

WITH_PATHS = ("manifest.json", "images.csv")
"""Files that name the folder they were made in or from."""


@pytest.fixture(scope="module")
def dask():
    """The flag of a cluster that all tests share."""
    with open_executor("dask:2") as executor:
        yield "dask:" + executor.client.scheduler.address.removeprefix("tcp:")


def on_each(folder, dask, arguments, outputs, names=("serial", "threads:2")):
    """Run a command without the flag and with each; return the files of the outputs, which are equal."""
    made = {}
    for number, flags in enumerate(((), *(("--executor", name) for name in (*names, dask)))):
        work = shutil.copytree(folder, folder.with_name(f"{folder.name}-{number}"))
        done = run(*arguments(work), *flags, "--quiet")
        assert done.exit_code == 0, done.output
        files = {name: known for out in outputs for name, known in snapshot(work / out).items()}
        made[flags] = {name: known for name, known in files.items() if not name.endswith(WITH_PATHS)}
    expected = made[()]
    assert expected
    for flags, files in made.items():
        assert files == expected, flags
    return expected


@pytest.mark.parametrize("name", ["index", "query", "ingest", "classify predict", "segment predict"])
def test_each_executor_writes_the_same_bytes(tmp_path, dask, name):
    job, folder = JOBS[name], tmp_path / "job"
    folder.mkdir()
    if job.model:
        job.model(folder)
    job.inputs(folder, 0)
    on_each(folder, dask, job.arguments, job.outputs)


def write_pair(folder, rng):
    """Two dates of a place, of which a square changed."""
    before = np.kron(rng.uniform(400, 3000, (24, 20, 4)), np.ones((8, 8, 1)))
    after = 1.2 * before + rng.normal(0, 20, before.shape)
    after[40:80, 40:80] = before[100:140, 100:140]
    for name, pixels in (("before", before), ("after", after)):
        write_tif(folder / f"{name}.tif", np.clip(pixels, 1, 9000).astype(np.uint16))


def test_each_executor_maps_the_same_change(tmp_path, dask, rng):
    write_pair(tmp_path / "pair", rng)

    def arguments(folder):
        files = folder / "before.tif", folder / "after.tif", "--out", folder / "change.tif"
        return ("change", "detect", *files, "--probabilities", folder / "p.tif")

    on_each(tmp_path / "pair", dask, arguments, ("change.tif", "p.tif"))


def test_each_executor_measures_the_same_change(tmp_path, dask, rng):
    labels = np.zeros((192, 160), np.uint8)
    labels[40:80, 40:80], labels[:20] = 1, 255
    for name in ("a", "b"):
        write_pair(tmp_path / "places" / name, rng)
        write_tif(tmp_path / "labels" / f"{name}.tif", labels[..., None])
    texts = set()
    for flags in ((), *(("--executor", name) for name in ("serial", "threads:2", dask))):
        asked = tmp_path / "places", tmp_path / "labels", "--no-clouds", "--json", "--quiet"
        done = run("change", "evaluate", *asked, *flags)
        assert done.exit_code == 0, done.output
        texts.add(done.stdout)
    assert len(texts) == 1
    assert json.loads(texts.pop())["recall"]["value"] > 0.5


def test_each_executor_downloads_the_same_files(tmp_path, dask, tiles, catalogue):
    for day in ("2021-05-01", "2022-05-01"):
        tiles.put("31TCJ", day, scl=clear())
    (tmp_path / "empty").mkdir()
    box = ",".join(map(str, ASKED))

    def arguments(folder):
        asked = ("--api", catalogue.url, "--bbox", box, "--dates", "2020/2023")
        return ("ingest-stac", *asked, "--out", folder / "places")

    files = on_each(tmp_path / "empty", dask, arguments, ("places",))
    assert sum(name.endswith(".tif") for name in files) == 2


def test_each_executor_trains_the_same_verifier(tmp_path, dask):
    tiny = {"width": 4, "rounds": 1, "queries": 12, "confusions": 4, "min_places": 2, "steps": 2}
    folder = tmp_path / "job"
    folder.mkdir()
    JOBS["train"].inputs(folder, 0)
    (folder / "tiny.json").write_text(json.dumps(tiny | {"batch": 4, "candidates": 3}))

    def arguments(work):
        flags = ("--model", "verifier", "--recipe", work / "tiny.json", "--out", work / "v.keras")
        return ("train", work / "series", *flags)

    # Without the flag it trains in sequence, as with "serial".
    on_each(folder, dask, arguments, ("v.keras",), names=("threads:2",))
