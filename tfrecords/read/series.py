"""Read training series in order."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from tfrecords.artifacts import FORMAT_VERSION, MANIFEST, read_manifest
from tfrecords.errors import ArrayError, MissingInputError, parse_json
from tfrecords.read.folders import match_files
from tfrecords.read.records import read_fields
from tfrecords.read.sources import TFRECORD, check_shards, files_below
from tfrecords.schema import Fields, Series, check_finite, series_of

SeriesLike = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""A folder of shards, a shard, a glob of shards, or a list of shards."""

NOT_SERIES = ("test_images", "test_patches")
"""Stems of the challenge's files without series."""


def series_files(source: SeriesLike) -> tuple[Path, ...]:
    """Return the files of training series.

    Args:
        source: a folder, one file, a glob, or a list of files. A folder of this package is checked against
            its manifest (sizes). In a folder of the challenge's `*.tfrecords`, `test_images` and
            `test_patches` do not count.

    Returns:
        The files, sorted by their path in the folder; a list keeps its order.

    Raises:
        MissingInputError: there is no file.
        ManifestError: a file of the folder is missing or has another size, or the folder is unfinished.
        FormatVersionError: the folder has another format version.
    """
    if not isinstance(source, (str, os.PathLike)):
        files = tuple(Path(s) for s in source)
    elif Path(source).is_dir():
        files = _in_folder(Path(source))
    elif Path(source).exists():
        files = (Path(source),)
    else:
        files = match_files(os.fspath(source))
    if not files:
        raise MissingInputError(f"{source}: no TFRecord files of series; expected a folder of *.tfrecords")
    return files


def _in_folder(folder: Path) -> tuple[Path, ...]:
    """Return the shards of a folder; only those in its manifest, if it has one."""
    files = tuple(p for p in files_below(folder, TFRECORD) if p.stem not in NOT_SERIES)
    if folder.suffix == ".partial":
        read_manifest(folder, "series")  # refuses an unfinished folder
    if not (folder / MANIFEST).exists():
        check_shards(files)
        return files
    try:
        kind = parse_json((folder / MANIFEST).read_text()).get("kind")
    except (ValueError, AttributeError):
        kind = "series"
    known = isinstance(kind, str) and kind in FORMAT_VERSION
    manifest = read_manifest(folder, kind if known else "series", verify="sizes")
    return tuple(p for p in files if p.relative_to(folder).as_posix() in manifest.files)


def checked_series(fields: Fields, path: Path, record: int) -> Series:
    """Return the series of a parsed record after checking its values.

    Args:
        fields: the record.
        path: its file.
        record: its number in the file, from 0.

    Returns:
        The series; its place is "<file's stem>#<record>" if the record names none.

    Raises:
        RecordError: a feature is missing or does not fit, or a value is not finite.
    """
    series = series_of(fields, f"{path.stem}#{record}")
    try:
        check_finite(series.pixels, series.nodata, "pixels")
    except ArrayError as err:
        raise fields.fault(str(err)) from err
    return series


def read_series(source: SeriesLike) -> Iterator[Series]:
    """Read training series in order, one in memory at a time.

    Args:
        source: see `series_files`.

    Returns:
        An iterator over the series.

    Raises:
        MissingInputError: there is no file.
        ManifestError: the folder is damaged or unfinished.
        RecordError: a record is truncated, corrupt or malformed; names file and record.
    """
    files = series_files(source)
    return (
        checked_series(fields, path, record)
        for path in files
        for record, fields in enumerate(read_fields(path))
    )
