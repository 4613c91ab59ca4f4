"""A challenge on disk: images, patches cut from other dates of the same ground, and the answers.

    test_images.tfrecords  test_patches.tfrecords  answers.csv  truth.csv  manifest.json

`answers.csv` is the published form: `Patch ID`, `Result`, where `Result` is `image_id x y`. `truth.csv` says
more of every patch. Images are made and written a few at a time: a run that was stopped goes on behind
the last few that were finished, and memory does not grow with the number of images.
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
"""About as many bytes of images are held and written at a time."""

Progress = Callable[[int, int], None]
"""Told how many of how many images are done."""


@dataclass(frozen=True, eq=False)
class Target:
    """One image, and the patches that are to be found in it."""

    image: Image
    """The image."""
    patches: Patches
    """The n patches, at least one, of other dates."""
    xy: NDArray[np.int32]
    """Column and row in the image of each patch's top-left pixel, (n, 2)."""
    truth: Sequence[tuple[str, ...]]
    """What else is known of each patch, n rows, one text for each of the challenge's `columns`."""


@dataclass(frozen=True)
class ChallengeReport:
    """What was written."""

    path: Path
    """The folder."""
    images: int
    """How many images."""
    patches: int
    """How many patches."""
    notes: tuple[str, ...] = ()
    """What a user should know, one sentence each."""


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
) -> ChallengeReport:
    """Write a challenge to a folder, whole or not at all.

    Args:
        out: The folder.
        make: Makes targets number `first` to `last` - 1; called for those that are not there yet. The ids
            of images and patches must be distinct over all of them.
        count: How many targets there are, at least 1.
        config: All that decides them; a stopped run of the same configuration goes on.
        columns: Names of the texts in `Target.truth`.
        image_bytes: Size of one image and its patches, about.
        published: The published challenge's features and nothing else; for 512 x 512 px of four bands only.
        overwrite: Replace a finished challenge.
        progress: Told how many images are done.

    Returns:
        What was written.

    Raises:
        OutputExistsError: Something is there, and `overwrite` is not given.
        UnfinishedOutputError: A stopped run of another configuration is in the way.
        ArrayError: There is no target, or one that does not fit the records.
        DiskFullError: The disk is full; what was finished waits for the next run.
    """
    if count < 1:
        raise ArrayError(f"{out}: a challenge of {count} images; expected at least 1")
    step = int(np.clip(CHUNK_BYTES // max(image_bytes, 1), 1, 16))
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
    """Write some targets to three parts, unless a former run did; returns the beginning of their names."""
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
    # Records say which is the last of their file, so that a file cut between two of them is seen.
    ends = [span.stop == count and target is targets[-1] for target in targets]
    how = {"challenge": published}
    with folder.part(stem + IMAGES) as path:
        pairs = zip(targets, ends, strict=True)
        write_records(
            path, (encode_image(t.image, last=None if published else end, **how) for t, end in pairs)
        )
    with folder.part(stem + PATCHES) as path:
        pairs = zip(targets, ends, strict=True)
        write_records(path, (raw for t, end in pairs for raw in _patch_records(t.patches, end, published)))
    with folder.part(stem + TRUTH) as path, path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(row for target in targets for row in _truth_rows(target))
    return stem


def _patch_records(patches: Patches, end: bool, published: bool) -> Iterable[bytes]:
    for row, number in enumerate(patches.patch_ids):
        yield encode_patch(
            int(number),
            patches.pixels[row],
            patches.units,
            patches.bands,
            patches.nodata,
            challenge=published,
            last=None if published else end and row == len(patches) - 1,
        )


def _truth_rows(target: Target) -> Iterable[tuple[Any, ...]]:
    rows = zip(target.patches.patch_ids, target.xy, target.truth, strict=True)
    for number, (x, y), more in rows:
        yield (int(number), target.image.image_id, int(x), int(y), *more)


def _join(folder: PartialFolder, chunks: Sequence[str], columns: tuple[str, ...]) -> None:
    """Put the chunks behind each other; TFRecord files may simply be strung together."""
    rows = []
    for stem in chunks:
        with (folder.path / (stem + TRUTH)).open(newline="", encoding="utf-8") as file:
            rows += [(int(row[0]), *row[1:]) for row in csv.reader(file)]
    rows.sort()
    for name in (IMAGES, PATCHES):
        with folder.part(name, {"patches": len(rows)}) as path, path.open("wb") as joined:
            for stem in chunks:
                with (folder.path / (stem + name)).open("rb") as file:
                    shutil.copyfileobj(file, joined, 1 << 20)
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
