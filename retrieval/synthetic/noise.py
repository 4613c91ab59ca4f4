"""Random fields and shapes that the generated ground and sky are made of.

Every field is float32, of zero mean and unit variance, made by filtering white noise with a power law
`1 / f**beta` in the Fourier domain: beta 0 is white, 2 rough ground, 3 to 4 smooth hills. Pixels are
whatever grid the caller works on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.floating[Any]]
"""An array (y, x) of float32; the checker is not told, since NumPy's scalars widen in its eyes only."""


def fractal(
    rng: np.random.Generator,
    shape: tuple[int, int],
    *,
    beta: float,
    low_px: float = np.inf,
    high_px: float = 0.0,
    stretch: float = 1.0,
    angle_rad: float = 0.0,
) -> Field:
    """Make a random field of a power-law spectrum.

    Args:
        rng: Source of the randomness.
        shape: Height and width in pixels.
        beta: Exponent of the power spectrum; larger is smoother.
        low_px: No structure larger than this wavelength.
        high_px: No structure smaller than this wavelength.
        stretch: How many times longer than wide the structures are.
        angle_rad: Direction along which they are long, from the x axis.

    Returns:
        Float32 (height, width) of zero mean and unit variance; periodic where both sides are products
        of 2, 3, 5 and 7, since other sides are cut from a larger field.
    """
    height, width = (fft_length(side) for side in shape)
    gain = _gain(height, width, beta, low_px, high_px, stretch, angle_rad)
    spectrum = rng.standard_normal((2, *gain.shape), dtype=np.float32)
    complex_spectrum = (spectrum[0] + 1j * spectrum[1]) * gain
    field = np.fft.irfft2(complex_spectrum, s=(height, width)).astype(np.float32, copy=False)
    return normalised(field[: shape[0], : shape[1]])


def coarse_fractal(
    rng: np.random.Generator, shape: tuple[int, int], *, beta: float, low_px: float = np.inf, factor: int = 8
) -> Field:
    """Make a smooth field cheaply: at 1/factor of the resolution, then enlarged by splines.

    Args:
        rng: Source of the randomness.
        shape: Height and width in pixels.
        beta: Exponent of the power spectrum; below 2.5 the missing fine structure would show.
        low_px: No structure larger than this wavelength, in pixels of `shape`.
        factor: Size of a coarse pixel in pixels of `shape`.

    Returns:
        Float32 (height, width) of zero mean and unit variance.
    """
    coarse = tuple(-(-side // factor) + 3 for side in shape)
    small = fractal(rng, (coarse[0], coarse[1]), beta=beta, low_px=low_px / factor)
    return normalised(_enlarge(_enlarge(small, shape[0], factor).T, shape[1], factor).T)


def normalised(field: Field) -> Field:
    """Shift and scale a field to zero mean and unit variance (a constant one becomes zero)."""
    centred = field - field.mean()
    return np.ascontiguousarray(centred / (centred.std() + np.float32(1e-12)))


def smoothstep(values: Field, low: float, high: float) -> Field:
    """Rise from 0 at `low` to 1 at `high` with a flat start and end."""
    t = np.clip((values - np.float32(low)) / np.float32(high - low), 0, 1)
    return t * t * (3 - 2 * t)


def line_distance(field: Field, level: float = 0.0) -> Field:
    """Distance in pixels to the contour of a smooth field: what rivers and highways are drawn from.

    Args:
        field: Float32 (h, w).
        level: The value whose contour is meant.

    Returns:
        Float32 (h, w), to first order: exact near the contour, where it is used.
    """
    grad_y, grad_x = np.gradient(field)
    return np.abs(field - np.float32(level)) / (np.hypot(grad_x, grad_y) + np.float32(1e-6))


def fft_length(side: int) -> int:
    """Smallest length from `side` up that has no prime factor above 7: the transform is fast there."""
    length = side
    while _rest(length) != 1:
        length += 1
    return length


def _rest(length: int) -> int:
    for prime in (2, 3, 5, 7):
        while length % prime == 0:
            length //= prime
    return length


def _gain(
    height: int, width: int, beta: float, low_px: float, high_px: float, stretch: float, angle_rad: float
) -> Field:
    fy = np.fft.fftfreq(height).astype(np.float32)[:, None]
    fx = np.fft.rfftfreq(width).astype(np.float32)[None, :]
    along = fx * np.float32(np.cos(angle_rad)) + fy * np.float32(np.sin(angle_rad))
    across = fy * np.float32(np.cos(angle_rad)) - fx * np.float32(np.sin(angle_rad))
    power = along * along * np.float32(stretch) + across * across / np.float32(stretch)
    band = power > max(1 / low_px, 1e-9) ** 2
    if high_px > 0:
        band &= power < 1 / high_px**2
    return np.where(band, np.maximum(power, np.float32(1e-12)) ** np.float32(-beta / 4), np.float32(0))


def _enlarge(small: Field, length: int, factor: int) -> Field:
    """Enlarge the first axis by Catmull-Rom splines, written as one matrix product."""
    at = (np.arange(length, dtype=np.float32) + np.float32(0.5)) / np.float32(factor) + np.float32(1.0)
    base = at.astype(np.int32)
    t = at - base
    weights = np.zeros((length, small.shape[0]), np.float32)
    rows = np.arange(length)
    weights[rows, base - 1] = -0.5 * t + t * t - 0.5 * t**3
    weights[rows, base] = 1 - 2.5 * t * t + 1.5 * t**3
    weights[rows, base + 1] = 0.5 * t + 2 * t * t - 1.5 * t**3
    weights[rows, base + 2] = -0.5 * t * t + 0.5 * t**3
    return weights @ small
