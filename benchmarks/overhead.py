"""What do processes of Dask cost against threads on the same cores?

The same images are indexed and the same patches located on threads, on Dask with one and with two workers.
The start of a cluster, and the imports of its workers, are measured apart. Wall time needs a machine without
other work; the JSON holds the load. Processor time, of this process and of all workers, hardly depends on it.
The system's share of it is mostly the memory that processes take new.

    python benchmarks/challenge.py --images 600 --out build/bench/challenge

    python benchmarks/overhead.py build/bench/challenge --json benchmarks/results/overhead.json
"""

from __future__ import annotations

import os
import shutil
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from context import arguments, context, table, write_json

import retrieval
from retrieval.kernels.executors import cores, limit_tf_threads
from tfrecords.challenge import IMAGES, PATCHES
from tfrecords.read import read_images, read_patches

EXECUTORS = ("threads:2", "dask:1", "dask:2")
ENGINE = ("tensorflow", "keras", "faiss", "retrieval.pipeline")
"""Imports of a worker that count as its start."""


def import_engine() -> None:
    """Import what indexing and querying need."""
    for module in ENGINE:
        import_module(module)


def own_times() -> np.ndarray:
    """Return the processor time of this process in seconds: of its code, and of the system for it."""
    return np.array(os.times()[:2])


def processor_s(executor: Any) -> np.ndarray:
    """Return the processor time of this process and of the workers in seconds: of code, and of the system."""
    client = getattr(executor, "client", None)
    workers = list(client.run(own_times).values()) if client else []
    return np.sum([own_times(), *workers], axis=0)


def measure(name: str, folder: Path, shards: int | None, work: Path) -> dict[str, Any]:
    """Return the seconds of start, index and query on one executor, on the clock and of processors."""
    out = work / name.replace(":", "-")
    shutil.rmtree(out, ignore_errors=True)
    begin = time.perf_counter()
    with retrieval.open_executor(name) as executor:
        import_engine()
        if client := getattr(executor, "client", None):
            client.run(import_engine)
        started, used = time.perf_counter(), processor_s(executor)
        index = retrieval.build_index(
            read_images(folder / IMAGES), out, device="cpu", executor=executor, shards=shards
        )
        indexed, used_indexed = time.perf_counter(), processor_s(executor)
        frame = index.locate(read_patches(folder / PATCHES), executor=executor)
        located, used_located = time.perf_counter(), processor_s(executor)
    answers = frame[["image_id", "x", "y"]].to_numpy().tolist()
    times = {"start_s": started - begin, "index_s": indexed - started, "query_s": located - indexed}
    spent = {"index": used_indexed - used, "query": used_located - used_indexed}
    cpu = {f"{step}_cpu_s": float(parts.sum()) for step, parts in spent.items()}
    system = {f"{step}_system_s": float(parts[1]) for step, parts in spent.items()}
    return {"executor": name, "answers": answers} | times | cpu | system


def main() -> None:
    """Measure all executors, and compare times and answers."""
    parser = arguments(__doc__)
    parser.add_argument("challenge", type=Path, help="folder of benchmarks/challenge.py")
    parser.add_argument("--shards", type=int, help="shards of the index on every executor")
    parser.add_argument("--work", type=Path, default=Path("build/bench/overhead"))
    args = parser.parse_args()
    limit_tf_threads()
    runs = [measure(name, args.challenge, args.shards, args.work) for name in EXECUTORS]
    answers = runs[0]["answers"]
    for run in runs:
        run["same_answers"] = run.pop("answers") == answers
        for unit in ("", "_cpu"):
            both, base = (r[f"index{unit}_s"] + r[f"query{unit}_s"] for r in (run, runs[0]))
            run[f"overhead{unit}"] = both / base - 1
    columns = (
        *("start_s", "index_s", "query_s", "index_cpu_s", "query_cpu_s"),
        *("index_system_s", "query_system_s"),
    )
    rows = [
        [
            r["executor"],
            *(f"{r[k]:.1f}" for k in columns),
            f"{r['overhead']:+.1%}",
            f"{r['overhead_cpu']:+.1%}",
        ]
        for r in runs
    ]
    names = (name.replace("_", " ") for name in columns)
    print(table(("executor", *names, "overhead", "overhead cpu"), rows))
    images = len(read_images(args.challenge / IMAGES))
    write_json(
        args.json,
        {
            "context": context(
                images=images,
                patches=len(read_patches(args.challenge / PATCHES)),
                shards=args.shards,
                cores=cores(),
            ),
            "runs": runs,
        },
    )


if __name__ == "__main__":
    main()
