"""From a search to places: look for cloud over the ground asked for, choose dates, read and write them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.ingest.dated_image import write_date
from retrieval.ingest.offset_check import darkest_dn, warn_of_suspect_dates
from retrieval.ingest.places_writer import provenance_of
from retrieval.ingest.retry import RetryPolicy
from retrieval.ingest.stac.catalogue import check_installed, find_items
from retrieval.ingest.stac.choose import thin
from retrieval.ingest.stac.days import Day, Left, guesses, nothing, sorted_days
from retrieval.ingest.stac.journal import Journal, Row
from retrieval.ingest.stac.query import CatalogQuery
from retrieval.ingest.stac.read import Reader, signer
from retrieval.ingest.stac.scene import COMMON, Scene
from tfrecords.errors import CatalogueError
from tfrecords.schema.records import Provenance

LOOKERS = 8
"""Days whose scene classification is fetched at a time."""
SAVE_EVERY = 25
"""The journal is written after so many of them; after each date that is read."""

Progress = Callable[[str, int, int | None], None]
"""Told a stage, how many of it are done, and of how many; None = not known."""


@dataclass(frozen=True)
class StacReport:
    """What was found and written."""

    path: Path
    """The folder."""
    places: int
    """How many places have a date."""
    dates: int
    """How many dates there are now of all places together."""
    new: int
    """How many of them this run wrote; the others were there."""
    items: int
    """How many items the catalogue gave."""
    left_out: tuple[Row, ...]
    """Items that became nothing, with the reason."""
    notes: tuple[str, ...]
    """What was left out and what looks wrong; one sentence each."""


def ingest_stac(
    out: str | os.PathLike[str],
    query: CatalogQuery,
    *,
    overwrite: bool = False,
    retry: RetryPolicy | None = None,
    progress: Progress | None = None,
) -> StacReport:
    """Bring the dates of a search in a STAC catalogue into a folder of places.

    Every date is `<place>/<date>.tif`: bands B04, B03, B02, B08, uint16 digital numbers without an offset, 0
    where there is no data and where the scene classification hides it. `items.csv` says what became of each
    item. A run that was stopped, or that left items out because they couldn't be read, goes on where it was.

    Args:
        out: The folder.
        query: What is looked for.
        overwrite: Begin anew; the dates of the search that the folder holds are removed.
        retry: How often the catalogue and its files are tried; None = four times.
        progress: Told how far it is.

    Returns:
        What was written, left out, and looks wrong.

    Raises:
        MissingPackageError: The extra `stac` is not installed.
        CatalogueError: The catalogue can't be asked or has nothing fitting; or nothing could be written.
        OutputExistsError: The folder holds the dates of another query, and `overwrite` is not given.
        ManifestError: The folder's journal is damaged.
        DiskFullError: The disk is full; the dates that were written are whole.
    """
    check_installed()
    retry = retry or RetryPolicy()
    tell = progress or (lambda stage, done, total: None)
    journal = Journal(Path(out), query, overwrite=overwrite)
    reader = Reader(retry, signer(query.sign))
    items = find_items(query, retry, lambda count: tell("searching", count, None))
    left = Left()
    days = sorted_days(items, query, reader.grounded, left)
    left.notes += guesses(days)
    journal.begin()
    journal.note(left.rows)
    shares = _look(days, query, reader, journal, left, tell)
    chosen = _choose(days, shares, query, journal, left)
    journal.note(left.rows)
    new = _write(chosen, query, reader, journal, left, tell)
    return _report(journal, [str(item["id"]) for item in items], new, left)


# --- which dates --------------------------------------------------------------------------------


def _look(
    days: Sequence[Day], query: CatalogQuery, reader: Reader, journal: Journal, left: Left, tell: Progress
) -> dict[str, float]:
    """Share of the ground that is hidden on each day, 0 to 1, by its file; what can't be read has none."""
    shares = {day.file: known for day in days if (known := _known_share(day, journal)) is not None}
    todo = [day for day in days if day.file not in shares]
    if todo:
        tell("looking for cloud", 0, len(todo))
    pool = ThreadPoolExecutor(LOOKERS)
    try:
        futures = {pool.submit(_hidden_share, day, query, reader): day for day in todo}
        for done, future in enumerate(as_completed(futures), start=1):
            day, (share, failed) = futures[future], future.result()
            _leave_failed(day, failed, journal, left)
            if share is not None:
                shares[day.file] = share
                good = [row for row in day.rows(hidden=100 * share) if row.item not in failed]
                journal.note(good)
            elif len(failed) < len(day.scenes):  # no classification: go by the tile
                shares[day.file] = (day.scenes[0].cloud_cover or 0) / 100
            if done % SAVE_EVERY == 0:
                journal.save()
            tell("looking for cloud", done, len(todo))
    finally:
        pool.shutdown(cancel_futures=True)
        journal.save()
    return shares


