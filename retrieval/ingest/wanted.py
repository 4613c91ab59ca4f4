"""What is wanted of a product or an image: a box of longitude and latitude, dates, how much cloud."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from tfrecords.errors import GridError, MissingInputError
from tfrecords.grid import map_to_pixel, pixel_to_map

EDGE_POINTS = 21
"""Points that an edge of a box is followed by on its way into another reference system."""
_DAY = re.compile(r"\d{4}(-(0[1-9]|1[0-2])(-(0[1-9]|[12]\d|3[01]))?)?")


@dataclass(frozen=True)
class Box:
    """A box of longitude and latitude in degrees (EPSG:4326)."""

    west: float
    """Western edge, -180 to 180."""
    south: float
    """Southern edge, -90 to 90."""
    east: float
    """Eastern edge, -180 to 180; less than `west` where the box goes across the antimeridian."""
    north: float
    """Northern edge, -90 to 90."""

    @classmethod
    def parse(cls, text: str) -> Box:
        """Read "W,S,E,N".

        Args:
            text: four numbers, separated by commas or blanks.

        Returns:
            The box.

        Raises:
            GridError: not four numbers, out of range, or in another order.
        """
        try:
            west, south, east, north = (float(part) for part in re.split(r"[,\s]+", text.strip()))
        except ValueError:
            raise GridError(
                f"--bbox {text!r} is no box; expected west,south,east,north in degrees, "
                "such as 1.3,43.5,1.5,43.7"
            ) from None
        box = cls(west, south, east, north)
        box.check()
        return box

    def check(self) -> None:
        """Refuse a box that is out of range or in another order.

        Raises:
            GridError: it is.
        """
        shown = f"{self.west:g},{self.south:g},{self.east:g},{self.north:g}"
        rule = "expected west,south,east,north in degrees of longitude and latitude"
        if not (
            all(-180 <= x <= 180 for x in (self.west, self.east))
            and all(-90 <= y <= 90 for y in (self.south, self.north))
        ):
            raise GridError(f"--bbox {shown} is not on the globe; {rule}, within -180 to 180 and -90 to 90")
        if self.south >= self.north:
            raise GridError(f"--bbox {shown}: south {self.south:g} is not below north {self.north:g}; {rule}")
        # A box across the antimeridian has its east west of its west, as GeoJSON says (RFC 7946, 5.2).
        if self.east <= self.west and self.width >= 180:
            raise GridError(f"--bbox {shown}: east {self.east:g} is not east of west {self.west:g}; {rule}")

    @property
    def width(self) -> float:
        """Degrees from its western to its eastern edge, above 0 and up to 360."""
        return self.east - self.west + (360 if self.east <= self.west else 0)

    def text(self) -> str:
        """As `parse` reads it."""
        return ",".join(f"{value:.10g}" for value in (self.west, self.south, self.east, self.north))


@dataclass(frozen=True)
class Dates:
    """A span of days, both ends in it."""

    first: str
    """YYYY, YYYY-MM, YYYY-MM-DD, or empty: from the beginning."""
    last: str
    """The same; a month or a year is in it to its end."""

    @classmethod
    def parse(cls, text: str) -> Dates:
        """Read "FROM/TO"; either may be left out or "..", and one day, month or year stands for itself.

        Args:
            text: such as 2019-03/2019-09-15, 2021/, or 2019-07.

        Returns:
            The span.

        Raises:
            MissingInputError: it is no span, or ends before it begins.
        """
        first, slash, last = ("" if part == ".." else part for part in text.strip().partition("/"))
        last = last if slash else first
        if not any((first, last)) or not all(_DAY.fullmatch(part) for part in (first, last) if part):
            raise MissingInputError(
                f"--dates {text!r} is no span; expected FROM/TO, such as 2019-03/2019-09-15, 2021/ or 2019-07"
            )
        if first and last and last < first[: len(last)]:
            raise MissingInputError(f"--dates {text!r} ends before it begins; expected FROM/TO")
        return cls(first, last)

    def has(self, date: str) -> bool:
        """Whether a day, month or year lies in the span, as far as it says; words such as "before" do not."""
        if not date[:4].isdigit():
            return False
        first, last = self.first[: len(date)], self.last[: len(date)]
        return (not first or date[: len(first)] >= first) and (not last or date[: len(last)] <= last)

    def text(self) -> str:
        """As `parse` reads it."""
        return f"{self.first}/{self.last}"


@dataclass(frozen=True)
class Wanted:
    """What to take of what is there."""

    box: Box | None = None
    """Only this part of the ground; None = all of it."""
    dates: Dates | None = None
    """Only these days; None = all."""
    max_cloud: float | None = None
    """Leave out what has more cloud, in percent of the tile by its metadata; None = take all."""
    hide_snow: bool = False
    """Hide snow and ice too, besides cloud and its shadow."""

    @classmethod
    def parse(
        cls, bbox: str | None, dates: str | None, max_cloud: float | None, *, hide_snow: bool = False
    ) -> Wanted:
        """Read what a user says.

        Args:
            bbox: west,south,east,north in degrees, or None.
            dates: FROM/TO, or None.
            max_cloud: percent, 0 to 100, or None.
            hide_snow: hide snow too.

        Returns:
            The same as a record.

        Raises:
            GridError: the box is none.
            MissingInputError: the span is none, or the percentage is no percentage.
        """
        if max_cloud is not None and not 0 <= max_cloud <= 100:
            raise MissingInputError(f"Received --max-cloud {max_cloud:g}; expected a percentage, 0 to 100")
        return cls(
            Box.parse(bbox) if bbox else None, Dates.parse(dates) if dates else None, max_cloud, hide_snow
        )

    @property
    def everything(self) -> bool:
        """Whether nothing is asked for in particular."""
        return self == Wanted()

    def why_not(self, date: str, cloud_cover: float | None) -> str:
        """Why something is not wanted, in a few words; empty where it is.

        Args:
            date: when it was taken.
            cloud_cover: percent of it under cloud; None = not known, which is taken.
        """
        if self.dates and not self.dates.has(date):
            return f"not within {self.dates.text()}"
        if self.max_cloud is not None and cloud_cover is not None and cloud_cover > self.max_cloud:
            return f"more than {self.max_cloud:g} % cloud"
        return ""


@dataclass(frozen=True)
class Part:
    """A rectangle of pixels of an image."""

    x0: int
    """First column."""
    y0: int
    """First row."""
    width: int
    """Columns."""
    height: int
    """Rows."""

    def blocks(self, rows_px: int, columns_px: int) -> list[Part]:
        """Cut it along a lattice of the whole image, so that no stored block is read twice.

        Args:
            rows_px: rows between the lines of the lattice.
            columns_px: columns between them.

        Returns:
            The pieces, row by row.
        """
        rows = _edges(self.y0, self.height, rows_px)
        cols = _edges(self.x0, self.width, columns_px)
        return [Part(x, y, right - x, below - y) for y, below in rows for x, right in cols]


def _edges(first: int, length: int, side: int) -> list[tuple[int, int]]:
    """Begin and end of the pieces of an axis."""
    cuts = [first, *range((first // side + 1) * side, first + length, side), first + length]
    return list(pairwise(cuts))


def part_of(
    box: Box | None, crs: str | None, transform: Sequence[float] | None, width: int, height: int, name: str
) -> Part | None:
    """The pixels that a box touches.

    Args:
        box: the box; None = the whole image.
        crs: reference system of the image.
        transform: (a, b, c, d, e, f) from pixel corners to map coordinates.
        width: columns of the image.
        height: rows of the image.
        name: how messages call the image.

    Returns:
        The rectangle; None where box and image do not meet.

    Raises:
        GridError: the image has no reference system, or one in which a box cannot be drawn.
    """
    if box is None:
        return Part(0, 0, width, height)
    if not crs or transform is None:
        raise GridError(f"{name} has no reference system: --bbox can't be found in it; leave --bbox out")
    lon, lat = _moved(crs, "EPSG:4326", pixel_to_map(transform, *_rim(0, 0, width, height)), name)
    if np.abs(lat).max() > 89 or np.ptp(lon % 360) > 180 < np.ptp((lon + 180) % 360):
        raise GridError(
            f"{name} lies about a pole: a box of longitude and latitude is none there; leave --bbox out"
        )
    # Longitudes count on from the image's own, so that nothing jumps at the antimeridian.
    middle = lon[0]
    lon = middle + (lon - middle + 180) % 360 - 180
    clipped = _clipped(box, (lon.min(), lat.min(), lon.max(), lat.max()))
    if clipped is None:
        return None
    x, y = map_to_pixel(transform, *_moved("EPSG:4326", crs, _rim(*clipped), name))
    left, top = max(0, _down(x.min())), max(0, _down(y.min()))
    right, below = min(width, _up(x.max())), min(height, _up(y.max()))
    return Part(left, top, right - left, below - top) if right > left and below > top else None


def _down(value: float) -> int:
    """The pixel that holds a coordinate; a millionth of a pixel is rounding."""
    return int(np.floor(value + 1e-6))


def _up(value: float) -> int:
    return int(np.ceil(value - 1e-6))


def _rim(left: float, low: float, right: float, high: float) -> tuple[Any, Any]:
    """Points along the edges of a rectangle."""
    along = np.linspace(0, 1, EDGE_POINTS)
    x, y = left + (right - left) * along, low + (high - low) * along
    return (
        np.concatenate([x, x, np.full_like(y, left), np.full_like(y, right)]),
        np.concatenate([np.full_like(x, low), np.full_like(x, high), y, y]),
    )


def _moved(source: str, goal: str, points: tuple[Any, Any], name: str) -> tuple[Any, Any]:
    """Coordinates in another reference system."""
    from rasterio.warp import transform

    try:
        moved = np.array(transform(source, goal, *points), np.float64)
    except Exception as error:  # rasterio lets GDAL's own errors through, which have no public names
        raise GridError(f"{name}: its reference system can't be related to longitude and latitude") from error
    if not np.isfinite(moved).all():
        raise GridError(f"{name}: its reference system can't be related to longitude and latitude there")
    return moved[0], moved[1]


def _clipped(box: Box, around: tuple[float, float, float, float]) -> tuple[float, float, float, float] | None:
    """The part of a box within other bounds, in their count of longitude; None where they do not meet."""
    low, high = max(box.south, around[1]), min(box.north, around[3])
    for turn in (-360, 0, 360):
        left, right = max(box.west + turn, around[0]), min(box.west + turn + box.width, around[2])
        if left < right and low < high:
            return float(left), float(low), float(right), float(high)
    return None
