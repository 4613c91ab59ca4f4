"""How far is approximate search from exact, on the same vectors, and what does it save?

    python benchmarks/search.py build/challenge --json FILE

The folder is one that `benchmarks/challenge.py` left: its index, of the exact kind, and its patches. An
IVF is built from the vectors of that index. Recall is the share of the exact search's k nearest windows
that the IVF finds too.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from context import arguments, context, table, write_json
from numpy.typing import NDArray

from retrieval.config import IndexConfig
from retrieval.embed import embed_patches
from retrieval.index import VectorIndex, ivf_cells
from retrieval.pipeline import open_index
from tfrecords.read import read_patches


def timed_search(index: VectorIndex, asked: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], float]:
    """Ids, and seconds of the quicker of two calls."""
    took = []
    for _ in range(2):
        start = time.perf_counter()
        _, ids = index.search(asked, k)
        took.append(time.perf_counter() - start)
    return ids, min(took)


def recall(found: NDArray[np.int64], truth: NDArray[np.int64], k: int) -> float:
    """Share of the first k of the truth that are among the first k found."""
    shares = [len(np.intersect1d(f[:k], t[:k])) / k for f, t in zip(found, truth, strict=True)]
    return float(np.mean(shares))


def main() -> None:
    """Measure and tell."""
    parser = arguments(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--probes", type=int, nargs="+", default=[16, 64, IndexConfig.ivf_probes, 512])
    args = parser.parse_args()
    store = open_index(args.folder / "index", device="cpu").store
    patches = read_patches(args.folder / "test_patches.tfrecords")
    asked = embed_patches(store.encoder, iter([patches.scaled()]))
    ids, vectors = store.vectors.vectors()
    truth, exact_s = timed_search(store.vectors, asked, 20)
    start = time.perf_counter()
    ivf = VectorIndex.build(lambda: [(ids, vectors)], store.vectors.dim, IndexConfig(kind="ivf"))
    build_s = time.perf_counter() - start
    figures: list[dict[str, Any]] = [
        {"kind": "exact", "search_s": exact_s, "recall_1": 1.0, "recall_20": 1.0}
    ]
    with tempfile.TemporaryDirectory() as folder:
        ivf.save(Path(folder) / "ivf.faiss")
        for probes in args.probes:
            index = VectorIndex.open(Path(folder) / "ivf.faiss", "ivf", probes)
            found, took = timed_search(index, asked, 20)
            figures.append(
                {
                    "kind": f"ivf, {probes} of {ivf_cells(len(ids))} cells",
                    "search_s": took,
                    "recall_1": recall(found, truth, 1),
                    "recall_20": recall(found, truth, 20),
                }
            )
    rows = [
        (f["kind"], f"{len(asked) / f['search_s']:,.0f}", f"{f['recall_1']:.3f}", f"{f['recall_20']:.3f}")
        for f in figures
    ]
    print(table(("kind", "patches/s", "recall of 1", "recall of 20"), rows))
    print(f"{len(ids)} vectors of {vectors.shape[1]}, {len(asked)} patches; IVF built in {build_s:.1f} s")
    shapes = {"vectors": list(vectors.shape), "patches": len(asked), "build_s": build_s}
    write_json(args.json, {"context": context(**shapes), "kinds": figures})


if __name__ == "__main__":
    main()
