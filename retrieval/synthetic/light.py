"""Sun, atmosphere and instrument: turn reflectances on the ground into digital numbers of an image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.synthetic.noise import Field, coarse_fractal, fft_length, fractal, smoothstep

_PATH = np.array([300, 440, 690, 160], np.float32)[:, None, None]
"""Path radiance of a clear sky, x 10000, as in top-of-atmosphere products."""

_THROUGH = np.array([0.93, 0.90, 0.85, 0.96], np.float32)[:, None, None]
"""Share of the ground's light that a clear sky transmits."""

_HAZE = np.array([2300, 2450, 2700, 2050], np.float32)[:, None, None]
"""Colour of thick haze, x 10000."""

PSF_SIGMA_PX = 0.5
"""Gaussian blur of detector and optics; contrast at the Nyquist frequency is 0.29."""


@dataclass(frozen=True)
class Sun:
    """Direction to the sun as a unit vector; y points south, as image rows do."""

    x: float
    """Towards the east."""
    y: float
    """Towards the south."""
    z: float
    """Upwards: the cosine of the zenith angle, at least 0.2."""


@dataclass(frozen=True)
class Sky:
    """Clouds and haze of one day."""

    cover: float
    """Share of the image under clouds, 0 to 1."""
    haze: float
    """Share of the ground's light that haze replaces, on average, 0 to 1."""


def sun_at(day: int, latitude_deg: float) -> Sun:
    """Return the direction to the sun at 10:30 local solar time, the hour of the satellite.

    Args:
        day: day of the year.
        latitude_deg: latitude, north positive.

    Returns:
        The direction; a sun below 11 degrees is raised to 11 degrees.
    """
    tilt = -np.radians(23.44) * np.cos(2 * np.pi * (day + 10) / 365)
    latitude, hour = np.radians(latitude_deg), np.radians(-22.5)
    east = -np.cos(tilt) * np.sin(hour)
    north = np.cos(latitude) * np.sin(tilt) - np.sin(latitude) * np.cos(tilt) * np.cos(hour)
    up = max(0.2, np.sin(latitude) * np.sin(tilt) + np.cos(latitude) * np.cos(tilt) * np.cos(hour))
    flat = np.sqrt(1 - up * up) / np.hypot(east, north)
    return Sun(float(east * flat), float(-north * flat), float(up))


def shading(slope_x: Field, slope_y: Field, sun: Sun) -> Field:
    """Return the brightness of slopes relative to level ground, float32 (y, x), with diffuse light."""
    facing = (sun.z - slope_x * np.float32(sun.x) - slope_y * np.float32(sun.y)) / np.sqrt(
        1 + slope_x * slope_x + slope_y * slope_y
    )
    ambient = np.float32(0.25)
    return np.clip((facing + ambient) / (np.float32(sun.z) + ambient), 0.25, 1.8)


def cast_shadow(height_m: Field, sun: Sun, pixel_m: float) -> NDArray[np.bool_]:
    """Return where something higher within four pixels shades the ground or a low roof."""
    run = float(np.hypot(sun.x, sun.y))
    rise_m = pixel_m * sun.z / run
    shaded: NDArray[np.bool_] = np.zeros(height_m.shape, bool)
    for step in range(1, 5):
        back = (-round(step * sun.y / run), -round(step * sun.x / run))
        # np.roll wraps at the border; the margin that every scene has is cut off afterwards.
        shaded |= np.roll(height_m, back, (0, 1)) > height_m + np.float32(step * rise_m)
    return shaded


def sense(
    fine: NDArray[np.float32], height: int, width: int, *, margin_px: int, shift_xy_px: tuple[float, float]
) -> NDArray[np.float32]:
    """Sample the ground as the instrument does: blurred, at twice the pixel size, shifted by a sub-pixel.

    Args:
        fine: reflectances at half the pixel size, float32 (4, 2 * (height + 2 * margin), 2 * (...)).
        height: rows of the image.
        width: columns of the image.
        margin_px: image pixels of ground beyond the image on each side, at least 5.
        shift_xy_px: ground of (x, y) appears at (x + dx, y + dy); at most 2 each.

    Returns:
        Float32 (4, height, width).
    """
    shift_x, shift_y = shift_xy_px
    first, weights = _taps(margin_px - shift_y)
    rows = sum(w * fine[:, first + k : first + k + 2 * height : 2] for k, w in enumerate(weights))
    first, weights = _taps(margin_px - shift_x)
    return sum(w * rows[:, :, first + k : first + k + 2 * width : 2] for k, w in enumerate(weights))


