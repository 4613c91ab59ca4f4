"""Benchmarks of large databases and of streaming, on generated vectors."""

import sys
from pathlib import Path

import numpy as np
import pytest

from retrieval.config import IndexConfig, TrainConfig
from retrieval.index.faiss_index import VectorIndex
from retrieval.index.recall import exact_search

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import enlarged  # noqa: E402
import hollow  # noqa: E402
import stream  # noqa: E402
import streamed  # noqa: E402
import tables  # noqa: E402

# ---------------------------------------------------------------- scale


def test_enlarged_vectors_are_reproducible_and_have_the_stated_noise(rng, tmp_path):
    known = rng.normal(size=(300, 64)).astype(np.float32)
    known /= np.linalg.norm(known, axis=1, keepdims=True)
    np.save(tmp_path / "base.npy", known)
    made = enlarged.Made(str(tmp_path / "base.npy"), 70_000)
    blocks = list(made.blocks())
    ids, vectors = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    np.testing.assert_array_equal(ids, np.arange(70_000))
    np.testing.assert_array_equal(vectors[:300], known)
    some = rng.permutation(70_000)[:5000]
    np.testing.assert_array_equal(made.vectors(some), vectors[some])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    nearest = (vectors[300:3000] @ known.T).max(1)
    assert abs(nearest.mean() - 1 / np.hypot(1, enlarged.NEAR)) < 0.01
    assert len(np.unique(vectors[:, 0])) > 69_000


def test_search_by_parts_equals_search_of_the_whole_index(rng, tmp_path, monkeypatch):
    known = rng.normal(size=(3000, 16)).astype(np.float32)
    known /= np.linalg.norm(known, axis=1, keepdims=True)
    np.save(tmp_path / "base.npy", known)
    made = enlarged.Made(str(tmp_path / "base.npy"), 70_000)
    monkeypatch.setattr(streamed, "PART", 20_000)  # the last one is smaller
    found = streamed.streamed(made, ["fast", "ivf"], 12)
    asked = made.queries(12)
    np.testing.assert_array_equal(found["exact"], exact_search(made.blocks, asked, 20))
    for kind in ("fast", "ivf"):
        index = VectorIndex.build(made.blocks, 16, IndexConfig(kind=kind))
        np.testing.assert_array_equal(found[kind], index.search(asked, 20)[1])


@pytest.mark.parametrize("kind", ["fast", "ivf"])
def test_a_hollow_index_lacks_only_the_full_vectors(rng, tmp_path, kind):
    known = rng.normal(size=(3000, 16)).astype(np.float32)
    np.save(tmp_path / "base.npy", known / np.linalg.norm(known, axis=1, keepdims=True))
    made = enlarged.Made(str(tmp_path / "base.npy"), 70_000)
    whole = VectorIndex.build(made.blocks, 16, IndexConfig(kind=kind), path=tmp_path / "whole", count=70_000)
    hollow.hollow(made, kind, str(tmp_path / "hollow"))
    a, b = (np.fromfile(tmp_path / n, np.uint8) for n in ("whole", "hollow"))
    behind, full = a.size - 8 * 70_000 - 4 - 8, 70_000 * 16 * 2  # ids, their number and a factor at the end
    hole = slice(behind - full, behind)
    assert a.size == b.size and not b[hole].any() and a[hole].any()
    a[hole] = 0
    np.testing.assert_array_equal(a, b)
    assert len(VectorIndex.open(tmp_path / "hollow", kind, 0)) == len(whole)


def test_scale_tables_mark_extrapolated_figures():
    one = {"kind": "ivf", "images": 600, "windows": 1_949_400, "measured": True, "build_cpu_s": 40.0}
    one |= {"memory_bytes_a_window": 72.0, "file_bytes_a_window": 592.0, "query_cpu_ms": 0.9}
    grown = one | {"images": 6000, "windows": 19_494_000, "measured": False, "recall_20_estimated": 0.97}
    text = tables.TABLES["scale"][1]({"sizes": [one | {"recall_20": 0.978}, grown]})
    assert "| 0.978 |" in text and "~0.970" in text and "~72 B" in text and "~40 s" in text
    ground = tables.TABLES["ground"][1]({"sizes": [one, grown]}).splitlines()
    assert len(ground) == 6 and "1.9 M | 0.136 GB" in ground[2]


# ---------------------------------------------------------------- streaming


def test_waiting_for_input_is_a_share_of_the_training_time(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "WARM", 1)
    stream.write(str(tmp_path / "s"), 3, 2, 192)
    small = {"batch": 8, "learned": {"width": 4, "dim": 8}, "crops_per_series": 16, "tensor": {"dim": 12}}
    config = TrainConfig.from_mapping(small | {"shuffle": 16, "pool": 16, "compile": False, "steps": 9})
    told = stream.training(str(tmp_path / "s"), config, 4)
    assert (told["steps"], told["batch"]) == (4, 8) and 0 < told["waiting"] < 1 and told["step_s"] > 0
    done = {"series": 3, "crops": 6, **told}
    made = {n: stream.Stage(n, 2.0, 9.0, done) for n in ("bytes", "records", "crops", "training")}
    table = stream.rows(made, 10**6)
    assert table[-1][:2] == ("  waiting for input", f"{told['waiting']:.1%}") and len(table) == 6
