"""Search and matching in rounds: few candidates for all patches, many for the uncertain ones.

The verifier nearly always recognises the right place among the candidates, and knows when it is absent. So
a handful of candidates decides most patches. The uncertain ones get `round2_max_candidates`, and those that
remain uncertain go to `retrieval.matching.exhaustive`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from retrieval.config import RefineConfig, SearchConfig
from retrieval.index.faiss_index import VectorIndex
from retrieval.matching.candidates import find_candidates
from retrieval.matching.pyramid import finish, rank
from retrieval.matching.tensor_cache import TensorCache
from retrieval.matching.tensors import Pixels
from retrieval.models.calibration import is_confident
from retrieval.types import Progress, RankedCandidates, silent
from tfrecords.schema import Patches


def find(
    index: VectorIndex,
    vectors: NDArray[np.float32],
    patches: Patches,
    images: Pixels,
    search: SearchConfig,
    refinement: RefineConfig,
    progress: Progress = silent,
    ground: TensorCache | None = None,
) -> RankedCandidates:
    """Find the places of patches to a part of a pixel: `look`, then `retrieval.matching.finish`."""
    ground = ground or TensorCache(images)
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
    ground: TensorCache | None = None,
) -> RankedCandidates:
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
        (n, `search.return_k`) candidates, best first, to the pixel of half resolution.
    """
    ground = ground or TensorCache(images)
    found, doubtful = RankedCandidates.empty(len(patches), search.return_k), np.arange(len(patches))
    twice = search.round2_max_candidates > search.max_candidates

    def done(ranked: RankedCandidates) -> NDArray[np.bool_]:
        return is_confident(ranked, search)

    rounds = [("searching", search.round1_probe_share if twice else 1.0, search, refinement)]
    rounds += [("searching deeper", 1.0, *_deeper(search, refinement))] if twice else []
    for stage, share, looked, refined in rounds:
        if stage != "searching" and not len(doubtful):
            break
        progress(stage, 0, len(doubtful))
        asked = patches if len(doubtful) == len(patches) else patches.select(doubtful)
        candidates = find_candidates(index, vectors[doubtful], looked, share)
        ranked = rank(candidates, asked, images, refined, progress, ground, None, done)
        found.update(doubtful, ranked.pad_to(search.return_k))
        doubtful = doubtful[~done(ranked) & vectors[doubtful].any(1)]
    return found


def _deeper(search: SearchConfig, refinement: RefineConfig) -> tuple[SearchConfig, RefineConfig]:
    """What the second round looks at."""
    return (
        replace(search, top_k=search.round2_top_k, max_candidates=search.round2_max_candidates),
        replace(refinement, half_res_k=search.round2_half_res_k, verify_k=search.round2_verify_k),
    )
