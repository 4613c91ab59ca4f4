"""Measure how often larger chips are located, and fit their confidence.

    python benchmarks/chips.py SERIES --out build/chips.json --weights build/chips-weights.json

SERIES is a folder of `retrieve ingest`, of places that no encoder was trained on. The last date of every
series is indexed. Chips of 80 to 256 pixels come from random positions of the other dates. Two of five get
clouds with shadows over 30 to 80 %, a third loses bands. The written weights are fitted to all chips; the
figures hold out one group of places at a time.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from context import context, write_json
from numpy.typing import NDArray

from retrieval.config import IndexConfig
from retrieval.evaluation.calibration_fit import (
    expected_calibration_error,
    fit_calibration,
    held_out_probability,
)
from retrieval.matching.large_chips import ChipCalibrations, locate_chips
from retrieval.matching.session import Session
from retrieval.models.calibration import (
    CHIP_TERMS,
    RIGHT_PX,
    UNCALIBRATED_CHIPS,
    Calibration,
    calibration_of,
)
from retrieval.pipeline import build_index
from retrieval.training.weather import paste_clouds
from retrieval.types import RankedCandidates
from tfrecords.read import ImageSource, read_series
from tfrecords.schema import Chips, Image, Series, to_scaled

PENALTY = 1.0
"""Weight decay, for separable data."""
SIDES_PX = (80, 257)
"""Range of chip sides, without the last."""


def images_of(series: list[Series]) -> ImageSource:
    """Return the last date of each series."""
    images = [
        Image(i, s.pixels[-1], s.units, s.bands, s.nodata, path=f"{s.place} {s.dates[-1]}")
        for i, s in enumerate(series)
    ]
    return ImageSource("last dates", len(images), lambda: iter(images))


def draw(series: list[Series], each: int, seed: int) -> tuple[Chips, NDArray[np.int64], list[str]]:
    """Return chips, their origins (n, 3: image, x, y), and their groups."""
    rng = np.random.default_rng(seed)
    chips: list[Image] = []
    truth, groups = [], []
    for number, one in enumerate(series):
        rows, columns = one.pixels.shape[1:3]
        for _ in range(each if min(rows, columns) >= SIDES_PX[1] else 0):
            h, w = rng.integers(*SIDES_PX, 2)
            x, y = rng.integers(columns - w + 1), rng.integers(rows - h + 1)
            date = rng.integers(len(one.dates) - 1)
            scaled = to_scaled(one.pixels[date, y : y + h, x : x + w], one.units, one.nodata)
            if np.isnan(scaled).mean() > 0.05:
                continue
            cloudy = rng.random() < 0.4
            if cloudy:
                scaled = paste_clouds(scaled[None], rng.uniform(0.3, 0.8, 1), rng, seed=1)[0][0]
            bands = [0] if rng.random() < 0.33 else list(range(len(one.bands)))
            names = tuple(one.bands[b] for b in bands)
            chips.append(Image(len(chips), scaled[..., bands], "scaled", names, float("nan")))
            truth.append((number, x, y))
            groups.append(one.place.split("/")[0] + (", cloudy" if cloudy else ", clear"))
    sizes = np.array([(c.height, c.width) for c in chips])
    asked = Chips(np.arange(len(chips)), sizes, tuple(c.bands for c in chips), chips.__getitem__)
    return asked, np.array(truth), groups


def distance(series: list[Series], truth: NDArray[np.int64], found: RankedCandidates) -> NDArray[np.float64]:
    """Return distances to the truth in pixels, (n,), infinite for another place."""
    asked = [series[i] for i in truth[:, 0]]
    got = [series[i] for i in np.maximum(found.image_ids[:, 0], 0)]
    same = np.array([a.place == b.place for a, b in zip(asked, got, strict=True)])
    same &= found.image_ids[:, 0] >= 0
    x0, y0 = ([getattr(b, n) - getattr(a, n) for a, b in zip(asked, got, strict=True)] for n in ("x0", "y0"))
    x, y = found.x[:, 0] + found.dx[:, 0] + np.array(x0), found.y[:, 0] + found.dy[:, 0] + np.array(y0)
    return np.where(same, np.hypot(x - truth[:, 1], y - truth[:, 2]), np.inf)


def fit(seen: NDArray[np.float64], right: NDArray[np.bool_], on: str) -> Calibration:
    """Return a calibration with rounded weights."""
    fitted = fit_calibration(seen, right, terms=CHIP_TERMS, penalty=PENALTY, fitted_on=on)
    weights = tuple(round(weight, 4) for weight in fitted.weights)
    return replace(fitted, weights=weights, bias=round(fitted.bias, 4))


def figures(probability: NDArray, right: NDArray[np.bool_], groups: list[str]) -> dict[str, Any]:
    """Return shares, calibration error, and precision at each threshold."""
    names = np.array(groups)
    out: dict[str, Any] = {
        name: {"chips": int((names == name).sum()), "right": round(float(right[names == name].mean()), 4)}
        for name in np.unique(names)
    }
    out["calibration_error"] = round(expected_calibration_error(probability, right), 4)
    for limit in (0.5, 0.9, 0.99):
        kept = probability >= limit
        precision = float(right[kept].mean()) if kept.any() else None
        out[f"at least {limit}"] = {"covers": round(float(kept.mean()), 4), "right": precision}
    return out


def main() -> None:
    """Index, locate, fit, print, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("series", type=Path)
    parser.add_argument("--each", type=int, default=12, help="chips per series")
    parser.add_argument("--encoder", default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--weights", type=Path)
    args = parser.parse_args()
    series = list(read_series(args.series))
    chips, truth, groups = draw(series, args.each, args.seed)
    with tempfile.TemporaryDirectory() as folder:
        store = build_index(
            images_of(series), Path(folder) / "index", encoder=args.encoder, config=IndexConfig()
        ).folder
        session = Session.open(store, chips, progress=lambda *stage: print(*stage, flush=True))
        at = locate_chips(session, chips, ChipCalibrations(calibration_of(store.encoder), UNCALIBRATED_CHIPS))
    found = at.found
    off = distance(series, truth, found)
    right = off <= RIGHT_PX
    use = at.windows > 1
    places = np.array([g.split(",")[0] for g in groups])
    probability = np.where(use, 0.0, at.confidence)
    probability[use] = held_out_probability(
        at.features[use], right[use], places[use], terms=CHIP_TERMS, penalty=PENALTY
    )
    result = figures(probability, right, groups) | {"median_off_px": float(np.median(off[right]))}
    on = f"{int(use.sum())} chips of {len(series)} images: {', '.join(sorted(set(groups)))}"
    weights = fit(at.features[use], right[use], on)
    print(result, weights, sep="\n")
    write_json(args.out, context(chips=len(chips), images=len(series)) | {"figures": result})
    if args.weights:
        weights.save(args.weights, overwrite=True)
        seen = {"evidence": at.features, "off": off, "windows": at.windows, "groups": np.array(groups)}
        np.savez(args.weights.with_suffix(".npz"), **seen)


if __name__ == "__main__":
    main()
