r"""Measure how far the shared and the exclusive code are apart, on places without training.

    python benchmarks/representation.py DATA --model representation.keras \
        --json benchmarks/results/representation.json

DATA is the folder `s2`, whose `val` holds the groups `oscd`, `ombria` and `venice`. Without --model the
vector of the shipped encoder stands for the shared code, and mean and spread of each band for the exclusive
one. A crop has 64 pixels a side, and data in 95 % of them on both dates.

- *Place*: each crop of one date is searched among the crops of the other date of its place, on a grid
  without overlap. Chance is one over their number. Recall@1 of the Euclidean distance.
- *Date*: which of two dates a crop shows. A logistic regression learns from the crops of one half of the
  ground (every 32 pixels) and is tested on the other half, both ways.
- *Radiometry*: ridge regression of the mean of each band in all crops of a group, with the same halves. R²
  is the mean over the bands.
- *Adversary*: two layers of 256 units, 20 epochs, in place of both regressions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from context import arguments, context, table, write_json
from numpy.typing import NDArray
from protocol import dates, places

from retrieval.config import PATCH_PX
from retrieval.models.registry import load_network
from tfrecords.read import read_images
from tfrecords.schema import BANDS

GROUPS = ("oscd", "ombria", "venice")
KNOWN = 0.95
"""Smallest share of a crop with data."""
DENSE_PX = 32
"""Distance of the crops of the date's and the radiometry's regressions."""
MOST = 400
"""Crops of a date that are used, evenly spread."""
HIDDEN, EPOCHS, BATCH, RATE = 256, 20, 16, 1e-3
"""The adversary's units, epochs, images in a step and learning rate."""
RIDGES = 10.0 ** np.arange(-4, 3)
"""Weights of the penalty of both regressions, per crop; cross-validation in the training half chooses."""
Codes = Callable[[NDArray[np.float32]], dict[str, NDArray[np.float64]]]
"""Crops (n, 64, 64, 4) scaled, NaN = no data or no band -> codes (n, d) by name."""
Probe = Callable[[NDArray[Any], NDArray[Any], NDArray[Any], bool], NDArray[Any]]
"""(codes, targets, codes to predict, is a class) -> predictions."""


@dataclass(frozen=True, eq=False)
class Pair:
    """The crops of two dates of a place."""

    group: str
    grid: NDArray[np.float32]
    """(2, n, 64, 64, 4) of both dates, without overlap."""
    dense: tuple[NDArray[np.float32], NDArray[np.float32]]
    """(2, m, 64, 64, 4) of both dates, in the left half and in the right half."""


def pairs_of(root: Path) -> list[Pair]:
    """Cut the crops of all places: the first date with each other one."""
    pairs = []
    for group in GROUPS:
        for place in places(root / "val" / group):
            scenes = [_four_bands(file) for file in dates(place)]
            pairs += [_pair(group, scenes[0], other) for other in scenes[1:]]
    return pairs


def _four_bands(file: Path) -> NDArray[np.float32]:
    """Read a date in four bands: the bands that the model knows first, NaN where one is missing."""
    image = next(iter(read_images(file)))
    scaled = image.scaled()
    order = sorted(range(len(image.bands)), key=lambda i: image.bands[i] not in BANDS)[: len(BANDS)]
    missing = len(BANDS) - len(order)
    return np.pad(scaled[..., order], ((0, 0), (0, 0), (0, missing)), constant_values=np.nan)


def _pair(group: str, first: NDArray[np.float32], second: NDArray[np.float32]) -> Pair:
    middle = first.shape[1] // 2
    grid = _crops(first, second, PATCH_PX, 0, first.shape[1])
    halves = [_crops(first, second, DENSE_PX, *ends) for ends in ((0, middle), (middle, first.shape[1]))]
    return Pair(group, grid, (halves[0], halves[1]))


def _crops(
    first: NDArray[np.float32], second: NDArray[np.float32], step: int, left: int, right: int
) -> NDArray[np.float32]:
    """Cut both dates on a grid between two columns."""
    found = []
    for y in range(0, len(first) - PATCH_PX + 1, step):
        for x in range(left, right - PATCH_PX + 1, step):
            part = np.s_[y : y + PATCH_PX, x : x + PATCH_PX]
            if all((~np.isnan(date[part]).all(-1)).mean() >= KNOWN for date in (first, second)):
                found.append(part)
    some = [found[i] for i in np.unique(np.linspace(0, len(found) - 1, min(MOST, len(found))).astype(int))]
    return np.stack([np.stack([date[part] for part in some]) for date in (first, second)])


