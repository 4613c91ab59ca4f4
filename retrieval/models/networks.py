"""The two encoders as Keras models; `retrieval.models.structure_tensor` is the stem of both.

* The *training-free* encoder averages the structure tensor in overlapping cells and whitens them by PCA.
* The *learned* encoder appends the vector of a small convolutional network, which fails on other patches.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX, LearnedConfig, TensorConfig
from retrieval.errors import EncoderError
from retrieval.models.structure_tensor import learnable_tensor, structure_tensor

_NOTHING = 1e-6
"""Squared length of a raw vector below which a window counts as empty; its vector is zero."""

# --- building blocks, on symbolic tensors -------------------------------------------------------


def _unit(y: Any) -> Any:
    """Scale to unit length along the last axis; keep empty vectors zero."""
    from keras import ops

    square = ops.sum(y * y, axis=-1, keepdims=True)
    return ops.where(square > _NOTHING, y * ops.rsqrt(ops.maximum(square, _NOTHING)), ops.zeros_like(y))


def _cells(tensor: Any, visible: Any, cell_px: int, step_px: int) -> tuple[Any, Any]:
    """Average a tensor over the visible pixels of overlapping cells.

    Returns:
        cells: (n, rows, cols, c), 0 where less than a quarter of a cell is visible.
        weight: (n, rows, cols, 1), 1 where at least a quarter is visible, else 0.
    """
    from keras import layers, ops

    share = layers.AveragePooling2D(cell_px, step_px, padding="valid")(visible)
    mean = layers.AveragePooling2D(cell_px, step_px, padding="valid")(tensor * visible)
    weight = ops.cast(share > 0.25, "float32")
    return weight * mean / ops.maximum(share, 0.25), weight


def _whitened(cells: Any, weight: Any, config: TensorConfig, per_side: int) -> Any:
    """Mean-free cells of each window, projected: a convolution over cells, corrected where some are hidden.

    With all cells visible the projection's kernels, which sum to zero over the cells, take the mean
    out by themselves. With some hidden the mean is that of the visible ones; hidden cells count as
    zero after it is taken out.
    """
    from keras import layers, ops

    channels = cells.shape[-1]
    raw = layers.Conv2D(config.dim, per_side, use_bias=False, trainable=False, name="projection")(cells)
    offset = layers.Conv2D(channels * config.dim, per_side, use_bias=False, trainable=False, name="offset")(
        weight
    )
    total = layers.AveragePooling2D(per_side, 1, padding="valid")(cells)
    visible_share = layers.AveragePooling2D(per_side, 1, padding="valid")(weight)
    mean = total / ops.maximum(visible_share, 1e-3)  # (n, rows, cols, c)
    for c in range(channels):
        raw = raw - mean[..., c : c + 1] * offset[..., c * config.dim : (c + 1) * config.dim]
    return raw


def _cells_per_side(config: TensorConfig) -> int:
    """Cells along the edge of a window: its pixels less the gradient's border, by whole steps."""
    return (PATCH_PX - 2 - config.cell_px) // config.cell_step_px + 1


# --- the two models -----------------------------------------------------------------------------


def tensor_model(projection: NDArray[np.float32], config: TensorConfig) -> Any:
    """Return the training-free encoder as a Keras model.

    Args:
        projection: (cells * cells * 3, dim) from `fit_projection`.
        config: the same that the projection was fitted with.

    Returns:
        A functional `keras.Model`, (n, h, w, b) -> (n, rows, cols, dim).
    """
    import keras

    scaled = keras.Input((None, None, None), name="scaled")
    tensor, visible = structure_tensor(scaled, config.noise)
    cells, weight = _cells(tensor, visible, config.cell_px, config.cell_step_px)
    model = keras.Model(
        scaled, _unit(_whitened(cells, weight, config, _cells_per_side(config))), name="structure_tensor"
    )
    set_projection(model, projection, config)
    return model


def set_projection(model: Any, projection: NDArray[np.float32], config: TensorConfig) -> None:
    """Put a fitted projection into the two fixed layers that hold it."""
    side = _cells_per_side(config)
    kernel = projection.reshape(side, side, 3, config.dim).astype("float32")
    model.get_layer("projection").set_weights([kernel])
    # The offset layer sees the weights of the cells (one channel) and answers for each tensor channel.
    model.get_layer("offset").set_weights([kernel.reshape(side, side, 1, 3 * config.dim)])


