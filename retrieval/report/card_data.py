"""The pixels and correlations that the cards of the page show."""

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
from retrieval.report.image_crops import (
    MARGIN_PX,
    SHIFT_PX,
    Crops,
    Window,
    correlations,
    crop,
    shifts_inside,
)
from retrieval.report.patch_results import PatchResults
from retrieval.types import Progress
from tfrecords.schema import Chips, Patches

EARTH_M = 6_371_000.0
"""Mean radius of the Earth in metres."""
RUNNERS_UP = 4
"""Largest number of other candidates on a card."""
HIDDEN_COLUMNS = ("rank", "geometry", "footprint")
"""Columns of the table that cards leave out."""


@dataclass(frozen=True, eq=False)
class RunnerUp:
    """A candidate below the best match."""

    candidate: Any
    """Its row of the table of candidates."""
    pixels: NDArray[np.float32]
    """(h, w, b) its window."""


@dataclass(frozen=True, eq=False)
class Card:
    """A patch and the pixels that its card shows."""

    row: int
    """Row of the patch in `PatchResults.best`."""
    best: Any
    """That row."""
    query: NDArray[np.float32]
    """(h, w, b) the query patch, scaled, NaN = nodata."""
    bands: tuple[str, ...]
    """Bands of the query patch."""
    around: NDArray[np.float32] | None
    """(h + 128, w + 128, b) the match and 64 px around it; None without a match."""
    surface: NDArray[np.float32] | None
    """(33, 33) NCC of the middle 64 x 64 pixels around the match."""
    runners_up: tuple[RunnerUp, ...]
    """The next best candidates."""
    truth: NDArray[np.float32] | None
    """(h, w, b) the right window, where the match is another place; None where the index lacks it."""
    distance_m: float | None
    """Metres on the ground from the match to the right place; None where either has no CRS. Another image may
    show the same ground."""
    other_columns: Mapping[str, Any]
    """Other columns of the best candidate's row, by name."""

    @property
    def match(self) -> NDArray[np.float32] | None:
        """(h, w, b) the matched window."""
        inner = slice(MARGIN_PX, -MARGIN_PX)
        return None if self.around is None else self.around[inner, inner]


def make_cards(
    results: PatchResults,
    rows: Sequence[int],
    index: IndexFolder,
    patches: Patches | Chips,
    overviews: Mapping[int, int],
    progress: Progress,
) -> tuple[list[Card], Crops]:
    """Crop all windows that some patches need, and correlate the patches with their matches.

    Args:
        results: the results of the query.
        rows: rows of the patches to show, in order.
        index: the index folder.
        patches: the query patches.
        overviews: image ids, each with the longest side of its overview in pixels.
        progress: called after each image.

    Returns:
        A card for each row, and the crops with the overviews.
    """
    windows = _Windows(results, rows, index)
    crops = crop(index, windows.all(), overviews, progress)
    queries = [patches.scaled_one(row) for row in rows]
    bands = [patches.bands_of(row) for row in rows]
    matches = [windows.match(row) for row in rows]
    around = [None if match is None else crops.windows[match] for match in matches]
    surfaces = _surfaces(windows, queries, around, bands)
    cards = []
    for n, row in enumerate(rows):
        truth = windows.truth(row)
        cards.append(
            Card(
                row=row,
                best=windows.best[row],
                query=queries[n],
                bands=bands[n],
                around=around[n],
                surface=surfaces.get(n),
                runners_up=tuple(
                    RunnerUp(candidate, crops.windows[windows.runner_up(row, candidate)])
                    for candidate in windows.runners_up[row]
                ),
                truth=crops.windows.get(truth) if truth else None,
                distance_m=windows.distance_m(row) if truth else None,
                other_columns=windows.other_columns[row],
            )
        )
    return cards, crops


