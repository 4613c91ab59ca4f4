"""Vector indexes: exact search against NumPy, ids, ties, files, recall of codes and cells."""

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.config import IndexConfig
from retrieval.errors import DependencyError, IndexFormatError, IndexMismatchError
from retrieval.index.device import resolve_device
from retrieval.index.faiss_index import VectorIndex
from retrieval.index.kinds import BlockSizes, choose_kind, ivf_cells
from retrieval.index.recall import Recall, exact_search, measure_recall
from tfrecords.errors import DuplicateIdError

EXACT, FAST, IVF = (IndexConfig(kind=kind) for kind in ("exact", "fast", "ivf"))
HAS_GPU = hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


def vectors_of(rng, n, dim=16):
    v = rng.normal(size=(n, dim)).astype(np.float32)
    return v / np.linalg.norm(v, axis=1, keepdims=True)


def clustered(rng, n, dim=32, clusters=40, spread=0.35):
    """Vectors in clusters, as images have: some are similar, none are equal."""
    centres = vectors_of(rng, clusters, dim)
    v = (
        centres[rng.integers(0, clusters, n)]
        + spread * rng.normal(size=(n, dim)).astype(np.float32) / dim**0.5
    )
    return (v / np.linalg.norm(v, axis=1, keepdims=True)).astype(np.float32)


def rounded_to_half(vectors):
    """Vectors as half precision stores them."""
    return vectors.astype(np.float16).astype(np.float32)


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
def test_exact_search_is_exhaustive(seed, n, count, k):
    rng = np.random.default_rng(seed)
    ids = np.sort(rng.choice(2**40, n, replace=False))
    vectors = vectors_of(rng, n)
    queries = vectors_of(rng, count)
    similarity, found = build(ids, vectors, block=37).search(queries, k)
    slow, expected = slow_search(ids, vectors, queries, k)
    assert similarity.shape == found.shape == (count, k)
    np.testing.assert_array_equal(found[:, :n], expected)
    np.testing.assert_allclose(similarity[:, :n], slow, atol=1e-5)
    assert (found[:, n:] == -1).all() and np.isneginf(similarity[:, n:]).all()


@pytest.mark.parametrize("queries", [1, 50])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 8, 100, 150])
def test_ties_go_to_the_smaller_id_even_at_the_end_of_the_list(rng, queries, k):
    one = vectors_of(rng, 50)
    vectors = np.concatenate([one, one, one])  # every vector three times
    ids = np.arange(150) * 7
    _, found = build(ids, vectors).search(one[:queries], k)
    similarity = np.tile(one[:queries].astype(np.float64) @ one.T.astype(np.float64), (1, 3))
    expected = ids[np.lexsort((np.broadcast_to(ids, similarity.shape), -similarity), axis=-1)[:, :k]]
    np.testing.assert_array_equal(found, expected)


def test_zero_query_gets_the_smallest_ids(rng):
    _, found = build(np.arange(500), vectors_of(rng, 500)).search(np.zeros((2, 16), np.float32), 5)
    assert found.tolist() == [[0, 1, 2, 3, 4]] * 2


