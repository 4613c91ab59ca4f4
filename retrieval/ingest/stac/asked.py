"""What is looked for: which catalogue, which ground, which days, how clear; and how long one waits for it."""

from __future__ import annotations

import datetime
import math
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tfrecords.errors import CatalogueError
from tfrecords.schema import days_of

CATALOGUES = {
    "earth-search": "https://earth-search.aws.element84.com/v1",
    "planetary-computer": "https://planetarycomputer.microsoft.com/api/stac/v1",
    "copernicus": "https://stac.dataspace.copernicus.eu/v1",
}
"""Short names of public catalogues."""
SIGNERS = ("planetary-computer",)
"""Whose addresses can be signed."""

Bbox = tuple[float, float, float, float]
"""West, south, east, north in degrees."""


@dataclass(frozen=True)
class Patience:
    """How often and how long a catalogue and its files are tried."""

    attempts: int = 4
    """A request that fails is made so often in all; so is the reading of an item."""
    pause_s: float = 1.0
    """Seconds before the second attempt; twice as many before each later one. A Retry-After comes first."""
    longest_pause_s: float = 120.0
    """No pause is longer, whatever a server asks for."""
    timeout_s: float = 60.0
    """Seconds without an answer that are a failure."""

    def pause(self, failures: int) -> float:
        """Seconds to wait after so many failures, at least 1."""
        return float(min(self.pause_s * 2 ** (failures - 1), self.longest_pause_s))


@dataclass(frozen=True)
class Search:
    """What is looked for."""

    api: str
    """Address of the catalogue's root, or a name of `CATALOGUES`."""
    bbox: Bbox
    """West, south, east, north in degrees, west < east, south < north."""
    first: datetime.date
    """First day."""
    last: datetime.date
    """Last day."""
    collection: str = "sentinel-2-l2a"
    """The collection's id."""
    max_cloud: float = 60.0
    """Items with more cloud over their whole tile are passed over, percent, 0 to 100."""
    max_hidden: float = 50.0
    """Days with more of the ground asked for hidden are left out, percent, 0 to 100."""
    hide_snow: bool = False
    """Whether snow counts as hidden."""
    dates_per_place: int = 12
    """So many dates are kept of each place, at most."""
    sign: str | None = None
    """"planetary-computer" where addresses of files have to be signed."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "api", CATALOGUES.get(self.api, self.api).rstrip("/"))
        check_address(self.api)
        check_bbox(self.bbox)
        check_days(self.first, self.last)
        if not (0 <= self.max_cloud <= 100 and 0 <= self.max_hidden <= 100 and self.dates_per_place > 0):
            raise CatalogueError(
                f"received at most {self.max_cloud:g} % cloud, {self.max_hidden:g} % hidden and "
                f"{self.dates_per_place} dates of a place; expected 0 to 100, 0 to 100 and 1 or more"
            )
        if self.sign not in (None, *SIGNERS):
            raise CatalogueError(f"received --sign {self.sign}; expected {' or '.join(SIGNERS)}")

    def plain(self) -> dict[str, Any]:
        """All of it for JSON."""
        return {name: list(v) if isinstance(v, tuple) else _day(v) for name, v in vars(self).items()}


def _day(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime.date) else value


def check_address(api: str) -> None:
    """Refuse what is no address of a catalogue.

    Raises:
        CatalogueError: it isn't http or https, or names no host.
    """
    try:
        parts = urlsplit(api)
        good = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        good = False
    if not good:
        raise CatalogueError(
            f"{api!r} is no address of a catalogue; expected one such as {CATALOGUES['earth-search']}, or "
            f"one of the names {', '.join(CATALOGUES)}"
        )


def parse_bbox(text: str) -> Bbox:
    """Read a bounding box.

    Args:
        text: West, south, east, north in degrees, separated by commas.

    Returns:
        The four numbers.

    Raises:
        CatalogueError: they are not four numbers, out of range, or in the wrong order.
    """
    try:
        west, south, east, north = (float(part) for part in text.strip().strip("[]()").split(","))
    except ValueError:
        raise CatalogueError(
            f"received the bounding box {text!r}; expected west,south,east,north in degrees, such as "
            "1.35,43.55,1.50,43.65"
        ) from None
    check_bbox((west, south, east, north))
    return west, south, east, north


def check_bbox(bbox: Bbox) -> None:
    """Refuse a bounding box that can't be one.

    Raises:
        CatalogueError: it is out of range, empty, in the wrong order, or crosses the antimeridian.
    """
    west, south, east, north = bbox
    told = ",".join(f"{value:g}" for value in bbox)
    if not all(math.isfinite(v) for v in bbox) or max(abs(west), abs(east)) > 180 or max(-south, north) > 90:
        raise CatalogueError(
            f"the bounding box {told} is off the Earth; expected west and east from -180 to 180, south and "
            "north from -90 to 90, in degrees"
        )
    if south >= north:
        raise CatalogueError(
            f"the bounding box {told} has its south ({south:g}) not below its north ({north:g}); expected "
            "west,south,east,north: longitudes come first and third"
        )
    if west >= east:
        raise CatalogueError(
            f"the bounding box {told} has its west ({west:g}) not below its east ({east:g}); expected "
            "west,south,east,north. Where it is to cross the antimeridian, search twice, into two folders: "
            f"{west:g},{south:g},180,{north:g} and -180,{south:g},{east:g},{north:g}"
        )


def parse_dates(text: str) -> tuple[datetime.date, datetime.date]:
    """Read an interval of days.

    Args:
        text: FROM/TO, each YYYY, YYYY-MM or YYYY-MM-DD, both included; or one of these alone.

    Returns:
        First and last day.

    Raises:
        CatalogueError: it is none, or the wrong way round.
    """
    parts = text.strip().split("/")
    try:
        first, last = _span(parts[0])[0], _span(parts[-1])[1]
        if len(parts) > 2:
            raise ValueError(text)
    except ValueError:
        raise CatalogueError(
            f"received the dates {text!r}; expected FROM/TO, each YYYY-MM-DD, YYYY-MM or YYYY, such as "
            "2022-01/2023-12"
        ) from None
    check_days(first, last)
    return first, last


def check_days(first: datetime.date, last: datetime.date) -> None:
    """Refuse an interval that ends before it begins.

    Raises:
        CatalogueError: it does.
    """
    if first > last:
        raise CatalogueError(
            f"the dates begin on {first} and end on {last}, before that; expected FROM/TO: turn them round"
        )


def _span(text: str) -> tuple[datetime.date, datetime.date]:
    """First and last day of a year, a month or a day."""
    days = None if "T" in text else days_of(text.strip())  # a moment is none
    if days is None:
        raise ValueError(text)
    return datetime.date.fromisoformat(days[0]), datetime.date.fromisoformat(days[1])
