"""What a product says of itself: level, baseline, time, offsets, cloud, and which files are its bands.

Formats: S2 Products Specification Document, issues 13 to 15 (https://sentinels.copernicus.eu/web/sentinel/user-guides/
sentinel-2-msi/document-library). Nothing in them is trusted: no entities, no files outside of the product.
"""

from __future__ import annotations

import datetime
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal
from xml.parsers import expat

from retrieval.ingest.safe.tree import XML_BYTES, Tree
from tfrecords.errors import ProductError
from tfrecords.schema.records import Provenance

BANDS = ("B04", "B03", "B02", "B08")
"""Bands of 10 m, in our order."""
BAND_IDS = {"B02": "1", "B03": "2", "B04": "3", "B08": "7"}
"""What metadata call them."""
OFFSET_SINCE = 4.0
"""Baseline from which on there are offsets."""

_TILE = re.compile(r"_T(\d{2}[C-HJ-NP-X][A-HJ-NP-Z]{2})(?=[_.]|$)")
_TAGS = {
    "1C": (("QUANTIFICATION_VALUE",), "RADIO_ADD_OFFSET"),
    "2A": (("BOA_QUANTIFICATION_VALUE", "L2A_BOA_QUANTIFICATION_VALUE"), "BOA_ADD_OFFSET"),
}
"""Names of the numbers, the second those of before 2018."""
_IMAGES = ("IMAGE_FILE", "IMAGE_FILE_2A", "IMAGE_ID", "IMAGE_ID_2A")

_Elements = Mapping[str, Sequence[ElementTree.Element]]


@dataclass(frozen=True)
class Granule:
    """One tile of a product; products of before December 2016 may have several."""

    tile: str
    """Name in the military grid, such as 31TCJ."""
    files: Mapping[str, str]
    """The file of each of `BANDS`, relative to the product."""
    scene: str | None
    """The file of the scene classification at 20 m; None where there is none."""


@dataclass(frozen=True)
class Product:
    """What a product says of itself."""

    tree: Tree
    """Where it is."""
    level: Literal["1C", "2A"]
    """At the top of the atmosphere, or at its bottom with a scene classification."""
    baseline: str
    """Processing baseline, such as 04.00."""
    taken: str
    """When it was taken, ISO 8601, UTC."""
    made: str
    """When it was processed, ISO 8601, UTC; empty where it does not say."""
    quantification: float
    """What numbers are divided by to be reflectance."""
    offsets: Mapping[str, float]
    """For each of `BANDS` what is added before; 0 before baseline 04.00."""
    cloud_cover: float | None
    """Percent under cloud, 0 to 100; None where it does not say."""
    granules: tuple[Granule, ...]
    """Its tiles, at least one."""
    note: str
    """What is strange about it; mostly empty."""

    @property
    def date(self) -> str:
        """Day that it was taken, YYYY-MM-DD, UTC."""
        return self.taken[:10]

    @property
    def age(self) -> tuple[float, str]:
        """Sorts by baseline, then by time of processing."""
        return float(self.baseline), self.made

    def provenance(self, recipe: str) -> Provenance:
        """The tags of what is made of it."""
        return Provenance(self.tree.name, self.taken, self.baseline, self.cloud_cover, recipe)


def read_product(tree: Tree) -> Product:
    """Read a product's metadata.

    Args:
        tree: where it is.

    Returns:
        What it says.

    Raises:
        ProductError: the XML is damaged, has a document type or entities, names files outside of the product,
            or lacks what is needed.
    """
    where = f"{tree.path}: {tree.metadata}"
    root = _root(tree.head(tree.metadata, XML_BYTES + 1), where)
    elements: dict[str, list[ElementTree.Element]] = {}
    for element in root.iter():
        elements.setdefault(element.tag.rpartition("}")[2], []).append(element)
    level = _level(root, where)
    names, offset = _TAGS[level]
    baseline = _text(elements, where, "PROCESSING_BASELINE")
    number = _number(baseline, "PROCESSING_BASELINE", where)
    offsets, note = _offsets(elements, offset, number, where)
    quantification = _number(_text(elements, where, *names), names[0], where)
    if quantification <= 0:
        raise ProductError(f"{where} says {names[0]} {quantification:g}; expected a number above 0")
    cover = _optional(elements, "Cloud_Coverage_Assessment")
    return Product(
        tree=tree,
        level=level,
        baseline=baseline,
        taken=_time(_text(elements, where, "PRODUCT_START_TIME", "DATATAKE_SENSING_START"), where),
        made=_optional(elements, "GENERATION_TIME"),
        quantification=quantification,
        offsets=offsets,
        cloud_cover=_number(cover, "Cloud_Coverage_Assessment", where) if cover else None,
        granules=_granules(tree, elements, where),
        note=f"{tree.name}: {note}" if note else "",
    )


