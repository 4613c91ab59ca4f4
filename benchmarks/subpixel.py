"""Measure the sub-pixel accuracy of refinement by known shifts of real pairs of dates.

    python benchmarks/subpixel.py DATA --json build/subpixel.json

Two dates of a place have an unknown misregistration of up to two pixels. The benchmark therefore measures a
difference. A patch of one date is refined on the target's date twice. The second time its ground is moved by
a known vector of up to a pixel. The movement is a Fourier shift of a larger cut, tapered outside the patch.
The answer must move by the same vector; the misregistration cancels.

The error is the distance between both movements in pixels. It contains the errors of two answers. Refinement
starts at the window of stride 8 nearest to the truth. Featureless patches (see `accuracy.py`) are separate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from context import arguments, context, table, write_json
from numpy.typing import NDArray
from protocol import FEATURELESS_SHARE, GROUPS, Group, dates, edge_share, opened, places, target_date

from retrieval.config import PATCH_PX
from retrieval.matching.pyramid import match_and_verify, refine_full_resolution
from retrieval.matching.session import Session
from retrieval.matching.tensors import Arrays
from retrieval.types import Candidates, RankedCandidates
from tfrecords.schema import Patches

MARGIN_PX = 12
"""Margin around a patch, so that a shift brings in real ground."""
STRIDE_PX = 8


def moved(cut: NDArray[np.float32], dx: float, dy: float) -> NDArray[np.float32]:
    """Move the ground of a cut and return the patch in its middle.

    Args:
        cut: (64 + 2 `MARGIN_PX`, the same, b), without nodata.
        dx: pixels to the right, at most a few.
        dy: pixels down.

    Returns:
        (64, 64, b) within [-1, 1].
    """
    side = cut.shape[0]
    ramp = np.clip((np.arange(side) + 0.5) / (MARGIN_PX - 4), 0, 1)
    taper = np.sin(np.pi / 2 * np.minimum(ramp, ramp[::-1])) ** 2
    mean = cut.mean((0, 1), keepdims=True)
    faded = (cut - mean) * (taper[:, None] * taper)[..., None]
    frequency = np.fft.fftfreq(side)
    phase = np.exp(-2j * np.pi * (frequency[:, None] * dy + frequency * dx))
    shifted = np.fft.ifft2(np.fft.fft2(faded, axes=(0, 1)) * phase[..., None], axes=(0, 1)).real + mean
    inside = slice(MARGIN_PX, MARGIN_PX + PATCH_PX)
    return np.clip(shifted[inside, inside], -1, 1).astype(np.float32)


@dataclass(frozen=True)
class Pairs:
    """Cuts of one date, and their positions on another."""

    images: Arrays
    cuts: NDArray[np.float32]
    where: NDArray[np.int64]  # (n, 3) image, x, y of the patch


def draw(data: Path, group: Group, count: int, rng: np.random.Generator) -> Pairs:
    """Return places and dates of a group, without places too small for the margin."""
    images, kept = [], []
    chosen = [p for p in places(data / "val") if p.parent.name in group.folders]
    for place in chosen:
        files = [f for f in dates(place) if f != target_date(place)]
        target = opened(target_date(place), group.bands).scaled()
        drawn = rng.choice(len(files), min(4, len(files)), replace=False)
        others = [opened(files[i], group.bands).scaled() for i in drawn]
        side = PATCH_PX + 2 * MARGIN_PX
        if min(target.shape[:2]) < side:
            continue
        images.append(target)
        wanted = len(kept) + count // len(chosen)
        for _ in range(50 * count):
            if len(kept) >= wanted:
                break
            x, y = (int(rng.integers(n - side + 1)) for n in target.shape[1::-1])
            cut = others[int(rng.integers(len(others)))][y : y + side, x : x + side]
            ground = target[y : y + side, x : x + side]
            if not (np.isnan(cut).any() or np.isnan(ground).any()):
                kept.append((cut, (len(images) - 1, x + MARGIN_PX, y + MARGIN_PX)))
    cuts, where = (np.array(v) for v in zip(*kept, strict=True))
    numbered = dict(enumerate(images))
    return Pairs(Arrays(numbered, dict.fromkeys(numbered, group.bands)), cuts, where)


def asked(pairs: Pairs, pixels: NDArray[np.float32]) -> tuple[NDArray[np.float64], RankedCandidates]:
    """Refine patches around their places; return (n, 2) x and y with sub-pixel offsets."""
    patches = Patches(np.arange(len(pixels)), pixels, "scaled", pairs.images.bands(0), np.nan)
    corner = pairs.where[:, 1:] + STRIDE_PX // 2
    corner = corner // STRIDE_PX * STRIDE_PX
    size = np.array([pairs.images.size(int(i))[::-1] for i in pairs.where[:, 0]])
    corner = np.minimum(corner, size - PATCH_PX)
    one = np.ones((len(pixels), 1), np.float32)
    found = Candidates(pairs.where[:, :1], corner[:, :1], corner[:, 1:], one)
    session = Session(pairs.images, patches)
    refined = refine_full_resolution(session, match_and_verify(session, found))
    x, y = refined.x[:, 0] + refined.dx[:, 0], refined.y[:, 0] + refined.dy[:, 0]
    return np.stack([x, y], 1).astype(np.float64), refined


def errors(pairs: Pairs, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the distance between actual and expected movement, (n,), and the share of edges."""
    shift = rng.uniform(-1, 1, (len(pairs.cuts), 2))
    still = np.stack([moved(c, 0, 0) for c in pairs.cuts])
    shifted = np.stack([moved(c, *s) for c, s in zip(pairs.cuts, shift, strict=True)])
    before, _ = asked(pairs, still)
    after, _ = asked(pairs, shifted)
    # Ground that moved to the right shows, in the same patch, what lies further left.
    return np.hypot(*(after - before + shift).T), edge_share(still)


def summary(error: NDArray[np.float64]) -> dict[str, Any]:
    """Return median, 90th percentile, and the share that lost the place."""
    if not len(error):
        return {"patches": 0}
    middle, high = np.quantile(error, [0.5, 0.9])
    figures = {"patches": len(error), "median_px": float(middle), "p90_px": float(high)}
    return figures | {"within_half": float((error <= 0.5).mean()), "beyond_5": float((error > 5).mean())}


def main() -> None:
    """Measure and print every group that is not a variant."""
    parser = arguments(__doc__)
    parser.add_argument("data", type=Path, help="folder with val/")
    parser.add_argument("--queries", type=int, default=200, help="queries per group")
    parser.add_argument("--group", action="append", choices=list(GROUPS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    names = args.group or [n for n, g in GROUPS.items() if not (g.form_of or g.clouds)]
    figures: dict[str, Any] = {}
    rows = []
    for name in names:
        rng = np.random.default_rng(args.seed)
        group = replace(GROUPS[name], index_bands=())
        error, edges = errors(draw(args.data, group, args.queries, rng), rng)
        seen = edges >= FEATURELESS_SHARE
        figures[name] = {"all": summary(error), "with features": summary(error[seen])}
        for kind, one in figures[name].items():
            shares = [f"{one[k]:.3f}" for k in ("median_px", "p90_px", "within_half", "beyond_5")]
            rows.append((f"{name}, {kind}", str(one["patches"]), *shares))
    print(table(("pairs", "patches", "median px", "90 % px", "in 0.5 px", "beyond 5 px"), rows))
    write_json(args.json, {"context": context(), "seed": args.seed, "groups": figures})


if __name__ == "__main__":
    main()
