"""Training steps with a checkpoint: an interrupted run resumes.

The encoder's own training (`retrieval.training.siamese`) also validates, averages weights and writes a
history. Here a stage is a number of steps and no more.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX, TrainConfig
from retrieval.errors import DependencyError
from retrieval.training.checkpoint import State, assign, load_state, save_state, values_of
from retrieval.training.losses import LossFunction, loss_of
from retrieval.types import Progress

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


SAVED_S = 60.0
"""Seconds after which the state is written again: what a stopped run loses at most."""
Draw = Callable[[np.random.Generator], tuple[NDArray, ...]]
"""A batch by a source of chance."""


@dataclass(frozen=True)
class Stage:
    """Some steps of a training."""

    name: str
    """What progress is told."""
    steps: int
    """How many."""
    folder: Path
    """Where its state is kept; who made it removes it."""
    identity: Mapping[str, Any]
    """Recipe and data: the state of another one is refused."""


def go(
    stage: Stage,
    step: Callable[..., Any],
    draw: Draw,
    rng: np.random.Generator,
    variables: Sequence[Any],
    progress: Progress,
) -> NDArray[np.float64]:
    """Take all steps of a stage, from where an earlier run has stopped.

    Args:
        stage: see there.
        step: takes a batch, changes `variables`, gives some numbers.
        draw: makes a batch, while the step before is taken.
        rng: where its chance comes from.
        variables: all that steps change: the model's, the optimizer's.
        progress: told of steps.

    Returns:
        The numbers, meant over the last tenth of the steps.

    Raises:
        TrainingError: the state kept is damaged, or of another recipe or other data.
    """
    import tensorflow as tf

    state = load_state(stage.folder, stage.identity) or State()
    told: list[NDArray] = []
    if state.step:
        assign(variables, state.arrays["variables"], "variables")
        rng.bit_generator.state = json.loads(state.arrays["chance"][0].tobytes())
        told = list(state.arrays["told"][0])
        progress(stage.name, state.step, stage.steps)
    saved = time.monotonic()
    for batch, chance in _ahead(draw, rng, stage.steps - state.step):
        told.append(np.array([float(v) for v in step(*map(tf.constant, batch))]))
        state.step += 1
        if state.step % 20 == 0:
            progress(stage.name, state.step, stage.steps)
        if time.monotonic() - saved > SAVED_S or state.step == stage.steps:
            kept = np.frombuffer(json.dumps(chance).encode(), np.uint8)
            state.arrays = {"variables": values_of(variables), "chance": [kept], "told": [np.stack(told)]}
            save_state(stage.folder, state, stage.identity)
            saved = time.monotonic()
    return np.asarray(np.mean(told[-max(1, stage.steps // 10) :], axis=0))


def _ahead(
    draw: Draw, rng: np.random.Generator, count: int
) -> Iterator[tuple[tuple[NDArray, ...], Mapping[str, Any]]]:
    """So many batches, each drawn while the one before is used, and the state of chance behind each."""

    def drawn() -> tuple[tuple[NDArray, ...], Mapping[str, Any]]:
        return draw(rng), rng.bit_generator.state

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(drawn) if count else None
        for number in range(count):
            assert waiting is not None
            batch = waiting.result()
            waiting = pool.submit(drawn) if number + 1 < count else None
            yield batch
