"""Recall of an index larger than the disk: its parts are made, searched and discarded one after the other.

The distance of a code to a query does not depend on the index, and all parts share the cell centres. So the
best codes of all parts together equal the best codes of the whole index, and so does their re-ranking.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from enlarged import BLOCK, LEARNED, Made
from numpy.typing import NDArray

PART = 31 * BLOCK
"""Vectors per part, two million."""


class Best:
    """The best neighbours of each query so far."""

    def __init__(self, queries: int, count: int) -> None:
        self.score = np.full((queries, count), -np.inf, np.float32)
        self.ids = np.full((queries, count), -1, np.int64)

    def offer(self, score: NDArray[np.float32], ids: NDArray[np.int64]) -> None:
        """Add neighbours, (queries, m) each; of ties the smaller ids stay."""
        count = self.score.shape[1]
        score, ids = np.concatenate([self.score, score], 1), np.concatenate([self.ids, ids], 1)
        order = np.lexsort((ids, -score), axis=-1)[:, :count]
        self.score, self.ids = (np.take_along_axis(v, order, 1) for v in (score, ids))


def streamed(made: Made, kinds: list[str], queries: int, k: int = 20) -> dict[str, NDArray[np.int64]]:
    """Search part by part, exactly and with each kind of index.

    Args:
        made: the vectors.
        kinds: "fast", "ivf".
        queries: number of queries.
        k: neighbours per query.

    Returns:
        For "exact" and each kind the ids of the nearest, (queries, k), best first.
    """
    from retrieval.index.codes import add_codes
    from retrieval.index.kinds import regroup_blocks
    from retrieval.index.vector_file import to_float16

    asked, few = made.queries(queries), Made(made.base, min(made.count, LEARNED))
    codes = {kind: _learned(kind, few, made.count, asked.shape[1]) for kind in kinds}
    exact, depth = Best(queries, k), _depth(k)
    likely = {kind: Best(queries, depth) for kind in kinds}

    def passing(first: int, number: int) -> Iterator[tuple[NDArray[np.int64], NDArray[Any]]]:
        """Yield the blocks of a part in half precision; the first pass also feeds exact search."""
        for ids, vectors in made.blocks(first, first + PART):
            if number == 0:
                score = asked @ vectors.T
                best = np.argpartition(-score, min(k, score.shape[1] - 1), axis=1)[:, :k]
                exact.offer(np.take_along_axis(score, best, 1), ids[best])
            yield ids, to_float16(vectors)

    begin = time.monotonic()
    for first in range(0, made.count, PART):
        count = min(PART, made.count - first)
        for number, kind in enumerate(kinds):
            codes[kind].reset()
            add_codes(codes[kind], regroup_blocks(passing(first, number)), count)
            score, row = codes[kind].search(asked, min(depth, count))
            likely[kind].offer(np.where(row < 0, -np.inf, score), np.where(row < 0, -1, row + first))
        done = first + count
        print(
            f"{done / 1e6:.0f} of {made.count / 1e6:.0f} M, {time.monotonic() - begin:.0f} s", file=sys.stderr
        )
    found = {"exact": exact.ids}
    return found | {kind: _compared(made, asked, likely[kind].ids, k) for kind in kinds}


def _depth(k: int) -> int:
    """Return the number of candidates that an index re-ranks for k neighbours."""
    from retrieval.config import IndexConfig
    from retrieval.index.faiss_index import TIES, rerank_depth

    return rerank_depth(k + TIES, IndexConfig().rerank_k)


def _learned(kind: str, few: Made, count: int, dim: int) -> Any:
    """Return a trained, empty index of a kind for a number of windows."""
    from retrieval.config import IndexConfig
    from retrieval.index.kinds import as_float16, set_nprobe, train_quantizer

    codes = train_quantizer(kind, as_float16(few.blocks), few.count, dim, count)  # type: ignore[arg-type]
    if kind == "ivf":
        set_nprobe(codes, IndexConfig().nprobe)
    return codes


def _compared(made: Made, asked: NDArray[np.float32], ids: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """Re-rank the candidates by half-precision vectors."""
    from retrieval.index.vector_file import to_float16, to_float32

    best = Best(len(asked), k)
    for row, (query, own) in enumerate(zip(asked, ids, strict=True)):
        own = own[own >= 0]
        score = to_float32(to_float16(made.vectors(own))) @ query
        order = np.lexsort((own, -score))[:k]
        best.ids[row, : len(order)] = own[order]
    return best.ids
