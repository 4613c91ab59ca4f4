"""Whatever holds images -> places: which way in it takes, and the folder between it and records."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from retrieval.errors import ConfigError
from retrieval.geo.request import ImageFilter
from retrieval.ingest.cogs import fetch_cogs, is_list
from retrieval.ingest.images import Fetched, made_by_us
from retrieval.ingest.products import fetch_products
from retrieval.ingest.remote import redact
from retrieval.ingest.retry import RetryPolicy
from retrieval.ingest.safe.tree import holds_products
from tfrecords.challenge import Progress
from tfrecords.errors import OutputExistsError


def is_plain_folder(source: str | os.PathLike[str]) -> bool:
    """Whether a source is a folder of GeoTIFFs, or of nothing; products, lists and addresses are none."""
    return not is_list(os.fspath(source)) and not holds_products(Path(source))


def fetch(
    source: str | os.PathLike[str],
    out: Path,
    image_filter: ImageFilter,
    bands: Sequence[str] | None = None,
    *,
    retry: RetryPolicy | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Fetched:
    """Write a source as places, `<place>/<date>.tif`.

    Args:
        source: see `ingest`.
        out: folder of the places; dates that are there, made of the same, are kept.
        image_filter: which dates, and which part of them.
        bands: names of the bands of GeoTIFFs, if stated; those of products are known.
        retry: how often a read from the web is tried.
        overwrite: replace dates that were made of something else.
        progress: told how many blocks of how many are read.

    Returns:
        The files.

    Raises:
        StorageError: see `fetch_products` and `fetch_cogs`.
    """
    name = os.fspath(source)
    if not is_list(name) and holds_products(Path(name)):
        return fetch_products(Path(name), out, image_filter, overwrite=overwrite, progress=progress)
    if image_filter.hide_snow:
        raise ConfigError(
            f"--hide-snow: {redact(name)} holds GeoTIFFs, which do not mark snow. Expected Sentinel-2 "
            "Level-2A products. Omit --hide-snow"
        )
    return fetch_cogs(
        name, out, image_filter, bands, retry=retry or RetryPolicy(), overwrite=overwrite, progress=progress
    )


@contextmanager
def working_places(out: Path) -> Iterator[Path]:
    """A folder of places beside an output; kept where the block raises, so that the next run goes on there.

    Args:
        out: the output.

    Yields:
        `<out>.places`. When the block ends well, what we wrote in it is removed.

    Raises:
        ArrayError: there is a file of that name.
    """
    work = out.with_name(f"{out.name}.places")
    if work.exists() and not work.is_dir():
        raise OutputExistsError(f"{work}: exists but is needed as a temporary folder. Rename or remove it")
    yield work
    keep_only(work, ())


def keep_only(work: Path, paths: Sequence[Path]) -> None:
    """Remove dates that an earlier, stopped run wanted; nothing that we did not write.

    Args:
        work: folder of places.
        paths: what stays.

    Raises:
        MissingInputError: it holds a GeoTIFF that is not ours.
    """
    others = sorted({path for path in work.rglob("*.tif") if not path.name.startswith(".")} - set(paths))
    strange = [path for path in others if not made_by_us(path)]
    if strange:
        raise OutputExistsError(
            f"{work}: needed as a temporary folder, but {strange[0].name} in it was not written by this "
            "command. Rename the folder, or choose another --out"
        )
    for path in others:
        path.unlink()
    for folder in sorted((path for path in (work, *work.rglob("*")) if path.is_dir()), reverse=True):
        with suppress(OSError):  # not empty
            folder.rmdir()
