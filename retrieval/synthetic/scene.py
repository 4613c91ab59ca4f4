"""A generated place: a seed fixes its ground, and it has an image on any day."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from retrieval.synthetic.ground import FINE, FINE_M, SceneGround, make_ground
from retrieval.synthetic.light import Sky, Sun, add_atmosphere, cast_shadow, digitise, sense, shading, sun_at
from retrieval.synthetic.noise import Field, coarse_fractal
from retrieval.synthetic.plan import Plan, draw_plan
from retrieval.synthetic.spectra import reflectance, season, snow
from retrieval.synthetic.units import HOLDS_SNOW, Kind
from tfrecords.errors import ArrayError

MARGIN_PX = 6
"""Pixels of ground beyond the image on every side, for blur, largest shift and shadows."""

_DAILY = 97
"""Separates the random numbers of a day from others of the same seed."""


@dataclass(frozen=True)
class SceneConfig:
    """Frequencies of kinds of country, clouds and haze; weights and shares from 0 to 1."""

    farmland: float = 0.34
    """Weight of places with mostly fields."""
    town: float = 0.26
    """Weight of places with mostly town."""
    forest: float = 0.10
    """Weight of places with mostly forest."""
    hills: float = 0.10
    """Weight of hills and mountains."""
    coast: float = 0.12
    """Weight of sea coasts."""
    desert: float = 0.08
    """Weight of deserts."""
    cloudy: float = 0.12
    """Share of days with clouds."""
    cover: float = 0.12
    """Mean share of the image under clouds on a day with clouds."""
    haze: float = 0.04
    """Mean share of the ground's light that haze replaces."""
    shift_px: float = 0.5
    """Standard deviation of the misregistration on each axis, in pixels; clipped at 2."""
    noise_dn: float = 6.0
    """Standard deviation of the sensor noise on dark ground, in digital numbers."""

    def country_weights(self) -> dict[str, float]:
        """Return the weights of the kinds of country by name; they sum to 1.

        Raises:
            ArrayError: a weight is negative, or all are zero.
        """
        names = ("farmland", "town", "forest", "hills", "coast", "desert")
        weights = {name: float(getattr(self, name)) for name in names}
        if min(weights.values()) < 0 or sum(weights.values()) <= 0:
            raise ArrayError(
                f"weights of the kinds of country: {weights}; expected none below 0 and at least one above. "
                "Omit a field to keep its default."
            )
        return {name: weight / sum(weights.values()) for name, weight in weights.items()}


@dataclass(frozen=True)
class Observation:
    """One image of a place, with the truth about it."""

    dn: NDArray[np.uint16]
    """Digital numbers, (y, x, 4): B04, B03, B02, B08; never 0."""
    hidden: NDArray[np.bool_]
    """Pixels under a cloud or its shadow, (y, x)."""
    date: str
    """Day of the image, YYYY-MM-DD."""
    shift_x_px: float
    """Misregistration: ground of column x appears at x + this; -2 to 2."""
    shift_y_px: float
    """Misregistration: ground of row y appears at y + this; -2 to 2."""
    sky: Sky
    """Clouds and haze of the day."""
    sun: Sun
    """Direction to the sun."""


