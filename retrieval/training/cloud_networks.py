"""Training of the cloud network and of the local descriptors, for patches under cloud.

The cloud network learns from crops with pasted clouds of known opacity (`retrieval.training.weather`). The
local descriptors learn to find a patch of one date, with its clouds hidden, in regions of another date. They
compare it with the regions of all pairs of the batch at every fourth pixel. The loss is the cross-entropy of
the true place (InfoNCE). The first stage hides the known clouds, the second the ones that the network finds.
The last stage adds seasons that the data lack (`retrieval.training.seasons`).

Source: A. van den Oord et al., Representation learning with contrastive predictive coding (2018).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import CloudConfig
from retrieval.models.cloud_mask import CloudMask, cloud_model, shipped_cloud_mask
from retrieval.models.encoder import fingerprint
from retrieval.models.local_descriptors import STEP_PX, half_resolution, local_model
from retrieval.training.checkpoint import folder_of
from retrieval.training.cloud_batches import Draws, by_bands, draw_clouds, draw_pairs
from retrieval.training.trainer import (
    CHECKPOINT_S,
    ProgressCallback,
    Schedule,
    Trainer,
    adam_w,
    check_output,
    identity_of,
    print_progress,
    save_model,
    seed_networks,
)
from tfrecords.read import read_series

STAGES = {"known": "under known clouds", "found": "under found clouds", "seasons": "in other seasons"}
"""The stages of the local descriptors, in their order, and what they show."""
RATES = {"known": 1.0, "found": 0.5, "seasons": 0.25}
"""Factor of the learning rate in each stage of the local descriptors."""


def train_cloud_mask(
    series: Any,
    out: Path | str,
    config: CloudConfig | None = None,
    *,
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
    checkpoint_s: float = CHECKPOINT_S,
) -> dict[str, float]:
    """Train the cloud network.

    The state lies in `<out>.training/` until the network is written. The same call with the same recipe and
    data resumes an interrupted run.

    Args:
        series: what `tfrecords.read.read_series` opens.
        out: a `.keras` file.
        config: the recipe; the same one with the same data gives the same weights.
        overwrite: replace an existing file, and the state of another recipe or other data.
        progress: called after every step; None prints to standard error.
        checkpoint_s: seconds between checkpoints.

    Returns:
        Loss, share of cloudy pixels found and share of clear pixels hidden by mistake, averaged over the last
        tenth of the steps.

    Raises:
        TrainingError: no bands with `config.min_places` places that are large enough, or the state of
            another run.
        OutputExistsError: `out` exists and `overwrite` is false.
    """
    out, config = Path(out), config or CloudConfig()
    check_output(out, overwrite)
    trainer = Trainer(
        folder_of(out),
        identity_of(config.to_dict(), series=series),
        Schedule(config.cloud_steps, checkpoint_s=checkpoint_s),
        progress or print_progress(),
        "training the cloud network",
    )
    trainer.load(overwrite)
    sets = by_bands(list(read_series(series)), config)
    seed_networks(config.seed)
    model = cloud_model(config.cloud_width)
    figures = _fit_clouds(model, sets, config, trainer)
    save_model(model, out, overwrite=overwrite)
    shutil.rmtree(trainer.folder)
    return dict(zip(("loss", "cloud_found", "clear_hidden"), figures.tolist(), strict=True))


def train_local_descriptors(
    series: Any,
    out: Path | str,
    config: CloudConfig | None = None,
    *,
    cloud_mask: CloudMask | None = None,
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
    checkpoint_s: float = CHECKPOINT_S,
) -> dict[str, float]:
    """Train the local descriptors: under known clouds, then under found masks, then in other seasons.

    Args:
        series: as for `train_cloud_mask`, as are the other arguments.
        out: a `.keras` file.
        config: the recipe.
        cloud_mask: the cloud network of the second stage; None for the shipped one.
        overwrite: replace an existing file and the state of another run.
        progress: called after every step.
        checkpoint_s: seconds between checkpoints.

    Returns:
        Loss and share of patches whose own place came first, of each stage, averaged over the last tenth of
        their steps.

    Raises:
        TrainingError, OutputExistsError: as `train_cloud_mask`.
    """
    out, config = Path(out), config or CloudConfig()
    check_output(out, overwrite)
    finder = cloud_mask or shipped_cloud_mask()
    identity = identity_of(config.to_dict(), series=series) | {"cloud_mask": fingerprint(finder.model)}
    show, stages = progress or print_progress(), []
    steps = {"known": config.steps, "found": config.found_steps, "seasons": config.season_steps}
    for name, count in steps.items():
        text = f"training local descriptors {STAGES[name]}"
        schedule = Schedule(count, checkpoint_s=checkpoint_s)
        trainer = Trainer(folder_of(out) / name, identity, schedule, show, text)
        trainer.load(overwrite)
        stages.append((name, trainer))
    sets = by_bands(list(read_series(series)), config)
    seed_networks(config.seed)
    model, figures = local_model(config.dim), dict[str, float]()
    for name, trainer in stages:
        if trainer.schedule.steps:
            mask = None if name == "known" else finder
            loss, right = _fit_local(model, sets, config, trainer, mask, name).tolist()
            figures |= {f"{name}_loss": loss, f"{name}_right": right}
    save_model(model, out, overwrite=overwrite)
    shutil.rmtree(folder_of(out))
    return figures


def _fit_clouds(model: Any, sets: Draws, config: CloudConfig, trainer: Trainer) -> NDArray[np.float64]:
    """Minimise the cross-entropy of every pixel."""
    import tensorflow as tf

    optimizer = adam_w(
        model.trainable_variables, trainer.schedule.steps, config.learning_rate, config.weight_decay
    )

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

    trainer.track(variables=[*model.variables, *optimizer.variables])
    rng = np.random.default_rng([config.seed, 2])
    return trainer.run_drawn(step, lambda chance: draw_clouds(sets, config, chance), rng)


def _fit_local(
    model: Any, sets: Draws, config: CloudConfig, trainer: Trainer, finder: CloudMask | None, stage: str
) -> NDArray[np.float64]:
    """Minimise the cross-entropy of each patch's own place among all places of the batch, in a stage."""
    import tensorflow as tf

    share = config.season_share if stage == "seasons" else 0.0
    heat = tf.Variable(np.log(25.0).astype(np.float32))  # of the softmax; learned
    variables = [*model.trainable_variables, heat]
    optimizer = adam_w(
        variables, trainer.schedule.steps, RATES[stage] * config.learning_rate, config.weight_decay
    )

    @tf.function(reduce_retracing=True)
    def step(patches: Any, regions: Any, offset: Any, foreign: Any) -> Any:
        with tf.GradientTape() as tape:
            queries = model(list(half_resolution(patches)), training=True)
            stored = model(list(half_resolution(regions)), training=True)
            loss, right = place_loss(queries, stored, offset, foreign, tf.exp(heat))
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss, right

    trainer.track(variables=[*model.variables, heat, *optimizer.variables])
    rng = np.random.default_rng([config.seed, 3 + [*STAGES].index(stage)])
    return trainer.run_drawn(step, lambda chance: draw_pairs(sets, config, chance, finder, share), rng)


