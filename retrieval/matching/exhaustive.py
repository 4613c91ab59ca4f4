"""Exhaustive search: uncertain patches are compared with every place, by their visible part.

The vector of a whole window says too little under cloud, between snow and May, or after a clear-cut. Local
descriptors (`retrieval.matching.local_search`) still agree with the right place. Exhaustive search costs a
thousand times as much as an index. It serves few patches, those with the most visible texture first, and
`SearchConfig.exhaustive_budget` bounds its work. Measurements: `docs/decisions/0014-under-cloud.md` and
`docs/decisions/0016-in-doubt-everywhere.md`.
"""

from __future__ import annotations

import warnings
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import RefineConfig, SearchConfig
from retrieval.errors import SearchBudgetWarning
from retrieval.kernels.compiled import Compiled
from retrieval.matching.local_search import shipped_local_search
from retrieval.matching.pyramid import align, finish
from retrieval.matching.tensor_cache import TensorCache
from retrieval.matching.tensors import Pixels
from retrieval.models.calibration import is_confident, logit_margin
from retrieval.models.cloud_mask import shipped_cloud_mask
from retrieval.models.local_descriptors import half_resolution
from retrieval.types import Candidates, Progress, RankedCandidates, silent
from tfrecords.schema import Patches

MAX_HIDDEN_SHARE = 0.2
"""Share hidden from which on this comparison has the last word: what was found before saw cloud as ground."""
COMPARED, CLOSE, CLOSEST = 256, 64, 32
"""Of the candidates of local descriptors so many are correlated at half resolution, described again there,
and correlated at full resolution."""
COSINE_WEIGHT = 10.0
"""Weight of their cosines at half resolution: these differ by little and tell much."""
COSINE_SHARE = 0.4
"""NCC + so much of the cosine decides between them, and tells how sure that is: the verifier, trained on
whole patches, tells less where much is hidden."""
SCORE_ODDS, EVEN_SCORE = 60.0, 0.28
"""Log-odds of such a score are so many times what it is above this one; fitted to cities under cloud."""
SLOPE = 2.7
"""Log-magnitude of the structure tensor above which there is something to see: a slope of 150 DN."""
DESCRIBED = 45
"""Describing a megapixel takes as long as comparing so many patches with it."""
CLOSELY, AROUND = 16, 9
"""Looking at the best places of a patch again takes as long as comparing it with so many megapixels, and
describing what lies around them as describing so many, but never more than all, four times."""
FEW = 0.25
"""Share of the patches in doubt that must be affordable for any to be compared everywhere."""
BLOCK = 256
"""Patches that are looked at at a time."""
SOME = 400
"""Of more patches in doubt about so many tell how many of them show enough."""


def exhaustive_search(
    found: RankedCandidates,
    patches: Patches,
    images: Pixels,
    everywhere: Sequence[int],
    search: SearchConfig,
    refinement: RefineConfig,
    progress: Progress = silent,
    ground: TensorCache | None = None,
) -> RankedCandidates:
    """Compare what is still in doubt with every place, by what is seen of it.

    Args:
        found: from `retrieval.matching.rounds.find`, all patches together: reading all images is half of
            the work.
        patches: their pixels, in the same order.
        images: pixels of the index's images.
        everywhere: images that patches are compared with.
        search: the odds below which a patch is in doubt, what it must show, and how much work this may be.
        refinement: as for `retrieval.matching.rounds.find`.
        progress: told of each stage.
        ground: tensors of the images, kept from an earlier call.

    Warns:
        DoubtWarning: more patches are in doubt than `search.exhaustive_budget` allows for.

    Returns:
        The candidates, better ones for some patches.
    """
    ground = ground or TensorCache(images)
    rows = select_uncertain(patches, found, images, search, everywhere)
    if not len(rows):
        return found
    shown = _seen(patches, rows, search).patches
    candidates = shipped_local_search().find(shown, everywhere, images, search, ground, progress)
    seen = _closest(candidates, shown, images, refinement, progress, ground)
    seen = seen.pad_to(found.image_ids.shape[1])
    better = (logit_margin(seen) > logit_margin(found.select(rows))) | (
        hidden_share(shown) >= MAX_HIDDEN_SHARE
    )
    found = found.pad_to(found.image_ids.shape[1])
    found.update(rows[better], seen.select(better))
    return found


def hidden_share(patches: Patches) -> NDArray[np.float64]:
    """Share of each patch of which nothing is known, (n,)."""
    return np.asarray(np.isnan(patches.scaled()).all(-1).mean((1, 2)))


# --- which patches --------------------------------------------------------------------------------


