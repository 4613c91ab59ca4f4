"""Exhaustive search: uncertain patches with enough texture are compared with every place, within a limit."""

import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
from engine import refined, small_encoder, texture

from retrieval.config import IndexConfig, SearchConfig
from retrieval.errors import SearchBudgetWarning
from retrieval.index.faiss_index import VectorIndex
from retrieval.matching.budget import affordable_patches, search_cost
from retrieval.matching.exhaustive import (
    MIN_RIVALS,
    ScoreFit,
    odds_over_rivals,
    rank_by_score,
    search_uncertain,
    select_uncertain,
)
from retrieval.matching.pyramid import refine_full_resolution
from retrieval.matching.rounds import search_vectors
from retrieval.matching.session import Session
from retrieval.matching.tensors import Arrays
from retrieval.matching.visible import VisiblePatches, hidden_shares, texture_shares
from retrieval.models.calibration import logit_margin
from retrieval.models.embed import embed_image, embed_patches
from retrieval.training.weather import under_clouds
from retrieval.types import RankedCandidates, pack_ids
from tfrecords.schema import BANDS, Patches

SHALLOW = SearchConfig(top_k=1, max_candidates=1, round2_top_k=1, round2_max_candidates=2, confident_odds=99)
"""With one place looked at in all, only the comparison everywhere can find the others."""
NOTHING = RankedCandidates.empty(6, 20)


def ground(seed):
    """Generated ground in scaled units."""
    return np.clip(0.5 * texture(160, 160, seed=seed) - 0.5, -1, 1).astype(np.float32)


@pytest.fixture(scope="module")
def world():
    """Four images, where patches of another light lie in them, these, and the same half under cloud."""
    images = Arrays({i: ground(10 + i) for i in range(4)}, dict.fromkeys(range(4), BANDS))
    at = [(0, 12, 20), (1, 77, 3), (2, 40, 90), (3, 5, 60), (1, 30, 30), (2, 90, 11)]
    clear = np.stack([0.7 * images.arrays[i][y : y + 64, x : x + 64] - 0.1 for i, x, y in at])
    made = under_clouds(clear, np.full(6, 0.45), np.random.default_rng(3))
    return images, np.array(at), asked(clear), asked(made.pixels)


def asked(pixels):
    return Patches(np.arange(len(pixels)), pixels.astype(np.float32), "scaled", BANDS, np.nan)


def found_by(images, patches, search):
    """What two rounds of search find."""
    parts = []
    for i, scaled in images.arrays.items():
        found = embed_image(small_encoder(), scaled, IndexConfig())
        parts.append((pack_ids(np.full(len(found.xy), i), *found.xy.T), found.vectors))
    index = VectorIndex.build(lambda: parts, small_encoder().dim, IndexConfig())
    session = Session(images, patches, index, search=search)
    vectors = embed_patches(small_encoder(), patches.scaled())
    return refine_full_resolution(session, search_vectors(session, vectors))


def exhaustively(found, patches, images, search, image_ids=range(4)):
    """Exhaustive search after what two rounds found."""
    return search_uncertain(Session(images, patches, search=search, image_ids=image_ids), found).candidates


def uncertain(patches, images, search, **more):
    """Patches that exhaustive search takes and leaves out where nothing was found."""
    session = Session(images, patches, search=search, image_ids=range(4))
    return select_uncertain(session, NOTHING, VisiblePatches(patches, search), **more)


def uncertain_rows(patches, images, search, **more):
    """Patches that exhaustive search takes where nothing was found."""
    return uncertain(patches, images, search, **more).rows


def rightly(found, at):
    away = np.hypot(found.x[:, 0] - at[:, 1], found.y[:, 0] - at[:, 2])
    return (found.image_ids[:, 0] == at[:, 0]) & (away <= 5)


@pytest.mark.parametrize("cloudy", [True, False])
def test_what_stays_in_doubt_is_compared_everywhere(world, cloudy):
    images, at, clear, clouded = world
    patches = clouded if cloudy else clear
    # Of clear patches one place of another image is all that search gives.
    found = found_by(Arrays({0: images.arrays[0]}, {0: BANDS}), patches, SHALLOW)
    search = replace(SHALLOW, round2_max_candidates=20)
    better = exhaustively(found, patches, images, search)
    assert rightly(better, at).sum() >= 5 > rightly(found, at).sum() + 1
    assert (np.abs(better.dx) <= 0.5).all() and better.image_ids.shape == found.image_ids.shape


