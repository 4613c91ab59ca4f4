"""Overlapping windows over a scene, and their answers as one map.

A network sees the ground around a pixel, as far as its view. Near a window's edge that ground is missing. So
neighbouring windows share twice the view, and each keeps its half: windows and one pass over the whole scene
agree to rounding. A window's edge on the scene's own edge keeps its answers.

Where the view fills more than a quarter of a window, neighbours share half a window. There a ramp blends the
middle of the shared strip, and seams remain, if faint.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WINDOW_PX = 1536
"""Largest side of a window that the network sees at once; the view of the default network is 340 pixels."""
MOST_SHARED = 0.5
"""Largest share of a window's side that it shares with the next."""
DROPPED = 0.25
"""Share of a shared strip that weighs nothing at each end, where the view is wider than the strip's half."""


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
    dropped: int
    """Pixels at each inner edge of a window whose answers do not count."""

    @classmethod
    def of(cls, height: int, width: int, window_px: int, unit_px: int, view_px: int) -> Layout:
        """Lay windows over a scene of some size.

        Args:
            height: rows of the scene.
            width: columns of the scene.
            window_px: largest side of a window, raised to four units.
            unit_px: windows start at multiples of it, so that the network sees the same pixels together.
            view_px: how far the network sees beyond a pixel.
        """
        side = max(4 * unit_px, window_px // unit_px * unit_px)
        shared = 2 * -(-view_px // unit_px) * unit_px
        dropped = shared // 2
        if shared > MOST_SHARED * side:
            shared = int(MOST_SHARED * side) // unit_px * unit_px
            dropped = int(DROPPED * shared)
        tops, lefts = (_starts(length, side, side - shared) for length in (height, width))
        return cls(height, width, side, tops, lefts, dropped)

    def blended(
        self, rows: Iterable[Iterable[NDArray[np.float32]]]
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield the first row and the answers (h, width, k) of successive strips of the scene.

        The rows of a strip lie in one row of windows.

        Args:
            rows: the answers (y, x, k) of each row of windows, from left to right. Windows on the right and
                lower edge may be smaller than `side`.
        """
        down, across = self._parts(self.tops, self.height), self._parts(self.lefts, self.width)
        carried: NDArray[np.float32] | None = None
        for number, (part, windows) in enumerate(zip(down, rows, strict=True)):
            strip = np.zeros((0, 0, 0), np.float32)
            for column, answer in zip(across, windows, strict=True):
                if not column.first:
                    strip = np.zeros((len(part.weights), self.width, answer.shape[-1]), np.float32)
                weights = part.weights[:, None, None] * column.weights[None, :, None]
                strip[:, column.first : column.end] += weights * answer[part.kept, column.kept]
            if carried is not None:
                strip[: len(carried)] += carried
            end = down[number + 1].first if number + 1 < len(down) else part.end
            carried = strip[end - part.first :].copy()
            yield part.first, strip[: end - part.first]

    def _parts(self, starts: Sequence[int], length: int) -> list[_Part]:
        """Return the part of each window along an axis that counts; the weights of a pixel sum to 1."""
        firsts = [start + self.dropped * (start > 0) for start in starts]
        ends = [start + self.side - self.dropped for start in starts[:-1]] + [length]
        weights = [np.ones(end - first, np.float32) for first, end in zip(firsts, ends, strict=True)]
        for number in range(len(starts) - 1):
            shared = ends[number] - firsts[number + 1]
            if shared:
                rise = (np.arange(shared, dtype=np.float32) + 0.5) / shared
                weights[number][-shared:] *= 1 - rise
                weights[number + 1][:shared] *= rise
        return [_Part(*each) for each in zip(starts, firsts, ends, weights, strict=True)]


@dataclass(frozen=True, eq=False)
class _Part:
    """What counts of a window along an axis."""

    start: int
    """First pixel of the window on the scene."""
    first: int
    """First pixel that counts."""
    end: int
    """Pixel after the last that counts."""
    weights: NDArray[np.float32]
    """(end - first,) weight of each."""

    @property
    def kept(self) -> slice:
        """The pixels that count, from the window's first one on."""
        return slice(self.first - self.start, self.end - self.start)


def _starts(length: int, side: int, step: int) -> tuple[int, ...]:
    """Return the first pixel of each window along an axis; the last window may reach beyond the end."""
    if length <= side:
        return (0,)
    count = -(-(length - side) // step) + 1
    return tuple(number * step for number in range(count))