def place_loss(queries: Any, stored: Any, offset: Any, foreign: Any, heat: Any) -> tuple[Any, Any]:
    """Return InfoNCE over all places of all regions, and the share of patches whose own place is the best.

    Args:
        queries: (n, s, s, c) descriptors of patches.
        stored: (n, r, r, c) of regions.
        offset: (n, 2) where each patch lies in its region, in pixels.
        foreign: (n, n), see `draw_pairs`.
        heat: factor of the scores.
    """
    import tensorflow as tf

    n, side = queries.shape[0], queries.shape[1]
    queries *= tf.math.rsqrt(tf.reduce_sum(queries**2, (1, 2, 3), keepdims=True) + 1e-6)
    energy = tf.reduce_mean(tf.reduce_sum(stored**2, -1, keepdims=True), (1, 2), keepdims=True)
    stored *= tf.math.rsqrt(energy * side * side + 1e-6)
    score = tf.nn.conv2d(stored, tf.transpose(queries, (1, 2, 3, 0)), 1, "VALID") * heat
    score = tf.transpose(score, (3, 0, 1, 2))  # patch, region, y, x
    at = tf.range(score.shape[2], dtype=tf.float32) * STEP_PX
    away = tf.maximum(
        tf.abs(at[None, None, :] - offset[:, :1, None]), tf.abs(at[None, :, None] - offset[:, 1:, None])
    )
    nearest = away <= tf.reduce_min(away, (1, 2), keepdims=True)
    diagonal = tf.eye(n, dtype=tf.bool)[:, :, None, None]
    right = diagonal & nearest[:, None]
    beside = diagonal & ((away < 2.5 * STEP_PX) & ~nearest)[:, None]
    none = tf.constant(-1e9)
    score = tf.where(beside | ~foreign[:, :, None, None], none, score)
    of_right = tf.where(right, score, none)
    loss = tf.reduce_logsumexp(score, (1, 2, 3)) - tf.reduce_logsumexp(of_right, (1, 2, 3))
    first = tf.reduce_max(of_right, (1, 2, 3)) >= tf.reduce_max(score, (1, 2, 3))
    return tf.reduce_mean(loss), tf.reduce_mean(tf.cast(first, tf.float32))
