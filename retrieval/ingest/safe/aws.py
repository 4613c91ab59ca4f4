"""Tiles as the archive of AWS keeps them: bands under their own names, next to the metadata of the tile.

    metadata.xml  tileInfo.json  B02.jp2 ...  qi/MSK_CLOUDS_B00.gml      Level-1C
    metadata.xml  tileInfo.json  R10m/B02.jp2 ...  R20m/SCL.jp2          Level-2A

The metadata of a tile state neither quantification nor offsets. The quantification is 10000; the offset is
-1000 from processing baseline 04.00 on.

Source: https://roda.sentinel-hub.com/sentinel-s2-l1c/readme.html, and -l2a
"""

from __future__ import annotations

import re
from dataclasses import replace

from retrieval.ingest.safe.metadata import (
    BANDS,
    IMAGE_SUFFIXES,
    OFFSET_SINCE,
    TILE,
    Granule,
    Product,
    find_clouds,
)
from retrieval.ingest.safe.tree import XML_BYTES, Tree
from retrieval.ingest.safe.xml import by_name, number_of, optional, parse_xml, text_of, time_of
from tfrecords.errors import ProductError

QUANTIFICATION = 10_000
"""Divides digital numbers to give reflectance, at every baseline."""
OFFSET = -1000
"""Added to digital numbers from baseline 04.00 on."""
_LEVELS = {"Level-1C_Tile_ID": "1C", "Level-2A_Tile_ID": "2A"}
_BASELINE = re.compile(r"_N(\d\d\.\d\d)$")


def read_aws_tile(tree: Tree) -> Product:
    """Read the metadata of a tile as a product of one tile.

    Args:
        tree: its folder or zip.

    Raises:
        ProductError: the XML is damaged or not the metadata of a tile, or lacks an element.
    """
    where = f"{tree.path}: {tree.metadata}"
    root = parse_xml(tree.head(tree.metadata, XML_BYTES + 1), where)
    name = root.tag.rpartition("}")[2]
    if name not in _LEVELS:
        raise ProductError(f"{where}: describes a {name[:60]}. Expected a tile of Level-1C or Level-2A")
    elements = by_name(root)
    identifier = text_of(elements, where, "TILE_ID_2A", "TILE_ID")
    tile, baseline = TILE.search(identifier), _BASELINE.search(identifier)
    if tile is None or baseline is None:
        raise ProductError(
            f"{where}: no tile and baseline in the name {identifier[:80]!r}. Expected one ending such as "
            "_T31TCJ_N05.09"
        )
    cover = optional(elements, "CLOUDY_PIXEL_PERCENTAGE")
    offset = OFFSET if float(baseline[1]) >= OFFSET_SINCE else 0
    second = _LEVELS[name] == "2A"
    return Product(
        tree=replace(tree, label=identifier),
        level="2A" if second else "1C",
        baseline=baseline[1],
        taken=time_of(text_of(elements, where, "SENSING_TIME"), where),
        made=optional(elements, "ARCHIVING_TIME"),
        quantification=QUANTIFICATION,
        offsets=dict.fromkeys(BANDS, float(offset)),
        cloud_cover=number_of(cover, "CLOUDY_PIXEL_PERCENTAGE", where) if cover else None,
        granules=(_granule(tree, tile[1], second),),
        note="",
    )


def _granule(tree: Tree, tile: str, second: bool) -> Granule:
    """Return the files of a tile, of Level-2A or else of Level-1C."""

    def find(stem: str) -> str | None:
        return next((stem + suffix for suffix in IMAGE_SUFFIXES if tree.has(stem + suffix)), None)

    found = {band: find(f"R10m/{band}" if second else band) for band in BANDS}
    files = {band: file for band, file in found.items() if file}
    if second:
        return Granule(tile, files, find("R20m/SCL"))
    return Granule(tile, files, None, clouds=find_clouds(tree, "qi/"))
