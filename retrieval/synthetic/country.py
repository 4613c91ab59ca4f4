"""Fields, forests, irrigated circles, rivers and roads, painted on a canvas of 5 m pixels."""

from __future__ import annotations

import numpy as np

from retrieval.synthetic.canvas import Canvas, Mask
from retrieval.synthetic.noise import Field, coarse_fractal, line_distance
from retrieval.synthetic.parcels import Districts, lattice
from retrieval.synthetic.plan import Plan
from retrieval.synthetic.units import LONG_AGO, Kind


def paint_farmland(canvas: Canvas, districts: Districts, mask: Mask, width_px: float) -> None:
    """Divide a mask into parcels, some of them in two in some years, with tracks and hedges between.

    Args:
        canvas: What to paint on.
        districts: Each has a direction, a size of fields and habits of its own.
        mask: Where.
        width_px: Typical width of a parcel in fine pixels.
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
    own = districts.index[mask]
    tracks = rng.uniform(-0.8, 1.3, count)[own]
    hedges = rng.uniform(-3.0, 1.6, count)[own]
    _paint_flat(canvas, mask, cut.side_px < tracks, Kind.TRACK)
    _paint_flat(canvas, mask, (cut.end_px < hedges) & ~(cut.side_px < tracks), Kind.HEDGE)


def paint_forest(canvas: Canvas, districts: Districts, mask: Mask) -> None:
    """Fill a mask with stands; about a fifth of them were or will be cut within memory."""
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
    # Neighbouring stands are often of one species: most follow their district.
    alike = rng.random(cut.count) < 0.5
    traits[alike, 0] = rng.random(districts.count, dtype=np.float32)[cut.district[alike]]
    canvas.paint(mask, canvas.add(Kind.STAND, traits, felled.astype(np.int16)) + cut.cell)
    _paint_flat(canvas, mask, cut.side_px < 0.7, Kind.TRACK)


def paint_pivots(canvas: Canvas, mask: Mask, count: int) -> None:
    """Irrigated circles of 250 to 800 m, some of them in two halves."""
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
    """Winding rivers of 10 to 120 m with gravel and flats along them; in deserts their dry beds."""
    rng = canvas.rng
    bed = Kind.SAND if dry else Kind.WATER
    for _ in range(count):
        away = line_distance(_across(canvas, wiggle=0.30, factor=16), rng.normal(0, 0.3))
        wide = np.exp(rng.uniform(np.log(1), np.log(12)))
        swell = wide * (1 + 0.25 * coarse_fractal(rng, canvas.shape, beta=3, factor=16))
        canvas.shades(Kind.SHORE, land & (away < 1.25 * swell + 0.8), swell / wide * 4 - 4, levels=6)
        canvas.shades(bed, land & (away < swell), swell / wide * 4 - 4, levels=6)


def paint_roads(canvas: Canvas, districts: Districts, land: Mask, plan: Plan) -> None:
    """Roads along the borders of districts, and one or two highways across the country."""
    rng = canvas.rng
    busy = 0.4 + plan.town + 0.3 * plan.farmland
    local = rng.random(districts.count) < busy
    roads = land & (districts.margin_px < rng.uniform(0.7, 1.4)) & local[districts.index]
    canvas.shades(Kind.ROAD, roads, np.zeros(canvas.shape, np.float32), levels=4)
    for _ in range(rng.poisson(1.2 * busy)):
        away = line_distance(_across(canvas, wiggle=0.12, factor=32), rng.normal(0, 0.3))
        verge = rng.uniform(1.5, 3.0)
        canvas.shades(Kind.MEADOW, land & (away < verge + 2), np.zeros(canvas.shape, np.float32), levels=4)
        canvas.shades(Kind.ROAD, land & (away < verge), np.zeros(canvas.shape, np.float32), levels=4)


def _across(canvas: Canvas, *, wiggle: float, factor: int) -> Field:
    """A field that falls across the image from side to side: each of its contours is one bent line."""
    rng = canvas.rng
    angle = rng.uniform(0, 2 * np.pi)
    height, width = canvas.shape
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None] * np.float32(np.sin(angle))
    x = np.linspace(-1, 1, width, dtype=np.float32)[None] * np.float32(np.cos(angle))
    return x + y + np.float32(wiggle) * coarse_fractal(rng, canvas.shape, beta=4.0, factor=factor)


def _paint_flat(canvas: Canvas, mask: Mask, among: np.ndarray, kind: Kind) -> None:
    """Paint those of the masked pixels that are marked, each in one of a few tones."""
    unit = canvas.unit[mask]
    unit[among] = canvas.add(kind, 1)
    canvas.unit[mask] = unit
