"""GeoTIFFs, on the disk or on the web, whole or a part -> places. Only the windows needed are read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from retrieval.geo.pixel_window import PixelWindow, window_of_box
from retrieval.geo.request import ImageFilter
from retrieval.ingest.ground import quiet_gdal
from retrieval.ingest.images import Fetched, Job, Left, large_enough, recipe_of, write_jobs
from retrieval.ingest.places import SUFFIXES, find_places
from retrieval.ingest.remote import is_remote, retrying, shown, web_settings
from tfrecords.challenge import Progress
from tfrecords.errors import ArrayError, BandsError, MissingInputError, StorageError
from tfrecords.schema import band_names
from tfrecords.schema.dates import date_of
from tfrecords.schema.records import Provenance

BLOCK_PX = 2048
"""Side of the windows that are read at a time: large, since each is a request or more."""

_TILE = re.compile(r"(?<![A-Za-z0-9])T?(\d{2}[C-HJ-NP-X][A-HJ-NP-Z]{2})(?![A-Za-z0-9])")


@dataclass(frozen=True)
class Cog:
    """One GeoTIFF: one date of a place."""

    at: str
    """Its address, or its path."""
    place: str
    """Name of the place, with slashes."""
    date: str
    """As `date_of` gives it."""


def is_list(source: str) -> bool:
    """Whether a source is an address, a file, or a list of these, rather than a folder."""
    return is_remote(source) or source.lower().endswith((*SUFFIXES, ".txt"))


def find_cogs(source: str) -> list[Cog]:
    """Find the GeoTIFFs of a source.

    Args:
        source: a folder of places; one GeoTIFF; or a `.txt` file with one a line, by address or by path
            relative to the list, `#` before comments. Of these, a tile's name such as 31TCJ in the name of
            the file or of its folder is the place, else the folder is; the date is in the file's name, or in
            the folder's.

    Returns:
        The GeoTIFFs in the order of the source.

    Raises:
        MissingInputError: there is none, one without a date in its name, or two of one place and date.
    """
    if not is_list(source):
        return [
            Cog(str(one.path), place.name, one.date) for place in find_places(source) for one in place.files
        ]
    names = _lines(Path(source)) if source.lower().endswith(".txt") and not is_remote(source) else [source]
    found: dict[tuple[str, str], Cog] = {}
    for name in names:
        cog = _cog(name)
        other = found.setdefault((cog.place, cog.date), cog)
        if other is not cog:
            raise MissingInputError(
                f"{shown(name)} and {shown(other.at)} are both {cog.place} of {cog.date}; expected one file "
                "for each date of a place: leave one out"
            )
    return list(found.values())


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise MissingInputError(f"{path}: no such file; expected a list of GeoTIFFs, one a line") from None
    except UnicodeDecodeError as error:
        raise MissingInputError(f"{path} is no text; expected a list of GeoTIFFs, one a line") from error
    names = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not names:
        raise MissingInputError(f"{path} names nothing; expected addresses or paths of GeoTIFFs, one a line")
    return [name if is_remote(name) else str(path.parent / name) for name in names]


def _cog(name: str) -> Cog:
    """Tell place and date of a GeoTIFF by its name and its folder's."""
    parts = urlsplit(name) if is_remote(name) else None
    path = PurePosixPath(unquote(parts.path) if parts else Path(name).absolute().as_posix())
    folder = path.parent.name or (parts.hostname or "" if parts else "")
    date = date_of(path.stem) or date_of(folder)
    if date is None:
        raise MissingInputError(
            f"{shown(name)}: no date in its name; expected YYYY-MM-DD, YYYY-MM or YYYY in it, or in its "
            "folder's"
        )
    tile = _TILE.search(path.stem) or _TILE.search(folder)
    place = tile[1] if tile else re.sub(r"[^\w.-]", "_", folder).lstrip(".") or "place"
    return Cog(name, place, date)


