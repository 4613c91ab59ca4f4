"""Correlation surfaces: NCC of templates with image regions, and the peak of each surface.

Strategy. On a CPU, Numba loops read the cached tensors in place: nothing is cut out or copied. On an
accelerator, and where pixels of an image are hidden, regions are cut out. The backend correlates them in
tables of few shapes, since each shape is compiled. Both ways agree within rounding, which tests hold against
each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.kernels.compiled import Compiled, accelerated
from retrieval.matching.ncc import FLAT, STEPS, ncc, ncc_of
from retrieval.matching.sites import LocatedSites, Regions, Sites
from retrieval.matching.tensor_cache import TensorCache
from retrieval.matching.tensors import CODES, Known, crop_windows

TABLE_PAIRS = {2: 2048, 1: 512, 0: 64}
"""Pairs in one table, by level: as many as fit into a processor's caches."""
MAX_TABLE_WIDTH = 64
"""Most regions correlated with one template at a time."""
WIDTH_STEP = 8
"""Wider tables have a width that is a multiple of this."""


@dataclass(frozen=True)
class Peaks:
    """Peaks of correlation surfaces, in whole pixels of the full resolution."""

    x: NDArray[np.int64]
    """(m,) column, in the image."""
    y: NDArray[np.int64]
    """(m,) row."""
    dx: NDArray[np.float32]
    """(m,) sub-pixel offset to add to x, in pixels of the level, in [-0.5, 0.5]."""
    dy: NDArray[np.float32]
    """(m,) the same for y."""
    ncc: NDArray[np.float32]
    """(m,) height of the peak, in [-1, 1]."""


def correlate_sites(
    template: NDArray[np.float32],
    mask: Known,
    owner: NDArray[np.intp],
    cache: TensorCache,
    sites: Sites,
    table_pairs: Mapping[int, int] = TABLE_PAIRS,
    in_loops: bool | None = None,
) -> NDArray[np.float32]:
    """Correlate templates with the images around sites.

    Args:
        template: (n, s, s, 3) at the sites' level.
        mask: (n, s, s, 1) visible pixels of the templates; None where all are visible.
        owner: (m,) the template of each site.
        cache: tensors of the images.
        sites: m positions.
        table_pairs: pairs in one table, by level.
        in_loops: Numba loops instead of the backend; None where no accelerator computes.

    Returns:
        (m, 2 radius + 1, 2 radius + 1) NCC in [-1, 1].
    """
    in_loops = not accelerated() if in_loops is None else in_loops
    shifts = 2 * sites.radius + 1
    out, remaining = np.empty((len(owner), shifts, shifts), np.float32), np.arange(len(owner))
    fully_visible = _fully_visible(mask, len(template))[owner]
    if sites.level and in_loops:
        located = cache.locate(sites)
        remaining = _correlate_in_place(template, mask, owner, fully_visible, located, sites.radius, out)
    if len(remaining):
        regions = cache.regions(sites.select(remaining))
        visible = fully_visible[remaining]
        size = table_pairs[sites.level]
        out[remaining] = _correlate_regions(
            template, mask, owner[remaining], visible, regions, size, in_loops
        )
    return out


def _correlate_in_place(
    template: NDArray[np.float32],
    mask: Known,
    owner: NDArray[np.intp],
    fully_visible: NDArray[np.bool_],
    located: list[LocatedSites],
    radius: int,
    out: NDArray[np.float32],
) -> NDArray[np.intp]:
    """Write the NCC of sites whose region is fully visible into `out`; return the rows of the others."""
    loops = _Loops(template, mask, out)
    window, partly_hidden = template.shape[1] + 2 * radius, [np.zeros(0, np.intp)]
    for group in located:
        visible = np.ones(len(group.rows), bool)
        doubtful = np.flatnonzero(group.hidden)
        if len(doubtful):
            known = crop_windows(group.known, group.picture[doubtful], group.at[doubtful], window, radius)
            visible[doubtful] = known.all((1, 2, 3))
        rows, picture, corner = group.rows[visible], group.picture[visible], group.at[visible] - radius
        pictures, energy = _joined_channels(group.pictures), group.energy[..., 0]
        whole = fully_visible[rows]
        loops.whole(owner, rows[whole], pictures, energy, picture[whole], corner[whole], 1 / CODES)
        loops.masked(owner, rows[~whole], pictures, picture[~whole], corner[~whole], 1 / CODES)
        partly_hidden.append(group.rows[~visible])
    return np.concatenate(partly_hidden)


