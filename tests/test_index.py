"""FAISS behind one class: exact search against plain NumPy, ids, ties, files, IVF against exact."""

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import retrieval.index as index_room
from retrieval.config import IndexConfig
from retrieval.errors import ConfigError, DependencyError, IndexFormatError, IndexMismatchError
from retrieval.index import VectorIndex, choose_kind, ivf_cells, resolve_device
from tfrecords.errors import DuplicateIdError

EXACT, IVF = IndexConfig(kind="exact"), IndexConfig(kind="ivf")
HAS_GPU = hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


def vectors_of(rng, n, dim=16):
    v = rng.normal(size=(n, dim)).astype(np.float32)
    return v / np.linalg.norm(v, axis=1, keepdims=True)


def clustered(rng, n, dim=32, clusters=40, spread=0.35):
    """Like windows of images: some look alike, none are the same."""
    centres = vectors_of(rng, clusters, dim)
    v = (
        centres[rng.integers(0, clusters, n)]
        + spread * rng.normal(size=(n, dim)).astype(np.float32) / dim**0.5
    )
    return (v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32)


def build(ids, vectors, config=EXACT, block=1000, **more):
    def blocks():
        for i in range(0, len(ids), block):
            yield ids[i : i + block], vectors[i : i + block]

    return VectorIndex.build(blocks, vectors.shape[1], config, **more)


def slow_search(ids, vectors, queries, k):
    similarity = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    order = np.lexsort((np.broadcast_to(ids, similarity.shape), -similarity), axis=-1)[:, :k]
    return np.take_along_axis(similarity, order, 1), ids[order]


# ---------------------------------------------------------------- exact search


@given(st.integers(0, 10**6), st.integers(1, 90), st.integers(1, 30), st.integers(1, 40))
def test_exact_search_is_exhaustive(seed, n, queries, k):
    rng = np.random.default_rng(seed)
    ids = np.sort(rng.choice(2**40, n, replace=False))
    vectors = vectors_of(rng, n)
    asked = vectors_of(rng, queries)
    similarity, found = build(ids, vectors, block=37).search(asked, k)
    slow, expected = slow_search(ids, vectors, asked, k)
    assert similarity.shape == found.shape == (queries, k)
    np.testing.assert_array_equal(found[:, :n], expected)
    np.testing.assert_allclose(similarity[:, :n], slow, atol=1e-5)
    assert (found[:, n:] == -1).all() and np.isneginf(similarity[:, n:]).all()


@pytest.mark.parametrize("queries", [1, 50])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 8, 100, 150])
def test_ties_go_to_the_smaller_id_also_at_the_end_of_the_list(rng, queries, k):
    one = vectors_of(rng, 50)
    vectors = np.concatenate([one, one, one])  # every vector three times
    ids = np.arange(150) * 7
    _, found = build(ids, vectors).search(one[:queries], k)
    similarity = np.tile(one[:queries].astype(np.float64) @ one.T.astype(np.float64), (1, 3))
    expected = ids[np.lexsort((np.broadcast_to(ids, similarity.shape), -similarity), axis=-1)[:, :k]]
    np.testing.assert_array_equal(found, expected)


def test_a_zero_query_gets_the_smallest_ids(rng):
    _, found = build(np.arange(500), vectors_of(rng, 500)).search(np.zeros((2, 16), np.float32), 5)
    assert found.tolist() == [[0, 1, 2, 3, 4]] * 2


