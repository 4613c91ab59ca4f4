"""From a candidate's evidence to the probability that it is right.

Evidence of a patch's best candidate: the verifier's log-odds for it, their margin over all other
candidates together, its NCC and its similarity. A logistic regression weighs them. The weights are fitted on
places that the encoder has not learned from, with right meaning within 5 px, and travel with the
encoder as `<name>.calibration.json`, which names the encoder's fingerprint; an encoder without one uses
that of the training-free encoder.

Source: J. Platt, Probabilistic outputs for support vector machines (1999).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from retrieval.config import SearchConfig
from retrieval.errors import ConfigError
from retrieval.types import RankedCandidates

RIGHT_PX = 5.0
"""An answer within this distance of the truth counts as right, in pixels."""
TERMS = ("margin", "logit", "ncc", "similarity")
"""Names of the columns of evidence."""


@dataclass(frozen=True)
class Calibration:
    """A fitted logistic regression over the evidence."""

    weights: tuple[float, ...]
    """One for each of `TERMS`."""
    bias: float
    """Log-odds where all evidence is 0."""
    fitted_on: str = ""
    """What it was fitted on, for people."""
    encoder: str = ""
    """Fingerprint of the encoder whose answers it was fitted to; empty where none is named."""

    def __post_init__(self) -> None:
        if len(self.weights) != len(TERMS):
            raise ConfigError(
                f"a calibration has {len(self.weights)} weights; expected {len(TERMS)}: {TERMS}"
            )

    def probability(self, evidence: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probability in [0, 1] that the best candidate is right; (n, 4) -> (n,)."""
        known = np.isfinite(evidence).all(1) & (evidence[:, TERMS.index("ncc")] > 0)
        odds = np.where(known[:, None], evidence, 0.0) @ np.asarray(self.weights) + self.bias
        return np.where(known, 1 / (1 + np.exp(-np.clip(odds, -30, 30))), 0.0)

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path | Traversable) -> Self:
        """Read what `save` wrote; ConfigError where it is something else."""
        try:
            content = json.loads(path.read_text())
            weights = tuple(float(w) for w in content["weights"])
            return cls(weights, float(content["bias"]), str(content["fitted_on"]), str(content["encoder"]))
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise ConfigError(
                f"{path}: not a calibration ({e}); expected JSON with weights, bias, fitted_on and encoder"
            ) from e


FALLBACK = "structure-tensor.calibration.json"
"""For an encoder that none was fitted to: that of the training-free one, whose NCC all share."""


def calibration_of(fingerprint: str) -> Calibration:
    """The calibration that was fitted to an encoder's answers.

    Args:
        fingerprint: the encoder's.

    Returns:
        The shipped one with this fingerprint; for any other encoder that of the training-free one, which
        ranks answers well but was not fitted to theirs.
    """
    files = [
        f
        for f in resources.files("retrieval.models.weights").iterdir()
        if f.name.endswith(".calibration.json")
    ]
    shipped = {f.name: Calibration.load(f) for f in files}
    own = [c for c in shipped.values() if c.encoder == fingerprint]
    return own[0] if own else shipped[FALLBACK]


def calibration_features(found: RankedCandidates) -> NDArray[np.float64]:
    """What speaks for the best candidate of each patch.

    Args:
        found: refined candidates, best first, distinct places.

    Returns:
        (n, 4) columns as `TERMS`; a patch without candidates has -inf.
    """
    if found.image_ids.shape[1] == 0:
        return np.full((len(found), len(TERMS)), -np.inf)
    some = found.image_ids[:, 0] >= 0
    columns = [logit_margin(found), *(getattr(found, name)[:, 0] for name in TERMS[1:])]
    return np.where(some[:, None], np.stack(columns, 1).astype(np.float64), -np.inf)


def is_confident(found: RankedCandidates, search: SearchConfig) -> NDArray[np.bool_]:
    """Whether a patch's best candidate needs no further look, (n,): `confident_odds` and `confident_ncc`."""
    if found.image_ids.shape[1] == 0:
        return np.zeros(len(found), bool)
    return np.asarray(
        (logit_margin(found) >= search.confident_odds) & (found.ncc[:, 0] >= search.confident_ncc)
    )


def logit_margin(found: RankedCandidates) -> NDArray[np.float64]:
    """Log-odds of each patch's best candidate against all others that were verified, and against none.

    Returns:
        (n,); -inf where the best was not verified or there is none.
    """
    if found.image_ids.shape[1] == 0:
        return np.full(len(found), -np.inf)
    asked = (found.image_ids >= 0) & ~np.isnan(found.logit)
    logit = np.where(asked, found.logit, -np.inf).astype(np.float64)
    others = np.logaddexp.reduce(np.c_[np.zeros(len(logit)), logit[:, 1:]], axis=1)
    return logit[:, 0] - others


