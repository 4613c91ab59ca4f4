"""Which files are which place and date: told by folders and names alone."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tfrecords.errors import MissingInputError
from tfrecords.schema import date_of

SUFFIXES = (".tif", ".tiff")


@dataclass(frozen=True)
class Dated:
    """One file, and when it was taken."""

    path: Path
    """The file."""
    date: str
    """YYYY, YYYY-MM, YYYY-MM-DD, before or after."""

    @property
    def order(self) -> tuple[int, str]:
        """Sorts in time: what is called before comes first, what is called after comes last."""
        return {"before": 0, "after": 2}.get(self.date, 1), self.date


@dataclass(frozen=True)
class Place:
    """A folder of GeoTIFFs: one piece of ground on several dates."""

    name: str
    """Path of the folder relative to the source, with slashes; the source's own name for the source."""
    files: tuple[Dated, ...]
    """Its files in the order of time, each of another date."""


def find_places(source: str | os.PathLike[str]) -> tuple[Place, ...]:
    """Find the places of a folder.

    Args:
        source: A folder; every folder in it, and itself, that directly holds a `.tif` or `.tiff` (any
            case) is a place. Names that begin with a dot are passed over.

    Returns:
        The places, sorted by name; at least one.

    Raises:
        MissingInputError: There is no such folder, no GeoTIFF in it, a file without a date in its
            name, or two files of one date in a place.
    """
    root = Path(source)
    if not root.is_dir():
        raise MissingInputError(
            f"{root}: no such folder; expected one with a folder of GeoTIFFs for each place"
        )
    by_folder: dict[Path, list[Path]] = {}
    for folder, names, files in os.walk(root):
        names[:] = sorted(name for name in names if not name.startswith("."))
        own = [Path(folder) / name for name in files if name.lower().endswith(SUFFIXES) and name[0] != "."]
        if own:
            by_folder[Path(folder)] = sorted(own)
    if not by_folder:
        raise MissingInputError(
            f"{root} holds no GeoTIFF; expected a folder for each place with a .tif or .tiff file for each "
            "date, such as paris/2015-08-20.tif"
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
                f"{path}: no date in its name; expected YYYY-MM-DD, YYYY-MM, YYYY, before or after in it: "
                "rename it"
            )
        if date in dated:
            raise MissingInputError(
                f"{path} and {dated[date]} are both of {date}; expected one file for each date of a place: "
                "put one of them elsewhere, or tell them apart by a longer date"
            )
        dated[date] = path
    ordered = sorted((Dated(path, date) for date, path in dated.items()), key=lambda one: one.order)
    return Place(root.resolve().name if name == "." else name, tuple(ordered))
