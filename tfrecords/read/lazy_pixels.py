"""Pixels that stay in their TFRecord files until they are read.

The 38,400 patches of the reference job have 1.3 GB, but a query reads only a few hundred at a time.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfrecords.errors import MissingInputError, RecordError


@dataclass(frozen=True)
class File:
    """A file that is opened for each reading: thousands of shards need no more descriptors than one."""

    path: Path
    """The file."""
    version: tuple[int, int]
    """Its size in bytes and time of change in ns when its records were checked."""

    @classmethod
    def of(cls, path: Path) -> File:
        """Take note of a file's version.

        Raises:
            MissingInputError: the file cannot be read.
        """
        with _readable(path) as file:
            return cls(path, _version(file))

    def read_into(self, targets: Sequence[NDArray[Any]], offsets: Sequence[int]) -> None:
        """Fill arrays with bytes that start at offsets.

        Raises:
            MissingInputError: the file cannot be read.
            RecordError: the file changed.
        """
        with _readable(self.path) as file:
            if _version(file) != self.version:
                raise self._changed()
            for target, offset in zip(targets, offsets, strict=True):
                file.seek(offset)
                if file.readinto(target.data.cast("B")) != target.nbytes:
                    raise self._changed()

    def _changed(self) -> RecordError:
        return RecordError(f"{self.path}: the file changed after it was opened. Run the command again.")


def _readable(path: Path) -> io.FileIO:
    """Open a file without a buffer."""
    try:
        return path.open("rb", buffering=0)
    except OSError as err:
        raise MissingInputError(f"{path} cannot be read: {err.strerror}") from err


def _version(file: io.FileIO) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


@dataclass(frozen=True, eq=False)
class LazyPixels:
    """Pixels of records: behaves like an array (n, h, w, b), and `numpy.asarray` reads it into one.

    A slice or an array of rows gives `LazyPixels` again, a single row an array. The reader checked the bytes;
    a file that changed since is an error.
    """

    files: Sequence[File]
    """The files with the bytes."""
    file: NDArray[np.int64]
    """Index of the file of each patch, (n,)."""
    offset: NDArray[np.int64]
    """Offset of the first byte of each patch in its file, (n,)."""
    stored: NDArray[Any]
    """Dtype of each patch in its file, (n,) texts."""
    patch_shape: tuple[int, ...]
    """(h, w, b)."""
    dtype: np.dtype[Any]
    """Dtype of the array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, h, w, b)."""
        return (len(self.offset), *self.patch_shape)

    @property
    def ndim(self) -> int:
        """Four."""
        return len(self.shape)

    def __len__(self) -> int:
        return len(self.offset)

    def __getitem__(self, key: Any) -> Any:
        rows, *inside = key if isinstance(key, tuple) else (key,)
        if rows is Ellipsis or rows is None:
            return np.asarray(self)[key]
        selected = replace(self, file=self.file[rows], offset=self.offset[rows], stored=self.stored[rows])
        if selected.offset.ndim == 1:
            return np.asarray(selected)[(slice(None), *inside)] if inside else selected
        patch = np.asarray(self[np.array([rows])])[0]
        return patch[tuple(inside)] if inside else patch

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        out = np.empty(self.shape, self.dtype)
        kinds, offsets, rows_of_file = self.stored.tolist(), self.offset.tolist(), dict[int, list[int]]()
        for row, number in enumerate(self.file.tolist()):
            rows_of_file.setdefault(number, []).append(row)
        converted = {
            row: np.empty(self.patch_shape, kind) for row, kind in enumerate(kinds) if kind != self.dtype.str
        }
        for number, rows in rows_of_file.items():  # each file is opened once
            targets = [converted[row] if row in converted else out[row] for row in rows]
            self.files[number].read_into(targets, [offsets[row] for row in rows])
        with np.errstate(invalid="ignore", over="ignore"):
            for row, pixels in converted.items():
                out[row] = pixels
        return out if dtype is None else out.astype(dtype, copy=False)


def pixels_in_files(pixels: Any) -> LazyPixels | None:
    """Return pixels as rows of their files: of records, or of a whole mapped array file; None for others.

    These can be pickled in few bytes.

    Raises:
        MissingInputError: the file of a mapped array is gone.
    """
    if isinstance(pixels, LazyPixels):
        return pixels
    if not isinstance(pixels, np.memmap) or pixels.filename is None or not pixels.flags.c_contiguous:
        return None
    file, count = File.of(Path(pixels.filename)), len(pixels)
    if pixels.offset + pixels.nbytes != file.version[0]:  # some of the rows
        return None
    offsets = pixels.offset + np.arange(count, dtype=np.int64) * (pixels.nbytes // max(1, count))
    stored = np.full(count, pixels.dtype.str)
    return LazyPixels([file], np.zeros(count, np.int64), offsets, stored, pixels.shape[1:], pixels.dtype)
