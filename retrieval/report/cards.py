"""A card a patch: the two dates to swipe or blink between, the correlation, and the runners-up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.report.cuts import AROUND_PX, SHIFT_PX
from retrieval.report.gather import Card, Other
from retrieval.report.markup import Markup, folded, join, tag
from retrieval.report.pictures import drawn, heat, infrared, light, natural, smaller
from retrieval.report.places import Layout, metres
from retrieval.types import StoredImage

SIGNS = {"right": "✓", "shifted": "≈", "wrong": "✗", "unknown": "?"}
"""Signs of the verdicts, the same as in the picture of matches."""
WORDS = {"right": "right", "shifted": "right image, another place", "wrong": "wrong image", "unknown": ""}
LONGEST = 160
"""Letters of a text out of a table that are shown."""
TOLD = (str, int, float, np.generic, date)
"""Kinds of values of further columns that are shown: no geometries and no lists."""
EMPTY = ("", "nan", "NaT", "None")
"""What says nothing."""
PROFILE = 8.0
"""Height of the profiles beside a surface, in its pixels."""
APART_PX = 5
"""The next peak of a surface is looked for at least this far from the first."""


@dataclass(frozen=True)
class Words:
    """What cards call things."""

    layout: Layout
    """Names of images and places."""
    images: Mapping[int, StoredImage]
    """The index's table."""
    bands: tuple[str, ...]
    """All that some patch has."""
    paths: Sequence[str] = ()
    """File of each patch, in the order of the patches; empty where they are of one file."""

    def place(self, image_id: int, x: float, y: float) -> str:
        """A place for people."""
        return f"{self.layout.labels.get(image_id, f'image {image_id}')}, x {x:g}, y {y:g}"


def card(shown: Card, order: int, words: Words) -> Markup:
    """One patch.

    Args:
        shown: what there is to see.
        order: its number on the page, from 0.
        words: what things are called.
    """
    at = shown.best
    image_id, heading = int(at.image_id), f"heading-{int(at.patch_id)}"
    return tag(
        "article",
        _head(at, heading),
        _views(shown, words)
        if shown.around is not None
        else tag("p", "Nothing was found: no window compares with it."),
        _where(shown, words),
        _others(shown.others, words) if shown.others else None,
        folded("All numbers", _numbers(shown, words)),
        class_=f"card panel {at.verdict}",
        id=f"patch-{int(at.patch_id)}",
        tabindex="-1",
        aria_labelledby=heading,
        data_patch=int(at.patch_id),
        data_order=order,
        data_verdict=at.verdict,
        data_confidence=f"{at.confidence:.6f}",
        data_ncc=f"{at.ncc:.4f}" if isfinite(at.ncc) else "-1",
        data_image=image_id,
        data_place=words.layout.place_of.get(image_id, -1),
    )


def _head(at: Any, heading: str) -> Markup:
    word = WORDS[at.verdict]
    off = f", {at.distance_px:.1f} px off" if isfinite(at.distance_px) else ""
    verdict = tag(
        "p", tag("span", SIGNS[at.verdict], class_="sign", aria_hidden="true"), word + off, class_="verdict"
    )
    return tag(
        "header",
        tag("h3", f"Patch {int(at.patch_id)}", id=heading),
        verdict if word else None,
        tag(
            "p",
            tag("span", "probability ", class_="quiet"),
            tag("b", probability(at.confidence)),
            tag(
                "svg",
                tag("rect", width="100%", height="100%", class_="all"),
                tag("rect", width=f"{100 * at.confidence:.1f}%", height="100%"),
                class_="level",
                aria_hidden="true",
            ),
            class_="sure",
        ),
    )


def probability(value: float) -> str:
    """A probability to three places, never rounded up to 1 or down to 0."""
    if 0 < value < 0.001:
        return "< 0.001"
    return "> 0.999" if 0.999 < value < 1 else f"{value:.3f}"


# --- pictures -------------------------------------------------------------------------------------


