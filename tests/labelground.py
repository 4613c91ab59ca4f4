"""Small tiles, masks and vector files to order, for the tests of the labels."""

from __future__ import annotations

import json

import mercantile
import numpy as np
from PIL import Image
from typer.testing import CliRunner

from retrieval.cli import app

CORNER = mercantile.Tile(604_000, 524_000, 20)
"""A tile near the equator at zoom 20, about 38 m wide; the first of a block of zoom 14."""


def run(*arguments):
    """Run `retrieve` with arguments."""
    return CliRunner().invoke(app, [str(a) for a in arguments], prog_name="retrieve")


def image_tile(folder, tile, seed=0, alpha=False, size=256):
    """Write an XYZ image tile of noise and return its path."""
    pixels = np.random.default_rng(seed).integers(0, 255, (size, size, 3), np.uint8)
    path = folder / str(tile.z) / str(tile.x) / f"{tile.y}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if alpha:
        image.putalpha(255)
    image.save(path)
    return path


def square(tile, x, y, side, size=256):
    """Return the ring of a square in the pixels of a tile, in longitude and latitude."""
    box = mercantile.xy_bounds(tile)
    step = (box.right - box.left) / size
    corners = [(x, y), (x + side, y), (x + side, y + side), (x, y + side), (x, y)]
    return [list(mercantile.lnglat(box.left + step * c, box.top - step * r)) for c, r in corners]


def polygon(*rings, **properties):
    """Return a GeoJSON feature of a polygon."""
    geometry = {"type": "Polygon", "coordinates": list(rings)}
    return {"type": "Feature", "properties": properties, "geometry": geometry}


def write_geojson(path, features, crs=None):
    """Write features as GeoJSON and return the path."""
    collection = {"type": "FeatureCollection", "features": list(features)}
    if crs:
        collection["crs"] = {"type": "name", "properties": {"name": crs}}
    path.write_text(json.dumps(collection))
    return path
