"""The parts of an image in an unfinished index: a file of pixels and a file of vectors.

Where threads embed, one thread writes the parts. Workers of a cluster that see the folder write files
there and return their names. Pixels and vectors of an image have megabytes, which pickle and sockets copy
several times.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from retrieval.config import IndexConfig
from retrieval.index.folder import from_codes, to_codes
from retrieval.index.kinds import Block
from retrieval.index.vector_file import to_float16
from retrieval.index.without_windows import reason_without_window
from retrieval.kernels.executors import prefetch_map
from retrieval.models.embed import embed_image
from retrieval.types import Encoder, StoredImage, WindowVectors, pack_ids
from tfrecords.artifacts import writing_file
from tfrecords.read import ImageSource
from tfrecords.schema import Image

PREFETCH_PX = 1 << 22
"""Pixels of images that are embedded in parallel, about; a larger image is embedded alone."""
MAPPED_BYTES = 8 << 20
"""A part of vectors of this size or more is mapped, a smaller one is read: see `load_vectors`."""
MAX_CHUNK = 16
"""Most images of a `ChunkTask`. Small chunks open a file often; a lost worker loses a large one whole."""
CHUNKS_PER_SLOT = 4
"""Chunks for each task that runs at the same time, at least, so that all end at about the same time."""


def part_names(image_id: int) -> tuple[str, str]:
    """Return the names of an image's parts: pixels, vectors."""
    return f"pixels/{image_id}.npy", f"work/{image_id}.npy"


# --- one image ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EmbedTask:
    """One image to embed; it can be pickled if its encoder can."""

    image: Image
    """The image."""
    encoder: Encoder
    """The encoder."""
    config: IndexConfig
    """Stride and visibility."""
    finished_pixels: Path | None = None
    """Pixel codes that an interrupted run wrote together with their vectors, or None."""


@dataclass(frozen=True)
class EmbeddedImage:
    """The result of an `EmbedTask`."""

    row: StoredImage
    """The image's row in the table; `windows` is 0 where there are no new vectors."""
    codes: NDArray[np.uint16]
    """(h, w, b) codes of its pixels."""
    vectors: WindowVectors | None
    """None if the interrupted run embedded the same pixels."""
    reason: str = ""
    """Why the image has no window; "" for others and without new vectors."""

    def write(self, pixels: Path, vectors: Path, half: bool) -> None:
        """Write both parts; vectors in half precision where asked."""
        assert self.vectors is not None
        np.save(pixels, self.codes, allow_pickle=False)
        ids = pack_ids(np.full(self.row.windows, self.row.image_id), *self.vectors.xy.T)
        _save_vectors(vectors, ids, to_float16(self.vectors.vectors) if half else self.vectors.vectors)


def embed_task(task: EmbedTask) -> EmbeddedImage:
    """Embed one image: the unit of work of an index, wherever it runs."""
    image = task.image
    codes = to_codes(image.scaled())
    if task.finished_pixels and np.array_equal(np.load(task.finished_pixels, allow_pickle=False), codes):
        return EmbeddedImage(table_row(image, 0), codes, None)
    vectors = embed_image(task.encoder, from_codes(codes), task.config)
    empty = not len(vectors.xy)
    reason = reason_without_window(image, from_codes(codes), task.config) if empty else ""
    return EmbeddedImage(table_row(image, len(vectors.xy)), codes, vectors, reason)


def embed_in_threads(tasks: Iterator[EmbedTask], count: int | None = None) -> Iterator[EmbeddedImage]:
    """Embed images on threads, in bounded memory, and yield the results in order; None for all cores."""
    return prefetch_map(embed_task, tasks, lambda t: t.image.width * t.image.height, PREFETCH_PX, count)


def table_row(image: Image, windows: int) -> StoredImage:
    """Return an image's row in the table of an index."""
    names = ("image_id", "path", "width", "height", "bands", "crs", "transform", "date")
    values = {name: getattr(image, name) for name in (*names, "orientation", "clipped")}
    for name in ("source", "datetime", "baseline", "cloud_cover"):
        values[name] = getattr(image.provenance, name)
    return StoredImage(**values, windows=windows)


# --- some images, on a worker ---------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ChunkTask:
    """Consecutive images to embed on a worker that sees their files and the folder."""

    images: ImageSource
    """The images; they can be pickled."""
    encoder: Encoder
    """The encoder."""
    config: IndexConfig
    """Stride and visibility."""
    folder: Path
    """Gets two files for each image."""
    half: bool
    """Whether vectors are written in half precision."""


@dataclass(frozen=True)
class WrittenImage:
    """An image whose parts a worker wrote."""

    row: StoredImage
    """The image's row in the table."""
    pixels: Path
    """File of pixels."""
    vectors: Path
    """File of vectors."""
    half: bool
    """Whether vectors are in half precision."""
    reason: str
    """Why the image has no window; "" for others."""

    def write(self, pixels: Path, vectors: Path, half: bool) -> None:
        """Move both parts to their names; vectors become half precision where asked."""
        self.pixels.replace(pixels)
        if half and not self.half:
            ids, full = load_vectors(self.vectors)
            _save_vectors(vectors, ids, to_float16(full))
            self.vectors.unlink()
        else:
            self.vectors.replace(vectors)


def embed_chunk(task: ChunkTask) -> tuple[WrittenImage, ...]:
    """Embed images on a worker and write their parts, under names that no other attempt has."""
    tasks = (EmbedTask(image, task.encoder, task.config) for image in task.images)
    return tuple(_written(task, embedded) for embedded in embed_in_threads(tasks))


def _written(task: ChunkTask, embedded: EmbeddedImage) -> WrittenImage:
    pixels, vectors = (task.folder / f"{uuid4().hex}.npy" for _ in range(2))
    with writing_file(pixels, durable=False) as first, writing_file(vectors, durable=False) as second:
        embedded.write(first, second, task.half)
    return WrittenImage(embedded.row, pixels, vectors, task.half, embedded.reason)


def chunk_size(images: int, slots: int) -> int:
    """Return the number of images of a `ChunkTask`, where `slots` tasks run at the same time."""
    return min(max(images // (CHUNKS_PER_SLOT * slots), 1), MAX_CHUNK)


# --- files of vectors -----------------------------------------------------------------------------


def _save_vectors(path: Path, ids: NDArray[np.int64], vectors: NDArray[Any]) -> None:
    """Write two arrays to one file: the vectors first, so that they can be mapped, then their ids."""
    with path.open("wb") as file:
        np.save(file, vectors, allow_pickle=False)
        np.save(file, ids, allow_pickle=False)


def load_vectors(path: Path) -> Block:
    """Read an image's part of vectors.

    A map keeps its file open. Callers hold many small parts at a time, so these are read.

    Returns:
        Ids (m,), and vectors (m, dim) of single or half precision, mapped from a large file.
    """
    with path.open("rb") as file:
        if path.stat().st_size < MAPPED_BYTES:
            vectors = np.load(file, allow_pickle=False)
        else:
            vectors = np.load(path, mmap_mode="r", allow_pickle=False)
            file.seek(vectors.offset + vectors.nbytes)
        return np.load(file, allow_pickle=False), np.asarray(vectors)
