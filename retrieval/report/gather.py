"""All that a card shows of a patch, cut and correlated: what `cards` then writes down."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX
from retrieval.geo.coordinates import lonlat
from retrieval.index.folder import IndexFolder
from retrieval.matching.tensors import shared_columns
from retrieval.report.cuts import AROUND_PX, SHIFT_PX, Cuts, Request, correlations, cut, shifts_inside
from retrieval.report.found import Results
from retrieval.types import Progress
from tfrecords.schema import Chips, Patches

EARTH_M = 6_371_000.0
RUNNERS_UP = 4
"""Other candidates that a card shows, at most."""
HIDDEN = ("rank", "geometry", "footprint")
"""Columns of the table that say nothing to a reader."""


@dataclass(frozen=True, eq=False)
class Other:
    """A candidate that was not the answer."""

    place: Any
    """Its row of the table of candidates."""
    pixels: NDArray[np.float32]
    """(h, w, b) its window."""


@dataclass(frozen=True, eq=False)
class Card:
    """A patch and what there is to see of it."""

    row: int
    """Its row in `Results.best`."""
    best: Any
    """That row."""
    query: NDArray[np.float32]
    """(h, w, b) what was asked, scaled, NaN where nothing is known."""
    bands: tuple[str, ...]
    """Its bands."""
    around: NDArray[np.float32] | None
    """(h + 128, w + 128, b) what was found and 64 px around it; None where nothing was found."""
    surface: NDArray[np.float32] | None
    """(33, 33) NCC around what was found, of the middle 64 x 64 pixels."""
    others: tuple[Other, ...]
    """The next best candidates."""
    truth: NDArray[np.float32] | None
    """(h, w, b) what is right, where another place was found; None where it is not known."""
    ground_m: float | None
    """Metres on the ground from what was found to what is right; None where either is not on the map. Another
    image may show the same ground."""
    more: Mapping[str, Any]
    """Whatever else the table says of the answer, by column."""

    @property
    def found(self) -> NDArray[np.float32] | None:
        """(h, w, b) the window that was found."""
        inner = slice(AROUND_PX, -AROUND_PX)
        return None if self.around is None else self.around[inner, inner]


def gather(
    found: Results,
    rows: Sequence[int],
    store: IndexFolder,
    patches: Patches | Chips,
    overviews: Mapping[int, int],
    progress: Progress,
) -> tuple[list[Card], Cuts]:
    """Cut all windows that some patches need, and correlate the patches with what was found.

    Args:
        found: what was found.
        rows: of the patches that are shown, in their order.
        store: the index.
        patches: what was asked.
        overviews: image ids, each with the longest side of its overview in pixels.
        progress: told of images.

    Returns:
        A card for each row; and the overviews.
    """
    asked = _Windows(found, rows, store)
    cuts = cut(store, asked.requests(), overviews, progress)
    queries = [patches.scaled_one(row) for row in rows]
    bands = [patches.bands_of(row) for row in rows]
    answers = [asked.answer(row) for row in rows]
    around = [None if answer is None else cuts.windows[answer] for answer in answers]
    surfaces = _surfaces(asked, queries, around, bands)
    cards = []
    for n, row in enumerate(rows):
        others = tuple(Other(place, cuts.windows[asked.other(row, place)]) for place in asked.others[row])
        truth = asked.truth(row)
        cards.append(
            Card(
                row,
                asked.best[row],
                queries[n],
                bands[n],
                around[n],
                surfaces.get(n),
                others,
                cuts.windows.get(truth) if truth else None,
                asked.ground_m(row) if truth else None,
                asked.more[row],
            )
        )
    return cards, cuts


class _Windows:
    """What is to be cut for some patches."""

    def __init__(self, found: Results, rows: Sequence[int], store: IndexFolder) -> None:
        self.rows, self.folder = rows, store
        self.best = {row: at for row, at in zip(rows, found.best.iloc[list(rows)].itertuples(), strict=True)}
        table = found.candidates[found.candidates.patch_id.isin([at.patch_id for at in self.best.values()])]
        extra = [c for c in table if c not in found.best and c not in HIDDEN]
        by_patch = {patch_id: part for patch_id, part in table.groupby("patch_id")}
        self.others: dict[int, list[Any]] = {}
        self.more: dict[int, dict[str, Any]] = {}
        for row, at in self.best.items():
            part = by_patch.get(at.patch_id)
            self.others[row] = [] if part is None else list(part.iloc[1 : 1 + RUNNERS_UP].itertuples())
            self.more[row] = {} if part is None else part[extra].iloc[0].to_dict()

    def answer(self, row: int) -> Request | None:
        """The window that was found, with its surroundings."""
        at = self.best[row]
        if at.image_id < 0:
            return None
        return Request(int(at.image_id), int(at.x), int(at.y), AROUND_PX, int(at.width), int(at.height))

    def truth(self, row: int) -> Request | None:
        """The right window, where another was found and the index holds it."""
        at = self.best[row]
        if at.verdict not in ("shifted", "wrong") or int(at.right_image_id) not in self.folder.images:
            return None
        side = int(at.width), int(at.height)
        return Request(int(at.right_image_id), int(at.right_x), int(at.right_y), 0, *side)

    def other(self, row: int, place: Any) -> Request:
        """The window of another candidate."""
        at = self.best[row]
        return Request(int(place.image_id), int(place.x), int(place.y), 0, int(at.width), int(at.height))

    def ground_m(self, row: int) -> float | None:
        """Metres between what was found and what is right, by the haversine formula."""
        at = self.best[row]
        ids = np.array([at.image_id, at.right_image_id])
        x, y = np.array([at.x, at.right_x], float), np.array([at.y, at.right_y], float)
        east, north = np.radians(lonlat(self.folder.images, ids, x, y, at.width, at.height))
        if not np.isfinite(east).all():
            return None
        half = (np.diff(north)[0] / 2, np.diff(east)[0] / 2)
        chord = np.sin(half[0]) ** 2 + np.cos(north).prod() * np.sin(half[1]) ** 2
        return float(2 * EARTH_M * np.arcsin(np.sqrt(min(chord, 1.0))))

    def requests(self) -> list[Request]:
        """All windows."""
        wanted: list[Request | None] = []
        for row in self.rows:
            wanted += [
                self.answer(row),
                self.truth(row),
                *(self.other(row, place) for place in self.others[row]),
            ]
        return [request for request in wanted if request is not None]


def _surfaces(
    asked: _Windows,
    queries: Sequence[NDArray[np.float32]],
    around: Sequence[NDArray[np.float32] | None],
    bands: Sequence[tuple[str, ...]],
) -> dict[int, NDArray[np.float32]]:
    """NCC around what was found, by number of the card; those of the same bands are done together."""
    groups: dict[tuple[tuple[str, ...], ...], list[int]] = defaultdict(list)
    for n, row in enumerate(asked.rows):
        if around[n] is not None:
            groups[bands[n], asked.folder.bands(int(asked.best[row].image_id))].append(n)
    surfaces: dict[int, NDArray[np.float32]] = {}
    for (given, stored), members in groups.items():
        mine, theirs = map(list, shared_columns(given, stored))
        beyond = AROUND_PX - SHIFT_PX
        regions = np.stack([_middle(around[n], beyond, SHIFT_PX)[..., theirs] for n in members])
        inside = np.stack([asked_inside(asked, asked.rows[n]) for n in members])
        made = correlations(np.stack([_middle(queries[n])[..., mine] for n in members]), regions, inside)
        surfaces |= dict(zip(members, made, strict=True))
    return surfaces


def _middle(pixels: Any, beyond: int = 0, margin: int = 0) -> NDArray[np.float32]:
    """The middle 64 x 64 pixels of a window and a margin, where the window has been cut with more beyond."""
    top, left = (_begin(side - 2 * (beyond + margin)) + beyond for side in pixels.shape[:2])
    side = PATCH_PX + 2 * margin
    return np.asarray(pixels[top : top + side, left : left + side])


def _begin(side: int) -> int:
    return (side - PATCH_PX) // 2


def asked_inside(asked: _Windows, row: int) -> NDArray[np.bool_]:
    """Which shifts of an answer leave the middle of the patch inside its image."""
    at = asked.best[row]
    image = asked.folder.images[int(at.image_id)]
    x, y = int(at.x) + _begin(int(at.width)), int(at.y) + _begin(int(at.height))
    return shifts_inside(image.width, image.height, x, y)
