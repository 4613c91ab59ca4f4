"""Images added to and removed from shards: the answers of an index built again, whole or not at all."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from engine import digital, image_of, texture
from small_job import lines, make_ground, run
from test_distributed_shards import FAKE, built, records, shards_in, source_of, submitted

import retrieval
from retrieval.config import IndexConfig
from retrieval.distributed import shard_builder
from retrieval.distributed.shard_builder import alone
from retrieval.errors import IndexMismatchError
from retrieval.index.update import Change
from tfrecords.errors import DuplicateIdError, MissingInputError, UnfinishedOutputError

pytestmark = pytest.mark.filterwarnings("ignore::retrieval.errors.UncalibratedWarning")

IDS = (0, 5, 10, 4, 9, 3, 8)
"""Ids that `records` gives to seven images."""


@pytest.fixture(scope="module")
def images():
    return records([digital(texture(80, 88, seed=s)) for s in range(7)])


def add(some, out):
    return retrieval.add_to_index(source_of(some), out, encoder=FAKE)


def remove(out, *names):
    return retrieval.remove_from_index(out, names, encoder=FAKE)


def snapshot(out):
    """The bytes of all files that `shards.json` reaches."""
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def answers(out, folder):
    folder.mkdir()
    index = retrieval.open_index(out, encoder=FAKE)
    queries = np.stack([digital(texture(80, 88, seed=s))[7:71, 5:69] for s in (1, 4, 6, 11)])
    return submitted(index, queries, folder)


def test_changes_give_the_answers_of_an_index_built_again(images, tmp_path):
    out, other = tmp_path / "s", image_of(digital(texture(80, 88, seed=11)), IDS[1], path="1.tif")
    built(images[:4], out, 2, FAKE)
    pixels = {p.name: p.stat().st_ino for shard in shards_in(out) for p in shard.glob("pixels/*.npy")}
    assert add([*images[3:6], other], out) == Change((3, 9), (), 1, (5,))
    assert remove(out, IDS[0], "5.tif") == Change((), (0, 3), 0)
    assert add([images[6]], out) == Change((8,), (), 0)
    assert add([images[6]], out) == Change((), (), 1)
    index = retrieval.open_index(out, encoder=FAKE)
    assert index.folder.manifest.counts["shards"] == len(index.folder.shards) == len(shards_in(out)) == 3
    kept = [other, images[2], images[3], images[4], images[6]]
    built(kept, tmp_path / "again", None, FAKE)
    assert answers(out, tmp_path / "a") == answers(tmp_path / "again", tmp_path / "b")
    now = {p.name: p.stat().st_ino for shard in shards_in(out) for p in shard.glob("pixels/*.npy")}
    assert all(pixels[name] == now[name] for name in ("10.npy", "4.npy")) and len(now) == len(kept)


def test_ids_of_removed_images_are_not_given_again(tmp_path):
    scenes = [image_of(digital(texture(72, 72, seed=s)), s, path=f"{s}.tif") for s in range(5)]
    built(scenes[:3], tmp_path / "s", 2, FAKE)
    remove(tmp_path / "s", 2)
    source = replace(source_of(scenes[3:]), own_ids=False)
    assert retrieval.add_to_index(source, tmp_path / "s", encoder=FAKE).added == (3, 4)


def test_a_change_is_whole_or_not_at_all_and_resumes(images, tmp_path, monkeypatch):
    out, whole = tmp_path / "s", tmp_path / "whole"
    built(images[:4], out, 2, FAKE)
    shutil.copytree(out, whole)
    former = answers(out, tmp_path / "former")
    listed = (out / "shards.json").read_bytes()

    def stopped(*_, **__):
        raise KeyboardInterrupt

    for name in ("digest", "writing_file"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(shard_builder, name, stopped)
            add(images[4:], out)
        assert (out / "shards.json").read_bytes() == listed
        assert answers(out, tmp_path / name) == former
    added = add(images[4:], out)
    assert added == add(images[4:], whole) and len(added.added) == 3
    assert answers(out, tmp_path / "new") == answers(whole, tmp_path / "undisturbed")
    assert {p.parent.name for p in out.glob("*/manifest.json")} == {
        p.name for p in out.iterdir() if p.is_dir()
    }


def test_a_new_shard_has_the_codes_of_the_others(tmp_path):
    images = records([digital(texture(104, 120, seed=s)) for s in range(7)])
    config = IndexConfig(kind="fast", stride_px=2)
    built(images[:5], tmp_path / "s", 2, FAKE, config=config)
    add(images[5:], tmp_path / "s")
    remove(tmp_path / "s", IDS[0])
    index = retrieval.open_index(tmp_path / "s", encoder=FAKE)
    assert {shard.vectors.kind for shard in index.folder.shards} == {"fast"}
    assert len({shard.manifest.extra["codes"] for shard in index.folder.shards}) == 1
    queries = np.stack([images[n].pixels[4:68, 6:70] for n in (2, 6)])
    frame = index.locate(queries)
    assert frame[["image_id", "x", "y"]].to_numpy().tolist() == [[IDS[2], 6, 4], [IDS[6], 6, 4]]


def test_what_cannot_be_changed_leaves_the_index(images, tmp_path):
    out = tmp_path / "s"
    built(images[:3], out, 2, FAKE)
    before = snapshot(out)
    changed = replace(images[1], path="other.tif")
    for job, error, text in (
        (lambda: add([changed], out), DuplicateIdError, "belongs to 1.tif"),
        (lambda: remove(out, "nothing.tif"), MissingInputError, "names none of 3"),
        (lambda: remove(out, *IDS[:3]), MissingInputError, "would have no image left"),
        (
            lambda: retrieval.add_to_index(source_of(images[3:]), out, encoder=FAKE, stride_px=4),
            IndexMismatchError,
            "was built with --stride 8",
        ),
    ):
        with pytest.raises(error, match=text):
            job()
        assert snapshot(out) == before
    with alone(out), pytest.raises(UnfinishedOutputError, match="written by another process"):
        remove(out, IDS[0])
    assert remove(out, *IDS[:2]).removed == (0, 5)
    assert list(retrieval.open_index(out, encoder=FAKE).folder.images) == [IDS[2]]


def test_the_command_line_changes_shards(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_ground(tmp_path)
    assert run("index", "images.npy", "--out", "s", "--shards", 2, "--quiet").exit_code == 0
    done = run("index", "--out", "s", "--remove", 1, "--json", "--quiet")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["removed"] == [1] and told["images"] == 1 and told["shards"] == 1
    done = run("index", "--out", "s", "--remove", 0)
    assert done.exit_code == 1 and "remove the folder itself" in " ".join(lines(done.stderr))
