"""The metadata of a product: level, baseline, time, offsets, cloud cover, and the files of its bands.

Formats: S2 Products Specification Document, issues 13 to 15 (https://sentinels.copernicus.eu/web/sentinel/user-guides/
sentinel-2-msi/document-library). The XML is not trusted: entities, and files outside the product, are errors.
"""

from __future__ import annotations

import datetime
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from retrieval.ingest.safe.tree import XML_BYTES, Tree
from retrieval.ingest.safe.xml import Elements, by_name, number_of, optional, parse_xml, text_of, time_of
from tfrecords.errors import ProductError
from tfrecords.schema import solar_day
from tfrecords.schema.records import Provenance

BANDS = ("B04", "B03", "B02", "B08")
"""The 10 m bands, in the order in which they are stored."""
BAND_IDS = {"B02": "1", "B03": "2", "B04": "3", "B08": "7"}
"""Their ids in the metadata."""
IMAGE_SUFFIXES = (".jp2", ".tif", ".tiff", ".TIF")
"""Suffixes of images: JPEG 2000 as ESA writes them, or converted to GeoTIFF."""
OFFSET_SINCE = 4.0
"""First processing baseline with offsets."""

TILE = re.compile(r"_T(\d{2}[C-HJ-NP-X][A-HJ-NP-Z]{2})(?=[_.]|$)")
_TAGS = {
    "1C": (("QUANTIFICATION_VALUE",), "RADIO_ADD_OFFSET"),
    "2A": (("BOA_QUANTIFICATION_VALUE", "L2A_BOA_QUANTIFICATION_VALUE"), "BOA_ADD_OFFSET"),
}
"""Elements of the quantification (the second name before 2018) and of the offsets."""
_IMAGES = ("IMAGE_FILE", "IMAGE_FILE_2A", "IMAGE_ID", "IMAGE_ID_2A")

_CLOUD_MASKS = (
    re.compile(r"(^|/)(QI_DATA|qi)/MSK_CLASSI_B00\.jp2$"),
    re.compile(r"(^|/)(QI_DATA|qi)/(MSK_CLOUDS_B00|S2\w+_MSK_CLOUDS_\w+_B00_MSIL1C)\.gml$"),
)


@dataclass(frozen=True)
class Granule:
    """One tile of a product; products before December 2016 can have several."""

    tile: str
    """MGRS name, such as 31TCJ."""
    files: Mapping[str, str]
    """The file of each of `BANDS`, relative to the product."""
    scene: str | None
    """The file of the scene classification at 20 m; None for Level-1C."""
    coarse: bool = False
    """Whether it has images of 20 or 60 m, such as a run of Sen2Cor without 10 m makes alone."""
    clouds: str | None = None
    """The file of the cloud mask of Level-1C or MAJA; None where there is no such file."""
    edge: str | None = None
    """The file of MAJA that marks pixels outside of the image; None where there is no such file."""
    snow: str | None = None
    """The geophysical mask of MAJA, which marks snow; None where there is no such file."""

    @property
    def folder(self) -> str:
        """Its folder, relative to the product."""
        return next(iter(self.files.values()), "").partition("/IMG_DATA/")[0]


@dataclass(frozen=True)
class Product:
    """The metadata of a product."""

    tree: Tree
    """Its folder or zip."""
    level: Literal["1C", "2A"]
    """1C: top of the atmosphere; 2A: surface, with a scene classification."""
    baseline: str
    """Processing baseline, such as 04.00; empty for MAJA."""
    taken: str
    """Acquisition time, ISO 8601, UTC."""
    made: str
    """Processing time, ISO 8601, UTC; empty where unknown."""
    quantification: float
    """Divides digital numbers to give reflectance."""
    offsets: Mapping[str, float]
    """Added to the digital numbers of each of `BANDS` before the division; 0 before baseline 04.00."""
    cloud_cover: float | None
    """Percent under cloud, 0 to 100; None where unknown."""
    granules: tuple[Granule, ...]
    """Its tiles, at least one."""
    note: str
    """What looks wrong in the metadata; usually empty."""
    nodata: int = 0
    """Stored number of a pixel without data."""
    dtype: str = "uint16"
    """Type of the stored numbers."""

    def day(self, longitude: float | None) -> str:
        """Return the acquisition day, YYYY-MM-DD: the solar day at a longitude in degrees."""
        return solar_day(datetime.datetime.fromisoformat(self.taken), longitude).isoformat()

    @property
    def age(self) -> tuple[float, str]:
        """Sort key: baseline, then processing time."""
        return float(self.baseline or 0), self.made

    def provenance(self, recipe: str) -> Provenance:
        """Return the tags of a file made from the product."""
        return Provenance(self.tree.name, self.taken, self.baseline, self.cloud_cover, recipe)


