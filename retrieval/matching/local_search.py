"""Local descriptors of patches compared with every place of images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache, partial
from importlib import resources
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import SearchConfig
from retrieval.kernels.compiled import Compiled, parallel_map
from retrieval.matching.candidates import joined, non_max_suppression
from retrieval.matching.tensor_cache import Block, Sites, TensorCache, blocks_at
from retrieval.matching.tensors import Known, Pixels, Templates, crop_windows, shared_columns, tile
from retrieval.models.local_descriptors import SEEN, STEP_PX
from retrieval.types import Candidates, Progress, RankedCandidates, pack_ids, silent, unpack_ids
from tfrecords.schema import Patches

CELL_PX = 32
"""The best place of every square of this side is a candidate."""


def kernels(descriptors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Descriptors of patches (n, s, s, c), each patch of unit length, as kernels (s, s, c, n)."""
    length = np.sqrt((descriptors**2).sum((1, 2, 3), keepdims=True))
    return np.ascontiguousarray((descriptors / np.maximum(length, 1e-6)).transpose(1, 2, 3, 0))


def agreement(field: Any, kernel: Any) -> Any:
    """Cosine between kernels (s, s, c, n) and a field (1, h, w, c) at every place: (h', w', n)."""
    from keras import layers, ops

    side = kernel.shape[0]
    energy = layers.AveragePooling2D(side, 1)(ops.sum(field * field, -1, keepdims=True)) * side**2
    return (ops.conv(field, kernel, padding="valid") * ops.rsqrt(energy + 1e-3))[0]


