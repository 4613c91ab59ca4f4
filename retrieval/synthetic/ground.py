"""The ground of a generated place, the same on all dates.

The ground is painted at 5 m, twice the resolution of the images, so that image pixels are mixed as real
ones are. Each 5 m pixel belongs to one unit: a parcel, a roof, a stand of trees, a stretch of river. A day's
image is a table with one colour per unit (`retrieval.synthetic.spectra`), looked up for each pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.synthetic.landuse import (
    paint_farmland,
    paint_forest,
    paint_pivots,
    paint_rivers,
    paint_roads,
    paint_town,
)
from retrieval.synthetic.noise import Field, coarse_fractal, fractal
from retrieval.synthetic.parcels import divide
from retrieval.synthetic.plan import Plan
from retrieval.synthetic.spectra import SOILS
from retrieval.synthetic.units import GARDEN, TEXTURE, Canvas, Climate, Kind, Mask, Units

FINE = 2
"""Fine pixels along the side of an image pixel."""

FINE_M = 5.0
"""Side of a fine pixel in metres."""


@dataclass(frozen=True)
class SceneGround:
    """A place without sun, sky and season; fine arrays have pixels of 5 m, the others of 10 m."""

    unit: NDArray[np.int32]
    """Unit of each fine pixel, a row of `units`, (2 y, 2 x)."""
    units: Units
    """The table of units."""
    climate: Climate
    """The climate of the place."""
    texture: Field
    """Factor near 1 on reflectance, the same on all days, fine, (2 y, 2 x)."""
    height_m: Field
    """Height of buildings and trees above the ground in metres, fine, (2 y, 2 x)."""
    elevation_m: Field
    """Height of the ground above the sea in metres, (y, x)."""
    slope_x: Field
    """Slope towards the east, metres per metre, with canopies and dunes, (y, x)."""
    slope_y: Field
    """Slope towards the south, metres per metre, (y, x)."""


def make_ground(rng: np.random.Generator, height: int, width: int, plan: Plan) -> SceneGround:
    """Paint a place.

    Args:
        rng: random generator; the same state gives the same place.
        height: height in image pixels of 10 m.
        width: width in image pixels of 10 m.
        plan: shares and sizes of what the place holds.
    """
    shape = (height * FINE, width * FINE)
    canvas = Canvas(rng, shape)
    rough = fractal(rng, shape, beta=1.7, low_px=60)
    zones = _Zones(rng, shape, rough)
    land = ~zones.draw_sea(plan.sea)
    climate = _climate(rng, plan)
    canvas.paint_shades(Kind.STEPPE, np.ones(shape, bool), zones.draw_field(40))
    elevation = _elevation(rng, (height, width), plan)
    built = land & zones.draw_mask(plan.town)
    open_land = land & ~built
    trees = open_land & zones.draw_mask(plan.forest)
    sand = open_land & ~trees & zones.draw_mask(plan.dunes)
    fields = open_land & ~trees & ~sand & zones.draw_mask(plan.farmland)
    districts = divide(rng, shape, max(3, round(shape[0] * shape[1] / 1.1e5)), warp_px=14)
    canvas.paint_shades(Kind.ROCK, np.repeat(np.repeat(elevation > 2000, FINE, 0), FINE, 1), rough)
    canvas.paint_shades(Kind.SAND, sand, zones.draw_field(30))
    paint_farmland(canvas, districts, fields, plan.field_m / FINE_M)
    paint_forest(canvas, districts, trees)
    paint_pivots(canvas, open_land & ~trees, round(plan.pivots * shape[0] * shape[1] / 1.1e6))
    _paint_water(canvas, zones, land, plan)
    paint_rivers(canvas, land, round(plan.rivers), dry=plan.dryness > 0.7)
    paint_town(canvas, built & (canvas.unit >= 0))
    paint_roads(canvas, districts, land, plan)
    return _finish(canvas, climate, elevation, rough, sand)


class _Zones:
    """Draws masks with a given share of the area, with large soft shapes and ragged edges."""

    def __init__(self, rng: np.random.Generator, shape: tuple[int, int], rough: Field) -> None:
        self.rng = rng
        self.shape = shape
        self.rough = rough

    def draw_field(self, factor: int = 16) -> Field:
        """Return a new large-scale field plus the common ragged detail, randomly mirrored."""
        flip = self.rough[:: self.rng.choice([-1, 1]), :: self.rng.choice([-1, 1])]
        return coarse_fractal(self.rng, self.shape, beta=3.0, factor=factor) + np.float32(0.13) * flip

    def draw_mask(self, share: float) -> Mask:
        """Return where a new field has its highest values."""
        return _highest(self.draw_field(), share)

    def draw_sea(self, share: float) -> Mask:
        """Return one side of a tilted field."""
        angle = self.rng.uniform(0, 2 * np.pi)
        height, width = self.shape
        y = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
        x = np.linspace(-1, 1, width, dtype=np.float32)[None]
        tilt = np.float32(1.8) * (x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle)))
        smooth = coarse_fractal(self.rng, self.shape, beta=3.4, factor=8)
        return _highest(smooth + np.float32(0.03) * self.rough + tilt, share)


def _elevation(rng: np.random.Generator, shape: tuple[int, int], plan: Plan) -> Field:
    """Return elevations: rolling land for small relief; ridges and valleys for large relief."""
    relief, mean = np.float32(plan.relief_m), np.float32(plan.elevation_m)
    rolling = fractal(rng, shape, beta=4.2)
    ridges = 1 - 2 * np.abs(fractal(rng, shape, beta=3.9, low_px=200))
    cut = np.float32(np.clip(plan.relief_m / 300, 0.0, 0.7))
    return mean + relief * ((1 - cut) * rolling + cut * ridges)


def _highest(field: Field, share: float) -> Mask:
    """Return the pixels with the highest values, a share of all."""
    if share <= 0:
        return np.zeros(field.shape, bool)
    return field > np.quantile(field[::8, ::8], 1 - min(share, 1.0))


def _climate(rng: np.random.Generator, plan: Plan) -> Climate:
    soil = SOILS[rng.integers(len(SOILS))] * (0.8 + 0.4 * rng.random()) * (1 + 0.35 * plan.dryness)
    cold = np.clip((abs(plan.latitude_deg) - 40) / 20, 0, 1)
    evergreen = float(np.clip(rng.normal(0.25 + 0.5 * cold, 0.2), 0, 1))
    red, green, blue, infrared = (float(value) for value in soil)
    return Climate(plan.latitude_deg, plan.dryness, (red, green, blue, infrared), evergreen)


def _paint_water(canvas: Canvas, zones: _Zones, land: Mask, plan: Plan) -> None:
    """Paint sea and lakes with flats that are dry on some days."""
    depth = zones.draw_field(20)
    lakes = _highest(depth, plan.lakes)
    canvas.paint_shades(Kind.SHORE, land & _highest(depth, plan.lakes * 1.35), zones.draw_field(10), levels=6)
    canvas.paint_shades(Kind.WATER, land & lakes, zones.draw_field(40))
    sea = ~land
    canvas.paint_shades(Kind.WATER, sea, zones.draw_field(40))
    if sea.any():
        shallow = sea & (zones.draw_field(6) > 0.6)
        canvas.paint_shades(Kind.SHORE, shallow & _near_edge(sea), zones.draw_field(6), levels=6)
        canvas.paint_shades(Kind.SAND, _near_edge(land) & (zones.draw_field(16) > 0.2), zones.rough)


def _near_edge(mask: Mask, reach: int = 8) -> Mask:
    """Return the pixels of a mask within `reach` pixels of its edge, along rows or columns."""
    out = np.zeros(mask.shape, bool)
    out[reach:] |= ~mask[:-reach]
    out[:-reach] |= ~mask[reach:]
    out[:, reach:] |= ~mask[:, :-reach]
    out[:, :-reach] |= ~mask[:, reach:]
    return out & mask


def _finish(canvas: Canvas, climate: Climate, elevation: Field, rough: Field, sand: Mask) -> SceneGround:
    """Derive texture, heights and slopes from the finished map."""
    unit, units = canvas.finish()
    rng = canvas.rng
    fine_grain = fractal(rng, canvas.shape, beta=0.9)
    amount = TEXTURE[units.kind].astype(np.float32)[unit]
    patchy = np.where(units.kind == Kind.WATER, 0.01, 0.06).astype(np.float32)[unit]
    texture = np.clip(1 + amount * fine_grain + patchy * rough, 0.3, 2.0)
    trees = units.kind == Kind.STAND
    roofs = (units.kind == Kind.LOT) & (units.traits[:, 0] <= GARDEN)
    high = np.where(trees & (units.since < 2010), 16, np.where(roofs, 4 + 10 * units.traits[:, 3], 0))
    height_m = high.astype(np.float32)[unit]
    crowns = trees.astype(np.float32)[unit][::FINE, ::FINE]
    wet = np.isin(units.kind, (Kind.WATER, Kind.SHORE))[unit][::FINE, ::FINE]
    surface = elevation + 1.2 * crowns * fine_grain[::FINE, ::FINE]
    if sand.any():
        ridges = fractal(
            rng, elevation.shape, beta=2.6, low_px=70, stretch=5, angle_rad=rng.uniform(0, np.pi)
        )
        surface = surface + 5 * np.abs(ridges) * sand[::FINE, ::FINE]
    slope_y, slope_x = (np.where(wet, 0, s) for s in np.gradient(surface.astype(np.float32), FINE_M * FINE))
    return SceneGround(unit, units, climate, texture, height_m, elevation, slope_x, slope_y)
