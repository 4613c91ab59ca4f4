"""Little Sentinel-2 tiles as COGs, and the items that catalogues would make of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

SIZE = 512
"""Side of a tile in pixels of 10 m."""
PIXEL = 10.0
CRS = "EPSG:32631"
CORNERS = {"31TCJ": (399_960.0, 4_900_020.0), "31TDJ": (403_960.0, 4_900_020.0)}
"""Left and top of each tile; they overlap by 112 columns."""
FAR = {
    "01KAB": ("EPSG:32701", 177_990.0, 8_118_000.0),
    "60KXF": ("EPSG:32760", 604_000.0, 8_118_000.0),
}
"""CRS, left and top of a tile that the antimeridian crosses in its column 256, and of one at 178 degrees."""
NAMES = {"B04": "red", "B03": "green", "B02": "blue", "B08": "nir"}


def place_of(tile: str) -> tuple[str, float, float]:
    """CRS, left and top of a tile."""
    return FAR[tile] if tile in FAR else (CRS, *CORNERS[tile])


def lonlat(tile: str, x0: int, y0: int, x1: int, y1: int) -> tuple[float, float, float, float]:
    """The largest box of degrees inside a rectangle of a tile's pixels, roughly."""
    from rasterio.warp import transform

    crs, left, top = place_of(tile)
    xs = [left + PIXEL * x for x in (x0, x1, x1, x0)]
    ys = [top - PIXEL * y for y in (y0, y0, y1, y1)]
    lon, lat = transform(crs, "EPSG:4326", xs, ys)
    return max(lon[0], lon[3]), max(lat[2], lat[3]), min(lon[1], lon[2]), min(lat[0], lat[1])


def ground_of(tile: str, day: int = 0) -> np.ndarray:
    """True digital numbers of a tile, (512, 512, 4) uint16, from 60; where tiles overlap it is the same."""
    rng = np.random.default_rng(5)
    coarse = rng.uniform(300, 3000, (SIZE // 4, (SIZE + 400) // 4, 4))
    whole = coarse.repeat(4, 0).repeat(4, 1) * rng.uniform(0.9, 1.1, (SIZE, SIZE + 400, 4)) + 7 * day
    at = 0 if tile in FAR else round((CORNERS[tile][0] - CORNERS["31TCJ"][0]) / PIXEL)
    whole[::32] = 60  # something dark everywhere
    return np.rint(whole[:, at : at + SIZE]).astype(np.uint16)


def write_cog(path: Path, pixels: np.ndarray, tile: str, pixel: float = PIXEL) -> Path:
    """Write one band, (h, w), as a COG of small blocks."""
    import rasterio

    crs, left, top = place_of(tile)
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path,
        "w",
        driver="COG",
        height=pixels.shape[0],
        width=pixels.shape[1],
        count=1,
        dtype=pixels.dtype,
        crs=crs,
        transform=rasterio.Affine(pixel, 0, left, 0, -pixel, top),
        nodata=0,
        blocksize=128,
        compress="DEFLATE",
        overviews="NONE",
    ) as file:
        file.write(pixels, 1)
    return path


@dataclass
class Tiles:
    """Writes tiles under a folder that is served at an address, and makes their items."""

    folder: Path
    url: str
    items: list[dict[str, Any]] = field(default_factory=list)

    def put(
        self,
        tile: str,
        date: str,
        *,
        cloud: float = 5.0,
        style: str = "earth-search",
        baseline: str = "05.00",
        stored_offset: int = 1000,
        scl: np.ndarray | None = None,
        time: str = "10:50:31",
        id_: str = "",
        ground: np.ndarray | None = None,
        properties: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Write a tile of one date and add its item; the files' numbers have `stored_offset` on top."""
        name = id_ or f"S2A_{tile}_{date.replace('-', '')}_0_L2A"
        truth = ground_of(tile) if ground is None else ground
        stored = np.where(truth > 0, truth.astype(np.int64) + stored_offset, 0).astype(np.uint16)
        for number, band in enumerate(NAMES):
            write_cog(self.folder / name / f"{band}.tif", stored[..., number], tile)
        if scl is not None:
            write_cog(self.folder / name / "SCL.tif", scl.astype(np.uint8), tile, 2 * PIXEL)
        when, known = f"{date}T{time}Z", scl is not None
        item = self.item(name, tile, when, cloud, style, baseline, stored_offset, known)
        item["properties"] |= properties or {}
        self.items.append(item)
        return item

    def item(
        self,
        name: str,
        tile: str,
        when: str,
        cloud: float,
        style: str,
        baseline: str,
        stored_offset: int,
        scl: bool,
    ) -> dict[str, Any]:
        box = lonlat(tile, 0, 0, SIZE, SIZE)
        west, south, east, north = box
        ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
        crs, left, top = place_of(tile)
        grid = {"proj:shape": [SIZE, SIZE], "proj:transform": [PIXEL, 0, left, 0, -PIXEL, top]}
        properties: dict[str, Any] = {"datetime": when, "eo:cloud_cover": cloud}
        assets: dict[str, Any] = {}
        for band, common in NAMES.items():
            file = {"href": f"{self.url}/{name}/{band}.tif", "type": "image/tiff; profile=cloud-optimized"}
            if style == "earth-search":
                offset = {"scale": 0.0001, "offset": -stored_offset / 10000}
                raster = {"raster:bands": [offset | {"nodata": 0, "data_type": "uint16"}]}
                named = {"eo:bands": [{"name": common, "common_name": common}], "roles": ["data"]}
                assets[common] = file | grid | raster | named
            else:
                assets[band] = file | grid | {"eo:bands": [{"name": band, "common_name": common}]}
        if style == "earth-search":
            properties |= {"proj:code": crs, "grid:code": f"MGRS-{tile}", "s2:processing_baseline": baseline}
            properties["earthsearch:boa_offset_applied"] = False
        else:
            properties |= {
                "proj:epsg": int(crs[5:]),
                "s2:mgrs_tile": tile,
                "s2:processing_baseline": baseline,
            }
        if scl:
            key = "scl" if style == "earth-search" else "SCL"
            assets[key] = {"href": f"{self.url}/{name}/SCL.tif", "type": "image/tiff"}
        return {
            "type": "Feature",
            "stac_version": "1.0.0",
            "id": name,
            "collection": "sentinel-2-l2a",
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "bbox": list(box),
            "properties": properties,
            "assets": assets,
            "links": [],
        }


def clear() -> np.ndarray:
    """A scene classification without cloud, (256, 256)."""
    return np.full((SIZE // 2, SIZE // 2), 4, np.uint8)
