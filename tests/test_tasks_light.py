"""Unlabelled images of another processing level: brought into the light of the labelled ones, and of help."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from labelled import CLASSES, pictures

from retrieval.config import ClassifierConfig
from retrieval.tasks.classifier import load_classifier
from retrieval.tasks.images import ImageSet, LabelledSet
from retrieval.tasks.light import compare_light, in_light_of
from retrieval.tasks.training import train_classifier

AIR, TRANSMISSION = np.array([18, 40, 60]), np.array([0.92, 0.89, 0.85])
"""Light of the air, in steps of 8 bits, and the share that passes the air. Level-2A removes both."""


def a_set(count, seed, noise=110.0):
    pixels, labels = pictures(count, CLASSES, seed, side=16, noise=noise)
    images = ImageSet(pixels, "byte", ("B04", "B03", "B02"), tuple(map(str, range(count))), "images")
    return LabelledSet(images, labels, CLASSES)


def as_level_2a(images):
    ground = (images.pixels.astype(np.float64) - AIR) / TRANSMISSION
    return replace(images, pixels=np.rint(np.clip(ground, 0, 255)).astype(np.uint8))


@pytest.mark.parametrize("form", ["byte", "dn"])
def test_each_band_gets_the_mean_and_the_spread_of_the_reference(rng, form):
    kind, most = (np.uint8, 255) if form == "byte" else (np.uint16, 10_000)
    draws = rng.beta(4, 4, (2, 40, 16, 16, 3))
    reference, other = (
        ImageSet((most * v).astype(kind), form, ("a", "b", "c"), tuple(map(str, range(40))), "x")
        for v in (0.2 + 0.5 * draws[0], 0.1 + np.array([0.3, 0.6, 0.8]) * draws[1])
    )
    assert compare_light(other, reference).is_another
    lit = in_light_of(other, reference)
    for statistic in (np.mean, np.std):
        goal = statistic(reference.pixels, axis=(0, 1, 2))
        np.testing.assert_allclose(statistic(lit.pixels, axis=(0, 1, 2)), goal, rtol=0.01)
    assert not compare_light(lit, reference).is_another
    assert lit.pixels.dtype == kind and (lit.ids, lit.form) == (other.ids, form)


def test_pixels_keep_their_order_and_their_range(rng):
    pixels = np.arange(256, dtype=np.uint8).repeat(9).reshape(9, 16, 16, 1)
    images = ImageSet(pixels, "byte", ("B08",), tuple(map(str, range(9))), "x")
    lit = in_light_of(images, replace(images, pixels=pixels // 8 + 200))
    order = np.argsort(pixels, axis=None, kind="stable")
    assert (np.diff(lit.pixels.ravel()[order].astype(int)) >= 0).all() and lit.pixels.max() <= 255


def test_nearly_the_same_light_is_left_alone():
    assert not compare_light(a_set(90, 1).images, a_set(90, 2).images).is_another


def test_images_of_another_level_help(tmp_path):
    config = ClassifierConfig(width=8, blocks=1, steps=60, batch=12, unlabelled_batch=24, warmup_steps=5)
    notes, test = [], a_set(300, 3)
    found = {}
    for name, unlabelled in (("none", None), ("shifted", as_level_2a(a_set(180, 1).images))):
        train_classifier(
            a_set(9, 0),
            tmp_path / name,
            config,
            unlabelled=unlabelled,
            progress=lambda p: notes.append(p.note),
        )
        model = load_classifier(tmp_path / name)
        found[name] = (model.choose(model.probabilities(test.images)) == test.labels).mean()
    assert found["shifted"] >= found["none"] + 0.03
    assert sum("their light differs" in note for note in notes) == 1
