"""The method without labels: normalized differences, and constants that seven cities gave.

The score of `difference` counts in units of the scene's own unrest, so one threshold serves all scenes. It
has the largest F1 on the labelled training cities of OSCD; a logistic regression on the same cities gives the
probability (decision record 0029).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ExamplesError
from retrieval.tasks.change.difference import (
    MARGIN_PX,
    MIN_PIXELS,
    Normalization,
    change_score,
    fit_normalization,
)
from retrieval.tasks.change.mapping import Aligned, Probabilities, columns_of, on_rows, strips_of
from retrieval.tasks.change.pairs import Mask, squares
from retrieval.types import Progress, silent

SAMPLE_PX = 256
"""Side of the squares to which the normalization is fitted."""
MOST_SQUARES = 64
"""Largest number of these squares."""
THRESHOLD = 0.21
"""Probability from which a pixel counts as changed: a score of 5.3."""
EVEN_SCORE = 8.9
"""Score at which change is as likely as none."""
STEEPNESS = 2.55
"""Slope of the log-odds over the logarithm of the score."""


class Untrained:
    """Scores change without labels."""

    bands: tuple[str, ...] | None = None

    def __init__(self, threshold: float = THRESHOLD) -> None:
        self.threshold = threshold

    def strips(
        self, aligned: Aligned, progress: Progress = silent
    ) -> Iterator[tuple[int, Probabilities, Mask]]:
        """Yield first row, probabilities and visible ground of strips; see `Scorer`.

        Raises:
            ExamplesError: the dates share less than 256 pixels of visible ground.
        """
        fitted = normalization_of(aligned)
        height = aligned.pair.height
        works = (
            ((top - MARGIN_PX, top + rows + MARGIN_PX), partial(_compare, fitted=fitted, top=top, rows=rows))
            for top, rows in strips_of(height)
        )
        for (top, rows), (probability, ground) in zip(
            strips_of(height), on_rows(aligned, works), strict=True
        ):
            yield top, probability, ground
            progress("comparing dates", top + rows, height)


def _compare(aligned: Aligned, fitted: Normalization, top: int, rows: int) -> tuple[Probabilities, Mask]:
    """Return the probabilities and the visible ground of a strip, (rows, width)."""
    m, inner = MARGIN_PX, np.s_[MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]
    probability = np.zeros((rows, aligned.pair.width), np.float32)
    visible = np.zeros(probability.shape, bool)
    for left, columns in columns_of(aligned.pair.width):
        first, second, ground = aligned.read(left - m, top - m, rows + 2 * m, columns + 2 * m)
        part = np.s_[:, left : left + columns]
        probability[part] = probability_of(change_score(first, second, ground, fitted)[inner])
        visible[part] = ground[inner]
    return probability, visible


def normalization_of(aligned: Aligned) -> Normalization:
    """Fit the normalization to squares spread over a pair.

    Raises:
        ExamplesError: the dates share less than 256 pixels of visible ground.
    """
    pair = aligned.pair
    corners = squares(pair.height, pair.width, SAMPLE_PX, MOST_SQUARES)
    side = min(SAMPLE_PX, pair.height), min(SAMPLE_PX, pair.width)
    fitted = fit_normalization([aligned.read(x, y, *side) for x, y in corners])
    if fitted is None:
        raise ExamplesError(
            f"the two dates: fewer than {MIN_PIXELS} pixels show ground on both. Expected an overlap without "
            "nodata and cloud. Use other dates, or --no-clouds where bright ground counts as cloud."
        )
    return fitted


def probability_of(score: NDArray[np.float32]) -> Probabilities:
    """Return the probability of change of scores: 0.5 at `EVEN_SCORE`."""
    ratio = np.maximum(score, np.float32(1e-6)) / np.float32(EVEN_SCORE)
    return (1 / (1 + ratio ** np.float32(-STEEPNESS))).astype(np.float32)
