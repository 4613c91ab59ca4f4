"""A challenge on disk: images, patches cut from other dates of the same ground, and the answers.

    test_images.tfrecords  test_patches.tfrecords  answers.csv  truth.csv  manifest.json

`answers.csv` has the published form: `Patch ID`, `Result`, where `Result` is `image_id x y`. `truth.csv` has
more columns for every patch. Images are made and written in chunks. An interrupted run resumes after the
last finished chunk; memory does not grow with the number of images.
"""

from __future__ import annotations

import csv
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfrecords.artifacts import PartialFolder, writing_folder
from tfrecords.errors import ArrayError
from tfrecords.schema import Image, Patches, encode_image, encode_patch
from tfrecords.write import write_records

IMAGES, PATCHES, ANSWERS, TRUTH = (
    "test_images.tfrecords",
    "test_patches.tfrecords",
    "answers.csv",
    "truth.csv",
)
"""Names of the files, the first three as published."""

CHUNK_BYTES = 64 << 20
"""Bytes of images in a chunk, about."""

Progress = Callable[[int, int], None]
"""Called with the number of images done, and their total number."""


@dataclass(frozen=True, eq=False)
class Target:
    """One image, and the patches to find in it."""

    image: Image
    """The image."""
    patches: Patches
    """The n patches, at least one, of other dates."""
    xy: NDArray[np.int32]
    """Column and row in the image of each patch's top-left pixel, (n, 2)."""
    truth: Sequence[tuple[str, ...]]
    """Further facts on each patch: n rows, one text for each of the challenge's `columns`."""


@dataclass(frozen=True)
class ChallengeReport:
    """The result of writing a challenge."""

    path: Path
    """The folder."""
    images: int
    """Number of images."""
    patches: int
    """Number of patches."""
    notes: tuple[str, ...] = ()
    """Notes for the user, one sentence each."""


def write_challenge(
    out: str | os.PathLike[str],
    make: Callable[[int, int], Iterable[Target]],
    count: int,
    *,
    config: Mapping[str, Any],
    columns: tuple[str, ...],
    image_bytes: int,
    published: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> ChallengeReport:
    """Write a challenge to a folder, whole or not at all; an interrupted run resumes.

    Args:
        out: the folder.
        make: returns targets number `first` to `last` - 1; called only for chunks that are not written yet.
            Ids of images and patches are distinct over all targets.
        count: number of targets, at least 1.
        config: all that decides the targets; a run resumes only with the same configuration.
        columns: names of the texts in `Target.truth`.
        image_bytes: size of one image and its patches, about.
        published: write the published challenge's features only; needs 512 x 512 px of four bands.
        overwrite: replace a finished challenge.
        progress: called after each image.
        chunk_bytes: bytes of images in a chunk, about.

    Raises:
        OutputExistsError: the output exists and `overwrite` is false.
        UnfinishedOutputError: an interrupted run has other settings.
        ArrayError: there is no target, or one does not fit the records.
        DiskFullError: the disk is full; finished parts wait for the next run.
    """
    if count < 1:
        raise ArrayError(f"{out}: the challenge has {count} images; expected at least 1")
    step = int(np.clip(chunk_bytes // max(image_bytes, 1), 1, 16))
    config = {**config, "published": published, "chunk": step}
    with writing_folder(out, kind="challenge", config=config, overwrite=overwrite) as folder:
        if not all([folder.done(name) for name in (IMAGES, PATCHES, ANSWERS, TRUTH)]):
            spans = [range(first, min(first + step, count)) for first in range(0, count, step)]
            chunks = [_write_chunk(folder, make, span, count, published, progress) for span in spans]
            _join(folder, chunks, columns)
        shutil.rmtree(folder.path / "chunks", ignore_errors=True)
        folder.counts |= {"images": count, "patches": folder.meta(PATCHES)["patches"]}
        folder.extra |= {"columns": list(columns)}
    return ChallengeReport(Path(out), count, folder.counts["patches"])


def _write_chunk(
    folder: PartialFolder,
    make: Callable[[int, int], Iterable[Target]],
    span: range,
    count: int,
    published: bool,
    progress: Progress | None,
) -> str:
    """Write a chunk of targets to three parts unless they are finished, and return their common prefix."""
    stem = f"chunks/{span.start:06d}-"
    if all([folder.done(stem + name) for name in (IMAGES, PATCHES, TRUTH)]):
        if progress:
            progress(span.stop, count)
        return stem
    targets = []
    for done, target in enumerate(make(span.start, span.stop), start=span.start + 1):
        targets.append(target)
        if progress:
            progress(done, count)
    # The last record of a file is marked, so that a file cut between two records is noticed.
    ends = [span.stop == count and target is targets[-1] for target in targets]
    with folder.part(stem + IMAGES) as path:
        pairs = zip(targets, ends, strict=True)
        write_records(
            path,
            (encode_image(t.image, challenge=published, last=None if published else end) for t, end in pairs),
        )
    with folder.part(stem + PATCHES) as path:
        pairs = zip(targets, ends, strict=True)
        write_records(path, (raw for t, end in pairs for raw in _patch_records(t.patches, end, published)))
    with folder.part(stem + TRUTH) as path, path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(row for target in targets for row in _truth_rows(target))
    return stem


def _patch_records(patches: Patches, end: bool, published: bool) -> Iterable[bytes]:
    for row, patch_id in enumerate(patches.patch_ids):
        yield encode_patch(
            int(patch_id),
            patches.pixels[row],
            patches.units,
            patches.bands,
            patches.nodata,
            challenge=published,
            last=None if published else end and row == len(patches) - 1,
        )


def _truth_rows(target: Target) -> Iterable[tuple[Any, ...]]:
    rows = zip(target.patches.patch_ids, target.xy, target.truth, strict=True)
    for patch_id, (x, y), facts in rows:
        yield (int(patch_id), target.image.image_id, int(x), int(y), *facts)


def _join(folder: PartialFolder, chunks: Sequence[str], columns: tuple[str, ...]) -> None:
    """Concatenate the chunks; TFRecord files can be joined byte by byte."""
    rows = []
    for stem in chunks:
        with (folder.path / (stem + TRUTH)).open(newline="", encoding="utf-8") as file:
            rows += [(int(row[0]), *row[1:]) for row in csv.reader(file)]
    rows.sort()
    for name in (IMAGES, PATCHES):
        with folder.part(name, {"patches": len(rows)}) as path, path.open("wb") as output:
            for stem in chunks:
                with (folder.path / (stem + name)).open("rb") as file:
                    shutil.copyfileobj(file, output, 1 << 20)
    answers = [(row[0], f"{row[1]} {row[2]} {row[3]}") for row in rows]
    _write_csv(folder, ANSWERS, ("Patch ID", "Result"), answers)
    _write_csv(folder, TRUTH, ("Patch ID", "image_id", "x", "y", *columns), rows)


def _write_csv(
    folder: PartialFolder, name: str, header: tuple[str, ...], rows: Sequence[tuple[Any, ...]]
) -> None:
    with folder.part(name) as path, path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
