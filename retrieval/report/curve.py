"""How a training went, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ConfigError
from retrieval.report.canvas import BLUE, DPI, GREEN, INK, QUIET, drawing, save

_SMOOTH_FROM = 60
_MEDIAN_OF = 21


@dataclass(frozen=True)
class TrainingCurve:
    """How a training went: the loss by step, and the figure that was watched beside it.

    Raises:
        ConfigError: steps and values differ in number.
    """

    steps: Sequence[float]
    """Steps at which the loss was noted, rising."""
    loss: Sequence[float]
    """The loss there; NaN leaves a gap."""
    recall_steps: Sequence[float] = ()
    """Steps at which the recall was measured, rising."""
    recall: Sequence[float] = ()
    """Share in [0, 1] of validation patches whose right place is first."""
    baseline: float | None = None
    """The same share of the training-free encoder: what has to be beaten."""

    def __post_init__(self) -> None:
        for name, steps, values in (
            ("loss", self.steps, self.loss),
            ("recall", self.recall_steps, self.recall),
        ):
            if len(steps) != len(values):
                raise ConfigError(
                    f"received {len(values)} values of {name} at {len(steps)} steps; expected as many"
                )


def draw_curve(curve: TrainingCurve, path: str | Path, *, title: str = "", overwrite: bool = False) -> Path:
    """Draw the loss of a training and, under it on the same steps, the recall on validation patches.

    Args:
        curve: what was noted.
        path: the `.png`, `.svg` or `.pdf` to make.
        title: line on top.
        overwrite: replace a file that is already there.

    Returns:
        The path.

    Raises:
        ConfigError: the path has another ending.
        OutputExistsError: the file is there and `overwrite` is not set.
    """
    from matplotlib.figure import Figure

    with drawing():
        count = 2 if len(curve.recall_steps) else 1
        figure = Figure(figsize=(7.5, 1.2 + 2 * count), dpi=DPI, layout="constrained")
        panels = figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
        panels[0].set_title(title, loc="left", size=11, weight="bold", color=INK, parse_math=False)
        _draw_loss(panels[0], curve)
        if count == 2:
            _draw_recall(panels[1], curve)
        panels[-1].set_xlabel("step", color=INK)
        return save(figure, Path(path), overwrite)


def read_history(path: str | Path, baseline: float | None = None) -> TrainingCurve:
    """A curve from the `history.csv` that a training keeps.

    Args:
        path: columns step, loss, learning_rate, seconds, recall_at_1, recall_at_20; empty where not measured.
        baseline: recall of the training-free encoder on the same patches, or None.

    Returns:
        The curve.
    """
    import csv

    with Path(path).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    loss = [(float(r["step"]), float(r["loss"])) for r in rows if r["loss"]]
    recall = [(float(r["step"]), float(r["recall_at_1"])) for r in rows if r["recall_at_1"]]
    return TrainingCurve(
        [s for s, _ in loss], [v for _, v in loss], [s for s, _ in recall], [v for _, v in recall], baseline
    )


def _draw_loss(axes: Any, curve: TrainingCurve) -> None:
    steps, loss = np.asarray(curve.steps, dtype=float), np.asarray(curve.loss, dtype=float)
    axes.plot(steps, loss, color=BLUE, lw=0.8 if len(loss) > _SMOOTH_FROM else 1.6, alpha=0.9)
    if len(loss) > _SMOOTH_FROM:
        axes.lines[0].set_alpha(0.35)
        axes.plot(steps, _running_median(loss), color=BLUE, lw=1.8)
    _dress(axes, "loss")


def _running_median(values: NDArray[np.float64], window: int = _MEDIAN_OF) -> NDArray[np.float64]:
    padded = np.pad(values, window // 2, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, window), axis=1)


def _draw_recall(axes: Any, curve: TrainingCurve) -> None:
    axes.plot(curve.recall_steps, curve.recall, color=GREEN, lw=1.8, marker="o", ms=4)
    axes.set_ylim(0, 1.1)
    _note(
        axes, f"{curve.recall[-1]:.3f}", (curve.recall_steps[-1], curve.recall[-1]), (0, 7), GREEN, "center"
    )
    if curve.baseline is not None:
        axes.axhline(curve.baseline, color=QUIET, lw=1.2, ls=(0, (4, 2)))
        _note(axes, f"training-free {curve.baseline:.3f}", (curve.recall_steps[-1], curve.baseline), (0, -12))
    _dress(axes, "right place first")


def _note(
    axes: Any,
    text: str,
    at: tuple[float, float],
    by: tuple[int, int],
    colour: str = QUIET,
    side: str = "right",
) -> None:
    axes.annotate(text, at, by, textcoords="offset points", size=8.5, color=colour, ha=side)


def _dress(axes: Any, label: str) -> None:
    axes.set_ylabel(label, color=INK)
    axes.grid(axis="y", color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=8.5)
