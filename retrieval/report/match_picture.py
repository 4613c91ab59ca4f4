"""Patches beside what was found for them, and beside what was right.

Right and wrong are told by a sign, a word, the line of the frame and a colour: never by colour alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import hypot
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ConfigError
from retrieval.report.canvas import AMBER, GREEN, QUIET, RED, STRETCH_PERCENT, Page, drawing, save

NEAR_PX = 10.0
"""A match counts as right within this many pixels of the answer: a sixth of a patch."""
MAX_PICTURES = 60
"""More patches than this on one page can't be told apart, nor kept in memory on every machine."""

Verdict = Literal["right", "shifted", "wrong", "unknown"]


@dataclass(frozen=True, eq=False)
class MatchPicture:
    """One patch, what was found for it and, where it is known, what was right.

    Pixels are (h, w, b) in any units, NaN where there are none; how they are coloured, says `stretch`.

    Raises:
        ConfigError: pixels are not (h, w, b), or only a part of the answer is given.
    """

    patch_id: int
    """The patch's id in its own source."""
    query: NDArray[Any]
    """(h, w, b) the patch that was asked about."""
    found: NDArray[Any]
    """(h, w, b) the window that was found."""
    image_id: int
    """Image of the match."""
    x: int
    """Column of its top-left pixel, 0-based."""
    y: int
    """Row, likewise."""
    confidence: float | None = None
    """Probability in [0, 1] that the match is right; None where it was not estimated."""
    right: NDArray[Any] | None = None
    """(h, w, b) the window that is right; drawn where another was found."""
    right_image_id: int | None = None
    """Image of the answer; None where the answer is not known."""
    right_x: int | None = None
    """Column of its top-left pixel."""
    right_y: int | None = None
    """Row, likewise."""

    def __post_init__(self) -> None:
        for name in ("query", "found", "right"):
            pixels = getattr(self, name)
            if pixels is not None and (np.ndim(pixels) != 3 or not np.size(pixels)):
                raise ConfigError(
                    f"patch {self.patch_id}: received {name} of shape {np.shape(pixels)}; expected (h, w, b)"
                )
        answer = [self.right_image_id, self.right_x, self.right_y]
        if None in answer and answer != [None] * 3:
            raise ConfigError(
                f"patch {self.patch_id}: received {answer} for the right image, x and y; expected all or none"
            )

    @property
    def distance_px(self) -> float | None:
        """Distance in pixels from the answer; None in another image or where no answer is known."""
        if self.right_x is None or self.right_y is None or self.image_id != self.right_image_id:
            return None
        return hypot(self.x - self.right_x, self.y - self.right_y)

    @property
    def verdict(self) -> Verdict:
        """Whether it is right, in the right image but more than `NEAR_PX` off, wrong, or not known."""
        if self.right_image_id is None:
            return "unknown"
        if self.distance_px is None:
            return "wrong"
        return "right" if self.distance_px <= NEAR_PX else "shifted"


@dataclass(frozen=True)
class _Mark:
    """How a verdict is told: by sign, word, line and colour at once."""

    sign: str
    word: str
    heading: str
    colour: str
    line: Any

    @property
    def frame(self) -> dict[str, Any]:
        return {"color": self.colour, "lw": 3, "ls": self.line}


_MARKS: dict[Verdict, _Mark] = {
    "right": _Mark("✓", "right", f"Right place, within {NEAR_PX:g} px", GREEN, "solid"),
    "shifted": _Mark("≈", "shifted", "Right image, another place", AMBER, (0, (1, 1.2))),
    "wrong": _Mark("✗", "wrong image", "Wrong image", RED, (0, (3, 1.5))),
    "unknown": _Mark("?", "not known", "Answer not known", QUIET, "solid"),
}
_PANEL_PX = 256  # 4 screen pixels to each pixel of a patch: none is drawn larger than its neighbour
_COLUMNS, _GAP_PX, _MARGIN_PX = 6, 8, 56
_PAGE_PX = 2 * _MARGIN_PX + _COLUMNS * _PANEL_PX + 160
_HEAD_PX, _HEADING_PX, _CARD_PX, _FOOT_PX = 112, 44, 28 + _PANEL_PX + 50, 44
_LABEL_PX = {"patch": 50, "found": 54, "answer": 64}
_THIN = {"color": "#888888", "lw": 0.8}


