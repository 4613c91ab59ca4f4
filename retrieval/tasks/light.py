"""Unlabelled images in the light of the labelled ones.

Images of another processing level (Level-2A next to Level-1C), season or rendering have other band means and
spreads. A network then tells the sets apart by their light, and guesses wrong classes. So each band gets a
gain and an offset, which give it the mean and the spread of the labelled images. Sets in nearly the same
light stay as they are. Like the alignment of the guesses, this takes the classes to be about equally frequent
in both sets.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from retrieval.tasks.images import FULL_SCALE, ImageSet
from retrieval.tasks.network import pixel_statistics

SHIFT = 0.25
"""Difference of means, in standard deviations of the labelled images, from which light is another."""
SPREAD = 1.25
"""Ratio of the spreads, or its inverse, from which light is another."""
_AT_A_TIME = 1024


@dataclass(frozen=True)
class Light:
    """How the light of a set of images differs from that of another set."""

    shift: NDArray[np.float64]
    """(b,) difference of the means in standard deviations of the other set."""
    spread: NDArray[np.float64]
    """(b,) ratio of the standard deviations."""

    @property
    def is_another(self) -> bool:
        """Whether a band differs notably."""
        return bool(
            (np.abs(self.shift) > SHIFT).any() or (np.abs(np.log(self.spread)) > np.log(SPREAD)).any()
        )


def compare_light(images: ImageSet, reference: ImageSet) -> Light:
    """Compare mean and spread of each band of two sets of the same kind."""
    (mean, deviation), (other_mean, other_deviation) = map(_statistics, (images, reference))
    return Light((mean - other_mean) / other_deviation, deviation / other_deviation)


def in_light_of(images: ImageSet, reference: ImageSet) -> ImageSet:
    """Return images whose bands have the mean and the spread of a reference; pixels stay in their range."""
    (mean, deviation), (goal, goal_deviation) = map(_statistics, (images, reference))
    gain = goal_deviation / deviation
    scale = FULL_SCALE[images.form]
    moved = np.empty_like(images.pixels)
    low, high = np.iinfo(moved.dtype).min, np.iinfo(moved.dtype).max
    for start in range(0, len(moved), _AT_A_TIME):
        block = images.pixels[start : start + _AT_A_TIME].astype(np.float32)
        lit = (block - scale * mean) * gain + scale * goal
        moved[start : start + _AT_A_TIME] = np.rint(np.clip(lit, low, high))
    return replace(images, pixels=moved)


def _statistics(images: ImageSet) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation of each band, divided by the full scale."""
    mean, variance = pixel_statistics(images.pixels, FULL_SCALE[images.form])
    return mean.astype(np.float64), np.sqrt(variance.astype(np.float64))