def read_product(tree: Tree) -> Product:
    """Read a product's metadata.

    Args:
        tree: its folder or zip.

    Returns:
        The metadata.

    Raises:
        ProductError: the XML is damaged, declares a document type or entities, names files outside of the
            product, or lacks an element.
    """
    where = f"{tree.path}: {tree.metadata}"
    root = parse_xml(tree.head(tree.metadata, XML_BYTES + 1), where)
    elements = by_name(root)
    level = _level(root, where)
    names, offset = _TAGS[level]
    baseline = text_of(elements, where, "PROCESSING_BASELINE")
    number = number_of(baseline, "PROCESSING_BASELINE", where)
    offsets, note = _offsets(elements, offset, number, where)
    quantification = number_of(text_of(elements, where, *names), names[0], where)
    if quantification <= 0:
        raise ProductError(f"{where}: {names[0]} is {quantification:g}. Expected a number above 0")
    cover = optional(elements, "Cloud_Coverage_Assessment")
    granules = _granules(tree, elements, where)
    if level == "1C":
        granules = tuple(
            replace(granule, clouds=find_clouds(tree, f"{granule.folder}/QI_DATA/")) for granule in granules
        )
    return Product(
        tree=tree,
        level=level,
        baseline=baseline,
        taken=time_of(text_of(elements, where, "PRODUCT_START_TIME", "DATATAKE_SENSING_START"), where),
        made=optional(elements, "GENERATION_TIME"),
        quantification=quantification,
        offsets=offsets,
        cloud_cover=number_of(cover, "Cloud_Coverage_Assessment", where) if cover else None,
        granules=granules,
        note=f"{tree.name}: {note}" if note else "",
    )


def _level(root: ElementTree.Element, where: str) -> Literal["1C", "2A"]:
    name = root.tag.rpartition("}")[2]
    if name == "Level-1C_User_Product":
        return "1C"
    if name == "Level-2A_User_Product":
        return "2A"
    raise ProductError(f"{where}: describes a {name[:60]}. Expected a product of Level-1C or Level-2A")


def _offsets(elements: Elements, name: str, baseline: float, where: str) -> tuple[dict[str, float], str]:
    """Return the offset of each band, and a note where the offsets look wrong."""
    stated = {element.get("band_id", ""): (element.text or "").strip() for element in elements.get(name, ())}
    if not stated:
        note = f"baseline {baseline:05.2f}, but no {name} in its metadata: an offset of 0 was assumed"
        return dict.fromkeys(BANDS, 0.0), note if baseline >= OFFSET_SINCE else ""
    missing = [band for band in BANDS if BAND_IDS[band] not in stated]
    if missing:
        raise ProductError(f"{where}: no {name} for {', '.join(missing)}. Download the product again")
    return {band: number_of(stated[BAND_IDS[band]], name, where) for band in BANDS}, ""


def _granules(tree: Tree, elements: Elements, where: str) -> tuple[Granule, ...]:
    granules = [
        _granule(tree, element, where)
        for name in ("Granule", "Granules")
        for element in elements.get(name, ())
        if element.get("granuleIdentifier")
    ]
    if not granules:
        raise ProductError(f"{where}: names no granule. Download the product again")
    return tuple(_merge_by_tile(granules))


def _merge_by_tile(granules: Sequence[Granule]) -> list[Granule]:
    """Merge granules of one tile: old Level-2A products list a tile once per resolution."""
    tiles: dict[str, Granule] = {}
    for granule in granules:
        former = tiles.get(granule.tile, granule)
        files = {**former.files, **granule.files}
        scene, coarse = former.scene or granule.scene, former.coarse or granule.coarse
        tiles[granule.tile] = Granule(granule.tile, files, scene, coarse)
    return list(tiles.values())


def _granule(tree: Tree, element: ElementTree.Element, where: str) -> Granule:
    identifier = element.get("granuleIdentifier", "")
    names = [(child.text or "").strip() for child in element if child.tag.rpartition("}")[2] in _IMAGES]
    tile = next((match[1] for match in map(TILE.search, (identifier, *names, tree.name)) if match), None)
    if tile is None:
        raise ProductError(f"{where}: no tile in the name {identifier[:80]!r}. Expected one such as _T31TCJ")
    files: dict[str, str] = {}
    scene: str | None = None
    for name in names:
        band = re.search(r"_(B0[2348])(_10m)?(\.jp2)?$", name)
        if band:
            files[band[1]] = _file(tree, identifier, name, "R10m", where)
        elif re.search(r"_SCL(_L2A_.*)?_20m(\.jp2)?$", name):
            scene = _file(tree, identifier, name, "R20m", where)
    return Granule(tile, files, scene, any(re.search(r"_[26]0m(\.jp2)?$", name) for name in names))


def _file(tree: Tree, identifier: str, name: str, folder: str, where: str) -> str:
    """Return the path of an image inside the product."""
    if (
        name.startswith("/")
        or "\\" in name
        or ".." in name.split("/")
        or "/" in identifier
        or ".." in identifier
    ):
        raise ProductError(
            f"{where}: names {name[:80]!r}, which is not inside the product. Download the product again"
        )
    stem = re.sub(r"\.(jp2|tiff?)$", "", name, flags=re.IGNORECASE)
    images = f"GRANULE/{identifier}/IMG_DATA"
    stems = [stem] if "/" in stem else [f"{images}/{folder}/{stem}", f"{images}/{stem}"]
    candidates = [stem + suffix for suffix in IMAGE_SUFFIXES for stem in stems]
    return next((file for file in candidates if tree.has(file)), f"{stems[-1]}.jp2")


def find_clouds(tree: Tree, folder: str) -> str | None:
    """Return the file of Level-1C's cloud mask in a folder; a raster (baseline 04.00) before polygons."""
    names = tree.names(folder)
    return next((name for kind in _CLOUD_MASKS for name in names if kind.search(name)), None)
