r"""Measure maps of change on real cities and floods, next to gradient-boosted trees.

    python benchmarks/change.py oscd DATA --json benchmarks/results/change-oscd.json
    python benchmarks/change.py ombria DATA --json benchmarks/results/change-ombria.json

DATA is the folder that holds `s2/` and `labels/change/`. *oscd*: the training cities teach, the validation
cities are measured. *ombria*: five folds over the training sites, and the training sites teach for the
validation sites. Pixels are pooled; intervals draw blocks of 256 x 256 pixels.

- *trees*: gradient-boosted trees (scikit-learn) on both dates and their normalized difference at a pixel, and
  their mean and spread in three neighbourhoods. Threshold of the largest F1 in a held-out fifth.
- *untrained*: the method without labels; *otsu*: with Otsu's threshold for each place.
- *forest*: `retrieve change train --method trees`; its threshold comes from places that take turns.
- *indices*: the same with the recipe `{"indices": true, "scales": 4, "even": 0.5}`.
- *network*: `retrieve change train`, threshold fitted on the held-out fifth; *networks*: mean of three seeds.

All see the same coregistered dates without cloud. Hidden change counts as missed. Only tiles with labels are
mapped. Each place and each fold is kept in WORK, so that a stopped run resumes.
"""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from context import arguments, context, write_json
from numpy.typing import NDArray

from retrieval.config import ForestConfig
from retrieval.evaluation.change import Tally, measure_change, tally
from retrieval.tasks.change.learned import Learned
from retrieval.tasks.change.mapping import Options, without_specks
from retrieval.tasks.change.places import labelled_places
from retrieval.tasks.change.training import (
    RECIPE,
    ReadPlace,
    held_out_row,
    indices_of_dates,
    read_place,
    recipe_of,
    scenes_of,
    whole_scenes_of,
)
from retrieval.tasks.change.untrained import THRESHOLD, probability_of
from retrieval.tasks.forest import Forest
from retrieval.tasks.segment.model import Segmenter, load_segmenter
from retrieval.tasks.segment.training import train_segmenter
from retrieval.tasks.segment.trees import train_forest
from retrieval.training.recipes import read_recipe

SIGMAS = (1.5, 4.0, 10.0)
"""Neighbourhoods of the trees, as standard deviations of a Gaussian in pixels."""
TILE_PX, AROUND_PX = 256, 64
"""Side of the tiles that are mapped where a place has labels, and the ground around them that is seen."""
SAMPLE = 200_000
"""Pixels that the trees learn from."""
ROUNDS = 200
"""Most trees; fewer where a tenth of the sample gains nothing."""
METHODS = ("trees", "untrained", "otsu", "network", "networks", "forest", "indices", "both")
SEEDS = 3
"""Networks whose mean is the method *networks*; *both* is the mean of the forest and one network."""
FOLDS = 5
MIN_PIXELS = Options().min_pixels
Named = Sequence[tuple[str, ReadPlace]]


def read_places(data: Path, job: str, part: str, work: Path) -> list[tuple[str, ReadPlace]]:
    """Read the labelled places of a part, each once."""
    pairs, _ = labelled_places(data / "s2" / part / job, data / "labels" / "change" / job)
    found = []
    for one in pairs:
        kept = work / f"place-{part}-{one.name}.pickle"
        if not kept.exists():
            kept.write_bytes(pickle.dumps(read_place(one, Options(), None, None)))
            print(part, one.name, "read", flush=True)
        found.append((one.name, pickle.loads(kept.read_bytes())))
    return found


def cleaned(probability: NDArray[Any], threshold: float, read: ReadPlace) -> NDArray[np.uint8]:
    """Return the map of change of probabilities."""
    values = (probability >= threshold).astype(np.uint8)
    values[~read.ground] = 255
    return without_specks(values, MIN_PIXELS)


# --- methods ----------------------------------------------------------------------------------------------


