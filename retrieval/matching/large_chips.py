"""Chips larger than a patch: search all windows, vote on the corner, compare all windows there.

A chip is cut into windows of a patch's size. Each window is a query, and its candidates vote on the chip's
corner. Then every window is compared near each voted place, and the windows that agree rank the places.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX, ChipConfig, IndexConfig, SearchConfig
from retrieval.matching.candidates import concatenate
from retrieval.matching.places import PlacedWindows, number_placements, with_places
from retrieval.matching.pyramid import measure_all, refine_full_resolution
from retrieval.matching.rounds import search_vectors
from retrieval.matching.session import Session
from retrieval.models.calibration import (
    CHIP_TERMS,
    Calibration,
    calibration_features,
    calibration_of,
)
from retrieval.models.embed import embed_patches, worth_indexing
from retrieval.types import Candidates, Encoder, RankedCandidates, silent
from tfrecords.schema import Chips, Patches


@dataclass(frozen=True, eq=False)
class Windows:
    """The windows of a chip that are searched for; at least one."""

    offsets: NDArray[np.int64]
    """(w, 2) x and y of their top-left pixels in the chip."""
    pixels: NDArray[np.float32]
    """(w, 64, 64, b) scaled, NaN = nodata."""
    bands: tuple[str, ...]
    """Names of the bands, in order."""

    def __len__(self) -> int:
        return len(self.offsets)


def cut_windows(scaled: NDArray[np.float32], bands: Sequence[str], config: ChipConfig) -> Windows:
    """Choose windows of a chip and cut them out.

    Args:
        scaled: (h, w, b) the chip, h and w 64 or more, NaN = nodata.
        bands: names of its b bands.
        config: number of windows, and the share of each that must be visible.

    Returns:
        Adjacent windows that leave at most 32 pixels at the borders, without flat or hidden ones. Of more
        than `config.max_windows`, as many, spread evenly. If all are flat or hidden, the middle one: every
        chip gets an answer.
    """
    height, width = scaled.shape[:2]
    y, x = (v.ravel() for v in np.meshgrid(starts(height), starts(width), indexing="ij"))
    rule = IndexConfig(stride_px=PATCH_PX, min_visible=config.min_visible)
    windows = np.stack([scaled[b : b + PATCH_PX, a : a + PATCH_PX] for b, a in zip(y, x, strict=True)])
    visible = np.array([bool(worth_indexing(window, rule).all()) for window in windows])
    if not visible.any():
        visible[len(visible) // 2] = True
    offsets = np.stack([x, y], -1)[visible]
    chosen = _spread(offsets, config.max_windows)
    return Windows(offsets[chosen], windows[visible][chosen], tuple(bands))


def starts(length_px: int) -> NDArray[np.int64]:
    """Return the starts of windows along a side of a chip, evenly from end to end.

    Args:
        length_px: 64 or more.

    Returns:
        Ascending pixels; a single window in the middle below 96 pixels, where two would nearly coincide.
    """
    rest = length_px - PATCH_PX
    count = 1 + (rest + PATCH_PX // 2) // PATCH_PX
    if count == 1:
        return np.array([rest // 2], np.int64)
    return np.rint(np.linspace(0, rest, count)).astype(np.int64)


def _spread(points: NDArray[np.int64], most: int) -> NDArray[np.intp]:
    """Rows of up to `most` points, each the farthest from those before, ascending.

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
"""Two placements in an image closer than this in both x and y are one."""


