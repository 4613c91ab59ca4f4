"""Places: which candidates show the same ground.

An index may hold several dates of a place, copies, and tiles that overlap. Their windows support each other
and are no rivals. Two georeferenced images are compared on the map, other images by their pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX
from retrieval.geo.coordinates import to_lonlat
from retrieval.matching.session import Session
from retrieval.matching.sites import Sites
from retrieval.matching.surfaces import correlate_sites
from retrieval.matching.tensor_cache import TensorCache
from retrieval.matching.tensors import shared_columns
from retrieval.models.calibration import is_confident
from retrieval.types import Pixels, RankedCandidates, StoredImage
from tfrecords.grid import pixel_to_map

SAME_PX = 5.0
"""Largest distance between two windows of one place in x and in y, in pixels; as for a right answer."""
MIN_AGREEMENT = 0.2
"""Smallest NCC between two windows of one place; see `docs/decisions/0024-places.md`."""
RADIUS = 2
"""Shift between two windows of one place, in pixels of half resolution."""
MIN_RIVAL_LOGIT = -3.0
"""Log-odds below which a candidate hardly changes a confidence; its pixels are not compared."""
MIN_NCC_SHARE = 0.25
"""Least NCC of a candidate, as a share of the best candidate's, for its pixels to be compared."""
AROUND = np.array([[-64, 0], [64, 0], [0, -64], [0, 64]])
"""Squares that are compared, from a window's corner: they touch the window. Rivals were chosen because their
windows look alike, so only the surroundings tell."""
INSIDE = np.array([[0, 0]])
"""The window itself, compared where no surroundings are."""
BLOCK = 2048
"""Pairs of windows that are compared at a time."""


@dataclass(frozen=True, eq=False)
class PlacedWindows:
    """Windows of indexed images."""

    image_ids: NDArray[np.int64]
    """(m,)."""
    x: NDArray[np.float64]
    """(m,) column of the top-left pixel, fractions allowed."""
    y: NDArray[np.float64]
    """(m,) row."""

    def select(self, rows: NDArray[Any] | tuple[NDArray[Any], NDArray[Any]]) -> Self:
        """Return some windows."""
        return type(self)(self.image_ids[rows], self.x[rows], self.y[rows])


def with_places(session: Session, found: RankedCandidates) -> RankedCandidates:
    """Return candidates with the places of those that can change a confidence.

    Patches whose candidates have places keep them: pixels are compared once.

    Args:
        session: images and their tensors.
        found: candidates, best first.

    Returns:
        The candidates; `place` has a number for each place. Unlikely candidates have a number each.
    """
    k = found.image_ids.shape[1]
    likely = _likely(found)
    places = np.where(found.image_ids >= 0, found.place, np.arange(k, 2 * k))
    new = (places < 0).any(1)
    places[new] = np.arange(k, 2 * k)
    rows = np.flatnonzero(new & (likely.sum(1) > 1))
    if len(rows):
        part = _number(session, found.select(rows), likely[rows], likely[rows])
        places[rows] = np.where(likely[rows], part, places[rows])
    return replace(found, place=places)


def decided_patches(session: Session, found: RankedCandidates) -> NDArray[np.bool_]:
    """Return which patches are confident, see `is_confident`, with the places of their candidates, (n,).

    Candidates that share a place only raise the log-odds of the best. So pixels are compared only where the
    candidates are decisive: confident if all likely ones support the best, and not if all are rivals.

    Args:
        session: images and their tensors, and settings.
        found: candidates, best first.
    """
    confident = is_confident(found, session.search)
    one_place = replace(found, place=np.where(_likely(found), 0, found.place))
    rows = np.flatnonzero(is_confident(one_place, session.search) & ~confident)
    confident[rows] = is_confident(with_places(session, found.select(rows)), session.search)
    return confident


def number_places(session: Session, found: RankedCandidates) -> NDArray[np.int64]:
    """Return the places of all candidates.

    Args:
        session: images and their tensors.
        found: candidates, best first.

    Returns:
        (n, k) 0 for the best candidate's place, then ascending by rank; -1 where there is no candidate.
    """
    if not found.image_ids.shape[1]:
        return found.image_ids.copy()
    exists = found.image_ids >= 0
    comparable = _likely(found) | (found.ncc >= MIN_NCC_SHARE * found.ncc[:, :1])
    return _number(session, found, exists, exists & comparable)


def show_one_place(session: Session, found: RankedCandidates) -> NDArray[np.bool_]:
    """Return which patches have verified candidates in several images, all of one place.

    Args:
        session: images and their tensors.
        found: candidates, best first.

    Returns:
        (n,). The pixels of unlikely candidates are not compared.
    """
    verified, likely = (found.image_ids >= 0) & ~np.isnan(found.logit), _likely(found)
    windows = _windows(found)
    one = verified[:, :1].any(1) & ((found.image_ids != found.image_ids[:, :1]) & verified).any(1)
    for column in range(1, verified.shape[1]):  # most patches drop out at the first rival
        rows = np.flatnonzero(one & verified[:, column])
        a, b = (windows.select((rows, np.full(len(rows), c))) for c in (0, column))
        one[rows] = _same_ground(session, a, b, by_content=likely[rows, 0] & likely[rows, column])
    return one


