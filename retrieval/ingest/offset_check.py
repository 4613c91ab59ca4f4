"""The offset check: dates whose pixels suggest that the metadata state a wrong offset.

From processing baseline 04.00 on, 1000 is added to every digital number (DN) before it is stored. Where the
metadata are wrong about that, a date is 1000 DN brighter or darker than the other dates of its place. Seasons
do not do that: shadow or water is dark all year. Suspect dates are named and left unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from retrieval.ingest.grids import quiet_gdal
from tfrecords.errors import ArrayError
from tfrecords.schema.records import Provenance

DARK_PERCENT = 0.1
"""Percentile over all bands that stands for the darkest pixels of a date."""
SUSPECT_GAP_DN = (600.0, 1400.0)
"""A date is suspect if its darkest pixels differ this much from the median of the other dates, DN."""
NEGATIVE_DN, NEGATIVE_SHARE = -100.0, 0.01
"""An offset is suspect if it leaves more than this share of the pixels below this DN."""
SIDE_PX = 1024
"""Largest side of the reduced image in which the darkest pixels of a file are measured."""


def darkest_dn(pixels: NDArray[np.uint16]) -> float | None:
    """Return the DN of a date's darkest pixels, any shape, 0 = nodata; None where all is nodata."""
    known = pixels[pixels > 0]
    return float(np.percentile(known, DARK_PERCENT)) if known.size else None


def find_suspect_dates(darkest: Mapping[str, float]) -> dict[str, float]:
    """Find the dates of a place whose darkest pixels differ by about 1000 DN from the other dates.

    Args:
        darkest: `darkest_dn` of each date.

    Returns:
        The difference from the median of the other dates, for each suspect date in order. Where two groups of
        dates contradict each other, both are named.
    """
    low, high = SUSPECT_GAP_DN
    suspects = {}
    for date, value in sorted(darkest.items()):
        others = [other for name, other in darkest.items() if name != date]
        if others and low <= abs(value - median(others)) <= high:
            suspects[date] = value - median(others)
    return suspects


def warn_of_suspect_dates(place: str, darkest: Mapping[str, float]) -> list[str]:
    """Return one sentence that names the suspect dates of a place; empty without suspect dates."""
    suspects = find_suspect_dates(darkest)
    if not suspects:
        return []
    dates = ", ".join(f"{date} ({gap:+.0f} DN)" for date, gap in suspects.items())
    return [
        f"warning: {place}: the darkest pixels of {dates} differ by about 1000 DN from the other dates. The "
        "metadata may state a wrong offset, or it is snow or haze. Pixels were left unchanged"
    ]


def check_files(paths: Sequence[Path]) -> list[str]:
    """Compare the dates of each place.

    Args:
        paths: files of digital numbers, `<place>/<date>.tif`; other dates in these folders are compared too.

    Returns:
        One sentence for each place with suspect dates. Levels 1C and 2A are compared apart, because
        1C includes the haze of the air.

    Raises:
        ArrayError: a file is damaged.
    """
    groups: dict[tuple[Path, str], dict[str, float]] = {}
    for folder in sorted({path.parent for path in paths}):
        for path in sorted(folder.glob("[!.]*.tif")):
            level, darkest = _read_darkest(path)
            if darkest is not None:
                groups.setdefault((folder, level), {})[path.stem] = darkest
    return [
        text for (folder, _), dates in groups.items() for text in warn_of_suspect_dates(folder.name, dates)
    ]


def _read_darkest(path: Path) -> tuple[str, float | None]:
    """Return the product level of a file ("1C", "2A" or "" = unknown) and its darkest DN."""
    import rasterio
    from rasterio.errors import RasterioError

    try:
        with quiet_gdal(), rasterio.open(path, driver="GTiff") as dataset:
            shape = dataset.count, min(SIDE_PX, dataset.height), min(SIDE_PX, dataset.width)
            pixels = dataset.read(out_shape=shape)
            source = Provenance.from_tags(dataset.tags()).source
    except RasterioError as error:
        raise ArrayError(f"{path}: damaged, it cannot be read ({error}). Remove it and run again") from error
    level = next((level for level in ("1C", "2A") if f"MSIL{level}" in source), "")
    return level, darkest_dn(pixels)


def leaves_negatives(stored: NDArray[np.generic], offset_dn: float) -> bool:
    """Return whether an offset makes too many pixels negative, so that it must have been applied already.

    Args:
        stored: digital numbers in the file, any shape, 0 = nodata.
        offset_dn: added to them.
    """
    known = stored[stored != 0]
    if not known.size or offset_dn >= 0:
        return False
    return bool((known.astype(np.float64) + offset_dn < NEGATIVE_DN).mean() > NEGATIVE_SHARE)
