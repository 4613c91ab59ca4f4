"""Temperature scaling: one number that makes the probabilities of a classifier honest.

Source: C. Guo et al., On calibration of modern neural networks, 2017.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval.evaluation.calibration_fit import expected_calibration_error

RANGE = (0.05, 20.0)
"""Smallest and largest temperature."""
_STEPS = 80
_GOLDEN = (5**0.5 - 1) / 2


def softmax(logits: NDArray[np.floating], temperature: float = 1.0) -> NDArray[np.float64]:
    """Return the probabilities of logits (..., k), divided by a temperature."""
    scaled = logits.astype(np.float64) / temperature
    scaled = np.exp(scaled - scaled.max(-1, keepdims=True))
    return np.asarray(scaled / scaled.sum(-1, keepdims=True))


def negative_log_likelihood(
    logits: NDArray[np.floating], labels: NDArray[np.int64], temperature: float = 1.0
) -> float:
    """Return the mean negative logarithm of the probability of the right class."""
    scaled = logits.astype(np.float64) / temperature
    top = scaled.max(-1, keepdims=True)
    total = top[:, 0] + np.log(np.exp(scaled - top).sum(-1))
    return float((total - scaled[np.arange(len(labels)), labels]).mean())


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """Return the temperature with the smallest negative log likelihood, by golden section on its logarithm.

    Args:
        logits: (n, k) of images that were not trained on.
        labels: (n,) their classes.
    """
    low, high = np.log(RANGE)
    for _ in range(_STEPS):
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        values = [negative_log_likelihood(logits, labels, float(np.exp(t))) for t in (left, right)]
        low, high = (low, right) if values[0] <= values[1] else (left, high)
    return float(np.exp((low + high) / 2))


def held_out_calibration_error(
    logits: NDArray[np.floating], labels: NDArray[np.int64], parts: int = 5
) -> float:
    """Return the expected calibration error where no image helps to fit its own temperature.

    Args:
        logits: (n, k).
        labels: (n,).
        parts: number of parts; each gets the temperature of all others.
    """
    probability = np.zeros(logits.shape)
    part = np.arange(len(labels)) % min(parts, len(labels))
    for number in np.unique(part):
        held_out = part == number
        others = ~held_out if len(labels) > 1 else held_out
        temperature = fit_temperature(logits[others], labels[others])
        probability[held_out] = softmax(logits[held_out], temperature)
    return expected_calibration_error(probability.max(1), probability.argmax(1) == labels)
