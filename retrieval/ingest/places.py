"""Places: folders of GeoTIFFs with one file per date, read from folder and file names alone."""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass
from pathlib import Path

from tfrecords.errors import MissingInputError
from tfrecords.read.band_files import group_band_files
from tfrecords.read.layers import BandFiles, RasterFile, path_of
from tfrecords.read.sources import TIF, files_below
from tfrecords.schema import date_of, days_of


@dataclass(frozen=True)
class DatedFile:
    """One file and its acquisition date."""

    path: Path
    """The file; of one file per band the first."""
    date: str
    """Its date: YYYY, YYYY-MM, YYYY-MM-DD, before or after."""

    parts: BandFiles | None = None
    """The files of a date with one file per band; else None."""

    @property
    def file(self) -> RasterFile:
        """What holds the pixels."""
        return self.parts or self.path

    @property
    def files(self) -> tuple[Path, ...]:
        """All its files."""
        return self.parts.files if self.parts else (self.path,)

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
    notes: tuple[str, ...] = ()
    """Which files were put together or left out."""


def find_places(source: str | os.PathLike[str]) -> tuple[Place, ...]:
    """Find the places of a folder.

    Args:
        source: a folder. It, and every folder below it, that directly holds a `.tif` or `.tiff` (any case)
            is a place. Names that begin with a dot are ignored; links are followed, and a file counts once.

    Returns:
        The places, sorted by name; at least one.

    Raises:
        RetrieveError: files of one band each do not fit together, see `group_band_files`.
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
    dates: dict[Path, list[DatedFile]] = {}
    notes: dict[Path, tuple[str, ...]] = {}
    for files in by_folder.values():
        images, of_folder = group_band_files(files)
        for file in images:
            place, dated = _dated(file, root)
            dates.setdefault(place, []).append(dated)
            notes[place] = (*notes.get(place, ()), *of_folder)
            of_folder = ()
    places = [_place(root, folder, found, notes[folder]) for folder, found in dates.items()]
    return tuple(sorted(places, key=lambda place: place.name))


def _dated(file: RasterFile, root: Path) -> tuple[Path, DatedFile]:
    """Return the folder of a file's place, and the file with its date.

    The files of `2019-07-07/B02.tif` and so on are a date of the folder above.
    """
    path, parts = path_of(file), file if isinstance(file, BandFiles) else None
    folder, date = path.parent, date_of(path.stem)
    if date is None and parts and folder != root:
        folder, date = folder.parent, date_of(folder.name)
    if date is None:
        raise MissingInputError(
            f"{path}: no date in its name. Expected YYYY-MM-DD, YYYY-MM, YYYY, before or after. Rename it"
        )
    return folder, DatedFile(path, date, parts)


def _place(root: Path, folder: Path, files: list[DatedFile], notes: tuple[str, ...]) -> Place:
    name = folder.relative_to(root).as_posix()
    dated: dict[str, DatedFile] = {}
    for file in files:
        other = dated.setdefault(file.date, file)
        if other is not file:
            raise MissingInputError(
                f"{file.path} and {other.path} are both of {file.date}. Expected one file per date of a "
                "place. Move one, or use longer dates"
            )
    ordered = sorted(files, key=lambda file: file.order)
    return Place(root.resolve().name if name == "." else name, tuple(ordered), notes)


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
