"""The encoder before training, and a plain CNN for comparisons."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX, LearnedConfig, TensorConfig, TrainConfig
from retrieval.models.networks import cells_model, fit_projection, learned_model, tensor_model
from retrieval.training.augment import turned
from retrieval.training.batches import Element
from retrieval.training.trainer import seed_networks

_AT_A_TIME = 32


def sample_projection(crops: Iterable[Element], config: TrainConfig) -> NDArray[np.float32]:
    """Fit the training-free half's projection to crops of both dates, turned and mirrored at random.

    Args:
        crops: elements of `stream_crops`; `config.projection_crops` crops are taken.
        config: the recipe.

    Returns:
        (cells * cells * 3, dim) float32, see `retrieval.models.fit_projection`.

    Raises:
        EncoderError: too few crops that are wholly visible.
    """
    model = cells_model(config.tensor)
    rng = np.random.default_rng([config.seed, 3])
    parts = []
    crops = iter(crops)
    for _ in range(0, config.projection_crops, 2 * _AT_A_TIME):
        block = list(islice(crops, _AT_A_TIME))
        pixels = np.stack([c[k] for c in block for k in ("anchor", "positive")])
        cells, weight = (np.asarray(v) for v in model(turned(pixels, rng.integers(8, size=len(pixels)))))
        parts.append(cells[(weight > 0).all((1, 2, 3))])
    return fit_projection(np.concatenate(parts)[: config.projection_crops], config.tensor)


def plain_model(config: LearnedConfig) -> Any:
    """Return a small CNN on four raw bands, for comparisons.

    Window arithmetic along one side: 64 px -> 30 (6 x 6, stride 2) -> 14 (4 x 4, stride 2) -> 12
    (3 x 3) -> 5 (4 x 4, stride 2) -> 1 (5 x 5): the receptive field is 64 px, the stride 8.

    Args:
        config: width and dimension; its `share` has no meaning here.

    Returns:
        A functional `keras.Model`, (n, h, w, 4) -> (n, rows, cols, dim), unit length.
    """
    import keras
    from keras import layers, ops

    scaled = keras.Input((None, None, 4), name="scaled")
    y = ops.where(ops.isnan(scaled), ops.zeros_like(scaled), scaled)
    y = layers.Conv2D(config.width // 2 or 1, 6, strides=2, activation="gelu", name="conv1")(y)
    y = layers.Conv2D(config.width, 4, strides=2, activation="gelu", name="conv2")(y)
    y = layers.Conv2D(config.width, 3, activation="gelu", name="conv3")(y)
    y = layers.Conv2D(2 * config.width, 4, strides=2, activation="gelu", name="conv4")(y)
    y = layers.Conv2D(config.dim, 5, name="head")(y)
    square = ops.sum(y * y, axis=-1, keepdims=True)
    return keras.Model(scaled, y * ops.rsqrt(square + 1e-12), name="plain")


def blank_model(config: TrainConfig) -> Any:
    """Return the model of a recipe without any fit, to receive the weights of a checkpoint."""
    if config.arch == "plain":
        return plain_model(config.learned)
    cells = cells_model(config.tensor)(np.zeros((1, PATCH_PX, PATCH_PX, 1), np.float32))[0]
    rows = int(np.prod(cells.shape[1:]))
    return learned_model(config.learned, np.zeros((rows, config.tensor.dim), np.float32), config.tensor)


def new_model(config: TrainConfig, crops: Iterable[Element]) -> tuple[Any, Any | None]:
    """Make the model of a recipe, seeded, and the training-free encoder that it is measured against.

    Args:
        config: the recipe.
        crops: they fit the projection.

    Returns:
        The model; and the training-free one with the same projection, None for a plain model.
    """
    seed_networks(config.seed)
    if config.arch == "plain":
        return plain_model(config.learned), None
    projection = sample_projection(crops, config)
    tensor: TensorConfig = config.tensor
    return learned_model(config.learned, projection, tensor), tensor_model(projection, tensor)
