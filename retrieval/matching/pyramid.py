"""Candidates matched on a pyramid: quarter, half and full resolution, each around the peak of the one before.

NCC decides which candidates continue to the next level. The verifier decides between the best of half
resolution. Full resolution gives the pixel and the offset below it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX, RefineConfig
from retrieval.errors import BandsWarning
from retrieval.kernels.compiled import parallel_map
from retrieval.matching.surfaces import Peaks, correlated, find_peaks
from retrieval.matching.tensor_cache import BLOCK_PX, Sites, TensorCache
from retrieval.matching.tensors import PatchPixels, Pixels, Templates, shared_columns
from retrieval.models.verifier import Verifier, shipped_verifier
from retrieval.types import Candidates, Progress, RankedCandidates, pack_ids, silent


@dataclass(frozen=True)
class ImageTable:
    """A row for each image, in the order of their ids."""

    limit: NDArray[np.int64]
    """(images, 2) largest x and y that a patch may have."""
    kind: NDArray[np.int64]
    """(images,) which of `kinds` an image is."""
    kinds: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    """Columns of the bands that are compared, of the patches and of the images."""
    group: NDArray[np.int64]
    """(images,) equal for images whose tensors can be kept at the same time."""

    @classmethod
    def of(
        cls, ids: NDArray[np.int64], bands: Sequence[str], images: Pixels, ground: TensorCache
    ) -> ImageTable:
        """Describe images; -1, which stands for none, gets a row that nobody looks at."""
        real = [int(i) for i in ids if i >= 0]
        none = len(ids) - len(real)  # in front, since ids are sorted
        limit = np.array([images.size(i)[::-1] for i in real], np.int64).reshape(-1, 2) - PATCH_PX
        columns = [shared_columns(bands, images.bands(i)) for i in real]
        kinds = tuple(sorted(set(columns)))
        kind = np.array([kinds.index(c) for c in columns], np.int64)
        group = ground.group(np.array(real, np.int64))
        pad = [np.pad(v, ((none, 0), *[(0, 0)] * (v.ndim - 1))) for v in (limit, kind, group)]
        return cls(pad[0], pad[1], kinds, pad[2])


HALF_RADIUS = 2
"""Half resolution looks this far around the peak found at quarter resolution, in its own pixels."""
FINE_RADIUS = 2
"""Full resolution looks this far around the peak found at half resolution."""
AHEAD, FIRST = 24, 4
"""Where there are more, so many candidates of a patch are compared at half resolution first, and so many
verified: of a patch that these decide the others are never looked at."""
VERIFY_BATCH = 128
"""Pairs that the verifier sees at a time."""
VERIFIED = 1000.0
"""Added to the log-odds of those that the verifier was asked of: any of them comes before the others."""
TAKEN = {2: 32768, 1: 8192, 0: 256}
"""Pairs of patch and candidate whose regions are cut out at a time, by level: some 70 MB at most."""
STAGES = {
    2: "refining at quarter resolution",
    1: "refining at half resolution",
    0: "refining at full resolution",
}
"""What progress is told."""


@dataclass(frozen=True)
class Batch:
    """Pairs of patches and candidates that are compared in the same bands."""

    pairs: NDArray[np.int64]
    """(m, 2) row of the patch, column of the candidate."""
    asked: tuple[int, ...]
    """Columns of the patches' bands."""
    stored: tuple[int, ...]
    """Columns of the images' bands."""


