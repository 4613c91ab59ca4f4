"""Any source of images to places, and the temporary folder of places from which records are made."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from retrieval.errors import ConfigError
from retrieval.geo.request import ImageFilter
from retrieval.ingest.cogs import ingest_cogs, is_list
from retrieval.ingest.places_writer import WrittenPlaces, is_written_here
from retrieval.ingest.redaction import redact
from retrieval.ingest.retry import RetryPolicy
from retrieval.ingest.safe.products import ingest_products
from retrieval.ingest.safe.tree import holds_products
from retrieval.types import Executor
from tfrecords.challenge import Progress
from tfrecords.errors import OutputExistsError
from tfrecords.read.folders import visible


def is_plain_folder(source: str | os.PathLike[str]) -> bool:
    """Return whether a source is a folder of GeoTIFFs, not of products, a list or an address."""
    return not is_list(os.fspath(source)) and not holds_products(Path(source))


def write_places(
    source: str | os.PathLike[str],
    out: Path,
    image_filter: ImageFilter,
    bands: Sequence[str] | None = None,
    *,
    retry: RetryPolicy | None = None,
    overwrite: bool = False,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> WrittenPlaces:
    """Write a source as places, `<place>/<date>.tif`.

    Args:
        source: see `ingest`.
        out: folder of the places; existing dates made from the same input are kept.
        image_filter: which dates, and which part of them.
        bands: band names of GeoTIFFs, if stated; products have known bands.
        retry: how often a read from the web is tried; None = four times.
        overwrite: replace dates that were made from other input.
        executor: writes the dates; None for this thread.
        progress: called with the number of blocks read, and of all blocks.

    Returns:
        The files.

    Raises:
        ConfigError: `hide_snow` for GeoTIFFs.
        StorageError: see `ingest_products` and `ingest_cogs`.
    """
    name = os.fspath(source)
    how: dict[str, Any] = {"overwrite": overwrite, "executor": executor, "progress": progress}
    if not is_list(name) and holds_products(Path(name)):
        return ingest_products(Path(name), out, image_filter, **how)
    if image_filter.hide_snow:
        raise ConfigError(
            f"--hide-snow: {redact(name)} holds GeoTIFFs, which do not mark snow. Expected Sentinel-2 "
            "Level-2A products. Omit --hide-snow"
        )
    return ingest_cogs(name, out, image_filter, bands, retry=retry or RetryPolicy(), **how)


@contextmanager
def temporary_places(out: Path) -> Iterator[Path]:
    """Yield a folder of places next to an output; an error leaves it there, and the next run resumes in it.

    Args:
        out: the output.

    Yields:
        `<out>.places`. After a block without an error the files written by `ingest` are removed.

    Raises:
        OutputExistsError: there is a file of that name.
    """
    work = out.with_name(f"{out.name}.places")
    if work.exists() and not work.is_dir():
        raise OutputExistsError(f"{work}: exists but is needed as a temporary folder. Rename or remove it")
    yield work
    keep_only(work, ())


def keep_only(work: Path, paths: Sequence[Path]) -> None:
    """Remove dates that an earlier, interrupted run wrote, but no file of the user.

    Args:
        work: folder of places.
        paths: files to keep.

    Raises:
        OutputExistsError: the folder holds another GeoTIFF that `ingest` did not write.
    """
    others = sorted({path for path in work.rglob("*.tif") if visible(path, work)} - set(paths))
    foreign = [path for path in others if not is_written_here(path)]
    if foreign:
        raise OutputExistsError(
            f"{work}: needed as a temporary folder, but {foreign[0].name} in it was not written by this "
            "command. Rename the folder, or choose another --out"
        )
    for path in others:
        path.unlink()
    for folder in sorted((path for path in (work, *work.rglob("*")) if path.is_dir()), reverse=True):
        with suppress(OSError):  # not empty
            folder.rmdir()
