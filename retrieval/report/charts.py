"""The charts and figures of the page: score, distribution of confidence, and how reliable it is.

A chart is inline SVG in the colours of `page.css`, which follow light and dark mode; colour is never the
only sign. Each chart has a name and a description for screen readers, and its numbers as a table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil, floor, log10, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.evaluation.calibration_fit import expected_calibration_error
from retrieval.evaluation.figures import CONFIDENCE, Score
from retrieval.models.calibration import RIGHT_PX
from retrieval.report.patch_results import PatchResults

WIDTH, HEIGHT = 360.0, 244.0
LEFT, RIGHT, TOP, FOOT = 44.0, 14.0, 24.0, 40.0
"""Size of a chart and of the space around its axes, in SVG units."""
BINS = 10
TENTHS = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
THRESHOLDS = (0.5, 0.9, 0.99)
"""Confidences whose coverage and precision are marked."""
MEANING = {
    "SC": "half SC_img, half SC_loc: the challenge's score",
    "SC_img": "share of patches whose image is right",
    "SC_loc": "mean credit for the position, 0 where the image is wrong",
}
MAX_POINTS = 300
"""Largest number of points of a line."""
Point = tuple[float, float]


def number(value: float) -> str:
    """Return a coordinate with at most two decimals."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


@dataclass(frozen=True)
class Mark:
    """One SVG element of a chart."""

    tag: str
    """Name of the element."""
    attributes: dict[str, str]
    """Its attributes."""
    text: str = ""
    """Its text."""
    title: str = ""
    """Its tooltip."""


@dataclass(frozen=True)
class Table:
    """The numbers of a figure; the first column names the rows."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass
class Chart:
    """Two axes, and marks in the order in which they are drawn."""

    x: Point
    """Ends of the horizontal axis."""
    y: Point
    """Ends of the vertical axis."""
    name: str = ""
    """Subject of the chart, for screen readers."""
    labels: tuple[str, str] = ("", "")
    """Labels of the horizontal and the vertical axis."""
    ticks: tuple[Sequence[float], Sequence[float]] = ((), ())
    """Ticks of both axes."""
    percent: bool = False
    """Whether the numbers at the ticks are shares."""
    marks: list[Mark] = field(default_factory=list)
    """Marks of the data."""

    def at(self, x: float, y: float) -> Point:
        """Return the position of a point of the data in the picture; the axes limit it."""
        share_x = (min(max(x, self.x[0]), self.x[1]) - self.x[0]) / (self.x[1] - self.x[0])
        share_y = (min(max(y, self.y[0]), self.y[1]) - self.y[0]) / (self.y[1] - self.y[0])
        return LEFT + share_x * (WIDTH - LEFT - RIGHT), HEIGHT - FOOT - share_y * (HEIGHT - TOP - FOOT)

    def add(self, tag: str, text: str = "", title: str = "", **attributes: str | float) -> None:
        """Add a mark; `_` in the names of attributes stands for `-`, and a last one is dropped."""
        self.marks.append(_mark(tag, text, title, **attributes))

    def line(self, points: Iterable[Point], style: str) -> None:
        """Add a line through points."""
        self.add("path", d="M" + _path(self.at(*p) for p in points), class_=f"line {style}")

    def area(self, low: Sequence[Point], high: Sequence[Point], style: str) -> None:
        """Add the area between two lines over the same positions."""
        outline = [self.at(*p) for p in (*low, *reversed(high))]
        self.add("path", d="M" + _path(outline) + "Z", class_=f"area {style}")

    def bar(self, ends: Point, low: float, high: float, style: str, title: str) -> None:
        """Add an upright bar; one that is not empty is at least 1.5 units high."""
        (left, foot), (right, top) = self.at(ends[0], low), self.at(ends[1], high)
        height = max(foot - top, 1.5 if high > low else 0)
        width = max(right - left - 2, 1.0)
        box = {"x": left + 1, "y": foot - height, "width": width, "height": height}
        self.marks.append(_mark("rect", "", title, **box, class_=f"bar {style}"))

    def dot(self, x: float, y: float, style: str, title: str, radius: float = 4.0) -> None:
        """Add a point with a tooltip."""
        cx, cy = self.at(x, y)
        self.add("circle", title=title, cx=cx, cy=cy, r=radius, class_=f"dot {style}")

    def note(self, x: float, y: float, text: str, rise: float) -> None:
        """Add centred text above a position."""
        at_x, at_y = self.at(x, y)
        self.add("text", text, x=at_x, y=at_y - rise, text_anchor="middle", class_="note")

    def axes(self) -> list[Mark]:
        """Return the marks of the axes."""
        marks = []
        for tick in self.ticks[0]:
            x, foot = self.at(tick, self.y[0])
            marks.append(_mark("line", x1=x, x2=x, y1=foot, y2=foot + 4, class_="rule"))
            text = _tick_text(tick, self.percent)
            marks.append(_mark("text", text, x=x, y=foot + 15, text_anchor="middle", class_="tick"))
        for tick in self.ticks[1]:
            left, y = self.at(self.x[0], tick)
            marks.append(_mark("line", x1=left, x2=WIDTH - RIGHT, y1=y, y2=y, class_="rule"))
            text = _tick_text(tick, self.percent)
            marks.append(_mark("text", text, x=left - 6, y=y + 4, text_anchor="end", class_="tick"))
        middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
        marks.append(
            _mark("text", self.labels[0], x=middle, y=HEIGHT - 6, text_anchor="middle", class_="axis")
        )
        marks.append(_mark("text", self.labels[1], x=0.0, y=10.0, text_anchor="start", class_="axis"))
        return marks


@dataclass(frozen=True)
class Figure:
    """A chart with its heading, caption and numbers."""

    heading: str
    chart: Chart
    caption: str
    table: Table
    legend: Sequence[str] = ()
    """Verdicts whose colours the chart uses."""


def _mark(tag: str, text: str = "", title: str = "", **attributes: str | float) -> Mark:
    values = {k: number(v) if isinstance(v, (int, float)) else v for k, v in attributes.items()}
    return Mark(tag, {k.rstrip("_").replace("_", "-"): v for k, v in values.items()}, text, title)


def _path(points: Iterable[Point]) -> str:
    return "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _tick_text(value: float, percent: bool) -> str:
    if percent:
        return f"{100 * value:.3g}%"
    return f"{value / 1000:g}k" if abs(value) >= 10_000 else f"{round(value, 6):g}"


def round_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round numbers from low to high, about `count` of them, which is at least 3."""
    if high <= low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** floor(log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough * 0.999)
    return [n * step for n in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]


