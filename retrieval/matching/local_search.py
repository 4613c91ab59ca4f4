"""Local descriptors compared at every place: the search for patches of which only a part is visible.

The vector of a whole window says nothing useful once half of the window is hidden. Descriptors of small
parts still do. A network gives one for every four pixels, from the visible pixels within about 10 px. A patch
is then 12 x 12 descriptors, an image a field of them. The sum of products at every place, a convolution with
the patch's descriptors as kernel, finds the places that agree in the visible part. The search compares every
fourth pixel of every image, then every second pixel around the best places. A patch and a million pixels
take milliseconds of two cores, a thousand times the cost of an index.

The network sees only the structure tensor, so any bands serve. `retrieval.training.cloud_networks` trains it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import SearchConfig
from retrieval.kernels.compiled import Compiled
from retrieval.matching.candidates import concatenate, non_max_suppression
from retrieval.matching.session import Session
from retrieval.matching.sites import Sites
from retrieval.matching.tensor_cache import Block, TensorCache, blocks_at
from retrieval.matching.tensors import Known, Templates, crop_windows, shared_columns
from retrieval.models.local_descriptors import FIELD_PX, STEP_PX, TILE, LocalDescriptors
from retrieval.models.registry import LOCAL, load_shipped
from retrieval.types import Candidates, RankedCandidates, pack_ids, unpack_ids

CELL_PX = 32
"""The best place of every square of this side is a candidate."""
BLOCK = 512
"""Patches searched for at a time."""
RESCORED_SHARE = 4
"""Places rescored for each candidate that is returned, before non-maximum suppression."""
NEIGHBOURS = np.array([(dx, dy) for dy in (-1, 0, 1) for dx in (-1, 0, 1)])
"""Shifts, in half-resolution pixels, at which the best places are compared again."""
PAIRS, FEW_PAIRS = 32, 8
"""Pairs of patch and place that are rescored at a time: they stay in the processor's cache. Code is compiled
for these two numbers; fewer pairs are padded to one of them."""
MAX_COSINES = 1 << 24
"""Cosines of patches with the places of a block that are in memory at a time, about."""
MERGE_EVERY = 64
"""Blocks whose best places are merged at a time."""


# --- descriptors and places -----------------------------------------------------------------------


def kernels(descriptors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return descriptors of patches (n, s, s, c), each patch of unit length, as kernels (s, s, c, n)."""
    length = np.sqrt((descriptors**2).sum((1, 2, 3), keepdims=True))
    return np.ascontiguousarray((descriptors / np.maximum(length, 1e-6)).transpose(1, 2, 3, 0))


def agreement(field: Any, kernel: Any) -> Any:
    """Return the cosine of kernels (s, s, c, n) with every place of a field (1, h, w, c): (h', w', n)."""
    from keras import layers, ops

    side = kernel.shape[0]
    energy = layers.AveragePooling2D(side, 1)(ops.sum(field * field, -1, keepdims=True)) * side**2
    return (ops.conv(field, kernel, padding="valid") * ops.rsqrt(energy + 1e-3))[0]


