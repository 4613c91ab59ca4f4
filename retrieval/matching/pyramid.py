"""Candidates matched on a pyramid: quarter, half and full resolution, each around the peak of the one before.

NCC decides which candidates continue to the next level. The verifier decides between the best of half
resolution. Full resolution gives the pixel and the offset below it. NCC runs on the structure tensor
(`retrieval.models.structure_tensor`), not on bands: seasons invert brightness and keep edges.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX
from retrieval.errors import BandsWarning
from retrieval.matching.places import show_one_place, show_same_place
from retrieval.matching.session import Session
from retrieval.matching.sites import Sites
from retrieval.matching.surfaces import Peaks, correlate_sites, find_peaks
from retrieval.matching.tensor_cache import BLOCK_PX, TensorCache
from retrieval.matching.tensors import Templates, shared_columns
from retrieval.models.verifier import shipped_verifier
from retrieval.types import Candidates, Pixels, RankedCandidates, pack_ids

HALF_RADIUS = 2
"""Search radius at half resolution around the peak of quarter resolution, in half-resolution pixels."""
FINE_RADIUS = 2
"""Search radius at full resolution around the peak of half resolution."""
FIRST_HALF_RES_K, FIRST_VERIFY_K = 24, 4
"""Of many candidates of a patch, this many are matched at half resolution and verified first. Where these
decide the patch, the others are skipped."""
VERIFY_BATCH = 128
"""Pairs that the verifier sees at a time."""
VERIFIED_BONUS = 1000.0
"""Score offset that ranks verified candidates above unverified ones."""
STAGES = {
    2: "refining at quarter resolution",
    1: "refining at half resolution",
    0: "refining at full resolution",
}
"""Names of the levels for progress."""

Confident = Callable[[RankedCandidates], NDArray[np.bool_]]
"""Returns which patches need no further candidates, (n,)."""
FindMore = Callable[[NDArray[np.intp]], Candidates]
"""Returns more candidates of some patches, given their rows."""


def match_and_verify(
    session: Session,
    candidates: Candidates,
    is_confident: Confident | None = None,
    find_more: FindMore | None = None,
) -> RankedCandidates:
    """Match candidates at quarter and half resolution and let the verifier decide between the best.

    Where all verified candidates show one place in several images, the next place is verified too: a
    confidence needs a rival.

    Args:
        session: queries, images and settings.
        candidates: of each query, from `retrieval.matching.candidates.find_candidates`.
        is_confident: tells which patches the first candidates decide; None for none.
        find_more: finds more candidates of the patches whose candidates all show one place; None for none.

    Warns:
        BandsWarning: images and patches share no band.

    Returns:
        The best `refinement.half_res_k` candidates of each patch, best first, at half resolution.
    """
    _warn_of_unshared_bands(session, candidates)
    matcher = PyramidMatcher(session, candidates)
    one_place = matcher.match_and_verify(is_confident)
    ranked = matcher.ranked(session.refinement.half_res_k)
    if find_more and len(one_place):
        more = match_and_verify(session.select(one_place), find_more(one_place), is_confident)
        ranked = ranked.pad_to(more.image_ids.shape[1])
        ranked.update(one_place, more)
    return ranked


def match_half_resolution(
    session: Session, candidates: Candidates, keep: int, weight: float | None = None, count: int | None = None
) -> RankedCandidates:
    """Match candidates at quarter and half resolution and rank them by NCC, without the verifier.

    Args:
        session: queries, images and settings; `refinement.similarity_weight` counts at quarter resolution.
        candidates: of each query.
        keep: how many candidates of each patch continue to half resolution.
        weight: of the similarity at half resolution; None for that of quarter resolution.
        count: how many candidates of each patch are returned; None for `keep`.
    """
    matcher = PyramidMatcher(session, candidates)
    matcher.match_half_resolution(keep)
    if weight is not None:
        matcher.similarity_weight = weight
    return matcher.ranked(keep if count is None else count)


def refine_full_resolution(session: Session, ranked: RankedCandidates, count: int = 1) -> RankedCandidates:
    """Refine the first candidates of each patch at full resolution.

    Args:
        session: queries, images and settings.
        ranked: from `match_and_verify`.
        count: how many, the first ones.

    Returns:
        The same candidates; the first `count` have x, y, dx, dy and NCC of full resolution.
    """
    count = min(count, ranked.image_ids.shape[1])
    best = ranked.pad_to(count).as_candidates()
    matcher = PyramidMatcher(session, best)
    matcher.correlate(matcher.best_pairs(count), FINE_RADIUS, 0)
    refined, valid = matcher.candidates(), best.image_ids >= 0
    finer = {name: getattr(ranked, name).copy() for name in ("x", "y", "dx", "dy", "ncc")}
    for name, values in finer.items():
        values[:, :count][valid] = getattr(refined, name)[valid]
    return replace(ranked, **finer)


def measure_all(session: Session, candidates: Candidates) -> RankedCandidates:
    """Match all candidates up to full resolution, without verifier and without ranking.

    Args:
        session: queries, images and settings.
        candidates: of each query.

    Returns:
        The candidates in the order in which they came.
    """
    matcher = PyramidMatcher(session, candidates)
    count = candidates.image_ids.shape[1]
    matcher.match_half_resolution(count)
    matcher.correlate(matcher.best_pairs(count), FINE_RADIUS, 0)
    return matcher.candidates()


@dataclass(frozen=True)
class ImageTable:
    """A row for each image, in the order of their ids."""

    limit: NDArray[np.int64]
    """(images, 2) largest x and y of a patch."""
    kind: NDArray[np.int64]
    """(images,) position in `kinds`."""
    kinds: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    """Pairs of columns: the bands that are compared, in the patches and in the images."""
    group: NDArray[np.int64]
    """(images,) equal for images whose tensors fit into the cache together."""

    @classmethod
    def of(
        cls, ids: NDArray[np.int64], bands: Sequence[str], images: Pixels, cache: TensorCache
    ) -> ImageTable:
        """Describe images by ascending ids; -1, "no image", gets a row that is never read."""
        valid = [int(i) for i in ids if i >= 0]
        missing = len(ids) - len(valid)  # in front, since ids are sorted
        limit = np.array([images.size(i)[::-1] for i in valid], np.int64).reshape(-1, 2) - PATCH_PX
        columns = [shared_columns(bands, images.bands(i)) for i in valid]
        kinds = tuple(sorted(set(columns)))
        kind = np.array([kinds.index(c) for c in columns], np.int64)
        group = cache.group(np.array(valid, np.int64))
        pad = [np.pad(v, ((missing, 0), *[(0, 0)] * (v.ndim - 1))) for v in (limit, kind, group)]
        return cls(pad[0], pad[1], kinds, pad[2])


@dataclass(frozen=True)
class Batch:
    """Pairs of patches and candidates that are compared in the same bands."""

    pairs: NDArray[np.int64]
    """(m, 2) row of the patch, column of the candidate."""
    query_columns: tuple[int, ...]
    """Columns of the patches' bands."""
    image_columns: tuple[int, ...]
    """Columns of the images' bands."""


