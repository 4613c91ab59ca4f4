"""Training of the encoder: losses against slow loops, negatives, augmentation, recipes, and small runs."""

import signal
import threading
from collections import Counter
from dataclasses import replace
from itertools import count, islice, product

import keras
import numpy as np
import pytest
from engine import texture as ground_of
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.config import (
    AugmentConfig,
    CloudConfig,
    LearnedConfig,
    TensorConfig,
    TrainConfig,
    VerifierConfig,
)
from retrieval.errors import ConfigError, EncoderError, TrainingError
from retrieval.models.encoder import KerasEncoder, load_encoder
from retrieval.synthetic.noise import fractal
from retrieval.training.augment import augment_pairs, blurred, drop_bands, in_bytes, turned
from retrieval.training.batches import (
    LookAlikes,
    Split,
    allowed_negatives,
    compose,
    draw_number,
    numbered_batches,
    prepare,
    texture,
    training_batches,
)
from retrieval.training.checkpoint import State, assign, folder_of, load_state, save_state
from retrieval.training.losses import infonce_loss, loss_of, multi_similarity_loss, triplet_loss
from retrieval.training.networks import blank_model, plain_model
from retrieval.training.recipes import read_recipe, recipe_names
from retrieval.training.siamese import compiled_step, new_optimizer, objective, train_encoder
from retrieval.training.trainer import Progress, Schedule, Trainer, print_progress
from retrieval.training.validate import ValidationSet, hold_out, recall
from retrieval.training.weather import add_haze, paste_clouds
from tfrecords.errors import MissingInputError, OutputExistsError
from tfrecords.schema import Series, group_of
from tfrecords.write import write_series

# --- losses --------------------------------------------------------------------------------------


def unit(rng, n, d):
    v = rng.standard_normal((n, d))
    return (v / np.linalg.norm(v, axis=1, keepdims=True)).astype("float32")


def rows(a, p, allowed):
    """For each vector of both sides: similarity to its partner, and to its allowed negatives."""
    s = a.astype("float64") @ p.T.astype("float64")
    for m, ok in ((s, allowed), (s.T, allowed.T)):
        for i in range(len(m)):
            yield m[i, i], [m[i, j] for j in range(len(m)) if ok[i, j]]


def slow_triplet(a, p, allowed, margin, mining):
    total = []
    for own, others in rows(a, p, allowed):
        if not others:
            total.append(0)
        elif mining == "hard":
            total.append(max(0, margin + max(others) - own))
        else:
            below = [o for o in others if o < own]
            total.append(max(0, margin + (max(below) if below else min(others)) - own))
    return np.mean(total)


def slow_infonce(a, p, allowed, temperature):
    return np.mean(
        [
            np.log(np.exp(own / temperature) + sum(np.exp(o / temperature) for o in others))
            - own / temperature
            for own, others in rows(a, p, allowed)
        ]
    )


def slow_multi_similarity(a, p, allowed, alpha=2, beta=50, base=0.5, epsilon=0.1):
    total = []
    for own, others in rows(a, p, allowed):
        near = [o for o in others if o + epsilon > own]
        value = np.log(1 + sum(np.exp(beta * (o - base)) for o in near)) / beta
        if others and own - epsilon < max(others):
            value += np.log(1 + np.exp(-alpha * (own - base))) / alpha
        total.append(value)
    return np.mean(total)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 9), d=st.integers(2, 8), seed=st.integers(0, 10**6), density=st.floats(0, 1))
def test_losses_agree_with_slow_loops(n, d, seed, density):
    rng = np.random.default_rng(seed)
    a, p = unit(rng, n, d), unit(rng, n, d)
    allowed = rng.random((n, n)) < density
    np.fill_diagonal(allowed, False)
    for mining in ("hard", "semi-hard"):
        got = float(triplet_loss(a, p, allowed, 0.3, mining))
        assert got == pytest.approx(slow_triplet(a, p, allowed, 0.3, mining), abs=1e-5)
    assert float(infonce_loss(a, p, allowed, 0.1)) == pytest.approx(
        slow_infonce(a, p, allowed, 0.1), abs=1e-4
    )
    assert float(multi_similarity_loss(a, p, allowed)) == pytest.approx(
        slow_multi_similarity(a, p, allowed), abs=1e-4
    )


