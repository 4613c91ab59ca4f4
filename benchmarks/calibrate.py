"""Fit the probability of an answer to measured answers, and show whether it can be trusted.

    python benchmarks/calibrate.py build/accuracy --encoder structure-tensor --out NAME.calibration.json

Reads the evidence that `benchmarks/accuracy.py` left for an encoder, one file a group of scenes. The
calibration that is written is fitted to all groups; the figures are of groups left out one at a time:
expected calibration error, and precision at the coverage that each threshold leaves.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.calibrate import RIGHT_PX, evidence, expected_calibration_error, fit
from retrieval.encoder import load_encoder
from retrieval.types import Refined

Measured = dict[str, tuple[NDArray[np.float64], NDArray[np.bool_]]]


def measured(folder: Path, encoder: str) -> Measured:
    """Evidence and rightness of every query, by group of scenes."""
    out: Measured = {}
    for file in sorted(folder.glob(f"evidence-*-{encoder}.npz")):
        with np.load(file, allow_pickle=False) as content:
            found = Refined(**{f: content[f] for f in Refined.__dataclass_fields__})
            image, x, y = content["answers"].T
        off = np.hypot(found.x[:, 0] - x, found.y[:, 0] - y)
        right = (found.image_ids[:, 0] == image) & (off <= RIGHT_PX)
        out[file.name[len("evidence-") : -len(f"-{encoder}.npz")]] = evidence(found), right
    return out


def left_out(groups: Measured) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Probability of every answer by a calibration that has not seen its group."""
    probability, right = [], []
    for name, (seen, ok) in groups.items():
        others = [v for k, v in groups.items() if k != name]
        model = fit(
            np.concatenate([e for e, _ in others]), np.concatenate([r for _, r in others]), fitted_on=""
        )
        probability.append(model.probability(seen))
        right.append(ok)
        error = expected_calibration_error(probability[-1], ok)
        print(f"{name:28s} {len(ok):5d} answers, {ok.mean():.3f} right, calibration error {error:.3f}")
    return np.concatenate(probability), np.concatenate(right)


def main() -> None:
    """Fit, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("evidence", type=Path)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    groups = measured(args.evidence, args.encoder)
    if len(groups) < 2:
        parser.error(
            f"{args.evidence} holds evidence of {len(groups)} groups for {args.encoder}; expected 2 or more"
        )
    probability, right = left_out(groups)
    print(f"all, each group left out once: error {expected_calibration_error(probability, right):.3f}")
    for low in np.arange(0, 1, 0.1):
        rows = (probability >= low) & (probability < low + 0.1 + (low > 0.85))
        if rows.any():
            share = right[rows].mean()
            print(f"  stated {low:.1f} to {low + 0.1:.1f}: {rows.sum():5d} answers, {share:.3f} right")
    for threshold in (0.5, 0.8, 0.9, 0.95, 0.99):
        kept = probability >= threshold
        print(f"  at least {threshold}: covers {kept.mean():.3f}, of which {right[kept].mean():.4f} right")
    what = f"{len(right)} answers of {len(groups)} groups of val: {', '.join(groups)}"
    seen, ok = (np.concatenate([v[i] for v in groups.values()]) for i in (0, 1))
    model = fit(seen, ok, fitted_on=what, encoder=load_encoder(args.encoder).fingerprint)
    model.save(args.out)


if __name__ == "__main__":
    main()
