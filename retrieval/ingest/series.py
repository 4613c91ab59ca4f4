"""Cuts of places to shards of training series."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from retrieval.ingest.grids import OpenDates, quiet_gdal
from retrieval.ingest.survey import Cut, Survey
from retrieval.kernels.executors import stream_map
from retrieval.types import Executor
from tfrecords.artifacts import writing_folder
from tfrecords.challenge import Progress
from tfrecords.schema import Series, group_of
from tfrecords.write import shard_name, summarise_shards, write_shard

SHARD_BYTES = 256 << 20
"""Default size of a shard, bytes of pixels."""

Work = Sequence[tuple[Survey, Cut]]
"""All cuts of a run; the cuts of one place follow each other."""


def write_as_series(
    work: Work,
    groups: Mapping[str, str],
    out: str | os.PathLike[str],
    config: Mapping[str, Any],
    *,
    series_per_shard: int,
    shard_bytes: int,
    overwrite: bool,
    executor: Executor | None = None,
    progress: Progress,
) -> int:
    """Write training series, one for each cut.

    Args:
        work: the cuts.
        groups: for each place the name of its overlap group; places of a group share ground.
        out: folder to write.
        config: all that decides the result; an interrupted run with the same config resumes after its last
            shard.
        series_per_shard: largest number of series per shard.
        shard_bytes: largest size of a shard that holds more than one series, bytes of pixels.
        overwrite: replace a finished folder.
        executor: reads the cuts; None for this thread.
        progress: called with the number of cuts written, and of all cuts.

    Returns:
        The number of series in the folder.

    Raises:
        OutputExistsError: the folder exists, and `overwrite` is false.
        UnfinishedOutputError: an interrupted run with another config left its output.
        ArrayError: a file is damaged, or a series does not fit a record.
        DiskFullError: the disk is full.
    """
    names: list[str] = []
    done = 0
    with writing_folder(out, kind="series", config=config, overwrite=overwrite) as folder:
        for shard in _shards(work, series_per_shard, shard_bytes):
            names.append(shard_name(len(names)))
            if not folder.done(names[-1]):
                write_shard(folder, names[-1], _read_cuts(shard, groups, executor, done, len(work), progress))
            done += len(shard)
            progress(done, len(work))
        summarise_shards(folder, names)
        folder.extra["files"] = [_describe(place) for place in _surveys(work)]
    return folder.counts["series"]


def _shards(work: Work, series_per_shard: int, shard_bytes: int) -> Iterator[Work]:
    """Divide the cuts into shards; only their sizes decide, so that a second run divides them alike."""
    shard: list[tuple[Survey, Cut]] = []
    size = 0
    for survey, cut in work:
        cut_bytes = cut.height * cut.width * len(cut.dates) * len(survey.bands) * survey.dtype.itemsize
        if shard and (size + cut_bytes > shard_bytes or len(shard) == series_per_shard):
            yield shard
            shard, size = [], 0
        shard.append((survey, cut))
        size += cut_bytes
    if shard:
        yield shard


@dataclass(frozen=True, eq=False)
class CutTask:
    """A cut to read; it can be pickled."""

    survey: Survey
    """Its place."""
    cut: Cut
    """The rectangle."""
    group: str
    """Name of the place's overlap group."""


def read_cut(task: CutTask, dates: OpenDates) -> Series:
    """Read a series from the open dates of its place."""
    survey, cut = task.survey, task.cut
    return Series(
        np.stack([survey.read(dates, date, cut) for date in cut.dates]),
        survey.units,
        survey.bands,
        survey.nodata,
        tuple(survey.place.files[date].date for date in cut.dates),
        survey.place.name,
        cut.x0,
        cut.y0,
        group_of(task.group),
    )


def cut_task(task: CutTask) -> Series:
    """Read a series."""
    with quiet_gdal(), task.survey.open() as dates:
        return read_cut(task, dates)


def _read_here(tasks: Sequence[CutTask]) -> Iterator[Series]:
    """Read the cuts one by one; the files of a place stay open until its last cut is read."""
    with ExitStack() as stack:
        current: Survey | None = None
        for task in tasks:
            if task.survey is not current:
                stack.close()
                dates = stack.enter_context(task.survey.open())
                current = task.survey
            yield read_cut(task, dates)


def _read_cuts(
    shard: Work,
    groups: Mapping[str, str],
    executor: Executor | None,
    done: int,
    total: int,
    progress: Progress,
) -> Iterator[Series]:
    """Read the cuts of a shard, in order."""
    tasks = [CutTask(survey, cut, groups[survey.place.name]) for survey, cut in shard]
    cuts = stream_map(executor, cut_task, tasks) if executor else _read_here(tasks)
    for number, series in enumerate(cuts, start=done + 1):
        yield series
        progress(number, total)


def _surveys(work: Work) -> list[Survey]:
    return list({id(survey): survey for survey, _ in work}.values())


def _describe(survey: Survey) -> dict[str, Any]:
    """Return what the manifest says of a place: the units and bands inferred, and the dates warped."""
    return {
        "place": survey.place.name,
        "units": survey.units,
        "bands": list(survey.bands),
        "dates": [file.date for file in survey.place.files],
        "warped": [
            file.date for file, warped in zip(survey.place.files, survey.warped, strict=True) if warped
        ],
    }
