"""Build an index in shards: the unit of work is a shard, on any executor.

    1. embed    each shard's images become parts of its unfinished folder
    2. train    codes are learned once, from windows of all shards, unless the kind is exact
    3. finish   each shard becomes an ordinary index folder with these codes
    4. join     `shards.json` is written, and shards of an earlier build are removed

Every step resumes. A finished shard is kept if its pixels still equal the images. The codes
wait in a file, so that a rerun finishes the other shards with the same ones. Shards of an earlier build have
another name, so that the former index answers until the file is replaced.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import Device, IndexConfig, IndexKind
from retrieval.config.engine import PartsChoice
from retrieval.distributed.shards import KIND, ShardedFolder, read_shards
from retrieval.errors import ConfigError
from retrieval.index.builder import (
    RECALL_SOURCE,
    ImageIndexer,
    StoredVectors,
    exact_neighbours,
    finish_index,
    write_index,
)
from retrieval.index.device import resolve_device
from retrieval.index.faiss_index import VectorIndex, train_codes
from retrieval.index.file_paths import paths_entry
from retrieval.index.folder import KIND as INDEX_KIND
from retrieval.index.folder import SHARDS, TABLE, read_index_manifest, read_table, to_codes
from retrieval.index.image_parts import part_names
from retrieval.index.kinds import choose_kind
from retrieval.index.parts_builder import has_parts
from retrieval.index.recall import measure_recall
from retrieval.index.without_windows import no_windows, stored_reasons, warn_without_windows
from retrieval.kernels.executors import ThreadExecutor
from retrieval.models.encoder import KerasEncoder
from retrieval.types import Encoder, Executor, Progress, StoredImage, silent
from tfrecords.artifacts import (
    FORMAT_VERSION,
    MANIFEST,
    Manifest,
    check_free,
    digest,
    fingerprint,
    identity,
    writing_file,
    writing_folder,
)
from tfrecords.artifacts.manifest import created_by
from tfrecords.errors import (
    DAMAGED_ZIP,
    DuplicateIdError,
    OutputExistsError,
    RetrieveError,
    UnfinishedOutputError,
)
from tfrecords.read import ImageSource
from tfrecords.remote import published_folder

OWN_NAME = re.compile(
    r"[0-9a-f]{8}b?-[0-9]{4,}(\.partial|\.former|\.trash)?|\.?[0-9a-f]{8}b?-codes.*|shards\.lock"
)
"""Names of shards and working files in the output folder."""
MAX_SHARDS = 10_000
CODES = "codes"
"""Entry of a shard's manifest: sha256 of the codes that it shares with the others, "" without codes."""


# --- one shard ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ShardTask:
    """One shard to write; it can be pickled if its images and its encoder can."""

    folder: Path
    """The shard's folder."""
    images: ImageSource
    """Its images."""
    encoder: Encoder
    """The encoder."""
    config: IndexConfig
    """Stride, kind, visibility."""
    settings: Mapping[str, Any]
    """Decide its content."""
    device: str
    """Where FAISS adds, as `resolve_device` returns it."""
    kind: IndexKind = "exact"
    """Kind that all shards get; only for `finish_shard`, as the two below."""
    codes: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    """Shared codes; empty for exact."""
    embedded: EmbeddedShard | None = None
    """What `embed_shard` returned."""


@dataclass(frozen=True)
class EmbeddedShard:
    """The result of `embed_shard`."""

    rows: tuple[StoredImage, ...]
    """Table rows of its images."""
    reasons: Mapping[int, str]
    """Why images have no window, by id."""
    content: str
    """Fingerprint of its pixels."""
    codes: str | None
    """sha256 of the codes of a finished shard; None for an unfinished one."""


def codes_digest(codes: NDArray[np.uint8]) -> str:
    """Return the sha256 of codes in hexadecimal, "" of none."""
    return hashlib.sha256(codes.tobytes()).hexdigest() if len(codes) else ""


