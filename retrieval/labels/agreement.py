"""Agreement of two class maps: what both show, what only one shows, and which features the map supports.

Labels often lie some pixels off the imagery. So a pixel disagrees only if the other map has no pixel of its
class within the tolerance. It must also belong to a square of disagreement of the smallest size. A feature is
supported if, at its best shift within the tolerance, the map shows its class on enough of its pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import LabelsError
from retrieval.labels.classes import IGNORED

Mask = NDArray[np.bool_]
Indices = NDArray[np.uint8]


@dataclass(frozen=True)
class Tolerance:
    """Differences that are no disagreement."""

    shift_px: int = 2
    """Largest shift between labels and map, pixels in x and y, 0 to 16."""
    size_px: int = 5
    """Side of the smallest square that counts as disagreement, pixels, 1 to 64."""
    support: float = 0.5
    """Share of a feature's pixels that the map must show, 0 to 1."""

    def __post_init__(self) -> None:
        if not (0 <= self.shift_px <= 16 and 1 <= self.size_px <= 64 and 0 < self.support <= 1):
            raise LabelsError(
                f"tolerance {self.shift_px} px, size {self.size_px} px, support {self.support:g}: out of "
                "range. Expected 0 to 16, 1 to 64, and above 0 to 1."
            )

    @property
    def halo_px(self) -> int:
        """Pixels around a block that decide about the pixels in it."""
        return self.shift_px + self.size_px


@dataclass(frozen=True)
class Block:
    """A rectangle of both maps with a margin of `Tolerance.halo_px` pixels on each side."""

    predicted: Indices
    """(h, w) classes of the map, 255 where it has no data."""
    labels: Indices
    """(h, w) classes of the labels, `unlabelled` on other ground, 255 where the label is unknown."""
    features: NDArray[np.int32]
    """(h, w) number of the feature on top, -1 without a feature."""
    unlabelled: int
    """Class of ground without a label; 255 where there is no such class."""
    halo: int
    shown: Indices
    """(h, w) classes that count as shown for features: from the map, or from its evidence."""


@dataclass(frozen=True)
class Difference:
    """Disagreement in the core of a block, for one class."""

    value: int
    """Index of the class."""
    both: int
    """Pixels of the class in both maps."""
    either: int
    """Pixels of the class in at least one map."""
    only_predicted: Mask
    """(h, w) of the core: the map shows the class, the labels do not."""
    only_labels: Mask
    """(h, w) of the core: the labels show the class, the map does not."""


def differences(block: Block, classes: tuple[int, ...], tolerance: Tolerance) -> Iterator[Difference]:
    """Yield the disagreement of each class that a block contains.

    Args:
        block: both maps.
        classes: indices of the classes, without the background.
        tolerance: differences to accept.

    Yields:
        Masks of the core, and pixels for the IoU, which knows no tolerance.
    """
    known = (block.predicted != IGNORED) & ~_unknown(block)
    core = _core(block.halo, known.shape)
    present = set(np.unique(block.predicted)) | set(np.unique(block.labels))
    for value in classes:
        if value not in present:
            continue
        predicted = (block.predicted == value) & known
        labels = (block.labels == value) & known
        only_predicted = opened(predicted & ~dilated(labels, tolerance.shift_px), tolerance.size_px)
        only_labels = opened(labels & ~dilated(predicted, tolerance.shift_px), tolerance.size_px)
        both = int((predicted & labels)[core].sum())
        either = int((predicted | labels)[core].sum())
        yield Difference(value, both, either, only_predicted[core], only_labels[core])


def _unknown(block: Block) -> Mask:
    """Return where the labels are unknown: 255, unless that stands for ground without a label."""
    if block.unlabelled == IGNORED:
        return np.zeros(block.labels.shape, bool)
    return np.asarray(block.labels == IGNORED)


def support(
    block: Block, tolerance: Tolerance
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """Count the pixels of features that the map shows at each shift, in the core of a block.

    Returns:
        - (n,) numbers of the features
        - (n,) their pixels where the map has data
        - (n, shifts) how many of these show the feature's class in the map moved by each shift
    """
    core = _core(block.halo, block.predicted.shape)
    visible = (block.features >= 0) & (block.predicted != IGNORED)
    rows, columns = np.nonzero(visible[core])
    rows, columns = rows + block.halo, columns + block.halo
    numbers, local = np.unique(block.features[rows, columns], return_inverse=True)
    classes = block.labels[rows, columns]
    steps = range(-tolerance.shift_px, tolerance.shift_px + 1)
    shown = np.zeros((len(numbers), len(steps) ** 2), np.int64)
    for shift, (dy, dx) in enumerate((dy, dx) for dy in steps for dx in steps):
        same = block.shown[rows + dy, columns + dx] == classes
        shown[:, shift] = np.bincount(local, weights=same, minlength=len(numbers))
    return numbers.astype(np.int32), np.bincount(local, minlength=len(numbers)), shown


def dilated(mask: Mask, radius: int) -> Mask:
    """Return where a mask (h, w) holds within a square of 2 radius + 1 pixels."""
    return _window_sums(np.pad(mask, radius), 2 * radius + 1) > 0


def opened(mask: Mask, size: int) -> Mask:
    """Return the pixels of a mask (h, w) that lie in a square of this side within the mask."""
    if min(mask.shape) < size:
        return np.zeros_like(mask)
    squares = _window_sums(mask, size) == size**2
    return _window_sums(np.pad(squares, size - 1), size) > 0


def _window_sums(mask: Mask, size: int) -> NDArray[np.int32]:
    """Return the number of true pixels in each square of a size, by its first pixel."""
    total = np.pad(mask.astype(np.int32), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    return np.asarray(
        total[size:, size:] - total[:-size, size:] - total[size:, :-size] + total[:-size, :-size], np.int32
    )


def _core(halo: int, shape: tuple[int, ...]) -> tuple[slice, slice]:
    return slice(halo, shape[0] - halo), slice(halo, shape[1] - halo)