def _root(content: bytes, where: str) -> ElementTree.Element:
    """Parse XML that anybody may have written: neither document types nor entities, of ordinary size."""

    def refuse(*_: object) -> None:
        raise ProductError(
            f"{where} declares a document type or entities, which no product does: it was tampered with; "
            "get it anew"
        )

    if len(content) > XML_BYTES:
        raise ProductError(f"{where} is longer than {XML_BYTES >> 20} MB, which no product's is: get it anew")
    look = expat.ParserCreate()
    look.StartDoctypeDeclHandler = refuse
    look.EntityDeclHandler = refuse
    try:
        look.Parse(content, True)
        return ElementTree.fromstring(content)
    except (expat.ExpatError, ElementTree.ParseError, LookupError, ValueError) as error:
        raise ProductError(f"{where} is damaged ({error}): get the product anew") from error


def _level(root: ElementTree.Element, where: str) -> Literal["1C", "2A"]:
    name = root.tag.rpartition("}")[2]
    if name == "Level-1C_User_Product":
        return "1C"
    if name == "Level-2A_User_Product":
        return "2A"
    raise ProductError(f"{where} is of a {name[:60]}; expected a product of Level-1C or Level-2A")


def _optional(elements: _Elements, name: str) -> str:
    return next(((one.text or "").strip() for one in elements.get(name, ())), "")


def _text(elements: _Elements, where: str, *names: str) -> str:
    """The first of some elements that has a text."""
    for name in names:
        if text := _optional(elements, name):
            return text
    raise ProductError(f"{where} has no {' or '.join(names)}: it is damaged, or no product's; get it anew")


def _number(text: str, name: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ProductError(f"{where} says {name} {text[:40]!r}; expected a number: get the product anew")
    return value


def _time(text: str, where: str) -> str:
    try:
        datetime.datetime.fromisoformat(text)
    except ValueError:
        raise ProductError(
            f"{where} says it was taken {text[:40]!r}; expected a time such as 2023-07-06T10:56:21Z"
        ) from None
    return text


def _offsets(elements: _Elements, name: str, baseline: float, where: str) -> tuple[dict[str, float], str]:
    """What is added to the numbers of each band; and what is strange about that."""
    told = {one.get("band_id", ""): (one.text or "").strip() for one in elements.get(name, ())}
    if not told:
        note = f"baseline {baseline:05.2f} and no {name} in its metadata: 0 was taken"
        return dict.fromkeys(BANDS, 0.0), note if baseline >= OFFSET_SINCE else ""
    missing = [band for band in BANDS if BAND_IDS[band] not in told]
    if missing:
        raise ProductError(
            f"{where} has no {name} for {', '.join(missing)}: it is damaged; get the product anew"
        )
    return {band: _number(told[BAND_IDS[band]], name, where) for band in BANDS}, ""


def _granules(tree: Tree, elements: _Elements, where: str) -> tuple[Granule, ...]:
    found = [
        _granule(tree, element, where)
        for name in ("Granule", "Granules")
        for element in elements.get(name, ())
        if element.get("granuleIdentifier")
    ]
    if not found:
        raise ProductError(f"{where} names no granule: it is damaged; get the product anew")
    return tuple(_joined(found))


def _joined(found: Sequence[Granule]) -> list[Granule]:
    """Old Level-2A products list a tile once for each resolution: put these together."""
    tiles: dict[str, Granule] = {}
    for one in found:
        known = tiles.get(one.tile, one)
        tiles[one.tile] = Granule(one.tile, {**known.files, **one.files}, known.scene or one.scene)
    return list(tiles.values())


def _granule(tree: Tree, element: ElementTree.Element, where: str) -> Granule:
    identifier = element.get("granuleIdentifier", "")
    names = [(one.text or "").strip() for one in element if one.tag.rpartition("}")[2] in _IMAGES]
    tile = next((match[1] for match in map(_TILE.search, (identifier, *names, tree.name)) if match), None)
    if tile is None:
        raise ProductError(f"{where}: no tile in the name {identifier[:80]!r}; expected one such as _T31TCJ")
    files: dict[str, str] = {}
    scene: str | None = None
    for name in names:
        band = re.search(r"_(B0[2348])(_10m)?(\.jp2)?$", name)
        if band:
            files[band[1]] = _file(tree, identifier, name, "R10m", where)
        elif re.search(r"_SCL(_L2A_.*)?_20m(\.jp2)?$", name):
            scene = _file(tree, identifier, name, "R20m", where)
    return Granule(tile, files, scene)


def _file(tree: Tree, identifier: str, name: str, folder: str, where: str) -> str:
    """The path of an image inside of the product."""
    if (
        name.startswith("/")
        or "\\" in name
        or ".." in name.split("/")
        or "/" in identifier
        or ".." in identifier
    ):
        raise ProductError(f"{where} names {name[:80]!r}, which is not inside of the product: get it anew")
    name = name.removesuffix(".jp2") + ".jp2"
    if "/" in name:
        return name
    images = f"GRANULE/{identifier}/IMG_DATA"
    inner = f"{images}/{folder}/{name}"
    return inner if tree.has(inner) else f"{images}/{name}"
