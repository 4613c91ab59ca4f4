"""The vectors of several indexes, searched as one.

Each index is searched by itself. The nearest of all are kept in the order of one index: by similarity,
ties by the smaller id. Indexes that are exact all together are joined in memory instead. FAISS rounds a
similarity by the place of a vector in its block, and a joined index has the places of a single one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from retrieval.config import IndexConfig
from retrieval.index.faiss_index import QUERY_BLOCK, READ_ROWS, VectorIndex
from retrieval.types import unpack_ids

NONE = np.iinfo(np.int64).max
"""Stands for the id -1 while ids are sorted."""


def merge_vectors(members: Sequence[VectorIndex], device: str) -> VectorIndex:
    """Return the vectors of several indexes as one index.

    Args:
        members: vectors of one length and with distinct ids.
        device: "cpu" or "gpu", where joined exact indexes are searched.
    """
    merged = MergedVectors(members)
    if any(member.kind != "exact" for member in members):
        return merged
    exact = IndexConfig(kind="exact")
    return VectorIndex.build(lambda: merged.blocks(READ_ROWS), merged.dim, exact, device, count=len(merged))


class MergedVectors(VectorIndex):
    """Several indexes that answer as one."""

    def __init__(self, members: Sequence[VectorIndex]) -> None:
        """Keep the members; at least one."""
        coded = [m for m in members if m.kind != "exact"] or list(members)
        self._members = tuple(members)
        self.kind, self.device, self.nprobe = coded[0].kind, coded[0].device, coded[0].nprobe
        self.rerank_k = coded[0].rerank_k

    def __len__(self) -> int:
        return sum(map(len, self._members))

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._members[0].dim

    def search(
        self, vectors: NDArray[np.float32], k: int, share: float = 1.0, *, query_block: int = QUERY_BLOCK
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the k most similar vectors to each query; see `VectorIndex.search`."""
        found = [member.search(vectors, k, share, query_block=query_block) for member in self._members]
        similarity, ids = (np.concatenate(columns, 1) for columns in zip(*found, strict=True))
        order = np.lexsort((np.where(ids < 0, NONE, ids), -similarity), axis=-1)[:, :k]
        return np.take_along_axis(similarity, order, 1), np.take_along_axis(ids, order, 1)

    def restricted(self, ids: NDArray[np.int64]) -> VectorIndex:
        """Return an index that finds only some of the vectors; see `VectorIndex.restricted`."""
        return MergedVectors([member.restricted(ids) for member in self._members])

    @cached_property
    def _runs(self) -> NDArray[np.int64]:
        """(runs, 4) member, first and last row + 1 in it, and first row here, in the order of ids.

        An image lies in one member. The images of a run follow each other there and here.
        """
        starts = []
        for number, member in enumerate(self._members):
            ids = member.ids()
            images, first = np.unique(unpack_ids(ids)[0], return_index=True)
            stop = np.append(first, len(ids))[1:]
            starts.append(np.stack([images, np.full(len(images), number), first, stop], 1))
        rows = np.concatenate(starts)
        rows = rows[np.argsort(rows[:, 0], kind="stable"), 1:]
        continues = np.zeros(len(rows), bool)
        continues[1:] = (rows[1:, 0] == rows[:-1, 0]) & (rows[1:, 1] == rows[:-1, 2])
        first = np.flatnonzero(~continues)
        last = np.append(first[1:], len(rows)) - 1
        runs = np.stack([rows[first, 0], rows[first, 1], rows[last, 2]], 1)
        begin = np.cumsum(runs[:, 2] - runs[:, 1]) - (runs[:, 2] - runs[:, 1])
        return np.column_stack([runs, begin])

    def _pieces(self, start: int, stop: int | None) -> Iterator[tuple[VectorIndex, int, int]]:
        """Yield the members and their rows that lie from `start` to before `stop` in the order of ids."""
        stop = len(self) if stop is None else stop
        for member, first, last, begin in self._runs:
            low, high = max(start - begin, 0), min(stop - begin, last - first)
            if low < high:
                yield self._members[member], int(first + low), int(first + high)

    def ids(self, start: int = 0, stop: int | None = None) -> NDArray[np.int64]:
        """Return ids (m,), ascending; see `VectorIndex.ids`."""
        parts = [member.ids(low, high) for member, low, high in self._pieces(start, stop)]
        return np.concatenate([np.zeros(0, np.int64), *parts])

    def vectors(
        self, start: int = 0, stop: int | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return ids and vectors in the order of ids; see `VectorIndex.vectors`."""
        parts = [member.vectors(low, high) for member, low, high in self._pieces(start, stop)]
        ids = np.concatenate([np.zeros(0, np.int64), *(i for i, _ in parts)])
        return ids, np.concatenate([np.zeros((0, self.dim), np.float32), *(v for _, v in parts)])

    def blocks(self, rows: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Yield all ids and vectors in the order of ids, block by block."""
        for start in range(0, len(self), rows):
            yield self.vectors(start, min(start + rows, len(self)))
