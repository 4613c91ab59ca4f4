"""Writes places, folders of GeoTIFFs with one file per date; existing files are kept.

A folder of places grows, so it has no manifest. Each file is written whole or not at all, and a tag holds the
fingerprint of its input.
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
from retrieval.ingest.dated_image import writing_date
from retrieval.ingest.grids import quiet_gdal
from retrieval.ingest.redaction import redact_logs
from retrieval.kernels.executors import stream_map
from retrieval.types import Executor
from tfrecords.artifacts import fingerprint
from tfrecords.challenge import Progress
from tfrecords.errors import (
    DiskFullError,
    GridError,
    MissingInputError,
    OutputExistsError,
    StorageError,
    listed,
)
from tfrecords.grid import PATCH_PX, pixel_to_map
from tfrecords.read import describe_raster
from tfrecords.schema import UNKNOWN, Provenance

LISTED_NAMES = 5
"""Largest number of names in a note."""


class DateReader(Protocol):
    """The open input of one date."""

    def read(self, window: PixelWindow) -> NDArray[Any]:
        """Return the pixels (h, w, b) of a window."""

    def provenance(self) -> Provenance:
        """Return where the pixels that were read came from."""


@dataclass(frozen=True)
class DateTask:
    """One date of one place to write."""

    place: str
    """Name of the place's folder."""
    date: str
    """Stem of the file."""
    name: str
    """Name of the input in messages."""
    window: PixelWindow
    """Pixels of the input to copy."""
    crs: str | None
    """Coordinate reference system."""
    transform: tuple[float, ...] | None
    """(a, b, c, d, e, f) from pixel corners of the whole input to map coordinates."""
    bands: tuple[str, ...]
    """Names of the bands."""
    dtype: str
    """Type of the pixels."""
    nodata: float | None
    """The nodata tag."""
    recipe: str
    """Fingerprint of all that decides the pixels; see `recipe_of`."""
    block: tuple[int, int]
    """Rows and columns of the blocks in which the input is read."""
    open: Callable[[], AbstractContextManager[DateReader]]
    """Opens the input; it can be pickled."""
    files: tuple[Path, ...] = ()
    """Local files of the input whose names do not tell their content."""

    def changed_since(self, path: Path) -> bool:
        """Return whether a file of the input is newer than a file that was made from it."""
        made = path.stat().st_mtime
        return any(file.exists() and file.stat().st_mtime > made for file in self.files)

    def path(self, out: Path) -> Path:
        """Return the path of the file below the folder of all places."""
        return out / self.place / f"{self.date}.tif"

    def blocks(self) -> list[PixelWindow]:
        """Return the windows in which the input is read."""
        return self.window.blocks(*self.block)

    def window_transform(self) -> tuple[float, ...] | None:
        """Return the transform of the window."""
        if self.transform is None:
            return None
        a, b, _, d, e, _ = self.transform
        x, y = pixel_to_map(self.transform, self.window.x0, self.window.y0)
        return a, b, float(x), d, e, float(y)


@dataclass
class Skipped:
    """Inputs that are skipped, with the reasons, for the notes of a report."""

    by_reason: dict[str, list[str]] = field(default_factory=dict)
    """Names of inputs, by a reason of a few words."""
    existing: int = 0
    """Number of dates that existed already."""
    errors: list[StorageError] = field(default_factory=list)
    """Errors of inputs that cannot be used."""

    def add(self, reason: str, name: str) -> None:
        """Skip an input for a reason of a few words."""
        self.by_reason.setdefault(reason, []).append(name)

    def notes(self) -> list[str]:
        """Return one sentence per reason."""
        existing = [f"{self.existing} dates exist already"] if self.existing else []
        errors = [f"skipped: {error}" for error in self.errors]
        return [*existing, *errors, *(f"skipped, {reason}" for reason in self._reasons())]

    def error(self, source: object) -> StorageError:
        """Return the error to raise where nothing remains."""
        if len(self.errors) == 1 and not self.by_reason:
            return self.errors[0]
        reasons = "; ".join([*map(str, self.errors[:LISTED_NAMES]), *self._reasons()])
        return MissingInputError(f"{source}: nothing to ingest: {reasons or 'it is empty'}")

    def _reasons(self) -> list[str]:
        return [f"{reason}: {join_names(names)}" for reason, names in self.by_reason.items()]


@dataclass(frozen=True)
class WrittenPlaces:
    """Files of places."""

    paths: tuple[Path, ...]
    """Every requested file that exists now, sorted."""
    notes: tuple[str, ...]
    """Notes on skipped, kept and merged inputs; one sentence each."""

    @property
    def places(self) -> int:
        """Number of places."""
        return len({path.parent for path in self.paths})


def join_names(names: Sequence[str]) -> str:
    """Return the first few names, and the number of the others."""
    return listed(names, LISTED_NAMES)


def recipe_of(sources: Sequence[str], window: PixelWindow, **options: Any) -> str:
    """Return a fingerprint of all that decides the pixels of a date.

    Args:
        sources: names of the inputs, the most important first.
        window: pixels to copy.
        options: other options that decide the pixels.

    Returns:
        16 hexadecimal digits.
    """
    return fingerprint({"version": 1, "sources": list(sources), "part": window, "options": options})[:16]


def holds_patch(window: PixelWindow | None, name: str, skipped: Skipped) -> bool:
    """Return whether a window is as large as a patch; skip the input where it is not."""
    if window is None:
        skipped.add("outside of the box", name)
    elif min(window.width, window.height) < PATCH_PX:
        skipped.add(f"less than {PATCH_PX} x {PATCH_PX} px within the box", name)
    else:
        return True
    return False


