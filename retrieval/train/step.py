"""One step of training, compiled: forward, loss, gradients, Adam."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX, TrainConfig
from retrieval.errors import DependencyError
from retrieval.train.losses import LossFunction, loss_of

Step = Callable[[NDArray[np.float32], NDArray[np.bool_]], float]
"""(pixels (2n, 64, 64, 4), allowed (n, n)) -> loss before the step; the weights change."""

_NOTHING = 1e-9
"""Squared length below which a half is taken for empty."""


def check_backend() -> None:
    """Training runs on TensorFlow; what it makes runs on JAX and PyTorch too.

    Raises:
        DependencyError: Keras is set to another backend.
    """
    import keras

    if keras.backend.backend() != "tensorflow":
        raise DependencyError(
            f"training needs Keras on TensorFlow, and it is set to {keras.backend.backend()}: run it with "
            f"KERAS_BACKEND=tensorflow; the encoder that it writes opens on any backend"
        )


def new_optimizer(model: Any, config: TrainConfig) -> Any:
    """Adam with warm-up, cosine decay, decoupled weight decay (not of biases) and clipped gradients."""
    import keras

    warmup = min(config.warmup_steps, config.steps - 1)
    rise = {"warmup_target": config.learning_rate, "warmup_steps": warmup} if warmup else {}
    rate = keras.optimizers.schedules.CosineDecay(
        0.0 if warmup else config.learning_rate, config.steps - warmup, alpha=0.0, **rise
    )
    optimizer = keras.optimizers.Adam(
        rate, weight_decay=config.weight_decay or None, global_clipnorm=config.clip_norm
    )
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.build(model.trainable_variables)
    return optimizer


def objective(config: TrainConfig) -> LossFunction:
    """What is minimised: the loss of both halves together, of the learned one alone, or a mean of these."""
    from keras import ops

    together = loss_of(config)
    if not config.alone or config.arch == "plain":
        return together

    def learned(vectors: Any) -> Any:
        half = vectors[:, config.tensor.dim :]
        return half * ops.rsqrt(ops.maximum(ops.sum(half * half, axis=-1, keepdims=True), _NOTHING))

    def both(vectors_a: Any, vectors_p: Any, allowed: Any) -> Any:
        own = together(learned(vectors_a), learned(vectors_p), allowed)
        return config.alone * own + (1 - config.alone) * together(vectors_a, vectors_p, allowed)

    return both


def compiled_step(model: Any, optimizer: Any, average: Sequence[Any], config: TrainConfig) -> Step:
    """Compile a step.

    Args:
        model: an encoder; its trainable variables are trained.
        optimizer: built for them.
        average: variables that follow them with the momentum `config.average`; may be empty.
        config: loss, batch and momentum.

    Returns:
        The step.
    """
    import tensorflow as tf

    loss_function, n = objective(config), config.batch
    variables = model.trainable_variables

    def step(pixels: Any, allowed: Any) -> Any:
        with tf.GradientTape() as tape:
            vectors = model(pixels, training=True)[:, 0, 0]  # (2n, dim)
            loss = loss_function(vectors[:n], vectors[n:], allowed)
        optimizer.apply(tape.gradient(loss, variables), variables)
        for mean, variable in zip(average, variables, strict=bool(average)):
            mean.assign(config.average * mean + (1 - config.average) * variable)
        return loss

    signature = [
        tf.TensorSpec((2 * n, PATCH_PX, PATCH_PX, 4), tf.float32),
        tf.TensorSpec((n, n), tf.bool),
    ]
    compiled = tf.function(step, input_signature=signature, jit_compile=config.compile)
    return lambda pixels, allowed: float(compiled(tf.constant(pixels), tf.constant(allowed)))
