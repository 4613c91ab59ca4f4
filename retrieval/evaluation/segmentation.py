"""Figures of class maps against masks, with intervals; pixels of one scene count as one draw.

The 95 % intervals are a bootstrap over scenes or tiles: neighbouring pixels are not independent. They are the
expanded percentile intervals of `retrieval.evaluation.intervals`, because there are few scenes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ExamplesError
from retrieval.evaluation.classification import ClassFigures, Measured
from retrieval.evaluation.intervals import tail_share

RESAMPLES = 1000
"""Resamples of the bootstrap."""


def confusion_of(labels: NDArray[Any], answers: NDArray[Any], k: int) -> NDArray[np.int64]:
    """Return the confusion matrix (k, k): rows are labels, columns answers; other values do not count."""
    known = (labels < k) & (answers < k)
    cell = labels[known].astype(np.int64) * k + answers[known]
    return np.bincount(cell.ravel(), minlength=k * k).reshape(k, k)


def class_figures(confusion: NDArray[Any]) -> NDArray[np.float64]:
    """Return IoU, F1, precision, recall and MCC (5, k) of a confusion matrix; NaN where undefined."""
    table = confusion.astype(np.float64)
    right = np.diag(table)
    label, answer, total = table.sum(1), table.sum(0), table.sum()
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


def class_mcc(confusion: NDArray[Any]) -> NDArray[np.float64]:
    """Return the Matthews correlation coefficient (k,) of each class; 0 where it is not defined."""
    return np.nan_to_num(class_figures(confusion)[4])


def mean_iou(confusion: NDArray[Any], of: Sequence[int] | None = None) -> float:
    """Return the mean IoU of classes that labels or answers hold; NaN where none does.

    Args:
        confusion: (k, k).
        of: indices of the classes; None for all.
    """
    iou = class_figures(confusion)[0][list(range(len(confusion)) if of is None else of)]
    present = iou[np.isfinite(iou)]
    return float(present.mean()) if present.size else float("nan")


def _ratio(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), np.nan)


@dataclass(frozen=True, eq=False)
class SegmentationFigures:
    """Figures of class maps against masks."""

    classes: tuple[str, ...]
    """Names of the classes, k."""
    accuracy: Measured
    """Share of the labelled pixels whose class is right."""
    macro_f1: Measured
    """Mean F1 of the classes that labels or answers hold."""
    miou: Measured
    """Mean IoU of these classes."""
    by_class: dict[str, ClassFigures]
    """Figures of each class; `support` counts its labelled pixels."""
    confusion: NDArray[np.int64]
    """(k, k) pixels: rows are labels, columns answers."""
    units: int
    """Scenes or tiles that the intervals rest on."""

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for JSON, in the form of every task's `evaluate --json`."""
        page: dict[str, Any] = {
            name: getattr(self, name).to_dict() for name in ("accuracy", "macro_f1", "miou")
        }
        page["ece"] = None
        names = ("iou", "f1", "precision", "recall", "mcc")
        page["classes"] = {
            name: {figure: getattr(figures, figure).to_dict() for figure in names}
            | {"support": figures.support}
            for name, figures in self.by_class.items()
        }
        return page | {"confusion": self.confusion.tolist()}


def measure_maps(
    confusions: NDArray[Any], classes: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0
) -> SegmentationFigures:
    """Return the figures of all scenes together, with intervals by scene.

    Args:
        confusions: (n, k, k) confusion matrix of each scene or group of tiles.
        classes: names of the k classes.
        resamples: of the bootstrap; with one scene the interval is all that is possible.
        seed: the same seed gives the same intervals.

    Raises:
        ExamplesError: no pixel has both a label and an answer.
    """
    table = np.asarray(confusions, np.int64)
    n, k = len(table), len(classes)
    if not table.sum():
        raise ExamplesError("evaluation: no pixel has a label and a prediction. Expected masks with labels.")
    value = _figures(table.sum(0))
    low, high = _intervals(table, resamples, seed)

    def measured(row: int) -> Measured:
        return Measured(float(value[row]), float(low[row]), float(high[row]), n)

    total = table.sum(0)
    by_class = {}
    for row, name in enumerate(classes):
        iou, f1, precision, recall, mcc = (measured(3 + figure * k + row) for figure in range(5))
        by_class[name] = ClassFigures(iou, f1, precision, recall, mcc, int(total[row].sum()))
    return SegmentationFigures(
        tuple(classes), measured(0), measured(1), measured(2), by_class, total, units=n
    )


def _figures(confusion: NDArray[Any]) -> NDArray[np.float64]:
    """Return accuracy, macro F1, mean IoU and the five figures of each class, (3 + 5 k,)."""
    per_class = class_figures(confusion)
    overall = [np.trace(confusion) / max(confusion.sum(), 1)]
    for row in (1, 0):
        present = per_class[row][np.isfinite(per_class[row])]
        overall.append(present.mean() if present.size else np.nan)
    return np.r_[overall, per_class.ravel()]


def _intervals(
    table: NDArray[np.int64], resamples: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return both ends of the intervals of all figures; 0 and 1 (MCC: -1) with fewer than two scenes."""
    n, k = len(table), table.shape[1]
    if n < 2:
        floor = np.r_[np.zeros(3 + 4 * k), np.full(k, -1.0)]
        return floor, np.ones(3 + 5 * k)
    rng = np.random.default_rng(seed)
    draws = np.array(
        [
            _figures(np.tensordot(np.bincount(rng.integers(n, size=n), minlength=n), table, 1))
            for _ in range(resamples)
        ]
    )
    defined = np.isfinite(draws).any(0)
    ends = np.full((2, draws.shape[1]), np.nan)
    tail = tail_share(n)
    ends[:, defined] = np.nanquantile(draws[:, defined], [tail, 1 - tail], axis=0)
    return ends[0], ends[1]