def test_size_of_query_blocks_does_not_change_results(rng):
    index = build(np.arange(300), vectors_of(rng, 300))
    queries = vectors_of(rng, 70)
    whole = index.search(queries, 20)
    for a, b in zip(index.search(queries, 20, query_block=9), whole, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_empty_index_returns_nothing(tmp_path, rng):
    for config in (EXACT, FAST, IVF, IndexConfig()):
        index = VectorIndex.build(lambda: [], 16, config)
        index.save(tmp_path / "v.faiss")
        for opened in (index, VectorIndex.open(tmp_path / "v.faiss", index.kind, 8)):
            similarity, found = opened.search(vectors_of(rng, 3), 4)
            assert (
                len(opened) == 0
                and opened.dim == 16
                and (found == -1).all()
                and np.isneginf(similarity).all()
            )
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


@pytest.mark.parametrize("config", [EXACT, FAST, IVF], ids=["exact", "fast", "ivf"])
def test_ids_survive_save_and_open(rng, tmp_path, config):
    ids = np.sort(rng.choice(2**62, 700, replace=False))
    vectors = vectors_of(rng, 700)
    index = build(ids, vectors, config)
    index.save(tmp_path / "v.faiss")
    back = VectorIndex.open(tmp_path / "v.faiss", index.kind, config.nprobe)
    assert (back.kind, len(back), back.dim) == (config.kind, 700, 16)
    for a, b in zip(back.search(vectors[:40], 9), index.search(vectors[:40], 9), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (back.search(vectors, 1)[1][:, 0] == ids).all()
    np.testing.assert_array_equal(back.ids(), ids)


@pytest.mark.parametrize("config", [EXACT, FAST, IVF], ids=["exact", "fast", "ivf"])
def test_plain_faiss_opens_the_file(rng, tmp_path, config):
    ids, vectors = np.arange(700) + 10**12, vectors_of(rng, 700)
    build(ids, vectors, config).save(tmp_path / "v.faiss")
    plain = faiss.read_index(str(tmp_path / "v.faiss"))
    assert plain.ntotal == 700 and plain.metric_type == faiss.METRIC_INNER_PRODUCT
    similarity, found = plain.search(vectors[:5], 1)
    assert (found[:, 0] == ids[:5]).all()
    np.testing.assert_allclose(similarity, 1, atol=2e-3)  # others hold half precision


@pytest.mark.parametrize("config", [EXACT, FAST, IVF], ids=["exact", "fast", "ivf"])
def test_vectors_are_returned_as_stored(rng, config):
    ids, vectors = np.arange(700) * 3, vectors_of(rng, 700)
    index, exact = build(ids, vectors, config), config is EXACT
    kept = vectors if exact else vectors.astype(np.float16).astype(np.float32)
    for part in (slice(0, None), slice(5, 9), slice(650, 2000)):
        back_ids, back = index.vectors(part.start, part.stop)
        np.testing.assert_array_equal(back_ids, ids[part])
        np.testing.assert_array_equal(back, kept[part])
    blocks = list(index.blocks(300))
    assert [len(i) for i, _ in blocks] == [300, 300, 100]
    np.testing.assert_array_equal(np.concatenate([v for _, v in blocks]), kept)


@pytest.mark.parametrize("config", [EXACT, FAST, IVF], ids=["exact", "fast", "ivf"])
@pytest.mark.parametrize("share", [0.0, 0.02, 1.0])
def test_restricted_index_finds_exactly_the_allowed_windows(rng, config, share):
    ids, vectors = np.arange(900) * 3, vectors_of(rng, 900)
    index = build(ids, vectors, config)
    allowed = ids[rng.random(900) < share]
    similarity, found = index.restricted(np.append(allowed, [1, 10**9])).search(vectors[:40], 30)
    expected = slow_search(allowed, vectors[np.isin(ids, allowed)], vectors[:40], 30)[1]
    if config is EXACT:
        np.testing.assert_array_equal(found[:, : expected.shape[1]], expected)
    same = [np.isin(e, f).mean() for e, f in zip(expected, found, strict=True) if len(e)]
    assert np.mean(same or 1) > 0.99  # half precision swaps near ties
    assert (found[:, expected.shape[1] :] == -1).all() and np.isneginf(similarity[found < 0]).all()
    assert len(index) == 900 and (index.search(vectors, 1)[1][:, 0] == ids).all()


def as_faiss_writes_it(path, ids, vectors, map_of_ids):
    """What FAISS alone makes of the same parts: a map of ids around codes and half-precision vectors."""
    known = faiss.read_index(str(path))
    empty = faiss.clone_index(known.index)
    empty.reset()
    whole = map_of_ids(empty)
    whole.add_with_ids(vectors, ids)
    return whole


@pytest.mark.parametrize("config", [FAST, IVF], ids=["fast", "ivf"])
def test_file_equals_that_of_faiss_and_older_files_open(rng, tmp_path, config):
    ids, vectors = np.arange(1500) * 3 + 2**40, rounded_to_half(clustered(rng, 1500))
    ours, by_faiss, former = (tmp_path / name for name in ("ours", "faiss", "former"))
    index = build(ids, vectors, config)
    index.save(ours)
    for path, map_of_ids in ((by_faiss, faiss.IndexIDMap), (former, faiss.IndexIDMap2)):
        faiss.write_index(as_faiss_writes_it(ours, ids, vectors, map_of_ids), str(path))
        back = VectorIndex.open(path, config.kind, 0)
        for a, b in zip(back.search(vectors[:40], 9), index.search(vectors[:40], 9), strict=True):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(back.ids(), ids)
        back.save(tmp_path / "again")
        assert (tmp_path / "again").read_bytes() == ours.read_bytes()
    assert by_faiss.read_bytes() == ours.read_bytes() != former.read_bytes()


@pytest.mark.parametrize("config", [FAST, IVF], ids=["fast", "ivf"])
@pytest.mark.parametrize("dim", [32, 7, 6])
def test_codes_equal_those_of_faiss_add(rng, tmp_path, config, dim):
    sizes = BlockSizes(group=101, append=333)  # later groups continue blocks of 32
    ids, vectors = np.arange(1777), rounded_to_half(clustered(rng, 1777, dim))
    build(ids, vectors, config, block=50, sizes=sizes).save(tmp_path / "ours")
    whole = as_faiss_writes_it(tmp_path / "ours", ids, vectors, faiss.IndexIDMap)
    faiss.write_index(whole, str(tmp_path / "faiss"))
    assert (tmp_path / "faiss").read_bytes() == (tmp_path / "ours").read_bytes()


@pytest.mark.parametrize("config", [EXACT, FAST, IVF], ids=["exact", "fast", "ivf"])
@pytest.mark.parametrize("block", [1, 97, 5000])
def test_index_built_in_a_file_equals_one_built_in_memory(rng, tmp_path, config, block):
    sizes = BlockSizes(group=300, sort=400)  # four ranges of cells
    ids, vectors = np.arange(1501) * 3, clustered(rng, 1501)
    memory = build(ids, vectors, config)
    memory.save(tmp_path / "memory")
    filed = build(ids, vectors, config, block, path=tmp_path / "filed", sizes=sizes)
    assert (tmp_path / "filed").read_bytes() == (tmp_path / "memory").read_bytes()
    for a, b in zip(filed.search(vectors[:40], 9), memory.search(vectors[:40], 9), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("number", [0, 1500])
def test_empty_cells_are_written_to_a_file(rng, tmp_path, number):
    trained = build(np.arange(3000), clustered(rng, 3000), IVF)
    ids, same = np.arange(number), np.repeat(clustered(rng, 1), number, 0)  # all in one cell
    blocks, config = lambda: [(ids, same)] if number else [], IndexConfig(kind="ivf")
    memory = VectorIndex.build(blocks, 32, config, count=number, trained=trained)
    memory.save(tmp_path / "memory")
    options = {"count": number, "trained": trained, "path": tmp_path / "filed", "sizes": BlockSizes(sort=100)}
    filed = VectorIndex.build(blocks, 32, config, **options)
    assert (tmp_path / "filed").read_bytes() == (tmp_path / "memory").read_bytes()
    np.testing.assert_array_equal(filed.search(same[:3], 2)[1], memory.search(same[:3], 2)[1])


@pytest.mark.parametrize("config", [FAST, IVF], ids=["fast", "ivf"])
@pytest.mark.parametrize("announced", [1499, 1501])
def test_wrong_number_of_vectors_fails_before_the_file_is_written(rng, tmp_path, config, announced):
    vectors, calls = clustered(rng, 1500), []
    with pytest.raises(AssertionError, match="1500 vectors came"):
        VectorIndex.build(
            lambda: [(np.arange(1500), vectors)],
            vectors.shape[1],
            config,
            count=announced,
            path=tmp_path / "v.faiss",
            on_encoded=lambda: calls.append(1),
        )
    assert not calls


@pytest.mark.parametrize("config", [FAST, IVF], ids=["fast", "ivf"])
def test_codes_trained_with_a_sample_serve_all_vectors(rng, config):
    ids, vectors = np.arange(3000), clustered(rng, 3000)
    some = (lambda: [(ids[:1500:2], vectors[:1500:2])], 750)
    index = build(ids, vectors, config, sample=some)
    assert len(index) == 3000 and (index.search(vectors, 1)[1][:, 0] == ids).all()


def test_files_of_other_formats_are_refused(rng, tmp_path):
    path = tmp_path / "v.faiss"
    with pytest.raises(IndexFormatError):
        VectorIndex.open(path, "exact", 8)
    build(np.arange(30), vectors_of(rng, 30)).save(path)
    whole = path.read_bytes()
    for length in (0, 3, 40, len(whole) - 100):
        path.write_bytes(whole[:length])
        with pytest.raises(IndexFormatError, match="build the index again"):
            VectorIndex.open(path, "exact", 8)
    build(np.arange(900), vectors_of(rng, 900), FAST).save(path)
    whole = path.read_bytes()
    for length in (36, 42, 2000, len(whole) // 2, len(whole) - 7000, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(IndexFormatError, match="build the index again"):
            VectorIndex.open(path, "fast", 8)
    faiss.write_index(faiss.IndexFlatL2(4), str(path))
    with pytest.raises(IndexFormatError, match="inner product"):
        VectorIndex.open(path, "exact", 8)


# ---------------------------------------------------------------- fast and IVF


@pytest.fixture(scope="module")
def look_alikes():
    rng = np.random.default_rng(11)
    vectors = clustered(rng, 12_000)
    return np.arange(len(vectors)) * 2, vectors, clustered(np.random.default_rng(5), 200)


@pytest.mark.parametrize(("config", "least"), [(FAST, 0.96), (IVF, 0.9)], ids=["fast", "ivf"])
def test_recall_against_exact_on_the_same_vectors(look_alikes, config, least):
    ids, vectors, queries = look_alikes
    index, exact = build(ids, vectors, config), build(ids, vectors)
    assert (
        index.kind == config.kind and index.rerank_k < len(vectors) / 10
    )  # or there would be nothing to test
    got, truth = index.search(queries, 20)[1], exact.search(queries, 20)[1]
    shares = [len(set(g) & set(t)) / 20 for g, t in zip(got, truth, strict=True)]
    first = (got[:, 0] == truth[:, 0]).mean()
    assert np.mean(shares) >= least and first >= least + 0.01
    exact_ids = exact_search(lambda: [(ids, vectors)], queries, 20)
    recall = measure_recall(index, queries, exact_ids, "other vectors")
    assert (recall.recall_at_1, recall.queries, recall.source) == (first, 200, "other vectors")
    assert recall.recall_at_20 == pytest.approx(np.mean(shares), abs=0.002)
    assert f"{recall.recall_at_1:.1%}" in str(recall)


def test_recall_reads_the_names_of_0_1_0():
    recall = Recall.from_mapping({"of_1": 0.9, "of_20": 0.8, "queries": 5, "how": "windows"})
    assert recall == Recall(0.9, 0.8, 5, "windows") == Recall.from_mapping(recall.to_dict())


def test_reading_all_cells_finds_what_codes_without_cells_find(look_alikes):
    ids, vectors, queries = look_alikes
    fast, ivf = (build(ids, vectors, IndexConfig(kind=k, nprobe=4096)) for k in ("fast", "ivf"))
    quarter = build(ids, vectors, IVF)
    assert ivf.nprobe == ivf_cells(len(ids)) == 4 * quarter.nprobe and fast.nprobe == 0
    same = fast.search(queries, 20)[1] == ivf.search(queries, 20)[1]
    assert same.mean() > 0.98  # codes are learned from other samples


def test_share_scales_cells_and_reranked_candidates(look_alikes):
    ids, vectors, queries = look_alikes
    whole, part = (IndexConfig(kind="ivf", nprobe=p, rerank_k=a) for p, a in ((64, 800), (16, 200)))
    found, expected = (
        build(ids, vectors, whole).search(queries, 9, 0.25),
        build(ids, vectors, part).search(queries, 9),
    )
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    fast = build(ids, vectors, FAST)
    np.testing.assert_array_equal(fast.search(queries, 9, 0.25)[1], fast.search(queries, 9)[1])


@pytest.mark.parametrize("config", [FAST, IVF], ids=["fast", "ivf"])
def test_reranking_all_candidates_is_exact(look_alikes, config):
    ids, vectors, queries = look_alikes
    every = IndexConfig(kind=config.kind, nprobe=4096, rerank_k=len(ids))
    (s, i), (t, j) = build(ids, vectors, every).search(queries, 9), build(ids, vectors).search(queries, 9)
    np.testing.assert_allclose(s, t, atol=1e-3)
    assert (i == j).mean() > 0.98  # half precision swaps near ties


@pytest.mark.parametrize("config", [FAST, IVF], ids=["fast", "ivf"])
def test_results_are_repeatable_in_any_blocks(rng, config):
    vectors = clustered(rng, 1500)
    one = build(np.arange(1500), vectors, config)
    other = build(np.arange(1500), vectors, config, block=123)
    for a, b in zip(one.search(vectors[:50], 10), other.search(vectors[:50], 10), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("config", [FAST, IVF], ids=["fast", "ivf"])
def test_trained_codes_serve_other_vectors(rng, config):
    ids, vectors = np.arange(1500), clustered(rng, 1500)
    whole = build(ids, vectors, config)
    again = build(ids[::2], vectors[::2], config, trained=build(ids, vectors, config))
    assert (again.kind, len(again), len(whole)) == (config.kind, 750, 1500)
    assert (again.search(vectors[::2], 1)[1][:, 0] == ids[::2]).all()
    half = vectors.astype(np.float16).astype(np.float32)  # what it gives back, put in again
    once, twice = (build(ids, v, config, trained=whole) for v in (vectors, half))
    same = once.search(vectors[:50], 10)[1] == twice.search(vectors[:50], 10)[1]
    assert same.mean() > 0.98


@pytest.mark.parametrize("dim", [5, 16])
@pytest.mark.parametrize("count", [1, 100, 623, 624, 1500])
@pytest.mark.parametrize("config", [FAST, IVF], ids=["fast", "ivf"])
def test_few_vectors_are_searched_without_warnings(rng, capfd, config, count, dim):
    vectors = vectors_of(rng, count, dim)
    index = build(np.arange(count), vectors, config)
    assert index.kind == ("exact" if count < 624 else config.kind)
    assert (index.search(vectors, min(3, count))[1][:, 0] == np.arange(count)).mean() > 0.99
    assert capfd.readouterr().err == ""  # FAISS warns there of too few vectors to learn from


@pytest.mark.parametrize("config", [FAST, IVF], ids=["fast", "ivf"])
def test_zero_query_gets_the_smallest_ids_from_codes(rng, config):
    similarity, found = build(np.arange(700) + 9, vectors_of(rng, 700), config).search(
        np.zeros((2, 16), np.float32), 5
    )
    assert found.tolist() == [[9, 10, 11, 12, 13]] * 2 and (similarity == 0).all()


@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 25))
def test_exact_search_in_blocks_is_exhaustive(seed, n, k):
    rng = np.random.default_rng(seed)
    ids = np.sort(rng.choice(2**40, n, replace=False))
    vectors, queries = vectors_of(rng, n), vectors_of(rng, 7)
    parts = [(ids[i : i + 13], vectors[i : i + 13]) for i in range(0, n, 13)]
    found = exact_search(lambda: parts, queries, k)
    np.testing.assert_array_equal(found[:, :n], slow_search(ids, vectors, queries, k)[1])
    assert (found[:, n:] == -1).all()


@given(st.integers(0, 10**6), st.integers(1, 90), st.integers(1, 25), st.integers(1, 40))
def test_ties_of_exact_search_go_to_the_smaller_id_in_any_blocks(seed, n, k, block):
    rng = np.random.default_rng(seed)
    ids = np.sort(rng.choice(2**40, n, replace=False))
    vectors, queries = (rng.integers(-1, 2, (m, 3)).astype(np.float32) for m in (n, 7))  # nearly all tie
    parts = [(ids[i : i + block], vectors[i : i + block]) for i in range(0, n, block)]
    found = exact_search(lambda: parts, queries, k)
    np.testing.assert_array_equal(found[:, :n], slow_search(ids, vectors, queries, k)[1])
    assert (found[:, n:] == -1).all()


def test_number_of_cells_grows_with_the_root():
    counts = [0, 1, 38, 700, 10_000, 10**6, 2 * 10**6, 10**12]
    assert [ivf_cells(c) for c in counts] == [1, 1, 8, 32, 128, 1024, 1024, 1024]


def test_auto_depends_on_number_of_vectors_and_device():
    config = IndexConfig(exact_below=1000, fast_below=2000, exact_below_gpu=5000)
    counts = (0, 1000, 1001, 2000, 2001)
    assert [choose_kind("auto", n, config) for n in counts] == ["exact", "exact", "fast", "fast", "ivf"]
    assert [choose_kind("auto", n, config, "gpu") for n in (2001, 5001)] == ["exact", "ivf"]
    assert choose_kind("ivf", 5, config) == "exact" and choose_kind("exact", 10**9, config) == "exact"


# ---------------------------------------------------------------- devices


def test_devices():
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("auto") == ("gpu" if HAS_GPU else "cpu")
    if not HAS_GPU:
        with pytest.raises(DependencyError, match=r"patch-retrieval\[gpu\]"):
            resolve_device("gpu")


def test_missing_faiss_error_names_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(DependencyError, match=r"\[cpu\].*\[gpu\]"):
        VectorIndex.build(lambda: [], 8, EXACT)


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no GPU, or a FAISS without GPU code")
@pytest.mark.parametrize("config", [EXACT, IVF], ids=["exact", "ivf"])
def test_gpu_and_cpu_agree(rng, tmp_path, config):
    vectors = clustered(rng, 20_000)
    queries = clustered(np.random.default_rng(5), 500)
    ids = np.arange(len(vectors)) * 3 + 2**40
    cpu, gpu = build(ids, vectors, config), build(ids, vectors, config, device="gpu")
    (s, i), (t, j) = cpu.search(queries, 50), gpu.search(queries, 50)
    np.testing.assert_allclose(s, t, atol=5e-3)  # half precision
    assert np.mean([len(set(a) & set(b)) / 50 for a, b in zip(i, j, strict=True)]) > 0.97
    gpu.save(tmp_path / "v.faiss")
    back = VectorIndex.open(tmp_path / "v.faiss", gpu.kind, config.nprobe)
    np.testing.assert_array_equal(back.search(queries, 50)[1], i)


@pytest.mark.parametrize("kind", ["exact", "fast", "ivf"])
def test_restricted_view_finds_the_nearest_allowed_windows(rng, kind):
    vectors = rng.normal(size=(3000, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = np.arange(3000) * 3
    index = VectorIndex.build(lambda: [(ids, vectors)], 16, IndexConfig(kind=kind, nprobe=4))
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