def _known_share(day: Day, journal: Journal) -> float | None:
    """What an earlier run measured."""
    rows = [journal.rows.get(scene.id) for scene in day.scenes]
    known = [row.hidden for row in rows if row and row.hidden is not None and row.date == str(day.date)]
    return known[0] / 100 if len(known) == len(day.scenes) else None


def _hidden_share(day: Day, query: CatalogQuery, reader: Reader) -> tuple[float | None, dict[str, str]]:
    """Share that all items of a day hide, None where none has a classification; and what can't be read."""
    mask: NDArray[np.bool_] | None = None
    failed: dict[str, str] = {}
    for scene in day.scenes:
        try:
            own = reader.hidden(scene, day.window, snow=query.hide_snow)
        except CatalogueError as error:
            failed[scene.id] = str(error)
            continue
        if own is not None:
            mask = own if mask is None else mask & own
    return (None if mask is None else float(mask.mean())), failed


def _leave_failed(day: Day, failed: dict[str, str], journal: Journal, left: Left) -> None:
    for row in day.rows():
        if row.item in failed:
            gone = replace(row, left_out=failed[row.item])
            left.out([gone], f"{row.item} was left out: {gone.left_out}")
            journal.note([gone])


def _choose(
    days: Sequence[Day], shares: dict[str, float], query: CatalogQuery, journal: Journal, left: Left
) -> list[Day]:
    """The days that are kept, those that are there already among them; the others are left out."""
    chosen: list[Day] = []
    by_place: dict[str, list[Day]] = {}
    failed = {row.item for row in left.rows}
    for day in days:
        if day.file not in shares:
            continue
        kept = replace(day, scenes=tuple(s for s in day.scenes if s.id not in failed))
        by_place.setdefault(day.place, []).append(kept)
    hidden = thinned = 0
    for own in by_place.values():
        clear = {day.date: shares[day.file] for day in own if 100 * shares[day.file] <= query.max_hidden}
        there = [day.date for day in own if _is_there(day, journal)]
        dates = thin(clear, query.first, query.last, query.dates_per_place, there)
        for day in own:
            share = 100 * shares[day.file]
            if day.date in dates:
                chosen.append(day)
            elif day.date in clear:
                thinned += 1
                left.out(day.rows(hidden=share, left_out="clearer or better spread dates were kept"))
            else:
                hidden += 1
                left.out(day.rows(hidden=share, left_out=f"more than {query.max_hidden:g} % hidden"))
    if hidden:
        left.notes.append(
            f"{hidden} days have more than {query.max_hidden:g} % of the ground hidden and were left out"
        )
    if thinned:
        left.notes.append(f"{thinned} days were left out, clearer or better spread ones kept")
    return chosen


# --- pixels -------------------------------------------------------------------------------------


def _write(
    chosen: Sequence[Day], query: CatalogQuery, reader: Reader, journal: Journal, left: Left, tell: Progress
) -> int:
    """Read and write the days that aren't there yet; says how many were written."""
    todo = [day for day in chosen if not _is_there(day, journal)]
    new = 0
    if todo:
        tell("reading dates", 0, len(todo))
    for done, day in enumerate(todo, start=1):
        new += _write_day(day, query, reader, journal, left)
        journal.save()
        tell("reading dates", done, len(todo))
    journal.save()
    return new


