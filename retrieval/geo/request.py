"""Requests: the bounding box, the dates and the cloud limit that a user gives on the command line."""

from __future__ import annotations

import datetime
import math
import re
from dataclasses import dataclass

from retrieval.errors import ConfigError
from tfrecords.schema import days_of

_BOX_RULE = "Expected west,south,east,north in degrees, such as 1.3,43.5,1.5,43.7"
_DATES_RULE = "Expected FROM/TO, each YYYY, YYYY-MM or YYYY-MM-DD, such as 2019-03/2019-09-15 or 2021/.."


@dataclass(frozen=True)
class BoundingBox:
    """A box of longitude and latitude in degrees (EPSG:4326)."""

    west: float
    """Western edge, -180 to 180."""
    south: float
    """Southern edge, -90 to 90, below `north`."""
    east: float
    """Eastern edge, -180 to 180; less than `west` where the box crosses the antimeridian (RFC 7946, 5.2)."""
    north: float
    """Northern edge, -90 to 90."""

    def __post_init__(self) -> None:
        west, south, east, north = self.west, self.south, self.east, self.north
        if not (max(abs(west), abs(east)) <= 180 and max(abs(south), abs(north)) <= 90):
            raise ConfigError(
                f"--bbox {self}: off the globe. Expected longitudes from -180 to 180 and latitudes from -90 "
                "to 90"
            )
        if south >= north:
            raise ConfigError(f"--bbox {self}: south {south:g} is not below north {north:g}. {_BOX_RULE}")
        # West greater than east is a box across the antimeridian, but hardly one of half the globe.
        if east <= west and self.width >= 180:
            raise ConfigError(f"--bbox {self}: west {west:g} is not less than east {east:g}. {_BOX_RULE}")

    @classmethod
    def parse(cls, text: str) -> BoundingBox:
        """Parse "W,S,E,N".

        Args:
            text: four numbers, separated by commas or blanks.

        Returns:
            The box.

        Raises:
            ConfigError: not four numbers, out of range, or in the wrong order.
        """
        try:
            west, south, east, north = (float(part) for part in re.split(r"[,\s]+", text.strip(" \t[]()")))
        except ValueError:
            raise ConfigError(f"--bbox {text!r}: not four numbers. {_BOX_RULE}") from None
        if not all(map(math.isfinite, (west, south, east, north))):
            raise ConfigError(f"--bbox {text!r}: off the globe. {_BOX_RULE}")
        return cls(west, south, east, north)

    @property
    def width(self) -> float:
        """Degrees from the western to the eastern edge, above 0 and up to 360."""
        return self.east - self.west + (360 if self.east <= self.west else 0)

    @property
    def centre_longitude(self) -> float:
        """Longitude halfway between west and east, -180 to 180."""
        return (self.west + self.width / 2 + 180) % 360 - 180

    def split(self) -> tuple[tuple[float, float, float, float], ...]:
        """Return (west, south, east, north) with west < east: one box, or two across the antimeridian."""
        west, south, east, north = self.as_tuple()
        if west < east:
            return (self.as_tuple(),)
        halves = (west, south, 180.0, north), (-180.0, south, east, north)
        return tuple(half for half in halves if half[0] < half[2])

    def as_tuple(self) -> tuple[float, float, float, float]:
        """Return west, south, east and north."""
        return self.west, self.south, self.east, self.north

    def __str__(self) -> str:
        return ",".join(f"{value:.10g}" for value in self.as_tuple())


