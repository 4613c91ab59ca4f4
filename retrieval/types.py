"""The frozen records and protocols that cross from one room to another.

A *window* is a 64-pixel square of an indexed image, a *patch* a 64-pixel query. A *candidate* is a window
that search proposes for a patch; a *match* is the answer after refinement. Positions are `(x, y)`: column and
row, 0-based, of the top-left pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ConfigError

Progress = Callable[[str, int, int | None], None]
"""Called with the name of a stage, the number done and the total (None = unknown)."""


def silent(stage: str, done: int, total: int | None) -> None:
    """Report nothing: the `Progress` of a caller that shows none."""


_In = TypeVar("_In")
_Out = TypeVar("_Out")


class Executor(Protocol):
    """Where independent tasks run: in this process (`retrieval.kernels.executors`) or on a cluster."""

    in_process: bool
    """Whether tasks share this process's memory; else functions, tasks and results are pickled."""

    def map(self, function: Callable[[_In], _Out], tasks: Iterable[_In], /) -> Iterator[_Out]:
        """Yield the result of each task, in order."""
        ...

    def slots(self) -> int:
        """Return the number of tasks that run at the same time, at least 1."""
        ...

    def sees(self, path: Path, /) -> bool:
        """Return whether tasks find a file or folder at its path, as this process does."""
        ...


ID_LIMIT = 2**31
"""Image and patch ids are integers in [0, ID_LIMIT)."""
XY_LIMIT = 2**16
"""x and y of a window are below this; a Sentinel-2 tile is 10980 pixels wide."""


def pack_ids(image_ids: NDArray[Any], x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.int64]:
    """Pack the id of a window in FAISS: `image_id << 32 | y << 16 | x`.

    Packed ids sort as (image_id, y, x). So a tie that goes to the smaller id goes to the smaller image id,
    then to the upper left.

    Args:
        image_ids: integers in [0, 2**31), any shape.
        x: columns in [0, 65536), same shape.
        y: rows in [0, 65536), same shape.

    Returns:
        int64 of the same shape.

    Raises:
        ConfigError: an image id or a position is out of range.
    """
    image_ids, x, y = (np.asarray(a, dtype=np.int64) for a in (image_ids, x, y))
    if image_ids.size and not (0 <= image_ids.min() and image_ids.max() < ID_LIMIT):
        raise ConfigError(
            f"image ids: they span {image_ids.min()} to {image_ids.max()}. Expected integers from 0 to "
            f"{ID_LIMIT - 1}. Renumber the images."
        )
    for name, v in (("x", x), ("y", y)):
        if v.size and not (0 <= v.min() and v.max() < XY_LIMIT):
            raise ConfigError(
                f"{name}: it spans {v.min()} to {v.max()}. Expected 0 to {XY_LIMIT - 1}. Split the image."
            )
    return image_ids << 32 | y << 16 | x


