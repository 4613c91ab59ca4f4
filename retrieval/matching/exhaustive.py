"""Uncertain patches are compared with every place by their visible part, or searched in an index of parts.

The vector of a whole window says too little under cloud, between snow and May, or after a clear-cut. Local
descriptors (`retrieval.matching.local_search`) still agree with the right place. The index of parts finds it
at a cost that hardly grows with the images. An index without parts leaves the comparison with every place,
for as many patches as the budget of `retrieval.matching.budget` allows for. Measurements:
`docs/decisions/0014-under-cloud.md`, `0016-in-doubt-everywhere.md` and `0025-parts-index.md`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Self

import numpy as np
from numpy.typing import NDArray

from retrieval.matching.budget import (
    PartsBudget,
    affordable_patches,
    exhaustive_work,
    expected_gain,
    warn_of_budget,
    warn_of_time,
)
from retrieval.matching.local_search import shipped_local_search
from retrieval.matching.parts_search import find_places
from retrieval.matching.places import decided_patches, with_places
from retrieval.matching.pyramid import match_half_resolution, refine_full_resolution
from retrieval.matching.session import Session
from retrieval.matching.signed_gradients import agreement
from retrieval.matching.visible import BATCH, VisiblePatches, hidden_shares, texture_shares
from retrieval.models.calibration import logit_margin
from retrieval.models.registry import shipped_constants
from retrieval.types import Candidates, RankedCandidates, silent
from tfrecords.schema import Patches

MAX_HIDDEN_SHARE = 0.2
"""Share of hidden pixels above which the earlier stages may have taken cloud for ground. Their answer counts
then only from `confident_ncc` on: snow looks like cloud, but it keeps edges of the ground."""
MATCHED_K, SIGNED_K, REFINED_K = 256, 96, 20
"""Candidates of local descriptors that are correlated at half resolution, those that are compared by signed
gradients, and those that are correlated at full resolution."""
DEEP_MATCHED_K, DEEP_SIGNED_K = 1024, 256
"""The first two of these where a patch is searched once more."""
DEEP_EFFORT = 4
"""Factor of the windows that are compared by their parts where a patch is searched once more."""
THICK_LOGIT = 3.0
"""Log-odds of cloud below which it may be thin, so that the ground shows."""
SAMPLE = 400
"""Uncertain patches that estimate how many of them have enough texture."""
MIN_RIVALS = 8
"""Candidates of other places from which their spread is known."""
MIN_SPREAD = 1.0
"""Smallest spread of the rivals' log-odds by the score alone, as of one patch in a hundred under cloud."""


@dataclass(frozen=True)
class ScoreFit:
    """Score of a candidate of local descriptors, and its log-odds; fitted to cities under cloud."""

    cosine_weight_quarter_res: float
    """Weight of the cosine next to NCC at quarter resolution: cosines differ little and tell much."""
    cosine_weight_half_res: float
    """Weight of the cosine next to NCC at half resolution."""
    cosine_weight: float
    """Weight of the cosine next to NCC at full resolution."""
    signed_weight: float
    """Weight of the agreement of signed gradients next to NCC, at half and full resolution."""
    logit_slope: float
    """Log-odds per unit of score."""
    even_score: float
    """Score of even odds."""
    rival_slope: float
    """Log-odds per spread of the rivals."""
    rival_bias: float
    """Spreads by which the best candidate leads the expected best rival where the odds are even."""

    @classmethod
    @cache
    def shipped(cls) -> Self:
        """Read the constants that belong to the shipped local descriptors."""
        return cls(**shipped_constants("local.score.json")["score"])


@dataclass(frozen=True, eq=False)
class UncertainSearch:
    """Candidates after the search for uncertain patches, and its extent."""

    candidates: RankedCandidates
    """(n, k) best first."""
    left_out: NDArray[np.bool_]
    """(n,) uncertain patches that were not searched, because the budget does not cover them."""
    everywhere: int = 0
    """Number of patches that were compared with every place."""
    in_parts: int = 0
    """Number of patches that searched the index of parts."""

    @property
    def counts(self) -> dict[str, int]:
        """Number of uncertain patches by kind of search."""
        left_out = int(self.left_out.sum())
        return {"everywhere": self.everywhere, "in_parts": self.in_parts, "left_out": left_out}


def search_uncertain(session: Session, ranked: RankedCandidates) -> UncertainSearch:
    """Compare the uncertain patches with every place of the session's images, or search its index of parts.

    Args:
        session: queries, images and settings.
        ranked: candidates of all queries; one call serves all, since reading the images is half of the work.

    Warns:
        SearchBudgetWarning: more patches are uncertain than the budget allows for.

    Returns:
        The candidates, replaced for the patches where this search found better ones.
    """
    budget = PartsBudget(session.search, time.monotonic())
    visible = VisiblePatches(session.queries, session.search)
    selected = select_uncertain(session, ranked, visible)
    left_out = np.zeros(len(ranked), bool)
    left_out[selected.left_out] = True
    if len(selected.rows):
        ranked = _search_visible(
            session, ranked, visible, selected.rows, shipped_local_search().search_images
        )
    in_parts, total = 0, len(selected.in_parts)
    for block in budget.blocks(total, len(ranked)):
        assert session.parts is not None
        session.progress("searching parts", block.start, total)
        rows = np.sort(selected.in_parts[block])
        find = partial(find_places, session.parts)
        ranked = _search_visible(session, ranked, visible, rows, find)
        find_more = partial(find_places, session.parts, effort=DEEP_EFFORT)
        ranked = _search_once_more(session, ranked, visible, rows, find_more)
        in_parts = block.stop
    left_out[selected.in_parts[in_parts:]] = True
    if in_parts < total:
        warn_of_time(total, in_parts, time.monotonic() - budget.start)
    return UncertainSearch(ranked, left_out, len(selected.rows), in_parts)


