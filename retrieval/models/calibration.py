"""Confidence: the probability that the best candidate is right.

A logistic regression weighs what speaks for the best candidate. It is fitted on places that the encoder has
not learned from; right means within 5 px. It belongs to one encoder and lies next to it:
`<name>.calibration.json` for patches and `<name>.chips.calibration.json` for larger chips. An encoder without
a calibration gives no confidence.

Source: J. Platt, Probabilistic outputs for support vector machines (1999).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from retrieval.config import SearchConfig
from retrieval.errors import ConfigError
from retrieval.models.registry import shipped_files
from retrieval.types import RankedCandidates
from tfrecords.artifacts import fingerprint, writing_file
from tfrecords.errors import parse_json

RIGHT_PX = 5.0
"""An answer within this distance of the truth counts as right, in pixels."""
TERMS = ("margin", "logit", "ncc", "similarity")
"""Features of a patch: log-odds margin over other candidates, the verifier's log-odds, NCC, similarity."""
CHIP_TERMS = ("ncc", "lead", "agree_share", "agree_log2")
"""Features of a larger chip: mean NCC, lead over the next place, share and log2 of the windows that agree."""
SUFFIXES: dict[tuple[str, ...], str] = {TERMS: ".calibration.json", CHIP_TERMS: ".chips.calibration.json"}
"""End of a calibration's file name, by its features; it replaces the encoder's `.keras`."""


