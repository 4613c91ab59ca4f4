"""Recall: the share of the exact nearest neighbours that an index finds, measured on its own vectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from retrieval.index.kinds import Blocks
from retrieval.index.vector_file import to_float32

if TYPE_CHECKING:
    from retrieval.index.faiss_index import VectorIndex

RECALL_K = 20
"""Neighbours that are compared, or all vectors if there are fewer."""
RENAMED = {"of_1": "recall_at_1", "of_20": "recall_at_20", "how": "source"}
"""Names of 0.1.0 and today's names, for index manifests that still hold the old ones."""


@dataclass(frozen=True)
class Recall:
    """Share of the exact nearest windows that an index finds."""

    recall_at_1: float
    """Share of queries whose nearest window is found first, 0 to 1."""
    recall_at_20: float
    """Share of the 20 nearest windows that are among the first 20, 0 to 1."""
    queries: int
    """Number of query vectors."""
    source: str
    """Where the query vectors come from."""

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Return the record that a manifest holds, under today's names or the names of 0.1.0."""
        return cls(**{RENAMED.get(name, name): value for name, value in values.items()})

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the manifest."""
        return asdict(self)

    def __str__(self) -> str:
        at_1, at_20 = self.recall_at_1, self.recall_at_20
        return f"finds {at_1:.1%} of the nearest and {at_20:.1%} of the nearest 20 of exact search"


def exact_search(blocks: Blocks, queries: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Return the ids of the k nearest of all vectors to each query, by brute force, block by block.

    Args:
        blocks: ids and vectors.
        queries: (n, dim).
        k: number of neighbours.

    Returns:
        (n, k) ids, best first; ties go to the smaller id; -1 where there are fewer vectors than k.
    """
    best = np.full((len(queries), k), -np.inf, np.float32)
    nearest = np.full((len(queries), k), -1, np.int64)
    # All blocks share one buffer: allocating new memory costs as much as the arithmetic.
    buffer, mask = np.zeros(0, np.float32), np.zeros(0, bool)
    for ids, vectors in blocks():
        if len(ids):
            shape = len(queries), len(ids)
            size = len(queries) * len(ids)
            if len(buffer) < size:
                buffer, mask = np.empty(size, np.float32), np.empty(size, bool)
            similarity = np.matmul(queries, to_float32(vectors).T, out=buffer[:size].reshape(shape))
            _merge_block(best, nearest, similarity, ids, mask[:size].reshape(shape))
    return nearest


def _merge_block(
    best: NDArray[np.float32],
    nearest: NDArray[np.int64],
    similarity: NDArray[np.float32],
    ids: NDArray[np.int64],
    mask: NDArray[np.bool_],
) -> None:
    """Merge a block's vectors into the k nearest so far, in place.

    After the first blocks, few vectors reach the k-th best of their query: only these are sorted. `mask`,
    of the shape of `similarity`, is overwritten.
    """
    k = best.shape[1]
    threshold = best[:, -1:]
    if len(ids) > k and np.isneginf(threshold).any():
        kth = np.partition(similarity, len(ids) - k, axis=1)[:, [len(ids) - k]]
        threshold = np.maximum(threshold, kth)
    np.greater_equal(similarity, threshold, out=mask)  # a tie with the k-th may have the smaller id
    row, column = np.divmod(np.flatnonzero(mask), len(ids))  # `nonzero` takes ten times as long
    if not len(row):
        return
    queries, first, counts = np.unique(row, return_index=True, return_counts=True)
    place = k + np.arange(len(row)) - np.repeat(first, counts)
    rank = np.repeat(np.arange(len(queries)), counts)
    merged = np.full((len(queries), k + counts.max()), -np.inf, np.float32)
    merged_ids = np.full(merged.shape, -1, np.int64)
    merged[:, :k], merged_ids[:, :k] = best[queries], nearest[queries]
    merged[rank, place], merged_ids[rank, place] = similarity[row, column], ids[column]
    order = np.lexsort((merged_ids, -merged), axis=-1)[:, :k]
    best[queries] = np.take_along_axis(merged, order, 1)
    nearest[queries] = np.take_along_axis(merged_ids, order, 1)


def measure_recall(
    index: VectorIndex, queries: NDArray[np.float32], truth: NDArray[np.int64], source: str
) -> Recall:
    """Compare an index with exact search on the same queries.

    Args:
        index: built from the same vectors.
        queries: (n, dim) of unit length, n at least 1.
        truth: (n, k) ids from `exact_search`; k is at most the number of vectors.
        source: where the queries come from.
    """
    _, found = index.search(queries, truth.shape[1])
    shares = [np.isin(t, f).mean() for t, f in zip(truth, found, strict=True)]
    at_1 = float((truth[:, 0] == found[:, 0]).mean())
    return Recall(at_1, float(np.mean(shares)), len(queries), source)
