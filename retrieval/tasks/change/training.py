"""Train a network or trees of change on labelled places, with the trainers of segmentation.

The lowest fifth of each place trains no network: it fits temperature and threshold. Change is rare, so half
of the crops lie around changed pixels, and the loss follows the IoU of change. Trees learn from all pixels;
their threshold comes from places that take turns to be left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import ForestConfig, SegmenterConfig
from retrieval.labels.classes import IGNORED, Classes
from retrieval.tasks.change.learned import PARTS, input_names, inputs_of
from retrieval.tasks.change.mapping import Options, align
from retrieval.tasks.change.pairs import Mask, pair_of
from retrieval.tasks.change.places import LabelledPlace, labelled_places, read_labels
from retrieval.tasks.change.untrained import normalization_of
from retrieval.tasks.classifier import UNSTATED
from retrieval.tasks.neighbourhood import Indices, indices_of
from retrieval.tasks.segment.scenes import MIN_SIDE_PX, Scene, SceneSet
from retrieval.tasks.segment.training import SegmentTrainingReport, train_segmenter
from retrieval.tasks.segment.trees import ForestReport, train_forest
from retrieval.training.trainer import ProgressCallback
from retrieval.types import Progress, silent
from tfrecords.errors import BandsError

RECIPE = SegmenterConfig(
    width=12,
    stages=3,
    stride=1,
    crop=96,
    steps=300,
    batch=8,
    zoom=0.2,
    colour=0.5,
    validate_every=10**6,
    orientations=4,
)
"""The default recipe: full resolution, because changed areas are a few pixels wide."""
HELD_OUT = 0.2
"""Share of each place's labelled pixels that fits temperature and threshold."""
PIECE_PX = 512
"""Side of the pieces of a place; pieces without labels are left out."""


@dataclass(frozen=True, eq=False)
class TrainReport:
    """Result of `train`."""

    training: SegmentTrainingReport | ForestReport
    """The training; the validation of a network is the held-out part of the places."""
    places: int
    """Places trained on."""
    change_share: float
    """Share of the labelled pixels that changed."""
    notes: tuple[str, ...]
    """Places that were skipped, and files that were warped."""


def train(
    places: str | Path,
    labels: str | Path,
    out: str | Path,
    config: SegmenterConfig | ForestConfig | None = None,
    *,
    names: Sequence[str] | None = None,
    options: Options | None = None,
    bands: Sequence[str] | None = None,
    units: str | None = None,
    licence: str = UNSTATED,
    overwrite: bool = False,
    progress: Progress = silent,
    training_progress: ProgressCallback | None = None,
) -> TrainReport:
    """Train a network or trees of change.

    The state of a network lies in `<out>.training/`; the same call resumes an interrupted run.

    Args:
        places: folder of places, `places/NAME/<date>.tif`; the first and the last date of each are compared.
        labels: folder of masks `labels/NAME.tif`: 1 change, 0 none, 255 no label.
        out: the model folder to write, for `detect` and `evaluate`.
        config: the recipe of a network or of trees; None takes `RECIPE`.
        names: only these places; None takes all.
        options: coregistration and cloud mask.
        bands: names of the bands; else the files', else by their number.
        units: units of the pixels; else inferred.
        licence: licence of the weights, for the manifest.
        overwrite: replace an existing model folder.
        progress: called after each place that is read.
        training_progress: called after every step of a network; None prints to standard error.

    Raises:
        MissingInputError, LabelsError: no place has labels, or a mask holds another value.
        BandsError, GridError, UnitsError: dates, labels or places do not fit each other.
        ExamplesError: no change is labelled, or dates share no visible ground.
        OutputExistsError: `out` exists and `overwrite` is false.
        TrainingError: the loss is not finite, or the state is of another run.
    """
    pairs, notes = labelled_places(places, labels)
    pairs = tuple(pair for pair in pairs if names is None or pair.name in names)
    reads: list[tuple[str, ReadPlace]] = []
    for done, one in enumerate(pairs, start=1):
        reads.append((one.name, read_place(one, options or Options(), bands, units)))
        notes += reads[-1][1].notes
        progress("reading places", done, len(pairs))
    training: SegmentTrainingReport | ForestReport
    how: dict[str, Any] = {"licence": licence, "overwrite": overwrite}
    if isinstance(config, ForestConfig):
        taught = whole_scenes_of(reads, str(places))
        grounds = [name for name, _ in reads]
        how |= {"indices": indices_of_dates(len(reads[0][1].bands)), "progress": progress}
        training = train_forest(taught, out, config, groups=grounds, **how)
    else:
        taught, held_out = scenes_of(reads, str(places))
        how["progress"] = training_progress
        training = train_segmenter(taught, out, config or RECIPE, validation=held_out, **how)
    counts = taught.counts()
    return TrainReport(training, len(pairs), float(counts[1] / counts.sum()), notes)


