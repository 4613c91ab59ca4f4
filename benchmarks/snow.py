r"""Measure patches under generated snow against the same ground in summer, near infrared only.

    git worktree add build/former COMMIT
    python benchmarks/snow.py DATA --package build/former --package . --out build/snow \
        --json benchmarks/results/snow.json

Snow covers open ground bright and flat, and leaves forest dark. Low sun casts the shadow of forest on snow.
Ground-cover clusters of all bands decide what is forest, open ground or water, each with a separate light.
The snow scene lies up to 0.7 px off the pixels of the summer image.

The database holds the near infrared of all places with four bands and of the `val` flood places; `--copies 8`
adds turned copies. Every package indexes and queries the same files through its command line and with its own
models. Differences are paired with the first package. Intervals are bootstrapped over blocks of ground.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from context import arguments, context, write_json
from numpy.typing import NDArray
from protocol import (
    RGBN,
    TURNS,
    calibration_error,
    dates,
    has_bands,
    is_right,
    opened,
    part,
    places,
    target_date,
    turned,
)

from retrieval.config import PATCH_PX
from retrieval.evaluation.scoring import compare, score
from retrieval.evaluation.submission import Submission, read_submission
from retrieval.synthetic.noise import fractal
from tfrecords.schema import Image

Field = NDArray[np.floating[Any]]
NIR = "B08"
FLOOD_BANDS = ("B11", "B08", "B03")
SNOWY = ("forest", "ombria")
"""Folders of `val` with queries: spruce forest, and plains with rivers."""
VIEW_PX = 256
"""Largest side of a snow scene."""
SCENES = 10
"""Snow scenes of each place."""
CLUSTERS = 6
DARK, WATER = 0.25, 0.4
"""Forest has less visible light than this share of its range; water less infrared than this share of the
median."""
MOST_OFF_PX = 0.7
"""Largest distance between the pixels of snow scene and summer image, along each axis."""


# --- the snow scene -----------------------------------------------------------------------------------


def clusters(levels: Field, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the ground-cover cluster of each pixel, by k-means.

    Args:
        levels: (h, w, b) positive levels of all bands.
        count: number of clusters.
        rng: random generator of the first centres.
    """
    smooth = blurred(np.log(np.maximum(levels, 1.0)))
    points = smooth.reshape(-1, levels.shape[-1])
    points = (points - points.mean(0)) / np.maximum(points.std(0), 1e-6)
    centres = points[rng.choice(len(points), count, replace=False)]
    for _ in range(12):
        nearest = np.stack([((points - c) ** 2).sum(-1) for c in centres]).argmin(0)
        means = [points[nearest == c].mean(0) if (nearest == c).any() else centres[c] for c in range(count)]
        centres = np.array(means)
    return nearest.reshape(levels.shape[:2])


def blurred(pixels: Field, passes: int = 1) -> Field:
    """Blur (h, w, ...) with a 3 x 3 binomial kernel."""
    for _ in range(passes):
        for axis in (0, 1):
            edge = [(1, 1) if a == axis else (0, 0) for a in range(pixels.ndim)]
            wide = np.pad(pixels, edge, mode="edge")
            before, after = np.roll(wide, 1, axis), np.roll(wide, -1, axis)
            pixels = np.take(0.25 * (before + after) + 0.5 * wide, np.arange(1, wide.shape[axis] - 1), axis)
    return pixels


def moved(field: Field, dy: float, dx: float) -> Field:
    """Return the field (h, w) at (y + dy, x + dx), by bilinear interpolation; edges are repeated."""
    for axis, by in ((0, dy), (1, dx)):
        at = np.clip(np.arange(field.shape[axis]) + by, 0, field.shape[axis] - 1)
        low = np.minimum(np.floor(at).astype(int), field.shape[axis] - 2)
        share = (at - low).reshape((-1, 1) if axis == 0 else (1, -1))
        field = (1 - share) * np.take(field, low, axis) + share * np.take(field, low + 1, axis)
    return field


@dataclass(frozen=True)
class Cover:
    """What the ground of an image is, each (h, w)."""

    cluster: NDArray[np.int64]
    """Number of the ground-cover cluster."""
    forest: Field
    """Share of forest, 0 to 1."""
    water: Field
    """Share of water, 0 to 1."""


