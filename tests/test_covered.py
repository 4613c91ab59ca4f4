"""Patches under cloud: the cloud is found, the rest looked for everywhere; and the training of both."""

from dataclasses import replace

import numpy as np
import pytest
from engine import digital, refined, texture

from retrieval.config import CloudConfig, SearchConfig
from retrieval.errors import ConfigError, TrainingError
from retrieval.matching.local_search import (
    CELL_PX,
    FEW_PAIRS,
    LocalSearch,
    agreement,
    best_of_cells,
    cosines,
    kernels,
    shipped_local_search,
)
from retrieval.matching.session import Session
from retrieval.matching.tensors import Arrays
from retrieval.models.cloud_mask import CloudMask, cloud_model, shipped_cloud_mask
from retrieval.models.local_descriptors import half_resolution, local_model
from retrieval.training.cloud_batches import by_bands, draw_clouds, draw_pairs, foreign_regions
from retrieval.training.cloud_networks import place_loss, train_cloud_mask, train_local_descriptors
from retrieval.training.weather import paste_clouds, under_clouds
from retrieval.types import unpack_ids
from tfrecords.errors import OutputExistsError
from tfrecords.schema import BANDS, Patches, Series
from tfrecords.write import write_series

TINY = CloudConfig(
    cloud_width=2,
    cloud_steps=3,
    cloud_batch=4,
    dim=4,
    steps=3,
    found_steps=2,
    season_steps=2,
    batch=6,
    regions_per_place=2,
    min_places=2,
)


def ground(seed, height=160, width=160):
    """Generated ground in scaled units."""
    return np.clip(0.5 * texture(height, width, seed=seed) - 0.5, -1, 1).astype(np.float32)


def clouded(patches, cover=0.5, seed=3):
    rng = np.random.default_rng(seed)
    return under_clouds(patches, np.full(len(patches), cover), rng)


# ---------------------------------------------------------------- clouds


def test_the_weather_pasted_is_the_weather_told():
    clear = np.stack([ground(s, 64, 64) for s in range(4)])
    made = clouded(clear)
    untouched = (made.cloud == 0) & (made.shadow == 0)
    assert untouched.any() and (made.cloud > 0.9).any()
    np.testing.assert_allclose(made.pixels[untouched], clear[untouched], atol=1e-6)
    pasted, hidden = paste_clouds(clear, np.full(4, 0.5), np.random.default_rng(3))
    np.testing.assert_array_equal(pasted, made.pixels)
    assert ((hidden >= made.cloud) & ((hidden > made.cloud) <= (made.shadow > 0.3))).all()


@pytest.mark.parametrize("bands", [(0, 1, 2, 3), (0, 1, 2), (3,)])
def test_the_shipped_network_finds_pasted_clouds_and_leaves_clear_ground_alone(bands):
    clear = np.stack([ground(s, 64, 64) for s in range(24)])[..., bands]
    made = clouded(clear)
    found = shipped_cloud_mask()(made.pixels)
    assert found.shape == (24, 64, 64) and found.dtype == bool
    assert found[made.cloud > 0.5].mean() > 0.9
    assert found[made.cloud == 0].mean() < 0.15
    assert shipped_cloud_mask()(clear).mean() < 0.05


def test_a_patch_with_unknown_pixels_is_looked_at_without_them():
    patch = ground(1, 64, 64)[None]
    patch[:, :20] = np.nan
    assert shipped_cloud_mask()(patch).mean() < 0.2
    assert shipped_cloud_mask()(np.full((1, 64, 64, 4), np.nan, np.float32)).shape == (1, 64, 64)


def test_any_number_is_looked_at_in_batches():
    finder = CloudMask(cloud_model(2))
    patches = np.stack([ground(s, 64, 64) for s in range(3)])
    whole = finder(patches)
    np.testing.assert_array_equal(np.concatenate([finder(patches[i : i + 1]) for i in range(3)]), whole)
    assert finder(patches[:0]).shape == (0, 64, 64)


# ---------------------------------------------------------------- local descriptors