@dataclass(frozen=True, eq=False)
class ReadPlace:
    """A place as the network sees it."""

    inputs: NDArray[np.float32]
    labels: NDArray[np.uint8]
    """255 also where no ground is seen."""
    labels_of_all: NDArray[np.uint8]
    """As in the file, also where no ground is seen."""
    ground: Mask
    bands: tuple[str, ...]
    notes: tuple[str, ...]


def read_place(
    one: LabelledPlace, options: Options, bands: Sequence[str] | None, units: str | None
) -> ReadPlace:
    """Read a place on both dates, prepared as for `detect`, with its labels."""
    pair = pair_of(one.place, bands=bands, units=units)
    labels, note = read_labels(one.labels, pair.grid)
    with pair.open() as opened:
        aligned = align(opened, pair, options)
        fitted = normalization_of(aligned)
        inputs, ground = inputs_of(aligned, fitted, (0, 0, *pair.shape))
    seen = np.where(ground, labels, np.uint8(IGNORED))
    return ReadPlace(inputs, seen, labels, ground, pair.bands, (*pair.notes, *([note] if note else [])))


def scenes_of(reads: Sequence[tuple[str, ReadPlace]], name: str) -> tuple[SceneSet, SceneSet | None]:
    """Return what trains and what is held out.

    Args:
        reads: names and places, at least one.
        name: of both sets, for messages.

    Returns:
        The training set, and the held-out one; None where no place is large enough.

    Raises:
        BandsError: places have different bands.
    """
    _check_bands(reads)
    bands = reads[0][1].bands
    taught: list[Scene] = []
    held_out: list[Scene] = []
    for place, read in reads:
        border = held_out_row(read.labels)
        taught += _pieces(place, read, 0, border)
        held_out += _pieces(place, read, border, len(read.labels))
    classes, inputs = Classes.binary("change"), input_names(bands)
    rest = SceneSet(tuple(held_out), "value", inputs, classes, name) if held_out else None
    return SceneSet(tuple(taught), "value", inputs, classes, name), rest


def whole_scenes_of(reads: Sequence[tuple[str, ReadPlace]], name: str) -> SceneSet:
    """Return places as they are, each a scene; see `scenes_of`."""
    _check_bands(reads)
    scenes = tuple(Scene(place, read.inputs[None], read.labels, read.ground) for place, read in reads)
    return SceneSet(scenes, "value", input_names(reads[0][1].bands), Classes.binary("change"), name)


def indices_of_dates(bands: int) -> Indices:
    """Return what trees see of both dates of a pair if their recipe asks for indices."""
    return indices_of(bands, 2, bands * len(PARTS))


def _check_bands(reads: Sequence[tuple[str, ReadPlace]]) -> None:
    """Refuse places of different bands."""
    first, bands = reads[0][0], reads[0][1].bands
    for place, read in reads:
        if read.bands != bands:
            raise BandsError(
                f"{place}: bands {' '.join(read.bands)}; {first} has {' '.join(bands)}. Expected the same "
                "bands in all places. Name them with --bands."
            )


def held_out_row(labels: NDArray[np.uint8]) -> int:
    """Return the row from which on the labelled pixels are held out: a fifth of them.

    Args:
        labels: (h, w), 255 = no label.

    Returns:
        A row; the height where a part would be lower than a scene may be.
    """
    counted = np.cumsum((labels != IGNORED).sum(1))
    row = int(np.searchsorted(counted, (1 - HELD_OUT) * counted[-1]))
    height = len(labels)
    return row if MIN_SIDE_PX <= row <= height - MIN_SIDE_PX else height


def _pieces(name: str, read: ReadPlace, top: int, bottom: int) -> Iterator[Scene]:
    """Yield the labelled pieces of some rows of a place."""
    for y in _cuts(top, bottom):
        for x in _cuts(0, read.labels.shape[1]):
            part = np.s_[y[0] : y[1], x[0] : x[1]]
            labels = read.labels[part]
            if (labels != IGNORED).any():
                yield Scene(f"{name} x {x[0]} y {y[0]}", read.inputs[part][None], labels, read.ground[part])


def _cuts(first: int, last: int) -> list[tuple[int, int]]:
    """Return pieces of a range of nearly equal length, up to `PIECE_PX`."""
    if last <= first:
        return []
    edges = np.linspace(first, last, -(-(last - first) // PIECE_PX) + 1).round().astype(int).tolist()
    return list(pairwise(edges))


def recipe_of(values: Mapping[str, Any]) -> SegmenterConfig:
    """Return the default recipe of a network with some values replaced.

    Raises:
        ConfigError: an unknown setting, or one out of range.
    """
    return SegmenterConfig.from_mapping(RECIPE.to_dict() | dict(values))