def cover_of(levels: Field, nir: int, rng: np.random.Generator) -> Cover:
    """Find forest and water by the mean levels of each cluster.

    Args:
        levels: (h, w, b) positive levels.
        nir: column of the near infrared; the other bands count as visible light.
        rng: random generator of the clusters.
    """
    cluster = clusters(levels, CLUSTERS, rng)
    visible = np.delete(levels, nir, 2)
    low, high = np.percentile(visible, (1, 98), axis=(0, 1))
    light = ((visible - low) / np.maximum(high - low, 1.0)).mean(-1)
    infrared = levels[..., nir]
    members = [cluster == c for c in range(CLUSTERS)]
    is_water = np.array([m.any() and infrared[m].mean() < WATER * np.median(infrared) for m in members])
    is_forest = np.array([m.any() and light[m].mean() < DARK for m in members]) & ~is_water
    return Cover(cluster, blurred(is_forest[cluster] * 1.0), blurred(is_water[cluster] * 1.0))


def snow_scene(image: Image, rng: np.random.Generator) -> NDArray[np.uint16]:
    """Return the near infrared of the ground of a summer image under snow.

    Args:
        image: all bands of one date, near infrared among them.
        rng: random generator; the same state gives the same scene.

    Returns:
        (h, w) DN; 0 is nodata.
    """
    scaled = image.scaled().astype(np.float64)
    known = ~np.isnan(scaled).any(-1)
    levels = np.where(known[..., None], (scaled + 1) * 2047.5, np.nanmedian((scaled + 1) * 2047.5, (0, 1)))
    nir = image.bands.index(NIR)
    cover = cover_of(levels, nir, rng)
    detail = np.log(np.maximum(levels[..., nir], 1.0))
    detail -= blurred(detail, 12)
    light = _open_ground(cover, detail, rng) * _shade(cover.forest, rng)
    light += cover.forest * (_canopy(cover, detail, rng) - light)
    if rng.random() < 0.5:  # the ice has no snow
        light += cover.water * (rng.uniform(150, 600) - light)
    off = rng.uniform(-MOST_OFF_PX, MOST_OFF_PX, 2)
    seen = moved(0.5 * (light + blurred(light)), *off)
    seen += rng.normal(0, 20, seen.shape) + 0.005 * seen * rng.normal(size=seen.shape)
    return np.where(known, np.clip(np.rint(seen), 1, 10000), 0).astype(np.uint16)


def _of_clusters(cover: Cover, values: Field) -> Field:
    """Return the value of each pixel's cluster, with mixed pixels at the borders."""
    return blurred(values[cover.cluster])


def _open_ground(cover: Cover, detail: Field, rng: np.random.Generator) -> Field:
    """Return DN of snow: each cluster has its level, and a small rest of its texture, of either sign."""
    level = rng.uniform(5200, 8200) * np.exp(rng.normal(0, 0.12, CLUSTERS))
    rest = rng.normal(0, 0.12, CLUSTERS)
    drift = 0.04 * fractal(rng, detail.shape, beta=2.5, low_px=80)
    return _of_clusters(cover, level) * np.exp(_of_clusters(cover, rest) * detail + drift)


def _canopy(cover: Cover, detail: Field, rng: np.random.Generator) -> Field:
    """Return DN of forest in low sun: dark, with shadows of trees, and snow in the gaps of the canopy."""
    level = rng.uniform(900, 1700) * np.exp(rng.normal(0, 0.15, CLUSTERS))
    rest = rng.uniform(0.1, 0.7, CLUSTERS)
    trees = rng.uniform(0.1, 0.25) * 3 * blurred(rng.normal(size=detail.shape))
    gaps = np.clip(rng.uniform(-0.1, 0.12) + 0.08 * fractal(rng, detail.shape, beta=2.2, low_px=40), 0, 0.5)
    dark = _of_clusters(cover, level) * np.exp(_of_clusters(cover, rest) * detail + trees)
    return dark + gaps * (5000 - dark)