def test_blocks_of_queries_change_nothing(rng, monkeypatch):
    index = build(np.arange(300), vectors_of(rng, 300))
    asked = vectors_of(rng, 70)
    whole = index.search(asked, 20)
    monkeypatch.setattr(index_room, "QUERY_BLOCK", 9)
    for a, b in zip(index.search(asked, 20), whole, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_an_empty_index_answers_with_nothing(tmp_path, rng):
    for config in (EXACT, IVF, IndexConfig()):
        index = VectorIndex.build(lambda: [], 16, config)
        index.save(tmp_path / "v.faiss")
        for one in (index, VectorIndex.open(tmp_path / "v.faiss", index.kind, 8)):
            similarity, found = one.search(vectors_of(rng, 3), 4)
            assert len(one) == 0 and one.dim == 16 and (found == -1).all() and np.isneginf(similarity).all()
        assert index.vectors()[1].shape == (0, 16)


def test_queries_of_another_length_are_refused(rng):
    index = build(np.arange(10), vectors_of(rng, 10))
    for shape in ((3, 15), (16,), (2, 2, 16)):
        with pytest.raises(IndexMismatchError, match="16"):
            index.search(np.zeros(shape, np.float32), 1)


@pytest.mark.parametrize("ids", [[0, 1, 1], [0, 2, 1], [5, 5, 6]])
@pytest.mark.parametrize("block", [1, 2, 3])
def test_doubled_ids_are_refused(rng, ids, block):
    with pytest.raises(DuplicateIdError):
        build(np.array(ids), vectors_of(rng, 3), block=block)


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("config", [EXACT, IVF], ids=["exact", "ivf"])
def test_ids_survive_save_and_open(rng, tmp_path, config):
    ids = np.sort(rng.choice(2**62, 600, replace=False))
    vectors = vectors_of(rng, 600)
    index = build(ids, vectors, config)
    index.save(tmp_path / "v.faiss")
    back = VectorIndex.open(tmp_path / "v.faiss", index.kind, config.ivf_probes)
    assert (back.kind, len(back), back.dim) == (config.kind, 600, 16)
    for a, b in zip(back.search(vectors[:40], 9), index.search(vectors[:40], 9), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (back.search(vectors, 1)[1][:, 0] == ids).all()


@pytest.mark.parametrize("config", [EXACT, IVF], ids=["exact", "ivf"])
def test_plain_faiss_opens_the_file(rng, tmp_path, config):
    ids, vectors = np.arange(300) + 10**12, vectors_of(rng, 300)
    build(ids, vectors, config).save(tmp_path / "v.faiss")
    plain = faiss.read_index(str(tmp_path / "v.faiss"))
    assert plain.ntotal == 300 and plain.metric_type == faiss.METRIC_INNER_PRODUCT
    similarity, found = plain.search(vectors[:5], 1)
    assert (found[:, 0] == ids[:5]).all()
    np.testing.assert_allclose(similarity, 1, atol=2e-3)  # an IVF holds half precision


def test_vectors_give_back_what_was_put_in(rng):
    ids, vectors = np.arange(30) * 3, vectors_of(rng, 30)
    back_ids, back = build(ids, vectors).vectors()
    np.testing.assert_array_equal(back_ids, ids)
    np.testing.assert_array_equal(back, vectors)


def test_files_that_are_no_index_of_ours(rng, tmp_path):
    path = tmp_path / "v.faiss"
    with pytest.raises(IndexFormatError):
        VectorIndex.open(path, "exact", 8)
    build(np.arange(30), vectors_of(rng, 30)).save(path)
    whole = path.read_bytes()
    for length in (0, 3, 40, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(IndexFormatError, match="build the index again"):
            VectorIndex.open(path, "exact", 8)
    faiss.write_index(faiss.IndexFlatL2(4), str(path))
    with pytest.raises(IndexFormatError, match="inner product"):
        VectorIndex.open(path, "exact", 8)


# ---------------------------------------------------------------- merge


def test_merging_is_as_building_at_once(rng):
    ids, vectors = np.sort(rng.choice(10**6, 90, replace=False)), vectors_of(rng, 90)
    part = rng.integers(0, 3, 90)
    parts = [build(ids[part == p], vectors[part == p]) for p in (2, 0, 1)]
    merged, whole = VectorIndex.merge(parts, EXACT), build(ids, vectors)
    asked = vectors_of(rng, 25)
    for a, b in zip(merged.search(asked, 30), whole.search(asked, 30), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_cannot_be_merged(rng):
    one = build(np.arange(20), vectors_of(rng, 20))
    with pytest.raises(DuplicateIdError):
        VectorIndex.merge([one, build(np.array([7]), vectors_of(rng, 1))], EXACT)
    with pytest.raises(IndexMismatchError, match=r"\[8, 16\]"):
        VectorIndex.merge([one, build(np.array([50]), vectors_of(rng, 1, 8))], EXACT)
    with pytest.raises(ConfigError, match="exact"):
        VectorIndex.merge([build(np.arange(300), vectors_of(rng, 300), IVF)], EXACT)
    with pytest.raises(ConfigError):
        VectorIndex.merge([], EXACT)


# ---------------------------------------------------------------- IVF


def test_ivf_recall_against_exact_on_the_same_vectors(rng):
    vectors = clustered(rng, 40_000)
    asked = clustered(np.random.default_rng(5), 300)
    ids = np.arange(len(vectors)) * 2
    ivf, exact = build(ids, vectors, IVF), build(ids, vectors)
    assert ivf.kind == "ivf" and ivf_cells(len(vectors)) > ivf.probes  # or there would be nothing to test
    got, truth = ivf.search(asked, 20)[1], exact.search(asked, 20)[1]
    recall = np.mean([len(set(g) & set(t)) / 20 for g, t in zip(got, truth, strict=True)])
    assert recall >= 0.95
    assert (got[:, 0] == truth[:, 0]).mean() >= 0.97


def test_ivf_is_the_same_each_time_and_in_any_blocks(rng):
    vectors = clustered(rng, 2000)
    one = build(np.arange(2000), vectors, IVF)
    other = build(np.arange(2000), vectors, IVF, block=123)
    for a, b in zip(one.search(vectors[:50], 10), other.search(vectors[:50], 10), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("count", [1, 2, 5, 30, 100, 1500])
def test_ivf_of_few_vectors_is_quiet_and_right(rng, capfd, count):
    vectors = vectors_of(rng, count)
    index = build(np.arange(count), vectors, IVF)
    assert index.kind == "ivf"
    assert (index.search(vectors, min(3, count))[1][:, 0] == np.arange(count)).mean() > 0.99
    assert capfd.readouterr().err == ""  # FAISS warns there of too few vectors for a cell


def test_cells_grow_with_the_root():
    counts = [0, 1, 38, 100, 10_000, 10**6, 2 * 10**6, 10**12]
    assert [ivf_cells(c) for c in counts] == [1, 1, 1, 2, 256, 4096, 4096, 65536]


def test_auto_is_decided_by_the_number_of_vectors():
    config = IndexConfig(exact_below=100)
    assert [choose_kind("auto", n, config) for n in (0, 100, 101)] == ["exact", "exact", "ivf"]
    assert choose_kind("ivf", 5, config) == "ivf" and choose_kind("exact", 10**9, config) == "exact"


# ---------------------------------------------------------------- devices


def test_devices():
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("auto") == ("gpu" if HAS_GPU else "cpu")
    if not HAS_GPU:
        with pytest.raises(DependencyError, match=r"patch-retrieval\[gpu\]"):
            resolve_device("gpu")


def test_without_faiss_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(DependencyError, match=r"\[cpu\].*\[gpu\]"):
        VectorIndex.build(lambda: [], 8, EXACT)


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no GPU, or a FAISS without GPU code")
@pytest.mark.parametrize("config", [EXACT, IVF], ids=["exact", "ivf"])
def test_gpu_answers_as_the_cpu_does(rng, tmp_path, config):
    vectors = clustered(rng, 20_000)
    asked = clustered(np.random.default_rng(5), 500)
    ids = np.arange(len(vectors)) * 3 + 2**40
    cpu, gpu = build(ids, vectors, config), build(ids, vectors, config, device="gpu")
    (s, i), (t, j) = cpu.search(asked, 50), gpu.search(asked, 50)
    np.testing.assert_allclose(s, t, atol=5e-3)  # half precision
    assert np.mean([len(set(a) & set(b)) / 50 for a, b in zip(i, j, strict=True)]) > 0.97
    gpu.save(tmp_path / "v.faiss")
    back = VectorIndex.open(tmp_path / "v.faiss", gpu.kind, config.ivf_probes)
    np.testing.assert_array_equal(back.search(asked, 50)[1], i)


@pytest.mark.parametrize("kind", ["exact", "ivf"])
def test_a_restricted_view_finds_the_nearest_of_what_is_allowed(rng, kind):
    vectors = rng.normal(size=(3000, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = np.arange(3000) * 3
    index = VectorIndex.build(lambda: [(ids, vectors)], 16, IndexConfig(kind=kind, ivf_probes=4))
    for count in (1, 40, 1500):
        allowed = np.sort(rng.choice(ids, count, replace=False))
        similarity, got = index.restricted(np.append(allowed, 10**9)).search(vectors[:20], 30)
        some = min(count, 30)
        assert np.isin(got[:, :some] if kind == "exact" else got[got >= 0], allowed).all()
        every = np.where(np.isin(ids, allowed), vectors[:20] @ vectors.T, -9)
        wanted = -np.sort(-every, axis=1)[:, :some]
        if kind == "exact" or count <= 40:  # few are looked for in all cells
            np.testing.assert_allclose(similarity[:, :some], wanted, atol=2e-3)
        assert (got[:, some:] == -1).all()
    none = index.restricted(np.zeros(0, np.int64)).search(vectors[:2], 5)[1]
    assert (none == -1).all() and len(index.search(vectors[:1], 5)[1][0]) == 5
