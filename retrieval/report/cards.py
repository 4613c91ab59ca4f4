"""Texts and pictures of the cards, and the choices of the filters above them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from math import isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.report.card_data import Card
from retrieval.report.image_crops import MARGIN_PX, SHIFT_PX
from retrieval.report.layout import Layout, metres
from retrieval.report.pictures import heat_uri, infrared, natural, patch_uri, small_uri
from retrieval.types import StoredImage

SIGNS = {"right": "✓", "shifted": "≈", "wrong": "✗", "unknown": "?"}
"""Signs of the verdicts."""
WORDS = {"right": "right", "shifted": "right image, another place", "wrong": "wrong image", "unknown": ""}
"""Words of the verdicts."""
MAX_LETTERS = 160
"""Largest number of letters of a value from the table."""
SIMPLE_TYPES = (str, int, float, np.generic, date)
"""Types of other columns that are shown: no geometries and no lists."""
EMPTY = ("", "nan", "NaT", "None")
"""Texts of missing values."""
PROFILE = 8.0
"""Height of the profiles next to a surface, in its pixels."""
PEAK_DISTANCE_PX = 5
"""Smallest distance of the second peak of a surface from the first."""


@dataclass(frozen=True)
class Names:
    """Names of the images, places and files that cards mention."""

    layout: Layout
    """Names of images and places."""
    images: Mapping[int, StoredImage]
    """The index's image table."""
    paths: Sequence[str] = ()
    """File of each patch, in the order of the patches; empty where one file holds all."""

    def place(self, image_id: int, x: float, y: float) -> str:
        """Return a place as text."""
        return f"{self.layout.labels.get(image_id, f'image {image_id}')}, x {x:g}, y {y:g}"


@dataclass(frozen=True)
class Layer:
    """One of the two dates: its picture in natural colour and, with the bands for it, in infrared."""

    kind: str
    """`query` or `match`."""
    natural: str
    """Picture as a data URI."""
    infrared: str
    """Picture as a data URI; "" without the bands for it."""
    width: int
    height: int
    alt: str
    caption: str


@dataclass(frozen=True)
class Surroundings:
    """The match in its surroundings."""

    uri: str
    width: int
    height: int
    frame: Mapping[str, int]
    """x, y, width and height of the match."""


@dataclass(frozen=True)
class Surface:
    """The correlation around a match: a picture, a cross at the peak, and profiles through the peak."""

    uri: str
    edge: float
    """Half the side of the surface in pixels."""
    size: float
    """Side of the surface and a profile in pixels."""
    cross: str
    """SVG path of the cross."""
    profiles: Sequence[tuple[str, str]]
    """SVG paths of the area and the line of each profile."""
    caption: str


@dataclass(frozen=True)
class CardView:
    """A card, ready for the template."""

    order: int
    """Number on the page, from 0."""
    patch_id: int
    image_id: int
    """Image of the match; -1 without a match."""
    place: int
    """Number of the image's place; -1 without a match."""
    verdict: str
    verdict_text: str
    """Verdict as text; "" without an answer."""
    status: str
    """`found`, `partly_searched` or `not_found`."""
    confidence: float
    ncc: float
    """-1 without a match."""
    layers: Sequence[Layer]
    """The match and the query; empty without a match."""
    surroundings: Surroundings | None
    surface: Surface | None
    image_name: str
    position: str
    """Position of the match as text."""
    truth: str
    """The right place as text, where the match is another place."""
    truth_uri: str
    """Its picture; "" where the index lacks the image."""
    runners_up: Sequence[Mapping[str, str]]
    """uri, name, ncc and similarity of the next candidates."""
    numbers: Sequence[tuple[str, str]]
    """Names and values of all numbers."""

    @property
    def has_confidence(self) -> bool:
        """Whether a calibration gave a confidence."""
        return isfinite(self.confidence)


def card_view(card: Card, order: int, names: Names) -> CardView:
    """Return the texts and pictures of a card.

    Args:
        card: its data.
        order: its number on the page, from 0.
        names: names of images, places and files.
    """
    at = card.best
    image_id, patch_id = int(at.image_id), int(at.patch_id)
    distance = f", {at.distance_px:.1f} px off" if isfinite(at.distance_px) else ""
    has_match = card.around is not None
    return CardView(
        order=order,
        patch_id=patch_id,
        image_id=image_id,
        place=names.layout.place_of.get(image_id, -1),
        verdict=at.verdict,
        verdict_text=WORDS[at.verdict] and WORDS[at.verdict] + distance,
        status=at.status,
        confidence=float(at.confidence),
        ncc=float(at.ncc) if isfinite(at.ncc) else -1.0,
        layers=_layers(card, names) if has_match else (),
        surroundings=_surroundings(card, names) if has_match else None,
        surface=None if card.surface is None else _surface(card.surface),
        image_name=names.layout.labels[image_id] if has_match else "",
        position=_position(at, names.images[image_id]) if has_match else "",
        truth=_truth(card, names),
        truth_uri=_truth_uri(card, names),
        runners_up=_runners_up(card, names),
        numbers=_numbers(card, names),
    )


