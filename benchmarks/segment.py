r"""Measure segmentation by cross-validation over ground, next to gradient-boosted trees.

    python benchmarks/segment.py buildings DATA --json benchmarks/results/segment-buildings.json
    python benchmarks/segment.py deepglobe DATA --json benchmarks/results/segment-deepglobe.json

DATA is the folder that holds `buildings/` and `deepglobe/`. A fold leaves ground out that no training sees.
For buildings it is one of the five zoom-19 tiles of train and val, and the pooled IoU at zoom 20 counts. For
DeepGlobe it is one of ten scenes. All pixels share one confusion matrix; intervals draw whole folds.

- *trees*: gradient-boosted trees of scikit-learn, trained on 300,000 pixels of the same scenes. They see
  colours, their mean and spread in three neighbourhoods, and edges.
- *network*: `retrieve segment train` with a recipe, without validation; and the mean over orientations.

Each fold is kept in WORK as it finishes, so that a stopped run resumes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from context import arguments, context, write_json
from numpy.typing import NDArray

from retrieval.config import SegmenterConfig
from retrieval.evaluation.segmentation import confusion_of, measure_maps
from retrieval.labels import rasterize
from retrieval.tasks.segment.model import load_segmenter
from retrieval.tasks.segment.scenes import Scene, SceneSet
from retrieval.tasks.segment.sources import read_scenes
from retrieval.tasks.segment.training import train_segmenter
from retrieval.training.recipes import read_recipe

SIGMAS = (1.5, 4.0, 12.0)
"""Neighbourhoods of the trees, as standard deviations of a Gaussian in pixels."""
SAMPLE = 300_000
"""Pixels that the trees learn from."""
FOLDS_ZOOM, FIGURE_ZOOM = 19, 20
VIEWS = 4
"""Orientations of the second row of the network."""


def buildings(data: Path, work: Path) -> tuple[SceneSet, list[str]]:
    """Return all tiles of zoom 20 and the zoom-19 tile of each."""
    import mercantile

    from retrieval.labels.files import tile_of

    parts = []
    for part in ("train", "val"):
        masks = work / "masks" / part
        if not masks.exists():
            rasterize(
                data / f"buildings/{part}.geojson", data / "buildings" / part, masks, as_class="building"
            )
        parts.append(read_scenes(data / "buildings" / part, masks, zoom=FIGURE_ZOOM))
    scenes = replace(parts[0], scenes=parts[0].scenes + parts[1].scenes)
    return scenes, [str(mercantile.parent(tile_of(s.name), zoom=FOLDS_ZOOM)) for s in scenes.scenes]


def deepglobe(data: Path, work: Path) -> tuple[SceneSet, list[str]]:
    """Return the ten scenes, each its own fold."""
    parts = [
        read_scenes(data / "deepglobe" / p, data / "deepglobe" / p, classes="deepglobe")
        for p in ("train", "val")
    ]
    scenes = replace(parts[0], scenes=parts[0].scenes + parts[1].scenes)
    return scenes, [scene.name for scene in scenes.scenes]


# --- trees ------------------------------------------------------------------------------------------------


def features(pixels: NDArray[Any]) -> NDArray[np.float32]:
    """Return colours, their mean and spread in three neighbourhoods, and edges: (y, x, f)."""
    from scipy.ndimage import gaussian_filter, gaussian_gradient_magnitude

    colours = pixels.astype(np.float32)
    parts = [colours]
    for sigma in SIGMAS:
        size = (sigma, sigma, 0)
        mean = gaussian_filter(colours, size)
        parts += [mean, np.sqrt(np.maximum(gaussian_filter(colours**2, size) - mean**2, 0))]
        parts.append(gaussian_gradient_magnitude(colours.mean(-1), sigma)[..., None])
    return np.concatenate(parts, axis=-1)


def trees(training: SceneSet, test: tuple[Scene, ...], out: Path) -> dict[str, NDArray[np.int64]]:
    """Train trees and return the confusion matrix of the test scenes."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    rng, k = np.random.default_rng(0), len(training.classes.names)
    share = SAMPLE / max(int(training.counts().sum()), 1)
    shown, labels = [], []
    for scene in training.scenes:
        drawn = (scene.labels != 255) & (rng.random(scene.mask.shape) < share)
        shown.append(features(scene.stacked)[drawn])
        labels.append(scene.labels[drawn])
    model = HistGradientBoostingClassifier(max_iter=150, max_leaf_nodes=31, random_state=0)
    model.fit(np.concatenate(shown), np.concatenate(labels))
    total = np.zeros((k, k), np.int64)
    for scene in test:
        values = features(scene.stacked)
        found = model.predict(values.reshape(-1, values.shape[-1])).reshape(scene.mask.shape)
        total += confusion_of(scene.labels, found, k)
    return {"trees": total}