@dataclass(frozen=True, eq=False)
class Placements:
    """Placements of a chip's top-left pixel, best first; possibly none."""

    image_ids: NDArray[np.int64]
    """(m,)."""
    x: NDArray[np.float64]
    """(m,) column, with fractions of a pixel; may be negative."""
    y: NDArray[np.float64]
    """(m,) row, the same."""
    score: NDArray[np.float64]
    """(m,) ranking score: sum of NCC over the windows that agree, divided by the number of all windows."""
    ncc: NDArray[np.float64]
    """(m,) mean NCC of the windows that agree."""
    similarity: NDArray[np.float64]
    """(m,) mean similarity of the windows that proposed the place; -1 where none did."""
    agree: NDArray[np.int64]
    """(m,) number of windows that agree."""

    def __len__(self) -> int:
        return len(self.image_ids)

    def take(self, rows: NDArray[Any]) -> Placements:
        """Return some of them, in the order of `rows`."""
        return Placements(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def corners(found: RankedCandidates, offsets: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the chip's corner by each candidate of each window: x and y, (w, k) float64."""
    x = found.x.astype(np.float64) + found.dx - offsets[:, 0, None]
    return x, found.y.astype(np.float64) + found.dy - offsets[:, 1, None]


def vote(found: RankedCandidates, offsets: NDArray[np.int64], config: ChipConfig) -> Placements:
    """Return the corners that most windows vote for.

    Args:
        found: (w, k) candidates of the chip's windows.
        offsets: (w, 2) corners of the windows in the chip.
        config: tolerance, and number of placements.

    Returns:
        Up to `config.max_placements` distinct placements. A window has one vote for each, the squared NCC
        of its best candidate, so that one clear candidate outweighs several vague ones.
    """
    windows, k = found.image_ids.shape
    valid = (found.image_ids >= 0).ravel()
    weight = np.where(valid, np.maximum(found.ncc, 0).ravel().astype(np.float64) ** 2, 0.0)
    image = found.image_ids.ravel()
    x, y = (v.ravel() for v in corners(found, offsets))
    near = (image[:, None] == image) & (np.abs(x[:, None] - x) <= config.tolerance_px)
    near &= (np.abs(y[:, None] - y) <= config.tolerance_px) & valid
    votes = np.where(near, weight, 0.0).reshape(-1, windows, k)
    best = votes.argmax(2)  # (w * k, w): the candidate with which a window votes
    score = np.where(valid, votes.max(2).sum(1), -1.0)
    rows: list[int] = []
    for row in np.lexsort((x, y, image, -score)):
        if score[row] <= 0 or len(rows) == config.max_placements:
            break
        same_place = [
            image[r] == image[row] and max(abs(x[r] - x[row]), abs(y[r] - y[row])) < SEPARATION_PX
            for r in rows
        ]
        if not any(same_place):
            rows.append(int(row))
    return _means(rows, best, votes, (image, x, y, found.similarity.ravel()), windows, k)


def _means(
    rows: list[int],
    best: NDArray[Any],
    votes: NDArray[Any],
    values: tuple[NDArray[Any], ...],
    windows: int,
    k: int,
) -> Placements:
    """Placements as weighted means of the candidates that vote for them."""
    image, x, y, similarity = values
    out = []
    for row in rows:
        chosen = np.arange(windows) * k + best[row]
        weight = votes[row].max(1)
        voting = weight > 0
        mean = [np.average(v[chosen][voting], weights=weight[voting]) for v in (x, y)]
        proposed = similarity[chosen][voting].mean()
        out.append((image[row], *mean, weight.sum() / windows, 0.0, proposed, voting.sum()))
    columns = np.array(out, np.float64).reshape(-1, 7).T
    ids, agree = columns[0].astype(np.int64), columns[6].astype(np.int64)
    return Placements(ids, columns[1], columns[2], columns[3], columns[4], columns[5], agree)


def count_agreement(
    placements: Placements, found: RankedCandidates, offsets: NDArray[np.int64], config: ChipConfig
) -> Placements:
    """Count the windows that agree on each placement, and move it to their mean.

    Args:
        placements: where all windows were compared.
        found: (w, m) peak of each window near each placement, in their order; image id -1 where the window
            lies outside of the image.
        offsets: (w, 2) corners of the windows in the chip.
        config: tolerance.

    Returns:
        The placements on which a window agrees, re-ranked.
    """
    x, y = corners(found, offsets)
    ncc = np.where(found.image_ids >= 0, np.maximum(found.ncc, 0), 0).astype(np.float64)
    at_x, at_y = placements.x.copy(), placements.y.copy()
    for _ in range(2):  # the second pass is around the mean of the first
        agree = (np.abs(x - at_x) <= config.tolerance_px) & (np.abs(y - at_y) <= config.tolerance_px)
        weight = np.where(agree, ncc**2, 0)
        total = weight.sum(0)
        for at, corner in ((at_x, x), (at_y, y)):
            at[:] = np.where(total > 0, (weight * corner).sum(0) / np.where(total > 0, total, 1), at)
    count = (weight > 0).sum(0)
    summed = np.where(weight > 0, ncc, 0).sum(0)
    mean, score = summed / np.maximum(count, 1), summed / max(1, len(offsets))
    counted = Placements(placements.image_ids, at_x, at_y, score, mean, placements.similarity, count)
    order = np.lexsort((at_x, at_y, placements.image_ids, -score))
    return counted.take(order[count[order] > 0])


def chip_features(
    placements: Placements, windows: int, places: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """Return the calibration features of a chip's best placement, (4,) as `CHIP_TERMS`; zeros for none.

    Args:
        placements: best first.
        windows: number of windows of the chip.
        places: (m,) a number for each place; None where each placement is a place.
    """
    if not len(placements):
        return np.zeros(len(CHIP_TERMS))
    places = np.arange(len(placements)) if places is None else places
    lead = placements.score[0] - placements.score[places != places[0]].max(initial=0.0)
    count = int(placements.agree[0])
    return np.array([placements.ncc[0], lead, count / windows, np.log2(count)])


BLOCK = 2048
"""Windows searched for at a time, 64 KB each."""
RADIUS_PX = 12
"""Radius in which all windows are compared around a voted place. Within it, a window of other ground rarely
agrees within 4 pixels by chance. It is less than half of the distance between two placements."""


@dataclass(frozen=True, eq=False)
class LocatedChips:
    """Answers of chips."""

    found: RankedCandidates
    """(n, k) placements of their top-left pixels, best first. NCC is the mean over the windows that agree,
    similarity the mean over the windows that proposed the place."""
    confidence: NDArray[np.float64]
    """(n,) probability that the best is right."""
    windows: NDArray[np.int64]
    """(n,) windows searched for."""
    agree: NDArray[np.int64]
    """(n, k) windows that agree on a placement."""
    features: NDArray[np.float64]
    """(n, 4) calibration features of the best, as `CHIP_TERMS`."""
    places: NDArray[np.int64]
    """(n, k) a number for each place, 0 for that of the best; -1 where there is no placement."""


@dataclass(frozen=True, eq=False)
class ChipCalibrations:
    """How confidence follows from the features of a chip."""

    single: Calibration
    """For chips with a single window: the calibration of patches."""
    several: Calibration
    """For chips with several windows."""

    @classmethod
    def of_encoder(cls, encoder: Encoder | None) -> Self:
        """Return the calibrations of an encoder."""
        assert encoder is not None
        return cls(calibration_of(encoder), calibration_of(encoder, CHIP_TERMS))


def locate_chips(
    session: Session, chips: Chips, calibrations: ChipCalibrations | None = None, block: int = BLOCK
) -> LocatedChips:
    """Locate chips, a block of windows at a time.

    Args:
        session: index and settings.
        chips: of any sizes and bands.
        calibrations: None for those that belong to the index's encoder.
        block: windows at a time.
    """
    calibrations = calibrations or ChipCalibrations.of_encoder(session.encoder)
    answers: list[_Answer] = []
    pending: list[Windows] = []
    session.progress("locating chips", 0, len(chips))
    for row, chip in enumerate(chips):
        pending.append(cut_windows(chip.scaled(), chip.bands, session.chips))
        if row + 1 == len(chips) or sum(map(len, pending)) >= block:
            sizes = chips.sizes[len(answers) : len(answers) + len(pending)]
            answers += _locate_block(session, calibrations, pending, sizes)
            session.progress("locating chips", len(answers), len(chips))
            pending = []
    return _stack(answers, session.chips.max_placements)


def _locate_block(
    session: Session, calibrations: ChipCalibrations, chips: Sequence[Windows], sizes: NDArray[np.int64]
) -> list[_Answer]:
    """Locate some chips; chips with the same bands go together."""
    answers: dict[int, _Answer] = {}
    for bands in dict.fromkeys(chip.bands for chip in chips):
        rows = [i for i, chip in enumerate(chips) if chip.bands == bands]
        group = _Group(session, calibrations, [chips[i] for i in rows], sizes[rows])
        answers |= dict(zip(rows, group.answers(), strict=True))
    return [answers[i] for i in range(len(chips))]


@dataclass(frozen=True, eq=False)
class _Answer:
    """The answer of one chip."""

    placements: Placements
    windows: int
    features: NDArray[np.float64]
    confidence: float
    places: NDArray[np.int64]


class _Group:
    """Chips with the same bands, all their windows as queries."""

    def __init__(
        self,
        session: Session,
        calibrations: ChipCalibrations,
        chips: Sequence[Windows],
        sizes: NDArray[np.int64],
    ) -> None:
        assert session.encoder is not None
        self._calibrations, self._chips, self._sizes = calibrations, chips, sizes
        pixels = np.concatenate([chip.pixels for chip in chips])
        queries = Patches(np.arange(len(pixels)), pixels, "scaled", chips[0].bands, float("nan"))
        self._session = replace(session, queries=queries, progress=silent)
        self._vectors = embed_patches(session.encoder, pixels)
        self._starts = np.cumsum([0, *map(len, chips)])

    def answers(self) -> list[_Answer]:
        """Search quickly for all chips, and with full effort for the uncertain ones."""
        search = self._session.search
        quick = replace(search, round2_max_candidates=search.max_candidates)
        several = [i for i, chip in enumerate(self._chips) if len(chip) > 1]
        answers = self._search(several, quick)
        confident_lead = self._session.chips.confident_lead
        uncertain = [i for i in several if not answers[i].features[1] >= confident_lead]
        if search.round2_max_candidates > search.max_candidates:
            answers |= self._search(uncertain, search)
        answers |= self._search([i for i, chip in enumerate(self._chips) if len(chip) == 1], search)
        return [answers[i] for i in range(len(self._chips))]

    def _search(self, chips: Sequence[int], search: SearchConfig) -> dict[int, _Answer]:
        """Search all windows of some chips, vote, and compare all windows at the voted places."""
        if not chips:
            return {}
        rows = [np.arange(self._starts[i], self._starts[i + 1]) for i in chips]
        windows = np.concatenate(rows)
        session = self._session.select(windows).with_settings(search)
        found = refine_full_resolution(session, search_vectors(session, self._vectors[windows]))
        parts = _split(found, [len(r) for r in rows])
        if len(rows[0]) == 1:
            return {i: self._single(i, part) for i, part in zip(chips, parts, strict=True)}
        votes = [
            vote(part, self._chips[i].offsets, session.chips) for i, part in zip(chips, parts, strict=True)
        ]
        peaks = _split(self._compare(session, chips, votes), [len(r) for r in rows])
        return {i: self._several(i, v, p) for i, v, p in zip(chips, votes, peaks, strict=True)}

    def _compare(
        self, session: Session, chips: Sequence[int], votes: Sequence[Placements]
    ) -> RankedCandidates:
        """Return the peak of every window near each placement of its chip, in their order."""
        places = concatenate(
            [self._expected(self._chips[i], placements) for i, placements in zip(chips, votes, strict=True)]
        )
        wide = replace(session.refinement, radius_px=RADIUS_PX)
        return measure_all(session.with_settings(refinement=wide), places)

    def _expected(self, chip: Windows, placements: Placements) -> Candidates:
        """Positions of a chip's windows by each placement; none where that is outside of the image."""
        settings = self._session.chips
        ids = np.full((len(chip), settings.max_placements), -1, np.int64)
        x, y = np.full_like(ids, -1), np.full_like(ids, -1)
        for m, image_id in enumerate(placements.image_ids.tolist()):
            limit = np.array(self._session.images.size(image_id)[::-1]) - PATCH_PX
            corner = np.array([placements.x[m], placements.y[m]])
            at = np.rint(corner + chip.offsets).astype(np.int64)
            slack = settings.tolerance_px
            inside = ((at >= -slack) & (at <= limit + slack)).all(1)
            at = np.clip(at, 0, limit)[inside]
            ids[inside, m], x[inside, m], y[inside, m] = image_id, at[:, 0], at[:, 1]
        return Candidates(ids, x, y, np.where(ids >= 0, 0, -np.inf).astype(np.float32))

    def _several(self, row: int, placements: Placements, peaks: RankedCandidates) -> _Answer:
        """Answer a chip with several windows."""
        chip = self._chips[row]
        peaks = peaks.pad_to(len(placements))
        counted = count_agreement(placements, peaks, chip.offsets, self._session.chips)
        kept = counted.take(self._contained(row, counted))
        places = self._places(row, kept)
        features = chip_features(kept, len(chip), places)
        probability = self._calibrations.several.probability(features[None])
        return _Answer(kept, len(chip), features, float(probability[0]), places)

    def _single(self, row: int, found: RankedCandidates) -> _Answer:
        """Answer a chip with a single window, as a patch."""
        offset, valid = self._chips[row].offsets[0], found.image_ids[0] >= 0
        x, y = found.x[0] + found.dx[0].astype(np.float64), found.y[0] + found.dy[0].astype(np.float64)
        ncc, similarity = found.ncc[0].astype(np.float64), found.similarity[0].astype(np.float64)
        agree = np.ones(len(valid), np.int64)
        placements = Placements(found.image_ids[0], x - offset[0], y - offset[1], ncc, ncc, similarity, agree)
        contained = self._contained(row, placements) & valid
        order = np.argsort(~contained, kind="stable")
        ranked = found.map(lambda v: v[:, order])
        ranked = replace(ranked, image_ids=np.where(contained[order], ranked.image_ids, -1))
        kept = placements.take(order[: min(int(contained.sum()), self._session.chips.max_placements)])
        features = calibration_features(with_places(self._session, ranked))
        confidence = float(self._calibrations.single.probability(features)[0])
        places = self._places(row, kept)
        return _Answer(kept, 1, chip_features(kept, 1, places), confidence, places)

    def _places(self, row: int, placements: Placements) -> NDArray[np.int64]:
        """Return the places of a chip's placements, (m,)."""
        height, width = self._sizes[row].tolist()
        placed = PlacedWindows(placements.image_ids, placements.x, placements.y)
        return number_placements(self._session, placed, placements.score, width, height)

    def _contained(self, row: int, placements: Placements) -> NDArray[np.bool_]:
        """Which placements of a chip the search filter contains."""
        if self._session.search_filter is None:
            return np.ones(len(placements), bool)
        height, width = (np.full(len(placements), n) for n in self._sizes[row])
        return self._session.search_filter.contains(
            placements.image_ids, placements.x, placements.y, width, height
        )


def _split(found: RankedCandidates, counts: Sequence[int]) -> list[RankedCandidates]:
    """Split the rows by chip."""
    ends = np.cumsum(counts)
    return [found.select(slice(end - count, end)) for end, count in zip(ends, counts, strict=True)]


def _stack(answers: Sequence[_Answer], width: int) -> LocatedChips:
    """All answers as arrays, padded to `width` placements."""
    shape = len(answers), width
    ids, x, y, agree, places = (np.full(shape, fill, np.int64) for fill in (-1, -1, -1, 0, -1))
    dx, dy, ncc = (np.zeros(shape, np.float32) for _ in range(3))
    similarity, logit = np.full(shape, -np.inf, np.float32), np.full(shape, np.nan, np.float32)
    for row, answer in enumerate(answers):
        placements = answer.placements
        part = slice(len(placements))
        ids[row, part], agree[row, part] = placements.image_ids, placements.agree
        places[row, part] = answer.places
        ncc[row, part], similarity[row, part] = placements.ncc, placements.similarity
        for pixel, offset, exact in ((x, dx, placements.x), (y, dy, placements.y)):
            pixel[row, part] = np.rint(exact)
            offset[row, part] = exact - np.rint(exact)
    features = np.array([a.features for a in answers]).reshape(len(answers), len(CHIP_TERMS))
    windows = np.array([a.windows for a in answers], np.int64)
    confidence = np.array([a.confidence for a in answers], np.float64)
    found = RankedCandidates(ids, x, y, dx, dy, ncc, similarity, logit)
    return LocatedChips(found, confidence, windows, agree, features, places)