def _search_visible(
    session: Session,
    ranked: RankedCandidates,
    visible: VisiblePatches,
    rows: NDArray[np.intp],
    find: Callable[[Session], Candidates],
) -> RankedCandidates:
    """Return the candidates, replaced for the rows where a search by visible parts found better ones."""
    patches = visible.select(rows)
    candidates, better = _rank_visible(session, ranked.select(rows), patches, find, rank_candidates)
    trusted = (ranked.ncc[rows, :1] >= session.search.confident_ncc).any(1)
    better |= ~trusted & (hidden_shares(patches) >= MAX_HIDDEN_SHARE)
    ranked = ranked.pad_to(ranked.image_ids.shape[1])
    ranked.update(rows[better], candidates.select(better))
    return ranked


def _search_once_more(
    session: Session,
    ranked: RankedCandidates,
    visible: VisiblePatches,
    rows: NDArray[np.intp],
    find: Callable[[Session], Candidates],
) -> RankedCandidates:
    """Search with more effort for rows that stay uncertain; the ground below thin cloud then counts."""
    rows = rows[~decided_patches(session, ranked.select(rows))]
    if len(rows):
        patches = visible.select(rows, THICK_LOGIT)
        rank = partial(rank_candidates, matched_k=DEEP_MATCHED_K, signed_k=DEEP_SIGNED_K)
        candidates, better = _rank_visible(session, ranked.select(rows), patches, find, rank)
        ranked.update(rows[better], candidates.select(better))
    return ranked


def _rank_visible(
    session: Session,
    before: RankedCandidates,
    patches: Patches,
    find: Callable[[Session], Candidates],
    rank: Callable[[Session, Candidates], RankedCandidates],
) -> tuple[RankedCandidates, NDArray[np.bool_]]:
    """Candidates of patches without their cloud, and whether their log-odds are better than before."""
    hidden = session.with_queries(patches)
    candidates = rank(hidden, find(hidden))
    candidates = candidates.pad_to(before.image_ids.shape[1])
    return candidates, logit_margin(candidates) > logit_margin(with_places(session, before))


# --- which patches --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class UncertainPatches:
    """Rows of the patches to search again."""

    rows: NDArray[np.intp]
    """Uncertain, with enough texture, and affordable to compare with every place; ascending. Where an index
    of parts serves them, only for a search that is exhaustive."""
    left_out: NDArray[np.intp]
    """The same, but beyond the budget; where a sample showed that far too many are uncertain, also those
    whose texture was not measured."""
    in_parts: NDArray[np.intp]
    """With enough texture, where an index of parts serves them; those that gain most first."""