def _views(shown: Card, words: Words) -> Markup:
    number, at = int(shown.best.patch_id), shown.best
    bands = words.images[int(at.image_id)].bands
    assert shown.around is not None and shown.found is not None
    day = words.images[int(at.image_id)].date
    stage = tag(
        "div",
        _layer("found", shown.found, bands, f"what was found for patch {number}", day),
        _layer("query", shown.query, shown.bands, f"patch {number}, the query", None),
        tag("span", class_="handle", aria_hidden="true"),
        class_="stage",
    )
    controls = tag(
        "div",
        tag(
            "label",
            tag("span", "query", class_="quiet"),
            tag(
                "input",
                type="range",
                class_="cut",
                min=0,
                max=100,
                value=50,
                step=1,
                aria_label=f"Swipe between query and found, patch {number}: percent of the query shown",
            ),
            tag("span", "found", class_="quiet"),
            class_="swipe",
        ),
        tag("button", "Showing the query: flip", type="button", class_="flip"),
        class_="controls",
    )
    around = tag(
        "figure",
        _around(shown.around, bands, f"surroundings of what was found for patch {number}"),
        tag("figcaption", f"{AROUND_PX} px around it"),
    )
    side = tag("div", _surface(shown) if shown.surface is not None else None, around, class_="side")
    return tag("div", tag("div", stage, controls), side, class_="views")


def _layer(kind: str, pixels: NDArray[Any], bands: Sequence[str], alt: str, day: str | None) -> Markup:
    """One of the two dates, in natural colour and, where there are the bands for it, in infrared."""
    red = infrared(pixels, bands)
    side = {"width": pixels.shape[1], "height": pixels.shape[0]}
    pictures = [
        tag(
            "img",
            src=drawn(natural(pixels, bands)),
            alt=alt,
            **side,
            class_="natural" if red is not None else None,
        )
    ]
    if red is not None:
        pictures.append(tag("img", src=drawn(red), alt=f"{alt}, infrared as red", **side, class_="infrared"))
    return tag(
        "figure", *pictures, tag("figcaption", kind + (f", {day}" if day else "")), class_=f"layer {kind}"
    )


def _around(pixels: NDArray[np.float32], bands: Sequence[str], alt: str) -> Markup:
    high, wide = pixels.shape[:2]
    frame = {"x": AROUND_PX, "y": AROUND_PX, "width": wide - 2 * AROUND_PX, "height": high - 2 * AROUND_PX}
    return tag(
        "svg",
        tag("image", href=light(smaller(natural(pixels, bands))), width=wide, height=high),
        tag("rect", **frame, class_="frame dark"),
        tag("rect", **frame, class_="frame"),
        viewBox=f"0 0 {wide} {high}",
        role="img",
        aria_label=alt,
        class_="around",
    )


def _surface(shown: Card) -> Markup:
    """The correlation around what was found: a picture, a cross at its peak, and profiles through that."""
    surface = shown.surface
    assert surface is not None
    filled = np.where(np.isfinite(surface), surface, -1.0)
    row, col = np.unravel_index(int(filled.argmax()), filled.shape)
    peak, next_ = float(filled[row, col]), _next_peak(filled, int(row), int(col))
    x, y = float(col) - SHIFT_PX, float(row) - SHIFT_PX
    low, high = 0.0, max(peak, 0.2)
    edge = SHIFT_PX + 0.5
    cross = f"M{x} {y - 4}V{y - 1.5}M{x} {y + 1.5}V{y + 4}M{x - 4} {y}H{x - 1.5}M{x + 1.5} {y}H{x + 4}"
    told = f"peak {peak:.2f} at {_signed(x)}, {_signed(y)} px, next {next_:.2f}"
    return tag(
        "figure",
        tag(
            "svg",
            tag(
                "image",
                href=heat(surface, low, high),
                x=-edge,
                y=-edge,
                width=2 * edge,
                height=2 * edge,
                class_="pixels",
            ),
            tag("path", d=cross, class_="cross dark"),
            tag("path", d=cross, class_="cross"),
            _profile(filled[row], low, high, across=True),
            _profile(filled[:, col], low, high, across=False),
            viewBox=f"{-edge} {-edge} {2 * edge + PROFILE + 1} {2 * edge + PROFILE + 1}",
            role="img",
            aria_label=f"Correlation around what was found, up to {SHIFT_PX} px each way: {told}",
            class_="surface",
        ),
        tag("figcaption", f"NCC {told}"),
    )


def _profile(values: NDArray[Any], low: float, high: float, across: bool) -> Markup:
    """A line through the peak of a surface, under it or at its right."""
    edge = SHIFT_PX + 0.5
    tall = np.clip((values - low) / (high - low), 0, 1) * PROFILE
    at = np.arange(len(values)) - SHIFT_PX
    pairs = (
        zip(at, edge + 1 + PROFILE - tall, strict=True) if across else zip(edge + 1 + tall, at, strict=True)
    )
    line = "L".join(f"{a:.2f} {b:.2f}" for a, b in pairs)
    foot = edge + 1 + PROFILE if across else edge + 1
    ends = (
        (f"M{at[0]} {foot}L", f"L{at[-1]} {foot}Z") if across else (f"M{foot} {at[0]}L", f"L{foot} {at[-1]}Z")
    )
    return join(
        (tag("path", d=ends[0] + line + ends[1], class_="under"), tag("path", d="M" + line, class_="profile"))
    )


