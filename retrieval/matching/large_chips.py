"""Chips to places: search all windows, vote, compare all windows at what was voted for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX, ChipConfig, IndexConfig, RefineConfig, SearchConfig
from retrieval.index.faiss_index import VectorIndex
from retrieval.index.folder import IndexFolder
from retrieval.matching.candidates import joined
from retrieval.matching.pyramid import measure
from retrieval.matching.rounds import find
from retrieval.matching.tensor_cache import TensorCache
from retrieval.models.calibration import CHIP_TERMS, Calibration, ChipCalibration, calibration_features
from retrieval.models.embed import embed_patches, worth_indexing
from retrieval.types import Candidates, Progress, RankedCandidates, silent
from tfrecords.schema import Chips, Patches


@dataclass(frozen=True, eq=False)
class Windows:
    """The windows of a chip that are looked for; one at least."""

    offsets: NDArray[np.int64]
    """(w, 2) x and y of their top-left pixels in the chip."""
    pixels: NDArray[np.float32]
    """(w, 64, 64, b) scaled, NaN = not known."""
    bands: tuple[str, ...]
    """Names of the bands, in their order."""

    def __len__(self) -> int:
        return len(self.offsets)


def cut_windows(scaled: NDArray[np.float32], bands: Sequence[str], config: ChipConfig) -> Windows:
    """Choose windows of a chip, and cut them out.

    Args:
        scaled: (h, w, b) the chip, h and w 64 or more, NaN = not known.
        bands: names of its b bands.
        config: how many windows, and how much of each must be known.

    Returns:
        Windows side by side, as few as leave no more than 32 pixels at the borders, those left out that
        are flat or hidden; of more than `config.windows` as many, spread evenly. The middle one
        where all are flat or hidden, so that a chip has an answer whatever it shows.
    """
    height, width = scaled.shape[:2]
    y, x = (v.ravel() for v in np.meshgrid(starts(height), starts(width), indexing="ij"))
    one = IndexConfig(stride_px=PATCH_PX, min_visible=config.min_visible)
    cut = np.stack([scaled[b : b + PATCH_PX, a : a + PATCH_PX] for b, a in zip(y, x, strict=True)])
    seen = np.array([bool(worth_indexing(window, one).all()) for window in cut])
    if not seen.any():
        seen[len(seen) // 2] = True
    offsets = np.stack([x, y], -1)[seen]
    chosen = _spread(offsets, config.max_windows)
    return Windows(offsets[chosen], cut[seen][chosen], tuple(bands))


def starts(length_px: int) -> NDArray[np.int64]:
    """Where windows begin along a side of a chip: as many as fit in best, evenly from end to end.

    Args:
        length_px: 64 or more.

    Returns:
        Ascending; the middle alone under 96 pixels, where two windows would show much the same.
    """
    rest = length_px - PATCH_PX
    count = 1 + (rest + PATCH_PX // 2) // PATCH_PX
    if count == 1:
        return np.array([rest // 2], np.int64)
    return np.rint(np.linspace(0, rest, count)).astype(np.int64)


def _spread(points: NDArray[np.int64], most: int) -> NDArray[np.intp]:
    """Rows of up to `most` points far from each other, ascending: each next one is the farthest from all.

    Source: T. Gonzalez, Clustering to minimize the maximum intercluster distance (1985).
    """
    if len(points) <= most:
        return np.arange(len(points))
    middle = points.mean(0)
    chosen = [int(np.argmin(((points - middle) ** 2).sum(1)))]
    gap = ((points - points[chosen[0]]) ** 2).sum(1)
    while len(chosen) < most:
        chosen.append(int(np.argmax(gap)))
        gap = np.minimum(gap, ((points - points[chosen[-1]]) ** 2).sum(1))
    return np.sort(np.array(chosen))


SEPARATION_PX = SearchConfig.nms_radius_px
"""Two places of an image nearer than this in both x and y are one."""


@dataclass(frozen=True, eq=False)
class Placements:
    """Places of a chip's top-left pixel, best first; there may be none."""

    image_ids: NDArray[np.int64]
    """(m,)."""
    x: NDArray[np.float64]
    """(m,) column, fractions of a pixel counted; may be negative."""
    y: NDArray[np.float64]
    """(m,) row, likewise."""
    score: NDArray[np.float64]
    """(m,) what they are ranked by: the sum of NCC over the windows that agree, by the number of all."""
    ncc: NDArray[np.float64]
    """(m,) mean NCC of the windows that agree."""
    similarity: NDArray[np.float64]
    """(m,) mean similarity of the windows that proposed the place; -1 where none did."""
    agree: NDArray[np.int64]
    """(m,) how many windows agree."""

    def __len__(self) -> int:
        return len(self.image_ids)

    def take(self, rows: NDArray) -> Placements:
        """Some of them, in the order of `rows`."""
        return Placements(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def corners(found: RankedCandidates, offsets: NDArray[np.int64]) -> tuple[NDArray, NDArray]:
    """Where the chip's corner lies by each candidate of each window, x and y, (w, k) float64."""
    x = found.x.astype(np.float64) + found.dx - offsets[:, 0, None]
    return x, found.y.astype(np.float64) + found.dy - offsets[:, 1, None]


def vote(found: RankedCandidates, offsets: NDArray[np.int64], config: ChipConfig) -> Placements:
    """The corners that most windows point to.

    Args:
        found: (w, k) candidates of the chip's windows.
        offsets: (w, 2) where the windows begin in the chip.
        config: tolerance, and how many places to give.

    Returns:
        Up to `config.origins` distinct places. A window has one vote for each, its best
        candidate's NCC squared, so that a clear candidate counts more than several vague ones.
    """
    windows, k = found.image_ids.shape
    some = (found.image_ids >= 0).ravel()
    weight = np.where(some, np.maximum(found.ncc, 0).ravel().astype(np.float64) ** 2, 0.0)
    image = found.image_ids.ravel()
    x, y = (v.ravel() for v in corners(found, offsets))
    near = (image[:, None] == image) & (np.abs(x[:, None] - x) <= config.tolerance_px)
    near &= (np.abs(y[:, None] - y) <= config.tolerance_px) & some
    votes = np.where(near, weight, 0.0).reshape(-1, windows, k)
    best = votes.argmax(2)  # (w * k, w): which candidate of a window stands for it
    score = np.where(some, votes.max(2).sum(1), -1.0)
    rows: list[int] = []
    for row in np.lexsort((x, y, image, -score)):
        if score[row] <= 0 or len(rows) == config.max_placements:
            break
        one_place = [
            image[r] == image[row] and max(abs(x[r] - x[row]), abs(y[r] - y[row])) < SEPARATION_PX
            for r in rows
        ]
        if not any(one_place):
            rows.append(int(row))
    return _means(rows, best, votes, (image, x, y, found.similarity.ravel()), windows, k)


def _means(
    rows: list[int], best: NDArray, votes: NDArray, values: tuple[NDArray, ...], windows: int, k: int
) -> Placements:
    """Places as the weighted means of the candidates that stand for them."""
    image, x, y, similarity = values
    out = []
    for row in rows:
        chosen = np.arange(windows) * k + best[row]
        weight = votes[row].max(1)
        mine = weight > 0
        mean = [np.average(v[chosen][mine], weights=weight[mine]) for v in (x, y)]
        out.append(
            (image[row], *mean, weight.sum() / windows, 0.0, similarity[chosen][mine].mean(), mine.sum())
        )
    columns = np.array(out, np.float64).reshape(-1, 7).T
    ids, agree = columns[0].astype(np.int64), columns[6].astype(np.int64)
    return Placements(ids, columns[1], columns[2], columns[3], columns[4], columns[5], agree)


def agreed(
    origins: Placements, found: RankedCandidates, offsets: NDArray[np.int64], config: ChipConfig
) -> Placements:
    """Count the windows that agree on each place, and put it where they say.

    Args:
        origins: places that all windows were compared at.
        found: (w, m) each window's peak near each place, in the order of the places; an image id of -1
            where the window lies outside of the image.
        offsets: (w, 2).
        config: tolerance.

    Returns:
        The places at which a window agrees, ranked anew.
    """
    x, y = corners(found, offsets)
    ncc = np.where(found.image_ids >= 0, np.maximum(found.ncc, 0), 0).astype(np.float64)
    at_x, at_y = origins.x.copy(), origins.y.copy()
    for _ in range(2):  # the second time around the mean of those that agreed the first time
        yes = (np.abs(x - at_x) <= config.tolerance_px) & (np.abs(y - at_y) <= config.tolerance_px)
        weight = np.where(yes, ncc**2, 0)
        total = weight.sum(0)
        for at, seen in ((at_x, x), (at_y, y)):
            at[:] = np.where(total > 0, (weight * seen).sum(0) / np.where(total > 0, total, 1), at)
    count = (weight > 0).sum(0)
    summed = np.where(weight > 0, ncc, 0).sum(0)
    mean, score = summed / np.maximum(count, 1), summed / max(1, len(offsets))
    counted = Placements(origins.image_ids, at_x, at_y, score, mean, origins.similarity, count)
    order = np.lexsort((at_x, at_y, origins.image_ids, -score))
    return counted.take(order[count[order] > 0])


def chip_evidence(origins: Placements, windows: int) -> NDArray[np.float64]:
    """What speaks for the best place of a chip, (4,) as `CHIP_TERMS`; zeros where there is none."""
    if not len(origins):
        return np.zeros(len(CHIP_TERMS))
    lead = origins.score[0] - (origins.score[1] if len(origins) > 1 else 0.0)
    count = int(origins.agree[0])
    return np.array([origins.ncc[0], lead, count / windows, np.log2(count)])


BLOCK = 2048
"""Windows looked for at a time, 64 KB each."""
RADIUS_PX = 12
"""All windows are compared this far around where the vote expects them: far enough that a window which
does not know the place hardly ever agrees by chance, within 4 pixels, and less than half of the
distance between two places."""

Keep = Callable[[NDArray, NDArray, NDArray, NDArray, NDArray], NDArray[np.bool_]]
"""Says which of (image_ids, x, y, width, height) may be answered."""


@dataclass(frozen=True, eq=False)
class Located:
    """Where chips are."""

    found: RankedCandidates
    """(n, k) places of their top-left pixels, best first. NCC is the mean over the windows that agree,
    similarity that over those that proposed the place."""
    confidence: NDArray[np.float64]
    """(n,) probability that the best is right."""
    windows: NDArray[np.int64]
    """(n,) windows that were looked for."""
    agree: NDArray[np.int64]
    """(n, k) windows that agree on a place."""
    evidence: NDArray[np.float64]
    """(n, 4) what speaks for the best, as `CHIP_TERMS`."""


@dataclass(frozen=True, eq=False)
class Locator:
    """An opened index, and how chips are located in it."""

    folder: IndexFolder
    """The index."""
    ground: TensorCache
    """Tensors of its images, kept from block to block."""
    vectors: VectorIndex
    """Its vectors, perhaps restricted."""
    search: SearchConfig
    """As for patches."""
    refinement: RefineConfig
    """As for patches."""
    single: Calibration
    """Of patches: for chips with a single window."""
    several: ChipCalibration
    """Of chips with several."""
    config: ChipConfig
    """How windows are chosen and counted."""
    keep: Keep | None = None
    """Which places may be answered; None for all."""

    def locate(self, chips: Chips, progress: Progress = silent) -> Located:
        """Locate chips, a block of windows at a time.

        Args:
            chips: of any sizes and bands.
            progress: told of each block of chips.
        """
        answers: list[_Answer] = []
        waiting: list[Windows] = []
        progress("locating chips", 0, len(chips))
        for row, chip in enumerate(chips):
            waiting.append(cut_windows(chip.scaled(), chip.bands, self.config))
            if row + 1 == len(chips) or sum(map(len, waiting)) >= BLOCK:
                sizes = chips.sizes[len(answers) : len(answers) + len(waiting)]
                answers += self._block(waiting, sizes)
                progress("locating chips", len(answers), len(chips))
                waiting = []
        return _stacked(answers, self.config.max_placements)

    def _block(self, chips: Sequence[Windows], sizes: NDArray[np.int64]) -> list[_Answer]:
        """Locate some chips, those of one set of bands together."""
        answers: dict[int, _Answer] = {}
        for bands in dict.fromkeys(chip.bands for chip in chips):
            mine = [i for i, chip in enumerate(chips) if chip.bands == bands]
            group = _Group(self, [chips[i] for i in mine], sizes[mine])
            answers |= dict(zip(mine, group.answers(), strict=True))
        return [answers[i] for i in range(len(chips))]


@dataclass(frozen=True, eq=False)
class _Answer:
    """What was found for one chip."""

    origins: Placements
    windows: int
    evidence: NDArray[np.float64]
    confidence: float


class _Group:
    """Chips of one set of bands, all their windows as patches."""

    def __init__(self, locator: Locator, chips: Sequence[Windows], sizes: NDArray[np.int64]) -> None:
        self._by, self._chips, self._sizes = locator, chips, sizes
        pixels = np.concatenate([chip.pixels for chip in chips])
        self._patches = Patches(np.arange(len(pixels)), pixels, "scaled", chips[0].bands, float("nan"))
        self._vectors = embed_patches(locator.folder.encoder, pixels)
        self._starts = np.cumsum([0, *map(len, chips)])

    def answers(self) -> list[_Answer]:
        """Look quickly at all chips, and with all that search has at those that are still in doubt."""
        search = self._by.search
        quick = replace(search, round2_max_candidates=search.max_candidates)
        several = [i for i, chip in enumerate(self._chips) if len(chip) > 1]
        done = self._look(several, quick)
        doubtful = [i for i in several if not done[i].evidence[1] >= self._by.config.confident_lead]
        done |= self._look(doubtful, search) if search.round2_max_candidates > search.max_candidates else {}
        done |= self._look([i for i, chip in enumerate(self._chips) if len(chip) == 1], search)
        return [done[i] for i in range(len(self._chips))]

    def _look(self, which: Sequence[int], search: SearchConfig) -> dict[int, _Answer]:
        """Search all windows of some chips, vote, and compare all windows at what was voted for."""
        if not which:
            return {}
        rows = [np.arange(self._starts[i], self._starts[i + 1]) for i in which]
        every = np.concatenate(rows)
        patches = self._patches.select(every)
        by = self._by
        found = find(
            by.vectors, self._vectors[every], patches, by.folder, search, by.refinement, ground=by.ground
        )
        parts = _split(found, [len(r) for r in rows])
        if len(rows[0]) == 1:
            return {i: self._single(i, part) for i, part in zip(which, parts, strict=True)}
        votes = [vote(part, self._chips[i].offsets, by.config) for i, part in zip(which, parts, strict=True)]
        peaks = _split(self._compare(which, votes, patches), [len(r) for r in rows])
        return {i: self._several(i, o, p) for i, o, p in zip(which, votes, peaks, strict=True)}

    def _compare(
        self, which: Sequence[int], votes: Sequence[Placements], patches: Patches
    ) -> RankedCandidates:
        """The peak of every window near each place that its chip may have, in the order of the places."""
        at = joined([self._expected(self._chips[i], own) for i, own in zip(which, votes, strict=True)])
        config = replace(self._by.refinement, radius_px=RADIUS_PX)
        return measure(at, patches, self._by.folder, config, self._by.ground)

    def _expected(self, chip: Windows, origins: Placements) -> Candidates:
        """Where a chip's windows lie by each place; none where that is outside of the image."""
        most, slack = self._by.config.max_placements, self._by.config.tolerance_px
        ids = np.full((len(chip), most), -1, np.int64)
        x, y = np.full_like(ids, -1), np.full_like(ids, -1)
        for m, image_id in enumerate(origins.image_ids.tolist()):
            image = self._by.folder.images[image_id]
            limit = np.array([image.width, image.height]) - PATCH_PX
            at = np.rint(np.array([origins.x[m], origins.y[m]]) + chip.offsets).astype(np.int64)
            inside = ((at >= -slack) & (at <= limit + slack)).all(1)
            at = np.clip(at, 0, limit)[inside]
            ids[inside, m], x[inside, m], y[inside, m] = image_id, at[:, 0], at[:, 1]
        return Candidates(ids, x, y, np.where(ids >= 0, 0, -np.inf).astype(np.float32))

    def _several(self, row: int, origins: Placements, peaks: RankedCandidates) -> _Answer:
        """The answer for a chip with several windows."""
        chip = self._chips[row]
        left = self._kept(row, agreed(origins, peaks.pad_to(len(origins)), chip.offsets, self._by.config))
        seen = chip_evidence(left, len(chip))
        return _Answer(left, len(chip), seen, float(self._by.several.probability(seen[None])[0]))

    def _single(self, row: int, found: RankedCandidates) -> _Answer:
        """The answer for a chip with a single window: as for a patch."""
        offset = self._chips[row].offsets[0]
        some = found.image_ids[0] >= 0
        x, y = found.x[0] + found.dx[0].astype(np.float64), found.y[0] + found.dy[0].astype(np.float64)
        ncc, similarity = found.ncc[0].astype(np.float64), found.similarity[0].astype(np.float64)
        ones = np.ones(len(some), np.int64)
        every = Placements(found.image_ids[0], x - offset[0], y - offset[1], ncc, ncc, similarity, ones)
        kept = self._inside(row, every) & some
        order = np.argsort(~kept, kind="stable")
        one = found.map(lambda v: v[:, order])
        one = replace(one, image_ids=np.where(kept[order], one.image_ids, -1))
        left = every.take(order[: min(int(kept.sum()), self._by.config.max_placements)])
        confidence = float(self._by.single.probability(calibration_features(one))[0])
        return _Answer(left, 1, chip_evidence(left, 1), confidence)

    def _kept(self, row: int, origins: Placements) -> Placements:
        return origins.take(self._inside(row, origins))

    def _inside(self, row: int, origins: Placements) -> NDArray[np.bool_]:
        """Which places of a chip may be answered."""
        if self._by.keep is None:
            return np.ones(len(origins), bool)
        height, width = (np.full(len(origins), n) for n in self._sizes[row])
        return self._by.keep(origins.image_ids, origins.x, origins.y, width, height)


def _split(found: RankedCandidates, counts: Sequence[int]) -> list[RankedCandidates]:
    """The rows of each chip."""
    ends = np.cumsum(counts)
    return [found.select(slice(end - count, end)) for end, count in zip(ends, counts, strict=True)]


def _stacked(answers: Sequence[_Answer], most: int) -> Located:
    """All answers in arrays, padded with none."""
    shape = len(answers), most
    ids, x, y, agree = (np.full(shape, fill, np.int64) for fill in (-1, -1, -1, 0))
    dx, dy, ncc = (np.zeros(shape, np.float32) for _ in range(3))
    similarity, logit = np.full(shape, -np.inf, np.float32), np.full(shape, np.nan, np.float32)
    for row, answer in enumerate(answers):
        own = answer.origins
        part = slice(len(own))
        ids[row, part], agree[row, part] = own.image_ids, own.agree
        ncc[row, part], similarity[row, part] = own.ncc, own.similarity
        for whole, rest, exact in ((x, dx, own.x), (y, dy, own.y)):
            whole[row, part] = np.rint(exact)
            rest[row, part] = exact - np.rint(exact)
    seen = np.array([a.evidence for a in answers]).reshape(len(answers), len(CHIP_TERMS))
    windows = np.array([a.windows for a in answers], np.int64)
    confidence = np.array([a.confidence for a in answers], np.float64)
    return Located(
        RankedCandidates(ids, x, y, dx, dy, ncc, similarity, logit), confidence, windows, agree, seen
    )
