"""Training of trees on scenes and their masks: a sample of pixels, a forest, its threshold.

Half of the sample follows the frequency of the classes and half is spread evenly over them, so that rare ones
are seen. Weights undo this as far as the recipe's `balance` says. Without validation, parts of the ground
take turns to be left out: there the threshold of two classes is fitted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.config import ForestConfig
from retrieval.labels.classes import IGNORED
from retrieval.tasks.classifier import UNSTATED
from retrieval.tasks.forest import Forest, grow_forest
from retrieval.tasks.neighbourhood import NONE, Indices, features, indices_of
from retrieval.tasks.segment.calibrating import accuracy_on, best_iou_threshold, calibration_on
from retrieval.tasks.segment.model import Description, Segmenter, save_segmenter
from retrieval.tasks.segment.scenes import FULL_SCALE, Scene, SceneSet, stacked
from retrieval.tasks.segment.training import MapTrainingReport, check_sets, identity_of, reported
from retrieval.types import Progress, silent
from tfrecords.artifacts import check_free

ShownOf = Callable[[Scene], NDArray[np.float32]]
"""Gives the features (y, x, f) of the blocks of a scene."""
TILE = 512
"""Side in blocks of the tiles of a scene whose features are computed at a time."""
_EDGE = 5
"""Blocks around a tile beyond the widest square, for gradients and band-pass."""
TURNS = 5
"""Most parts of the ground that take turns to be left out for the threshold."""


@dataclass(frozen=True)
class ForestReport(MapTrainingReport):
    """Result of `train_forest`."""

    trees: int
    """Trees grown."""
    nodes: int
    """Their nodes."""
    sample: int
    """Labelled pixels that the trees learned from."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Labelled pixels with what trees see of them."""

    shown: NDArray[np.float32]
    """(n, f) features."""
    labels: NDArray[np.int64]
    """(n,) class."""
    stands_for: NDArray[np.float64]
    """(n,) pixels that each stands for."""
    group: NDArray[np.int64]
    """(n,) number of the ground that it comes from."""


def train_forest(
    training: SceneSet,
    out: str | Path,
    config: ForestConfig | None = None,
    *,
    validation: SceneSet | None = None,
    groups: Sequence[str] | None = None,
    indices: Indices | None = None,
    licence: str = UNSTATED,
    overwrite: bool = False,
    progress: Progress = silent,
    shown_of: ShownOf | None = None,
) -> ForestReport:
    """Train trees on scenes in memory, of one or several dates.

    Args:
        training: scenes with masks.
        out: the model folder to write, for all that takes a segmentation model.
        config: the recipe.
        validation: other scenes of the same kind; they fit temperature and threshold.
        groups: ground of each scene, for the threshold without validation; None takes each scene alone.
        indices: pairs that give further features if the recipe asks for them; None takes what
            `neighbourhood.indices_of` returns for the scenes.
        licence: licence of the model, for the manifest.
        overwrite: replace an existing model folder.
        progress: called after each scene and each tree.
        shown_of: gives the features of a scene, where they are known; None computes them.

    Raises:
        OutputExistsError: `out` exists and `overwrite` is false.
        ExamplesError: nothing is labelled, classes differ, or a validation scene is a training scene.
        BandsError, ArrayError, UnitsError: the sets are of different kinds.
    """
    out, config, start = Path(out), config or ForestConfig(), time.monotonic()
    check_free(out, overwrite=overwrite, folder=True)
    counts = check_sets(training, validation)
    if not config.indices:
        indices = NONE
    elif indices is None:
        indices = indices_of(len(training.bands), training.dates)
    sample = draw_sample(training, config, groups, progress, shown_of, indices)
    k, channels = len(training.classes.names), training.dates * len(training.bands)
    forest = _grown(sample, k, channels, config, progress)
    forest = replace(forest, pairs=indices.pairs, gaps=indices.gaps)
    model = _described(forest, training, config, licence)
    accuracy = None
    if validation is not None:
        model = model.calibrated(*calibration_on(model, validation, config.seed))
        accuracy = accuracy_on(model, validation)
    elif k == 2:
        model = model.calibrated(1.0, _threshold(sample, channels, config, progress))
    identity = identity_of(config.to_dict(), training, ())
    sizes = {"scenes": len(training), "pixels": int(counts.sum()), "trees": config.trees}
    save_segmenter(model, out, identity, sizes, overwrite=overwrite)
    seconds = round(time.monotonic() - start, 1)
    same = reported(model, out, seconds, training, int(counts.sum()), validation, accuracy)
    return ForestReport(**same, trees=config.trees, nodes=len(forest.feature), sample=len(sample.labels))


# --- sample -----------------------------------------------------------------------------------------------