def test_descriptors_lie_on_every_fourth_pixel_and_hidden_ground_has_none():
    picture = ground(0, 96, 104)[None]
    picture[:, :40, :40] = np.nan
    search = LocalSearch(local_model(4))
    tensor, visible = (np.asarray(v) for v in half_resolution(picture))
    field = search.describe(tensor, visible > 0)
    assert field.shape == (1, (tensor.shape[1] - 9) // 2 + 1, (tensor.shape[2] - 9) // 2 + 1, 4)
    assert not field[0, :3, :3].any() and field[0, -3:, -3:].any()
    # Four pixels further in the picture is one descriptor further in the field.
    moved = search.describe(*(np.asarray(v) for v in half_resolution(picture[:, 4:, 8:])))
    np.testing.assert_allclose(moved[0, 1:], field[0, 2:, 2:], atol=1e-5)


def test_agreement_against_loops():
    rng = np.random.default_rng(0)
    field, patches = rng.normal(size=(1, 7, 6, 3)), rng.normal(size=(2, 4, 4, 3))
    got = np.asarray(agreement(field.astype(np.float32), kernels(patches.astype(np.float32))))
    assert got.shape == (4, 3, 2)
    for y in range(4):
        for x in range(3):
            part = field[0, y : y + 4, x : x + 4].ravel()
            for n in range(2):
                cosine = part @ patches[n].ravel() / np.linalg.norm(part) / np.linalg.norm(patches[n])
                assert got[y, x, n] == pytest.approx(cosine, abs=1e-4)


def test_the_best_place_of_every_cell():
    rng = np.random.default_rng(0)
    agreement = rng.normal(size=(11, 17, 3)).astype(np.float32)
    score, ids = best_of_cells(agreement, 5, 128, 256)
    image, x, y = unpack_ids(ids)
    assert (image == 5).all() and score.shape == (3, 2 * 3)
    row, col = (y - 256) // 4, (x - 128) // 4
    for n in range(3):
        np.testing.assert_array_equal(score[n], agreement[row[n], col[n], n])
        cells = [agreement[r : r + 8, c : c + 8, n].max() for r in (0, 8) for c in (0, 8, 16)]
        np.testing.assert_array_equal(score[n], cells)
    assert CELL_PX == 32


def test_cosines_against_loops():
    rng = np.random.default_rng(0)
    fields, own = (rng.normal(size=s).astype(np.float32) for s in ((2, 20, 22, 3), (5, 4 * 4 * 3)))
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    which, at = rng.integers(0, 2, 5), rng.integers(0, 14, (5, 2, 2))
    got = cosines(fields, which, at, own, 4)
    for m, k in np.ndindex(5, 2):
        x, y = at[m, k]
        place = fields[which[m], y : y + 8 : 2, x : x + 8 : 2].ravel()
        assert got[m, k] == pytest.approx(own[m] @ place / np.linalg.norm(place), abs=1e-3)


def test_descriptors_of_every_pixel_are_those_of_every_fourth_moved():
    search = LocalSearch(local_model(4))
    tensor, visible = (np.asarray(v) for v in half_resolution(ground(0, 96, 105)[None]))
    every = search.describe_all_pixels(tensor, visible > 0)
    assert every.shape == (1, tensor.shape[1] - 8, tensor.shape[2] - 8, 4)
    for dy, dx in np.ndindex(2, 2):
        part = search.describe(tensor[:, dy:, dx:], visible[:, dy:, dx:] > 0)
        np.testing.assert_allclose(every[:, dy::2, dx::2], part, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(200, 230), (66, 131), (64, 64)])
def test_tiles_of_a_picture_change_nothing(height, width):
    search = LocalSearch(local_model(4))
    tensor, visible = (np.array(v) for v in half_resolution(ground(0, height, width)[None]))
    visible[:, 20:60, 10:30] = 0
    whole = np.asarray(search.model([tensor, visible]))
    dense = np.zeros((1, *(n - 8 for n in tensor.shape[1:3]), 4), np.float32)
    for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
        dense[:, dy::2, dx::2] = search.model([tensor[:, dy:, dx:], visible[:, dy:, dx:]])
    for tile in (128, 16):
        search = LocalSearch(search.model, tile)
        np.testing.assert_allclose(search.describe(tensor, visible > 0), whole, atol=1e-6)
        np.testing.assert_allclose(search.describe_all_pixels(tensor, visible > 0), dense, atol=1e-6)


def test_around_a_few_places_the_descriptors_are_those_of_the_whole_block():
    search = LocalSearch(local_model(4))
    tensor, visible = (np.asarray(v)[0] for v in half_resolution(ground(0, 200, 230)[None]))
    visible = visible > 0
    visible[20:60, 30:50] = False
    at = np.array([[0, 0], [40, 13], [tensor.shape[1] - 31, tensor.shape[0] - 31]])
    field, which, corner = search.fields_at(tensor, visible, at, 12)(slice(None))
    whole = search.describe_all_pixels(tensor[None], visible[None])[0]
    assert len(field) == FEW_PAIRS and which.tolist() == [0, 1, 2] and (np.abs(at - 1 - corner) <= 1).all()
    for part, (x, y) in zip(field[which], corner, strict=True):
        np.testing.assert_allclose(part, whole[y : y + 25, x : x + 25], atol=1e-5)
    field, which, corner = search.fields_at(tensor, visible, np.tile(at, (9, 1)), 12)(slice(3, 5))
    assert len(field) == 1 and not which.any() and not corner.any() and len(which) == 2