def confidence_text(value: float) -> str:
    """Return a confidence with three decimals, never rounded up to 1 or down to 0."""
    if 0 < value < 0.001:
        return "< 0.001"
    return "> 0.999" if 0.999 < value < 1 else f"{value:.3f}"


# --- pictures -------------------------------------------------------------------------------------


def _layers(card: Card, names: Names) -> list[Layer]:
    assert card.match is not None
    image, patch = names.images[int(card.best.image_id)], f"patch {int(card.best.patch_id)}"
    match = _layer("match", card.match, image.bands, f"match of {patch}", image.date)
    return [match, _layer("query", card.query, card.bands, f"{patch}, the query", None)]


def _layer(kind: str, pixels: NDArray[Any], bands: Sequence[str], alt: str, day: str | None) -> Layer:
    height, width = pixels.shape[:2]
    false_colour = infrared(pixels, bands)
    return Layer(
        kind,
        patch_uri(natural(pixels, bands)),
        "" if false_colour is None else patch_uri(false_colour),
        width,
        height,
        alt,
        kind + (f", {day}" if day else ""),
    )


def _surroundings(card: Card, names: Names) -> Surroundings:
    assert card.around is not None
    height, width = card.around.shape[:2]
    frame = {"x": MARGIN_PX, "y": MARGIN_PX, "width": width - 2 * MARGIN_PX, "height": height - 2 * MARGIN_PX}
    uri = small_uri(natural(card.around, names.images[int(card.best.image_id)].bands))
    return Surroundings(uri, width, height, frame)


def _surface(surface: NDArray[np.float32]) -> Surface:
    filled = np.where(np.isfinite(surface), surface, -1.0)
    row, col = (int(v) for v in np.unravel_index(int(filled.argmax()), filled.shape))
    peak = float(filled[row, col])
    x, y = float(col) - SHIFT_PX, float(row) - SHIFT_PX
    low, high, edge = 0.0, max(peak, 0.2), SHIFT_PX + 0.5
    return Surface(
        heat_uri(surface, low, high),
        edge,
        2 * edge + PROFILE + 1,
        f"M{x} {y - 4}V{y - 1.5}M{x} {y + 1.5}V{y + 4}M{x - 4} {y}H{x - 1.5}M{x + 1.5} {y}H{x + 4}",
        [_profile(filled[row], low, high, across=True), _profile(filled[:, col], low, high, across=False)],
        f"peak {peak:.2f} at {_signed(x)}, {_signed(y)} px, next {_next_peak(filled, row, col):.2f}",
    )


def _profile(values: NDArray[Any], low: float, high: float, across: bool) -> tuple[str, str]:
    """Return the SVG paths of a profile: the area and the line, below the surface or at its right."""
    edge = SHIFT_PX + 0.5
    heights = np.clip((values - low) / (high - low), 0, 1) * PROFILE
    shift = np.arange(len(values)) - SHIFT_PX
    if across:
        foot, points = edge + 1 + PROFILE, zip(shift, edge + 1 + PROFILE - heights, strict=True)
        start, end = f"M{shift[0]} {foot}L", f"L{shift[-1]} {foot}Z"
    else:
        foot, points = edge + 1, zip(edge + 1 + heights, shift, strict=True)
        start, end = f"M{foot} {shift[0]}L", f"L{foot} {shift[-1]}Z"
    line = "L".join(f"{a:.2f} {b:.2f}" for a, b in points)
    return start + line + end, "M" + line


def _next_peak(surface: NDArray[Any], row: int, col: int) -> float:
    """Return the highest value at least `PEAK_DISTANCE_PX` from the peak."""
    rows, cols = np.indices(surface.shape)
    far = np.maximum(abs(rows - row), abs(cols - col)) >= PEAK_DISTANCE_PX
    return float(surface[far].max(initial=-1.0))


# --- texts ----------------------------------------------------------------------------------------


