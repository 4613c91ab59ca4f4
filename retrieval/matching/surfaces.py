"""NCC of pairs of templates and ground: in loops on a CPU, in tables of few shapes on an accelerator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.kernels.compiled import Compiled, accelerated
from retrieval.matching.ncc import FLAT, STEPS, ncc, ncc_of
from retrieval.matching.tensor_cache import CachedSites, Regions, Sites, TensorCache
from retrieval.matching.tensors import CODES, Known, crop_windows


@dataclass(frozen=True)
class Peaks:
    """Where the correlation peaked, in whole pixels of the full resolution."""

    x: NDArray[np.int64]
    """(m,) column, in the image."""
    y: NDArray[np.int64]
    """(m,) row."""
    dx: NDArray[np.float32]
    """(m,) sub-pixel offset to add to x, in pixels of the level, in [-0.5, 0.5]."""
    dy: NDArray[np.float32]
    """(m,) likewise for y."""
    ncc: NDArray[np.float32]
    """(m,) height of the peak, in [-1, 1]."""


def find_peaks(surface: NDArray[np.float32], at: NDArray, level: int, limit: NDArray) -> Peaks:
    """Highest point of each surface whose patch lies inside the image, and the parabola's offset.

    Args:
        surface: (m, 2 radius + 1, 2 radius + 1) NCC around each position.
        at: (m, 2) x and y that the middle stands for, in the level's pixels.
        level: 0 is full resolution, each further one half of that before.
        limit: (m, 2) largest x and y of a patch, in full-resolution pixels.
    """
    n, side = surface.shape[:2]
    radius = side // 2
    shift = np.arange(side) - radius
    position = at[:, None, :] + shift[None, :, None]  # (m, side, 2)
    inside = (position >= 0) & (position <= (limit >> level)[:, None, :])
    allowed = np.where(inside[:, :, None, 1] & inside[:, None, :, 0], surface, -2.0)
    # Where nothing stands out (a flat patch) the answer is the candidate's own window, not a corner.
    allowed[:, radius, radius] += 1e-6
    iy, ix = np.divmod(allowed.reshape(n, -1).argmax(1), side)
    i = np.arange(n)
    peak = surface[i, iy, ix]
    dx = _parabola(surface[i, iy, np.maximum(ix - 1, 0)], peak, surface[i, iy, np.minimum(ix + 1, side - 1)])
    dy = _parabola(surface[i, np.maximum(iy - 1, 0), ix], peak, surface[i, np.minimum(iy + 1, side - 1), ix])
    edge_x, edge_y = (ix == 0) | (ix == side - 1), (iy == 0) | (iy == side - 1)
    return Peaks(
        np.clip(at[:, 0] + shift[ix] << level, 0, limit[:, 0]),
        np.clip(at[:, 1] + shift[iy] << level, 0, limit[:, 1]),
        np.where(edge_x, 0, dx).astype(np.float32),
        np.where(edge_y, 0, dy).astype(np.float32),
        peak.astype(np.float32),
    )


def _parabola(before: NDArray, peak: NDArray, after: NDArray) -> NDArray:
    """Offset of the top of the parabola through three neighbours, in [-0.5, 0.5]; 0 where it has none."""
    bend = before - 2 * peak + after
    top = (before - after) / np.where(bend < -1e-9, 2 * bend, 1)
    return np.where(bend < -1e-9, np.clip(top, -0.5, 0.5), 0)


CORRELATED = {2: 2048, 1: 512, 0: 64}
"""Pairs that are correlated at a time in tables, by level: what of them fits a processor's caches."""
WIDEST = 64
"""Regions correlated with one template at a time, at most."""
WIDTHS = 8
"""Wider tables than this are a multiple of it wide."""


def correlated(
    template: NDArray[np.float32], seen: Known, owner: NDArray[np.intp], ground: TensorCache, sites: Sites
) -> NDArray[np.float32]:
    """NCC of templates with the ground around sites.

    On a CPU, where all is visible, loops read the tensors where they lie. Where something is hidden, and on
    an accelerator, regions are cut out and the backend correlates them in tables.

    Args:
        template: (n, s, s, 3) at the sites' level.
        seen: (n, s, s, 1) what is visible of them, or None.
        owner: (m,) the template of each site.
        ground: what they are compared with.
        sites: m of them.

    Returns:
        (m, 2 radius + 1, 2 radius + 1).
    """
    shifts = 2 * sites.radius + 1
    out, rest = np.empty((len(owner), shifts, shifts), np.float32), np.arange(len(owner))
    whole = _whole(seen, len(template))[owner]
    if sites.level and not accelerated():
        rest = _where_they_lie(template, owner, whole, ground.spots(sites), sites.radius, out)
    if len(rest):
        regions = ground.regions(sites.select(rest))
        out[rest] = _cut_out(template, seen, owner[rest], whole[rest], regions, sites.level)
    return out


