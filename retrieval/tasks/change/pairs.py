"""Two dates of a place, read window by window on the grid of the first.

Windows may lie partly or wholly beyond the image: there the pixels are NaN, as nodata is. So a caller reads
its margin without a special case at the edge.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.ingest.grids import OpenDates, quiet_gdal
from retrieval.ingest.places import DatedFile, Place
from retrieval.ingest.survey import Cut, Survey, survey
from tfrecords.read import Raster
from tfrecords.schema import to_scaled

Pixels = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Pair:
    """Two dates of a place."""

    survey: Survey
    """Both files: their grids, shared bands, units and nodata."""
    notes: tuple[str, ...]
    """Warped grids and bands left out, one sentence each."""

    @property
    def grid(self) -> Raster:
        """The first date, whose grid the map has."""
        return self.survey.rasters[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.grid.height, self.grid.width

    @property
    def bands(self) -> tuple[str, ...]:
        """Bands that both dates have."""
        return self.survey.bands

    @contextmanager
    def open(self) -> Iterator[OpenPair]:
        """Open both files for reading."""
        with quiet_gdal(), self.survey.open() as dates:
            yield OpenPair(self.survey, dates)


def open_pair(
    before: str | Path,
    after: str | Path,
    *,
    bands: Sequence[str] | None = None,
    units: str | None = None,
) -> Pair:
    """Check that two files show one place, and return them as a pair.

    Args:
        before: GeoTIFF of the first date.
        after: GeoTIFF of the second date; another grid is warped to that of the first.
        bands: names of the bands; else the files', else by their number.
        units: units of the pixels; else inferred.

    Raises:
        MissingInputError: no such file.
        ArrayError: a file is damaged.
        BandsError: the dates share no band.
        GridError: the grids differ and one has no georeference, or they do not overlap.
        UnitsError: the units are unclear, or differ.
    """
    files = DatedFile(Path(before), "before"), DatedFile(Path(after), "after")
    return pair_of(Place(Path(before).stem, files), bands=bands, units=units)


def pair_of(place: Place, *, bands: Sequence[str] | None = None, units: str | None = None) -> Pair:
    """Return the first and the last date of a place; see `open_pair`."""
    ends = Place(place.name, (place.files[0], place.files[-1]), place.notes)
    with quiet_gdal():
        found = survey(ends, bands, units)
    first, last = found.rasters
    notes = list(place.notes)
    if len(place.files) > 2:
        notes.append(f"{place.name}: {len(place.files)} dates; the first and the last are compared")
    if found.warped[1]:
        notes.append(
            f"{last.path}: {last.height} x {last.width} pixels on another grid, warped to that of "
            f"{first.path} ({first.height} x {first.width})"
        )
    for raster in found.rasters:
        if raster.count > len(found.bands):
            notes.append(f"{raster.path}: {len(found.bands)} of {raster.count} bands are in both dates")
    return Pair(found, tuple(notes))


class OpenPair:
    """A pair whose files are open."""

    def __init__(self, found: Survey, dates: OpenDates) -> None:
        self._survey, self._dates = found, dates
        self.height, self.width = found.rasters[0].height, found.rasters[0].width

    def read(self, date: int, x: int, y: int, height: int, width: int) -> Pixels:
        """Return a window of one date.

        Args:
            date: 0 for the first, 1 for the second.
            x: first column, may be negative.
            y: first row, may be negative.
            height: rows of the window.
            width: columns of the window.

        Returns:
            (height, width, b) scaled, bright ground above 1; NaN for nodata and beyond the image.

        Raises:
            ArrayError: the file is damaged, or holds NaN or infinity that is not nodata.
        """
        found = self._survey
        out = np.full((height, width, len(found.bands)), np.nan, np.float32)
        top, left = max(y, 0), max(x, 0)
        bottom, right = min(y + height, self.height), min(x + width, self.width)
        if top >= bottom or left >= right:
            return out
        cut = Cut(left, top, bottom - top, right - left, (date,))
        stored = found.read(self._dates, date, cut)
        out[top - y : bottom - y, left - x : right - x] = to_scaled(
            stored, found.units, found.nodata, clipped=False
        )
        return out


def squares(height: int, width: int, side: int, most: int) -> list[tuple[int, int]]:
    """Return the corners (x, y) of squares that are spread evenly over an image.

    Args:
        height: rows of the image.
        width: columns of the image.
        side: of a square.
        most: largest number of squares.

    Returns:
        Corners, row by row; one at (0, 0) where the image is smaller than a square.
    """
    columns, rows = max(1, width // side), max(1, height // side)
    thin = max(1.0, float(np.sqrt(columns * rows / most)))
    across, down = max(1, int(columns / thin)), max(1, int(rows / thin))
    across, down = min(across, most // down or 1), min(down, most // across or 1)
    return [(x, y) for y in _spread(height - side, down) for x in _spread(width - side, across)]


def _spread(last: int, count: int) -> list[int]:
    """Return `count` first pixels between 0 and `last`, the middle one where there is one."""
    ends = np.linspace(0, max(last, 0), count) if count > 1 else np.array([max(last, 0) / 2])
    return [int(value) for value in ends]
