"""Search and refinement in two rounds: a few candidates for all patches, many for those still in doubt.

The verifier nearly always knows the right place if it is among the candidates at all, and knows when it is
not. So most patches are done after a handful of candidates, and the time saved goes to the rest:
`SearchConfig.deep_places` of them.
"""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
from numpy.typing import NDArray

from retrieval.calibrate import margin
from retrieval.config import RefineConfig, SearchConfig
from retrieval.index import VectorIndex
from retrieval.refine import Ground, Pixels, refine
from retrieval.search import find_candidates
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
    """Find the places of patches, looking longer where the first look leaves a doubt.

    Args:
        index: the vectors of all windows.
        vectors: (n, dim) of the patches.
        patches: their pixels, in the same order.
        images: pixels of the index's images.
        search: candidates of the first round, of the second, and the lead that makes it unnecessary.
        refinement: as for `retrieval.refine.refine`.
        progress: told of each stage.
        ground: tensors of the images, kept from an earlier call.

    Returns:
        (n, `search.kept`) candidates, best first.
    """
    progress("searching", 0, len(patches))
    ground = ground or Ground(images)
    candidates = find_candidates(index, vectors, search)
    first = refine(candidates, patches, images, refinement, progress, ground)
    found = _width(first, search.kept)
    doubtful = np.flatnonzero(~(margin(first) >= search.certain_odds) & vectors.any(1))
    if len(doubtful) and search.deep_places > search.places:
        progress("searching deeper", 0, len(doubtful))
        deep = replace(search, windows=search.deep_windows, places=search.deep_places)
        rest = replace(
            patches, patch_ids=patches.patch_ids[doubtful], pixels=patches.pixels[doubtful], paths=()
        )
        finer = replace(refinement, semifinalists=search.deep_semifinalists, finalists=search.deep_finalists)
        candidates = find_candidates(index, vectors[doubtful], deep)
        second = refine(candidates, rest, images, finer, progress, ground)
        _put(found, doubtful, _width(second, search.kept))
    return found


def _width(found: Refined, width: int) -> Refined:
    """The first `width` candidates; "none" where there are fewer."""
    empty = {"image_ids": -1, "similarity": -np.inf, "logit": np.nan}
    values = {}
    for f in fields(found):
        value = getattr(found, f.name)[:, :width]
        missing = ((0, 0), (0, width - value.shape[1]))
        values[f.name] = np.pad(value, missing, constant_values=empty.get(f.name, 0))
    return Refined(**values)


def _put(found: Refined, rows: NDArray[np.intp], better: Refined) -> None:
    """Replace rows, in place: the arrays were made by `_width` and are ours."""
    for f in fields(found):
        getattr(found, f.name)[rows] = getattr(better, f.name)