def cells_model(config: TensorConfig) -> Any:
    """Cells and their weights, (n, h, w, b) -> (n, rows, cols, 3 and 1): what a projection is fitted to."""
    import keras

    scaled = keras.Input((None, None, None), name="scaled")
    tensor, visible = structure_tensor(scaled, config.noise)
    return keras.Model(scaled, _cells(tensor, visible, config.cell_px, config.cell_step_px))


def fit_projection(cells: NDArray[np.float32], config: TensorConfig) -> NDArray[np.float32]:
    """Whitening by principal components, with shrinkage, of the mean-free cells of many windows.

    Args:
        cells: (n, cells, cells, 3) of fully visible windows, n well above their number of cells x 3.
        config: `dim` and `shrinkage` are used.

    Returns:
        (cells * cells * 3, dim) float32; columns sum to zero over the cells of each channel.

    Raises:
        EncoderError: too few windows to fit.
    """
    n, side = len(cells), cells.shape[1]
    if n < 4 * side * side * 3:
        raise EncoderError(
            f"{n} windows to fit a projection; expected at least {4 * side * side * 3}: give more images"
        )
    free = (cells - cells.mean((1, 2), keepdims=True)).reshape(n, -1).astype("float64")
    values, vectors = np.linalg.eigh(free.T @ free / n)
    values, vectors = values[::-1][: config.dim], vectors[:, ::-1][:, : config.dim]
    # A vector's sign is arbitrary: fix it, so that the same data give the same weights everywhere.
    vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(0), np.arange(vectors.shape[1])])
    return (vectors / np.sqrt(values + config.shrinkage * values[0])).astype("float32")


def learned_model(config: LearnedConfig, projection: NDArray[np.float32], tensor: TensorConfig) -> Any:
    """Return the learned encoder: a convolutional branch on the structure tensor, and the whitened cells.

    Window arithmetic along one side: 64 px -> 62 (gradient) -> 15 cells of 6 px every 4 -> 13 -> 11
    (two 3 x 3 convolutions) -> 5 (stride 2) -> 1 (5 x 5): the receptive field is 64 px, the stride 8.

    Args:
        config: widths, dimension, stem and the share of the learned vector.
        projection: of the training-free half, as for `tensor_model`.
        tensor: its configuration.

    Returns:
        A functional `keras.Model`, (n, h, w, b) -> (n, rows, cols, tensor.dim + config.dim).
    """
    import keras
    from keras import layers, ops

    scaled = keras.Input((None, None, None), name="scaled")
    stem, visible = structure_tensor(scaled, tensor.noise)
    cells, weight = _cells(stem, visible, tensor.cell_px, tensor.cell_step_px)
    fixed = _unit(_whitened(cells, weight, tensor, _cells_per_side(tensor)))
    if config.stem == "learnable":
        stem, visible = learnable_tensor(scaled, tensor.noise)
    fine, visible_share = _cells(stem, visible, 6, 4)
    y = ops.concatenate([fine, visible_share], axis=-1)
    y = layers.Conv2D(config.width, 3, activation="gelu", name="conv1")(y)
    y = layers.Conv2D(config.width, 3, activation="gelu", name="conv2")(y)
    y = layers.Conv2D(2 * config.width, 3, strides=2, activation="gelu", name="conv3")(y)
    y = layers.Conv2D(config.width, 1, activation="gelu", name="narrow")(y)
    y = layers.Conv2D(config.dim, 5, name="head")(y)
    # Biases would give an empty window a vector; it has none where the fixed half sees nothing.
    learned = ops.where(ops.any(ops.not_equal(fixed, 0.0), -1, keepdims=True), _unit(y), 0.0)
    joined = ops.concatenate([(1 - config.share) ** 0.5 * fixed, config.share**0.5 * learned], axis=-1)
    model = keras.Model(scaled, _unit(joined), name="siamese")
    set_projection(model, projection, tensor)
    return model