def embed_shard(
    task: ShardTask, executor: Executor | None = None, on_image: Callable[[], None] = lambda: None
) -> EmbeddedShard:
    """Write pixels and vectors of a shard's images as parts of its unfinished folder.

    Args:
        task: the shard.
        executor: embeds the images; None for threads of this process, as on a worker.
        on_image: called after each image.
    """
    if finished := _finished(task, on_image):
        return finished
    with writing_folder(task.folder, kind=INDEX_KIND, config=task.settings) as folder:
        folder.paused = True
        indexer = ImageIndexer(folder, task.encoder, task.config, task.device, executor or ThreadExecutor())
        for _ in indexer.add(task.images):
            on_image()
        content = {str(i): folder.sha256(part_names(i)[0]) for i in sorted(indexer.rows)}
    return EmbeddedShard(tuple(indexer.rows.values()), indexer.reasons, fingerprint(content), None)


def _finished(task: ShardTask, on_image: Callable[[], None]) -> EmbeddedShard | None:
    """Return a finished shard if it holds the pixels of the images; remove a stale one."""
    if not task.folder.exists():
        return None
    with suppress(RetrieveError, OSError, KeyError):
        manifest = read_index_manifest(task.folder)
        rows, left = read_table(task.folder / TABLE), len(task.images)
        known = {row.image_id for row in rows}
        for image in task.images:
            stored = np.load(task.folder / part_names(image.image_id)[0], allow_pickle=False)
            left -= image.image_id in known and np.array_equal(stored, to_codes(image.scaled()))
            on_image()
        if not left and len(rows) == len(task.images):
            content = {str(i): manifest.files[part_names(i)[0]]["sha256"] for i in sorted(known)}
            reasons = stored_reasons({row.image_id: row for row in rows}, manifest.extra)
            return EmbeddedShard(tuple(rows), reasons, fingerprint(content), manifest.extra[CODES])
    shutil.rmtree(task.folder)
    return None


def finish_shard(task: ShardTask) -> None:
    """Turn the parts of a shard into an index folder, unless it is one.

    Raises:
        UnfinishedOutputError: another process changed the parts.
    """
    embedded, encoder = task.embedded, task.encoder
    assert embedded is not None
    if (task.folder / MANIFEST).exists():  # also by a worker that was lost before it could say so
        return
    with writing_folder(task.folder, kind=INDEX_KIND, config=task.settings) as folder:
        parts = [name for row in embedded.rows for name in part_names(row.image_id)]
        if not all(folder.done(name) for name in parts):
            raise UnfinishedOutputError(f"{task.folder}: parts of it were changed. Run the command again.")
        if hasattr(encoder, "model"):
            with folder.part("encoder.keras") as path:
                encoder.model.save(path)
        rows = {row.image_id: row for row in embedded.rows}
        trained = VectorIndex.of_codes(task.codes, task.kind) if len(task.codes) else None
        more: dict[str, Any] = {"trained": trained, "may_be_empty": True}
        windows = any(row.windows for row in embedded.rows)
        config = task.config if windows else replace(task.config, parts="never")
        finish_index(folder, rows, embedded.reasons, encoder, config, task.device, silent, **more)
        folder.extra |= paths_entry(folder.path, (row.path for row in embedded.rows))
        folder.extra[CODES] = codes_digest(task.codes)


# --- all shards -----------------------------------------------------------------------------------


