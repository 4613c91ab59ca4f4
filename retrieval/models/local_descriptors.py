"""Local descriptors: the network, and the half-resolution tensor that it reads.

A descriptor covers 9 x 9 half-resolution pixels, about 20 pixels of the image, every 4 pixels. The network
weights each descriptor by its information, and hidden pixels count for nothing. So descriptors of a patch and
of an image agree in the visible part alone. `retrieval.matching.local_search` compares them.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import TensorConfig
from retrieval.kernels.compiled import Compiled, tile
from retrieval.models.registry import LOCAL, load_shipped
from retrieval.models.structure_tensor import structure_tensor

STEP_PX = 4
"""Distance between descriptors, in pixels."""
FIELD_PX = 9
"""Side of the field of view of a descriptor, in half-resolution pixels."""
VIEW_PX = 20
"""Side of the pixels that a descriptor sees: its field of view, and the border of the gradient."""
STRIP = 128
"""Rows of descriptors of an image that are made at a time."""
TILE = 128
"""Side of the tiles that pictures are described in, in half-resolution pixels, without the border."""


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


class LocalDescriptors:
    """A trained network that describes pictures."""

    def __init__(self, model: Any, tile: int = TILE) -> None:
        """Wrap a model of `local_model`."""
        self.model, self._tile = model, tile
        self._describe = Compiled(self._run_model, fused=False)
        # Compiled from the first call on: an image has the same descriptors, bit by bit, in any run.
        self._describe_tile = Compiled(self._run_model, fused=False, after=0)
        self._describe_all = Compiled(self._run_model_everywhere, fused=False)

    def describe_image(self, scaled: NDArray[np.float32], strip: int = STRIP) -> NDArray[np.float32]:
        """Describe every fourth pixel of an image, a strip at a time: memory does not grow with its height.

        Args:
            scaled: (h, w, b), NaN = not known; h and w at least `VIEW_PX`.
            strip: rows of descriptors at a time.

        Returns:
            ((h - 20) // 4 + 1, (w - 20) // 4 + 1, dim).
        """
        rows = (scaled.shape[0] - VIEW_PX) // STEP_PX + 1
        parts = []
        for top in range(0, rows, strip):
            first, count = STEP_PX * top, min(strip, rows - top)
            seen = scaled[None, first : first + STEP_PX * (count - 1) + VIEW_PX]
            tensor, visible = (np.asarray(v) for v in half_resolution(seen))
            mask = _visibility(tensor, visible)
            parts.append(_in_tiles(self._describe_tile, tensor, mask, 2, self._tile)[0])
        return np.concatenate(parts)

    def describe(self, tensor: NDArray[np.float32], visible: NDArray[Any] | None) -> NDArray[np.float32]:
        """Describe every second half-resolution pixel of pictures.

        Args:
            tensor: (n, h, w, 3) structure tensor at half resolution.
            visible: (n, h, w, 1), or None where all is visible.

        Returns:
            (n, (h - 9) / 2 + 1, (w - 9) / 2 + 1, dim) float32.
        """
        mask = _visibility(tensor, visible)
        if len(tensor) == 1:
            return _in_tiles(self._describe, tensor, mask, 2, self._tile)
        return np.asarray(self._describe(tensor, mask))

    def describe_all_pixels(
        self, tensor: NDArray[np.float32], visible: NDArray[Any] | None
    ) -> NDArray[np.float32]:
        """Describe every half-resolution pixel of pictures (n, h, w, 3): (n, h - 8, w - 8, dim)."""
        mask = _visibility(tensor, visible)
        if len(tensor) == 1:
            return _in_tiles(self._describe_all, tensor, mask, 1, self._tile)
        even = ((0, 0), (0, tensor.shape[1] % 2), (0, tensor.shape[2] % 2), (0, 0))
        field = self._describe_all(np.pad(tensor, even), np.pad(mask, even))
        return np.asarray(field)[:, : tensor.shape[1] - FIELD_PX + 1, : tensor.shape[2] - FIELD_PX + 1]

    def _run_model(self, tensor: Any, visible: Any) -> Any:
        return self.model([tensor, visible], training=False)

    def _run_model_everywhere(self, tensor: Any, visible: Any) -> Any:
        """Descriptors of every pixel of pictures of even size: four runs, each shifted, interleaved."""
        from keras import ops

        h, w = (size - FIELD_PX + 1 for size in tensor.shape[1:3])
        rows = []
        for dy in (0, 1):
            shifted = [x[:, dy : dy + h + FIELD_PX - 2] for x in (tensor, visible)]
            inputs = [[x[:, :, dx : dx + w + FIELD_PX - 2] for x in shifted] for dx in (0, 1)]
            pair = ops.stack([self._run_model(*pictures) for pictures in inputs], 3)
            rows.append(ops.reshape(pair, (-1, h // 2, w, pair.shape[-1])))
        field = ops.stack(rows, 2)
        return ops.reshape(field, (-1, h, w, field.shape[-1]))


def _visibility(tensor: NDArray[np.float32], known: NDArray[Any] | None) -> NDArray[np.float32]:
    """Visible pixels of pictures, (n, h, w, 1) float32."""
    visible = np.ones((*tensor.shape[:3], 1), np.float32)
    return visible if known is None else visible * known


def _in_tiles(
    describe: Compiled, tensor: NDArray[np.float32], visible: NDArray[np.float32], step: int, side: int
) -> NDArray[np.float32]:
    """Describe a picture (1, h, w, 3) tile by tile, so that one compiled shape serves all sizes.

    Args:
        describe: gives the descriptors of a tile.
        tensor: of the picture.
        visible: its visible pixels.
        step: distance between descriptors, in half-resolution pixels.
        side: of a tile, in half-resolution pixels, without the border.
    """
    rows, cols = ((size - FIELD_PX) // step + 1 for size in tensor.shape[1:3])
    field, count = np.empty((0, rows, cols, 0), np.float32), side // step
    for row, col in product(range(0, rows, count), range(0, cols, count)):
        y, x = row * step, col * step
        # Pixels beyond the picture are hidden: descriptors that see none of them do not change.
        part = describe(*(tile(picture, y, x, side + FIELD_PX - 1, 0) for picture in (tensor, visible)))
        field = field if field.size else np.empty((1, rows, cols, part.shape[-1]), np.float32)
        field[:, row : row + count, col : col + count] = part[:, : rows - row, : cols - col]
    return field


@lru_cache(maxsize=1)
def shipped_descriptors() -> LocalDescriptors:
    """Return the shipped network."""
    return LocalDescriptors(load_shipped(LOCAL))
