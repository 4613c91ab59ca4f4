"""Search by parts: patches of which only a part is visible, found in the parts index.

The network of local descriptors describes a patch at every second pixel. Its parts are shifted by 0 and 4
px against the index's grid of 8 px, so four vectors find the nearest windows of a patch. These windows are
compared by half of the numbers of their parts, at the four shifts. The best of them are compared by all
numbers at 16 shifts, 2 px apart. Parts across the patch's edge count by what lies inside. The best places are
the candidates, which correlation ranks further. Nothing is read of the images before that.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX
from retrieval.index.parts import CODED_DIM, SIDE, STEP, PartsIndex, Windows
from retrieval.kernels.executors import parallel_map
from retrieval.matching.candidates import concatenate
from retrieval.matching.local_search import best_places, merge_best
from retrieval.matching.session import Session
from retrieval.matching.tensors import Templates
from retrieval.models.local_descriptors import STEP_PX, shipped_descriptors
from retrieval.types import Candidates, Pixels, pack_ids

FINE = 2
"""Descriptors of a patch for one of an image, in x and in y: they are 2 px apart."""
MARGIN = STEP * FINE
"""Zeros around the descriptors of a patch: a part across its edge counts by what lies inside."""
PART_PX = STEP_PX * STEP
"""Distance between parts of an image, in pixels."""
COARSE_SHIFTS = np.array([(dy, dx) for dy in (0, 2) for dx in (0, 2)])
"""(4, 2) shifts, in 2 px, at which windows are searched: y and x of a window's corner in the patch."""
FINE_SHIFTS = np.array([(dy, dx) for dy in range(-1, 3) for dx in range(-1, 3)])
"""(16, 2) shifts at which the windows found are compared."""
NEAREST_SHARE = 1 / 115
"""Share of an index's windows that are compared by their parts, for each coarse shift."""
LEAST_NEAREST, MOST_NEAREST = 8192, 131072
"""Bounds of the number of these windows: a small index affords more, and time must not grow for ever."""
ENOUGH_NEAREST = 65536
"""Windows that are enough for a search of more effort where the first one compared half of them or fewer."""
AT_COARSE = np.flatnonzero(((FINE_SHIFTS == 0) | (FINE_SHIFTS == 2)).all(1))
"""(4,) rows of the fine shifts that are coarse shifts."""
COMPARED, COMPARED_SHARE = 8192, 1 / 8
"""Least number of windows that are compared at all fine shifts, and their share of the nearest of a shift.
They are the best of a rough comparison. A search of more effort compares twice as many."""
PLACES = 2000
"""Candidates of a patch: correlation at quarter resolution reduces them further at little cost."""
OVERLAPPING = 8
"""Windows for each place that is returned, before non-maximum suppression."""
BLOCK = 128
"""Patches searched for at a time."""


def find_places(index: PartsIndex, session: Session, effort: int = 1, count: int = PLACES) -> Candidates:
    """Find the places that agree with the visible parts of patches.

    Args:
        index: parts of the session's images.
        session: its queries are NaN where cloud or nodata hides the ground.
        effort: factor of the number of windows that are compared by their parts.
        count: places of a patch.

    Returns:
        (n, count) distinct places, best first. Their similarity is the cosine
        between the parts of patch and window, -1 to 1.
    """
    local, settings = shipped_descriptors(), replace(session.search, round2_max_candidates=count)
    columns = tuple(range(len(session.queries.bands)))
    allowed, found = np.array(sorted(session.image_ids), np.int64), []
    for start in range(0, max(1, len(session.queries)), BLOCK):
        queries = session.queries.select(slice(start, start + BLOCK))
        rows = np.arange(len(queries))
        fields = local.describe_all_pixels(*Templates(queries, columns).take(rows, 1))
        places = []
        for member in index.members:
            nearest, compared = windows_to_compare(len(member), effort)
            places.append(nearest_places(member, fields, nearest, allowed, compared))
        found.append(best_places(*merge_best(places, OVERLAPPING * count), settings))
    return _inside(concatenate(found), session.images)


def windows_to_compare(windows: int, effort: int = 1) -> tuple[int, int]:
    """Return how many windows are compared with a patch.

    Args:
        windows: of the index.
        effort: see `find_places`.

    Returns:
        Windows of each coarse shift that are compared roughly, and the best of all that are compared at all
        fine shifts.
    """
    nearest = min(max(round(NEAREST_SHARE * windows), LEAST_NEAREST), MOST_NEAREST)
    compared = max(COMPARED, round(COMPARED_SHARE * nearest))
    if effort == 1:
        return nearest, compared
    return min(effort * nearest, max(ENOUGH_NEAREST, 2 * nearest)), 2 * compared