def select_uncertain(
    patches: Patches, found: RankedCandidates, images: Pixels, search: SearchConfig, everywhere: Sequence[int]
) -> NDArray[np.intp]:
    """Rows of the patches that are compared everywhere: in doubt, with enough to see, and affordable.

    Args:
        patches: what was asked.
        found: what was found so far.
        images: pixels of the index's images.
        search: as for `exhaustive_search`.
        everywhere: images that patches would be compared with.

    Returns:
        Ascending rows.
    """
    doubtful = np.flatnonzero(~is_confident(found, search))
    if not len(everywhere) or not search.exhaustive_budget:
        return doubtful[:0]
    megapixels = sum(float(np.prod(images.size(i))) for i in everywhere) / 1e6
    some = doubtful[:: max(1, len(doubtful) // SOME)]
    if len(some) < len(doubtful):
        # Some of them tell how many there are: where that is far too many, the others need no look.
        about = round(len(_worth(patches, some, search)) * len(doubtful) / len(some))
        if not _affordable(about // 2, megapixels, search):
            _tell(about, 0, megapixels, "some ")
            return doubtful[:0]
    rows = _worth(patches, doubtful, search)
    most = _affordable(len(rows), megapixels, search)
    if most < len(rows):
        _tell(len(rows), most, megapixels)
    return np.sort(rows[:most])


def _worth(patches: Patches, rows: NDArray[np.intp], search: SearchConfig) -> NDArray[np.intp]:
    """Those of some rows that show enough, those first that show most."""
    blocks = [_seen(patches, rows[i : i + BLOCK], search).shown for i in range(0, len(rows), BLOCK)]
    shown = np.concatenate([np.zeros(0), *blocks])
    return rows[np.argsort(-shown, kind="stable")[: int((shown >= search.min_texture_share).sum())]]


@dataclass(frozen=True)
class _Seen:
    """What is seen of some patches."""

    patches: Patches  # cloud hidden
    shown: NDArray[np.float64]  # (n,) share in which there is something to see


def _seen(patches: Patches, rows: NDArray[np.intp], search: SearchConfig) -> _Seen:
    """Hide the cloud in patches; a little may be none."""
    scaled = np.asarray(patches.scaled(rows), np.float32)
    cloud = shipped_cloud_mask()(scaled)
    cloud &= (cloud.mean((1, 2)) >= search.min_cloud_share)[:, None, None]
    scaled[cloud] = np.nan
    shown = [_TEXTURED(scaled[i : i + BLOCK]) for i in range(0, len(rows), BLOCK)]
    hidden = Patches(patches.patch_ids[rows], scaled, "scaled", patches.bands, float("nan"))
    return _Seen(hidden, np.concatenate([np.zeros(0), *shown]))


def _textured(scaled: Any) -> Any:
    """Share of pictures (n, h, w, b), at half resolution, that is known and has a slope: (n,)."""
    from keras import ops

    tensor, _ = half_resolution(scaled)
    return ops.mean(ops.cast(tensor[..., 0] > SLOPE, "float32"), (1, 2))


_TEXTURED = Compiled(_textured)


# --- how many -------------------------------------------------------------------------------------


def _work(count: int, megapixels: float) -> int:
    """What comparing so many patches with all images takes, in patches times megapixels."""
    around = 4 * min(megapixels, AROUND * count)
    return int(count * (megapixels + CLOSELY) + DESCRIBED * (megapixels + around)) + 1


def _affordable(count: int, megapixels: float, search: SearchConfig) -> int:
    """How many of so many patches are compared with all images."""
    most = bisect_right(range(1, count + 1), search.exhaustive_budget, key=lambda n: _work(n, megapixels))
    # Going through all images for the sake of a few of many would be time for nothing.
    return most if most >= FEW * count else 0


def _tell(count: int, most: int, megapixels: float, about: str = "") -> None:
    """Say that of so many patches not all are compared with all images."""
    some = f"the {most} that show most are" if most else "none of them is"
    warnings.warn(
        f"{about}{count} patches are still in doubt; {some} compared with every place of all "
        f"{megapixels:.0f} megapixels: everywhere = {_work(count, megapixels)} is enough for all",
        SearchBudgetWarning,
        stacklevel=4,
    )


# --- which place ----------------------------------------------------------------------------------


def _closest(
    candidates: Candidates,
    shown: Patches,
    images: Pixels,
    refinement: RefineConfig,
    progress: Progress,
    ground: TensorCache,
) -> RankedCandidates:
    """The best candidates of local descriptors, by NCC at full resolution and cosine."""
    by_cosine = replace(refinement, similarity_weight=COSINE_WEIGHT)
    close = align(candidates, shown, images, by_cosine, ground=ground, keep=COMPARED)
    close = close.pad_to(min(CLOSE, close.image_ids.shape[1]))
    again = replace(close, similarity=shipped_local_search().again(close, shown, images, ground))
    best = _by_score(again).pad_to(min(CLOSEST, again.image_ids.shape[1]))
    return _by_score(finish(best, shown, images, refinement, progress, ground, CLOSEST))


def _by_score(found: RankedCandidates) -> RankedCandidates:
    """Candidates in the order of NCC and cosine, their similarity; log-odds are those of this score."""
    score = np.round(found.ncc + COSINE_SHARE * found.similarity, 4)
    score = np.where((found.image_ids >= 0) & np.isfinite(score), score, -np.inf)
    odds = np.where(np.isfinite(score), SCORE_ODDS * (score - EVEN_SCORE), np.nan).astype(np.float32)
    return replace(found, logit=odds).reorder(np.argsort(-score, axis=1, kind="stable"))
