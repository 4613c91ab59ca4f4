"""What a place holds, found out before anything is written: units, bands, nodata, and the cuts to be made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.ingest.ground import OpenDates, needs_warp
from retrieval.ingest.places import Place
from tfrecords.errors import BandsError, GridError, UnitsError
from tfrecords.grid import PATCH_PX
from tfrecords.read import Raster, describe_raster
from tfrecords.schema import (
    Units,
    band_names,
    check_finite,
    check_units,
    default_nodata,
    guess_units,
    is_nodata,
)

SAMPLE_PX = 128
"""Units are told from windows of this side."""


@dataclass(frozen=True)
class Cut:
    """A rectangle of a place, and the dates that have ground in it."""

    x0: int
    """First column on the place's grid."""
    y0: int
    """First row."""
    height: int
    """Rows."""
    width: int
    """Columns."""
    dates: tuple[int, ...]
    """Numbers of the dates that are kept here, in the order of time."""


@dataclass(frozen=True)
class Survey:
    """A place that was looked at."""

    place: Place
    """The place."""
    rasters: tuple[Raster, ...]
    """Its dates in the order of time."""
    warped: tuple[bool, ...]
    """Which dates are brought onto the first one's grid."""
    bands: tuple[str, ...]
    """Bands that all dates have, in the order of the first."""
    picks: tuple[tuple[int, ...], ...]
    """For each date, where those bands are in its file, from 0."""
    units: Units
    """Units of all dates."""
    sure: bool
    """Whether the units were stated, or told beyond doubt from dtype and range."""
    dtype: np.dtype
    """Type that holds all dates."""
    tags: tuple[float | None, ...]
    """Nodata of each file."""
    nodata: float | None
    """Nodata of what is cut from it: one value for all dates."""

    def opened(self) -> OpenDates:
        """The dates, for reading."""
        return OpenDates(self.rasters, self.warped, self.nodata)

    def read(self, dates: OpenDates, number: int, cut: Cut) -> NDArray[np.generic]:
        """One date of a cut.

        Args:
            dates: From `opened`.
            number: Which date.
            cut: Where.

        Returns:
            (height, width, bands) in the common dtype, bands and nodata.

        Raises:
            ArrayError: NaN or infinity that is not nodata, or a damaged file.
        """
        pixels = dates.read(number, cut.x0, cut.y0, cut.height, cut.width)
        tag = self.tags[number]
        if tag is None and self.warped[number]:
            tag = self.nodata
        check_finite(pixels, tag, str(self.rasters[number].path))
        gone = is_nodata(pixels, tag)
        out = pixels[..., list(self.picks[number])].astype(self.dtype)
        if self.nodata is not None:
            out[gone] = self.nodata
        return out


def survey(place: Place, bands: Sequence[str] | None, units: str | None) -> Survey:
    """Look at a place of at least two dates.

    Args:
        place: The place.
        bands: Names of the bands, if stated.
        units: Units, if stated.

    Returns:
        What is there.

    Raises:
        BandsError: Bands cannot be named, or the dates share none.
        UnitsError: Units cannot be told, or differ between dates.
        GridError: Dates lie on grids that cannot be brought together.
        ArrayError: A file is damaged.
    """
    rasters = tuple(describe_raster(one.path) for one in place.files)
    names = [_names(raster, bands) for raster in rasters]
    shared = tuple(name for name in names[0] if all(name in other for other in names))
    if not shared:
        shown = "; ".join(f"{r.path.name}: {' '.join(n)}" for r, n in zip(rasters, names, strict=True))
        raise BandsError(
            f"{place.name}: its dates have no band in common ({shown}); expected one at least: state the "
            "names with --bands if the descriptions are wrong"
        )
    told, sure = _units(rasters, units)
    warped = tuple(needs_warp(rasters[0], raster) for raster in rasters)
    tags = tuple(default_nodata(told) if r.nodata is None else r.nodata for r in rasters)
    dtype = np.result_type(*[raster.dtype for raster in rasters])
    return Survey(
        place,
        rasters,
        warped,
        shared,
        tuple(tuple(own.index(name) for name in shared) for own in names),
        told,
        sure,
        dtype,
        tags,
        _common_tag(tags, dtype, needed=any(warped)),
    )


def _names(raster: Raster, given: Sequence[str] | None) -> tuple[str, ...]:
    try:
        return band_names(raster.count, given, raster.descriptions)
    except BandsError as error:
        raise BandsError(f"{raster.path}: {error}") from error


