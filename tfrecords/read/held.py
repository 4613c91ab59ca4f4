"""Pixels that stay in their TFRecord files until they are looked at.

The 38,400 patches of the reference job are 1.3 GB: memory that they would take from the beginning to the end,
while a few hundred are looked at at a time.
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
    """A file that stays open; several threads may read."""

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            MissingInputError: it can't be read.
        """
        self.path, self._lock = path, Lock()
        try:
            self._file: IO[bytes] = path.open("rb", buffering=0)
        except OSError as err:
            raise MissingInputError(f"{path} can't be read: {err.strerror}") from err
        finalize(self, self._file.close)

    def into(self, target: NDArray[Any], offset: int) -> None:
        """Fill an array with the bytes from an offset on.

        Raises:
            RecordError: the file ends before.
        """
        room = target.data.cast("B")
        if hasattr(os, "preadv"):
            read = os.preadv(self._file.fileno(), [room], offset)
        else:
            with self._lock:
                self._file.seek(offset)
                read = self._file.readinto(room)  # type: ignore[attr-defined]
        if read != len(room):
            raise RecordError(f"{self.path}: its bytes end before {offset + len(room)}: it has changed")

    def __reduce__(self) -> tuple[Any, ...]:
        return File, (self.path,)


@dataclass(frozen=True, eq=False)
class HeldPixels:
    """Pixels of records; looks like an array (n, h, w, b) of numbers, and becomes one by `numpy.asarray`.

    A slice or some rows of it are such pixels too, a single row is an array. The bytes were checked once; the
    files must stay as they are.
    """

    files: Sequence[File]
    """Where the bytes are."""
    file: NDArray[np.int64]
    """(n,) which file each is in."""
    offset: NDArray[np.int64]
    """(n,) where in it the pixels begin."""
    stored: NDArray[Any]
    """(n,) dtype in the file, as its text."""
    row: tuple[int, ...]
    """(h, w, b)."""
    dtype: np.dtype[Any]
    """What they become."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, h, w, b)."""
        return (len(self.offset), *self.row)

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
        some = replace(self, file=self.file[rows], offset=self.offset[rows], stored=self.stored[rows])
        if some.offset.ndim == 1:
            return np.asarray(some)[(slice(None), *inside)] if inside else some
        one = np.asarray(self[np.array([rows])])[0]
        return one[tuple(inside)] if inside else one

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        out = np.empty(self.shape, self.dtype)
        with np.errstate(invalid="ignore", over="ignore"):
            for row, kind in enumerate(self.stored.tolist()):
                target = out[row] if kind == self.dtype.str else np.empty(self.row, kind)
                self.files[self.file[row]].into(target, int(self.offset[row]))
                if target.dtype != self.dtype:
                    out[row] = target
        return out if dtype is None else out.astype(dtype, copy=False)
