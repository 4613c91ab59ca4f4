"""The budget for uncertain patches: which come first, how many are affordable, and when time is over.

A patch gains the probability that its answer is wrong, by the calibrated confidence, times the share of it
that shows texture. Wrong answers are corrected about in proportion to the texture that shows. All patches
of a search cost about the same, so those that gain most come first.

Budgets are work, in patches x megapixels or in patches, so that the same query has the same answer on every
machine. Only a time that the user states is measured by a clock.
"""

from __future__ import annotations

import time
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from retrieval.config import SearchConfig
from retrieval.errors import SearchBudgetWarning
from retrieval.matching.session import Session
from retrieval.models.calibration import calibration_features, calibration_of
from retrieval.types import RankedCandidates

DESCRIBE_COST = 45
"""Work to describe a megapixel, in patches compared with a megapixel."""
RESCORE_COST, RESCORE_AREA = 16, 9
"""Work to rescore the candidates of a patch: megapixels compared, and megapixels described around them. The
latter is at most four times all images."""
MIN_AFFORDABLE_SHARE = 0.25
"""Share of the uncertain patches below which none is compared with every place: reading all images for a few
does not pay."""
WORK_PER_S = 350
"""Patches x megapixels that are compared in a second, on two cores."""
PATCH_S = 0.15
"""Seconds to search the index of parts for a patch and to rank its candidates, on two cores; a third of the
patches search twice."""
AUTO_S, AUTO_LEAST_S = 600, 60
"""Seconds for the search of parts: where all patches are uncertain, and at least."""
PARTS_BLOCK = 1024
"""Patches that search the index of parts at a time: bounds the memory of their candidates to 60 MB."""
SMALL_BLOCK = 16
"""Patches below which a further block is not begun before a stated time ends."""


def expected_gain(
    session: Session, ranked: RankedCandidates, rows: NDArray[np.intp], texture: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the expected gain of another search of patches, (m,) from 0 to 1.

    Args:
        session: its encoder has the calibration; without one every answer counts as wrong.
        ranked: candidates of all patches.
        rows: (m,) patches.
        texture: (m,) share of each that shows texture.
    """
    confidence = np.zeros(len(rows))
    if session.encoder is not None:
        features = calibration_features(ranked.select(rows))
        confidence = np.nan_to_num(calibration_of(session.encoder).probability(features))
    return np.asarray(texture * (1 - confidence))


def search_cost(count: int, megapixels: float) -> int:
    """Return the work of comparing `count` patches with all images, in patches x megapixels."""
    described = 4 * min(megapixels, RESCORE_AREA * count)
    return int(count * (megapixels + RESCORE_COST) + DESCRIBE_COST * (megapixels + described)) + 1


def exhaustive_work(search: SearchConfig) -> float:
    """Return the work that settings allow for comparing patches with every place."""
    if search.budget_s != "auto":
        return search.budget_s * WORK_PER_S
    return np.inf if search.exhaustive else search.exhaustive_budget


def affordable_patches(count: int, megapixels: float, budget: float) -> int:
    """Return how many of `count` patches the budget covers; 0 below `MIN_AFFORDABLE_SHARE` of them."""
    cost: Callable[[int], int] = lambda n: search_cost(n, megapixels)  # noqa: E731
    most = bisect_right(range(1, count + 1), budget, key=cost)
    return most if most >= MIN_AFFORDABLE_SHARE * count else 0


@dataclass(frozen=True)
class PartsBudget:
    """How many patches search the index of parts."""

    search: SearchConfig
    """States the time, or "auto"."""
    start: float
    """`time.monotonic` when the work for uncertain patches began."""

    def blocks(self, uncertain: int, patches: int) -> Iterator[slice]:
        """Yield slices of the uncertain patches, in order, until the budget is used.

        Args:
            uncertain: number of patches to search, those that gain most first.
            patches: number of all patches of the query.
        """
        if self.search.budget_s == "auto":
            seconds = max(AUTO_S * uncertain / max(1, patches), AUTO_LEAST_S)
            most = min(uncertain, int(seconds / PATCH_S))
            yield from (slice(i, min(i + PARTS_BLOCK, most)) for i in range(0, most, PARTS_BLOCK))
            return
        done, per_patch, until = 0, PATCH_S, self.start + self.search.budget_s
        while done < uncertain:
            begun = time.monotonic()
            # Half of what fits: the next block then knows better what a patch takes.
            count = min(uncertain - done, PARTS_BLOCK, int((until - begun) / per_patch / 2))
            if count < min(SMALL_BLOCK, uncertain - done):
                return
            yield slice(done, done + count)
            done += count
            per_patch = (time.monotonic() - begun) / count


def warn_of_budget(count: int, searched: int, megapixels: float, about: str = "") -> None:
    """Warn that the budget does not cover the comparison of all uncertain patches with every place."""
    which = f"only the {searched} with the most to gain were" if searched else "none was"
    warnings.warn(
        f"{about}{count} patches are uncertain, and {which} searched exhaustively over {megapixels:.0f} "
        f"megapixels: the budget is too small. To search all, set [search] exhaustive_budget = "
        f'{search_cost(count, megapixels)}, pass --exhaustive, or index with [index] parts = "always".',
        SearchBudgetWarning,
        stacklevel=4,
    )


def warn_of_time(count: int, searched: int, seconds: float) -> None:
    """Warn that the budget does not cover the search of all uncertain patches in the index of parts."""
    needed = seconds * count / searched if searched else count * PATCH_S
    warnings.warn(
        f"{count} patches are uncertain, and the {searched} with the most to gain were searched in the index "
        f"of parts: the budget is too small. To search all, pass --budget {max(1, round(2 * needed))}.",
        SearchBudgetWarning,
        stacklevel=3,
    )
