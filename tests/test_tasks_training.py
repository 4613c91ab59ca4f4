"""The classifier: its loss, its training from few labels, its folder, and the probabilities that it gives."""

from __future__ import annotations

import json
import signal

import keras
import numpy as np
import pytest
from labelled import CLASSES, pictures

from retrieval.config import ClassifierConfig
from retrieval.errors import ExamplesError, ModelError, TrainingError
from retrieval.evaluation.temperature import (
    fit_temperature,
    held_out_calibration_error,
    negative_log_likelihood,
    softmax,
)
from retrieval.tasks.classifier import load_classifier, oriented
from retrieval.tasks.images import ImageSet, LabelledSet
from retrieval.tasks.model_folder import MODEL
from retrieval.tasks.network import pixel_statistics
from retrieval.tasks.optimization import class_weights
from retrieval.tasks.semi_supervised import aligned, confidence_weight, cross_entropy
from retrieval.tasks.training import best_threshold, rows_of_step, train_classifier
from tfrecords.errors import BandsError, ManifestError, OutputExistsError

TINY = ClassifierConfig(
    width=4,
    blocks=1,
    steps=6,
    batch=6,
    unlabelled_batch=6,
    warmup_steps=2,
    validate_every=3,
    average=0.9,
    compile=False,
)


def a_set(count, seed=0, classes=CLASSES, name="labelled", side=16):
    pixels, labels = pictures(count, classes, seed, side=side)
    images = ImageSet(pixels, "byte", ("B04", "B03", "B02"), tuple(map(str, range(count))), name)
    return LabelledSet(images, labels, classes)


def train(out, config=TINY, quiet=True, **more):
    options = {"unlabelled": a_set(24, 1).images, "validation": a_set(12, 2, name="validation")} | more
    return train_classifier(a_set(12), out, config, progress=lambda _: None, **options)


def weights_of(out):
    return [np.array(w) for w in load_classifier(out).network.get_weights()]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(weights_of(a), weights_of(b), strict=True))


# --- loss -------------------------------------------------------------------------------------------


def test_alignment_moves_the_mean_guess_to_the_prior(rng):
    guess = rng.dirichlet([1, 2, 3], 4000).astype(np.float32)
    prior = np.array([0.5, 0.3, 0.2], np.float32)
    moved = np.asarray(aligned(guess, guess.mean(0), prior))
    np.testing.assert_allclose(moved.sum(1), 1, atol=1e-5)
    assert np.abs(moved.mean(0) - prior).max() < np.abs(guess.mean(0) - prior).max() / 3
    np.testing.assert_allclose(np.asarray(aligned(guess, prior, prior)), guess, atol=1e-6)


def test_confident_guesses_weigh_one_and_others_less():
    confidence = np.array([0.9, 0.6, 0.5, 0.2], np.float32)
    weight = np.asarray(confidence_weight(confidence, np.float32(0.6), np.float32(0.04)))
    np.testing.assert_allclose(weight, np.exp(-np.array([0, 0, 0.01, 0.16]) / (2 * 0.04 / 4)), rtol=1e-5)


def test_cross_entropy_agrees_with_its_definition(rng):
    logits = rng.normal(0, 5, (7, 4)).astype(np.float32)
    target = rng.dirichlet(np.ones(4), 7).astype(np.float32)
    expected = -(target * np.log(softmax(logits))).sum(1)
    np.testing.assert_allclose(np.asarray(cross_entropy(logits, target)), expected, rtol=1e-4)


def test_rare_classes_weigh_more_and_the_mean_weight_is_one():
    counts = np.array([90, 10, 1])
    for balance, ratio in ((0.0, 1.0), (0.5, 3.0), (1.0, 9.0)):
        weights = class_weights(counts, balance)
        assert weights[1] / weights[0] == pytest.approx(ratio, rel=1e-5)
        assert (weights * counts).sum() / counts.sum() == pytest.approx(1, rel=1e-5)