def features(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return inputs, and their mean and spread in neighbourhoods: (y, x, f)."""
    from scipy.ndimage import gaussian_filter

    parts = [inputs]
    for sigma in SIGMAS:
        mean = gaussian_filter(inputs, (sigma, sigma, 0), truncate=3)
        spread = gaussian_filter(inputs**2, (sigma, sigma, 0), truncate=3) - mean**2
        parts += [mean, np.sqrt(np.maximum(spread, 0))]
    return np.concatenate(parts, axis=-1)


def features_of(name: str, read: ReadPlace, work: Path) -> NDArray[np.float32]:
    """Return the features of the labelled pixels of a place that show ground, computed once: (n, f)."""
    kept = work / f"features-{name}.npy"
    if not kept.exists():
        whole = np.zeros((*read.labels.shape, read.inputs.shape[-1] * (1 + 2 * len(SIGMAS))), np.float16)
        for seen, inner, target in tiles_of(read):
            whole[target] = features(read.inputs[seen])[inner]
        np.save(kept, whole[read.labels != 255])
    return np.load(kept).astype(np.float32)


def trees(taught: Named, test: Named, out: Path) -> tuple[dict[str, NDArray[np.uint8]], float]:
    """Map the labelled pixels of the test places by trees."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    rng = np.random.default_rng(0)
    share = SAMPLE / sum(int((read.labels != 255).sum()) for _, read in taught)
    parts: dict[bool, list[Any]] = {False: [], True: []}
    for name, read in taught:
        known = read.labels != 255
        below = np.nonzero(known)[0] >= held_out_row(read.labels)
        drawn = rng.random(len(below)) < share
        shown = features_of(name, read, out.parent)
        for held_out in (False, True):
            chosen = drawn & (below == held_out)
            parts[held_out].append((shown[chosen], read.labels[known][chosen]))
    shown, labels = (np.concatenate(column) for column in zip(*parts[False], strict=True))
    model = HistGradientBoostingClassifier(max_iter=ROUNDS, max_leaf_nodes=31, random_state=0)
    model.fit(shown, labels)
    shown, labels = (np.concatenate(column) for column in zip(*parts[True], strict=True))
    threshold = best_threshold(model.predict_proba(shown)[:, 1], labels)
    maps = {}
    for name, read in test:
        likely = np.zeros(read.ground.shape, np.float32)
        shown = features_of(name, read, out.parent)
        likely[read.labels != 255] = model.predict_proba(shown)[:, 1]
        maps[name] = cleaned(likely, threshold, read)
    return maps, threshold


def best_threshold(probability: NDArray[Any], labels: NDArray[Any]) -> float:
    """Return the threshold with the largest F1."""
    steps = np.linspace(0.02, 0.98, 97)
    found = probability >= steps[:, None]
    both = (found & (labels == 1)).sum(1)
    return float(steps[(2 * both / np.maximum(found.sum(1) + (labels == 1).sum(), 1)).argmax()])


def untrained(taught: Named, test: Named, out: Path) -> tuple[dict[str, NDArray[np.uint8]], float]:
    """Map the test places without labels."""
    maps = {}
    for name, read in test:
        maps[name] = cleaned(probability_of(score_of(read)), THRESHOLD, read)
    return maps, THRESHOLD


def score_of(read: ReadPlace) -> NDArray[np.float32]:
    """Return the score of the method without labels (y, x)."""
    gap = read.inputs[..., 2 * len(read.bands) :]
    return np.asarray(np.sqrt((gap * gap).sum(-1)))


def otsu(taught: Named, test: Named, out: Path) -> tuple[dict[str, NDArray[np.uint8]], float]:
    """Map the test places without labels, each with Otsu's threshold of the place."""
    maps, thresholds = {}, []
    for name, read in test:
        likely = probability_of(score_of(read))
        thresholds.append(otsu_threshold(likely[read.ground]))
        maps[name] = cleaned(likely, thresholds[-1], read)
    return maps, float(np.mean(thresholds))


def otsu_threshold(values: NDArray[Any]) -> float:
    """Return the threshold between two classes of values with the largest variance between them.

    Source: N. Otsu, A threshold selection method from gray-level histograms, 1979.
    """
    counts, edges = np.histogram(values, 256)
    below = np.cumsum(counts) / counts.sum()
    sums = np.cumsum(counts * edges[:-1]) / counts.sum()
    between = (sums[-1] * below - sums) ** 2 / np.maximum(below * (1 - below), 1e-12)
    return float(edges[1:][between[:-1].argmax()])


def network(recipe: str, seeds: int) -> Callable[..., tuple[dict[str, NDArray[np.uint8]], float]]:
    """Return what trains networks of some seeds, and maps the test places by their mean."""
    config = recipe_of(read_recipe(recipe)) if recipe else RECIPE

    def run(taught: Named, test: Named, out: Path) -> tuple[dict[str, NDArray[np.uint8]], float]:
        scenes, held_out = scenes_of(taught, "places")
        models = []
        for seed in range(seeds):
            member = out.with_name(f"{out.name}-{seed}")
            if not member.exists():
                train_segmenter(scenes, member, replace(config, seed=seed), validation=held_out)
            models.append(load_segmenter(member))
        threshold = Learned(*models).threshold
        maps = {}
        for name, read in test:
            likely = np.mean([mapped(model, read) for model in models], axis=0)
            maps[name] = cleaned(likely, threshold, read)
        return maps, threshold

    return run


def forest(name: str, config: ForestConfig) -> Callable[..., tuple[dict[str, NDArray[np.uint8]], float]]:
    """Return what trains the trees of the product by a recipe, and maps the test places."""

    def run(taught: Named, test: Named, out: Path) -> tuple[dict[str, NDArray[np.uint8]], float]:
        made = out.with_name(f"{out.name}-{name}")
        if not made.exists():
            scenes, indices = whole_scenes_of(taught, "places"), indices_of_dates(len(taught[0][1].bands))
            train_forest(scenes, made, config, groups=[name for name, _ in taught], indices=indices)
        model = load_segmenter(made)
        threshold = Learned(model).threshold
        return {name: cleaned(mapped(model, read), threshold, read) for name, read in test}, threshold

    return run


def both(taught: Named, test: Named, out: Path) -> tuple[dict[str, NDArray[np.uint8]], float]:
    """Map the test places by the mean of a forest and a network that were trained before."""
    models = [load_segmenter(out.with_name(f"{out.name}-{kind}")) for kind in ("forest", "0")]
    threshold = Learned(*models).threshold
    maps = {}
    for name, read in test:
        maps[name] = cleaned(np.mean([mapped(model, read) for model in models], axis=0), threshold, read)
    return maps, threshold


def mapped(model: Segmenter, read: ReadPlace) -> NDArray[np.float32]:
    """Return the probability of change (y, x) in the tiles that hold labels, and 0 elsewhere."""
    filled = model.filled(read.inputs, read.ground)
    likely = np.zeros(read.labels.shape, np.float32)
    around = max(AROUND_PX, model.network.view_px) if isinstance(model.network, Forest) else AROUND_PX
    for seen, inner, target in tiles_of(read, around):
        likely[target] = model.probabilities(filled[seen][None])[0, ..., 1][inner]
    return likely


Part = tuple[slice, slice]


def tiles_of(read: ReadPlace, around: int = AROUND_PX) -> Iterator[tuple[Part, Part, Part]]:
    """Yield each tile that holds labels: with its surroundings, in them, and in the place."""
    height, width = read.labels.shape
    side = TILE_PX + 2 * around
    for y in range(0, height, TILE_PX):
        for x in range(0, width, TILE_PX):
            target = np.s_[y : y + TILE_PX, x : x + TILE_PX]
            if (read.labels[target] == 255).all():
                continue
            top, left = (max(min(at - around, of - side), 0) for at, of in ((y, height), (x, width)))
            inner = np.s_[y - top : y - top + TILE_PX, x - left : x - left + TILE_PX]
            yield np.s_[top : top + side, left : left + side], inner, target


# --- folds ------------------------------------------------------------------------------------------------


def main() -> None:
    """Run all folds that WORK lacks, and write the figures of the methods whose folds are whole."""
    parser = arguments(__doc__)
    parser.add_argument("job", choices=["oscd", "ombria"])
    parser.add_argument("data", type=Path)
    parser.add_argument("--work", type=Path, default=Path("build/change"))
    parser.add_argument("--recipe", default="", help="recipe of the network")
    parser.add_argument("--methods", default=",".join(METHODS), help="separated by commas")
    parser.add_argument("--folds", default="", help="only these folds, separated by commas")
    asked = parser.parse_args()
    work = asked.work / asked.job
    work.mkdir(parents=True, exist_ok=True)
    taught, val = (read_places(asked.data, asked.job, part, work) for part in ("train", "val"))
    folds: dict[str, tuple[Named, Named]] = {"val": (taught, val)}
    if asked.job == "ombria":
        folds |= {
            str(f): (
                [place for i, place in enumerate(taught) if i % FOLDS != f],
                [place for i, place in enumerate(taught) if i % FOLDS == f],
            )
            for f in range(FOLDS)
        }
    methods = {"trees": trees, "untrained": untrained, "otsu": otsu}
    methods |= {"network": network(asked.recipe, 1), "networks": network(asked.recipe, SEEDS)}
    methods |= {"forest": forest("forest", ForestConfig()), "both": both}
    methods |= {"indices": forest("indices", ForestConfig(indices=True, scales=4, even=0.5))}
    for fold in asked.folds.split(",") if asked.folds else folds:
        for method in asked.methods.split(","):
            kept = work / f"{method}-{fold}.json"
            if not kept.exists():
                start = time.monotonic()
                maps, threshold = methods[method](*folds[fold], work / f"model-{fold}")
                tallies = {n: asdict(tally(maps[n], read.labels_of_all)) for n, read in folds[fold][1]}
                seconds = round(time.monotonic() - start, 1)
                page = {"threshold": threshold, "seconds": seconds, "tallies": tallies}
                kept.write_text(json.dumps(page, default=lambda array: array.tolist()))
            print(method, fold, _line(measured([kept])), flush=True)
    _write(asked, work, [fold for fold in folds if fold != "val"])


def measured(files: Sequence[Path]) -> dict[str, Any]:
    """Return the figures of folds together."""
    pages = [json.loads(file.read_text()) for file in files]
    tallies = {
        name: Tally(np.array(one["counts"], np.int64), one["labelled"], one["hidden"])
        for page in pages
        for name, one in page["tallies"].items()
    }
    figures = measure_change(tallies, float(np.mean([page["threshold"] for page in pages]))).to_dict()
    return figures | {"seconds": [page["seconds"] for page in pages]}


def _write(asked: Any, work: Path, folds: Sequence[str]) -> None:
    """Write the measured rows; a row that WORK lacks stays as the file has it."""
    former = json.loads(asked.json.read_text())["rows"] if asked.json and asked.json.exists() else {}
    rows: dict[str, Any] = dict(former)
    for method in METHODS:
        for name, wanted in (("val", ["val"]), ("folds", list(folds))):
            files = [work / f"{method}-{fold}.json" for fold in wanted]
            if files and all(file.exists() for file in files):
                rows.setdefault(method, {})[name] = measured(files)
    recipe = recipe_of(read_recipe(asked.recipe)) if asked.recipe else RECIPE
    write_json(asked.json, context() | {"job": asked.job, "recipe": recipe.to_dict(), "rows": rows})


def _line(page: dict[str, Any]) -> str:
    shown = [
        f"{k} {page[k]['value']:.3f} [{page[k]['low']:.3f}, {page[k]['high']:.3f}]" for k in ("f1", "iou")
    ]
    return f"{', '.join(shown)}, threshold {page['threshold']:.2f}, {sum(page['seconds']):.0f} s"


if __name__ == "__main__":
    main()
