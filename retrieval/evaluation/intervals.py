"""Intervals of figures: a bootstrap over blocks of ground.

Neighbouring patches are not independent: one cloud spoils them all. So the bootstrap resamples *blocks* of
ground, not patches. Blocks are disjoint squares of 256 pixels, counted from the top-left corner of the image
that the answers name. A patch belongs to the block that contains its centre.
"""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from retrieval.evaluation.figures import CONFIDENCE
from retrieval.evaluation.submission import Submission
from tfrecords.grid import PATCH_PX

BLOCK_PX = 256
"""Side of a block of ground in pixels."""


def ground_blocks(answers: Submission) -> NDArray[np.int64]:
    """Return the block of each answer, (n,) numbers from 0: the one that contains the patch's centre."""
    column, row = ((corner + PATCH_PX // 2) // BLOCK_PX for corner in (answers.x, answers.y))
    keys = np.stack([answers.image_ids, row, column], axis=1)
    return np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)


def bootstrap_interval(
    credit: NDArray[np.float64], block: NDArray[np.int64], resamples: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the 95 % intervals of mean credits, resampling whole blocks with replacement.

    Args:
        credit: (n, k) credits of the patches.
        block: (n,) block of each patch, from `ground_blocks`; two blocks or more.
        resamples: of the bootstrap.
        seed: the same seed gives the same intervals.

    Returns:
        Lower and upper ends, (k,) each.
    """
    blocks = int(block.max()) + 1
    counts = np.bincount(block)
    sums = np.stack([np.bincount(block, column) for column in credit.T], axis=1)
    rng = np.random.default_rng(seed)
    means = np.empty((resamples, credit.shape[1]))
    for mean in means:
        times = np.bincount(rng.integers(blocks, size=blocks), minlength=blocks)
        mean[:] = times @ sums / (times @ counts)
    tail = tail_share(blocks)
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return low, high


def tail_share(blocks: int) -> float:
    """Return the share of resamples to cut at each end: less than 0.025 where there are few blocks.

    The plain percentile interval is too narrow by sqrt((n - 1) / n) and because it uses normal instead of
    Student quantiles. This is the "expanded percentile interval" of Hesterberg 2015,
    https://doi.org/10.1080/00031305.2015.1089789. Student's quantile is the Cornish-Fisher series.
    """
    z, nu = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2), blocks - 1
    student = z + (z**3 + z) / (4 * nu) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * nu**2)
    return NormalDist().cdf(-student * sqrt(blocks / nu))
