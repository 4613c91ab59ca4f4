"""Paint fields, forests, irrigated circles, rivers, roads and towns on a canvas of 5 m pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval.synthetic.noise import Field, coarse_fractal, line_distance
from retrieval.synthetic.parcels import Districts, Lattice, divide, lattice
from retrieval.synthetic.plan import Plan
from retrieval.synthetic.units import GARDEN, LONG_AGO, Canvas, Kind, Mask

STYLES = 16
"""Kinds of neighbourhood in a town; a block has one of them."""

LOTS = 512
"""Different lots in a style; they repeat at other places, as houses of one builder do."""


# --- country --------------------------------------------------------------------------------------


def paint_farmland(canvas: Canvas, districts: Districts, mask: Mask, width_px: float) -> None:
    """Divide a mask into parcels, some in two halves in some years, with tracks and hedges between.

    Args:
        canvas: the map.
        districts: each has its direction and size of fields.
        mask: the farmland.
        width_px: typical width of a parcel in fine pixels.
    """
    rng = canvas.rng
    count = districts.count
    wide = width_px * np.exp(rng.normal(0, 0.4, count))
    long = wide * rng.uniform(1.0, 4.5, count)
    cut = lattice(rng, districts, mask, width_px=wide, length_px=long, angle_rad=rng.uniform(0, np.pi, count))
    grass = rng.beta(1.2, 4, count)[cut.district] > rng.random(cut.count)
    kind = np.where(grass, Kind.MEADOW, Kind.CROP).astype(np.uint8)
    traits = rng.random((cut.count, 4), dtype=np.float32)
    whole = canvas.add(kind, traits)
    other = canvas.add(kind, traits, partner=np.arange(cut.count, dtype=np.int32) - cut.count)
    divided = rng.random(cut.count) < 0.4
    canvas.paint(mask, np.where(cut.half & divided[cut.cell], other, whole) + cut.cell)
    district = districts.index[mask]
    tracks = rng.uniform(-0.8, 1.3, count)[district]
    hedges = rng.uniform(-3.0, 1.6, count)[district]
    _paint_flat(canvas, mask, cut.side_px < tracks, Kind.TRACK)
    _paint_flat(canvas, mask, (cut.end_px < hedges) & ~(cut.side_px < tracks), Kind.HEDGE)


def paint_forest(canvas: Canvas, districts: Districts, mask: Mask) -> None:
    """Fill a mask with stands of trees; about a fifth of them are cut between 2004 and 2025."""
    rng = canvas.rng
    wide = rng.uniform(25, 90, districts.count)
    cut = lattice(
        rng,
        districts,
        mask,
        width_px=wide,
        length_px=wide * rng.uniform(0.8, 2, districts.count),
        angle_rad=rng.uniform(0, np.pi, districts.count),
        spread=0.5,
    )
    felled = np.where(rng.random(cut.count) < 0.2, rng.integers(2004, 2026, cut.count), LONG_AGO)
    traits = rng.random((cut.count, 4), dtype=np.float32)
    # Neighbouring stands often have one species: about half follow their district.
    alike = rng.random(cut.count) < 0.5
    traits[alike, 0] = rng.random(districts.count, dtype=np.float32)[cut.district[alike]]
    canvas.paint(mask, canvas.add(Kind.STAND, traits, felled.astype(np.int16)) + cut.cell)
    _paint_flat(canvas, mask, cut.side_px < 0.7, Kind.TRACK)


def paint_pivots(canvas: Canvas, mask: Mask, count: int) -> None:
    """Paint irrigated circles of 250 to 800 m, some in two halves."""
    rng = canvas.rng
    height, width = canvas.shape
    first = canvas.add(Kind.PIVOT, 2 * count)
    for number in range(count):
        radius = rng.uniform(25, 80)
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        rows = slice(max(0, int(y - radius)), int(y + radius) + 1)
        cols = slice(max(0, int(x - radius)), int(x + radius) + 1)
        gap_y = np.arange(height)[rows, None] - y
        gap_x = np.arange(width)[None, cols] - x
        inside = (gap_x**2 + gap_y**2 < radius**2) & mask[rows, cols]
        split = (gap_x > 0.6 * gap_y) & (rng.random() < 0.4)
        part = canvas.unit[rows, cols]
        part[inside] = first + 2 * number + (split & inside)[inside]


def paint_rivers(canvas: Canvas, land: Mask, count: int, *, dry: bool) -> None:
    """Paint winding rivers of 10 to 120 m with gravel and flats; in deserts, dry beds."""
    rng = canvas.rng
    bed = Kind.SAND if dry else Kind.WATER
    for _ in range(count):
        distance = line_distance(_across(canvas, wiggle=0.30, factor=16), rng.normal(0, 0.3))
        wide = np.exp(rng.uniform(np.log(1), np.log(12)))
        swell = wide * (1 + 0.25 * coarse_fractal(rng, canvas.shape, beta=3, factor=16))
        canvas.paint_shades(
            Kind.SHORE, land & (distance < 1.25 * swell + 0.8), swell / wide * 4 - 4, levels=6
        )
        canvas.paint_shades(bed, land & (distance < swell), swell / wide * 4 - 4, levels=6)


def paint_roads(canvas: Canvas, districts: Districts, land: Mask, plan: Plan) -> None:
    """Paint roads along the borders of districts, and one or two highways across the country."""
    rng = canvas.rng
    busy = 0.4 + plan.town + 0.3 * plan.farmland
    local = rng.random(districts.count) < busy
    roads = land & (districts.margin_px < rng.uniform(0.7, 1.4)) & local[districts.index]
    no_tone = np.zeros(canvas.shape, np.float32)
    canvas.paint_shades(Kind.ROAD, roads, no_tone, levels=4)
    for _ in range(rng.poisson(1.2 * busy)):
        distance = line_distance(_across(canvas, wiggle=0.12, factor=32), rng.normal(0, 0.3))
        verge = rng.uniform(1.5, 3.0)
        canvas.paint_shades(Kind.MEADOW, land & (distance < verge + 2), no_tone, levels=4)
        canvas.paint_shades(Kind.ROAD, land & (distance < verge), no_tone, levels=4)


def _across(canvas: Canvas, *, wiggle: float, factor: int) -> Field:
    """Return a field that falls from side to side: each of its contours is one bent line."""
    rng = canvas.rng
    angle = rng.uniform(0, 2 * np.pi)
    height, width = canvas.shape
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None] * np.float32(np.sin(angle))
    x = np.linspace(-1, 1, width, dtype=np.float32)[None] * np.float32(np.cos(angle))
    return x + y + np.float32(wiggle) * coarse_fractal(rng, canvas.shape, beta=4.0, factor=factor)


def _paint_flat(canvas: Canvas, mask: Mask, selected: NDArray[np.bool_], kind: Kind) -> None:
    """Paint the selected pixels of a mask as one unit."""
    unit = canvas.unit[mask]
    unit[selected] = canvas.add(kind, 1)
    canvas.unit[mask] = unit


# --- town -----------------------------------------------------------------------------------------


def paint_town(canvas: Canvas, mask: Mask) -> None:
    """Paint the built-up pixels.

    Args:
        canvas: the map, with fine pixels of 5 m.
        mask: the town.
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
    district = districts.index[mask]
    street = rng.uniform(0.5, 1.25, districts.count)[district]
    avenue = districts.margin_px[mask] < 1.6
    paved = (blocks.side_px < street) | (blocks.end_px < 0.8 * street) | avenue
    unit = canvas.unit[mask]
    unit[paved] = canvas.add(Kind.STREET, districts.count) + district[paved]
    canvas.unit[mask] = unit


