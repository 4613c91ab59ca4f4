"""Does streaming keep up with the disk, in bounded memory whatever the size of the data?

    python benchmarks/stream.py --series 64 --out build/stream --json results/stream.json

Writes series of the challenge's form (12 dates of 512 x 512 x 4, 25 MB each), then reads them in three
ways, each in a process of its own: the bytes of the files; the records, one after the other; and
`tfrecords.read.stream_crops`, what training sees. The pixels are one generated texture, moved about:
what they show costs nothing to read. A folder of series that is there is used again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from context import Stage, arguments, context, stage, table, write_json

from tfrecords.read import CropPlan


def series(count: int, dates: int, size: int) -> Iterator[Any]:
    """Series of a texture that is moved about, never held together."""
    from tfrecords.schema import BANDS, Series

    rng = np.random.default_rng(0)
    texture = rng.integers(1, 4000, (dates, size, size, 4), np.uint16)
    for number in range(count):
        moved = np.roll(texture, tuple(rng.integers(0, size, 2)), (1, 2))
        names = tuple(f"20{16 + d // 12:02d}-{1 + d % 12:02d}-01" for d in range(dates))
        yield Series(moved, "dn", BANDS, 0.0, names, f"place-{number:05d}", overlap_group=number)


def write(out: str, count: int, dates: int, size: int) -> None:
    """Write the series: float16 only, as the challenge's are."""
    from tfrecords.write import write_series

    write_series(
        series(count, dates, size), out, config={"count": count, "dates": dates, "size": size}, exact=False
    )


def files(folder: str) -> list[Path]:
    """The shards."""
    return sorted(Path(folder).glob("*.tfrecords"))


def raw_bytes(folder: str) -> dict[str, Any]:
    """Read the files and look at nothing."""
    total = 0
    for path in files(folder):
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                total += len(block)
    return {"bytes": total}


def raw_records(folder: str) -> dict[str, Any]:
    """Read the records, which checks their CRCs."""
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


def rows(stages: dict[str, Stage], size: int) -> list[tuple[str, ...]]:
    """The table."""
    out = [one.row(size / 1e6, "MB") for one in stages.values()]
    done = stages["crops"].result["crops"]
    seconds = stages["crops"].seconds
    return [*out, ("  pairs of crops", f"{done}", f"{done / seconds:,.1f} pairs/s", "")]


def main() -> None:
    """Write, read, tell."""
    parser = arguments(__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/stream"))
    parser.add_argument("--series", type=int, default=64)
    parser.add_argument("--dates", type=int, default=12)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--shuffle", type=int, default=CropPlan.shuffle, help="pairs in the shuffle buffer")
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
    size = sum(p.stat().st_size for p in files(folder))
    print(f"{len(files(folder))} files, {size / 1e9:.2f} GB", file=sys.stderr)
    print(table(("stage", "time", "throughput", "peak memory"), rows(stages, size)))
    shapes = {k: getattr(args, k) for k in ("series", "dates", "size", "shuffle")}
    figures = {n: {**vars(s)} for n, s in stages.items()}
    write_json(args.json, {"context": context(**shapes, bytes=size), "stages": figures})


if __name__ == "__main__":
    main()
