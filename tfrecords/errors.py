"""Named situations of storage: what was received, what was expected, how to fix it.

Every error that a user can meet derives from `RetrieveError`; the command line prints its
sentence and exits with 1. Anything else that escapes is a defect of ours.
"""

from __future__ import annotations


class RetrieveError(Exception):
    """Base of every error and refusal that a user can meet; its text is one clear sentence."""


class RetrieveWarning(UserWarning):
    """Base of every warning that a user must see; the command line always prints its sentence."""


class StorageError(RetrieveError):
    """Base of what can go wrong between the disk and an array."""


class MissingInputError(StorageError):
    """A file or folder that was named does not exist, or holds nothing that can be read."""


class RecordError(StorageError):
    """A TFRecord is truncated, corrupt or malformed; the text names the file and the record's number."""


class ArrayError(StorageError):
    """An array has a wrong shape, dtype, size or value (NaN, infinity)."""


class UnitsError(StorageError):
    """The units of pixels are unknown, contradictory or cannot be told from their range."""


class BandsError(StorageError):
    """Band names or counts do not fit the pixels, or are doubled."""


class GridError(StorageError):
    """Pixel grids do not fit each other or the window: no overlap, too small, another resolution."""


class ProductError(StorageError):
    """A Sentinel-2 product lacks a file or a number, is damaged, or is not to be trusted."""


class RemoteError(StorageError):
    """An address can't be read: not there, refused, busy, cut off, or no GeoTIFF; the text says which."""


class DuplicateIdError(StorageError):
    """An id that must be unique occurs twice; the text names it and where."""


class OutputExistsError(StorageError):
    """A finished output is already there and `--overwrite` was not given."""


class UnfinishedOutputError(StorageError):
    """A partial output made with another configuration is in the way."""


class ManifestError(StorageError):
    """A folder has no manifest, a damaged one, or files that do not match its checksums."""


class FormatVersionError(ManifestError):
    """A folder was written in a format version that this release does not read."""


class CatalogueError(StorageError):
    """A catalogue can't be asked, does not answer as one, or has nothing that was asked for."""


class MissingPackageError(StorageError):
    """A package that this step needs is not installed; the text says how to install it."""


class DiskFullError(StorageError):
    """The disk filled up while writing; the former output is untouched."""