def test_an_answer_with_better_odds_is_kept_where_little_is_hidden(world):
    images, _, clear, _ = world
    found = found_by(images, clear, replace(SHALLOW, top_k=48, max_candidates=8))
    sure = replace(found, logit=np.where(np.arange(20) > 0, found.logit, np.float32(900)))
    search = replace(SHALLOW, round2_max_candidates=20, confident_odds=100)
    better = exhaustively(sure, clear, images, search)
    for name, value in vars(sure).items():
        np.testing.assert_array_equal(getattr(better, name), value)
    unsure = replace(found, logit=np.where(np.arange(20) > 0, found.logit, np.float32(-9)))
    better = exhaustively(unsure, clear, images, search)
    assert (logit_margin(better) > logit_margin(unsure)).all()


@pytest.mark.parametrize(("ncc", "kept"), [(0.3, True), (0.05, False)])
def test_under_cloud_an_answer_with_better_odds_is_kept_where_its_edges_agree(world, ncc, kept):
    images, _, _, clouded = world
    found = found_by(images, clouded, replace(SHALLOW, top_k=48, max_candidates=8))
    odds = np.where(np.arange(20) > 0, found.logit, np.float32(900))
    sure = replace(found, logit=odds, ncc=np.full_like(found.ncc, ncc))
    search = replace(SHALLOW, round2_max_candidates=20, confident_odds=100)
    better = exhaustively(sure, clouded, images, search)
    assert ((better.logit[:, 0] == 900) == kept).all()


def test_certain_and_flat_patches_keep_their_candidates(world):
    images, _, clear, _ = world
    certain = RankedCandidates.empty(6, 20)
    certain.image_ids[:], certain.logit[:, 0], certain.ncc[:] = 0, 5, 0.3
    assert exhaustively(certain, clear, images, SearchConfig()) is certain
    water = np.full((6, 64, 64, 4), -0.8, np.float32)
    water += np.random.default_rng(0).normal(0, 0.005, water.shape)
    assert exhaustively(NOTHING, asked(water), images, SearchConfig()) is NOTHING
    assert exhaustively(NOTHING, clear, images, SearchConfig(), ()) is NOTHING
    assert exhaustively(NOTHING, clear, images, SearchConfig(exhaustive_budget=0)) is NOTHING


def test_what_is_shown_leaves_cloud_and_flat_ground_out(world):
    _, _, clear, clouded = world
    half = clear.pixels.copy()
    half[:, :, 32:] = -0.5
    search = SearchConfig()
    clear, half, seen = (
        VisiblePatches(p, search).select(np.arange(6)) for p in (clear, asked(half), clouded)
    )
    shown = [texture_shares(p) for p in (clear, half, seen)]
    assert (shown[0] > 0.4).all()
    np.testing.assert_allclose(shown[1], shown[0] / 2, atol=0.08)
    hidden = hidden_shares(seen)
    assert (hidden > 0.3).all() and (shown[2] < shown[0] * (1 - hidden) + 0.1).all()
    untouched = VisiblePatches(clouded, replace(search, min_cloud_share=0.99)).select(np.arange(6))
    np.testing.assert_array_equal(untouched.pixels, clouded.pixels)


def test_visible_parts_do_not_depend_on_what_was_asked_before(world):
    clouded, search, rows = world[3], SearchConfig(), np.arange(6)
    expected = {k: VisiblePatches(clouded, search).select(rows, k).pixels for k in (3.0, None)}
    visible = VisiblePatches(clouded, search)
    turns = [(rows[4:], 3.0), (rows[[5, 1, 0]], None), (rows, 3.0), (rows, None), (rows[:0], None)]
    for part, min_logit in turns:
        np.testing.assert_array_equal(visible.select(part, min_logit).pixels, expected[min_logit][part])
    assert np.isnan(expected[3.0]).mean() < np.isnan(expected[None]).mean()