# --- codes ------------------------------------------------------------------------------------------------


def model_codes(path: Path) -> Codes:
    """Return the codes of a model file."""
    model = load_network(path)

    def codes(crops: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
        return {name: np.asarray(v, np.float64) for name, v in model.predict(crops, verbose=0).items()}

    return codes


def plain_codes() -> Codes:
    """Return the codes that need no training: the encoder's vector, and statistics of the bands."""
    from retrieval.models.embed import embed_patches
    from retrieval.models.encoder import load_encoder

    encoder = load_encoder()

    def codes(crops: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
        present = ~np.isnan(crops).all((0, 1, 2))
        known = [f(crops[..., present], axis=(1, 2)) for f in (np.nanmean, np.nanstd)]
        return {
            "shared": np.asarray(embed_patches(encoder, crops), np.float64),
            "exclusive": np.concatenate(known, axis=-1).astype(np.float64),
        }

    return codes


# --- probes -----------------------------------------------------------------------------------------------


def ridge(x: NDArray[Any], y: NDArray[Any], at: NDArray[Any], is_class: bool) -> NDArray[Any]:
    """Predict by ridge regression, or by logistic regression with the same penalty."""
    chosen = min(RIDGES, key=lambda weight: _fold_loss(x, y, weight, is_class))
    return _fitted(x, y, chosen, is_class)(at)


def _fold_loss(x: NDArray[Any], y: NDArray[Any], weight: float, is_class: bool) -> float:
    """Return the squared error of a penalty on the second half of the crops, after the first half."""
    half = np.arange(len(x)) * 2 // len(x)
    return float(
        np.mean(
            [
                (
                    (_fitted(x[half != k], y[half != k], weight, is_class)(x[half == k]) - y[half == k]) ** 2
                ).mean()
                for k in (0, 1)
            ]
        )
    )


def _fitted(x: NDArray[Any], y: NDArray[Any], weight: float, is_class: bool) -> Callable[[Any], Any]:
    """Fit a regression with an intercept; a logistic one by Newton's method."""
    ones = np.ones((len(x), 1))
    design, n = np.concatenate([x, ones], 1), len(x)
    penalty = n * weight * np.eye(design.shape[1])
    penalty[-1, -1] = 1e-9
    if not is_class:
        beta = np.linalg.solve(design.T @ design + penalty, design.T @ y)
        return lambda at: np.concatenate([at, np.ones((len(at), 1))], 1) @ beta
    beta = np.zeros(design.shape[1])
    for _ in range(15):
        p = 1 / (1 + np.exp(-np.clip(design @ beta, -30, 30)))
        curve = (design * (p * (1 - p))[:, None]).T @ design + penalty
        beta = beta - np.linalg.solve(curve, design.T @ (p - y) + penalty @ beta)
    return lambda at: (
        1 / (1 + np.exp(-np.clip(np.concatenate([at, np.ones((len(at), 1))], 1) @ beta, -30, 30)))
    )


def adversary(x: NDArray[Any], y: NDArray[Any], at: NDArray[Any], is_class: bool) -> NDArray[Any]:
    """Predict by a network of two layers."""
    import keras
    from keras import layers

    keras.utils.set_random_seed(0)
    outputs = y.shape[1] if y.ndim > 1 else 1
    model = keras.Sequential(
        [
            layers.Dense(HIDDEN, activation="relu"),
            layers.Dense(HIDDEN, activation="relu"),
            layers.Dense(outputs, activation="sigmoid" if is_class else None),
        ]
    )
    model.compile(keras.optimizers.Adam(RATE), "binary_crossentropy" if is_class else "mse")
    model.fit(x, y, epochs=EPOCHS, batch_size=BATCH, verbose=0)
    predicted: NDArray[Any] = model.predict(at, verbose=0).astype(np.float64)
    return predicted if y.ndim > 1 else predicted[:, 0]


def _standardized(*codes: NDArray[Any]) -> list[NDArray[Any]]:
    """Standardize codes by the mean and the spread of the first ones."""
    mean, spread = codes[0].mean(0), codes[0].std(0)
    return [(c - mean) / np.where(spread > 1e-9, spread, 1.0) for c in codes]


# --- figures ----------------------------------------------------------------------------------------------


def recall(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Return the share of crops whose nearest crop of the other date is the same ground."""
    distance = ((first[:, None] - second[None]) ** 2).sum(-1)
    return float((distance.argmin(1) == np.arange(len(first))).mean())


def date_accuracy(halves: Sequence[NDArray[Any]], probe: Probe) -> float:
    """Return how often a probe names the date, learnt on one half (2, m, d) and tested on the other."""
    right = []
    for learn, test in (halves, halves[::-1]):
        x, at = _standardized(np.concatenate(learn), np.concatenate(test))
        y, truth = (np.repeat([0.0, 1.0], half.shape[1]) for half in (learn, test))
        right.append(((probe(x, y, at, True) > 0.5) == truth).mean())
    return float(np.mean(right))


def radiometry(halves: Sequence[tuple[NDArray[Any], NDArray[Any]]], probe: Probe) -> float:
    """Return R² of the bands' means, for halves of (codes, means)."""
    scores = []
    for (x, y), (at, truth) in (halves, halves[::-1]):
        x, at = _standardized(x, at)
        (y, truth) = _standardized(y, truth)
        error = ((probe(x, y, at, False) - truth) ** 2).mean(0)
        scores.append(np.mean(1 - error / truth.var(0)))
    return float(np.mean(scores))


def measured(pairs: Sequence[Pair], codes: Codes, with_adversary: bool) -> dict[str, Any]:
    """Return all figures of all groups."""
    probes: dict[str, Probe] = {"linear": ridge} | ({"adversary": adversary} if with_adversary else {})
    figures: dict[str, Any] = {}
    for group in GROUPS:
        mine = [pair for pair in pairs if pair.group == group]
        grids = [[codes(date) for date in pair.grid] for pair in mine]
        dense = [[[codes(date) for date in half] for half in pair.dense] for pair in mine]
        bands = ~np.isnan(mine[0].grid[0]).all((0, 1, 2))
        means = [
            [np.nanmean(half[..., bands], axis=(2, 3)).reshape(-1, bands.sum()) for half in pair.dense]
            for pair in mine
        ]
        chance = float(np.mean([1 / len(pair.grid[0]) for pair in mine]))
        figures[group] = {"pairs": len(mine), "crops": sum(len(p.grid[0]) for p in mine), "chance": chance}
        for name in grids[0][0]:
            place = [recall(*(g[i][name] for i in order)) for g in grids for order in ((0, 1), (1, 0))]
            mine_figures: dict[str, Any] = {"place": float(np.mean(place))}
            halves = [[np.stack([date[name] for date in half]) for half in d] for d in dense]
            joined = [
                (
                    np.concatenate([h[k].reshape(-1, h[k].shape[-1]) for h in halves]),
                    np.concatenate([m[k] for m in means]),
                )
                for k in (0, 1)
            ]
            for label, probe in probes.items():
                mine_figures[f"date_{label}"] = float(np.mean([date_accuracy(h, probe) for h in halves]))
                mine_figures[f"radiometry_{label}"] = radiometry(joined, probe)
            figures[group][name] = mine_figures
    return figures


def main() -> None:
    """Measure and print the table."""
    parser = arguments(__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--quick", action="store_true", help="without the adversary")
    args = parser.parse_args()
    codes = model_codes(args.model) if args.model else plain_codes()
    figures = measured(pairs_of(args.data), codes, not args.quick)
    rows = []
    for group, found in figures.items():
        for name, values in found.items():
            if isinstance(values, dict):
                rows.append([group, name, *(f"{v:.3f}" for v in values.values()), f"{found['chance']:.3f}"])
    head = [k.replace("_", " ") for k in figures[GROUPS[0]]["shared"]]
    print(table(["group", "code", *head, "chance"], rows))
    write_json(args.json, {"context": context(model=str(args.model)), "figures": figures})


if __name__ == "__main__":
    main()
