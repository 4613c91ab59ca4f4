"""Training of the two networks for patches under cloud: one finds the cloud, one describes what is left.

The first learns from crops with pasted clouds, whose opacity is known. The second learns local descriptors:
a patch of one date, the cloud in it hidden, is looked for in regions of another date, its own and those of
all other pairs of the batch, at every fourth pixel; the loss is the cross-entropy of its true place among
all of these (InfoNCE). At first the clouds are hidden by what is known of them, then where the first network
finds them, which is what the search meets. Where clouds come from: `retrieval.training.weather`.

Source: A. van den Oord et al., Representation learning with contrastive predictive coding (2018).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from retrieval.config import CoveredConfig
from retrieval.errors import TrainingError
from retrieval.models.cloud_mask import CloudMask, cloud_model
from retrieval.models.local_descriptors import STEP_PX, half_resolution, local_model
from retrieval.training.checkpoint import folder_of, load_state
from retrieval.training.cloud_batches import Draws, by_bands, draw_clouds, draw_pairs
from retrieval.training.steps import Stage, check_backend, go
from retrieval.types import Progress, silent
from tfrecords.artifacts import writing_file
from tfrecords.read import read_series, series_files

FOUND_RATE = 0.5
"""Adam's step where masks are found, of that before."""


def train_covered(
    series: Any,
    clouds: Path,
    local: Path,
    config: CoveredConfig,
    *,
    overwrite: bool = False,
    progress: Progress = silent,
) -> dict[str, float]:
    """Train both networks.

    State is kept in `<local>.training/` until both are written: a run that was stopped goes on from there
    when it is called again with the same recipe and data.

    Args:
        series: what `tfrecords.read.read_series` opens.
        clouds: a `.keras` file for the network that finds clouds.
        local: one for the local descriptors.
        config: the recipe; the same one with the same data gives the same weights.
        overwrite: replace files that are there, and begin anew where the state kept is of another recipe or
            other data.
        progress: told of steps.

    Returns:
        Over the last tenth of the steps: loss of both, share of cloudy pixels found and of clear ones
        missed, share of patches whose own place came first.

    Raises:
        TrainingError: no bands with `config.least_places` places that are large enough, or the state of
            another recipe in the way.
        OutputExistsError: a file is there and `overwrite` is false.
    """
    import keras

    check_backend()
    with _saved(clouds, overwrite) as save_clouds, _saved(local, overwrite) as save_local:
        stages = _stages(series, folder_of(local), config, overwrite)
        sets = by_bands(list(read_series(series)), config)
        keras.utils.set_random_seed(config.seed)
        finding = cloud_model(config.cloud_width)
        figures = _fit_clouds(finding, sets, config, stages[0], progress)
        keras.utils.set_random_seed(config.seed)
        describing = local_model(config.dim)
        figures |= _fit_local(describing, sets, config, stages[1], progress)
        if config.found_steps:
            figures |= _fit_local(describing, sets, config, stages[2], progress, CloudMask(finding))
        save_clouds(finding)
        save_local(describing)
    shutil.rmtree(folder_of(local))
    return figures


def _stages(series: Any, folder: Path, config: CoveredConfig, overwrite: bool) -> list[Stage]:
    """The stages, and where each keeps its state; that of another training is removed if it may be."""
    files = [[path.name, path.stat().st_size] for path in series_files(series)]
    identity = {"recipe": config.to_dict(), "data": files}
    local = "training local descriptors"
    steps = {
        "clouds": ("training to find clouds", config.cloud_steps),
        "local": (local, config.steps),
        "found": (f"{local} under found masks", config.found_steps),
    }
    stages = [Stage(text, count, folder / name, identity) for name, (text, count) in steps.items()]
    try:
        for stage in stages:
            load_state(stage.folder, identity)
    except TrainingError:
        if not overwrite:
            raise
        shutil.rmtree(folder)
    return stages


@contextmanager
def _saved(out: Path, overwrite: bool) -> Iterator[Callable[[Any], None]]:
    """What saves a model, whole or not at all."""
    with writing_file(out, overwrite=overwrite) as temporary:

        def save(model: Any) -> None:
            model.save(temporary.with_suffix(".keras"))
            temporary.with_suffix(".keras").replace(temporary)

        yield save


