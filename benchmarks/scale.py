"""Measure an index of 600, 6,000 and 60,000 images: build, memory, search time and recall.

    python benchmarks/scale.py --images 600 6000 60000 --json FILE
    python benchmarks/scale.py --index INDEX INDEX --images 600 --kinds fast ivf
    python benchmarks/scale.py --index INDEX --images 6000 60000 --most 6000 --hollow    # memory at 60,000
    python benchmarks/scale.py --index INDEX --images 600 60000 --most 600 --stream      # recall at 60,000

An image has 3,249 windows at stride 8. The vectors are embeddings of generated scenes or of the named index
folders. If they are too few, copies are added with the noise of a window a few pixels away. Patches are
copies with the larger noise of another year. Every kind is built, opened and searched in a separate process.

Sizes that do not fit the machine, or exceed `--most`, are extrapolated in proportion to the windows and
marked. `--hollow` builds them anyway, with all codes and a hole in the file instead of full vectors. It
measures memory and time, without reading and writing vectors, and has no answers. `--stream` measures recall
by making, coding and searching two million windows after another.

Recall that is not measured is estimated from a tenth of the size. Among windows of the same ground, the 20
nearest correspond to the 2 nearest of a tenth, and the 400 re-ranked candidates to 40.

Embeddings and answers of exact search stay in the working folder and are reused.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from context import Stage, arguments, context, stage, table, write_json
from enlarged import FAR, LEARNED, NEAR, Made, embed, taken
from hollow import hollow
from numpy.typing import NDArray
from streamed import PART, streamed
from watching import anonymous_mb, cpu, watched

WINDOWS = 3249
"""Windows of an image of 512 x 512 at stride 8."""
FEW = 10
"""Patches for a hollow index, which only measure the cost of a search."""
TURNS = 3
"""Repetitions of every search."""


# --- the steps, each in a process of its own ------------------------------------------------------


def build(made: Made, kind: str, path: str) -> dict[str, Any]:
    """Build an index file, with codes learned from the first million; return processor seconds."""
    from retrieval.config import IndexConfig
    from retrieval.index.faiss_index import VectorIndex

    start, dim = cpu(), made.dim
    few = Made(made.base, min(made.count, LEARNED))
    config = IndexConfig(kind=kind)  # type: ignore[arg-type]
    with watched() as peak:
        VectorIndex.build(
            made.blocks, dim, config, path=Path(path), count=made.count, sample=(few.blocks, few.count)
        )
    return {"cpu_s": cpu() - start, "own_peak_mb": peak[0], "bytes": Path(path).stat().st_size}


def truth(made: Made, queries: int, path: str) -> None:
    """Return the answers of exact search, with one block in memory at a time."""
    from retrieval.index.recall import exact_search

    np.save(path, exact_search(made.blocks, made.queries(queries), 20))


def ask(made: Made, kind: str, path: str, queries: int, right: str) -> dict[str, Any]:
    """Open an index and search it; memory excludes mapped files.

    `right` is the file with the answers of exact search, or empty for a hollow index.
    """
    from retrieval.config import IndexConfig
    from retrieval.index.faiss_index import VectorIndex

    asked = made.queries(queries)
    VectorIndex.build(lambda: [(np.arange(9), asked[:9])], asked.shape[1], IndexConfig()).search(asked, 1)
    before = anonymous_mb()  # libraries and threads are there by now
    runs = []
    with watched() as peak:
        index = VectorIndex.open(Path(path), kind, 0)  # type: ignore[arg-type]
        index.search(asked[:1], 1)
        used = anonymous_mb() - before
        for _ in range(TURNS):
            wall, processor = time.perf_counter(), cpu()
            _, found = index.search(asked, 20)
            runs.append((time.perf_counter() - wall, cpu() - processor))
    figures = {"own_mb": used, "own_peak_mb": peak[0]}
    figures |= {"wall_s": [r[0] for r in runs], "cpu_s": [r[1] for r in runs]}
    if right:
        expected = np.load(right, allow_pickle=False)
        figures |= {"recall_1": shared(expected[:, :1], found[:, :1]), "recall_20": shared(expected, found)}
        index.rerank_k //= 10
        figures["recall_20_of_tenfold"] = shared(expected[:, :2], index.search(asked, 2)[1])
    return figures


def stream(made: Made, kinds: list[str], queries: int) -> dict[str, dict[str, float]]:
    """Return the recall of each kind for sizes that are not built."""
    start, found = cpu(), streamed(made, kinds, queries)
    right, spent = found["exact"], cpu() - start
    return {
        kind: {
            "recall_1": shared(right[:, :1], found[kind][:, :1]),
            "recall_20": shared(right, found[kind]),
            "streamed_windows": PART,
            "stream_cpu_s": spent,
        }
        for kind in kinds
    }


def shared(expected: NDArray[np.int64], found: NDArray[np.int64]) -> float:
    """Return the share of the expected windows that was found."""
    return float(np.mean([np.isin(t, f).mean() for t, f in zip(expected, found, strict=True)]))


# --- sizes ----------------------------------------------------------------------------------------

FULL = {"exact": 4.0, "fast": 2.0, "ivf": 2.1}
"""Bytes on disk per number of a vector; codes of cells pass through a file."""
HELD = {"exact": 4.5, "fast": 0.3, "ivf": 0.3}
"""Maximum bytes in memory per number, built or open; an exact index doubles its room when full."""


def room(kind: str, count: int, dim: int, folder: Path) -> str:
    """Return the resource that a size lacks; empty if it fits."""
    held, wanted = HELD[kind] * dim * count, (FULL[kind] + 0.3) * dim * count
    memory, free = _available(), shutil.disk_usage(folder).free
    if held > memory:
        return f"the build takes {held / 1e9:.0f} GB of memory, {memory / 1e9:.0f} GB are free"
    if wanted > free:
        return f"it takes {wanted / 1e9:.0f} GB of disk, {free / 1e9:.0f} GB are free"
    return ""


def _available() -> float:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1e3 for line in lines if line.startswith("MemAvailable"))


def measure(made: Made, kind: str, files: tuple[str, str], queries: int) -> dict[str, Any]:
    """Measure one kind at one size, given the files of the index and of the exact answers."""
    path, right = files
    one = stage("build", build, made, kind, path, imports=("faiss",))
    two = stage("ask", ask, made, kind, path, queries, right, imports=("faiss",))
    figures = {
        "kind": kind,
        "windows": made.count,
        "measured": True,
        "build_s": one.seconds,
        "build_cpu_s": one.result["cpu_s"],
        "build_peak_mb": one.peak_mb,
        "build_own_peak_mb": one.result["own_peak_mb"],
        "file_bytes_a_window": one.result["bytes"] / made.count,
    }
    return figures | asking(two, made.count, queries)


def asking(asked: Stage, count: int, queries: int) -> dict[str, Any]:
    """Return the cost of opening and searching."""
    found = asked.result
    return {
        "ask_peak_mb": asked.peak_mb,
        "ask_own_peak_mb": found["own_peak_mb"],
        "memory_bytes_a_window": found["own_mb"] * 1e6 / count,
        "query_cpu_ms": 1e3 * float(np.median(found["cpu_s"])) / queries,
        "query_wall_ms": 1e3 * float(np.median(found["wall_s"])) / queries,
        **{k: v for k, v in found.items() if k.startswith("recall") or k in ("cpu_s", "wall_s")},
    }


def extrapolated(largest: dict[str, Any], count: int, why: str) -> dict[str, Any]:
    """Extrapolate the cost of a size in proportion to the windows, without recall."""
    times = count / largest["windows"]
    grown = {k: largest[k] * times for k in ("build_s", "build_cpu_s", "query_cpu_ms", "query_wall_ms")}
    kept = {k: largest[k] for k in ("kind", "file_bytes_a_window", "memory_bytes_a_window")}
    return {**kept, **grown, "windows": count, "measured": False, "why": why, "from": largest["windows"]}


def hollowed(made: Made, kind: str, path: str, queries: int) -> dict[str, Any]:
    """Measure memory and time of a size whose full vectors do not fit on disk."""
    one = stage("hollow", hollow, made, kind, path, imports=("faiss",))
    few = min(queries, FEW)
    two = stage("ask", ask, made, kind, path, few, "", imports=("faiss",))
    Path(path).unlink()
    built = {f"build_{k}": v for k, v in one.result.items() if k != "bytes"}
    built |= {"build_peak_mb": one.peak_mb, "file_bytes_a_window": one.result["bytes"] / made.count}
    return asking(two, made.count, few) | built | {"hollow": few}


class Run:
    """Measure all sizes and kinds, the smallest size first."""

    def __init__(self, args: Any, base: Path, folder: Path) -> None:
        self._args, self._base, self._folder = args, base, folder
        self._dim = np.load(base, mmap_mode="r", allow_pickle=False).shape[1]
        self._streams: dict[int, dict[str, dict[str, float]]] = {}
        self.figures: list[dict[str, Any]] = []

    def all(self) -> list[dict[str, Any]]:
        """Measure, and store the results after each."""
        for kind in self._args.kinds:
            for images in sorted(self._args.images):
                self._one(images, kind)
                if self._args.json:
                    write_json(self._args.json.with_suffix(".partial.json"), {"sizes": self.figures})
        return sorted(self.figures, key=lambda f: f["images"])

    def _one(self, images: int, kind: str) -> None:
        """Measure one size of one kind, or extrapolate it from a smaller one."""
        args, made = self._args, Made(str(self._base), images * WINDOWS)
        path = self._folder / f"{kind}.faiss"
        why = room(kind, made.count, self._dim, self._folder)
        if images > args.most:
            why = f"--most {args.most}"
        largest = [f for f in self.figures if f["kind"] == kind and f["measured"]]
        print(f"{images} images, {kind}{': ' + why if why else ''}", flush=True)
        if not why:
            path.unlink(missing_ok=True)
            right = self._truth(made)
            self.figures.append(measure(made, kind, (str(path), right), args.queries) | {"images": images})
        elif largest:
            found = extrapolated(largest[-1], made.count, why) | {"images": images}
            if args.hollow and kind != "exact":
                found |= hollowed(made, kind, str(self._folder / "hollow.faiss"), args.queries)
            if args.stream and kind != "exact":
                found |= self._streamed(made)[kind]
            elif "recall_20_of_tenfold" in largest[-1] and images == 10 * largest[-1]["images"]:
                found["recall_20_estimated"] = largest[-1]["recall_20_of_tenfold"]
            self.figures.append(found)

    def _streamed(self, made: Made) -> dict[str, dict[str, float]]:
        """Measure the recall of a size that is not built, for all kinds."""
        if made.count not in self._streams:
            kinds = [kind for kind in self._args.kinds if kind != "exact"]
            one = stage("stream", stream, made, kinds, self._args.queries, imports=("faiss",))
            self._streams[made.count] = one.result
        return self._streams[made.count]

    def _truth(self, made: Made) -> str:
        """Return the file with the answers of exact search."""
        name = f"{self._base.stem}-truth-{made.count}-{self._args.queries}.npy"
        path = self._args.work / name
        if not path.exists():
            stage("truth", truth, made, self._args.queries, str(path))
        return str(path)


def row(f: dict[str, Any]) -> tuple[str, ...]:
    """Return a row of the table; extrapolated figures have a ~."""
    built = asked = "" if f["measured"] or "hollow" in f else "~"
    recalls = [f"{f[k]:.3f}" if k in f else "" for k in ("recall_1", "recall_20")]
    if "recall_20_estimated" in f:
        recalls[1] = f"~{f['recall_20_estimated']:.3f}"
    peak = f"{f['ask_own_peak_mb'] / 1e3:.2f} GB" if "ask_own_peak_mb" in f else ""
    return (
        f"{f['images']:,} {f['kind']}",
        f"{f['windows'] / 1e6:.2f} M",
        f"{built}{f['build_cpu_s']:,.0f} s",
        f"{asked}{f['memory_bytes_a_window']:.0f} B",
        peak,
        f"{built}{f['file_bytes_a_window'] * f['windows'] / 1e9:.1f} GB",
        f"{asked}{f['query_cpu_ms']:.2f} ms",
        *recalls,
    )


def base_of(args: Any) -> tuple[Path, str]:
    """Return the file of embeddings, made if missing, and their encoder."""
    named = "\n".join(sorted(str(i.resolve()) for i in args.index or ())) or f"{args.scenes} scenes"
    base = args.work / f"base-{hashlib.sha256(named.encode()).hexdigest()[:8]}.npy"
    about = base.with_suffix(".json")
    if not about.exists():
        made = (
            stage("take", taken, str(base), [str(i) for i in args.index])
            if args.index
            else stage("embed", embed, str(base), args.scenes)
        )
        write_json(about, made.result)
    return base, json.loads(about.read_text())["encoder"]


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[600, 6000, 60000])
    parser.add_argument("--most", type=int, default=10**9, help="extrapolate beyond this number of images")
    parser.add_argument("--kinds", nargs="+", default=["exact", "fast", "ivf"], choices=list(FULL))
    parser.add_argument("--hollow", action="store_true", help="measure memory and time beyond --most")
    parser.add_argument("--stream", action="store_true", help="measure recall beyond --most")
    parser.add_argument("--index", type=Path, nargs="+", help="exact index folders whose embeddings to use")
    parser.add_argument("--scenes", type=int, default=24, help="generated scenes to embed instead")
    parser.add_argument("--queries", type=int, default=512)
    parser.add_argument(
        "--work", type=Path, default=Path("build/scale"), help="folder for the files of a run"
    )
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    base, encoder = base_of(args)
    real, dim = np.load(base, mmap_mode="r", allow_pickle=False).shape
    with tempfile.TemporaryDirectory(dir=args.work) as name:
        figures = Run(args, base, Path(name)).all()
    head = (
        "images, kind",
        "windows",
        "build, CPU",
        "memory",
        "peak",
        "disk",
        "a patch, CPU",
        "of 1",
        "of 20",
    )
    print(table(head, [row(f) for f in figures]))
    shapes = {"dim": dim, "embedded": real, "encoder": encoder, "queries": args.queries}
    write_json(
        args.json, {"context": context(**shapes), "noise": {"near": NEAR, "far": FAR}, "sizes": figures}
    )


if __name__ == "__main__":
    main()
