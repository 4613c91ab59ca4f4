"""All candidates of all patches: quarter and half resolution for each, full resolution for the best few.

Each step looks around the peak of the one before, so that no step has many shifts to try.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX, RefineConfig
from retrieval.errors import BandsWarning
from retrieval.refine.correlation import ncc
from retrieval.refine.peaks import Peaks, find_peaks
from retrieval.refine.tensors import BLOCK_PX, Ground, Known, PatchPixels, Pixels, Templates, shared_columns
from retrieval.types import Candidates, Progress, Refined, silent

HALF_RADIUS = 2
"""Half resolution looks this far around the peak found at quarter resolution, in its own pixels."""
FINE_RADIUS = 3
"""Full resolution looks this far around the peak found at half resolution."""
BATCH = {2: 2048, 1: 1024, 0: 256}
"""Pairs of patch and candidate that are correlated at a time, by level: some 15 MB."""
STAGES = {
    2: "refining at quarter resolution",
    1: "refining at half resolution",
    0: "refining at full resolution",
}
"""What progress is told."""


def refine(
    found: Candidates,
    patches: PatchPixels,
    images: Pixels,
    config: RefineConfig,
    progress: Progress = silent,
    ground: Ground | None = None,
) -> Refined:
    """Find each candidate's pixel and rank a patch's candidates anew.

    Args:
        found: from `retrieval.search.find_candidates`.
        patches: what was asked, in the same order.
        images: pixels of every image that a candidate lies in.
        config: radius, finalists, weight of the similarity.
        progress: told of the pairs of patch and candidate that are done.
        ground: tensors of the images kept from an earlier call.

    Warns:
        BandsWarning: images and patches have no band in common.

    Returns:
        The same candidates, best first; those beyond the finalists keep the half-resolution pixel,
        an offset of 0 and the half-resolution NCC.
    """
    _tell_unshared(found, patches, images)
    n, k = found.image_ids.shape
    job = _Job(found, patches, images, config, progress, ground or Ground(images))
    every = np.argwhere(found.image_ids >= 0)
    job.correlate(every, -(-config.radius_px // 4), 2)
    job.correlate(every, HALF_RADIUS, 1)
    job.state["dx"][:], job.state["dy"][:] = 0, 0
    final = np.argsort(-job.score(), axis=1, kind="stable")[:, : config.finalists]
    chosen = np.stack([np.repeat(np.arange(n), final.shape[1]), final.ravel()], -1)
    job.correlate(chosen[found.image_ids[chosen[:, 0], chosen[:, 1]] >= 0], FINE_RADIUS, 0)
    finalist = np.zeros((n, k), bool)
    np.put_along_axis(finalist, final, True, 1)
    return job.ranked(finalist)


class _Job:
    """The state of all candidates while they are correlated."""

    def __init__(
        self,
        found: Candidates,
        patches: PatchPixels,
        images: Pixels,
        config: RefineConfig,
        progress: Progress,
        ground: Ground,
    ) -> None:
        self.found, self.patches, self.images, self.config = found, patches, images, config
        self.progress, self.ground = progress, ground
        shape = found.image_ids.shape
        self.state: dict[str, NDArray] = {f: np.zeros(shape, np.float32) for f in ("dx", "dy", "ncc")}
        self.state |= {"x": found.x.copy(), "y": found.y.copy()}
        self._templates: dict[tuple[int, ...], Templates] = {}

    def score(self) -> NDArray[np.float32]:
        """What candidates are ranked by; -inf where there is none."""
        weighted = self.state["ncc"] + self.config.similarity_weight * self.found.similarity
        return np.where(self.found.image_ids >= 0, weighted, -np.inf)

    def correlate(self, pairs: NDArray, radius: int, level: int) -> None:
        """Correlate (patch, candidate) pairs and write the peaks into the state."""
        done = 0
        for mine, columns in self._by_bands(pairs):
            for start in range(0, len(mine), BATCH[level]):
                batch = mine[start : start + BATCH[level]]
                self._put(batch, self._peaks(batch, columns, radius, level), level)
                done += len(batch)
                self.progress(STAGES[level], done, len(pairs))

    def _by_bands(self, pairs: NDArray) -> Iterator[tuple[NDArray, tuple[tuple[int, ...], ...]]]:
        """Pairs by the columns of the bands that patch and image share, each sorted by image and block."""
        ids = self.found.image_ids[pairs[:, 0], pairs[:, 1]]
        columns = {
            i: shared_columns(self.patches.bands, self.images.bands(i)) for i in map(int, np.unique(ids))
        }
        kinds = sorted(set(columns.values()))
        kind = {i: kinds.index(c) for i, c in columns.items()}
        rows, cols = pairs.T
        blocks = self.state["y"][rows, cols] // BLOCK_PX, self.state["x"][rows, cols] // BLOCK_PX
        which = np.array([kind[int(i)] for i in ids], np.int64)
        order = np.lexsort((*blocks[::-1], ids, which))
        for number, both in enumerate(kinds):
            yield pairs[order[which[order] == number]], both

    def _peaks(self, pairs: NDArray, columns: tuple[tuple[int, ...], ...], radius: int, level: int) -> Peaks:
        """One batch: gather templates and regions, correlate, find the peaks."""
        asked, stored = columns
        if asked not in self._templates:
            self._templates[asked] = Templates(self.patches, asked)
        rows, cols = pairs.T
        ids = self.found.image_ids[rows, cols]
        sizes = np.array([self.images.size(int(i)) for i in ids])  # height, width
        limit = sizes[:, ::-1] - PATCH_PX
        xy = np.stack([self.state["x"][rows, cols], self.state["y"][rows, cols]], -1)
        at = np.minimum(xy, limit) >> level
        template, seen = self._templates[asked].take(rows, level)
        region, known = self._regions(ids, at, stored, radius, level)
        return find_peaks(_surfaces(template, region, seen, known), at, level, limit)

    def _regions(
        self, ids: NDArray, at: NDArray, columns: tuple[int, ...], radius: int, level: int
    ) -> tuple[NDArray[np.float32], Known]:
        """Regions of a batch, image by image and block by block."""
        where = np.column_stack([ids, at // (BLOCK_PX >> level)])
        starts = np.flatnonzero((np.diff(where, axis=0, prepend=-1) != 0).any(1))
        parts = []
        for a, b in pairwise([*starts, len(ids)]):
            block = (int(where[a, 0]), int(where[a, 1]), int(where[a, 2]))
            parts.append(self.ground.regions(block, columns, at[a:b], radius, level))
        known: Known = None
        if any(k is not None for _, k in parts):
            known = np.concatenate([np.ones((*r.shape[:3], 1), bool) if k is None else k for r, k in parts])
        return np.concatenate([r for r, _ in parts]), known

    def _put(self, pairs: NDArray, peaks: Peaks, level: int) -> None:
        """Keep the peaks; the parabola's offset goes into the pixel where a finer step follows."""
        rows, cols = pairs.T
        for name in ("x", "y"):
            offset, limit_axis = getattr(peaks, f"d{name}"), getattr(peaks, name)
            finer = np.rint(offset * 2**level).astype(np.int64) if level else 0
            self.state[name][rows, cols] = np.maximum(limit_axis + finer, 0)
            self.state[f"d{name}"][rows, cols] = offset
        self.state["ncc"][rows, cols] = peaks.ncc

    def ranked(self, finalist: NDArray[np.bool_]) -> Refined:
        """Finalists by their full-resolution score, then the rest by their half-resolution one."""
        found = self.found
        order = np.lexsort((found.x, found.y, found.image_ids, -self.score(), ~finalist), axis=-1)
        values = self.state | {"image_ids": found.image_ids, "similarity": found.similarity}
        return Refined(**{name: np.take_along_axis(value, order, 1) for name, value in values.items()})