def _correlate_regions(
    template: NDArray[np.float32],
    mask: Known,
    owner: NDArray[np.intp],
    fully_visible: NDArray[np.bool_],
    regions: Regions,
    table_pairs: int,
    in_loops: bool,
) -> NDArray[np.float32]:
    """NCC of templates with regions that were cut out for them."""
    whole_region = _fully_visible(regions.known, len(owner))
    visible = fully_visible & whole_region
    shifts = regions.stored.shape[1] - template.shape[1] + 1
    out = np.empty((len(owner), shifts, shifts), np.float32)
    if in_loops:
        _correlate_in_loops(template, mask, owner, fully_visible, regions, np.flatnonzero(whole_region), out)
        visible = whole_region
    else:
        for rows, table in _tables(owner, np.flatnonzero(visible), table_pairs):
            args = template[rows], regions.stored[table]
            out[table] = _NCC(*args) if regions.energy is None else _NCC_OF(*args, regions.energy[table])
    for rows, table in _tables(owner, np.flatnonzero(~visible), table_pairs):
        region = regions.tensor(table)
        masks = [
            np.ones((*picture.shape[:-1], 1), np.float32) if m is None else m[index].astype(np.float32)
            for m, index, picture in ((mask, rows, template[rows]), (regions.known, table, region))
        ]
        out[table] = _NCC(template[rows], region, *masks)
    return out


def _correlate_in_loops(
    template: NDArray[np.float32],
    mask: Known,
    owner: NDArray[np.intp],
    fully_visible: NDArray[np.bool_],
    regions: Regions,
    pairs: NDArray[np.intp],
    out: NDArray[np.float32],
) -> None:
    """Write the NCC of some pairs, whose regions are fully visible, each into its row of `out`."""
    from retrieval.kernels.correlation import local_energy

    loops = _Loops(template, mask, out)
    for rows, whole in ((pairs[fully_visible[pairs]], True), (pairs[~fully_visible[pairs]], False)):
        if not len(rows):
            continue
        region = np.ascontiguousarray(regions.tensor(rows))
        pictures, picture = _joined_channels(region), np.arange(len(rows))
        corner = np.zeros((len(rows), 2), np.int64)
        if whole:
            energy = local_energy(region, template.shape[1], 1.0)
            loops.whole(owner, rows, pictures, energy, picture, corner, 1.0)
        else:
            loops.masked(owner, rows, pictures, picture, corner, 1.0)