def show_same_place(
    session: Session, found: RankedCandidates, rows: NDArray[Any], first: NDArray[Any], second: NDArray[Any]
) -> NDArray[np.bool_]:
    """Return whether two candidates of a patch show the same place, (m,).

    Args:
        session: images and their tensors.
        found: candidates.
        rows: (m,) patches.
        first: (m,) column of a candidate.
        second: (m,) column of the other one.
    """
    windows = _windows(found)
    a, b = (windows.select((rows, column)) for column in (first, second))
    return _same_ground(session, a, b, by_content=np.ones(len(rows), bool))


def number_placements(
    session: Session, windows: PlacedWindows, score: NDArray[np.float64], width: int, height: int
) -> NDArray[np.int64]:
    """Return the places of the placements of one chip, (m,), as `number_places`.

    Args:
        session: images and their tensors.
        windows: the placements, best first.
        score: (m,) their ranking scores.
        width: columns of the chip.
        height: rows of the chip.
    """
    starts = [np.unique([0, (side - PATCH_PX) // 2, side - PATCH_PX]) for side in (width, height)]
    offsets = np.stack(np.meshgrid(*starts), -1).reshape(-1, 2)
    comparable = score >= MIN_NCC_SHARE * score.max(initial=0.0)
    places = np.full(len(score), -1, np.int64)
    number = 0
    while len(free := np.flatnonzero(places < 0)):
        first = np.full(len(free), free[0])
        pair = windows.select(first), windows.select(free)
        by_content = comparable[first] & comparable[free]
        same = _same_ground(session, *pair, (width, height), offsets, by_content=by_content)
        places[free[same]] = number
        places[free[0]] = number
        number += 1
    return places


def _likely(found: RankedCandidates) -> NDArray[np.bool_]:
    """Return the candidates (n, k) that can change a confidence: the best, and its likely rivals."""
    likely = found.logit > MIN_RIVAL_LOGIT
    likely[:, :1] = True
    return likely & (found.image_ids >= 0)


def _windows(found: RankedCandidates) -> PlacedWindows:
    """Windows (n, k) of candidates."""
    x, y = (found.x + found.dx).astype(np.float64), (found.y + found.dy).astype(np.float64)
    return PlacedWindows(found.image_ids, x, y)


def _number(
    session: Session, found: RankedCandidates, exists: NDArray[np.bool_], comparable: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Return the places of the candidates that exist; the pixels of comparable ones are compared."""
    places = np.full(exists.shape, -1, np.int64)
    windows = _windows(found)
    number = 0
    while (free := exists & (places < 0)).any():
        rows = np.flatnonzero(free.any(1))
        first = free.argmax(1)
        places[rows, first[rows]] = number
        free[rows, first[rows]] = False
        row, column = np.nonzero(free)
        a, b = (windows.select((row, c)) for c in (first[row], column))
        by_content = comparable[row, first[row]] & comparable[row, column]
        same = _same_ground(session, a, b, by_content=by_content)
        places[row[same], column[same]] = number
        number += 1
    return places


def _same_ground(
    session: Session,
    a: PlacedWindows,
    b: PlacedWindows,
    size: tuple[int, int] = (PATCH_PX, PATCH_PX),
    offsets: NDArray[np.int64] = AROUND,
    *,
    by_content: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """Return whether pairs of windows show the same ground, (m,)."""
    apart = np.maximum(np.abs(a.x - b.x), np.abs(a.y - b.y))
    apart = np.where(a.image_ids == b.image_ids, apart, _map_distance_px(session.table, a, b, size))
    same = apart <= SAME_PX
    unknown = np.isnan(apart)
    rows = np.flatnonzero(unknown & by_content)
    for start in range(0, len(rows), BLOCK):
        part = rows[start : start + BLOCK]
        same[part] = _agreement(session, a.select(part), b.select(part), offsets) >= MIN_AGREEMENT
    return same


def _agreement(
    session: Session, a: PlacedWindows, b: PlacedWindows, offsets: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Agreement (m,) of squares at offsets, or of the windows themselves where no square can be compared."""
    agreement = content_agreement(session.images, session.tensors, a, b, offsets)
    rows = np.flatnonzero(agreement == 0)
    if len(rows):
        a, b = a.select(rows), b.select(rows)
        agreement[rows] = content_agreement(session.images, session.tensors, a, b, INSIDE)
    return agreement


def _map_distance_px(
    table: Mapping[int, StoredImage], a: PlacedWindows, b: PlacedWindows, size: tuple[int, int]
) -> NDArray[np.float64]:
    """Larger of the distances along x and y between centres of windows, in pixels of `a`; NaN if unknown."""
    apart = np.full(len(a.image_ids), np.nan)
    pairs = np.stack([a.image_ids, b.image_ids], -1)
    known = [(int(i), table.get(int(i))) for i in np.unique(pairs)]
    located = np.array([i for i, image in known if image and image.crs and image.transform], np.int64)
    rows = np.flatnonzero((pairs[:, 0] != pairs[:, 1]) & np.isin(pairs, located).all(1))
    if not len(rows):
        return apart
    pairs = pairs[rows]
    a, b, half = a.select(rows), b.select(rows), np.array(size)[:, None] / 2
    centre, target = (np.stack([w.x, w.y]) + half for w in (a, b))
    points = [centre, centre + np.array([[1], [0]]), centre + np.array([[0], [1]])]
    start, right, below = (_on_map(table, a.image_ids, p) for p in points)
    steps = np.stack([right, below, _on_map(table, b.image_ids, target)]) - start
    crs = {i: table[i].crs for i in np.unique(pairs).tolist()}
    differ = np.array([crs[i] != crs[j] for i, j in pairs.tolist()])
    if differ.any():
        ids = a.image_ids[differ], b.image_ids[differ]
        start, right, below = (np.stack(to_lonlat(table, ids[0], *p[:, differ])) for p in points)
        degrees = np.stack([right, below, np.stack(to_lonlat(table, ids[1], *target[:, differ]))]) - start
        degrees[:, 0] = (degrees[:, 0] + 180) % 360 - 180
        steps[:, :, differ] = degrees
    (ux, uy), (vx, vy), (dx, dy) = steps
    with np.errstate(divide="ignore", invalid="ignore"):
        apart[rows] = np.maximum(abs(dx * vy - dy * vx), abs(ux * dy - uy * dx)) / abs(ux * vy - uy * vx)
    return apart


def _on_map(
    table: Mapping[int, StoredImage], image_ids: NDArray[Any], xy: NDArray[Any]
) -> NDArray[np.float64]:
    """Map coordinates (2, m) of points (2, m), each in the system of its image."""
    ids, image = np.unique(image_ids, return_inverse=True)
    transforms = np.array([table[int(i)].transform for i in ids], np.float64)[image]
    return np.stack(pixel_to_map(transforms.T, *xy))  # type: ignore[arg-type]


def content_agreement(
    images: Pixels, cache: TensorCache, a: PlacedWindows, b: PlacedWindows, offsets: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the NCC between the structure tensors of pairs of windows at half resolution.

    Args:
        images: pixels of the images.
        cache: tensors of the images.
        a: m windows.
        b: m windows.
        offsets: (o, 2) x and y of the 64-pixel squares that are compared, from the windows' corners.

    Returns:
        (m,) mean over the squares that lie in both images and have texture, -1 to 1; 0 where none does.
    """
    ids = [np.repeat(w.image_ids, len(offsets)) for w in (a, b)]
    corners = [
        np.rint(np.stack([w.x, w.y], -1)[:, None] + offsets).astype(np.int64).reshape(-1, 2) for w in (a, b)
    ]
    limit = {int(i): np.array(images.size(int(i))[::-1]) - PATCH_PX for i in np.unique(ids)}
    inside = np.ones(len(ids[0]), bool)
    for image_ids, corner in zip(ids, corners, strict=True):
        largest = np.array([limit[i] for i in image_ids.tolist()]).reshape(-1, 2)
        inside &= ((corner >= 0) & (corner <= largest)).all(1)
    agreement = np.zeros(len(inside))  # stays 0 outside of an image, as without texture
    first, second = (v[inside] for v in ids)
    agreement[inside] = _correlate(images, cache, (first, second), [c[inside] for c in corners])
    squares = agreement.reshape(-1, len(offsets))
    return np.asarray(squares.sum(1) / np.maximum((squares != 0).sum(1), 1))


def _correlate(
    images: Pixels, cache: TensorCache, ids: tuple[NDArray[Any], NDArray[Any]], corners: list[NDArray[Any]]
) -> NDArray[np.float64]:
    """NCC (m,) of 64-pixel squares inside both images, the best within `RADIUS`."""
    out = np.zeros(len(ids[0]))
    bands = {int(i): tuple(images.bands(int(i))) for i in np.unique(ids)}
    kinds: dict[tuple[Any, ...], list[int]] = {}
    for row, (i, j) in enumerate(zip(*(v.tolist() for v in ids), strict=True)):
        kinds.setdefault(shared_columns(bands[i], bands[j]), []).append(row)
    for columns, members in kinds.items():
        rows = np.array(members)
        first, second = (
            Sites(ids[side][rows], corners[side][rows] >> 1, columns[side], radius, 1)
            for side, radius in enumerate((0, RADIUS))
        )
        template = cache.regions(first)
        surfaces = correlate_sites(template.tensor(), template.known, np.arange(len(rows)), cache, second)
        out[rows] = surfaces.max((1, 2))
    return out
