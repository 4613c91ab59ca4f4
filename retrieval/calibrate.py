"""From a candidate's evidence to the probability that it is right.

Evidence of a patch's best candidate: its NCC, its lead in NCC over the best other place, its
similarity and its lead in similarity. A logistic regression weighs them. The weights are fitted on
places that the encoder has not learned from, with right meaning within 5 px, and travel with the
encoder as `<name>.calibration.json`; an encoder without one uses the default, which was fitted for
the training-free encoder.

Source: J. Platt, Probabilistic outputs for support vector machines (1999).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ConfigError
from retrieval.types import Refined

RIGHT_PX = 5.0
"""An answer within this distance of the truth counts as right, in pixels."""
TERMS = ("ncc", "ncc_lead", "similarity", "similarity_lead")
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

    def __post_init__(self) -> None:
        if len(self.weights) != len(TERMS):
            raise ConfigError(
                f"a calibration has {len(self.weights)} weights; expected {len(TERMS)}: {TERMS}"
            )

    def probability(self, evidence: NDArray[np.float64]) -> NDArray[np.float64]:
        """Probability in [0, 1] that the best candidate is right; (n, 4) -> (n,)."""
        known = np.isfinite(evidence).all(1) & (evidence[:, 0] > 0)
        odds = np.where(known[:, None], evidence, 0.0) @ np.asarray(self.weights) + self.bias
        return np.where(known, 1 / (1 + np.exp(-np.clip(odds, -30, 30))), 0.0)

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote; ConfigError where it is something else."""
        try:
            content = json.loads(path.read_text())
            return cls(
                tuple(float(w) for w in content["weights"]), float(content["bias"]), str(content["fitted_on"])
            )
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise ConfigError(
                f"{path}: not a calibration ({e}); expected JSON with weights, bias and fitted_on"
            ) from e


DEFAULT = Calibration((6.0, 12.0, 2.0, 2.0), -4.0, "set by hand")


def calibration_of(name: str) -> Calibration:
    """The calibration that is shipped with an encoder, by the encoder's name; else the default."""
    file = resources.files("retrieval.weights") / f"{name}.calibration.json"
    if not file.is_file():
        return DEFAULT
    with resources.as_file(file) as path:
        return Calibration.load(path)


def evidence(found: Refined) -> NDArray[np.float64]:
    """What speaks for the best candidate of each patch.

    Args:
        found: refined candidates, best first, distinct places.

    Returns:
        (n, 4) columns as `TERMS`; a patch without candidates has -inf, one with a single candidate
        leads over 0.
    """
    if found.image_ids.shape[1] == 0:
        return np.full((len(found), len(TERMS)), -np.inf)
    some = found.image_ids >= 0
    ncc = np.where(some, found.ncc, -np.inf).astype(np.float64)
    similarity = np.where(some, found.similarity, -np.inf).astype(np.float64)
    other_ncc = np.maximum(ncc[:, 1:].max(1, initial=-np.inf), 0)
    other_similarity = np.maximum(similarity[:, 1:].max(1, initial=-np.inf), 0)
    return np.stack(
        [ncc[:, 0], ncc[:, 0] - other_ncc, similarity[:, 0], similarity[:, 0] - other_similarity], 1
    )


def fit(
    evidence: NDArray[np.float64], right: NDArray[np.bool_], *, fitted_on: str, ridge: float = 1e-2
) -> Calibration:
    """Fit a calibration by Newton's method.

    Args:
        evidence: (n, 4) from `evidence`; rows with no candidates are left out.
        right: (n,) whether the best candidate was within `RIGHT_PX` of the truth.
        fitted_on: what the data are, for people.
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
    x = np.c_[x, np.ones(len(x))]
    penalty = np.diag([ridge] * len(TERMS) + [0.0]) * len(y) / 100
    w = np.zeros(x.shape[1])
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
        gradient = x.T @ (p - y) + penalty @ w
        hessian = (x * (p * (1 - p))[:, None]).T @ x + penalty + 1e-9 * np.eye(len(w))
        step = np.linalg.solve(hessian, gradient)
        w -= np.clip(step, -5, 5)
        if np.abs(step).max() < 1e-8:
            break
    return Calibration(tuple(w[:-1].tolist()), float(w[-1]), fitted_on)


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
