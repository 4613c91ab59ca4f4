"""The HTML page of an exploration: labelled and unlabelled images before a training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.evaluation.exploration import Duplicate, Exploration, Split
from retrieval.report.charts import Chart, Figure, Table, round_ticks
from retrieval.report.classification_page import Card, picture_uri
from retrieval.report.html import check_page, render_template, write_html

EXAMPLES_PER_CLASS = 10
"""Pictures of each class, and of the unlabelled images."""
PAIRS = 12
"""Near-duplicates that are shown as pictures."""
POINTS = 1500
"""Most points of a split on the plane."""
TONES = 10
"""Colours of lines and points; more classes use them in turn."""
NOTED_SHIFT = 0.25
"""Difference of means, in standard deviations, from which the page warns of a shift."""


@dataclass(frozen=True)
class Plot:
    """A figure with the names of its colours."""

    figure: Figure
    legend: Sequence[tuple[str, str]]
    """Style and name."""


@dataclass(frozen=True)
class Group:
    """Pictures under one heading."""

    name: str
    cards: Sequence[Card]


def write_exploration_page(
    out: str | Path, exploration: Exploration, *, title: str, overwrite: bool = False
) -> None:
    """Write one self-contained HTML page of an exploration.

    Args:
        out: the file, ending in `.html`; written as a whole.
        exploration: from `retrieval.evaluation.exploration.explore`.
        title: title of the page.
        overwrite: replace an existing file.

    Raises:
        ConfigError: another ending.
        OutputExistsError: the file exists and `overwrite` is false.
    """
    check_page(out, overwrite)
    html = render_template("exploration.html", title, page=_page(exploration))
    write_html(out, html, overwrite)


def _page(e: Exploration) -> dict[str, Any]:
    """Return all that the template shows."""
    counts = ", ".join(f"{len(split.pixels)} {split.name}" for split in e.splits)
    height, width = e.splits[0].pixels.shape[1:3]
    return {
        "summary": f"{counts} images of {height} x {width} pixels; bands {' '.join(e.bands)}",
        "balance": _balance(e),
        "balance_note": _balance_note(e),
        "examples": _examples(e),
        "spectra": [*_spectra(e), *_histograms(e)],
        "shift": _shift_table(e),
        "shift_note": _shift_note(e),
        "plane": _plane(e),
        "pairs": [_pair(e, d) for d in e.duplicates[:PAIRS]],
        "pair_table": Table(
            "Near-duplicates", ["first", "second", "correlation"], [_pair_row(e, d) for d in e.duplicates]
        ),
        "duplicates_note": _duplicates_note(e),
    }


# --- classes --------------------------------------------------------------------------------------


def _balance(e: Exploration) -> Table:
    labelled = [row for row, split in enumerate(e.splits) if split.labels is not None]
    rows = []
    for k, name in enumerate(e.classes):
        shares = [e.counts[row, k] / max(e.counts[row].sum(), 1) for row in labelled]
        cells = [f"{e.counts[row, k]} ({share:.1%})" for row, share in zip(labelled, shares, strict=True)]
        rows.append([name, *cells])
    return Table("Images of each class", ["class", *(e.splits[row].name for row in labelled)], rows)


def _balance_note(e: Exploration) -> str:
    counts = e.counts[0]
    ratio = counts.max() / max(counts.min(), 1)
    few, many = e.classes[int(counts.argmin())], e.classes[int(counts.argmax())]
    if ratio < 1.5:
        return "The labelled classes are about equally frequent."
    return (
        f"{many} has {ratio:.1f} times as many labelled images as {few}; training weighs rare classes more."
    )


def _examples(e: Exploration) -> list[Group]:
    """Return pictures of each class among the labelled images, and of the splits without labels."""
    first = e.splits[0]
    assert first.labels is not None
    groups = [
        _group(first, np.flatnonzero(first.labels == row), name, e.bands)
        for row, name in enumerate(e.classes)
    ]
    for split in e.splits:
        if split.labels is None:
            groups.append(_group(split, np.arange(len(split.pixels)), split.name, e.bands))
    return groups


def _group(split: Split, rows: NDArray[Any], name: str, bands: Sequence[str]) -> Group:
    shown = rows[
        np.unique(np.linspace(0, len(rows) - 1, min(len(rows), EXAMPLES_PER_CLASS)).round().astype(int))
    ]
    cards = [Card(picture_uri(split.pixels[row], bands), f"Image {split.ids[row]}", ()) for row in shown]
    return Group(f"{name} ({len(rows)})", cards)


# --- spectra --------------------------------------------------------------------------------------


def _names(e: Exploration) -> tuple[list[str], list[str]]:
    """Return the names of the splits and of the classes, in the order of spectra and histograms."""
    return [split.name for split in e.splits], list(e.classes)


def _legend(names: Sequence[str]) -> list[tuple[str, str]]:
    return [(f"tone{row % TONES}", name) for row, name in enumerate(names)]


def _spectra(e: Exploration) -> list[Plot]:
    """Plot the mean of each band, by class and by split."""
    splits, classes = _names(e)
    parts = [("by class", e.spectra[len(splits) :], classes), ("by split", e.spectra[: len(splits)], splits)]
    top = float(e.spectra.max()) * 1.08 or 1.0
    plots = []
    for text, means, names in parts:
        chart = Chart((-0.3, len(e.bands) - 0.7), (0, top), f"Mean spectra {text}")
        chart.labels, chart.ticks = (" · ".join(e.bands), "mean"), ((), round_ticks(0, top, 4))
        for row, values in enumerate(means):
            line = [(float(band), float(value)) for band, value in enumerate(values)]
            chart.line(line, f"tone{row % TONES}")
            for x, y in line:
                chart.dot(x, y, f"tone{row % TONES}", f"{names[row]}: {y:.1f}", 2.5)
        rows = [[name, *(f"{v:.1f}" for v in values)] for name, values in zip(names, means, strict=True)]
        table = Table("Mean of each band", ["", *e.bands], rows)
        caption = f"Mean pixel value of each band, {text}; bands from left to right."
        plots.append(Plot(Figure(f"Mean spectra {text}", chart, caption, table), _legend(names)))
    return plots


def _histograms(e: Exploration) -> list[Plot]:
    """Plot the distribution of each band, by split and by class."""
    splits, classes = _names(e)
    plots = []
    for band, name in enumerate(e.bands):
        for text, rows, names in (
            ("by split", e.histograms[: len(splits), band], splits),
            ("by class", e.histograms[len(splits) :, band], classes),
        ):
            plots.append(_histogram(e, f"{name} {text}", rows, names))
    return plots


def _histogram(e: Exploration, heading: str, shares: NDArray[np.float64], names: Sequence[str]) -> Plot:
    edges = e.bin_edges
    middle = (edges[1:] + edges[:-1]) / 2
    top = float(shares.max()) or 1.0
    chart = Chart((float(edges[0]), float(edges[-1])), (0, top), f"Histogram of {heading}")
    chart.labels = ("pixel value", "share of the pixels")
    chart.ticks = (round_ticks(float(edges[0]), float(edges[-1])), round_ticks(0, top, 4))
    for row, values in enumerate(shares):
        chart.line([(float(x), float(y)) for x, y in zip(middle, values, strict=True)], f"tone{row % TONES}")
    quantiles = [[name, *_quantiles(edges, values)] for name, values in zip(names, shares, strict=True)]
    table = Table("Quantiles", ["", "10 %", "50 %", "90 %"], quantiles)
    caption = f"Distribution of {heading}; both axes are linear."
    return Plot(Figure(f"Histogram of {heading}", chart, caption, table), _legend(names))


def _quantiles(edges: NDArray[np.float64], shares: NDArray[np.float64]) -> list[str]:
    below = np.r_[0, np.cumsum(shares)]
    return [f"{np.interp(q, below, edges):.0f}" for q in (0.1, 0.5, 0.9)]


def _shift_table(e: Exploration) -> Table | None:
    if not e.shifts:
        return None
    rows = []
    for shift in e.shifts:
        for band, name in enumerate(e.bands):
            cells = (shift.mean_difference[band], shift.spread_ratio[band], shift.distance[band])
            rows.append([e.splits[shift.split].name, name, *(f"{cell:.3f}" for cell in cells)])
    head = ["split", "band", "difference of means", "ratio of spreads", "largest gap"]
    return Table("Differences from the labelled images", head, rows)


def _shift_note(e: Exploration) -> str:
    shifted = [
        e.splits[shift.split].name for shift in e.shifts if np.abs(shift.mean_difference).max() >= NOTED_SHIFT
    ]
    if not e.shifts:
        return "There is only one split, so nothing can differ."
    unit = "Differences of means are in standard deviations of the labelled pixels."
    if shifted:
        return (
            f"{' and '.join(shifted)}: the light differs from the labelled images. Check the processing "
            f"level and the rendering. {unit}"
        )
    return f"No split differs much from the labelled images. {unit}"


# --- plane and duplicates -------------------------------------------------------------------------


def _plane(e: Exploration) -> Plot:
    """Plot each image on the plane of the two main components of colour and texture."""
    together = np.concatenate(e.points)
    low, high = np.percentile(together, 0.2, axis=0), np.percentile(together, 99.8, axis=0)
    high = np.where(high > low, high, low + 1)
    chart = Chart((float(low[0]), float(high[0])), (float(low[1]), float(high[1])), "Plane of the components")
    chart.labels = tuple(f"component {n} ({share:.0%})" for n, share in enumerate(e.explained, 1))  # type: ignore[assignment]
    order = sorted(range(len(e.splits)), key=lambda row: e.splits[row].labels is not None)
    for row in order:
        split, points = e.splits[row], e.points[row]
        step = max(1, -(-len(points) // POINTS))
        for number in range(0, len(points), step):
            x, y = map(float, points[number])
            if split.labels is None:
                chart.dot(x, y, "unlabelled", "", 1.5)
            elif row == 0:
                label = int(split.labels[number])
                chart.dot(x, y, f"tone{label % TONES}", f"{split.ids[number]}: {e.classes[label]}", 2.5)
    legend = _legend(e.classes) + [("unlabelled", s.name) for s in e.splits if s.labels is None]
    first = e.splits[0]
    rows = [
        [name, *(f"{v:.2f}" for v in e.points[0][first.labels == row].mean(0))]
        for row, name in enumerate(e.classes)
    ]
    caption = "Colour and texture of each image (mean, spread, quantiles and gradients of each band)."
    table = Table("Centre of each class", ["class", "component 1", "component 2"], rows)
    return Plot(Figure("Colour and texture", chart, caption, table), legend)


def _pair_row(e: Exploration, duplicate: Duplicate) -> list[str]:
    texts = [
        f"{e.splits[split].name} {e.splits[split].ids[row]}{_label(e, split, row)}"
        for split, row in zip(duplicate.splits, duplicate.rows, strict=True)
    ]
    return [*texts, "copy" if duplicate.is_copy else f"{duplicate.correlation:.4f}"]


def _label(e: Exploration, split: int, row: int) -> str:
    labels = e.splits[split].labels
    return "" if labels is None else f" ({e.classes[labels[row]]})"


def _pair(e: Exploration, duplicate: Duplicate) -> dict[str, str]:
    uris = [
        picture_uri(e.splits[split].pixels[row], e.bands)
        for split, row in zip(duplicate.splits, duplicate.rows, strict=True)
    ]
    return {"first": uris[0], "second": uris[1], "text": ", ".join(_pair_row(e, duplicate))}


def _duplicates_note(e: Exploration) -> str:
    if not e.duplicates:
        return "No two images show the same."
    across = sum(d.splits[0] != d.splits[1] for d in e.duplicates)
    copies = sum(d.is_copy for d in e.duplicates)
    return (
        f"{len(e.duplicates)} pairs show the same in the same light, {copies} of them are copies; {across} "
        "lie in different splits. Training refuses copies of labelled images in the validation."
    )
