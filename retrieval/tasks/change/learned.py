"""The learned method: what its network sees, and how it scores a pair.

A pixel has three numbers per band: its value on both dates, and their normalized difference in units of the
scene's own unrest. So the network starts from the method without labels, and learns from levels and shapes
which differences count.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ModelError
from retrieval.tasks.change.difference import MARGIN_PX as SMOOTHING_MARGIN
from retrieval.tasks.change.difference import Normalization, normalized_difference
from retrieval.tasks.change.mapping import Aligned, Probabilities, Scorer, on_rows
from retrieval.tasks.change.pairs import Mask, Pair
from retrieval.tasks.change.untrained import THRESHOLD, Untrained, normalization_of
from retrieval.tasks.segment.model import Segmenter, load_segmenter
from retrieval.tasks.segment.windows import Layout
from retrieval.types import Progress, silent
from tfrecords.errors import BandsError

PARTS = ("before", "after", "difference")
"""Parts of the network's input, each with every band."""
LIMIT = 12.0
"""Largest difference that the network sees, either way."""
WINDOW_PX = 512
"""Largest side of a window that the network sees at once."""


def input_names(bands: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the network's inputs for the bands of a date."""
    return tuple(f"{band} {part}" for part in PARTS for band in bands)


def bands_of(segmenter: Segmenter) -> tuple[str, ...]:
    """Return the bands of a date that a model of change takes.

    Raises:
        ModelError: it is a model of something else.
    """
    names = segmenter.description.bands
    bands = tuple(name.removesuffix(f" {PARTS[0]}") for name in names[: len(names) // len(PARTS)])
    if names != input_names(bands) or segmenter.description.classes != ("background", "change"):
        raise ModelError(
            f"{segmenter.name}: a model of {', '.join(segmenter.description.classes)} in {', '.join(names)}. "
            "Expected one that `retrieve change train` wrote."
        )
    return bands


def inputs_of(
    aligned: Aligned, fitted: Normalization, window: tuple[int, int, int, int]
) -> tuple[NDArray[np.float32], Mask]:
    """Return what the network sees of a window.

    Args:
        aligned: the pair.
        fitted: its normalization.
        window: x, y, height and width.

    Returns:
        (height, width, 3 b), 0 where no ground is seen, and (height, width) visible ground.
    """
    x, y, height, width = window
    m = SMOOTHING_MARGIN
    first, second, ground = aligned.read(x - m, y - m, height + 2 * m, width + 2 * m)
    gap = np.clip(normalized_difference(first, second, ground, fitted), -LIMIT, LIMIT)
    stacked = np.concatenate([first, second, gap], -1)
    stacked = np.where(ground[..., None], stacked, np.float32(0)).astype(np.float32)
    inner = np.s_[m:-m, m:-m]
    return stacked[inner], ground[inner]


class Learned:
    """Scores change with a trained network."""

    bands: tuple[str, ...] | None

    def __init__(self, segmenter: Segmenter, threshold: float | None = None) -> None:
        self.segmenter, self.bands = segmenter, bands_of(segmenter)
        fitted = segmenter.description.threshold
        self.threshold = threshold if threshold is not None else (0.5 if fitted is None else fitted)

    def strips(
        self, aligned: Aligned, progress: Progress = silent
    ) -> Iterator[tuple[int, Probabilities, Mask]]:
        """Yield first row, probabilities and visible ground of strips; see `Scorer`."""
        fitted = normalization_of(aligned)
        height, width = aligned.pair.height, aligned.pair.width
        layout = Layout.of(height, width, WINDOW_PX, self.segmenter.description.unit_px)
        seen = np.zeros((height, width), bool)

        m, side = SMOOTHING_MARGIN, layout.side
        works = (
            ((top - m, top + side + m), partial(_answer, self.segmenter, fitted, layout, top))
            for top in layout.tops
        )

        def rows() -> Iterator[list[NDArray[np.float32]]]:
            for top, (answers, ground) in zip(layout.tops, on_rows(aligned, works), strict=True):
                seen[top : top + len(ground)] = ground
                yield answers

        for top, strip in layout.blended(rows()):
            bottom = top + len(strip)
            yield top, strip[..., 0], seen[top:bottom]
            progress("comparing dates", bottom, height)


def _answer(
    segmenter: Segmenter, fitted: Normalization, layout: Layout, top: int, aligned: Aligned
) -> tuple[list[NDArray[np.float32]], Mask]:
    """Return the probabilities (y, x, 1) of a row of windows, and its visible ground."""
    window = (0, top, min(layout.side, layout.height - top), layout.width)
    inputs, ground = inputs_of(aligned, fitted, window)
    filled = segmenter.filled(inputs, ground)
    parts = [filled[None, :, left : left + layout.side] for left in layout.lefts]
    return [segmenter.probabilities(part)[0, ..., 1:] for part in parts], ground


def load_learned(model: str | Path, threshold: float | None = None) -> Learned:
    """Open a model of change.

    Raises:
        MissingInputError, ManifestError, FormatVersionError: there is no such model, or it was changed.
        ModelError: it is a model of something else, or unsafe.
    """
    return Learned(load_segmenter(model), threshold)


def scorer_of(model: str | Path | None, threshold: float | None = None) -> Scorer:
    """Return the method.

    Args:
        model: folder of a trained model; None for the method without labels.
        threshold: probability from which a pixel counts as changed; None takes the method's.

    Raises:
        MissingInputError, ManifestError, FormatVersionError, ModelError: see `load_learned`.
    """
    if model is None:
        return Untrained(THRESHOLD if threshold is None else threshold)
    return load_learned(model, threshold)


def check_bands(scorer: Scorer, pair: Pair) -> None:
    """Refuse a pair of other bands than the model's.

    Raises:
        BandsError: names both.
    """
    if scorer.bands is not None and scorer.bands != pair.bands:
        raise BandsError(
            f"{pair.survey.place.name}: bands {' '.join(pair.bands)}; the model takes "
            f"{' '.join(scorer.bands)}, in this order. Name them with --bands, or train on these bands."
        )
