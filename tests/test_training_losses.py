"""Losses of the training against slow loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trainable import unit_vectors

from retrieval.config import (
    TrainConfig,
)
from retrieval.training.losses import infonce_loss, loss_of, multi_similarity_loss, triplet_loss


def rows(a, p, allowed):
    """For each vector of both sides: similarity to its partner, and to its allowed negatives."""
    s = a.astype("float64") @ p.T.astype("float64")
    for m, ok in ((s, allowed), (s.T, allowed.T)):
        for i in range(len(m)):
            yield m[i, i], [m[i, j] for j in range(len(m)) if ok[i, j]]


def slow_triplet(a, p, allowed, margin, mining):
    total = []
    for own, others in rows(a, p, allowed):
        if not others:
            total.append(0)
        elif mining == "hard":
            total.append(max(0, margin + max(others) - own))
        else:
            below = [o for o in others if o < own]
            total.append(max(0, margin + (max(below) if below else min(others)) - own))
    return np.mean(total)


def slow_infonce(a, p, allowed, temperature):
    return np.mean(
        [
            np.log(np.exp(own / temperature) + sum(np.exp(o / temperature) for o in others))
            - own / temperature
            for own, others in rows(a, p, allowed)
        ]
    )


def slow_multi_similarity(a, p, allowed, alpha=2, beta=50, base=0.5, epsilon=0.1):
    total = []
    for own, others in rows(a, p, allowed):
        near = [o for o in others if o + epsilon > own]
        value = np.log(1 + sum(np.exp(beta * (o - base)) for o in near)) / beta
        if others and own - epsilon < max(others):
            value += np.log(1 + np.exp(-alpha * (own - base))) / alpha
        total.append(value)
    return np.mean(total)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 9), d=st.integers(2, 8), seed=st.integers(0, 10**6), density=st.floats(0, 1))
def test_losses_agree_with_slow_loops(n, d, seed, density):
    rng = np.random.default_rng(seed)
    a, p = unit_vectors(rng, n, d), unit_vectors(rng, n, d)
    allowed = rng.random((n, n)) < density
    np.fill_diagonal(allowed, False)
    for mining in ("hard", "semi-hard"):
        got = float(triplet_loss(a, p, allowed, 0.3, mining))
        assert got == pytest.approx(slow_triplet(a, p, allowed, 0.3, mining), abs=1e-5)
    assert float(infonce_loss(a, p, allowed, 0.1)) == pytest.approx(
        slow_infonce(a, p, allowed, 0.1), abs=1e-4
    )
    assert float(multi_similarity_loss(a, p, allowed)) == pytest.approx(
        slow_multi_similarity(a, p, allowed), abs=1e-4
    )


@pytest.mark.parametrize("loss", ["triplet", "infonce", "multi-similarity"])
def test_loss_has_finite_gradients_also_where_a_row_has_no_negative(loss):
    import tensorflow as tf

    rng = np.random.default_rng(0)
    a, p = tf.constant(unit_vectors(rng, 6, 4)), unit_vectors(rng, 6, 4)
    allowed = ~np.eye(6, dtype=bool)
    allowed[2] = allowed[:, 2] = False
    with tf.GradientTape() as tape:
        tape.watch(a)
        value = loss_of(TrainConfig(loss=loss))(a, p, allowed)
    gradient = tape.gradient(value, a).numpy()
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 1e-4


def test_a_perfect_batch_costs_nothing_where_a_margin_is_kept():
    eye = np.eye(5, dtype="float32")
    assert float(triplet_loss(eye, eye, ~np.eye(5, dtype=bool))) == 0
    assert float(infonce_loss(eye, eye, ~np.eye(5, dtype=bool))) < 1e-6