def _where_they_lie(
    template: NDArray[np.float32],
    owner: NDArray[np.intp],
    whole: NDArray[np.bool_],
    spots: list[CachedSites],
    radius: int,
    out: NDArray[np.float32],
) -> NDArray[np.intp]:
    """Write what of sites is wholly visible, and tell the rows of the others."""
    from retrieval.kernels.correlation import ncc_around, zero_mean

    templates = zero_mean(template, out.shape[1])
    side, rest = template.shape[1], [np.zeros(0, np.intp)]
    for one in spots:
        visible = whole[one.rows]
        partly = np.flatnonzero(visible & one.hidden)
        if len(partly):
            known = crop_windows(one.known, one.which[partly], one.at[partly], side + 2 * radius, radius)
            visible[partly] = known.all((1, 2, 3))
        rows, which, corner = one.rows[visible], one.which[visible], one.at[visible] - radius
        pictures, spread = _rows(one.pictures), one.spread[..., 0]
        flat = FLAT * side**2
        ncc_around(
            *templates, owner[rows], pictures, spread, which, corner, 1 / CODES, flat, STEPS, rows, out
        )
        rest.append(one.rows[~visible])
    return np.concatenate(rest)


def _cut_out(
    template: NDArray[np.float32],
    seen: Known,
    owner: NDArray[np.intp],
    whole: NDArray[np.bool_],
    regions: Regions,
    level: int,
) -> NDArray[np.float32]:
    """NCC of templates with regions that were cut out for them."""
    visible = whole & _whole(regions.known, len(owner))
    shifts = regions.stored.shape[1] - template.shape[1] + 1
    out = np.empty((len(owner), shifts, shifts), np.float32)
    slots = np.flatnonzero(visible)
    if not accelerated():
        _in_loops(template, owner[slots], regions.tensor(slots), slots, out)
    else:
        for rows, table in _tables(owner, slots, CORRELATED[level]):
            args = template[rows], regions.stored[table]
            out[table] = _NCC(*args) if regions.spread is None else _NCC_OF(*args, regions.spread[table])
    for rows, table in _tables(owner, np.flatnonzero(~visible), CORRELATED[level]):
        region = regions.tensor(table)
        shown = [
            np.ones((*picture.shape[:-1], 1), np.float32) if mask is None else mask[which].astype(np.float32)
            for mask, which, picture in ((seen, rows, template[rows]), (regions.known, table, region))
        ]
        out[table] = _NCC(template[rows], region, *shown)
    return out


def _in_loops(
    template: NDArray[np.float32],
    owner: NDArray[np.intp],
    region: NDArray[np.float32],
    rows: NDArray[np.intp],
    out: NDArray[np.float32],
) -> None:
    """Write the NCC of templates with regions (k, S, S, 3), each in a row of `out`."""
    from retrieval.kernels.correlation import local_energy, ncc_around, zero_mean

    if not len(rows):
        return
    region = np.ascontiguousarray(region)
    templates = zero_mean(np.ascontiguousarray(template), out.shape[1])
    side, which = template.shape[1], np.arange(len(rows))
    spread, corner, flat = local_energy(region, side, 1.0), np.zeros((len(rows), 2), np.int64), FLAT * side**2
    ncc_around(*templates, owner, _rows(region), spread, which, corner, 1.0, flat, STEPS, rows, out)


def _rows(pictures: NDArray[Any]) -> NDArray[Any]:
    """Pictures (p, h, w, 3) as the loops take them: (p, h, 3 w)."""
    return pictures.reshape(*pictures.shape[:2], -1)


def _whole(mask: Known, count: int) -> NDArray[np.bool_]:
    """Which of so many pictures are visible all over."""
    return np.ones(count, bool) if mask is None else np.asarray(mask.all((1, 2, 3)))


def _ncc_of_codes(template: Any, codes: Any, spread: Any) -> Any:
    from keras import ops

    return ncc_of(template, ops.cast(codes, "float32") * (1 / CODES), spread)


_NCC = Compiled(ncc)
_NCC_OF = Compiled(_ncc_of_codes)


def _tables(
    owner: NDArray[np.intp], pairs: NDArray[np.intp], size: int
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Pairs as tables, a row for each owner: (owners (n,), pairs (n, k)), n k about `size` at most.

    Few shapes occur: a row has its last pair, the last table its last row more than once, and owners with
    many pairs have several rows.
    """
    if not len(pairs):
        return
    pairs = pairs[np.argsort(owner[pairs], kind="stable")]
    _, first, count = np.unique(owner[pairs], return_index=True, return_counts=True)
    width = _width(int(count.max()))
    rows = -(-count // width)  # of each owner
    nth = np.arange(rows.sum()) - np.repeat(np.cumsum(rows) - rows, rows)
    begin, last = np.repeat(first, rows) + nth * width, np.repeat(first + count - 1, rows)
    slots = pairs[np.minimum(begin[:, None] + np.arange(width), last[:, None])]
    high = min(max(1, size // width), 1 << int(len(slots) - 1).bit_length())
    for start in range(0, len(slots), high):
        part = slots[np.minimum(np.arange(start, start + high), len(slots) - 1)]
        yield owner[part[:, 0]], part


def _width(most: int) -> int:
    """Pairs in a row of a table, where an owner has so many at the most: a power of two if there are few."""
    even = -(-most // -(-most // WIDEST))  # the same for all rows of that owner
    return 1 << (even - 1).bit_length() if even <= WIDTHS else -(-even // WIDTHS) * WIDTHS
