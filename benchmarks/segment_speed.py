r"""Measure time and memory of a class map: the default network on a generated scene, six classes.

    python benchmarks/segment_speed.py --json benchmarks/results/segment-speed.json

A Sentinel-2 tile has 10,980 pixels a side and four bands at 10 m. `--height` maps its first rows only: memory
follows the width, and the time of the whole tile follows from the pixels in its windows. The scene is a
generated one, repeated over the tile. The network is trained for one step, because its weights do not change
its cost. The time of the processor counts, in seconds of one core, because other work on the machine changes
it little. The network alone is timed too, on one window again and again.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from context import arguments, context, stage, write_json

from retrieval.config import SegmenterConfig
from retrieval.labels.classes import Classes

CLASSES = Classes(("urban", "agriculture", "rangeland", "forest", "water", "barren"))
BANDS = ("B04", "B03", "B02", "B08")
PIECE = 1024


def write_scene(path: Path, size: int, rows: int | None = None) -> None:
    """Write a scene of four bands at 10 m, of some rows or a square."""
    import rasterio
    from rasterio.windows import Window

    rng = np.random.default_rng(0)
    coarse = rng.integers(300, 3000, (4, PIECE // 16, PIECE // 16)).repeat(16, 1).repeat(16, 2)
    piece = (coarse * rng.normal(1, 0.05, (PIECE, PIECE))).astype(np.uint16)
    profile = dict(
        driver="GTiff", dtype="uint16", count=4, width=size, height=rows or size, nodata=0, tiled=True
    )
    profile |= dict(crs="EPSG:32631", transform=rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000))
    with rasterio.open(path, "w", blockxsize=512, blockysize=512, **profile) as dataset:
        dataset.descriptions = BANDS
        for y in range(0, dataset.height, PIECE):
            for x in range(0, size, PIECE):
                height, width = min(PIECE, dataset.height - y), min(PIECE, size - x)
                dataset.write(piece[:, :height, :width], window=Window(x, y, width, height))


def make_model(out: Path) -> None:
    """Train the default network for one step."""
    from retrieval.tasks.segment.scenes import Scene, SceneSet
    from retrieval.tasks.segment.training import train_segmenter

    rng = np.random.default_rng(0)
    pixels = rng.integers(300, 3000, (1, 256, 256, 4)).astype(np.uint16)
    mask = rng.integers(0, 6, (256, 256)).astype(np.uint8)
    scenes = SceneSet((Scene("a", pixels, mask),), "dn", BANDS, CLASSES)
    train_segmenter(scenes, out, SegmenterConfig(steps=1, warmup_steps=0), progress=lambda _: None)


def predict(scene: Path, model: Path, out: Path) -> dict[str, Any]:
    """Map the scene."""
    from retrieval.tasks.segment import predict as predicted

    before = time.process_time()
    report = predicted(scene, model, out)
    return {"pixels": report.pixels, "cpu_s": time.process_time() - before}


def network_rate(model: Path, windows: int = 6) -> float:
    """Return the pixels that the network alone maps in a second of one core."""
    from retrieval.tasks.segment.model import load_segmenter

    segmenter = load_segmenter(model)
    pixels = np.random.default_rng(0).integers(300, 3000, (1, PIECE, PIECE, 4)).astype(np.uint16)
    segmenter.probabilities(pixels)
    start = time.process_time()
    for _ in range(windows):
        segmenter.logits(pixels)
    return windows * PIECE**2 / (time.process_time() - start)


def computed_pixels(height: int, width: int, model: Path) -> int:
    """Return the pixels of all windows over a scene, with those that neighbours share."""
    from retrieval.tasks.segment.model import load_segmenter
    from retrieval.tasks.segment.windows import WINDOW_PX, Layout

    segmenter = load_segmenter(model)
    layout = Layout.of(height, width, WINDOW_PX, segmenter.description.unit_px, segmenter.view_px)
    down = sum(min(layout.side, height - top) for top in layout.tops)
    return down * sum(min(layout.side, width - left) for left in layout.lefts)


def main() -> None:
    """Generate, map, and print seconds, memory and cost per 1,000 km²."""
    parser = arguments(__doc__)
    parser.add_argument("--size", type=int, default=10_980, help="pixels of a side")
    parser.add_argument("--height", type=int, help="rows; a square without")
    asked = parser.parse_args()
    rows = asked.height or asked.size
    with tempfile.TemporaryDirectory() as folder:
        scene, model, out = (Path(folder) / name for name in ("scene.tif", "model", "map.tif"))
        write_scene(scene, asked.size, rows)
        make_model(model)
        done = stage("predict", predict, scene, model, out, imports=("tensorflow",))
        rate = network_rate(model)
        pixels = computed_pixels(rows, asked.size, model)
        whole = computed_pixels(asked.size, asked.size, model) / pixels
    km2 = asked.size * rows / 1e4
    figures = {
        "seconds": round(done.seconds, 1),
        "cpu_s": round(done.result["cpu_s"], 1),
        "peak_mb": round(done.peak_mb),
        "network_cpu_s": round(pixels / rate, 1),
        "cpu_s_per_1000_km2": round(done.result["cpu_s"] / km2 * 1000, 1),
        "computed_per_pixel": round(pixels / (asked.size * rows), 2),
        "whole_tile_cpu_s": round(done.result["cpu_s"] * whole, 1),
    }
    for name, value in figures.items():
        print(f"{name:<24}{value:>14,}")
    shapes = {"size": asked.size, "height": rows, "bands": 4, "classes": len(CLASSES.names)}
    write_json(asked.json, context(**shapes) | {"figures": figures, "recipe": SegmenterConfig().to_dict()})


if __name__ == "__main__":
    main()
