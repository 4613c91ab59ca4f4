"""What do processes of Dask cost against threads on the same cores?

The same images are indexed and the same patches located on threads, on Dask with one and with two workers.
The start of a cluster is measured apart. Run it on a machine without other work; the JSON holds the load.

    python benchmarks/challenge.py --images 600 --out build/bench/challenge

    python benchmarks/overhead.py build/bench/challenge --json benchmarks/results/overhead.json
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from context import arguments, context, table, write_json

import retrieval
from retrieval.kernels.executors import limit_tf_threads
from tfrecords.challenge import IMAGES, PATCHES
from tfrecords.read import read_images, read_patches

EXECUTORS = ("threads:2", "dask:1", "dask:2")


def measure(name: str, folder: Path, shards: int | None, work: Path) -> dict[str, Any]:
    """Return the seconds of start, index and query on one executor, and the answers."""
    out = work / name.replace(":", "-")
    shutil.rmtree(out, ignore_errors=True)
    begin = time.perf_counter()
    with retrieval.open_executor(name) as executor:
        list(executor.map(abs, [1, 2]))
        started = time.perf_counter()
        index = retrieval.build_index(
            read_images(folder / IMAGES), out, device="cpu", executor=executor, shards=shards
        )
        indexed = time.perf_counter()
        frame = index.locate(read_patches(folder / PATCHES), executor=executor)
        located = time.perf_counter()
    answers = frame[["image_id", "x", "y"]].to_numpy().tolist()
    times = {"start_s": started - begin, "index_s": indexed - started, "query_s": located - indexed}
    return {"executor": name, "answers": answers} | times


def main() -> None:
    """Measure all executors, and compare times and answers."""
    parser = arguments(__doc__)
    parser.add_argument("challenge", type=Path, help="folder of benchmarks/challenge.py")
    parser.add_argument("--shards", type=int, help="shards of the index on every executor")
    parser.add_argument("--work", type=Path, default=Path("build/bench/overhead"))
    args = parser.parse_args()
    limit_tf_threads()
    runs = [measure(name, args.challenge, args.shards, args.work) for name in EXECUTORS]
    base, answers = runs[0]["index_s"] + runs[0]["query_s"], runs[0]["answers"]
    for run in runs:
        run["same_answers"] = run.pop("answers") == answers
        run["overhead"] = (run["index_s"] + run["query_s"]) / base - 1
    rows = [
        [r["executor"], *(f"{r[k]:.1f}" for k in ("start_s", "index_s", "query_s")), f"{r['overhead']:+.1%}"]
        for r in runs
    ]
    print(table(("executor", "start s", "index s", "query s", "overhead"), rows))
    images = len(read_images(args.challenge / IMAGES))
    write_json(args.json, {"context": context(images=images, shards=args.shards), "runs": runs})


if __name__ == "__main__":
    main()