def _shade(forest: Field, rng: np.random.Generator) -> Field:
    """Return the factor of light on the ground: forest casts shadows of 20 to 100 m to the north."""
    length, angle = rng.uniform(2, 10), np.deg2rad(rng.uniform(-60, 60))
    deepest, shadow = rng.uniform(0.45, 0.75), np.zeros_like(forest)
    for step in range(1, int(np.ceil(length)) + 1):
        at = min(step, length)
        shadow = np.maximum(shadow, moved(forest, at * np.cos(angle), at * np.sin(angle)))
    return 1 - deepest * np.clip(shadow, 0, 1)


# --- database and queries -----------------------------------------------------------------------------


def database(data: Path) -> list[Path]:
    """Return the summer images: target dates of `val`, latest dates of `train`, in the order of their ids."""
    val = [target_date(p) for p in places(data / "val")]
    train = [dates(p)[-1] for p in places(data / "train")]
    return [f for f in val if has_bands(f, (NIR,))] + [f for f in train if has_bands(f, RGBN)]


def write_images(data: Path, folder: Path, copies: int) -> None:
    """Write the near infrared of the database with some turned copies, one file for each image id."""
    import rasterio

    folder.mkdir(parents=True)
    warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
    number = 0
    for file in database(data):
        image = opened(file, (NIR,))
        for pixels in turned(image.pixels[..., 0])[:copies]:
            size = {"height": pixels.shape[0], "width": pixels.shape[1], "count": 1, "nodata": 0}
            with rasterio.open(
                folder / f"{number:05d}.tif", "w", driver="GTiff", dtype=pixels.dtype, **size
            ) as out:
                out.write(pixels, 1)
                out.set_band_description(1, NIR)
            number += 1


def draw(
    data: Path, queries: int, seed: int, copies: int
) -> tuple[NDArray[np.uint16], Submission, NDArray[np.str_]]:
    """Draw patches of snow scenes: (n, 64, 64, 1) DN, their answers, and the folders of their places."""
    chosen = [(rank, f) for rank, f in enumerate(database(data)) if f.parent.parent.name in SNOWY]
    chosen = [(rank, f) for rank, f in chosen if f.is_relative_to(data / "val")]
    rows: list[tuple[Any, ...]] = []
    for number, (rank, file) in enumerate(chosen):
        rng = np.random.default_rng([seed, number])
        image = opened(file, RGBN if has_bands(file, RGBN) else FLOOD_BANDS)
        count = queries // len(chosen) + (number < queries % len(chosen))
        for share in np.array_split(np.arange(count), SCENES):
            view, left, top = _view(image, rng)
            snow = snow_scene(view, rng)
            for x, y in _corners(snow, len(share), rng):
                patch = snow[y : y + PATCH_PX, x : x + PATCH_PX, None]
                rows.append((patch, copies * rank, left + x, top + y, file.parent.parent.name))
    patches, ids, x, y, folders = (np.array(v) for v in zip(*rows, strict=True))
    return patches, Submission(np.arange(len(x)), ids, x, y, source="answers"), folders


def _view(image: Image, rng: np.random.Generator) -> tuple[Image, int, int]:
    """Return a part of an image with under a tenth of nodata, and its x and y."""
    height, width = (min(VIEW_PX, side) for side in image.pixels.shape[:2])
    while True:
        top = int(rng.integers(image.pixels.shape[0] - height + 1))
        left = int(rng.integers(image.pixels.shape[1] - width + 1))
        view = replace(image, pixels=image.pixels[top : top + height, left : left + width])
        if np.isnan(view.scaled()).any(-1).mean() < 0.1:
            return view, left, top


