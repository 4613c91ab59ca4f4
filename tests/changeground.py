"""Generated places on two days, with and without change, for the tests of change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from typer.testing import CliRunner

from retrieval.cli import app
from retrieval.synthetic import Scene, SceneConfig, Sky

BANDS = ("B04", "B03", "B02", "B08")
CRS, TRANSFORM = "EPSG:32631", (10, 0, 500_000, 0, -10, 5_000_000)
SIDE = 288
CLEAR = Sky(0.0, 0.03)
ROOFS = (3000, 2900, 2800, 3200)
"""Digital numbers of new buildings, by band."""


def run(*arguments):
    """Run `retrieve` with arguments."""
    return CliRunner().invoke(app, [str(a) for a in arguments], prog_name="retrieve")


def town(seed=1, side=SIDE):
    """Return a generated town."""
    kinds = ("farmland", "town", "forest", "hills", "coast", "desert")
    return Scene(seed, side, side, SceneConfig(**{kind: float(kind == "town") for kind in kinds}))


def built(pixels, squares, seed=0):
    """Return pixels with new buildings in squares (x, y, side), and where they are."""
    rng, pixels = np.random.default_rng(seed), pixels.copy()
    truth = np.zeros(pixels.shape[:2], np.uint8)
    for x, y, side in squares:
        truth[y : y + side, x : x + side] = 1
        pixels[y : y + side, x : x + side] = rng.normal(ROOFS, 300, (side, side, len(ROOFS))).clip(1)
    return pixels, truth


def save(path: Path, pixels, crs=CRS, transform=TRANSFORM, nodata=0, bands=BANDS):
    """Write a GeoTIFF and return its path."""
    import warnings

    import rasterio
    from affine import Affine
    from rasterio.errors import NotGeoreferencedWarning

    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.atleast_3d(pixels)
    profile = dict(driver="GTiff", height=pixels.shape[0], width=pixels.shape[1], count=pixels.shape[2])
    profile |= dict(dtype=pixels.dtype, nodata=nodata)
    if crs:
        profile |= dict(crs=crs, transform=Affine(*transform))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", **profile) as dataset:
            dataset.write(np.moveaxis(pixels, -1, 0))
            if bands and len(bands) == pixels.shape[2]:
                dataset.descriptions = bands
    return path


def read(path, band=1):
    """Return a band of a raster."""
    import warnings

    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path) as dataset:
            return dataset.read(band)
