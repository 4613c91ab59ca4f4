"""Measure whether streaming keeps up with training, in bounded memory.

    python benchmarks/stream.py --series 64 --out build/stream --json results/stream.json

The script writes series of the challenge's form: 12 dates of 512 x 512 x 4, 25 MB each. It reads them in
three ways, each in a separate process: the bytes, the records, and the crops of
`tfrecords.read.stream_crops`. The pixels are one generated texture, shifted. An existing folder of series is
reused. Then the encoder trains for some steps of the shipped recipe, and the script measures the share of
time spent waiting for batches.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from context import Stage, arguments, context, stage, table, write_json

from retrieval.config import TrainConfig
from retrieval.training.recipes import read_recipe
from tfrecords.read import CropPlan

WARM = 10
"""First steps, not counted: the pool fills, the step is compiled."""
RECIPE = "siamese"


def series(count: int, dates: int, size: int) -> Iterator[Any]:
    """Yield series of a shifted texture, one at a time."""
    from tfrecords.schema import BANDS, Series

    rng = np.random.default_rng(0)
    texture = rng.integers(1, 4000, (dates, size, size, 4), np.uint16)
    for number in range(count):
        moved = np.roll(texture, tuple(rng.integers(0, size, 2)), (1, 2))
        names = tuple(f"20{16 + d // 12:02d}-{1 + d % 12:02d}-01" for d in range(dates))
        yield Series(moved, "dn", BANDS, 0.0, names, f"place-{number:05d}", overlap_group=number)


def write(out: str, count: int, dates: int, size: int) -> None:
    """Write the series as float16, like the challenge."""
    from tfrecords.write import write_series

    write_series(
        series(count, dates, size), out, config={"count": count, "dates": dates, "size": size}, exact=False
    )


def files(folder: str) -> list[Path]:
    """Return the shards."""
    return sorted(Path(folder).glob("*.tfrecords"))


def raw_bytes(folder: str) -> dict[str, Any]:
    """Read the bytes of the files."""
    total = 0
    for path in files(folder):
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                total += len(block)
    return {"bytes": total}


def raw_records(folder: str) -> dict[str, Any]:
    """Read the records and check their CRCs."""
    import tensorflow as tf

    count = total = 0
    for record in tf.data.TFRecordDataset([str(p) for p in files(folder)]):
        count, total = count + 1, total + len(record.numpy())
    return {"series": count, "bytes": total}


def crops(folder: str, plan: CropPlan) -> dict[str, Any]:
    """Stream an epoch of crops."""
    from tfrecords.read import stream_crops

    count, first, start = 0, 0.0, time.perf_counter()
    for batch in stream_crops(folder, plan).batch(32):
        first = first or time.perf_counter() - start
        count += int(batch["x"].shape[0])
    return {"crops": count, "first_batch_s": first}


def training(folder: str, config: TrainConfig, steps: int) -> dict[str, Any]:
    """Train for some steps and measure the wait for each batch."""
    from functools import partial

    from retrieval.training.batches import Split, training_batches, training_crops
    from retrieval.training.networks import blank_model
    from retrieval.training.siamese import compiled_step, new_optimizer

    model = blank_model(config)
    step = compiled_step(model, new_optimizer(model, config), [], config)
    waited, took = np.zeros(WARM + steps), np.zeros(WARM + steps)
    with training_batches(partial(training_crops, folder, config, Split()), config, 0) as batches:
        for number in range(WARM + steps):
            start = time.perf_counter()
            batch = next(batches)
            waited[number] = time.perf_counter() - start
            step(batch.pixels, batch.allowed)
            took[number] = time.perf_counter() - start
    waited, took = waited[WARM:], took[WARM:]
    hundreds = range(0, steps, 100)
    return {
        "steps": steps,
        "batch": config.batch,
        "step_s": float(np.median(took)),
        "waiting": float(waited.sum() / took.sum()),
        "waiting_by_hundred": [
            round(float(waited[i:][:100].sum() / took[i:][:100].sum()), 4) for i in hundreds
        ],
    }


def rows(stages: dict[str, Stage], size: int) -> list[tuple[str, ...]]:
    """Print the table."""
    out = [one.row(size / 1e6, "MB") for one in stages.values()]
    done = stages["crops"].result["crops"]
    seconds, trained = stages["crops"].seconds, stages["training"].result
    out.insert(-1, ("  pairs of crops", f"{done}", f"{done / seconds:,.1f} pairs/s", ""))
    out[-1] = ("training", *out[-1][1:2], f"{1 / trained['step_s']:.1f} steps/s", out[-1][3])
    return [*out, ("  waiting for input", f"{trained['waiting']:.1%}", "of the steps", "")]


def main() -> None:
    """Write, read, print."""
    parser = arguments(__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/stream"))
    parser.add_argument("--series", type=int, default=64)
    parser.add_argument("--dates", type=int, default=12)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--shuffle", type=int, default=CropPlan.shuffle, help="pairs in the shuffle buffer")
    parser.add_argument("--steps", type=int, default=200, help="training steps")
    args = parser.parse_args()
    folder, stages = str(args.out), {}
    if not (args.out / "manifest.json").is_file():
        made = (folder, args.series, args.dates, args.size)
        stages["write"] = stage("write", write, *made, imports=("tensorflow",))
    plan = CropPlan(shuffle=args.shuffle)
    for name, step, more in (
        ("bytes", raw_bytes, ()),
        ("records", raw_records, ()),
        ("crops", crops, (plan,)),
    ):
        stages[name] = stage(name, step, folder, *more, imports=("tensorflow",) if step != raw_bytes else ())
    recipe = TrainConfig.from_mapping(read_recipe(RECIPE))
    inputs = folder, replace(recipe, shuffle=args.shuffle, steps=WARM + args.steps), args.steps
    stages["training"] = stage("training", training, *inputs, imports=("tensorflow", "keras"))
    size = sum(p.stat().st_size for p in files(folder))
    print(f"{len(files(folder))} files, {size / 1e9:.2f} GB", file=sys.stderr)
    print(table(("stage", "time", "throughput", "peak memory"), rows(stages, size)))
    shapes = {k: getattr(args, k) for k in ("series", "dates", "size", "shuffle", "steps")}
    figures = {n: {**vars(s)} for n, s in stages.items()}
    write_json(args.json, {"context": context(**shapes, bytes=size), "stages": figures})


if __name__ == "__main__":
    main()
