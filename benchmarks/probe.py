r"""Measure how well a linear probe of each code names the classes of EuroSAT, from 500 labels.

    python benchmarks/probe.py DATA --json benchmarks/results/probe.json

DATA is the folder `eurosat`. A logistic regression for each class learns from `train`. It is measured on
`valid`, which trains nothing. Five folds of `train` choose the penalty. Intervals: bootstrap over images.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
from context import arguments, context, table, write_json
from numpy.typing import NDArray
from PIL import Image
from representation import RIDGES, _fitted

from retrieval.models.embed import embed_patches
from retrieval.models.encoder import load_encoder
from retrieval.models.representation import load_representation
from tfrecords.schema import BANDS

FOLDS, RESAMPLES = 5, 2000


def labelled(data: Path, split: str) -> tuple[NDArray[np.float32], NDArray[np.str_]]:
    """Return images (n, 64, 64, 3) scaled, and their classes."""
    with (data / f"{split}.csv").open() as file:
        rows = list(csv.DictReader(file))
    images = [np.asarray(Image.open(data / split / f"{int(row['Id']):04d}.jpg")) for row in rows]
    classes = np.array([row["Category"] for row in rows])
    return (np.stack(images) / 127.5 - 1).astype(np.float32), classes


def scores(x: NDArray[Any], y: NDArray[Any], at: NDArray[Any], penalty: float) -> NDArray[Any]:
    """Return a score of each class: (n, classes)."""
    return np.stack([_fitted(x, column, penalty, True)(at) for column in y.T], 1)


def predicted(x: NDArray[Any], y: NDArray[Any], at: NDArray[Any]) -> NDArray[np.int64]:
    """Return the class of each row of `at`; folds choose the penalty."""
    fold = np.random.default_rng(0).permutation(len(x)) % FOLDS

    def right(penalty: float) -> float:
        hits = [
            scores(x[fold != k], y[fold != k], x[fold == k], penalty).argmax(1) == y[fold == k].argmax(1)
            for k in range(FOLDS)
        ]
        return float(np.concatenate(hits).mean())

    found: NDArray[np.int64] = scores(x, y, at, max(RIDGES, key=right)).argmax(1)
    return found


def main() -> None:
    """Measure and print the table."""
    parser = arguments(__doc__)
    parser.add_argument("data", type=Path)
    args = parser.parse_args()
    sets = {split: labelled(args.data, split) for split in ("train", "valid")}
    model, encoder, codes = load_representation(), load_encoder(), {}
    for split, (images, _) in sets.items():
        found = model(images, BANDS[:3])
        both = np.concatenate([8 * found.shared, found.exclusive], 1)
        vector = embed_patches(encoder, images)
        codes[split] = {"shared": found.shared, "exclusive": found.exclusive, "both": both, "vector": vector}
    names = np.unique(sets["train"][1])
    y, truth = (sets[split][1][:, None] == names for split in ("train", "valid"))
    figures = {}
    for name in codes["train"]:
        mean, spread = codes["train"][name].mean(0), codes["train"][name].std(0) + 1e-9
        x, at = ((codes[split][name].astype(np.float64) - mean) / spread for split in ("train", "valid"))
        right = predicted(x, y.astype(float), at) == truth.argmax(1)
        rows = np.random.default_rng(0).integers(len(right), size=(RESAMPLES, len(right)))
        low, high = np.quantile(right[rows].mean(1), [0.025, 0.975])
        figures[name] = {"value": float(right.mean()), "low": low, "high": high, "n": len(right)}
    print(
        table(
            ["code", "accuracy"],
            [[k, f"{v['value']:.3f} ({v['low']:.3f} to {v['high']:.3f})"] for k, v in figures.items()],
        )
    )
    write_json(args.json, {"context": context(labels=len(y)), "figures": figures})


if __name__ == "__main__":
    main()
