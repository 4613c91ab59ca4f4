"""The HTML page of a classifier's evaluation: figures, confusion, confidence, and mistakes as pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.evaluation.classification import (
    ClassificationFigures,
    Curves,
    Measured,
    likely_label_errors,
    worst_mistakes,
)
from retrieval.report.charts import (
    MAX_POINTS,
    TENTHS,
    Chart,
    Figure,
    Mark,
    ScoreFigure,
    ScoreSummary,
    Table,
    number,
    reliability,
)
from retrieval.report.html import check_page, render_template, write_html
from retrieval.report.pictures import NATURAL, natural, patch_uri

EXAMPLES = 24
"""Mistakes, and labels to check, that the page shows."""
BELIEFS = 3
"""Probabilities that stand under a picture."""
_CELL, _LETTER = 46, 6.5
"""Side of a cell of the confusion matrix, and width of a letter of its labels, in pixels."""
_LONGEST = 24
"""Letters of a class name that the matrix shows."""
_SUSPECTS = (
    "Images whose label the model doubts while it trusts another class (confident learning). Look at each "
    "before you change a label."
)
MEANING = {
    "accuracy": "share of images whose answer is right",
    "macro F1": "mean F1 of the classes: a rare class counts as much as a frequent one",
    "calibration error": "mean gap between confidence and share right",
}


@dataclass(frozen=True, eq=False)
class Answers:
    """The answers of a classifier on labelled images, with the pixels to show."""

    probabilities: NDArray[np.float64]
    """(n, k) of each class."""
    labels: NDArray[np.int64]
    """(n,) right classes."""
    answers: NDArray[np.int64]
    """(n,) chosen classes."""
    pixels: NDArray[Any]
    """(n, h, w, b) as stored; uint8 is shown as it is."""
    bands: tuple[str, ...]
    """Names of the bands."""
    ids: tuple[str, ...]
    """Name of each image."""


@dataclass(frozen=True)
class Card:
    """A picture with its text."""

    uri: str
    title: str
    lines: Sequence[str]


@dataclass(frozen=True)
class Matrix:
    """The confusion matrix as a drawing and as a table."""

    width: int
    height: int
    marks: Sequence[Mark]
    table: Table


def write_evaluation_page(
    out: str | Path,
    figures: ClassificationFigures,
    answers: Answers,
    *,
    title: str,
    overwrite: bool = False,
) -> None:
    """Write one self-contained HTML page of a classifier's evaluation.

    Args:
        out: the file, ending in `.html`; written as a whole.
        figures: from `retrieval.evaluation.classification.measure`.
        answers: the answers that were measured.
        title: title of the page.
        overwrite: replace an existing file.

    Raises:
        ConfigError: another ending.
        OutputExistsError: the file exists and `overwrite` is false.
    """
    check_page(out, overwrite)
    html = render_template("classification.html", title, page=_page(figures, answers))
    write_html(out, html, overwrite)


def _page(figures: ClassificationFigures, answers: Answers) -> dict[str, Any]:
    """Return all that the template shows."""
    mistakes = worst_mistakes(answers.probabilities, answers.labels, answers.answers, EXAMPLES)
    suspects = likely_label_errors(answers.probabilities, answers.labels, EXAMPLES)
    wrong = int((answers.labels != answers.answers).sum())
    confidence = answers.probabilities[np.arange(len(answers.labels)), answers.answers]
    charts = [reliability(confidence, answers.labels == answers.answers, "images", "share right")]
    if figures.curves is not None:
        charts += [roc_chart(figures.curves), precision_chart(figures.curves, figures.classes[1])]
    return {
        "summary": f"{len(answers.labels)} images of {len(figures.classes)} classes",
        "score": _score(figures),
        "classes": _class_table(figures),
        "matrix": confusion_matrix(figures),
        "figures": charts,
        "mistakes": [_card(figures, answers, row) for row in mistakes],
        "mistakes_note": f"{len(mistakes)} of {wrong} wrong answers, the most confident first.",
        "suspects": [_card(figures, answers, row) for row in suspects],
        "labels_note": _SUSPECTS if len(suspects) else "The model doubts no label.",
    }


def _score(figures: ClassificationFigures) -> ScoreSummary:
    named = {
        "accuracy": figures.accuracy,
        "macro F1": figures.macro_f1,
        "calibration error": figures.ece,
        "mean IoU": figures.miou,
    }
    if figures.curves is not None:
        named |= {
            "area under ROC": figures.curves.roc_auc,
            "average precision": figures.curves.average_precision,
        }
    rows = [
        ScoreFigure(name, m.value, m.low, m.high, MEANING.get(name, ""))
        for name, m in named.items()
        if np.isfinite([m.value, m.low, m.high]).all()
    ]
    note = f"{figures.accuracy.n} images. The intervals resample the images."
    if figures.curves is not None:
        note += f" Threshold of {figures.classes[1]}: {figures.curves.threshold:.3f}."
    return ScoreSummary([row for row in rows if row.meaning], rows, "95 % interval", note)


def _text(measured: Measured) -> str:
    if not np.isfinite(measured.value):
        return "none"
    return f"{measured.value:.3f} ({measured.low:.3f} to {measured.high:.3f})"


def _class_table(figures: ClassificationFigures) -> Table:
    rows = [
        [name, c.support, *map(_text, (c.precision, c.recall, c.f1, c.iou, c.mcc))]
        for name, c in figures.by_class.items()
    ]
    head = ["class", "images", "precision", "recall", "F1", "IoU", "MCC"]
    return Table("Figures of each class, with 95 % intervals", head, rows)


def confusion_matrix(figures: ClassificationFigures) -> Matrix:
    """Draw the confusion matrix: right answers in blue, wrong ones in orange, each with its number."""
    names, counts = figures.classes, figures.confusion
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    texts = [name[:_LONGEST] for name in names]
    space = round(12 + _LETTER * max(map(len, texts)))
    marks: list[Mark] = []

    def add(tag: str, text: str = "", title: str = "", **attributes: Any) -> None:
        values = {k.rstrip("_").replace("_", "-"): _value(v) for k, v in attributes.items()}
        marks.append(Mark(tag, values, text, title))

    for row, name in enumerate(names):
        y = space + row * _CELL
        add("text", texts[row], x=space - 6, y=y + _CELL / 2 + 4, text_anchor="end")
        x = space + row * _CELL + _CELL / 2 + 4
        add("text", texts[row], x=x, y=space - 6, transform=f"rotate(-50 {number(x)} {space - 6})")
        for column, answer in enumerate(names):
            count, share = int(counts[row, column]), float(shares[row, column])
            box = {"x": space + column * _CELL + 1, "y": y + 1, "width": _CELL - 2, "height": _CELL - 2}
            style = "cell" if row == column else "cell off"
            title = f"{name}, answered {answer}: {count} ({share:.1%} of the row)"
            add("rect", "", title, **box, class_=style, fill_opacity=0.06 + 0.64 * share)
            if count:
                add("text", str(count), x=box["x"] + _CELL / 2, y=y + _CELL / 2 + 4, text_anchor="middle")
    rows = [[name, *map(int, counts[row])] for row, name in enumerate(names)]
    side = len(names) * _CELL
    table = Table("Images by label (row) and answer (column)", ["label", *names], rows)
    return Matrix(space + side + round(0.65 * space), space + side + 4, marks, table)


def _value(value: Any) -> str:
    return number(float(value)) if isinstance(value, (int, float)) else str(value)


# --- two classes ----------------------------------------------------------------------------------


def roc_chart(curves: Curves) -> Figure:
    """Plot the receiver operating characteristic of the second of two classes."""
    chart = Chart((0, 1), (0, 1), "ROC curve", ("false positive rate", "recall"), (TENTHS, TENTHS))
    chart.line([(0, 0), (1, 1)], "thin")
    chart.line([(0.0, 0.0), *_points(curves.false_positive_rate, curves.recall)], "blue")
    at = _row_at(curves)
    x, y = float(curves.false_positive_rate[at]), float(curves.recall[at])
    chart.dot(x, y, "ink", f"threshold {curves.threshold:.3f}: recall {y:.3f}, false positive rate {x:.3f}")
    area = curves.roc_auc
    return Figure("ROC curve", chart, f"Area under the curve: {_text(area)}.", _curve_table(curves))


def precision_chart(curves: Curves, name: str) -> Figure:
    """Plot precision against recall of the second of two classes."""
    chart = Chart((0, 1), (0, 1), "Precision and recall", ("recall", "precision"), (TENTHS, TENTHS))
    chart.line(_points(curves.recall, curves.precision), "blue")
    at = _row_at(curves)
    x, y = float(curves.recall[at]), float(curves.precision[at])
    chart.dot(x, y, "ink", f"threshold {curves.threshold:.3f}: recall {x:.3f}, precision {y:.3f}")
    text = f"Average precision of {name}: {_text(curves.average_precision)}."
    return Figure("Precision and recall", chart, text, _curve_table(curves))


def _row_at(curves: Curves) -> int:
    """Return the row of the last threshold that is not below the model's."""
    above = int((curves.thresholds >= curves.threshold).sum())
    return max(above - 1, 0)