def fit(
    evidence: NDArray[np.float64],
    right: NDArray[np.bool_],
    *,
    fitted_on: str,
    encoder: str = "",
    ridge: float = 1e-2,
) -> Calibration:
    """Fit a calibration by Newton's method.

    Args:
        evidence: (n, 4) from `evidence`; rows with no candidates are left out.
        right: (n,) whether the best candidate was within `RIGHT_PX` of the truth.
        fitted_on: what the data are, for people.
        encoder: fingerprint of the encoder whose answers they are.
        ridge: penalty on the weights, against separable data.

    Raises:
        ConfigError: fewer than 20 patches, or all right or all wrong: nothing to fit.
    """
    known = np.isfinite(evidence).all(1)
    x, y = evidence[known], right[known].astype(np.float64)
    if len(y) < 20 or y.min() == y.max():
        raise ConfigError(
            f"{len(y)} patches, {int(y.sum())} right: expected 20 or more, some right and some wrong"
        )
    *weights, bias = logistic(x, y, ridge * len(y) / 100).tolist()
    return Calibration(tuple(weights), bias, fitted_on, encoder)


def logistic(columns: NDArray[np.float64], right: NDArray, penalty: float) -> NDArray[np.float64]:
    """Fit a logistic regression by Newton's method.

    Args:
        columns: (n, k).
        right: (n,) 0 or 1.
        penalty: half of it times a weight's square is added to the loss, against separable data.

    Returns:
        (k + 1,) the weights, and last the bias.
    """
    x, y = np.c_[columns, np.ones(len(columns))], right.astype(np.float64)
    ridge = np.diag([penalty] * columns.shape[1] + [0.0])
    w = np.zeros(x.shape[1])
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
        gradient = x.T @ (p - y) + ridge @ w
        hessian = (x * (p * (1 - p))[:, None]).T @ x + ridge + 1e-9 * np.eye(len(w))
        step = np.linalg.solve(hessian, gradient)
        w -= np.clip(step, -5, 5)
        if np.abs(step).max() < 1e-8:
            break
    return w


def expected_calibration_error(probability: NDArray, right: NDArray[np.bool_], bins: int = 10) -> float:
    """Mean gap between stated and observed share, over equally wide bins, weighted by their number.

    Source: C. Guo et al., On calibration of modern neural networks (2017).
    """
    which = np.minimum((probability * bins).astype(int), bins - 1)
    gaps = [
        abs(probability[which == b].mean() - right[which == b].mean()) * (which == b).mean()
        for b in set(which)
    ]
    return float(sum(gaps))


CHIP_TERMS = ("ncc", "lead", "agree_share", "agree_log2")
"""Names of the columns of a chip's evidence."""
CHIP_CALIBRATION = "chips.json"
"""Name of the shipped calibration of chips in `retrieval.models.weights`."""


@dataclass(frozen=True)
class ChipCalibration:
    """A fitted logistic regression over the evidence of chips."""

    weights: tuple[float, ...]
    """One for each of `CHIP_TERMS`."""
    bias: float
    """Log-odds where all evidence is 0."""
    fitted_on: str = ""
    """What it was fitted on, for people."""

    def probability(self, evidence: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probability in [0, 1] that the best place is right; (n, 4) -> (n,); 0 where there is none."""
        odds = evidence @ np.asarray(self.weights) + self.bias
        return np.where(evidence[:, 0] > 0, 1 / (1 + np.exp(-np.clip(odds, -30, 30))), 0.0)

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps({"terms": CHIP_TERMS} | asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path | Traversable | None = None) -> Self:
        """Read what `save` wrote, by default the shipped one; ConfigError where it is something else."""
        file = resources.files("retrieval.models.weights") / CHIP_CALIBRATION if path is None else path
        try:
            content = json.loads(file.read_text())
            if tuple(content["terms"]) != CHIP_TERMS or len(content["weights"]) != len(CHIP_TERMS):
                raise ValueError(f"terms {content['terms']}")
            return cls(
                tuple(map(float, content["weights"])), float(content["bias"]), str(content["fitted_on"])
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{file}: not a calibration of chips ({error}); expected JSON with the terms "
                f"{', '.join(CHIP_TERMS)}"
            ) from error
