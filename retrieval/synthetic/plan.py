"""The plan of a generated place: shares and sizes of what it holds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Plan:
    """Shares and sizes of one place."""

    farmland: float
    """Share of the open land with fields, 0 to 1; the rest is wild."""
    town: float
    """Share of built-up land, 0 to 1."""
    forest: float
    """Share of the land under trees, 0 to 1."""
    relief_m: float
    """Standard deviation of the elevation in metres."""
    elevation_m: float
    """Mean elevation in metres above the sea."""
    sea: float
    """Share of sea in the image, 0 to 1."""
    lakes: float
    """Share of the land under lakes, 0 to 1."""
    rivers: float
    """Number of rivers; rounded when it is used."""
    dunes: float
    """Share of dunes and bare sand in the open land, 0 to 1."""
    pivots: float
    """Irrigated circles per 25 square kilometres; rounded when it is used."""
    field_m: float
    """Typical width of a field in metres."""
    latitude_deg: float
    """Latitude, north positive; decides sun and seasons."""
    dryness: float
    """From 0, always green, to 1, desert."""


_LOW_AND_HIGH: dict[str, tuple[Plan, Plan]] = {
    "farmland": (
        Plan(0.85, 0.02, 0.04, 4, 20, 0, 0, 0, 0, 0, 55, 36, 0.0),
        Plan(1.00, 0.10, 0.22, 30, 260, 0, 0.02, 2, 0, 0, 210, 56, 0.45),
    ),
    "town": (
        Plan(0.40, 0.35, 0.02, 4, 10, 0, 0, 0, 0, 0, 50, 18, 0.0),
        Plan(0.90, 0.80, 0.14, 40, 200, 0, 0.03, 2, 0, 0, 140, 56, 0.6),
    ),
    "forest": (
        Plan(0.10, 0.00, 0.55, 10, 50, 0, 0, 0, 0, 0, 60, 44, 0.0),
        Plan(0.60, 0.03, 0.90, 100, 500, 0, 0.08, 2, 0, 0, 150, 64, 0.2),
    ),
    "hills": (
        Plan(0.10, 0.01, 0.20, 130, 500, 0, 0, 0, 0, 0, 40, 28, 0.0),
        Plan(0.50, 0.07, 0.60, 420, 1700, 0, 0.02, 2, 0, 0, 120, 48, 0.6),
    ),
    "coast": (
        Plan(0.40, 0.05, 0.05, 8, 10, 0.15, 0, 0, 0, 0, 50, 10, 0.0),
        Plan(0.90, 0.45, 0.30, 70, 60, 0.60, 0.02, 2, 0.25, 0, 160, 55, 0.6),
    ),
    "desert": (
        Plan(0.00, 0.00, 0.00, 8, 50, 0, 0, 0, 0.10, 0, 80, 16, 0.82),
        Plan(0.12, 0.10, 0.00, 160, 900, 0, 0, 1, 0.70, 14, 200, 34, 1.0),
    ),
}

COUNTRIES = tuple(_LOW_AND_HIGH)
"""The kinds of country."""


def draw_plan(rng: np.random.Generator, country: str) -> Plan:
    """Draw the plan of a place.

    Args:
        rng: random generator.
        country: one of `COUNTRIES`.

    Returns:
        The plan; each value is drawn evenly between the country's limits, and 30 % of places are southern.
    """
    low, high = (vars(plan) for plan in _LOW_AND_HIGH[country])
    drawn = {name: float(rng.uniform(low[name], high[name])) for name in low}
    if rng.random() < 0.3:
        drawn["latitude_deg"] *= -1
    return Plan(**drawn)