def _fit_clouds(
    model: Any, sets: Draws, config: CoveredConfig, stage: Stage, progress: Progress
) -> dict[str, float]:
    """Cross-entropy of every pixel."""
    import tensorflow as tf

    optimizer = _optimizer(model.trainable_variables, stage.steps, config)

    @tf.function(reduce_retracing=True)
    def step(crops: Any, label: Any) -> Any:
        with tf.GradientTape() as tape:
            odds = model(crops, training=True)
            loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(label, odds))
        grads = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(grads, model.trainable_variables, strict=True))
        found = tf.cast(odds > 0, tf.float32)
        cloud = tf.reduce_sum(found * label) / tf.maximum(tf.reduce_sum(label), 1.0)
        clear = tf.reduce_sum(found * (1 - label)) / tf.maximum(tf.reduce_sum(1 - label), 1.0)
        return loss, cloud, clear

    rng, changed = np.random.default_rng([config.seed, 2]), [*model.variables, *optimizer.variables]
    told = go(stage, step, lambda chance: draw_clouds(sets, config, chance), rng, changed, progress)
    return dict(zip(("cloud_loss", "cloud_found", "clear_missed"), told.tolist(), strict=True))


def _fit_local(
    model: Any,
    sets: Draws,
    config: CoveredConfig,
    stage: Stage,
    progress: Progress,
    finder: CloudMask | None = None,
) -> dict[str, float]:
    """Cross-entropy of each patch's own place among all places of the batch."""
    import tensorflow as tf

    names = ("local_loss", "local_right")
    if finder is not None:
        names = ("found_loss", "found_right")
        config = replace(config, learning_rate=FOUND_RATE * config.learning_rate)

    heat = tf.Variable(np.log(25.0).astype(np.float32))  # of the softmax; learned
    variables = [*model.trainable_variables, heat]
    optimizer = _optimizer(variables, stage.steps, config)

    @tf.function(reduce_retracing=True)
    def step(patches: Any, regions: Any, offset: Any, foreign: Any) -> Any:
        with tf.GradientTape() as tape:
            asked = model(list(half_resolution(patches)), training=True)
            stored = model(list(half_resolution(regions)), training=True)
            loss, right = _loss(asked, stored, offset, foreign, tf.exp(heat))
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss, right

    rng = np.random.default_rng([config.seed, 3 if finder is None else 4])
    changed = [*model.variables, heat, *optimizer.variables]
    told = go(stage, step, lambda chance: draw_pairs(sets, config, chance, finder), rng, changed, progress)
    return dict(zip(names, told.tolist(), strict=True))


def _loss(asked: Any, stored: Any, offset: Any, foreign: Any, heat: Any) -> tuple[Any, Any]:
    """InfoNCE over all places of all regions, and the share of patches whose own place is the best.

    Args:
        asked: (n, s, s, c) descriptors of patches.
        stored: (n, r, r, c) of regions.
        offset: (n, 2) where each patch lies in its region, in pixels.
        foreign: (n, n), see `draw_pairs`.
        heat: factor of the scores.
    """
    import tensorflow as tf

    n, side = asked.shape[0], asked.shape[1]
    asked *= tf.math.rsqrt(tf.reduce_sum(asked**2, (1, 2, 3), keepdims=True) + 1e-6)
    energy = tf.reduce_mean(tf.reduce_sum(stored**2, -1, keepdims=True), (1, 2), keepdims=True)
    stored *= tf.math.rsqrt(energy * side * side + 1e-6)
    score = tf.nn.conv2d(stored, tf.transpose(asked, (1, 2, 3, 0)), 1, "VALID") * heat
    score = tf.transpose(score, (3, 0, 1, 2))  # patch, region, y, x
    at = tf.range(score.shape[2], dtype=tf.float32) * STEP_PX
    away = tf.maximum(
        tf.abs(at[None, None, :] - offset[:, :1, None]), tf.abs(at[None, :, None] - offset[:, 1:, None])
    )
    nearest = away <= tf.reduce_min(away, (1, 2), keepdims=True)
    own = tf.eye(n, dtype=tf.bool)[:, :, None, None]
    right = own & nearest[:, None]
    beside = own & ((away < 2.5 * STEP_PX) & ~nearest)[:, None]
    none = tf.constant(-1e9)
    score = tf.where(beside | ~foreign[:, :, None, None], none, score)
    of_right = tf.where(right, score, none)
    loss = tf.reduce_logsumexp(score, (1, 2, 3)) - tf.reduce_logsumexp(of_right, (1, 2, 3))
    first = tf.reduce_max(of_right, (1, 2, 3)) >= tf.reduce_max(score, (1, 2, 3))
    return tf.reduce_mean(loss), tf.reduce_mean(tf.cast(first, tf.float32))


def _optimizer(variables: Sequence[Any], steps: int, config: CoveredConfig) -> Any:
    """AdamW along a half cosine, after a short rise."""
    import keras

    rate = keras.optimizers.schedules.CosineDecay(
        1e-6, steps, warmup_target=config.learning_rate, warmup_steps=steps // 30
    )
    optimizer = keras.optimizers.AdamW(rate, weight_decay=config.weight_decay, clipnorm=1.0)
    optimizer.build(variables)
    return optimizer
