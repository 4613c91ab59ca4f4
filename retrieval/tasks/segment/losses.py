"""Losses of a segmentation, over the labelled pixels of a batch; written for every backend of Keras."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

FOCUS = 2.0
"""Exponent of the focal loss."""


def log_probabilities(logits: Any) -> Any:
    """Return the logarithm of the softmax (m, k) of logits (m, k)."""
    from keras import ops

    return logits - ops.logsumexp(logits, axis=-1, keepdims=True)


def cross_entropy(log_p: Any, truth: Any, weights: Any, focus: float = 0.0) -> Any:
    """Return the weighted mean of the cross-entropy, or of the focal loss.

    Source: T.-Y. Lin et al., Focal loss for dense object detection, 2017.

    Args:
        log_p: (m, k) logarithms of probabilities.
        truth: (m, k), 1 at the pixel's class and 0 elsewhere; all 0 for an ignored pixel.
        weights: (k,) weight of each class.
        focus: exponent of 1 - p, by which sure pixels count less; 0 for the cross-entropy.

    Returns:
        A number, 0 where every pixel is ignored.
    """
    from keras import ops

    weighted = truth * weights
    lost = -weighted * log_p
    if focus:
        lost = lost * ops.power(1.0 - ops.exp(log_p), focus)
    return ops.sum(lost) / ops.maximum(ops.sum(weighted), 1e-6)


def lovasz(p: Any, truth: Any, of: Sequence[int]) -> Any:
    """Return the Lovász extension of 1 - IoU, averaged over the classes that the batch shows.

    Pixels are sorted by their error; each weighs as much as it lowers the IoU of those before it. An ignored
    pixel has no error, so it comes last and weighs nothing.

    Source: M. Berman et al., The Lovász-Softmax loss, CVPR 2018.

    Args:
        p: (m, k) probabilities.
        truth: (m, k), 1 at the pixel's class and 0 elsewhere; all 0 for an ignored pixel.
        of: indices of the classes to average over.

    Returns:
        A number from 0 to 1, 0 where no such class is shown.
    """
    from keras import ops

    known = ops.sum(truth, axis=-1)
    losses, shown = [], []
    for index in of:
        wanted = truth[:, index]
        error = known * ops.abs(wanted - p[:, index])
        order = ops.argsort(-error)
        wanted, error = ops.take(wanted, order), ops.take(error, order)
        total = ops.sum(wanted)
        missed = total - ops.cumsum(wanted)
        union = total + ops.cumsum(1.0 - wanted)
        lost = 1.0 - missed / ops.maximum(union, 1e-6)
        weight = ops.concatenate([lost[:1], lost[1:] - lost[:-1]])
        is_shown = ops.cast(total > 0, "float32")
        losses.append(is_shown * ops.sum(error * weight))
        shown.append(is_shown)
    return sum(losses) / ops.maximum(sum(shown), 1.0)
