"""The structure tensor against a slow restatement, and what it must not depend on."""

import numpy as np
import pytest
from engine import texture
from hypothesis import given
from hypothesis import strategies as st

from retrieval.models.structure_tensor import BORDER_PX, known, learnable_tensor, structure_tensor

NOISE = 10 / 2047.5


def tensor_of(scaled):
    tensor, visible = structure_tensor(scaled[None], NOISE)
    return np.asarray(tensor)[0], np.asarray(visible)[0]


def slow_tensor(scaled, noise=NOISE):
    """Pixel by pixel, band by band, in float64."""
    height, width, bands = scaled.shape
    out, seen = np.zeros((height - 2, width - 2, 3)), np.zeros((height - 2, width - 2, 1))
    for y in range(1, height - 1):
        for x in range(1, width - 1):
            jxx = jyy = jxy = 0.0
            for b in range(bands):
                right, left = float(scaled[y, x + 1, b]), float(scaled[y, x - 1, b])
                below, above = float(scaled[y + 1, x, b]), float(scaled[y - 1, x, b])
                if np.isnan([right, left, below, above]).any():
                    continue
                seen[y - 1, x - 1] = 1
                gx, gy = right - left, below - above
                jxx, jyy, jxy = jxx + gx * gx, jyy + gy * gy, jxy + gx * gy
            energy = jxx + jyy
            g = 0.5 * np.log1p(energy / noise**2)
            per = g / (energy + noise**2 * 1e-3)
            out[y - 1, x - 1] = g, per * (jxx - jyy), per * 2 * jxy
    return out, seen


@given(st.integers(0, 10**6), st.integers(1, 5), st.floats(0, 0.4))
def test_slow_oracle(seed, bands, hidden):
    rng = np.random.default_rng(seed)
    scaled = rng.uniform(-1, 1, (7, 9, bands)).astype(np.float32)
    scaled[rng.random((7, 9)) < hidden] = np.nan  # all bands
    scaled[rng.random(scaled.shape) < hidden / 4] = np.nan  # single bands
    tensor, visible = tensor_of(scaled)
    slow, seen = slow_tensor(scaled)
    assert tensor.shape == (7 - 2 * BORDER_PX, 9 - 2 * BORDER_PX, 3)
    np.testing.assert_allclose(tensor, slow, atol=2e-3)
    np.testing.assert_array_equal(visible, seen)
    assert np.isfinite(tensor).all() and (tensor[..., 0] >= 0).all()
    assert (tensor[visible[..., 0] == 0] == 0).all()


def test_sign_offset_and_order_of_bands_do_not_matter():
    scaled = texture(40, 50)
    tensor, _ = tensor_of(scaled)
    for other in (-scaled, scaled + np.float32([0.05, -0.05, 0.02, 0]), scaled[..., ::-1]):
        np.testing.assert_allclose(tensor_of(other)[0], tensor, atol=1e-3)


def test_turning_and_mirroring_change_the_sign_of_channels():
    scaled = texture(33, 47, bands=3)
    tensor, _ = tensor_of(scaled)
    np.testing.assert_allclose(tensor_of(np.rot90(scaled))[0], np.rot90(tensor) * [1, -1, -1], atol=1e-4)
    np.testing.assert_allclose(tensor_of(scaled[:, ::-1])[0], tensor[:, ::-1] * [1, 1, -1], atol=1e-4)


def test_a_band_that_is_missing_is_a_band_less():
    scaled = texture(30, 30, bands=3)
    padded = np.concatenate([scaled, np.full((30, 30, 1), np.nan, np.float32)], -1)
    np.testing.assert_allclose(tensor_of(padded)[0], tensor_of(scaled)[0], atol=1e-6)


def test_flat_pictures_have_no_gradient():
    tensor, visible = tensor_of(np.full((10, 10, 4), 0.3, np.float32))
    assert not tensor.any() and visible.all()


def test_known_is_one_where_any_band_is_a_number():
    scaled = np.zeros((1, 2, 2, 2), np.float32)
    scaled[0, 0, 0] = np.nan
    scaled[0, 0, 1, 0] = np.nan
    np.testing.assert_array_equal(np.asarray(known(scaled))[0, ..., 0], [[0, 1], [1, 1]])


@pytest.mark.parametrize("holes", [False, True])
def test_the_same_eagerly_and_inside_a_data_set(holes):
    import tensorflow as tf

    scaled = texture(20, 24, bands=2)
    if holes:
        scaled[3:9, 4:8] = np.nan
    mapped = tf.data.Dataset.from_tensors(scaled[None]).map(lambda x: structure_tensor(x, NOISE))
    tensor, visible = next(iter(mapped))
    eager, seen = tensor_of(scaled)
    np.testing.assert_allclose(tensor[0], eager, atol=1e-6)
    np.testing.assert_array_equal(visible[0], seen)


def test_learnable_derivatives_begin_as_the_fixed_ones_and_are_weights():
    import keras

    scaled = keras.Input((None, None, None))
    model = keras.Model(scaled, learnable_tensor(scaled, NOISE))
    pixels = texture(20, 18, seed=4)[None]
    for got, wanted in zip(model(pixels), structure_tensor(pixels, NOISE), strict=True):
        np.testing.assert_allclose(np.asarray(got), np.asarray(wanted), atol=1e-5)
    assert [w.shape for w in model.trainable_variables] == [(9, 2)]
    pixels[0, 8, 8, 1] = np.nan  # a band less for the nine pixels around it
    tensor, visible = (np.asarray(v)[0] for v in model(pixels))
    less = np.asarray(structure_tensor(pixels[..., [0, 2, 3]], NOISE)[0])[0]
    np.testing.assert_allclose(tensor[6:9, 6:9], less[6:9, 6:9], atol=1e-5)
    assert np.isfinite(tensor).all() and visible.min() == 1
    pixels[0, 8, 8] = np.nan
    tensor, visible = (np.asarray(v)[0] for v in model(pixels))
    assert (visible[6:9, 6:9] == 0).all() and (tensor[6:9, 6:9] == 0).all() and visible.sum() == 16 * 18 - 9