def _is_there(day: Day, journal: Journal) -> bool:
    rows = [journal.rows.get(scene.id) for scene in day.scenes]
    return all(row and row.file == day.file for row in rows) and (journal.folder / day.file).is_file()


def _write_day(day: Day, query: CatalogQuery, reader: Reader, journal: Journal, left: Left) -> bool:
    """Read one day and write it, if it can be read; whether it was written."""
    path = journal.folder / day.file
    good, pixels = _merged(day, query, reader, journal, left)
    if not good:
        return False
    hidden = 100 * float((pixels == 0).all(-1).mean())
    reason = _unfit(path, good, hidden, query)
    rows = replace(day, scenes=tuple(good)).rows(hidden=hidden, dark=darkest_dn(pixels))
    if reason:
        rows = [replace(row, left_out=reason) for row in rows]
        left.out(rows, f"{path} was left out: {reason}")
        journal.note(rows)
        return False
    window = day.window
    write_date(
        path, pixels, tuple(COMMON), window.crs, window.transform, _provenance(good), overwrite=path.exists()
    )
    journal.note([replace(row, file=day.file) for row in rows])
    return True


def _merged(
    day: Day, query: CatalogQuery, reader: Reader, journal: Journal, left: Left
) -> tuple[list[Scene], NDArray[np.uint16]]:
    """All items of a day on one grid: where one has nothing to see, the next one fills in."""
    good: list[Scene] = []
    merged = np.zeros((0, 0, len(COMMON)), np.uint16)
    for scene in day.scenes:
        try:
            pixels, below = reader.pixels(scene, day.window, snow=query.hide_snow)
        except CatalogueError as error:
            _leave_failed(day, {scene.id: str(error)}, journal, left)
            continue
        if below:
            offset = scene.bands["B04"].offset
            left.notes.append(
                f"warning: {scene.id}: the offset ({offset.dn:g}, from {offset.source}) makes many pixels "
                "negative; it may already have been applied. Pixels were left unchanged"
            )
        if good:
            gaps = (merged == 0).all(-1)
            merged[gaps] = pixels[gaps]
        else:
            merged = pixels
        good.append(scene)
    return good, merged


def _unfit(path: Path, scenes: Sequence[Scene], hidden: float, query: CatalogQuery) -> str:
    """Why a day that was read can't be kept; empty where it can."""
    if hidden >= 100 or hidden > max(query.max_hidden, 0.01) + 0.01:
        return f"{hidden:.1f} % of it is hidden or without data"
    if path.exists() and provenance_of(path).source != _provenance(scenes).source:
        return "a file of that name is there that this search did not make"
    return ""


def _provenance(scenes: Sequence[Scene]) -> Provenance:
    """Of a file that several items went into: all their names, and what the clearest says."""
    return replace(scenes[0].provenance(), source=" ".join(sorted(scene.id for scene in scenes)))


# --- what is said of it -------------------------------------------------------------------------


def _report(journal: Journal, items: Sequence[str], new: int, left: Left) -> StacReport:
    rows = [row for row in journal.rows.values() if row.item in set(items)]
    kept = [row for row in rows if row.file]
    gone = tuple(sorted((row for row in rows if not row.file), key=lambda row: row.item))
    if not kept:
        raise CatalogueError(nothing(gone))
    notes = (*left.notes, *_check_offsets(kept))
    files = {row.file for row in kept}
    return StacReport(journal.folder, len({r.place for r in kept}), len(files), new, len(items), gone, notes)


def _check_offsets(kept: Sequence[Row]) -> list[str]:
    """Return a warning for each place whose dates have suspect offsets."""
    places: dict[str, dict[str, float]] = {}
    for row in kept:
        if row.dark is not None:
            places.setdefault(row.place, {})[row.date] = row.dark
    return [note for place in sorted(places) for note in warn_of_suspect_dates(place, places[place])]
