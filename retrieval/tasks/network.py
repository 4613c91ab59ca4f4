"""The network of an image classifier: a small residual network that two CPU cores train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import ClassifierConfig

STAGES = (1, 2, 4)
"""Channels of the stages, in multiples of the width; each but the first halves rows and columns."""
HALVED_FROM_PX = 48
"""Side from which the first convolution halves rows and columns, to train four times faster."""
_LEAK = 0.1
_MOMENTUM, _EPSILON = 0.97, 1e-3


def residual_network(config: ClassifierConfig, size: Sequence[int], bands: int, classes: int) -> Any:
    """Return a residual network with batch normalization before each convolution.

    Source: K. He et al., Identity mappings in deep residual networks, 2016 (blocks); S. Zagoruyko and
    N. Komodakis, Wide residual networks, 2016.

    Args:
        config: width and number of blocks.
        size: rows and columns of an image.
        bands: number of bands.
        classes: number of classes.

    Returns:
        A functional `keras.Model` of built-in layers, standardized pixels (n, rows, columns, bands)
        float32 -> logits (n, classes).
    """
    import keras
    from keras import layers

    pixels = keras.Input((*size, bands), name="standardized")
    stride = 2 if min(size) >= HALVED_FROM_PX else 1
    y = _convolution(pixels, config.width, stride)
    for stage, factor in enumerate(STAGES):
        for block in range(config.blocks if stage else 1):
            y = _block(y, factor * config.width, 2 if stage and not block else 1)
    y = layers.GlobalAveragePooling2D()(_activation(y))
    return keras.Model(pixels, layers.Dense(classes, name="logits")(y), name="residual")


def _convolution(y: Any, channels: int, stride: int = 1, side: int = 3) -> Any:
    from keras import layers

    return layers.Conv2D(
        channels, side, strides=stride, padding="same", use_bias=False, kernel_initializer="he_normal"
    )(y)


def _activation(y: Any) -> Any:
    from keras import layers

    return layers.LeakyReLU(_LEAK)(layers.BatchNormalization(momentum=_MOMENTUM, epsilon=_EPSILON)(y))


def _block(y: Any, channels: int, stride: int) -> Any:
    """Two 3 x 3 convolutions around a shortcut."""
    from keras import layers

    active = _activation(y)
    same = stride == 1 and y.shape[-1] == channels
    shortcut = y if same else _convolution(active, channels, stride, side=1)
    inner = _activation(_convolution(active, channels, stride))
    return layers.Add()([shortcut, _convolution(inner, channels)])


def pixel_statistics(pixels: NDArray[Any], full_scale: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return mean and variance of each band of stored pixels (n, h, w, b), divided by the full scale."""
    count = pixels[..., 0].size
    mean = pixels.sum((0, 1, 2), dtype=np.float64) / count
    square = sum(
        (part.astype(np.float64) ** 2).sum((0, 1, 2))
        for part in np.array_split(pixels, len(pixels) // 256 + 1)
    )
    variance = np.maximum(square / count - mean**2, 1e-6 * full_scale**2)
    return (mean / full_scale).astype(np.float32), (variance / full_scale**2).astype(np.float32)


def with_standardization(network: Any, mean: NDArray[Any], variance: NDArray[Any]) -> Any:
    """Return a model that standardizes pixels in front of a network.

    Args:
        network: from `residual_network`.
        mean: (b,) of pixels divided by the full scale.
        variance: (b,) likewise.

    Returns:
        A functional `keras.Model`, pixels (n, rows, columns, bands) float32 in [0, 1] (`byte` / 255) or
        reflectance (`dn` / 10000) -> logits (n, classes).
    """
    import keras
    from keras import layers

    pixels = keras.Input(network.input_shape[1:], name="pixels")
    standardized = layers.Normalization(axis=-1, mean=mean, variance=variance, name="standardize")(pixels)
    return keras.Model(pixels, network(standardized), name="classifier")
