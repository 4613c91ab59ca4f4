"""The evaluation of a classifier: its JSON, its page, and the command that writes them."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
from browsing import js, needs_browser
from labelled import CLASSES, write_npz
from pages import EVIL, Outline
from typer.testing import CliRunner

from retrieval.cli import app
from retrieval.evaluation.classification import measure
from retrieval.report.classification_page import Answers, confusion_matrix, write_evaluation_page
from retrieval.tasks.classifier import Classifier, Description, save_classifier

BANDS = ("B04", "B03", "B02")


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments], prog_name="retrieve")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of three classes and one of two, whose answer is the band with the largest mean."""
    out = tmp_path_factory.mktemp("evaluation")
    for name, classes in (("three", CLASSES), ("two", CLASSES[:2])):
        pixels = keras.Input((16, 16, 3))
        bands = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(8.0)(pixels))
        pick = keras.layers.Dense(len(classes), use_bias=False, kernel_initializer="identity")(bands)
        threshold = 0.5 if len(classes) == 2 else None
        description = Description(classes, BANDS, (16, 16), "byte", threshold=threshold)
        save_classifier(Classifier(keras.Model(pixels, pick), description, name), out / name, {}, {})
    return out


@pytest.fixture
def examples(tmp_path, rng):
    """Images whose answers are known, with three labels that are wrong."""
    pixels = rng.integers(0, 200, (30, 16, 16, 3)).astype(np.uint8)
    truth = np.arange(30) % 3
    pixels[np.arange(30), ..., truth] = 250
    labels = truth.copy()
    labels[[4, 11, 20]] = (labels[[4, 11, 20]] + 1) % 3
    return write_npz(tmp_path / "valid.npz", pixels, labels), truth, labels


def test_the_command_prints_the_pinned_object(folder, examples):
    path, truth, labels = examples
    done = run("classify", "evaluate", path, "--model", folder / "three", "--json")
    assert done.exit_code == 0, done.output
    page = json.loads(done.stdout)
    assert set(page) == {"accuracy", "macro_f1", "ece", "miou", "classes", "confusion"}
    assert set(page["accuracy"]) == {"value", "low", "high", "n"}
    assert page["accuracy"]["value"] == pytest.approx(0.9) and page["accuracy"]["n"] == 30
    assert set(page["classes"]) == set(CLASSES)
    assert set(page["classes"]["Field"]) == {"iou", "f1", "precision", "recall", "mcc", "support"}
    expected = [[int(((labels == t) & (truth == a)).sum()) for a in range(3)] for t in range(3)]
    assert page["confusion"] == expected
    text = run("classify", "evaluate", path, "--model", folder / "three").stdout
    assert text.startswith("30 images: accuracy 0.900 (0.")


def test_the_page_shows_figures_mistakes_and_suspect_labels(tmp_path, folder, examples):
    out = tmp_path / "page.html"
    done = run("classify", "evaluate", examples[0], "--model", folder / "three", "--out", out)
    assert done.exit_code == 0 and f"see {out}" in done.stdout
    html = out.read_text(encoding="utf-8")
    outline = Outline(html)
    assert outline.problems == []
    for text in ("3 of 3 wrong answers", "Image 4<", "Image 11<", "Image 20<", "0.900", "labelled Water"):
        assert text in html
    mistakes, suspects = html.split('id="labels"')
    assert all(f"Image {n}<" in mistakes for n in (4, 11, 20))
    assert any(f"Image {n}<" in suspects for n in (4, 11, 20)) and "The model doubts no label" not in suspects
    again = run("classify", "evaluate", examples[0], "--model", folder / "three", "--out", out)
    assert again.exit_code == 1 and "--overwrite" in again.stderr
    other = run("classify", "evaluate", examples[0], "--model", folder / "three", "--out", tmp_path / "x.txt")
    assert other.exit_code == 1 and "Expected .html" in other.stderr


