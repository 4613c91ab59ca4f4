"""All candidates of all patches: half resolution for each, full resolution for the best few."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import fields
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from retrieval.config import RefineConfig
from retrieval.errors import BandsWarning
from retrieval.refine.peaks import PatchPixels, Pixels, Templates, correlate_at, shared_columns
from retrieval.types import Candidates, Progress, Refined, silent

FINE_RADIUS_PX = 3
"""Full resolution looks this far around the peak found at half resolution."""


def refine(
    found: Candidates,
    patches: PatchPixels,
    images: Pixels,
    config: RefineConfig,
    progress: Progress = silent,
) -> Refined:
    """Find each candidate's pixel and rank a patch's candidates anew.

    Args:
        found: from `retrieval.search.find_candidates`.
        patches: what was asked, in the same order.
        images: pixels of every image that a candidate lies in.
        config: radius, finalists, weight of the similarity.
        progress: told of the pairs of patch and candidate that are done.

    Warns:
        BandsWarning: images and patches have no band in common.

    Returns:
        The same candidates, best first; those beyond the finalists keep the half-resolution pixel,
        an offset of 0 and the half-resolution NCC.
    """
    _tell_unshared(found, patches, images)
    n, k = found.image_ids.shape
    job = _Job(found, patches, images, config, progress)
    job.correlate(np.argwhere(found.image_ids >= 0), (config.radius_px + 1) // 2, 1)
    job.state["dx"][:], job.state["dy"][:] = 0, 0
    final = np.argsort(-job.score(), axis=1, kind="stable")[:, : config.finalists]
    chosen = np.stack([np.repeat(np.arange(n), final.shape[1]), final.ravel()], -1)
    job.correlate(chosen[found.image_ids[chosen[:, 0], chosen[:, 1]] >= 0], FINE_RADIUS_PX, 0)
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
    ) -> None:
        self.found, self.patches, self.images, self.config, self.progress = (
            found,
            patches,
            images,
            config,
            progress,
        )
        shape = found.image_ids.shape
        self.state: dict[str, NDArray] = {f: np.zeros(shape, np.float32) for f in ("dx", "dy", "ncc")}
        self.state |= {"x": found.x.copy(), "y": found.y.copy()}

    def score(self) -> NDArray[np.float32]:
        """What candidates are ranked by; -inf where there is none."""
        weighted = self.state["ncc"] + self.config.similarity_weight * self.found.similarity
        return np.where(self.found.image_ids >= 0, weighted, -np.inf)

    def correlate(self, pairs: NDArray, radius: int, level: int) -> None:
        """Correlate (patch, candidate) pairs, image by image, and write the peaks into the state."""
        made: dict[tuple[int, ...], Templates] = {}
        stage, done = ("refining at half resolution", "refining at full resolution")[level == 0], 0
        for image_id, mine in _by_image(pairs, self.found.image_ids):
            asked, stored = shared_columns(self.patches.bands, self.images.bands(image_id))
            if tuple(asked) not in made:
                made[tuple(asked)] = Templates.of(self.patches, asked, level)
            rows, cols = mine.T
            around = rows, self.state["x"][rows, cols], self.state["y"][rows, cols]
            peaks = correlate_at(
                self.images.scaled(image_id)[..., stored], made[tuple(asked)], *around, radius, level
            )
            for f in fields(peaks):
                self.state[f.name][rows, cols] = getattr(peaks, f.name)
            done += len(mine)
            self.progress(stage, done, len(pairs))

    def ranked(self, finalist: NDArray[np.bool_]) -> Refined:
        """Finalists by their full-resolution score, then the rest by their half-resolution one."""
        found = self.found
        order = np.lexsort((found.x, found.y, found.image_ids, -self.score(), ~finalist), axis=-1)
        values = self.state | {"image_ids": found.image_ids, "similarity": found.similarity}
        return Refined(**{name: np.take_along_axis(value, order, 1) for name, value in values.items()})


def _by_image(pairs: NDArray, image_ids: NDArray) -> Iterator[tuple[int, NDArray]]:
    """Pairs grouped by the image that their candidate lies in, images ascending."""
    ids = image_ids[pairs[:, 0], pairs[:, 1]]
    order = np.argsort(ids, kind="stable")
    pairs, ids = pairs[order], ids[order]
    starts = np.flatnonzero(np.diff(ids, prepend=-1))  # ids of images are 0 or more
    for a, b in pairwise([*starts, len(ids)]):
        yield int(ids[a]), pairs[a:b]


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