def test_statistics_are_mean_and_variance_of_each_band(rng):
    pixels = rng.integers(0, 10000, (300, 16, 17, 4)).astype(np.uint16)
    mean, variance = pixel_statistics(pixels, 10000.0)
    np.testing.assert_allclose(mean, pixels.mean((0, 1, 2)) / 10000, rtol=1e-5)
    np.testing.assert_allclose(variance, pixels.var((0, 1, 2)) / 1e8, rtol=1e-4)


def test_batches_pass_over_all_rows_before_any_row_returns():
    rows = np.concatenate([rows_of_step(step, 5, 12, 0, 1) for step in range(24)])
    for part in np.split(rows, 10):
        assert sorted(part) == list(range(12))
    assert not np.array_equal(rows[:12], rows[12:24])
    assert len(rows_of_step(3, 30, 12, 0, 1)) == 30
    assert not np.array_equal(rows_of_step(0, 12, 12, 0, 1), rows_of_step(0, 12, 12, 0, 2))
    assert not np.array_equal(rows_of_step(0, 12, 12, 0, 1), rows_of_step(0, 12, 12, 1, 1))


# --- training ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short training, and its report."""
    out = tmp_path_factory.mktemp("trained") / "model"
    return out, train(out)


def test_few_labels_and_many_images_without_give_a_good_classifier(tmp_path):
    config = ClassifierConfig(width=8, blocks=1, steps=60, batch=12, unlabelled_batch=24, warmup_steps=5)
    validation = a_set(60, 2, name="validation")
    report = train(tmp_path / "model", config, unlabelled=a_set(120, 1).images, validation=validation)
    assert report.accuracy >= 0.95
    classifier = load_classifier(tmp_path / "model")
    probability = classifier.probabilities(a_set(60, 3).images)
    assert (classifier.choose(probability) == a_set(60, 3).labels).mean() >= 0.95


def test_the_report_and_the_history_agree_with_the_model(trained):
    out, report = trained
    validation = a_set(12, 2)
    probability = load_classifier(out).probabilities(validation.images)
    assert report.accuracy == pytest.approx((probability.argmax(1) == validation.labels).mean())
    assert (report.labelled, report.unlabelled, report.validation, report.steps) == (12, 24, 12, 6)
    rows = report.history.read_text().splitlines()
    assert rows[0].split(",")[-1] == "accuracy"
    assert [row.split(",")[0] for row in rows[1:]] == ["3", "6"]
    assert all(0 <= float(row.split(",")[-1]) <= 1 for row in rows[1:])


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path, trained):
    train(tmp_path / "b")
    assert same(trained[0], tmp_path / "b")
    train(tmp_path / "c", ClassifierConfig(**TINY.to_dict() | {"seed": 1}))
    assert not same(trained[0], tmp_path / "c")


def test_shuffled_validation_labels_change_no_weight(tmp_path, trained):
    validation = a_set(12, 2, name="validation")
    shuffled = LabelledSet(validation.images, np.roll(validation.labels, 1), CLASSES)
    report = train(tmp_path / "b", validation=shuffled)
    assert same(trained[0], tmp_path / "b")
    assert report.accuracy != trained[1].accuracy or report.temperature != trained[1].temperature
    train(tmp_path / "c", validation=None)
    assert same(trained[0], tmp_path / "c")


def test_an_interrupted_run_resumes_to_the_same_weights(tmp_path, trained):
    def interrupt(progress):
        if progress.step == 4 and not progress.note:
            signal.raise_signal(signal.SIGINT)

    sets = {"unlabelled": a_set(24, 1).images, "validation": a_set(12, 2, name="validation")}
    with pytest.raises(KeyboardInterrupt, match="stopped after step 4 of 6"):
        train_classifier(a_set(12), tmp_path / "b", TINY, progress=interrupt, **sets)
    assert not (tmp_path / "b").exists()
    with pytest.raises(TrainingError, match="another training"):
        train(tmp_path / "b", unlabelled=None)
    train(tmp_path / "b")
    assert same(trained[0], tmp_path / "b")


