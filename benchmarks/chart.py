"""Draw the accuracy chart: SC of every group, without learning and as shipped.

    python benchmarks/chart.py build/accuracy/accuracy.json docs/images/accuracy.svg

Each group shows SC over all queries with its interval. A stroke in the shipped engine's row marks the
recall of the search alone at rank 1. The distance to it is the gain by matching.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from protocol import TRAINING_FREE

from retrieval.report.plots import BLUE, INK, QUIET, drawing, save

SHIPPED = "siamese"
ROWS = (
    (TRAINING_FREE, "nothing learned", QUIET, "s", 0.16),
    (SHIPPED, "as shipped", BLUE, "o", -0.16),
)
"""Encoder, name, colour, mark and height above the group's line."""


def draw(accuracy: dict[str, Any], path: Path) -> None:
    """Draw the chart.

    Raises:
        SystemExit: a group lacks one of the two.
    """
    from matplotlib.figure import Figure

    groups = accuracy["groups"]
    lacking = [g for g, one in groups.items() if not {r[0] for r in ROWS} <= set(one["encoders"])]
    if lacking:
        raise SystemExit(f"{', '.join(lacking)}: not measured with {TRAINING_FREE} and {SHIPPED}")
    with drawing():
        figure = Figure(figsize=(8.6, 0.5 * len(groups) + 1.2), facecolor="white", layout="constrained")
        axes = figure.subplots()
        for line, one in enumerate(groups.values()):
            for encoder, name, colour, mark, above in ROWS:
                scores = one["encoders"][encoder]["scores"]["all"]
                sc, y = scores["SC"], -line + above
                axes.plot([sc["low"], sc["high"]], [y, y], color=colour, lw=1.5)
                axes.plot(sc["value"], y, mark, color=colour, ms=6, label="" if line else name)
                axes.annotate(f"{sc['value']:.3f}", (1.02, y), size=7, color=INK, va="center")
            first = one["encoders"][SHIPPED]["scores"]["all"]["recall"]["1"]["value"]
            axes.plot(
                first, y, "|", color=INK, ms=9, label="" if line else "first by search alone, as shipped"
            )
        axes.set_yticks([-line for line in range(len(groups))], list(groups))
        axes.set(xlabel="SC, all queries, with 95 % interval", xlim=(0, 1.1), ylim=(0.6 - len(groups), 0.6))
        axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1])
        axes.legend(loc="lower left", fontsize=8, frameon=False)
        save(figure, path, overwrite=True)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("accuracy", type=Path, help="accuracy.json")
    parser.add_argument("out", type=Path, help="an .svg, .png or .pdf")
    args = parser.parse_args()
    draw(json.loads(args.accuracy.read_text()), args.out)


if __name__ == "__main__":
    main()
