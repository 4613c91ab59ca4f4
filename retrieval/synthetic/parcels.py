"""Divide land into districts, each with a direction, and districts into parcels.

A district is a cell of a warped Voronoi diagram. Its land is cut into columns of uneven width along the
district's direction, and each column into uneven lengths. Typical width and length decide whether parcels
are strips, blocks or squares. Two sorted searches do this for all pixels at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.synthetic.noise import Field, coarse_fractal


@dataclass(frozen=True)
class Districts:
    """A partition of the ground into areas, each with one direction."""

    index: NDArray[np.int32]
    """District of each pixel, (y, x), from 0."""
    margin_px: Field
    """Approximate distance to the district's border in pixels; roads follow borders."""
    count: int
    """Number of districts."""


@dataclass(frozen=True)
class Lattice:
    """Parcels of masked pixels, flat, in the order of the mask."""

    cell: NDArray[np.int64]
    """Parcel of each pixel, 0 to count - 1; a parcel may have no pixel."""
    half: NDArray[np.bool_]
    """Whether the pixel lies in the second half of its parcel's length."""
    side_px: Field
    """Distance to the nearer long side of the parcel, in pixels."""
    end_px: Field
    """Distance to the nearer short end of the parcel, in pixels."""
    district: NDArray[np.int64]
    """District of each parcel, (count,)."""
    count: int
    """Number of parcels."""


def divide(rng: np.random.Generator, shape: tuple[int, int], count: int, *, warp_px: float) -> Districts:
    """Divide the ground into districts with bent borders.

    Args:
        rng: random generator.
        shape: height and width in pixels.
        count: number of districts, at least 1.
        warp_px: amplitude of the bends of borders, in pixels.
    """
    height, width = shape
    bend = np.float32(warp_px)
    x = np.arange(width, dtype=np.float32)[None] + bend * coarse_fractal(rng, shape, beta=3.5, factor=16)
    y = np.arange(height, dtype=np.float32)[:, None] + bend * coarse_fractal(rng, shape, beta=3.5, factor=16)
    seeds = (rng.uniform(-0.05, 1.05, (count, 2)) * (width, height)).astype(np.float32)
    index = np.zeros(shape, np.int32)
    nearest: Field = np.full(shape, np.inf, np.float32)
    second = nearest.copy()
    for number, (seed_x, seed_y) in enumerate(seeds):
        distance = (x - seed_x) ** 2 + (y - seed_y) ** 2
        closer = distance < nearest
        np.minimum(second, np.maximum(distance, nearest), out=second)
        np.copyto(index, np.int32(number), where=closer)
        np.minimum(nearest, distance, out=nearest)
    # Near the bisector, half the difference of the two distances is the distance to it.
    return Districts(index, (np.sqrt(second) - np.sqrt(nearest)) * np.float32(0.5), count)


def lattice(
    rng: np.random.Generator,
    districts: Districts,
    mask: NDArray[np.bool_],
    *,
    width_px: NDArray[np.float64],
    length_px: NDArray[np.float64],
    angle_rad: NDArray[np.float64],
    spread: float = 0.35,
) -> Lattice:
    """Cut the pixels of a mask into parcels.

    Args:
        rng: random generator.
        districts: the districts.
        mask: the pixels to cut, (y, x).
        width_px: typical width of a parcel in each district, in pixels.
        length_px: typical length of a parcel in each district, in pixels.
        angle_rad: direction of each district, from the x axis.
        spread: standard deviation of the logarithm of widths and lengths.

    Returns:
        The parcels of the masked pixels in row-major order.
    """
    y, x = np.nonzero(mask)
    district = districts.index[mask].astype(np.int64)
    reach = float(np.hypot(*mask.shape))
    stretch = 2 * reach + 2
    cos, sin = np.cos(angle_rad)[district], np.sin(angle_rad)[district]
    u = x * cos + y * sin + reach
    v = y * cos - x * sin + reach
    sides = _borders(rng, width_px, stretch, spread)
    column, side_px, _ = _cut(sides, district * stretch + u)
    column_district = (sides[:-1] // stretch).astype(np.int64)
    ends = _borders(rng, length_px[column_district], stretch, spread)
    cell, end_px, half = _cut(ends, column * stretch + v)
    cell_district = column_district[(ends[:-1] // stretch).astype(np.int64)]
    return Lattice(cell, half, side_px, end_px, cell_district, len(ends) - 1)


def _borders(
    rng: np.random.Generator, pitch: NDArray[np.float64], stretch: float, spread: float
) -> NDArray[np.float64]:
    """Return sorted uneven borders; line i has [i * stretch, (i + 1) * stretch) and starts with a border."""
    number = np.ceil(1.3 * stretch / pitch).astype(np.int64) + 1
    line = np.repeat(np.arange(len(pitch)), number)
    step = np.exp(rng.normal(0, spread, len(line))) * pitch[line]
    total = np.cumsum(step)
    first = np.cumsum(number) - number
    along = total - (total[first] - step[first] * rng.random(len(pitch)))[line]
    along[first] = 0
    inside = along < stretch
    return np.append((line * stretch + along)[inside], len(pitch) * stretch)


def _cut(
    borders: NDArray[np.float64], key: NDArray[np.float64]
) -> tuple[NDArray[np.int64], Field, NDArray[np.bool_]]:
    """Return each key's interval, its distance to the nearer end, and whether it is past the middle."""
    place = np.searchsorted(borders, key, side="right") - 1
    low, high = borders[place], borders[place + 1]
    return place, np.minimum(key - low, high - key).astype(np.float32), key > (low + high) / 2
