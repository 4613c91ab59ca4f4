"""The network of a segmentation: a small U-Net with residual blocks that two CPU cores train.

The first convolution halves rows and columns, and the last step doubles them again. Below it, each stage
halves them once more: context comes from coarse stages, outlines from fine ones. On the way up, a stage adds
what the stage of its size saw on the way down.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray

from retrieval.config import SegmenterConfig

WIDEST = 4
"""Most channels of a stage, in multiples of the width."""
_LEAK = 0.1
_MOMENTUM, _EPSILON = 0.97, 1e-3


def unit_px(config: SegmenterConfig) -> int:
    """Return the side in pixels that each side of an input is a multiple of: a pixel of the last stage."""
    return config.stride * 2**config.stages


def view_px(network: Any) -> int:
    """Return how far a network sees beyond a pixel of its last stage: no answer in it depends on more.

    The layers of a U-Net form one chain; what joins it from the side are convolutions of one pixel. From the
    answer back to the pixels each convolution adds its reach, and each enlargement whole coarse pixels.

    Args:
        network: from `unet`, or a model around one.
    """
    from keras import layers

    view, step = 0, 1
    for layer in reversed(list(_flat(network))):
        if isinstance(layer, layers.Conv2D):
            side, stride = max(layer.kernel_size), max(layer.strides)
            step //= stride
            view += max(0, -(-(side - stride) // 2)) * step
        elif isinstance(layer, layers.UpSampling2D):
            step *= max(layer.size)
            view = -(-view // step) * step + (0 if layer.interpolation == "nearest" else step)
    return view


def _flat(network: Any) -> Iterator[Any]:
    """Yield the layers of a model and of the models in it, in the order of the computation."""
    for layer in network.layers:
        if hasattr(layer, "layers"):
            yield from _flat(layer)
        else:
            yield layer


def unet(config: SegmenterConfig, bands: int, classes: int) -> Any:
    """Return a U-Net of any input size.

    Sources: O. Ronneberger et al., U-Net, 2015; K. He et al., Identity mappings in deep residual networks,
    2016 (blocks).

    Args:
        config: width, stages and stride.
        bands: number of input bands, of all dates together.
        classes: number of classes.

    Returns:
        A functional `keras.Model` of built-in layers, standardized pixels (n, y, x, bands) float32 -> logits
        (n, y, x, classes). Sides are multiples of `unit_px`.
    """
    import keras
    from keras import layers

    widths = [config.width * min(2**stage, WIDEST) for stage in range(config.stages + 1)]
    pixels = keras.Input((None, None, bands), name="standardized")
    y = _block(_convolution(pixels, widths[0], config.stride, side=5), widths[0])
    seen = []
    for width in widths[1:]:
        seen.append(y)
        y = _block(_convolution(_activation(y), width, 2), width)
        y = _block(y, width)
    for width, fine in zip(widths[-2::-1], reversed(seen), strict=True):
        y = layers.UpSampling2D(2, interpolation="nearest")(_convolution(y, width, side=1))
        y = _block(layers.Add()([y, _convolution(_activation(fine), width, side=1)]), width)
    y = layers.Conv2D(classes, 1, name="logits")(_activation(y))
    if config.stride > 1:
        y = layers.UpSampling2D(config.stride, interpolation="bilinear")(y)
    return keras.Model(pixels, y, name="unet")


def _convolution(y: Any, channels: int, stride: int = 1, side: int = 3) -> Any:
    from keras import layers

    return layers.Conv2D(
        channels, side, strides=stride, padding="same", use_bias=False, kernel_initializer="he_normal"
    )(y)


def _activation(y: Any) -> Any:
    from keras import layers

    return layers.LeakyReLU(_LEAK)(layers.BatchNormalization(momentum=_MOMENTUM, epsilon=_EPSILON)(y))


def _block(y: Any, channels: int) -> Any:
    """Two 3 x 3 convolutions around a shortcut."""
    from keras import layers

    inner = _activation(_convolution(_activation(y), channels))
    return layers.Add()([y, _convolution(inner, channels)])


def with_standardization(network: Any, mean: NDArray[Any], variance: NDArray[Any]) -> Any:
    """Return a model that standardizes pixels in front of a network.

    Args:
        network: from `unet`.
        mean: (bands,) of pixels divided by the full scale.
        variance: (bands,) likewise.

    Returns:
        A functional `keras.Model`, pixels (n, y, x, bands) divided by the full scale -> logits.
    """
    import keras
    from keras import layers

    pixels = keras.Input(network.input_shape[1:], name="pixels")
    standardized = layers.Normalization(axis=-1, mean=mean, variance=variance, name="standardize")(pixels)
    return keras.Model(pixels, network(standardized), name="segmenter")
