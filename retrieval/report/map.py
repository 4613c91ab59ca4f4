"""The map: sheets of image overviews, with the footprints of what was found on them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from retrieval.config import PATCH_PX
from retrieval.report.cards import SIGNS, probability
from retrieval.report.found import Results
from retrieval.report.markup import Markup, join, tag
from retrieval.report.pictures import Overview
from retrieval.report.places import Affine, Layout, Placed, Sheet, metres, scale_bar

MOST_SHEETS = 120
"""Sheets on the page, at most; those with shown patches and with most matches are kept."""
MOST_FOOTPRINTS = 4000
"""Footprints on the page, at most: more can't be told apart, and browsers grow slow."""
SHEET_UNITS = 1000.0
"""Longest side of a sheet in units of its picture."""
SHEET_PX = 240.0
"""Width at which most sheets are shown, about: smaller footprints than 6 px are dots."""
PICTURE_BUDGET = 2_500_000
"""Pixels of all overviews together."""
SIDES_PX = (48, 480)
"""Least and most pixels of an overview's side."""
KINDS = {
    "right": "right",
    "shifted": "right image, another place",
    "wrong": "wrong image",
    "sure": "probability 0.9 or more",
    "middling": "0.5 to 0.9",
    "unsure": "below 0.5",
}
"""Classes of footprints, and what they mean."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What the map shows."""

    layout: Layout
    """Where all images lie."""
    sheets: tuple[Sheet, ...]
    """The sheets that are shown."""
    rows: tuple[int, ...]
    """Rows of `Results.best` whose footprints are drawn, those that matter most last: on top."""

    @property
    def overviews(self) -> dict[int, int]:
        """Image ids of what is shown, each with the side of its overview in pixels."""
        ids = [placed.image.image_id for sheet in self.sheets for placed in sheet.images]
        side = int(np.clip(np.sqrt(PICTURE_BUDGET / max(len(ids), 1)), *SIDES_PX))
        return dict.fromkeys(ids, side)


def plan(layout: Layout, found: Results, chosen: Sequence[int]) -> Plan:
    """Choose sheets and footprints.

    Args:
        layout: where all images lie.
        found: what was found.
        chosen: rows of the patches that have a card.
    """
    best = found.best
    matches = best[best.image_id >= 0]
    count = matches.image_id.value_counts().to_dict()
    shown = set(best.image_id.iloc[list(chosen)]) | set(best.right_image_id.iloc[list(chosen)])
    worth = [
        (sum((p.image.image_id in shown) * 10**9 + count.get(p.image.image_id, 0) for p in sheet.images), -n)
        for n, sheet in enumerate(layout.sheets)
    ]
    kept = sorted(sorted(range(len(worth)), key=lambda n: worth[n], reverse=True)[:MOST_SHEETS])
    others = np.setdiff1d(np.flatnonzero(best.image_id >= 0), chosen)
    room = max(MOST_FOOTPRINTS - len(chosen), 0)
    if len(others) > room:
        others = others[np.linspace(0, len(others) - 1, room).round().astype(int)]
    failed = np.asarray(best.verdict.isin(("shifted", "wrong")))
    order = [*others[np.argsort(failed[others], kind="stable")], *(row for row in reversed(chosen))]
    return Plan(layout, tuple(layout.sheets[n] for n in kept), tuple(int(row) for row in order))


def map_section(
    plan: Plan, found: Results, overviews: Mapping[int, Overview], chosen: Sequence[int]
) -> Markup:
    """The map.

    Args:
        plan: from `plan`.
        found: what was found.
        overviews: by image id.
        chosen: rows of the patches that have a card, to which their footprints lead.
    """
    by_image: dict[int, list[Markup]] = defaultdict(list)
    cards, kinds = set(chosen), set()
    for row, at in zip(plan.rows, found.best.iloc[list(plan.rows)].itertuples(), strict=True):
        kind = _kind(at)
        kinds.add(kind)
        by_image[int(at.image_id)].append(_footprint(at, kind, plan.layout, row in cards))
        if row in cards and at.verdict in ("shifted", "wrong"):
            by_image[int(at.right_image_id)].append(_truth(at))
    sheets = [_sheet(sheet, plan.layout, overviews, by_image, found) for sheet in plan.sheets]
    total, drawn = int((found.best.image_id >= 0).sum()), len(plan.rows)
    notes = [f"All {total} matches." if drawn == total else f"{drawn} of {total} matches, a spread of them."]
    if len(plan.sheets) < len(plan.layout.sheets):
        notes.append(
            f"{len(plan.sheets)} of {len(plan.layout.sheets)} sheets are shown, those with most matches."
        )
    if any(sheet.unit_m for sheet in plan.sheets):
        notes.append("North is up where an image has a coordinate reference system.")
    return tag(
        "section",
        tag("h2", "Map of the index", id="map"),
        tag("p", " ".join(notes), class_="quiet"),
        _legend([kind for kind in KINDS if kind in kinds]),
        tag("a", "Skip the map", href="#patches", class_="skip inline"),
        tag(
            "p",
            "Point at a footprint, or go there with Tab: here is told what it is.",
            id="readout",
            class_="readout",
        ),
        tag("div", *sheets, class_=f"sheets {_size(len(plan.sheets))}"),
        aria_labelledby="map",
    )


def _size(sheets: int) -> str:
    """How large sheets are: few of them have room."""
    return "few" if sheets <= 8 else "some" if sheets <= 40 else "many"


def _kind(at: Any) -> str:
    if at.verdict != "unknown":
        return str(at.verdict)
    return "sure" if at.confidence >= 0.9 else "middling" if at.confidence >= 0.5 else "unsure"


