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
from retrieval.refine import Ground, Pixels, finish, rank
from retrieval.search import find_candidates
from retrieval.types import Progress, Refined, silent
from tfrecords.schema import Patches

_NONE = {"image_ids": -1, "similarity": -np.inf, "logit": np.nan}
"""Where there is no candidate; 0 in the other columns."""
_TYPES = dict.fromkeys(("image_ids", "x", "y"), np.int64)


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
        search: candidates of the first round, of the second, and the odds that make it unnecessary.
        refinement: as for `retrieval.refine.refine`.
        progress: told of each stage.
        ground: tensors of the images, kept from an earlier call.

    Returns:
        (n, `search.kept`) candidates, best first.
    """
    ground = ground or Ground(images)
    found, doubtful = _none_found(len(patches), search.kept), np.arange(len(patches))
    rounds = [("searching", search, refinement), ("searching deeper", *_deeper(search, refinement))]
    for stage, looked, refined in rounds[: 2 if search.deep_places > search.places else 1]:
        if stage != "searching" and not len(doubtful):
            break
        progress(stage, 0, len(doubtful))
        asked = patches if len(doubtful) == len(patches) else _rows(patches, doubtful)
        candidates = find_candidates(index, vectors[doubtful], looked)
        ranked = rank(candidates, asked, images, refined, progress, ground)
        _put(found, doubtful, _width(ranked, search.kept))
        doubtful = doubtful[~(margin(ranked) >= search.certain_odds) & vectors[doubtful].any(1)]
    return finish(found, patches, images, refinement, progress, ground)


def _deeper(search: SearchConfig, refinement: RefineConfig) -> tuple[SearchConfig, RefineConfig]:
    """What the second round looks at."""
    return (
        replace(search, windows=search.deep_windows, places=search.deep_places),
        replace(refinement, semifinalists=search.deep_semifinalists, finalists=search.deep_finalists),
    )


def _rows(patches: Patches, rows: NDArray[np.intp]) -> Patches:
    return replace(patches, patch_ids=patches.patch_ids[rows], pixels=patches.pixels[rows], paths=())


def _none_found(count: int, width: int) -> Refined:
    """No candidates for so many patches."""
    empty = Refined(**{f.name: np.zeros((count, 0), _TYPES.get(f.name, np.float32)) for f in fields(Refined)})
    return _width(empty, width)


def _width(found: Refined, width: int) -> Refined:
    """The first `width` candidates; "none" where there are fewer."""
    values = {}
    for f in fields(found):
        value = getattr(found, f.name)[:, :width]
        missing = ((0, 0), (0, width - value.shape[1]))
        values[f.name] = np.pad(value, missing, constant_values=_NONE.get(f.name, 0))
    return Refined(**values)


def _put(found: Refined, rows: NDArray[np.intp], better: Refined) -> None:
    """Replace rows, in place: the arrays were made by `_width` and are ours."""
    for f in fields(found):
        getattr(found, f.name)[rows] = getattr(better, f.name)
