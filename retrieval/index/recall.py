"""How much of what exact search finds does an index find? Measured on the user's own vectors."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retrieval.index.kinds import Blocks
from retrieval.index.vector_file import to_float32

if TYPE_CHECKING:
    from retrieval.index.faiss_index import VectorIndex

DEEPEST = 20
"""Neighbours that are compared, where there are so many."""


@dataclass(frozen=True)
class Recall:
    """Shares of exact search's nearest windows that an index finds too."""

    of_1: float
    """Of the nearest one, 0 to 1."""
    of_20: float
    """Of the nearest twenty, 0 to 1."""
    queries: int
    """Vectors that were asked."""
    how: str
    """Where they came from."""

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for the manifest."""
        return asdict(self)

    def __str__(self) -> str:
        return f"finds {self.of_1:.1%} of the nearest and {self.of_20:.1%} of the nearest 20 of exact search"


def exact_search(blocks: Blocks, queries: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """The k nearest of all vectors to each query, compared one by one, a block in memory at a time.

    Args:
        blocks: ids and vectors.
        queries: (n, dim).
        k: how many; -1 where there are fewer.

    Returns:
        (n, k) ids, best first; ties go to the smaller id.
    """
    best = np.full((len(queries), k), -np.inf, np.float32)
    found = np.full((len(queries), k), -1, np.int64)
    # The same room for all blocks: new memory costs as much as the sums in it.
    room, near = np.zeros(0, np.float32), np.zeros(0, bool)
    for ids, vectors in blocks():
        if len(ids):
            shape = len(queries), len(ids)
            size = len(queries) * len(ids)
            if len(room) < size:
                room, near = np.empty(size, np.float32), np.empty(size, bool)
            similarity = np.matmul(queries, to_float32(vectors).T, out=room[:size].reshape(shape))
            _take_in(best, found, similarity, ids, near[:size].reshape(shape))
    return found


def _take_in(
    best: NDArray[np.float32],
    found: NDArray[np.int64],
    similarity: NDArray[np.float32],
    ids: NDArray[np.int64],
    near: NDArray[np.bool_],
) -> None:
    """Put a block's neighbours among the k nearest so far, in place.

    After the first blocks few reach the k-th best of their query: these alone are sorted. `near`, of the
    shape of `similarity`, is written to.
    """
    k = best.shape[1]
    bar = best[:, -1:]
    if len(ids) > k and np.isneginf(bar).any():
        bar = np.maximum(bar, np.partition(similarity, len(ids) - k, axis=1)[:, [len(ids) - k]])
    np.greater_equal(similarity, bar, out=near)  # a tie with the k-th may have the smaller id
    row, column = np.divmod(np.flatnonzero(near), len(ids))  # `nonzero` takes ten times as long
    if not len(row):
        return
    asked, first, counts = np.unique(row, return_index=True, return_counts=True)
    place = k + np.arange(len(row)) - np.repeat(first, counts)
    rank = np.repeat(np.arange(len(asked)), counts)
    both = np.full((len(asked), k + counts.max()), -np.inf, np.float32)
    named = np.full(both.shape, -1, np.int64)
    both[:, :k], named[:, :k] = best[asked], found[asked]
    both[rank, place], named[rank, place] = similarity[row, column], ids[column]
    order = np.lexsort((named, -both), axis=-1)[:, :k]
    best[asked], found[asked] = np.take_along_axis(both, order, 1), np.take_along_axis(named, order, 1)


def measure_recall(
    index: VectorIndex, queries: NDArray[np.float32], truth: NDArray[np.int64], how: str
) -> Recall:
    """Ask an index what exact search was asked.

    Args:
        index: built from the same vectors.
        queries: (n, dim) of unit length, one or more.
        truth: (n, k) what exact search answered, k at most the number of vectors.
        how: where the queries came from.
    """
    _, found = index.search(queries, truth.shape[1])
    shares = [np.isin(t, f).mean() for t, f in zip(truth, found, strict=True)]
    return Recall(float((truth[:, 0] == found[:, 0]).mean()), float(np.mean(shares)), len(queries), how)