def _inside(found: Candidates, images: Pixels) -> Candidates:
    """Move candidates that reach beyond their image to its edge."""
    ids, image = np.unique(found.image_ids, return_inverse=True)
    sizes = [images.size(int(i)) if i >= 0 else (PATCH_PX, PATCH_PX) for i in ids]
    most = (np.array(sizes, np.int64).reshape(-1, 2) - PATCH_PX)[image.reshape(found.x.shape)]
    return replace(found, x=np.minimum(found.x, most[..., 1]), y=np.minimum(found.y, most[..., 0]))


def nearest_places(
    index: PartsIndex,
    fields: NDArray[np.float32],
    nearest: int,
    allowed: NDArray[np.int64],
    compared: int = COMPARED,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Find windows by their codes and compare them by their parts.

    Args:
        index: the parts index.
        fields: (n, 23, 23, c) descriptors of patches, 2 px apart; 0 where hidden.
        nearest: windows of each coarse shift that are compared by their parts.
        allowed: ascending ids of the images that may be answered.
        compared: windows that are compared at all fine shifts, the best of a rough comparison.

    Returns:
        Scores (n, m) and packed ids (n, m) of places, -inf and -1 for none.
    """
    beyond = ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN), (0, 0))
    parts = index.parts_of(np.pad(fields, beyond), FINE)
    coarse = shifted_windows(parts, COARSE_SHIFTS)
    k = min(nearest, len(index))
    rows = index.search(coarse.reshape(-1, *coarse.shape[2:]), k).reshape(len(fields), -1)
    fine = shifted_windows(parts, FINE_SHIFTS)
    all_allowed = index.image_ids <= set(allowed.tolist())

    def compare(number: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        found = index.stored.locate(_distinct(rows[number]))
        found = found if all_allowed else found.select(np.isin(found.image_ids, allowed))
        return _compare(index, found, fine[number], compared)

    places = list(parallel_map(compare, range(len(fields))))
    width = max((len(score) for score, _ in places), default=0)
    score = np.full((len(fields), width), -np.inf, np.float32)
    ids = np.full((len(fields), width), -1, np.int64)
    for number, (scores, packed) in enumerate(places):
        score[number, : len(scores)], ids[number, : len(scores)] = scores, packed
    return score, ids


def _distinct(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the distinct numbers that are not negative, ascending, in a third of the time of `np.unique`."""
    ascending = np.sort(rows)
    return ascending[(ascending >= 0) & np.diff(ascending, prepend=-1).astype(bool)]


def shifted_windows(parts: NDArray[np.float32], shifts: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the parts of patches as windows of the index would hold them.

    Args:
        parts: (n, s, s, d) parts of patches, 2 px apart, the first `MARGIN` before the patch.
        shifts: (m, 2) y and x of the windows' corners in the patches, in 2 px.

    Returns:
        (n, m, 6, 6, d); a patch's longest window has unit length.
    """
    at = MARGIN + shifts[:, :, None] + STEP * FINE * np.arange(SIDE)  # (m, 2, 6)
    y, x = at.transpose(1, 0, 2)
    windows = parts[:, y[:, :, None], x[:, None, :]]
    length = np.sqrt(np.einsum("nmyxd,nmyxd->nm", windows, windows)).max(1)
    return np.asarray(windows / np.maximum(length, 1e-6)[:, None, None, None, None], np.float32)


def _compare(
    index: PartsIndex, found: Windows, fine: NDArray[np.float32], compared: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Compare windows with the parts of one patch at all fine shifts: scores and packed ids of places."""
    if len(found.rows) > compared:
        rough, _ = index.stored.compare(found, fine[AT_COARSE, ..., :CODED_DIM])
        found = found.select(np.sort(np.argpartition(-rough, compared)[:compared]))
    cosine, best = index.stored.compare(found, fine)
    corner = PART_PX * np.stack([found.x, found.y], -1)
    place = np.maximum(corner - FINE_SHIFTS[best][:, ::-1] * (STEP_PX // FINE), 0)
    return cosine, pack_ids(found.image_ids, *place.T)
