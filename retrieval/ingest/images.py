"""Places as folders of GeoTIFFs, a file a date: what is there is kept, the rest written block by block.

A folder of places grows, so it has no manifest: each file is written whole or not at all, and has a tag with
the fingerprint of what it was made from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from retrieval.geo.pixel_window import PixelWindow
from retrieval.ingest.ground import quiet_gdal
from retrieval.ingest.product import writing_date
from tfrecords.artifacts import fingerprint
from tfrecords.challenge import Progress
from tfrecords.errors import DiskFullError, GridError, MissingInputError, OutputExistsError, StorageError
from tfrecords.grid import PATCH_PX, pixel_to_map
from tfrecords.read import describe_raster
from tfrecords.schema import UNKNOWN, Provenance

SHOWN = 5
"""So many names are listed in a note."""


class Reading(Protocol):
    """One date, opened."""

    def read(self, part: PixelWindow) -> NDArray[Any]:
        """Pixels (h, w, b) of a part of it."""

    def provenance(self) -> Provenance:
        """Where the pixels that were read came from."""


@dataclass(frozen=True)
class Job:
    """One date of one place to be written."""

    place: str
    """Name of its folder."""
    date: str
    """Stem of its file."""
    name: str
    """How messages call what it is made from."""
    part: PixelWindow
    """Pixels of it that are wanted."""
    crs: str | None
    """Reference system."""
    transform: tuple[float, ...] | None
    """(a, b, c, d, e, f) from pixel corners of the whole to map coordinates."""
    bands: tuple[str, ...]
    """Names of the bands."""
    dtype: str
    """Of the pixels."""
    nodata: float | None
    """The tag."""
    recipe: str
    """Fingerprint of all that decides the pixels; see `recipe_of`."""
    block: tuple[int, int]
    """Rows and columns of the blocks that it is read in."""
    opened: Callable[[], AbstractContextManager[Reading]]
    """Opens it for reading."""

    def path(self, out: Path) -> Path:
        """The file, in the folder of all places."""
        return out / self.place / f"{self.date}.tif"

    def blocks(self) -> list[PixelWindow]:
        """The parts that it is read in."""
        return self.part.blocks(*self.block)

    def own_transform(self) -> tuple[float, ...] | None:
        """The transform of the part."""
        if self.transform is None:
            return None
        a, b, _, d, e, _ = self.transform
        x, y = pixel_to_map(self.transform, self.part.x0, self.part.y0)
        return a, b, float(x), d, e, float(y)


@dataclass
class Left:
    """What is left out, and why; a note names it."""

    by_reason: dict[str, list[str]] = field(default_factory=dict)
    """Names by a reason of a few words."""
    there: int = 0
    """How many dates were there already."""
    errors: list[StorageError] = field(default_factory=list)
    """What can't be used."""

    def add(self, reason: str, name: str) -> None:
        """Leave something out for a reason of a few words."""
        self.by_reason.setdefault(reason, []).append(name)

    def notes(self) -> list[str]:
        """A sentence for each reason."""
        short = [f"left out, {reason}: {some(names)}" for reason, names in self.by_reason.items()]
        kept = [f"{self.there} dates are there already"] if self.there else []
        return [*kept, *(f"left out: {error}" for error in self.errors), *short]

    def error(self, source: object) -> StorageError:
        """What to raise where nothing remains."""
        if len(self.errors) == 1 and not self.by_reason:
            return self.errors[0]
        short = [f"{reason}: {some(names)}" for reason, names in self.by_reason.items()]
        why = "; ".join([*map(str, self.errors[:SHOWN]), *short])
        return MissingInputError(f"{source} gives nothing: {why or 'there is nothing in it'}")


@dataclass(frozen=True)
class Fetched:
    """Files of places."""

    paths: tuple[Path, ...]
    """All that was wanted and could be had, sorted."""
    notes: tuple[str, ...]
    """What was left out, kept, merged; one sentence each."""

    @property
    def places(self) -> int:
        """How many places they are of."""
        return len({path.parent for path in self.paths})


