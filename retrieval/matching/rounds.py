"""Search and refinement in rounds: a few candidates for all patches, many for those still in doubt.

The verifier nearly always knows the right place if it is among the candidates at all, and knows when it is
not. So most patches are done after a handful of candidates, and the time saved goes to the rest:
`SearchConfig.deep_places` of them. What is in doubt even then is for `retrieval.matching.exhaustive`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from retrieval.config import RefineConfig, SearchConfig
from retrieval.index.faiss_index import VectorIndex
from retrieval.matching.candidates import find_candidates
from retrieval.matching.pyramid import finish, rank
from retrieval.matching.tensor_cache import Ground
from retrieval.matching.tensors import Pixels
from retrieval.models.calibration import certain
from retrieval.types import Progress, Refined, silent
from tfrecords.schema import Patches


def find(
    index: VectorIndex,
    vectors: NDArray[np.float32],
    patches: Patches,
    images: Pixels,
    search: SearchConfig,
    refinement: RefineConfig,
    progress: Progress = silent,
    ground: Ground | None = None,
) -> Refined:
    """Find the places of patches to a part of a pixel: `look`, then `retrieval.matching.finish`."""
    ground = ground or Ground(images)
    found = look(index, vectors, patches, images, search, refinement, progress, ground)
    return finish(found, patches, images, refinement, progress, ground)


def look(
    index: VectorIndex,
    vectors: NDArray[np.float32],
    patches: Patches,
    images: Pixels,
    search: SearchConfig,
    refinement: RefineConfig,
    progress: Progress = silent,
    ground: Ground | None = None,
) -> Refined:
    """Find the places of patches, looking longer where the first look leaves a doubt.

    Args:
        index: the vectors of all windows.
        vectors: (n, dim) of the patches.
        patches: their pixels, in the same order.
        images: pixels of the index's images.
        search: candidates of the first round, of the second, and the odds that make it unnecessary.
        refinement: as for `retrieval.matching.refine`.
        progress: told of each stage.
        ground: tensors of the images, kept from an earlier call.

    Returns:
        (n, `search.kept`) candidates, best first, to the pixel of half resolution.
    """
    ground = ground or Ground(images)
    found, doubtful = Refined.none(len(patches), search.kept), np.arange(len(patches))
    twice = search.deep_places > search.places

    def done(ranked: Refined) -> NDArray[np.bool_]:
        return certain(ranked, search)

    rounds = [("searching", search.first_cells if twice else 1.0, search, refinement)]
    rounds += [("searching deeper", 1.0, *_deeper(search, refinement))] if twice else []
    for stage, share, looked, refined in rounds:
        if stage != "searching" and not len(doubtful):
            break
        progress(stage, 0, len(doubtful))
        asked = patches if len(doubtful) == len(patches) else patches.some(doubtful)
        candidates = find_candidates(index, vectors[doubtful], looked, share)
        ranked = rank(candidates, asked, images, refined, progress, ground, None, done)
        found.put(doubtful, ranked.wide(search.kept))
        doubtful = doubtful[~done(ranked) & vectors[doubtful].any(1)]
    return found


def _deeper(search: SearchConfig, refinement: RefineConfig) -> tuple[SearchConfig, RefineConfig]:
    """What the second round looks at."""
    return (
        replace(search, windows=search.deep_windows, places=search.deep_places),
        replace(refinement, semifinalists=search.deep_semifinalists, finalists=search.deep_finalists),
    )
