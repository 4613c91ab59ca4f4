"""Small scenes with masks to order, for the tests of segmentation."""

from __future__ import annotations

import numpy as np
import rasterio
from PIL import Image

from retrieval.config import SegmenterConfig
from retrieval.labels.classes import Classes
from retrieval.labels.masks import write_png
from retrieval.tasks.segment.model import Description
from retrieval.tasks.segment.scenes import Scene, SceneSet

BUILDING = Classes.binary("building")
GROUND = Classes(("water", "forest", "field"))
TINY = SegmenterConfig(
    width=4,
    stages=1,
    stride=2,
    crop=32,
    steps=4,
    batch=2,
    warmup_steps=2,
    validate_every=2,
    average=0.9,
    compile=False,
)
LEARNS = SegmenterConfig(
    width=8, stages=1, stride=1, crop=32, steps=50, batch=4, warmup_steps=5, average=0.9, learning_rate=1e-2
)


def golden_description(unit_px, **more):
    """Describe a golden model of `GROUND` in images of bytes."""
    return Description(
        classes=GROUND.names,
        colours=GROUND.colours,
        bands=("B04", "B03", "B02"),
        dates=1,
        form="byte",
        unit_px=unit_px,
        fill=(102.0, 101.0, 100.0),
        licence="CC0-1.0",
        **more,
    )


def blocks(seed, height, width, k, side=16):
    """Return a mask of squares, each of a random class."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, k, (-(-height // side), -(-width // side)), np.uint8)
    return coarse.repeat(side, 0).repeat(side, 1)[:height, :width]


def pixels_of(mask, seed, bands=3, dtype=np.uint8, noise=12.0):
    """Return pixels (y, x, bands) in which each class has its own colour, with noise."""
    rng = np.random.default_rng([seed, 1])
    colours = np.array([[60, 90, 130, 40], [120, 60, 70, 160], [170, 160, 60, 90]])[:, :bands]
    known = np.where(mask == 255, 0, mask)
    values = colours[known] + rng.normal(0, noise, (*mask.shape, bands))
    scale = 1 if dtype == np.uint8 else 20
    return np.clip(values * scale, 1, np.iinfo(dtype).max).astype(dtype)


def scenes(count, seed=0, height=64, width=80, k=2, dates=1, classes=None, name="scenes"):
    """Return scenes whose classes show by their colours."""
    some = []
    for n in range(count):
        mask = blocks(seed * 100 + n, height, width, k)
        views = [pixels_of(mask, seed * 1000 + 10 * n + date) for date in range(dates)]
        some.append(Scene(f"{name}{n}", np.stack(views), mask))
    legend = classes or (BUILDING if k == 2 else GROUND)
    return SceneSet(tuple(some), "byte", ("B04", "B03", "B02"), legend, name)


def write_scene(path, pixels, nodata=None, crs="EPSG:32631", transform=None, descriptions=None):
    """Write pixels (y, x, b) as a GeoTIFF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    transform = transform or rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000)
    height, width, count = pixels.shape
    profile = dict(driver="GTiff", height=height, width=width, count=count, dtype=pixels.dtype, nodata=nodata)
    with rasterio.open(path, "w", crs=crs, transform=transform, **profile) as dataset:
        dataset.write(np.moveaxis(pixels, -1, 0))
        if descriptions:
            dataset.descriptions = descriptions
    return path


def write_pair(folder, name, seed=0, size=64, classes=BUILDING, alpha=False, k=2):
    """Write an image and a mask as PNGs: `images/NAME.png`, `masks/NAME.png`; return both paths."""
    mask = blocks(seed, size, size, k)
    image = Image.fromarray(pixels_of(mask, seed))
    if alpha:
        image.putalpha(255)
    paths = folder / "images" / f"{name}.png", folder / "masks" / f"{name}.png"
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    image.save(paths[0])
    write_png(paths[1], mask, classes)
    return paths