def fetch_cogs(
    source: str,
    out: Path,
    image_filter: ImageFilter,
    bands: Sequence[str] | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Fetched:
    """Copy the wanted part of GeoTIFFs into places.

    All are looked at before anything is written; one that can't be read is left out, with a note.

    Args:
        source: see `find_cogs`.
        out: folder of the places; dates that are there, made of the same, are kept.
        image_filter: which of them, and which part.
        bands: names of the bands, if stated.
        overwrite: replace dates that were made of something else.
        progress: told how many windows of how many are read.

    Returns:
        The files, `<place>/<date>.tif`, with the numbers as they are.

    Raises:
        MissingInputError: nothing of what was asked for is there; says why of each file.
        OutputExistsError: a date is there that was made of something else.
        DiskFullError: the disk is full.
    """
    left = Left()
    jobs = [job for cog in find_cogs(source) if (job := _look(cog, image_filter, bands, left))]
    if not jobs:
        raise left.error(source)
    paths = write_jobs(jobs, out, left, overwrite=overwrite, progress=progress)
    if not paths:
        raise left.error(source)
    return Fetched(paths, tuple(left.notes()))


def _look(cog: Cog, image_filter: ImageFilter, bands: Sequence[str] | None, left: Left) -> Job | None:
    """Look at a GeoTIFF; None where it is not image_filter, or can't be used."""
    name = shown(cog.at)
    if reason := image_filter.reason_to_skip(cog.date, None):
        left.add(reason, name)
        return None
    try:
        with _Window(cog.at) as window:
            return _job(cog, window, image_filter, bands, left)
    except StorageError as error:
        left.errors.append(error)
    return None


def _job(
    cog: Cog, window: _Window, image_filter: ImageFilter, bands: Sequence[str] | None, left: Left
) -> Job | None:
    dataset, name = window.dataset(), shown(cog.at)
    known = Provenance.from_tags(dataset.tags())
    if reason := image_filter.reason_to_skip(cog.date, known.cloud_cover):
        left.add(reason, name)
        return None
    crs = dataset.crs.to_string() if dataset.crs else None
    transform = None if dataset.transform.is_identity else tuple(float(v) for v in dataset.transform[:6])
    part = window_of_box(image_filter.box, crs, transform, dataset.width, dataset.height, name)
    if not large_enough(part, name, left):
        return None
    assert part is not None
    try:
        names = band_names(dataset.count, bands, dataset.descriptions)
    except BandsError as error:
        raise BandsError(f"{name}: {error}") from error
    recipe = recipe_of([name], part, bands=names, size=[dataset.height, dataset.width])
    known = replace(known, source=known.source or name, recipe=recipe)

    @contextmanager
    def opened() -> Iterator[_Window]:
        with _Window(cog.at, known) as again:
            yield again

    return Job(
        place=cog.place,
        date=cog.date,
        name=name,
        part=part,
        crs=crs,
        transform=transform,
        bands=names,
        dtype=dataset.dtypes[0],
        nodata=dataset.nodata,
        recipe=recipe,
        block=(BLOCK_PX, BLOCK_PX),
        opened=opened,
    )


class _Window:
    """A GeoTIFF that is opened when it is read, and again when that fails; use with `with`."""

    def __init__(self, at: str, known: Provenance | None = None) -> None:
        self._at, self._known, self._dataset = at, known or Provenance(), None
        self._stack = ExitStack()

    def __enter__(self) -> _Window:
        settings: AbstractContextManager[Any] = web_settings() if is_remote(self._at) else nullcontext()
        self._stack.enter_context(quiet_gdal())
        self._stack.enter_context(settings)
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        self._stack.close()

    def provenance(self) -> Provenance:
        """What the file says of itself, and where it is."""
        return self._known

    def read(self, part: PixelWindow) -> NDArray[Any]:
        """Pixels (h, w, b) of a part."""
        from rasterio.windows import Window

        window = Window(part.x0, part.y0, part.width, part.height)
        return np.moveaxis(self._tried(lambda dataset: dataset.read(window=window)), 0, -1)

    def dataset(self) -> Any:
        """The opened file."""
        dataset = self._tried(lambda dataset: dataset)
        if len(set(dataset.dtypes)) > 1:
            raise ArrayError(
                f"{shown(self._at)}: its bands have dtypes {dataset.dtypes}; expected one for all"
            )
        return dataset

    def _tried(self, use: Any) -> Any:
        """Use the opened file; on the web, more than once."""
        from rasterio.errors import RasterioError

        if is_remote(self._at):
            return self._held(use) if self._dataset is None else self._again(use)
        try:
            return use(self._open())
        except (RasterioError, OSError) as error:
            if not Path(self._at).exists():
                raise MissingInputError(f"{self._at}: no such file; expected a GeoTIFF") from error
            raise ArrayError(
                f"{self._at} can't be read ({error}): it is damaged or something else"
            ) from error

    def _again(self, use: Any) -> Any:
        """Use what is open; where that fails, from the beginning."""
        from rasterio.errors import RasterioError

        try:
            return use(self._dataset)
        except (RasterioError, OSError):
            self._close()
            return self._held(use)

    def _held(self, use: Any) -> Any:
        def action() -> Any:
            self._close()
            return use(self._open())

        return retrying(self._at, action)

    def _open(self) -> Any:
        import rasterio

        if self._dataset is None:
            name = f"/vsicurl/{self._at}" if is_remote(self._at) else self._at
            # By no other driver: what is named .tif might be a list of other files.
            self._dataset = rasterio.open(name, driver="GTiff")
        return self._dataset

    def _close(self) -> None:
        if self._dataset is not None:
            self._dataset.close()
        self._dataset = None
