"""The verifier: a small network that separates right candidates from similar wrong ones.

NCC sums agreement over the whole patch, so that a few strong edges decide. A mown field or a cloud can put a
right pair below a wrong one. The verifier sees where patch and candidate agree. Its input is the two
structure tensors at half resolution, aligned by NCC; its output is log-odds. It learned from candidates that
search and NCC confuse (`retrieval.training.verifier`). Bands and brightness never reach it: it serves any
sensor.

Source: S. Zagoruyko, N. Komodakis, Learning to compare image patches via convolutional neural networks
(2015), whose two-channel form compares before it pools.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.kernels.compiled import Compiled
from retrieval.models.registry import VERIFIER, load_shipped

SIDE = 31
"""Side of a compared tensor, in half-resolution pixels: a patch without the border of the gradient."""
LOCAL = (5, 11)
"""Sides of the squares over which local agreement is summed."""


def verifier_model(width: int = 24) -> Any:
    """Return the untrained network.

    Args:
        width: channels of its first convolution.

    Returns:
        A functional `keras.Model` of template (n, 31, 31, 3), region (n, 31, 31, 3) and visible
        (n, 31, 31, 1), 1 where both are visible -> (n,) log-odds that they show one place.
    """
    import keras
    from keras import layers, ops

    template, region = (keras.Input((SIDE, SIDE, 3), name=name) for name in ("template", "region"))
    visible = keras.Input((SIDE, SIDE, 1), name="visible")
    count = ops.maximum(ops.sum(visible, (1, 2), keepdims=True), 1.0)
    a, b = (_normed(x, visible, count) for x in (template, region))
    product = a * b
    energy = [ops.sum(x * x, -1, keepdims=True) for x in (a, b)]
    local = [_locally(ops.sum(product, -1, keepdims=True), energy, side) for side in LOCAL]
    both = ops.sum(energy[0], (1, 2)) * ops.sum(energy[1], (1, 2))
    ncc = ops.sum(product, (1, 2, 3))[:, None] * ops.rsqrt(both + 1e-3)
    strength = [0.3 * template[..., :1], 0.3 * region[..., :1]]
    x = layers.Concatenate()([a, b, product, *strength, visible, *local])
    for number, (times, step) in enumerate(((1.0, 2), (4 / 3, 1), (2.0, 2), (2.0, 1)), 1):
        name = f"conv{number}"
        x = layers.Conv2D(round(times * width), 3, strides=step, activation="gelu", name=name)(x)
    pooled = [layers.GlobalAveragePooling2D()(x), layers.GlobalMaxPooling2D()(x)]
    x = layers.Concatenate()([*pooled, ncc, ops.mean(visible, (1, 2))])
    x = layers.Dropout(0.2)(x)
    x = layers.Dense(64, activation="gelu", name="hidden")(x)
    odds = layers.Dense(1, name="odds")(x) + 10.0 * ncc  # begins as what NCC says
    return keras.Model([template, region, visible], odds[:, 0], name="verifier")


def _normed(x: Any, visible: Any, count: Any) -> Any:
    """Return zero mean and unit variance over the visible pixels, 0 where hidden."""
    from keras import ops

    x = (x - ops.sum(x * visible, (1, 2), keepdims=True) / count) * visible
    return x * ops.rsqrt(ops.sum(x * x, (1, 2, 3), keepdims=True) / count + 1e-3)


def _locally(product: Any, energy: list[Any], side: int) -> Any:
    """Return the agreement over squares around each pixel, near 0 without texture."""
    from keras import layers, ops

    mean = ops.concatenate([product, *energy], -1)
    for pool in ((side, 1), (1, side)):  # rows, then columns: a sixth of the sums of a square
        mean = layers.AveragePooling2D(pool, 1, padding="same")(mean)
    return mean[..., :1] * ops.rsqrt((mean[..., 1:2] + 0.02) * (mean[..., 2:] + 0.02))


class Verifier:
    """A trained verifier."""

    def __init__(self, model: Any) -> None:
        """Wrap a model of `verifier_model`'s inputs."""
        self.model = model
        self._call = Compiled(lambda *pair: model(list(pair), training=False))

    def __call__(
        self, template: NDArray[np.float32], region: NDArray[np.float32], visible: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Return the log-odds that pairs show one place.

        Args:
            template: (n, 31, 31, 3) structure tensors of patches at half resolution.
            region: (n, 31, 31, 3) of candidates, aligned to the pixel of that resolution.
            visible: (n, 31, 31, 1), 1 where both are visible.

        Returns:
            (n,) float32.
        """
        return np.asarray(self._call(template, region, visible), np.float32)


@lru_cache(maxsize=1)
def shipped_verifier() -> Verifier:
    """Return the verifier in the package."""
    return Verifier(load_shipped(VERIFIER))
