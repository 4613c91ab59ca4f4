"""Places: folders of GeoTIFFs with one file per date, read from folder and file names alone."""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass
from pathlib import Path

from tfrecords.errors import MissingInputError
from tfrecords.read.sources import TIF, files_below
from tfrecords.schema import date_of, days_of


@dataclass(frozen=True)
class DatedFile:
    """One file and its acquisition date."""

    path: Path
    """The file."""
    date: str
    """YYYY, YYYY-MM, YYYY-MM-DD, before or after."""

    @property
    def order(self) -> tuple[int, str]:
        """Sort key in time: "before" comes first, "after" comes last."""
        return {"before": 0, "after": 2}.get(self.date, 1), self.date


@dataclass(frozen=True)
class Place:
    """A folder of GeoTIFFs: the same ground on several dates."""

    name: str
    """Path of the folder below the source, with slashes; for the source itself its name."""
    files: tuple[DatedFile, ...]
    """Its files in the order of time, each with another date."""


def find_places(source: str | os.PathLike[str]) -> tuple[Place, ...]:
    """Find the places of a folder.

    Args:
        source: a folder. It, and every folder below it, that directly holds a `.tif` or `.tiff` (any case)
            is a place. Names that begin with a dot are ignored; links are followed, and a file counts once.

    Returns:
        The places, sorted by name; at least one.

    Raises:
        MissingInputError: no such folder, no GeoTIFF in it, a file name without a date, or two files of one
            date in a place. Also a link that leads nowhere or in a loop.
    """
    root = Path(source)
    if root.exists() and not root.is_dir():
        raise MissingInputError(
            f"{root}: a file that cannot be read here. Expected a folder, a GeoTIFF, a list (.txt) or a zip "
            "of a Sentinel-2 product. Unpack other archives first"
        )
    if not root.is_dir():
        raise MissingInputError(
            f"{root}: no such folder. Expected one that holds a folder of GeoTIFFs per place"
        )
    by_folder: dict[Path, list[Path]] = {}
    for path in files_below(root, TIF):
        by_folder.setdefault(path.parent, []).append(path)
    if not by_folder:
        raise MissingInputError(
            f"{root}: no GeoTIFF. Expected a folder per place with a .tif or .tiff file per date, such as "
            "paris/2015-08-20.tif"
        )
    places = [_place(root, folder, files) for folder, files in by_folder.items()]
    return tuple(sorted(places, key=lambda place: place.name))


def _place(root: Path, folder: Path, files: list[Path]) -> Place:
    name = folder.relative_to(root).as_posix()
    dated: dict[str, Path] = {}
    for path in files:
        date = date_of(path.stem)
        if date is None:
            raise MissingInputError(
                f"{path}: no date in its name. Expected YYYY-MM-DD, YYYY-MM, YYYY, before or after. Rename it"
            )
        if date in dated:
            raise MissingInputError(
                f"{path} and {dated[date]} are both of {date}. Expected one file per date of a place. "
                "Move one, or use longer dates"
            )
        dated[date] = path
    ordered = sorted((DatedFile(path, date) for date, path in dated.items()), key=lambda file: file.order)
    return Place(root.resolve().name if name == "." else name, tuple(ordered))


def days_around(date: str) -> tuple[str, str]:
    """Return the day before and the day after the date in a name, which can hold the day of UTC."""
    if not (days := days_of(date)):
        return date, date
    first, last = (datetime.date.fromisoformat(day) for day in days)
    one = datetime.timedelta(days=1)
    return (first - one).isoformat(), (last + one).isoformat()


def acquisition_date(named: str, day: str | None) -> str:
    """Return the date of a file: the acquisition day, unless the date in its name contradicts it.

    Args:
        named: the date in the file's name.
        day: the solar day of its tag DATETIME, or None.
    """
    earliest, latest = days_around(named)
    return day if day and earliest <= day <= latest else named