class Job:
    """The state of all candidates while they are correlated."""

    def __init__(
        self,
        found: Candidates,
        patches: PatchPixels,
        images: Pixels,
        config: RefineConfig,
        progress: Progress,
        ground: TensorCache,
        verifier: Verifier | None,
    ) -> None:
        self.verifier = verifier
        self.found, self.patches, self.images, self.config = found, patches, images, config
        self.progress, self.ground = progress, ground
        shape = found.image_ids.shape
        every, image = np.unique(found.image_ids, return_inverse=True)
        self.image = image.reshape(shape)
        self.table = ImageTable.of(every, patches.bands, images, ground)
        self.state: dict[str, NDArray] = {f: np.zeros(shape, np.float32) for f in ("dx", "dy", "ncc")}
        self.state["logit"] = np.full(shape, np.nan, np.float32)
        self.state |= {"x": found.x.copy(), "y": found.y.copy()}
        self.state["level"] = np.full(shape, 3, np.int8)
        # Sorted once: most sorts of a job are of the same candidates by another score.
        place = pack_ids(*(np.maximum(v, 0) for v in (found.image_ids, found.x, found.y)))
        self._by_place = np.argsort(np.where(found.image_ids < 0, -1, place), axis=1)
        self._templates: dict[tuple[int, ...], Templates] = {}

    def score(self) -> NDArray[np.float64]:
        """What candidates are ranked by: the verified before the others; -inf where there is none."""
        similarity, logit = np.maximum(self.found.similarity, -1), self.state["logit"]
        # Rounded: copies of one picture shall tie, whatever batch they came in.
        verified = VERIFIED + np.round(logit + self.config.similarity_odds * similarity, 3)
        score = np.where(np.isnan(logit), self.weighted().astype(np.float64), verified)
        return np.where(self.found.image_ids >= 0, score, -np.inf)

    def weighted(self) -> NDArray[np.float32]:
        """NCC and similarity together."""
        similarity = np.maximum(self.found.similarity, -1)
        return np.asarray(self.state["ncc"] + self.config.similarity_weight * similarity, np.float32)

    def best(self, count: int) -> NDArray:
        """Pairs of each patch and its best candidates among those that came furthest."""
        furthest = self.state["level"] == self.state["level"].min(initial=3)
        score = np.where(furthest, self.score(), -np.inf)
        order = self._order(score)[:, :count]
        pairs = np.stack([np.repeat(np.arange(len(order)), order.shape[1]), order.ravel()], -1)
        return pairs[self.found.image_ids[pairs[:, 0], pairs[:, 1]] >= 0]

    def _order(self, score: NDArray[np.float64], before: NDArray[np.int8] | None = None) -> NDArray[np.intp]:
        """Columns of each patch by score, the highest first, those that tie by their place.

        Args:
            score: of each candidate.
            before: what counts more than the score, the smallest first.
        """
        order = self._by_place
        for key in (-score, before):
            if key is not None:
                again = np.argsort(np.take_along_axis(key, order, 1), axis=1, kind="stable")
                order = np.take_along_axis(order, again, 1)
        return order

    def align(self, keep: int) -> None:
        """All candidates at quarter resolution, the best of them at half."""
        self.coarse()
        self.correlate(self.best(keep), HALF_RADIUS, 1)

    def coarse(self) -> None:
        """All candidates at quarter resolution."""
        self.correlate(np.argwhere(self.found.image_ids >= 0), -(-self.config.radius_px // 4), 2)

    def decide(self, certain: Callable[[RankedCandidates], NDArray[np.bool_]] | None) -> None:
        """All candidates at quarter resolution, the best of them at half, the best of these verified."""
        self.coarse()
        pairs = self.best(self.config.half_res_k)
        _, start, count = np.unique(pairs[:, 0], return_index=True, return_counts=True)
        nth = np.arange(len(pairs)) - np.repeat(start, count)
        ahead, first = (AHEAD, FIRST) if certain and self.config.half_res_k > AHEAD else (len(pairs),) * 2
        self.correlate(pairs[nth < ahead], HALF_RADIUS, 1)
        self.verify(self.finalists(min(first, self.config.verify_k)))
        if certain and (nth >= ahead).any():
            doubtful = ~certain(self.ranked(self.config.half_res_k))
            self.correlate(pairs[(nth >= ahead) & doubtful[pairs[:, 0]]], HALF_RADIUS, 1)
            more = self.finalists(self.config.verify_k)
            self.verify(more[doubtful[more[:, 0]]])

    def finalists(self, count: int) -> NDArray:
        """Pairs of each patch and its best candidates near enough to the best, those not yet verified."""
        pairs = self.best(count)
        behind = self.weighted()
        behind = np.where(self.state["level"] == 1, behind, -np.inf).max(1, initial=-np.inf)[:, None] - behind
        rows, cols = pairs.T
        near = behind[rows, cols] <= self.config.verify_margin
        return pairs[near & np.isnan(self.state["logit"][rows, cols])]

    def correlate(self, pairs: NDArray, radius: int, level: int) -> None:
        """Correlate (patch, candidate) pairs and write the peaks into the state."""

        def work(batch: Batch) -> int:
            self._put(batch.pairs, self._peaks(batch, radius, level), level)
            return len(batch.pairs)

        self._prepare(level)
        self._each(work, pairs, TAKEN[level], STAGES[level], by_image=level == 0)

    def verify(self, pairs: NDArray) -> None:
        """Ask the verifier of (patch, candidate) pairs that are aligned at half resolution."""
        verifier = self.verifier
        assert verifier is not None

        def work(batch: Batch) -> int:
            rows, cols = batch.pairs.T
            at = np.stack([self.state[axis][rows, cols] for axis in "xy"], -1) >> 1
            template, seen = self._templates[batch.asked].take(rows, 1)
            region = self.ground.regions(Sites(self.found.image_ids[rows, cols], at, batch.stored, 0, 1))
            visible = np.ones((len(rows), *template.shape[1:3], 1), np.float32)
            for mask in (seen, region.known):
                visible = visible if mask is None else visible * mask
            self.state["logit"][rows, cols] = verifier(template, region.tensor(), visible)
            return len(rows)

        self._each(work, pairs, VERIFY_BATCH, "verifying", by_image=True)

    def _prepare(self, level: int) -> None:
        """Templates for a level; those of level 0 alone are made without the others."""
        for asked, _ in self.table.kinds:
            if asked not in self._templates:
                self._templates[asked] = Templates(self.patches, asked, (level,))

    def _each(
        self, work: Callable[[Batch], int], pairs: NDArray, size: int, stage: str, by_image: bool
    ) -> None:
        """Do some work on all pairs, batch by batch; batches share no pair."""
        done = 0
        for count in parallel_map(work, list(self._batches(pairs, size, by_image))):
            done += count
            self.progress(stage, done, len(pairs))

    def _where(self, rows: NDArray, cols: NDArray) -> tuple[NDArray, NDArray, NDArray]:
        """Image ids, x and y of the pixel nearest the last peak, and the largest that a patch may have."""
        ids, limit, state = (
            self.found.image_ids[rows, cols],
            self.table.limit[self.image[rows, cols]],
            self.state,
        )
        xy = np.stack([state[a][rows, cols] + np.rint(state[f"d{a}"][rows, cols]) for a in "xy"], -1)
        return ids, np.clip(xy.astype(np.int64), 0, limit), limit

    def _batches(self, pairs: NDArray, size: int, by_image: bool) -> Iterator[Batch]:
        """Pairs by the columns of the bands that patch and image share.

        Args:
            pairs: (m, 2), those of a patch behind each other.
            size: of a batch.
            by_image: sorted by image and block; else by patch, among images that are kept together.
        """
        rows, cols = pairs.T
        image = self.image[rows, cols]
        if by_image:
            x, y = (self.state[axis][rows, cols] // BLOCK_PX for axis in "xy")
            order = np.lexsort((x, y, image))
        else:
            order = np.argsort(self.table.group[image], kind="stable")
        which = self.table.kind[image[order]]
        for number, (asked, stored) in enumerate(self.table.kinds):
            mine = order[which == number]
            for start in range(0, len(mine), size):
                yield Batch(pairs[mine[start : start + size]], asked, stored)

    def _peaks(self, batch: Batch, radius: int, level: int) -> Peaks:
        """One batch: gather templates, correlate, find the peaks."""
        rows, cols = batch.pairs.T
        ids, xy, limit = self._where(rows, cols)
        at = xy >> level
        asked, owner = np.unique(rows, return_inverse=True)
        template, seen = self._templates[batch.asked].take(asked, level)
        sites = Sites(ids, at, batch.stored, radius, level)
        surfaces = correlated(template, seen, owner, self.ground, sites)
        return find_peaks(surfaces, at, level, limit)

    def _put(self, pairs: NDArray, peaks: Peaks, level: int) -> None:
        """Keep the peaks; below full resolution the parabola's offset says where to look next."""
        rows, cols = pairs.T
        state = self.state
        for name in ("x", "y"):
            pixel, offset = getattr(peaks, name), getattr(peaks, f"d{name}")
            state[name][rows, cols], state[f"d{name}"][rows, cols] = pixel, (1 << level) * offset
        state["ncc"][rows, cols], state["level"][rows, cols] = peaks.ncc, level

    def ranked(self, count: int) -> RankedCandidates:
        """The best of each patch: by how far they came, then by score."""
        # Of the best the level tells nothing: it alone went on to full resolution.
        order = self._order(self.score(), np.maximum(self.state["level"], 1))[:, :count]
        return self.refined().reorder(order)

    def refined(self) -> RankedCandidates:
        """All candidates as they came."""
        values = self.state | {"image_ids": self.found.image_ids, "similarity": self.found.similarity}
        coarse, limit = (self.state["level"] > 0) & (self.found.image_ids >= 0), self.table.limit[self.image]
        for number, axis in enumerate("xy"):
            # Below full resolution the offset only says which pixel is nearest.
            at, offset = self.state[axis], self.state[f"d{axis}"]
            nearest = np.clip(at + np.rint(offset).astype(np.int64), 0, limit[..., number])
            values[axis] = np.where(coarse, nearest, at)
            values[f"d{axis}"] = np.where(coarse, np.float32(0), offset)
        return RankedCandidates(**{f.name: values[f.name] for f in fields(RankedCandidates)})


def refine(
    found: Candidates,
    patches: PatchPixels,
    images: Pixels,
    config: RefineConfig,
    progress: Progress = silent,
    ground: TensorCache | None = None,
    verifier: Verifier | None = None,
) -> RankedCandidates:
    """Find each candidate's pixel and rank a patch's candidates anew: `rank`, then `finish`.

    Returns:
        The best `config.half_res_k` candidates of each patch, best first; all but the first keep the
        half-resolution pixel, an offset of 0 and the half-resolution NCC.
    """
    ground = ground or TensorCache(images)
    ranked = rank(found, patches, images, config, progress, ground, verifier)
    return finish(ranked, patches, images, config, progress, ground)


def rank(
    found: Candidates,
    patches: PatchPixels,
    images: Pixels,
    config: RefineConfig,
    progress: Progress = silent,
    ground: TensorCache | None = None,
    verifier: Verifier | None = None,
    certain: Callable[[RankedCandidates], NDArray[np.bool_]] | None = None,
) -> RankedCandidates:
    """Find candidates at quarter and half resolution, and let the verifier decide between the best.

    Args:
        found: from `retrieval.matching.candidates.find_candidates`.
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
        The best `config.half_res_k` candidates of each patch, best first, as half resolution knows them.
    """
    _tell_unshared(found, patches, images)
    job = Job(
        found,
        patches,
        images,
        config,
        progress,
        ground or TensorCache(images),
        verifier or shipped_verifier(),
    )
    job.decide(certain)
    return job.ranked(config.half_res_k)


def finish(
    ranked: RankedCandidates,
    patches: PatchPixels,
    images: Pixels,
    config: RefineConfig,
    progress: Progress = silent,
    ground: TensorCache | None = None,
    count: int = 1,
) -> RankedCandidates:
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
    best = ranked.pad_to(count).as_candidates()
    job = Job(best, patches, images, config, progress, ground or TensorCache(images), None)
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
    ground: TensorCache | None = None,
    keep: int,
) -> RankedCandidates:
    """Find candidates at quarter and half resolution and rank them by NCC, without asking the verifier.

    Args:
        found: as for `rank`.
        patches: as for `rank`.
        images: as for `rank`.
        config: radius and weight of the similarity.
        ground: as for `rank`.
        keep: how many candidates of each patch go on to half resolution and come out.
    """
    job = Job(found, patches, images, config, silent, ground or TensorCache(images), None)
    job.align(keep)
    return job.ranked(keep)


def measure(
    found: Candidates,
    patches: PatchPixels,
    images: Pixels,
    config: RefineConfig,
    ground: TensorCache | None = None,
) -> RankedCandidates:
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
    job = Job(found, patches, images, config, silent, ground or TensorCache(images), None)
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
