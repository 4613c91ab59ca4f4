"""What does an index of 600, 6,000, 60,000 images take: to build, to keep, to ask; and what does it find?

    python benchmarks/scale.py --images 600 6000 60000 --json FILE
    python benchmarks/scale.py --index INDEX --images 600 --kinds fast ivf

An image has 3,249 windows at stride 8. The vectors are embeddings of generated scenes, or of an index folder
that is named; where they are too few they are enlarged by jitter: others with noise, as like them as a
window a few pixels off. The patches that are asked are such too, each with more noise, so that it is as far
from its window as a patch of another year is. Every kind is built, saved, opened and asked in a process of
its own. What the machine has no room for is not run but extrapolated from the largest size that was, in
proportion to the windows, and says so.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from context import arguments, context, stage, table, write_json
from numpy.typing import NDArray

WINDOWS = 3249
"""Windows of an image of 512 x 512 at stride 8."""
BLOCK = 100_000
"""Vectors made at a time."""
NEAR, FAR = 0.35, 0.9
"""Noise, as a share of a vector's length, of a window a few pixels off and of a patch of another year; the
cosine between the two is then 0.94 and 0.74, as measured on real imagery."""


@dataclass(frozen=True)
class Made:
    """Vectors that are the same each time they are made, without being kept."""

    base: str
    """File of embeddings, (m, dim) float32."""
    count: int
    """How many vectors there shall be."""

    def blocks(self) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Ids and vectors: the embeddings first, then jitter of them."""
        known = np.load(self.base, mmap_mode="r", allow_pickle=False)
        for start in range(0, self.count, BLOCK):
            stop = min(start + BLOCK, self.count)
            real = np.asarray(known[start : min(stop, len(known))])
            rng = np.random.default_rng(start)
            more = np.asarray(known[np.sort(rng.integers(0, len(known), stop - start - len(real)))])
            vectors = np.concatenate([real, noisy(more, NEAR, rng)])
            yield np.arange(start, stop, dtype=np.int64), vectors

    def queries(self, count: int) -> NDArray[np.float32]:
        """Patches of another year, of windows anywhere."""
        rng = np.random.default_rng(99)
        picked = rng.integers(0, self.count, count)
        parts = [v[np.isin(ids, picked)] for ids, v in self.blocks()]
        return noisy(np.concatenate(parts), FAR, rng)


