r"""Measure time and memory of a map of change without labels, on two generated dates of four bands.

    python benchmarks/change_speed.py --size 10980 --json benchmarks/results/change-speed.json

A Sentinel-2 tile has 10,980 pixels a side at 10 m. The second date is the first under other light and noise,
shifted by a pixel, with new bright squares. The time of the processor counts, in seconds of one core, because
other work on the machine changes it little. The way with the cloud network and the way without are timed.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from context import arguments, context, stage, write_json
from segment_speed import PIECE, write_scene


def write_second(first: Path, path: Path) -> None:
    """Write a second date of a scene."""
    import rasterio
    from rasterio.windows import Window

    rng = np.random.default_rng(1)
    with rasterio.open(first) as source, rasterio.open(path, "w", **source.profile) as dataset:
        dataset.descriptions = source.descriptions
        for y in range(0, source.height, PIECE):
            for x in range(0, source.width, PIECE):
                window = Window(x, y, min(PIECE, source.width - x), min(PIECE, source.height - y))
                moved = Window(x - 1, y, window.width, window.height)
                pixels = source.read(window=moved, boundless=True).astype(np.float32)
                pixels *= rng.normal(1.1, 0.05, pixels.shape[1:])
                pixels[:, 100:130, 100:130] = 3500
                dataset.write(pixels.astype(np.uint16), window=window)


def find(before: Path, after: Path, out: Path, mask_clouds: bool) -> dict[str, Any]:
    """Map the change."""
    from retrieval.tasks.change import detect
    from retrieval.tasks.change.mapping import Options

    start = time.process_time()
    detect(before, after, out, options=Options(mask_clouds=mask_clouds))
    return {"cpu_s": time.process_time() - start}


def main() -> None:
    """Generate, map, and print seconds, memory and cost per 1,000 km²."""
    parser = arguments(__doc__)
    parser.add_argument("--size", type=int, default=10_980, help="pixels of a side")
    asked = parser.parse_args()
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "before.tif", Path(folder) / "after.tif"
        write_scene(before, asked.size)
        write_second(before, after)
        for name, mask_clouds in (("without clouds", False), ("with clouds", True)):
            out = Path(folder) / f"{mask_clouds}.tif"
            done = stage(name, find, before, after, out, mask_clouds, imports=("tensorflow",))
            cpu_s = done.result["cpu_s"]
            rows[name] = {
                "seconds": round(done.seconds, 1),
                "cpu_s": round(cpu_s, 1),
                "peak_mb": round(done.peak_mb),
                "cpu_s_per_1000_km2": round(cpu_s / asked.size**2 * 1e7, 1),
            }
            print(name, rows[name], flush=True)
            write_json(asked.json, context(size=asked.size, bands=4) | {"rows": rows})


if __name__ == "__main__":
    main()