def _legend(kinds: Iterable[str]) -> Markup:
    told = [
        tag(
            "li",
            tag(
                "svg",
                tag("rect", x=2, y=2, width=20, height=14, class_=f"print {kind}"),
                viewBox="0 0 24 18",
                aria_hidden="true",
            ),
            KINDS[kind],
        )
        for kind in kinds
    ]
    return tag("ul", *told, class_="legend")


# --- footprints -----------------------------------------------------------------------------------


def _footprint(at: Any, kind: str, layout: Layout, has_card: bool) -> Markup:
    """One match: a square on its image, which leads to its card where it has one."""
    number, image_id = int(at.patch_id), int(at.image_id)
    verdict = f"{SIGNS[at.verdict]} {KINDS[kind]}, " if at.verdict != "unknown" else ""
    place = f"{layout.labels[image_id]}, x {at.x}, y {at.y}"
    told = f"Patch {number}: {verdict}{place}, probability {probability(at.confidence)}"
    width, height = int(at.width), int(at.height)
    square = tag("rect", x=int(at.x), y=int(at.y), width=width, height=height)
    middle = tag("path", d=f"M{int(at.x) + width // 2} {int(at.y) + height // 2}h0", class_="middle")
    about = {
        "class_": f"print {kind}",
        "data_patch": number,
        "data_confidence": f"{at.confidence:.6f}",
        "data_verdict": at.verdict,
        "data_image": image_id,
        "data_place": layout.place_of[image_id],
        "data_told": told,
    }
    if has_card:
        return tag("a", square, middle, href=f"#patch-{number}", aria_label=told, **about)
    return tag("g", square, middle, **about)


def _truth(at: Any) -> Markup:
    """Where a patch with a wrong answer belongs; seen while that is pointed at."""
    side = {"width": int(at.width), "height": int(at.height)}
    return tag(
        "rect", x=int(at.right_x), y=int(at.right_y), **side, class_="belongs", data_patch=int(at.patch_id)
    )


# --- sheets ---------------------------------------------------------------------------------------


def _sheet(
    sheet: Sheet,
    layout: Layout,
    overviews: Mapping[int, Overview],
    by_image: Mapping[int, list[Markup]],
    found: Results,
) -> Markup:
    left, top, right, bottom = sheet.box()
    unit = SHEET_UNITS / max(right - left, bottom - top)
    groups = [_image(placed, (left, top, unit), overviews, by_image) for placed in sheet.images]
    ids = [placed.image.image_id for placed in sheet.images]
    mine = found.best[found.best.image_id.isin(ids)]
    failed = int(mine.verdict.isin(("shifted", "wrong")).sum())
    count = f"{len(mine)} match{'es' * (len(mine) != 1)}" + (f", {failed} failed" if failed else "")
    room = [(SHEET_UNITS - side * unit) / 2 for side in (right - left, bottom - top)]  # to the square's edges
    dates = sorted({placed.image.date for placed in sheet.images if placed.image.date})
    date = dates[0] if len(dates) == 1 and dates[0] not in sheet.name else None
    return tag(
        "figure",
        tag(
            "svg",
            *groups,
            viewBox=f"{-room[0]:.1f} {-room[1]:.1f} {SHEET_UNITS:g} {SHEET_UNITS:g}",
            role="group",
            aria_label=f"{sheet.name}: {count}",
            class_="sheet",
        ),
        _bar(sheet, SHEET_UNITS / unit) if sheet.unit_m else None,
        tag("figcaption", tag("b", sheet.name), tag("span", join((date, count), ", "), class_="quiet")),
        class_="panel wide" if len(sheet.images) > 3 else "panel",
        data_place=sheet.place,
    )


def _image(
    placed: Placed,
    corner: tuple[float, float, float],
    overviews: Mapping[int, Overview],
    by_image: Mapping[int, list[Markup]],
) -> Markup:
    """One image with its footprints, drawn in its own pixels."""
    image, picture = placed.image, overviews[placed.image.image_id]
    affine = _moved(placed.affine, *corner)
    a, b, c, d, e, f = affine
    small = PATCH_PX * float(np.hypot(a, d)) * SHEET_PX / SHEET_UNITS < 6
    return tag(
        "g",
        tag(
            "image",
            href=picture.uri,
            width=picture.width,
            height=picture.height,
            preserveAspectRatio="none",
            aria_hidden="true",
        ),
        tag("rect", tag("title", placed.label), width=image.width, height=image.height, class_="edge"),
        *by_image.get(image.image_id, ()),
        transform=f"matrix({a:.8g} {d:.8g} {b:.8g} {e:.8g} {c:.8g} {f:.8g})",
        class_="image small" if small else "image",
    )


def _moved(affine: Affine, left: float, top: float, unit: float) -> Affine:
    """The same affine, seen from the corner of the sheet, in the units of its picture."""
    a, b, c, d, e, f = affine
    return a * unit, b * unit, (c - left) * unit, d * unit, e * unit, (f - top) * unit


def _bar(sheet: Sheet, width: float) -> Markup:
    """A bar that says how long a length on the ground is."""
    assert sheet.unit_m is not None
    length = scale_bar(width * sheet.unit_m)
    share = 100 * length / (width * sheet.unit_m)
    return tag(
        "svg",
        tag("rect", x="0%", y=3, width=f"{share:.2f}%", height=4, class_="scale"),
        tag("text", metres(length), x=f"{share:.2f}%", y=9, dx=6),
        class_="bar-of-scale",
        role="img",
        aria_label=f"scale: the bar is {metres(length)}",
    )
