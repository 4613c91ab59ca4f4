"""Clouds and haze for training crops: fractal, soft-edged, with displaced shadows; seeded.

Fields come from a small bank of periodic random fields: a Fourier transform per crop would cost more than a
step.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from retrieval.synthetic.noise import fractal

BANK_PX = 256
"""Side of a field; fields are periodic, and larger crops wrap around."""
BANK_FIELDS = 48
_SHADOW = 0.62
"""Share of the light that the shadow of a thick cloud removes, as in `retrieval.synthetic`."""


@lru_cache(maxsize=2)
def field_bank(seed: int = 0) -> NDArray[np.float32]:
    """Return random fields of zero mean and unit variance: (48, 256, 256) float32, from streaky to smooth."""
    rng = np.random.default_rng([seed, 77])
    shape = (BANK_PX, BANK_PX)
    return np.stack(
        [
            fractal(
                rng,
                shape,
                beta=rng.uniform(2.4, 3.6),
                low_px=rng.uniform(40, 200),
                stretch=rng.uniform(1, 1.8),
            )
            for _ in range(BANK_FIELDS)
        ]
    )


def draw_fields(
    bank: NDArray[np.float32], count: int, size: tuple[int, int], rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cut fields out of the bank, and the same fields displaced as shadows.

    Args:
        bank: from `field_bank`.
        count: number of fields.
        size: height and width in pixels.
        rng: random generator.

    Returns:
        fields (count, h, w), and displaced fields (count, h, w), each by 4 to 32 px in another direction.
    """
    which = rng.integers(len(bank), size=count)
    corner = rng.integers(BANK_PX, size=(2, count))
    length, angle = rng.uniform(4, 32, count), rng.uniform(0, 2 * np.pi, count)
    away = np.rint(np.stack([length * np.sin(angle), length * np.cos(angle)])).astype(np.int64)

    def cut(at: NDArray[np.int64]) -> NDArray[np.float32]:
        rows = (at[0][:, None] + np.arange(size[0])) % BANK_PX
        cols = (at[1][:, None] + np.arange(size[1])) % BANK_PX
        return bank[which[:, None, None], rows[:, :, None], cols[:, None, :]]

    return cut(corner), cut(corner + away)


def _opacity(
    fields: NDArray[np.float32], edge: NDArray[np.float32], soft: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the opacity, 0 to 1 and 0.5 where a field equals `edge`; `edge` and `soft` are (n, 1, 1)."""
    t = np.clip((fields - edge) / (2 * soft) + np.float32(0.5), 0, 1)
    return t * t * (3 - 2 * t)


@dataclass(frozen=True)
class Weather:
    """Crops under clouds."""

    pixels: NDArray[np.float32]
    """(n, h, w, b) in [-1, 1]; NaN stays NaN."""
    cloud: NDArray[np.float32]
    """(n, h, w) opacity of the clouds, 0 to 1."""
    shadow: NDArray[np.float32]
    """(n, h, w) depth of their shadows outside of clouds, 0 to 1; edges stay visible in shadow."""


def under_clouds(
    scaled: NDArray[np.float32], cover: NDArray[np.float64], rng: np.random.Generator, seed: int = 0
) -> Weather:
    """Paste clouds and their shadows over crops.

    Args:
        scaled: (n, h, w, b) float32 in [-1, 1], NaN = nodata.
        cover: (n,) share of each crop under clouds, 0 to 1.
        rng: random generator; the same state gives the same clouds.
        seed: of the bank of fields.
    """
    n, h, w, b = scaled.shape
    fields, displaced = draw_fields(field_bank(seed), n, (h, w), rng)
    at = np.clip(np.rint((1 - cover) * h * w).astype(np.int64), 0, h * w - 1)
    edge = np.take_along_axis(np.sort(fields.reshape(n, -1), axis=1), at[:, None], 1)[:, :, None]
    # Far beyond the largest value for crops without clouds.
    edge = np.where(cover[:, None, None] <= 0, np.float32(1e3), edge).astype(np.float32)
    soft = rng.uniform(0.05, 0.5, (n, 1, 1)).astype(np.float32)
    cloud = _opacity(fields, edge, soft)
    shadow = _opacity(displaced, edge, soft) * (1 - cloud)
    lit = (scaled + 1) * (1 - np.float32(_SHADOW) * shadow[..., None])
    bright = rng.uniform(1.5, 2.6, (n, 1, 1, 1)) + rng.normal(0, 0.06, (n, 1, 1, b))
    texture = draw_fields(field_bank(seed), n, (h, w), rng)[0][..., None] * rng.uniform(
        0.02, 0.2, (n, 1, 1, 1)
    )
    white = (bright + texture).astype(np.float32)
    out = np.clip(lit + cloud[..., None] * (white - lit) - 1, -1, 1)
    return Weather(out.astype(np.float32, copy=False), cloud, shadow)


def paste_clouds(
    scaled: NDArray[np.float32], cover: NDArray[np.float64], rng: np.random.Generator, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Paste clouds, and return what clouds and deep shadows (0.3 or more) hide.

    Returns:
        The crops with clouds, and (n, h, w) float32, 0 to 1, how much is hidden.
    """
    made = under_clouds(scaled, cover, rng, seed)
    return made.pixels, np.maximum(made.cloud, np.where(made.shadow > 0.3, made.shadow, 0))


def add_haze(
    scaled: NDArray[np.float32], rng: np.random.Generator, seed: int = 0, most: float = 0.6
) -> NDArray[np.float32]:
    """Reduce the contrast of crops by haze of uneven thickness.

    Args:
        scaled: (n, h, w, b) float32.
        rng: random generator.
        seed: of the bank of fields.
        most: largest share of the ground's light that haze replaces.

    Returns:
        A copy; NaN stays NaN.
    """
    n, h, w, b = scaled.shape
    field = draw_fields(field_bank(seed), n, (h, w), rng)[0]
    thick = rng.uniform(0.1, most, (n, 1, 1)).astype(np.float32) * np.clip(1 + 0.4 * field, 0, 1.6)
    thick = np.minimum(thick, np.float32(most))[..., None]
    air = rng.uniform(-0.4, 0.6, (n, 1, 1, 1)) + rng.normal(0, 0.08, (n, 1, 1, b))
    return scaled + thick * (air.astype(np.float32) - scaled)