class _Windows:
    """The windows that the cards of some patches show."""

    def __init__(self, results: PatchResults, rows: Sequence[int], index: IndexFolder) -> None:
        self.rows, self.index = rows, index
        best = results.best.iloc[list(rows)].itertuples()
        self.best = dict(zip(rows, best, strict=True))
        ids = [at.patch_id for at in self.best.values()]
        table = results.candidates[results.candidates.patch_id.isin(ids)]
        names = [c for c in table if c not in results.best and c not in HIDDEN_COLUMNS]
        by_patch = {patch_id: part for patch_id, part in table.groupby("patch_id")}
        self.runners_up: dict[int, list[Any]] = {}
        self.other_columns: dict[int, dict[str, Any]] = {}
        for row, at in self.best.items():
            part = by_patch.get(at.patch_id)
            self.runners_up[row] = [] if part is None else list(part.iloc[1 : 1 + RUNNERS_UP].itertuples())
            self.other_columns[row] = {} if part is None else part[names].iloc[0].to_dict()

    def match(self, row: int) -> Window | None:
        """Return the matched window with its surroundings; None without a match."""
        at = self.best[row]
        if at.image_id < 0:
            return None
        return Window(int(at.image_id), int(at.x), int(at.y), MARGIN_PX, int(at.width), int(at.height))

    def truth(self, row: int) -> Window | None:
        """Return the right window where the match is another place and the index holds the image."""
        at = self.best[row]
        if at.verdict not in ("shifted", "wrong") or int(at.right_image_id) not in self.index.images:
            return None
        side = int(at.width), int(at.height)
        return Window(int(at.right_image_id), int(at.right_x), int(at.right_y), 0, *side)

    def runner_up(self, row: int, candidate: Any) -> Window:
        """Return the window of another candidate."""
        at = self.best[row]
        place = int(candidate.image_id), int(candidate.x), int(candidate.y)
        return Window(*place, 0, int(at.width), int(at.height))

    def distance_m(self, row: int) -> float | None:
        """Return the metres between the match and the right place, by the haversine formula."""
        at = self.best[row]
        ids = np.array([at.image_id, at.right_image_id])
        x, y = np.array([at.x, at.right_x], float), np.array([at.y, at.right_y], float)
        east, north = np.radians(lonlat(self.index.images, ids, x, y, at.width, at.height))
        if not np.isfinite(east).all():
            return None
        half = (np.diff(north)[0] / 2, np.diff(east)[0] / 2)
        chord = np.sin(half[0]) ** 2 + np.cos(north).prod() * np.sin(half[1]) ** 2
        return float(2 * EARTH_M * np.arcsin(np.sqrt(min(chord, 1.0))))

    def all(self) -> list[Window]:
        """Return all windows."""
        windows: list[Window | None] = []
        for row in self.rows:
            windows += [self.match(row), self.truth(row)]
            windows += [self.runner_up(row, candidate) for candidate in self.runners_up[row]]
        return [window for window in windows if window is not None]

    def shifts_inside(self, row: int) -> NDArray[np.bool_]:
        """Return which shifts of a match leave the middle of the patch inside its image."""
        at = self.best[row]
        image = self.index.images[int(at.image_id)]
        x, y = int(at.x) + _offset(int(at.width)), int(at.y) + _offset(int(at.height))
        return shifts_inside(image.width, image.height, x, y)


def _surfaces(
    windows: _Windows,
    queries: Sequence[NDArray[np.float32]],
    around: Sequence[NDArray[np.float32] | None],
    bands: Sequence[tuple[str, ...]],
) -> dict[int, NDArray[np.float32]]:
    """Return the NCC around each match by number of the card, computed in groups of the same bands."""
    groups: dict[tuple[tuple[str, ...], ...], list[int]] = defaultdict(list)
    for n, row in enumerate(windows.rows):
        if around[n] is not None:
            groups[bands[n], windows.index.bands(int(windows.best[row].image_id))].append(n)
    surfaces: dict[int, NDArray[np.float32]] = {}
    for (query_bands, image_bands), members in groups.items():
        query_columns, image_columns = map(list, shared_columns(query_bands, image_bands))
        beyond = MARGIN_PX - SHIFT_PX
        patches = np.stack([_middle(queries[n])[..., query_columns] for n in members])
        regions = np.stack([_middle(around[n], beyond, SHIFT_PX)[..., image_columns] for n in members])
        inside = np.stack([windows.shifts_inside(windows.rows[n]) for n in members])
        surfaces |= dict(zip(members, correlations(patches, regions, inside), strict=True))
    return surfaces


def _middle(pixels: Any, beyond: int = 0, margin: int = 0) -> NDArray[np.float32]:
    """Return the middle 64 x 64 pixels and a margin of a window cropped with `beyond` pixels more."""
    top, left = (_offset(side - 2 * (beyond + margin)) + beyond for side in pixels.shape[:2])
    side = PATCH_PX + 2 * margin
    return np.asarray(pixels[top : top + side, left : left + side])


def _offset(side: int) -> int:
    return (side - PATCH_PX) // 2
