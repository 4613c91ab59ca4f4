"""Training of the representation: second moments of drawn crops, then two eigenvalue problems.

Strategy. For Gaussian vectors, mutual information is a function of covariances, so both codes have closed
forms and the steps only gather moments. A step draws crops of some places on two dates. Each crop gives the
encoder's vector and statistics of its light. Three covariances matter. *Within* an image crops differ.
*Across* two dates the same crops agree: this is what the place keeps. *Between* the means of two dates lies
what the date adds.

- Shared code: the directions of the vector with the largest correlation across dates (canonical correlation).
  Before, all directions that predict the brightness are projected out.
- Exclusive code: the directions of the statistics with the largest ratio of between to within and across.
  This is Fisher's discriminant, with the place as further noise. A power of the ratio scales each number.

Sources: D. Hardoon, S. Szedmak, J. Shawe-Taylor, Canonical correlation analysis (2004). R. Fisher, The use of
multiple measurements in taxonomic problems (1936). N. Belrose et al., LEACE: perfect linear concept erasure
in closed form (2023).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import RepresentationConfig
from retrieval.errors import TrainingError
from retrieval.models.encoder import fingerprint, load_encoder
from retrieval.models.light_statistics import light_statistics
from retrieval.models.representation import LIGHT, PLACE, STANDARD, representation_model
from retrieval.training.checkpoint import folder_of
from retrieval.training.light_batches import draw_sights, usable_series
from retrieval.training.trainer import (
    CHECKPOINT_S,
    ProgressCallback,
    Schedule,
    Trainer,
    check_output,
    identity_of,
    print_progress,
    save_model,
    seed_networks,
)
from tfrecords.read import read_series
from tfrecords.schema import BANDS, Series

_RIDGE = 1e-3
"""Share of the mean variance that is added to the covariance of the vectors before it is inverted."""
BRIGHTNESS = 2 * len(BANDS)
"""The first statistics: mean and log-spread of each band, which the shared code must not predict."""
_STANDARD_DRAWS = 24
"""Batches that give the mean and the spread of each statistic, before the steps."""


def train_representation(
    series: Any,
    out: Path | str,
    config: RepresentationConfig | None = None,
    *,
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
    checkpoint_s: float = CHECKPOINT_S,
) -> dict[str, float]:
    """Train a representation on the vector of the default encoder.

    The state lies in `<out>.training/` until the file is written. The same call with the same recipe and data
    resumes an interrupted run.

    Args:
        series: what `tfrecords.read.read_series` opens.
        out: a `.keras` file.
        config: the recipe; the same one with the same data gives the same weights.
        overwrite: replace an existing file, and the state of another recipe or other data.
        progress: called after every step; None prints to standard error.
        checkpoint_s: seconds between checkpoints.

    Returns:
        Mean correlation of the shared code across two dates. And the variance of the exclusive code's first
        number between dates, over its variance within an image.

    Raises:
        TrainingError: no place with room for crops, or the state of another run.
        OutputExistsError: `out` exists and `overwrite` is false.
    """
    out, config = Path(out), config or RepresentationConfig()
    check_output(out, overwrite)
    encoder = load_encoder().model  # type: ignore[attr-defined]
    trainer = Trainer(
        folder_of(out),
        identity_of(config.to_dict(), series=series) | {"encoder": fingerprint(encoder)},
        Schedule(config.steps, checkpoint_s=checkpoint_s),
        progress or print_progress(),
        "gathering moments",
    )
    is_resumed = trainer.load(overwrite)
    records = usable_series(list(read_series(series)))
    seed_networks(config.seed)
    model = representation_model(encoder, config)
    if not is_resumed:
        trainer.note(f"measuring the statistics of {len(records)} series")
        fit_standard(model, records, config)
    size = sum(model.get_layer(name).input.shape[-1] for name in (PLACE, LIGHT))
    moments = Moments(size, config.steps * config.places)
    trainer.track(model=model.weights, moments=moments.variables)
    rng = np.random.default_rng([config.seed, 1])
    trainer.run_drawn(_step(model, moments), partial(_drawn_crops, records, config, relit=True), rng)
    figures = fit_codes(model, moments, config)
    save_model(model, out, overwrite=overwrite)
    shutil.rmtree(trainer.folder)
    return figures


# --- moments ------------------------------------------------------------------------------------------


def fit_standard(model: Any, records: Sequence[Series], config: RepresentationConfig) -> None:
    """Set mean and spread of the statistics, from crops in their own light."""
    import tensorflow as tf

    @tf.function(reduce_retracing=True)
    def measure(crops: Any) -> Any:
        return light_statistics(crops, len(BANDS))

    rng = np.random.default_rng([config.seed, 0])
    values, known = [], []
    for _ in range(_STANDARD_DRAWS):
        (crops,) = _drawn_crops(records, config, rng, relit=False)
        statistics, present = measure(tf.constant(crops.reshape(-1, *crops.shape[3:])))
        values.append(np.asarray(statistics, np.float64))
        known.append(np.asarray(present, np.float64))
    seen, shown = np.concatenate(values), np.concatenate(known)
    mean = (seen * shown).sum(0) / np.maximum(shown.sum(0), 1)
    variance = ((seen - mean) ** 2 * shown).sum(0) / np.maximum(shown.sum(0), 1)
    model.get_layer(STANDARD).set_weights([mean, np.where(variance > 1e-8, variance, 1.0)])


def _drawn_crops(
    records: Sequence[Series], config: RepresentationConfig, rng: np.random.Generator, *, relit: bool
) -> tuple[NDArray[np.float32]]:
    return (draw_sights(records, config, rng, relit=relit).crops,)


class Moments:
    """Sums over images of z, an encoder's vector followed by the standardized statistics; float64.

    Crops i of images 1 and 2 show one place on two dates; m is the mean of an image, e = z - m.
    """

    def __init__(self, size: int, pairs: int) -> None:
        """Start with nothing, for z of a length and a number of pairs of images."""
        import tensorflow as tf

        self.within, self.across, self.total = (
            tf.Variable(tf.zeros((size, size), tf.float64)) for _ in range(3)
        )
        self.changes = tf.Variable(tf.zeros((pairs, size), tf.float64))
        self.sum, self.count = (
            tf.Variable(tf.zeros((size,), tf.float64)),
            tf.Variable(tf.zeros((), tf.float64)),
        )

    @property
    def variables(self) -> list[Any]:
        """All sums, in a fixed order."""
        return [self.within, self.across, self.total, self.changes, self.sum, self.count]

    def add(self, z: Any) -> None:
        """Add crops.

        Args:
            z: (p, 2, c, size) float64 of c crops of p places on two dates.
        """
        import tensorflow as tf

        crops = tf.cast(tf.shape(z)[2], tf.float64)
        mean = tf.reduce_mean(z, 2, keepdims=True)
        own, done = z - mean, tf.cast(self.count, tf.int32) // 2
        within = tf.einsum("ptci,ptcj->ij", own, own) / (crops - 1)  # 2 p images
        across = tf.einsum("pci,pcj->ij", own[:, 0], own[:, 1]) / (crops - 1)
        self.within.assign_add(within)
        self.across.assign_add(across + tf.transpose(across))
        self.total.assign_add(tf.einsum("ptci,ptcj->ij", z, z) / crops)
        self.sum.assign_add(tf.reduce_sum(mean, (0, 1, 2)))
        change = (mean[:, 1, 0] - mean[:, 0, 0]) / 2.0**0.5
        self.changes.scatter_nd_update((done + tf.range(tf.shape(z)[0]))[:, None], change)
        self.count.assign_add(2.0 * tf.cast(tf.shape(z)[0], tf.float64))

    def covariances(self) -> Covariances:
        """Return the covariances of all that was added."""
        count = float(self.count.numpy())
        mean = self.sum.numpy() / count
        within, across, total = (v.numpy() / count for v in (self.within, self.across, self.total))
        return Covariances(within, across, total - np.outer(mean, mean), self.changes.numpy())


@dataclass(frozen=True, eq=False)
class Covariances:
    """Covariances (size, size) of crops."""

    within: NDArray[np.float64]
    """From crop to crop of an image."""
    across: NDArray[np.float64]
    """Of the same crops on two dates, from crop to crop: what the place keeps."""
    total: NDArray[np.float64]
    """Of all crops of all places."""
    changes: NDArray[np.float64]
    """(pairs, size) differences of the means of two dates of a place, over the root of 2."""

    def of(self, part: slice) -> Covariances:
        """Return the covariances of a part of the numbers."""
        square = (self.within[part, part], self.across[part, part], self.total[part, part])
        return Covariances(*square, self.changes[:, part])

    def between(self, ridge: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the covariance of the changes: what the date adds.

        A change counts less the larger it is, relative to the crops of an image. So snow or haze on one date
        of one place does not outweigh all other places.
        """
        size = (self.changes @ np.linalg.inv(self.within + ridge) * self.changes).sum(1)
        covariance: NDArray[np.float64] = (self.changes.T / (1 + size)) @ self.changes / len(self.changes)
        return covariance


