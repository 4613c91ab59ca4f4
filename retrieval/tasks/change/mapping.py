"""The map of change of a pair, strip by strip: cloud, shift, probability, smallest areas.

Pixels are read in strips with a margin, and compared in parts of a strip. So memory grows by three bytes with
each pixel of the map, which stays in memory, because its smallest areas are removed at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from retrieval.kernels.executors import stream_map
from retrieval.labels.classes import IGNORED
from retrieval.tasks.change.coregistration import NO_SHIFT, Shift, measure_shift, read_shifted
from retrieval.tasks.change.hidden import MARGIN_PX, cloud_pixels, unknown_pixels, without_small_clouds
from retrieval.tasks.change.pairs import Mask, OpenPair, Pair, Pixels
from retrieval.types import Executor, Progress, silent

_Out = TypeVar("_Out")

ROWS = 256
"""Rows of a strip."""
COLUMNS = 2048
"""Most columns of a strip that are compared at once: each pixel takes about 500 bytes."""

Probabilities = NDArray[np.float32]
Write = Callable[[int, Probabilities], None]
"""Takes the first row of a strip and its probabilities (h, w), NaN where no ground is seen."""


@dataclass(frozen=True)
class Options:
    """How a pair is prepared and its map cleaned."""

    coregister: bool = True
    """Measure the shift of the second date, and remove it."""
    mask_clouds: bool = True
    """Mark cloud as hidden, by the engine's cloud network."""
    min_pixels: int = 12
    """Smallest area of change, and smallest hole in one, pixels."""


@dataclass(frozen=True, eq=False)
class Aligned:
    """An open pair whose shift and clouds are known."""

    pair: OpenPair
    shift: Shift
    cloud: Mask
    """(height, width) cloud on either date."""
    source: Pair
    """The pair, for other processes."""
    executor: Executor | None = None
    """Runs strips; None for this thread."""

    def read(self, x: int, y: int, height: int, width: int) -> tuple[Pixels, Pixels, Mask]:
        """Return a window of both dates, and the pixels that show ground on both.

        Args:
            x: first column, may be negative.
            y: first row, may be negative.
            height: rows.
            width: columns.

        Returns:
            (height, width, b) scaled of each date, NaN = nodata; (height, width) without nodata and cloud.
        """
        first = self.pair.read(0, x, y, height, width)
        second = read_shifted(self.pair, x, y, height, width, self.shift)
        ground = ~(unknown_pixels(first) | unknown_pixels(second))
        top, left = max(y, 0), max(x, 0)
        part = self.cloud[top : max(y + height, 0), left : max(x + width, 0)]
        ground[top - y : top - y + part.shape[0], left - x : left - x + part.shape[1]] &= ~part
        return first, second, ground


@dataclass(frozen=True, eq=False)
class RowsTask:
    """Work on some rows of a pair; it can be pickled."""

    pair: Pair
    """The pair, which the worker opens."""
    shift: Shift
    top: int
    """First row of `cloud`."""
    cloud: Mask
    """(h, width) cloud of the rows that the work reads."""
    work: Callable[[Aligned], Any]
    """A function of a module, perhaps with arguments."""


def rows_task(task: RowsTask) -> Any:
    """Open the pair, and do the work."""
    with task.pair.open() as opened:
        cloud = np.zeros((opened.height, opened.width), bool)
        cloud[task.top : task.top + len(task.cloud)] = task.cloud
        return task.work(Aligned(opened, task.shift, cloud, task.pair))


def on_rows(
    aligned: Aligned, works: Iterable[tuple[tuple[int, int], Callable[[Aligned], _Out]]]
) -> Iterator[_Out]:
    """Yield the results of works, in order, here or on the executor.

    Args:
        aligned: the pair.
        works: for each the first row that it reads, the one after the last, and a function that can be
            pickled.
    """
    if aligned.executor is None:
        return (work(aligned) for _, work in works)

    def tasks() -> Iterator[RowsTask]:
        for (first, last), work in works:
            top = max(first, 0)
            yield RowsTask(aligned.source, aligned.shift, top, aligned.cloud[top : max(last, top)], work)

    return stream_map(aligned.executor, rows_task, tasks())


class Scorer(Protocol):
    """A method that turns two dates into probabilities of change."""

    threshold: float
    """Probability from which a pixel counts as changed."""
    bands: tuple[str, ...] | None
    """Bands that it needs, in this order; None for any."""

    def strips(self, aligned: Aligned, progress: Progress) -> Iterator[tuple[int, Probabilities, Mask]]:
        """Yield first row, probabilities (h, w) and visible ground (h, w) of strips, top to bottom."""
        ...


