"""Sentinel-2 products of random ground, their ingest, and what it wrote."""

from __future__ import annotations

import numpy as np
import rasterio

from retrieval.geo.request import ImageFilter
from retrieval.ingest.run import ingest
from tfrecords.read import read_raster

SIDE = 160


def ground(rng, height=SIDE, width=SIDE):
    return rng.integers(1, 6000, (height, width, 4)).astype(np.uint16)


def images_of(source, out, **how):
    options = (how.pop(name, None) for name in ("bbox", "dates", "max_cloud"))
    image_filter = ImageFilter.parse(*options, hide_snow=how.pop("hide_snow", False))
    return ingest(source, out, as_="images", image_filter=image_filter, **how)


def pixels_of(out, name="31TCJ/2023-07-06.tif"):
    return read_raster(out / name)[0]


def tags_of(path):
    with rasterio.open(path) as dataset:
        return dataset.tags()


def no_partial_files(out):
    return not list(out.rglob(".*")) if out.exists() else True


def metadata(root):
    return next(root.glob("MTD*.xml"))


def edited(old, new):
    def edit(root):
        text = metadata(root).read_text()
        assert old in text
        metadata(root).write_text(text.replace(old, new))

    return edit
