"""The offset and scale of a STAC item's digital numbers, read from its metadata."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from retrieval.ingest.dated_image import QUANTIFICATION

OFFSET_SINCE_0400 = -1000.0
"""Added to digital numbers from processing baseline 04.00 on."""
DAY_OF_0400 = datetime.date(2022, 1, 25)
"""Products processed from this day on have baseline 04.00 or later."""
GUESSED = "the date, a guess"
"""Source of an offset that only the day suggests."""
UNKNOWN_PRODUCT = "nothing, neither Level-1C nor Level-2A"
"""Source of the offset of a product that states none and has no level, such as a mosaic."""
_NAMES = ("s2:product_uri", "sentinel:product_id", "s2:granule_id", "s2:tile_id", "s2:datastrip_id", "title")
_LEVEL = re.compile(r"L(EVEL)?[-_ ]?(1C|2A)(?![0-9A-Z])|S2MSI(1C|2A)|^S2[A-D]_(?!.*L3)")


@dataclass(frozen=True)
class Offset:
    """From stored numbers to reflectance: (stored + dn) / quantification."""

    dn: float
    """Added to a stored number."""
    quantification: float = QUANTIFICATION
    """Divides the sum."""
    source: str = ""
    """The metadata that state it."""


def baseline_of(item: Mapping[str, Any]) -> str:
    """Return the processing baseline of an item, such as "04.00"; empty where it is unknown.

    It is read from `s2:processing_baseline`, `sentinel:processing_baseline`, `processing:version`, or the
    name of the product or granule (`_N0214_`, before December 2016 `_N02.08`).
    """
    properties = item.get("properties", {})
    for key in ("s2:processing_baseline", "sentinel:processing_baseline", "processing:version"):
        version = re.fullmatch(r"0?(\d)\.(\d\d?)", str(properties.get(key, "")).strip())
        if version:
            return f"0{version[1]}.{version[2]:0<2}"
    for name in (*(properties.get(key, "") for key in _NAMES), item.get("id", "")):
        if version := re.search(r"_N(\d\d)\.?(\d\d)(?=[_.]|$)", str(name)):
            return f"{version[1]}.{version[2]}"
    return ""


def offset_of(item: Mapping[str, Any], raster: Mapping[str, Any], day: datetime.date) -> Offset:
    """Return what must be added to the numbers of a band.

    The first of these that is present decides:

    1. `earthsearch:boa_offset_applied` (or `sentinel:`) is true: 0. `raster:bands` then still states the
       offset of the original product.
    2. The band's `scale` and `offset` (`raster:bands`, or `bands` with `raster:scale` as in STAC 1.1):
       offset / scale, in digital numbers.
    3. The processing baseline: -1000 from 04.00 on, 0 before. (Planetary Computer states only this.)
    4. The day, for Level-1C and Level-2A: -1000 from 25 January 2022 on, 0 before; a guess. Other products,
       such as mosaics, have no offset.

    Args:
        item: a STAC item as JSON.
        raster: the band's metadata, with or without the keys `scale` and `offset`.
        day: the acquisition day.

    Returns:
        Offset, quantification (1 / scale where given, else 10000) and their source.
    """
    properties = item.get("properties", {})
    scale = _number(raster.get("scale"))
    quantification = 1 / scale if scale else float(QUANTIFICATION)
    for key in ("earthsearch:boa_offset_applied", "sentinel:boa_offset_applied"):
        if properties.get(key) is True:
            return Offset(0.0, quantification, key)
    offset = _number(raster.get("offset"))
    if scale and offset is not None:
        return Offset(round(offset / scale, 6), quantification, "raster:bands")
    baseline = baseline_of(item)
    if baseline:
        dn = OFFSET_SINCE_0400 if baseline >= "04.00" else 0.0
        return Offset(dn, quantification, f"baseline {baseline}")
    if not _has_level(item):
        return Offset(0.0, quantification, UNKNOWN_PRODUCT)
    return Offset(OFFSET_SINCE_0400 if day >= DAY_OF_0400 else 0.0, quantification, GUESSED)


def _has_level(item: Mapping[str, Any]) -> bool:
    """Return whether an item is a product of Level-1C or Level-2A: by its level, else by its names."""
    properties = item.get("properties", {})
    keys = ("processing:level", "s2:product_type", "product:type", "sentinel:product_type")
    stated = [str(properties[key]).upper() for key in keys if properties.get(key)]
    if stated:
        return any(_LEVEL.search(text) or text in ("L1", "L2", "1C", "2A") for text in stated)
    names = (item.get("id", ""), *(properties.get(key, "") for key in _NAMES), item.get("collection", ""))
    return any(_LEVEL.search(str(name).upper()) for name in names)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