@dataclass(frozen=True, eq=False)
class ChangeMap:
    """The map of change of a pair."""

    values: NDArray[np.uint8]
    """(height, width) 1 changed, 0 not, 255 nodata or cloud on either date."""
    shift: Shift
    """Shift of the second date that was removed."""
    threshold: float
    """Probability from which a pixel counts as changed."""
    cloud_share: float
    """Share of the pixels under cloud on either date."""

    @property
    def change_share(self) -> float:
        """Share of the visible pixels that changed; 0 where none is visible."""
        seen = int((self.values != IGNORED).sum())
        return float((self.values == 1).sum() / seen) if seen else 0.0

    @property
    def hidden_share(self) -> float:
        """Share of the pixels that are nodata or cloud on either date."""
        return float((self.values == IGNORED).mean())


def map_change(
    pair: Pair,
    scorer: Scorer,
    options: Options | None = None,
    write: Write | None = None,
    progress: Progress = silent,
    executor: Executor | None = None,
) -> ChangeMap:
    """Map the change of a pair.

    Args:
        pair: two dates.
        scorer: the method.
        options: preparation and cleaning.
        write: receives the probabilities of each strip.
        progress: called after each strip.
        executor: runs the strips; None for this thread.
    """
    options = options or Options()
    values = np.full(pair.shape, IGNORED, np.uint8)
    with pair.open() as opened:
        aligned = align(opened, pair, options, progress, executor)
        for top, probability, ground in scorer.strips(aligned, progress):
            strip = (probability >= scorer.threshold).astype(np.uint8)
            strip[~ground] = IGNORED
            values[top : top + len(strip)] = strip
            if write is not None:
                write(top, np.where(ground, probability, np.float32(np.nan)))
    if options.min_pixels > 1:
        values = without_specks(values, options.min_pixels)
    return ChangeMap(values, aligned.shift, scorer.threshold, float(aligned.cloud.mean()))


def align(
    opened: OpenPair,
    pair: Pair,
    options: Options,
    progress: Progress = silent,
    executor: Executor | None = None,
) -> Aligned:
    """Measure the shift of a pair and find its clouds."""
    shift = measure_shift(opened) if options.coregister else NO_SHIFT
    clear = Aligned(opened, shift, np.zeros((opened.height, opened.width), bool), pair, executor)
    return replace(clear, cloud=_clouds(clear, progress)) if options.mask_clouds else clear


def _clouds(aligned: Aligned, progress: Progress) -> Mask:
    """Return where cloud of at least the smallest size lies on either date."""
    height = aligned.pair.height
    out = np.zeros((height, aligned.pair.width), np.uint8)
    works = (((0, 0), partial(_cloudy_rows, top=top, rows=rows)) for top, rows in strips_of(height))
    for (top, rows), cloudy in zip(strips_of(height), on_rows(aligned, works), strict=True):
        out[top : top + rows] = cloudy
        progress("masking clouds", min(top + rows, height), height)
    return without_small_clouds(out.astype(bool))


def _cloudy_rows(aligned: Aligned, top: int, rows: int) -> NDArray[np.uint8]:
    """Return where cloud lies on either date, (rows, width)."""
    side = aligned.pair.width + 2 * MARGIN_PX
    window = (-MARGIN_PX, top - MARGIN_PX, rows + 2 * MARGIN_PX, side)
    out = np.zeros((rows, aligned.pair.width), np.uint8)
    for pixels in (aligned.pair.read(0, *window), read_shifted(aligned.pair, *window, aligned.shift)):
        out |= cloud_pixels(pixels)
    return out


def strips_of(height: int) -> Iterator[tuple[int, int]]:
    """Yield first row and number of rows of each strip."""
    for top in range(0, height, ROWS):
        yield top, min(ROWS, height - top)


def columns_of(width: int) -> Iterator[tuple[int, int]]:
    """Yield first column and number of columns of the parts of a strip, as even as can be."""
    count = -(-width // COLUMNS)
    edges = [width * number // count for number in range(count + 1)]
    for left, right in pairwise(edges):
        yield left, right - left


def without_specks(values: NDArray[np.uint8], min_pixels: int) -> NDArray[np.uint8]:
    """Return a map without areas of change, and holes in them, below a number of pixels.

    Args:
        values: (h, w) 0, 1 or 255, which stays.
        min_pixels: the smallest area; pixels that touch at a corner are connected.
    """
    if not (values == 1).any():
        return values
    return np.where(values == IGNORED, values, _sieved(values, min_pixels, values != IGNORED))


def _sieved(values: NDArray[np.uint8], size: int, mask: Mask | None = None) -> NDArray[np.uint8]:
    from rasterio.features import sieve

    return np.asarray(sieve(values, size, connectivity=8, mask=mask))
