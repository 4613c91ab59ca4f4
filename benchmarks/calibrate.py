"""Fit the confidence to measured answers, and measure its reliability.

    python benchmarks/calibrate.py build/accuracy --encoder structure-tensor --out NAME.calibration.json

The script reads the evidence files of `benchmarks/accuracy.py` and `benchmarks/dates.py` for an encoder. The
written calibration is fitted to all groups. The figures hold out one group at a time: expected calibration
error, and precision and coverage at each threshold. Variants of a group and several dates of its places are
held out with it. `--charts` draws a reliability diagram and precision over coverage.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from context import write_json
from numpy.typing import NDArray
from protocol import GROUPS, calibration_error, slug

from retrieval.evaluation.calibration_fit import (
    expected_calibration_error,
    fit_calibration,
    held_out_probability,
)
from retrieval.evaluation.submission import Submission
from retrieval.models.calibration import RIGHT_PX, calibration_features
from retrieval.models.encoder import load_encoder
from retrieval.report.plots import BLUE, INK, QUIET, drawing, save
from retrieval.types import RankedCandidates


@dataclass(frozen=True)
class Evidence:
    """Evidence and answers of the queries of a group."""

    features: NDArray[np.float64]
    """(n, 4) terms of the confidence."""
    right: NDArray[np.bool_]
    """(n,) whether the answer is within `RIGHT_PX`."""
    answers: Submission
    """The right answers: their places give the blocks of ground of an interval."""


Measured = dict[str, Evidence]
Stated = dict[str, NDArray[np.float64]]
"""Confidence of each query, by group."""
THRESHOLDS = (0.5, 0.8, 0.9, 0.95, 0.99)
BINS = 10
DATES = re.compile(r"-with-\d+-dates$")
"""End of the name of evidence of `benchmarks/dates.py`, behind the folder of its places."""


def measured(folder: Path, encoder: str) -> Measured:
    """Return the evidence of every group."""
    out: Measured = {}
    for file in sorted(folder.glob(f"evidence-*-{encoder}.npz")):
        with np.load(file, allow_pickle=False) as content:
            names = RankedCandidates.__dataclass_fields__
            found = RankedCandidates(**{name: content[name] for name in names if name in content})
            image, x, y = content["answers"].T
            features = content["features"] if "features" in content else calibration_features(found)
        off = np.hypot(found.x[:, 0] - x, found.y[:, 0] - y)
        right = (found.image_ids[:, 0] == image) & (off <= RIGHT_PX)
        answers = Submission(np.arange(len(x)), image, x, y, source="answers")
        out[file.name[len("evidence-") : -len(f"-{encoder}.npz")]] = Evidence(features, right, answers)
    return out


def families(names: Iterable[str]) -> dict[str, str]:
    """Return the group that shares its queries or its ground with each name of evidence."""
    folders = {folder: slug(name) for name, group in reversed(GROUPS.items()) for folder in group.folders}
    forms = {slug(name): slug(group.form_of or name) for name, group in GROUPS.items()}
    several = {name: DATES.sub("", name) for name in names}
    return {name: forms.get(name, folders.get(short, short)) for name, short in several.items()}


def left_out(groups: Measured) -> Stated:
    """Return the confidence of every answer by a fit to other groups."""
    family, sizes = families(groups), [len(one.right) for one in groups.values()]
    features, right = joined(groups)
    labels = np.repeat([family[name] for name in groups], sizes)
    stated = np.split(held_out_probability(features, right, labels), np.cumsum(sizes)[:-1])
    return dict(zip(groups, stated, strict=True))


def joined(groups: Measured) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the evidence of all groups, and whether each answer is right."""
    every = groups.values()
    return np.concatenate([one.features for one in every]), np.concatenate([one.right for one in every])


def reliability(probability: NDArray[np.float64], right: NDArray[np.bool_]) -> list[dict[str, float]]:
    """Return confidence and share right in equally wide bins, without empty ones."""
    which = np.minimum((probability * BINS).astype(int), BINS - 1)
    return [
        {
            "low": b / BINS,
            "answers": int((which == b).sum()),
            "stated": float(probability[which == b].mean()),
            "right": float(right[which == b].mean()),
        }
        for b in np.unique(which).tolist()
    ]


def coverage(probability: NDArray[np.float64], right: NDArray[np.bool_]) -> list[dict[str, float]]:
    """Return coverage and precision at each threshold."""
    out = []
    for threshold in THRESHOLDS:
        kept = probability >= threshold
        precision = float(right[kept].mean()) if kept.any() else 1.0
        out.append({"at_least": threshold, "covers": float(kept.mean()), "right": precision})
    return out


