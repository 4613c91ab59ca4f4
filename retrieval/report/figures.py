"""The figures of the page: score, distribution of probability, and how far that can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from retrieval.evaluation.figures import CONFIDENCE, Score
from retrieval.models.calibration import RIGHT_PX, expected_calibration_error
from retrieval.report.charts import Chart, figure, strip, ticks
from retrieval.report.found import Results
from retrieval.report.markup import Markup, join, table, tag

BINS = 10
TENTHS = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
SURE = (0.5, 0.9, 0.99)
"""Probabilities at which the curve of precision says how much is left."""
MEANING = {
    "SC": "half SC_img, half SC_loc: the challenge's score",
    "SC_img": "share of patches whose image is right",
    "SC_loc": "mean credit for the position, 0 where the image is wrong",
}
POINTS = 300
"""Points that a line is drawn through, at most."""


# --- score ----------------------------------------------------------------------------------------


def score_section(score: Score, unknown: int) -> Markup:
    """The score with its intervals: three figures large, all seven in a table.

    Args:
        score: of all patches with answers.
        unknown: how many patches have none.
    """
    figures = score.figures()
    heroes = [
        tag(
            "div",
            tag("dt", name),
            tag("dd", f"{figures[name].value:.3f}", class_="value"),
            tag("dd", f"{figures[name].low:.3f} to {figures[name].high:.3f}", class_="interval-text"),
            tag("dd", strip(figures[name].value, figures[name].low, figures[name].high)),
            tag("dd", meaning, class_="quiet"),
            class_="panel hero",
        )
        for name, meaning in MEANING.items()
    ]
    rows = [
        [_told(name), f"{f.value:.4f}", f"{f.low:.4f} to {f.high:.4f}", strip(f.value, f.low, f.high)]
        for name, f in figures.items()
    ]
    return tag(
        "section",
        tag("h2", "Score", id="score"),
        tag("dl", *heroes, class_="heroes"),
        tag(
            "div",
            table("All figures", ["figure", "value", f"{CONFIDENCE:.0%} interval", "0 to 1"], rows),
            tag("p", _rests_on(score, unknown), class_="quiet"),
            class_="panel",
        ),
        aria_labelledby="score",
    )


def _told(name: str) -> str:
    return name.replace("within_", "within ").replace("px", " px")


def _rests_on(score: Score, unknown: int) -> str:
    missing = f" {score.missing} of them have no match and count as wrong." if score.missing else ""
    more = f" {unknown} further patches have no answer and are not counted." if unknown else ""
    blocks = f"{score.blocks} block{'s' * (score.blocks != 1)} of ground"
    few = " One block says nothing about another: the intervals are all that is possible." * (
        score.blocks < 2
    )
    return f"{score.n} patches with answers, in {blocks}, which the intervals resample.{missing}{more}{few}"


# --- probability ----------------------------------------------------------------------------------


def probability_charts(found: Results) -> list[Markup]:
    """How sure the answers are and, where it is known, how far that can be trusted."""
    charts = [histogram(found)]
    known = found.known
    if found.answered and known.any():
        charts.append(reliability(found.confidence[known], found.right[known]))
        charts.append(coverage(found.confidence[known], found.right[known]))
    return charts


def histogram(found: Results) -> Markup:
    """How many answers have which probability, right ones on top of the others."""
    bins = _bins(found.confidence)
    verdict = np.asarray(found.best.verdict)
    kinds = [k for k in ("right", "shifted", "wrong", "unknown") if (verdict == k).any()]
    counts = {kind: np.bincount(bins[verdict == kind], minlength=BINS) for kind in kinds}
    total = np.bincount(bins, minlength=BINS)
    chart = Chart((0, 1), (0, max(float(total.max(initial=0)) * 1.12, 1)))
    for b in range(BINS):
        base = 0.0
        for kind in reversed(kinds):
            if n := int(counts[kind][b]):
                told = f"{_span(b)}: {n} {'answers' if kind == 'unknown' else kind}"
                chart.bar((b / BINS, (b + 1) / BINS), base, base + n, kind, told)
                base += n
        chart.text((b + 0.5) / BINS, base, str(total[b]) if total[b] else "", rise=4)
    sure = int((found.confidence >= 0.9).sum())
    about = f"{sure} of {int(total.sum())} answers have a probability of 0.9 or more."
    rows = [[_span(b), int(total[b]), *(int(counts[kind][b]) for kind in kinds)] for b in range(BINS)]
    columns = ["probability", "patches", *(_kind(kind) for kind in kinds)]
    picture = chart.svg(
        "Distribution of probability",
        about,
        ("probability that the answer is right", "patches"),
        (TENTHS, ticks(*chart.y, 4)),
    )
    legend = _legend(kinds) if found.answered else None
    return figure(
        join((picture, legend)),
        "How sure the answers are",
        about,
        table("Answers by probability", columns, rows),
    )


def reliability(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> Markup:
    """Stated probability against the share that is right: on the diagonal both are the same."""
    bins, chart, rows = _bins(confidence), Chart((0, 1), (0, 1)), []
    chart.line([(0, 0), (1, 1)], "thin")
    for b in sorted(set(bins.tolist())):
        mine = bins == b
        n, stated, share = int(mine.sum()), float(confidence[mine].mean()), float(right[mine].mean())
        low, high = wilson(share, n)
        chart.line([(stated, low), (stated, high)], "whisker")
        told = f"stated {stated:.2f}, right {share:.2f} of {n}"
        chart.dot(stated, share, "blue", told, radius=3 + 5 * sqrt(n / len(bins)))
        rows.append([_span(b), n, f"{stated:.3f}", f"{share:.3f}", f"{low:.3f} to {high:.3f}"])
    gap = expected_calibration_error(confidence, right)
    about = f"The mean gap between stated and observed is {gap:.3f}."
    picture = chart.svg(
        "Reliability diagram",
        about,
        ("stated probability", f"share right, within {RIGHT_PX:g} px"),
        (TENTHS, TENTHS),
    )
    head = ["stated", "patches", "mean stated", "share right", "95 % interval"]
    caption = f"{about} Larger dots are more patches; whiskers are 95 % intervals."
    return figure(
        picture, "Can the probability be trusted?", caption, table("Stated and observed", head, rows)
    )


def coverage(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> Markup:
    """Share that is right among the surest, against how many those are."""
    order = np.argsort(-confidence, kind="stable")
    n = np.arange(1, len(order) + 1)
    precision = np.cumsum(right[order]) / n
    shown = np.unique(np.linspace(0, len(order) - 1, min(POINTS, len(order))).round().astype(int))
    band = [wilson(float(precision[i]), int(n[i])) for i in shown]
    along = [float(n[i] / len(order)) for i in shown]
    least = min(float(precision.min()), min(low for low, _ in band[len(band) // 10 :]))
    bottom = min(floor_tenth(least), 0.9)
    chart = Chart((0, 1), (bottom, 1))
    lows = [(x, low) for x, (low, _) in zip(along, band, strict=True)]
    highs = [(x, high) for x, (_, high) in zip(along, band, strict=True)]
    chart.area(lows, highs, "blue")
    chart.line([(x, float(precision[i])) for x, i in zip(along, shown, strict=True)], "blue")
    rows, told = [], []
    for least_sure in SURE:
        kept = confidence >= least_sure
        if not kept.any():
            continue
        x, y = float(kept.mean()), float(right[kept].mean())
        chart.dot(x, y, "ink", f"probability {least_sure:g} or more: {x:.1%} answered, {y:.1%} right", 3.5)
        rows.append([f"{least_sure:g} or more", int(kept.sum()), f"{x:.1%}", f"{y:.2%}"])
        told.append(f"{least_sure:g}: {x:.1%} answered, {y:.1%} right")
    rows.append(["any", len(order), "100.0%", f"{float(right.mean()):.2%}"])
    about = "Keeping answers from a probability of " + "; ".join(told) + "." if told else "No answer is sure."
    picture = chart.svg(
        "Precision and coverage",
        about,
        ("share of patches answered, the surest first", "share of them right"),
        (TENTHS, ticks(bottom, 1.0, 4)),
        (True, True),
    )
    head = ["probability", "answers", "coverage", "precision"]
    return figure(picture, "What to keep", about, table("Precision and coverage", head, rows))


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share of n. Source: E. B. Wilson, JASA 22 (1927)."""
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def floor_tenth(value: float) -> float:
    """The tenth at or below a value."""
    return float(np.floor(value * 10) / 10)


def _bins(confidence: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.minimum((confidence * BINS).astype(np.int64), BINS - 1)


def _span(b: int) -> str:
    return f"{b / BINS:.1f} to {(b + 1) / BINS:.1f}"


def _kind(kind: str) -> str:
    return {"wrong": "wrong image", "unknown": "not known"}.get(kind, kind)


def _legend(kinds: Sequence[str]) -> Markup:
    told = [
        tag("li", tag("span", class_=f"swatch {kind}", aria_hidden="true"), _kind(kind)) for kind in kinds
    ]
    return tag("ul", *told, class_="legend")
