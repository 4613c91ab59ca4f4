"""From a catalogue query to places: measure the cloud over the ground, select dates, read and write them."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from retrieval.ingest.offset_check import warn_of_suspect_dates
from retrieval.ingest.redaction import redact_logs
from retrieval.ingest.retry import RetryPolicy
from retrieval.ingest.stac.access import signer
from retrieval.ingest.stac.catalogue import check_installed, find_items
from retrieval.ingest.stac.day_tasks import DayOutcome, DayTask, day_task, hidden_task
from retrieval.ingest.stac.days import (
    Day,
    SkippedItems,
    drop_repeated,
    explain_nothing_written,
    note_missing_metadata,
    select_dates,
    sort_into_days,
)
from retrieval.ingest.stac.journal import ItemRow, Journal
from retrieval.ingest.stac.query import CatalogQuery
from retrieval.ingest.stac.read import Reader
from retrieval.kernels.executors import SerialExecutor, stream_map
from retrieval.types import Executor, Progress, silent
from tfrecords.errors import CatalogueError

CLOUD_THREADS = 8
"""Number of scene classifications that are fetched at a time."""
SAVE_EVERY = 25
"""The journal is saved after this many scene classifications, and after each date."""


@dataclass(frozen=True)
class StacReport:
    """The outcome of a query."""

    path: Path
    """The output folder."""
    places: int
    """Number of places with a date."""
    dates: int
    """Number of dates in the folder, over all places."""
    new: int
    """Number of dates that this run wrote."""
    items: int
    """Number of items that the catalogue returned."""
    left_out: tuple[ItemRow, ...]
    """Items that were skipped, with the reason."""
    notes: tuple[str, ...]
    """Notes on skipped items and suspect offsets; one sentence each."""


def ingest_stac(
    out: str | os.PathLike[str],
    query: CatalogQuery,
    *,
    overwrite: bool = False,
    retry: RetryPolicy | None = None,
    executor: Executor | None = None,
    progress: Progress = silent,
) -> StacReport:
    """Download the images that match a query to a STAC catalogue, as places.

    Every date is `<place>/<date>.tif`: bands B04, B03, B02, B08, uint16 digital numbers without an offset, 0
    where nodata or hidden by the scene classification. `items.csv` lists the outcome for each item. An
    interrupted run resumes, and retries items that could not be read.

    Args:
        out: the output folder.
        query: the query.
        overwrite: start again; the files of the folder's earlier query are removed.
        retry: how often the catalogue and its files are tried; None = four times.
        executor: reads and writes the days; None for this process.
        progress: called with the stage, the number of items done, and of all items.

    Returns:
        The report, with notes on skipped items and suspect offsets.

    Raises:
        MissingPackageError: the extra `stac` is not installed.
        CatalogueError: the catalogue cannot be read or has no matching item, or nothing could be written.
        OutputExistsError: the folder holds the files of another query, and `overwrite` is false.
        ManifestError: the folder's journal is damaged.
        DiskFullError: the disk is full; the dates that were written are whole.
    """
    check_installed()
    redact_logs()
    retry = retry or RetryPolicy()
    run = _Run(
        query,
        Reader(retry, signer(query.sign, retry)),
        Journal(Path(out), query, overwrite=overwrite),
        executor,
        progress,
    )
    items = find_items(query, retry, lambda count: progress("searching", count, None))
    days = sort_into_days(items, query, run.reader.locate, run.skipped)
    run.journal.begin()
    run.journal.note(run.skipped.rows)
    shares = run.measure_hidden(days)
    existing = {day.place for day in days if run.exists(day)}
    days = drop_repeated(days, query, shares, existing, run.skipped)
    selected = run.select(days, shares)
    run.skipped.notes += note_missing_metadata(selected)
    run.journal.note(run.skipped.rows)
    new = run.write(selected)
    return run.report({str(item["id"]) for item in items}, new)


@dataclass(frozen=True)
class _Run:
    """One run: the query, its tools, and the items skipped so far."""

    query: CatalogQuery
    reader: Reader
    journal: Journal
    executor: Executor | None
    """Reads the days; None for threads of this process, then one day after the other."""
    progress: Progress
    skipped: SkippedItems = field(default_factory=SkippedItems)

    # --- which dates ----------------------------------------------------------------------------

    def measure_hidden(self, days: Sequence[Day]) -> dict[str, float]:
        """Return the share of the ground that is hidden, 0 to 1, by day.file; unreadable days have none."""
        shares = {day.file: share for day in days if (share := self._known_share(day)) is not None}
        unknown = [day for day in days if day.file not in shares]
        if unknown:
            self.progress("looking for cloud", 0, len(unknown))
        with self._hidden_shares(unknown) as outcomes:
            for done, (day, (share, failures)) in enumerate(outcomes, start=1):
                self._skip_unreadable(day, failures)
                if share is not None:
                    shares[day.file] = share
                    rows = day.rows(hidden=100 * share)
                    self.journal.note([row for row in rows if row.item not in failures])
                elif len(failures) < len(day.scenes):  # no classification: use the tile's cloud cover
                    shares[day.file] = (day.scenes[0].cloud_cover or 0) / 100
                if done % SAVE_EVERY == 0:
                    self.journal.save()
                self.progress("looking for cloud", done, len(unknown))
        return shares

    @contextmanager
    def _hidden_shares(
        self, days: Sequence[Day]
    ) -> Iterator[Iterator[tuple[Day, tuple[float | None, dict[str, str]]]]]:
        """Yield the days with what `hidden_task` returns; without an executor, as they are ready."""
        pool = ThreadPoolExecutor(CLOUD_THREADS)
        try:
            if self.executor is None:
                futures = {pool.submit(hidden_task, self._task(day)): day for day in days}
                yield ((futures[future], future.result()) for future in as_completed(futures))
            else:
                results = stream_map(self.executor, hidden_task, map(self._task, days))
                yield zip(days, results, strict=True)
        finally:
            pool.shutdown(cancel_futures=True)
            self.journal.save()

    def _task(self, day: Day) -> DayTask:
        path = self.journal.folder / day.file
        return DayTask(self.reader, day, self.query.hide_snow, path, self.query.max_hidden)

    def _known_share(self, day: Day) -> float | None:
        """Return what an earlier run measured."""
        rows = [self.journal.rows.get(scene.id) for scene in day.scenes]
        known = [row.hidden for row in rows if row and row.hidden is not None and row.date == str(day.date)]
        return known[0] / 100 if len(known) == len(day.scenes) else None

    def _skip_unreadable(self, day: Day, failures: dict[str, str]) -> None:
        for row in day.rows():
            if row.item in failures:
                failed = replace(row, left_out=failures[row.item])
                self.skipped.add([failed], f"skipped: {row.item}, {failed.left_out}")
                self.journal.note([failed])

    def select(self, days: Sequence[Day], shares: dict[str, float]) -> list[Day]:
        """Return the days to keep, existing ones included, and skip the others."""
        unreadable = {row.item for row in self.skipped.rows}
        by_place: dict[str, list[Day]] = {}
        for day in days:
            if day.file in shares:
                scenes = tuple(scene for scene in day.scenes if scene.id not in unreadable)
                by_place.setdefault(day.place, []).append(replace(day, scenes=scenes))
        limit = f"more than {self.query.max_hidden:g} % hidden"
        selected: list[Day] = []
        hidden = crowded = 0
        for candidates in by_place.values():
            clear, dates = self._select_dates(candidates, shares)
            for day in candidates:
                share = 100 * shares[day.file]
                if day.date in dates:
                    selected.append(day)
                elif day.date in clear:
                    crowded += 1
                    reason = "clearer or better spread dates were kept"
                    self.skipped.add(day.rows(hidden=share, left_out=reason))
                else:
                    hidden += 1
                    self.skipped.add(day.rows(hidden=share, left_out=limit))
        if hidden:
            self.skipped.notes.append(f"skipped: {hidden} days with {limit}")
        if crowded:
            self.skipped.notes.append(f"skipped: {crowded} days, clearer or better spread days were kept")
        return selected

    def _select_dates(
        self, days: Sequence[Day], shares: dict[str, float]
    ) -> tuple[dict[datetime.date, float], tuple[datetime.date, ...]]:
        """Return the clear dates of a place with their hidden shares, and the dates selected from them."""
        query = self.query
        clear = {day.date: shares[day.file] for day in days if 100 * shares[day.file] <= query.max_hidden}
        existing = [day.date for day in days if self.exists(day)]
        dates = select_dates(clear, query.first, query.last, query.dates_per_place, existing)
        return clear, dates

    # --- pixels ---------------------------------------------------------------------------------

    def write(self, selected: Sequence[Day]) -> int:
        """Read and write the days that do not exist yet; return how many were written."""
        missing = [day for day in selected if not self.exists(day)]
        new = 0
        if missing:
            self.progress("reading dates", 0, len(missing))
        outcomes = stream_map(self.executor or SerialExecutor(), day_task, map(self._task, missing))
        for done, (day, outcome) in enumerate(zip(missing, outcomes, strict=True), start=1):
            self._note(day, outcome)
            new += outcome.written
            self.journal.save()
            self.progress("reading dates", done, len(missing))
        self.journal.save()
        return new

    def _note(self, day: Day, outcome: DayOutcome) -> None:
        """Note what became of a day."""
        self._skip_unreadable(day, outcome.failures)
        self.skipped.notes += outcome.notes
        if outcome.refused:
            path = self.journal.folder / day.file
            self.skipped.add(outcome.rows, f"skipped: {path}, {outcome.refused}")
        self.journal.note(outcome.rows)

    def exists(self, day: Day) -> bool:
        """Return whether an earlier run wrote the file of a day."""
        rows = [self.journal.rows.get(scene.id) for scene in day.scenes]
        recorded = all(row and row.file == day.file for row in rows)
        return recorded and (self.journal.folder / day.file).is_file()

    # --- report ---------------------------------------------------------------------------------

    def report(self, item_ids: set[str], new: int) -> StacReport:
        """Return what the folder holds of the items that were found."""
        rows = [row for row in self.journal.rows.values() if row.item in item_ids]
        kept = [row for row in rows if row.file]
        skipped = tuple(sorted((row for row in rows if not row.file), key=lambda row: row.item))
        if not kept:
            raise CatalogueError(explain_nothing_written(skipped))
        notes = (*self.skipped.notes, *_check_offsets(kept))
        places, files = {row.place for row in kept}, {row.file for row in kept}
        return StacReport(self.journal.folder, len(places), len(files), new, len(item_ids), skipped, notes)


def _check_offsets(kept: Sequence[ItemRow]) -> list[str]:
    """Return a warning for each place whose dates have suspect offsets."""
    places: dict[str, dict[str, float]] = {}
    for row in kept:
        if row.dark is not None:
            places.setdefault(row.place, {})[row.date] = row.dark
    return [note for place in sorted(places) for note in warn_of_suspect_dates(place, places[place])]
