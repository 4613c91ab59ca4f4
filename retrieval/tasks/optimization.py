"""What trainings of tasks share: weights of classes, the optimizer of a recipe, and averaged weights.

The averaged weights are the result of a training, and guess the labels of images without labels. This is
the mean teacher of Tarvainen and Valpola: https://arxiv.org/abs/1703.01780.

Their momentum grows from 2/11 to that of the recipe, so that they forget the first weights soon.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import ClassifierConfig, SegmenterConfig


def class_weights(counts: NDArray[np.int64], balance: float) -> NDArray[np.float32]:
    """Return the weight of each class: inverse frequency to a power, with a mean of 1 over the images."""
    weights = (counts.sum() / (len(counts) * counts.astype(np.float64))) ** balance
    return (weights * counts.sum() / (weights * counts).sum()).astype(np.float32)


def build_optimizer(network: Any, config: ClassifierConfig | SegmenterConfig) -> Any:
    """Return Adam with warm-up, cosine decay, decoupled weight decay of kernels and clipped gradients.

    Args:
        network: the network to train.
        config: its recipe: steps, learning rate, warm-up, weight decay, norm of the gradients.
    """
    import keras

    warmup = min(config.warmup_steps, config.steps - 1)
    rise = {"warmup_target": config.learning_rate, "warmup_steps": warmup} if warmup else {}
    rate = keras.optimizers.schedules.CosineDecay(
        0.0 if warmup else config.learning_rate, max(1, config.steps - warmup), alpha=0.01, **rise
    )
    optimizer = keras.optimizers.Adam(
        rate, weight_decay=config.weight_decay or None, global_clipnorm=config.clip_norm
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    optimizer.build(network.trainable_variables)
    return optimizer


def apply_gradients(
    optimizer: Any, network: Any, average: Any, momentum: float, tape: Any, loss: Any
) -> None:
    """Change the trained weights, and let the averaged ones follow; runs inside a compiled step.

    Args:
        optimizer: from `build_optimizer`.
        network: the network to train.
        average: a network with the averaged weights.
        momentum: largest momentum of the averaged weights, 0 to 1.
        tape: TensorFlow's record of the loss.
        loss: () the loss to lower.
    """
    import tensorflow as tf

    variables = network.trainable_variables
    optimizer.apply(tape.gradient(loss, variables), variables)
    done = tf.cast(optimizer.iterations, tf.float32)
    share = tf.minimum(momentum, (1 + done) / (10 + done))
    for mean, variable in zip(average.weights, network.weights, strict=True):
        mean.assign(share * mean + (1 - share) * variable)
