"""Search in rounds: certain patches take one round, uncertain ones a second with more candidates."""

import numpy as np
import pytest
from engine import digital, patches_of, small_encoder, texture

from retrieval.config import IndexConfig, SearchConfig
from retrieval.index.faiss_index import VectorIndex
from retrieval.matching.pyramid import refine_full_resolution
from retrieval.matching.rounds import search_vectors
from retrieval.matching.session import Session
from retrieval.matching.tensors import Arrays
from retrieval.models.embed import embed_image, embed_patches
from retrieval.types import pack_ids
from tfrecords.schema import BANDS, Patches

SHALLOW = SearchConfig(top_k=4, max_candidates=1, round2_max_candidates=1, return_k=5)


@pytest.fixture(scope="module")
def world():
    """Three images, their index, patches of all of them, and one of no place."""
    dn = [digital(texture(120, 120, seed=s)) for s in range(3)]
    images = Arrays(
        {i: (d / 2047.5 - 1).astype(np.float32) for i, d in enumerate(dn)}, dict.fromkeys(range(3), BANDS)
    )
    parts = []
    for i, scaled in images.arrays.items():
        found = embed_image(small_encoder(), scaled, IndexConfig())
        parts.append((pack_ids(np.full(len(found.xy), i), *found.xy.T), found.vectors))
    index = VectorIndex.build(lambda: parts, small_encoder().dim, IndexConfig())
    nowhere = digital(texture(64, 64, seed=99))
    pixels = [
        *(patches_of(d, [(12, 20), (51, 3)]).pixels for d in dn),
        nowhere[None],
        np.full((1, 64, 64, 4), 700, np.uint16),
    ]
    patches = Patches(np.arange(8), np.concatenate(pixels), "dn", BANDS, 0.0)
    return index, images, patches, embed_patches(small_encoder(), patches.scaled())


def found_by(world, search, progress=lambda *a: None):
    index, images, patches, vectors = world
    session = Session(images, patches, index, search=search, progress=progress)
    return refine_full_resolution(session, search_vectors(session, vectors))


def test_patches_are_found_and_the_width_is_as_asked(world):
    found = found_by(world, SearchConfig(return_k=7))
    assert found.image_ids.shape == found.dx.shape == (8, 7)
    assert found.image_ids[:6, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert found.x[:6, 0].tolist() == [12, 51] * 3 and found.y[:6, 0].tolist() == [20, 3] * 3


def test_fewer_candidates_than_kept_are_filled_with_none(world):
    found = found_by(world, SHALLOW)
    assert (found.image_ids[:, 1:] == -1).all() and np.isneginf(found.similarity[:, 1:]).all()
    assert not found.ncc[:, 1:].any()


def test_only_uncertain_patches_are_searched_again(world):
    stages = []
    found_by(world, SearchConfig(), lambda *a: stages.append(a))
    searches = [(stage, total) for stage, _, total in stages if stage.startswith("searching")]
    assert searches == [("searching", 8), ("searching deeper", 1)]  # a flat patch shows nothing to search for


def test_looking_longer_finds_what_the_first_round_missed(world):
    """Other ground laid over the patches: vectors rank the right place low, NCC still knows it."""
    index, images, patches, _ = world
    over = np.stack([texture(64, 64, seed=50 + s) for s in range(6)])
    mixed = Patches(np.arange(6), patches.scaled(slice(0, 6)) + 0.6 * over, "scaled", BANDS, None)
    vectors = embed_patches(small_encoder(), mixed.scaled())
    right = []
    for deep_places in (1, 200):
        search = SearchConfig(
            top_k=4, max_candidates=1, confident_odds=99.0, round2_max_candidates=deep_places
        )
        found = found_by((index, images, mixed, vectors), search)
        right.append(int(((found.image_ids[:, 0] == [0, 0, 1, 1, 2, 2]) & (found.ncc[:, 0] > 0.3)).sum()))
    assert right[0] < 5 <= right[1], right


def test_no_patches_and_no_windows(world):
    index, images, patches, vectors = world
    none = Patches(patches.patch_ids[:0], patches.pixels[:0], "dn", BANDS, 0.0)
    assert len(found_by((index, images, none, vectors[:0]), SearchConfig())) == 0
    empty = VectorIndex.build(lambda: [], index.dim, IndexConfig())
    found = found_by((empty, images, patches, vectors), SearchConfig())
    assert (found.image_ids == -1).all() and found.image_ids.shape == (8, SearchConfig.return_k)


def test_progress_names_both_rounds(world):
    told = []
    found_by(world, SearchConfig(), lambda *a: told.append(a[0]))
    assert told[0] == "searching" and "searching deeper" in told