class PyramidMatcher:
    """All candidates of all queries on their way through the levels.

    The state is an array (n, k) a quantity: position and NCC of the last peak, the verifier's log-odds, the
    finest level so far (3 = none). A level reads the peak of the level before and writes its own. Batches of
    pairs run at the same time; they share no pair, so they write to different elements of the state.
    """

    def __init__(self, session: Session, candidates: Candidates) -> None:
        """Start with candidates that no level has seen."""
        self._session, self._found = session, candidates
        self.similarity_weight = session.refinement.similarity_weight
        shape = candidates.image_ids.shape
        ids, image = np.unique(candidates.image_ids, return_inverse=True)
        self._image = image.reshape(shape)
        self._table = ImageTable.of(ids, session.queries.bands, session.images, session.tensors)
        self._state: dict[str, NDArray[Any]] = {f: np.zeros(shape, np.float32) for f in ("dx", "dy", "ncc")}
        self._state["logit"] = np.full(shape, np.nan, np.float32)
        self._state |= {"x": candidates.x.copy(), "y": candidates.y.copy()}
        self._state["level"] = np.full(shape, 3, np.int8)
        # Sorted once: the same candidates are sorted again and again, by other scores.
        place = pack_ids(*(np.maximum(v, 0) for v in (candidates.image_ids, candidates.x, candidates.y)))
        self._by_place = np.argsort(np.where(candidates.image_ids < 0, -1, place), axis=1)
        self._templates: dict[tuple[int, ...], Templates] = {}

    # --- steps ------------------------------------------------------------------------------------

    def match_quarter_resolution(self) -> None:
        """Match all candidates at quarter resolution."""
        radius = -(-self._session.refinement.radius_px // 4)
        self.correlate(np.argwhere(self._found.image_ids >= 0), radius, 2)

    def match_half_resolution(self, keep: int) -> None:
        """Match all candidates at quarter resolution, and the best at half resolution."""
        self.match_quarter_resolution()
        self.correlate(self.best_pairs(keep), HALF_RADIUS, 1)

    def match_and_verify(self, is_confident: Confident | None) -> NDArray[np.intp]:
        """Match all candidates at quarter resolution, the best at half, and verify the best of these.

        Returns:
            Rows of the patches whose candidates, as many as there can be, show one place in several images.
        """
        settings = self._session.refinement
        self.match_quarter_resolution()
        pairs = self.best_pairs(settings.half_res_k)
        _, start, count = np.unique(pairs[:, 0], return_index=True, return_counts=True)
        rank = np.arange(len(pairs)) - np.repeat(start, count)
        in_two_steps = is_confident and settings.half_res_k > FIRST_HALF_RES_K
        first_k, verify_k = (FIRST_HALF_RES_K, FIRST_VERIFY_K) if in_two_steps else (len(pairs),) * 2
        self.correlate(pairs[rank < first_k], HALF_RADIUS, 1)
        self.verify(self._pairs_to_verify(min(verify_k, settings.verify_k)))
        one_place = self.verify_rivals(np.ones(len(self._image), bool))
        if is_confident and (rank >= first_k).any():
            uncertain = ~is_confident(self.ranked(settings.half_res_k))
            self.correlate(pairs[(rank >= first_k) & uncertain[pairs[:, 0]]], HALF_RADIUS, 1)
            more = self._pairs_to_verify(settings.verify_k)
            self.verify(more[uncertain[more[:, 0]]])
            one_place = np.union1d(one_place[~uncertain[one_place]], self.verify_rivals(uncertain))
        return one_place

    def correlate(self, pairs: NDArray[Any], radius: int, level: int) -> None:
        """Correlate (patch, candidate) pairs at a level and keep the peaks."""

        def run(batch: Batch) -> int:
            self._store(batch.pairs, self._peaks(batch, radius, level), level)
            return len(batch.pairs)

        self._prepare_templates(level)
        self._run(run, pairs, self._session.batch_pairs[level], STAGES[level], by_image=level == 0)

    def verify(self, pairs: NDArray[Any]) -> None:
        """Give (patch, candidate) pairs, aligned at half resolution, to the verifier."""
        state, cache = self._state, self._session.tensors
        verifier = self._session.verifier or shipped_verifier()

        def run(batch: Batch) -> int:
            rows, cols = batch.pairs.T
            corner = np.stack([state[axis][rows, cols] for axis in "xy"], -1) >> 1
            template, template_mask = self._templates[batch.query_columns].take(rows, 1)
            sites = Sites(self._found.image_ids[rows, cols], corner, batch.image_columns, 0, 1)
            region = cache.regions(sites)
            visible = np.ones((len(rows), *template.shape[1:3], 1), np.float32)
            for mask in (template_mask, region.known):
                visible = visible if mask is None else visible * mask
            state["logit"][rows, cols] = verifier(template, region.tensor(), visible)
            return len(rows)

        self._run(run, pairs, VERIFY_BATCH, "verifying", by_image=True)

    def verify_rivals(self, of: NDArray[np.bool_]) -> NDArray[np.intp]:
        """Verify the next place of patches whose verified candidates show one place in several images.

        From the best unverified candidate down, the first one of another place is verified. The search ends
        at a candidate too far behind the best one, as in `_pairs_to_verify`.

        Args:
            of: (n,) the patches.

        Returns:
            Rows of the patches whose candidates, as many as there can be, show one place.
        """
        session, state, ids = self._session, self._state, self._found.image_ids
        seen = (ids < 0) | ~np.isnan(state["logit"])
        count = int((seen & (ids >= 0)).sum(1).max(initial=0))
        rows = np.flatnonzero(of & show_one_place(session, self.ranked(count))) if count else np.arange(0)
        best = self._score().argmax(1)
        top = np.where(state["level"] == 1, self._weighted_ncc(), -np.inf).max(1, initial=-np.inf)
        rivals, one_place = [np.zeros((0, 2), np.int64)], []
        while len(rows):
            finer_first = self._weighted_ncc() - VERIFIED_BONUS * (state["level"] > 1)
            column = np.where(seen, -np.inf, finer_first)[rows].argmax(1)
            ended = seen[rows, column]
            one_place.append(rows[ended])
            rows, column = rows[~ended], column[~ended]
            seen[rows, column] = True
            pairs = np.stack([rows, column], -1)
            self.correlate(pairs[state["level"][rows, column] > 1], HALF_RADIUS, 1)
            close = top[rows] - self._weighted_ncc()[rows, column] <= session.refinement.verify_margin
            pairs, rows, column = pairs[close], rows[close], column[close]
            same = show_same_place(session, self.candidates(), rows, best[rows], column)
            rivals.append(pairs[~same])
            rows = rows[same]
        self.verify(np.concatenate(rivals))
        ended = np.sort(np.concatenate([np.zeros(0, np.intp), *one_place]))
        return ended[ids[ended, -1] >= 0]

    # --- ranking ----------------------------------------------------------------------------------

    def best_pairs(self, count: int) -> NDArray[Any]:
        """Return the pairs (m, 2) of each patch and its best candidates at the finest level so far."""
        finest = self._state["level"] == self._state["level"].min(initial=3)
        order = self._order(np.where(finest, self._score(), -np.inf))[:, :count]
        pairs = np.stack([np.repeat(np.arange(len(order)), order.shape[1]), order.ravel()], -1)
        return pairs[self._found.image_ids[pairs[:, 0], pairs[:, 1]] >= 0]

    def ranked(self, count: int) -> RankedCandidates:
        """Return the best candidates of each patch: by finest level, then by score."""
        # Levels 0 and 1 rank as one: the best alone reached full resolution.
        order = self._order(self._score(), np.maximum(self._state["level"], 1))[:, :count]
        return self.candidates().reorder(order)

    def candidates(self) -> RankedCandidates:
        """Return all candidates in the order in which they came."""
        found, state = self._found, self._state
        values = state | {"image_ids": found.image_ids, "similarity": found.similarity}
        values["place"] = np.full_like(found.image_ids, -1)
        coarse, limit = (state["level"] > 0) & (found.image_ids >= 0), self._table.limit[self._image]
        for number, axis in enumerate("xy"):
            # Above full resolution the offset only tells which pixel is nearest.
            position, offset = state[axis], state[f"d{axis}"]
            nearest = np.clip(position + np.rint(offset).astype(np.int64), 0, limit[..., number])
            values[axis] = np.where(coarse, nearest, position)
            values[f"d{axis}"] = np.where(coarse, np.float32(0), offset)
        return RankedCandidates(**{f.name: values[f.name] for f in fields(RankedCandidates)})

    def _score(self) -> NDArray[np.float64]:
        """Ranking score: verified candidates above the others; -inf where there is no candidate."""
        similarity, logit = np.maximum(self._found.similarity, -1), self._state["logit"]
        # Rounded: copies of one image tie, whichever batch they came in.
        verified = VERIFIED_BONUS + np.round(logit + self._session.refinement.similarity_odds * similarity, 3)
        score = np.where(np.isnan(logit), self._weighted_ncc().astype(np.float64), verified)
        return np.where(self._found.image_ids >= 0, score, -np.inf)

    def _weighted_ncc(self) -> NDArray[np.float32]:
        """NCC plus weighted similarity."""
        similarity = np.maximum(self._found.similarity, -1)
        return np.asarray(self._state["ncc"] + self.similarity_weight * similarity, np.float32)

    def _order(self, score: NDArray[np.float64], level: NDArray[np.int8] | None = None) -> NDArray[np.intp]:
        """Columns of each patch, by ascending level where given, descending score, then place."""
        order = self._by_place
        for key in (-score, level):
            if key is not None:
                by_key = np.argsort(np.take_along_axis(key, order, 1), axis=1, kind="stable")
                order = np.take_along_axis(order, by_key, 1)
        return order

    def _pairs_to_verify(self, count: int) -> NDArray[Any]:
        """Pairs of each patch and its best candidates: close to the best, and not yet verified."""
        pairs, weighted = self.best_pairs(count), self._weighted_ncc()
        best = np.where(self._state["level"] == 1, weighted, -np.inf).max(1, initial=-np.inf)
        rows, cols = pairs.T
        close = (best[:, None] - weighted)[rows, cols] <= self._session.refinement.verify_margin
        return pairs[close & np.isnan(self._state["logit"][rows, cols])]

    # --- batches ----------------------------------------------------------------------------------

    def _prepare_templates(self, level: int) -> None:
        """Make the templates of a level; level 0 alone is made without the others."""
        for query_columns, _ in self._table.kinds:
            if query_columns not in self._templates:
                self._templates[query_columns] = Templates(self._session.queries, query_columns, (level,))

    def _run(
        self, run: Callable[[Batch], int], pairs: NDArray[Any], size: int, stage: str, by_image: bool
    ) -> None:
        """Run all batches of pairs on the executor."""
        done = 0
        for count in self._session.executor.map(run, list(self._batches(pairs, size, by_image))):
            done += count
            self._session.progress(stage, done, len(pairs))

    def _batches(self, pairs: NDArray[Any], size: int, by_image: bool) -> Iterator[Batch]:
        """Group pairs by the columns of the bands that patch and image share.

        Args:
            pairs: (m, 2), sorted by patch.
            size: of a batch.
            by_image: sort by image and block, else by patch; among images that fit into the cache together.
        """
        rows, cols = pairs.T
        image = self._image[rows, cols]
        group = self._table.group[image] * (-1 if self._session.tensors.goes_backward() else 1)
        if by_image:
            x, y = (self._state[axis][rows, cols] // BLOCK_PX for axis in "xy")
            order = np.lexsort((x, y, image, group))
        else:
            order = np.argsort(group, kind="stable")
        kind = self._table.kind[image[order]]
        for number, columns in enumerate(self._table.kinds):
            of_kind = order[kind == number]
            for start in range(0, len(of_kind), size):
                yield Batch(pairs[of_kind[start : start + size]], *columns)

    def _peaks(self, batch: Batch, radius: int, level: int) -> Peaks:
        """Correlate a batch and find the peaks."""
        rows, cols = batch.pairs.T
        ids, limit = self._found.image_ids[rows, cols], self._table.limit[self._image[rows, cols]]
        corner = self._nearest_pixel(rows, cols, limit) >> level
        queries, owner = np.unique(rows, return_inverse=True)
        template, template_mask = self._templates[batch.query_columns].take(queries, level)
        sites = Sites(ids, corner, batch.image_columns, radius, level)
        surfaces = correlate_sites(template, template_mask, owner, self._session.tensors, sites)
        return find_peaks(surfaces, corner, level, limit)

    def _nearest_pixel(
        self, rows: NDArray[Any], cols: NDArray[Any], limit: NDArray[Any]
    ) -> NDArray[np.int64]:
        """Pixel (m, 2) nearest to the last peak, inside the image."""
        state = self._state
        xy = np.stack([state[a][rows, cols] + np.rint(state[f"d{a}"][rows, cols]) for a in "xy"], -1)
        return np.clip(xy.astype(np.int64), 0, limit)

    def _store(self, pairs: NDArray[Any], peaks: Peaks, level: int) -> None:
        """Keep the peaks; the parabola's offset, in full-resolution pixels, centres the next level."""
        rows, cols = pairs.T
        state = self._state
        for axis in "xy":
            pixel, offset = getattr(peaks, axis), getattr(peaks, f"d{axis}")
            state[axis][rows, cols], state[f"d{axis}"][rows, cols] = pixel, (1 << level) * offset
        state["ncc"][rows, cols], state["level"][rows, cols] = peaks.ncc, level


def _warn_of_unshared_bands(session: Session, candidates: Candidates) -> None:
    """Warn, once, where candidates lie in images that share no band with the patches."""
    bands, images = session.queries.bands, session.images
    ids = [int(i) for i in np.unique(candidates.image_ids) if i >= 0]
    unshared = [i for i in ids if not set(images.bands(i)) & set(bands)]
    if unshared:
        warnings.warn(
            f"{len(unshared)} of {len(ids)} images share no band with the patches (image {unshared[0]} has "
            f"{' '.join(images.bands(unshared[0]))}, the patches {' '.join(bands)}). The edges of all bands "
            "merged are compared instead, which finds fewer.",
            BandsWarning,
            stacklevel=3,
        )
