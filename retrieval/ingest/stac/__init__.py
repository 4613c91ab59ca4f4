"""Searches STAC catalogues and writes places: one folder per tile, one GeoTIFF per date, cropped to a box.

`query` holds the query, `catalogue` searches, `scene` and `offset` read the metadata of an item. `days` sorts
items into places and days and selects dates, `window` crops tiles, `read` fetches pixels. `journal` records
the outcome for each item, and `run` does it all.
"""

from retrieval.ingest.stac.journal import ItemRow, read_rows
from retrieval.ingest.stac.query import CATALOGUES, CatalogQuery
from retrieval.ingest.stac.run import StacReport, ingest_stac

__all__ = [
    "CATALOGUES",
    "CatalogQuery",
    "ItemRow",
    "StacReport",
    "ingest_stac",
    "read_rows",
]