@pytest.mark.parametrize("loss", ["triplet", "infonce", "multi-similarity"])
def test_loss_has_finite_gradients_also_where_a_row_has_no_negative(loss):
    import tensorflow as tf

    rng = np.random.default_rng(0)
    a, p = tf.constant(unit(rng, 6, 4)), unit(rng, 6, 4)
    allowed = ~np.eye(6, dtype=bool)
    allowed[2] = allowed[:, 2] = False
    with tf.GradientTape() as tape:
        tape.watch(a)
        value = loss_of(TrainConfig(loss=loss))(a, p, allowed)
    gradient = tape.gradient(value, a).numpy()
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 1e-4


def test_a_perfect_batch_costs_nothing_where_a_margin_is_kept():
    eye = np.eye(5, dtype="float32")
    assert float(triplet_loss(eye, eye, ~np.eye(5, dtype=bool))) == 0
    assert float(infonce_loss(eye, eye, ~np.eye(5, dtype=bool))) < 1e-6


# --- negatives and batches -----------------------------------------------------------------------


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
    config = replace(SMALL, overlaps=True)
    assert (prepare(0, raw, config).allowed == ~np.eye(3, dtype=bool)).all()
    assert not prepare(0, raw, SMALL).allowed.any()


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


# --- augmentation --------------------------------------------------------------------------------


def some_crops(n=12, seed=0):
    rng = np.random.default_rng(seed)
    fields = np.stack([fractal(rng, (64, 64), beta=2.0) for _ in range(4 * n)])
    return np.clip(fields.reshape(n, 4, 64, 64).transpose(0, 2, 3, 1) * 0.15 - 0.5, -1, 1)


NOTHING = AugmentConfig(False, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)


def test_augmentation_is_seeded_bounded_and_leaves_its_input():
    a, p = some_crops(), some_crops(seed=1)
    p[3, :, :9] = np.nan
    before = a.copy()
    first, second = (augment_pairs(a, p, AugmentConfig(), np.random.default_rng(5)) for _ in range(2))
    assert first.shape == (24, 64, 64, 4) and first.dtype == np.float32
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(a, before)
    assert np.nanmin(first) >= -1 and np.nanmax(first) <= 1
    assert not np.isnan(first).all((1, 2, 3)).any()


def test_no_augmentation_changes_nothing():
    a, p = some_crops(), some_crops(seed=1)
    out = augment_pairs(a, p, NOTHING, np.random.default_rng(0))
    np.testing.assert_allclose(out, np.concatenate([a, p]), atol=1e-5)


def test_both_crops_of_a_pair_are_rotated_alike_in_all_eight_ways():
    a = some_crops(64)
    out = augment_pairs(a, a, replace(NOTHING, flip_rotate=True), np.random.default_rng(0))
    np.testing.assert_allclose(out[:64], out[64:], atol=1e-5)
    ways = [np.rot90(m, k) for m in (a[0], a[0][:, ::-1]) for k in range(4)]
    got = turned(np.repeat(a[:1], 8, axis=0), np.arange(8))
    for way, one in zip(ways, got, strict=True):
        np.testing.assert_array_equal(way, one)


def dropped(config, n=400):
    crops = np.zeros((2 * n, 64, 64, 4), np.float32)
    drop_bands(crops, config, np.random.default_rng(0))
    return ~np.isnan(crops[:, 0, 0]).reshape(2, n, 4)


def test_bands_are_dropped_together_or_apart_and_never_all():
    kept = dropped(replace(NOTHING, bands=0.5))
    assert (kept[0] == kept[1]).all() and kept.any(-1).all()
    sets = Counter(map(tuple, kept[0].tolist()))
    for wanted in (
        (True,) * 4,
        (True, True, True, False),
        (False, False, False, True),
        (False, True, False, False),
    ):
        assert sets[wanted] > 0
    assert 0.4 < (~kept[0].all(-1)).mean() < 0.6
    kept = dropped(replace(NOTHING, cross_bands=1.0))
    assert (kept[0] != kept[1]).any(-1).mean() > 0.5 and kept.any(-1).all()


