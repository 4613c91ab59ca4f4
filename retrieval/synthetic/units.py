"""The words of a generated place: kinds of ground, the table of its units, its climate, its crops."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from retrieval.synthetic.noise import Field


class Kind(IntEnum):
    """What a unit of ground is."""

    STEPPE = 0
    CROP = 1
    MEADOW = 2
    STAND = 3
    WATER = 4
    SHORE = 5
    SAND = 6
    ROCK = 7
    LOT = 8
    STREET = 9
    ROAD = 10
    TRACK = 11
    HEDGE = 12
    PIVOT = 13


TEXTURE = np.array(
    [0.14, 0.05, 0.08, 0.14, 0.02, 0.08, 0.06, 0.22, 0.12, 0.12, 0.06, 0.12, 0.15, 0.05], np.float32
)
"""Relative strength of the fine pattern that stays the same on all days, by kind."""

HOLDS_SNOW = np.array([1, 1, 1, 0.35, 0, 0.6, 1, 1, 0.6, 0.25, 0.12, 0.8, 0.5, 1], np.float32)
"""How well snow lies on a kind of ground, compared with a meadow."""

GARDEN = 0.62
"""A lot whose first trait is above this is a garden, else a roof or a yard."""

LONG_AGO = 1900
"""Year of what was always there."""


@dataclass(frozen=True)
class Units:
    """The table of all units of one place; row i describes the pixels whose unit is i."""

    kind: NDArray[np.uint8]
    """`Kind` of each unit, (n,)."""
    traits: Field
    """Four random figures from 0 to 1 of each unit, (n, 4); their meaning depends on the kind."""
    since: NDArray[np.int16]
    """Year in which a building was finished or a stand was cut, (n,); before it something else was there."""
    partner: NDArray[np.int32]
    """Unit whose crop it shares in about half of the years, (n,): the parcel's other half, or itself."""


@dataclass(frozen=True)
class Climate:
    """What the weather of a place is like; the same for all its pixels."""

    latitude_deg: float
    """Latitude, north positive; decides on sun and seasons."""
    dryness: float
    """From 0, always green, to 1, desert."""
    soil: tuple[float, float, float, float]
    """Reflectance of dry bare soil, x 10000, in the order B04, B03, B02, B08."""
    evergreen: float
    """Share of stands that keep their leaves, 0 to 1."""


@dataclass(frozen=True)
class Crop:
    """The year of a crop, in days of the northern year."""

    up: float
    """Day at which half of the cover is reached."""
    pace: float
    """Days that growth takes about that day."""
    down: float
    """Day at which half of the leaves are yellow."""
    harvest: float
    """Day from which stubble is left; 400: never."""
    cover: float
    """Largest share of the ground under leaves, 0 to 1."""
    rest: float
    """That share in the dead season."""
    share: float
    """Share of parcels that grow it; all of them add up to 1."""


CROPS = (
    Crop(up=88, pace=14, down=183, harvest=203, cover=0.92, rest=0.22, share=0.27),
    Crop(up=75, pace=12, down=176, harvest=196, cover=0.95, rest=0.35, share=0.10),
    Crop(up=158, pace=12, down=252, harvest=268, cover=0.92, rest=0.00, share=0.19),
    Crop(up=150, pace=13, down=285, harvest=292, cover=0.97, rest=0.00, share=0.12),
    Crop(up=120, pace=14, down=205, harvest=222, cover=0.85, rest=0.00, share=0.10),
    Crop(up=85, pace=25, down=310, harvest=400, cover=0.85, rest=0.50, share=0.12),
    Crop(up=118, pace=20, down=275, harvest=400, cover=0.50, rest=0.05, share=0.05),
    Crop(up=200, pace=60, down=290, harvest=400, cover=0.18, rest=0.05, share=0.05),
)
"""Winter cereal, rape, maize, beet, spring cereal, ley, vines, fallow."""

RAPE = 1
"""Row of `CROPS` that blossoms yellow in spring."""