def write_shards(
    source: ImageSource,
    out: str | Path,
    encoder: Encoder,
    config: IndexConfig,
    shards: int | None,
    overwrite: bool = False,
    device: Device = "auto",
    executor: Executor | None = None,
    progress: Progress = silent,
) -> None:
    """Write an index as one folder or in shards; an interrupted run resumes.

    Args:
        source: the images; shards hold consecutive ones, as equal in number as can be.
        out: the folder, or its URL.
        encoder: embeds the windows; saved in each shard if it is a Keras model.
        config: stride, kind, visibility. The kind depends on the windows of all shards.
        shards: number of shards, at most the number of images; None for one folder.
        overwrite: replace a finished index in shards.
        device: where FAISS trains and adds.
        executor: runs a shard per task on a cluster; one of this process embeds the images of a shard.
        progress: called after each image or shard, and at each later stage.

    Raises:
        ConfigError: the number of shards does not fit.
        DuplicateIdError: two images have the same id.
        NoWindowsError: no image has a window.
        OutputExistsError: the folder exists and `overwrite` is false, or is no index in shards.
        UnfinishedOutputError: another process writes the folder.
        RemoteError: the connection to the URL was lost.
    """
    job = _Job(executor, progress, len(source))
    with published_folder(out, overwrite=overwrite) as folder:
        if shards is None:
            more: dict[str, Any] = {"device": device, "executor": executor, "progress": progress}
            write_index(source, folder, encoder, config, source=source.note, overwrite=overwrite, **more)
        else:
            _check_settings(source, shards)
            _check_goal(folder.absolute(), overwrite)
            _write_shards(source, folder.absolute(), encoder, config, shards, device, job)


def _write_shards(
    source: ImageSource,
    out: Path,
    encoder: Encoder,
    config: IndexConfig,
    shards: int,
    device: Device,
    job: _Job,
) -> None:
    """Write all shards, then the file that joins them."""
    out.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {"source": source.note, "encoder": encoder.fingerprint}
    settings |= {"index": config.to_dict(), "images": len(source), "shards": shards}
    if isinstance(encoder, KerasEncoder):
        encoder.warm_up(len(source))
    with alone(out):
        prefix = _prefix(out, identity(KIND, settings)[:8])
        tasks = list(_tasks(source, out / prefix, encoder, config, shards, settings, device, job.executor))
        tasks, plan = _prepare(tasks, out / f"{prefix}-codes.npz", job)
        for number, _ in enumerate(job.run(finish_shard, tasks)):
            job.progress("building the vector index", number + 1, len(tasks))
        _join(out, tasks, settings, plan, device)
        images, reasons = _tables(tasks)
        warn_without_windows(images, reasons)


def _check_settings(source: ImageSource, shards: int) -> None:
    if not 1 <= shards <= min(MAX_SHARDS, len(source)):
        raise ConfigError(
            f"shards: {shards} for {len(source)} images. Expected 1 to {min(MAX_SHARDS, len(source))}."
        )


