"""Loops of decision trees: growing one from a sample, and answering pixels by many.

Strategy. A tree splits its sample again and again. Each split draws a few features, and for each a
pixel whose value is the limit. It takes the one with the purest halves (Gini). Such extremely randomized
trees are poor alone and good in the mean, and they do not depend on the scale of a feature. All random
numbers are drawn before, so a tree follows from its arguments.

Source: P. Geurts, D. Ernst and L. Wehenkel, Extremely randomized trees, 2006.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval.kernels.numba_loops import loop

LEAF = -1
"""Feature of a node that splits no further."""
BETTER = 1 + 1e-9
"""Factor by which a split must be purer than the last one; less is rounding."""


@loop
def grow_tree(  # noqa: C901  one loop: Numba compiles it whole
    shown: NDArray[np.float32],
    labels: NDArray[np.int64],
    weights: NDArray[np.float64],
    draws: NDArray[np.float64],
    min_leaf: int,
) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.int32], NDArray[np.float64]]:
    """Grow one tree.

    Args:
        shown: (f, n) features of the sample.
        labels: (n,) class of each.
        weights: (k,) weight of a pixel of each class.
        draws: (m, tries, 2) random numbers in [0, 1): for each node the features and the pixels to try.
            A tree has at most `2 * (n // min_leaf) + 1` nodes.
        min_leaf: fewest pixels of a leaf, at least 1.

    Returns:
        Arrays over the nodes, parents before children. The feature is `LEAF` where a node splits no further.
        The limit is the largest value that goes to the first child. Then come the number of the first child,
        which the second follows, and the weight of each class (nodes, k).
    """
    most, tries = draws.shape[0], draws.shape[1]
    k = len(weights)
    feature = np.full(most, LEAF, np.int32)
    limit = np.zeros(most, np.float32)
    child = np.zeros(most, np.int32)
    total = np.zeros((most, k), np.float64)
    first, last = np.zeros(most, np.int64), np.zeros(most, np.int64)
    order = np.arange(len(labels))
    last[0] = len(labels)
    below = np.zeros(k, np.float64)
    nodes = 1
    node = 0
    while node < nodes:
        start, end = first[node], last[node]
        for i in range(start, end):
            total[node, labels[order[i]]] += weights[labels[order[i]]]
        whole = 0.0
        pure = 0.0
        for c in range(k):
            whole += total[node, c]
            pure += total[node, c] ** 2
        best = pure / max(whole, 1e-12)
        if end - start >= 2 * min_leaf and nodes + 2 <= most:
            for one in range(tries):
                f = int(draws[node, one, 0] * shown.shape[0])
                value = shown[f, order[start + int(draws[node, one, 1] * (end - start))]]
                below[:] = 0
                count = 0
                for i in range(start, end):
                    p = order[i]
                    if shown[f, p] <= value:
                        below[labels[p]] += weights[labels[p]]
                        count += 1
                if count < min_leaf or end - start - count < min_leaf:
                    continue
                left = 0.0
                left_pure = 0.0
                right_pure = 0.0
                for c in range(k):
                    left += below[c]
                    left_pure += below[c] ** 2
                    right_pure += (total[node, c] - below[c]) ** 2
                score = left_pure / max(left, 1e-12) + right_pure / max(whole - left, 1e-12)
                if score > best * BETTER:
                    best = score
                    feature[node] = f
                    limit[node] = value
        if feature[node] != LEAF:
            border = _partition(order, start, end, shown[feature[node]], limit[node])
            child[node] = nodes
            first[nodes], last[nodes], first[nodes + 1], last[nodes + 1] = start, border, border, end
            nodes += 2
        node += 1
    return feature[:nodes], limit[:nodes], child[:nodes], total[:nodes]


@loop
def _partition(
    order: NDArray[np.int64], start: int, end: int, values: NDArray[np.float32], limit: np.float32
) -> int:
    """Move pixels up to a limit before the others in `order[start:end]`; return where the others begin."""
    i, j = start, end - 1
    while i <= j:
        if values[order[i]] <= limit:
            i += 1
        else:
            order[i], order[j] = order[j], order[i]
            j -= 1
    return i


@loop
def answer_of_trees(
    shown: NDArray[np.float32],
    roots: NDArray[np.int32],
    feature: NDArray[np.int32],
    limit: NDArray[np.float32],
    child: NDArray[np.int32],
    share: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Return the mean share of each class (n, k) over the leaves that pixels reach.

    Args:
        shown: (n, f) features.
        roots: (t,) first node of each tree.
        feature: (nodes,) feature of each node, `LEAF` for a leaf.
        limit: (nodes,) largest value that goes to the first child.
        child: (nodes,) number of the first child; greater than the node's own, so that a walk ends.
        share: (nodes, k) share of each class.
    """
    out = np.zeros((shown.shape[0], share.shape[1]), np.float32)
    part = np.float32(1.0 / len(roots))
    for row in range(shown.shape[0]):
        for root in roots:
            node = root
            while feature[node] >= 0:
                step = 0 if shown[row, feature[node]] <= limit[node] else 1
                node = child[node] + step
            for c in range(share.shape[1]):
                out[row, c] += share[node, c] * part
    return out