def _common_tag(tags: Sequence[float | None], dtype: np.dtype, *, needed: bool) -> float | None:
    """One nodata value for all dates: the first that the dtype can hold, else a value that suits it."""
    known = [tag for tag in tags if tag is not None]
    for tag in known:
        if dtype.kind == "f" or (np.isfinite(tag) and float(np.array(tag).astype(dtype)) == tag):
            return tag
    if not known and not needed:
        return None
    return float("nan") if dtype.kind == "f" else 0.0


def _units(rasters: Sequence[Raster], stated: str | None) -> tuple[Units, bool]:
    """Units of a place; all its dates must have the same."""
    if stated:
        return check_units(stated), True
    samples = [_sample(raster) for raster in rasters]
    # A date that is all nodata says nothing.
    told = [
        (raster.path, *guess_units(sample, str(raster.path)))
        for raster, sample in zip(rasters, samples, strict=True)
        if sample.size or not any(other.size for other in samples)
    ]
    for path, units, _ in told:
        if units != told[0][1]:
            raise UnitsError(
                f"{path} looks like {units}, {told[0][0]} like {told[0][1]}; expected the same units on all "
                "dates of a place: state them with --units, or bring the files to one"
            )
    return told[0][1], all(sure for *_, sure in told)


def _sample(raster: Raster) -> NDArray[np.generic]:
    """Valid pixels from nine windows spread over a file, or from the first block that has any; (m, bands)."""
    import rasterio

    if raster.dtype == np.uint8:
        return np.zeros((1, raster.count), np.uint8)  # the type says it all
    with rasterio.open(raster.path) as dataset:
        samples = [_valid_pixels(dataset, raster, window) for window in _spread_windows(raster)]
        if not any(sample.size for sample in samples):
            blocks = (window for _, window in dataset.block_windows(1))
            samples = [next(filter(len, (_valid_pixels(dataset, raster, one) for one in blocks)), samples[0])]
    return np.concatenate(samples)


def _valid_pixels(dataset: Any, raster: Raster, window: Any) -> NDArray[np.generic]:
    pixels = np.moveaxis(dataset.read(window=window), 0, -1)
    return pixels[~is_nodata(pixels, raster.nodata)]


def _spread_windows(raster: Raster) -> list[Any]:
    from rasterio.windows import Window

    height, width = min(raster.height, SAMPLE_PX), min(raster.width, SAMPLE_PX)
    rows = sorted({round((raster.height - height) * part) for part in (0.1, 0.5, 0.9)})
    cols = sorted({round((raster.width - width) * part) for part in (0.1, 0.5, 0.9)})
    return [Window(x, y, width, height) for y in rows for x in cols]


def plan_cuts(seen: Survey, size_px: int, max_nodata: float) -> list[Cut]:
    """Cut a place into squares and find which dates have ground in each.

    Args:
        seen: The place.
        size_px: Side of the squares; a place that is smaller along an axis is kept whole along it, and the
            last square of a larger one is moved back inside, over its neighbour.
        max_nodata: Dates with a larger share of nodata in a square are left out of it.

    Returns:
        The cuts that have two dates at least, row by row.

    Raises:
        GridError: The place is smaller than a patch.
        ArrayError: NaN or infinity that is not nodata, or a damaged file.
    """
    first = seen.rasters[0]
    if min(first.height, first.width) < PATCH_PX:
        raise GridError(
            f"{seen.place.name} has {first.height} x {first.width} px (rows x columns); expected at least "
            f"{PATCH_PX} each way"
        )
    rows = starts(first.height, size_px)
    cols = starts(first.width, size_px)
    height, width = min(size_px, first.height), min(size_px, first.width)
    cuts = []
    with seen.opened() as dates:
        for y0 in rows:
            for x0 in cols:
                cut = Cut(x0, y0, height, width, tuple(range(len(seen.rasters))))
                kept = tuple(n for n in cut.dates if _nodata_share(seen, dates, n, cut) <= max_nodata)
                if len(kept) > 1:
                    cuts.append(Cut(x0, y0, height, width, kept))
    return cuts


def _nodata_share(seen: Survey, dates: OpenDates, number: int, cut: Cut) -> float:
    return float(is_nodata(seen.read(dates, number, cut), seen.nodata).mean())


def starts(length_px: int, size_px: int) -> list[int]:
    """Where squares begin along an axis so that nothing is lost: the last one ends with the axis.

    Args:
        length_px: Length of the axis.
        size_px: Side of the squares.

    Returns:
        First pixels, ascending; [0] where the axis is no longer than a square.
    """
    if length_px <= size_px:
        return [0]
    return [*range(0, length_px - size_px, size_px), length_px - size_px]
