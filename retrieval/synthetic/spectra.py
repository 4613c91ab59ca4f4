"""The reflectance of each unit of ground on a day.

Reflectances are surface reflectances x 10000, bands in the order B04, B03, B02, B08. They are rounded values
as in any spectral library; nothing here is fitted to imagery.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.synthetic.noise import Field
from retrieval.synthetic.units import CROPS, GARDEN, RAPE, Climate, Kind, Units

Colour = NDArray[np.float32]
"""Reflectances x 10000, float32 (4,) or (n, 4)."""


def _colour(red: float, green: float, blue: float, infrared: float) -> Colour:
    """Return a colour as an array."""
    return np.array([red, green, blue, infrared], np.float32)


SOILS = np.array(
    [
        [1500, 1150, 850, 2050],
        [1900, 1450, 1050, 2500],
        [1100, 900, 700, 1600],
        [2200, 1350, 850, 2800],
        [2500, 2050, 1550, 3100],
    ],
    np.float32,
)
"""Dry bare soils: loam, light loam, black earth, red earth, chalk or sand."""

_LEAF = _colour(280, 620, 320, 4600)
_STRAW = _colour(2050, 1700, 1150, 3300)
_BLOSSOM = _colour(1500, 1650, 550, 4400)
_DRY_GRASS = _colour(1500, 1250, 850, 2500)
_NEEDLE = _colour(210, 360, 230, 2250)
_BROADLEAF = _colour(260, 480, 270, 3900)
_TWIGS = _colour(850, 720, 560, 1750)
_CLEARED = _colour(1150, 980, 720, 2300)
_CLEAR_WATER = _colour(170, 330, 430, 90)
_MUDDY_WATER = _colour(1150, 1150, 850, 480)
_GRAVEL = _colour(2100, 1900, 1600, 2500)
_ASPHALT = _colour(720, 720, 710, 950)
_CONCRETE = _colour(1600, 1550, 1470, 1900)
_SNOW = _colour(8200, 8300, 8400, 7600)
_ROOFS = np.array(
    [
        [1350, 950, 720, 1800],
        [620, 620, 640, 800],
        [950, 900, 850, 1200],
        [1600, 1500, 1400, 1850],
        [3000, 2950, 2900, 3300],
        [1050, 1100, 1200, 1400],
    ],
    np.float32,
)
"""Red tile, slate, bitumen, concrete, white membrane, bluish metal."""


_YEARLY = 71
"""Separates the random numbers of a year from others of the same seed."""


def season(day: int, year: int, latitude_deg: float) -> tuple[float, int]:
    """Convert a day to the northern calendar; the southern year of growth begins in July.

    Args:
        day: day of the year.
        year: calendar year.
        latitude_deg: latitude, north positive.

    Returns:
        Day of the year of growth, 0 to 365, and that year.
    """
    if latitude_deg >= 0:
        return float(day), year
    return float((day + 183) % 365), year + (day + 183) // 365


def reflectance(
    units: Units, climate: Climate, day: int, year: int, rng: np.random.Generator, seed: int
) -> NDArray[np.float32]:
    """Return the reflectance of every unit on a day.

    Args:
        units: the n units of the place.
        climate: its climate.
        day: day of the year, 1 to 366.
        year: calendar year; with it crops rotate, stands are cut and buildings finished.
        rng: random generator for the day: turbidity, water level, moisture.
        seed: seed of the place; the random numbers of a year depend on it and the year.

    Returns:
        Float32 (n, 4), x 10000.
    """
    when, growth_year = season(day, year, climate.latitude_deg)
    this_year = np.random.default_rng([seed, _YEARLY, growth_year])
    yearly = this_year.random((len(units.kind), 3), dtype=np.float32)
    undivided = this_year.random(len(units.kind)) < 0.5
    yearly = np.where(undivided[:, None], yearly[units.partner], yearly)
    wet = np.float32(
        np.clip(rng.normal(0.75 + 0.15 * np.cos(2 * np.pi * (when - 20) / 365), 0.12), 0.4, 1.05)
    )
    table = np.zeros((len(units.kind), 4), np.float32)
    for kind in np.unique(units.kind):
        rows = np.flatnonzero(units.kind == kind)
        state = _DayState(units, rows, climate, when, year + day / 365, yearly[rows], wet, rng)
        table[rows] = _PAINTERS[Kind(kind)](state)
    return table


def snow(table: NDArray[np.float32], cover: Field) -> NDArray[np.float32]:
    """Mix snow into reflectances.

    Args:
        table: float32 (4, y, x), x 10000.
        cover: share of snow on the ground, float32 (y, x), 0 to 1.

    Returns:
        Float32 (4, y, x).
    """
    return table + cover * (_SNOW[:, None, None] - table)


@dataclass(frozen=True)
class _DayState:
    """Input of a painter: the units of one kind, and the day."""

    units: Units
    rows: NDArray[np.int64]
    climate: Climate
    day: float
    moment: float
    yearly: Field
    wet: np.float32
    rng: np.random.Generator

    @property
    def traits(self) -> Field:
        return self.units.traits[self.rows]

    @property
    def since(self) -> NDArray[np.int16]:
        return self.units.since[self.rows]

    def soil(self) -> NDArray[np.float32]:
        """Return the soil of each row; brightness varies, and wet or ploughed soil is darker."""
        brightness = (0.72 + 0.56 * self.traits[:, 0]) * (0.9 + 0.2 * self.yearly[:, 2]) * self.wet
        return brightness[:, None] * np.array(self.climate.soil, np.float32)

    def green(self) -> np.float32:
        """Return how green wild grass is, 0 to 1; the dead season and drought make it dry."""
        warm = 0.5 - 0.5 * np.cos(2 * np.pi * (self.day - 20) / 365)
        spring = np.exp(-(((self.day - 120) / 55) ** 2))
        lush = 0.45 + 0.5 * warm
        arid = 0.05 + 0.6 * spring
        return np.float32(lush * (1 - self.climate.dryness) + arid * self.climate.dryness)


def _mix(share: Field | np.float32, first: Colour, second: Colour) -> Colour:
    """Return a share of the first colour in the second; share (n,) or a number, colours (4,) or (n, 4)."""
    return second + np.asarray(share, np.float32)[..., None] * (first - second)


def _sigmoid(values: Field) -> Field:
    return 1 / (1 + np.exp(-np.clip(values, -30, 30)))


def _crop(state: _DayState) -> Colour:
    kinds = np.searchsorted(np.cumsum([crop.share for crop in CROPS])[:-1], state.yearly[:, 0])
    table = [(crop.up, crop.pace, crop.down, crop.harvest, crop.cover, crop.rest) for crop in CROPS]
    up, pace, down, harvest, cover, rest = np.array(table, np.float32)[kinds].T
    late = 24 * (state.yearly[:, 1] - 0.5) + 14 * (state.traits[:, 1] - 0.5)
    day = np.float32(state.day)
    grown = rest + (cover - rest) * _sigmoid((day - up - late) / (0.35 * pace))
    alive = _sigmoid((down + late - day) / 5)
    since_cut = day - harvest - late
    weeds = 0.15 * (state.yearly[:, 2] < 0.4)
    leaf = np.where(since_cut > 0, weeds, grown * alive)
    stubble = 0.75 * np.exp(-np.maximum(since_cut, 0) / (15 + 60 * state.traits[:, 2]))
    straw = np.where(since_cut > 0, stubble, grown * (1 - alive))
    sown_again = (rest > 0.1) & (day > harvest + 60)
    leaf = np.where(sown_again, 0.25 * state.traits[:, 3], leaf)
    out = _mix(np.clip(straw, 0, 1), _STRAW * (0.8 + 0.4 * state.traits[:, 2:3]), state.soil())
    thirst = 1 - 0.35 * state.climate.dryness
    out = _mix(np.clip(leaf * thirst, 0, 1), _LEAF * (0.8 + 0.4 * state.traits[:, 3:4]), out)
    bloom = 0.55 * np.exp(-(((day - 125 - 0.5 * late) / 12) ** 2)) * (kinds == RAPE)
    return _mix(bloom, _BLOSSOM, out)


def _pivot(state: _DayState) -> Colour:
    """Return irrigated crops: one to four harvests a year in any season."""
    phase = (state.day / 365 * (1 + 3 * state.traits[:, 1]) + state.yearly[:, 0]) % 1
    leaf = np.where(state.yearly[:, 1] < 0.25, 0.03, 0.95 * np.sin(np.pi * phase) ** 0.7)
    return _mix(leaf, _LEAF, state.soil())


def _steppe(state: _DayState) -> Colour:
    grass = _mix(state.green(), 1.05 * _LEAF, _DRY_GRASS)
    return _mix(np.clip(state.climate.dryness * (0.5 + 0.9 * state.traits[:, 1]), 0, 1), state.soil(), grass)


def _meadow(state: _DayState) -> Colour:
    """Return grass that is mown every ten weeks."""
    height = 0.55 + 0.45 * (((state.day + 70 * state.traits[:, 1]) % 70) / 70)
    return _mix(state.green() * height * (0.75 + 0.25 * state.traits[:, 2]), _LEAF, _DRY_GRASS)


def _stand(state: _DayState) -> Colour:
    """Return needles or seasonal leaves; bare ground after a felling, then scrub."""
    needle = state.traits[:, 0] < state.climate.evergreen
    day = np.float32(state.day)
    leaves = _sigmoid((day - 118 - 16 * state.traits[:, 1]) / 6)
    leaves = leaves * _sigmoid((290 + 16 * state.traits[:, 2] - day) / 9)
    vigour = 0.82 + 0.36 * state.traits[:, 3:4]
    grown = np.where(needle[:, None], _NEEDLE, _mix(leaves, _BROADLEAF, _TWIGS)) * vigour
    age = state.moment - state.since
    regrown = np.where(age < 0, 1.0, np.clip(age / 18, 0, 0.75))
    return _mix(regrown, grown, _mix(0.5 * state.green(), _LEAF, _CLEARED))


def _water(state: _DayState) -> Colour:
    """Return water; its mud varies by day and by water."""
    mud = np.clip(state.rng.normal(0.25, 0.25) + 0.5 * (state.traits[:, 0] - 0.4), 0.0, 1.0)
    return _mix(mud, _MUDDY_WATER, _CLEAR_WATER)


def _shore(state: _DayState) -> Colour:
    """Return flats; they are dry when the day's water level is below their first trait."""
    dry = (state.traits[:, 0] > state.rng.random()).astype(np.float32)
    return _mix(dry, state.wet * _colour(1700, 1500, 1200, 1900), 0.6 * _CLEAR_WATER + 0.4 * _MUDDY_WATER)


