"""What is read and written of one day: the unit of work, here or on an executor.

A task changes no journal. It returns what happened, in order, and the run notes it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.ingest.dated_image import write_date
from retrieval.ingest.offset_check import darkest_dn
from retrieval.ingest.places_writer import provenance_of
from retrieval.ingest.redaction import redact_logs
from retrieval.ingest.stac.days import Day
from retrieval.ingest.stac.journal import ItemRow
from retrieval.ingest.stac.read import Reader
from retrieval.ingest.stac.scene import COMMON, Scene
from tfrecords.errors import CatalogueError
from tfrecords.schema.records import Provenance


@dataclass(frozen=True)
class DayTask:
    """A day to read; it can be pickled."""

    reader: Reader
    """Reads the files."""
    day: Day
    """The items."""
    snow: bool
    """Hide snow too."""
    path: Path
    """The file to write."""
    max_hidden: float
    """Largest share of hidden pixels, percent."""


def hidden_task(task: DayTask) -> tuple[float | None, dict[str, str]]:
    """Return the share hidden in all items of a day (None = no classification), and the failures."""
    redact_logs()
    hidden: NDArray[np.bool_] | None = None
    failures: dict[str, str] = {}
    for scene in task.day.scenes:
        try:
            mask = task.reader.hidden(scene, task.day.window, snow=task.snow)
        except CatalogueError as error:
            failures[scene.id] = str(error)
            continue
        if mask is not None:
            hidden = mask if hidden is None else hidden & mask
    return (None if hidden is None else float(hidden.mean())), failures


@dataclass
class DayOutcome:
    """What became of a day."""

    failures: dict[str, str] = field(default_factory=dict)
    """Why items could not be read, by id."""
    notes: list[str] = field(default_factory=list)
    """Warnings, one sentence each."""
    rows: list[ItemRow] = field(default_factory=list)
    """Rows of the items that were read."""
    refused: str = ""
    """Why the day was not kept although it was read."""

    @property
    def written(self) -> bool:
        """Whether the file was written."""
        return bool(self.rows) and not self.refused


def day_task(task: DayTask) -> DayOutcome:
    """Read one day and write its file.

    Raises:
        DiskFullError: the disk is full.
    """
    redact_logs()
    outcome, day = DayOutcome(), task.day
    scenes, pixels = _merge(task, outcome)
    if not scenes:
        return outcome
    hidden = 100 * float((pixels == 0).all(-1).mean())
    rows = replace(day, scenes=tuple(scenes)).rows(hidden=hidden, dark=darkest_dn(pixels))
    outcome.refused = _reason_to_skip(task, scenes, hidden)
    if outcome.refused:
        outcome.rows = [replace(row, left_out=outcome.refused) for row in rows]
        return outcome
    window, tags, path = day.window, _provenance(scenes), task.path
    write_date(path, pixels, tuple(COMMON), window.crs, window.transform, tags, overwrite=path.exists())
    outcome.rows = [replace(row, file=day.file) for row in rows]
    return outcome


def _merge(task: DayTask, outcome: DayOutcome) -> tuple[list[Scene], NDArray[np.uint16]]:
    """Return the readable items of a day, and their pixels: each item fills the gaps of those before."""
    scenes: list[Scene] = []
    merged = np.zeros((0, 0, len(COMMON)), np.uint16)
    for scene in task.day.scenes:
        try:
            pixels, negative = task.reader.pixels(scene, task.day.window, snow=task.snow)
        except CatalogueError as error:
            outcome.failures[scene.id] = str(error)
            continue
        if negative:
            offset = scene.bands["B04"].offset
            outcome.notes.append(
                f"warning: {scene.id}: the offset ({offset.dn:g}, from {offset.source}) makes many "
                "pixels negative; it may already have been applied. Pixels were left unchanged"
            )
        if scenes:
            gaps = (merged == 0).all(-1)
            merged[gaps] = pixels[gaps]
        else:
            merged = pixels
        scenes.append(scene)
    return scenes, merged


def _reason_to_skip(task: DayTask, scenes: list[Scene], hidden: float) -> str:
    """Return why a day that was read cannot be kept; empty where it can."""
    if hidden >= 100 or hidden > max(task.max_hidden, 0.01) + 0.01:
        return f"{hidden:.1f} % of it is hidden or nodata"
    if task.path.exists() and provenance_of(task.path).source != _provenance(scenes).source:
        return "a file of that name exists that this query did not write"
    return ""


def _provenance(scenes: list[Scene]) -> Provenance:
    """Return the tags of a file made from several items: all names, and the metadata of the clearest."""
    return replace(scenes[0].provenance(), source=" ".join(sorted(scene.id for scene in scenes)))