# --- score ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScoreFigure:
    """One figure of the score with its interval, all in [0, 1]."""

    name: str
    value: float
    low: float
    high: float
    meaning: str = ""


@dataclass(frozen=True)
class ScoreSummary:
    """The score section of the page."""

    heroes: Sequence[ScoreFigure]
    """Figures that are shown large."""
    figures: Sequence[ScoreFigure]
    """All figures."""
    interval: str
    """Name of the interval."""
    note: str
    """What the score is computed from."""


def score_summary(score: Score, no_answer: int) -> ScoreSummary:
    """Return the score with its intervals.

    Args:
        score: of all patches with answers.
        no_answer: number of patches without an answer.
    """
    figures = score.figures()
    heroes = [
        ScoreFigure(name, figures[name].value, figures[name].low, figures[name].high, meaning)
        for name, meaning in MEANING.items()
    ]
    rows = [
        ScoreFigure(name.replace("within_", "within ").replace("px", " px"), f.value, f.low, f.high)
        for name, f in figures.items()
    ]
    return ScoreSummary(heroes, rows, f"{CONFIDENCE:.0%} interval", _score_note(score, no_answer))


def _score_note(score: Score, no_answer: int) -> str:
    blocks = f"{score.blocks} block{'s' * (score.blocks != 1)} of ground"
    note = f"{score.n} patches with answers, in {blocks}. The intervals resample the blocks."
    if score.missing:
        note += f" {score.missing} patches have no match and count as wrong."
    if no_answer:
        note += f" {no_answer} more patches have no answer and are not counted."
    if score.blocks < 2:
        note += " With one block the interval is the whole possible range."
    return note


# --- confidence -----------------------------------------------------------------------------------


def confidence_figures(results: PatchResults) -> list[Figure]:
    """Return the distribution of confidence and, with answers, its reliability and coverage.

    There is no figure where matches have no confidence.
    """
    if not np.isfinite(results.confidence).all():
        return []
    figures = [histogram(results)]
    known = results.has_answer
    if results.score is not None and known.any():
        figures.append(reliability(results.confidence[known], results.is_right[known]))
        figures.append(coverage(results.confidence[known], results.is_right[known]))
    return figures


def histogram(results: PatchResults) -> Figure:
    """Count the matches in each tenth of confidence; right ones are drawn on top."""
    bins = _bins(results.confidence)
    verdict = np.asarray(results.best.verdict)
    kinds = [k for k in ("right", "shifted", "wrong", "unknown") if (verdict == k).any()]
    counts = {kind: np.bincount(bins[verdict == kind], minlength=BINS) for kind in kinds}
    total = np.bincount(bins, minlength=BINS)
    top = max(float(total.max(initial=0)) * 1.12, 1)
    chart = Chart((0, 1), (0, top), "Distribution of confidence")
    chart.labels = ("confidence: probability that the match is right", "patches")
    chart.ticks = (TENTHS, round_ticks(0, top, 4))
    for b in range(BINS):
        base = 0.0
        for kind in reversed(kinds):
            if n := int(counts[kind][b]):
                title = f"{_span(b)}: {n} {'patches' if kind == 'unknown' else kind}"
                chart.bar((b / BINS, (b + 1) / BINS), base, base + n, kind, title)
                base += n
        if total[b]:
            chart.note((b + 0.5) / BINS, base, str(total[b]), rise=4)
    confident = int((results.confidence >= 0.9).sum())
    rows = [[_span(b), int(total[b]), *(int(counts[kind][b]) for kind in kinds)] for b in range(BINS)]
    return Figure(
        "Distribution of confidence",
        chart,
        f"{confident} of {int(total.sum())} matches have a confidence of 0.9 or more.",
        Table("Matches by confidence", ["confidence", "patches", *(KIND_NAMES[k] for k in kinds)], rows),
        kinds if results.score is not None else (),
    )


