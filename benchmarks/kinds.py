"""Compare kinds of vector index with exact search: recall and cost.

    python benchmarks/kinds.py INDEX PATCHES --json FILE

INDEX is an exact index folder, PATCHES any input of `retrieve query`. Every kind is built from the same
vectors with plain FAISS and gets the same patches. The table includes kinds that do not ship. Recall is the
share of the k nearest windows of exact search that a kind finds. Time is processor time over all threads,
which other work disturbs least. The last column scales it to the reference job: 38,400 patches and 1,950,000
windows. Half of it is the wall time on two free cores.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from context import arguments, context, table, write_json
from numpy.typing import NDArray

from retrieval.models.embed import embed_patches
from retrieval.pipeline import open_index
from tfrecords.read import read_patches

WINDOWS, PATCHES = 1_950_000, 38_400
"""The reference job."""
K = 80
"""Neighbours in round 1: 64, and 16 more for ties."""
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Kind:
    """A kind of index in the comparison."""

    name: str
    """Name in the table."""
    empty: Callable[[int], Any]
    """Factory of the untrained index for a vector length."""
    training: int
    """Number of training vectors."""
    reranked: int = 0
    """Candidates re-ranked by half-precision vectors; 0 keeps the index's order."""
    probes: int = 0
    """Cells searched (nprobe)."""
    queries: int = 1000
    """Maximum number of patches: slow kinds get fewer."""
    bytes: float = 0
    """Scanned bytes per window and dimension."""


# --- the kinds ------------------------------------------------------------------------------------


def flat(dim: int) -> Any:
    return faiss.IndexFlatIP(dim)


def scalar(kind: int) -> Callable[[int], Any]:
    return lambda dim: faiss.IndexScalarQuantizer(dim, kind, faiss.METRIC_INNER_PRODUCT)


def ivf_half(cells: int) -> Callable[[int], Any]:
    def empty(dim: int) -> Any:
        half, metric = faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
        return _cells(
            faiss.IndexIVFScalarQuantizer(faiss.IndexFlatIP(dim), dim, cells, half, metric, False), cells
        )

    return empty


def turned(of: Callable[[int], Any]) -> Callable[[int], Any]:
    """Add a random rotation, which spreads information evenly over sub-quantizers."""

    def empty(dim: int) -> Any:
        rotation = faiss.RandomRotationMatrix(dim, dim)
        rotation.init(1)
        return faiss.IndexPreTransform(rotation, of(dim))

    return empty


