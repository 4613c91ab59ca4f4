"""Search and refinement in rounds: a few candidates for all patches, many for those still in doubt.

The verifier nearly always knows the right place if it is among the candidates at all, and knows when it is
not. So most patches are done after a handful of candidates, and the time saved goes to the rest:
`SearchConfig.deep_places` of them. What is in doubt even then and partly under cloud is compared with every
place by what is seen of it (`retrieval.local`).
"""

from __future__ import annotations

import warnings
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
from numpy.typing import NDArray

from retrieval.calibrate import margin
from retrieval.clouds import shipped_cloud_finder
from retrieval.config import RefineConfig, SearchConfig
from retrieval.errors import CloudWarning
from retrieval.index import VectorIndex
from retrieval.local import shipped_local_search
from retrieval.refine import Ground, Pixels, align, finish, measure, rank
from retrieval.search import find_candidates
from retrieval.types import NO_CANDIDATE, Candidates, Progress, Refined, silent
from tfrecords.schema import Patches

MISLED = 0.2
"""Share under cloud from which on the comparison by what is seen has the last word."""
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
DESCRIBED = 45
"""Describing a megapixel takes as long as comparing so many patches with it."""
CLOSELY, AROUND = 16, 9
"""Looking at the best places of a patch again takes as long as comparing it with so many megapixels, and
describing what lies around them as describing so many, but never more than all, four times."""
FEW = 0.25
"""Share of the patches under cloud that must be affordable for any to be compared everywhere."""
BLOCK = 1024
"""Patches in which cloud is looked for at a time; of more, about so many tell how many are covered."""
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
    """Find the places of patches to a part of a pixel: `look`, then `retrieval.refine.finish`."""
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
        refinement: as for `retrieval.refine.refine`.
        progress: told of each stage.
        ground: tensors of the images, kept from an earlier call.

    Returns:
        (n, `search.kept`) candidates, best first, to the pixel of half resolution.
    """
    ground = ground or Ground(images)
    found, doubtful = _none_found(len(patches), search.kept), np.arange(len(patches))
    twice = search.deep_places > search.places

    def certain(ranked: Refined) -> NDArray[np.bool_]:
        return np.asarray(margin(ranked) >= search.certain_odds)

    rounds = [("searching", search.first_cells if twice else 1.0, search, refinement)]
    rounds += [("searching deeper", 1.0, *_deeper(search, refinement))] if twice else []
    for stage, share, looked, refined in rounds:
        if stage != "searching" and not len(doubtful):
            break
        progress(stage, 0, len(doubtful))
        asked = patches if len(doubtful) == len(patches) else patches.some(doubtful)
        candidates = find_candidates(index, vectors[doubtful], looked, share)
        ranked = rank(candidates, asked, images, refined, progress, ground, None, certain)
        _put(found, doubtful, _width(ranked, search.kept))
        doubtful = doubtful[~certain(ranked) & vectors[doubtful].any(1)]
    return found


def look_beside_cloud(
    found: Refined,
    patches: Patches,
    images: Pixels,
    everywhere: Sequence[int],
    search: SearchConfig,
    refinement: RefineConfig,
    progress: Progress = silent,
    ground: Ground | None = None,
) -> Refined:
    """Compare what is still in doubt and partly under cloud with every place, by what is seen of it.

    Args:
        found: from `find`; all patches together, since going through all images is half of the work.
        patches: their pixels, in the same order.
        images: pixels of the index's images.
        everywhere: images that patches are compared with.
        search: as for `look`, and how much work this may be.
        refinement: as for `look`.
        progress: told of each stage.
        ground: tensors of the images, kept from an earlier call.

    Warns:
        CloudWarning: more patches are under cloud than `search.everywhere` allows for.

    Returns:
        The candidates, better ones for some patches.
    """
    ground = ground or Ground(images)
    rows, shown = _under_cloud(patches, found, images, search, everywhere)
    if not len(rows):
        return found
    candidates = shipped_local_search().find(shown, everywhere, images, search, ground, progress)
    seen = _width(_closest(candidates, shown, images, refinement, ground), found.image_ids.shape[1])
    seen = finish(seen, shown, images, refinement, progress, ground)
    # What was found before saw the cloud as ground; from some cover on its odds are worth nothing.
    better = (margin(seen) > margin(_some(found, rows))) | (hidden_share(shown) >= MISLED)
    _put(found, rows[better], _some(seen, better))
    return found


def _under_cloud(
    patches: Patches, found: Refined, images: Pixels, search: SearchConfig, everywhere: Sequence[int]
) -> tuple[NDArray[np.intp], Patches]:
    """Rows of the patches in doubt that are partly under cloud, and these with the cloud hidden."""
    doubtful = np.flatnonzero(~(margin(found) >= search.certain_odds))
    if not len(everywhere) or not search.everywhere:
        doubtful = doubtful[:0]
    megapixels = sum(float(np.prod(images.size(i))) for i in everywhere) / 1e6
    some = doubtful[:: max(1, len(doubtful) // BLOCK)]
    share, covered = _covered(patches, some, search)
    if len(some) < len(doubtful):
        # Some of them tell how many there are: where that is far too many, the others need no look.
        about = round(covered.mean() * len(doubtful))
        if not _affordable(about // 2, megapixels, search):
            _tell(about, 0, megapixels, "some ")
            doubtful = doubtful[:0]
        share, covered = _covered(patches, doubtful, search)
    most = _affordable(int(covered.sum()), megapixels, search)
    if most < covered.sum():
        _tell(int(covered.sum()), most, megapixels)
    clearest = np.flatnonzero(covered)[np.argsort(share[covered], kind="stable")[:most]]
    rows = doubtful[np.sort(clearest)]
    scaled, cloud = _cloud(patches, rows)
    scaled[cloud] = np.nan
    return rows, Patches(patches.patch_ids[rows], scaled, "scaled", patches.bands, float("nan"))


def _covered(
    patches: Patches, rows: NDArray[np.intp], search: SearchConfig
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Share of some patches that is under cloud, and whether that is neither too little nor too much."""
    share = np.zeros(len(rows))
    for start in range(0, len(rows), BLOCK):
        part = slice(start, start + BLOCK)
        share[part] = _cloud(patches, rows[part])[1].mean((1, 2))
    return share, (share >= search.least_cloud) & (share <= search.most_cloud)


