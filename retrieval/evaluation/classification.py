"""Figures of a classifier on labelled images, with intervals; and what its mistakes have in common.

The 95 % intervals are a bootstrap over images: percentiles of the figure over resamples with replacement.
Images that show the same ground are not independent, so give an image of each place once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ExamplesError

RESAMPLES = 1000
"""Resamples of the bootstrap."""
BINS = 10
"""Bins of the expected calibration error."""
TAIL = 0.025
"""Share of resamples outside of an interval, at each end."""


@dataclass(frozen=True)
class Measured:
    """A figure with its 95 % interval."""

    value: float
    """The figure; NaN where it is not defined, such as the recall of a class without images."""
    low: float
    """Lower end of the interval."""
    high: float
    """Upper end of the interval."""
    n: int
    """Images that it rests on."""

    def to_dict(self) -> dict[str, float | int | None]:
        """Return value, low, high and n for JSON; None where the figure is not defined."""
        values = {"value": self.value, "low": self.low, "high": self.high}
        return {k: round(v, 6) if np.isfinite(v) else None for k, v in values.items()} | {"n": self.n}


@dataclass(frozen=True)
class ClassFigures:
    """Figures of one class against all others."""

    iou: Measured
    """Right images among all with this label or this answer."""
    f1: Measured
    """Harmonic mean of precision and recall."""
    precision: Measured
    """Share of the answers that are right."""
    recall: Measured
    """Share of the labels that are found."""
    mcc: Measured
    """Matthews correlation coefficient, -1 to 1."""
    support: int
    """Images with this label."""


@dataclass(frozen=True, eq=False)
class Curves:
    """The trade-off of a threshold between two classes, and the areas under its curves."""

    threshold: float
    """Probability from which an image counts as the second class."""
    thresholds: NDArray[np.float64]
    """(m,) falling thresholds."""
    false_positive_rate: NDArray[np.float64]
    """(m,) share of the first class above each threshold."""
    recall: NDArray[np.float64]
    """(m,) share of the second class above each threshold."""
    precision: NDArray[np.float64]
    """(m,) share of the second class among the images above each threshold."""
    roc_auc: Measured
    """Probability that an image of the second class scores higher than one of the first."""
    average_precision: Measured
    """Mean precision over the steps of recall."""


@dataclass(frozen=True, eq=False)
class ClassificationFigures:
    """All figures of a classifier on one set of labelled images."""

    classes: tuple[str, ...]
    """Names of the classes."""
    accuracy: Measured
    """Share of images whose answer is right."""
    macro_f1: Measured
    """Mean F1 over the classes with a label or an answer."""
    ece: Measured
    """Expected calibration error, ten bins."""
    miou: Measured
    """Mean IoU over the classes with a label or an answer."""
    by_class: dict[str, ClassFigures]
    """Figures of each class."""
    confusion: NDArray[np.int64]
    """(k, k) images by label (row) and answer (column)."""
    curves: Curves | None
    """Of two classes; None for more."""

    def to_dict(self) -> dict[str, Any]:
        """Return everything as one JSON object with the names that all evaluations share."""
        classes = {}
        for name, figures in self.by_class.items():
            measured = {k: getattr(figures, k).to_dict() for k in ("iou", "f1", "precision", "recall", "mcc")}
            classes[name] = measured | {"support": figures.support}
        page: dict[str, Any] = {
            k: getattr(self, k).to_dict() for k in ("accuracy", "macro_f1", "ece", "miou")
        }
        page |= {"classes": classes, "confusion": self.confusion.tolist()}
        if self.curves is not None:
            page |= {
                "threshold": self.curves.threshold,
                "roc_auc": self.curves.roc_auc.to_dict(),
                "average_precision": self.curves.average_precision.to_dict(),
            }
        return page


def measure(
    probabilities: NDArray[np.float64],
    labels: NDArray[np.int64],
    answers: NDArray[np.int64],
    classes: Sequence[str],
    *,
    threshold: float | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> ClassificationFigures:
    """Measure a classifier.

    Args:
        probabilities: (n, k) of each class.
        labels: (n,) right classes.
        answers: (n,) chosen classes.
        classes: names of the k classes.
        threshold: of the second of two classes; None for more.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ExamplesError: there is no image.
    """
    n, k = len(labels), len(classes)
    if not n:
        raise ExamplesError("no labelled image to evaluate. Give one or more.")
    cell = labels * k + answers
    confidence = probabilities[np.arange(n), answers]
    bin_of = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    right = (labels == answers).astype(np.float64)

    def figures(times: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return all figures where image i counts `times[i]` times."""
        confusion = np.bincount(cell, times, k * k).reshape(k, k).astype(np.float64)
        gap = np.bincount(bin_of, times * (confidence - right), BINS)
        return np.r_[_overall(confusion), np.abs(gap).sum() / n, _of_classes(confusion).ravel()]

    value = figures(np.ones(n))
    low, high = _intervals(figures, n, resamples, seed)

    def measured(row: int, count: int) -> Measured:
        return Measured(float(value[row]), float(low[row]), float(high[row]), count)

    confusion = np.bincount(cell, minlength=k * k).reshape(k, k)
    by_class = {}
    for row, name in enumerate(classes):
        support = int(confusion[row].sum())
        iou, f1, precision, recall, mcc = (measured(4 + figure * k + row, n) for figure in range(5))
        by_class[name] = ClassFigures(iou, f1, precision, recall, mcc, support)
    curves = None if threshold is None else _curves(probabilities[:, 1], labels, threshold, resamples, seed)
    return ClassificationFigures(
        tuple(classes),
        accuracy=measured(0, n),
        macro_f1=measured(1, n),
        miou=measured(2, n),
        ece=measured(3, n),
        by_class=by_class,
        confusion=confusion,
        curves=curves,
    )


