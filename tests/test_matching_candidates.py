"""Candidates: distinct places, against a slow greedy restatement."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import retrieval.matching.candidates as search
from retrieval.config import IndexConfig, SearchConfig
from retrieval.index.faiss_index import VectorIndex
from retrieval.matching.candidates import find_candidates, non_max_suppression
from retrieval.types import pack_ids


def slow_places(similarity, ids, config):
    """Go down the list; keep what is far enough from all that is kept."""
    kept = []
    for s, packed in zip(similarity.tolist(), ids.tolist(), strict=True):
        image, y, x = packed >> 32, packed >> 16 & 0xFFFF, packed & 0xFFFF
        if packed < 0 or len(kept) == config.max_candidates:
            continue
        gap = config.nms_radius_px
        if all(i != image or abs(x - kx) >= gap or abs(y - ky) >= gap for i, kx, ky, _ in kept):
            kept.append((image, x, y, s))
    return kept + [(-1, -1, -1, -np.inf)] * (config.max_candidates - len(kept))


@given(
    st.integers(0, 10**6),
    st.integers(0, 6),
    st.integers(1, 40),
    st.integers(1, 12),
    st.integers(1, 70),
    st.integers(0, 40),
)
def test_distinct_places_against_a_greedy_restatement(seed, n, k, places, separation, found):
    rng = np.random.default_rng(seed)
    config = SearchConfig(max_candidates=places, nms_radius_px=separation)
    ids = pack_ids(
        rng.choice([0, 1, 2**31 - 1], (n, k)), rng.integers(0, 100, (n, k)), rng.integers(0, 100, (n, k))
    )
    ids[:, found:] = -1
    similarity = -np.sort(-rng.uniform(-1, 1, (n, k)).astype(np.float32), axis=1)
    similarity[:, found:] = -np.inf
    got = non_max_suppression(similarity, ids, config)
    assert len(got) == n and got.image_ids.shape == (n, places)
    for row in range(n):
        columns = got.image_ids[row], got.x[row], got.y[row], got.similarity[row]
        assert list(zip(*(c.tolist() for c in columns), strict=True)) == slow_places(
            similarity[row], ids[row], config
        )


def test_largest_ids_and_positions_survive():
    ids = pack_ids(np.array([[2**31 - 1]]), np.array([[65535]]), np.array([[65535]]))
    got = non_max_suppression(np.ones((1, 1), np.float32), ids, SearchConfig(max_candidates=1))
    assert (got.image_ids[0, 0], got.x[0, 0], got.y[0, 0]) == (2**31 - 1, 65535, 65535)


def an_index(rng, images=3, side=6, dim=8):
    vectors = rng.normal(size=(images * side * side, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    image, row, col = (a.ravel() for a in np.mgrid[:images, :side, :side])
    ids = pack_ids(image, col * 16, row * 16)
    return VectorIndex.build(lambda: [(ids, vectors)], dim, IndexConfig()), vectors, ids


def test_candidates_do_not_depend_on_the_block(monkeypatch, rng):
    index, vectors, _ = an_index(rng)
    config = SearchConfig(top_k=50, max_candidates=7)
    whole = find_candidates(index, vectors, config)
    assert whole.image_ids[:36].T[0].tolist() == [0] * 36  # each finds itself first
    monkeypatch.setattr(search, "BLOCK", 10)
    for name in ("image_ids", "x", "y", "similarity"):
        np.testing.assert_array_equal(
            getattr(find_candidates(index, vectors, config), name), getattr(whole, name)
        )


def test_fewer_windows_than_asked_for_and_none(rng):
    index, vectors, _ = an_index(rng, images=1, side=2)
    found = find_candidates(index, vectors[:1], SearchConfig(max_candidates=9, nms_radius_px=1))
    assert (found.image_ids[0] >= 0).sum() == 4 and np.isneginf(found.similarity[0, 4:]).all()
    empty = find_candidates(index, np.zeros((0, 8), np.float32), SearchConfig(max_candidates=9))
    assert len(empty) == 0 and empty.image_ids.shape == (0, 9)
    nothing = VectorIndex.build(lambda: [], 8, IndexConfig())
    assert (find_candidates(nothing, vectors, SearchConfig()).image_ids == -1).all()
