"""Metric losses over a batch of pairs, in `keras.ops` and float32.

Each takes the vectors of n anchors, of their n positives, and a mask of negatives. Row i of the anchors
belongs to row i of the positives; other rows are negatives where the mask allows it. The losses are
symmetric: anchors and positives change roles.

Sources:

- F. Schroff et al., FaceNet, CVPR 2015 (triplet, semi-hard mining).
- A. van den Oord et al., 2018 (InfoNCE).
- X. Wang et al., Multi-Similarity Loss with General Pair Weighting, CVPR 2019.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from retrieval.config import Mining, TrainConfig

LossFunction = Callable[[Any, Any, Any], Any]
"""(vectors_a (n, d), vectors_p (n, d), allowed (n, n) bool) -> scalar float32."""

_NEVER = -1e9
"""Stands for minus infinity, whose gradient would be NaN."""


def _both_ways(a: Any, p: Any, allowed: Any) -> tuple[Any, Any, Any]:
    """Return similarities in both directions (2n, n), the similarity of each pair (2n,), and the mask."""
    from keras import ops

    a, p = ops.cast(a, "float32"), ops.cast(p, "float32")
    similarity = ops.matmul(a, ops.transpose(p))  # (n, n)
    positive = ops.sum(a * p, axis=-1)
    allowed = ops.cast(allowed, "bool")
    return (
        ops.concatenate([similarity, ops.transpose(similarity)]),
        ops.concatenate([positive, positive]),
        ops.concatenate([allowed, ops.transpose(allowed)]),
    )


def _others(similarity: Any, mask: Any) -> Any:
    """Return similarities where the mask is set, minus infinity elsewhere."""
    from keras import ops

    return ops.where(mask, similarity, ops.full_like(similarity, _NEVER))


def triplet_loss(
    vectors_a: Any, vectors_p: Any, allowed: Any, margin: float = 0.2, mining: Mining = "hard"
) -> Any:
    """Return the mean of `max(0, margin + negative - positive)`, with one mined negative for each vector.

    Args:
        vectors_a: (n, d) of unit length.
        vectors_p: (n, d) of unit length.
        allowed: (n, n) bool, True where positive j may serve as a negative of anchor i.
        margin: in cosine.
        mining: "hard" takes the most similar negative. "semi-hard" takes the most similar one below the
            positive, or else the least similar one.

    Returns:
        Scalar float32, 0 or more; a row without allowed negatives counts as 0.
    """
    from keras import ops

    similarity, positive, mask = _both_ways(vectors_a, vectors_p, allowed)
    negative = ops.max(_others(similarity, mask), axis=-1)
    if mining == "semi-hard":
        below = ops.logical_and(mask, similarity < positive[:, None])
        easiest = -ops.max(_others(-similarity, mask), axis=-1)
        negative = ops.where(
            ops.any(below, axis=-1),
            ops.max(_others(similarity, below), axis=-1),
            ops.where(ops.any(mask, axis=-1), easiest, negative),
        )
    return ops.mean(ops.relu(margin + negative - positive))


def infonce_loss(vectors_a: Any, vectors_p: Any, allowed: Any, temperature: float = 0.05) -> Any:
    """Return the cross-entropy of the partner among the partner and all allowed negatives.

    Args:
        vectors_a: (n, d) of unit length.
        vectors_p: (n, d) of unit length.
        allowed: (n, n) bool, True where positive j may serve as a negative of anchor i.
        temperature: divisor of the similarities.

    Returns:
        Scalar float32, the mean over both directions; a row without allowed negatives counts as 0.
    """
    from keras import ops

    similarity, positive, mask = _both_ways(vectors_a, vectors_p, allowed)
    positive = positive / temperature
    others = _others(similarity / temperature, mask)
    return ops.mean(ops.logsumexp(ops.concatenate([positive[:, None], others], axis=-1), axis=-1) - positive)


def multi_similarity_loss(
    vectors_a: Any,
    vectors_p: Any,
    allowed: Any,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    epsilon: float = 0.1,
) -> Any:
    """Multi-Similarity loss with its mining.

    Negatives that come within `epsilon` of the own partner count, and the partner counts where a
    negative comes within `epsilon` of it.

    Args:
        vectors_a: (n, d) of unit length.
        vectors_p: (n, d) of unit length.
        allowed: (n, n) bool, True where positive j may serve as a negative of anchor i.
        alpha: weight of the partner's similarity.
        beta: weight of the negatives' similarities.
        base: similarity that parts them.
        epsilon: margin of the mining.

    Returns:
        Scalar float32, 0 or more, the mean over both directions.
    """
    from keras import ops

    similarity, positive, mask = _both_ways(vectors_a, vectors_p, allowed)
    near = ops.logical_and(mask, similarity + epsilon > positive[:, None])
    contested = ops.cast(positive - epsilon < ops.max(_others(similarity, mask), axis=-1), "float32")
    together = contested * ops.softplus(-alpha * (positive - base)) / alpha
    # log(1 + sum exp) is the log-sum-exp with a zero beside the others.
    others = _others(beta * (similarity - base), near)
    others = ops.concatenate([ops.zeros_like(others[:, :1]), others], axis=-1)
    return ops.mean(together + ops.logsumexp(others, axis=-1) / beta)


def loss_of(config: TrainConfig) -> LossFunction:
    """Return the loss of a recipe, with its parameters."""
    if config.loss == "triplet":
        return partial(triplet_loss, margin=config.margin, mining=config.mining)
    if config.loss == "infonce":
        return partial(infonce_loss, temperature=config.temperature)
    return multi_similarity_loss
