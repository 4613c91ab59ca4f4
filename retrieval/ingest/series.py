"""Cuts of places -> shards of training series."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from retrieval.ingest.survey import Cut, Survey
from tfrecords.artifacts import writing_folder
from tfrecords.challenge import Progress
from tfrecords.schema import Series, group_of
from tfrecords.write import SERIES_PER_SHARD, shard_name, summarise_shards, write_shard

SHARD_BYTES = 256 << 20
"""A shard holds about so many bytes of pixels, or `SERIES_PER_SHARD` series, whichever is less."""

Work = Sequence[tuple[Survey, Cut]]
"""All cuts of a run, those of one place behind each other."""


def write_as_series(
    work: Work,
    groups: Mapping[str, str],
    out: str | os.PathLike[str],
    config: Mapping[str, Any],
    *,
    overwrite: bool,
    progress: Progress | None,
) -> int:
    """Write training series, one for each cut.

    Args:
        work: The cuts.
        groups: For each place the name of the place that stands for all that share ground with it.
        out: Folder to write.
        config: All that decides the result; a stopped run of the same goes on behind its last shard.
        overwrite: Replace a finished folder.
        progress: Told how many cuts are written.

    Returns:
        How many series the folder holds.

    Raises:
        OutputExistsError: Something is there, and `overwrite` is not given.
        UnfinishedOutputError: A stopped run of another configuration is in the way.
        ArrayError: A file is damaged, or a series does not fit a record.
        DiskFullError: The disk is full.
    """
    names: list[str] = []
    done = 0
    with writing_folder(out, kind="series", config=config, overwrite=overwrite) as folder:
        for shard in _shards(work):
            names.append(shard_name(len(names)))
            if not folder.done(names[-1]):
                write_shard(folder, names[-1], _cut_out(shard, groups, done, len(work), progress))
            done += len(shard)
            if progress:
                progress(done, len(work))
        summarise_shards(folder, names)
        folder.extra["files"] = [_described(one) for one in _places(work)]
    return folder.counts["series"]


def _shards(work: Work) -> Iterator[Work]:
    """Divide the cuts into shards of bounded size; decided by their sizes alone, so that it repeats."""
    shard: list[tuple[Survey, Cut]] = []
    size = 0
    for seen, cut in work:
        own = cut.height * cut.width * len(cut.dates) * len(seen.bands) * seen.dtype.itemsize
        if shard and (size + own > SHARD_BYTES or len(shard) == SERIES_PER_SHARD):
            yield shard
            shard, size = [], 0
        shard.append((seen, cut))
        size += own
    if shard:
        yield shard


def _cut_out(
    shard: Work, groups: Mapping[str, str], done: int, total: int, progress: Progress | None
) -> Iterator[Series]:
    """Read the cuts one by one; the files of a place stay open while its cuts last."""
    with ExitStack() as stack:
        current: Survey | None = None
        for number, (seen, cut) in enumerate(shard):
            if seen is not current:
                stack.close()
                dates = stack.enter_context(seen.opened())
                current = seen
            yield Series(
                np.stack([seen.read(dates, date, cut) for date in cut.dates]),
                seen.units,
                seen.bands,
                seen.nodata,
                tuple(seen.place.files[date].date for date in cut.dates),
                seen.place.name,
                cut.x0,
                cut.y0,
                group_of(groups[seen.place.name]),
            )
            if progress:
                progress(done + number + 1, total)


def _places(work: Work) -> list[Survey]:
    return list({id(seen): seen for seen, _ in work}.values())


def _described(seen: Survey) -> dict[str, Any]:
    """What the manifest says of a place: what its files were taken for."""
    return {
        "place": seen.place.name,
        "units": seen.units,
        "bands": list(seen.bands),
        "dates": [one.date for one in seen.place.files],
        "warped": [one.date for one, moved in zip(seen.place.files, seen.warped, strict=True) if moved],
    }
