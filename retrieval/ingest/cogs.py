"""GeoTIFFs on the disk or on the web to places; only the requested windows are read."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from retrieval.geo.pixel_window import PixelWindow, window_of_box
from retrieval.geo.request import ImageFilter
from retrieval.ingest.grids import quiet_gdal
from retrieval.ingest.places import acquisition_date, days_around, find_places
from retrieval.ingest.places_writer import (
    DateTask,
    Skipped,
    WrittenPlaces,
    holds_patch,
    recipe_of,
    write_dates,
)
from retrieval.ingest.redaction import redact, redact_logs
from retrieval.ingest.remote import is_remote, read_remote
from retrieval.ingest.retry import RetryPolicy
from retrieval.types import Executor
from tfrecords.challenge import Progress
from tfrecords.errors import ArrayError, BandsError, MissingInputError, StorageError
from tfrecords.read.layers import BandFiles, pages_as_bands
from tfrecords.read.rasters import longitude_of, stack_of_files
from tfrecords.read.sources import TIF
from tfrecords.schema import acquisition_day, band_names, date_of
from tfrecords.schema.records import Provenance

BLOCK_PX = 2048
"""Side of the windows that are read at a time: large, because each takes a request or more."""

_TILE = re.compile(r"(?<![A-Za-z0-9])T?(\d{2}[C-HJ-NP-X][A-HJ-NP-Z]{2})(?![A-Za-z0-9])")


@dataclass(frozen=True)
class Cog:
    """One GeoTIFF: one date of a place."""

    address: str
    """Its address on the web, or its path."""
    place: str
    """Name of the place, with slashes."""
    date: str
    """Its date, as `date_of` reads it."""
    parts: BandFiles | None = None
    """The files of a date with one file per band; else None."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Its local files; none for an address on the web."""
        if self.parts:
            return self.parts.files
        return () if is_remote(self.address) else (Path(self.address),)


def is_list(source: str) -> bool:
    """Return whether a source is an address, a file, or a list of these, and not a folder."""
    return is_remote(source) or source.lower().endswith((*TIF, ".txt"))


def find_cogs(source: str, notes: list[str] | None = None) -> list[Cog]:
    """Find the GeoTIFFs of a source.

    Args:
        source: a folder of places; one GeoTIFF; or a `.txt` file with one address, or path relative to it,
            per line (`#` begins a comment). The place of a GeoTIFF is a tile name such as 31TCJ in its
            name or its folder's name, else the folder. The date is in either name.
        notes: receives what was put together or left out in a folder.

    Returns:
        The GeoTIFFs in the order of the source.

    Raises:
        MissingInputError: no GeoTIFF, a name without a date, or two files of one place and date.
    """
    if not is_list(source):
        places = find_places(source)
        if notes is not None:
            notes += [note for place in places for note in place.notes]
        return [
            Cog(str(one.path), place.name, one.date, one.parts) for place in places for one in place.files
        ]
    names = _lines(Path(source)) if source.lower().endswith(".txt") and not is_remote(source) else [source]
    found: dict[tuple[str, str], Cog] = {}
    for name in names:
        cog = _cog(name)
        other = found.setdefault((cog.place, cog.date), cog)
        if other is not cog:
            raise MissingInputError(
                f"{redact(name)} and {redact(other.address)} are both {cog.place} of {cog.date}. Expected "
                "one file per date of a place. Leave one out"
            )
    return list(found.values())


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise MissingInputError(f"{path}: no such file. Expected a list of GeoTIFFs, one per line") from None
    except UnicodeDecodeError as error:
        raise MissingInputError(
            f"{path}: not a text file. Expected a list of GeoTIFFs, one per line"
        ) from error
    names = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not names:
        raise MissingInputError(f"{path}: empty. Expected addresses or paths of GeoTIFFs, one per line")
    return [name if is_remote(name) else str(path.parent / name) for name in names]