# --- network ----------------------------------------------------------------------------------------------


def network(recipe: str) -> Callable[[SceneSet, tuple[Scene, ...], Path], dict[str, NDArray[np.int64]]]:
    """Return what trains the network by a recipe and maps the test scenes."""
    config = SegmenterConfig(**read_recipe(recipe)) if recipe else SegmenterConfig()

    def run(training: SceneSet, test: tuple[Scene, ...], out: Path) -> dict[str, NDArray[np.int64]]:
        train_segmenter(training, out, config, overwrite=True)
        model, k = load_segmenter(out), len(training.classes.names)
        totals = {}
        for name, views in (("network", 1), (f"network, {VIEWS} orientations", VIEWS)):
            total = np.zeros((k, k), np.int64)
            for scene in test:
                likely = model.map_probabilities(scene.pixels, scene.known, orientations=views)
                total += confusion_of(scene.labels, model.choose(likely), k)
            totals[name] = total
        return totals

    return run


# --- folds ------------------------------------------------------------------------------------------------


def main() -> None:
    """Run all folds that WORK lacks, and write the figures of the methods whose folds are whole."""
    parser = arguments(__doc__)
    parser.add_argument("job", choices=["buildings", "deepglobe"])
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("build/segment"))
    parser.add_argument("--recipe", default="aerial", help="recipe of the network")
    parser.add_argument("--methods", default="trees,network", help="separated by commas")
    asked = parser.parse_args()
    work = asked.work / asked.job
    work.mkdir(parents=True, exist_ok=True)
    scenes, fold_of = {"buildings": buildings, "deepglobe": deepglobe}[asked.job](asked.data, work)
    methods = {"trees": trees, "network": network(asked.recipe)}
    folds = sorted(set(fold_of))
    for method in asked.methods.split(","):
        for number, fold in enumerate(folds):
            kept = work / f"{method}-{number}.json"
            if kept.exists():
                continue
            rest = [s for s, f in zip(scenes.scenes, fold_of, strict=True) if f != fold]
            test = tuple(s for s, f in zip(scenes.scenes, fold_of, strict=True) if f == fold)
            start = time.monotonic()
            totals = methods[method](replace(scenes, scenes=tuple(rest)), test, work / f"model-{number}")
            page = {"fold": fold, "seconds": round(time.monotonic() - start, 1)}
            page["confusion"] = {name: table.tolist() for name, table in totals.items()}
            kept.write_text(json.dumps(page))
            for name, table in totals.items():
                print(
                    method, number, name, _line(np.array([table]), scenes), page["seconds"], "s", flush=True
                )
    _write(asked, work, scenes, len(folds))


def _write(asked: Any, work: Path, scenes: SceneSet, count: int) -> None:
    """Write the figures of methods whose folds are whole."""
    rows: dict[str, Any] = {}
    for method in ("trees", "network"):
        files = [work / f"{method}-{number}.json" for number in range(count)]
        if not all(file.exists() for file in files):
            continue
        pages = [json.loads(file.read_text()) for file in files]
        for name in pages[0]["confusion"]:
            tables = np.array([page["confusion"][name] for page in pages])
            rows[name] = measure_maps(tables, scenes.classes.names).to_dict()
            rows[name]["fold_seconds"] = [page["seconds"] for page in pages]
            rows[name]["folds"] = [
                measure_maps(table[None], scenes.classes.names).to_dict()["miou"]["value"] for table in tables
            ]
            print(f"{name:<26}", _line(tables, scenes))
    recipe = SegmenterConfig(**read_recipe(asked.recipe)).to_dict() if asked.recipe else {}
    page = context(scenes=len(scenes), folds=count) | {"job": asked.job, "recipe": recipe, "rows": rows}
    write_json(asked.json, page)


def _line(tables: NDArray[np.int64], scenes: SceneSet) -> str:
    figures = measure_maps(tables, scenes.classes.names)
    of = figures.miou if len(scenes.classes.names) > 2 else figures.by_class[scenes.classes.names[1]].iou
    return f"IoU {of.value:.3f} [{of.low:.3f}, {of.high:.3f}]"


if __name__ == "__main__":
    main()
