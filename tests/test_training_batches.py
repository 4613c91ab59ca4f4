"""Crops of a training batch: negatives, composition, splits."""

from collections import Counter
from dataclasses import replace
from itertools import count, islice, product

import numpy as np
from engine import texture as ground_of
from trainable import SMALL_RECIPE

from retrieval.training.batches import (
    LookAlikes,
    Split,
    allowed_negatives,
    compose,
    draw_number,
    prepare,
    texture,
)
from tfrecords.schema import group_of


def crops_at(places):
    """Elements (place, group, x, y) as the stream gives them, without pixels."""
    place, group, x, y = (np.array(v, np.int64) for v in zip(*places, strict=True))
    return {"place_id": place, "overlap_group": group, "x": x, "y": y}


def test_crops_that_share_ground_are_never_negatives():
    batch = crops_at(
        [(1, 1, 0, 0), (1, 1, 63, 0), (1, 1, 64, 0), (1, 1, 0, 64), (2, 1, 500, 500), (3, 3, 0, 0)]
    )
    allowed = allowed_negatives(batch, 0)
    assert (allowed == allowed.T).all() and not allowed.diagonal().any()
    assert not allowed[0, 1]  # one column is shared
    assert allowed[0, 2] and allowed[0, 3]  # neighbours of one image that meet nowhere
    assert not allowed[:4, 4].any()  # another place on shared ground, wherever it is
    assert allowed[:5, 5].all()  # other ground
    assert not allowed_negatives(batch, 4)[0, 2]  # the positive may be shifted into it


def test_allowed_negatives_agree_with_a_slow_loop():
    rng = np.random.default_rng(3)
    spots = [(int(p), int(p) // 2, *map(int, rng.integers(0, 200, 2))) for p in rng.integers(0, 6, 40)]
    allowed = allowed_negatives(crops_at(spots), 4)
    for (i, a), (j, b) in product(enumerate(spots), enumerate(spots)):
        same = a[0] == b[0]
        shares = (abs(a[2] - b[2]) < 68 and abs(a[3] - b[3]) < 68) if same else a[1] == b[1]
        assert allowed[i, j] == (not shares)


def test_overlaps_makes_overlapping_ground_a_negative():
    raw = crops_at([(1, 1, 0, 0), (1, 1, 8, 0), (2, 1, 0, 0)])
    raw |= {name: np.zeros((3, 64, 64, 4), np.float32) for name in ("anchor", "positive")}
    config = replace(SMALL_RECIPE, overlaps=True)
    assert (prepare(0, raw, config).allowed == ~np.eye(3, dtype=bool)).all()
    assert not prepare(0, raw, SMALL_RECIPE).allowed.any()


def numbered(places, seed=0):
    rng = np.random.default_rng(seed)
    for i in count():
        yield {"place_id": np.int64(rng.integers(places)), "number": np.int64(i)}


def test_batches_hold_several_crops_of_many_places_and_use_each_crop_as_often_as_asked():
    batches = list(islice(compose(numbered(40), 32, 4, 128, 3, np.random.default_rng(0)), 200))
    for batch in batches:
        per_place = Counter(batch["place_id"].tolist())
        assert max(per_place.values()) <= 4 and len(per_place) >= 8
        assert len(set(batch["number"].tolist())) == 32  # no crop twice
    uses = Counter(n for batch in batches for n in batch["number"].tolist())
    assert max(uses.values()) == 3
    assert np.mean([uses[n] for n in range(500)]) > 2.9


def test_batches_are_filled_also_from_one_place():
    batch = next(compose(numbered(1), 16, 2, 32, 1, np.random.default_rng(0)))
    assert len(set(batch["number"].tolist())) == 16


def test_batches_are_composed_of_clusters_where_crops_have_one():
    crops = ({**c, "cluster": c["number"] % 4} for c in numbered(40))
    batch = next(compose(crops, 16, 4, 64, 1, np.random.default_rng(0)))
    assert Counter(batch["cluster"].tolist()) == dict.fromkeys(range(4), 4)


def test_crops_that_look_alike_are_of_one_cluster(rng):
    """Turned ground looks like other ground; the same ground in another light, like itself."""
    ground = np.stack([ground_of(64, 64, seed=s) for s in range(6)])
    crops = np.clip(np.concatenate([0.5 * ground, 0.35 * ground + 0.1]), -1, 1).astype(np.float32)
    cluster = LookAlikes(6)(crops)
    assert cluster.tolist() == [*range(6), *range(6)]
    halves = LookAlikes(6)
    np.testing.assert_array_equal(np.concatenate([halves(crops[:4]), halves(crops[4:])]), cluster)


def test_the_held_out_share_is_the_requested_one_and_seeded():
    groups = np.array([group_of(str(i)) for i in range(4000)])
    held = Split(seed=1, share=0.1).held(groups, groups)
    assert 0.08 < held.mean() < 0.12
    assert (held == Split(seed=1, share=0.1).held(groups, groups)).all()
    assert (held != Split(seed=2, share=0.1).held(groups, groups)).any()
    assert Split(places=frozenset([int(groups[5])])).held(groups, np.zeros_like(groups)).sum() == 1
    assert 0 <= draw_number(groups, 0).min() and draw_number(groups, 0).max() < 1


def test_texture_is_zero_on_water_and_nodata():
    rng = np.random.default_rng(0)
    crops = np.zeros((3, 64, 64, 4), np.float32)
    crops[1] += rng.normal(0, 0.05, (64, 64, 4)).astype("float32")
    crops[2] = np.nan
    flat, rough, nothing = texture(crops)
    assert flat == 0 and rough > 0.03 and nothing == 0
