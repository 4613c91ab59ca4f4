"""A calibration of an index from answers whose truth is known."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ConfigError, SubmissionError
from retrieval.evaluation.calibration_fit import (
    expected_calibration_error,
    fit_calibration,
    held_out_probability,
)
from retrieval.evaluation.intervals import ground_blocks
from retrieval.evaluation.submission import Submission
from retrieval.geo.file_windows import to_file
from retrieval.models.calibration import (
    CHIP_TERMS,
    RIGHT_PX,
    SUFFIXES,
    TERMS,
    Calibration,
)
from retrieval.results.matches import Matches
from tfrecords.artifacts import check_free

FOLDS = 5
"""Parts of the answers, by blocks of ground, that are held out in turn to measure the calibration error."""


@dataclass(frozen=True)
class CalibrationReport:
    """A fitted calibration, and how far it can be trusted."""

    files: tuple[str, ...]
    """Files written: in the index, and the one that was named."""
    answers: int
    """Answers of the fit."""
    right: float
    """Share of them within 5 px of the truth."""
    calibration_error: float | None
    """Mean gap between stated and observed share on held-out ground; None with too few answers."""
    calibration: Calibration
    """The fit."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self) | {"files": list(self.files)}


def calibrate_from(
    matches: Matches, answers: Submission, out: Path | None = None, *, overwrite: bool = False
) -> CalibrationReport:
    """Fit a calibration to matches with known answers and store it in their index.

    Args:
        matches: of patches, or of larger chips, which have a separate calibration.
        answers: the true image and position of each; patches without a row are left out.
        out: another file for the calibration, next to the encoder's: `<encoder>.calibration.json`.
        overwrite: replace existing files.

    Raises:
        SubmissionError: an answer of a patch that was not queried.
        ConfigError: too few answers, or all of them right or wrong.
        OutputExistsError: a file exists and `overwrite` is false.
    """
    terms, files = terms_of(matches), calibration_files(matches, out)
    for path in files:
        check_free(path, overwrite=overwrite)
    rows = _rows(matches, answers)
    # A chip with a single window has the confidence of a patch.
    fitted = np.ones(len(rows), bool) if matches.windows is None else matches.windows[rows] > 1
    assert matches.features is not None
    features, right = matches.features[rows[fitted]], _is_right(matches, answers, rows)[fitted]
    encoder = matches.folder.encoder
    calibration = fit_calibration(
        features,
        right,
        terms=terms,
        fitted_on=f"{len(right)} answers, {answers.source}",
        encoder=encoder.fingerprint,
    )
    for path in files:
        calibration.save(path, overwrite=overwrite)
    return CalibrationReport(
        tuple(map(str, files)),
        len(right),
        float(right.mean()),
        _held_out_error(features, right, ground_blocks(answers)[fitted], terms),
        calibration,
    )


def calibration_files(matches: Matches, out: Path | None) -> list[Path]:
    """Return the file in the index, and `out` where it is named."""
    inside = matches.folder.path / f"encoder{SUFFIXES[terms_of(matches)]}"
    return [inside] if out is None else [inside, out]


def terms_of(matches: Matches) -> tuple[str, ...]:
    """Return the names of the features of patches or chips."""
    return TERMS if matches.windows is None else CHIP_TERMS


def _rows(matches: Matches, answers: Submission) -> NDArray[np.int64]:
    """Return the row of each answer among the matches."""
    row_of = {patch_id: row for row, patch_id in enumerate(matches.patch_ids.tolist())}
    unknown = [i for i in answers.patch_ids.tolist() if i not in row_of]
    if unknown:
        raise SubmissionError(
            f"{answers.source}: patch {unknown[0]} is not one of the {len(row_of)} patches. "
            "Expected answers to these patches."
        )
    return np.array([row_of[i] for i in answers.patch_ids.tolist()], np.int64)


def _is_right(matches: Matches, answers: Submission, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return whether each answer's place lies within `RIGHT_PX` of the truth, in any of its images."""
    found, places = matches.candidates.select(rows), matches.place_numbers()[rows]
    row, rank = np.nonzero(places == 0)
    height, width = matches.sizes[rows[row]].T
    image_ids = found.image_ids[row, rank]
    at = image_ids, found.x[row, rank], found.y[row, rank], width, height
    x, y, _, _ = to_file(matches.folder.images, *at)
    near = np.hypot(x - answers.x[row], y - answers.y[row]) <= RIGHT_PX
    right = np.zeros(len(rows), bool)
    right[row[near & (image_ids == answers.image_ids[row])]] = True
    return right


def _held_out_error(
    features: NDArray[np.float64], right: NDArray[np.bool_], blocks: NDArray[Any], terms: tuple[str, ...]
) -> float | None:
    """Return the calibration error with blocks of ground held out in `FOLDS` parts."""
    try:
        probability = held_out_probability(features, right, blocks % FOLDS, terms=terms)
        return expected_calibration_error(probability, right)
    except ConfigError:
        return None
