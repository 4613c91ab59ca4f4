"""All candidates of all patches, from quarter to full resolution: the way through `retrieval.refine.job`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from retrieval.config import RefineConfig
from retrieval.errors import BandsWarning
from retrieval.refine.ground import Ground
from retrieval.refine.job import FINE_RADIUS, Job
from retrieval.refine.tensors import PatchPixels, Pixels
from retrieval.refine.verify import Verifier, shipped_verifier
from retrieval.types import Candidates, Progress, Refined, silent


def refine(
    found: Candidates,
    patches: PatchPixels,
    images: Pixels,
    config: RefineConfig,
    progress: Progress = silent,
    ground: Ground | None = None,
    verifier: Verifier | None = None,
) -> Refined:
    """Find each candidate's pixel and rank a patch's candidates anew: `rank`, then `finish`.

    Returns:
        The best `config.semifinalists` candidates of each patch, best first; all but the first keep the
        half-resolution pixel, an offset of 0 and the half-resolution NCC.
    """
    ground = ground or Ground(images)
    ranked = rank(found, patches, images, config, progress, ground, verifier)
    return finish(ranked, patches, images, config, progress, ground)


def rank(
    found: Candidates,
    patches: PatchPixels,
    images: Pixels,
    config: RefineConfig,
    progress: Progress = silent,
    ground: Ground | None = None,
    verifier: Verifier | None = None,
    certain: Callable[[Refined], NDArray[np.bool_]] | None = None,
) -> Refined:
    """Find candidates at quarter and half resolution, and let the verifier decide between the best.

    Args:
        found: from `retrieval.search.find_candidates`.
        patches: what was asked, in the same order.
        images: pixels of every image that a candidate lies in.
        config: radius, finalists, weight of the similarity.
        progress: told of the pairs of patch and candidate that are done.
        ground: tensors of the images kept from an earlier call.
        verifier: decides between the finalists; None for the shipped one.
        certain: tells which patches need no further candidates, from those looked at first; None: all do.

    Warns:
        BandsWarning: images and patches have no band in common.

    Returns:
        The best `config.semifinalists` candidates of each patch, best first, as half resolution knows them.
    """
    _tell_unshared(found, patches, images)
    job = Job(
        found, patches, images, config, progress, ground or Ground(images), verifier or shipped_verifier()
    )
    job.decide(certain)
    return job.ranked(config.semifinalists)


def finish(
    ranked: Refined,
    patches: PatchPixels,
    images: Pixels,
    config: RefineConfig,
    progress: Progress = silent,
    ground: Ground | None = None,
    count: int = 1,
) -> Refined:
    """Find the best candidates of each patch at full resolution.

    Args:
        ranked: from `rank`.
        patches: as for `rank`.
        images: as for `rank`.
        config: as for `rank`.
        progress: as for `rank`.
        ground: as for `rank`.
        count: how many, the first ones.

    Returns:
        The same; x, y, dx, dy and NCC of the first are those of full resolution.
    """
    count = min(count, ranked.image_ids.shape[1])
    best = ranked.wide(count).places()
    job = Job(best, patches, images, config, progress, ground or Ground(images), None)
    job.correlate(job.best(count), FINE_RADIUS, 0)
    found, some = job.refined(), best.image_ids >= 0
    finer = {name: getattr(ranked, name).copy() for name in ("x", "y", "dx", "dy", "ncc")}
    for name, values in finer.items():
        values[:, :count][some] = getattr(found, name)[some]
    return replace(ranked, **finer)


def align(
    found: Candidates,
    patches: PatchPixels,
    images: Pixels,
    config: RefineConfig,
    *,
    ground: Ground | None = None,
    keep: int,
) -> Refined:
    """Find candidates at quarter and half resolution and rank them by NCC, without asking the verifier.

    Args:
        found: as for `rank`.
        patches: as for `rank`.
        images: as for `rank`.
        config: radius and weight of the similarity.
        ground: as for `rank`.
        keep: how many candidates of each patch go on to half resolution and come out.
    """
    job = Job(found, patches, images, config, silent, ground or Ground(images), None)
    job.align(keep)
    return job.ranked(keep)


def measure(
    found: Candidates,
    patches: PatchPixels,
    images: Pixels,
    config: RefineConfig,
    ground: Ground | None = None,
) -> Refined:
    """Find all candidates at full resolution, without asking the verifier and without ranking them.

    Args:
        found: as for `rank`.
        patches: as for `rank`.
        images: as for `rank`.
        config: radius.
        ground: as for `rank`.

    Returns:
        The candidates in the order in which they came.
    """
    job = Job(found, patches, images, config, silent, ground or Ground(images), None)
    every = found.image_ids.shape[1]
    job.align(every)
    job.correlate(job.best(every), FINE_RADIUS, 0)
    return job.refined()


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
