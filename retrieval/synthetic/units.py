"""Kinds of ground, the table of units and the map of a place, its climate, its crops."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from retrieval.synthetic.noise import Field

Mask = NDArray[np.bool_]
"""Selected pixels, (y, x)."""


class Kind(IntEnum):
    """Kinds of ground."""

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
"""Relative strength of the permanent fine pattern, by kind."""

HOLDS_SNOW = np.array([1, 1, 1, 0.35, 0, 0.6, 1, 1, 0.6, 0.25, 0.12, 0.8, 0.5, 1], np.float32)
"""Snow cover of a kind of ground, relative to a meadow."""

GARDEN = 0.62
"""A lot whose first trait is above this is a garden, else a roof or a yard."""

LONG_AGO = 1900
"""Year of units that are older than all images."""


@dataclass(frozen=True)
class Units:
    """The table of all units of one place; row i describes the pixels whose unit is i."""

    kind: NDArray[np.uint8]
    """`Kind` of each unit, (n,)."""
    traits: Field
    """Four random numbers from 0 to 1 for each unit, (n, 4); their meaning depends on the kind."""
    since: NDArray[np.int16]
    """Year in which a building was finished or a stand of trees cut, (n,)."""
    partner: NDArray[np.int32]
    """Unit with the same crop in about half of the years, (n,): the parcel's other half, or itself."""


@dataclass(frozen=True)
class Climate:
    """The climate of a place; the same for all its pixels."""

    latitude_deg: float
    """Latitude, north positive; decides sun and seasons."""
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
    """Day on which half of the cover has grown."""
    pace: float
    """Duration of the growth around that day, in days."""
    down: float
    """Day on which half of the leaves are yellow."""
    harvest: float
    """Day of the harvest; 400 for none."""
    cover: float
    """Largest share of the ground under leaves, 0 to 1."""
    rest: float
    """Share of the ground under leaves in the dead season, 0 to 1."""
    share: float
    """Share of parcels with this crop; the shares of all crops sum to 1."""


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


class Canvas:
    """The map of a place while it is painted; later layers cover earlier ones."""

    def __init__(self, rng: np.random.Generator, shape: tuple[int, int]) -> None:
        self.rng = rng
        self.shape = shape
        self.unit: NDArray[np.int32] = np.zeros(shape, np.int32)
        self._kinds: list[NDArray[np.uint8]] = []
        self._traits: list[Field] = []
        self._since: list[NDArray[np.int16]] = []
        self._partner: list[NDArray[np.int32]] = []
        self._count = 0

    def add(
        self,
        kind: Kind | NDArray[np.uint8],
        traits: Field | int,
        since: NDArray[np.int16] | int = LONG_AGO,
        partner: NDArray[np.int32] | None = None,
    ) -> int:
        """Add units to the table.

        Args:
            kind: kind of all units, or of each.
            traits: float32 (n, 4) from 0 to 1; or n, and they are drawn.
            since: year of all units, or of each.
            partner: unit among the new ones, from 0, with which each shares its crop in some years; None for
                itself.

        Returns:
            Number of the first new unit.
        """
        if isinstance(traits, int):
            traits = self.rng.random((traits, 4), dtype=np.float32)
        count = len(traits)
        first = self._count
        self._kinds.append(np.broadcast_to(np.asarray(kind, np.uint8), (count,)))
        self._traits.append(traits)
        self._since.append(np.broadcast_to(np.asarray(since, np.int16), (count,)))
        partners = np.arange(count, dtype=np.int32) if partner is None else partner
        self._partner.append(partners + np.int32(first))
        self._count += count
        return first

    def paint(self, mask: Mask, unit: NDArray[np.integer] | int) -> None:
        """Set the unit of the masked pixels: one for all, or one for each in row-major order."""
        self.unit[mask] = unit

    def paint_shades(self, kind: Kind, mask: Mask, field: Field, levels: int = 24) -> None:
        """Paint a mask with one kind; its first trait follows a smooth field in small steps."""
        traits = self.rng.random((levels, 4), dtype=np.float32)
        traits[:, 0] = (np.arange(levels, dtype=np.float32) + 0.5) / levels
        traits[:, 1] = traits[::-1, 0]
        first = self.add(kind, traits)
        step = np.clip((field[mask] + 2) * (levels / 4), 0, levels - 1)
        self.paint(mask, first + step.astype(np.int32))

    def finish(self) -> tuple[NDArray[np.int32], Units]:
        """Return the map, renumbered, and the table of its visible units."""
        partner = np.concatenate(self._partner)
        visible = np.bincount(self.unit.ravel(), minlength=self._count) > 0
        visible[partner[visible]] = True
        number = (np.cumsum(visible) - 1).astype(np.int32)
        kind, since = np.concatenate(self._kinds)[visible], np.concatenate(self._since)[visible]
        traits = np.concatenate(self._traits)[visible]
        return number[self.unit], Units(kind, traits, since, number[partner[visible]])