def _position(at: Any, image: StoredImage) -> str:
    text = f"x {_with_fraction(at.file_x, at.file_dx)}, y {_with_fraction(at.file_y, at.file_dy)}"
    text += f", {image.date}" if image.date else ""
    if isfinite(at.longitude) and isfinite(at.latitude):
        text += f", {_degrees(at.latitude, 'N', 'S')} {_degrees(at.longitude, 'E', 'W')}"
    return text


def _truth(card: Card, names: Names) -> str:
    at = card.best
    if at.verdict not in ("shifted", "wrong"):
        return ""
    text = names.place(int(at.right_image_id), at.file_right_x, at.file_right_y)
    return text if card.distance_m is None else f"{text}; {metres(card.distance_m)} away on the ground"


def _truth_uri(card: Card, names: Names) -> str:
    if card.truth is None:
        return ""
    return patch_uri(natural(card.truth, names.images[int(card.best.right_image_id)].bands))


def _runners_up(card: Card, names: Names) -> list[dict[str, str]]:
    items = []
    for runner_up in card.runners_up:
        at = runner_up.candidate
        items.append(
            {
                "uri": small_uri(natural(runner_up.pixels, names.images[int(at.image_id)].bands)),
                "name": names.place(int(at.image_id), at.file_x, at.file_y),
                "ncc": f"{at.ncc:.2f}",
                "similarity": f"{at.similarity:.2f}",
            }
        )
    return items


def _numbers(card: Card, names: Names) -> list[tuple[str, str]]:
    at = card.best
    rows: list[tuple[str, Any]] = [("patch", int(at.patch_id))]
    if names.paths:
        rows.append(("file", names.paths[card.row]))
    if card.around is not None:
        image = names.images[int(at.image_id)]
        rows += [("image", int(at.image_id)), ("image file", image.path), ("date", image.date or "")]
        rows.append(("x, y", f"{at.file_x}, {at.file_y}"))
        rows.append(("dx, dy", f"{_signed(at.file_dx, 3)}, {_signed(at.file_dy, 3)} px"))
        rows += [("NCC", f"{at.ncc:.4f}"), ("similarity", f"{at.similarity:.4f}")]
        if isfinite(at.longitude) and isfinite(at.latitude):
            rows.append(("longitude, latitude", f"{at.longitude:.6f}, {at.latitude:.6f}"))
    rows += [("status", at.status), ("confidence", f"{at.confidence:.6f}")]
    rows += [(name, value) for name, value in card.other_columns.items() if isinstance(value, SIMPLE_TYPES)]
    return [(name, text) for name, value in rows if (text := _short(value)) not in EMPTY]


def _short(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, (float, np.floating)) else str(value)
    return text if len(text) <= MAX_LETTERS else text[:MAX_LETTERS] + "…"


def _degrees(value: float, positive: str, negative: str) -> str:
    """Return degrees with a letter, to five decimals: 1 m."""
    return f"{abs(value):.5f}° {positive if value >= 0 else negative}"


def _with_fraction(whole: int, fraction: float) -> str:
    return f"{whole + fraction:.2f}" if isfinite(fraction) else f"{whole}"


def _signed(value: float, places: int = 0) -> str:
    return "0" if value == 0 else f"{value:+.{places}f}".replace("-", "−")


# --- filters --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Filters:
    """Choices of the form above the cards."""

    verdicts: Sequence[tuple[str, str, str]]
    """Verdict, sign and text of each; empty without answers."""
    places: Sequence[tuple[int, str]]
    """Numbers and names of places; empty where every image is a place."""
    images: Sequence[tuple[int, str]]
    """Ids and names of images."""
    has_infrared: bool
    """Whether some patch has a near-infrared band."""


def filters(cards: Sequence[CardView], layout: Layout, has_answers: bool) -> Filters:
    """Return the choices that the cards offer.

    Args:
        cards: the cards of the page.
        layout: names of images and places.
        has_answers: whether verdicts are known.
    """
    count = Counter(card.verdict for card in cards)
    verdicts = [(k, SIGNS[k], f"{WORDS[k] or 'no answer'} ({count[k]})") for k in SIGNS if count[k]]
    ids = sorted({card.image_id for card in cards if card.image_id >= 0})
    numbers = sorted({layout.place_of[image_id] for image_id in ids})
    several = len(layout.places) < len(layout.labels)
    return Filters(
        verdicts if has_answers else (),
        [(n, layout.places[n]) for n in numbers] if several else (),
        [(image_id, layout.labels[image_id]) for image_id in ids],
        any(layer.kind == "query" and layer.infrared for card in cards for layer in card.layers),
    )
