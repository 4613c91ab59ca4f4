"""Products of MAJA, as THEIA distributes them: GeoTIFFs of surface reflectance, with masks.

    SENTINEL2A_..._MTD_ALL.xml  SENTINEL2A_..._FRE_B2.tif ...  MASKS/SENTINEL2A_..._CLM_R1.tif ...

FRE is corrected for the slopes of the ground, SRE is not. Numbers are int16: reflectance x 10000, and -10000
for nodata. R1 marks masks of 10 m.

Source: https://www.cesbio.cnrs.fr/maja/sentinel-2-output-format/
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from retrieval.ingest.safe.metadata import BANDS, Granule, Product
from retrieval.ingest.safe.tree import XML_BYTES, Tree
from retrieval.ingest.safe.xml import Elements, by_name, number_of, optional, parse_xml, text_of, time_of
from tfrecords.errors import ProductError

NODATA = -10_000
"""Stored number of a pixel without data, where the metadata state none."""
_TILE = re.compile(r"T?(\d{2}[C-HJ-NP-X][A-HJ-NP-Z]{2})")
_KINDS = ("FRE", "SRE")
"""Kinds of reflectance; the first that has all bands is read."""


def read_maja(tree: Tree) -> Product:
    """Read the metadata of a product of MAJA.

    Args:
        tree: its folder or zip.

    Raises:
        ProductError: the XML is damaged or not of a Level-2A product of MAJA, or lacks an element.
    """
    where = f"{tree.path}: {tree.metadata}"
    root = parse_xml(tree.head(tree.metadata, XML_BYTES + 1), where)
    elements = by_name(root)
    name, level = root.tag.rpartition("}")[2], optional(elements, "PRODUCT_LEVEL")
    if name != "Muscate_Metadata_Document" or level != "L2A":
        raise ProductError(f"{where}: describes a {name[:60]} {level[:20]}. Expected a product of MAJA, L2A")
    zone = text_of(elements, where, "GEOGRAPHICAL_ZONE")
    tile = _TILE.fullmatch(zone)
    if tile is None:
        raise ProductError(f"{where}: its zone is {zone[:40]!r}. Expected a tile such as T31TCJ")
    quantification = "REFLECTANCE_QUANTIFICATION_VALUE"
    divisor = number_of(text_of(elements, where, quantification), quantification, where)
    if divisor <= 0:
        raise ProductError(f"{where}: {quantification} is {divisor:g}. Expected a number above 0")
    nodata, cover = (
        _named(elements, "SPECIAL_VALUE", "nodata"),
        _named(elements, "QUALITY_INDEX", "CloudPercent"),
    )
    kind, granule = _granule(tree, tile[1])
    return Product(
        tree=tree,
        level="2A",
        baseline="",
        taken=time_of(text_of(elements, where, "ACQUISITION_DATE"), where),
        made=optional(elements, "PRODUCTION_DATE"),
        quantification=divisor,
        offsets=dict.fromkeys(BANDS, 0.0),
        cloud_cover=number_of(cover, "CloudPercent", where) if cover else None,
        granules=(granule,),
        note=f"{tree.name}: no FRE, so SRE is read, which keeps the light of slopes" if kind == "SRE" else "",
        nodata=int(number_of(nodata, "SPECIAL_VALUE nodata", where)) if nodata else NODATA,
        dtype="int16",
    )


def _named(elements: Elements, element: str, name: str) -> str:
    """Return the text of the element with an attribute `name`, or an empty text."""
    found = (e for e in elements.get(element, ()) if e.get("name", "").lower() == name.lower())
    return next(((e.text or "").strip() for e in found), "")


def _granule(tree: Tree, tile: str) -> tuple[str, Granule]:
    """Return the kind of reflectance that is read, and the files of the product."""
    names, masks = tree.names(""), tree.names("MASKS/")
    files = {kind: {band: _find(names, f"_{kind}_B{int(band[1:])}.tif") for band in BANDS} for kind in _KINDS}
    kind = max(_KINDS, key=lambda kind: sum(map(bool, files[kind].values())))  # of two with as many the first
    clouds, edge, snow = (_find(masks, f"_{mask}_R1.tif") for mask in ("CLM", "EDG", "MG2"))
    present = {band: file for band, file in files[kind].items() if file}
    return kind, Granule(tile, present, None, clouds=clouds, edge=edge, snow=snow)


def _find(names: Sequence[str], ending: str) -> str | None:
    """Return the file with an ending, or None."""
    return next((name for name in names if name.endswith(ending)), None)
