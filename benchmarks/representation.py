r"""Measure how far the shared and the exclusive code are apart, on places without training.

    python benchmarks/representation.py DATA --model representation.keras \
        --json benchmarks/results/representation.json

DATA is the folder `s2`, whose `val` holds the groups `oscd`, `ombria` and `venice`. Without --model the
shipped representation is measured. `--model plain` takes the vector of the shipped encoder for the shared
code, and mean and spread of each band for the exclusive one. A crop has 64 pixels a side, and data in 95 % of
them on both dates.

- *Place*: each crop of one date is searched among the crops of the other date of its place, on a grid
  without overlap. Chance is one over their number. Recall@1 of the Euclidean distance, and again with all
  numbers of a code brought to one spread (`even`).
- *Date*: which of two dates a crop shows. A logistic regression learns from the crops of one half of the
  ground (every 32 pixels) and is tested on the other half, both ways.
- *Radiometry*: ridge regression of the mean of each band in all crops of a group, with the same halves. R²
  is the mean over the bands.
- *Adversary*: two layers of 256 units, 20 epochs, in place of both regressions.

Each figure is a mean over crops, so that each pair of images has the same weight. Its interval is that of a
bootstrap over blocks of 256 pixels of ground.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from context import arguments, context, table, write_json
from numpy.typing import NDArray
from protocol import dates, places

from retrieval.config import PATCH_PX
from retrieval.evaluation.intervals import BLOCK_PX, tail_share
from retrieval.models.representation import load_representation, placed_bands
from tfrecords.read import read_images

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
RESAMPLES = 2000
"""Resamples of the bootstrap."""
Codes = Callable[[NDArray[np.float32]], dict[str, NDArray[np.float64]]]
"""Crops (n, 64, 64, 4) scaled, NaN = no data or no band -> codes (n, d) by name."""
Probe = Callable[[NDArray[Any], NDArray[Any], NDArray[Any], bool], NDArray[Any]]
"""(codes, targets, codes to predict, is a class) -> predictions."""


@dataclass(frozen=True, eq=False)
class Cut:
    """The same crops of two dates."""

    crops: NDArray[np.float32]
    """(2, n, 64, 64, 4)."""
    blocks: NDArray[np.int64]
    """(n,) number of the block of ground of each crop."""


@dataclass(frozen=True, eq=False)
class Pair:
    """The crops of two dates of a place."""

    group: str
    grid: Cut
    """Crops without overlap."""
    dense: tuple[Cut, Cut]
    """Crops in the left half and in the right half."""


def pairs_of(root: Path) -> list[Pair]:
    """Cut the crops of all places: the first date with each other one."""
    pairs = []
    for group in GROUPS:
        for number, place in enumerate(places(root / "val" / group)):
            scenes = [_four_bands(file) for file in dates(place)]
            pairs += [_pair(group, number, scenes[0], other) for other in scenes[1:]]
    return pairs


def _four_bands(file: Path) -> NDArray[np.float32]:
    """Read a date in four bands, NaN where one is missing."""
    image = next(iter(read_images(file)))
    return placed_bands(image.scaled(), image.bands)


def _pair(group: str, place: int, first: NDArray[np.float32], second: NDArray[np.float32]) -> Pair:
    middle, width = first.shape[1] // 2, first.shape[1]
    grid = _cut(place, first, second, PATCH_PX, 0, width)
    halves = [_cut(place, first, second, DENSE_PX, *ends) for ends in ((0, middle), (middle, width))]
    return Pair(group, grid, (halves[0], halves[1]))


def _cut(
    place: int, first: NDArray[np.float32], second: NDArray[np.float32], step: int, left: int, right: int
) -> Cut:
    """Cut both dates on a grid between two columns."""
    found = []
    for y in range(0, len(first) - PATCH_PX + 1, step):
        for x in range(left, right - PATCH_PX + 1, step):
            part = np.s_[y : y + PATCH_PX, x : x + PATCH_PX]
            if all((~np.isnan(date[part]).all(-1)).mean() >= KNOWN for date in (first, second)):
                found.append(part)
    chosen = [found[i] for i in np.unique(np.linspace(0, len(found) - 1, min(MOST, len(found))).astype(int))]
    middles = np.array([[part[0].start, part[1].start] for part in chosen]) + PATCH_PX // 2
    row, column = (middles // BLOCK_PX).T
    crops = np.stack([np.stack([date[part] for part in chosen]) for date in (first, second)])
    return Cut(crops, (place * 1000 + row) * 1000 + column)


# --- codes ------------------------------------------------------------------------------------------------


def model_codes(path: Path | None) -> Codes:
    """Return the codes of a model file, or of the shipped model."""
    model = load_representation(path)

    def codes(crops: NDArray[np.float32]) -> dict[str, NDArray[np.float64]]:
        found = model(crops)
        return {name: getattr(found, name).astype(np.float64) for name in ("shared", "exclusive")}

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
    """Predict by a network of two hidden layers, trained by Adam; logistic or squared loss.

    In NumPy: the batches are so small that Keras would take ten times as long.
    """
    rng = np.random.default_rng(0)
    target = y.reshape(len(y), -1).astype(np.float32)
    sizes = [x.shape[1], HIDDEN, HIDDEN, target.shape[1]]
    shapes = list(pairwise(sizes))
    limits = [np.sqrt(6 / sum(shape)) for shape in shapes]
    weights = [rng.uniform(-r, r, s).astype(np.float32) for r, s in zip(limits, shapes, strict=True)]
    weights += [np.zeros(size, np.float32) for size in sizes[1:]]
    state = [(np.zeros_like(w), np.zeros_like(w)) for w in weights]
    x, at, step = x.astype(np.float32), at.astype(np.float32), 0
    for _ in range(EPOCHS):
        order = rng.permutation(len(x))
        for rows in np.split(order, range(BATCH, len(x), BATCH)):
            step += 1
            for w, g, (m, v) in zip(
                weights, _gradients(weights, x[rows], target[rows], is_class), state, strict=True
            ):
                m += 0.1 * (g - m)
                v += 0.001 * (g * g - v)
                rate = RATE * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
                w -= np.float32(rate) * m / (np.sqrt(v) + np.float32(1e-7))
    predicted = _layers(weights, at, is_class)[-1].astype(np.float64)
    return predicted if y.ndim > 1 else predicted[:, 0]


def _layers(weights: Sequence[NDArray[Any]], x: NDArray[Any], is_class: bool) -> list[NDArray[Any]]:
    """Return the input and the outputs of all layers of the adversary."""
    first = np.maximum(x @ weights[0] + weights[3], 0)
    second = np.maximum(first @ weights[1] + weights[4], 0)
    last = second @ weights[2] + weights[5]
    return [x, first, second, 1 / (1 + np.exp(-np.clip(last, -30, 30))) if is_class else last]


def _gradients(
    weights: Sequence[NDArray[Any]], x: NDArray[Any], y: NDArray[Any], is_class: bool
) -> list[NDArray[Any]]:
    """Return the gradients of the mean loss: of the three matrices, then of the three offsets."""
    outputs = _layers(weights, x, is_class)
    slope = (outputs[3] - y) * np.float32((1 if is_class else 2) / y.size)
    matrices, offsets = [], []
    for number in (2, 1, 0):
        matrices.append(outputs[number].T @ slope)
        offsets.append(slope.sum(0))
        slope = (slope @ weights[number].T) * (outputs[number] > 0)
    return matrices[::-1] + offsets[::-1]


def _standardized(*codes: NDArray[Any]) -> list[NDArray[Any]]:
    """Standardize codes by the mean and the spread of the first ones."""
    mean, spread = codes[0].mean(0), codes[0].std(0)
    return [(c - mean) / np.where(spread > 1e-9, spread, 1.0) for c in codes]


# --- figures ----------------------------------------------------------------------------------------------


def recall(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
    """Return 1 for each crop whose nearest crop of the other date is the same ground, else 0: (n,)."""
    distance = ((first[:, None] - second[None]) ** 2).sum(-1)
    return (distance.argmin(1) == np.arange(len(first))).astype(float)


def date_accuracy(halves: Sequence[NDArray[Any]], probe: Probe) -> NDArray[np.float64]:
    """Return the share of both dates of each crop that a probe names, of the first half, then of the second.

    Args:
        halves: two of (2, m, d); each is tested with what was learnt on the other.
        probe: a regression.
    """
    right = []
    for test, learn in (halves, halves[::-1]):
        x, at = _standardized(np.concatenate(learn), np.concatenate(test))
        y, truth = (np.repeat([0.0, 1.0], half.shape[1]) for half in (learn, test))
        right.append(((probe(x, y, at, True) > 0.5) == truth).reshape(2, -1).mean(0))
    return np.concatenate(right)


def radiometry(halves: Sequence[tuple[NDArray[Any], NDArray[Any]]], probe: Probe) -> NDArray[np.float64]:
    """Return the share of R² of the bands' means that each crop gives, for halves of (codes, means)."""
    scores = []
    for (at, truth), (x, y) in (halves, halves[::-1]):
        x, at = _standardized(x, at)
        y, truth = _standardized(y, truth)
        scores.append((1 - (probe(x, y, at, False) - truth) ** 2 / truth.var(0)).mean(1))
    return np.concatenate(scores)


