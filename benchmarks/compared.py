r"""Measure time and peak memory of `retrieve labels compare` as the labels of the map's ground grow.

    python benchmarks/compared.py --json benchmarks/results/compared.json

The labels are generated buildings on a square of XYZ tiles, and the map shows the same buildings. The map
stays as large, so the memory that each feature takes follows from two numbers of features. Each run is a
separate process, whose peak memory counts.
"""

from __future__ import annotations

import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from context import arguments, context, stage, write_json
from rasterize import burn, write_buildings, write_cover


def judge(maps: Path, labels: Path) -> dict[str, Any]:
    """Compare maps with labels, as the command does."""
    from retrieval.labels import compare

    before = time.process_time()
    found = compare(maps, labels, table=labels.with_name("rows.parquet"))
    return {"features": sum(found.features.values()), "cpu_s": time.process_time() - before}


def main() -> None:
    """Write, compare, and print seconds and memory by number of features."""
    parser = arguments(__doc__)
    parser.add_argument("--counts", default="20000,100000", help="features of the files")
    parser.add_argument("--side", type=int, default=16, help="tiles of a side of the ground")
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for count in map(int, asked.counts.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            labels, cover = Path(folder) / "buildings.gpkg", Path(folder) / "cover.csv"
            write_buildings(labels, count, asked.side)
            write_cover(cover, asked.side)
            burn(labels, cover, Path(folder) / "maps")
            imports = ("retrieval.labels.comparing", "geopandas", "pyarrow", "shapely", "rasterio.features")
            done = stage(f"{count:,}", judge, Path(folder) / "maps", labels, imports=imports)
        figures = {"seconds": round(done.seconds, 1), "cpu_s": round(done.result["cpu_s"], 1)}
        rows.append({"features": done.result["features"], **figures, "peak_mb": round(done.peak_mb, 1)})
        print(rows[-1], flush=True)
    for small, large in pairwise(rows):
        grown = (large["peak_mb"] - small["peak_mb"]) * 1e6
        large["bytes_per_feature"] = round(grown / (large["features"] - small["features"]))
        print(f"{large['bytes_per_feature']:,} bytes for each feature")
    write_json(asked.json, context(tiles=asked.side**2) | {"rows": rows})


if __name__ == "__main__":
    main()