def best_of_cells(
    cosine: NDArray[np.float32], image_id: int, x: int, y: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Find the best place of every cell.

    Args:
        cosine: (h, w, n) at every fourth pixel.
        image_id: the image.
        x: column of the first place in the image.
        y: its row.

    Returns:
        Scores (n, m) and packed ids (n, m).
    """
    h, w, n = cosine.shape
    cell = CELL_PX // STEP_PX
    padded = np.full((-(-h // cell) * cell, -(-w // cell) * cell, n), -np.inf, np.float32)
    padded[:h, :w] = cosine
    rows, cols = padded.shape[0] // cell, padded.shape[1] // cell
    cells = padded.reshape(rows, cell, cols, cell, n).transpose(4, 0, 2, 1, 3)
    cells = cells.reshape(n, rows * cols, cell * cell)
    best = cells.argmax(-1)
    score = np.take_along_axis(cells, best[..., None], -1)[..., 0]
    row, col = np.divmod(np.arange(rows * cols), cols)
    place_y = y + STEP_PX * (row * cell + best // cell)
    place_x = x + STEP_PX * (col * cell + best % cell)
    return score, pack_ids(np.full_like(place_x, image_id), place_x, place_y)


def merge_best(
    places: list[tuple[NDArray[Any], NDArray[Any]]], count: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Merge lists of scores and packed ids (n, m) into the best `count` of each patch."""
    score, ids = (np.concatenate(parts, 1) for parts in zip(*places, strict=True))
    if score.shape[1] <= count:
        return score, ids
    best = np.argpartition(-score, count - 1, axis=1)[:, :count]
    return np.take_along_axis(score, best, 1), np.take_along_axis(ids, best, 1)


def field_of_view(side: int) -> int:
    """Return the side of the field of view of side x side descriptors, in half-resolution pixels."""
    return FIELD_PX + 2 * (side - 1)


def cosines(
    fields: NDArray[np.float32],
    field: NDArray[np.int64],
    at: NDArray[np.int64],
    query: NDArray[np.float32],
    side: int,
) -> NDArray[np.float32]:
    """Return the cosine between patches and places of fields.

    Args:
        fields: (n, h, w, c) descriptors of every half-resolution pixel.
        field: (m,) field of each patch.
        at: (m, k, 2) x and y of places in it.
        query: (m, side * side * c) descriptors of each patch, of unit length.
        side: of a patch, in descriptors, which are two pixels apart.

    Returns:
        (m, k).
    """
    fields = np.ascontiguousarray(fields)
    n, h, w, c = fields.shape
    picture, row, pixel = fields.strides[:3]
    # Strategy: a strided view of all places whose elements are whole descriptors, typed as opaque bytes.
    # Indexing it copies a descriptor at a time instead of a number at a time.
    descriptor = fields.reshape(-1)[:c].view(f"V{pixel}")
    windows = np.lib.stride_tricks.as_strided(
        descriptor,
        (n, h - 2 * side + 2, w - 2 * side + 2, side, side),
        (picture, row, pixel, 2 * row, 2 * pixel),
        writeable=False,
    )
    places = windows[field[:, None], at[..., 1], at[..., 0]].view(np.float32).reshape(*at.shape[:2], -1)
    energy = np.einsum("mkd,mkd->mk", places, places)
    return np.asarray(np.einsum("mkd,md->mk", places, query) / np.sqrt(energy + np.float32(1e-3)))


def best_places(score: NDArray[np.float32], ids: NDArray[np.int64], config: SearchConfig) -> Candidates:
    """Return the best distinct places of each patch, (n, `config.round2_max_candidates`)."""
    order = np.lexsort((ids, -score), axis=1)
    score, ids = np.take_along_axis(score, order, 1), np.take_along_axis(ids, order, 1)
    # A patch or a place without texture agrees with nothing.
    score, ids = np.where(score > 0, score, -np.inf), np.where(score > 0, ids, -1)
    return non_max_suppression(score, ids, replace(config, max_candidates=config.round2_max_candidates))


# --- the search -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _BlockTask:
    """The places of one block to rescore."""

    block: Block
    pairs: NDArray[np.intp]
    """(m, 2) row and column of the places that lie in it."""


class LocalSearch(LocalDescriptors):
    """The search with a trained network of local descriptors."""

    def __init__(self, model: Any, tile: int = TILE) -> None:
        """Wrap a model of `retrieval.models.local_descriptors.local_model`."""
        super().__init__(model, tile)
        self._agreement = Compiled(agreement, fused=False)

    # Searching: all places of all images.

    def search_images(self, session: Session, block: int = BLOCK) -> Candidates:
        """Compare the queries with every place of the session's images.

        Args:
            session: its queries are NaN where cloud or nodata hides the ground.
            block: patches searched for at a time.

        Returns:
            (n, `search.round2_max_candidates`) distinct places, best first. Their similarity is the cosine
            between the descriptors of patch and place, -1 to 1.
        """
        count = len(session.queries)
        starts = range(0, max(1, count), block)
        ids = sorted(session.image_ids) if count else []
        return concatenate([self._search(session.select(slice(i, i + block)), ids) for i in starts])

    def _search(self, session: Session, image_ids: list[int]) -> Candidates:
        """`search_images` for a block of queries."""
        queries, images, config = session.queries, session.images, session.search
        columns = {i: shared_columns(queries.bands, images.bands(i)) for i in image_ids}
        kernel = {c: self._kernels(session, c) for c in {query for query, _ in columns.values()}}
        blocks = session.tensors.blocks(image_ids)
        places = [(np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int64))]

        def compare(block: Block) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
            query_columns, image_columns = columns[block[0]]
            return self._compare(kernel[query_columns], block, image_columns, session.tensors)

        for number, best in enumerate(session.executor.map(compare, blocks), 1):
            places.append(best)
            if len(places) > MERGE_EVERY or number == len(blocks):
                places = [merge_best(places, RESCORED_SHARE * config.round2_max_candidates)]
            session.progress("comparing everywhere", number, len(blocks))
        score, packed = places[0]

        def move(task: _BlockTask) -> None:
            query_columns, image_columns = columns[task.block[0]]
            self._move_to_best(score, packed, task, kernel[query_columns], image_columns, session.tensors)

        tasks = _by_block(packed)
        for number, _ in enumerate(session.executor.map(move, tasks), 1):
            session.progress("comparing more closely", number, len(tasks))
        return best_places(score, packed, config)

    def _compare(
        self, kernel: NDArray[np.float32], block: Block, columns: tuple[int, ...], cache: TensorCache
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Find the best place of every cell of a block for each kernel: scores and packed ids."""
        x, y, tensor, known = cache.block(block, columns)
        field, side = self.describe(tensor[None], None if known is None else known[None]), kernel.shape[0]
        h, w = (size - side + 1 for size in field.shape[1:3])
        if min(h, w) < 1:
            empty = np.zeros((kernel.shape[-1], 0))
            return empty.astype(np.float32), empty.astype(np.int64)
        step = max(1, MAX_COSINES // (h * w))
        parts = [
            best_of_cells(
                self._agreement(field, np.ascontiguousarray(kernel[..., i : i + step])), block[0], x, y
            )
            for i in range(0, kernel.shape[-1], step)
        ]
        return np.concatenate([s for s, _ in parts]), np.concatenate([p for _, p in parts])

    def _move_to_best(
        self,
        score: NDArray[np.float32],
        packed: NDArray[np.int64],
        task: _BlockTask,
        kernel: NDArray[np.float32],
        columns: tuple[int, ...],
        cache: TensorCache,
    ) -> None:
        """Move the places of a block by up to two pixels to the best cosine, in place.

        Args:
            score: (n, k) cosines.
            packed: (n, k) ids.
            task: the block and its places.
            kernel: descriptors of the patches.
            columns: of the image's bands.
            cache: tensors of the images.
        """
        left, top, tensor, known = cache.block(task.block, columns)
        side, pairs = kernel.shape[0], task.pairs
        query = np.ascontiguousarray(kernel.transpose(3, 0, 1, 2)).reshape(kernel.shape[3], -1)
        _, x, y = unpack_ids(packed[tuple(pairs.T)])
        limit = np.array(tensor.shape[1::-1]) - field_of_view(side)
        at = np.stack([x - left, y - top], -1) >> 1
        fields = self.fields_at(tensor, known, at, side)
        for start in range(0, len(pairs), PAIRS):
            rows = slice(start, start + PAIRS)
            cell = tuple(pairs[rows].T)
            shifted = np.clip(at[rows, None] + NEIGHBOURS, 0, limit)
            field, index, corner = fields(rows)
            cosine = cosines(field, index, shifted - corner[:, None], query[cell[0]], side)
            best = np.arange(len(shifted)), cosine.argmax(1)
            score[cell] = cosine[best]
            moved = 2 * shifted[best] + np.array([left, top])
            packed[cell] = pack_ids(np.full(len(shifted), task.block[0]), *moved.T)

    def fields_at(
        self, tensor: NDArray[np.float32], known: Known, at: NDArray[np.int64], side: int
    ) -> Callable[[slice], tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]]:
        """Return the descriptors of every half-resolution pixel around places of a block (h, w, 3).

        Strategy: describe the whole block once, or the surroundings of each place, whichever is less work.

        Returns:
            A function of a slice of places. It returns fields of descriptors, the field of each place, and
            the corner (x, y) of the field in the block.
        """
        size, (h, w) = field_of_view(side) + 2, tensor.shape[:2]
        if len(at) * size**2 >= h * w or min(h, w) < size:
            whole = self.describe_all_pixels(tensor[None], None if known is None else known[None])
            corner_of_block = 0 * at
            return lambda rows: (whole, corner_of_block[rows, 0], corner_of_block[rows])

        def around(rows: slice) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
            corner = np.clip(at[rows] - 1, 0, np.array([w, h]) - size)
            index = np.arange(len(corner))
            padded = FEW_PAIRS if len(index) <= FEW_PAIRS else PAIRS
            corner = corner[np.minimum(np.arange(padded), len(index) - 1)]
            first = np.zeros(len(corner), np.int64)
            mask = None if known is None else crop_windows(known[None], first, corner, size, 0)
            field = self.describe_all_pixels(crop_windows(tensor[None], first, corner, size, 0), mask)
            return field, index, corner[: len(index)]

        return around

    # Rescoring: candidates that another stage has moved.

    def rescore(self, session: Session, ranked: RankedCandidates, block: int = BLOCK) -> NDArray[np.float32]:
        """Compare the queries with candidates at their present pixel, to two pixels instead of four.

        Args:
            session: its queries are NaN where cloud or nodata hides the ground.
            ranked: candidates of each query.
            block: patches, and pairs, at a time.

        Returns:
            (n, k) similarity, as that of `search_images`; unchanged where there is no candidate.
        """
        similarity, queries = ranked.similarity.copy(), session.queries
        pairs = np.argwhere(ranked.image_ids >= 0)
        pairs = pairs[np.argsort(ranked.image_ids[tuple(pairs.T)], kind="stable")]
        ids = ranked.image_ids[tuple(pairs.T)]
        columns = {
            int(i): shared_columns(queries.bands, session.images.bands(int(i))) for i in np.unique(ids)
        }
        for kind in sorted(set(columns.values())):
            of_kind = np.isin(ids, [i for i, of_image in columns.items() if of_image == kind])
            places = partial(self._descriptors_at, ranked, kind[1], session.tensors)
            for start in range(0, len(queries), block):
                in_block = (pairs[:, 0] >= start) & (pairs[:, 0] < start + block)
                selected = pairs[of_kind & in_block]
                kernel = self._kernels(session.select(slice(start, start + block)), kind[0])
                batches = [selected[first : first + block] for first in range(0, len(selected), block)]
                for batch, field in zip(batches, session.executor.map(places, batches), strict=True):
                    query = kernel[..., batch[:, 0] - start].transpose(3, 0, 1, 2)
                    similarity[tuple(batch.T)] = (field * query).sum((1, 2, 3))
        return similarity

    def _kernels(self, session: Session, columns: tuple[int, ...]) -> NDArray[np.float32]:
        """Descriptors of the queries as kernels."""
        templates = Templates(session.queries, columns)
        return kernels(self.describe(*templates.take(np.arange(len(session.queries)), 1)))

    def _descriptors_at(
        self,
        ranked: RankedCandidates,
        columns: tuple[int, ...],
        cache: TensorCache,
        pairs: NDArray[np.intp],
    ) -> NDArray[np.float32]:
        """Descriptors of candidates, of unit length for each."""
        ids, x, y = (getattr(ranked, name)[tuple(pairs.T)] for name in ("image_ids", "x", "y"))
        regions = cache.regions(Sites(ids, np.stack([x, y], -1) >> 1, columns, 0, 1))
        field = self.describe(regions.tensor(), regions.known)
        return field / np.sqrt((field**2).sum((1, 2, 3), keepdims=True) + np.float32(1e-3))


def _by_block(packed: NDArray[np.int64]) -> list[_BlockTask]:
    """Group places by block: each task has the rows and columns of its places."""
    pairs = np.argwhere(packed >= 0)
    image, x, y = unpack_ids(packed[tuple(pairs.T)])
    blocks, block = blocks_at(image, np.stack([x, y], -1), 0)
    parts = np.split(pairs[np.argsort(block, kind="stable")], np.cumsum(np.bincount(block))[:-1])
    return [_BlockTask(*task) for task in zip(blocks, parts, strict=False)]  # no place: one empty part


@lru_cache(maxsize=1)
def shipped_local_search() -> LocalSearch:
    """Return the search with the shipped network."""
    return LocalSearch(load_shipped(LOCAL))
