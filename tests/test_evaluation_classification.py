"""Figures of a classifier: against slow restatements and hand-computed cases."""

from __future__ import annotations

import json

import numpy as np
import pytest

from retrieval.errors import ExamplesError
from retrieval.evaluation.calibration_fit import expected_calibration_error
from retrieval.evaluation.classification import likely_label_errors, measure, worst_mistakes

CLASSES = ("a", "b", "c")


def answers_of(rng, n=200, k=3, skill=2.0):
    labels = rng.integers(0, k, n)
    logits = rng.normal(0, 1, (n, k)) + skill * np.eye(k)[labels]
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return probability, labels, probability.argmax(1)


def slow_class(labels, answers, row):
    tp = sum(1 for t, a in zip(labels, answers, strict=True) if t == row and a == row)
    fp = sum(1 for t, a in zip(labels, answers, strict=True) if t != row and a == row)
    fn = sum(1 for t, a in zip(labels, answers, strict=True) if t == row and a != row)
    tn = len(labels) - tp - fp - fn
    root = ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    return {
        "iou": tp / (tp + fp + fn),
        "f1": 2 * tp / (2 * tp + fp + fn),
        "precision": tp / (tp + fp),
        "recall": tp / (tp + fn),
        "mcc": (tp * tn - fp * fn) / root,
    }


def test_all_figures_agree_with_a_slow_restatement(rng):
    probability, labels, answers = answers_of(rng)
    page = measure(probability, labels, answers, CLASSES, resamples=20).to_dict()
    f1, iou = [], []
    for row, name in enumerate(CLASSES):
        slow = slow_class(labels, answers, row)
        for figure, value in slow.items():
            assert page["classes"][name][figure]["value"] == pytest.approx(value, abs=1e-6)
        assert page["classes"][name]["support"] == (labels == row).sum()
        f1.append(slow["f1"])
        iou.append(slow["iou"])
    assert page["accuracy"]["value"] == pytest.approx(np.mean(labels == answers), abs=1e-6)
    assert page["macro_f1"]["value"] == pytest.approx(np.mean(f1), abs=1e-6)
    assert page["miou"]["value"] == pytest.approx(np.mean(iou), abs=1e-6)
    ece = expected_calibration_error(probability.max(1), labels == answers)
    assert page["ece"]["value"] == pytest.approx(ece, abs=1e-6)
    counted = [[int(((labels == t) & (answers == a)).sum()) for a in range(3)] for t in range(3)]
    assert page["confusion"] == counted
    assert set(page) == {"accuracy", "macro_f1", "ece", "miou", "classes", "confusion"}
    json.dumps(page, allow_nan=False)


def test_an_interval_holds_the_figure_and_narrows_with_more_images(rng):
    widths = []
    for n in (100, 1600):
        probability, labels, answers = answers_of(rng, n)
        figures = measure(probability, labels, answers, CLASSES)
        for measured in (figures.accuracy, figures.macro_f1, figures.miou, figures.by_class["a"].f1):
            assert measured.low < measured.value < measured.high and measured.n == n
        widths.append(figures.accuracy.high - figures.accuracy.low)
        share = figures.accuracy.value
        normal = 2 * 1.96 * np.sqrt(share * (1 - share) / n)
        assert widths[-1] == pytest.approx(normal, rel=0.15)
    assert widths[1] < widths[0] / 3


def test_a_class_without_images_has_no_recall_and_does_not_count(rng):
    probability, labels, answers = answers_of(rng, skill=9.0)
    keep = (labels != 2) & (answers != 2)
    page = measure(probability[keep], labels[keep], answers[keep], CLASSES, resamples=20).to_dict()
    assert page["classes"]["c"]["recall"]["value"] is None and page["classes"]["c"]["support"] == 0
    both = [page["classes"][name]["f1"]["value"] for name in "ab"]
    assert page["macro_f1"]["value"] == pytest.approx(np.mean(both), abs=1e-6)
    with pytest.raises(ExamplesError, match="no labelled image"):
        measure(probability[:0], labels[:0], answers[:0], CLASSES)


def test_areas_under_the_curves_agree_with_their_definitions(rng):
    for rounding in (8, 1):  # 1: many ties
        labels = rng.integers(0, 2, 60)
        score = np.round(np.clip(0.3 * labels + rng.uniform(0, 0.7, 60), 0, 1), rounding)
        probability = np.c_[1 - score, score]
        curves = measure(
            probability, labels, (score >= 0.4).astype(int), ("no", "yes"), threshold=0.4, resamples=50
        ).curves
        pairs = [
            1.0 if p > q else 0.5 if p == q else 0.0 for p in score[labels == 1] for q in score[labels == 0]
        ]
        assert curves.roc_auc.value == pytest.approx(np.mean(pairs))
        precision, former = 0.0, 0.0
        for threshold in sorted(set(score), reverse=True):
            found = score >= threshold
            recall = (found & (labels == 1)).sum() / labels.sum()
            precision += (recall - former) * (found & (labels == 1)).sum() / found.sum()
            former = recall
        assert curves.average_precision.value == pytest.approx(precision)
        assert curves.roc_auc.low < curves.roc_auc.value < curves.roc_auc.high
        for row, threshold in enumerate(curves.thresholds):
            found = score >= threshold
            assert curves.recall[row] == pytest.approx((found & (labels == 1)).sum() / labels.sum())
            wrong = (found & (labels == 0)).sum() / (labels == 0).sum()
            assert curves.false_positive_rate[row] == pytest.approx(wrong)


def test_the_most_confident_mistakes_come_first(rng):
    probability, labels, answers = answers_of(rng)
    rows = worst_mistakes(probability, labels, answers, 5)
    confidence = probability[rows, answers[rows]]
    assert len(rows) == 5 and (labels[rows] != answers[rows]).all()
    assert (np.diff(confidence) <= 0).all()
    wrong = labels != answers
    assert confidence[0] == probability[wrong].max()
    assert len(worst_mistakes(probability, labels, labels, 5)) == 0


def test_swapped_labels_are_found(rng):
    probability, labels, _ = answers_of(rng, 300, skill=8.0)
    swapped = labels.copy()
    rows = np.array([3, 77, 150, 222])
    swapped[rows] = (swapped[rows] + 1) % 3
    found = likely_label_errors(probability, swapped, 10)
    assert set(rows) <= set(found.tolist()) and len(found) < 10
    assert len(likely_label_errors(probability, labels, 10)) < 5
