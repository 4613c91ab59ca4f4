r"""Measure segmentation by cross-validation over ground, next to gradient-boosted trees.

    python benchmarks/segment.py buildings DATA --json benchmarks/results/segment-buildings.json
    python benchmarks/segment.py deepglobe DATA --json benchmarks/results/segment-deepglobe.json

DATA is the folder that holds `buildings/` and `deepglobe/`. A fold leaves ground out that no training sees.
For buildings it is one of the five zoom-19 tiles of train and val, and the pooled IoU at zoom 20 counts. For
DeepGlobe it is one of ten scenes, and the two scenes of val are pooled too. All pixels share one confusion
matrix; intervals draw whole folds.

DeepGlobe has 0.5 m pixels, and land cover needs a wide view: methods see means of 8 x 8 pixels. Their
probabilities are interpolated to the full size, where the labels are.

- *trees*: gradient-boosted trees of scikit-learn, trained on 300,000 pixels of the same tiles, or 50,000 of
  the same scenes. They see colours, their mean and spread in three neighbourhoods, and edges.
- *network*: `retrieve segment train` with a recipe, without validation; and the mean over orientations.
- *forest*: `retrieve segment train --method trees`, which maps blocks of the full size.

Each fold is kept in WORK as it finishes, so that a stopped run resumes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from context import arguments, context, write_json
from numpy.typing import NDArray

from retrieval.config import ForestConfig, SegmenterConfig
from retrieval.evaluation.segmentation import confusion_of, measure_maps
from retrieval.labels import rasterize
from retrieval.tasks.neighbourhood import features as block_features
from retrieval.tasks.segment.model import load_segmenter
from retrieval.tasks.segment.scenes import Scene, SceneSet
from retrieval.tasks.segment.sources import read_scenes
from retrieval.tasks.segment.training import train_segmenter
from retrieval.tasks.segment.trees import train_forest
from retrieval.training.recipes import read_recipe

SIGMAS = (1.5, 4.0, 12.0)
"""Neighbourhoods of the trees, as standard deviations of a Gaussian in pixels."""
SAMPLE = {"buildings": 300_000, "deepglobe": 50_000}
"""Pixels that the trees learn from."""
FOLDS_ZOOM, FIGURE_ZOOM = 19, 20
VIEWS = 4
"""Orientations of the second row of the network."""
METHODS = ("trees", "network", "forest")
REDUCTION = {"buildings": 1, "deepglobe": 8}
"""Side of the squares of pixels whose mean the methods see."""
RECIPES = {"buildings": "aerial", "deepglobe": "land-cover"}
VAL = ("19627", "855")
"""Scenes of DeepGlobe's val."""

Maps = dict[str, list[NDArray[np.float32]]]
"""Probabilities (y, x, k) of each test scene, by name of the method."""
Method = Callable[[SceneSet, tuple[Scene, ...], Path], Maps]


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


