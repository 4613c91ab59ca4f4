"""Figures of maps of change against labels, with intervals over blocks of ground.

All labelled pixels count. Where the map shows no data it claims no change, so change that it hides counts as
missed. Neighbouring pixels depend on each other, so the bootstrap draws whole blocks of 256 x 256 pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.evaluation.classification import RESAMPLES, Measured
from retrieval.evaluation.intervals import BLOCK_PX, tail_share

NAMES = ("f1", "iou", "precision", "recall")
"""Figures, in the order of the columns of `figures_of`."""
IGNORED = 255
"""Label of a pixel that does not count."""

Counts = NDArray[np.int64]
"""(blocks, 3) pixels of a block: changed in both, in the map only, in the labels only."""


@dataclass(frozen=True, eq=False)
class Tally:
    """Pixels of one place, block by block."""

    counts: Counts
    labelled: int
    """Pixels with a label."""
    hidden: int
    """Labelled pixels without data in the map."""


@dataclass(frozen=True, eq=False)
class ChangeFigures:
    """Figures of maps of change: pooled over all places, and of each."""

    pooled: Mapping[str, Measured]
    """`f1`, `iou`, `precision`, `recall` of change over all pixels."""
    places: Mapping[str, Mapping[str, Measured]]
    """The same of each place."""
    threshold: float
    """Probability from which a pixel counts as changed."""
    hidden_share: float
    """Share of the labelled pixels without data in the map."""
    change_share: float
    """Share of the labelled pixels that changed."""
    blocks: int
    """Blocks of ground."""

    def to_dict(self) -> dict[str, Any]:
        """Return everything as one JSON object with the names that all evaluations share."""
        page: dict[str, Any] = {name: figure.to_dict() for name, figure in self.pooled.items()}
        page |= {"threshold": round(self.threshold, 6), "blocks": self.blocks}
        page |= {
            "change_share": round(self.change_share, 6),
            "hidden_share": round(self.hidden_share, 6),
            "places": {
                place: {name: figure.to_dict() for name, figure in figures.items()}
                for place, figures in self.places.items()
            },
        }
        return page


def tally(values: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Tally:
    """Count the pixels of a place.

    Args:
        values: (h, w) the map: 1 change, 0 none, 255 no data.
        labels: (h, w) 1 change, 0 none, 255 no label.
    """
    height, width = labels.shape
    known = labels != IGNORED
    found, true = (values == 1) & known, (labels == 1) & known
    across = -(-width // BLOCK_PX)
    block = np.arange(height)[:, None] // BLOCK_PX * across + np.arange(width) // BLOCK_PX
    total = int(block[-1, -1]) + 1
    counts = np.stack(
        [np.bincount(block[part], minlength=total) for part in (found & true, found & ~true, ~found & true)],
        axis=1,
    )
    seen = np.bincount(block[known], minlength=total) > 0
    return Tally(counts[seen], int(known.sum()), int((known & (values == IGNORED)).sum()))


def measure_change(
    tallies: Mapping[str, Tally], threshold: float, *, resamples: int = RESAMPLES, seed: int = 0
) -> ChangeFigures:
    """Return the figures of places, pooled over all pixels and for each place.

    Args:
        tallies: of each place, at least one.
        threshold: probability from which a pixel counts as changed.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    counts = np.concatenate([one.counts for one in tallies.values()])
    labelled = sum(one.labelled for one in tallies.values())
    changed = int((counts[:, 0] + counts[:, 2]).sum())
    return ChangeFigures(
        pooled=_measured(counts, labelled, resamples, seed),
        places={n: _measured(t.counts, t.labelled, resamples, seed) for n, t in tallies.items()},
        threshold=threshold,
        hidden_share=sum(one.hidden for one in tallies.values()) / max(labelled, 1),
        change_share=changed / max(labelled, 1),
        blocks=len(counts),
    )


def _measured(counts: Counts, labelled: int, resamples: int, seed: int) -> dict[str, Measured]:
    """Return the figures of blocks with their intervals; one block has the widest interval."""
    values = figures_of(counts.sum(0)[None])[0]
    if len(counts) < 2:
        return {
            name: Measured(float(value), *((0.0, 1.0) if np.isfinite(value) else (np.nan, np.nan)), labelled)
            for name, value in zip(NAMES, values, strict=True)
        }
    rng = np.random.default_rng(seed)
    times = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=resamples)
    drawn = figures_of(times @ counts)
    tail = tail_share(len(counts))
    low, high = np.full(len(NAMES), np.nan), np.full(len(NAMES), np.nan)
    for k, column in enumerate(drawn.T):
        defined = column[np.isfinite(column)]
        if len(defined):
            low[k], high[k] = np.quantile(defined, [tail, 1 - tail])
    low, high = np.fmin(low, values), np.fmax(high, values)
    return {
        name: Measured(float(v), float(a), float(b), labelled)
        for name, v, a, b in zip(NAMES, values, low, high, strict=True)
    }


def figures_of(counts: NDArray[Any]) -> NDArray[np.float64]:
    """Return F1, IoU, precision and recall, (n, 4), of counts (n, 3); NaN where one is not defined."""
    both, map_only, labels_only = (column.astype(np.float64) for column in counts.T)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack(
            [
                2 * both / (2 * both + map_only + labels_only),
                both / (both + map_only + labels_only),
                both / (both + map_only),
                both / (both + labels_only),
            ],
            axis=1,
        )
