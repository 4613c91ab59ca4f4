"""The frozen records that the stages of the engine hand to each other.

A *window* is a 64-pixel square of an indexed image, a *patch* one that is asked about. A
*candidate* is a window that search proposes for a patch; a *match* is the answer after refinement.
Positions are `(x, y)`: column and row, 0-based, of the top-left pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ConfigError

Progress = Callable[[str, int, int | None], None]
"""Called with a stage's name, how many are done, and how many there are (None = not known)."""


def silent(stage: str, done: int, total: int | None) -> None:
    """A `Progress` that says nothing."""


_In = TypeVar("_In")
_Out = TypeVar("_Out")


class Executor(Protocol):
    """Where independent tasks run: in this process (`retrieval.kernels.executors`) or on a cluster."""

    def map(self, function: Callable[[_In], _Out], tasks: Iterable[_In], /) -> Iterator[_Out]:
        """Yield the result of each task, in order."""
        ...


ID_LIMIT = 2**31
"""Image and patch ids are whole numbers in [0, ID_LIMIT)."""
XY_LIMIT = 2**16
"""A window's x and y are below this; a Sentinel-2 tile is 10980 pixels wide."""


def pack_ids(image_ids: NDArray, x: NDArray, y: NDArray) -> NDArray[np.int64]:
    """Make the one number under which FAISS knows a window: `image_id << 32 | y << 16 | x`.

    The order of packed ids is that of (image_id, y, x), so that a tie that goes to the smaller id
    goes to the smaller image id, then to the upper left.

    Args:
        image_ids: whole numbers in [0, 2**31), any shape.
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
            f"image ids span {image_ids.min()}..{image_ids.max()}; expected whole numbers from 0 to "
            f"{ID_LIMIT - 1}: renumber the images"
        )
    for name, v in (("x", x), ("y", y)):
        if v.size and not (0 <= v.min() and v.max() < XY_LIMIT):
            raise ConfigError(f"{name} spans {v.min()}..{v.max()}; expected 0..{XY_LIMIT - 1}: cut the image")
    return image_ids << 32 | y << 16 | x


def unpack_ids(ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Undo `pack_ids`: image ids, x, y; all are -1 where the id is -1 (FAISS's "nothing found")."""
    ids = np.asarray(ids, dtype=np.int64)
    none = ids < 0
    return tuple(np.where(none, -1, v) for v in (ids >> 32, ids & 0xFFFF, ids >> 16 & 0xFFFF))  # type: ignore[return-value]


class Encoder(Protocol):
    """What turns pixels into vectors; see `retrieval.models` for ours and for a fake."""

    name: str
    """Short name for people: "structure-tensor", or the file's stem."""
    dim: int
    """Length of a vector."""
    step_px: int
    """Distance in pixels between neighbouring windows of one call."""
    fingerprint: str
    """sha256 over weights and architecture: vectors of two fingerprints are never compared."""

    def embed(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Embed every window of every image of a batch.

        An index is built on several threads, where no accelerator does the arithmetic: they all call this.

        Args:
            batch: (n, h, w, b) scaled, h and w at least 64, NaN = nodata or not to be trusted.

        Returns:
            (n, 1 + (h - 64) // step_px, 1 + (w - 64) // step_px, dim) float32 of unit length;
            the zero vector for a window without anything to see.
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
    """The vectors of the windows of one image that are worth indexing."""

    xy: NDArray[np.int32]
    """(m, 2) top-left pixels, row-major order."""
    vectors: NDArray[np.float32]
    """(m, dim) of unit length."""
    windows: int
    """How many windows the image has, the ones left out counted in."""


@dataclass(frozen=True)
class Candidates:
    """For each patch the distinct places that search proposes, best first.

    Where fewer than k were found the rest has image id -1 and similarity -inf.
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


NO_CANDIDATE = {"image_ids": -1, "similarity": -np.inf, "logit": np.nan}
"""What the columns of `RankedCandidates` hold where there is no candidate; 0 in those not named."""
_WHOLE = ("image_ids", "x", "y")


@dataclass(frozen=True)
class RankedCandidates:
    """Candidates after refinement, re-ranked, best first; the layout is that of `Candidates`."""

    image_ids: NDArray[np.int64]
    """(n, k); -1 where there is no candidate."""
    x: NDArray[np.int64]
    """(n, k) whole-pixel column of the peak."""
    y: NDArray[np.int64]
    """(n, k) whole-pixel row of the peak."""
    dx: NDArray[np.float32]
    """(n, k) sub-pixel offset to add to x, in [-0.5, 0.5]; 0 where it was not measured."""
    dy: NDArray[np.float32]
    """(n, k) likewise for y."""
    ncc: NDArray[np.float32]
    """(n, k) normalized cross-correlation at the peak, in [-1, 1]; 0 for a flat patch."""
    similarity: NDArray[np.float32]
    """(n, k) as search gave it."""
    logit: NDArray[np.float32]
    """(n, k) log-odds that this is the place: the verifier's or, under cloud, those of NCC and cosine."""

    def __len__(self) -> int:
        return len(self.image_ids)

    @classmethod
    def empty(cls, count: int, width: int) -> Self:
        """No candidates for so many patches, in arrays of their own."""
        empty = {f.name: np.int64 if f.name in _WHOLE else np.float32 for f in fields(cls)}
        return cls(**{name: np.zeros((count, 0), kind) for name, kind in empty.items()}).pad_to(width)

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """Candidates of some patches and of others, behind each other."""
        return cls(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)))

    def map(self, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Self:
        """The same change of every array."""
        return type(self)(*(change(getattr(self, f.name)) for f in fields(self)))

    def select(self, rows: Any) -> Self:
        """Those of some patches."""
        return self.map(lambda v: v[rows])

    def reorder(self, order: NDArray[np.intp]) -> Self:
        """Each patch's in an order of its own, (n, k)."""
        return self.map(lambda v: np.take_along_axis(v, order, 1))

    def pad_to(self, width: int) -> Self:
        """The first `width` of each patch, in arrays of their own; "none" where there are fewer."""
        values = {}
        for f in fields(self):
            value = getattr(self, f.name)[:, :width]
            missing = ((0, 0), (0, width - value.shape[1]))
            values[f.name] = np.pad(value, missing, constant_values=NO_CANDIDATE.get(f.name, 0))
        return type(self)(**values)

    def update(self, rows: NDArray[np.intp], better: Self) -> None:
        """Replace those of some patches, in place: of arrays that `none` or `wide` made."""
        for f in fields(self):
            getattr(self, f.name)[rows] = getattr(better, f.name)

    def as_candidates(self) -> Candidates:
        """Where they are, to be looked at again."""
        return Candidates(self.image_ids, self.x, self.y, self.similarity)


@dataclass(frozen=True)
class StoredImage:
    """A row of the index's table of images."""

    image_id: int
    """The image's own id."""
    path: str
    """File it came from; empty for an array in memory."""
    width: int
    """Columns."""
    height: int
    """Rows."""
    bands: tuple[str, ...]
    """Names of its bands, in their order."""
    crs: str | None
    """Coordinate reference system, or None."""
    transform: tuple[float, ...] | None
    """(a, b, c, d, e, f) from pixel corners to map coordinates, or None."""
    date: str | None
    """ISO day, or None."""
    windows: int
    """How many windows of it are indexed."""
    source: str = ""
    """Name of the product or item that it came from; empty where it is not known, as the next two."""
    datetime: str = ""
    """When it was taken, ISO 8601."""
    baseline: str = ""
    """Processing baseline."""
    cloud_cover: float | None = None
    """Percent of the product under cloud, 0 to 100, or None."""
