"""How probable it is that a chip's answer is right.

The windows of a chip are no independent witnesses: they share the season, the clouds, the units and
the sort of ground, so that their probabilities must not be multiplied. A logistic regression of its
own weighs what the whole chip shows: the mean NCC of the windows that agree, their share, their
number's logarithm, and the lead over the best other place. It is fitted to chips of 80 to 256 pixels
of real places, by `benchmarks/chips.py`; what it was fitted on stands in the file.
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

from retrieval.chips.votes import Origins
from retrieval.errors import ConfigError

TERMS = ("ncc", "lead", "agree_share", "agree_log2")
"""Names of the columns of a chip's evidence."""
SHIPPED = "chips.json"


@dataclass(frozen=True)
class ChipCalibration:
    """A fitted logistic regression over the evidence of chips."""

    weights: tuple[float, ...]
    """One for each of `TERMS`."""
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
        path.write_text(json.dumps({"terms": TERMS} | asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path | Traversable | None = None) -> Self:
        """Read what `save` wrote, by default the shipped one; ConfigError where it is something else."""
        file = resources.files("retrieval.weights") / SHIPPED if path is None else path
        try:
            content = json.loads(file.read_text())
            if tuple(content["terms"]) != TERMS or len(content["weights"]) != len(TERMS):
                raise ValueError(f"terms {content['terms']}")
            return cls(
                tuple(map(float, content["weights"])), float(content["bias"]), str(content["fitted_on"])
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{file}: not a calibration of chips ({error}); expected JSON with the terms "
                f"{', '.join(TERMS)}"
            ) from error


def chip_evidence(origins: Origins, windows: int) -> NDArray[np.float64]:
    """What speaks for the best place of a chip, (4,) as `TERMS`; zeros where there is none."""
    if not len(origins):
        return np.zeros(len(TERMS))
    lead = origins.score[0] - (origins.score[1] if len(origins) > 1 else 0.0)
    count = int(origins.agree[0])
    return np.array([origins.ncc[0], lead, count / windows, np.log2(count)])
