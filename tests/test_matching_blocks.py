"""Blocks of patches: tasks that share no memory answer as one process does, and repeat little of its work."""

import pickle
from collections import Counter
from dataclasses import fields

import numpy as np
import pytest
from engine import digital, image_of, patches_of, small_encoder, texture

from retrieval.config import IndexConfig
from retrieval.index.builder import write_index
from retrieval.index.folder import IndexFolder
from retrieval.matching import tensor_cache
from retrieval.matching.blocks import MAX_BLOCK, MIN_BLOCK, TASKS_PER_SLOT, block_size, match, match_in_blocks
from retrieval.matching.session import Session
from tfrecords.read import read_patches
from tfrecords.write import write_patches


class Elsewhere:
    """Runs tasks as another process would: everything passes through pickle."""

    in_process = False

    def __init__(self, sees=True):
        self.sees, self.sent = lambda path: sees and path.exists(), []

    def slots(self):
        return 2

    def map(self, function, tasks):
        for task in tasks:
            sent = pickle.dumps(task)
            self.sent.append(len(sent))
            yield pickle.loads(pickle.dumps(function(pickle.loads(sent))))


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """An index of four images, and two patches of each."""
    out = tmp_path_factory.mktemp("blocks") / "index"
    images = [digital(texture(104, 120, seed=s)) for s in range(4)]
    write_index(
        [image_of(p, n) for n, p in enumerate(images)], out, small_encoder(), IndexConfig(), source=""
    )
    pixels = np.concatenate([patches_of(p, [(3, 5), (40, 22)]).pixels for p in images])
    patches = patches_of(images[0], [(0, 0)] * len(pixels))
    return IndexFolder(out, device="cpu"), type(patches)(
        np.arange(len(pixels)), pixels, patches.units, patches.bands, 0.0
    )


@pytest.mark.parametrize("block", [1, 3, None])
def test_blocks_answer_as_one_process_and_compute_the_tensors_of_an_image_once(job, block, monkeypatch):
    index, patches = job
    whole = match(Session.open(index, patches))
    computed = Counter()

    def counting(pixels):
        computed[pixels.tobytes()] += 1
        return original(pixels)

    original = tensor_cache.pyramid
    monkeypatch.setattr(tensor_cache, "pyramid", counting)
    found = match_in_blocks(Session.open(index, patches), index, patches, Elsewhere(), block)
    for one in fields(whole):
        np.testing.assert_allclose(getattr(found, one.name), getattr(whole, one.name), atol=1e-4)
    assert found.image_ids[:, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert set(computed.values()) <= {1}


@pytest.mark.parametrize("kind", ["tfrecords", "npy", "some rows of npy"])
def test_workers_read_the_patches_of_files_that_they_see(job, kind, tmp_path):
    index, patches = job
    if kind == "tfrecords":
        write_patches(patches, tmp_path / "patches.tfrecords")
        opened = read_patches(tmp_path / "patches.tfrecords")
    else:
        np.save(tmp_path / "patches.npy", patches.pixels)
        opened = read_patches(tmp_path / "patches.npy", bands=patches.bands, units=patches.units)
    in_files = kind != "some rows of npy"
    opened = opened if in_files else opened.select(slice(2, 7))
    whole = match(Session.open(index, opened))
    for sees in (True, False):
        workers = Elsewhere(sees)
        found = match_in_blocks(Session.open(index, opened), index, opened, workers, 3)
        np.testing.assert_array_equal(found.image_ids[:, 0], whole.image_ids[:, 0])
        np.testing.assert_array_equal(found.x, whole.x)
        assert (max(workers.sent) < opened.pixels[0].nbytes) == (sees and in_files)


@pytest.mark.parametrize("slots", [1, 2, 100])
@pytest.mark.parametrize("patches", [0, 1, 255, 768, 19_200, 38_400, 10**6])
def test_tasks_are_large_and_enough_for_all_slots(patches, slots):
    size = block_size(patches, slots)
    tasks = -(-patches // size)
    assert MIN_BLOCK <= size <= MAX_BLOCK
    assert tasks <= TASKS_PER_SLOT * slots or size == MAX_BLOCK
    assert size == MIN_BLOCK or tasks >= slots