def _surfaces(
    template: NDArray[np.float32], region: NDArray[np.float32], seen: Known, known: Known
) -> NDArray[np.float32]:
    """NCC of each pair; those in which something is hidden are done apart, since they cost more."""
    from keras import ops

    if seen is None and known is None:
        return np.asarray(ops.convert_to_numpy(ncc(template, region)))
    n = len(template)
    hidden = np.zeros(n, bool)
    for mask in (seen, known):
        if mask is not None:
            hidden |= ~mask.reshape(n, -1).all(1)
    side = region.shape[1] - template.shape[1] + 1
    out = np.empty((n, side, side), np.float32)
    if not hidden.all():
        out[~hidden] = ops.convert_to_numpy(ncc(template[~hidden], region[~hidden]))
    if hidden.any():
        masks = [None if m is None else m[hidden].astype(np.float32) for m in (seen, known)]
        out[hidden] = ops.convert_to_numpy(ncc(template[hidden], region[hidden], *masks))
    return out


def _tell_unshared(found: Candidates, patches: PatchPixels, images: Pixels) -> None:
    """Warn, once, where candidates lie in images that have none of the patches' bands."""
    ids = [int(i) for i in np.unique(found.image_ids) if i >= 0]
    strange = [i for i in ids if not set(images.bands(i)) & set(patches.bands)]
    if strange:
        warnings.warn(
            f"{len(strange)} of {len(ids)} images share no band with the patches (image {strange[0]} has "
            f"{' '.join(images.bands(strange[0]))}, the patches {' '.join(patches.bands)}): they are "
            "compared in what any bands show, edges, and found less often",
            BandsWarning,
            stacklevel=3,
        )