def _check_goal(out: Path, overwrite: bool) -> None:
    """Refuse an output that exists, unless it is an index in shards that may be replaced, or unfinished."""
    if not out.is_dir():
        check_free(out, folder=True)
    elif not (out / SHARDS).is_file():
        if not all(OWN_NAME.fullmatch(entry.name) for entry in out.iterdir()):
            raise OutputExistsError(f"{out} exists and is not an index in shards. Name another output.")
    else:
        check_free(out, folder=True, overwrite=overwrite)


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Let one process write a folder of shards; the lock ends with the process.

    Raises:
        UnfinishedOutputError: another process writes it.
    """
    lock = out / "shards.lock"
    with lock.open("a") as file:
        with suppress(ImportError):  # not a POSIX system: no lock
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UnfinishedOutputError(
                    f"{out} is being written by another process. Wait for it, or name another output."
                ) from None
            except OSError:  # a network file system without locks
                pass
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _prefix(out: Path, name: str) -> str:
    """Return the first part of the names of shards; not that of the index that is to be replaced."""
    with suppress(RetrieveError):
        if read_shards(out)[1][0].name.partition("-")[0] == name:
            return f"{name}b"
    return name


def _tasks(
    source: ImageSource,
    base: Path,
    encoder: Encoder,
    config: IndexConfig,
    shards: int,
    settings: Mapping[str, Any],
    device: Device,
    executor: Executor | None,
) -> Iterator[ShardTask]:
    """Yield the task of each shard."""
    limits = np.linspace(0, len(source), shards + 1).round().astype(int).tolist()
    for number, (start, stop) in enumerate(pairwise(limits)):
        images = source.part(start, stop)
        if executor and not executor.in_process and not images.portable:
            images = replace(images, begin=tuple(images).__iter__)
        own = dict(settings) | {"shard": [start, stop]}
        folder = base.with_name(f"{base.name}-{number:04d}")
        yield ShardTask(folder, images, encoder, config, own, resolve_device(device))


@dataclass(frozen=True)
class _Job:
    """Runs the tasks of a step."""

    executor: Executor | None
    progress: Progress
    total: int
    """Images of all shards."""

    def run(self, function: Callable[[ShardTask], Any], tasks: Sequence[ShardTask]) -> Iterator[Any]:
        """Yield the results in order; here the shards follow each other, and images are parallel."""
        if self.executor is None or self.executor.in_process:
            return map(function, tasks)
        return self.executor.map(function, tasks)

    def embed(self, tasks: Sequence[ShardTask]) -> list[ShardTask]:
        """Embed all shards."""
        done, results, here = 0, [], self.executor is None or self.executor.in_process

        def on_image() -> None:
            nonlocal done
            done += 1
            self.progress("indexing images", done, self.total)

        def embed(task: ShardTask) -> EmbeddedShard:
            return embed_shard(task, self.executor or ThreadExecutor(), on_image)

        for task, result in zip(tasks, self.run(embed if here else embed_shard, tasks), strict=True):
            results.append(replace(task, embedded=result))
            if not here:
                done += len(result.rows)
                self.progress("indexing images", done, self.total)
        return results


def _tables(tasks: Sequence[ShardTask]) -> tuple[dict[int, StoredImage], dict[int, str]]:
    """Return the table of all images by ascending id, and the reasons of those without windows.

    Raises:
        DuplicateIdError: two images have the same id.
    """
    rows, reasons = dict[int, StoredImage](), dict[int, str]()
    for task in tasks:
        assert task.embedded is not None
        for row in task.embedded.rows:
            if row.image_id in rows:
                raise DuplicateIdError(
                    f"image id {row.image_id} comes twice (again in {row.path or 'the array'}); expected "
                    "distinct ids"
                )
            rows[row.image_id] = row
        reasons |= task.embedded.reasons
    return dict(sorted(rows.items())), reasons


# --- the codes that all shards share --------------------------------------------------------------


@dataclass(frozen=True)
class _Plan:
    """Kind and codes, chosen by the windows of all shards."""

    kind: IndexKind
    """Kind of all shards."""
    codes: NDArray[np.uint8]
    """Their codes; empty for exact."""
    queries: NDArray[np.float32]
    """(n, dim) vectors that measure the recall."""
    truth: NDArray[np.int64]
    """(n, k) ids that exact search finds for them."""


def _prepare(tasks: Sequence[ShardTask], file: Path, job: _Job) -> tuple[list[ShardTask], _Plan]:
    """Embed all shards and decide what they share.

    A finished shard with other codes stems from a run over other images, or its codes were lost: it is made
    again.
    """
    embedded = job.embed(tasks)
    images, reasons = _tables(embedded)
    if not any(row.windows for row in images.values()):
        for task in tasks:
            shutil.rmtree(task.folder, ignore_errors=True)
            shutil.rmtree(task.folder.with_name(task.folder.name + ".partial"), ignore_errors=True)
        raise no_windows(images, reasons)
    plan = _planned(embedded, images, file, job.progress)
    wanted = codes_digest(plan.codes) if plan else None
    stale = [t for t in embedded if t.embedded and t.embedded.codes not in (None, wanted)]
    for task in stale:
        shutil.rmtree(task.folder)
    if stale:
        return _prepare(tasks, file, job)
    assert plan is not None
    parts: PartsChoice = "always" if has_parts(tasks[0].config, images.values()) else "never"
    return [
        replace(task, kind=plan.kind, codes=plan.codes, config=replace(task.config, parts=parts))
        for task in embedded
    ], plan


def _planned(
    tasks: Sequence[ShardTask], images: Mapping[int, StoredImage], file: Path, progress: Progress
) -> _Plan | None:
    """Return the plan of an interrupted run over the same pixels, or a new one.

    Returns:
        None if a finished shard, which has no parts any more, keeps codes from being trained.
    """
    first = tasks[0]
    rows = list(images.values())
    kind = choose_kind(first.config.kind, sum(row.windows for row in rows), first.config, first.device)
    none = _Plan(kind, np.zeros(0, np.uint8), np.zeros((0, 1), np.float32), np.zeros((0, 1), np.int64))
    if kind == "exact":
        return none
    content = fingerprint({"shards": [t.embedded.content for t in tasks if t.embedded]})
    with suppress(*DAMAGED_ZIP):
        with np.load(file, allow_pickle=False) as stored:
            if str(stored["content"]) == content and str(stored["kind"]) == kind:
                return replace(none, **{name: stored[name] for name in ("codes", "queries", "truth")})
    if any(task.embedded and task.embedded.codes is not None for task in tasks):
        return None
    progress("training codes", 0, None)
    folders = {
        row.image_id: task.folder.with_name(task.folder.name + ".partial")
        for task in tasks
        if task.embedded
        for row in task.embedded.rows
    }
    vectors = StoredVectors(folders.__getitem__, rows, None)
    sample = vectors.training_sample()
    codes = train_codes(kind, (sample.blocks, sample.count), first.encoder.dim, vectors.count)
    queries, truth = exact_neighbours(vectors, first.encoder, first.config)
    with writing_file(file, overwrite=True) as path:
        np.savez(path, content=content, kind=kind, codes=codes, queries=queries, truth=truth)
    return _Plan(kind, codes, queries, truth)


# --- joining --------------------------------------------------------------------------------------


def _join(
    out: Path, tasks: Sequence[ShardTask], settings: Mapping[str, Any], plan: _Plan, device: Device
) -> None:
    """Measure the recall, write `shards.json`, and remove what earlier builds left."""
    folders = [task.folder for task in tasks]
    first = read_index_manifest(folders[0], verify=False).extra
    kept = ("encoder", "encoder_fingerprint", "dim", "metric", "pixels")
    extra: dict[str, Any] = {name: first[name] for name in kept} | {"kind": plan.kind}
    if len(plan.queries):
        opened = ShardedFolder(folders, encoder=tasks[0].encoder, device=device, just_written=True)
        extra["recall"] = measure_recall(opened.vectors, plan.queries, plan.truth, RECALL_SOURCE).to_dict()
    join_shards(out, folders, settings, extra)


def join_shards(
    out: Path, folders: Sequence[Path], settings: Mapping[str, Any], extra: Mapping[str, Any]
) -> None:
    """Replace `shards.json` in one step, and remove shards that it no longer names.

    Args:
        out: the folder of the shards.
        folders: the finished shards.
        settings: decide their content.
        extra: further entries of the manifest.
    """
    files = {f"{folder.name}/{MANIFEST}": folder / MANIFEST for folder in folders}
    counts = [read_index_manifest(folder, verify=False).counts for folder in folders]
    joined = Manifest(
        kind=KIND,
        version=FORMAT_VERSION[KIND],
        config=dict(settings),
        fingerprint=identity(KIND, settings),
        created_by=created_by(),
        counts={name: sum(of[name] for of in counts) for name in ("images", "windows")}
        | {"shards": len(folders)},
        files={n: {"bytes": f.stat().st_size, "sha256": digest(f)} for n, f in files.items()},
        extra=dict(extra),
    )
    with writing_file(out / SHARDS, overwrite=True) as path:
        path.write_text(joined.text(), encoding="utf-8")
    kept_names = {folder.name for folder in folders} | {"shards.lock"}
    for entry in [e for e in out.iterdir() if OWN_NAME.fullmatch(e.name) and e.name not in kept_names]:
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