def figure(credits: Sequence[NDArray[np.float64]], blocks: Sequence[NDArray[np.int64]]) -> dict[str, float]:
    """Return the mean over parts of their mean credits, with its interval.

    Args:
        credits: of each part (n,), such as a pair of images.
        blocks: of each part (n,) the block of ground of each credit.
    """
    size = sum(map(len, credits))
    weight = np.concatenate([np.full(len(part), 1 / len(part)) for part in credits])
    block = np.unique(np.concatenate(blocks), return_inverse=True)[1]
    sums, totals = (np.bincount(block, w) for w in (weight * np.concatenate(credits), weight))
    drawn = np.random.default_rng(0).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), RESAMPLES)
    tail = tail_share(len(sums))
    low, high = np.quantile((drawn @ sums) / (drawn @ totals), [tail, 1 - tail])
    return {"value": float(sums.sum() / totals.sum()), "low": float(low), "high": float(high), "n": size}


def measured(pairs: Sequence[Pair], codes: Codes, with_adversary: bool) -> dict[str, Any]:
    """Return all figures of all groups."""
    probes: dict[str, Probe] = {"linear": ridge} | ({"adversary": adversary} if with_adversary else {})
    figures: dict[str, Any] = {}
    for group in GROUPS:
        mine = [pair for pair in pairs if pair.group == group]
        grids = [[codes(date) for date in pair.grid.crops] for pair in mine]
        dense = [[[codes(date) for date in half.crops] for half in pair.dense] for pair in mine]
        chance = float(np.mean([1 / pair.grid.crops.shape[1] for pair in mine]))
        crops = sum(pair.grid.crops.shape[1] for pair in mine)
        figures[group] = {"pairs": len(mine), "crops": crops, "chance": chance}
        for name in grids[0][0]:
            grid = [[date[name] for date in both] for both in grids]
            halves = [[np.stack([date[name] for date in half]) for half in both] for both in dense]
            figures[group][name] = _of_code(mine, grid, halves, probes)
    return figures


