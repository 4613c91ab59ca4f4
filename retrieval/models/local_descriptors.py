"""Local descriptors: the network, and the half-resolution tensor that it reads.

A descriptor covers 9 x 9 half-resolution pixels, about 20 pixels of the image, every 4 pixels. The network
weights each descriptor by its information, and hidden pixels count for nothing. So descriptors of a patch and
of an image agree in the visible part alone. `retrieval.matching.local_search` compares them.
"""

from __future__ import annotations

from typing import Any

from retrieval.config import TensorConfig
from retrieval.models.structure_tensor import structure_tensor

STEP_PX = 4
"""Distance between descriptors, in pixels."""
FIELD_PX = 9
"""Side of the field of view of a descriptor, in half-resolution pixels."""


def half_resolution(scaled: Any) -> tuple[Any, Any]:
    """Compute the structure tensor of pictures at half resolution.

    Args:
        scaled: (n, h, w, b), NaN = not known.

    Returns:
        tensor (n, h', w', 3) and visible (n, h', w', 1), h' = (h - 2) / 2, rounded down.
    """
    from keras import layers, ops

    tensor, visible = structure_tensor(scaled, TensorConfig.noise)
    share = layers.AveragePooling2D(2)(visible)
    seen = ops.cast(share >= 0.5, "float32")
    return layers.AveragePooling2D(2)(tensor * visible) / ops.maximum(share, 0.25) * seen, seen


def local_model(dim: int = 24) -> Any:
    """Return the untrained network.

    Args:
        dim: numbers in a descriptor.

    Returns:
        A functional `keras.Model` of tensor (n, h, w, 3) and visible (n, h, w, 1), both at half resolution
        -> (n, (h - 9) / 2 + 1, (w - 9) / 2 + 1, dim): as long as it counts, 0 where nothing is seen.
    """
    import keras
    from keras import layers, ops

    tensor = keras.Input((None, None, 3), name="tensor")
    visible = keras.Input((None, None, 1), name="visible")
    x = ops.concatenate([0.3 * tensor * visible, visible], -1)
    x = layers.Conv2D(32, 3, activation="gelu", name="conv1")(x)
    x = layers.Conv2D(64, 3, strides=2, activation="gelu", name="conv2")(x)
    x = layers.Conv2D(96, 3, activation="gelu", name="conv3")(x)
    share = layers.AveragePooling2D(FIELD_PX, 2)(visible)
    y = layers.Conv2D(dim, 1, name="direction")(x)
    weight = layers.Conv2D(1, 1, activation="softplus", name="weight")(x)
    y = y * ops.rsqrt(ops.sum(y * y, -1, keepdims=True) + 1e-3) * weight * share
    return keras.Model([tensor, visible], y, name="local")