def _styles_of_blocks(
    rng: np.random.Generator, blocks: Lattice, coarse: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Draw a style for each block, mostly its district's; the last four styles are halls and yards."""
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
    """Return the number of each pixel's lot, 0 to LOTS - 1; lots have 10 to 30 m (halls: 40 to 90 m)."""
    y, x = np.nonzero(mask)
    district = districts.index[mask]
    size = np.where(coarse, rng.uniform(7, 16, districts.count), rng.uniform(2.2, 5.5, districts.count))
    cos, sin = np.cos(angle)[district], np.sin(angle)[district]
    across = (x * cos + y * sin) / size[district]
    row = np.floor(across + 4096).astype(np.int64)
    # Every row has another depth and offset, so that houses do not form a chequerboard.
    depth = rng.uniform(0.7, 1.8, 8192)[row % 8192]
    along = (y * cos - x * sin) / size[district] / depth
    column = np.floor(along + 8192 * rng.random(8192)[row % 8192]).astype(np.int64)
    mixed = (row * 73856093) ^ (column * 19349663) ^ (district * 83492791)
    return (mixed ^ (mixed >> 13)) % LOTS


def _add_styles(canvas: Canvas) -> int:
    """Add all lots of all styles: leafy, dense, with one kind of roof, or built in recent years."""
    rng = canvas.rng
    traits = rng.random((STYLES, LOTS, 4), dtype=np.float32)
    leafy = rng.beta(2, 2.6, STYLES).astype(np.float32)
    leafy[-4:] *= 0.3
    # A first trait above GARDEN makes a garden: map the trait so that the style has its share of gardens.
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
