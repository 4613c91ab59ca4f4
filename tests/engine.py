"""Pictures and encoders for the tests of the engine: seeded, small, made once in a session."""

from dataclasses import replace
from functools import cache

import numpy as np

from retrieval.config import LearnedConfig, TensorConfig
from retrieval.models.calibration import CHIP_TERMS, TERMS, calibration_of
from retrieval.models.encoder import KerasEncoder, load_encoder
from retrieval.models.networks import cells_model, fit_projection, learned_model, tensor_model
from retrieval.models.registry import TRAINING_FREE
from retrieval.types import RankedCandidates
from tfrecords.schema import BANDS, Image, Patches

SMALL = TensorConfig(dim=24)
"""A short descriptor: quick to fit, save and search."""


def texture(height, width, bands=4, seed=0, power=1.4):
    """Noise of many scales, (height, width, bands) float32 in [-0.9, 0.9], in part the same in all bands."""
    rng = np.random.default_rng(seed)
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    fall = np.hypot(fy, fx)
    fall[0, 0] = 1
    fall = fall**-power
    fall[0, 0] = 0
    ground, *own = (
        np.fft.irfft2(np.fft.rfft2(rng.normal(size=(height, width))) * fall, (height, width))
        for _ in range(bands + 1)
    )
    stack = np.stack([ground + 0.3 * o for o in own], -1)
    return (0.9 * stack / np.abs(stack).max()).astype(np.float32)


def digital(scaled):
    """Scaled pixels as the digital numbers that scale to them, never 0."""
    return np.maximum(np.rint((scaled + 1) * 2047.5), 1).astype(np.uint16)


def image_of(pixels, image_id=0, **more):
    """A record of uint16 digital numbers; nodata is 0."""
    bands = more.pop("bands", BANDS[: pixels.shape[-1]])
    return Image(image_id, pixels, "dn", bands, 0.0, **more)


def patches_of(image, xy, bands=None):
    """Patches cut from digital numbers at (x, y)."""
    pixels = np.stack([image[y : y + 64, x : x + 64] for x, y in xy])
    return Patches(np.arange(len(pixels)), pixels, "dn", bands or BANDS[: pixels.shape[-1]], 0.0)


@cache
def projection(dim):
    """A projection fitted to the 625 windows of a generated texture."""
    config = TensorConfig(dim=dim)
    cells, _ = cells_model(config)(texture(256, 256, seed=7)[None])
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(cells)[0], (7, 7), (0, 1))
    return fit_projection(np.moveaxis(windows, 2, -1).reshape(-1, 7, 7, 3), config)


def calibrated(encoder):
    """An encoder with the training-free encoder's calibrations, as if they were fitted to its answers."""
    shipped = [calibration_of(load_encoder(TRAINING_FREE), terms) for terms in (TERMS, CHIP_TERMS)]
    encoder.calibrations = tuple(replace(c, encoder=encoder.fingerprint) for c in shipped)
    return encoder


@cache
def small_encoder():
    """The training-free encoder with a short vector, calibrated."""
    return calibrated(KerasEncoder(tensor_model(projection(SMALL.dim), SMALL), "small"))


@cache
def learned_encoder(share=0.5):
    """A learned encoder that has learned nothing: random weights, and biases that are not zero."""
    import keras

    keras.utils.set_random_seed(3)
    model = learned_model(LearnedConfig(width=8, dim=16, share=share), projection(SMALL.dim), SMALL)
    for layer in model.layers:
        if getattr(layer, "bias", None) is not None:
            layer.bias.assign(keras.random.normal(layer.bias.shape, seed=5))
    return calibrated(KerasEncoder(model, "learned"))


def located(index, queries, submission, *, min_confidence=None, drop_unsure=False, **outputs):
    """Answer queries and write the outputs, as `retrieve query` does."""
    from retrieval.pipeline import locate
    from retrieval.results.outputs import QueryOutputs
    from tfrecords.read import read_queries
    from tfrecords.schema import Chips, Patches

    queries = queries if isinstance(queries, (Patches, Chips)) else read_queries(queries)
    files = QueryOutputs(submission, **outputs)
    files.check(queries)
    matches = locate(index, queries)
    files.write(matches, min_confidence, drop_unsure)
    return matches


def refined(image_ids, x, y, logit, similarity):
    """Candidates of one or more patches."""
    shape = np.shape(image_ids)
    rest = {name: np.zeros(shape, np.float32) for name in ("dx", "dy", "ncc")}
    ints = {"image_ids": image_ids, "x": x, "y": y}
    floats = {"logit": logit, "similarity": similarity}
    return RankedCandidates(
        **{k: np.array(v, np.int64) for k, v in ints.items()},
        **{k: np.array(v, np.float32) for k, v in floats.items()},
        **rest,
    )
