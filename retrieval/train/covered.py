"""Training of the two networks for patches under cloud: one finds the cloud, one describes what is left.

The first learns from crops with pasted clouds, whose opacity is known. The second learns local descriptors:
a patch of one date, the cloud in it hidden, is looked for in regions of another date, its own and those of
all other pairs of the batch, at every fourth pixel; the loss is the cross-entropy of its true place among
all of these (InfoNCE). Where clouds come from: `retrieval.train.weather`.

Source: A. van den Oord et al., Representation learning with contrastive predictive coding (2018).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.clouds import cloud_model
from retrieval.config import PATCH_PX, AugmentConfig, CoveredConfig
from retrieval.errors import TrainingError
from retrieval.local import STEP_PX, half_resolution, local_model
from retrieval.train.augment import add_noise, blurred, change_light, in_bytes, turned_alike
from retrieval.train.step import check_backend
from retrieval.train.weather import add_haze, under_clouds
from retrieval.types import Progress, silent
from tfrecords.manifest import writing_file
from tfrecords.read import read_series
from tfrecords.schema import Series, to_scaled

CLOUDY = 0.12
"""Opacity, meant over 2 x 2 pixels, from which on a pixel counts as cloud."""
LEAST_KNOWN = 0.95
"""Share of a crop that must be known."""

Draws = dict[tuple[str, ...], list[Series]]
"""Series by their bands."""


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

    Args:
        series: what `tfrecords.read.read_series` opens.
        clouds: a `.keras` file for the network that finds clouds.
        local: one for the local descriptors.
        config: the recipe; the same one with the same data gives the same weights.
        overwrite: replace files that are there.
        progress: told of steps.

    Returns:
        Over the last tenth of the steps: loss of both, share of cloudy pixels found and of clear ones
        missed, share of patches whose own place came first.

    Raises:
        TrainingError: no bands with `config.least_places` places that are large enough.
        OutputExistsError: a file is there and `overwrite` is false.
    """
    import keras

    check_backend()
    sets = by_bands(list(read_series(series)), config)
    figures: dict[str, float] = {}
    for out, model, fit in (
        (clouds, lambda: cloud_model(config.cloud_width), _fit_clouds),
        (local, lambda: local_model(config.dim), _fit_local),
    ):
        with writing_file(out, overwrite=overwrite) as temporary:
            keras.utils.set_random_seed(config.seed)
            made = model()
            figures |= fit(made, sets, config, progress)
            made.save(temporary.with_suffix(".keras"))
            temporary.with_suffix(".keras").replace(temporary)
    return figures


def by_bands(series: Sequence[Series], config: CoveredConfig) -> Draws:
    """Series that are large enough, by their bands, of those that enough places have."""
    sets: Draws = {}
    for one in series:
        if min(one.pixels.shape[1:3]) >= config.region_px and len(one.pixels) > 1:
            sets.setdefault(one.bands, []).append(one)
    places = {bands: len({one.overlap_group for one in those}) for bands, those in sets.items()}
    chosen = {b: those for b, those in sorted(sets.items()) if places[b] >= config.least_places}
    if not chosen:
        raise TrainingError(
            f"{len(series)} series, at most {max(places.values(), default=0)} places with the same bands, "
            f"two dates and {config.region_px} px; expected {config.least_places}"
        )
    return chosen


def _some_bands(count: int, rng: np.random.Generator) -> list[int]:
    """All bands, the first three, or a single one."""
    draw = rng.random()
    if count >= 3 and draw >= 0.5:
        return [0, 1, 2] if count > 3 and draw < 0.75 else [int(rng.integers(count))]
    return list(range(count))


def _set_of(sets: Draws, rng: np.random.Generator) -> list[Series]:
    """Series of one set of bands; those with colours and near infrared twice as often."""
    weight = np.array([2.0 if {"B02", "B08"} <= set(bands) else 1.0 for bands in sets])
    return list(sets.values())[int(rng.choice(len(sets), p=weight / weight.sum()))]


# --- clouds ---------------------------------------------------------------------------------------