def some(names: Sequence[str]) -> str:
    """The first few of some names, and how many more there are."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def recipe_of(sources: Sequence[str], part: PixelWindow, **options: Any) -> str:
    """Fingerprint of what decides the pixels of a date.

    Args:
        sources: names of what it is made from, in the order of their weight.
        part: pixels that are wanted.
        options: what else decides.

    Returns:
        16 hexadecimal digits.
    """
    return fingerprint({"version": 1, "sources": list(sources), "part": part, "options": options})[:16]


def large_enough(part: PixelWindow | None, name: str, left: Left) -> bool:
    """Whether a part holds a patch; if not, it is left out."""
    if part is None:
        left.add("outside of the box", name)
    elif min(part.width, part.height) < PATCH_PX:
        left.add(f"less than {PATCH_PX} x {PATCH_PX} px within the box", name)
    else:
        return True
    return False


def write_jobs(
    jobs: Sequence[Job], out: Path, left: Left, *, overwrite: bool, progress: Progress | None
) -> tuple[Path, ...]:
    """Write what is not there yet.

    Args:
        jobs: one for each date of each place.
        out: folder of the places.
        left: told what could not be read.
        overwrite: replace files that were made of something else.
        progress: told how many blocks of how many are read.

    Returns:
        All files that are there now and were wanted, sorted.

    Raises:
        OutputExistsError: a file is there that was made of something else, and `overwrite` is not given;
            nothing is written then.
        DiskFullError: the disk is full.
    """
    if out.exists() and not out.is_dir():
        raise OutputExistsError(f"{out} is a file; expected the name of a folder to write")
    there = [job for job in jobs if _is_there(job, out, overwrite)]
    todo = [job for job in jobs if job not in there]
    left.there = len(there)
    paths = [job.path(out) for job in there]
    total = sum(len(job.blocks()) for job in todo)
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total)

    for job in todo:
        before = done
        try:
            if _write(job, out, overwrite, step):
                paths.append(job.path(out))
            else:
                left.add("no ground that can be seen", f"{job.place} {job.date}")
        except (DiskFullError, OutputExistsError):
            raise
        except StorageError as error:
            left.errors.append(error)
            done = before + len(job.blocks())
    return tuple(sorted(paths))


def _is_there(job: Job, out: Path, overwrite: bool) -> bool:
    """Whether the file is there, made of the same."""
    path = job.path(out)
    if not path.exists():
        return False
    if not path.is_file() or provenance_of(path).recipe != job.recipe:
        if overwrite and path.is_file():
            return False
        raise OutputExistsError(
            f"{path} is there and was made of something else than {job.name}, or of another part of it: name "
            "another --out, or give --overwrite"
        )
    return True


def provenance_of(path: Path) -> Provenance:
    """What a file's tags say that it came from; nothing where it says nothing, or can't be read."""
    import rasterio
    from rasterio.errors import RasterioError

    try:
        with quiet_gdal(), rasterio.open(path) as dataset:
            return Provenance.from_tags(dataset.tags())
    except RasterioError:
        return UNKNOWN


def made_by_us(path: Path) -> bool:
    """Whether `write_jobs` wrote a file."""
    return bool(provenance_of(path).recipe)


class _NothingSeenError(Exception):
    """All of a date is nodata."""


def _write(job: Job, out: Path, overwrite: bool, step: Callable[[], None]) -> bool:
    """Write one date; False, and no file, where nothing is to be seen on it."""
    path, part = job.path(out), job.part
    shape = part.height, part.width
    new = [folder for folder in (out, path.parent) if not folder.exists()]
    options: dict[str, Any] = {"dtype": job.dtype, "nodata": job.nodata, "overwrite": overwrite}
    try:
        with quiet_gdal(), job.opened() as reading:
            with writing_date(path, shape, job.bands, job.crs, job.own_transform(), **options) as file:
                for block in job.blocks():
                    file.write(reading.read(block), block.x0 - part.x0, block.y0 - part.y0)
                    step()
                if not file.ground:
                    raise _NothingSeenError
                file.provenance = reading.provenance()
    except BaseException as error:
        for folder in reversed(new):
            if folder.exists() and not any(folder.iterdir()):
                folder.rmdir()
        if isinstance(error, _NothingSeenError):
            return False
        raise
    return True


def check_same_grid(jobs: Sequence[Job], out: Path) -> None:
    """Refuse to put a date beside others of the place that were cut for another box.

    Args:
        jobs: one for each date of each place.
        out: folder of the places.

    Raises:
        GridError: a file of a place lies on another grid.
    """
    first = {job.place: job for job in reversed(jobs)}
    for job in first.values():
        wanted = {one.path(out) for one in jobs}
        for path in sorted((out / job.place).glob("[!.]*.tif")):
            if path in wanted:
                continue
            there = describe_raster(path)
            same = (there.height, there.width) == (job.part.height, job.part.width)
            if not same or not np.allclose(there.transform or (), job.own_transform() or (), atol=0.01):
                raise GridError(
                    f"{path} was cut for another box than is wanted now: give the same --bbox, or name "
                    "another --out"
                )
            break
