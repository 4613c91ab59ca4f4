"""Sentinel-2 products in ESA's SAFE format: folders or zips, Level-1C and Level-2A, every baseline.

`tree` finds products, `metadata` reads their metadata, `tile` their pixels, `products` writes them as places.
"""

from retrieval.ingest.safe.metadata import BANDS, Granule, Product, read_product
from retrieval.ingest.safe.tile import BLOCK_PX, Tile, open_tile
from retrieval.ingest.safe.tree import Tree, find_trees, holds_products

__all__ = [
    "BANDS",
    "BLOCK_PX",
    "Granule",
    "Product",
    "Tile",
    "Tree",
    "find_trees",
    "holds_products",
    "open_tile",
    "read_product",
]
