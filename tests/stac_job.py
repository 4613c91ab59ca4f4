"""A small STAC job: a query of the western tile, and what it wrote."""

from __future__ import annotations

import datetime

import rasterio
from stac_ground import lonlat, place_of

from retrieval.geo.request import BoundingBox, DateSpan
from retrieval.ingest.retry import RetryPolicy
from retrieval.ingest.stac.journal import read_rows
from retrieval.ingest.stac.query import CatalogQuery
from retrieval.ingest.stac.run import ingest_stac
from tfrecords.read import read_images

QUICK = RetryPolicy(attempts=3, pause_s=0.02)
ASKED = lonlat("31TCJ", 150, 160, 310, 290)
"""Some of the western tile; none of it is in the eastern one."""
DAY = datetime.date


def query_of(api, bbox=ASKED, dates="2020/2023", **more):
    return CatalogQuery(api, BoundingBox(*bbox), DateSpan.parse(dates), **more)


def run(out, catalogue, **more):
    return ingest_stac(out, query_of(catalogue.url, **more), retry=QUICK)


def rows(out):
    return {row.item: row for row in read_rows(out)}


def truth(path, tile, ground):
    """What the ground looks like where a file lies."""
    with rasterio.open(path) as file:
        _, left, top = place_of(tile)
        x, y = (file.transform.c - left) / 10, (top - file.transform.f) / 10
        assert (x % 1, y % 1, file.transform.a, file.transform.e) == (0, 0, 10, -10)
        return ground[int(y) : int(y) + file.height, int(x) : int(x) + file.width]


def pixels(path):
    return next(iter(read_images(path))).pixels