def noisy(vectors: NDArray[np.float32], share: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Vectors with noise of a share of their length, of unit length again."""
    noise = rng.normal(scale=share / vectors.shape[1] ** 0.5, size=vectors.shape)
    moved = (vectors + noise).astype(np.float32)
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


# --- the steps, each in a process of its own ------------------------------------------------------


def embed(out: str, scenes: int) -> dict[str, Any]:
    """Embed generated scenes."""
    from retrieval.config import IndexConfig
    from retrieval.embed import embed_image
    from retrieval.encoder import load_encoder
    from tfrecords.schema import to_scaled
    from tfrecords.synthetic import Scene

    encoder, parts = load_encoder(), []
    for seed in range(scenes):
        pixels = Scene(seed, 512, 512).render(100 + 10 * (seed % 20))
        parts.append(embed_image(encoder, to_scaled(pixels, "dn", 0.0), IndexConfig()).vectors)
    np.save(out, np.concatenate(parts))
    return {"encoder": encoder.name}


def taken(out: str, index: str) -> dict[str, Any]:
    """The embeddings of an index folder of the exact kind."""
    from retrieval.pipeline import open_index

    store = open_index(index, device="cpu").store
    np.save(out, store.vectors.vectors()[1])
    return {"encoder": store.encoder.name}


def build(made: Made, kind: str, path: str) -> dict[str, Any]:
    """Build and save an index; seconds of the processor."""
    from retrieval.config import IndexConfig
    from retrieval.index import VectorIndex

    start, dim = _cpu(), np.load(made.base, mmap_mode="r", allow_pickle=False).shape[1]
    index = VectorIndex.build(made.blocks, dim, IndexConfig(kind=kind), count=made.count)  # type: ignore[arg-type]
    index.save(Path(path))
    return {"cpu_s": _cpu() - start, "bytes": Path(path).stat().st_size, "dim": dim}


def truth(made: Made, queries: int, path: str) -> None:
    """Exact search's answers, a block in memory at a time."""
    from retrieval.index import exact_search

    np.save(path, exact_search(made.blocks, made.queries(queries), 20))


def ask(made: Made, kind: str, path: str, queries: int, right: str) -> dict[str, Any]:
    """Open an index and ask it; memory is what it holds itself, files that are mapped left out."""
    from retrieval.config import IndexConfig
    from retrieval.index import VectorIndex

    expected, asked = np.load(right, allow_pickle=False), made.queries(queries)
    VectorIndex.build(lambda: [(np.arange(9), asked[:9])], asked.shape[1], IndexConfig()).search(asked, 1)
    before = _own_mb()  # libraries and threads are there by now
    index = VectorIndex.open(Path(path), kind, 0)  # type: ignore[arg-type]
    index.search(asked[:1], 1)
    own = _own_mb() - before
    runs = []
    for _ in range(3):
        wall, processor = time.perf_counter(), _cpu()
        _, found = index.search(asked, 20)
        runs.append((time.perf_counter() - wall, _cpu() - processor))
    shares = [np.isin(t, f).mean() for t, f in zip(expected, found, strict=True)]
    return {
        "own_mb": own,
        "wall_s": [r[0] for r in runs],
        "cpu_s": [r[1] for r in runs],
        "recall_1": float((expected[:, 0] == found[:, 0]).mean()),
        "recall_20": float(np.mean(shares)),
    }


def _cpu() -> float:
    return sum(os.times()[:2])


def _own_mb() -> float:
    """Memory of this process that is not a mapped file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("RssAnon"))


# --- sizes ----------------------------------------------------------------------------------------

FULL = {"exact": 4.0, "fast": 2.0, "ivf": 2.0}
"""Bytes of a vector in the file, for each of its numbers; the build holds them twice while they grow."""


def room(kind: str, count: int, dim: int, folder: Path) -> str:
    """What there is too little of for a size; empty if it fits."""
    wanted = FULL[kind] * dim * count
    memory = _available()
    if 1.5 * wanted > memory:
        return f"the build takes {1.5 * wanted / 1e9:.0f} GB of memory, {memory / 1e9:.0f} GB are free"
    if wanted * 1.2 > (free := shutil.disk_usage(folder).free):
        return f"it takes {wanted / 1e9:.0f} GB of disk, {free / 1e9:.0f} GB are free"
    return ""


def _available() -> float:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1e3 for line in lines if line.startswith("MemAvailable"))


def measure(made: Made, kind: str, folder: Path, queries: int) -> dict[str, Any]:
    """One kind at one size."""
    path, right = str(folder / "vectors.faiss"), str(folder / f"truth-{made.count}.npy")
    one = stage("build", build, made, kind, path, imports=("faiss",))
    two = stage("ask", ask, made, kind, path, queries, right, imports=("faiss",))
    Path(path).unlink()
    return {
        "kind": kind,
        "windows": made.count,
        "measured": True,
        "build_s": one.seconds,
        "build_cpu_s": one.result["cpu_s"],
        "build_peak_mb": one.peak_mb,
        "file_bytes_a_window": one.result["bytes"] / made.count,
        "memory_bytes_a_window": two.result["own_mb"] * 1e6 / made.count,
        "query_cpu_ms": 1e3 * float(np.median(two.result["cpu_s"])) / queries,
        "query_wall_ms": 1e3 * float(np.median(two.result["wall_s"])) / queries,
        **{k: two.result[k] for k in ("recall_1", "recall_20", "cpu_s", "wall_s")},
    }


def extrapolated(largest: dict[str, Any], count: int, why: str) -> dict[str, Any]:
    """What a size would take that was not run, in proportion to the windows; its recall is not known."""
    times = count / largest["windows"]
    grown = {k: largest[k] * times for k in ("build_s", "build_cpu_s", "query_cpu_ms", "query_wall_ms")}
    kept = {k: largest[k] for k in ("kind", "file_bytes_a_window", "memory_bytes_a_window")}
    return {**kept, **grown, "windows": count, "measured": False, "why": why, "from": largest["windows"]}


def run(args: Any, base: str, dim: int, folder: Path) -> list[dict[str, Any]]:
    """All sizes and kinds, the smallest size first."""
    figures: list[dict[str, Any]] = []
    for images in sorted(args.images):
        made, asked = Made(base, images * WINDOWS), False
        for kind in args.kinds:
            largest = [f for f in figures if f["kind"] == kind and f["measured"]]
            why = room(kind, made.count, dim, folder)
            if made.count > args.most * WINDOWS:
                why = f"--most {args.most}"
            if why and largest:
                figures.append(extrapolated(largest[-1], made.count, why) | {"images": images})
            elif not why:
                if not asked:
                    stage("truth", truth, made, args.queries, str(folder / f"truth-{made.count}.npy"))
                    asked = True
                figures.append(measure(made, kind, folder, args.queries) | {"images": images})
            print(f"{images} images, {kind}{': ' + why if why else ''}", flush=True)
            if figures and args.json:
                write_json(args.json.with_suffix(".partial.json"), {"sizes": figures})
    return figures


def row(f: dict[str, Any]) -> tuple[str, ...]:
    """A row of the table; what was not measured has a ~."""
    about = "" if f["measured"] else "~"
    recalls = [f"{f[k]:.3f}" if k in f else "" for k in ("recall_1", "recall_20")]
    return (
        f"{f['images']:,} {f['kind']}",
        f"{f['windows'] / 1e6:.2f} M",
        f"{about}{f['build_cpu_s']:,.0f} s",
        f"{about}{f['memory_bytes_a_window']:.0f} B",
        f"{about}{f['memory_bytes_a_window'] * f['windows'] / 1e9:.2f} GB",
        f"{about}{f['file_bytes_a_window'] * f['windows'] / 1e9:.1f} GB",
        f"{about}{f['query_cpu_ms']:.2f} ms",
        *recalls,
    )


def main() -> None:
    """Measure and tell."""
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[600, 6000, 60000])
    parser.add_argument("--most", type=int, default=10**9, help="extrapolate beyond so many images")
    parser.add_argument("--kinds", nargs="+", default=["exact", "fast", "ivf"], choices=list(FULL))
    parser.add_argument("--index", type=Path, help="take its embeddings; of the exact kind")
    parser.add_argument("--scenes", type=int, default=24, help="generated ones that are embedded instead")
    parser.add_argument("--queries", type=int, default=512)
    parser.add_argument(
        "--work", type=Path, default=Path("build/scale"), help="folder for the files of a run"
    )
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.work) as name:
        base = str(Path(name) / "base.npy")
        made = (
            stage("take", taken, base, str(args.index))
            if args.index
            else stage("embed", embed, base, args.scenes)
        )
        real, dim = np.load(base, mmap_mode="r", allow_pickle=False).shape
        figures = run(args, base, dim, Path(name))
    head = (
        "images, kind",
        "windows",
        "build, CPU",
        "memory",
        "in all",
        "disk",
        "a patch, CPU",
        "of 1",
        "of 20",
    )
    print(table(head, [row(f) for f in figures]))
    shapes = {"dim": dim, "embedded": real, "encoder": made.result["encoder"], "queries": args.queries}
    write_json(
        args.json, {"context": context(**shapes), "noise": {"near": NEAR, "far": FAR}, "sizes": figures}
    )


if __name__ == "__main__":
    main()