class Scene:
    """A generated place with fixed ground.

    The same seed, size and configuration give the same ground, and the same day and year the same image, up
    to rounding on another machine.
    """

    def __init__(
        self, seed: int, height: int = 512, width: int = 512, config: SceneConfig | None = None
    ) -> None:
        """Choose a place; its ground is made when it is first used.

        Args:
            seed: a number of 0 or more.
            height: rows of its images, at least 64.
            width: columns of its images, at least 64.
            config: frequencies of kinds of country, clouds and haze.

        Raises:
            ArrayError: the size is too small, or the seed is negative.
        """
        if min(height, width) < 64 or seed < 0:
            raise ArrayError(
                f"scene: {height} x {width} px and seed {seed}; expected at least 64 x 64 px and seed 0."
            )
        self.seed = seed
        self.height = height
        self.width = width
        self.config = config or SceneConfig()

    @cached_property
    def country(self) -> str:
        """Kind of country, one of `COUNTRIES`."""
        weights = self.config.country_weights()
        rng = np.random.default_rng([self.seed, 0])
        return str(rng.choice(list(weights), p=list(weights.values())))

    @cached_property
    def plan(self) -> Plan:
        """Shares and sizes of what the place holds."""
        return draw_plan(np.random.default_rng([self.seed, 1]), self.country)

    @cached_property
    def ground(self) -> SceneGround:
        """The ground, with a margin around the image."""
        rng = np.random.default_rng([self.seed, 2])
        return make_ground(rng, self.height + 2 * MARGIN_PX, self.width + 2 * MARGIN_PX, self.plan)

    @property
    def open_water(self) -> NDArray[np.bool_]:
        """Pixels of open water, (y, x)."""
        water = (self.ground.units.kind == Kind.WATER)[self.ground.unit[::FINE, ::FINE]]
        return water[MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]

    def render(self, day: int, *, year: int = 2018) -> NDArray[np.uint16]:
        """Return the image of a day, uint16 DN (y, x, 4); see `observe`."""
        return self.observe(day, year=year).dn

    def observe(
        self,
        day: int,
        *,
        year: int = 2018,
        sky: Sky | None = None,
        shift_xy_px: tuple[float, float] | None = None,
    ) -> Observation:
        """Return the image of a day with the truth about it.

        Args:
            day: day of the year, 1 to 366.
            year: calendar year.
            sky: clouds and haze; None draws them.
            shift_xy_px: misregistration (dx, dy), each from -2 to 2; None draws it.

        Returns:
            The observation; the same arguments give the same.

        Raises:
            ArrayError: the day or the shift is out of range.
        """
        rng = np.random.default_rng([self.seed, _DAILY, year, day])
        if not 1 <= day <= 366:
            raise ArrayError(f"day of the year: {day}; expected 1 to 366.")
        drawn_sky, drawn_shift = self._draw_sky(rng), self._draw_shift(rng)
        sky, shift = sky or drawn_sky, shift_xy_px or drawn_shift
        if max(abs(shift[0]), abs(shift[1])) > 2:
            raise ArrayError(f"misregistration: {shift} px; expected at most 2 px on each axis.")
        sun = sun_at(day, self.plan.latitude_deg)
        fine = self._fine(day, year, sun, rng)
        sensed = sense(fine, self.height, self.width, margin_px=MARGIN_PX, shift_xy_px=shift)
        light, hidden = add_atmosphere(sensed, sky, sun, rng)
        dn = digitise(light, rng, noise_dn=self.config.noise_dn)
        date = datetime.date(year, 1, 1) + datetime.timedelta(days=day - 1)
        return Observation(dn, hidden, date.isoformat(), *shift, sky, sun)

    def _fine(self, day: int, year: int, sun: Sun, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return reflectances of the lit ground at 5 m, float32 (4, y, x)."""
        ground = self.ground
        table = reflectance(ground.units, ground.climate, day, year, rng, self.seed)
        fine = np.ascontiguousarray(table.T)[:, ground.unit]
        factor = ground.texture * _enlarged(self._daylight(sun, rng))
        factor = np.where(cast_shadow(ground.height_m, sun, FINE_M), np.float32(0.55) * factor, factor)
        cover = self._snow_cover(day, rng)
        if cover is not None:
            white = _enlarged(cover) * HOLDS_SNOW[ground.units.kind][ground.unit]
            fine = snow(fine, white)
        fine *= factor
        return fine

    def _daylight(self, sun: Sun, rng: np.random.Generator) -> Field:
        """Return the light on slopes, times a random pattern of the day's moisture and growth."""
        light = shading(self.ground.slope_x, self.ground.slope_y, sun)
        return light * (1 + np.float32(0.03) * coarse_fractal(rng, light.shape, beta=2.5, factor=4))

    def _snow_cover(self, day: int, rng: np.random.Generator) -> Field | None:
        """Return the share of snow on open ground, (y, x), or None if it is too warm everywhere."""
        latitude = abs(self.plan.latitude_deg)
        when, _ = season(day, 0, self.plan.latitude_deg)
        warmth = (
            33 - 0.42 * latitude - 0.2 * latitude * np.cos(2 * np.pi * (when - 25) / 365) + rng.normal(0, 2.5)
        )
        degrees = np.float32(warmth) - np.float32(0.0062) * self.ground.elevation_m
        if degrees.min() > 0:
            return None
        patches = coarse_fractal(rng, degrees.shape, beta=2.2, factor=4)
        return np.clip(0.5 - (degrees + np.float32(2.0)) / 3 + np.float32(0.25) * patches, 0, 1)

    def _draw_sky(self, rng: np.random.Generator) -> Sky:
        cloudy = rng.random() < self.config.cloudy
        cover = float(np.clip(rng.exponential(self.config.cover), 0.01, 0.9))
        haze = float(np.clip(rng.exponential(self.config.haze), 0, 0.7))
        return Sky(cover if cloudy else 0.0, haze)

    def _draw_shift(self, rng: np.random.Generator) -> tuple[float, float]:
        x, y = np.clip(rng.normal(0, self.config.shift_px, 2), -2, 2)
        return float(x), float(y)


def _enlarged(field: Field) -> Field:
    """Return a field of image pixels at fine pixels."""
    return np.repeat(np.repeat(field, FINE, 0), FINE, 1)