@dataclass(frozen=True)
class Calibration:
    """A logistic regression from features to the probability that the best candidate is right."""

    weights: tuple[float, ...]
    """One for each feature."""
    bias: float
    """Log-odds where all features are 0."""
    fitted_on: str = ""
    """The data of the fit, for people."""
    encoder: str = ""
    """Fingerprint of the encoder; empty for a calibration of all shipped encoders."""
    terms: tuple[str, ...] = TERMS
    """Names of the features: `TERMS` or `CHIP_TERMS`."""

    def __post_init__(self) -> None:
        if self.terms not in SUFFIXES or len(self.weights) != len(self.terms):
            raise ConfigError(
                f"calibration: {len(self.weights)} weights for the features {', '.join(self.terms)}. "
                f"Expected one weight for each of {' or '.join(map(', '.join, SUFFIXES))}."
            )

    @property
    def is_fitted(self) -> bool:
        """Whether this is a fit, unlike `UNCALIBRATED` and `UNCALIBRATED_CHIPS`."""
        return bool(np.isfinite(self.weights).all())

    def probability(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the probability that the best candidate is right.

        Args:
            features: (n, 4), columns as `terms`.

        Returns:
            (n,) in [0, 1]; 0 without a candidate or with an NCC of 0 or less; NaN without a fit.
        """
        if not self.is_fitted:
            return np.full(len(features), np.nan)
        known = np.isfinite(features).all(1) & (features[:, self.terms.index("ncc")] > 0)
        odds = np.where(known[:, None], features, 0.0) @ np.asarray(self.weights) + self.bias
        return np.where(known, 1 / (1 + np.exp(-np.clip(odds, -30, 30))), 0.0)

    def save(self, path: Path, *, overwrite: bool = False) -> None:
        """Write JSON with a checksum.

        Raises:
            OutputExistsError: the file exists and `overwrite` is false.
        """
        content = asdict(self)
        with writing_file(path, overwrite=overwrite) as temporary:
            temporary.write_text(json.dumps(content | {"checksum": fingerprint(content)}, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path | Traversable) -> Self:
        """Read a calibration.

        Raises:
            ConfigError: the file is missing, damaged or not a calibration.
        """
        try:
            content = parse_json(path.read_text())
            checksum = content.pop("checksum")
            if checksum != fingerprint(content):
                raise ValueError("the checksum differs")
            weights, terms = tuple(map(float, content["weights"])), tuple(content["terms"])
            return cls(weights, float(content["bias"]), content["fitted_on"], content["encoder"], terms)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{path}: not a calibration ({error}). Expected a file written by `retrieve calibrate`."
            ) from error


UNCALIBRATED = Calibration((np.nan,) * len(TERMS), np.nan)
"""Stands for the missing calibration of patches: every probability is NaN."""
UNCALIBRATED_CHIPS = Calibration((np.nan,) * len(CHIP_TERMS), np.nan, terms=CHIP_TERMS)
"""Likewise for larger chips."""


def calibration_of(encoder: Any, terms: tuple[str, ...] = TERMS) -> Calibration:
    """Return an encoder's calibration: its own if there is one, else the shipped one.

    Args:
        encoder: an encoder; its `calibrations`, if it has any, come first.
        terms: `TERMS` for patches, `CHIP_TERMS` for larger chips.

    Returns:
        The calibration, or the unfitted one where neither exists.
    """
    shipped = shipped_calibrations()
    is_shipped = any(c.encoder == encoder.fingerprint for c in shipped)
    names = (encoder.fingerprint, "") if is_shipped else (encoder.fingerprint,)
    for calibration in (*getattr(encoder, "calibrations", ()), *shipped):
        if calibration.terms == terms and calibration.encoder in names:
            return calibration
    return UNCALIBRATED if terms == TERMS else UNCALIBRATED_CHIPS


@cache
def shipped_calibrations() -> tuple[Calibration, ...]:
    """Return the calibrations in the package."""
    return tuple(Calibration.load(file) for file in shipped_files(*SUFFIXES.values()))


def calibrations_beside(encoder_file: Path) -> Iterator[Calibration]:
    """Yield the calibrations that lie next to an encoder's file.

    Raises:
        ConfigError: one of the files is damaged.
    """
    for suffix in SUFFIXES.values():
        path = encoder_file.with_suffix(suffix)
        if path.exists():
            yield Calibration.load(path)


def calibration_features(found: RankedCandidates) -> NDArray[np.float64]:
    """Return what speaks for the best candidate of each patch.

    Args:
        found: refined candidates, best first.

    Returns:
        (n, 4) columns as `TERMS`; a patch without candidates has -inf.
    """
    if found.image_ids.shape[1] == 0:
        return np.full((len(found), len(TERMS)), -np.inf)
    exists = found.image_ids[:, 0] >= 0
    columns = [logit_margin(found), *(getattr(found, name)[:, 0] for name in TERMS[1:])]
    return np.where(exists[:, None], np.stack(columns, 1).astype(np.float64), -np.inf)


def is_confident(found: RankedCandidates, search: SearchConfig) -> NDArray[np.bool_]:
    """Return whether each patch's best candidate passes `confident_odds` and `confident_ncc`, (n,).

    Args:
        found: candidates, best first.
        search: the limits.
    """
    if found.image_ids.shape[1] == 0:
        return np.zeros(len(found), bool)
    return np.asarray(
        (logit_margin(found) >= search.confident_odds) & (found.ncc[:, 0] >= search.confident_ncc)
    )


def logit_margin(found: RankedCandidates) -> NDArray[np.float64]:
    """Return the log-odds of each patch's best place against all other verified ones and against none.

    A place has the largest log-odds of its candidates. A candidate without a place counts as one.

    Args:
        found: candidates, best first.

    Returns:
        (n,); -inf where the best candidate was not verified or does not exist.
    """
    if found.image_ids.shape[1] == 0:
        return np.full(len(found), -np.inf)
    verified = (found.image_ids >= 0) & ~np.isnan(found.logit)
    logit = _largest_of_place(np.where(verified, found.logit, -np.inf).astype(np.float64), found.place)
    others = np.logaddexp.reduce(np.c_[np.zeros(len(logit)), logit[:, 1:]], axis=1)
    return logit[:, 0] - others


def _largest_of_place(logit: NDArray[np.float64], places: NDArray[np.int64]) -> NDArray[np.float64]:
    """Give the first candidate of each place the largest log-odds of the place, and the others -inf."""
    logit = logit.copy()
    for column in range(1, logit.shape[1]):
        same = (places[:, :column] == places[:, column : column + 1]) & (places[:, :column] >= 0)
        rows = np.flatnonzero(same.any(1))
        first = same[rows].argmax(1)
        logit[rows, first] = np.maximum(logit[rows, first], logit[rows, column])
        logit[rows, column] = -np.inf
    return logit