def draw_clouds(
    sets: Draws, config: CoveredConfig, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A batch of crops, some under clouds.

    Returns:
        crops (n, 64, 64, b) scaled, and (n, 32, 32) 1 where there is cloud, else 0.
    """
    series, n = _set_of(sets, rng), config.cloud_batch
    columns = _some_bands(len(series[0].bands), rng)
    drawn: list[NDArray] = []
    while len(drawn) < n:
        one = series[int(rng.integers(len(series)))]
        y, x = (int(rng.integers(size - PATCH_PX + 1)) for size in one.pixels.shape[1:3])
        crop = one.pixels[int(rng.integers(len(one.pixels))), y : y + PATCH_PX, x : x + PATCH_PX]
        scaled = to_scaled(crop, one.units, one.nodata)[..., columns]
        if (~np.isnan(scaled).all(-1)).mean() >= LEAST_KNOWN:
            drawn.append(turned_alike(scaled, int(rng.integers(8))))
    crops, opacity = np.stack(drawn).astype(np.float32), np.zeros((n, PATCH_PX, PATCH_PX), np.float32)
    rows = np.flatnonzero(rng.random(n) < 0.5)
    lit = crops[rows]
    change_light(lit, AugmentConfig(), rng)
    crops[rows] = lit
    rows = np.flatnonzero(rng.random(n) < 0.65)
    made = under_clouds(crops[rows], rng.uniform(0.03, 0.85, len(rows)), rng)
    crops[rows], opacity[rows] = made.pixels, made.cloud
    _change(crops, ((0.15, lambda p: add_haze(p, rng)),), rng)
    add_noise(crops, 15.0, rng)
    _change(crops, ((0.2, lambda p: in_bytes(p, rng)),), rng)
    half = opacity.reshape(n, PATCH_PX // 2, 2, PATCH_PX // 2, 2).mean((2, 4))
    return np.clip(crops, -1, 1), (half > CLOUDY).astype(np.float32)


def _change(
    crops: NDArray[np.float32],
    changes: Sequence[tuple[float, Callable[[NDArray], NDArray]]],
    rng: np.random.Generator,
) -> None:
    """Make changes to a share of the crops each, in place."""
    for share, change in changes:
        rows = np.flatnonzero(rng.random(len(crops)) < share)
        if len(rows):
            crops[rows] = change(crops[rows])


def _fit_clouds(model: Any, sets: Draws, config: CoveredConfig, progress: Progress) -> dict[str, float]:
    """Cross-entropy of every pixel."""
    import tensorflow as tf

    optimizer = _optimizer(model.trainable_variables, config.cloud_steps, config)

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

    rng = np.random.default_rng([config.seed, 2])
    batches = _ahead(lambda: draw_clouds(sets, config, rng), config.cloud_steps)
    told = _run(step, batches, config.cloud_steps, "training to find clouds", progress)
    return dict(zip(("cloud_loss", "cloud_found", "clear_missed"), told.tolist(), strict=True))


# --- local descriptors ----------------------------------------------------------------------------


def draw_pairs(sets: Draws, config: CoveredConfig, rng: np.random.Generator) -> tuple[NDArray, ...]:
    """A batch of patches, most under clouds that are hidden, and of regions of other dates.

    Returns:
        patches (n, 64, 64, b) and regions (n, r, r, b) scaled; offset (n, 2) x and y of each patch in its
        region; foreign (n, n) false where patch i may be seen in region j though they are no pair.
    """
    series, n, side = _set_of(sets, rng), config.batch, config.region_px
    columns = _some_bands(len(series[0].bands), rng)
    area = np.sqrt([float(np.prod(one.pixels.shape[1:3])) for one in series])
    patches: list[NDArray] = []
    regions: list[NDArray] = []
    offsets: list[NDArray] = []
    where: list[tuple[int, int, int, int]] = []
    while len(patches) < n:
        number = int(rng.choice(len(series), p=area / area.sum()))
        one = series[number]
        dates = len(one.pixels)
        first = int(rng.integers(dates))
        for _ in range(config.near):
            second = (first + int(rng.integers(1, dates))) % dates
            y, x = (int(rng.integers(size - side + 1)) for size in one.pixels.shape[1:3])
            both = one.pixels[[first, second], y : y + side, x : x + side]
            scaled = to_scaled(both, one.units, one.nodata)[..., columns]
            if (~np.isnan(scaled).all(-1)).mean((1, 2)).min() < LEAST_KNOWN or len(patches) == n:
                continue
            turned = turned_alike(scaled, int(rng.integers(8)))
            dx, dy = offset = rng.integers(0, side - PATCH_PX + 1, 2)
            regions.append(turned[0])
            patches.append(turned[1][dy : dy + PATCH_PX, dx : dx + PATCH_PX])
            offsets.append(offset)
            where.append((number, one.overlap_group, x, y))
    asked = _weathered(np.stack(patches).astype(np.float32), config, rng)
    stored = np.clip(np.stack(regions).astype(np.float32), -1, 1)
    return asked, stored, np.array(offsets, np.float32), _foreign(where, side)


def _foreign(where: Sequence[tuple[int, int, int, int]], side: int) -> NDArray[np.bool_]:
    """(n, n) whether a region shares no ground with another's; each with its own counts as foreign."""
    number, group, x, y = (np.array(v) for v in zip(*where, strict=True))
    near = (np.abs(x[:, None] - x) < side) & (np.abs(y[:, None] - y) < side)
    shared = np.where(number[:, None] == number, near, group[:, None] == group)
    np.fill_diagonal(shared, False)
    return ~shared


def _weathered(
    patches: NDArray[np.float32], config: CoveredConfig, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Another light, haze and blur on some; clouds on most, hidden from some opacity on."""
    change_light(patches, AugmentConfig(), rng)
    _change(patches, ((0.2, lambda p: add_haze(p, rng)), (0.1, blurred)), rng)
    _change(patches, ((config.covered, lambda p: _hidden(p, rng)),), rng)
    add_noise(patches, 15.0, rng)
    _change(patches, ((0.15, lambda p: in_bytes(p, rng)),), rng)
    return np.clip(patches, -1, 1)


def _hidden(patches: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Patches under clouds, NaN where a mask hides them."""
    made = under_clouds(patches, rng.uniform(0.2, 0.75, len(patches)), rng)
    # No mask is perfect: some hide too little, some too much, a few nothing.
    hidden = made.cloud > rng.uniform(0.04, 0.35, (len(patches), 1, 1))
    hidden &= rng.random((len(patches), 1, 1)) < 0.92
    return np.where(hidden[..., None], np.float32(np.nan), made.pixels)


def _fit_local(model: Any, sets: Draws, config: CoveredConfig, progress: Progress) -> dict[str, float]:
    """Cross-entropy of each patch's own place among all places of the batch."""
    import tensorflow as tf

    heat = tf.Variable(np.log(25.0).astype(np.float32))  # of the softmax; learned
    variables = [*model.trainable_variables, heat]
    optimizer = _optimizer(variables, config.steps, config)

    @tf.function(reduce_retracing=True)
    def step(patches: Any, regions: Any, offset: Any, foreign: Any) -> Any:
        with tf.GradientTape() as tape:
            asked = model(list(half_resolution(patches)), training=True)
            stored = model(list(half_resolution(regions)), training=True)
            loss, right = _loss(asked, stored, offset, foreign, tf.exp(heat))
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss, right

    rng = np.random.default_rng([config.seed, 3])
    batches = _ahead(lambda: draw_pairs(sets, config, rng), config.steps)
    told = _run(step, batches, config.steps, "training local descriptors", progress)
    return dict(zip(("local_loss", "local_right"), told.tolist(), strict=True))


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


# --- both -----------------------------------------------------------------------------------------


def _optimizer(variables: Sequence[Any], steps: int, config: CoveredConfig) -> Any:
    """AdamW along a half cosine, after a short rise."""
    import keras

    rate = keras.optimizers.schedules.CosineDecay(
        1e-6, steps, warmup_target=config.learning_rate, warmup_steps=steps // 30
    )
    optimizer = keras.optimizers.AdamW(rate, weight_decay=config.weight_decay, clipnorm=1.0)
    optimizer.build(variables)
    return optimizer


def _ahead(draw: Callable[[], tuple[NDArray, ...]], count: int) -> Iterator[tuple[NDArray, ...]]:
    """So many batches, each drawn while the one before is used."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(draw)
        for number in range(count):
            batch = waiting.result()
            if number + 1 < count:
                waiting = pool.submit(draw)
            yield batch


def _run(
    step: Callable[..., Any],
    batches: Iterator[tuple[NDArray, ...]],
    steps: int,
    stage: str,
    progress: Progress,
) -> NDArray[np.float64]:
    """All steps; the mean of what the last tenth of them told."""
    import tensorflow as tf

    told = []
    for number, batch in enumerate(batches, 1):
        told.append([float(v) for v in step(*map(tf.constant, batch))])
        if number % 20 == 0:
            progress(stage, number, steps)
    return np.asarray(np.mean(told[-max(1, steps // 10) :], axis=0))
