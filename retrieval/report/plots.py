"""Matplotlib pictures: patches with their matches, and the curve of a training.

A verdict has a sign, a word, a line style and a colour: colour is never the only sign.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import hypot
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ConfigError
from retrieval.models.calibration import RIGHT_PX
from retrieval.report.patch_results import Verdict
from retrieval.report.pictures import STRETCH_PERCENT, stretch
from tfrecords.artifacts import writing_file

DPI = 160
"""Pixels per inch of every picture."""
INK = "#1a1a1a"
"""Colour of main text."""
QUIET = "#6b6b6b"
"""Colour of secondary text; its contrast on white is 5.3 : 1."""
GREEN, AMBER, RED, BLUE = "#007a5a", "#9a5b00", "#c44200", "#0072b2"
"""Colours that remain distinct in colour blindness, after https://jfly.uni-koeln.de/color/, darkened."""
MAX_PICTURES = 60
"""Largest number of matches in a picture."""

_TIMESTAMPS = {".png": "Software", ".svg": "Date", ".pdf": "CreationDate"}  # left out: same input, same file


@contextmanager
def drawing() -> Iterator[None]:
    """Draw in matplotlib's default style, and leave the caller's style unchanged."""
    import matplotlib.style

    with matplotlib.style.context(["default", {"svg.hashsalt": "retrieval"}]):
        yield


def save(figure: Any, path: Path, overwrite: bool) -> Path:
    """Write a figure as a whole; the same figure gives the same bytes.

    Args:
        figure: a matplotlib figure.
        path: ends in `.png`, `.svg` or `.pdf`.
        overwrite: replace an existing file.

    Returns:
        The path.

    Raises:
        ConfigError: the path has another ending.
        OutputExistsError: the file exists and `overwrite` is not set.
    """
    ending = path.suffix.lower()
    if ending not in _TIMESTAMPS:
        raise ConfigError(f"{path}: the ending is '{ending}'. Expected one of {', '.join(_TIMESTAMPS)}.")
    with writing_file(path, overwrite=overwrite) as temporary:
        figure.savefig(temporary, format=ending[1:], metadata={_TIMESTAMPS[ending]: None})
    return path


# --- training -------------------------------------------------------------------------------------

_SMOOTH_FROM = 60
_MEDIAN_OF = 21


@dataclass(frozen=True)
class TrainingCurve:
    """The loss of a training by step, and the recall on validation patches.

    Raises:
        ConfigError: the numbers of steps and values differ.
    """

    steps: Sequence[float]
    """Steps of the loss, rising."""
    loss: Sequence[float]
    """The loss; NaN leaves a gap."""
    recall_steps: Sequence[float] = ()
    """Steps of the recall, rising."""
    recall: Sequence[float] = ()
    """Share in [0, 1] of validation patches whose right place ranks first."""
    baseline: float | None = None
    """The same share for the training-free encoder."""

    def __post_init__(self) -> None:
        for name, steps, values in (
            ("loss", self.steps, self.loss),
            ("recall", self.recall_steps, self.recall),
        ):
            if len(steps) != len(values):
                raise ConfigError(
                    f"{name}: received {len(values)} values at {len(steps)} steps. Expected equal numbers."
                )


def read_history(path: str | Path, baseline: float | None = None) -> TrainingCurve:
    """Read the curve from the `history.csv` of a training.

    Args:
        path: columns step, loss, learning_rate, seconds, recall_at_1, recall_at_20; empty where not measured.
        baseline: recall of the training-free encoder on the same patches.

    Returns:
        The curve.
    """
    with Path(path).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    loss = [(float(r["step"]), float(r["loss"])) for r in rows if r["loss"]]
    recall = [(float(r["step"]), float(r["recall_at_1"])) for r in rows if r["recall_at_1"]]
    return TrainingCurve(
        [s for s, _ in loss], [v for _, v in loss], [s for s, _ in recall], [v for _, v in recall], baseline
    )


