"""Vectors of queries to candidates: the nearest windows, reduced by non-maximum suppression.

The windows around the right place overlap it and rank high together: the first twenty windows may hold two
places only. So a window is dropped where a better window of the same image lies within `nms_radius_px` in
both x and y.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import numpy as np
from numpy.typing import NDArray

from retrieval.config import SearchConfig
from retrieval.index.faiss_index import VectorIndex
from retrieval.kernels.executors import parallel_map
from retrieval.types import Candidates, unpack_ids

BLOCK = 2048
"""Queries that search the index at a time."""
ROWS = 128
"""Queries whose windows are suppressed by one thread at a time."""


def find_candidates(
    index: VectorIndex,
    vectors: NDArray[np.float32],
    config: SearchConfig,
    probe_share: float = 1.0,
    block: int = BLOCK,
) -> Candidates:
    """Search an index and keep distinct places.

    Args:
        index: unit vectors with packed ids.
        vectors: (n, dim) of unit length, zero for a flat patch.
        config: number of windows and of places.
        probe_share: share of an index's cells to search, see `VectorIndex.search`.
        block: queries at a time.

    Returns:
        Up to `config.max_candidates` distinct places for each query, best first.
    """
    parts = []
    for start in range(0, len(vectors), block):
        similarity, ids = index.search(vectors[start : start + block], config.top_k, probe_share)
        parts.append(non_max_suppression(similarity, ids, config))
    if not parts:
        empty = np.zeros((0, config.max_candidates), np.int64)
        return Candidates(empty, empty, empty, empty.astype(np.float32))
    return concatenate(parts)


def concatenate(parts: Sequence[Candidates]) -> Candidates:
    """Return the candidates of several groups of queries as one."""
    return Candidates(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Candidates)))


def non_max_suppression(
    similarity: NDArray[np.float32], ids: NDArray[np.int64], config: SearchConfig
) -> Candidates:
    """Keep the best window of every place.

    Args:
        similarity: (n, k) descending.
        ids: (n, k) packed, -1 for none.
        config: `max_candidates` and `nms_radius_px` count.

    Returns:
        (n, max_candidates) candidates.
    """
    starts = range(0, max(1, len(ids)), ROWS)
    parts = parallel_map(
        lambda i: _suppress(similarity[i : i + ROWS], ids[i : i + ROWS], config),
        starts,
    )
    return concatenate(list(parts))


def _suppress(similarity: NDArray[np.float32], ids: NDArray[np.int64], config: SearchConfig) -> Candidates:
    """`non_max_suppression` of some queries."""
    from retrieval.kernels.numba_loops import suppress_neighbours

    image, x, y = (np.ascontiguousarray(v, np.int32) for v in unpack_ids(ids))
    columns = suppress_neighbours(image, x, y, config.max_candidates, config.nms_radius_px)
    row, rank = np.nonzero(columns >= 0)
    source = row, columns[row, rank]
    places = np.full((3, *columns.shape), -1, np.int64)
    for place, values in zip(places, (image, x, y), strict=True):
        place[row, rank] = values[source]
    best = np.full(columns.shape, -np.inf, np.float32)
    best[row, rank] = similarity[source]
    return Candidates(places[0], places[1], places[2], best)
