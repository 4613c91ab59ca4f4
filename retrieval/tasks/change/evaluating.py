"""Measure maps of change against labels, place by place and pooled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from retrieval.evaluation.change import ChangeFigures, Tally, measure_change, tally
from retrieval.tasks.change.learned import Models, check_bands, scorer_of
from retrieval.tasks.change.mapping import Options, map_change
from retrieval.tasks.change.pairs import pair_of
from retrieval.tasks.change.places import labelled_places, read_labels
from retrieval.types import Executor, Progress, silent


@dataclass(frozen=True, eq=False)
class EvaluateReport:
    """Result of `evaluate`."""

    figures: ChangeFigures
    """Figures of change, pooled and by place."""
    shifts: dict[str, tuple[float, float]]
    """Shift of the second date of each place that was removed: dx, dy in pixels."""
    notes: tuple[str, ...]
    """Places that were skipped, and files that were warped."""


def evaluate(
    places: str | Path,
    labels: str | Path,
    *,
    model: Models | None = None,
    threshold: float | None = None,
    options: Options | None = None,
    bands: Sequence[str] | None = None,
    units: str | None = None,
    executor: Executor | None = None,
    progress: Progress = silent,
) -> EvaluateReport:
    """Map the change of labelled places and measure it.

    Args:
        places: folder of places, `places/NAME/<date>.tif`; the first and the last date of each are compared.
        labels: folder of masks `labels/NAME.tif`: 1 change, 0 none, 255 no label.
        model: folder that `train` wrote, or several, whose mean decides; None compares without labels.
        threshold: probability from which a pixel counts as changed; None takes the method's.
        options: coregistration, cloud mask and smallest area.
        bands: names of the bands; else the files', else by their number.
        units: units of the pixels; else inferred.
        executor: runs the strips of each place; None for this thread.
        progress: called after each place.

    Raises:
        MissingInputError: a folder is missing or empty, or a file name holds no date.
        LabelsError: no place has labels, or a mask holds another value.
        BandsError, GridError, UnitsError: dates or labels of a place do not fit each other.
        ExamplesError: the dates of a place share no visible ground.
    """
    pairs, notes = labelled_places(places, labels)
    scorer = scorer_of(model, threshold)
    tallies: dict[str, Tally] = {}
    shifts: dict[str, tuple[float, float]] = {}
    for done, one in enumerate(pairs, start=1):
        pair = pair_of(one.place, bands=bands, units=units)
        check_bands(scorer, pair)
        mask, note = read_labels(one.labels, pair.grid)
        found = map_change(pair, scorer, options, executor=executor)
        tallies[one.name] = tally(found.values, mask)
        shifts[one.name] = round(found.shift.dx, 3), round(found.shift.dy, 3)
        notes += (*pair.notes, *([note] if note else []))
        progress("mapping places", done, len(pairs))
    return EvaluateReport(measure_change(tallies, scorer.threshold), shifts, notes)
