"""Numbers about labelled and unlabelled images before a training: balance, spectra, duplicates, shift.

All are computed on stored pixels. Near-duplicates matter most: an image in training and validation, even as a
slightly different cut, makes the validation too good.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCKS = 8
"""Rows and columns of block means by which images are compared."""
ALIKE = 0.98
"""Correlation of block means from which two images are near-duplicates."""
SAME_LIGHT = 0.03
"""Largest difference of their means in a band, as a share of the full scale."""
HISTOGRAM_BINS = 48
RANGE_PERCENT = (0.1, 99.9)
"""Percentiles of all pixels between which histograms are drawn."""
_CHUNK = 1024
_SAMPLE = 2000


@dataclass(frozen=True, eq=False)
class Split:
    """One set of images."""

    name: str
    """Its role: "labelled", "unlabelled" or "validation"."""
    pixels: NDArray[Any]
    """(n, h, w, b) as stored."""
    ids: tuple[str, ...]
    """Name of each image."""
    labels: NDArray[np.int64] | None = None
    """(n,) row of each image's class, or None."""


@dataclass(frozen=True)
class Duplicate:
    """Two images that show the same."""

    splits: tuple[int, int]
    """Rows of their splits."""
    rows: tuple[int, int]
    """Their rows in these splits."""
    correlation: float
    """Correlation of their block means, 1 for copies."""
    is_copy: bool
    """Whether every pixel is equal."""


@dataclass(frozen=True, eq=False)
class Shift:
    """How the pixels of a split differ from the labelled ones."""

    split: int
    """Row of the split."""
    mean_difference: NDArray[np.float64]
    """(b,) difference of the means, in standard deviations of the labelled pixels."""
    spread_ratio: NDArray[np.float64]
    """(b,) standard deviation divided by that of the labelled pixels."""
    distance: NDArray[np.float64]
    """(b,) Kolmogorov-Smirnov distance, 0 to 1: largest gap between the two cumulative histograms."""


@dataclass(frozen=True, eq=False)
class Exploration:
    """All numbers of an exploration."""

    splits: tuple[Split, ...]
    """The sets; the first is the labelled one."""
    classes: tuple[str, ...]
    """Names of the classes."""
    bands: tuple[str, ...]
    """Names of the bands."""
    counts: NDArray[np.int64]
    """(splits, k) labelled images of each class; 0 in splits without labels."""
    spectra: NDArray[np.float64]
    """(splits + k, b) mean of each split, then of each class among the labelled images."""
    bin_edges: NDArray[np.float64]
    """(m + 1,) edges of the histograms."""
    histograms: NDArray[np.float64]
    """(splits + k, b, m) shares of the pixels, in the order of `spectra`."""
    duplicates: tuple[Duplicate, ...]
    """Near-duplicates, across splits first, then by correlation."""
    points: tuple[NDArray[np.float64], ...]
    """(n, 2) place of each image of each split on the plane of the two main components."""
    explained: tuple[float, float]
    """Shares of the variance along both axes of the plane."""
    shifts: tuple[Shift, ...]
    """Of each split but the first."""


def explore(
    splits: Sequence[Split],
    classes: Sequence[str],
    bands: Sequence[str],
    full_scale: float,
    most_duplicates: int = 200,
) -> Exploration:
    """Compute all numbers of an exploration.

    Args:
        splits: the sets, the labelled one first; all images have one size and the same bands.
        classes: names of the classes.
        bands: names of the bands.
        full_scale: pixel value that counts as 1, 255 for renderings.
        most_duplicates: largest number of pairs that are kept.
    """
    k = len(classes)
    first = splits[0]
    assert first.labels is not None, "the first split has labels"
    groups = [split.pixels for split in splits] + [first.pixels[first.labels == row] for row in range(k)]
    edges = _edges([split.pixels for split in splits])
    features = [image_features(split.pixels) for split in splits]
    points, explained = principal_plane(features)
    labels = [np.zeros(0, np.int64) if split.labels is None else split.labels for split in splits]
    return Exploration(
        splits=tuple(splits),
        classes=tuple(classes),
        bands=tuple(bands),
        counts=np.array([np.bincount(label, minlength=k) for label in labels]),
        spectra=np.array([group.mean((0, 1, 2)) for group in groups]),
        bin_edges=edges,
        histograms=np.array([_histograms(group, edges) for group in groups]),
        duplicates=tuple(near_duplicates(splits, full_scale, most_duplicates)),
        points=points,
        explained=explained,
        shifts=tuple(_shift(row, split.pixels, first.pixels) for row, split in enumerate(splits) if row),
    )


# --- spectra and shift ----------------------------------------------------------------------------


def _sample(pixels: NDArray[Any]) -> NDArray[np.float64]:
    """Return pixels (m, b) of at most 2,000 images, evenly spread."""
    rows = np.unique(np.linspace(0, len(pixels) - 1, min(len(pixels), _SAMPLE)).round().astype(int))
    return pixels[rows].reshape(-1, pixels.shape[-1]).astype(np.float64)