KIND_NAMES = {"right": "right", "shifted": "shifted", "wrong": "wrong image", "unknown": "no answer"}
"""Short names of the verdicts."""


def reliability(
    confidence: NDArray[np.float64],
    is_right: NDArray[np.bool_],
    noun: str = "patches",
    criterion: str = f"share right, within {RIGHT_PX:g} px",
) -> Figure:
    """Compare confidence with the share of right answers; on the diagonal both are equal.

    Args:
        confidence: (n,) from 0 to 1.
        is_right: (n,).
        noun: name of the answers, in the plural.
        criterion: label of the vertical axis.
    """
    bins, rows = _bins(confidence), []
    chart = Chart((0, 1), (0, 1), "Reliability diagram", ticks=(TENTHS, TENTHS))
    chart.labels = ("confidence", criterion)
    chart.line([(0, 0), (1, 1)], "thin")
    for b in sorted(set(bins.tolist())):
        members = bins == b
        n, mean = int(members.sum()), float(confidence[members].mean())
        share = float(is_right[members].mean())
        low, high = wilson(share, n)
        chart.line([(mean, low), (mean, high)], "whisker")
        title = f"confidence {mean:.2f}, right {share:.2f} of {n}"
        chart.dot(mean, share, "blue", title, radius=3 + 5 * sqrt(n / len(bins)))
        rows.append([_span(b), n, f"{mean:.3f}", f"{share:.3f}", f"{low:.3f} to {high:.3f}"])
    gap = expected_calibration_error(confidence, is_right)
    head = ["confidence", noun, "mean confidence", "share right", "95 % interval"]
    return Figure(
        "Reliability of the confidence",
        chart,
        f"The mean gap between confidence and share right is {gap:.3f}. Larger dots are more {noun}; "
        "whiskers are 95 % intervals.",
        Table("Confidence and share right", head, rows),
    )


def coverage(confidence: NDArray[np.float64], is_right: NDArray[np.bool_]) -> Figure:
    """Plot the share of right matches among the most confident ones against their number."""
    order = np.argsort(-confidence, kind="stable")
    n = np.arange(1, len(order) + 1)
    precision = np.cumsum(is_right[order]) / n
    drawn = np.unique(np.linspace(0, len(order) - 1, min(MAX_POINTS, len(order))).round().astype(int))
    band = [wilson(float(precision[i]), int(n[i])) for i in drawn]
    share = [float(n[i] / len(order)) for i in drawn]
    lowest = min(float(precision.min()), min(low for low, _ in band[len(band) // 10 :]))
    bottom = min(floor(lowest * 10) / 10, 0.9)
    chart = Chart((0, 1), (bottom, 1), "Precision and coverage", percent=True)
    chart.labels = ("share of patches kept, the most confident first", "share of them right")
    chart.ticks = (TENTHS, round_ticks(bottom, 1.0, 4))
    lows = [(x, low) for x, (low, _) in zip(share, band, strict=True)]
    highs = [(x, high) for x, (_, high) in zip(share, band, strict=True)]
    chart.area(lows, highs, "blue")
    chart.line([(x, float(precision[i])) for x, i in zip(share, drawn, strict=True)], "blue")
    rows, texts = [], []
    for threshold in THRESHOLDS:
        kept = confidence >= threshold
        if not kept.any():
            continue
        x, y = float(kept.mean()), float(is_right[kept].mean())
        chart.dot(x, y, "ink", f"confidence {threshold:g} or more: {x:.1%} kept, {y:.1%} right", 3.5)
        rows.append([f"{threshold:g} or more", int(kept.sum()), f"{x:.1%}", f"{y:.2%}"])
        texts.append(f"{threshold:g}: {x:.1%} kept, {y:.1%} right")
    rows.append(["any", len(order), "100.0%", f"{float(is_right.mean()):.2%}"])
    return Figure(
        "Precision and coverage",
        chart,
        "Matches with a confidence of at least " + "; ".join(texts) + "." if texts else "No confident match.",
        Table("Precision and coverage", ["confidence", "matches", "coverage", "precision"], rows),
    )


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Return the 95 % interval of a share of n. Source: E. B. Wilson, JASA 22 (1927)."""
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(middle - half, 0.0), min(middle + half, 1.0)


def _bins(confidence: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.minimum((confidence * BINS).astype(np.int64), BINS - 1)


def _span(b: int) -> str:
    return f"{b / BINS:.1f} to {(b + 1) / BINS:.1f}"