def test_patience_ends_the_training_and_changes_no_step(tmp_path):
    longer = TINY.to_dict() | {"steps": 40, "validate_every": 1}
    report = train(tmp_path / "a", ClassifierConfig(**longer | {"patience": 2, "learning_rate": 0.0}))
    assert report.stopped_early and report.steps == 3
    full = train(tmp_path / "b", ClassifierConfig(**longer | {"steps": 3}))
    assert not full.stopped_early


def test_training_needs_no_unlabelled_and_no_validation_images(tmp_path):
    report = train(tmp_path / "a", unlabelled=None, validation=None)
    assert (report.accuracy, report.ece, report.temperature) == (None, None, 1.0)
    assert load_classifier(tmp_path / "a").description.temperature == 1.0


def test_unlabelled_images_that_validate_are_left_out(tmp_path):
    validation = a_set(12, 2, name="validation")
    both = np.concatenate([a_set(24, 1).images.pixels, validation.images.pixels])
    images = ImageSet(both, "byte", ("B04", "B03", "B02"), tuple(map(str, range(36))), "unlabelled")
    notes = []
    report = train_classifier(
        a_set(12),
        tmp_path / "a",
        TINY,
        unlabelled=images,
        validation=validation,
        progress=lambda progress: notes.append(progress.note),
    )
    assert report.unlabelled == 24
    assert "leaving out 12 that are validation images" in notes[0]


def test_two_classes_get_a_threshold(tmp_path):
    two = {n: a_set(12, n, CLASSES[:2], f"set {n}") for n in range(3)}
    report = train_classifier(
        two[0],
        tmp_path / "a",
        TINY,
        unlabelled=two[1].images,
        validation=two[2],
        progress=lambda _: None,
    )
    classifier = load_classifier(tmp_path / "a")
    assert 0 < report.threshold < 1 and classifier.description.threshold == report.threshold
    probability = classifier.probabilities(two[2].images)
    np.testing.assert_array_equal(classifier.choose(probability), probability[:, 1] >= report.threshold)


def test_sets_that_do_not_fit_are_refused_before_anything_is_written(tmp_path):
    four = ImageSet(
        np.zeros((4, 16, 16, 4), np.uint8), "byte", ("B04", "B03", "B02", "B08"), ("0", "1", "2", "3"), "four"
    )
    with pytest.raises(BandsError, match="four: bands B04 B03 B02 B08"):
        train(tmp_path / "a", unlabelled=four)
    with pytest.raises(ExamplesError, match="image 0 is image 0 of labelled"):
        train(tmp_path / "a", validation=a_set(6, 0, name="validation"))
    with pytest.raises(ExamplesError, match="classes Field, Forest;"):
        train(tmp_path / "a", validation=a_set(6, 2, CLASSES[:2], "validation"))
    assert not list(tmp_path.iterdir())
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mine.txt").write_text("x")
    with pytest.raises(OutputExistsError):
        train(tmp_path / "a")


# --- temperature and threshold ----------------------------------------------------------------------


def test_the_temperature_is_the_best_of_a_grid(rng):
    labels = rng.integers(0, 4, 500)
    logits = 6 * (np.eye(4)[labels] + rng.normal(0, 0.8, (500, 4)))
    grid = np.exp(np.linspace(np.log(0.05), np.log(20), 2000))
    best = grid[np.argmin([negative_log_likelihood(logits, labels, t) for t in grid])]
    assert fit_temperature(logits, labels) == pytest.approx(best, rel=0.01)
    assert held_out_calibration_error(logits, labels) < 0.06


def test_the_threshold_is_the_best_of_all(rng):
    for _ in range(20):
        labels = rng.integers(0, 2, 40)
        probability = np.clip(0.3 * labels + rng.uniform(0, 0.7, 40), 0, 1)

        def f1(threshold, probability=probability, labels=labels):
            found = probability >= threshold
            return 2 * (found & (labels == 1)).sum() / max(found.sum() + labels.sum(), 1)

        best = best_threshold(probability, labels)
        assert f1(best) == pytest.approx(max(f1(t) for t in np.linspace(0, 1, 2001)), abs=1e-9)
    assert best_threshold(np.array([0.1, 0.9]), np.array([0, 1])) == 0.5