def _step(model: Any, moments: Moments) -> Any:
    """Return the step: it adds the moments of a batch and returns how far the vectors of two dates differ."""
    import keras
    import tensorflow as tf

    measure = keras.Model(model.input, [model.get_layer(name).input for name in (PLACE, LIGHT)])

    @tf.function(reduce_retracing=True)
    def step(crops: Any) -> Any:
        vector, light = measure(tf.reshape(crops, (-1, *crops.shape[3:])), training=False)
        z = tf.cast(tf.concat([vector, light], -1), tf.float64)
        moments.add(tf.reshape(z, (*crops.shape[:3], z.shape[-1])))
        pairs = tf.reshape(vector, (*crops.shape[:3], -1))
        return (tf.reduce_mean(tf.reduce_sum((pairs[:, 0] - pairs[:, 1]) ** 2, -1)),)

    return step


# --- two eigenvalue problems ------------------------------------------------------------------------


def fit_codes(model: Any, moments: Moments, config: RepresentationConfig) -> dict[str, float]:
    """Set the weights of both codes and return how well they keep the place and the date."""
    covariances = moments.covariances()
    size = model.get_layer(PLACE).input.shape[-1]
    bright = slice(size, size + BRIGHTNESS)
    vectors, light = covariances.of(slice(0, size)), covariances.of(slice(size, None))
    shared, kept = shared_projection(vectors, covariances.total[:size, bright], config.shared_dim)
    exclusive, ratio = exclusive_projection(light, config)
    model.get_layer(PLACE).set_weights([shared])
    model.get_layer(LIGHT).set_weights([exclusive])
    return {"correlation_of_shared": kept, "ratio_of_exclusive": ratio}


