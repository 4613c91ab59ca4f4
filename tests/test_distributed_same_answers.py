"""One job, four ways to run it, one submission: serial, threads, a cluster that loses a worker, S3 shards."""

import csv
from pathlib import Path

import numpy as np
import pytest
from engine import digital, small_encoder, texture
from lost_workers import Losing
from s3_server import s3_server
from small_job import lines, make_ground, run

import retrieval
from retrieval.distributed.executors import open_executor
from retrieval.distributed.shard_builder import embed_shard
from retrieval.evaluation import read_submission
from retrieval.matching.blocks import match_task
from retrieval.results.outputs import QueryOutputs
from tfrecords.read import read_queries
from tfrecords.remote import local_file

pytest.importorskip("distributed")

PLACES = [(0, 3, 5), (1, 40, 22), (2, 8, 36), (3, 50, 11), (4, 17, 29), (5, 0, 40)]


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """Six images and six patches of another light, as files."""
    folder = tmp_path_factory.mktemp("job")
    images = np.stack([digital(texture(104, 120, seed=s)) for s in range(6)])
    np.save(folder / "images.npy", images)
    cut = np.stack([images[i, y : y + 64, x : x + 64] for i, x, y in PLACES])
    np.save(folder / "patches.npy", (cut // 2 + 300).astype(np.uint16))
    return folder


def submitted(job, index, out, executor=None):
    """The bytes of a submission."""
    matches = retrieval.locate(index, read_queries(job / "patches.npy"), executor=executor)
    QueryOutputs(out).write(matches)
    return Path(out).read_bytes()


def build(job, out, executor=None, shards=None):
    return retrieval.build_index(
        job / "images.npy", out, encoder=small_encoder(), executor=executor, shards=shards
    )


def test_four_ways_give_one_submission(job, tmp_path):
    answers = {}
    for name in ("serial", "threads:2"):
        with open_executor(name) as executor:
            index = build(job, tmp_path / name, executor)
            answers[name] = submitted(job, index, tmp_path / f"{name}.csv", executor)
    with open_executor("dask:2") as dask:
        losing = Losing(dask, tmp_path)
        index = build(job, tmp_path / "dask", losing, shards=2)
        answers["dask"] = submitted(job, index, tmp_path / "dask.csv", losing)
    assert {embed_shard.__name__, match_task.__name__} <= losing.killed
    with s3_server(tmp_path / "cache") as bucket:
        build(job, f"{bucket}/index", shards=2)
        index = retrieval.open_index(f"{bucket}/index")
        assert len(index.folder.shards) == 2 and index.folder.origin == f"{bucket}/index"
        submitted_to = f"{bucket}/answers/submission.csv"
        matches = retrieval.locate(index, read_queries(job / "patches.npy"))
        QueryOutputs(Path(submitted_to)).write(matches)
        answers["s3"] = local_file(submitted_to).read_bytes()
    assert len(set(answers.values())) == 1, answers
    (tmp_path / "one.csv").write_bytes(answers["s3"])
    with (tmp_path / "one.csv").open() as file:
        rows = [row["Result"] for row in csv.DictReader(file)]
    assert rows == [f"{i} {x} {y}" for i, x, y in PLACES]
    assert len(read_submission(tmp_path / "one.csv").patch_ids) == len(PLACES)


def test_the_command_line_takes_urls(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_ground(tmp_path)
    with s3_server(tmp_path / "cache") as bucket:
        index, out = f"{bucket}/small", f"{bucket}/answers/submission.csv"
        done = run("index", "images.npy", "--out", index, "--quiet", "--json")
        assert done.exit_code == 0, done.output
        for flags, code, text in (([], 0, ""), ([], 1, "exists and is kept"), (["--overwrite"], 0, "")):
            done = run("query", "patches.npy", "--index", index, "--out", out, "--quiet", *flags)
            assert done.exit_code == code and text in " ".join(lines(done.stderr)), done.output
        done = run("index", "images.npy", "--out", index)
        assert done.exit_code == 1 and "exists and is kept" in " ".join(lines(done.stderr))
        remote = local_file(out).read_bytes()
    assert run("query", "patches.npy", "--index", "index", "--out", "here.csv", "--quiet").exit_code == 0
    assert Path("here.csv").read_bytes() == remote
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("s3")]