def unpack_ids(ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Unpack image ids, x and y; all are -1 where the id is -1 (FAISS's "nothing found")."""
    ids = np.asarray(ids, dtype=np.int64)
    missing = ids < 0
    return tuple(np.where(missing, -1, v) for v in (ids >> 32, ids & 0xFFFF, ids >> 16 & 0xFFFF))  # type: ignore[return-value]


class Encoder(Protocol):
    """Maps pixels to vectors; `retrieval.models.encoder` has ours and a fake."""

    name: str
    """Short name for people: "structure-tensor", or the stem of the file."""
    dim: int
    """Length of a vector."""
    step_px: int
    """Distance in pixels between neighbouring windows of a call."""
    fingerprint: str
    """sha256 over weights and architecture; vectors of different fingerprints are never compared."""
    calibrations: tuple[Any, ...]
    """Its `retrieval.models.calibration.Calibration` records; there may be none."""

    def embed(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Embed every window of every image of a batch.

        Several threads call this at the same time when an index is built on a CPU.

        Args:
            batch: (n, h, w, b) scaled, h and w at least 64, NaN = nodata or hidden.

        Returns:
            (n, 1 + (h - 64) // step_px, 1 + (w - 64) // step_px, dim) float32 of unit length;
            the zero vector for a window without texture.
        """
        ...


class Pixels(Protocol):
    """Source of image pixels: an index folder, or arrays in memory."""

    def bands(self, image_id: int) -> tuple[str, ...]:
        """Return the names of an image's bands, in order."""
        ...

    def size(self, image_id: int) -> tuple[int, int]:
        """Return height and width of an image."""
        ...

    def scaled(self, image_id: int, window: tuple[int, int, int, int] | None = None) -> NDArray[np.float32]:
        """Return an image or a window (x, y, width, height) of it, (h, w, b) scaled, NaN = nodata."""
        ...

    def squares(self, image_id: int, corners: NDArray[np.int64], side: int) -> NDArray[np.float32]:
        """Return squares of an image, (n, side, side, b) scaled, faster than as many windows.

        Args:
            image_id: the image.
            corners: (n, 2) x and y of each, all of it inside the image.
            side: in pixels.
        """
        ...


class PatchPixels(Protocol):
    """Query patches; `tfrecords.schema.Patches` implements it."""

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands, in order."""
        ...

    def __len__(self) -> int: ...

    def scaled(self, rows: Any) -> NDArray[np.float32]:
        """Return the patches of a slice or of rows, (n, 64, 64, b) scaled, NaN = nodata."""
        ...

    def select(self, rows: Any) -> Self:
        """Return the patches of a slice or of rows."""
        ...


@dataclass(frozen=True)
class WindowVectors:
    """Vectors of the windows of an image that have texture."""

    xy: NDArray[np.int32]
    """(m, 2) top-left pixels, row-major order."""
    vectors: NDArray[np.float32]
    """(m, dim) of unit length."""
    windows: int
    """Number of windows of the image, with those without texture."""


@dataclass(frozen=True)
class Candidates:
    """Distinct places that search proposes for each patch, best first.

    Missing candidates have image id -1 and similarity -inf.
    """

    image_ids: NDArray[np.int64]
    """(n, k)."""
    x: NDArray[np.int64]
    """(n, k) column of the window's top-left pixel."""
    y: NDArray[np.int64]
    """(n, k) row."""
    similarity: NDArray[np.float32]
    """(n, k) cosine similarity in [-1, 1], higher is better."""

    def __len__(self) -> int:
        return len(self.image_ids)


NO_CANDIDATE = {"image_ids": -1, "similarity": -np.inf, "logit": np.nan, "place": -1}
"""Values of `RankedCandidates` where there is no candidate; 0 in the other fields."""
_INTEGERS = ("image_ids", "x", "y", "place")


@dataclass(frozen=True)
class RankedCandidates:
    """Candidates after matching, best first; the layout is that of `Candidates`."""

    image_ids: NDArray[np.int64]
    """(n, k); -1 where there is no candidate."""
    x: NDArray[np.int64]
    """(n, k) whole-pixel column of the peak."""
    y: NDArray[np.int64]
    """(n, k) whole-pixel row of the peak."""
    dx: NDArray[np.float32]
    """(n, k) sub-pixel offset to add to x, in [-0.5, 0.5]; 0 where not measured."""
    dy: NDArray[np.float32]
    """(n, k) the same for y."""
    ncc: NDArray[np.float32]
    """(n, k) normalized cross-correlation at the peak, in [-1, 1]; 0 for a flat patch."""
    similarity: NDArray[np.float32]
    """(n, k) cosine similarity of the vectors, from search."""
    logit: NDArray[np.float32]
    """(n, k) log-odds that this is the place, by the verifier or exhaustive search; NaN for neither."""
    place: NDArray[np.int64] = None  # type: ignore[assignment]  # __post_init__ makes it
    """(n, k) a number for each place of a patch's candidates, see `retrieval.matching.places.with_places`; -1
    where the candidates were not compared, which is the default."""

    def __post_init__(self) -> None:
        if self.place is None:
            object.__setattr__(self, "place", np.full(self.image_ids.shape, -1))

    def __len__(self) -> int:
        return len(self.image_ids)

    @classmethod
    def empty(cls, count: int, width: int) -> Self:
        """Return `count` patches without candidates, in new arrays."""
        empty = {f.name: np.int64 if f.name in _INTEGERS else np.float32 for f in fields(cls)}
        return cls(**{name: np.zeros((count, 0), kind) for name, kind in empty.items()}).pad_to(width)

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Return the candidates of several groups of patches as one."""
        return cls(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)))

    def map(self, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Self:
        """Return the candidates with every array changed in the same way."""
        return type(self)(*(change(getattr(self, f.name)) for f in fields(self)))

    def select(self, rows: Any) -> Self:
        """Return the candidates of some patches."""
        return self.map(lambda v: v[rows])

    def reorder(self, order: NDArray[np.intp]) -> Self:
        """Return the candidates of each patch in the order (n, k)."""
        return self.map(lambda v: np.take_along_axis(v, order, 1))

    def pad_to(self, width: int) -> Self:
        """Return the first `width` candidates of each patch in new arrays, padded with "no candidate"."""
        values = {}
        for f in fields(self):
            value = getattr(self, f.name)[:, :width]
            missing = ((0, 0), (0, width - value.shape[1]))
            values[f.name] = np.pad(value, missing, constant_values=NO_CANDIDATE.get(f.name, 0))
        return type(self)(**values)

    def update(self, rows: NDArray[np.intp], better: Self) -> None:
        """Replace the candidates of some patches, in place; only for the arrays of `empty` or `pad_to`."""
        for f in fields(self):
            getattr(self, f.name)[rows] = getattr(better, f.name)

    def as_candidates(self) -> Candidates:
        """Return them as candidates of a further stage."""
        return Candidates(self.image_ids, self.x, self.y, self.similarity)


@dataclass(frozen=True)
class StoredImage:
    """A row of the image table of an index."""

    image_id: int
    """Id of the image."""
    path: str
    """Source file; "" for an array in memory."""
    width: int
    """Columns."""
    height: int
    """Rows."""
    bands: tuple[str, ...]
    """Names of the bands, in order."""
    crs: str | None
    """Coordinate reference system, or None."""
    transform: tuple[float, ...] | None
    """(a, b, c, d, e, f) from pixel corners to map coordinates, or None."""
    date: str | None
    """ISO day, or None."""
    windows: int
    """Number of indexed windows."""
    source: str = ""
    """Name of the source product or item; "" if unknown, as for the next two."""
    datetime: str = ""
    """Acquisition time, ISO 8601."""
    baseline: str = ""
    """Processing baseline."""
    cloud_cover: float | None = None
    """Cloud cover of the product in percent, 0 to 100, or None."""
    orientation: int = 1
    """EXIF number of the way the file lies; the index holds its pixels north-up."""
    clipped: bool = False
    """Whether bright ground is clipped at 4095 DN: of TFRecords, and in an index of version 1."""
