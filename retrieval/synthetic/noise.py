"""Random fields, from which the generated ground and sky are made.

Every field is float32 with zero mean and unit variance: white noise, filtered with a power law `1 / f**beta`
in the Fourier domain. Beta 0 is white, 2 is rough ground, 3 to 4 is smooth hills. Lengths are in pixels of
the caller's grid.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.floating[Any]]
"""An array (y, x) of float32; typed as any float because type checkers widen NumPy's scalars."""


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
    """Return a random field with a power-law spectrum.

    Args:
        rng: random generator.
        shape: height and width in pixels.
        beta: exponent of the power spectrum; larger is smoother.
        low_px: largest wavelength.
        high_px: smallest wavelength.
        stretch: ratio of length to width of the structures.
        angle_rad: direction of their length, from the x axis.

    Returns:
        Float32 (height, width) with zero mean and unit variance. It is periodic if both sides are products
        of 2, 3, 5 and 7; other sizes are cut from a larger field.
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
    """Return a smooth field, computed at 1/factor of the resolution and enlarged by splines.

    Args:
        rng: random generator.
        shape: height and width in pixels.
        beta: exponent of the power spectrum; below 2.5 the missing fine structure would show.
        low_px: largest wavelength, in pixels of `shape`.
        factor: side of a coarse pixel in pixels of `shape`.

    Returns:
        Float32 (height, width) with zero mean and unit variance.
    """
    coarse = tuple(-(-side // factor) + 3 for side in shape)
    small = fractal(rng, (coarse[0], coarse[1]), beta=beta, low_px=low_px / factor)
    return normalised(_enlarge(_enlarge(small, shape[0], factor).T, shape[1], factor).T)


def normalised(field: Field) -> Field:
    """Return a field with zero mean and unit variance; a constant field becomes zero."""
    centred = field - field.mean()
    return np.ascontiguousarray(centred / (centred.std() + np.float32(1e-12)))


def smoothstep(values: Field, low: float, high: float) -> Field:
    """Return values that rise from 0 at `low` to 1 at `high`, with a flat start and end."""
    t = np.clip((values - np.float32(low)) / np.float32(high - low), 0, 1)
    return t * t * (3 - 2 * t)


def line_distance(field: Field, level: float = 0.0) -> Field:
    """Return the distance in pixels to a contour of a smooth field; rivers and highways follow contours.

    Args:
        field: float32 (h, w).
        level: value of the contour.

    Returns:
        Float32 (h, w), a first-order estimate: exact near the contour, where it is used.
    """
    grad_y, grad_x = np.gradient(field)
    return np.abs(field - np.float32(level)) / (np.hypot(grad_x, grad_y) + np.float32(1e-6))


def fft_length(side: int) -> int:
    """Return the smallest length from `side` without a prime factor above 7, for a fast transform."""
    length = side
    while _large_factor(length) != 1:
        length += 1
    return length


def _large_factor(length: int) -> int:
    """Return the length divided by all its prime factors up to 7."""
    for prime in (2, 3, 5, 7):
        while length % prime == 0:
            length //= prime
    return length


def _gain(
    height: int, width: int, beta: float, low_px: float, high_px: float, stretch: float, angle_rad: float
) -> Field:
    """Return the amplitude of each frequency; `fractal` explains the arguments."""
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
    """Enlarge the first axis by Catmull-Rom splines, as one matrix product."""
    position = (np.arange(length, dtype=np.float32) + np.float32(0.5)) / np.float32(factor) + np.float32(1.0)
    base = position.astype(np.int32)
    t = position - base
    weights = np.zeros((length, small.shape[0]), np.float32)
    rows = np.arange(length)
    weights[rows, base - 1] = -0.5 * t + t * t - 0.5 * t**3
    weights[rows, base] = 1 - 2.5 * t * t + 1.5 * t**3
    weights[rows, base + 1] = 0.5 * t + 2 * t * t - 1.5 * t**3
    weights[rows, base + 2] = -0.5 * t * t + 0.5 * t**3
    return weights @ small
