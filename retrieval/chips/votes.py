"""Windows vote on where the chip's corner lies, and are counted where they agree."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.config import ChipConfig, SearchConfig
from retrieval.types import Refined

SEPARATION_PX = SearchConfig.separation_px
"""Two places of an image nearer than this in both x and y are one."""


@dataclass(frozen=True, eq=False)
class Origins:
    """Places of a chip's top-left pixel, best first; there may be none."""

    image_ids: NDArray[np.int64]
    """(m,)."""
    x: NDArray[np.float64]
    """(m,) column, fractions of a pixel counted; may be negative."""
    y: NDArray[np.float64]
    """(m,) row, likewise."""
    score: NDArray[np.float64]
    """(m,) what they are ranked by: the sum of NCC over the windows that agree, by the number of all."""
    ncc: NDArray[np.float64]
    """(m,) mean NCC of the windows that agree."""
    similarity: NDArray[np.float64]
    """(m,) mean similarity of the windows that proposed the place; -1 where none did."""
    agree: NDArray[np.int64]
    """(m,) how many windows agree."""

    def __len__(self) -> int:
        return len(self.image_ids)

    def take(self, rows: NDArray) -> Origins:
        """Some of them, in the order of `rows`."""
        return Origins(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def corners(found: Refined, offsets: NDArray[np.int64]) -> tuple[NDArray, NDArray]:
    """Where the chip's corner lies by each candidate of each window, x and y, (w, k) float64."""
    x = found.x.astype(np.float64) + found.dx - offsets[:, 0, None]
    return x, found.y.astype(np.float64) + found.dy - offsets[:, 1, None]


def vote(found: Refined, offsets: NDArray[np.int64], config: ChipConfig) -> Origins:
    """The corners that most windows point to.

    Args:
        found: (w, k) candidates of the chip's windows.
        offsets: (w, 2) where the windows begin in the chip.
        config: tolerance, and how many places to give.

    Returns:
        Up to `config.origins` distinct places. A window has one vote for each, its best
        candidate's NCC squared, so that a clear candidate counts more than several vague ones.
    """
    windows, k = found.image_ids.shape
    some = (found.image_ids >= 0).ravel()
    weight = np.where(some, np.maximum(found.ncc, 0).ravel().astype(np.float64) ** 2, 0.0)
    image = found.image_ids.ravel()
    x, y = (v.ravel() for v in corners(found, offsets))
    near = (image[:, None] == image) & (np.abs(x[:, None] - x) <= config.tolerance_px)
    near &= (np.abs(y[:, None] - y) <= config.tolerance_px) & some
    votes = np.where(near, weight, 0.0).reshape(-1, windows, k)
    best = votes.argmax(2)  # (w * k, w): which candidate of a window stands for it
    score = np.where(some, votes.max(2).sum(1), -1.0)
    rows: list[int] = []
    for row in np.lexsort((x, y, image, -score)):
        if score[row] <= 0 or len(rows) == config.origins:
            break
        one_place = [
            image[r] == image[row] and max(abs(x[r] - x[row]), abs(y[r] - y[row])) < SEPARATION_PX
            for r in rows
        ]
        if not any(one_place):
            rows.append(int(row))
    return _means(rows, best, votes, (image, x, y, found.similarity.ravel()), windows, k)


def _means(
    rows: list[int], best: NDArray, votes: NDArray, values: tuple[NDArray, ...], windows: int, k: int
) -> Origins:
    """Places as the weighted means of the candidates that stand for them."""
    image, x, y, similarity = values
    out = []
    for row in rows:
        chosen = np.arange(windows) * k + best[row]
        weight = votes[row].max(1)
        mine = weight > 0
        mean = [np.average(v[chosen][mine], weights=weight[mine]) for v in (x, y)]
        out.append(
            (image[row], *mean, weight.sum() / windows, 0.0, similarity[chosen][mine].mean(), mine.sum())
        )
    columns = np.array(out, np.float64).reshape(-1, 7).T
    ids, agree = columns[0].astype(np.int64), columns[6].astype(np.int64)
    return Origins(ids, columns[1], columns[2], columns[3], columns[4], columns[5], agree)


def agreed(origins: Origins, found: Refined, offsets: NDArray[np.int64], config: ChipConfig) -> Origins:
    """Count the windows that agree on each place, and put it where they say.

    Args:
        origins: places that all windows were compared at.
        found: (w, m) each window's peak near each place, in the order of the places; an image id of -1
            where the window lies outside of the image.
        offsets: (w, 2).
        config: tolerance.

    Returns:
        The places at which a window agrees, ranked anew.
    """
    x, y = corners(found, offsets)
    ncc = np.where(found.image_ids >= 0, np.maximum(found.ncc, 0), 0).astype(np.float64)
    at_x, at_y = origins.x.copy(), origins.y.copy()
    for _ in range(2):  # the second time around the mean of those that agreed the first time
        yes = (np.abs(x - at_x) <= config.tolerance_px) & (np.abs(y - at_y) <= config.tolerance_px)
        weight = np.where(yes, ncc**2, 0)
        total = weight.sum(0)
        for at, seen in ((at_x, x), (at_y, y)):
            at[:] = np.where(total > 0, (weight * seen).sum(0) / np.where(total > 0, total, 1), at)
    count = (weight > 0).sum(0)
    summed = np.where(weight > 0, ncc, 0).sum(0)
    mean, score = summed / np.maximum(count, 1), summed / max(1, len(offsets))
    counted = Origins(origins.image_ids, at_x, at_y, score, mean, origins.similarity, count)
    order = np.lexsort((at_x, at_y, origins.image_ids, -score))
    return counted.take(order[count[order] > 0])