def _edges(stacks: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    ends = np.array([np.percentile(_sample(stack), RANGE_PERCENT) for stack in stacks])
    low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
    return np.linspace(low, high if high > low else low + 1, HISTOGRAM_BINS + 1)


def _histograms(pixels: NDArray[Any], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of the pixels of each band (b, m) in each bin; values outside count in the last."""
    flat = np.clip(_sample(pixels), edges[0], edges[-1])
    return np.array([np.histogram(column, edges)[0] / len(flat) for column in flat.T])


def _shift(row: int, pixels: NDArray[Any], reference: NDArray[Any]) -> Shift:
    """Compare the pixels of a split with the labelled ones."""
    a, b = _sample(pixels), _sample(reference)
    spread = np.maximum(b.std(0), 1e-9)
    distance = [_largest_gap(x, y) for x, y in zip(a.T, b.T, strict=True)]
    return Shift(row, (a.mean(0) - b.mean(0)) / spread, a.std(0) / spread, np.array(distance))


def _largest_gap(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return the Kolmogorov-Smirnov distance of two samples."""
    a, b = np.sort(a), np.sort(b)
    values = np.unique(np.r_[a, b])
    gap = np.searchsorted(a, values, "right") / len(a) - np.searchsorted(b, values, "right") / len(b)
    return float(np.abs(gap).max())


# --- representation -------------------------------------------------------------------------------


def image_features(pixels: NDArray[Any]) -> NDArray[np.float64]:
    """Return colour and texture of images: for each band mean, spread, three quantiles, gradients.

    Args:
        pixels: (n, h, w, b) as stored.

    Returns:
        (n, 8 b): the gradients are mean absolute differences at distances of 1, 2 and 4 pixels.
    """
    parts = [_features(chunk) for chunk in np.array_split(pixels, max(1, len(pixels) // 256))]
    return np.concatenate(parts)


def _features(pixels: NDArray[Any]) -> NDArray[np.float64]:
    values = pixels.astype(np.float32)
    quantiles = np.percentile(values, (10, 50, 90), axis=(1, 2))
    columns = [values.mean((1, 2)), values.std((1, 2)), *quantiles]
    for step in (1, 2, 4):
        rows = np.abs(values[:, step:] - values[:, :-step]).mean((1, 2))
        columns.append(rows + np.abs(values[:, :, step:] - values[:, :, :-step]).mean((1, 2)))
    return np.concatenate(columns, axis=1).astype(np.float64)


def principal_plane(
    features: Sequence[NDArray[np.float64]],
) -> tuple[tuple[NDArray[np.float64], ...], tuple[float, float]]:
    """Return the place of each image on the plane of the two main components of all features.

    Args:
        features: (n, d) of each split; they are standardized together.

    Returns:
        (n, 2) of each split, and the shares of the variance along both axes.
    """
    together = np.concatenate(list(features))
    spread = together.std(0)
    standard = (together - together.mean(0)) / np.where(spread > 0, spread, 1)
    values, vectors = np.linalg.eigh(standard.T @ standard)
    axes = vectors[:, [-1, -2]] * np.where(vectors[:, [-1, -2]].sum(0) < 0, -1, 1)
    total = max(float(values.sum()), 1e-12)
    ends = np.cumsum([len(part) for part in features])[:-1]
    shares = float(values[-1]) / total, float(values[-2]) / total
    return tuple(np.split(standard @ axes, ends)), shares


# --- duplicates -----------------------------------------------------------------------------------


def near_duplicates(splits: Sequence[Split], full_scale: float, most: int) -> list[Duplicate]:
    """Return pairs of images that show the same ground in the same light, across splits first.

    Block means of both are correlated, each band without its mean. So flat images, such as open water, are no
    duplicates of each other: their noise differs.

    Args:
        splits: the sets.
        full_scale: pixel value that counts as 1.
        most: largest number of pairs.
    """
    blocks = np.concatenate([block_means(split.pixels) for split in splits])
    light = blocks.mean(1) / full_scale
    pattern = (blocks - blocks.mean(1, keepdims=True)).reshape(len(blocks), -1)
    pattern /= np.maximum(np.linalg.norm(pattern, axis=1, keepdims=True), 1e-9)
    pattern = pattern.astype(np.float32)
    starts = np.cumsum([0, *(len(split.pixels) for split in splits)])
    pairs = []
    for start in range(0, len(pattern), _CHUNK):
        alike = pattern[start : start + _CHUNK] @ pattern[start:].T
        for a, b in zip(*np.nonzero(alike >= ALIKE), strict=True):
            i, j = start + int(a), start + int(b)
            if i < j and np.abs(light[i] - light[j]).max() <= SAME_LIGHT:
                pairs.append((i, j, float(alike[a, b])))
    found = [_duplicate(splits, starts, *pair) for pair in pairs]
    found.sort(key=lambda d: (d.splits[0] == d.splits[1], not d.is_copy, -d.correlation, d.splits, d.rows))
    return found[:most]


def block_means(pixels: NDArray[Any]) -> NDArray[np.float64]:
    """Return the means of 8 x 8 blocks (n, 64, b) of images; rows and columns that are left over are cut."""
    n, height, width, bands = pixels.shape
    rows, columns = height // BLOCKS, width // BLOCKS
    cut = pixels[:, : rows * BLOCKS, : columns * BLOCKS]
    blocks = cut.reshape(n, BLOCKS, rows, BLOCKS, columns, bands).mean((2, 4), dtype=np.float64)
    return blocks.reshape(n, BLOCKS * BLOCKS, bands)


def _duplicate(
    splits: Sequence[Split], starts: NDArray[np.int64], i: int, j: int, correlation: float
) -> Duplicate:
    a, b = (int(np.searchsorted(starts, row, "right")) - 1 for row in (i, j))
    rows = i - int(starts[a]), j - int(starts[b])
    is_copy = bool(np.array_equal(splits[a].pixels[rows[0]], splits[b].pixels[rows[1]]))
    return Duplicate((a, b), rows, min(correlation, 1.0), is_copy)
