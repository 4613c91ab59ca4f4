"""The parts index: windows as grids of small parts, found by any of their parts that a patch shows.

The vector of a whole window breaks once half of the window is hidden. Here a window is a grid of 6 x 6
parts. A part joins 2 x 2 local descriptors, 24 px, every 8 px. A patch puts zeros where cloud hides its
parts. Its inner product with a window is then the sum over the parts that both show.

Two stages share one set of parts. FAISS compares codes of whole windows: a projection of the first numbers of
the 36 parts, 32 bytes. The nearest windows are compared again by all numbers of their parts, four bits each,
mapped from the file.

    parts.bin     header, projection of parts, steps, parts, table of images, projection of windows
    parts.faiss   codes of windows in the order of the parts; opens with plain `faiss.read_index`

`parts.bin` is little-endian. Its header is magic, version, numbers of a descriptor, of a part and of a
window's vector, images, and parts. A part has 33 bytes. Byte j of the first 32 holds numbers j (low bits) and
j + 32 (high bits), 8 for 0, in units of their steps. The last byte b multiplies them by 2 ** ((b - 128) / 8),
and by 0 where b is 0. The table holds id, rows and columns of parts for each image. Measurements:
`docs/decisions/0025-parts-index.md`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import IndexFormatError
from retrieval.index.codes import add_codes
from retrieval.index.device import load_faiss
from retrieval.index.kinds import MIN_TRAINING, Block, set_nprobe, train_quantizer
from tfrecords.errors import DuplicateIdError, FormatVersionError

PARTS, CODES = "parts.bin", "parts.faiss"
"""Names of the files in a finished index."""
HEADER = struct.Struct("<8sIIIII4xq24x")
"""Of `parts.bin`, 64 bytes."""
MAGIC, VERSION = b"PATCHPRT", 2
TABLE = np.dtype("<i8")
"""Type of the numbers in the table of images."""
STEP = 2
"""Distance between parts, in descriptors."""
SIDE = 6
"""Side of a window, in parts."""
PART_DIM, CODED_DIM, WINDOW_DIM = 64, 32, 128
"""Numbers of a part, four bits each; the first ones, which codes of windows hold; and numbers of a window's
vector, two bits each."""
PART_BYTES = PART_DIM // 2 + 1
"""Bytes of a part: its numbers and its scale."""
LARGEST = 7
"""Largest number of a part, in steps."""
SCALES = np.where(np.arange(256) > 0, np.exp2((np.arange(256) - 128) / 8), 0).astype(np.float32)
"""(256,) factor of each scale."""
FLOOR = 1e-3
"""Added to the energy of a window: ground without texture agrees with nothing."""
FIT_WINDOWS = 20_000
"""Windows that their projection is fitted to, about."""
ITERATIONS = 12
"""Steps that fit a projection: further ones change what it keeps by less than a thousandth."""
BLOCK_WINDOWS = 8_192
"""Windows expanded at a time: 38 MB."""


def joined(field: NDArray[Any], step: int = STEP, spacing: int = 1) -> NDArray[np.float32]:
    """Join 2 x 2 descriptors.

    Args:
        field: (..., h, w, c).
        step: distance between the results, in descriptors.
        spacing: distance between the joined descriptors.

    Returns:
        (..., (h - spacing - 1) // step + 1, (w - spacing - 1) // step + 1, 4 c).
    """
    h, w = (size - spacing for size in field.shape[-3:-1])
    corners = [(y, x) for y in (0, spacing) for x in (0, spacing)]
    shifted = [field[..., y : y + h : step, x : x + w : step, :] for y, x in corners]
    return np.concatenate(shifted, -1, dtype=np.float32)


def unit(windows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale windows (..., numbers) to unit length, and windows without texture to less."""
    energy = np.einsum("...d,...d->...", windows, windows)
    scaled: NDArray[np.float32] = windows / np.sqrt(energy + np.float32(FLOOR))[..., None]
    return scaled


def principal_axes(squares: NDArray[np.float64], count: int) -> NDArray[np.float32]:
    """Return the axes that keep most of the inner products of rows, by subspace iteration.

    Args:
        squares: (d, d) sum of the rows' outer products.
        count: number of axes.

    Returns:
        (d, count) orthonormal columns; zeros beyond d.
    """
    size = len(squares)
    axes = np.random.default_rng(0).normal(size=(size, min(size, 2 * count)))
    for _ in range(ITERATIONS):
        axes, _ = np.linalg.qr(squares @ axes)
    _, turn = np.linalg.eigh(axes.T @ squares @ axes)
    kept = (axes @ turn[:, ::-1])[:, :count].astype(np.float32)
    return np.pad(kept, ((0, 0), (0, count - kept.shape[1])))


# --- writing --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Projection:
    """From descriptors to parts: with one projection, an image's parts do not depend on other images."""

    axes: NDArray[np.float32]
    """(4 c, PART_DIM) projection of 2 x 2 descriptors."""
    steps: NDArray[np.float32]
    """(PART_DIM,) value of one step of each number."""

    @classmethod
    def fit(cls, fields: Iterable[NDArray[Any]]) -> Self:
        """Return the principal axes of the parts of images, (h, w, c) descriptors each."""
        rows = np.concatenate([joined(f).reshape(-1, 4 * f.shape[-1]) for f in fields])
        axes = principal_axes(rows.T @ rows, PART_DIM)
        steps = np.maximum(np.sqrt(((rows @ axes) ** 2).mean(0)), 1e-6).astype(np.float32)
        return cls(axes, steps)

    def parts(self, field: NDArray[Any], more: tuple[int, int] = (0, 0)) -> NDArray[np.uint8]:
        """Return the parts of an image.

        Args:
            field: (h, w, c) descriptors.
            more: rows and columns of parts beyond the image, which show nothing.

        Returns:
            ((h - 2) // 2 + 1 + more rows, (w - 2) // 2 + 1 + more columns, PART_BYTES).
        """
        parts = joined(field) @ self.axes / self.steps
        return packed(np.pad(parts, ((0, more[0]), (0, more[1]), (0, 0))))


def write_parts(
    path: Path, codes: Path, parts: Iterable[tuple[int, NDArray[np.uint8]]], projection: Projection
) -> None:
    """Write a parts index, in memory for an image at a time.

    Args:
        path: gets the parts, `parts.bin` in a finished index.
        codes: gets the codes of windows, `parts.faiss`.
        parts: id of each image and its parts (rows, columns, PART_BYTES).
        projection: made the parts.

    Raises:
        DuplicateIdError: two images have the same id.
    """
    with path.open("w+b") as file:
        layout = _write_images(file, parts, projection)
        file.flush()
        stored = StoredParts(layout, _mapped(path, layout))
        axes = stored.window_axes()
        file.seek(0, 2)
        file.write(axes.astype("<f4").tobytes())
        file.seek(0)
        file.write(layout.header())  # last: an unfinished file has no magic
    load_faiss().write_index(_coded(stored, axes), str(codes))


@dataclass(frozen=True)
class Layout:
    """What `parts.bin` holds, and where."""

    channels: int
    """Numbers of a descriptor."""
    steps: NDArray[np.float32]
    """(PART_DIM,) value of one unit of each number of a part, before its scale."""
    table: NDArray[np.int64]
    """(images, 3) id, rows and columns of parts."""
    axes: NDArray[np.float32]
    """(4 channels, PART_DIM) projection of parts."""

    @property
    def parts_start(self) -> int:
        """Position of the first part in the file."""
        return HEADER.size + (self.axes.size + PART_DIM) * 4

    @cached_property
    def first_part(self) -> NDArray[np.int64]:
        """(images + 1,) number of parts before each image."""
        return np.concatenate([[0], np.cumsum(self.table[:, 1] * self.table[:, 2])])

    @cached_property
    def first_window(self) -> NDArray[np.int64]:
        """(images + 1,) number of windows before each image."""
        rows, cols = np.maximum(self.table[:, 1:] - SIDE + 1, 0).T
        return np.concatenate([[0], np.cumsum(rows * cols)])

    def header(self) -> bytes:
        """Return the bytes of the header."""
        images, parts = len(self.table), int(self.first_part[-1])
        return HEADER.pack(MAGIC, VERSION, self.channels, PART_DIM, WINDOW_DIM, images, parts)

    @property
    def end(self) -> int:
        """Position behind the table of images."""
        return self.parts_start + int(self.first_part[-1]) * PART_BYTES + self.table.size * 8


def _write_images(
    file: BinaryIO, images: Iterable[tuple[int, NDArray[np.uint8]]], projection: Projection
) -> Layout:
    """Write everything from the projection of parts to the table of images."""
    file.write(bytes(HEADER.size) + projection.axes.astype("<f4").tobytes())
    file.write(projection.steps.astype("<f4").tobytes())
    table: dict[int, tuple[int, int]] = {}
    for image_id, parts in images:
        if image_id in table:
            raise DuplicateIdError(f"image id {image_id} comes twice; expected distinct ids")
        table[image_id] = parts.shape[:2]
        file.write(np.ascontiguousarray(parts).tobytes())
    numbers = np.array([(i, *size) for i, size in table.items()], np.int64).reshape(-1, 3)
    file.write(numbers.astype(TABLE).tobytes())
    channels = len(projection.axes) // 4
    return Layout(channels, projection.steps, numbers, projection.axes)


def packed(parts: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return parts (h, w, PART_DIM), in steps, as bytes (h, w, PART_BYTES)."""
    largest = np.abs(parts).max(-1, initial=0)
    exponent = np.ceil(8 * np.log2(np.maximum(largest, 1e-9) / LARGEST)) + 128
    scale = np.where(largest > 0, np.clip(exponent, 1, 255), 0).astype(np.uint8)
    factor = np.maximum(SCALES[scale], 1e-9)[..., None]
    numbers = (np.clip(np.rint(parts / factor), -LARGEST, LARGEST) + 8).astype(np.uint8)
    low, high = numbers[..., : PART_DIM // 2], numbers[..., PART_DIM // 2 :]
    return np.concatenate([low | high << 4, scale[..., None]], -1)


def _coded(stored: StoredParts, axes: NDArray[np.float32]) -> Any:
    """Return the FAISS index of all windows."""
    faiss, count = load_faiss(), int(stored.layout.first_window[-1])
    if count < MIN_TRAINING:
        exact = faiss.IndexFlatIP(WINDOW_DIM)
        for _, vectors in stored.window_vectors(axes):
            exact.add(vectors)
        return exact
    codes = train_quantizer("fast", lambda: stored.window_vectors(axes), count, WINDOW_DIM, count)
    add_codes(codes, stored.window_vectors(axes), count)
    return codes


# --- reading --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Windows:
    """Windows of a parts index."""

    rows: NDArray[np.int64]
    """(...) number of each window; -1 for none."""
    image_ids: NDArray[np.int64]
    """(...) its image."""
    x: NDArray[np.int64]
    """(...) column in the image, in parts."""
    y: NDArray[np.int64]
    """(...) row, in parts."""
    corner: NDArray[np.int64]
    """(...) number of its first part."""
    columns: NDArray[np.int64]
    """(...) parts in a row of its image."""

    def select(self, rows: NDArray[Any]) -> Windows:
        """Return the windows of some rows (n,)."""
        return Windows(*(getattr(self, f.name)[rows] for f in fields(self)))


@dataclass(frozen=True)
class StoredParts:
    """The parts of all images, mapped from the file."""

    layout: Layout
    """Sizes and projection."""
    parts: NDArray[np.uint8]
    """(parts, PART_BYTES), image after image, row after row."""

    def image(self, image_id: int) -> NDArray[np.uint8]:
        """Return the parts of an image, (rows, columns, PART_BYTES).

        Raises:
            KeyError: the index does not hold the image.
        """
        found = np.flatnonzero(self.layout.table[:, 0] == image_id)
        if not len(found):
            raise KeyError(image_id)
        first, last = self.layout.first_part[found[0] : found[0] + 2]
        return self.parts[first:last].reshape(*self.layout.table[found[0], 1:], PART_BYTES)

    def numbers(self, image_id: int) -> NDArray[np.float32]:
        """Return the numbers of an image's parts, (rows, columns, `PART_DIM`), 0 where nothing is shown.

        Raises:
            KeyError: the index does not hold the image.
        """
        stored = self.image(image_id)
        both = np.concatenate([stored[..., :-1] & 15, stored[..., :-1] >> 4], -1)
        values = (both.astype(np.float32) - 8) * self.layout.steps * SCALES[stored[..., -1:]]
        return np.asarray(values, np.float32)

    def locate(self, rows: NDArray[np.int64]) -> Windows:
        """Find the place of windows by their numbers (...), -1 for none."""
        table, first = self.layout.table, self.layout.first_window
        image = np.clip(np.searchsorted(first, rows, "right") - 1, 0, len(table) - 1)
        columns = table[image, 2]
        y, x = np.divmod(rows - first[image], np.maximum(columns - SIDE + 1, 1))
        corner = self.layout.first_part[image] + y * columns + x
        return Windows(rows, table[image, 0], x, y, corner, columns)

    def windows(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the first numbers of windows (m,), as (m, 36 * CODED_DIM) of unit length."""
        found, grid = self.locate(rows), np.arange(SIDE)
        numbers = found.corner[:, None, None] + grid[:, None] * found.columns[:, None, None] + grid
        stored = self.parts[numbers]
        values = ((stored[..., :CODED_DIM] & 15).astype(np.float32) - 8) * self.layout.steps[:CODED_DIM]
        values *= SCALES[stored[..., -1:]]
        return unit(values.reshape(len(rows), SIDE**2 * CODED_DIM))

    def compare(
        self, windows: Windows, patch: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Compare windows with the shifts of a patch.

        Args:
            windows: (m,) from `locate`.
            patch: (shifts, 6, 6, numbers) parts of the patch at each shift: `PART_DIM` or the first
                `CODED_DIM` numbers, and a multiple of four shifts.

        Returns:
            The best cosine (m,) and its shift (m,).
        """
        from retrieval.kernels.windows import compare_windows

        best, shift = np.empty(len(windows.rows), np.float32), np.empty(len(windows.rows), np.int64)
        stored = np.asarray(self.parts), SCALES, self.layout.steps
        shifts = np.ascontiguousarray(patch)
        compare_windows(*stored, windows.corner, windows.columns, shifts, FLOOR, best, shift)
        return best, shift

    def window_vectors(self, axes: NDArray[np.float32]) -> Iterator[Block]:
        """Yield numbers and vectors (m, WINDOW_DIM) of all windows, some at a time."""
        count = int(self.layout.first_window[-1])
        for start in range(0, count, BLOCK_WINDOWS):
            rows = np.arange(start, min(start + BLOCK_WINDOWS, count))
            yield rows, self.windows(rows) @ axes

    def window_axes(self) -> NDArray[np.float32]:
        """Return the projection of windows, (36 * CODED_DIM, WINDOW_DIM), fitted to evenly drawn windows."""
        count = int(self.layout.first_window[-1])
        rows = np.unique(np.linspace(0, count - 1, min(count, FIT_WINDOWS)).astype(np.int64))
        squares = np.zeros((SIDE**2 * CODED_DIM,) * 2)
        for start in range(0, len(rows), BLOCK_WINDOWS):
            block = self.windows(rows[start : start + BLOCK_WINDOWS])
            squares += block.T @ block
        return principal_axes(squares, WINDOW_DIM)


class PartsIndex:
    """An opened parts index."""

    def __init__(self, stored: StoredParts, axes: NDArray[np.float32], codes: Any) -> None:
        """Wrap the opened files; `open` reads them."""
        self.stored, self._axes, self._codes = stored, axes, codes

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a parts index; its parts stay in the file.

        Raises:
            FormatVersionError: another format version.
            IndexFormatError: a file is damaged.
        """
        path = folder / PARTS
        layout = _read_layout(path)
        axes = np.fromfile(path, "<f4", offset=layout.end).reshape(SIDE**2 * CODED_DIM, WINDOW_DIM)
        try:
            codes = load_faiss().read_index(str(folder / CODES))
        except RuntimeError as e:
            raise IndexFormatError(
                f"{folder / 'parts.faiss'}: FAISS cannot read it. Build the index again."
            ) from e
        if codes.ntotal != layout.first_window[-1] or codes.d != WINDOW_DIM:
            raise IndexFormatError(
                f"{folder}: parts.faiss holds {codes.ntotal} windows, parts.bin "
                f"{layout.first_window[-1]}. Build the index again."
            )
        with suppress(RuntimeError):  # Only earlier versions made cells; a query reads all.
            set_nprobe(codes, codes.ntotal)
        return cls(StoredParts(layout, _mapped(path, layout)), axes, codes)

    def __len__(self) -> int:
        return int(self._codes.ntotal)

    @property
    def members(self) -> tuple[PartsIndex, ...]:
        """The indexes to search, each by itself: this one, or several that are joined."""
        return (self,)

    @property
    def image_ids(self) -> frozenset[int]:
        """Images that the index holds."""
        return frozenset(self.stored.layout.table[:, 0].tolist())

    @property
    def projection(self) -> Projection:
        """The projection that made the parts."""
        return Projection(self.stored.layout.axes, self.stored.layout.steps)

    def parts_of(self, descriptors: NDArray[np.float32], spacing: int) -> NDArray[np.float32]:
        """Return the parts at every descriptor of patches (n, h, w, c), (n, h - spacing, w - spacing, d).

        Args:
            descriptors: of patches, 0 where hidden.
            spacing: how many descriptors of a patch are one step between descriptors of an image.
        """
        parts: NDArray[np.float32] = joined(descriptors, 1, spacing) @ self.stored.layout.axes
        return parts

    def search(self, windows: NDArray[np.float32], k: int) -> NDArray[np.int64]:
        """Find windows by their codes.

        Args:
            windows: (n, 6, 6, PART_DIM) parts of patches, 0 where hidden.
            k: number of windows.

        Returns:
            (n, k) numbers of windows, -1 for none.
        """
        vectors = windows[..., :CODED_DIM].reshape(len(windows), -1) @ self._axes
        _, rows = self._codes.search(np.ascontiguousarray(vectors), k)
        return np.asarray(rows, np.int64)


class JoinedParts(PartsIndex):
    """Parts of distinct images, each member with its own projections."""

    def __init__(self, members: Iterable[PartsIndex]) -> None:
        """Keep the members."""
        self._members = tuple(members)

    def __len__(self) -> int:
        return sum(map(len, self._members))

    @property
    def members(self) -> tuple[PartsIndex, ...]:
        """The indexes to search."""
        return self._members


def _mapped(path: Path, layout: Layout) -> NDArray[np.uint8]:
    """Map the parts of a file."""
    shape = int(layout.first_part[-1]), PART_BYTES
    return (
        np.memmap(path, np.uint8, "r", layout.parts_start, shape) if shape[0] else np.zeros(shape, np.uint8)
    )


def _read_layout(path: Path) -> Layout:
    """Read the header, the projection of parts and the table, and check the file's length."""
    damaged = IndexFormatError(f"{path}: it is damaged or cut short. Build the index again.")
    length = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEADER.size)
        if len(head) < HEADER.size or head[:8] != MAGIC:
            raise damaged
        _, version, channels, part_dim, window_dim, images, parts = HEADER.unpack(head)
        if (version, part_dim, window_dim) != (VERSION, PART_DIM, WINDOW_DIM):
            raise FormatVersionError(
                f"{path}: format version {version}, parts of {part_dim} and windows of {window_dim} numbers. "
                f"Expected {VERSION}, {PART_DIM} and {WINDOW_DIM}. Build the index again."
            )
        shape = 4 * channels, PART_DIM
        start = HEADER.size + 4 * (shape[0] + 1) * PART_DIM
        table_start = start + parts * PART_BYTES
        if length != table_start + 24 * images + 4 * SIDE**2 * CODED_DIM * WINDOW_DIM:
            raise damaged
        floats = np.frombuffer(file.read(start - HEADER.size), "<f4").astype(np.float32)
        axes, steps = floats[:-PART_DIM].reshape(shape), floats[-PART_DIM:]
        file.seek(table_start)
        table = np.frombuffer(file.read(24 * images), TABLE).reshape(-1, 3)
    layout = Layout(channels, steps, table.astype(np.int64), axes)
    if (table < 0).any() or layout.first_part[-1] != parts:
        raise damaged
    return layout
