"""Training of the encoder: checkpoints and small whole runs."""

import signal
import threading
from dataclasses import replace
from itertools import count, islice

import keras
import numpy as np
import pytest
from trainable import NO_AUGMENTATION, SMALL_RECIPE, fractal_crops, unit_vectors

from retrieval.config import (
    LearnedConfig,
    TensorConfig,
)
from retrieval.errors import EncoderError, TrainingError
from retrieval.models.encoder import KerasEncoder, load_encoder
from retrieval.synthetic.noise import fractal
from retrieval.training.batches import (
    numbered_batches,
    training_batches,
)
from retrieval.training.checkpoint import State, assign, folder_of, load_state, save_state
from retrieval.training.losses import infonce_loss
from retrieval.training.networks import blank_model, plain_model
from retrieval.training.siamese import compiled_step, new_optimizer, objective, train_encoder
from retrieval.training.trainer import Progress, Schedule, Trainer, print_progress
from retrieval.training.validate import ValidationSet, hold_out, recall
from tfrecords.errors import MissingInputError, OutputExistsError
from tfrecords.schema import Series, group_of
from tfrecords.write import write_series

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
    return train_encoder(series, out, SMALL_RECIPE, progress=log), log


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
    short = replace(SMALL_RECIPE, workers=1)
    train_encoder(series, tmp_path / "b.keras", short, progress=log)
    assert log.steps == trained[1].steps


def test_an_interrupted_run_resumes_to_the_same_weights(series, trained, tmp_path):
    out, log = tmp_path / "stopped.keras", Log(interrupt_at=9)
    with pytest.raises(KeyboardInterrupt, match="again to resume"):
        train_encoder(series, out, SMALL_RECIPE, progress=log)
    assert not out.exists() and log.steps[-1][0] == 9
    with pytest.raises(TrainingError, match="learning_rate was"):
        train_encoder(series, out, replace(SMALL_RECIPE, learning_rate=1e-4), progress=Log())
    again = Log()
    report = train_encoder(series, out, SMALL_RECIPE, progress=again)
    assert [s for s, _ in again.steps] == list(range(10, 17))
    assert again.steps == trained[1].steps[9:]
    probe = np.random.default_rng(0).uniform(-1, 1, (2, 80, 80, 4)).astype("float32")
    mine, theirs = (load_encoder(r.out).embed(probe) for r in (report, trained[0]))
    np.testing.assert_array_equal(mine, theirs)
    rows_ = report.history.read_text().splitlines()
    assert [line.split(",")[0] for line in rows_[1:]] == ["0", "4", "8", "12", "16"]


def test_outputs_are_not_overwritten_and_finished_runs_not_repeated(series, trained):
    report = trained[0]
    with pytest.raises(OutputExistsError):
        train_encoder(series, report.out, SMALL_RECIPE)
    with pytest.raises(EncoderError, match="keras"):
        train_encoder(series, report.out.with_suffix(".h5"), SMALL_RECIPE)
    report.out.unlink()
    log = Log()
    again = train_encoder(series, report.out, SMALL_RECIPE, progress=log)
    assert not log.steps and again.fingerprint == report.fingerprint


def test_the_plain_model_and_averaged_weights_train_too(series, tmp_path):
    log = Log()
    config = replace(
        SMALL_RECIPE, arch="plain", steps=24, average=0.5, augment=NO_AUGMENTATION, loss="infonce"
    )
    report = train_encoder(series, tmp_path / "p.keras", config, progress=log)
    losses = [x for _, x in log.steps]
    assert losses[-1] < losses[0] and report.training_free is None
    assert log.recalls[-1][1].in_20 > 0.2


def test_keep_last_writes_the_last_weights(series, tmp_path):
    report = train_encoder(series, tmp_path / "last.keras", replace(SMALL_RECIPE, keep="last"))
    assert report.best_step == report.steps


def test_a_learnable_stem_learns(series, tmp_path):
    config = replace(
        SMALL_RECIPE, learned=LearnedConfig(width=8, dim=16, stem="learnable"), steps=4, keep="last"
    )
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
        config = replace(SMALL_RECIPE, batch=4, compile=compile_, warmup_steps=0, average=0.9)
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
    config = replace(SMALL_RECIPE, tensor=TensorConfig(dim=3))
    halves = [
        unit_vectors(rng, 5, 3) * 0.6,
        unit_vectors(rng, 5, 4) * 0.8,
        unit_vectors(rng, 5, 3) * 0.6,
        unit_vectors(rng, 5, 4) * 0.8,
    ]
    a, p = np.concatenate(halves[:2], 1), np.concatenate(halves[2:], 1)
    allowed = ~np.eye(5, dtype=bool)
    own = infonce_loss(halves[1] / 0.8, halves[3] / 0.8, allowed, config.temperature)
    together = infonce_loss(a, p, allowed, config.temperature)
    for alone, wanted in ((0, together), (1, own), (0.25, 0.25 * own + 0.75 * together)):
        got = objective(replace(config, branch_loss_weight=alone))(a, p, allowed)
        assert float(got) == pytest.approx(float(wanted), rel=1e-4)


def test_no_place_is_in_two_splits(series, tmp_path):
    split, held = hold_out(series, SMALL_RECIPE)
    ids = np.array([group_of(f"place{i}") for i in range(8)])
    kept_out = split.held(ids, ids)
    assert 0 < kept_out.sum() < 8 and len(held.images) == kept_out.sum()
    apart = tmp_path / "val"
    # Place 20 shows ground of place 2 under another name.
    write_series([place(3), place(20, group=group_of("place2"))], apart)
    split, held = hold_out(series, SMALL_RECIPE, apart)
    assert split.held(ids, ids).tolist() == [False, False, True, True, False, False, False, False]
    assert len(held.images) == 2 and len(held.patches) == 40


def test_one_group_is_held_out_if_the_draw_takes_none(series):
    split, held = hold_out(series, replace(SMALL_RECIPE, held_out=0.0))
    assert len(split.groups) == 1 and len(held.images) == 1


def test_data_that_cannot_be_trained_on_are_refused(series, tmp_path):
    one = tmp_path / "one"
    write_series([place(1)], one)
    with pytest.raises(TrainingError, match="same ground"):
        train_encoder(one, tmp_path / "o.keras", SMALL_RECIPE, progress=Log())
    with pytest.raises(MissingInputError):
        train_encoder(tmp_path / "nowhere", tmp_path / "o.keras", SMALL_RECIPE, progress=Log())
    small = tmp_path / "small"
    write_series([place(1, side=64), place(2, side=64)], small)
    config = replace(SMALL_RECIPE, held_out=0.0, arch="plain")
    with pytest.raises(TrainingError, match="share ground"):
        train_encoder(small, tmp_path / "o.keras", config, progress=Log())


def test_validation_counts_the_right_place_only():
    rng = np.random.default_rng(0)
    image = fractal_crops(1)[0]
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

    config = replace(SMALL_RECIPE, pool_size=24, batch=4, checkpoint_every=5, steps=10)
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

    config = replace(SMALL_RECIPE, pool_size=24, batch=4, checkpoint_every=6, steps=12, workers=2)
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

    config = replace(SMALL_RECIPE, pool_size=24, batch=4, checkpoint_every=5)
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
