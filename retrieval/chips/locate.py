"""Chips to places: search all windows, vote, compare all windows at what was voted for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from retrieval.answer import find
from retrieval.calibrate import Calibration, evidence
from retrieval.chips.sure import TERMS, ChipCalibration, chip_evidence
from retrieval.chips.votes import Origins, agreed, vote
from retrieval.chips.windows import Windows, cut_windows
from retrieval.config import PATCH_PX, ChipConfig, RefineConfig, SearchConfig
from retrieval.embed import embed_patches
from retrieval.index import VectorIndex
from retrieval.refine import Ground, measure
from retrieval.search import joined
from retrieval.store import Store
from retrieval.types import Candidates, Progress, Refined, silent
from tfrecords.schema import Chips, Patches

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

    found: Refined
    """(n, k) places of their top-left pixels, best first. NCC is the mean over the windows that agree,
    similarity that over those that proposed the place."""
    confidence: NDArray[np.float64]
    """(n,) probability that the best is right."""
    windows: NDArray[np.int64]
    """(n,) windows that were looked for."""
    agree: NDArray[np.int64]
    """(n, k) windows that agree on a place."""
    evidence: NDArray[np.float64]
    """(n, 4) what speaks for the best, as `retrieval.chips.sure.TERMS`."""


@dataclass(frozen=True, eq=False)
class Locator:
    """An opened index, and how chips are located in it."""

    store: Store
    """The index."""
    ground: Ground
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
        return _stacked(answers, self.config.origins)

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

    origins: Origins
    windows: int
    evidence: NDArray[np.float64]
    confidence: float


class _Group:
    """Chips of one set of bands, all their windows as patches."""

    def __init__(self, locator: Locator, chips: Sequence[Windows], sizes: NDArray[np.int64]) -> None:
        self._by, self._chips, self._sizes = locator, chips, sizes
        pixels = np.concatenate([chip.pixels for chip in chips])
        self._patches = Patches(np.arange(len(pixels)), pixels, "scaled", chips[0].bands, float("nan"))
        self._vectors = embed_patches(locator.store.encoder, pixels)
        self._starts = np.cumsum([0, *map(len, chips)])

    def answers(self) -> list[_Answer]:
        """Look quickly at all chips, and with all that search has at those that are still in doubt."""
        search = self._by.search
        quick = replace(search, deep_places=search.places)
        several = [i for i, chip in enumerate(self._chips) if len(chip) > 1]
        done = self._look(several, quick)
        doubtful = [i for i in several if not done[i].evidence[1] >= self._by.config.certain_lead]
        done |= self._look(doubtful, search) if search.deep_places > search.places else {}
        done |= self._look([i for i, chip in enumerate(self._chips) if len(chip) == 1], search)
        return [done[i] for i in range(len(self._chips))]

    def _look(self, which: Sequence[int], search: SearchConfig) -> dict[int, _Answer]:
        """Search all windows of some chips, vote, and compare all windows at what was voted for."""
        if not which:
            return {}
        rows = [np.arange(self._starts[i], self._starts[i + 1]) for i in which]
        every = np.concatenate(rows)
        patches = self._patches.some(every)
        by = self._by
        found = find(
            by.vectors, self._vectors[every], patches, by.store, search, by.refinement, ground=by.ground
        )
        parts = _split(found, [len(r) for r in rows])
        if len(rows[0]) == 1:
            return {i: self._single(i, part) for i, part in zip(which, parts, strict=True)}
        votes = [vote(part, self._chips[i].offsets, by.config) for i, part in zip(which, parts, strict=True)]
        peaks = _split(self._compare(which, votes, patches), [len(r) for r in rows])
        return {i: self._several(i, o, p) for i, o, p in zip(which, votes, peaks, strict=True)}

    def _compare(self, which: Sequence[int], votes: Sequence[Origins], patches: Patches) -> Refined:
        """The peak of every window near each place that its chip may have, in the order of the places."""
        at = joined([self._expected(self._chips[i], own) for i, own in zip(which, votes, strict=True)])
        config = replace(self._by.refinement, radius_px=RADIUS_PX)
        return measure(at, patches, self._by.store, config, self._by.ground)

    def _expected(self, chip: Windows, origins: Origins) -> Candidates:
        """Where a chip's windows lie by each place; none where that is outside of the image."""
        most, slack = self._by.config.origins, self._by.config.tolerance_px
        ids = np.full((len(chip), most), -1, np.int64)
        x, y = np.full_like(ids, -1), np.full_like(ids, -1)
        for m, image_id in enumerate(origins.image_ids.tolist()):
            image = self._by.store.images[image_id]
            limit = np.array([image.width, image.height]) - PATCH_PX
            at = np.rint(np.array([origins.x[m], origins.y[m]]) + chip.offsets).astype(np.int64)
            inside = ((at >= -slack) & (at <= limit + slack)).all(1)
            at = np.clip(at, 0, limit)[inside]
            ids[inside, m], x[inside, m], y[inside, m] = image_id, at[:, 0], at[:, 1]
        return Candidates(ids, x, y, np.where(ids >= 0, 0, -np.inf).astype(np.float32))

    def _several(self, row: int, origins: Origins, peaks: Refined) -> _Answer:
        """The answer for a chip with several windows."""
        chip = self._chips[row]
        left = self._kept(row, agreed(origins, peaks.wide(len(origins)), chip.offsets, self._by.config))
        seen = chip_evidence(left, len(chip))
        return _Answer(left, len(chip), seen, float(self._by.several.probability(seen[None])[0]))

    def _single(self, row: int, found: Refined) -> _Answer:
        """The answer for a chip with a single window: as for a patch."""
        offset = self._chips[row].offsets[0]
        some = found.image_ids[0] >= 0
        x, y = found.x[0] + found.dx[0].astype(np.float64), found.y[0] + found.dy[0].astype(np.float64)
        ncc, similarity = found.ncc[0].astype(np.float64), found.similarity[0].astype(np.float64)
        ones = np.ones(len(some), np.int64)
        every = Origins(found.image_ids[0], x - offset[0], y - offset[1], ncc, ncc, similarity, ones)
        kept = self._inside(row, every) & some
        order = np.argsort(~kept, kind="stable")
        one = found.changed(lambda v: v[:, order])
        one = replace(one, image_ids=np.where(kept[order], one.image_ids, -1))
        left = every.take(order[: min(int(kept.sum()), self._by.config.origins)])
        confidence = float(self._by.single.probability(evidence(one))[0])
        return _Answer(left, 1, chip_evidence(left, 1), confidence)

    def _kept(self, row: int, origins: Origins) -> Origins:
        return origins.take(self._inside(row, origins))

    def _inside(self, row: int, origins: Origins) -> NDArray[np.bool_]:
        """Which places of a chip may be answered."""
        if self._by.keep is None:
            return np.ones(len(origins), bool)
        height, width = (np.full(len(origins), n) for n in self._sizes[row])
        return self._by.keep(origins.image_ids, origins.x, origins.y, width, height)


def _split(found: Refined, counts: Sequence[int]) -> list[Refined]:
    """The rows of each chip."""
    ends = np.cumsum(counts)
    return [found.some(slice(end - count, end)) for end, count in zip(ends, counts, strict=True)]


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
    seen = np.array([a.evidence for a in answers]).reshape(len(answers), len(TERMS))
    windows = np.array([a.windows for a in answers], np.int64)
    confidence = np.array([a.confidence for a in answers], np.float64)
    return Located(Refined(ids, x, y, dx, dy, ncc, similarity, logit), confidence, windows, agree, seen)
