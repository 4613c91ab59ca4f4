"""Overlapping windows over a scene, and the blend of what a network answers for them.

Windows have one size, and the last ones lie along the right and the lower edge. Where windows overlap, each
answer weighs by a ramp: nothing at the window's edge, where the network lacks context, and everything in its
middle. The weights of a pixel sum to 1. A window's edge on the scene's own edge keeps its weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WINDOW_PX = 1024
"""Largest side of a window that the network sees at once."""
OVERLAP_PX = 128
"""Least number of pixels that neighbouring windows share; a quarter of a window at most."""
EDGE_SHARE = 0.25
"""Share of the overlap at each end that weighs nothing."""


@dataclass(frozen=True, eq=False)
class Layout:
    """The windows over a scene."""

    height: int
    width: int
    side: int
    """Side of a window; a scene's side where that is smaller."""
    tops: tuple[int, ...]
    """First row of each row of windows."""
    lefts: tuple[int, ...]
    """First column of each column of windows."""

    @classmethod
    def of(cls, height: int, width: int, window_px: int, unit_px: int) -> Layout:
        """Lay windows over a scene of some size.

        Args:
            height: rows of the scene.
            width: columns of the scene.
            window_px: largest side of a window.
            unit_px: windows start at multiples of it, so that the network sees the same pixels together.
        """
        side = max(4 * unit_px, window_px // unit_px * unit_px)
        return cls(height, width, side, _starts(height, side, unit_px), _starts(width, side, unit_px))

    def blended(
        self, rows: Iterable[Iterable[NDArray[np.float32]]]
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield the first row and the blended answers (h, width, k) of successive strips of the scene.

        Args:
            rows: the answers (y, x, k) of each row of windows, from left to right. Windows on the right and
                lower edge may be smaller than `side`.
        """
        down, across = _ramps(self.tops, self.side, self.height), _ramps(self.lefts, self.side, self.width)
        carried: NDArray[np.float32] | None = None
        for number, (top, windows) in enumerate(zip(self.tops, rows, strict=True)):
            bottom = min(top + self.side, self.height)
            strip = np.zeros((0, 0, 0), np.float32)
            for left, weight, answer in zip(self.lefts, across, windows, strict=True):
                if not left:
                    strip = np.zeros((bottom - top, self.width, answer.shape[-1]), np.float32)
                strip[:, left : left + answer.shape[1]] += (
                    down[number][:, None, None] * weight[None, :, None] * answer
                )
            if carried is not None:
                strip[: len(carried)] += carried
            end = self.tops[number + 1] if number + 1 < len(self.tops) else bottom
            carried = strip[end - top :].copy()
            yield top, strip[: end - top]


def _starts(length: int, side: int, unit: int) -> tuple[int, ...]:
    """Return the first pixel of each window along an axis; the last window may reach beyond the end."""
    if length <= side:
        return (0,)
    overlap = min(OVERLAP_PX, side // 4) // unit * unit
    step = side - max(overlap, unit)
    count = -(-(length - side) // step) + 1
    return tuple(number * step for number in range(count))


def _ramps(starts: Sequence[int], side: int, length: int) -> list[NDArray[np.float32]]:
    """Return the weight of each pixel of each window along an axis; the weights of a pixel sum to 1."""
    ends = [min(start + side, length) for start in starts]
    weights = [np.ones(end - start, np.float32) for start, end in zip(starts, ends, strict=True)]
    for number in range(len(starts) - 1):
        shared = ends[number] - starts[number + 1]
        place = (np.arange(shared, dtype=np.float32) + 0.5) / shared
        rise = np.clip((place - EDGE_SHARE) / (1 - 2 * EDGE_SHARE), 0, 1)
        weights[number][-shared:] *= 1 - rise
        weights[number + 1][:shared] *= rise
    return weights
