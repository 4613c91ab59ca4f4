"""Names and order of bands.

Names come from the user, else from a file's band descriptions, else from their count. The colour
interpretation of a raster is never used: GDAL calls the fourth of four bytes alpha.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tfrecords.errors import BandsError

BANDS = ("B04", "B03", "B02", "B08")
"""Order of the bands of a record: red, green, blue, near infrared; 10 m pixels."""

BY_COUNT = {4: BANDS, 3: BANDS[:3], 1: ("unknown",)}
"""What a number of bands stands for when nothing names them."""

COMMON_NAMES = {"red": "B04", "green": "B03", "blue": "B02", "nir": "B08"}
"""STAC's common names of the four, https://github.com/stac-extensions/eo#common-band-names."""


def canonical(name: str) -> str:
    """One spelling for a band: "b4", "B4, central wavelength 665 nm" and "Red" are "B04"."""
    name = name.strip()
    number = re.match(r"^[Bb]0*(\d{1,2})([Aa]?)(?![0-9A-Za-z])", name)
    if number:
        return f"B{int(number[1]):02d}{number[2].upper()}" if not number[2] else f"B{int(number[1])}A"
    return COMMON_NAMES.get(name.lower(), name)


def band_names(
    count: int, given: Sequence[str] | None = None, descriptions: Sequence[str | None] | None = None
) -> tuple[str, ...]:
    """Name the bands of an array or a file.

    Args:
        count: number of bands that there are, at least 1.
        given: names that the user stated; they win.
        descriptions: a raster's band descriptions; used if every band has one.

    Returns:
        `count` distinct names, in the order in which the bands are stored.

    Raises:
        BandsError: as many names as bands are needed, none twice; or nothing names the bands and
            their count is neither 4, 3 nor 1.
    """
    if given:
        return _distinct([canonical(n) for n in given], count, "--bands")
    if descriptions and all(d and d.strip() for d in descriptions):
        return _distinct([canonical(str(d)) for d in descriptions], count, "the band descriptions")
    if count not in BY_COUNT:
        raise BandsError(
            f"{count} bands have no names; expected 4 ({' '.join(BANDS)}), 3 ({' '.join(BANDS[:3])}) or 1, "
            f"or band descriptions in the file: name all {count} with --bands"
        )
    return BY_COUNT[count]


def _distinct(names: Sequence[str], count: int, origin: str) -> tuple[str, ...]:
    """Check names against the number of bands."""
    if len(names) != count:
        raise BandsError(
            f"{origin} name {len(names)} bands ({' '.join(names)}) but the pixels have {count}: "
            f"name every band once"
        )
    doubled = sorted({n for n in names if names.count(n) > 1})
    if doubled or not all(names):
        raise BandsError(
            f"{origin} are {' '.join(repr(n) for n in names)}: every band needs a name of its own"
            + (f", {' '.join(doubled)} occurs twice" if doubled else "")
            + "; name them with --bands"
        )
    return tuple(names)