@pytest.mark.parametrize(("affordable", "compared"), [(100, 8), (8, 8), (7, 7), (2, 2), (1, 0)])
def test_the_work_is_bounded(affordable, compared):
    assert affordable_patches(8, 3.0, search_cost(affordable, 3.0)) == compared


class Megapixels:
    """Images of a million pixels each."""

    def size(self, image_id):
        return 1000, 1000


@pytest.mark.parametrize(
    ("affordable", "text"), [(4, "only the 4 with the most to gain were"), (1, "none was")]
)
def test_the_warning_tells_how_many_are_searched_and_the_budget_for_all(world, affordable, text):
    patches, images = world[2], Megapixels()
    search = SearchConfig(exhaustive_budget=search_cost(affordable, 4.0))
    with pytest.warns(SearchBudgetWarning, match=f"^6 patches are uncertain, and {text} searched") as warned:
        selected = uncertain(patches, images, search)
    assert len(selected.rows) == (4 if affordable == 4 else 0)
    assert sorted([*selected.rows, *selected.left_out]) == list(range(6))
    enough = int(re.search(r"exhaustive_budget = (\d+)", str(warned[0].message)).group(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        selected = uncertain(patches, images, SearchConfig(exhaustive_budget=enough))
    assert selected.rows.tolist() == list(range(6)) and not len(selected.left_out)


class CountingPatches:
    """Patches that note which rows are read."""

    def __init__(self, patches):
        self.patches, self.bands, self.rows = patches, patches.bands, []

    def __len__(self):
        return len(self.patches)

    def scaled(self, rows):
        self.rows.extend(np.atleast_1d(rows).tolist())
        return self.patches.scaled(rows)


def test_a_sample_decides_where_far_too_many_are_uncertain(world):
    images, _, clear, _ = world
    counting = CountingPatches(clear)
    with pytest.warns(SearchBudgetWarning, match="^about 6 patches are uncertain, and none was"):
        selected = uncertain(counting, images, SearchConfig(exhaustive_budget=1), sample=2)
    assert not len(selected.rows) and sorted(counting.rows) == [0, 3]
    assert selected.left_out.tolist() == list(range(6))


def test_patches_without_texture_are_not_left_out(world):
    images, _, clear, _ = world
    pixels = clear.pixels.copy()
    pixels[[0, 4]] = -0.5
    search = SearchConfig(exhaustive_budget=1)
    for sample in (2, 400):  # with a sample, only rows 0 and 3 are measured
        with pytest.warns(SearchBudgetWarning):
            selected = uncertain(asked(pixels), images, search, sample=sample)
        assert selected.left_out.tolist() == ([1, 2, 3, 4, 5] if sample == 2 else [1, 2, 3, 5])


def test_patches_beyond_the_budget_are_reported_without_another_answer(world):
    images, _, clear, _ = world
    found = found_by(Arrays({0: images.arrays[0]}, {0: BANDS}), clear, SHALLOW)
    search = replace(SHALLOW, round2_max_candidates=20, exhaustive_budget=1)
    with pytest.warns(SearchBudgetWarning):
        searched = search_uncertain(Session(images, clear, search=search, image_ids=range(4)), found)
    assert searched.candidates is found
    assert searched.left_out.dtype == bool and searched.left_out.tolist() == [True] * 6
    off = replace(search, exhaustive_budget=0)
    searched = search_uncertain(Session(images, clear, search=off, image_ids=range(4)), found)
    assert not searched.left_out.any()


def test_the_patches_with_the_most_texture_come_first(world):
    images, _, _, clouded = world
    megapixels = sum(np.prod(images.size(i)) for i in range(4)) / 1e6
    search = SearchConfig(exhaustive_budget=search_cost(2, megapixels))
    with pytest.warns(SearchBudgetWarning, match="the 2 with the most to gain"):
        rows = uncertain_rows(clouded, images, search)
    texture_share = texture_shares(VisiblePatches(clouded, SearchConfig()).select(np.arange(6)))
    assert set(rows) == set(np.argsort(-texture_share, kind="stable")[:2])


def test_correlation_and_cosine_rank_together_and_tell_how_sure_that_is():
    nan = np.nan
    found = refined([[1, 2, 3, -1]], [[0] * 4], [[0] * 4], [[nan] * 4], [[0.1, 0.2, 0.1, 0.0]])
    equal = np.zeros((1, 4), np.float32)
    got = rank_by_score(replace(found, ncc=np.full((1, 4), 0.3, np.float32)), equal)
    assert got.image_ids.tolist() == [[2, 1, 3, -1]] and np.isnan(got.logit[0, 3])
    fit = ScoreFit.shipped()
    score = 0.3 + fit.cosine_weight * np.array([0.2, 0.1, 0.1])
    expected = fit.logit_slope * (score - fit.even_score)
    np.testing.assert_allclose(got.logit[0, :3], expected, rtol=1e-4)
    ncc = np.array([[0.1, 0.1, 0.9, 0.9]], np.float32)
    assert rank_by_score(replace(found, ncc=ncc), equal).image_ids.tolist() == [[3, 2, 1, -1]]
    signed = np.array([[0.5, 0.0, 0.0, 0.9]], np.float32)
    assert rank_by_score(replace(found, ncc=equal), signed).image_ids.tolist() == [[1, 2, 3, -1]]


# ---------------------------------------------------------------- odds over rivals


def scores(n, width, seed, lead=0.0):
    """The best 20 of 60 log-odds by chance, (n, 20), and their places; the first leads by more."""
    noise = np.random.default_rng(seed).normal(-5, width, (n, 60))
    logit = -np.sort(-noise, axis=1)[:, :20]
    logit[:, 0] += lead * width
    return logit.astype(np.float32), np.tile(np.arange(20, 40), (n, 1))


def margins(logit):
    return logit[:, 0] - np.logaddexp.reduce(np.c_[np.zeros(len(logit)), logit[:, 1:]], axis=1)


@pytest.mark.parametrize("width", [1.0, 2.0, 4.0])
def test_a_best_score_by_chance_is_not_certain_however_wide_the_scores_are(width):
    by_chance, places = scores(1500, width, seed=1)
    stated = 1 / (1 + np.exp(-margins(odds_over_rivals(by_chance, places))))
    assert (stated > 0.9).mean() < 0.08 and stated.mean() < 0.3
    leading, places = scores(1500, width, seed=2, lead=4.0)
    assert (margins(odds_over_rivals(leading, places)) > 3).mean() > 0.95


def test_odds_over_rivals_depend_on_no_unit_of_the_score():
    logit, places = scores(50, 6.0, seed=3, lead=1.0)
    expected = odds_over_rivals(logit, places)
    np.testing.assert_allclose(odds_over_rivals(3 * logit + 7, places), expected, rtol=2e-4, atol=2e-4)
    assert (np.diff(expected, axis=1) <= 0).all()


def test_candidates_of_the_best_place_are_no_rivals_and_a_rival_place_counts_once():
    logit, places = scores(50, 1.5, seed=4, lead=5.0)
    copies = np.repeat(logit, [8] + [1] * 12 + [0] * 7, axis=1)  # the best and a rival on many dates
    numbers = np.repeat(places, [8] + [1] * 12 + [0] * 7, axis=1)
    alone = np.full_like(logit, np.nan)
    alone[:, :13] = logit[:, :13]
    np.testing.assert_allclose(
        odds_over_rivals(copies, numbers)[:, 0], odds_over_rivals(alone, places)[:, 0], rtol=1e-5
    )
    twice = logit.copy()
    twice[:, 2:19] = logit[:, 1:18]
    twice[:, 2], numbers = logit[:, 1], places.copy()
    numbers[:, 2] = numbers[:, 1]
    once = np.c_[logit[:, :2], twice[:, 3:], np.full((50, 1), np.nan, np.float32)]
    np.testing.assert_allclose(
        odds_over_rivals(twice, numbers)[:, 0], odds_over_rivals(once, places)[:, 0], rtol=1e-5
    )


def test_few_rivals_tell_no_spread():
    logit, places = scores(5, 1.5, seed=5)
    logit[:, MIN_RIVALS:] = np.nan
    np.testing.assert_array_equal(odds_over_rivals(logit, places), logit)
    np.testing.assert_array_equal(odds_over_rivals(logit[:, :1], places[:, :1]), logit[:, :1])