def summary(groups: Measured, stated: Stated) -> dict[str, Any]:
    """Return the figures of groups and of all together."""
    (_, right), probability = joined(groups), np.concatenate([*stated.values()])
    of_groups = {
        name: {
            "answers": len(one.right),
            "right": float(one.right.mean()),
            "stated": float(stated[name].mean()),
            "error": calibration_error(stated[name], one.right, one.answers),
        }
        for name, one in groups.items()
    }
    return {
        "error": expected_calibration_error(probability, right),
        "groups": of_groups,
        "reliability": reliability(probability, right),
        "coverage": coverage(probability, right),
    }


def report(figures: dict[str, Any]) -> None:
    """Print the figures."""
    for name, one in figures["groups"].items():
        print(
            f"{name:38s} {one['answers']:5d} answers, {one['right']:.3f} right, stated {one['stated']:.3f}, "
            f"calibration error {one['error']['value']:.3f} [{one['error']['low']:.3f}, "
            f"{one['error']['high']:.3f}]"
        )
    print(f"all, each group left out once: error {figures['error']:.3f}")
    for b in figures["reliability"]:
        print(
            f"  stated {b['low']:.1f} to {b['low'] + 1 / BINS:.1f}: {b['answers']:5d} answers, "
            f"{b['right']:.3f} right"
        )
    for c in figures["coverage"]:
        print(f"  at least {c['at_least']}: covers {c['covers']:.3f}, of which {c['right']:.4f} right")


def draw(probability: NDArray[np.float64], right: NDArray[np.bool_], title: str, path: Path) -> None:
    """Draw the reliability diagram and precision over coverage."""
    from matplotlib.figure import Figure

    with drawing():
        figure = Figure(figsize=(8.6, 4.0), facecolor="white", layout="constrained")
        left, middle = figure.subplots(1, 2)
        bins = reliability(probability, right)
        stated, observed = ([b[k] for b in bins] for k in ("stated", "right"))
        left.plot([0, 1], [0, 1], color=QUIET, lw=1, ls="--", label="as stated")
        left.plot(stated, observed, color=BLUE, marker="o", ms=5, label="observed")
        for b in bins:
            left.annotate(
                f"{b['answers']}", (b["stated"], b["right"]), (5, -10), textcoords="offset points", size=7
            )
        left.set(xlabel="stated probability", ylabel="share right, within 5 px", xlim=(0, 1), ylim=(0, 1.02))
        order = np.argsort(-probability, kind="stable")
        kept = np.arange(1, len(order) + 1)
        middle.plot(kept / len(order), np.cumsum(right[order]) / kept, color=BLUE, label="precision")
        for at, side in ((0.5, "left"), (0.9, "right")):
            share = (probability >= at).mean()
            middle.axvline(share, color=QUIET, lw=1, ls=":")
            middle.text(share, 0.02, f" stated ≥ {at:g}", size=7, color=INK, rotation=90, ha=side)
        middle.set(xlabel="share of the answers kept, the surest first", ylabel="share of them right")
        middle.set(xlim=(0, 1), ylim=(0, 1.02))
        for axes, corner in ((left, "lower right"), (middle, "lower left")):
            axes.grid(color="#e6e6e6", lw=0.6)
            axes.legend(loc=corner, fontsize=8, frameon=False)
        figure.suptitle(title, size=10)
        save(figure, path, overwrite=True)


def main() -> None:
    """Fit, print, draw, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("evidence", type=Path)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--out", type=Path, help="the calibration, fitted to all groups")
    parser.add_argument("--charts", type=Path, metavar="FOLDER", help="draw calibration-ENCODER.svg there")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the figures there")
    args = parser.parse_args()
    groups = measured(args.evidence, args.encoder)
    if len(set(families(groups).values())) < 2:
        parser.error(
            f"{args.evidence} holds evidence of {len(groups)} groups for {args.encoder}; expected 2 or more "
            "that are not forms of one"
        )
    stated = left_out(groups)
    figures = summary(groups, stated)
    features, right = joined(groups)
    report(figures)
    write_json(args.json, {"encoder": args.encoder} | figures)
    if args.charts:
        args.charts.mkdir(parents=True, exist_ok=True)
        title = f"{args.encoder}: {len(right)} answers, each group judged by a fit to the others"
        draw(
            np.concatenate([*stated.values()]), right, title, args.charts / f"calibration-{args.encoder}.svg"
        )
    if args.out:
        what = f"{len(right)} answers of {len(groups)} groups of val: {', '.join(groups)}"
        fingerprint = load_encoder(args.encoder).fingerprint
        fit_calibration(features, right, fitted_on=what, encoder=fingerprint).save(args.out, overwrite=True)


if __name__ == "__main__":
    main()