def _corners(snow: NDArray[np.uint16], count: int, rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    """Draw x and y of patches with under 2 % nodata."""
    height, width = snow.shape
    while count:
        x, y = int(rng.integers(width - PATCH_PX + 1)), int(rng.integers(height - PATCH_PX + 1))
        if (snow[y : y + PATCH_PX, x : x + PATCH_PX] == 0).mean() < 0.02:
            count -= 1
            yield x, y


# --- a package ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answered:
    """The answers of a package."""

    commit: str
    """Its commit."""
    given: Submission
    """One answer for each patch."""
    confidence: Field
    """(n,) stated probability of each answer."""
    seconds: dict[str, float]
    """Wall time of index and query."""


def asked(package: Path, images: Path, patches: Path, out: Path) -> Answered:
    """Index the images and query the patches with the package in a folder; keep finished outputs."""
    out.mkdir(parents=True, exist_ok=True)
    index, details, given, clock = (
        out / f for f in ("index", "details.csv", "submission.csv", "seconds.json")
    )
    seconds: dict[str, float] = json.loads(clock.read_text()) if clock.exists() else {}
    for name, words in {
        "index": [images, "--out", index],
        "query": [patches, "--index", index, "--out", given, "--details", details],
    }.items():
        if name not in seconds:
            start = time.perf_counter()
            _run(package, [name, *map(str, words), "--bands", NIR])
            seconds[name] = round(time.perf_counter() - start, 1)
            clock.write_text(json.dumps(seconds))
    with details.open(newline="") as file:
        first = {int(r["patch_id"]): float(r["confidence"]) for r in csv.DictReader(file) if r["confidence"]}
    answers = read_submission(given)
    stated = np.array([first.get(int(i), 0.0) for i in answers.patch_ids])
    commit = subprocess.run(
        ["git", "-C", str(package), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True
    ).stdout
    return Answered(commit.strip(), answers, stated, seconds)


def _run(package: Path, words: list[str]) -> None:
    """Run a command of the package."""
    surroundings = os.environ | {"PYTHONPATH": str(package.resolve())}
    subprocess.run([sys.executable, "-m", "retrieval", *words], env=surroundings, check=True)


def measured(one: Answered, answers: Submission, kinds: dict[str, NDArray[np.bool_]]) -> dict[str, Any]:
    """Return scores for every kind of place, and how well the confidence is stated."""
    right = is_right(one.given.image_ids, one.given.x, one.given.y, answers)
    scores = {k: score(part(one.given, rows), part(answers, rows)).to_dict() for k, rows in kinds.items()}
    return {
        "seconds": one.seconds,
        "scores": scores,
        "right": float(right.mean()),
        "stated": float(one.confidence.mean()),
        "calibration_error": calibration_error(one.confidence, right, answers),
    }


def main() -> None:
    """Draw the snow, ask every package, and print the table."""
    parser = arguments(__doc__)
    parser.add_argument("data", type=Path, help="folder with train/ and val/")
    parser.add_argument("--package", type=Path, action="append", required=True, help="folder of a checkout")
    parser.add_argument("--out", type=Path, default=Path("build/snow"))
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--copies",
        type=int,
        choices=range(1, TURNS + 1),
        default=1,
        help="upright and turned copies of each image",
    )
    args = parser.parse_args()
    if not (args.out / "images").exists():
        write_images(args.data, args.out / "unfinished", args.copies)
        shutil.move(args.out / "unfinished", args.out / "images")
    patches, answers, folders = draw(args.data, args.queries, args.seed, args.copies)
    np.save(args.out / "patches.npy", patches)
    kinds = {"all": np.ones(len(folders), bool)} | {str(f): folders == f for f in np.unique(folders)}
    results: dict[str, Any] = {}
    former: Answered | None = None
    for package in args.package:
        one = asked(package, args.out / "images", args.out / "patches.npy", args.out / package.resolve().name)
        entry = measured(one, answers, kinds)
        if former is None:
            former = one
        else:
            entry["minus"] = {
                k: compare(part(one.given, r), part(former.given, r), part(answers, r)).to_dict()
                for k, r in kinds.items()
            }
        results[one.commit] = entry
        for kind, scores in entry["scores"].items():
            more = entry.get("minus", {}).get(kind, {}).get("SC", {})
            print(one.commit, kind, "SC", scores["SC"], "minus the first", more, flush=True)
        print(f"  right {entry['right']:.3f}, stated {entry['stated']:.3f}, {one.seconds}", flush=True)
    figures = {
        "context": context(queries=args.queries, seed=args.seed, copies=args.copies),
        "commits": results,
    }
    write_json(args.json, figures)


if __name__ == "__main__":
    main()