def fast(numbers: int) -> Callable[[int], Any]:
    """Return product quantization in 4 bits, scanned in registers."""
    return lambda dim: faiss.IndexPQFastScan(dim, dim // numbers, 4, faiss.METRIC_INNER_PRODUCT)


def fast_cells(numbers: int, cells: int) -> Callable[[int], Any]:
    def empty(dim: int) -> Any:
        coarse, metric = faiss.IndexFlatIP(dim), faiss.METRIC_INNER_PRODUCT
        index = faiss.IndexIVFPQFastScan(coarse, dim, cells, dim // numbers, 4, metric)
        index.by_residual = False
        return _cells(index, cells)

    return empty


def rabit(dim: int) -> Any:
    return faiss.IndexRaBitQFastScan(dim, faiss.METRIC_INNER_PRODUCT)


def _cells(index: Any, cells: int) -> Any:
    index.cp.seed, index.cp.spherical, index.cp.niter = 1234, True, 10
    index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, 64
    return index


def kinds(few: int) -> list[Kind]:
    """Return all kinds; slow ones get `few` patches."""
    sample = 16_384
    half, byte = faiss.ScalarQuantizer.QT_fp16, faiss.ScalarQuantizer.QT_8bit
    return [
        Kind("exact, float32", flat, 0, bytes=4),
        Kind("exact, half precision", scalar(half), 0, queries=few, bytes=2),
        Kind("8 bits", scalar(byte), sample, queries=few, bytes=1),
        *(
            Kind(f"IVF half, {p} of 2048 cells", ivf_half(2048), 48 * 2048, probes=p, bytes=2)
            for p in (128, 512)
        ),
        Kind("1 bit (RaBitQ), 800 re-ranked", rabit, sample, 800, bytes=1 / 8),
        Kind("fast, 1 bit, 400 re-ranked", turned(fast(4)), sample, 400, bytes=1 / 8),
        Kind("fast, 1 bit, 800 re-ranked", turned(fast(4)), sample, 800, bytes=1 / 8),
        Kind("fast, 2 bits, not rotated, 400 re-ranked", fast(2), sample, 400, bytes=1 / 4),
        Kind("fast, 2 bits, 400 re-ranked", turned(fast(2)), sample, 400, bytes=1 / 4),
        Kind("fast, 2 bits, 800 re-ranked", turned(fast(2)), sample, 800, bytes=1 / 4),
        *(
            Kind(
                f"cells of fast, 2 bits, {p} of {c}, 400 re-ranked",
                turned(fast_cells(2, c)),
                64 * c,
                400,
                p,
                bytes=1 / 4,
            )
            for c, p in ((256, 64), (512, 128), (1024, 128), (1024, 256), (1024, 512))
        ),
    ]


# --- measuring ------------------------------------------------------------------------------------


def clocked(step: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return the result of a step, its wall time and its processor time, in seconds."""
    wall, processor = time.perf_counter(), sum(os.times()[:2])
    result = step()
    return result, time.perf_counter() - wall, sum(os.times()[:2]) - processor


def recall(found: NDArray[np.int64], truth: NDArray[np.int64], k: int) -> float:
    """Return the share of the first k of the truth among the first k results."""
    return float(np.mean([np.isin(t[:k], f[:k]).mean() for f, t in zip(found, truth, strict=True)]))


class Bench:
    """Vectors, patches and truth; measures one kind after the other."""

    def __init__(self, vectors: Vectors, asked: Vectors) -> None:
        self.vectors, self.asked = vectors, asked
        self.truth = np.zeros((0, K), np.int64)
        self._built: dict[str, tuple[Any, float, float]] = {}
        self._half = faiss.IndexScalarQuantizer(
            vectors.shape[1], faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
        )
        self._half.add(vectors)

    def measure(self, kind: Kind, turns: int) -> dict[str, Any]:
        """Build a kind, or reuse it with another number of probes; search; print."""
        index, *build = self._index(kind)
        asked, params = self.asked[: kind.queries], None
        if kind.probes:
            params = faiss.SearchParametersIVF(nprobe=kind.probes)
        if kind.probes and isinstance(index, faiss.IndexPreTransform):
            params = faiss.SearchParametersPreTransform(index_params=params)
        if kind.reranked:
            index = faiss.IndexRefine(index, self._half)
            params = faiss.IndexRefineSearchParameters(k_factor=kind.reranked / K, base_index_params=params)
        runs = [clocked(lambda: index.search(asked, K, params=params)) for _ in range(turns)]
        found = runs[0][0][1]
        if not len(self.truth):
            self.truth = found
        scale = PATCHES * WINDOWS / len(asked) / len(self.vectors)
        took = float(np.median([r[2] for r in runs]))
        return {
            "kind": kind.name,
            "build_wall_s": build[0],
            "build_cpu_s": build[1],
            "queries": len(asked),
            "search_wall_s": [r[1] for r in runs],
            "search_cpu_s": [r[2] for r in runs],
            "scanned_bytes": kind.bytes * self.vectors.shape[1],
            "reference_cpu_s": took * scale,
            **{f"recall_{k}": recall(found, self.truth[: len(asked)], k) for k in (1, 20, 64)},
        }

    def _index(self, kind: Kind) -> tuple[Any, float, float]:
        name = kind.name.split(", 400")[0].split(", 800")[0] if not kind.probes else ""
        name = name or f"{kind.bytes} {kind.training} of cells"
        if name not in self._built:
            self._built.clear()
            index = kind.empty(self.vectors.shape[1])

            def build() -> None:
                _train(index, self.vectors, kind.training)
                index.add(self.vectors)

            _, wall, processor = clocked(build)
            self._built[name] = index, wall, processor
        return self._built[name]


def _train(index: Any, vectors: Vectors, count: int) -> None:
    """Train on a seeded sample; product quantizers on one thread, which is faster."""
    if not count:
        return
    rows = np.sort(np.random.default_rng(0).choice(len(vectors), min(count, len(vectors)), replace=False))
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads if count > 10**5 else 1)
    index.train(vectors[rows])
    faiss.omp_set_num_threads(threads)


def grown(vectors: Vectors, count: int) -> Vectors:
    """Return the requested number of vectors, adding copies with the noise of a window a few pixels away."""
    more = count - len(vectors)
    if more <= 0:
        return vectors
    rng = np.random.default_rng(1)
    near = vectors[rng.integers(0, len(vectors), more)]
    near = near + rng.normal(scale=0.35 / vectors.shape[1] ** 0.5, size=near.shape).astype(np.float32)
    return np.concatenate([vectors, near / np.linalg.norm(near, axis=1, keepdims=True)])


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("index", type=Path)
    parser.add_argument("patches", type=Path)
    parser.add_argument(
        "--windows",
        type=int,
        default=0,
        help="enlarge the index by noisy copies up to this number of windows",
    )
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--few", type=int, default=50, help="patches for slow kinds")
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    store = open_index(args.index, device="cpu").folder
    asked = embed_patches(store.encoder, read_patches(args.patches).scaled(slice(0, args.queries)))
    real = len(store.vectors)
    bench = Bench(grown(store.vectors.vectors()[1], args.windows), asked)
    figures = []
    for kind in kinds(args.few):
        figures.append(bench.measure(kind, args.turns if kind.queries > args.few else 1))
        print(figures[-1]["kind"], flush=True)
    head = ("kind", "build, CPU s", "search 1000, CPU s", "of 1", "of 20", "of 64", "reference job, CPU s")
    rows = [
        (
            f["kind"],
            f"{f['build_cpu_s']:.1f}",
            f"{1000 * float(np.median(f['search_cpu_s'])) / f['queries']:.2f}",
            *(f"{f[f'recall_{k}']:.4f}" for k in (1, 20, 64)),
            f"{f['reference_cpu_s']:.0f}",
        )
        for f in figures
    ]
    print(table(head, rows))
    shapes = {"vectors": list(bench.vectors.shape), "of_them_embedded": real, "patches": len(asked)}
    write_json(args.json, {"context": context(**shapes), "kinds": figures})


if __name__ == "__main__":
    main()
