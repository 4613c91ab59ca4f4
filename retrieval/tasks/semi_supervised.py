"""One step of a semi-supervised training: labels where there are any, consistency elsewhere.

The averaged weights see an unlabelled image weakly augmented and guess its class. The trained weights must
find the same class in the strongly augmented image (FixMatch). Two additions make that work with few labels
and few steps. Guesses are aligned to the frequencies of the classes. Every guess counts, the more the more
confident it is compared with the recent ones (SoftMatch). The averaged weights, which are the result, follow
the trained ones slowly (mean teacher).

Sources: K. Sohn et al., FixMatch, 2020. H. Chen et al., SoftMatch, 2023. D. Berthelot et al.,
ReMixMatch, 2019 (alignment). A. Tarvainen and H. Valpola, Mean teachers, 2017.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import ClassifierConfig
from retrieval.tasks.augmentation import medium, strong, weak
from retrieval.tasks.optimization import apply_gradients, build_optimizer, class_weights

MOMENTUM = 0.99
"""Momentum of the running statistics of the guesses."""
SHARPNESS = 4.0
"""Divisor of the variance of the confidence in `confidence_weight`."""
Step = Callable[..., Sequence[float]]
"""(labelled pixels, labels, unlabelled pixels, step) -> loss, its two parts, mean weight of the guesses."""


def aligned(guess: Any, running: Any, prior: Any) -> Any:
    """Return guesses (n, k) whose mean moves from the running mean (k,) to the prior (k,)."""
    from keras import ops

    moved = guess * prior / ops.maximum(running, 1e-6)
    return moved / ops.sum(moved, axis=-1, keepdims=True)


def confidence_weight(confidence: Any, mean: Any, variance: Any) -> Any:
    """Return weights (n,) in (0, 1]: 1 from the mean confidence up, a Gaussian below it."""
    from keras import ops

    below = ops.minimum(confidence - mean, 0.0)
    return ops.exp(-ops.square(below) * SHARPNESS / (2 * ops.maximum(variance, 1e-6)))


def cross_entropy(logits: Any, target: Any) -> Any:
    """Return the cross-entropy (n,) of logits (n, k) against probabilities (n, k)."""
    from keras import ops

    return ops.sum(target * (ops.logsumexp(logits, axis=-1, keepdims=True) - logits), axis=-1)


class SemiSupervised:
    """The variables of a training, and its step."""

    def __init__(
        self,
        networks: tuple[Any, Any],
        config: ClassifierConfig,
        counts: NDArray[np.int64],
        statistics: tuple[NDArray[Any], NDArray[Any]],
    ) -> None:
        """Collect the variables.

        Args:
            networks: two networks of the same shape: the trained one, and the averaged one.
            config: the recipe.
            counts: (k,) labelled images of each class.
            statistics: mean and variance of each band of pixels divided by the full scale.
        """
        import keras

        self.network, self.average = networks
        self.config, self.classes = config, len(counts)
        self.optimizer = build_optimizer(self.network, config)
        prior = (counts / counts.sum()).astype(np.float32)
        self.running = [
            keras.Variable(np.full(len(counts), 1 / len(counts), np.float32), trainable=False),
            keras.Variable(np.float32(1 / len(counts)), trainable=False),
            keras.Variable(np.float32(1), trainable=False),
        ]
        self._prior, self._weights = prior, class_weights(counts, config.balance)
        self._mean, self._deviation = statistics[0], np.sqrt(statistics[1])

    def compiled(self, full_scale: float) -> Step:
        """Return the step on stored pixels; without unlabelled images their batch is empty."""
        import tensorflow as tf

        def step(pixels: Any, labels: Any, unlabelled: Any, seed: Any) -> Any:
            shown = self._standardized(pixels, full_scale)
            if unlabelled.shape[0] == 0:
                return self._supervised(shown, labels, seed)
            return self._both(shown, labels, self._standardized(unlabelled, full_scale), seed)

        traced = tf.function(step) if self.config.compile else step
        return lambda pixels, labels, unlabelled, number: traced(
            tf.constant(pixels),
            tf.constant(labels),
            tf.constant(unlabelled),
            tf.constant([self.config.seed, int(number) * 64], tf.int32),
        )

    def _standardized(self, pixels: Any, full_scale: float) -> Any:
        import tensorflow as tf

        return (tf.cast(pixels, tf.float32) / full_scale - self._mean) / self._deviation

    def _supervised(self, pixels: Any, labels: Any, seed: Any) -> Any:
        """Take a step on labelled images alone, which are strongly augmented."""
        import tensorflow as tf

        with tf.GradientTape() as tape:
            logits = self.network(strong(pixels, seed + 20, self.config.colour), training=True)
            loss = self._label_loss(logits, labels)
        self._apply(tape, loss)
        return loss, loss, tf.zeros(()), tf.zeros(())

    def _both(self, pixels: Any, labels: Any, unlabelled: Any, seed: Any) -> Any:
        """Take a step on labelled and unlabelled images."""
        import tensorflow as tf

        config = self.config
        target, weight = self._guess(self.average(weak(unlabelled, seed + 10), training=False))
        shown = [medium(pixels, seed + 20, config.colour), strong(unlabelled, seed + 30, config.colour)]
        with tf.GradientTape() as tape:
            logits = self.network(tf.concat(shown, 0), training=True)
            label_loss = self._label_loss(logits[: config.batch], labels)
            guess_loss = tf.reduce_mean(weight * cross_entropy(logits[config.batch :], target))
            loss = label_loss + config.unlabelled_weight * guess_loss
        self._apply(tape, loss)
        return loss, label_loss, guess_loss, tf.reduce_mean(weight)

    def _label_loss(self, logits: Any, labels: Any) -> Any:
        import tensorflow as tf

        smoothing = self.config.label_smoothing
        target = tf.one_hot(labels, self.classes) * (1 - smoothing) + smoothing / self.classes
        weight = tf.gather(tf.constant(self._weights), labels)
        return tf.reduce_mean(weight * cross_entropy(logits, target))

    def _guess(self, logits: Any) -> tuple[Any, Any]:
        """Return the guessed classes (n, k), one-hot, and their weights (n,); update the statistics."""
        import tensorflow as tf

        guess = tf.nn.softmax(logits)
        share, mean, variance = self.running
        share.assign(MOMENTUM * share + (1 - MOMENTUM) * tf.reduce_mean(guess, 0))
        guess = aligned(guess, share, self._prior)
        confidence = tf.reduce_max(guess, -1)
        mean.assign(MOMENTUM * mean + (1 - MOMENTUM) * tf.reduce_mean(confidence))
        spread = tf.math.reduce_variance(confidence)
        variance.assign(MOMENTUM * variance + (1 - MOMENTUM) * spread)
        target = tf.one_hot(tf.argmax(guess, -1), self.classes)
        return target, confidence_weight(confidence, mean, variance)

    def _apply(self, tape: Any, loss: Any) -> None:
        """Change the trained weights, and let the averaged ones follow."""
        apply_gradients(self.optimizer, self.network, self.average, self.config.average, tape, loss)