def draw_matches(
    rows: Sequence[MatchPicture],
    path: str | Path,
    *,
    title: str = "",
    note: str = "",
    pixel_m: float | None = None,
    overwrite: bool = False,
) -> Path:
    """Draw patches beside what was found for them, and beside what was right where that is another place.

    The page has a section for each verdict: right, shifted, wrong, not known; within it the rows keep
    their order. Each image is stretched by itself, see `stretch`.

    Args:
        rows: 1 to 60 patches; the caller chooses them, and says in `note` how.
        path: the `.png`, `.svg` or `.pdf` to make.
        title: large line on top.
        note: small line under it, such as the score of the whole submission.
        pixel_m: size of a pixel on the ground in metres, for the legend; None where it is not known.
        overwrite: replace a file that is already there.

    Returns:
        The path.

    Raises:
        ConfigError: there are no rows or too many, or the path has another ending.
        OutputExistsError: the file is there and `overwrite` is not set.
    """
    if not 1 <= len(rows) <= MAX_PICTURES:
        raise ConfigError(f"received {len(rows)} matches to draw; expected 1 to {MAX_PICTURES}: choose some")
    sections = [(mark, [row for row in rows if row.verdict == verdict]) for verdict, mark in _MARKS.items()]
    sections = [(mark, members) for mark, members in sections if members]
    with drawing():
        page = Page(_PAGE_PX, _HEAD_PX + sum(_section_px(m) for _, m in sections) + _FOOT_PX)
        page.text(_MARGIN_PX, 52, title, size=15, weight="bold")
        page.text(_MARGIN_PX, 86, note, size=9.5, colour=QUIET)
        top = _HEAD_PX
        for mark, members in sections:
            _draw_section(page, top, mark, members)
            top += _section_px(members)
        page.text(_MARGIN_PX, top + 14, _legend(rows, pixel_m), size=7.5, colour=QUIET)
        return save(page.figure, Path(path), overwrite)


def _section_px(members: Sequence[MatchPicture]) -> int:
    """Height of a section: its heading and its lines of cards."""
    return _HEADING_PX + -(-len(members) // (_COLUMNS // _panels(members))) * _CARD_PX


def _panels(members: Sequence[MatchPicture]) -> int:
    """Images on a card: the right place is shown where another was found."""
    return max(len(_shown(row)) for row in members)


def _draw_section(page: Page, top: int, mark: _Mark, members: Sequence[MatchPicture]) -> None:
    page.text(_MARGIN_PX, top + 22, f"{mark.heading} ({len(members)} shown)", size=11, weight="bold")
    panels = _panels(members)
    columns = _COLUMNS // panels
    width = panels * (_PANEL_PX + _GAP_PX) - _GAP_PX
    between = (_PAGE_PX - 2 * _MARGIN_PX - columns * width) // (columns - 1)
    for i, row in enumerate(members):
        left = _MARGIN_PX + i % columns * (width + between)
        _draw_card(page, left, top + _HEADING_PX + i // columns * _CARD_PX, mark, row)


def _draw_card(page: Page, left: int, top: int, mark: _Mark, row: MatchPicture) -> None:
    page.text(left, top + 18, mark.sign, size=12, colour=mark.colour, weight="bold")
    page.text(left + 26, top + 17, _verdict_text(mark, row), size=9, colour=mark.colour, weight="bold")
    for i, (label, where, pixels) in enumerate(_shown(row)):
        x = left + i * (_PANEL_PX + _GAP_PX)
        page.image(x, top + 28, _PANEL_PX, pixels, mark.frame if label == "found" else _THIN)
        page.text(x, top + 28 + _PANEL_PX + 19, label, size=7, colour=QUIET)
        page.text(x + _LABEL_PX[label], top + 28 + _PANEL_PX + 19, where, size=7)


def _shown(row: MatchPicture) -> list[tuple[str, str, NDArray[Any]]]:
    """List the label, the name and the pixels of each image on a card."""
    shown = [
        ("patch", f"{row.patch_id}", row.query),
        ("found", _place(row.image_id, row.x, row.y), row.found),
    ]
    if row.right is not None and row.verdict in ("shifted", "wrong"):
        shown.append(("answer", _place(row.right_image_id, row.right_x, row.right_y), row.right))
    return shown


def _verdict_text(mark: _Mark, row: MatchPicture) -> str:
    distance = "" if row.distance_px is None else f", {row.distance_px:.1f} px off"
    confidence = "" if row.confidence is None else f"   confidence {row.confidence:.2f}"
    return f"{mark.word}{distance}{confidence}"


def _place(image_id: int | None, x: int | None, y: int | None) -> str:
    return f"image {image_id}, x {x}, y {y}"


def _legend(rows: Sequence[MatchPicture], pixel_m: float | None) -> str:
    height, width = rows[0].query.shape[:2]
    ground = f", {height * pixel_m:g} × {width * pixel_m:g} m" if pixel_m else ""
    size = f"Each image {height} × {width} px{ground}"
    return (
        f"{size}, stretched by itself ({STRETCH_PERCENT[0]:g}-{STRETCH_PERCENT[1]:g} %); hatched: no pixels. "
        "x, y: column and row of the top-left pixel, from 0."
    )