def test_two_classes_have_a_threshold_and_curves(tmp_path, folder, rng):
    pixels = rng.integers(0, 256, (40, 16, 16, 3)).astype(np.uint8)
    pixels[..., 1] //= 2
    labels = np.arange(40) % 2
    pixels[labels == 1, ..., 1] += 60
    path, out = write_npz(tmp_path / "v.npz", pixels, labels), tmp_path / "p.html"
    evaluate = ["classify", "evaluate", path, "--model", folder / "two", "--json", "--threshold"]
    loose = json.loads(run(*evaluate, 0.0).stdout)
    assert loose["threshold"] == 0.0
    assert loose["classes"]["Forest"]["recall"]["value"] == 1.0
    strict = json.loads(run(*evaluate, 1.0, "--out", out).stdout)
    assert strict["classes"]["Forest"]["recall"]["value"] == 0.0
    assert strict["classes"]["Forest"]["precision"]["value"] is None
    assert strict["roc_auc"] == loose["roc_auc"] and 0.9 < loose["roc_auc"]["value"] <= 1
    assert "ROC curve" in out.read_text() and "Precision and recall" in out.read_text()
    done = run("classify", "evaluate", path, "--model", folder / "three", "--threshold", 0.5)
    assert done.exit_code == 2 and "two classes" in done.stderr


def test_labels_outside_of_the_model_are_refused(tmp_path, folder, examples):
    with np.load(examples[0]) as arrays:
        np.savez(tmp_path / "v.npz", x=arrays["pixels"], labels=np.array(["Snow"] * 30))
    done = run("classify", "evaluate", tmp_path / "v.npz", "--model", folder / "three")
    assert done.exit_code == 1 and "'Snow' of image 0 is not among the classes" in done.stderr


def test_names_out_of_files_cannot_change_the_page(tmp_path, rng):
    classes, labels = (EVIL, "b"), np.array([0, 1, 1, 0])
    probability = rng.dirichlet([1, 1], 4)
    answers = probability.argmax(1)
    figures = measure(probability, labels, answers, classes, resamples=5)
    pixels = rng.integers(0, 9000, (4, 16, 16, 2)).astype(np.uint16)
    shown = Answers(probability, labels, answers, pixels, ("B08", EVIL), (EVIL, "1", "2", "3"))
    write_evaluation_page(tmp_path / "p.html", figures, shown, title=EVIL)
    html = (tmp_path / "p.html").read_text()
    assert Outline(html).problems == [] and "<script" not in html


def test_the_matrix_holds_every_number(rng):
    labels, answers = rng.integers(0, 3, 50), rng.integers(0, 3, 50)
    figures = measure(np.full((50, 3), 1 / 3), labels, answers, CLASSES, resamples=5)
    matrix = confusion_matrix(figures)
    assert [row[1:] for row in matrix.table.rows] == figures.confusion.tolist()
    texts = [m.text for m in matrix.marks if m.tag == "text" and m.text.isdigit()]
    assert sorted(map(int, texts)) == sorted(n for n in figures.confusion.ravel().tolist() if n)


@needs_browser
@pytest.mark.parametrize("count", [2, 10])
def test_cells_of_the_matrix_have_one_size_and_the_page_fits(browser, tmp_path, rng, count):
    classes = tuple(f"HerbaceousVegetation{n}" for n in range(count))
    labels, answers = rng.integers(0, count, 60), rng.integers(0, count, 60)
    probability = np.full((60, count), 1 / count)
    threshold = 0.5 if count == 2 else None
    figures = measure(probability, labels, answers, classes, threshold=threshold, resamples=5)
    pixels, ids = np.zeros((60, 16, 16, 3), np.uint8), tuple(map(str, range(60)))
    shown = Answers(probability, labels, answers, pixels, BANDS, ids)
    write_evaluation_page(tmp_path / "p.html", figures, shown, title="page")
    for width in (1280, 380):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get((tmp_path / "p.html").as_uri())
        sides = js(
            browser,
            "[...document.querySelectorAll('.matrix .cell')].map(c => c.getBoundingClientRect().width)",
        )
        assert len(sides) == count**2 and set(sides) == {44}
        assert js(browser, "document.documentElement.scrollWidth <= innerWidth")
