"""Class maps against masks: figures of each class, with intervals by scene or tile."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import LabelsError
from retrieval.evaluation.segmentation import SegmentationFigures, confusion_of, measure_maps
from retrieval.labels.classes import Classes, read_classes
from retrieval.labels.dataset import misfit, unnamed_classes
from retrieval.labels.files import find_files, tile_of
from retrieval.labels.masks import classes_of, read_mask, shape_of
from retrieval.types import Progress, silent
from tfrecords.errors import MissingInputError, listed


@dataclass(frozen=True, eq=False)
class SegmentEvaluation:
    """The result of `evaluate`."""

    figures: SegmentationFigures
    """Figures of all pairs together."""
    pairs: int
    """Maps that have a mask."""
    notes: tuple[str, ...]
    """Files without a partner, for people."""


def evaluate(
    predicted: str | Path,
    masks: str | Path,
    *,
    classes: str | Path | Classes | None = None,
    zoom: int | None = None,
    group_zoom: int | None = None,
    progress: Progress = silent,
) -> SegmentEvaluation:
    """Measure class maps on masks of the same names.

    Pixels count where the mask holds a label and the map a class. All pairs share one confusion matrix. The
    intervals draw whole pairs, or with `group_zoom` all tiles within one tile of that zoom.

    Args:
        predicted: a map, or a folder of maps.
        masks: a mask, or a folder of masks.
        classes: the classes, or their file; None takes them from the maps.
        zoom: only the XYZ tiles of this zoom.
        group_zoom: zoom of the tiles that are drawn whole for the intervals.
        progress: called after each pair.

    Raises:
        MissingInputError: no map, no mask, or none of one name.
        LabelsError: a map and its mask have other sizes or grids, or a value is no class.
        ExamplesError: no pixel has both a label and a class.
    """
    maps, truth = find_files(predicted, "mask", zoom), find_files(masks, "mask", zoom)
    if Path(predicted).is_file() and Path(masks).is_file():  # two files named by the user belong together
        truth = {next(iter(maps)): next(iter(truth.values()))}
    names = [name for name in maps if name in truth]
    if not names:
        raise MissingInputError(
            f"{masks}: no mask has the name of a map in {predicted}, such as {next(iter(maps))!r}. Expected "
            "equal paths up to the ending and _sat or _mask."
        )
    known = read_classes(classes) if isinstance(classes, str | Path) else classes
    known = known or classes_of(maps[names[0]]) or classes_of(truth[names[0]])
    known = known or _unnamed([maps[name] for name in names] + [truth[name] for name in names])
    groups: dict[object, NDArray[np.int64]] = {}
    for done, name in enumerate(names, start=1):
        group = _group(name, group_zoom)
        groups[group] = groups.get(group, 0) + _confusion(maps[name], truth[name], known)
        progress("comparing maps", done, len(names))
    notes = [
        f"{what} without {other}, left out: {listed(sorted(set(mine) - set(theirs)), 4)}"
        for what, other, mine, theirs in (("maps", "mask", maps, truth), ("masks", "map", truth, maps))
        if set(mine) - set(theirs)
    ]
    figures = measure_maps(np.stack(list(groups.values())), known.names)
    return SegmentEvaluation(figures, len(names), tuple(notes))


def _group(name: str, zoom: int | None) -> object:
    """Return what a pair is drawn with: its tile of a zoom, or itself."""
    tile = tile_of(name) if zoom is not None else None
    if tile is None or zoom is None:
        return name
    if tile.z < zoom:
        raise LabelsError(f"{name}: a tile of zoom {tile.z}. Expected a group zoom up to it, not {zoom}.")
    import mercantile

    return tile if tile.z == zoom else mercantile.parent(tile, zoom=zoom)


def _confusion(predicted: Path, mask: Path, classes: Classes) -> NDArray[np.int64]:
    """Return the confusion matrix (k, k) of one pair."""
    if problem := misfit(shape_of(predicted), shape_of(mask)):
        problem = problem.replace("the image", "the map")
        raise LabelsError(f"{mask}: {problem}. Expected a mask on the pixels of {predicted}.")
    labels, answers = read_mask(mask, classes), read_mask(predicted, classes)
    return confusion_of(labels, answers, len(classes.names))


def _unnamed(paths: list[Path]) -> Classes:
    """Return classes for maps and masks that name none."""
    total = np.zeros(256, np.int64)
    for path in paths:
        total += np.bincount(read_mask(path).ravel(), minlength=256)
    return unnamed_classes(total)