def _points(x: NDArray[np.float64], y: NDArray[np.float64]) -> list[tuple[float, float]]:
    known = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    drawn = known[np.unique(np.linspace(0, len(known) - 1, min(MAX_POINTS, len(known))).round().astype(int))]
    return [(float(x[i]), float(y[i])) for i in drawn]


def _curve_table(curves: Curves) -> Table:
    rows = []
    for threshold in (0.1, 0.3, 0.5, 0.7, 0.9, curves.threshold):
        above = np.flatnonzero(curves.thresholds >= threshold)
        if len(above):
            values = (array[above[-1]] for array in (curves.recall, curves.precision))
            rows.append([f"{threshold:.3f}", *(f"{value:.3f}" for value in values)])
    return Table("Thresholds", ["threshold", "recall", "precision"], rows)


# --- pictures -------------------------------------------------------------------------------------


def _card(figures: ClassificationFigures, answers: Answers, row: int) -> Card:
    """Return an image with its label, and what the model believed."""
    names, belief = figures.classes, answers.probabilities[row]
    order = np.argsort(-belief, kind="stable")[:BELIEFS]
    lines = [f"labelled {names[answers.labels[row]]}"]
    lines += [f"{names[c]} {belief[c]:.0%}" for c in order]
    return Card(picture_uri(answers.pixels[row], answers.bands), f"Image {answers.ids[row]}", lines)


def picture_uri(pixels: NDArray[Any], bands: Sequence[str]) -> str:
    """Encode an image (h, w, b) as a picture; a rendering in true colour is shown as it is."""
    if pixels.dtype == np.uint8 and tuple(bands) == NATURAL:
        opaque = np.ones((*pixels.shape[:2], 1), np.float32)
        return patch_uri(np.concatenate([pixels.astype(np.float32) / 255, opaque], -1))
    return patch_uri(natural(pixels.astype(np.float32), tuple(bands)))