def _intervals(
    figures: Any, n: int, resamples: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return both ends of the intervals of all figures."""
    rng = np.random.default_rng(seed)
    draws = [
        figures(np.bincount(rng.integers(n, size=n), minlength=n).astype(float)) for _ in range(resamples)
    ]
    values = np.array(draws)
    defined = np.isfinite(values).any(0)
    ends = np.full((2, values.shape[1]), np.nan)
    ends[:, defined] = np.nanquantile(values[:, defined], [TAIL, 1 - TAIL], axis=0)
    return ends[0], ends[1]


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return part / whole; NaN where the whole is 0."""
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), np.nan)


def _of_classes(confusion: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return IoU, F1, precision, recall and MCC (5, k) of a confusion matrix."""
    right = np.diag(confusion)
    label, answer, total = confusion.sum(1), confusion.sum(0), confusion.sum()
    spread = np.sqrt(label * answer * (total - label) * (total - answer))
    return np.stack(
        [
            _ratio(right, label + answer - right),
            _ratio(2 * right, label + answer),
            _ratio(right, answer),
            _ratio(right, label),
            _ratio(right * total - label * answer, spread),
        ]
    )


def _overall(confusion: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return accuracy, macro F1 and mean IoU of a confusion matrix."""
    iou, f1 = _of_classes(confusion)[:2]
    present = np.isfinite(f1)
    accuracy = np.trace(confusion) / confusion.sum()
    return np.array([accuracy, f1[present].mean(), iou[present].mean()])


# --- two classes ----------------------------------------------------------------------------------


def _curves(
    score: NDArray[np.float64], labels: NDArray[np.int64], threshold: float, resamples: int, seed: int
) -> Curves:
    """Return the curves of the second of two classes."""
    thresholds = np.unique(score)[::-1]
    order = np.argsort(-score, kind="stable")
    last = np.searchsorted(-score[order], -thresholds, side="right") - 1
    positive = labels[order] == 1

    def shares(times: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
        found = np.cumsum(times[order] * positive)[last]
        wrong = np.cumsum(times[order] * ~positive)[last]
        return _ratio(wrong, wrong[-1:]), _ratio(found, found[-1:]), _ratio(found, found + wrong)

    def areas(times: NDArray[np.float64]) -> NDArray[np.float64]:
        false_rate, recall, precision = shares(times)
        roc = np.trapezoid(np.r_[0, recall], np.r_[0, false_rate])
        steps = np.diff(np.r_[0, recall])
        return np.array([roc, np.where(steps > 0, steps * np.nan_to_num(precision), 0 * steps).sum()])

    n = len(labels)
    value = areas(np.ones(n))
    low, high = _intervals(areas, n, resamples, seed)
    roc_auc, average = (
        Measured(float(v), float(a), float(b), n) for v, a, b in zip(value, low, high, strict=True)
    )
    false_rate, recall, precision = shares(np.ones(n))
    return Curves(threshold, thresholds, false_rate, recall, precision, roc_auc, average)


# --- mistakes -------------------------------------------------------------------------------------


def worst_mistakes(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64], answers: NDArray[np.int64], most: int
) -> NDArray[np.int64]:
    """Return the rows of wrong answers, the most confident first, at most `most`."""
    wrong = np.flatnonzero(labels != answers)
    order = np.argsort(-probabilities[wrong, answers[wrong]], kind="stable")
    return wrong[order][:most].astype(np.int64)


def likely_label_errors(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64], most: int
) -> NDArray[np.int64]:
    """Return rows whose label is probably wrong, the likeliest first.

    A class's threshold is the mean probability that its own images get for it. An image is listed where
    another class reaches its threshold, and its own class does not.

    Source: C. Northcutt et al., Confident learning, JAIR 2021.

    Args:
        probabilities: (n, k), of images that were not trained on.
        labels: (n,).
        most: largest number of rows.
    """
    rows, k = np.arange(len(labels)), probabilities.shape[1]
    own = probabilities[rows, labels]
    count = np.bincount(labels, minlength=k)
    threshold = np.where(count, np.bincount(labels, own, k) / np.maximum(count, 1), np.inf)
    reached = np.where(probabilities >= threshold, probabilities, -1.0)
    other = reached.copy()
    other[rows, labels] = -1.0
    suspect = np.flatnonzero((reached[rows, labels] < 0) & (other.max(1) > own))
    order = np.argsort(own[suspect] - other[suspect].max(1), kind="stable")
    return suspect[order][:most].astype(np.int64)