@pytest.fixture(scope="module")
def world():
    """Four images, and half-covered patches of another light."""
    images = Arrays({i: ground(10 + i) for i in range(4)}, dict.fromkeys(range(4), BANDS))
    at = [(0, 12, 20), (1, 77, 3), (2, 40, 90), (3, 5, 60), (1, 30, 30), (2, 90, 11)]
    clear = np.stack([0.7 * images.arrays[i][y : y + 64, x : x + 64] - 0.1 for i, x, y in at])
    made = clouded(clear, 0.45)
    hidden = np.where(made.cloud[..., None] > 0.1, np.nan, made.pixels).astype(np.float32)
    return images, np.array(at), made.pixels, hidden


def searched(patches, image_ids, images, config):
    """What exhaustive local search finds in some images."""
    return shipped_local_search().search_images(Session(images, patches, search=config, image_ids=image_ids))


def rescored(ranked, patches, images):
    """Candidates compared at their own pixel."""
    return shipped_local_search().rescore(Session(images, patches), ranked)


def test_covered_patches_are_found_by_what_is_seen_of_them(world):
    images, at, _, hidden = world
    patches = Patches(np.arange(6), hidden, "scaled", BANDS, np.nan)
    config = SearchConfig(round2_max_candidates=20)
    found = searched(patches, [3, 1, 0, 2], images, config)
    assert found.image_ids.shape == (6, 20) and (np.diff(found.similarity, axis=1) <= 0).all()
    right = (found.image_ids[:, 0] == at[:, 0]) & (
        np.hypot(found.x[:, 0] - at[:, 1], found.y[:, 0] - at[:, 2]) <= 4
    )
    assert right.sum() >= 5, found.image_ids[:, 0]
    some = searched(patches, [0, 2], images, config)
    assert set(np.unique(some.image_ids)) <= {-1, 0, 2}


def test_places_are_looked_at_again_beside_where_they_were_found(world):
    """As `again` at the places that come out, and no worse than at those on the grid."""
    images, _, _, hidden = world
    patches = Patches(np.arange(6), hidden, "scaled", BANDS, np.nan)
    found = searched(patches, range(4), images, SearchConfig(round2_max_candidates=20))
    assert (found.x % 4 == 2).any() and (found.x % 2 == 0).all() and (found.y % 2 == 0).all()
    none = np.zeros(found.x.shape)
    at = refined(found.image_ids, found.x, found.y, none, found.similarity)
    again = rescored(at, patches, images)
    np.testing.assert_allclose(again, found.similarity, atol=1e-4)
    beside = refined(found.image_ids, np.maximum(found.x - 2, 0), found.y, none, found.similarity)
    first = rescored(beside, patches, images)[:, 0]
    assert (first <= found.similarity[:, 0] + 1e-4).all()


def test_candidates_are_compared_again_where_they_were_found(world):
    images, at, _, hidden = world
    patches = Patches(np.arange(6), hidden, "scaled", BANDS, np.nan)
    image, x, y = at.T
    stay, away = x, np.where(x >= 20, x - 20, x + 20)
    ids = np.stack([image, image, image, np.full(6, -1)], 1)
    logit = np.tile([0.0, 0.0, np.nan, np.nan], (6, 1))
    columns = np.stack([stay, away, stay, stay], 1)
    ranked = refined(ids, columns, np.tile(y[:, None], 4), logit, np.full((6, 4), 0.5))
    got = rescored(ranked, patches, images)
    assert (got[:, 0] > got[:, 1] + 0.05).all()
    np.testing.assert_allclose(got[:, 2], got[:, 0], atol=1e-5)
    assert (got[:, 3] == 0.5).all()  # there is none
    # On the grid of the search it is what the search said.
    first = searched(patches, [0], images, SearchConfig(round2_max_candidates=1))
    assert (first.x[0, 0], first.y[0, 0]) == (12, 20)
    np.testing.assert_allclose(got[0, 0], first.similarity[0, 0], atol=1e-4)
    none = patches.select(slice(0, 0))
    assert rescored(refined(*[np.zeros((0, 3))] * 5), none, images).shape == (0, 3)


