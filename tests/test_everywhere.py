"""The last look: what is in doubt and shows enough is compared with every place, within bounds."""

import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
from engine import refined, small_encoder, texture

import retrieval.matching.exhaustive as last
import retrieval.matching.rounds as answer
from retrieval.config import IndexConfig, RefineConfig, SearchConfig
from retrieval.errors import SearchBudgetWarning
from retrieval.index.faiss_index import VectorIndex
from retrieval.matching.tensors import Arrays
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
    vectors = embed_patches(small_encoder(), patches.scaled())
    return answer.find(index, vectors, patches, images, search, RefineConfig())


def rightly(found, at):
    away = np.hypot(found.x[:, 0] - at[:, 1], found.y[:, 0] - at[:, 2])
    return (found.image_ids[:, 0] == at[:, 0]) & (away <= 5)


@pytest.mark.parametrize("cloudy", [True, False])
def test_what_stays_in_doubt_is_compared_everywhere(world, cloudy):
    images, at, clear, clouded = world
    patches = clouded if cloudy else clear
    # Of clear patches one place of another image is all that search gives.
    found = found_by(Arrays({0: images.arrays[0]}, {0: BANDS}), patches, SHALLOW)
    search = replace(SHALLOW, deep_places=20)
    better = last.exhaustive_search(found, patches, images, range(4), search, RefineConfig())
    assert rightly(better, at).sum() >= 5 > rightly(found, at).sum() + 1
    assert (np.abs(better.dx) <= 0.5).all() and better.image_ids.shape == found.image_ids.shape


def test_an_answer_with_better_odds_is_kept_where_little_is_hidden(world):
    images, _, clear, _ = world
    found = found_by(images, clear, replace(SHALLOW, windows=48, places=8))
    sure = replace(found, logit=np.where(np.arange(20) > 0, found.logit, np.float32(90)))
    search = replace(SHALLOW, deep_places=20, certain_odds=100)
    better = last.exhaustive_search(sure, clear, images, range(4), search, RefineConfig())
    for name, value in vars(sure).items():
        np.testing.assert_array_equal(getattr(better, name), value)
    unsure = replace(found, logit=np.where(np.arange(20) > 0, found.logit, np.float32(-9)))
    better = last.exhaustive_search(unsure, clear, images, range(4), search, RefineConfig())
    assert (logit_margin(better) > logit_margin(unsure)).all()


def test_what_is_certain_or_shows_nothing_is_left_alone(world, monkeypatch):
    images, _, clear, _ = world
    monkeypatch.setattr(last, "shipped_local_search", lambda: pytest.fail("nothing is worth it"))
    one = RankedCandidates.empty(6, 20)
    one.image_ids[:], one.logit[:, 0], one.ncc[:] = 0, 5, 0.3
    look = images, range(4), SearchConfig(), RefineConfig()
    assert last.exhaustive_search(one, clear, *look) is one
    water = np.full((6, 64, 64, 4), -0.8, np.float32)
    water += np.random.default_rng(0).normal(0, 0.005, water.shape)
    assert last.exhaustive_search(NOTHING, asked(water), *look) is NOTHING
    assert last.exhaustive_search(NOTHING, clear, images, (), SearchConfig(), RefineConfig()) is NOTHING
    off = SearchConfig(exhaustive_budget=0)
    assert last.exhaustive_search(NOTHING, clear, images, range(4), off, RefineConfig()) is NOTHING


def test_what_is_shown_leaves_cloud_and_flat_ground_out(world):
    _, _, clear, clouded = world
    half = clear.pixels.copy()
    half[:, :, 32:] = -0.5
    search = SearchConfig()
    shown = [last._seen(p, np.arange(6), search).shown for p in (clear, asked(half), clouded)]
    assert (shown[0] > 0.4).all()
    np.testing.assert_allclose(shown[1], shown[0] / 2, atol=0.08)
    seen = last._seen(clouded, np.arange(6), search)
    hidden = np.isnan(seen.patches.pixels).all(-1).mean((1, 2))
    assert (hidden > 0.3).all() and (seen.shown < shown[0] * (1 - hidden) + 0.1).all()
    untouched = last._seen(clouded, np.arange(6), replace(search, min_cloud_share=0.99))
    np.testing.assert_array_equal(untouched.patches.pixels, clouded.pixels)


@pytest.mark.parametrize(("affordable", "compared"), [(100, 8), (8, 8), (7, 7), (2, 2), (1, 0)])
def test_the_work_is_bounded(affordable, compared):
    assert last._affordable(8, 3.0, SearchConfig(exhaustive_budget=last._work(affordable, 3.0))) == compared


class Megapixels:
    """Images of a million pixels each."""

    def size(self, image_id):
        return 1000, 1000


@pytest.mark.parametrize(("affordable", "text"), [(4, "the 4 that show most are"), (1, "none of them is")])
def test_it_is_said_how_many_are_compared(world, affordable, text):
    patches, images = world[2], Megapixels()
    search = SearchConfig(exhaustive_budget=last._work(affordable, 4.0))
    with pytest.warns(SearchBudgetWarning, match=f"^6 patches are still in doubt; {text} compared") as told:
        rows = last.select_uncertain(patches, NOTHING, images, search, range(4))
    assert len(rows) == (4 if affordable == 4 else 0)
    enough = int(re.search(r"everywhere = (\d+)", str(told[0].message)).group(1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = last.select_uncertain(
            patches, NOTHING, images, SearchConfig(exhaustive_budget=enough), range(4)
        )
    assert rows.tolist() == list(range(6))


def test_of_far_too_many_only_some_are_looked_at(world, monkeypatch):
    images, _, clear, _ = world
    monkeypatch.setattr(last, "SOME", 2)
    looked, seen = [], last._seen
    monkeypatch.setattr(last, "_seen", lambda p, rows, s: looked.extend(rows) or seen(p, rows, s))
    with pytest.warns(SearchBudgetWarning, match="^some 6 patches are still in doubt; none of them is"):
        rows = last.select_uncertain(clear, NOTHING, images, SearchConfig(exhaustive_budget=1), range(4))
    assert not len(rows) and sorted(looked) == [0, 3]


def test_the_patches_that_show_most_come_first(world, monkeypatch):
    monkeypatch.setattr(last, "_affordable", lambda count, *_: min(count, 2))
    images, _, _, clouded = world
    with pytest.warns(SearchBudgetWarning, match="the 2 that show most"):
        rows = last.select_uncertain(clouded, NOTHING, images, SearchConfig(), range(4))
    shown = last._seen(clouded, np.arange(6), SearchConfig()).shown
    assert set(rows) == set(np.argsort(-shown, kind="stable")[:2])


def test_correlation_and_cosine_rank_together_and_tell_how_sure_that_is():
    nan = np.nan
    found = refined([[1, 2, 3, -1]], [[0] * 4], [[0] * 4], [[nan] * 4], [[0.1, 0.2, 0.1, 0.0]])
    got = last._by_score(replace(found, ncc=np.full((1, 4), 0.3, np.float32)))
    assert got.image_ids.tolist() == [[2, 1, 3, -1]] and np.isnan(got.logit[0, 3])
    expected = last.SCORE_ODDS * (0.3 + last.COSINE_SHARE * np.array([0.2, 0.1, 0.1]) - last.EVEN_SCORE)
    np.testing.assert_allclose(got.logit[0, :3], expected, rtol=1e-4)
    ncc = np.array([[0.1, 0.1, 0.9, 0.9]], np.float32)
    assert last._by_score(replace(found, ncc=ncc)).image_ids.tolist() == [[3, 2, 1, -1]]