def _work(covered: int, megapixels: float) -> int:
    """What comparing so many patches with all images takes, in patches times megapixels."""
    around = 4 * min(megapixels, AROUND * covered)
    return int(covered * (megapixels + CLOSELY) + DESCRIBED * (megapixels + around)) + 1


def _affordable(covered: int, megapixels: float, search: SearchConfig) -> int:
    """How many of so many patches under cloud are compared with all images."""
    most = bisect_right(range(1, covered + 1), search.everywhere, key=lambda n: _work(n, megapixels))
    # Going through all images for the sake of a few of many would be time for nothing.
    return most if most >= FEW * covered else 0


def _tell(covered: int, most: int, megapixels: float, about: str = "") -> None:
    """Say that of so many patches under cloud not all are compared with all images."""
    some = f"the {most} that show most are" if most else "none of them is"
    warnings.warn(
        f"{about}{covered} patches in doubt are under cloud; {some} compared with all {megapixels:.0f} "
        f"megapixels: everywhere = {_work(covered, megapixels)} is enough for all",
        CloudWarning,
        stacklevel=5,
    )


def _cloud(patches: Patches, rows: NDArray[np.intp]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Pixels of some patches, and where cloud hides them."""
    scaled = np.asarray(patches.scaled(rows), np.float32)
    return scaled, shipped_cloud_finder()(scaled) if len(rows) else np.zeros(scaled.shape[:3], bool)


def hidden_share(patches: Patches) -> NDArray[np.float64]:
    """Share of each patch of which nothing is known, (n,)."""
    return np.asarray(np.isnan(patches.pixels).all(-1).mean((1, 2)))


def _deeper(search: SearchConfig, refinement: RefineConfig) -> tuple[SearchConfig, RefineConfig]:
    """What the second round looks at."""
    return (
        replace(search, windows=search.deep_windows, places=search.deep_places),
        replace(refinement, semifinalists=search.deep_semifinalists, finalists=search.deep_finalists),
    )


def _closest(
    candidates: Candidates, shown: Patches, images: Pixels, refinement: RefineConfig, ground: Ground
) -> Refined:
    """The best candidates of local descriptors, by NCC at full resolution and cosine."""
    by_cosine = replace(refinement, similarity_weight=COSINE_WEIGHT)
    close = align(candidates, shown, images, by_cosine, ground=ground, keep=COMPARED)
    close = _width(close, min(CLOSE, close.image_ids.shape[1]))
    again = replace(close, similarity=shipped_local_search().again(close, shown, images, ground))
    best = _width(_by_score(again, again.ncc), min(CLOSEST, again.image_ids.shape[1]))
    where = Candidates(*(getattr(best, f.name) for f in fields(Candidates)))
    fine = measure(where, shown, images, replace(refinement, radius_px=4), ground)
    return _by_score(best, fine.ncc)


def _by_score(found: Refined, ncc: NDArray[np.float32]) -> Refined:
    """Candidates in the order of NCC and cosine, their similarity; log-odds are those of this score."""
    score = np.round(ncc + COSINE_SHARE * found.similarity, 4)
    score = np.where((found.image_ids >= 0) & np.isfinite(score), score, -np.inf)
    odds = np.where(np.isfinite(score), SCORE_ODDS * (score - EVEN_SCORE), np.nan).astype(np.float32)
    found, order = replace(found, logit=odds), np.argsort(-score, axis=1, kind="stable")
    return Refined(**{f.name: np.take_along_axis(getattr(found, f.name), order, 1) for f in fields(Refined)})


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
        values[f.name] = np.pad(value, missing, constant_values=NO_CANDIDATE.get(f.name, 0))
    return Refined(**values)


def _some(found: Refined, rows: NDArray) -> Refined:
    """Some rows."""
    return Refined(**{f.name: getattr(found, f.name)[rows] for f in fields(found)})


def _put(found: Refined, rows: NDArray[np.intp], better: Refined) -> None:
    """Replace rows, in place: the arrays were made by `_width` and are ours."""
    for f in fields(found):
        getattr(found, f.name)[rows] = getattr(better, f.name)