def test_a_crop_keeps_the_last_band_that_it_has():
    crops = np.zeros((40, 64, 64, 4), np.float32)
    crops[..., 1:] = np.nan
    drop_bands(crops, replace(NOTHING, bands=1.0), np.random.default_rng(0))
    assert not np.isnan(crops[..., 0]).any()


def test_clouds_cover_the_requested_share_and_are_seeded():
    crops = some_crops(20)
    cover = np.linspace(0, 0.9, 20)
    out, hidden = paste_clouds(crops, cover, np.random.default_rng(0))
    again, _ = paste_clouds(crops, cover, np.random.default_rng(0))
    np.testing.assert_array_equal(out, again)
    changed = (np.abs(out - crops) > 0.25).any(-1).mean((1, 2))
    assert changed[0] == 0 and hidden[0].max() == 0
    assert ((hidden >= 0.5).mean((1, 2)) > cover - 0.03).all()
    assert (changed[5:] > 0.6 * cover[5:]).all()
    assert out.max() <= 1 and out.min() >= -1 and 0 <= hidden.min() and hidden.max() <= 1
    assert (out < crops - 0.03).any()  # shadows


def test_clouds_haze_and_blur_keep_nodata():
    crops = some_crops(4)
    crops[:, 10:20, 10:20] = np.nan
    rng = np.random.default_rng(0)
    for out in (paste_clouds(crops, np.full(4, 0.5), rng)[0], add_haze(crops, rng), blurred(crops)):
        assert np.isnan(out[:, 10:20, 10:20]).all() and not np.isnan(out[:, 30:]).any()


def test_haze_and_blur_thin_contrast_and_bytes_have_few_levels():
    crops = some_crops(6)
    contrast = np.abs(np.diff(crops, axis=1)).mean()
    for out in (add_haze(crops, np.random.default_rng(0)), blurred(crops)):
        assert np.abs(np.diff(out, axis=1)).mean() < 0.95 * contrast
    out = in_bytes(crops, np.random.default_rng(0))
    levels = (out + 1) * 127.5
    assert len(np.unique(out[0])) <= 256 and np.abs(levels - np.rint(levels)).max() < 1e-3


def test_masked_clouds_become_unknown_pixels():
    a = some_crops(16)
    config = replace(NOTHING, clouds=1.0, cover=0.7, masked=1.0)
    out = augment_pairs(a, a, config, np.random.default_rng(0))
    assert np.isnan(out).any((1, 2, 3)).sum() == 16  # one of each pair


# --- records of knobs ----------------------------------------------------------------------------


def test_recipes_are_checked_and_nested_ones_are_read_from_maps():
    config = TrainConfig.from_mapping({"learned": {"width": 8}, "augment": {"clouds": 0.5}, "steps": 3})
    assert config.learned == LearnedConfig(width=8) and config.augment.clouds == 0.5
    assert TrainConfig.from_mapping(config.to_dict()) == config
    for wrong in (
        {"loss": "square"},
        {"batch": 1},
        {"augment": {"rain": 1}},
        {"margin": -1},
        {"arch": "big"},
        {"learned": {"stem": "soft"}},
    ):
        with pytest.raises(ConfigError):
            TrainConfig.from_mapping(wrong)
    with pytest.raises(ConfigError):
        AugmentConfig(clouds=1.5)


def test_former_names_of_settings_are_migrated():
    former = {"alone": 0.5, "pool": 99, "uses": 2, "augment": {"curve": 0.3, "turn": False}}
    config = TrainConfig.from_mapping(former)
    assert (config.branch_loss_weight, config.pool_size, config.reuse_per_pair) == (0.5, 99, 2)
    assert (config.augment.tone_curve_std, config.augment.flip_rotate) == (0.3, False)
    assert CloudConfig.from_mapping({"covered": 0.1, "near": 3}) == CloudConfig(
        cloud_share=0.1, regions_per_place=3
    )
    assert VerifierConfig.from_mapping({"shown": 4, "absent": 0.2}).candidates == 4


@pytest.mark.parametrize(
    "name, kind", [("siamese", TrainConfig), ("verifier", VerifierConfig), ("clouds", CloudConfig)]
)
def test_shipped_recipes_hold_known_settings(name, kind):
    values = read_recipe(name)
    assert name in recipe_names() and kind.from_mapping(values) != TrainConfig()
    assert kind is TrainConfig or set(values) == set(kind().to_dict())


