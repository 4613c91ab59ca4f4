"""Query vectors to candidates: the nearest windows, thinned to distinct places.

The windows around a right answer overlap it and come up together; a list of the first twenty
windows may hold two places only. Going down the list, a window is dropped where one of the same image
that was kept lies nearer than `nms_radius_px` in both x and y.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from retrieval.config import SearchConfig
from retrieval.index.faiss_index import VectorIndex
from retrieval.kernels.compiled import parallel_map
from retrieval.types import Candidates, unpack_ids

BLOCK = 2048
"""Patches searched for at a time."""
ROWS = 128
"""Patches thinned at a time, several times that side by side."""


def find_candidates(
    index: VectorIndex, vectors: NDArray[np.float32], config: SearchConfig, share: float = 1.0
) -> Candidates:
    """Search an index and thin what it gives.

    Args:
        index: unit vectors with packed ids.
        vectors: (n, dim) of unit length, zero for a flat patch.
        config: how many windows and places.
        share: of an index's cells, see `VectorIndex.search`.

    Returns:
        Up to `config.places` distinct places for each patch, best first.
    """
    parts = []
    for start in range(0, len(vectors), BLOCK):
        similarity, ids = index.search(vectors[start : start + BLOCK], config.top_k, share)
        parts.append(non_max_suppression(similarity, ids, config))
    if not parts:
        none = np.zeros((0, config.max_candidates), np.int64)
        return Candidates(none, none, none, none.astype(np.float32))
    return joined(parts)


def joined(parts: Sequence[Candidates]) -> Candidates:
    """Candidates of some patches and of others, behind each other."""
    return Candidates(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Candidates)))


def non_max_suppression(
    similarity: NDArray[np.float32], ids: NDArray[np.int64], config: SearchConfig
) -> Candidates:
    """Keep the best window of every place.

    Args:
        similarity: (n, k) descending.
        ids: (n, k) packed, -1 for none.
        config: `places` and `nms_radius_px` are used.

    Returns:
        (n, places) candidates.
    """
    starts = range(0, max(1, len(ids)), ROWS)
    return joined(
        list(parallel_map(lambda i: _distinct(similarity[i : i + ROWS], ids[i : i + ROWS], config), starts))
    )


def _distinct(similarity: NDArray[np.float32], ids: NDArray[np.int64], config: SearchConfig) -> Candidates:
    """`non_max_suppression` of some patches."""
    from retrieval.kernels.numba_loops import suppress_neighbours

    image, x, y = (np.ascontiguousarray(v, np.int32) for v in unpack_ids(ids))
    kept = suppress_neighbours(image, x, y, config.max_candidates, config.nms_radius_px)
    rows, columns = np.nonzero(kept >= 0)
    taken = rows, kept[rows, columns]
    places = np.full((3, *kept.shape), -1, np.int64)
    for one, values in zip(places, (image, x, y), strict=True):
        one[rows, columns] = values[taken]
    best = np.full(kept.shape, -np.inf, np.float32)
    best[rows, columns] = similarity[taken]
    return Candidates(places[0], places[1], places[2], best)
