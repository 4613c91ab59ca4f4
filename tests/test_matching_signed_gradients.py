"""Signed gradients of patches and candidates: against slow sums, hidden ground, edges of images, bands."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from engine import texture

from retrieval.config import TensorConfig
from retrieval.matching.session import Session
from retrieval.matching.signed_gradients import agreement
from retrieval.matching.tensors import Arrays
from retrieval.types import RankedCandidates
from tfrecords.schema import Patches

BANDS = ("B04", "B03", "B02", "B08")
PLACES = np.array([[30, 40], [0, 0], [86, 66], [50, 3]])
"""x and y of the patches: inside, and at the edges of the image."""


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return texture(130, 150, seed=1)


def session_of(image: np.ndarray, patches: np.ndarray, bands: tuple[str, ...] = BANDS) -> Session:
    """Ask for patches in one image of four bands."""
    queries = Patches(np.arange(len(patches)), patches.astype(np.float32), "scaled", bands, float("nan"))
    return Session(Arrays({7: image}, {7: BANDS}), queries, image_ids=[7])


def cut(image: np.ndarray, places: np.ndarray = PLACES) -> np.ndarray:
    return np.stack([image[y : y + 64, x : x + 64] for x, y in places])


def at(places: np.ndarray) -> RankedCandidates:
    """Candidates of the patches: one each, and none."""
    empty = RankedCandidates.empty(len(places), 2)
    x, y = (np.stack([v, 0 * v], 1) for v in places.T)
    ids = np.tile([7, -1], (len(places), 1))
    return replace(empty, image_ids=ids, x=x, y=y)


def slow_gradients(scaled: np.ndarray) -> np.ndarray:
    """Signed gradients (h - 2, w - 2, 2, b), NaN where hidden."""
    out = np.full((scaled.shape[0] - 2, scaled.shape[1] - 2, 2, scaled.shape[2]), np.nan)
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            gx = scaled[y + 1, x + 2] - scaled[y + 1, x]
            gy = scaled[y + 2, x + 1] - scaled[y, x + 1]
            if np.isnan(gx + gy).all():
                continue
            vector = np.nan_to_num(np.where(np.isnan(gx + gy), 0, np.stack([gx, gy])).astype(float))
            length = np.sqrt((vector**2).sum())
            out[y, x] = vector / (length + 1e-12) * 0.5 * np.log1p((length / TensorConfig.noise) ** 2)
    return out


def slow_agreement(patch: np.ndarray, image: np.ndarray, x: int, y: int) -> float:
    """Largest cosine over the shifts of a pixel, of what both show."""
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), constant_values=np.nan)
    mine, around = slow_gradients(patch), slow_gradients(padded[y : y + 66, x : x + 66])
    best = 0.0
    for dy in range(3):
        for dx in range(3):
            other = around[dy : dy + 62, dx : dx + 62]
            both = ~np.isnan(mine[..., 0, 0] + other[..., 0, 0])
            a, b = mine[both], other[both]
            best = max(best, float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum() + 1e-6)))
    return best


def test_the_agreement_equals_slow_sums(image: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    patches = cut(image) + rng.normal(scale=0.05, size=(4, 64, 64, 4))
    patches[1, :40] = np.nan
    patches[2, :, 20:30] = np.nan
    moved = np.clip(PLACES + np.array([[1, 0], [0, 1], [0, 0], [-2, 0]]), 0, [86, 66])
    found = agreement(session_of(image, patches), at(moved))
    expected = [
        slow_agreement(p.astype(np.float32), image, *xy) for p, xy in zip(patches, moved, strict=True)
    ]
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-4)
    assert not found[:, 1].any()


def test_light_haze_and_hidden_ground_leave_the_right_place_ahead(image: np.ndarray) -> None:
    patches = 0.6 * cut(image) + 0.2
    patches[:, :35] = np.nan
    right = agreement(session_of(image, patches), at(PLACES))[:, 0]
    wrong = agreement(session_of(image, patches), at(PLACES[::-1]))[:, 0]
    assert right.min() > 0.95 and wrong.max() < 0.3


def test_inverted_contrast_counts_as_no_agreement(image: np.ndarray) -> None:
    assert not agreement(session_of(image, -cut(image)), at(PLACES))[:, 0].any()


def test_shared_bands_are_compared_by_name(image: np.ndarray) -> None:
    swapped = session_of(image, cut(image)[..., [3, 0]], ("B08", "B04"))
    np.testing.assert_allclose(agreement(swapped, at(PLACES))[:, 0], 1, atol=1e-3)
    unshared = session_of(image, cut(image)[..., :1], ("B11",))
    assert not agreement(unshared, at(PLACES)).any()


@pytest.mark.parametrize("value", [0.25, np.nan])
def test_flat_and_empty_patches_agree_with_nothing(image: np.ndarray, value: float) -> None:
    found = agreement(session_of(image, np.full((4, 64, 64, 4), value)), at(PLACES))
    assert not found.any()
