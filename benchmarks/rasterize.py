r"""Measure time and peak memory of `retrieve labels rasterize` as the vector file grows.

    python benchmarks/rasterize.py --json benchmarks/results/rasterize.json

Each file is a GeoPackage of generated buildings, in random order, over a square of XYZ tiles near the
equator. Random order is the worst: every batch of features meets every tile. The masks have twice the
pixels that are burnt together. Each run is a separate process, whose peak memory counts.
Seconds of the processor are shown too, because other work on the machine changes them little.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from context import arguments, context, stage, table, write_json

ZOOM, FIRST = 16, (32_768, 32_704)
"""Zoom, and column and row of the first tile: 611 m a side, on the equator."""
PART = 100_000
"""Features that are written at one time."""


def write_buildings(path: Path, count: int, side: int, seed: int = 0) -> None:
    """Write squares of 8 to 30 m in random places.

    Args:
        path: the GeoPackage.
        count: features.
        side: tiles of a side of the ground.
        seed: seed of the places.
    """
    import mercantile
    import pyogrio
    import shapely

    rng = np.random.default_rng(seed)
    first = mercantile.xy_bounds(mercantile.Tile(*FIRST, ZOOM))
    length = (first.right - first.left) * side
    for start in range(0, count, PART):
        number = min(PART, count - start)
        x, y = first.left + rng.uniform(0, length, number), first.top - rng.uniform(0, length, number)
        half = rng.uniform(4, 15, number)
        shapes = shapely.to_wkb(shapely.box(x - half, y - half, x + half, y + half))
        kinds = np.array(["house", "shed"], object)[rng.integers(0, 2, number)]
        pyogrio.raw.write(
            path,
            shapes,
            [kinds],
            ["kind"],
            layer="buildings",
            crs="EPSG:3857",
            geometry_type="Polygon",
            append=start > 0,
        )


def write_cover(path: Path, side: int) -> None:
    """Write the cover of a square of tiles."""
    lines = [f"{ZOOM},{FIRST[0] + x},{FIRST[1] + y},train" for y in range(side) for x in range(side)]
    path.write_text("\n".join(["z,x,y,split", *lines]) + "\n")


def burn(labels: Path, cover: Path, out: Path) -> dict[str, Any]:
    """Make the masks."""
    from retrieval.labels import rasterize

    before = time.process_time()
    report = rasterize(labels, cover, out)
    return {"features": report.features, "cpu_s": time.process_time() - before}


def main() -> None:
    """Write, burn, and print seconds and memory by number of features."""
    parser = arguments(__doc__)
    parser.add_argument("--counts", default="10000,100000,1000000", help="features of the files")
    parser.add_argument("--side", type=int, default=48, help="tiles of a side of the ground")
    asked = parser.parse_args()
    rows = []
    for count in map(int, asked.counts.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            labels, cover = Path(folder) / "buildings.gpkg", Path(folder) / "cover.csv"
            write_buildings(labels, count, asked.side)
            write_cover(cover, asked.side)
            imports = ("retrieval.labels.rasterizing", "pyogrio", "pyarrow", "shapely", "rasterio.features")
            done = stage(f"{count:,}", burn, labels, cover, Path(folder) / "masks", imports=imports)
            size_mb = labels.stat().st_size / 1e6
        figures = {"seconds": round(done.seconds, 1), "cpu_s": round(done.result["cpu_s"], 1)}
        figures |= {"peak_mb": round(done.peak_mb), "file_mb": round(size_mb, 1)}
        rows.append({"features": done.result["features"]} | figures)
        print(rows[-1], flush=True)
    head = ("features", "file", "time", "processor", "peak memory")
    units = {"file_mb": "MB", "seconds": "s", "cpu_s": "s", "peak_mb": "MB"}
    lines = [(f"{r['features']:,}", *(f"{r[name]:,} {unit}" for name, unit in units.items())) for r in rows]
    print(table(head, lines))
    write_json(asked.json, context(tiles=asked.side**2, zoom=ZOOM) | {"rows": rows})


if __name__ == "__main__":
    main()
