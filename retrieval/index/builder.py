"""Build an index folder: embed images one by one, then write what all of them share.

Each image becomes two parts of the unfinished folder: a file of pixels and a file of vectors. At the end all
vectors go into one index. Vectors wait in half precision once there are too many for an exact index, the
only kind that keeps more. That halves the bytes written; the disk is often the bottleneck.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX, Device, IndexConfig
from retrieval.index.device import resolve_device
from retrieval.index.faiss_index import VectorIndex
from retrieval.index.file_paths import paths_entry
from retrieval.index.folder import KIND, TABLE, from_codes, write_table
from retrieval.index.image_parts import (
    ChunkTask,
    EmbeddedImage,
    EmbedTask,
    WrittenImage,
    chunk_size,
    embed_chunk,
    embed_in_threads,
    embed_task,
    load_vectors,
    part_names,
)
from retrieval.index.kinds import Block, max_exact_windows, regroup_blocks
from retrieval.index.parts import PartsIndex
from retrieval.index.parts_builder import has_parts, write_parts_index
from retrieval.index.recall import RECALL_K, exact_search, measure_recall
from retrieval.index.without_windows import (
    REASONS,
    no_windows,
    warn_without_windows,
)
from retrieval.kernels.executors import ThreadExecutor
from retrieval.models.calibration import SUFFIXES, shipped_calibrations
from retrieval.models.embed import embed_patches
from retrieval.models.encoder import KerasEncoder
from retrieval.types import Encoder, Executor, Progress, StoredImage, silent
from tfrecords.artifacts import PartialFolder, writing_folder
from tfrecords.errors import DuplicateIdError
from tfrecords.read import ImageSource
from tfrecords.schema import Image

RECALL_QUERIES = 256
"""Windows that measure the recall of an index."""
RECALL_SOURCE = "windows of the indexed images, at random pixels"
"""Where they come from."""
TRAINING_WINDOWS = 1_000_000
"""Windows that train codes and cells, at least; whole images are drawn."""


def write_index(
    images: Iterable[Image],
    out: Path,
    encoder: Encoder,
    config: IndexConfig,
    *,
    source: str,
    overwrite: bool = False,
    device: Device = "auto",
    executor: Executor | None = None,
    progress: Progress = silent,
) -> None:
    """Write an index folder, whole or not at all; an interrupted run resumes.

    Args:
        images: the images to index, in any order; their ids are distinct.
        out: the folder.
        encoder: embeds the windows; saved in the folder if it is a Keras model.
        config: stride, kind, visibility.
        source: where the images come from; part of the fingerprint.
        overwrite: replace a finished index.
        device: where FAISS trains and adds.
        executor: runs an `embed_task` per image; None for threads of this process, in bounded memory.
        progress: called after each image and at each later stage.

    Raises:
        DuplicateIdError: two images have the same id.
        NoWindowsError: no image has a window.
        OutputExistsError: the folder exists and `overwrite` is false.

    Warns:
        NoWindowsWarning: some images have none.
    """
    settings = {"source": source, "encoder": encoder.fingerprint, "index": config.to_dict()}
    with writing_folder(out, kind=KIND, config=settings, overwrite=overwrite) as folder:
        resolved = resolve_device(device)
        indexer = ImageIndexer(folder, encoder, config, resolved, executor)
        total = len(images) if isinstance(images, Sized) else None
        if total and isinstance(encoder, KerasEncoder):
            encoder.warm_up(total)
        for number, _ in enumerate(indexer.add(images)):
            progress("indexing images", number + 1, total)
        if hasattr(encoder, "model"):
            with folder.part("encoder.keras") as path:
                encoder.model.save(path)
        finish_index(folder, indexer.rows, indexer.reasons, encoder, config, resolved, progress)
        folder.extra |= paths_entry(folder.path, (row.path for row in indexer.rows.values()))
        warn_without_windows(indexer.rows, indexer.reasons)


# --- images -----------------------------------------------------------------------------------------


class ImageIndexer:
    """Writes pixels and vectors of images as parts of a folder; a resumed run does not repeat them."""

    def __init__(
        self,
        folder: PartialFolder,
        encoder: Encoder,
        config: IndexConfig,
        device: str = "cpu",
        executor: Executor | None = None,
    ) -> None:
        """Begin without images.

        Args:
            folder: gets the parts.
            encoder: embeds the windows.
            config: stride, visibility, kind of index.
            device: "cpu" or "gpu"; it decides up to how many windows the index is exact.
            executor: see `write_index`.
        """
        self._executor = executor
        self._folder, self._encoder, self._config = folder, encoder, config
        self._max_exact, self._windows = max_exact_windows(config, device), 0
        self.rows: dict[int, StoredImage] = {}
        self.reasons: dict[int, str] = {}

    def add(self, images: Iterable[Image]) -> Iterator[StoredImage]:
        """Write pixels and vectors of images, except those that an interrupted run wrote.

        Images are embedded in parallel; the caller's thread alone reads images and writes parts.

        Yields:
            The table row of each image, once its parts are written.

        Raises:
            DuplicateIdError: two images have the same id.
        """
        for embedded in self._embed_in_chunks(images) or self._embed(self._tasks(images)):
            row = self._write(embedded)
            del embedded  # it may be large: free it before the next image is read
            self.rows[row.image_id] = row
            yield row

    def _embed_in_chunks(self, images: Iterable[Image]) -> Iterator[WrittenImage] | None:
        """Embed on workers that read the images and write into the folder; None where they cannot.

        A resumed run does not: this process knows which parts are finished.
        """
        executor = self._executor
        if executor is None or executor.in_process or not isinstance(images, ImageSource):
            return None
        ends = {*images.paths[:1], *images.paths[-1:]}
        if not (images.portable and self._folder.is_empty and all(map(executor.sees, ends))):
            return None
        work = self._folder.path / "work"
        work.mkdir(exist_ok=True)
        return self._written(executor, images, work) if executor.sees(work) else None

    def _written(self, executor: Executor, images: ImageSource, work: Path) -> Iterator[WrittenImage]:
        """Yield what workers write, a chunk of images at a time."""
        size = chunk_size(len(images), executor.slots())

        def tasks() -> Iterator[ChunkTask]:
            for start in range(0, len(images), size):
                chunk, half = images.part(start, start + size), self._windows > self._max_exact
                yield ChunkTask(chunk, self._encoder, self._config, work, half)

        for written in executor.map(embed_chunk, tasks()):
            for one in written:
                _check_new(one.row.image_id, one.row.path, self.rows)
                yield one

    def _embed(self, tasks: Iterator[EmbedTask]) -> Iterator[EmbeddedImage]:
        executor = self._executor or ThreadExecutor()
        if isinstance(executor, ThreadExecutor):
            return embed_in_threads(tasks, executor.count)
        return executor.map(embed_task, tasks)

    def _tasks(self, images: Iterable[Image]) -> Iterator[EmbedTask]:
        known_ids = set[int]()
        for image in images:
            _check_new(image.image_id, image.path, known_ids)
            known_ids.add(image.image_id)
            yield EmbedTask(image, self._encoder, self._config, self._finished_pixels(image.image_id))

    def _finished_pixels(self, image_id: int) -> Path | None:
        """Return the pixel file of an interrupted run if its vectors can be used, too."""
        pixels, vectors = part_names(image_id)
        if not (self._folder.done(pixels) and self._folder.done(vectors)):
            return None
        # Vectors in half precision do not serve an exact index; on a GPU the limit of exact is higher.
        usable = self._max_exact <= self._folder.meta(vectors).get("exact_to", np.inf)
        return self._folder.path / pixels if usable else None

    def _write(self, embedded: EmbeddedImage | WrittenImage) -> StoredImage:
        row = embedded.row
        pixel_name, vector_name = part_names(row.image_id)
        if isinstance(embedded, EmbeddedImage) and embedded.vectors is None:
            row = replace(row, windows=int(self._folder.meta(vector_name)["windows"]))
        else:
            exact = self._windows + row.windows <= self._max_exact
            meta: dict[str, Any] = {"windows": row.windows}
            meta |= {} if exact else {"exact_to": self._max_exact}
            meta |= {"reason": embedded.reason} if embedded.reason else {}
            with self._folder.part(pixel_name) as pixels, self._folder.part(vector_name, meta) as vectors:
                embedded.write(pixels, vectors, half=not exact)
        self._windows += row.windows
        if not row.windows:
            self.reasons[row.image_id] = str(self._folder.meta(vector_name).get("reason", ""))
        return row


def _check_new(image_id: int, path: str, known_ids: Container[int]) -> None:
    if image_id in known_ids:
        raise DuplicateIdError(
            f"image id {image_id} comes twice (again in {path or 'the array'}); expected distinct ids"
        )


# --- all images -----------------------------------------------------------------------------------


def finish_index(
    folder: PartialFolder,
    images: Mapping[int, StoredImage],
    reasons: Mapping[int, str],
    encoder: Encoder,
    config: IndexConfig,
    device: str,
    progress: Progress,
    previous: Previous | None = None,
    trained: VectorIndex | None = None,
    may_be_empty: bool = False,
) -> None:
    """Write the table, the vectors, and the manifest's counts and extra entries.

    Args:
        folder: holds the pixels of all images, and the vectors of new ones.
        images: the table, by id.
        reasons: why images have no window, by id.
        encoder: made the vectors.
        config: kind of index.
        device: as `resolve_device` returns it.
        progress: called at each stage.
        previous: holds the vectors of images that were not embedded.
        trained: an index whose kind, codes and cells are reused; None trains new ones.
        may_be_empty: accept images without any window, whose index is exact.

    Raises:
        NoWindowsError: no image has a window; nothing is left to resume.
    """
    if not any(row.windows for row in images.values()):
        trained = None
    if not any(row.windows for row in images.values()) and not may_be_empty:
        folder.discard()
        raise no_windows(images, reasons)
    rows = [images[image_id] for image_id in sorted(images)]
    vectors = StoredVectors(lambda _: folder.path, rows, previous)
    with folder.part(TABLE) as path:
        write_table(path, rows)
    progress("building the vector index", 0, None)
    kind = _write_vectors(folder, vectors, encoder, config, device, progress, trained)
    if has_parts(config, rows):
        folder.extra |= {"parts_recall": _write_parts(folder, rows, previous, progress)}
    folder.counts = {"images": len(rows), "windows": vectors.count}
    folder.extra |= {
        "kind": kind,
        "encoder": encoder.name,
        "encoder_fingerprint": encoder.fingerprint,
        "dim": encoder.dim,
        "metric": "inner product of unit vectors",
        "pixels": "uint16 codes, 65535 = nodata",
    }
    folder.extra |= {REASONS: {str(i): reasons[i] for i in sorted(reasons)}} if reasons else {}
    shutil.rmtree(folder.path / "work", ignore_errors=True)
    for calibration in getattr(encoder, "calibrations", ()):
        if calibration not in shipped_calibrations() and calibration.encoder == encoder.fingerprint:
            calibration.save(folder.path / f"encoder{SUFFIXES[calibration.terms]}", overwrite=True)


def _write_parts(
    folder: PartialFolder, rows: Sequence[StoredImage], previous: Previous | None, progress: Progress
) -> dict[str, Any]:
    """Write the index of parts of all images with windows; parts of images that stay are taken over."""
    rows = [row for row in rows if row.windows]
    kept = previous.with_parts if previous else frozenset()
    pixels = {row.image_id: part_names(row.image_id)[0] for row in rows if row.image_id not in kept}
    return write_parts_index(folder, rows, pixels, previous.parts if previous else None, progress)


@dataclass(frozen=True)
class Previous:
    """The index before a change."""

    vectors: VectorIndex
    """Its vectors."""
    images: Collection[int]
    """Images that keep their vectors; a part that an interrupted run left of such an image is stale."""
    parts: PartsIndex | None = None
    """The parts of its images; None for an index without them."""

    @cached_property
    def with_parts(self) -> frozenset[int]:
        """Images that keep their parts."""
        return self.parts.image_ids & frozenset(self.images) if self.parts is not None else frozenset()

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        """Ids of all its windows, ascending."""
        return self.vectors.ids()

    def block(self, image_id: int) -> Block:
        """Return ids and vectors of an image."""
        start, stop = np.searchsorted(self.ids, [image_id << 32, image_id + 1 << 32])
        return self.vectors.vectors(int(start), int(stop))


@dataclass(frozen=True)
class StoredVectors:
    """The vectors of images: embedded ones from their parts, the others from a previous index."""

    folder: Callable[[int], Path]
    """Returns the unfinished folder that holds the parts of an image, by its id."""
    rows: list[StoredImage]
    """The images, in the order of their ids."""
    previous: Previous | None
    """Holds the vectors of the other images; None if all have a part."""

    @property
    def count(self) -> int:
        """Number of vectors."""
        return sum(row.windows for row in self.rows)

    def blocks(self) -> Iterator[Block]:
        """Yield ids and vectors of each image."""
        for row in self.rows:
            if self.previous and row.image_id in self.previous.images:
                yield self.previous.block(row.image_id)
            else:
                yield load_vectors(self.folder(row.image_id) / part_names(row.image_id)[1])

    def training_sample(self, least: int = TRAINING_WINDOWS) -> StoredVectors:
        """Return randomly drawn images with `least` vectors together, or all images if they have fewer."""
        order = np.random.default_rng(0).permutation(len(self.rows))
        windows = np.cumsum([self.rows[i].windows for i in order])
        enough = int(np.searchsorted(windows, least)) + 1
        return StoredVectors(self.folder, [self.rows[i] for i in sorted(order[:enough])], self.previous)


def _write_vectors(
    folder: PartialFolder,
    vectors: StoredVectors,
    encoder: Encoder,
    config: IndexConfig,
    device: str,
    progress: Progress,
    trained: VectorIndex | None,
) -> str:
    """Write `vectors.faiss`, measure its recall, and return its kind.

    Recall needs exact search over all vectors. It runs on a second thread while the file is written, because
    the processor is then idle. `VectorIndex.build` calls `start_exact_search` at that moment.
    It is not called for an exact index, whose recall is 1.
    """
    sample, meta = vectors.training_sample(), dict[str, str]()
    pending: list[Future[tuple[NDArray[np.float32], NDArray[np.int64]]]] = []
    with ThreadPoolExecutor(1) as second_thread:

        def start_exact_search() -> None:
            pending.append(second_thread.submit(exact_neighbours, vectors, encoder, config))

        with folder.part("vectors.faiss", meta) as path:
            index = VectorIndex.build(
                vectors.blocks,
                encoder.dim,
                config,
                device,
                path=path,
                count=vectors.count,
                sample=(sample.blocks, sample.count),
                trained=trained,
                on_encoded=start_exact_search,
            )
            meta["kind"] = index.kind
        if pending:
            progress("measuring recall", 0, None)
            queries, truth = pending[0].result()
            if len(queries):
                folder.extra["recall"] = measure_recall(index, queries, truth, RECALL_SOURCE).to_dict()
    return index.kind


def exact_neighbours(
    vectors: StoredVectors, encoder: Encoder, config: IndexConfig
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return query vectors for recall, and the ids that exact search finds for them."""
    queries = _recall_queries(vectors.folder, vectors.rows, encoder, config)
    k = min(RECALL_K, vectors.count)
    return queries, exact_search(lambda: regroup_blocks(vectors.blocks()), queries, k)


def _recall_queries(
    folder: Callable[[int], Path], rows: list[StoredImage], encoder: Encoder, config: IndexConfig
) -> NDArray[np.float32]:
    """Return vectors of windows at random pixels, off the stride's grid as the pixels of queries are."""
    rng, windows = np.random.default_rng(0), defaultdict[int, list[NDArray[np.float32]]](list)
    weights = np.array([row.windows for row in rows], float)
    for rank in rng.choice(len(rows), RECALL_QUERIES, p=weights / weights.sum()):
        image_id = rows[rank].image_id
        pixels = folder(image_id) / part_names(image_id)[0]
        codes = np.load(pixels, mmap_mode="r", allow_pickle=False)
        y, x = (rng.integers(side - PATCH_PX + 1) for side in codes.shape[:2])
        window = from_codes(np.asarray(codes[y : y + PATCH_PX, x : x + PATCH_PX]))
        if np.isnan(window).all(-1).mean() <= 1 - config.min_visible:
            windows[window.shape[-1]].append(window)  # a batch has one number of bands
    batches = [embed_patches(encoder, np.stack(batch)) for batch in windows.values()]
    queries = np.concatenate([np.zeros((0, encoder.dim), np.float32), *batches])
    return queries[queries.any(1)]