class _Loops:
    """Numba loops that correlate templates with pictures and write into one array."""

    def __init__(self, template: NDArray[np.float32], mask: Known, out: NDArray[np.float32]) -> None:
        """Take templates (n, s, s, 3), their visible pixels, and `out` (m, shifts, shifts)."""
        self._template, self._mask, self._out = template, mask, out

    @cached_property
    def _whole(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        from retrieval.kernels.correlation import zero_mean

        return zero_mean(np.ascontiguousarray(self._template), self._out.shape[1])

    @cached_property
    def _masked(
        self,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        from retrieval.kernels.correlation import masked_templates

        assert self._mask is not None
        return masked_templates(self._template, self._mask, self._out.shape[1])

    def whole(
        self,
        owner: NDArray[np.intp],
        rows: NDArray[np.intp],
        pictures: NDArray[Any],
        energy: NDArray[np.float32],
        picture: NDArray[np.int64],
        corner: NDArray[np.int64],
        scale: float,
    ) -> None:
        """Write the rows of fully visible templates; see `ncc_around`."""
        from retrieval.kernels.correlation import ncc_around

        if len(rows):
            flat, places = FLAT * self._template.shape[1] ** 2, (picture, corner)
            ncc_around(
                *self._whole, owner[rows], pictures, energy, *places, scale, flat, STEPS, rows, self._out
            )

    def masked(
        self,
        owner: NDArray[np.intp],
        rows: NDArray[np.intp],
        pictures: NDArray[Any],
        picture: NDArray[np.int64],
        corner: NDArray[np.int64],
        scale: float,
    ) -> None:
        """Write the rows of partly visible templates; see `masked_ncc_around`."""
        from retrieval.kernels.correlation import masked_ncc_around

        if len(rows):
            places = picture, corner
            masked_ncc_around(
                *self._masked, owner[rows], pictures, *places, scale, FLAT, STEPS, rows, self._out
            )


def _joined_channels(pictures: NDArray[Any]) -> NDArray[Any]:
    """Pictures (p, h, w, 3) in the layout of the loops: (p, h, 3 w)."""
    return pictures.reshape(*pictures.shape[:2], -1)


def _fully_visible(mask: Known, count: int) -> NDArray[np.bool_]:
    """Which pictures are visible all over, (count,)."""
    return np.ones(count, bool) if mask is None else np.asarray(mask.all((1, 2, 3)))


def _ncc_of_codes(template: Any, codes: Any, energy: Any) -> Any:
    from keras import ops

    return ncc_of(template, ops.cast(codes, "float32") * (1 / CODES), energy)


_NCC = Compiled(ncc)
_NCC_OF = Compiled(_ncc_of_codes)


def _tables(
    owner: NDArray[np.intp], pairs: NDArray[np.intp], size: int
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Yield pairs as tables, a row for each owner: owners (n,) and pairs (n, k), n k at most about `size`.

    Few shapes occur, since each is compiled. A row repeats its last pair, and the last table its last row,
    to fill a shape. Owners with many pairs take several rows.
    """
    if not len(pairs):
        return
    pairs = pairs[np.argsort(owner[pairs], kind="stable")]
    _, first, count = np.unique(owner[pairs], return_index=True, return_counts=True)
    width = _table_width(int(count.max()))
    rows = -(-count // width)  # of each owner
    row_of_owner = np.arange(rows.sum()) - np.repeat(np.cumsum(rows) - rows, rows)
    begin, last = np.repeat(first, rows) + row_of_owner * width, np.repeat(first + count - 1, rows)
    slots = pairs[np.minimum(begin[:, None] + np.arange(width), last[:, None])]
    height = min(max(1, size // width), 1 << int(len(slots) - 1).bit_length())
    for start in range(0, len(slots), height):
        part = slots[np.minimum(np.arange(start, start + height), len(slots) - 1)]
        yield owner[part[:, 0]], part


def _table_width(most: int) -> int:
    """Width of a table whose owners have at most `most` pairs: a power of two where that is small."""
    even = -(-most // -(-most // MAX_TABLE_WIDTH))  # the same for all rows of an owner
    return 1 << (even - 1).bit_length() if even <= WIDTH_STEP else -(-even // WIDTH_STEP) * WIDTH_STEP


def find_peaks(surface: NDArray[np.float32], at: NDArray[Any], level: int, limit: NDArray[Any]) -> Peaks:
    """Find the highest point of each surface inside the image, and the parabola's offset below the pixel.

    Args:
        surface: (m, 2 radius + 1, 2 radius + 1) NCC around each position.
        at: (m, 2) x and y of the middle, in pixels of the level.
        level: 0 is full resolution; each further level halves it.
        limit: (m, 2) largest x and y of a patch, in full-resolution pixels.
    """
    n, side = surface.shape[:2]
    radius = side // 2
    shift = np.arange(side) - radius
    position = at[:, None, :] + shift[None, :, None]  # (m, side, 2)
    inside = (position >= 0) & (position <= (limit >> level)[:, None, :])
    allowed = np.where(inside[:, :, None, 1] & inside[:, None, :, 0], surface, -2.0)
    # Where nothing stands out (a flat patch) the peak is the candidate's window, not a corner.
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


def _parabola(before: NDArray[Any], peak: NDArray[Any], after: NDArray[Any]) -> NDArray[Any]:
    """Offset of the top of the parabola through three neighbours, in [-0.5, 0.5]; 0 where it has none."""
    bend = before - 2 * peak + after
    top = (before - after) / np.where(bend < -1e-9, 2 * bend, 1)
    return np.where(bend < -1e-9, np.clip(top, -0.5, 0.5), 0)