def select_uncertain(
    session: Session,
    ranked: RankedCandidates,
    visible: VisiblePatches,
    sample: int = SAMPLE,
) -> UncertainPatches:
    """Select the patches to compare with every place, within the budget, and those to search in parts.

    Args:
        session: queries, images and settings.
        ranked: candidates so far.
        visible: the queries without their cloud.
        sample: uncertain patches that estimate how many have enough texture.
    """
    search = session.search
    uncertain = np.flatnonzero(~decided_patches(session, ranked))
    none = uncertain[:0]
    if not len(session.image_ids) or not search.exhaustive_budget:
        return UncertainPatches(none, none, none)
    megapixels = sum(float(np.prod(session.images.size(i))) for i in session.image_ids) / 1e6
    work = exhaustive_work(search)
    subset = uncertain[:: max(1, len(uncertain) // sample)]
    if len(subset) < len(uncertain) and session.parts is None:
        # A sample tells how many there are. Where that is far too many, the others are not measured.
        with_texture = _with_texture(session, ranked, visible, subset)
        estimate = round(len(with_texture) / len(subset) * len(uncertain))
        if not affordable_patches(estimate // 2, megapixels, work):
            warn_of_budget(estimate, 0, megapixels, "about ")
            flat = np.setdiff1d(subset, with_texture)
            return UncertainPatches(none, np.setdiff1d(uncertain, flat), none)
    rows = _with_texture(session, ranked, visible, uncertain)
    in_parts_alone = session.parts is not None and not search.exhaustive
    count = 0 if in_parts_alone else affordable_patches(len(rows), megapixels, work)
    if session.parts is not None:
        return UncertainPatches(np.sort(rows[:count]), none, rows[count:])
    if count < len(rows):
        warn_of_budget(len(rows), count, megapixels)
    return UncertainPatches(np.sort(rows[:count]), np.sort(rows[count:]), none)


def _with_texture(
    session: Session, ranked: RankedCandidates, visible: VisiblePatches, rows: NDArray[np.intp]
) -> NDArray[np.intp]:
    """Rows of patches with enough visible texture, those with the most to gain first."""
    parts = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
    texture = np.concatenate([np.zeros(0), *(texture_shares(visible.select(part)) for part in parts)])
    enough = texture >= session.search.min_texture_share
    rows, texture = rows[enough], texture[enough]
    return rows[np.argsort(-expected_gain(session, ranked, rows, texture), kind="stable")]


# --- which place ----------------------------------------------------------------------------------


def rank_candidates(
    session: Session, candidates: Candidates, matched_k: int = MATCHED_K, signed_k: int = SIGNED_K
) -> RankedCandidates:
    """Rank places of local descriptors by NCC at full resolution, cosine, and signed gradients.

    Args:
        session: its queries are NaN where cloud or nodata hides the ground.
        candidates: of each query, best first.
        matched_k: candidates of a query that are correlated at half resolution.
        signed_k: the best of these that are compared by signed gradients.

    Returns:
        The best `REFINED_K` candidates with log-odds, best first.
    """
    fit, weight = ScoreFit.shipped(), ScoreFit.shipped().cosine_weight_quarter_res
    by_cosine = session.with_settings(refinement=replace(session.refinement, similarity_weight=weight))
    close = match_half_resolution(
        replace(by_cosine, progress=silent), candidates, matched_k, fit.cosine_weight_half_res, signed_k
    )
    order = _best_first(close, fit.cosine_weight_half_res, agreement(session, close))
    close = close.reorder(order[:, :REFINED_K])
    close = replace(close, similarity=shipped_local_search().rescore(session, close))
    refined = refine_full_resolution(session, close, REFINED_K)
    ranked = with_places(session, rank_by_score(refined, agreement(session, refined)))
    return replace(ranked, logit=odds_over_rivals(ranked.logit, ranked.place))


def rank_by_score(found: RankedCandidates, signed: NDArray[np.float32]) -> RankedCandidates:
    """Rank candidates by their score, which gives the log-odds.

    Args:
        found: their similarity is the cosine of local descriptors.
        signed: (n, k) agreement of signed gradients.
    """
    fit = ScoreFit.shipped()
    score = _score(found, fit.cosine_weight, signed)
    finite = np.isfinite(score)
    odds = np.where(finite, fit.logit_slope * (score - fit.even_score), np.nan).astype(np.float32)
    return replace(found, logit=odds).reorder(_best_first(found, fit.cosine_weight, signed))


def odds_over_rivals(logit: NDArray[np.float32], places: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return log-odds that count how far a candidate leads its rivals, in units of their spread.

    By chance two places agree more in one band, along straight borders, or where little shows. The rivals of
    a patch tell how much: their order statistics give the spread of an exponential tail, and the best rival
    to expect. Source: E. J. Gumbel, Statistics of Extremes (1958).

    Args:
        logit: (n, k) log-odds by the score alone, best first; NaN for no candidate.
        places: (n, k) a number for each place. Other candidates of the best place are no rivals, and a rival
            place counts once.

    Returns:
        (n, k). Patches with fewer than `MIN_RIVALS` rivals keep their log-odds.
    """
    fit, k = ScoreFit.shipped(), logit.shape[1]
    if k <= MIN_RIVALS:
        return logit
    seen_before = (places[:, :, None] == places[:, None, :]) & np.tri(k, k=-1, dtype=bool)
    is_rival = ~seen_before.any(2) & np.isfinite(logit)
    is_rival[:, 0] = False
    count = is_rival.sum(1)
    rivals = -np.sort(-np.where(is_rival, logit, -np.inf).astype(np.float64), axis=1)
    high, low = count // 5, np.maximum(count - 1, 0)
    upper, lower = (np.take_along_axis(rivals, at[:, None], 1) for at in (high, low))
    known = count >= MIN_RIVALS
    decay = np.log((low + 1) / (high + 1))[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.maximum((upper - lower) / decay, MIN_SPREAD)
        expected = upper + spread * np.log(high + 1)[:, None]
        odds = fit.rival_slope * ((logit - expected) / spread - fit.rival_bias)
    return np.where(known[:, None], odds, logit).astype(np.float32)


def _score(found: RankedCandidates, cosine_weight: float, signed: NDArray[np.float32]) -> NDArray[np.float64]:
    """NCC, cosine and signed gradients of candidates (n, k), weighted; -inf for no candidate."""
    score = found.ncc + cosine_weight * found.similarity + ScoreFit.shipped().signed_weight * signed
    score = np.round(score, 4)
    return np.where((found.image_ids >= 0) & np.isfinite(score), score, -np.inf)


def _best_first(
    found: RankedCandidates, cosine_weight: float, signed: NDArray[np.float32]
) -> NDArray[np.intp]:
    """Order of the candidates (n, k) by their score."""
    return np.argsort(-_score(found, cosine_weight, signed), axis=1, kind="stable")