def _sand(state: _DayState) -> Colour:
    tone = 0.5 * _colour(3300, 2650, 1950, 3900) + np.float32(0.4) * np.array(state.climate.soil, np.float32)
    return tone * (0.85 + 0.3 * state.traits[:, :1])


def _rock(state: _DayState) -> Colour:
    return _mix(
        0.35 * state.green() * state.traits[:, 1], _LEAF, _GRAVEL * (0.55 + 0.4 * state.traits[:, :1])
    )


def _lot(state: _DayState) -> Colour:
    """Return a roof, a yard or a garden; in the year before `since` a building site, earlier a meadow."""
    garden = state.traits[:, 0] > GARDEN
    style = np.minimum((state.traits[:, 1] ** 1.6 * len(_ROOFS)).astype(np.int64), len(_ROOFS) - 1)
    roof = _ROOFS[style] * (0.75 + 0.5 * state.traits[:, 2:3])
    trees = _mix(state.green() * (0.55 + 0.45 * state.traits[:, 2]), 0.85 * _LEAF, _TWIGS)
    built = np.where(garden[:, None], trees, roof)
    age = (state.moment - state.since)[:, None]
    site = _colour(2100, 1800, 1450, 2450) * (0.8 + 0.3 * state.traits[:, 3:4])
    return np.where(age > 1, built, np.where(age > 0, site, _meadow(state)))


def _street(state: _DayState) -> Colour:
    return _mix(0.45 * state.traits[:, 0], _CONCRETE, _ASPHALT)


def _track(state: _DayState) -> Colour:
    return _mix(0.5 * state.green() * state.traits[:, 1], _LEAF, 0.6 * state.soil() + 0.4 * _GRAVEL)


def _hedge(state: _DayState) -> Colour:
    return _mix(0.9 * state.green() + 0 * state.traits[:, 0], 0.9 * _BROADLEAF, _TWIGS)


_PAINTERS = {
    Kind.STEPPE: _steppe,
    Kind.CROP: _crop,
    Kind.MEADOW: _meadow,
    Kind.STAND: _stand,
    Kind.WATER: _water,
    Kind.SHORE: _shore,
    Kind.SAND: _sand,
    Kind.ROCK: _rock,
    Kind.LOT: _lot,
    Kind.STREET: _street,
    Kind.ROAD: _street,
    Kind.TRACK: _track,
    Kind.HEDGE: _hedge,
    Kind.PIVOT: _pivot,
}
