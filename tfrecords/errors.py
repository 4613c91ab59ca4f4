"""Base classes of errors and warnings, errors of file formats, texts of messages, a parser of JSON.

Every error that a user can meet derives from `RetrieveError`; the command line prints its text and exits
with 1. Any other exception is a defect of the product.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

NAMED = 20
"""Names that a message lists; it counts the others."""
DAMAGED_ZIP = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""Errors of `zipfile` and `numpy.load` where an archive is damaged, encrypted, or packed otherwise."""


def listed(names: Sequence[str], most: int = NAMED) -> str:
    """Join names for a message: all of them, or the first ones and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def said_by(error: BaseException) -> str:
    """Return the classes and texts of an error and its causes; rasterio keeps GDAL's words in the cause."""
    causes: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in causes:
        causes.append(one)
        one = one.__cause__
    return "; ".join(f"{type(one).__name__}: {one}" for one in causes)


class RetrieveError(Exception):
    """Base of every error that a user can meet; its text says what is wrong and how to fix it."""


class RetrieveWarning(UserWarning):
    """Base of every warning that a user must see; the command line always prints it."""


class StorageError(RetrieveError):
    """Base of all errors between the disk and an array."""


class MissingInputError(StorageError):
    """A file or folder does not exist, or holds nothing that can be read."""


class RecordError(StorageError):
    """A TFRecord is truncated, corrupt or malformed; the text names the file and the record's number."""


class ArrayError(StorageError):
    """An array has a wrong shape, dtype, size or value (NaN, infinity)."""


class UnitsError(StorageError):
    """The units of pixels are unknown, contradictory, or cannot be inferred from their range."""


class BandsError(StorageError):
    """Band names or counts do not fit the pixels, or are doubled."""


class GridError(StorageError):
    """Pixel grids do not fit each other or the window: no overlap, too small, another resolution."""


class ProductError(StorageError):
    """A Sentinel-2 product lacks a file or a number, is damaged, or contradicts itself."""


class RemoteError(StorageError):
    """A URL cannot be read: missing, refused, busy, interrupted, or not a GeoTIFF; the text says which."""


class DuplicateIdError(StorageError):
    """An id that must be unique occurs twice; the text names it and where."""


class OutputExistsError(StorageError):
    """The output exists and `--overwrite` was not given."""


class UnfinishedOutputError(StorageError):
    """An unfinished output with other settings has the same name."""


class ManifestError(StorageError):
    """A folder has no manifest, a damaged manifest, or files that do not match its checksums."""


class FormatVersionError(ManifestError):
    """A folder was written in a format version that this release does not read."""


class CatalogueError(StorageError):
    """A STAC catalogue cannot be reached, gives an invalid answer, or has no matching item."""


class MissingPackageError(StorageError):
    """A required package is not installed; the text says how to install it."""


class DiskFullError(StorageError):
    """The disk became full while writing; the former output is unchanged."""


def parse_json(text: str | bytes) -> Any:
    """Return what a text in JSON holds, where damage of any kind is one error.

    The parser of the standard library recurses. A file that nests thousands of lists ends in a
    `RecursionError`, which no caller expects; here it is a `ValueError` like any other damage.

    Args:
        text: the text; bytes in UTF-8, -16 or -32.

    Raises:
        ValueError: it is no JSON, or nests too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it nests too deeply") from None