def _of_code(
    pairs: Sequence[Pair], grid: Sequence[Any], halves: Sequence[Any], probes: dict[str, Probe]
) -> dict[str, Any]:
    """Return the figures of a code of all pairs of a group: on the grid, and in both halves."""
    place = [(recall(a, b) + recall(b, a)) / 2 for a, b in grid]
    spread = [[date / date.std(0).clip(1e-9) for date in both] for both in grid]
    even = [(recall(a, b) + recall(b, a)) / 2 for a, b in spread]
    blocks = [pair.grid.blocks for pair in pairs]
    out: dict[str, Any] = {"place": figure(place, blocks), "place_even": figure(even, blocks)}
    of_halves = [np.concatenate([half.blocks for half in pair.dense]) for pair in pairs]
    both = [np.concatenate([np.tile(pair.dense[k].blocks, 2) for pair in pairs]) for k in (0, 1)]
    known = ~np.isnan(pairs[0].grid.crops).all((0, 1, 2, 3))
    joined = []
    for k in (0, 1):
        means = [np.nanmean(pair.dense[k].crops[..., known], axis=(2, 3)) for pair in pairs]
        codes = [half[k].reshape(-1, half[k].shape[-1]) for half in halves]
        joined.append((np.concatenate(codes), np.concatenate([m.reshape(-1, known.sum()) for m in means])))
    for label, probe in probes.items():
        out[f"date_{label}"] = figure([date_accuracy(half, probe) for half in halves], of_halves)
        credits = np.split(radiometry(joined, probe), [len(both[0])])
        out[f"radiometry_{label}"] = figure(credits, both)
    return out


def main() -> None:
    """Measure and print the table."""
    parser = arguments(__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", help="a .keras file, or plain; without it the shipped one")
    parser.add_argument("--quick", action="store_true", help="without the adversary")
    args = parser.parse_args()
    codes = plain_codes() if args.model == "plain" else model_codes(args.model and Path(args.model))
    figures = measured(pairs_of(args.data), codes, not args.quick)
    rows = []
    for group, found in figures.items():
        for name in ("shared", "exclusive"):
            cells = [f"{v['value']:.3f} ({v['low']:.3f} to {v['high']:.3f})" for v in found[name].values()]
            rows.append([group, name, *cells, f"{found['chance']:.3f}"])
    head = [k.replace("_", " ") for k in figures[GROUPS[0]]["shared"]]
    print(table(["group", "code", *head, "chance"], rows))
    write_json(args.json, {"context": context(model=str(args.model)), "figures": figures})


if __name__ == "__main__":
    main()
