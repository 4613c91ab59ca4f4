"""Descriptors compared at many places, and of these places the best."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import SearchConfig
from retrieval.local.model import SEEN, STEP_PX
from retrieval.search import distinct_places
from retrieval.types import Candidates, pack_ids

CELL_PX = 32
"""The best place of every square of this side is a candidate."""


def kernels(descriptors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Descriptors of patches (n, s, s, c), each patch of unit length, as kernels (s, s, c, n)."""
    length = np.sqrt((descriptors**2).sum((1, 2, 3), keepdims=True))
    return np.ascontiguousarray((descriptors / np.maximum(length, 1e-6)).transpose(1, 2, 3, 0))


def agreement(field: Any, kernel: Any) -> Any:
    """Cosine between kernels (s, s, c, n) and a field (1, h, w, c) at every place: (h', w', n)."""
    from keras import layers, ops

    side = kernel.shape[0]
    energy = layers.AveragePooling2D(side, 1)(ops.sum(field * field, -1, keepdims=True)) * side**2
    return (ops.conv(field, kernel, padding="valid") * ops.rsqrt(energy + 1e-3))[0]


def peaks(
    agreed: NDArray[np.float32], image_id: int, x: int, y: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The best place of every cell: scores (n, m) and packed ids (n, m)."""
    h, w, n = agreed.shape
    cell = CELL_PX // STEP_PX
    wide = np.full((-(-h // cell) * cell, -(-w // cell) * cell, n), -np.inf, np.float32)
    wide[:h, :w] = agreed
    rows, cols = wide.shape[0] // cell, wide.shape[1] // cell
    cells = (
        wide.reshape(rows, cell, cols, cell, n).transpose(4, 0, 2, 1, 3).reshape(n, rows * cols, cell * cell)
    )
    best = cells.argmax(-1)
    score = np.take_along_axis(cells, best[..., None], -1)[..., 0]
    row, col = np.divmod(np.arange(rows * cols), cols)
    at_y = y + STEP_PX * (row * cell + best // cell)
    at_x = x + STEP_PX * (col * cell + best % cell)
    return score, pack_ids(np.full_like(at_x, image_id), at_x, at_y)


def best_of(
    found: list[tuple[NDArray, NDArray]], count: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The best of several lists."""
    score, ids = (np.concatenate(parts, 1) for parts in zip(*found, strict=True))
    if score.shape[1] <= count:
        return score, ids
    best = np.argpartition(-score, count - 1, axis=1)[:, :count]
    return np.take_along_axis(score, best, 1), np.take_along_axis(ids, best, 1)


def seen_by(side: int) -> int:
    """Side of what so many descriptors see together, in half-resolution pixels."""
    return SEEN + 2 * (side - 1)


def cosines(
    fields: NDArray[np.float32],
    which: NDArray[np.int64],
    at: NDArray[np.int64],
    own: NDArray[np.float32],
    side: int,
) -> NDArray[np.float32]:
    """Cosine between patches and places of fields.

    Args:
        fields: (n, h, w, c) descriptors of every half-resolution pixel.
        which: (m,) field of each patch.
        at: (m, k, 2) x and y of places in it.
        own: (m, side * side * c) descriptors of the patch of each, of unit length.
        side: of a patch, in descriptors, which are two pixels apart.

    Returns:
        (m, k).
    """
    fields = np.ascontiguousarray(fields)
    n, h, w, c = fields.shape
    picture, row, pixel = fields.strides[:3]
    one = fields.reshape(-1)[:c].view(f"V{pixel}")  # copied a descriptor at a time, not a number
    every = np.lib.stride_tricks.as_strided(
        one,
        (n, h - 2 * side + 2, w - 2 * side + 2, side, side),
        (picture, row, pixel, 2 * row, 2 * pixel),
        writeable=False,
    )
    places = every[which[:, None], at[..., 1], at[..., 0]].view(np.float32).reshape(*at.shape[:2], -1)
    energy = np.einsum("mkd,mkd->mk", places, places)
    return np.asarray(np.einsum("mkd,md->mk", places, own) / np.sqrt(energy + np.float32(1e-3)))


def best_places(score: NDArray[np.float32], ids: NDArray[np.int64], config: SearchConfig) -> Candidates:
    """The best distinct places of each patch."""
    order = np.lexsort((ids, -score), axis=1)
    score, ids = np.take_along_axis(score, order, 1), np.take_along_axis(ids, order, 1)
    # Where patch or place shows nothing they agree in nothing.
    score, ids = np.where(score > 0, score, -np.inf), np.where(score > 0, ids, -1)
    return distinct_places(score, ids, replace(config, places=config.deep_places))
