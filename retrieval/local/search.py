"""Local descriptors of patches compared with every place of images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.compiled import Compiled
from retrieval.config import SearchConfig
from retrieval.local.model import SEEN
from retrieval.local.places import (
    agreement,
    best_of,
    best_places,
    cosines,
    kernels,
    peaks,
    seen_by,
)
from retrieval.refine import Ground, Pixels, Templates
from retrieval.refine.squares import squares
from retrieval.refine.tensors import Known, shared_columns
from retrieval.search import joined
from retrieval.types import Candidates, Progress, Refined, pack_ids, silent, unpack_ids
from tfrecords.schema import Patches

WEIGHTS = "local.keras"
"""Name of the shipped network in `retrieval.weights`."""
PATCHES = 512
"""Patches looked for at a time."""
MOST = 4
"""Of each patch so many times the wanted places are looked at again before they are thinned."""
NEARBY = np.array([(dx, dy) for dy in (-1, 0, 1) for dx in (-1, 0, 1)])
"""Where places that were kept are looked at again, in half-resolution pixels around them."""
PAIRS = 32
"""Pairs of a patch and a place that are looked at again at a time: they stay in the processor's cache."""


class LocalSearch:
    """A trained network, and the search with it."""

    def __init__(self, model: Any) -> None:
        """Wrap a model of `local_model`."""
        self.model = model
        self._describe = Compiled(
            lambda tensor, visible: model([tensor, visible], training=False), fused=False
        )
        self._compare = Compiled(agreement, fused=False)

    def describe(self, tensor: NDArray[np.float32], visible: NDArray[np.bool_] | None) -> NDArray[np.float32]:
        """Descriptors of pictures.

        Args:
            tensor: (n, h, w, 3) structure tensor at half resolution.
            visible: (n, h, w, 1), or None where everything is.

        Returns:
            (n, (h - 9) / 2 + 1, (w - 9) / 2 + 1, dim) float32.
        """
        shown = np.ones((*tensor.shape[:3], 1), np.float32)
        if visible is not None:
            shown *= visible
        return np.asarray(self._describe(tensor, shown))

    def find(
        self,
        patches: Patches,
        image_ids: Iterable[int],
        images: Pixels,
        config: SearchConfig,
        ground: Ground,
        progress: Progress = silent,
    ) -> Candidates:
        """Compare patches with every place of some images.

        Args:
            patches: NaN where cloud or anything else hides them.
            image_ids: which images.
            images: their pixels.
            config: `deep_places` and `separation_px` are used.
            ground: tensors of the images.
            progress: told of the images that are done.

        Returns:
            (n, `config.deep_places`) distinct places, best first; their similarity is the cosine between the
            patch's descriptors and those of the place, -1 to 1.
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
        ground: Ground,
        progress: Progress,
    ) -> Candidates:
        """`find` for some rows."""
        of_bands: dict[tuple[int, ...], NDArray[np.float32]] = {}
        found: list[tuple[NDArray, NDArray]] = []
        for number, image_id in enumerate(ids, 1):
            asked, stored = shared_columns(patches.bands, images.bands(image_id))
            if asked not in of_bands:
                of_bands[asked] = self._kernel(patches.some(rows), asked)
            for x, y, tensor, known in ground.blocks(image_id, stored):
                field = self.describe(tensor[None], None if known is None else known[None])
                if min(field.shape[1:3]) < of_bands[asked].shape[0]:
                    continue
                found.append(peaks(self._compare(field, of_bands[asked]), image_id, x, y))
            if len(found) > 64:
                found = [best_of(found, MOST * config.deep_places)]
            progress("comparing everywhere", number, len(ids))
        empty = np.zeros((len(rows), 0), np.float32), np.zeros((len(rows), 0), np.int64)
        score, packed = best_of([empty, *found], MOST * config.deep_places)
        for number, image_id in enumerate(ids, 1):
            asked, stored = shared_columns(patches.bands, images.bands(image_id))
            self._look_nearby(score, packed, of_bands[asked], image_id, ground.blocks(image_id, stored))
            progress("comparing more closely", number, len(ids))
        return best_places(score, packed, config)

    def _look_nearby(
        self,
        score: NDArray[np.float32],
        packed: NDArray[np.int64],
        kernel: NDArray[np.float32],
        image_id: int,
        blocks: Iterable[tuple[int, int, NDArray[np.float32], Known]],
    ) -> None:
        """Move the places of an image by up to two pixels to where they agree best, in place."""
        image, x, y = unpack_ids(packed)
        pairs, side = np.argwhere((image == image_id) & (packed >= 0)), kernel.shape[0]
        own = np.ascontiguousarray(kernel.transpose(3, 0, 1, 2)).reshape(kernel.shape[3], -1)
        for left, top, tensor, known in blocks:
            at = np.stack([x[tuple(pairs.T)] - left, y[tuple(pairs.T)] - top], -1) >> 1
            most = np.array(tensor.shape[1::-1]) - seen_by(side)
            inside = ((at >= 0) & (at <= most)).all(1)
            here, at, pairs = pairs[inside], at[inside], pairs[~inside]
            if not len(here):
                continue
            fields = self._fields(tensor, known, at, side)
            for start in range(0, len(here), PAIRS):
                some = slice(start, start + PAIRS)
                near = np.clip(at[some, None] + NEARBY, 0, most)
                field, which, corner = fields(some)
                cosine = cosines(field, which, near - corner[:, None], own[here[some, 0]], side)
                best = np.arange(len(near)), cosine.argmax(1)
                score[tuple(here[some].T)] = cosine[best]
                moved = 2 * near[best] + np.array([left, top])
                packed[tuple(here[some].T)] = pack_ids(np.full(len(near), image_id), *moved.T)

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
            first, which = np.zeros(len(corner), np.int64), np.arange(len(corner))
            seen = None if known is None else squares(known[None], first, corner, size, 0)
            return self._everywhere(squares(tensor[None], first, corner, size, 0), seen), which, corner

        return around

    def _everywhere(self, tensor: NDArray[np.float32], known: Known) -> NDArray[np.float32]:
        """Descriptors at every half-resolution pixel of pictures (n, h, w, 3): (n, h - 8, w - 8, dim)."""
        n, h, w = (tensor.shape[0], *(size - SEEN + 1 for size in tensor.shape[1:3]))
        turns = [(dy, dx) for dy in (0, 1) for dx in (0, 1)]
        parts = [
            self.describe(tensor[:, dy:, dx:], None if known is None else known[:, dy:, dx:])
            for dy, dx in turns
        ]
        field = np.empty((n, h, w, parts[0].shape[-1]), np.float32)
        for (dy, dx), part in zip(turns, parts, strict=True):
            field[:, dy::2, dx::2] = part
        return field

    def again(self, ranked: Refined, patches: Patches, images: Pixels, ground: Ground) -> NDArray[np.float32]:
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
                kernel = self._kernel(patches.some(slice(start, start + PATCHES)), asked)
                for first in range(0, len(mine), PATCHES):
                    pair = mine[first : first + PATCHES]
                    own = kernel[..., pair[:, 0] - start].transpose(3, 0, 1, 2)
                    field = self._places(ranked, pair, stored, ground)
                    similarity[tuple(pair.T)] = (field * own).sum((1, 2, 3))
        return similarity

    def _kernel(self, patches: Patches, asked: tuple[int, ...]) -> NDArray[np.float32]:
        """Descriptors of patches as kernels."""
        return kernels(self.describe(*Templates(patches, asked).take(np.arange(len(patches)), 1)))

    def _places(
        self, ranked: Refined, pairs: NDArray[np.intp], stored: tuple[int, ...], ground: Ground
    ) -> NDArray[np.float32]:
        """Descriptors of candidates, those of each of unit length."""
        ids, x, y = (getattr(ranked, name)[tuple(pairs.T)] for name in ("image_ids", "x", "y"))
        regions = ground.regions(ids, np.stack([x, y], -1) >> 1, stored, 0, 1)
        field = self.describe(regions.tensor(), regions.known)
        return field / np.sqrt((field**2).sum((1, 2, 3), keepdims=True) + np.float32(1e-3))


@lru_cache(maxsize=1)
def shipped_local_search() -> LocalSearch:
    """The network in the package."""
    import keras

    with resources.as_file(resources.files("retrieval.weights") / WEIGHTS) as path:
        return LocalSearch(keras.saving.load_model(path, compile=False, safe_mode=True))