def _taps(start_px: float) -> tuple[int, NDArray[np.float32]]:
    """Return first fine pixel and weights of the blur along one axis."""
    centre = 2 * start_px + 0.5
    first = int(np.floor(centre)) - 3
    offset = np.arange(first, first + 8) - centre
    weights = np.exp(-0.5 * (offset / (2 * PSF_SIGMA_PX)) ** 2)
    return first, (weights / weights.sum()).astype(np.float32)


def add_atmosphere(
    ground: NDArray[np.float32], sky: Sky, sun: Sun, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Add air, haze, clouds and their shadows.

    Args:
        ground: reflectances, x 10000, float32 (4, y, x).
        sky: clouds and haze of the day.
        sun: decides where shadows fall.
        rng: random generator.

    Returns:
        Light at the instrument, of the same shape and unit, and where cloud or shadow hides the ground,
        (y, x).
    """
    shape = ground.shape[1:]
    cloud, shadow = _clouds(shape, sky, sun, rng)
    lit = ground * (1 - np.float32(0.62) * shadow)
    thin = np.clip(sky.haze * (1 + 0.5 * coarse_fractal(rng, shape, beta=3, factor=16)), 0, 0.9)
    air = np.float32(rng.uniform(0.85, 1.2))
    out = air * _PATH + _THROUGH * lit
    out += thin * (_HAZE - out)
    if sky.cover > 0:
        white = 3600 + 3400 * cloud + 450 * fractal(rng, (shape[0], shape[1]), beta=2.4)
        out += cloud * (white - out)
    return out, (cloud > 0.2) | (shadow > 0.35)


def _clouds(shape: tuple[int, ...], sky: Sky, sun: Sun, rng: np.random.Generator) -> tuple[Field, Field]:
    """Return opacity of the clouds and depth of their shadows, 0 to 1, each (y, x)."""
    if sky.cover <= 0:
        zero = np.zeros(shape, np.float32)
        return zero, zero
    height, width = (fft_length(side) for side in shape)
    field = fractal(rng, (height, width), beta=rng.uniform(3.0, 3.8), low_px=rng.uniform(80, 500))
    edge = float(np.quantile(field[::8, ::8], 1 - sky.cover))
    cloud = smoothstep(field, edge - 0.2, edge + rng.uniform(0.3, 1.2))
    offset_px = rng.uniform(60, 250) * np.sqrt(1 - sun.z**2) / sun.z
    # The field is periodic, so rolling it also moves shadows in from outside.
    shadow = np.roll(cloud, (-round(offset_px * sun.y), -round(offset_px * sun.x)), (0, 1)) * (1 - cloud)
    return cloud[: shape[0], : shape[1]], shadow[: shape[0], : shape[1]]


def digitise(light: NDArray[np.float32], rng: np.random.Generator, *, noise_dn: float) -> NDArray[np.uint16]:
    """Turn light into digital numbers: view, gain, noise, rounding.

    Args:
        light: float32 (4, y, x), x 10000.
        rng: random generator.
        noise_dn: standard deviation of the noise on dark ground; bright ground has more.

    Returns:
        uint16 (y, x, 4), at least 1 because 0 is nodata.
    """
    gain = rng.normal(1, 0.025) * rng.normal(1, 0.01, (4, 1, 1))
    across = 1 + rng.normal(0, 0.02) * np.linspace(-1, 1, light.shape[2])
    out = light * (gain * across).astype(np.float32)
    noise = rng.standard_normal(out.shape, dtype=np.float32)
    out += noise * (np.float32(noise_dn) + np.float32(0.003) * out)
    return np.ascontiguousarray(np.moveaxis(np.clip(np.rint(out), 1, 20000).astype(np.uint16), 0, -1))