# --- the folder -------------------------------------------------------------------------------------


def test_orientations_are_the_eight_flips_and_rotations(rng):
    square, oblong = rng.normal(size=(2, 6, 6, 3)), rng.normal(size=(2, 6, 5, 3))
    assert len({view.tobytes() for view in oriented(square, 8)}) == 8
    assert len({view.tobytes() for view in oriented(oblong, 8)}) == 4
    np.testing.assert_array_equal(next(oriented(square, 1)), square)
    turned = {np.rot90(square, turn, (1, 2)).tobytes() for turn in range(4)}
    assert turned < {view.tobytes() for view in oriented(square, 8)}


def test_with_all_orientations_a_rotated_image_gets_the_same_answer(trained):
    classifier, pixels = load_classifier(trained[0]), a_set(6, 4).images.pixels
    expected = classifier.logits(pixels, 8)
    for view in oriented(pixels, 8):
        np.testing.assert_allclose(classifier.logits(view, 8), expected, atol=2e-5)


def test_plain_keras_opens_the_model_in_safe_mode(trained):
    out, _ = trained
    model = keras.saving.load_model(out / MODEL, compile=False, safe_mode=True)
    pixels = a_set(6, 4).images.pixels
    logits = np.asarray(model(pixels.astype(np.float32) / 255))
    np.testing.assert_allclose(load_classifier(out).logits(pixels, 1), logits, atol=1e-5)
    assert not any(type(layer).__name__ == "Lambda" for layer in model.layers)


def test_the_manifest_describes_the_model(trained):
    page = json.loads((trained[0] / "manifest.json").read_text())
    assert page["kind"] == "classifier"
    expected = {
        "classes": list(CLASSES),
        "bands": ["B04", "B03", "B02"],
        "size": [16, 16],
        "form": "byte",
        "threshold": None,
        "licence": "not stated",
        "temperature": trained[1].temperature,
        "orientations": 4,
        "dn_range": None,
    }
    assert page["extra"] == expected
    assert page["counts"] == {"labelled": 12, "unlabelled": 24, "steps": 6}


def test_a_model_of_another_kind_or_with_code_is_refused(tmp_path, trained):
    from tfrecords.artifacts import writing_folder

    page = json.loads((trained[0] / "manifest.json").read_text())["extra"]

    def folder(name, model, **changes):
        with writing_folder(tmp_path / name, kind="classifier", config={}) as made:
            with made.part(MODEL) as path:
                model.save(path)
            made.extra |= page | changes
        return tmp_path / name

    shape = keras.Input((16, 16, 3))
    code = keras.layers.Lambda(lambda x: x[:, 0, 0], output_shape=(3,))
    with pytest.raises(ModelError, match="safe mode"):
        load_classifier(folder("code", keras.Model(shape, code(shape))))
    pooled = keras.layers.GlobalAveragePooling2D()(shape)
    load_classifier(folder("good", keras.Model(shape, pooled)))
    with pytest.raises(ModelError, match="its manifest states"):
        load_classifier(folder("other", keras.Model(shape, pooled), classes=["a", "b"]))
    with pytest.raises(ManifestError, match="describes no classifier"):
        load_classifier(folder("none", keras.Model(shape, pooled), form="odd"))


def test_a_changed_byte_is_found(tmp_path, trained):
    import shutil

    shutil.copytree(trained[0], tmp_path / "m")
    raw = bytearray((tmp_path / "m" / MODEL).read_bytes())
    raw[len(raw) // 2] ^= 1
    (tmp_path / "m" / MODEL).write_bytes(raw)
    with pytest.raises(ManifestError, match=MODEL):
        load_classifier(tmp_path / "m")