def peaks(
    agreed: NDArray[np.float32], image_id: int, x: int, y: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The best place of every cell: scores (n, m) and packed ids (n, m)."""
    h, w, n = agreed.shape
    cell = CELL_PX // STEP_PX
    wide = np.full((-(-h // cell) * cell, -(-w // cell) * cell, n), -np.inf, np.float32)
    wide[:h, :w] = agreed
    rows, cols = wide.shape[0] // cell, wide.shape[1] // cell
    cells = (
        wide.reshape(rows, cell, cols, cell, n).transpose(4, 0, 2, 1, 3).reshape(n, rows * cols, cell * cell)
    )
    best = cells.argmax(-1)
    score = np.take_along_axis(cells, best[..., None], -1)[..., 0]
    row, col = np.divmod(np.arange(rows * cols), cols)
    at_y = y + STEP_PX * (row * cell + best // cell)
    at_x = x + STEP_PX * (col * cell + best % cell)
    return score, pack_ids(np.full_like(at_x, image_id), at_x, at_y)


def best_of(
    found: list[tuple[NDArray, NDArray]], count: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The best of several lists."""
    score, ids = (np.concatenate(parts, 1) for parts in zip(*found, strict=True))
    if score.shape[1] <= count:
        return score, ids
    best = np.argpartition(-score, count - 1, axis=1)[:, :count]
    return np.take_along_axis(score, best, 1), np.take_along_axis(ids, best, 1)


def seen_by(side: int) -> int:
    """Side of what so many descriptors see together, in half-resolution pixels."""
    return SEEN + 2 * (side - 1)


def cosines(
    fields: NDArray[np.float32],
    which: NDArray[np.int64],
    at: NDArray[np.int64],
    own: NDArray[np.float32],
    side: int,
) -> NDArray[np.float32]:
    """Cosine between patches and places of fields.

    Args:
        fields: (n, h, w, c) descriptors of every half-resolution pixel.
        which: (m,) field of each patch.
        at: (m, k, 2) x and y of places in it.
        own: (m, side * side * c) descriptors of the patch of each, of unit length.
        side: of a patch, in descriptors, which are two pixels apart.

    Returns:
        (m, k).
    """
    fields = np.ascontiguousarray(fields)
    n, h, w, c = fields.shape
    picture, row, pixel = fields.strides[:3]
    one = fields.reshape(-1)[:c].view(f"V{pixel}")  # copied a descriptor at a time, not a number
    every = np.lib.stride_tricks.as_strided(
        one,
        (n, h - 2 * side + 2, w - 2 * side + 2, side, side),
        (picture, row, pixel, 2 * row, 2 * pixel),
        writeable=False,
    )
    places = every[which[:, None], at[..., 1], at[..., 0]].view(np.float32).reshape(*at.shape[:2], -1)
    energy = np.einsum("mkd,mkd->mk", places, places)
    return np.asarray(np.einsum("mkd,md->mk", places, own) / np.sqrt(energy + np.float32(1e-3)))


def best_places(score: NDArray[np.float32], ids: NDArray[np.int64], config: SearchConfig) -> Candidates:
    """The best distinct places of each patch."""
    order = np.lexsort((ids, -score), axis=1)
    score, ids = np.take_along_axis(score, order, 1), np.take_along_axis(ids, order, 1)
    # Where patch or place shows nothing they agree in nothing.
    score, ids = np.where(score > 0, score, -np.inf), np.where(score > 0, ids, -1)
    return non_max_suppression(score, ids, replace(config, max_candidates=config.round2_max_candidates))


WEIGHTS = "local.keras"
"""Name of the shipped network in `retrieval.models.weights`."""
PATCHES = 512
"""Patches looked for at a time."""
MOST = 4
"""Of each patch so many times the wanted places are looked at again before they are thinned."""
NEARBY = np.array([(dx, dy) for dy in (-1, 0, 1) for dx in (-1, 0, 1)])
"""Where places that were kept are looked at again, in half-resolution pixels around them."""
PAIRS, FEW = 32, 8
"""Pairs of a patch and a place that are looked at again at a time: they stay in the processor's cache. What
is compiled is compiled for these numbers: fewer pairs are filled up to one of them."""
TILE = 128
"""Side of the tiles that pictures are described in, in half-resolution pixels, besides the border."""
ROOM = 1 << 24
"""Cosines of patches with the places of a block that are in memory at a time, about."""


class LocalSearch:
    """A trained network, and the search with it."""

    def __init__(self, model: Any) -> None:
        """Wrap a model of `local_model`."""
        self.model = model
        self._describe = Compiled(self._described, fused=False)
        self._densely = Compiled(self._described_densely, fused=False)
        self._compare = Compiled(agreement, fused=False)

    def _described(self, tensor: Any, visible: Any) -> Any:
        return self.model([tensor, visible], training=False)

    def _described_densely(self, tensor: Any, visible: Any) -> Any:
        """Descriptors at every pixel, of pictures of even size: four times those at every second, woven."""
        from keras import ops

        h, w = (size - SEEN + 1 for size in tensor.shape[1:3])
        rows = []
        for dy in (0, 1):
            high = [x[:, dy : dy + h + SEEN - 2] for x in (tensor, visible)]
            turns = [[x[:, :, dx : dx + w + SEEN - 2] for x in high] for dx in (0, 1)]
            pair = ops.stack([self._described(*turn) for turn in turns], 3)
            rows.append(ops.reshape(pair, (-1, h // 2, w, pair.shape[-1])))
        woven = ops.stack(rows, 2)
        return ops.reshape(woven, (-1, h, w, woven.shape[-1]))

    def describe(self, tensor: NDArray[np.float32], visible: Known) -> NDArray[np.float32]:
        """Descriptors of pictures.

        Args:
            tensor: (n, h, w, 3) structure tensor at half resolution.
            visible: (n, h, w, 1), or None where everything is.

        Returns:
            (n, (h - 9) / 2 + 1, (w - 9) / 2 + 1, dim) float32.
        """
        shown = _shown(tensor, visible)
        if len(tensor) == 1:
            return _in_tiles(self._describe, tensor, shown, 2)
        return np.asarray(self._describe(tensor, shown))

    def find(
        self,
        patches: Patches,
        image_ids: Iterable[int],
        images: Pixels,
        config: SearchConfig,
        ground: TensorCache,
        progress: Progress = silent,
    ) -> Candidates:
        """Compare patches with every place of some images.

        Args:
            patches: NaN where cloud or anything else hides them.
            image_ids: which images.
            images: their pixels.
            config: `round2_max_candidates` and `nms_radius_px` are used.
            ground: tensors of the images.
            progress: told of the blocks of images that are done.

        Returns:
            (n, `config.round2_max_candidates`) distinct places, best first. Their similarity is the cosine
            between the descriptors of the patch and of the place, -1 to 1.
        """
        ids = sorted(image_ids) if len(patches) else []
        starts = range(0, max(1, len(patches)), PATCHES)
        rows = [np.arange(start, min(start + PATCHES, len(patches))) for start in starts]
        return joined([self._find(patches, r, ids, images, config, ground, progress) for r in rows])

    def _find(
        self,
        patches: Patches,
        rows: NDArray[np.intp],
        ids: list[int],
        images: Pixels,
        config: SearchConfig,
        ground: TensorCache,
        progress: Progress,
    ) -> Candidates:
        """`find` for some rows."""
        columns = {i: shared_columns(patches.bands, images.bands(i)) for i in ids}
        mine = patches.select(rows)
        own = {asked: self._kernel(mine, asked) for asked in {asked for asked, _ in columns.values()}}
        blocks = ground.blocks(ids)
        found = [(np.zeros((len(rows), 0), np.float32), np.zeros((len(rows), 0), np.int64))]

        def compare(block: Block) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
            asked, stored = columns[block[0]]
            return self._compared(own[asked], block, stored, ground)

        for number, peak in enumerate(parallel_map(compare, blocks), 1):
            found.append(peak)
            if len(found) > 64 or number == len(blocks):
                found = [best_of(found, MOST * config.round2_max_candidates)]
            progress("comparing everywhere", number, len(blocks))
        score, packed = found[0]
        near = _by_block(packed)

        def look(number: int) -> None:
            block, pairs = near[number]
            asked, stored = columns[block[0]]
            self._look_nearby(score, packed, pairs, own[asked], block, stored, ground)

        for number, _ in enumerate(parallel_map(look, range(len(near))), 1):
            progress("comparing more closely", number, len(near))
        return best_places(score, packed, config)

    def _compared(
        self, kernel: NDArray[np.float32], block: Block, stored: tuple[int, ...], ground: TensorCache
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The best places of patches in every cell of a block: scores and packed ids."""
        x, y, tensor, known = ground.block(block, stored)
        field, side = self.describe(tensor[None], None if known is None else known[None]), kernel.shape[0]
        h, w = (size - side + 1 for size in field.shape[1:3])
        if min(h, w) < 1:
            none = np.zeros((kernel.shape[-1], 0))
            return none.astype(np.float32), none.astype(np.int64)
        some = max(1, ROOM // (h * w))
        parts = [
            peaks(self._compare(field, np.ascontiguousarray(kernel[..., i : i + some])), block[0], x, y)
            for i in range(0, kernel.shape[-1], some)
        ]
        return np.concatenate([s for s, _ in parts]), np.concatenate([p for _, p in parts])

    def _look_nearby(
        self,
        score: NDArray[np.float32],
        packed: NDArray[np.int64],
        pairs: NDArray[np.intp],
        kernel: NDArray[np.float32],
        block: Block,
        stored: tuple[int, ...],
        ground: TensorCache,
    ) -> None:
        """Move the places of a block by up to two pixels to where they agree best, in place.

        Args:
            score: (n, k) cosines.
            packed: (n, k) ids.
            pairs: (m, 2) which of them lie in the block.
            kernel: descriptors of the patches.
            block: of an image.
            stored: columns of its bands.
            ground: tensors of the images.
        """
        left, top, tensor, known = ground.block(block, stored)
        side = kernel.shape[0]
        own = np.ascontiguousarray(kernel.transpose(3, 0, 1, 2)).reshape(kernel.shape[3], -1)
        _, x, y = unpack_ids(packed[tuple(pairs.T)])
        most = np.array(tensor.shape[1::-1]) - seen_by(side)
        at = np.stack([x - left, y - top], -1) >> 1
        fields = self._fields(tensor, known, at, side)
        for start in range(0, len(pairs), PAIRS):
            some = slice(start, start + PAIRS)
            here = tuple(pairs[some].T)
            near = np.clip(at[some, None] + NEARBY, 0, most)
            field, which, corner = fields(some)
            cosine = cosines(field, which, near - corner[:, None], own[here[0]], side)
            best = np.arange(len(near)), cosine.argmax(1)
            score[here] = cosine[best]
            moved = 2 * near[best] + np.array([left, top])
            packed[here] = pack_ids(np.full(len(near), block[0]), *moved.T)

    def _fields(
        self, tensor: NDArray[np.float32], known: Known, at: NDArray[np.int64], side: int
    ) -> Callable[[slice], tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]]:
        """Descriptors at every half-resolution pixel around places of a block (h, w, 3).

        They are of the whole block, made once, or of what lies around each place, whichever is less.

        Returns:
            What gives, for some of the places, fields of descriptors, which of these is each place's, and the
            x and y of its corner in the block.
        """
        size, (h, w) = seen_by(side) + 2, tensor.shape[:2]
        if len(at) * size**2 >= h * w or min(h, w) < size:
            whole, corner = self._everywhere(tensor[None], None if known is None else known[None]), 0 * at
            return lambda some: (whole, corner[some, 0], corner[some])

        def around(some: slice) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
            corner = np.clip(at[some] - 1, 0, np.array([w, h]) - size)
            which = np.arange(len(corner))
            corner = corner[np.minimum(np.arange(FEW if len(which) <= FEW else PAIRS), len(which) - 1)]
            first = np.zeros(len(corner), np.int64)
            seen = None if known is None else crop_windows(known[None], first, corner, size, 0)
            field = self._everywhere(crop_windows(tensor[None], first, corner, size, 0), seen)
            return field, which, corner[: len(which)]

        return around

    def _everywhere(self, tensor: NDArray[np.float32], known: Known) -> NDArray[np.float32]:
        """Descriptors at every half-resolution pixel of pictures (n, h, w, 3): (n, h - 8, w - 8, dim)."""
        shown = _shown(tensor, known)
        if len(tensor) == 1:
            return _in_tiles(self._densely, tensor, shown, 1)
        even = ((0, 0), (0, tensor.shape[1] % 2), (0, tensor.shape[2] % 2), (0, 0))
        made = self._densely(np.pad(tensor, even), np.pad(shown, even))
        return np.asarray(made)[:, : tensor.shape[1] - SEEN + 1, : tensor.shape[2] - SEEN + 1]

    def again(
        self, ranked: RankedCandidates, patches: Patches, images: Pixels, ground: TensorCache
    ) -> NDArray[np.float32]:
        """Compare patches with candidates where these were found, to two pixels instead of four.

        Args:
            ranked: candidates of each patch.
            patches: as for `find`.
            images: as for `find`.
            ground: as for `find`.

        Returns:
            (n, k) similarity, as that of `find`; as it was where there is no candidate.
        """
        similarity = ranked.similarity.copy()
        pairs = np.argwhere(ranked.image_ids >= 0)
        pairs = pairs[np.argsort(ranked.image_ids[tuple(pairs.T)], kind="stable")]
        ids = ranked.image_ids[tuple(pairs.T)]
        columns = {int(i): shared_columns(patches.bands, images.bands(int(i))) for i in np.unique(ids)}
        for asked, stored in sorted(set(columns.values())):
            theirs = np.isin(ids, [i for i, of_image in columns.items() if of_image == (asked, stored)])
            for start in range(0, len(patches), PATCHES):
                mine = pairs[theirs & (pairs[:, 0] >= start) & (pairs[:, 0] < start + PATCHES)]
                kernel = self._kernel(patches.select(slice(start, start + PATCHES)), asked)
                batches = [mine[first : first + PATCHES] for first in range(0, len(mine), PATCHES)]
                places = partial(self._places, ranked, stored, ground)
                for pair, field in zip(batches, parallel_map(places, batches), strict=True):
                    own = kernel[..., pair[:, 0] - start].transpose(3, 0, 1, 2)
                    similarity[tuple(pair.T)] = (field * own).sum((1, 2, 3))
        return similarity

    def _kernel(self, patches: Patches, asked: tuple[int, ...]) -> NDArray[np.float32]:
        """Descriptors of patches as kernels."""
        return kernels(self.describe(*Templates(patches, asked).take(np.arange(len(patches)), 1)))

    def _places(
        self, ranked: RankedCandidates, stored: tuple[int, ...], ground: TensorCache, pairs: NDArray[np.intp]
    ) -> NDArray[np.float32]:
        """Descriptors of candidates, those of each of unit length."""
        ids, x, y = (getattr(ranked, name)[tuple(pairs.T)] for name in ("image_ids", "x", "y"))
        regions = ground.regions(Sites(ids, np.stack([x, y], -1) >> 1, stored, 0, 1))
        field = self.describe(regions.tensor(), regions.known)
        return field / np.sqrt((field**2).sum((1, 2, 3), keepdims=True) + np.float32(1e-3))


def _shown(tensor: NDArray[np.float32], known: Known) -> NDArray[np.float32]:
    """What is visible of pictures, (n, h, w, 1)."""
    every = np.ones((*tensor.shape[:3], 1), np.float32)
    return every if known is None else every * known


def _in_tiles(
    described: Compiled, tensor: NDArray[np.float32], shown: NDArray[np.float32], step: int
) -> NDArray[np.float32]:
    """Descriptors of a picture (1, h, w, 3), tile by tile: of pictures of all sizes one shape is compiled.

    Args:
        described: gives the descriptors of a tile.
        tensor: of the picture.
        shown: what is visible of it.
        step: from one descriptor to the next, in half-resolution pixels.
    """
    rows, cols = ((size - SEEN) // step + 1 for size in tensor.shape[1:3])
    field, each = np.empty((0, rows, cols, 0), np.float32), TILE // step
    for row, col in product(range(0, rows, each), range(0, cols, each)):
        y, x = row * step, col * step
        # Hidden is what lies beyond: descriptors that see none of it are what they were.
        made = described(*(tile(picture, y, x, TILE + SEEN - 1, 0) for picture in (tensor, shown)))
        field = field if field.size else np.empty((1, rows, cols, made.shape[-1]), np.float32)
        field[:, row : row + each, col : col + each] = made[:, : rows - row, : cols - col]
    return field


def _by_block(packed: NDArray[np.int64]) -> list[tuple[Block, NDArray[np.intp]]]:
    """The blocks that places lie in, and for each row and column of the places in it."""
    pairs = np.argwhere(packed >= 0)
    image, x, y = unpack_ids(packed[tuple(pairs.T)])
    blocks, which = blocks_at(image, np.stack([x, y], -1), 0)
    parts = np.split(pairs[np.argsort(which, kind="stable")], np.cumsum(np.bincount(which))[:-1])
    return list(zip(blocks, parts, strict=False))  # without any place there is one part, of none


@lru_cache(maxsize=1)
def shipped_local_search() -> LocalSearch:
    """The network in the package."""
    import keras

    with resources.as_file(resources.files("retrieval.models.weights") / WEIGHTS) as path:
        return LocalSearch(keras.saving.load_model(path, compile=False, safe_mode=True))
