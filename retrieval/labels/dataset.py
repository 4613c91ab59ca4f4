"""Checks of a data set: pairs of images and masks, shares and weights of the classes, tiles without a label.

The weight of a class is `1 / ln(1.02 + share)`, with its share of all labelled pixels. The source is ENet
(Paszke et al. 2016, https://arxiv.org/abs/1606.02147). Rare classes weigh up to 50, a class alone 1.4.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import LabelsError
from retrieval.kernels.executors import MAX_THREADS, cores, prefetch_map
from retrieval.labels.classes import BACKGROUND, IGNORED, Classes, read_classes
from retrieval.labels.files import find_pairs
from retrieval.labels.masks import RasterShape, classes_of, kind_of, open_raster, read_open_mask, shape_of
from retrieval.types import Progress, silent
from tfrecords.errors import RetrieveError

ENET_OFFSET = 1.02
"""Offset of the logarithm in the weight of a class."""


@dataclass(frozen=True)
class ClassCount:
    """Pixels of one class in a data set."""

    pixels: int
    share: float
    """Share of all labelled pixels, 0 to 1."""
    weight: float
    """1 / ln(1.02 + share); 0 for a class without pixels."""
    masks: int
    """Number of masks that contain the class."""


@dataclass(frozen=True)
class DatasetReport:
    """Result of `check`."""

    images: int
    masks: int
    pairs: int
    without_mask: tuple[str, ...]
    """Names of images without a mask."""
    without_image: tuple[str, ...]
    """Names of masks without an image."""
    odd: Mapping[str, str]
    """What is wrong with a pair, by its name."""
    without_label: tuple[str, ...]
    """Names of masks that hold background and ignored pixels only."""
    classes: Mapping[str, ClassCount]
    """Counts by name of the class, over the pairs that are not odd."""
    ignored_share: float
    """Share of pixels without data or label, 0 to 1."""
    notes: tuple[str, ...] = field(default=())

    @property
    def is_clean(self) -> bool:
        """Whether every image and mask has its partner and no pair is odd."""
        return not (self.without_mask or self.without_image or self.odd)


@dataclass(frozen=True)
class _Pair:
    """What is read of one pair."""

    problem: str
    counts: NDArray[np.int64]
    """Pixels of each value, (256,)."""
    shape: RasterShape | None
    kind: str


def check(
    images: str | Path,
    masks: str | Path,
    *,
    classes: str | Path | Classes | None = None,
    zoom: int | None = None,
    progress: Progress = silent,
) -> DatasetReport:
    """Check that the images and masks of a data set fit each other, and count its classes.

    Args:
        images: folder of images, or one image.
        masks: folder of masks, perhaps the same, or one mask.
        classes: the classes, or their file; None takes the names from the masks, if they have any.
        zoom: only the XYZ tiles of this zoom.
        progress: called after each pair.

    Returns:
        Missing and odd pairs, masks without a label, and the share and weight of each class.

    Raises:
        MissingInputError: no image, no mask, or no pair.
        LabelsError: a bad file of classes, or two files of one name.
    """
    pairs = find_pairs(images, masks, zoom)
    known = read_classes(classes) if isinstance(classes, str | Path) else classes
    known = known or classes_of(pairs.masks[pairs.names[0]])
    work = prefetch_map(
        lambda name: _read(pairs.images[name], pairs.masks[name], known),
        pairs.names,
        count=min(MAX_THREADS, cores()),
    )
    read: dict[str, _Pair] = {}
    for done, (name, pair) in enumerate(zip(pairs.names, work, strict=True), start=1):
        read[name] = pair
        progress("checking pairs", done, len(pairs.names))
    odd = {name: pair.problem for name, pair in read.items() if pair.problem}
    odd |= _unlike(read)
    good = {name: pair for name, pair in read.items() if name not in odd}
    total = sum((pair.counts for pair in good.values()), np.zeros(256, np.int64))
    known = known or unnamed_classes(total)
    return DatasetReport(
        images=len(pairs.images),
        masks=len(pairs.masks),
        pairs=len(pairs.names),
        without_mask=tuple(pairs.without_mask),
        without_image=tuple(pairs.without_image),
        odd=odd,
        without_label=tuple(n for n, p in good.items() if not p.counts[list(known.labels)].any()),
        classes=_class_counts(known, total, [pair.counts for pair in good.values()]),
        ignored_share=float(total[IGNORED] / max(1, total.sum())),
    )


def class_weight(share: float) -> float:
    """Return the weight of a class: 1 / ln(1.02 + share), 0 for a share of 0."""
    return 1 / math.log(ENET_OFFSET + share) if share > 0 else 0.0


def _read(image: Path, mask: Path, classes: Classes | None) -> _Pair:
    nothing = np.zeros(256, np.int64)
    try:
        shape = shape_of(image)
        with open_raster(image) as dataset:  # a truncated file fails here
            dataset.read(1, window=((dataset.height - 1, dataset.height), (0, dataset.width)))
        with open_raster(mask) as dataset:
            kind = "colours" if kind_of(dataset) == "colours" else "indices"
            if problem := misfit(shape, shape_of(mask)):
                return _Pair(problem, nothing, shape, kind)
            counts = nothing.copy()
            for window in _strips(dataset.height, dataset.width):
                values = read_open_mask(dataset, classes, window)
                counts += np.bincount(values.ravel(), minlength=256)
        return _Pair("", counts, shape, kind)
    except RetrieveError as error:
        return _Pair(str(error), nothing, None, "")


def _strips(height: int, width: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return windows of whole rows, at most 4 million pixels each."""
    rows = max(1, 2**22 // max(1, width))
    return [((row, min(height, row + rows)), (0, width)) for row in range(0, height, rows)]


def misfit(image: RasterShape, mask: RasterShape) -> str:
    """Return what keeps an image and a mask from fitting; empty if they fit."""
    if (image.width, image.height) != (mask.width, mask.height):
        return f"the image has {image.width}x{image.height} pixels and the mask {mask.width}x{mask.height}"
    if image.crs and mask.crs:
        if image.crs != mask.crs:
            return f"the image is in {image.crs} and the mask in {mask.crs}"
        step = max(abs(image.transform.a), abs(image.transform.e), abs(image.transform.b), 1e-12)
        offset = max(abs(a - b) for a, b in zip(image.transform[:6], mask.transform[:6], strict=True)) / step
        if offset > 0.01:
            return f"image and mask lie on other grids, {offset:.2g} pixels apart"
    return ""


def _unlike(read: Mapping[str, _Pair]) -> dict[str, str]:
    """Return pairs whose image has other bands, or whose mask is of another kind, than most."""
    fine = {name: pair for name, pair in read.items() if not pair.problem and pair.shape}
    bands = Counter(pair.shape.bands for pair in fine.values() if pair.shape)
    kinds = Counter(pair.kind for pair in fine.values())
    problems = {}
    for name, pair in fine.items():
        if pair.shape and pair.shape.bands != bands.most_common(1)[0][0]:
            problems[name] = f"the image has {pair.shape.bands} bands; most have {bands.most_common(1)[0][0]}"
        elif pair.kind != kinds.most_common(1)[0][0]:
            problems[name] = f"the mask is of {pair.kind}; most are of {kinds.most_common(1)[0][0]}"
    return problems


def unnamed_classes(total: NDArray[np.int64]) -> Classes:
    """Return classes for masks that name none: background and as many as there are values."""
    values = np.flatnonzero(total[:IGNORED])
    count = max(2, int(values.max()) + 1 if len(values) else 0)
    if count > IGNORED:
        raise LabelsError(f"class value {count - 1}: out of range. Expected 0 to {IGNORED - 1}.")
    return Classes((BACKGROUND, *(f"class {index}" for index in range(1, count))))


def _class_counts(
    classes: Classes, total: NDArray[np.int64], each: list[NDArray[np.int64]]
) -> dict[str, ClassCount]:
    labelled = int(total[:IGNORED].sum())
    counts = {}
    for index, name in enumerate(classes.names):
        share = float(total[index] / labelled) if labelled else 0.0
        masks = sum(bool(one[index]) for one in each)
        counts[name] = ClassCount(int(total[index]), share, class_weight(share), masks)
    return counts
