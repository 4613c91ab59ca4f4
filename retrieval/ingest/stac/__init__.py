"""A search in a STAC catalogue into places: a folder a tile, a GeoTIFF a date, only the ground asked for.

`query` says what is looked for, `catalogue` asks, `scene` and `offset` read an item's metadata, `days` sorts
items into places and days, `window` cuts the ground, `read` fetches pixels, `choose` thins the dates,
`journal` remembers, `run` does it all.
"""

from retrieval.ingest.stac.journal import Row, read_rows
from retrieval.ingest.stac.query import CATALOGUES, CatalogQuery
from retrieval.ingest.stac.run import StacReport, ingest_stac

__all__ = [
    "CATALOGUES",
    "CatalogQuery",
    "Row",
    "StacReport",
    "ingest_stac",
    "read_rows",
]