def _cog(name: str) -> Cog:
    """Read the place and the date of a GeoTIFF from its name and its folder's."""
    parts = urlsplit(name) if is_remote(name) else None
    path = PurePosixPath(unquote(parts.path) if parts else Path(name).absolute().as_posix())
    folder = path.parent.name or (parts.hostname or "" if parts else "")
    date = date_of(path.stem) or date_of(folder)
    if date is None:
        raise MissingInputError(
            f"{redact(name)}: no date in its name or its folder's. Expected YYYY-MM-DD, YYYY-MM or YYYY"
        )
    tile = _TILE.search(path.stem) or _TILE.search(folder)
    place = tile[1] if tile else re.sub(r"[^\w.-]", "_", folder).lstrip(".") or "place"
    return Cog(name, place, date)


def ingest_cogs(
    source: str,
    out: Path,
    image_filter: ImageFilter,
    bands: Sequence[str] | None = None,
    *,
    retry: RetryPolicy,
    overwrite: bool = False,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> WrittenPlaces:
    """Copy the requested part of GeoTIFFs into places.

    All files are opened before anything is written. A file that cannot be read is skipped, with a note.

    Args:
        source: see `find_cogs`.
        out: folder of the places; existing dates made from the same input are kept.
        image_filter: which files, and which part of them.
        bands: band names, if stated.
        retry: how often a read from the web is tried.
        overwrite: replace dates that were made from other input, or before a local file changed.
        executor: copies the dates; None for this thread.
        progress: called with the number of windows read, and of all windows.

    Returns:
        The files, `<place>/<date>.tif`, with the stored numbers unchanged.

    Raises:
        MissingInputError: no file is left; the text says why for each.
        OutputExistsError: a date exists that was made from other input.
        DiskFullError: the disk is full.
    """
    redact_logs()
    skipped, notes = Skipped(), list[str]()
    cogs = find_cogs(source, notes)
    tasks = [task for cog in cogs if (task := _plan(cog, image_filter, bands, retry, skipped))]
    if not tasks:
        raise skipped.error(source)
    _check_dates(tasks)
    paths = write_dates(tasks, out, skipped, overwrite=overwrite, executor=executor, progress=progress)
    if not paths:
        raise skipped.error(source)
    return WrittenPlaces(paths, (*notes, *skipped.notes()))


def _plan(
    cog: Cog, image_filter: ImageFilter, bands: Sequence[str] | None, retry: RetryPolicy, skipped: Skipped
) -> DateTask | None:
    """Open a GeoTIFF and plan its copy; None where it is skipped."""
    name = redact(cog.address)
    reasons = [image_filter.reason_to_skip(day, None) for day in (cog.date, *days_around(cog.date))]
    if all(reasons):
        skipped.add(reasons[0], name)
        return None
    try:
        with _CogReader(cog, retry) as reader:
            return _task(cog, reader, image_filter, bands, skipped)
    except StorageError as error:
        skipped.errors.append(error)
    return None


def _task(
    cog: Cog, reader: _CogReader, image_filter: ImageFilter, bands: Sequence[str] | None, skipped: Skipped
) -> DateTask | None:
    dataset, name = reader.open(), redact(cog.address)
    provenance = Provenance.from_tags(dataset.tags())
    crs = dataset.crs.to_string() if dataset.crs else None
    transform = None if dataset.transform.is_identity else tuple(float(v) for v in dataset.transform[:6])
    window = window_of_box(image_filter.box, crs, transform, dataset.width, dataset.height, name)
    if not holds_patch(window, name, skipped):
        return None
    assert window is not None
    longitude = longitude_of(crs, transform, window.centre)
    date = acquisition_date(cog.date, acquisition_day(provenance.datetime, lambda: longitude))
    if reason := image_filter.reason_to_skip(date, provenance.cloud_cover):
        skipped.add(reason, name)
        return None
    bands = cog.parts.new_names(bands) if cog.parts else bands
    try:
        names = band_names(dataset.count, bands, dataset.descriptions)
    except BandsError as error:
        raise BandsError(f"{name}: {error}") from error
    files = list(map(str, cog.parts.files)) if cog.parts else [name]
    recipe = recipe_of(files, window, bands=names, size=[dataset.height, dataset.width])
    provenance = replace(provenance, source=provenance.source or name, recipe=recipe)
    return DateTask(
        place=cog.place,
        date=date,
        name=name,
        window=window,
        crs=crs,
        transform=transform,
        bands=names,
        dtype=dataset.dtypes[0],
        nodata=dataset.nodata,
        recipe=recipe,
        block=(BLOCK_PX, BLOCK_PX),
        open=partial(_CogReader, cog, reader.retry, provenance),
        files=cog.files,
    )


def _check_dates(tasks: Sequence[DateTask]) -> None:
    """Refuse two files of one place and acquisition day."""
    names: dict[tuple[str, str], str] = {}
    for task in tasks:
        other = names.setdefault((task.place, task.date), task.name)
        if other != task.name:
            raise MissingInputError(
                f"{task.name} and {other} are both {task.place} of {task.date}. Expected one file per date "
                "of a place. Leave one out"
            )


class _CogReader:
    """Reads windows of a GeoTIFF; on the web it opens the file again after a failure. Use with `with`."""

    def __init__(self, cog: Cog, retry: RetryPolicy, provenance: Provenance | None = None) -> None:
        self._address, self._parts, self.retry = cog.address, cog.parts, retry
        self._provenance, self._dataset = provenance or Provenance(), None
        self._stack = ExitStack()

    def __enter__(self) -> _CogReader:
        import rasterio

        self._stack.enter_context(quiet_gdal())
        if is_remote(self._address):
            self._stack.enter_context(
                rasterio.Env(GDAL_INGESTED_BYTES_AT_OPEN="32768", **self.retry.gdal_options())
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        self._stack.close()

    def provenance(self) -> Provenance:
        """Return the tags for the copy."""
        return self._provenance

    def read(self, window: PixelWindow) -> NDArray[Any]:
        """Return the pixels (h, w, b) of a window."""
        from rasterio.windows import Window

        at = Window(window.x0, window.y0, window.width, window.height)
        return np.moveaxis(self._use(lambda dataset: dataset.read(window=at)), 0, -1)

    def open(self) -> Any:
        """Return the open file."""
        dataset = self._use(lambda dataset: dataset)
        if len(set(dataset.dtypes)) > 1:
            raise ArrayError(
                f"{redact(self._address)}: its bands have dtypes {dataset.dtypes}. Expected one dtype"
            )
        return dataset

    def _use(self, use: Callable[[Any], Any]) -> Any:
        """Call a function with the open file; retry it where the file is on the web."""
        from rasterio.errors import RasterioError

        try:
            if not is_remote(self._address) or self._dataset is not None:
                return use(self._dataset or self._reopen())
        except (RasterioError, OSError) as error:
            if not is_remote(self._address):
                self._fail(error)
        return read_remote(self._address, lambda: use(self._reopen()), self.retry)

    def _fail(self, error: Exception) -> None:
        if not Path(self._address).exists():
            raise MissingInputError(f"{self._address}: no such file. Expected a GeoTIFF") from error
        raise ArrayError(f"{self._address}: it cannot be read ({error}); damaged or not a GeoTIFF") from error

    def _reopen(self) -> Any:
        import rasterio

        self._close()
        name = f"/vsicurl/{self._address}" if is_remote(self._address) else self._address
        # Only the GTiff driver: a file named .tif could be a list of other files.
        files = self._parts.files if self._parts else (name,)
        datasets = [rasterio.open(file, driver="GTiff") for file in files]
        if self._parts:
            virtual: str | None = stack_of_files(self._parts)
        else:
            virtual = pages_as_bands(redact(self._address), datasets[0])
        self._dataset = datasets[0]
        if virtual:
            for dataset in datasets:
                dataset.close()
            self._dataset = rasterio.open(virtual)
        return self._dataset

    def _close(self) -> None:
        if self._dataset is not None:
            self._dataset.close()
        self._dataset = None
