"""Pixels that stay in their TFRecord files until they are read.

The 38,400 patches of the reference job have 1.3 GB, but a query reads only a few hundred at a time.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import IO, Any
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from tfrecords.errors import MissingInputError, RecordError


class File:
    """A file that stays open; several threads may read from it."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            MissingInputError: the file cannot be read.
        """
        self.path, self._lock = path, Lock()
        try:
            self._file: IO[bytes] = path.open("rb", buffering=0)
        except OSError as err:
            raise MissingInputError(f"{path} cannot be read: {err.strerror}") from err
        finalize(self, self._file.close)

    def read_into(self, target: NDArray[Any], offset: int) -> None:
        """Fill an array with bytes that start at an offset.

        Raises:
            RecordError: the file ends too early.
        """
        buffer = target.data.cast("B")
        if hasattr(os, "preadv"):
            read = os.preadv(self._file.fileno(), [buffer], offset)
        else:
            with self._lock:
                self._file.seek(offset)
                read = self._file.readinto(buffer)  # type: ignore[attr-defined]
        if read != len(buffer):
            raise RecordError(
                f"{self.path}: the file ends before byte {offset + len(buffer)}. It changed after it was "
                "opened."
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return File, (self.path,)


@dataclass(frozen=True, eq=False)
class LazyPixels:
    """Pixels of records: behaves like an array (n, h, w, b), and `numpy.asarray` reads it into one.

    A slice or an array of rows gives `LazyPixels` again, a single row an array. The reader checked the bytes;
    the files must not change.
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
        with np.errstate(invalid="ignore", over="ignore"):
            for row, kind in enumerate(self.stored.tolist()):
                target = out[row] if kind == self.dtype.str else np.empty(self.patch_shape, kind)
                self.files[self.file[row]].read_into(target, int(self.offset[row]))
                if target.dtype != self.dtype:
                    out[row] = target
        return out if dtype is None else out.astype(dtype, copy=False)
