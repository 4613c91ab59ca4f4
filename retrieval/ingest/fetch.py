"""Whatever holds images -> places: which way in it takes, and the folder between it and records."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from retrieval.ingest.cogs import fetch_cogs, is_list
from retrieval.ingest.images import Fetched, made_by_us
from retrieval.ingest.products import fetch_products
from retrieval.ingest.remote import shown
from retrieval.ingest.safe.tree import holds_products
from retrieval.ingest.wanted import Wanted
from tfrecords.challenge import Progress
from tfrecords.errors import ArrayError, MissingInputError


def is_plain_folder(source: str | os.PathLike[str]) -> bool:
    """Whether a source is a folder of GeoTIFFs, or of nothing; products, lists and addresses are none."""
    return not is_list(os.fspath(source)) and not holds_products(Path(source))


def fetch(
    source: str | os.PathLike[str],
    out: Path,
    wanted: Wanted,
    bands: Sequence[str] | None = None,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Fetched:
    """Write a source as places, `<place>/<date>.tif`.

    Args:
        source: see `ingest`.
        out: folder of the places; dates that are there, made of the same, are kept.
        wanted: which dates, and which part of them.
        bands: names of the bands of GeoTIFFs, if stated; those of products are known.
        overwrite: replace dates that were made of something else.
        progress: told how many blocks of how many are read.

    Returns:
        The files.

    Raises:
        StorageError: see `fetch_products` and `fetch_cogs`.
    """
    name = os.fspath(source)
    if not is_list(name) and holds_products(Path(name)):
        return fetch_products(Path(name), out, wanted, overwrite=overwrite, progress=progress)
    if wanted.hide_snow:
        raise MissingInputError(
            f"{shown(name)} are GeoTIFFs, which do not say where snow is; expected Sentinel-2 products of "
            "Level-2A for --hide-snow: leave it out"
        )
    return fetch_cogs(name, out, wanted, bands, overwrite=overwrite, progress=progress)


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
        raise ArrayError(f"{work} is in the way: it is where the images go meanwhile; rename it")
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
        raise MissingInputError(
            f"{work} is where the images go meanwhile, and holds {strange[0].name}, which we did not write: "
            "rename the folder, or name another --out"
        )
    for path in others:
        path.unlink()
    for folder in sorted((path for path in (work, *work.rglob("*")) if path.is_dir()), reverse=True):
        with suppress(OSError):  # not empty
            folder.rmdir()
