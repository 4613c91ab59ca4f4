"""The learned method: what its network sees, and how it scores a pair.

A pixel has three numbers per band: its value on both dates, and their normalized difference in units of the
scene's own unrest. So a model starts from the method without labels, and learns from levels and shapes which
differences count. Trees may also see the normalized differences between the bands of a date.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ModelError
from retrieval.tasks.change.difference import MARGIN_PX as SMOOTHING_MARGIN
from retrieval.tasks.change.difference import Normalization, normalized_difference
from retrieval.tasks.change.mapping import Aligned, Probabilities, Scorer, columns_of, on_rows
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
    m, inner = SMOOTHING_MARGIN, np.s_[SMOOTHING_MARGIN:-SMOOTHING_MARGIN, SMOOTHING_MARGIN:-SMOOTHING_MARGIN]
    inputs = np.zeros((height, width, len(PARTS) * len(fitted.centre)), np.float32)
    visible = np.zeros((height, width), bool)
    for left, columns in columns_of(width):
        first, second, ground = aligned.read(x + left - m, y - m, height + 2 * m, columns + 2 * m)
        gap = np.clip(normalized_difference(first, second, ground, fitted), -LIMIT, LIMIT)
        stacked = np.concatenate([first[inner], second[inner], gap[inner]], -1)
        part = np.s_[:, left : left + columns]
        inputs[part] = np.where(ground[inner][..., None], stacked, np.float32(0))
        visible[part] = ground[inner]
    return inputs, visible


Models = str | Path | Sequence[str | Path]
"""Folder of a model that `train` wrote, or several."""


class Learned:
    """Scores change with a trained network, or with the mean probability of several."""

    bands: tuple[str, ...] | None

    def __init__(self, *segmenters: Segmenter, threshold: float | None = None) -> None:
        """Take one or more models of the same bands.

        Args:
            segmenters: the models.
            threshold: probability from which a pixel counts as changed; None takes the mean of the models'.

        Raises:
            ModelError: one is a model of something else, or their bands differ.
        """
        self.segmenters, self.bands = segmenters, bands_of(segmenters[0])
        for other in segmenters[1:]:
            if bands_of(other) != self.bands:
                raise ModelError(
                    f"{other.name}: a model of {' '.join(bands_of(other))}; {segmenters[0].name} is one of "
                    f"{' '.join(self.bands)}. Expected the same bands. Use models of the same places."
                )
        fitted = [0.5 if (t := one.description.threshold) is None else t for one in segmenters]
        self.threshold = threshold if threshold is not None else sum(fitted) / len(fitted)

    def strips(
        self, aligned: Aligned, progress: Progress = silent
    ) -> Iterator[tuple[int, Probabilities, Mask]]:
        """Yield first row, probabilities and visible ground of strips; see `Scorer`."""
        fitted = normalization_of(aligned)
        height, width = aligned.pair.height, aligned.pair.width
        unit_px = math.lcm(*(one.description.unit_px for one in self.segmenters))
        view_px = max(one.view_px for one in self.segmenters)
        layout = Layout.of(height, width, WINDOW_PX, unit_px, view_px)
        seen = np.zeros((height, width), bool)
        m, side = SMOOTHING_MARGIN, layout.side
        works = (
            ((top - m, top + side + m), partial(_answer, self.segmenters, fitted, layout, top))
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
    segmenters: Sequence[Segmenter], fitted: Normalization, layout: Layout, top: int, aligned: Aligned
) -> tuple[list[NDArray[np.float32]], Mask]:
    """Return the mean probabilities (y, x, 1) of a row of windows, and its visible ground."""
    window = (0, top, min(layout.side, layout.height - top), layout.width)
    inputs, ground = inputs_of(aligned, fitted, window)
    totals: list[Any] = [np.float32(0)] * len(layout.lefts)
    for one in segmenters:
        filled = one.filled(inputs, ground)[None]
        parts = (filled[:, :, left : left + layout.side] for left in layout.lefts)
        answers = (one.probabilities(part)[0, ..., 1:] for part in parts)
        totals = [total + answer for total, answer in zip(totals, answers, strict=True)]
    return [np.asarray(total / len(segmenters), np.float32) for total in totals], ground


def load_learned(models: Models, threshold: float | None = None) -> Learned:
    """Open one or more models of change.

    Raises:
        MissingInputError, ManifestError, FormatVersionError: there is no such model, or it was changed.
        ModelError: it is a model of something else or of other bands than the first, or unsafe.
    """
    many = [models] if isinstance(models, str | Path) else list(models)
    return Learned(*map(load_segmenter, many), threshold=threshold)


def scorer_of(model: Models | None, threshold: float | None = None) -> Scorer:
    """Return the method.

    Args:
        model: folder of a trained model, or several; None for the method without labels.
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
