"""NCC of pairs of templates and regions, in tables of few shapes, so that it is compiled once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.compiled import Compiled
from retrieval.refine.correlation import ncc, ncc_of
from retrieval.refine.ground import Regions
from retrieval.refine.tensors import CODES, Known

CORRELATED = {2: 2048, 1: 512, 0: 64}
"""Pairs that are correlated at a time, by level: what of them fits the processor's caches."""
WIDEST = 64
"""Regions correlated with one template at a time, at most."""
WIDTHS = 8
"""Wider tables than this are a multiple of it wide."""


def _ncc_of_codes(template: Any, codes: Any, spread: Any) -> Any:
    from keras import ops

    return ncc_of(template, ops.cast(codes, "float32") * (1 / CODES), spread)


_NCC = Compiled(ncc)
_NCC_OF = Compiled(_ncc_of_codes)


def correlated(
    template: NDArray[np.float32], seen: Known, owner: NDArray[np.intp], regions: Regions, level: int
) -> NDArray[np.float32]:
    """NCC of each region with its own template.

    Args:
        template: (n, s, s, 3).
        seen: (n, s, s, 1) what is visible of them, or None.
        owner: (m,) whose region it is.
        regions: m of them.
        level: their resolution.

    Returns:
        (m, 2 radius + 1, 2 radius + 1).
    """
    size = CORRELATED[level]
    hidden = np.zeros(len(owner), bool)
    for mask, whose in ((seen, owner), (regions.known, slice(None))):
        if mask is not None:
            hidden |= np.asarray((~mask).any((1, 2, 3)))[whose]
    shifts = regions.stored.shape[1] - template.shape[1] + 1
    out = np.empty((len(owner), shifts, shifts), np.float32)
    for rows, slots in _tables(owner, np.flatnonzero(~hidden), size):
        args = template[rows], regions.stored[slots]
        out[slots] = _NCC(*args) if regions.spread is None else _NCC_OF(*args, regions.spread[slots])
    for rows, slots in _tables(owner, np.flatnonzero(hidden), size):
        region = regions.tensor(slots)
        shown = [
            np.ones((*picture.shape[:-1], 1), np.float32) if mask is None else mask[which].astype(np.float32)
            for mask, which, picture in ((seen, rows, template[rows]), (regions.known, slots, region))
        ]
        out[slots] = _NCC(template[rows], region, *shown)
    return out


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
