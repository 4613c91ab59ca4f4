"""How good a model of maps is on other scenes, and what they make of its temperature and threshold."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.evaluation.segmentation import class_mcc, confusion_of, mean_iou
from retrieval.evaluation.temperature import fit_temperature
from retrieval.labels.classes import IGNORED
from retrieval.tasks.segment.model import Segmenter
from retrieval.tasks.segment.scenes import SceneSet
from retrieval.training.validate import MapAccuracy

_FIT_PIXELS = 20_000
"""Validation pixels that fit temperature and threshold."""
_THRESHOLDS = np.linspace(0.05, 0.95, 91)


def accuracy_on(model: Segmenter, validation: SceneSet) -> MapAccuracy:
    """Measure a model on scenes, in one orientation."""
    k = len(validation.classes.names)
    confusion = np.zeros((k, k), np.int64)
    for scene in validation.scenes:
        answers = model.choose(model.map_probabilities(scene.pixels, scene.known, orientations=1))
        confusion += confusion_of(scene.labels, answers, k)
    of = list(validation.classes.labels)
    mcc = float(class_mcc(confusion)[of].mean())
    return MapAccuracy(mean_iou(confusion, of), mcc, len(validation))


def calibration_on(model: Segmenter, validation: SceneSet, seed: int) -> tuple[float, float | None]:
    """Return the temperature of a model, and of two classes the threshold with the largest IoU of the second.

    Args:
        model: with a temperature of 1.
        validation: scenes that it did not learn from.
        seed: draws their pixels.
    """
    is_binary = len(validation.classes.names) == 2
    rng = np.random.default_rng(seed)
    share = _FIT_PIXELS / max(int(validation.counts().sum()), 1)
    logs, labels = [], []
    for scene in validation.scenes:
        truth = scene.labels
        drawn = (truth != IGNORED) & (rng.random(truth.shape) < share)
        answers = model.map_probabilities(scene.pixels, scene.known, orientations=1)
        logs.append(np.log(np.maximum(answers[drawn], 1e-7)))
        labels.append(truth[drawn])
    known, wanted = np.concatenate(logs), np.concatenate(labels).astype(np.int64)
    if not len(wanted):
        return 1.0, 0.5 if is_binary else None
    temperature = fit_temperature(known, wanted)
    if not is_binary:
        return temperature, None
    scaled = np.exp(known / temperature)
    return temperature, best_iou_threshold(scaled[:, 1] / scaled.sum(1), wanted)


def best_iou_threshold(
    probability: NDArray[Any], labels: NDArray[np.int64], weights: NDArray[Any] | None = None
) -> float:
    """Return the threshold with the largest IoU of the second of two classes, nearest to 0.5 where equal.

    Args:
        probability: (n,) of the second class.
        labels: (n,) 0 or 1.
        weights: (n,) pixels that each stands for; None for one.
    """
    each = np.ones(len(labels)) if weights is None else weights
    positive = probability >= _THRESHOLDS[:, None]
    both = (positive & (labels == 1)) @ each
    either = (positive | (labels == 1)) @ each
    iou = both / np.maximum(either, 1e-9)
    best = np.flatnonzero(iou >= iou.max() - 1e-9)
    return float(round(_THRESHOLDS[best[np.argmin(np.abs(_THRESHOLDS[best] - 0.5))]], 4))
