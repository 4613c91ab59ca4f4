"""Fit of a calibration: logistic regression on measured answers, and its calibration error."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ConfigError
from retrieval.models.calibration import TERMS, Calibration

LEAST_ANSWERS = 20
"""Answers that a fit needs."""


def fit_calibration(
    features: NDArray[np.float64],
    right: NDArray[np.bool_],
    *,
    terms: tuple[str, ...] = TERMS,
    fitted_on: str = "",
    encoder: str = "",
    penalty: float | None = None,
) -> Calibration:
    """Fit a calibration.

    Args:
        features: (n, 4), columns as `terms`; rows that are not finite are left out.
        right: (n,) whether the best candidate lies within `RIGHT_PX` of the truth.
        terms: names of the features.
        fitted_on: the data, for people.
        encoder: fingerprint of the encoder that gave the answers.
        penalty: see `fit_logistic`; None takes 1e-4 times the number of answers.

    Raises:
        ConfigError: fewer than 20 answers, or all of them right, or all of them wrong.
    """
    known = np.isfinite(features).all(1)
    x, y = features[known], right[known].astype(np.float64)
    if len(y) < LEAST_ANSWERS or y.min() == y.max():
        raise ConfigError(
            f"calibration: {len(y)} answers, {int(y.sum())} of them right. Expected {LEAST_ANSWERS} or more, "
            "some right and some wrong. Use more patches, or harder ones."
        )
    *weights, bias = fit_logistic(x, y, 1e-4 * len(y) if penalty is None else penalty).tolist()
    return Calibration(tuple(weights), bias, fitted_on, encoder, terms)


def fit_logistic(features: NDArray[np.float64], right: NDArray[Any], penalty: float) -> NDArray[np.float64]:
    """Fit a logistic regression by Newton's method.

    Args:
        features: (n, k).
        right: (n,) 0 or 1.
        penalty: half of it times each squared weight is added to the loss, so that separable data have a fit.

    Returns:
        (k + 1,) the weights, then the bias.
    """
    x, y = np.c_[features, np.ones(len(features))], right.astype(np.float64)
    ridge = np.diag([penalty] * features.shape[1] + [0.0])
    w = np.zeros(x.shape[1])
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
        gradient = x.T @ (p - y) + ridge @ w
        hessian = (x * (p * (1 - p))[:, None]).T @ x + ridge + 1e-9 * np.eye(len(w))
        step = np.linalg.solve(hessian, gradient)
        w -= np.clip(step, -5, 5)
        if np.abs(step).max() < 1e-8:
            break
    return w


def held_out_probability(
    features: NDArray[np.float64],
    right: NDArray[np.bool_],
    groups: NDArray[Any],
    *,
    terms: tuple[str, ...] = TERMS,
    penalty: float | None = None,
) -> NDArray[np.float64]:
    """Return each answer's probability by a calibration that is fitted to all other groups.

    Args:
        features: (n, 4).
        right: (n,).
        groups: (n,) labels; answers of one label are held out together.
        terms: names of the features.
        penalty: as for `fit_calibration`.

    Raises:
        ConfigError: the answers outside of a group cannot be fitted.
    """
    probability = np.zeros(len(right))
    for group in np.unique(groups):
        held_out = groups == group
        fitted = fit_calibration(features[~held_out], right[~held_out], terms=terms, penalty=penalty)
        probability[held_out] = fitted.probability(features[held_out])
    return probability


def expected_calibration_error(probability: NDArray[Any], right: NDArray[np.bool_], bins: int = 10) -> float:
    """Return the mean gap between stated and observed share over equally wide bins, weighted by their count.

    Source: C. Guo et al., On calibration of modern neural networks (2017).
    """
    bin_of = np.minimum((probability * bins).astype(int), bins - 1)
    gaps = [
        abs(probability[bin_of == b].mean() - right[bin_of == b].mean()) * (bin_of == b).mean()
        for b in set(bin_of)
    ]
    return float(sum(gaps))