def draw_curve(curve: TrainingCurve, path: str | Path, *, title: str = "", overwrite: bool = False) -> Path:
    """Draw the loss of a training and, below it, the recall on validation patches.

    Args:
        curve: the values.
        path: the `.png`, `.svg` or `.pdf` to make.
        title: title of the picture.
        overwrite: replace an existing file.

    Returns:
        The path.

    Raises:
        ConfigError: the path has another ending.
        OutputExistsError: the file exists and `overwrite` is not set.
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


def _draw_loss(axes: Any, curve: TrainingCurve) -> None:
    steps, loss = np.asarray(curve.steps, dtype=float), np.asarray(curve.loss, dtype=float)
    if len(loss) > _SMOOTH_FROM:
        axes.plot(steps, loss, color=BLUE, lw=0.8, alpha=0.35)
        padded = np.pad(loss, _MEDIAN_OF // 2, mode="edge")
        running = np.lib.stride_tricks.sliding_window_view(padded, _MEDIAN_OF)
        axes.plot(steps, np.median(running, axis=1), color=BLUE, lw=1.8)
    else:
        axes.plot(steps, loss, color=BLUE, lw=1.6, alpha=0.9)
    _style_axes(axes, "loss")


def _draw_recall(axes: Any, curve: TrainingCurve) -> None:
    last = curve.recall_steps[-1]
    axes.plot(curve.recall_steps, curve.recall, color=GREEN, lw=1.8, marker="o", ms=4)
    axes.set_ylim(0, 1.1)
    style = {"textcoords": "offset points", "size": 8.5}
    text = f"{curve.recall[-1]:.3f}"
    axes.annotate(text, (last, curve.recall[-1]), (0, 7), color=GREEN, ha="center", **style)
    if curve.baseline is not None:
        axes.axhline(curve.baseline, color=QUIET, lw=1.2, ls=(0, (4, 2)))
        text = f"training-free {curve.baseline:.3f}"
        axes.annotate(text, (last, curve.baseline), (0, -12), color=QUIET, ha="right", **style)
    _style_axes(axes, "right place first")


def _style_axes(axes: Any, label: str) -> None:
    axes.set_ylabel(label, color=INK)
    axes.grid(axis="y", color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=8.5)


# --- matches --------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class MatchPicture:
    """A patch, its match and, where there is an answer, the right place.

    Pixels are (h, w, b) in any units, NaN = nodata; `stretch` colours them.

    Raises:
        ConfigError: pixels are not (h, w, b), or the answer is incomplete.
    """

    patch_id: int
    """Id of the patch."""
    query: NDArray[Any]
    """(h, w, b) the query patch."""
    match: NDArray[Any]
    """(h, w, b) the matched window."""
    image_id: int
    """Image of the match."""
    x: int
    """Column of the match's top-left pixel."""
    y: int
    """Row of the match's top-left pixel."""
    confidence: float | None = None
    """Probability in [0, 1] that the match is right."""
    right: NDArray[Any] | None = None
    """(h, w, b) the right window; drawn where the match is another place."""
    right_image_id: int | None = None
    """Image of the answer; None without an answer."""
    right_x: int | None = None
    """Column of the answer's top-left pixel."""
    right_y: int | None = None
    """Row of the answer's top-left pixel."""

    def __post_init__(self) -> None:
        for name in ("query", "match", "right"):
            pixels = getattr(self, name)
            if pixels is not None and (np.ndim(pixels) != 3 or not np.size(pixels)):
                raise ConfigError(
                    f"patch {self.patch_id}: {name} has the shape {np.shape(pixels)}. Expected (h, w, b)."
                )
        answer = [self.right_image_id, self.right_x, self.right_y]
        if None in answer and answer != [None] * 3:
            raise ConfigError(
                f"patch {self.patch_id}: the right image, x and y are {answer}. Give all three or none."
            )

    @property
    def distance_px(self) -> float | None:
        """Distance from the answer in pixels; None in another image or without an answer."""
        if self.right_x is None or self.right_y is None or self.image_id != self.right_image_id:
            return None
        return hypot(self.x - self.right_x, self.y - self.right_y)

    @property
    def verdict(self) -> Verdict:
        """Right (within 5 px), shifted (right image, another place), wrong, or unknown."""
        if self.right_image_id is None:
            return "unknown"
        if self.distance_px is None:
            return "wrong"
        return "right" if self.distance_px <= RIGHT_PX else "shifted"

    @property
    def panels(self) -> list[tuple[str, str, NDArray[Any]]]:
        """Label, name and pixels of each image on the card."""
        panels = [
            ("patch", f"{self.patch_id}", self.query),
            ("match", _place(self.image_id, self.x, self.y), self.match),
        ]
        if self.right is not None and self.verdict in ("shifted", "wrong"):
            panels.append(("answer", _place(self.right_image_id, self.right_x, self.right_y), self.right))
        return panels