def draw_sample(
    scenes: SceneSet,
    config: ForestConfig,
    groups: Sequence[str] | None = None,
    progress: Progress = silent,
    shown_of: ShownOf | None = None,
    indices: Indices = NONE,
) -> Sample:
    """Draw labelled blocks of scenes, with their features.

    Args:
        scenes: the training scenes.
        config: the recipe.
        groups: ground of each scene; None takes each scene alone.
        progress: called after each scene.
        shown_of: gives the features of all blocks of a scene, where they are known; None computes them.
        indices: pairs that give further features.
    """
    k, r = len(scenes.classes.names), config.reduction
    fill = scenes.statistics()[0] * FULL_SCALE[scenes.form]
    names = list(groups) if groups is not None else [str(n) for n in range(len(scenes))]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    truths = [_block_labels(scene, r) for scene in scenes.scenes]
    counts = sum(np.bincount(truth.ravel(), minlength=256)[:k] for truth in truths)
    assert isinstance(counts, np.ndarray)
    present = max(int((counts > 0).sum()), 1)
    wanted = config.sample * 0.5 * (counts / max(counts.sum(), 1) + (counts > 0) / present)
    chances = _chances(wanted / np.maximum(counts, 1), truths, config.even)
    rng = np.random.default_rng(config.seed)
    shown, labels, group, stands_for = [], [], [], []
    for done, (scene, truth, name) in enumerate(zip(scenes.scenes, truths, names, strict=True), start=1):
        chance = chances[done - 1]
        drawn = rng.random(truth.shape) < chance[truth]
        if drawn.any():
            how = fill, np.float32(FULL_SCALE[scenes.form]), config, indices
            shown.append(shown_of(scene)[drawn] if shown_of else _features_at(drawn, scene, *how))
            labels.append(truth[drawn].astype(np.int64))
            group.append(np.full(len(labels[-1]), numbers[name]))
            stands_for.append(1 / chance[labels[-1]])
        progress("reading scenes", done, len(scenes))
    classes, weight = np.concatenate(labels), np.concatenate(stands_for)
    found = np.bincount(classes, weight, minlength=k)
    weight *= (counts / np.maximum(found, 1e-9))[classes]
    return Sample(np.concatenate(shown), classes, weight, np.concatenate(group))


def _chances(
    plain: NDArray[np.float64], truths: Sequence[NDArray[np.uint8]], even: float
) -> NDArray[np.float64]:
    """Return the chance of a pixel of each scene and label to be drawn, (n, 256).

    Args:
        plain: (k,) chance of each class where scenes are alike.
        truths: (y, x) labels of each scene.
        even: see `ForestConfig.even`.
    """
    labelled = np.array([np.count_nonzero(truth != IGNORED) for truth in truths], np.float64)
    factor = (labelled.sum() / np.maximum(labelled, 1) / np.maximum(np.count_nonzero(labelled), 1)) ** even
    out = np.zeros((len(truths), 256))
    out[:, : len(plain)] = np.minimum(plain * factor[:, None], 1)
    return out


def _block_labels(scene: Scene, side: int) -> NDArray[np.uint8]:
    """Return the label in the middle of each whole block."""
    rows, columns = (length // side for length in scene.mask.shape)
    return scene.labels[side // 2 :: side, side // 2 :: side][:rows, :columns]


def _features_at(
    drawn: NDArray[np.bool_],
    scene: Scene,
    fill: NDArray[np.float32],
    scale: np.float32,
    config: ForestConfig,
    indices: Indices,
) -> NDArray[np.float32]:
    """Return the features of drawn blocks (n, f), row by row; tile by tile, so that memory is bounded."""
    r, margin = config.reduction, config.squares[-1] // 2 + _EDGE
    out = np.zeros((*drawn.shape, 0), np.float32)
    places = np.flatnonzero(drawn)
    for top in range(0, drawn.shape[0], TILE):
        for left in range(0, drawn.shape[1], TILE):
            inner = np.zeros_like(drawn)
            inner[top : top + TILE, left : left + TILE] = drawn[top : top + TILE, left : left + TILE]
            if not inner.any():
                continue
            first = max(top - margin, 0), max(left - margin, 0)
            last = (min(n + TILE + margin, of) for n, of in zip((top, left), drawn.shape, strict=True))
            part = tuple(slice(a * r, b * r) for a, b in zip(first, last, strict=True))
            pixels = scene.pixels[:, *part]
            shown = stacked(pixels)
            if scene.known is not None:
                shown = np.where(scene.known[part][..., None], shown, fill.astype(shown.dtype))
            found = features(shown / scale, r, config.squares, indices)
            if not out.size:
                out = np.zeros((len(places), found.shape[-1]), np.float32)
            rows, columns = np.nonzero(inner)
            at = np.searchsorted(places, rows * drawn.shape[1] + columns)
            out[at] = found[rows - first[0], columns - first[1]]
    return out


# --- model ------------------------------------------------------------------------------------------------


def _grown(sample: Sample, k: int, channels: int, config: ForestConfig, progress: Progress) -> Forest:
    """Grow the forest of a sample."""

    def shown(done: int) -> None:
        progress("growing trees", done, config.trees)

    return grow_forest(sample.shown, sample.labels, k, channels, config, sample.stands_for, shown)


def _threshold(sample: Sample, channels: int, config: ForestConfig, progress: Progress) -> float:
    """Return the threshold with the largest IoU on ground that the trees have not seen."""
    turn = sample.group % TURNS
    likely = np.full(len(turn), np.nan)
    turns = np.unique(turn)
    for part in turns if len(turns) > 1 else ():
        rest = turn != part
        if len(np.unique(sample.labels[rest])) < 2:
            continue
        taught = Sample(*(getattr(sample, name)[rest] for name in Sample.__dataclass_fields__))
        forest = _grown(taught, 2, channels, config, progress)
        likely[~rest] = forest.shares(sample.shown[~rest])[:, 1]
    seen = ~np.isnan(likely)
    if not (sample.labels[seen] == 1).any():
        return 0.5
    return best_iou_threshold(likely[seen], sample.labels[seen], sample.stands_for[seen])


def _described(forest: Forest, training: SceneSet, config: ForestConfig, licence: str) -> Segmenter:
    """Return the forest as a model."""
    fill = training.statistics()[0].astype(np.float64) * FULL_SCALE[training.form]
    description = Description(
        classes=training.classes.names,
        colours=training.classes.colours,
        bands=training.bands,
        dates=training.dates,
        form=training.form,
        unit_px=config.reduction,
        fill=tuple(float(value) for value in fill),
        threshold=0.5 if len(training.classes.names) == 2 else None,
        licence=licence,
    )
    return Segmenter(forest, description, training.name)
