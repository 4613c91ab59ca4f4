"""Augmentation of training crops, on pixels, before the encoder.

NumPy on whole batches; the same generator state gives the same pixels. Values are scaled float32. NaN is
nodata and stays NaN, and no crop loses its last band.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import AugmentConfig
from retrieval.training.weather import add_haze, paste_clouds

Pixels = NDArray[np.float32]
"""(n, y, x, b) scaled float32, NaN = nodata."""

_DN = 1 / 2047.5
"""One DN in scaled units."""
_GRAIN = 1 << 22
"""Length of the noise store that crops read from: fresh noise would cost a third of a step."""
_RGB, _NIR = (True, True, True, False), (False, False, False, True)


def augment_pairs(
    anchor: Pixels, positive: Pixels, config: AugmentConfig, rng: np.random.Generator
) -> Pixels:
    """Augment a batch of pairs.

    Args:
        anchor: (n, s, s, 4).
        positive: (n, s, s, 4), the same places on another date.
        config: probabilities and strengths.
        rng: random generator.

    Returns:
        (2n, s, s, 4) float32 in [-1, 1]: the anchors, then the positives.
    """
    n = len(anchor)
    both = np.stack([anchor, positive], axis=1)  # (n, 2, s, s, 4)
    if config.flip_rotate:
        both = turned(both, rng.integers(8, size=n))
    crops = np.ascontiguousarray(both.transpose(1, 0, 2, 3, 4)).reshape(2 * n, *anchor.shape[1:])
    change_light(crops, config, rng)
    _apply(crops, rng.random(2 * n) < config.haze, lambda c: add_haze(c, rng))
    clouded(crops, config, rng)
    _apply(crops, rng.random(2 * n) < config.blur, blurred)
    add_noise(crops, config.noise_dn, rng)
    _apply(crops, rng.random(2 * n) < config.eight_bit, lambda c: in_bytes(c, rng))
    drop_bands(crops, config, rng)
    return np.clip(crops, -1, 1, out=crops)


def _apply(crops: Pixels, chosen: NDArray[np.bool_], change: object) -> None:
    """Change some crops in place."""
    rows = np.flatnonzero(chosen)
    if len(rows):
        crops[rows] = change(crops[rows])  # type: ignore[operator]


def turned(crops: Pixels, turns: NDArray[np.int64]) -> Pixels:
    """Rotate and flip crops.

    Args:
        crops: (n, ..., y, x, b), square.
        turns: (n,) 0 to 7: number of quarter turns modulo 4, after a flip from 4 on.

    Returns:
        A copy; further axes are rotated alike.
    """
    out = np.empty_like(crops)
    for turn in range(8):
        rows = np.flatnonzero(turns == turn)
        if len(rows):
            out[rows] = turned_alike(crops[rows], turn)
    return out


def turned_alike(pixels: NDArray[Any], turn: int) -> NDArray[Any]:
    """Return a view of pictures (..., y, x, b), flipped from `turn` 4 on and rotated by quarter turns."""
    pixels = pixels[..., ::-1, :] if turn >= 4 else pixels
    return np.rot90(pixels, turn % 4, axes=(-3, -2))


def change_light(crops: Pixels, config: AugmentConfig, rng: np.random.Generator) -> None:
    """Change contrast, brightness and tone curve of each band of each crop, in place."""
    m, bands = len(crops), crops.shape[-1]
    shape = (m, 1, 1, bands)
    bend = rng.normal(0, config.tone_curve_std, shape)
    log_gain = rng.normal(0, config.gain, (m, 1, 1, 1)) + rng.normal(0, config.gain / 2, shape)
    offset = rng.normal(0, config.offset, shape)
    # gain (x + bend (1 - x^2)) + offset, as a polynomial: two passes over the pixels instead of six.
    gain = np.exp(log_gain)
    square, level = (-gain * bend).astype(np.float32), (gain * bend + offset).astype(np.float32)
    factor = crops * square
    factor += gain.astype(np.float32)
    crops *= factor
    crops += level


def clouded(crops: Pixels, config: AugmentConfig, rng: np.random.Generator) -> None:
    """Paste clouds over one crop of some pairs, in place; some of them with a mask."""
    n = len(crops) // 2
    rows = np.flatnonzero(rng.random(n) < config.clouds)
    rows = rows + n * rng.integers(2, size=len(rows))
    if not len(rows):
        return
    covered, hidden = paste_clouds(crops[rows], rng.uniform(0, config.cover, len(rows)), rng)
    known = (rng.random(len(rows)) < config.masked)[:, None, None] & (hidden > 0.15)
    covered[known] = np.nan
    crops[rows] = covered


def blurred(crops: Pixels) -> Pixels:
    """Blur with a 3 x 3 binomial kernel; neighbours of NaN become NaN."""
    out = crops.copy()
    out[:, 1:-1] = 0.25 * (crops[:, :-2] + crops[:, 2:]) + 0.5 * crops[:, 1:-1]
    rows = out.copy()
    out[:, :, 1:-1] = 0.25 * (rows[:, :, :-2] + rows[:, :, 2:]) + 0.5 * rows[:, :, 1:-1]
    return out


@lru_cache(maxsize=1)
def _grain() -> NDArray[np.float32]:
    """Return a store of white noise."""
    return np.random.default_rng(7).standard_normal(_GRAIN, dtype=np.float32)


def add_noise(crops: Pixels, most_dn: float, rng: np.random.Generator) -> None:
    """Add sensor noise, in place; its standard deviation lies between 2 and `most_dn` DN, log-uniformly."""
    size, grain = crops[0].size, _grain()
    low = min(2.0, most_dn) + 1e-6
    sigma = np.exp(rng.uniform(np.log(low), np.log(max(low, most_dn)), len(crops))) * _DN
    for crop, start, s in zip(crops, rng.integers(_GRAIN - size, size=len(crops)), sigma, strict=True):
        crop += (grain[start : start + size] * np.float32(s)).reshape(crop.shape)


def in_bytes(crops: Pixels, rng: np.random.Generator) -> Pixels:
    """Render as an 8-bit picture: stretch between two levels, clip, 256 steps."""
    shape = (len(crops), 1, 1, 1)
    low = rng.uniform(-1.05, -0.9, shape).astype(np.float32)
    high = rng.uniform(-0.45, 0.9, shape).astype(np.float32)
    steps = np.rint(np.clip((crops - low) / (high - low), 0, 1) * np.float32(255))
    return (steps / np.float32(127.5) - np.float32(1)).astype(np.float32, copy=False)


def drop_bands(crops: Pixels, config: AugmentConfig, rng: np.random.Generator) -> None:
    """Set bands to NaN, in place: the same ones in both crops of a pair, or different ones.

    A crop that would lose all bands with data keeps all of them.
    """
    n = len(crops) // 2
    kind = rng.random(n)
    apart = kind < config.cross_bands
    together = ~apart & (kind < config.cross_bands + config.bands)
    first, second = draw_bands(n, rng), draw_bands(n, rng)
    first[~(apart | together)] = True
    second = np.where(apart[:, None], second, first)
    present = np.concatenate([first, second])  # (2n, 4)
    has = ~np.isnan(crops[:, ::8, ::8]).all((1, 2))
    present |= ~(present & has).any(1, keepdims=True)
    for band in range(present.shape[1]):
        crops[~present[:, band], :, :, band] = np.nan


def draw_bands(count: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Draw sets of bands that users have: colour only, near infrared only, one band, or any set.

    Returns:
        (count, 4) bool, at least one True in each row.
    """
    kind = rng.random(count)[:, None]
    any_set = rng.random((count, 4)) < 0.5
    single = np.arange(4) == rng.integers(4, size=count)[:, None]
    any_set |= single
    out = np.where(kind < 0.3, np.array(_RGB), np.where(kind < 0.5, np.array(_NIR), any_set))
    return np.where((kind >= 0.5) & (kind < 0.65), single, out)