def test_no_patches_and_no_images(world):
    images, _, _, hidden = world
    patches = Patches(np.arange(6), hidden, "scaled", BANDS, np.nan)
    found = searched(patches, [], images, SearchConfig())
    assert (found.image_ids == -1).all() and found.image_ids.shape == (6, SearchConfig.round2_max_candidates)
    nothing = Patches(np.arange(1), np.full((1, 64, 64, 4), np.nan, np.float32), "scaled", BANDS, np.nan)
    found = searched(nothing, [0], images, SearchConfig())
    assert (found.image_ids == -1).all() and np.isneginf(found.similarity).all()
    none = Patches(patches.patch_ids[:0], hidden[:0], "scaled", BANDS, np.nan)
    assert len(searched(none, [0], images, SearchConfig())) == 0


# ---------------------------------------------------------------- training


def places(count, dates=2, size=128):
    """Series of generated ground, each date another light."""
    return [
        Series(
            place=f"place{n}",
            pixels=np.stack([digital((0.9 - 0.2 * t) * ground(n, size, size + 8)) for t in range(dates)]),
            units="dn",
            bands=BANDS,
            nodata=0.0,
            dates=tuple(f"2020-0{t + 1}-01" for t in range(dates)),
            overlap_group=n,
        )
        for n in range(count)
    ]


def test_a_batch_of_pairs_shows_each_patch_in_its_region():
    config = replace(TINY, cloud_share=0.0, batch=12, regions_per_place=3)
    sets = by_bands(places(3), config)
    patches, regions, offset, foreign = draw_pairs(sets, config, np.random.default_rng(0))
    assert patches.shape[:3] == (12, 64, 64) and regions.shape[:3] == (12, 104, 104)
    assert foreign.shape == (12, 12) and foreign.diagonal().all() and not foreign.all()
    edges = [np.hypot(*np.gradient(v.mean(-1), axis=(1, 2))) for v in (patches, regions)]
    for patch, region, (x, y) in zip(*edges, offset.astype(int), strict=True):
        at = [(x, y), ((x + 20) % 41, y), (x, (y + 20) % 41)]
        like = [np.corrcoef(patch.ravel(), region[j : j + 64, i : i + 64].ravel())[0, 1] for i, j in at]
        assert like[0] > max(like[1:]) + 0.1


def test_found_masks_hide_what_the_network_finds_and_patches_lie_near_the_grid():
    config = replace(TINY, cloud_share=1.0, batch=24, regions_per_place=3)
    seen = []

    def finder(scaled):
        assert not np.isnan(scaled).any() and np.abs(scaled).max() <= 1
        seen.append(shipped_cloud_mask()(scaled))
        return seen[0]

    sets = by_bands(places(3), config)
    patches, _, offset, _ = draw_pairs(sets, config, np.random.default_rng(0), finder)
    np.testing.assert_array_equal(np.isnan(patches).all(-1), seen[0])
    assert 0.2 < seen[0].mean() < 0.8
    assert set(np.unique(offset % 4)) == {0, 1, 3} and offset.min() >= 0 and offset.max() <= 104 - 64


def test_regions_that_share_ground_are_no_negatives():
    where = [(0, 7, 0, 0), (0, 7, 50, 0), (0, 7, 300, 0), (1, 7, 0, 0), (2, 8, 0, 0)]
    expected = np.ones((5, 5), bool)
    expected[0, 1] = expected[1, 0] = False
    expected[3, :3] = expected[:3, 3] = False  # another series of the same ground
    np.testing.assert_array_equal(foreign_regions(where, 104), expected)


