"""Seasons that the data lack: training crops whose ground-cover clusters get another look.

Domain randomization: the clusters of a real crop are the pixels of alike level. Each gets a separate level,
contrast and texture, or snow covers some and leaves the others dark. What stays are the borders between
kinds of ground, which a search across seasons has to rely on.

Source: J. Tobin et al., Domain randomization for transferring deep neural networks (2017).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval.training.augment import blurred
from retrieval.training.weather import draw_fields, field_bank

Pixels = NDArray[np.float32]
"""(n, y, x, b) scaled float32, NaN = nodata."""

CLUSTERS = (3, 6)
"""Smallest and largest number of clusters of a crop."""
_ROUNDS = 6
"""Rounds of k-means; the colours need no exact optimum."""
_SHADOW_PX = 9
"""Longest shadow of forest on snow, 20 m high below a sun of 13 degrees."""


def in_another_season(crops: Pixels, rng: np.random.Generator) -> Pixels:
    """Return crops (n, y, x, b), half of them under snow and the others recoloured; NaN stays NaN."""
    out, under_snow = crops.copy(), rng.random(len(crops)) < 0.5
    for rows, change in ((np.flatnonzero(under_snow), snowed), (np.flatnonzero(~under_snow), recoloured)):
        if len(rows):
            out[rows] = change(crops[rows], rng)
    return out


def ground_cover(crops: Pixels, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Sort the pixels of each crop into clusters of alike level, by k-means.

    Args:
        crops: (n, y, x, b) scaled, NaN = nodata.
        count: number of clusters.
        rng: random generator of the first centres.

    Returns:
        (n, y, x) numbers of clusters; nodata belongs to any of them.
    """
    n, height, width, bands = crops.shape
    levels = blurred(blurred(_filled(crops))).reshape(n, -1, bands)
    levels -= levels.mean(1, keepdims=True)
    levels /= np.maximum(levels.std(1, keepdims=True), 1e-4)
    few = levels[:, ::7]
    centres = np.stack([f[rng.choice(len(f), count, replace=False)] for f in few])
    for _ in range(_ROUNDS):
        member = np.eye(count, dtype=np.float32)[_nearest(few, centres)]  # (n, m, k)
        size = member.sum(1)[..., None]
        means = np.einsum("nmk,nmb->nkb", member, few) / np.maximum(size, 1)
        centres = np.where(size > 0, means, centres)
    return _nearest(levels, centres).reshape(n, height, width)


