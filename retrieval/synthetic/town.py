"""Towns: districts, blocks between streets, and lots with roofs, yards and gardens."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval.synthetic.canvas import Canvas, Mask
from retrieval.synthetic.parcels import Districts, Lattice, divide, lattice
from retrieval.synthetic.units import GARDEN, LONG_AGO, Kind

STYLES = 16
"""Kinds of neighbourhood in one town; a block has one of them."""

LOTS = 512
"""Different lots in a style; they come again, at other places, as houses of one builder do."""


def paint_town(canvas: Canvas, mask: Mask) -> None:
    """Paint the built-up pixels.

    Args:
        canvas: What to paint on, with fine pixels of 5 m.
        mask: Where the town is.
    """
    if not mask.any():
        return
    rng = canvas.rng
    districts = divide(rng, canvas.shape, max(2, round(mask.sum() / 5e4)), warp_px=8)
    angle = rng.uniform(0, np.pi, districts.count)
    coarse = rng.random(districts.count) < 0.22
    wide = np.where(coarse, rng.uniform(30, 60, districts.count), rng.uniform(10, 24, districts.count))
    blocks = lattice(
        rng,
        districts,
        mask,
        width_px=wide,
        length_px=wide * rng.uniform(1, 2.8, districts.count),
        angle_rad=angle,
        spread=0.25,
    )
    style = _styles_of_blocks(rng, blocks, coarse)
    lots = _lots(rng, districts, mask, angle, coarse)
    canvas.paint(mask, _add_styles(canvas) + style[blocks.cell] * LOTS + lots)
    own = districts.index[mask]
    street = rng.uniform(0.5, 1.25, districts.count)[own]
    avenue = districts.margin_px[mask] < 1.6
    paved = (blocks.side_px < street) | (blocks.end_px < 0.8 * street) | avenue
    unit = canvas.unit[mask]
    unit[paved] = canvas.add(Kind.STREET, districts.count) + own[paved]
    canvas.unit[mask] = unit


def _styles_of_blocks(
    rng: np.random.Generator, blocks: Lattice, coarse: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Blocks mostly have their district's style; the last four styles are halls and yards."""
    low = np.where(coarse, STYLES - 4, 0)
    high = np.where(coarse, STYLES, STYLES - 4)
    usual = rng.integers(low, high)[blocks.district]
    any_style = rng.integers(0, STYLES, blocks.count)
    return np.where(rng.random(blocks.count) < 0.72, usual, any_style)


def _lots(
    rng: np.random.Generator,
    districts: Districts,
    mask: Mask,
    angle: NDArray[np.float64],
    coarse: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """Number from 0 to LOTS - 1 for each pixel, the same over one lot of 10 to 30 m (halls: 40 to 90 m)."""
    y, x = np.nonzero(mask)
    district = districts.index[mask]
    size = np.where(coarse, rng.uniform(7, 16, districts.count), rng.uniform(2.2, 5.5, districts.count))
    cos, sin = np.cos(angle)[district], np.sin(angle)[district]
    across = (x * cos + y * sin) / size[district]
    row = np.floor(across + 4096).astype(np.int64)
    # Every row has its own depth and begins elsewhere: houses do not stand in a chequer.
    depth = rng.uniform(0.7, 1.8, 8192)[row % 8192]
    along = (y * cos - x * sin) / size[district] / depth
    column = np.floor(along + 8192 * rng.random(8192)[row % 8192]).astype(np.int64)
    mixed = (row * 73856093) ^ (column * 19349663) ^ (district * 83492791)
    return (mixed ^ (mixed >> 13)) % LOTS


def _add_styles(canvas: Canvas) -> int:
    """Add all lots of all styles: some leafy, some dense, some of one roof, some built in our years."""
    rng = canvas.rng
    traits = rng.random((STYLES, LOTS, 4), dtype=np.float32)
    leafy = rng.beta(2, 2.6, STYLES).astype(np.float32)
    leafy[-4:] *= 0.3
    # The first trait above GARDEN makes a garden: bend its distribution to the style's share.
    garden = traits[..., 0] < leafy[:, None]
    traits[..., 0] = np.where(garden, GARDEN + (1 - GARDEN) * traits[..., 0], GARDEN * traits[..., 0])
    taste = np.float32(0.76) * rng.random((STYLES, 1), dtype=np.float32)
    traits[..., 1] = np.where(rng.random((STYLES, LOTS)) < 0.6, taste, traits[..., 1])
    traits[-4:, :, 1] = np.where(rng.random((4, LOTS)) < 0.35, 0.82, traits[-4:, :, 1])
    since = np.full((STYLES, LOTS), LONG_AGO, np.int16)
    since[rng.random((STYLES, LOTS)) < 0.03] = 1
    changed = since == 1
    since[changed] = rng.integers(2010, 2026, changed.sum())
    since[rng.integers(STYLES)] = rng.integers(2014, 2024)
    return canvas.add(Kind.LOT, traits.reshape(-1, 4), since.reshape(-1))