def test_the_loss_is_small_where_the_own_place_agrees_and_large_where_another_does():
    rng = np.random.default_rng(0)
    stored = rng.normal(size=(3, 22, 22, 4)).astype(np.float32)
    offset = np.array([[0, 0], [8, 16], [40, 40]], np.float32)
    own = np.stack(
        [
            s[int(y) // 4 : int(y) // 4 + 12, int(x) // 4 : int(x) // 4 + 12]
            for s, (x, y) in zip(stored, offset, strict=True)
        ]
    )
    every = np.ones((3, 3), bool)
    loss, right = (float(v) for v in place_loss(own, stored, offset, every, 50.0))
    assert loss < 0.01 and right == 1
    wrong, right = (float(v) for v in place_loss(own[::-1].copy(), stored, offset, every, 50.0))
    assert wrong > 5 and right < 1
    alone, _ = (float(v) for v in place_loss(own[::-1].copy(), stored, offset, np.eye(3, dtype=bool), 50.0))
    assert alone < wrong  # regions that share ground do not count


def test_a_batch_of_crops_has_clouds_where_it_says():
    crops, cloud = draw_clouds(
        by_bands(places(2), TINY), replace(TINY, cloud_batch=64), np.random.default_rng(1)
    )
    assert crops.shape[:3] == (64, 64, 64) and cloud.shape == (64, 32, 32) and set(np.unique(cloud)) == {0, 1}
    assert 0.3 < cloud.any((1, 2)).mean() < 0.9
    bright = crops.mean(-1).reshape(64, 32, 2, 32, 2).mean((2, 4))
    assert bright[cloud == 1].mean() > bright[cloud == 0].mean() + 0.3


LONGER = replace(TINY, cloud_steps=6, steps=7, found_steps=8, season_steps=6)
STOP = 4
"""Step after which a training is stopped, before its state is saved."""


@pytest.fixture(scope="module")
def at_once(tmp_path_factory):
    """Trainings that nobody stopped: their folder, figures and stages."""
    folder, stages = tmp_path_factory.mktemp("covered"), set()
    write_series(places(3), folder / "series")
    figures = {
        train: train(
            folder / "series",
            folder / f"{train.__name__}.keras",
            LONGER,
            progress=lambda p: stages.add(p.stage),
        )
        for train in (train_cloud_mask, train_local_descriptors)
    }
    return folder, figures, stages


def test_training_writes_models_and_states_what_it_does(at_once):
    folder, figures, stages = at_once
    of_local = {f"{s}_{figure}" for s in ("known", "found", "seasons") for figure in ("loss", "right")}
    assert set(figures[train_cloud_mask]) == {"loss", "cloud_found", "clear_hidden"}
    assert set(figures[train_local_descriptors]) == of_local
    assert stages == {
        "training the cloud network",
        "training local descriptors under known clouds",
        "training local descriptors under found clouds",
        "training local descriptors in other seasons",
    }
    for train, values in figures.items():
        assert all(np.isfinite(v) for v in values.values())
        with pytest.raises(OutputExistsError):
            train(folder / "series", folder / f"{train.__name__}.keras", LONGER)


@pytest.mark.parametrize(
    "train, stages",
    [(train_cloud_mask, ["cloud network"]), (train_local_descriptors, ["known", "found", "seasons"])],
)
def test_an_interrupted_training_resumes_to_the_same_weights(train, stages, at_once, tmp_path):
    """It is stopped in each of its stages."""
    import keras

    folder, figures, _ = at_once
    out, seen = tmp_path / "out.keras", []

    def stop_in(stage):
        def show(progress):
            seen.append(progress)
            if stage in progress.stage and progress.step == STOP and not progress.note:
                raise KeyboardInterrupt

        return show

    for former, stage in zip([None, *stages], stages, strict=False):
        with pytest.raises(KeyboardInterrupt):
            train(folder / "series", out, LONGER, progress=stop_in(stage), checkpoint_s=0.0)
        assert former is None or first_step(seen, former) == STOP
        assert not out.exists()
        with pytest.raises(TrainingError, match=r"steps was 7 and is 2"):
            train(folder / "series", out, replace(LONGER, steps=2))
        seen.clear()
    resumed = train(folder / "series", out, LONGER, progress=seen.append)
    assert first_step(seen, stages[-1]) == STOP
    assert resumed == pytest.approx(figures[train], rel=1e-3)
    both = (keras.saving.load_model(f, safe_mode=True) for f in (out, folder / f"{train.__name__}.keras"))
    for a, b in zip(*(model.get_weights() for model in both), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)
    assert not (tmp_path / "out.keras.training").exists()


def first_step(seen, stage):
    """The first step of a stage that a progress shows."""
    return next(p.step for p in seen if stage in p.stage and not p.note)


def test_the_state_of_another_training_is_replaced_only_with_overwrite(tmp_path):
    write_series(places(3), tmp_path / "series")
    out = tmp_path / "b.keras"
    with pytest.raises(ZeroDivisionError):
        train_cloud_mask(
            tmp_path / "series",
            out,
            replace(TINY, cloud_steps=20),
            progress=lambda p: p.step == 2 and 1 / 0,
            checkpoint_s=0.0,
        )
    with pytest.raises(TrainingError, match="overwrite"):
        train_cloud_mask(tmp_path / "series", out, TINY)
    train_cloud_mask(tmp_path / "series", out, TINY, overwrite=True)
    assert out.exists() and not (tmp_path / "b.keras.training").exists()


def test_too_few_places_are_refused():
    with pytest.raises(TrainingError, match="1 series, at most 1 places"):
        by_bands(places(1), TINY)
    with pytest.raises(ConfigError, match="cloud_share"):
        CloudConfig(cloud_share=1.5)
