"""The survey of a place before anything is written: units, bands, nodata, and how it is cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.ingest.grids import OpenDates, needs_warp
from retrieval.ingest.places import DatedFile, Place, acquisition_date
from tfrecords.errors import BandsError, GridError, MissingInputError, UnitsError
from tfrecords.grid import PATCH_PX
from tfrecords.read import Raster, describe_raster, units_of_sample
from tfrecords.read.rasters import names_of_bands, open_raster
from tfrecords.schema import (
    Units,
    check_finite,
    check_units,
    default_nodata,
    is_nodata,
)

SAMPLE_PX = 128
"""Side of the windows from which units are inferred."""


@dataclass(frozen=True)
class Cut:
    """A rectangle of a place, and the dates that show ground in it."""

    x0: int
    """First column on the place's grid."""
    y0: int
    """First row."""
    height: int
    """Rows."""
    width: int
    """Columns."""
    dates: tuple[int, ...]
    """Positions of the dates that are kept here, in the order of time."""


@dataclass(frozen=True)
class Survey:
    """What a place holds."""

    place: Place
    """The place."""
    rasters: tuple[Raster, ...]
    """Its dates in the order of time."""
    warped: tuple[bool, ...]
    """Whether each date is warped onto the first one's grid."""
    bands: tuple[str, ...]
    """Bands that all dates have, in the order of the first."""
    picks: tuple[tuple[int, ...], ...]
    """For each date the positions of these bands in its file, from 0."""
    units: Units
    """Units of all dates."""
    units_are_certain: bool
    """Whether the units were stated, or follow from dtype and range without doubt."""
    dtype: np.dtype
    """Type that can hold all dates."""
    tags: tuple[float | None, ...]
    """Nodata of each file."""
    nodata: float | None
    """Nodata of the cuts: one value for all dates."""

    def open(self) -> OpenDates:
        """Return the dates for reading."""
        return OpenDates(self.rasters, self.warped, self.nodata)

    def read(self, dates: OpenDates, number: int, cut: Cut) -> NDArray[np.generic]:
        """Read one date of a cut.

        Args:
            dates: from `open`.
            number: position of the date.
            cut: the rectangle.

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
        empty = is_nodata(pixels, tag)
        out = pixels[..., list(self.picks[number])].astype(self.dtype)
        if self.nodata is not None:
            out[empty] = self.nodata
        return out


def survey(place: Place, bands: Sequence[str] | None, units: str | None) -> Survey:
    """Survey a place of at least two dates.

    Args:
        place: the place.
        bands: names of the bands, if stated.
        units: units, if stated.

    Returns:
        What the place holds.

    Raises:
        BandsError: bands cannot be named, or the dates share none.
        UnitsError: units cannot be inferred, or differ between dates.
        GridError: dates lie on grids that cannot be warped to one.
        ArrayError: a file is damaged.
        MissingInputError: two files are of one acquisition day.
    """
    place, rasters = _dated(place, [describe_raster(file.file) for file in place.files])
    names = [_names(raster, bands) for raster in rasters]
    shared = tuple(name for name in names[0] if all(name in other for other in names))
    if not shared:
        bands_by_file = "; ".join(
            f"{r.path.name}: {' '.join(n)}" for r, n in zip(rasters, names, strict=True)
        )
        raise BandsError(
            f"{place.name}: its dates have no band in common ({bands_by_file}). Expected at least one. State "
            "the names with --bands if the descriptions are wrong"
        )
    place_units, certain = _units(rasters, units)
    warped = tuple(needs_warp(rasters[0], raster) for raster in rasters)
    tags = tuple(default_nodata(place_units) if r.nodata is None else r.nodata for r in rasters)
    dtype = np.result_type(*[raster.dtype for raster in rasters])
    return Survey(
        place,
        rasters,
        warped,
        shared,
        tuple(tuple(own_names.index(name) for name in shared) for own_names in names),
        place_units,
        certain,
        dtype,
        tags,
        _common_tag(tags, dtype, needed=any(warped)),
    )


def _dated(place: Place, rasters: Sequence[Raster]) -> tuple[Place, tuple[Raster, ...]]:
    """Return a place with the acquisition days of its files, and their metadata, in the order of time."""
    dated: dict[str, tuple[DatedFile, Raster]] = {}
    for file, raster in zip(place.files, rasters, strict=True):
        date = acquisition_date(file.date, raster.date)
        if date in dated:
            raise MissingInputError(
                f"{file.path} and {dated[date][0].path} are both of {date}, the solar day of their tag "
                "DATETIME. Expected one file per date of a place. Leave one out"
            )
        dated[date] = replace(file, date=date), raster
    pairs = sorted(dated.values(), key=lambda pair: pair[0].order)
    return replace(place, files=tuple(file for file, _ in pairs)), tuple(raster for _, raster in pairs)


def _names(raster: Raster, given: Sequence[str] | None) -> tuple[str, ...]:
    try:
        return names_of_bands(raster, given)
    except BandsError as error:
        raise BandsError(f"{raster.path}: {error}") from error


def _common_tag(tags: Sequence[float | None], dtype: np.dtype, *, needed: bool) -> float | None:
    """Return one nodata value for all dates: the first tag that the dtype can hold, else NaN or 0."""
    known = [tag for tag in tags if tag is not None]
    for tag in known:
        if dtype.kind == "f" or (np.isfinite(tag) and float(np.array(tag).astype(dtype)) == tag):
            return tag
    if not known and not needed:
        return None
    return float("nan") if dtype.kind == "f" else 0.0


def _units(rasters: Sequence[Raster], stated: str | None) -> tuple[Units, bool]:
    """Return the units of a place, which all its dates share, and whether they are certain."""
    if stated:
        return check_units(stated), True
    samples = [_sample(raster) for raster in rasters]
    # The units of a date that is all nodata are unknown.
    guesses = [
        (raster.path, *units_of_sample(raster, sample).settle(str(raster.path)))
        for raster, sample in zip(rasters, samples, strict=True)
        if sample.size or not any(other.size for other in samples)
    ]
    first_path, first_units, _ = guesses[0]
    for path, units, _ in guesses:
        if units != first_units:
            raise UnitsError(
                f"{path} looks like {units}, {first_path} like {first_units}. Expected the same units on all "
                "dates of a place. State them with --units, or convert the files"
            )
    return first_units, all(certain for *_, certain in guesses)


def _sample(raster: Raster) -> NDArray[np.generic]:
    """Return valid pixels (m, bands) of nine windows spread over a file, else of its first block with any."""
    if raster.dtype == np.uint8:
        return np.zeros((1, raster.count), np.uint8)  # uint8 is always byte
    with open_raster(raster.file) as dataset:
        samples = [_valid_pixels(dataset, raster, window) for window in _spread_windows(raster)]
        if not any(sample.size for sample in samples):
            blocks = (window for _, window in dataset.block_windows(1))
            samples = [
                next(filter(len, (_valid_pixels(dataset, raster, block) for block in blocks)), samples[0])
            ]
    return np.concatenate(samples)


def _valid_pixels(dataset: Any, raster: Raster, window: Any) -> NDArray[np.generic]:
    pixels = raster.values(np.moveaxis(dataset.read(window=window), 0, -1))
    return pixels[~is_nodata(pixels, raster.nodata)]


def _spread_windows(raster: Raster) -> list[Any]:
    from rasterio.windows import Window

    height, width = min(raster.height, SAMPLE_PX), min(raster.width, SAMPLE_PX)
    rows = sorted({round((raster.height - height) * part) for part in (0.1, 0.5, 0.9)})
    cols = sorted({round((raster.width - width) * part) for part in (0.1, 0.5, 0.9)})
    return [Window(x, y, width, height) for y in rows for x in cols]


def plan_cuts(survey: Survey, size_px: int, max_nodata: float) -> list[Cut]:
    """Cut a place into squares, and find the dates that show ground in each.

    Args:
        survey: the place.
        size_px: side of the squares. A place that is smaller along an axis is not cut along it. The last
            square of a larger place is moved back inside and overlaps its neighbour.
        max_nodata: a date is left out of a square in which its share of nodata is larger.

    Returns:
        The cuts with at least two dates, row by row.

    Raises:
        GridError: the place is smaller than a patch.
        ArrayError: NaN or infinity that is not nodata, or a damaged file.
    """
    first = survey.rasters[0]
    if min(first.height, first.width) < PATCH_PX:
        raise GridError(
            f"{survey.place.name}: {first.height} x {first.width} px (rows x columns). Expected at least "
            f"{PATCH_PX} each way"
        )
    rows = starts(first.height, size_px)
    cols = starts(first.width, size_px)
    height, width = min(size_px, first.height), min(size_px, first.width)
    cuts = []
    with survey.open() as dates:
        for y0 in rows:
            for x0 in cols:
                cut = Cut(x0, y0, height, width, tuple(range(len(survey.rasters))))
                kept = tuple(n for n in cut.dates if _nodata_share(survey, dates, n, cut) <= max_nodata)
                if len(kept) > 1:
                    cuts.append(Cut(x0, y0, height, width, kept))
    return cuts


def _nodata_share(survey: Survey, dates: OpenDates, number: int, cut: Cut) -> float:
    return float(is_nodata(survey.read(dates, number, cut), survey.nodata).mean())


def starts(length_px: int, size_px: int) -> list[int]:
    """Return where squares begin along an axis so that they cover it: the last one ends with the axis.

    Args:
        length_px: length of the axis.
        size_px: side of the squares.

    Returns:
        First pixels, ascending; [0] where the axis is shorter than a square.
    """
    if length_px <= size_px:
        return [0]
    return [*range(0, length_px - size_px, size_px), length_px - size_px]