def reduced(scenes: SceneSet, side: int) -> SceneSet:
    """Return scenes whose pixels are means of squares, with the label at the middle of each."""
    if side == 1:
        return scenes

    def smaller(scene: Scene) -> Scene:
        t, height, width, b = scene.pixels.shape
        rows, columns = height // side, width // side
        cut = scene.pixels[:, : rows * side, : columns * side]
        means = cut.reshape(t, rows, side, columns, side, b).mean((2, 4), dtype=np.float32)
        labels = scene.labels[side // 2 :: side, side // 2 :: side][:rows, :columns]
        return Scene(scene.name, np.rint(means).astype(scene.pixels.dtype), labels)

    return replace(scenes, scenes=tuple(map(smaller, scenes.scenes)))


def enlarged(probabilities: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return probabilities (y, x, k) interpolated to another size."""
    if probabilities.shape[:2] == shape:
        return probabilities
    import tensorflow as tf

    return np.asarray(tf.image.resize(probabilities, shape))


# --- trees ------------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def features_of(scene: Scene) -> NDArray[np.float32]:
    """Return the features of a scene."""
    return features(scene.stacked)


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


def trees(sample: int) -> Method:
    """Return what trains trees on a sample of the pixels and maps the test scenes."""
    return partial(_trees, sample)


def _trees(sample: int, training: SceneSet, test: tuple[Scene, ...], out: Path) -> Maps:
    from sklearn.ensemble import HistGradientBoostingClassifier

    rng, k = np.random.default_rng(0), len(training.classes.names)
    share = sample / max(int(training.counts().sum()), 1)
    shown, labels = [], []
    for scene in training.scenes:
        drawn = (scene.labels != 255) & (rng.random(scene.mask.shape) < share)
        shown.append(features_of(scene)[drawn])
        labels.append(scene.labels[drawn])
    model = HistGradientBoostingClassifier(max_iter=150, max_leaf_nodes=31, random_state=0)
    model.fit(np.concatenate(shown), np.concatenate(labels))
    maps = []
    for scene in test:
        values = features_of(scene)
        likely = np.zeros((*scene.mask.shape, k), np.float32)
        found = model.predict_proba(values.reshape(-1, values.shape[-1]))
        likely[..., model.classes_] = found.reshape(*scene.mask.shape, -1)
        maps.append(likely)
    return {"trees": maps}


# --- network ----------------------------------------------------------------------------------------------


def network(config: SegmenterConfig, views: Sequence[int] = (1, VIEWS)) -> Method:
    """Return what trains the network by a recipe, and maps the test scenes in numbers of orientations."""

    def run(training: SceneSet, test: tuple[Scene, ...], out: Path) -> Maps:
        train_segmenter(training, out, config, overwrite=True)
        model = load_segmenter(out)
        return {
            "network" if count == 1 else f"network, {count} orientations": [
                model.map_probabilities(s.pixels, s.known, orientations=count) for s in test
            ]
            for count in views
        }

    return run


@lru_cache(maxsize=64)
def blocks_of(scene: Scene, config: ForestConfig) -> NDArray[np.float32]:
    """Return the features of the trees of the product for all blocks of a scene."""
    side = config.reduction
    height, width = (length // side * side for length in scene.mask.shape)
    scale = np.float32(255)
    return block_features(scene.stacked[:height, :width] / scale, side, config.squares)


def forest(config: ForestConfig) -> Method:
    """Return what trains the trees of the product by a recipe, and maps the test scenes."""

    def run(training: SceneSet, test: tuple[Scene, ...], out: Path) -> Maps:
        made = out.with_name(f"{out.name}-forest")
        shown_of = partial(blocks_of, config=config)
        train_forest(training, made, config, shown_of=shown_of, overwrite=True)
        model = load_segmenter(made)
        return {"forest": [model.map_probabilities(scene.pixels, scene.known) for scene in test]}

    return run


# --- folds ------------------------------------------------------------------------------------------------


def main() -> None:
    """Run all folds that WORK lacks, and write the figures of the methods whose folds are whole."""
    parser = arguments(__doc__)
    parser.add_argument("job", choices=["buildings", "deepglobe"])
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("build/segment"))
    parser.add_argument("--recipe", help="recipe of the network; else the one of the job")
    parser.add_argument("--methods", default=",".join(METHODS), help="separated by commas")
    asked = parser.parse_args()
    recipe = SegmenterConfig(**read_recipe(asked.recipe or RECIPES[asked.job]))
    work = asked.work / asked.job
    work.mkdir(parents=True, exist_ok=True)
    scenes, fold_of = {"buildings": buildings, "deepglobe": deepglobe}[asked.job](asked.data, work)
    truth = [scene.labels for scene in scenes.scenes]
    full, scenes = scenes, reduced(scenes, REDUCTION[asked.job])
    folds = {fold: [f == fold for f in fold_of] for fold in sorted(set(fold_of))}
    methods: dict[str, Method] = {"trees": trees(SAMPLE[asked.job]), "network": network(recipe)}
    methods["forest"] = forest(ForestConfig(reduction=REDUCTION[asked.job]))
    for method in asked.methods.split(","):
        for number, (fold, is_test) in enumerate(folds.items()):
            kept = work / f"{method}-{number}.json"
            if not kept.exists():
                page = measured(
                    methods[method],
                    full if method == "forest" else scenes,
                    truth,
                    is_test,
                    work / f"model-{number}",
                )
                kept.write_text(json.dumps({"fold": fold} | page))
                for name, table in page["confusion"].items():
                    line = _line(np.array([table]), scenes)
                    print(method, number, fold, name, line, page["seconds"], "s", flush=True)
    _write(asked, work, scenes, list(folds), recipe)


def measured(
    method: Method, scenes: SceneSet, truth: list[NDArray[np.uint8]], is_test: list[bool], out: Path
) -> dict[str, Any]:
    """Train without the test scenes, map them, and return the confusion matrices."""
    k, start = len(scenes.classes.names), time.monotonic()
    rest = tuple(s for s, tested in zip(scenes.scenes, is_test, strict=True) if not tested)
    test = tuple(s for s, tested in zip(scenes.scenes, is_test, strict=True) if tested)
    labels = [mask for mask, tested in zip(truth, is_test, strict=True) if tested]
    confusion = {}
    for name, maps in method(replace(scenes, scenes=rest), test, out).items():
        total = np.zeros((k, k), np.int64)
        for likely, mask in zip(maps, labels, strict=True):
            total += confusion_of(mask, enlarged(likely, mask.shape).argmax(-1).astype(np.uint8), k)
        confusion[name] = total.tolist()
    return {"seconds": round(time.monotonic() - start, 1), "confusion": confusion}


def _write(asked: Any, work: Path, scenes: SceneSet, folds: list[str], recipe: SegmenterConfig) -> None:
    """Write the figures of methods whose folds are whole; a row that WORK lacks stays as the file has it."""
    former = json.loads(asked.json.read_text())["rows"] if asked.json and asked.json.exists() else {}
    rows: dict[str, Any] = dict(former)
    names = scenes.classes.names
    for method in METHODS:
        files = {fold: work / f"{method}-{number}.json" for number, fold in enumerate(folds)}
        if not all(file.exists() for file in files.values()):
            continue
        pages = {fold: json.loads(file.read_text()) for fold, file in files.items()}
        for name in next(iter(pages.values()))["confusion"]:
            tables = np.array([page["confusion"][name] for page in pages.values()])
            rows[name] = measure_maps(tables, names).to_dict()
            rows[name]["fold_seconds"] = [page["seconds"] for page in pages.values()]
            rows[name]["folds"] = [
                measure_maps(table[None], names).to_dict()["miou"]["value"] for table in tables
            ]
            held = [pages[fold]["confusion"][name] for fold in VAL if fold in pages]
            if held:
                rows[name]["val"] = measure_maps(np.array(held), names).to_dict()
            print(f"{name:<26}", _line(tables, scenes))
    page = context(scenes=len(scenes), reduction=REDUCTION[asked.job])
    page |= {"job": asked.job, "recipe": recipe.to_dict(), "rows": rows}
    write_json(asked.json, page)


def _line(tables: NDArray[np.int64], scenes: SceneSet) -> str:
    figures = measure_maps(tables, scenes.classes.names)
    of = figures.miou if len(scenes.classes.names) > 2 else figures.by_class[scenes.classes.names[1]].iou
    return f"IoU {of.value:.3f} [{of.low:.3f}, {of.high:.3f}]"


if __name__ == "__main__":
    main()
