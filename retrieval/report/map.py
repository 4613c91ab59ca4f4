"""The map: sheets of image overviews, with the footprints of the matches on them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np

from retrieval.config import PATCH_PX
from retrieval.report.cards import SIGNS, WORDS, confidence_text
from retrieval.report.layout import Affine, Layout, Placed, Sheet, metres, scale_bar
from retrieval.report.patch_results import PatchResults
from retrieval.report.pictures import Overview

MAX_SHEETS = 120
"""Largest number of sheets; those with patches on the page and with most matches are kept."""
MAX_FOOTPRINTS = 4000
"""Largest number of footprints: more overlap too much, and slow browsers down."""
SHEET_UNITS = 1000.0
"""Longest side of a sheet in SVG units."""
SHEET_PX = 240.0
"""Typical width of a sheet on screen; footprints below 6 px are drawn as dots."""
PICTURE_BUDGET = 2_500_000
"""Pixels of all overviews together."""
SIDES_PX = (48, 480)
"""Smallest and largest side of an overview."""
KINDS = {k: WORDS[k] for k in ("right", "shifted", "wrong")} | {
    "sure": "confidence 0.9 or more",
    "middling": "0.5 to 0.9",
    "unsure": "below 0.5",
    "match": "match without confidence",
}
"""Classes of footprints: by verdict, or by confidence without an answer."""


@dataclass(frozen=True, eq=False)
class MapPlan:
    """The sheets and footprints to draw."""

    layout: Layout
    """The sheets of all images."""
    sheets: tuple[Sheet, ...]
    """The sheets to draw."""
    rows: tuple[int, ...]
    """Rows of `PatchResults.best` whose footprints are drawn; the most important come last, on top."""

    @property
    def overviews(self) -> dict[int, int]:
        """Ids of the images on the sheets, each with the side of its overview in pixels."""
        ids = [placed.image.image_id for sheet in self.sheets for placed in sheet.images]
        side = int(np.clip(np.sqrt(PICTURE_BUDGET / max(len(ids), 1)), *SIDES_PX))
        return dict.fromkeys(ids, side)


@dataclass(frozen=True)
class Footprint:
    """One match on the map."""

    patch_id: int
    image_id: int
    place: int
    """Number of the place."""
    kind: str
    """Class of `KINDS`."""
    verdict: str
    confidence: float
    label: str
    """Description for the reader."""
    x: int
    """Column of the top-left pixel in the image."""
    y: int
    """Row."""
    width: int
    height: int
    has_card: bool
    """Whether it links to a card."""


@dataclass(frozen=True)
class RightPlace:
    """The right place of a patch with a wrong match; visible while its footprint is selected."""

    patch_id: int
    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class ImageView:
    """An image on a sheet, drawn in its own pixels."""

    placed: Placed
    overview: Overview
    matrix: str
    """SVG transform from its pixels to the sheet."""
    is_small: bool
    """Whether footprints are too small for outlines."""
    footprints: Sequence[Footprint]
    right_places: Sequence[RightPlace]


@dataclass(frozen=True)
class SheetView:
    """A sheet of the map."""

    name: str
    place: int
    images: Sequence[ImageView]
    view_box: str
    date: str
    """Date of its images, where they share one that is not in the name."""
    count: str
    """Number of matches and failures as text."""
    scale: tuple[str, float] | None
    """Length of the scale bar on the ground, and its share of the width in percent."""

    @property
    def is_wide(self) -> bool:
        """Whether the sheet takes two columns."""
        return len(self.images) > 3


@dataclass(frozen=True)
class MapView:
    """The map section of the page."""

    sheets: Sequence[SheetView]
    kinds: Sequence[tuple[str, str]]
    """Classes of the footprints, and their meanings."""
    notes: str

    @property
    def size(self) -> str:
        """Size class of the sheets: the fewer, the larger."""
        count = len(self.sheets)
        return "few" if count <= 8 else "medium" if count <= 40 else "many"


def plan_map(layout: Layout, results: PatchResults, rows: Sequence[int]) -> MapPlan:
    """Choose the sheets and footprints to draw.

    Args:
        layout: the sheets of all images.
        results: the results of the query.
        rows: rows of the patches that have a card.
    """
    best = results.best
    matches = best[best.image_id >= 0]
    count = matches.image_id.value_counts().to_dict()
    with_card = set(best.image_id.iloc[list(rows)]) | set(best.right_image_id.iloc[list(rows)])
    weights = []
    for n, sheet in enumerate(layout.sheets):
        ids = [placed.image.image_id for placed in sheet.images]
        weights.append((sum((i in with_card) * 10**9 + count.get(i, 0) for i in ids), -n))
    heaviest = sorted(range(len(weights)), key=lambda n: weights[n], reverse=True)[:MAX_SHEETS]
    others = np.setdiff1d(np.flatnonzero(best.image_id >= 0), rows)
    room = max(MAX_FOOTPRINTS - len(rows), 0)
    if len(others) > room:
        others = others[np.linspace(0, len(others) - 1, room).round().astype(int)]
    failed = np.asarray(best.verdict.isin(("shifted", "wrong")))
    order = [*others[np.argsort(failed[others], kind="stable")], *reversed(rows)]
    sheets = tuple(layout.sheets[n] for n in sorted(heaviest))
    return MapPlan(layout, sheets, tuple(int(row) for row in order))


def draw_map(
    plan: MapPlan, results: PatchResults, overviews: Mapping[int, Overview], rows: Sequence[int]
) -> MapView:
    """Draw the map.

    Args:
        plan: from `plan_map`.
        results: the results of the query.
        overviews: pictures of the images by id.
        rows: rows of the patches that have a card; their footprints link to it.
    """
    footprints: dict[int, list[Footprint]] = defaultdict(list)
    right_places: dict[int, list[RightPlace]] = defaultdict(list)
    cards = set(rows)
    for row, at in zip(plan.rows, results.best.iloc[list(plan.rows)].itertuples(), strict=True):
        if at.image_id >= 0:
            footprints[int(at.image_id)].append(_footprint(at, plan.layout, row in cards))
        if row in cards and at.verdict in ("shifted", "wrong"):
            place = int(at.right_x), int(at.right_y), int(at.width), int(at.height)
            right_places[int(at.right_image_id)].append(RightPlace(int(at.patch_id), *place))
    sheets = [_sheet(sheet, overviews, footprints, right_places, results) for sheet in plan.sheets]
    kinds = {footprint.kind for members in footprints.values() for footprint in members}
    return MapView(sheets, [(k, text) for k, text in KINDS.items() if k in kinds], _notes(plan, results))


def _notes(plan: MapPlan, results: PatchResults) -> str:
    matched = np.asarray(results.best.image_id >= 0)
    total, drawn = int(matched.sum()), int(matched[list(plan.rows)].sum())
    notes = [
        f"All {total} matches." if drawn == total else f"An even selection of {drawn} of {total} matches."
    ]
    if len(plan.sheets) < len(plan.layout.sheets):
        notes.append(f"{len(plan.sheets)} of {len(plan.layout.sheets)} sheets, those with most matches.")
    if any(sheet.unit_m for sheet in plan.sheets):
        notes.append("North is up where an image has a coordinate reference system.")
    return " ".join(notes)


def _footprint(at: Any, layout: Layout, has_card: bool) -> Footprint:
    patch_id, image_id, verdict = int(at.patch_id), int(at.image_id), str(at.verdict)
    kind = verdict
    if verdict == "unknown":
        kind = _confidence_kind(float(at.confidence))
    judged = f"{SIGNS[verdict]} {KINDS[kind]}, " if verdict != "unknown" else ""
    place = f"{layout.labels[image_id]}, x {at.file_x}, y {at.file_y}"
    confidence = f", confidence {confidence_text(at.confidence)}" if isfinite(at.confidence) else ""
    return Footprint(
        patch_id=patch_id,
        image_id=image_id,
        place=layout.place_of[image_id],
        kind=kind,
        verdict=verdict,
        confidence=float(at.confidence),
        label=f"Patch {patch_id}: {judged}{place}{confidence}",
        x=int(at.x),
        y=int(at.y),
        width=int(at.width),
        height=int(at.height),
        has_card=has_card,
    )


def _confidence_kind(confidence: float) -> str:
    if not isfinite(confidence):
        return "match"
    return "sure" if confidence >= 0.9 else "middling" if confidence >= 0.5 else "unsure"


def _sheet(
    sheet: Sheet,
    overviews: Mapping[int, Overview],
    footprints: Mapping[int, list[Footprint]],
    right_places: Mapping[int, list[RightPlace]],
    results: PatchResults,
) -> SheetView:
    left, top, right, bottom = sheet.box()
    unit = SHEET_UNITS / max(right - left, bottom - top)
    ids = [placed.image.image_id for placed in sheet.images]
    images = []
    for placed, i in zip(sheet.images, ids, strict=True):
        a, b, c, d, e, f = _in_sheet_units(placed.affine, left, top, unit)
        is_small = PATCH_PX * float(np.hypot(a, d)) * SHEET_PX / SHEET_UNITS < 6
        matrix = f"matrix({a:.8g} {d:.8g} {b:.8g} {e:.8g} {c:.8g} {f:.8g})"
        marks = footprints.get(i, ()), right_places.get(i, ())
        images.append(ImageView(placed, overviews[i], matrix, is_small, *marks))
    members = results.best[results.best.image_id.isin(ids)]
    failed = int(members.verdict.isin(("shifted", "wrong")).sum())
    count = f"{len(members)} match{'es' * (len(members) != 1)}" + (f", {failed} failed" if failed else "")
    border = [
        (SHEET_UNITS - side * unit) / 2 for side in (right - left, bottom - top)
    ]  # the picture is square
    view_box = f"{-border[0]:.1f} {-border[1]:.1f} {SHEET_UNITS:g} {SHEET_UNITS:g}"
    dates = sorted({placed.image.date for placed in sheet.images if placed.image.date})
    date = dates[0] if len(dates) == 1 and dates[0] not in sheet.name else ""
    scale = _scale(sheet.unit_m, SHEET_UNITS / unit)
    return SheetView(sheet.name, sheet.place, images, view_box, date, count, scale)


def _in_sheet_units(affine: Affine, left: float, top: float, unit: float) -> Affine:
    """Return an affine relative to the corner of the sheet, in SVG units."""
    a, b, c, d, e, f = affine
    return a * unit, b * unit, (c - left) * unit, d * unit, e * unit, (f - top) * unit


def _scale(unit_m: float | None, width: float) -> tuple[str, float] | None:
    """Return the length and the share of the width of a scale bar; None where the size is unknown."""
    if not unit_m:
        return None
    length = scale_bar(width * unit_m)
    return metres(length), 100 * length / (width * unit_m)
