"""Names and order of bands.

Names come from the user, else from a file's band descriptions, else from the number of bands. The colour
interpretation of a raster is never used: GDAL calls the fourth of four bands alpha.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tfrecords.errors import BandsError

BANDS = ("B04", "B03", "B02", "B08")
"""Order of the bands of a record: red, green, blue, near infrared; 10 m pixels."""

BY_COUNT = {4: BANDS, 3: BANDS[:3], 1: ("unknown",)}
"""Names by number of bands, where nothing else names them."""

COMMON_NAMES = {
    **{"red": "B04", "green": "B03", "blue": "B02", "nir": "B08", "nir08": "B8A", "nir09": "B09"},
    **{"nir_1": "B08", "nir_2": "B8A", "coastal": "B01", "coastal_aerosol": "B01", "cirrus": "B10"},
    **{"rededge071": "B05", "rededge075": "B06", "rededge078": "B07", "swir16": "B11", "swir22": "B12"},
    **{"rededge1": "B05", "rededge2": "B06", "rededge3": "B07", "swir_2": "B11", "swir_3": "B12"},
    **{"red_edge_1": "B05", "red_edge_2": "B06", "red_edge_3": "B07"},
}
"""Common names of STAC, https://github.com/stac-extensions/eo#common-band-names, and of DEA (Australia)."""
_PREFIX = re.compile(r"^(nbart?|sr|boa|toa)_")
"""What some archives put before a name, by the correction: nbart_red is red."""


def canonical(name: str) -> str:
    """Return the one spelling of a band: "b4", "B4, central wavelength 665 nm" and "nbart_red" are "B04"."""
    name = name.strip()
    number = re.match(r"^[Bb]0*(\d{1,2})([Aa]?)(?![0-9A-Za-z])", name)
    if number:
        return f"B{int(number[1]):02d}{number[2].upper()}" if not number[2] else f"B{int(number[1])}A"
    return COMMON_NAMES.get(_PREFIX.sub("", name.lower()), name)


def is_band_name(name: str) -> bool:
    """Return whether a text is the name of a known band."""
    return bool(re.fullmatch(r"B(0[1-9]|1[0-2]|8A)", canonical(name)))


def band_names(
    count: int, given: Sequence[str] | None = None, descriptions: Sequence[str | None] | None = None
) -> tuple[str, ...]:
    """Name the bands of an array or a file.

    Args:
        count: number of bands, at least 1.
        given: names from the user; they take precedence.
        descriptions: a raster's band descriptions; used if every band has one.

    Returns:
        `count` distinct names, in the order in which the bands are stored.

    Raises:
        BandsError: the number of names is wrong, a name is doubled, or nothing names the bands and
            their number is not 4, 3 or 1.
    """
    if given:
        return _distinct([canonical(n) for n in given], count, "--bands")
    if descriptions and all(d and d.strip() for d in descriptions):
        return _distinct([canonical(str(d)) for d in descriptions], count, "the band descriptions")
    if count not in BY_COUNT:
        raise BandsError(
            f"bands: {count} bands have no names; expected 4 ({' '.join(BANDS)}), 3 ({' '.join(BANDS[:3])}) "
            f"or 1, or band descriptions in the file. Name all {count} with --bands."
        )
    return BY_COUNT[count]


def _distinct(names: Sequence[str], count: int, origin: str) -> tuple[str, ...]:
    """Return the names if there is a distinct one for each band."""
    if len(names) != count:
        raise BandsError(
            f"{origin}: {len(names)} names ({' '.join(names)}) for {count} bands. Name every band once."
        )
    doubled = sorted({n for n in names if names.count(n) > 1})
    if doubled or not all(names):
        raise BandsError(
            f"{origin}: {' '.join(repr(n) for n in names)}; expected a distinct name for every band"
            + (f", but {' '.join(doubled)} occurs twice" if doubled else "")
            + ". Name them with --bands."
        )
    return tuple(names)