def shared_projection(
    vectors: Covariances, brightness: NDArray[np.float64], dim: int
) -> tuple[NDArray[np.float32], float]:
    """Return the directions that two dates have in common, without those that predict brightness.

    Args:
        vectors: covariances of vectors of length d.
        brightness: (d, k) covariance of the vectors with numbers that the code must not predict.
        dim: number of directions, at most d - k.

    Returns:
        (d, dim) float32, and the mean correlation of two dates. Among crops of one image each number has a
        spread of 1.

    Raises:
        TrainingError: too many directions.
    """
    size = len(vectors.total)
    if dim > size - brightness.shape[1]:
        raise TrainingError(
            f"shared_dim: {dim} of {size} numbers of the encoder's vector. Expected at most "
            f"{size - brightness.shape[1]}. Lower shared_dim."
        )
    ridge = _RIDGE * np.trace(vectors.total) / size * np.eye(size)
    whiten = _inverse_root(vectors.total + ridge)
    predictors, _ = np.linalg.qr(whiten @ brightness)
    erase = whiten @ (np.eye(size) - predictors @ predictors.T)
    level = _inverse_root(erase.T @ (vectors.within + ridge) @ erase)
    correlations, directions = _largest(level @ erase.T @ vectors.across @ erase @ level, dim)
    return (erase @ level @ directions).astype(np.float32), float(correlations.mean())


def exclusive_projection(
    light: Covariances, config: RepresentationConfig
) -> tuple[NDArray[np.float32], float]:
    """Return the directions in which two dates differ most, relative to crops of an image and their place.

    Args:
        light: covariances of s standardized statistics.
        config: `exclusive_dim`, `place_weight` and `ridge` are used.

    Returns:
        (s, exclusive_dim) float32, and the ratio of the variance between dates to that within an image, of
        the first number.

    Raises:
        TrainingError: more directions than statistics.
    """
    size = len(light.within)
    if config.exclusive_dim > size:
        raise TrainingError(
            f"exclusive_dim: {config.exclusive_dim} of {size} statistics. Lower exclusive_dim."
        )
    ridge = config.ridge * np.trace(light.within) / size * np.eye(size)
    noise = light.within + config.place_weight * light.across
    level = _inverse_root(noise, least=float(ridge[0, 0]))
    ratios, directions = _largest(level @ light.between(ridge) @ level, config.exclusive_dim)
    code = level @ directions * (np.maximum(ratios, 0) / ratios[0]) ** config.emphasis
    changes = (light.changes @ code) ** 2
    ratio = changes.mean(0) / np.diag(code.T @ light.within @ code)
    return code.astype(np.float32), float(ratio[0])


def _largest(matrix: NDArray[np.float64], dim: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the largest eigenvalues and their vectors (size, dim), the largest entry of each positive."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    values, vectors = values[::-1][:dim], vectors[:, ::-1][:, :dim]
    return values, vectors * np.sign(vectors[np.abs(vectors).argmax(0), np.arange(dim)])


def _inverse_root(covariance: NDArray[np.float64], least: float = 0.0) -> NDArray[np.float64]:
    """Return the inverse square root of a covariance: 0 along directions without variance.

    With `least`, no variance counts as smaller than that, and no direction is lost.
    """
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    usable = np.ones(len(values), bool) if least else values > 1e-9 * values.max()
    scale = np.where(usable, 1 / np.sqrt(np.maximum(values + least, max(least, 1e-300))), 0.0)
    root: NDArray[np.float64] = (vectors * scale) @ vectors.T
    return root