@pytest.mark.parametrize("text", ["[]", "{", "\x00"])
def test_files_that_are_no_recipe(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ConfigError):
        read_recipe(tmp_path / "r.json")
    with pytest.raises(ConfigError, match="one of aerial, clouds, land-cover, representation, siamese"):
        read_recipe(tmp_path / "none.json")


# --- checkpoints ---------------------------------------------------------------------------------


def test_a_state_comes_back_and_another_recipe_is_refused(tmp_path):
    folder = folder_of(tmp_path / "e.keras")
    arrays = {"model": [np.arange(3.0), np.ones((2, 2))], "best": [np.zeros(1)]}
    state = State(step=7, best=(0.5, 0.6), history=[{"step": 7, "loss": 1.5}], arrays=arrays)
    assert load_state(folder, {"a": 1}) is None
    save_state(folder, state, {"recipe": {"steps": 9}})
    back = load_state(folder, {"recipe": {"steps": 9}})
    assert (back.step, back.best, back.history) == (7, (0.5, 0.6), [{"step": 7, "loss": 1.5}])
    for name, values in arrays.items():
        for was, now in zip(values, back.arrays[name], strict=True):
            np.testing.assert_array_equal(was, now)
    with pytest.raises(TrainingError, match=r"recipe.steps was 9 and is 8"):
        load_state(folder, {"recipe": {"steps": 8}})
    whole = (folder / "state.npz").read_bytes()
    (folder / "state.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TrainingError, match="damaged"):
        load_state(folder, {"recipe": {"steps": 9}})


# --- whole runs ----------------------------------------------------------------------------------

SMALL = TrainConfig(
    learned=LearnedConfig(width=8, dim=16),
    tensor=TensorConfig(cell_px=46, dim=12),
    loss="infonce",
    batch=12,
    steps=16,
    warmup_steps=2,
    learning_rate=3e-3,
    crops_per_series=24,
    shuffle=64,
    pool_size=96,
    projection_crops=512,
    validation_queries=40,
    validation_series=4,
    validate_every=8,
    checkpoint_every=6,
    log_every=4,
    compile=False,
    held_out=0.25,
)


def place(number, group=None, side=150):
    """Ground with constant structure while light and season change: two fields in another mixture."""
    rng = np.random.default_rng(number)
    ground = np.stack([fractal(rng, (side, side), beta=1.8, low_px=60) for _ in range(2)], axis=-1)
    dates = []
    for _ in range(3):
        mix = rng.normal(0, 1, (2, 4))
        pixels = 1500 + 350 * ground @ mix + rng.normal(0, 10, (side, side, 4))
        dates.append(np.clip(pixels, 1, 9000).astype(np.uint16))
    name = f"place{number}"
    days = tuple(f"2020-0{i + 1}-01" for i in range(3))
    bands = ("B04", "B03", "B02", "B08")
    own = group_of(name) if group is None else group
    return Series(np.stack(dates), "dn", bands, 0, days, name, overlap_group=own)


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    folder = tmp_path_factory.mktemp("series") / "train"
    write_series((place(i) for i in range(8)), folder, per_shard=3)
    return folder


class Log:
    """Collects progress; may press Ctrl-C."""

    def __init__(self, interrupt_at=None):
        self.steps, self.notes, self.recalls, self.interrupt_at = [], [], [], interrupt_at

    def __call__(self, progress: Progress):
        if progress.note:
            self.notes.append(progress.note)
        elif progress.step:
            self.steps.append((progress.step, progress.loss))
        if progress.recall:
            self.recalls.append((progress.step, progress.recall))
        if progress.step == self.interrupt_at and not progress.note:
            signal.raise_signal(signal.SIGINT)


@pytest.fixture(scope="module")
def trained(series, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "a.keras"
    log = Log()
    return train_encoder(series, out, SMALL, progress=log), log


def test_training_learns_and_writes_an_encoder_that_opens(trained):
    report, log = trained
    assert [s for s, _ in log.steps] == list(range(1, 17))
    assert [s for s, _ in log.recalls] == [0, 8, 16]
    chance = 9 / report.windows * report.patches / max(1, report.patches)
    assert report.recall_at_1 > 5 * chance and report.recall_at_20 >= report.recall_at_1
    assert report.training_free is not None and report.steps == 16
    encoder = load_encoder(report.out)
    assert (encoder.dim, encoder.step_px, encoder.fingerprint) == (28, 8, report.fingerprint)
    lines = report.history.read_text().splitlines()
    assert lines[0] == "step,loss,learning_rate,seconds,recall_at_1,recall_at_20"
    assert [line.split(",")[0] for line in lines[1:]] == ["0", "4", "8", "12", "16"]


def test_the_same_seed_gives_the_same_losses(series, trained, tmp_path):
    log = Log()
    short = replace(SMALL, workers=1)
    train_encoder(series, tmp_path / "b.keras", short, progress=log)
    np.testing.assert_allclose([x for _, x in log.steps], [x for _, x in trained[1].steps], rtol=1e-4)


def test_an_interrupted_run_resumes_to_the_same_weights(series, trained, tmp_path):
    out, log = tmp_path / "stopped.keras", Log(interrupt_at=9)
    with pytest.raises(KeyboardInterrupt, match="again to resume"):
        train_encoder(series, out, SMALL, progress=log)
    assert not out.exists() and log.steps[-1][0] == 9
    with pytest.raises(TrainingError, match="learning_rate was"):
        train_encoder(series, out, replace(SMALL, learning_rate=1e-4), progress=Log())
    again = Log()
    report = train_encoder(series, out, SMALL, progress=again)
    assert [s for s, _ in again.steps] == list(range(10, 17))
    np.testing.assert_allclose([x for _, x in again.steps], [x for _, x in trained[1].steps[9:]], rtol=1e-4)
    probe = np.random.default_rng(0).uniform(-1, 1, (2, 80, 80, 4)).astype("float32")
    mine, theirs = (load_encoder(r.out).embed(probe) for r in (report, trained[0]))
    np.testing.assert_allclose(mine, theirs, atol=1e-3)
    rows_ = report.history.read_text().splitlines()
    assert [line.split(",")[0] for line in rows_[1:]] == ["0", "4", "8", "12", "16"]


def test_outputs_are_not_overwritten_and_finished_runs_not_repeated(series, trained):
    report = trained[0]
    with pytest.raises(OutputExistsError):
        train_encoder(series, report.out, SMALL)
    with pytest.raises(EncoderError, match="keras"):
        train_encoder(series, report.out.with_suffix(".h5"), SMALL)
    report.out.unlink()
    log = Log()
    again = train_encoder(series, report.out, SMALL, progress=log)
    assert not log.steps and again.fingerprint == report.fingerprint


def test_the_plain_model_and_averaged_weights_train_too(series, tmp_path):
    log = Log()
    config = replace(SMALL, arch="plain", steps=24, average=0.5, augment=NOTHING, loss="infonce")
    report = train_encoder(series, tmp_path / "p.keras", config, progress=log)
    losses = [x for _, x in log.steps]
    assert losses[-1] < losses[0] and report.training_free is None
    assert log.recalls[-1][1].in_20 > 0.2


def test_keep_last_writes_the_last_weights(series, tmp_path):
    report = train_encoder(series, tmp_path / "last.keras", replace(SMALL, keep="last"))
    assert report.best_step == report.steps


def test_a_learnable_stem_learns(series, tmp_path):
    config = replace(SMALL, learned=LearnedConfig(width=8, dim=16, stem="learnable"), steps=4, keep="last")
    report = train_encoder(series, tmp_path / "stem.keras", config, progress=Log())
    kernel = np.asarray(load_encoder(report.out).model.get_layer("derivatives").get_weights()[0])
    begun = blank_model(config).get_layer("derivatives").get_weights()[0]
    assert 0 < np.abs(kernel - begun).max() < 0.5


def test_the_plain_model_is_an_encoder():
    encoder = KerasEncoder(plain_model(LearnedConfig(8, 16)), "plain")
    assert (encoder.dim, encoder.step_px) == (16, 8)


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path):
    trainer = Trainer(tmp_path / "state", {}, Schedule(3), Log())
    with pytest.raises(TrainingError, match="loss is nan at step 1"):
        trainer.run_drawn(lambda x: (float("nan"),), lambda rng: (rng.random(2),), np.random.default_rng(0))


def test_the_compiled_step_does_what_the_plain_one_does():
    rng = np.random.default_rng(0)
    pixels = rng.uniform(-1, 1, (8, 64, 64, 4)).astype("float32")
    pixels[2, :, :, 1] = pixels[5, 40:] = np.nan
    losses = []
    for compile_ in (False, True):
        config = replace(SMALL, batch=4, compile=compile_, warmup_steps=0, average=0.9)
        model, draw = blank_model(config), np.random.default_rng(1)
        assign(model.weights, [draw.normal(0, 0.1, w.shape) for w in model.weights], "")
        average = [keras.Variable(v, trainable=False) for v in model.trainable_variables]
        step = compiled_step(model, new_optimizer(model, config), average, config)
        losses.append([step(pixels, ~np.eye(4, dtype=bool)) for _ in range(4)])
        assert losses[-1][-1] < losses[-1][0]
        assert 0 < np.abs(np.asarray(average[0]) - np.asarray(model.trainable_variables[0])).max() < 0.1
    np.testing.assert_allclose(*losses, rtol=1e-3)


def test_the_loss_of_the_learned_half_alone_is_that_of_its_part_of_the_vector():
    rng = np.random.default_rng(0)
    config = replace(SMALL, tensor=TensorConfig(dim=3))
    halves = [unit(rng, 5, 3) * 0.6, unit(rng, 5, 4) * 0.8, unit(rng, 5, 3) * 0.6, unit(rng, 5, 4) * 0.8]
    a, p = np.concatenate(halves[:2], 1), np.concatenate(halves[2:], 1)
    allowed = ~np.eye(5, dtype=bool)
    own = infonce_loss(halves[1] / 0.8, halves[3] / 0.8, allowed, config.temperature)
    together = infonce_loss(a, p, allowed, config.temperature)
    for alone, wanted in ((0, together), (1, own), (0.25, 0.25 * own + 0.75 * together)):
        got = objective(replace(config, branch_loss_weight=alone))(a, p, allowed)
        assert float(got) == pytest.approx(float(wanted), rel=1e-4)


def test_no_place_is_in_two_splits(series, tmp_path):
    split, held = hold_out(series, SMALL)
    ids = np.array([group_of(f"place{i}") for i in range(8)])
    kept_out = split.held(ids, ids)
    assert 0 < kept_out.sum() < 8 and len(held.images) == kept_out.sum()
    apart = tmp_path / "val"
    # Place 20 shows ground of place 2 under another name.
    write_series([place(3), place(20, group=group_of("place2"))], apart)
    split, held = hold_out(series, SMALL, apart)
    assert split.held(ids, ids).tolist() == [False, False, True, True, False, False, False, False]
    assert len(held.images) == 2 and len(held.patches) == 40


def test_one_group_is_held_out_if_the_draw_takes_none(series):
    split, held = hold_out(series, replace(SMALL, held_out=0.0))
    assert len(split.groups) == 1 and len(held.images) == 1


def test_data_that_cannot_be_trained_on_are_refused(series, tmp_path):
    one = tmp_path / "one"
    write_series([place(1)], one)
    with pytest.raises(TrainingError, match="same ground"):
        train_encoder(one, tmp_path / "o.keras", SMALL, progress=Log())
    with pytest.raises(MissingInputError):
        train_encoder(tmp_path / "nowhere", tmp_path / "o.keras", SMALL, progress=Log())
    small = tmp_path / "small"
    write_series([place(1, side=64), place(2, side=64)], small)
    config = replace(SMALL, held_out=0.0, arch="plain")
    with pytest.raises(TrainingError, match="share ground"):
        train_encoder(small, tmp_path / "o.keras", config, progress=Log())


def test_validation_counts_the_right_place_only():
    rng = np.random.default_rng(0)
    image = some_crops(1)[0]
    images = [np.tile(np.roll(image, 17 * i, (0, 1)) * (1 - 0.1 * i), (2, 2, 1)) for i in range(2)]
    images = [i + rng.normal(0, 0.1, i.shape).astype("float32") for i in images]
    patches = np.stack([images[0][8:72, 16:80], images[1][0:64, 24:88], np.zeros((64, 64, 4), np.float32)])
    truth = np.array([[0, 16, 8], [0, 24, 0], [0, 0, 0]])  # the second is in the other image

    encoder = KerasEncoder(plain_model(LearnedConfig(8, 16)), "p")
    found = recall(encoder, ValidationSet(images, patches, truth))
    assert found.first == pytest.approx(1 / 3) and found.patches == 3 and found.windows == 2 * 9 * 9


def test_the_next_round_is_opened_before_the_last_one_ends_and_none_after_the_last():
    opened = [threading.Event() for _ in range(4)]

    def crops(round_):
        opened[round_].set()
        for i in count():
            yield {"anchor": np.float32(i), "place_id": np.int64(i % 5)}

    config = replace(SMALL, pool_size=24, batch=4, checkpoint_every=5, steps=10)
    batches = numbered_batches(crops, config, 0, early_steps=2)
    assert [next(batches)[0] for _ in range(3)] == [0, 1, 2] and not opened[1].is_set()
    assert next(batches)[0] == 3 and opened[1].wait(60)
    assert [step for step, _ in islice(batches, 6)] == [4, 5, 6, 7, 8, 9] and not opened[2].is_set()
    # A step of a round is the same, whether the round was opened early or is the first.
    late = [raw["anchor"] for _, raw in islice(numbered_batches(crops, config, 5, 2), 3)]
    early = [raw["anchor"] for _, raw in islice(numbered_batches(crops, config, 0, 2), 5, 8)]
    np.testing.assert_array_equal(early, late)
    assert next(islice(batches, 1))[0] == 10 and opened[2].is_set()  # whoever goes on gets more


def test_batches_end_with_the_recipe_and_their_threads_with_the_block():
    opened = []

    def crops(round_):
        opened.append(round_)
        yield from (element(i) for i in count())

    config = replace(SMALL, pool_size=24, batch=4, checkpoint_every=6, steps=12, workers=2)
    before = set(threading.enumerate())
    with training_batches(crops, config, 5) as batches:
        assert len(list(batches)) == 7
    assert opened == [0, 1] and set(threading.enumerate()) <= before
    with training_batches(crops, replace(config, steps=10**6), 0) as batches:
        next(batches)
    assert set(threading.enumerate()) <= before


def element(number):
    pixels = np.random.default_rng(number).normal(0, 0.1, (2, 64, 64, 4)).astype("float32")
    ids = dict.fromkeys(("place_id", "overlap_group"), np.int64(number % 5))
    return {"anchor": pixels[0], "positive": pixels[1], **ids, "x": np.int64(number), "y": np.int64(0)}


def test_batches_do_not_depend_on_the_number_of_threads_or_on_where_they_start():
    def crops(round_):
        rng = np.random.default_rng(round_)
        for i in count():
            pixels = rng.normal(0, 0.1, (2, 64, 64, 4)).astype("float32")
            yield {
                "anchor": pixels[0],
                "positive": pixels[1],
                "place_id": np.int64(i % 5),
                "overlap_group": np.int64(i % 5),
                "x": np.int64(i),
                "y": np.int64(0),
            }

    config = replace(SMALL, pool_size=24, batch=4, checkpoint_every=5)
    got = []
    for workers, start, seed in ((1, 0, 0), (3, 0, 0), (2, 4, 0), (1, 0, 1)):
        with training_batches(crops, replace(config, workers=workers, seed=seed), start) as batches:
            got.append([b.pixels for b in islice(batches, 8 - start)])
    for a, b in zip(got[0], got[1], strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(got[0][4], got[2][0])
    assert (got[0][0] != got[3][0]).any()
    steps = [step for step, _ in islice(numbered_batches(crops, config, 3), 5)]
    assert steps == [3, 4, 5, 6, 7]


def test_progress_lines_have_step_loss_rate_and_time_left(capsys):
    show = print_progress(every_s=0)
    show(Progress(5, 10, 0.5, 2.0))
    show(Progress(5, 10, 0.5, 2.0, note="a note"))
    err = capsys.readouterr().err.splitlines()
    assert err == ["training: step 5/10  loss 0.5000  2.0 steps/s  0:02 left", "a note"]