@dataclass(frozen=True)
class _Style:
    """The look of a verdict."""

    sign: str
    word: str
    heading: str
    colour: str
    line: Any


_STYLES: dict[Verdict, _Style] = {
    "right": _Style("✓", "right", f"Right place, within {RIGHT_PX:g} px", GREEN, "solid"),
    "shifted": _Style("≈", "shifted", "Right image, another place", AMBER, (0, (1, 1.2))),
    "wrong": _Style("✗", "wrong image", "Wrong image", RED, (0, (3, 1.5))),
    "unknown": _Style("?", "no answer", "No answer", QUIET, "solid"),
}
_PANEL_PX = 256  # 4 screen pixels for each pixel of a patch, so that all are equally large
_COLUMNS, _GAP_PX, _MARGIN_PX = 6, 8, 56
_PAGE_PX = 2 * _MARGIN_PX + _COLUMNS * _PANEL_PX + 160
_HEAD_PX, _HEADING_PX, _CARD_PX, _FOOT_PX = 112, 44, 28 + _PANEL_PX + 50, 44
_LABEL_PX = {"patch": 50, "match": 60, "answer": 64}
_THIN = {"color": "#888888", "lw": 0.8}


class _Canvas:
    """A figure measured in screen pixels from its top-left corner."""

    def __init__(self, width_px: int, height_px: int) -> None:
        from matplotlib.figure import Figure

        self.width_px, self.height_px = width_px, height_px
        self.figure = Figure(figsize=(width_px / DPI, height_px / DPI), dpi=DPI, facecolor="white")

    def text(self, x: int, y: int, text: str, size: float, colour: str = INK, weight: str = "normal") -> None:
        """Write text from (x, y), the left end of its baseline; `$` is an ordinary letter."""
        place = (x / self.width_px, 1 - y / self.height_px)
        self.figure.text(*place, text, size=size, color=colour, weight=weight, parse_math=False)

    def image(self, x: int, y: int, side_px: int, pixels: NDArray[Any], frame: dict[str, Any]) -> None:
        """Draw pixels (h, w, b), stretched, in a framed square with its corner at (x, y)."""
        left, foot = x / self.width_px, 1 - (y + side_px) / self.height_px
        axes = self.figure.add_axes((left, foot, side_px / self.width_px, side_px / self.height_px))
        axes.patch.set(facecolor="#f4f4f4", edgecolor="#bbbbbb", hatch="////")  # visible where nodata
        axes.imshow(stretch(pixels), interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(**frame)


def draw_matches(
    pictures: Sequence[MatchPicture],
    path: str | Path,
    *,
    title: str = "",
    note: str = "",
    pixel_m: float | None = None,
    overwrite: bool = False,
) -> Path:
    """Draw patches with their matches, and with the right place where the match is another place.

    The picture has a section for each verdict: right, shifted, wrong, no answer. Each image is stretched
    separately, see `stretch`.

    Args:
        pictures: 1 to 60 patches; they keep their order in each section.
        path: the `.png`, `.svg` or `.pdf` to make.
        title: large line at the top.
        note: small line under the title, such as the score.
        pixel_m: side of a pixel on the ground in metres, for the legend; None where it is unknown.
        overwrite: replace an existing file.

    Returns:
        The path.

    Raises:
        ConfigError: no patches or too many, or the path has another ending.
        OutputExistsError: the file exists and `overwrite` is not set.
    """
    if not 1 <= len(pictures) <= MAX_PICTURES:
        raise ConfigError(f"{len(pictures)} matches to draw: out of range. Choose 1 to {MAX_PICTURES}.")
    by_verdict = [(s, [p for p in pictures if p.verdict == verdict]) for verdict, s in _STYLES.items()]
    sections = [(style, members) for style, members in by_verdict if members]
    with drawing():
        canvas = _Canvas(_PAGE_PX, _HEAD_PX + sum(_section_px(m) for _, m in sections) + _FOOT_PX)
        canvas.text(_MARGIN_PX, 52, title, size=15, weight="bold")
        canvas.text(_MARGIN_PX, 86, note, size=9.5, colour=QUIET)
        top = _HEAD_PX
        for style, members in sections:
            _draw_section(canvas, top, style, members)
            top += _section_px(members)
        canvas.text(_MARGIN_PX, top + 14, _legend(pictures[0], pixel_m), size=7.5, colour=QUIET)
        return save(canvas.figure, Path(path), overwrite)


def _section_px(members: Sequence[MatchPicture]) -> int:
    """Return the height of a section: its heading and its lines of cards."""
    return _HEADING_PX + -(-len(members) // (_COLUMNS // _panel_count(members))) * _CARD_PX


def _panel_count(members: Sequence[MatchPicture]) -> int:
    return max(len(picture.panels) for picture in members)


def _draw_section(canvas: _Canvas, top: int, style: _Style, members: Sequence[MatchPicture]) -> None:
    heading = f"{style.heading} ({len(members)} shown)"
    canvas.text(_MARGIN_PX, top + 22, heading, size=11, weight="bold")
    panels = _panel_count(members)
    columns = _COLUMNS // panels
    width = panels * (_PANEL_PX + _GAP_PX) - _GAP_PX
    space = (_PAGE_PX - 2 * _MARGIN_PX - columns * width) // (columns - 1)
    for i, picture in enumerate(members):
        left = _MARGIN_PX + i % columns * (width + space)
        _draw_card(canvas, left, top + _HEADING_PX + i // columns * _CARD_PX, style, picture)


def _draw_card(canvas: _Canvas, left: int, top: int, style: _Style, picture: MatchPicture) -> None:
    distance = "" if picture.distance_px is None else f", {picture.distance_px:.1f} px off"
    confidence = "" if picture.confidence is None else f"   confidence {picture.confidence:.2f}"
    canvas.text(left, top + 18, style.sign, size=12, colour=style.colour, weight="bold")
    text = style.word + distance + confidence
    canvas.text(left + 26, top + 17, text, size=9, colour=style.colour, weight="bold")
    frame = {"color": style.colour, "lw": 3, "ls": style.line}
    for i, (label, name, pixels) in enumerate(picture.panels):
        x = left + i * (_PANEL_PX + _GAP_PX)
        canvas.image(x, top + 28, _PANEL_PX, pixels, frame if label == "match" else _THIN)
        canvas.text(x, top + 28 + _PANEL_PX + 19, label, size=7, colour=QUIET)
        canvas.text(x + _LABEL_PX[label], top + 28 + _PANEL_PX + 19, name, size=7)


def _place(image_id: int | None, x: int | None, y: int | None) -> str:
    return f"image {image_id}, x {x}, y {y}"


def _legend(picture: MatchPicture, pixel_m: float | None) -> str:
    height, width = picture.query.shape[:2]
    ground = f", {height * pixel_m:g} × {width * pixel_m:g} m" if pixel_m else ""
    low, high = STRETCH_PERCENT
    size = f"Each image {height} × {width} px{ground}, stretched separately ({low:g}-{high:g} %)"
    return f"{size}; hatched: nodata. x, y: column and row of the top-left pixel, from 0."
