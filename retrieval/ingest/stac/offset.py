"""What is added to a catalogue's digital numbers: read from the metadata, and held against the pixels."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.ingest.product import QUANTIFICATION

SINCE_0400 = -1000.0
"""Added to digital numbers from processing baseline 04.00 on."""
DAY_OF_0400 = datetime.date(2022, 1, 25)
"""Products processed from this day on are of baseline 04.00 or later."""
DARK_PERCENT = 0.1
"""Percentile that stands for the darkest pixels of a date."""
DARK_GAP = (600.0, 1400.0)
"""Dates whose darkest pixels differ by so many digital numbers may differ by an offset of 1000."""
BELOW_ZERO = (-100.0, 0.01)
"""An offset that leaves more than this share of the pixels below this digital number was one too many."""


@dataclass(frozen=True)
class Offset:
    """How stored numbers become reflectance: (stored + dn) / quantification."""

    dn: float
    """Added to a stored number."""
    quantification: float = QUANTIFICATION
    """What it is divided by then."""
    told_by: str = ""
    """Which metadata said so."""


def baseline_of(item: Mapping[str, Any]) -> str:
    """Processing baseline of an item, such as "04.00"; empty where nothing says.

    Read from `s2:processing_baseline`, `sentinel:processing_baseline`, `processing:version`, or the name of
    the product.
    """
    properties = item.get("properties", {})
    for key in ("s2:processing_baseline", "sentinel:processing_baseline", "processing:version"):
        found = re.fullmatch(r"0?(\d)\.(\d\d?)", str(properties.get(key, "")).strip())
        if found:
            return f"0{found[1]}.{found[2]:0<2}"
    for name in (properties.get("s2:product_uri", ""), item.get("id", "")):
        if found := re.search(r"_N(\d\d)(\d\d)_", str(name)):
            return f"{found[1]}.{found[2]}"
    return ""


def offset_of(item: Mapping[str, Any], raster: Mapping[str, Any], day: datetime.date) -> Offset:
    """Tell what has to be added to the numbers of a band.

    The first of these that says anything is believed:

    1. `earthsearch:boa_offset_applied` (or `sentinel:`) is true: 0, whatever `raster:bands` says, which then
       still holds the offset of the original product.
    2. The band's `scale` and `offset` (`raster:bands`, or `bands` with `raster:scale` as in STAC 1.1):
       offset / scale, in digital numbers.
    3. The processing baseline: -1000 from 04.00 on, 0 before. (Planetary Computer says no more than this.)
    4. The day: -1000 from 25 January 2022 on, 0 before; a guess.

    Args:
        item: A STAC item as JSON.
        raster: What it says of the band: keys `scale` and `offset`, or none of them.
        day: When it was taken.

    Returns:
        Offset, quantification (1 / scale where given, else 10000) and where they come from.
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
        return Offset(SINCE_0400 if baseline >= "04.00" else 0.0, quantification, f"baseline {baseline}")
    return Offset(SINCE_0400 if day >= DAY_OF_0400 else 0.0, quantification, "the date, a guess")


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and np.isfinite(value) else None


def dark_of(pixels: NDArray[np.uint16]) -> float | None:
    """Digital number of a date's darkest pixels: 0.1 percentile over all bands; None where all is hidden."""
    known = pixels[pixels > 0]
    return float(np.percentile(known, DARK_PERCENT)) if known.size else None


def goes_below_zero(stored: NDArray[np.generic], offset: Offset) -> bool:
    """Whether an offset leaves so many pixels below zero that it can't be right.

    Args:
        stored: Numbers as in the file, any shape; 0 is no data.
        offset: What is to be added.
    """
    known = stored[stored != 0]
    if not known.size or offset.dn >= 0:
        return False
    limit, share = BELOW_ZERO
    return bool((known.astype(np.float64) + offset.dn < limit).mean() > share)


def odd_ones(dark: Mapping[str, float]) -> list[str]:
    """Dates of a place whose darkest pixels lie about 1000 digital numbers off those of the others.

    Args:
        dark: What `dark_of` gave for each date.

    Returns:
        The dates, in order; those that have too many unlike neighbours to say which are odd are all named.
    """
    odd = []
    for date, value in dark.items():
        others: Sequence[float] = [other for name, other in dark.items() if name != date]
        if others and DARK_GAP[0] <= abs(value - float(np.median(others))) <= DARK_GAP[1]:
            odd.append(date)
    return sorted(odd)
