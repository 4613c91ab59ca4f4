"""Measure exact search over several GPUs, each with a shard of the windows.

    python benchmarks/shards.py --images 600 --queries 38400 --json FILE      # all GPUs
    python benchmarks/shards.py --images 24 --queries 500 --shards 2          # on the CPU

Vectors are random, 3,249 per image, because the time of exact search does not depend on them. The number of
shards doubles from one up to all. Together they hold all windows, in half precision on GPUs. Ids and
similarities must equal the result of one shard.
"""

from __future__ import annotations

import time
from typing import Any

import faiss
import numpy as np
from context import arguments, context, table, write_json
from numpy.typing import NDArray

WINDOWS, K, BLOCK = 3249, 80, 500_000
"""Windows per image, neighbours per query, vectors per block."""


def blocks(count: int, dim: int) -> Any:
    """Return seeded random vectors."""
    for start in range(0, count, BLOCK):
        rng = np.random.default_rng(start)
        part = rng.standard_normal((min(BLOCK, count - start), dim), np.float32)
        yield part / np.linalg.norm(part, axis=1, keepdims=True)


def sharded(parts: int, dim: int, gpus: int) -> Any:
    """Return an empty index with a number of shards and consecutive ids."""
    if parts == 1:
        return flat(0, dim, gpus)
    index = faiss.IndexShards(dim, True, True)
    for number in range(parts):
        index.add_shard(flat(number, dim, gpus))
    return index


def flat(number: int, dim: int, gpus: int) -> Any:
    """Return an exact index on one GPU, or on the CPU without GPUs."""
    if not gpus:
        return faiss.IndexFlatIP(dim)
    config = faiss.GpuIndexFlatConfig()
    config.useFloat16, config.device = True, number
    return faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), dim, config)


def fill(index: Any, parts: int, count: int, dim: int) -> None:
    """Add a run of vectors to every shard, so that ids are consecutive."""
    if parts == 1:
        for block in blocks(count, dim):
            index.add(block)
        return
    edges = np.linspace(0, count, parts + 1).astype(int)
    start = 0
    for block in blocks(count, dim):
        for number in range(parts):
            low, high = (int(np.clip(e - start, 0, len(block))) for e in edges[number : number + 2])
            if high > low:
                faiss.downcast_index(index.at(number)).add(block[low:high])
        start += len(block)
    index.syncWithSubIndexes()


def measure(parts: int, args: Any, gpus: int, asked: NDArray[np.float32]) -> tuple[dict[str, Any], Any]:
    """Fill and search; return the figures and the ids."""
    count = args.images * WINDOWS
    index = sharded(parts, args.dim, gpus)
    start = time.perf_counter()
    fill(index, parts, count, args.dim)
    filled = time.perf_counter() - start
    index.search(asked[:64], K)  # kernels are loaded
    runs = []
    for _ in range(args.turns):
        start = time.perf_counter()
        _, found = index.search(asked, K)
        runs.append(time.perf_counter() - start)
    return {"shards": parts, "fill_s": filled, "search_s": runs}, found


def main() -> None:
    """Measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--queries", type=int, default=4096)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--shards", type=int, default=0, help="maximum number of shards; default: all GPUs")
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    gpus = faiss.get_num_gpus() if hasattr(faiss, "StandardGpuResources") else 0
    most = args.shards or max(1, gpus)
    asked = np.concatenate(list(blocks(args.queries, args.dim)))
    figures, first = [], None
    for parts in [n for n in (1, 2, 4, 8, 16) if n < most] + [most]:
        one, found = measure(parts, args, gpus, asked)
        first = found if first is None else first
        figures.append(one | {"same_ids": float((found == first).mean())})
    rows = [
        (
            str(f["shards"]),
            f"{f['fill_s']:.1f} s",
            f"{np.median(f['search_s']):.2f} s",
            f"{args.queries / np.median(f['search_s']):,.0f}",
            f"{np.median(figures[0]['search_s']) / np.median(f['search_s']):.2f}",
            f"{f['same_ids']:.4f}",
        )
        for f in figures
    ]
    where = "GPUs" if gpus else "the CPU"
    print(f"{args.images * WINDOWS:,} windows of {args.dim}, {args.queries:,} patches, on {where}")
    print(table(("shards", "fill", "search", "patches/s", "times one", "same ids"), rows))
    shapes = {"windows": args.images * WINDOWS, "dim": args.dim, "patches": args.queries, "gpus": gpus}
    write_json(args.json, {"context": context(**shapes), "shards": figures})


if __name__ == "__main__":
    main()
