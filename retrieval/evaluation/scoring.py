"""The arithmetic of a score: the credit of each patch, and the means with their intervals."""

from __future__ import annotations

import warnings
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ConfigError, MissingPatchWarning, SubmissionError
from retrieval.evaluation.figures import FIGURES, STRICT_PX, Comparison, Figure, Score
from retrieval.evaluation.intervals import bootstrap_interval, ground_blocks
from retrieval.evaluation.submission import Submission
from tfrecords.errors import listed
from tfrecords.grid import PATCH_PX

RESAMPLES = 2000
"""Resamples of a bootstrap; another seed then moves the ends of an interval by a few % of its width."""
_LEAST_RESAMPLES = 100
_NAMED_PATCHES = 5


def score(submission: Submission, answers: Submission, *, resamples: int = RESAMPLES, seed: int = 0) -> Score:
    """Score a submission; the definition is in the text of `retrieval.evaluation`.

    Args:
        submission: at most one row for each patch of the answers, in any order.
        answers: what is right, at least one row.
        resamples: of the bootstrap, at least 100.
        seed: of the bootstrap, at least 0; the same seed gives the same intervals.

    Returns:
        Every figure with its 95 % interval.

    Raises:
        SubmissionError: a patch of the submission is not in the answers, or there are no answers.
        ConfigError: resamples or seed are below what they may be.

    Warns:
        MissingPatchWarning: patches of the answers are not in the submission; they count as wrong.
    """
    answers = _sorted(answers)
    credit, missing = _credit(submission, answers)
    return Score(**_measured(credit, answers, (0.0, 1.0), resamples, seed), missing=missing)


def compare(
    a: Submission, b: Submission, answers: Submission, *, resamples: int = RESAMPLES, seed: int = 0
) -> Comparison:
    """Measure by how much `a` scores above `b`, patch by patch on the same answers.

    Both are resampled together, so that blocks which are hard for both cancel. The interval can decide
    between two methods whose separate intervals overlap.

    Args:
        a: one submission.
        b: the other.
        answers: what is right, at least one row.
        resamples: of the bootstrap, at least 100.
        seed: of the bootstrap, at least 0.

    Returns:
        Every figure of `a` minus that of `b`, in [-1, 1], with its 95 % interval.

    Raises:
        SubmissionError: as `score`.
        ConfigError: as `score`.

    Warns:
        MissingPatchWarning: as `score`, once for each of the two.
    """
    answers = _sorted(answers)
    (credit_a, missing_a), (credit_b, missing_b) = _credit(a, answers), _credit(b, answers)
    measured = _measured(credit_a - credit_b, answers, (-1.0, 1.0), resamples, seed)
    return Comparison(**measured, missing_a=missing_a, missing_b=missing_b)


def _sorted(answers: Submission) -> Submission:
    """Order the answers by patch, so that the order of the rows changes no figure, nor the bootstrap."""
    if not len(answers):
        raise SubmissionError(
            f"{answers.source}: received no answers; expected at least one to score against"
        )
    order = np.argsort(answers.patch_ids)
    return Submission(
        answers.patch_ids[order],
        answers.image_ids[order],
        answers.x[order],
        answers.y[order],
        source=answers.source,
    )


def _credit(submission: Submission, answers: Submission) -> tuple[NDArray[np.float64], int]:
    """Give (n, 7) what each patch of the sorted answers adds to each figure, and how many are missing."""
    rows = _rows_of(submission, answers)
    missing = len(answers) - len(submission)
    if missing:
        _warn_missing(submission, answers)
    right = submission.image_ids == answers.image_ids[rows]
    distance_px = np.hypot(submission.x - answers.x[rows], submission.y - answers.y[rows])
    location = np.maximum(0.0, 1.0 - distance_px / (PATCH_PX * sqrt(2.0)))
    strict = [distance_px <= limit for limit in STRICT_PX]
    columns = [np.ones_like(location), location, (1.0 + location) / 2, *strict]
    credit = np.zeros((len(answers), len(FIGURES)))
    credit[rows] = np.stack(columns, axis=1) * right[:, None]
    return credit, missing


def _rows_of(submission: Submission, answers: Submission) -> NDArray[np.int64]:
    """Find each row's patch among the sorted answers: (rows of the submission,) row numbers."""
    rows = np.searchsorted(answers.patch_ids, submission.patch_ids)
    known = answers.patch_ids[np.minimum(rows, len(answers) - 1)] == submission.patch_ids
    if not known.all():
        row = int(np.argmin(known))
        raise SubmissionError(
            f"{submission.where(row)}: received patch {submission.patch_ids[row]}; expected only the "
            f"{len(answers)} patches of {answers.source}, which has no such one: are they of one job?"
        )
    return rows


def _warn_missing(submission: Submission, answers: Submission) -> None:
    missing = np.setdiff1d(answers.patch_ids, submission.patch_ids)
    named = listed([str(patch) for patch in missing], _NAMED_PATCHES)
    warnings.warn(
        f"{len(missing)} of the {len(answers)} patches of {answers.source} have no row in "
        f"{submission.source} and are scored as wrong: {named}",
        MissingPatchWarning,
        stacklevel=4,
    )


def _measured(
    credit: NDArray[np.float64], answers: Submission, limits: tuple[float, float], resamples: int, seed: int
) -> dict[str, Any]:
    """Average the credits (n, 7), with intervals: the fields of `Figures` by name."""
    if resamples < _LEAST_RESAMPLES or seed < 0:
        raise ConfigError(
            f"received resamples {resamples} and seed {seed}; expected at least {_LEAST_RESAMPLES} "
            f"(by default {RESAMPLES}) and at least 0"
        )
    block, value = ground_blocks(answers), credit.mean(axis=0)
    low, high = (np.full(len(FIGURES), limit) for limit in limits)  # one block says nothing about another
    if block.max() > 0:
        low, high = bootstrap_interval(credit, block, resamples, seed)
    ends = np.stack([value, np.minimum(low, value), np.maximum(high, value)], axis=1)
    figures = {name.lower(): Figure(*row) for name, row in zip(FIGURES, ends.tolist(), strict=True)}
    return {
        **figures,
        "n": len(answers),
        "blocks": int(block.max()) + 1,
        "resamples": resamples,
        "seed": seed,
    }