def _next_peak(surface: NDArray[Any], row: int, col: int) -> float:
    """Highest value at least some pixels from the peak."""
    rows, cols = np.indices(surface.shape)
    far = np.maximum(abs(rows - row), abs(cols - col)) >= APART_PX
    return float(surface[far].max(initial=-1.0))


# --- words ----------------------------------------------------------------------------------------


def _where(shown: Card, words: Words) -> Markup | None:
    at, lines = shown.best, []
    if shown.around is not None:
        image_id = int(at.image_id)
        day = words.images[image_id].date
        told = [
            tag("b", words.layout.labels[image_id]),
            f" x {_offset(at.x, at.dx)}, y {_offset(at.y, at.dy)}",
        ]
        told += [f", {day}"] if day else []
        if isfinite(at.longitude) and isfinite(at.latitude):
            told.append(f", {degrees(at.latitude, 'N', 'S')} {degrees(at.longitude, 'E', 'W')}")
        lines.append(tag("p", tag("span", "found ", class_="quiet"), *told))
    if at.verdict in ("shifted", "wrong"):
        right = words.place(int(at.right_image_id), at.right_x, at.right_y)
        if shown.ground_m is not None:
            right += f"; {metres(shown.ground_m)} apart on the ground"
        picture = None
        if shown.truth is not None:
            bands = words.images[int(at.right_image_id)].bands
            picture = tag(
                "img", src=drawn(natural(shown.truth, bands)), alt="what is right", width=64, height=64
            )
        lines.append(
            tag("div", picture, tag("p", tag("span", "right ", class_="quiet"), right), class_="truth")
        )
    return tag("div", *lines, class_="where") if lines else None


def _others(others: Sequence[Other], words: Words) -> Markup:
    items = []
    for other in others:
        at = other.place
        bands = words.images[int(at.image_id)].bands
        name = words.place(int(at.image_id), at.x, at.y)
        picture = natural(other.pixels, bands)
        items.append(
            tag(
                "li",
                tag("img", src=light(smaller(picture)), alt=name, title=name, width=64, height=64),
                tag("span", tag("abbr", "NCC", title="normalized cross-correlation"), f" {at.ncc:.2f}"),
                tag("span", f"sim {at.similarity:.2f}", class_="quiet"),
            )
        )
    return join((tag("h4", "Runners-up"), tag("ul", *items, class_="others")))


def _numbers(shown: Card, words: Words) -> Markup:
    at = shown.best
    told: list[tuple[str, Any]] = [("patch", int(at.patch_id))]
    if words.paths:
        told.append(("file", words.paths[shown.row]))
    if shown.around is not None:
        image = words.images[int(at.image_id)]
        told += [("image", int(at.image_id)), ("image file", image.path), ("date", image.date or "")]
        told += [("x, y", f"{at.x}, {at.y}"), ("dx, dy", f"{_signed(at.dx, 3)}, {_signed(at.dy, 3)} px")]
        told += [("NCC", f"{at.ncc:.4f}"), ("similarity", f"{at.similarity:.4f}")]
        if isfinite(at.longitude) and isfinite(at.latitude):
            told.append(("longitude, latitude", f"{at.longitude:.6f}, {at.latitude:.6f}"))
    told.append(("probability", f"{at.confidence:.6f}"))
    told += [(name, value) for name, value in shown.more.items() if isinstance(value, TOLD)]
    pairs = [(tag("dt", name), tag("dd", _cut(value))) for name, value in told if _cut(value) not in EMPTY]
    return tag("dl", *(part for pair in pairs for part in pair), class_="numbers")


def _cut(value: Any) -> str:
    shown = f"{value:.6g}" if isinstance(value, (float, np.floating)) else str(value)
    return shown if len(shown) <= LONGEST else shown[:LONGEST] + "…"


def degrees(value: float, positive: str, negative: str) -> str:
    """Degrees with a letter, to five decimals: a metre."""
    return f"{abs(value):.5f}° {positive if value >= 0 else negative}"


def _offset(whole: int, part: float) -> str:
    return f"{whole + part:.2f}" if isfinite(part) else f"{whole}"


def _signed(value: float, places: int = 0) -> str:
    return "0" if value == 0 else f"{value:+.{places}f}".replace("-", "−")