@dataclass(frozen=True)
class DateSpan:
    """A span of days; both ends are included."""

    first: datetime.date | None
    """First day; None where the span has no beginning."""
    last: datetime.date | None
    """Last day; None where the span has no end."""

    @classmethod
    def parse(cls, text: str, flag: str = "--dates") -> DateSpan:
        """Parse "FROM/TO" or one date.

        Args:
            text: each of FROM and TO is YYYY, YYYY-MM or YYYY-MM-DD; one of them may be empty or "..". A
                month or a year counts from its first to its last day.
            flag: the command-line flag that error messages name.

        Returns:
            The span.

        Raises:
            ConfigError: not a span of dates, or FROM is after TO.
        """
        ends = [end.strip() for end in text.split("/")]
        ends = ends * 2 if len(ends) == 1 else ends
        if len(ends) != 2 or all(end in ("", "..") for end in ends):
            raise ConfigError(f"{flag} {text!r}: not a span of dates. {_DATES_RULE}")
        (first, _), (_, last) = (_days(end, text, flag) for end in ends)
        if first and last and first > last:
            raise ConfigError(f"{flag} {text}: FROM is after TO. Expected {ends[1]}/{ends[0]}")
        return cls(first, last)

    def contains(self, date: str) -> bool:
        """Return whether every day of a date (YYYY, YYYY-MM or YYYY-MM-DD) lies in the span."""
        days = days_of(date)
        return days is not None and self._first <= days[0] and days[1] <= self._last

    def overlaps(self, date: str) -> bool:
        """Return whether some day of a date lies in the span; "before" and "after" have no days."""
        days = days_of(date)
        return days is not None and self._first <= days[1] and days[0] <= self._last

    @property
    def _first(self) -> str:
        return self.first.isoformat() if self.first else "0000-01-01"

    @property
    def _last(self) -> str:
        return self.last.isoformat() if self.last else "9999-12-31"

    def __str__(self) -> str:
        return f"{self.first or '..'}/{self.last or '..'}"


def _days(text: str, span: str, flag: str) -> tuple[datetime.date | None, datetime.date | None]:
    """Return the first and the last day of one end of a span; None for an open end."""
    if text in ("", ".."):
        return None, None
    days = None if "T" in text else days_of(text)
    if days is None:
        raise ConfigError(f"{flag} {span}: {text!r} is not a date. {_DATES_RULE}")
    return datetime.date.fromisoformat(days[0]), datetime.date.fromisoformat(days[1])


@dataclass(frozen=True)
class ImageFilter:
    """Which images to take, and which part of them."""

    box: BoundingBox | None = None
    """Take only this part of the ground; None = all of it."""
    dates: DateSpan | None = None
    """Take only these days; None = all."""
    max_cloud: float | None = None
    """Largest cloud cover of a tile by its metadata, percent, 0 to 100; None = no limit."""
    hide_snow: bool = False
    """Hide snow and ice as well as cloud and cloud shadow."""

    def __post_init__(self) -> None:
        if self.max_cloud is not None:
            check_percent("--max-cloud", self.max_cloud)

    @classmethod
    def parse(
        cls, bbox: str | None, dates: str | None, max_cloud: float | None, *, hide_snow: bool = False
    ) -> ImageFilter:
        """Parse the options of a command.

        Args:
            bbox: west,south,east,north in degrees, or None.
            dates: FROM/TO, or None.
            max_cloud: percent, 0 to 100, or None.
            hide_snow: hide snow and ice.

        Returns:
            The filter.

        Raises:
            ConfigError: an option cannot be parsed or is out of range.
        """
        box = BoundingBox.parse(bbox) if bbox else None
        return cls(box, DateSpan.parse(dates) if dates else None, max_cloud, hide_snow)

    @property
    def takes_all(self) -> bool:
        """Whether the filter takes every image whole."""
        return self == ImageFilter()

    def reason_to_skip(self, date: str, cloud_cover: float | None) -> str:
        """Return why an image is skipped, in a few words; empty where it is taken.

        Args:
            date: its acquisition date, YYYY, YYYY-MM or YYYY-MM-DD.
            cloud_cover: percent of the image under cloud; None = unknown, which is taken.
        """
        if self.dates and not self.dates.overlaps(date):
            return f"outside of the dates {self.dates}"
        if self.max_cloud is not None and cloud_cover is not None and cloud_cover > self.max_cloud:
            return f"more than {self.max_cloud:g} % cloud"
        return ""


def check_percent(flag: str, value: float) -> None:
    """Check that an option is a percentage.

    Raises:
        ConfigError: `value` is not within 0 to 100.
    """
    if not 0 <= value <= 100:
        raise ConfigError(f"{flag} {value:g}: not a percentage. Expected 0 to 100")