def _nearest(points: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the nearest centre (n, k, b) of each point (n, m, b): (n, m)."""
    product = np.einsum("nmb,nkb->nmk", points, centres)
    return ((centres**2).sum(-1)[:, None] - 2 * product).argmin(-1)


def _filled(crops: Pixels) -> Pixels:
    """Return a copy with the mean of its band in place of nodata; 0 for a band without data."""
    known = ~np.isnan(crops)
    total = np.where(known, crops, 0).sum((1, 2), keepdims=True)
    mean = total / np.maximum(known.sum((1, 2), keepdims=True), 1)
    return np.where(known, crops, mean).astype(np.float32)


def _shares(crops: Pixels, rng: np.random.Generator) -> Pixels:
    """Return the share of each ground-cover cluster in each pixel, mixed at borders: (n, y, x, k)."""
    count = int(rng.integers(CLUSTERS[0], CLUSTERS[1] + 1))
    return blurred(np.eye(count, dtype=np.float32)[ground_cover(crops, count, rng)])


def recoloured(crops: Pixels, rng: np.random.Generator) -> Pixels:
    """Give each ground-cover cluster of each crop another level, contrast and texture, of any sign.

    Args:
        crops: (n, y, x, b) scaled, NaN = nodata.
        rng: random generator; the same state gives the same pixels.

    Returns:
        A copy; NaN stays NaN. Values may leave [-1, 1].
    """
    share = _shares(crops, rng)
    n, bands, count = len(crops), crops.shape[-1], share.shape[-1]
    plain = _filled(crops)
    mean, middle = _means(share, plain), plain.mean((1, 2))[:, None]  # (n, k, b), (n, 1, b)
    spread = np.maximum(plain.std((1, 2))[:, None], 0.02)
    # A part of the move is common to the bands, so that one band tells as much as four.
    move = rng.normal(0, 0.9, (n, count, 1)) + rng.normal(0, 0.5, (n, count, bands))
    level = middle + 0.4 * (mean - middle) + (move * spread).astype(np.float32)
    sign = np.where(rng.random((n, count, bands)) < 0.25, -1, 1)
    gain = (sign * np.exp(rng.normal(-0.5, 0.7, (n, count, bands)))).astype(np.float32)
    out = np.einsum("nyxk,nkb->nyxb", share, level - gain * mean)
    out += np.einsum("nyxk,nkb->nyxb", share, gain) * plain
    out += _texture(share, rng)[..., None] * spread[:, None]
    return np.where(np.isnan(crops), np.float32(np.nan), out).astype(np.float32, copy=False)


def _texture(share: Pixels, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return new texture (n, y, x), with a separate strength in each cluster, 0 to 0.5."""
    n, height, width, count = share.shape
    strength = (0.5 * rng.random((n, count)) ** 2).astype(np.float32)
    field = draw_fields(field_bank(), n, (height, width), rng)[0]
    field = field + 0.5 * rng.standard_normal(field.shape, dtype=np.float32)
    return np.einsum("nyxk,nk->nyx", share, strength) * field


def snowed(crops: Pixels, rng: np.random.Generator) -> Pixels:
    """Cover some ground-cover clusters of each crop with snow, and leave the others as dark forest.

    Which clusters are open ground is drawn, since no band alone tells. Snow is bright and nearly flat. Forest
    has a low level, less of its texture, some of another, and casts shadows on snow.

    Args:
        crops: (n, y, x, b) scaled, NaN = nodata.
        rng: random generator; the same state gives the same pixels.

    Returns:
        A copy; NaN stays NaN. Values may leave [-1, 1].
    """
    share = _shares(crops, rng)
    n, bands, count = len(crops), crops.shape[-1], share.shape[-1]
    is_forest = rng.random((n, count)).argsort(1) < rng.integers(1, count, (n, 1))
    forest = np.einsum("nyxk,nk->nyx", share, is_forest.astype(np.float32))
    plain, shape = _filled(crops), (n, count, 1)
    detail = plain - np.einsum("nyxk,nkb->nyxb", share, _means(share, plain))
    snow = rng.uniform(0.3, 1.2, (n, 1, 1)) + rng.normal(0, 0.12, shape) + rng.normal(0, 0.03, (n, 1, bands))
    dark = rng.uniform(-0.95, -0.5, (n, 1, 1)) + rng.normal(0, 0.05, shape)
    level = np.where(is_forest[..., None], dark, snow).astype(np.float32)
    kept = np.where(is_forest, rng.uniform(0, 0.7, (n, count)), rng.normal(0, 0.15, (n, count)))
    out = np.einsum("nyxk,nkb->nyxb", share, level)
    out += np.einsum("nyxk,nk->nyx", share, kept.astype(np.float32))[..., None] * detail
    grain = blurred(rng.standard_normal((*forest.shape, 1), dtype=np.float32))
    out += (forest[..., None] * rng.uniform(0, 0.15, (n, 1, 1, 1)).astype(np.float32)) * grain
    depth = rng.uniform(0, 0.7, (n, 1, 1, 1)).astype(np.float32)
    shaded = depth * (_shadow(forest, rng) * (1 - forest))[..., None]
    out -= shaded * (out + 1)
    return np.where(np.isnan(crops), np.float32(np.nan), out).astype(np.float32, copy=False)


def _means(share: Pixels, plain: Pixels) -> NDArray[np.float32]:
    """Return the mean of each cluster in each band: (n, k, b)."""
    size = np.maximum(share.sum((1, 2)), 1e-3)[..., None]
    return np.asarray(np.einsum("nyxk,nyxb->nkb", share, plain) / size)


def _shadow(forest: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Return where forest (n, y, x) casts shadows, 0 to 1, in one direction a crop."""
    out = np.zeros_like(forest)
    length, angle = rng.uniform(0, _SHADOW_PX, len(forest)), rng.uniform(0, 2 * np.pi, len(forest))
    for row, (far, way) in enumerate(zip(length, angle, strict=True)):
        for step in range(1, int(np.ceil(far)) + 1):
            by = (round(step * float(np.sin(way))), round(step * float(np.cos(way))))
            out[row] = np.maximum(out[row], _displaced(forest[row], *by))
    return out


def _displaced(field: NDArray[np.float32], dy: int, dx: int) -> NDArray[np.float32]:
    """Return a field (y, x) moved by whole pixels; its edge is repeated."""
    rows = np.clip(np.arange(field.shape[0]) - dy, 0, field.shape[0] - 1)
    cols = np.clip(np.arange(field.shape[1]) - dx, 0, field.shape[1] - 1)
    return field[rows[:, None], cols]