def write_dates(
    tasks: Sequence[DateTask],
    out: Path,
    skipped: Skipped,
    *,
    overwrite: bool,
    executor: Executor | None = None,
    progress: Progress | None,
) -> tuple[Path, ...]:
    """Write the dates that do not exist yet.

    Args:
        tasks: one for each date of each place.
        out: folder of the places.
        skipped: receives what cannot be read.
        overwrite: replace files that were made from other input, or before a local input changed.
        executor: writes the dates; None for this thread, which reports each block.
        progress: called with the number of blocks read, and of all blocks.

    Returns:
        Every requested file that exists now, sorted.

    Raises:
        OutputExistsError: a file exists that was made from other input, and `overwrite` is false; nothing is
            written.
        DiskFullError: the disk is full.
    """
    if out.exists() and not out.is_dir():
        raise OutputExistsError(f"{out}: a file. Expected the name of a folder to write")
    existing = [task for task in tasks if _exists(task, out, overwrite)]
    missing = [task for task in tasks if task not in existing]
    skipped.existing = len(existing)
    paths = [task.path(out) for task in existing]
    total = sum(len(task.blocks()) for task in missing)
    done = 0

    def count_blocks(count: int) -> None:
        nonlocal done
        done += count
        if progress and count:
            progress(done, total)

    jobs = [DateJob(task, out, overwrite) for task in missing]

    def attempt(job: DateJob) -> bool | StorageError:
        return write_date_task(job, lambda: count_blocks(1))

    outcomes = stream_map(executor, write_date_task, jobs) if executor else map(attempt, jobs)
    end = 0
    for task, outcome in zip(missing, outcomes, strict=True):
        end += len(task.blocks())
        if isinstance(outcome, StorageError):
            skipped.errors.append(outcome)
            done = end
        elif outcome:
            paths.append(task.path(out))
        else:
            skipped.add("no visible ground", f"{task.place} {task.date}")
        count_blocks(end - done)
    return tuple(sorted(paths))


@dataclass(frozen=True)
class DateJob:
    """A date to write; it can be pickled."""

    task: DateTask
    """The date."""
    out: Path
    """Folder of the places."""
    overwrite: bool
    """Whether a file made from other input is replaced."""


def write_date_task(job: DateJob, count_block: Callable[[], None] = lambda: None) -> bool | StorageError:
    """Write one date.

    Returns:
        Whether it shows ground; or the error, where the input cannot be read.

    Raises:
        OutputExistsError, DiskFullError: it cannot be written.
    """
    redact_logs()  # the address may hold a signature, and this process may be a worker
    try:
        # A worker may have died between writing the file and saying so.
        return _exists(job.task, job.out, job.overwrite) or _write(
            job.task, job.out, job.overwrite, count_block
        )
    except (DiskFullError, OutputExistsError):
        raise
    except StorageError as error:
        return error


def _exists(task: DateTask, out: Path, overwrite: bool) -> bool:
    """Return whether the file exists and was made from the same input."""
    path = task.path(out)
    if not path.exists():
        return False
    if not path.is_file() or provenance_of(path).recipe != task.recipe:
        if overwrite and path.is_file():
            return False
        raise OutputExistsError(
            f"{path}: exists, made from other input than {task.name} or from another part of it. Choose "
            "another --out, or pass --overwrite"
        )
    return not (overwrite and task.changed_since(path))


def provenance_of(path: Path) -> Provenance:
    """Return the provenance in a file's tags; unknown where the file has none or cannot be read."""
    import rasterio
    from rasterio.errors import RasterioError

    try:
        with quiet_gdal(), rasterio.open(path, driver="GTiff") as dataset:
            return Provenance.from_tags(dataset.tags())
    except RasterioError:
        return UNKNOWN


def is_written_here(path: Path) -> bool:
    """Return whether `write_dates` wrote a file."""
    return bool(provenance_of(path).recipe)


class _NoGroundError(Exception):
    """All pixels of a date are nodata."""


def _write(task: DateTask, out: Path, overwrite: bool, count_block: Callable[[], None]) -> bool:
    """Write one date; return False, and leave no file, where all is nodata."""
    path, window = task.path(out), task.window
    shape = window.height, window.width
    created = [folder for folder in (out, path.parent) if not folder.exists()]
    options: dict[str, Any] = {"dtype": task.dtype, "nodata": task.nodata, "overwrite": overwrite}
    try:
        with quiet_gdal(), task.open() as reader:
            with writing_date(path, shape, task.bands, task.crs, task.window_transform(), **options) as file:
                for block in task.blocks():
                    file.write(reader.read(block), block.x0 - window.x0, block.y0 - window.y0)
                    count_block()
                if not file.has_ground:
                    raise _NoGroundError
                file.provenance = reader.provenance()
    except BaseException as error:
        for folder in reversed(created):
            if folder.exists() and not any(folder.iterdir()):
                folder.rmdir()
        if isinstance(error, _NoGroundError):
            return False
        raise
    return True


def check_same_grid(tasks: Sequence[DateTask], out: Path) -> None:
    """Check that new dates lie on the grid of the existing dates of their place.

    Args:
        tasks: one for each date of each place.
        out: folder of the places.

    Raises:
        GridError: an existing date of a place lies on another grid.
    """
    first = {task.place: task for task in reversed(tasks)}
    for task in first.values():
        requested = {other.path(out) for other in tasks}
        for path in sorted((out / task.place).glob("[!.]*.tif")):
            if path in requested:
                continue
            existing = describe_raster(path)
            same = (existing.height, existing.width) == (task.window.height, task.window.width)
            if not same or not np.allclose(
                existing.transform or (), task.window_transform() or (), atol=0.01
            ):
                raise GridError(f"{path}: cut for another box. Pass the same --bbox, or choose another --out")
            break
