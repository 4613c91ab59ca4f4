"""How trainings and benchmarks went, from the files that they leave."""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any

from retrieval.errors import ConfigError
from retrieval.evaluation.figures import CONFIDENCE
from retrieval.report.charts import Chart, figure, strip, ticks
from retrieval.report.curve import TrainingCurve, read_history
from retrieval.report.markup import Markup, table, tag
from tfrecords.errors import MissingInputError

HISTORY = "history.csv"
MOST_ROWS = 60
"""Rows of a benchmark's table, at most."""


def read_training(path: str | Path) -> TrainingCurve:
    """Read the history of a training.

    Args:
        path: `history.csv`, or the folder `OUT.training` that holds it.

    Raises:
        MissingInputError: there is none.
        ConfigError: it is something else.
    """
    path = Path(path)
    path = path / HISTORY if path.is_dir() else path
    if not path.is_file():
        raise MissingInputError(
            f"{path}: no such file; expected the history of a training, OUT.training/{HISTORY}, or its folder"
        )
    try:
        return read_history(path)
    except (KeyError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{path} is no history of a training ({type(error).__name__}: {error}); expected the columns "
            "step, loss and recall_at_1"
        ) from error


def read_benchmark(path: str | Path) -> dict[str, Any]:
    """Read a benchmark's results.

    Args:
        path: JSON, such as the files in `benchmarks/results`.

    Raises:
        MissingInputError: there is no such file.
        ConfigError: it is no JSON, or there is nothing in it that can be shown.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file; expected the JSON of a benchmark")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON ({error}); expected the results of a benchmark") from error
    if not isinstance(content, dict) or not (list(_scores(content)) or _stages(content)):
        raise ConfigError(
            f"{path} holds neither scores (SC with value, low and high) nor stages (with seconds): expected "
            "the results of a benchmark"
        )
    return content


# --- training -------------------------------------------------------------------------------------


def training_charts(curve: TrainingCurve) -> list[Markup]:
    """How a training went: the loss, and how often the right place was first."""
    charts = []
    loss = [(float(s), float(v)) for s, v in zip(curve.steps, curve.loss, strict=True) if isfinite(v)]
    if len(loss) > 1:
        charts.append(_curve(loss, "Loss", "loss", None))
    recall = [(float(s), float(v)) for s, v in zip(curve.recall_steps, curve.recall, strict=True)]
    if recall:
        charts.append(_curve(recall, "Right place first", "share of patches", curve.baseline))
    return charts


def _curve(points: list[tuple[float, float]], name: str, label: str, baseline: float | None) -> Markup:
    share = name != "Loss"
    top = 1.0 if share else max(v for _, v in points) * 1.05
    chart = Chart((0, max(max(s for s, _ in points), 1)), (0, top or 1))
    if baseline is not None:
        chart.line([(0, baseline), (chart.x[1], baseline)], "thin")
        chart.text(chart.x[1], baseline, f"training-free {baseline:.3f}", "end")
    if len(points) > 60:
        chart.line(points, "blue faint")
        chart.line(_smooth(points), "blue")
    else:
        chart.line(points, "right" if share else "blue")
    if share:
        for s, v in points:
            chart.dot(s, v, "right", f"step {s:g}: {v:.3f}", 3)
    last, best = points[-1][1], (max if share else min)(v for _, v in points)
    about = f"{name}: {last:.3f} at the last step, {best:.3f} at best, over {chart.x[1]:g} steps."
    picture = chart.svg(name, about, ("step", label), (ticks(*chart.x, 4), ticks(*chart.y, 4)))
    some = points[:: max(1, len(points) // 40)]
    return figure(
        picture, name, about, table(name, ["step", label], [[f"{s:g}", f"{v:.4f}"] for s, v in some])
    )


def _smooth(points: list[tuple[float, float]], reach: int = 10) -> list[tuple[float, float]]:
    """A running median."""
    values = [v for _, v in points]
    return [(s, median(values[max(0, i - reach) : i + reach + 1])) for i, (s, _) in enumerate(points)]


# --- benchmarks -----------------------------------------------------------------------------------


def benchmark_panels(name: str, content: dict[str, Any]) -> list[Markup]:
    """Scores with their intervals, and how long stages took.

    Args:
        name: of the file.
        content: from `read_benchmark`.
    """
    panels = []
    rows = [
        [
            " / ".join(where),
            f"{sc['value']:.4f}",
            f"{sc['low']:.4f} to {sc['high']:.4f}",
            strip(sc["value"], sc["low"], sc["high"]),
        ]
        for where, sc in _scores(content)
    ]
    if rows:
        head = ["of what", "SC", f"{CONFIDENCE:.0%} interval", "0 to 1"]
        panels.append(_panel(f"{name}: score", table("Scores", head, rows[:MOST_ROWS]), len(rows)))
    stages = _stages(content)
    if stages:
        longest = max(float(stage["seconds"]) for stage in stages.values())
        timed = [
            [key, f"{s['seconds']:.1f}", _memory(s), _bar(s["seconds"], longest)] for key, s in stages.items()
        ]
        head = ["stage", "seconds", "peak memory, MB", "time"]
        panels.append(_panel(f"{name}: time", table("Stages", head, timed[:MOST_ROWS]), len(timed)))
    return panels


def _panel(heading: str, numbers: Markup, count: int) -> Markup:
    more = tag("p", f"{MOST_ROWS} of {count} rows.", class_="quiet") if count > MOST_ROWS else None
    return tag("div", tag("h3", heading), numbers, more, class_="panel plot")


def _scores(content: Any, where: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, float]]]:
    """Scores in a tree of results, with the keys that lead there; differences of scores are left out."""
    if not isinstance(content, dict):
        return
    if _is_figure(content.get("SC")) and "missing" in content:
        yield where or ("all",), content["SC"]
        return
    for key, value in content.items():
        yield from _scores(
            value, (*where, str(key)) if key not in ("groups", "scores", "stages", "result") else where
        )


def _is_figure(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(value.get(k), (int, float)) for k in ("value", "low", "high")
    )


def _stages(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    stages = content.get("stages")
    named = stages.items() if isinstance(stages, dict) else ()
    return {str(k): v for k, v in named if isinstance(v, dict) and isinstance(v.get("seconds"), (int, float))}


def _memory(stage: dict[str, Any]) -> str:
    peak = stage.get("peak_mb")
    return f"{peak:.0f}" if isinstance(peak, (int, float)) else ""


def _bar(seconds: float, longest: float) -> Markup:
    share = 100 * seconds / longest if longest > 0 else 0.0
    bar = tag("rect", width=f"{max(share, 0.5):.1f}%", height=10, y=3, rx=2, class_="bar blue")
    return tag("svg", bar, class_="strip", aria_hidden="true")
