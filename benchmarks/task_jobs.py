"""Small jobs of the commands that learn from labels, map and compare; see `small_jobs.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from job import PRINTED, Job, command, ground, write_tif

NAMES = ("field", "forest", "water")
COMMON = {"steps": 4, "batch": 2, "warmup_steps": 1, "validate_every": 2, "compile": False}
CLASSIFIER = COMMON | {"width": 4, "blocks": 1, "batch": 6, "unlabelled_batch": 6}
SEGMENTER = COMMON | {"width": 4, "stages": 1, "stride": 2, "crop": 32}
TREES = {"trees": 4, "sample": 2000}
SIDE = 96
CORNER = (500_000.0, 5_000_000.0)
"""Corner of the images in EPSG:32631."""


def _recipe(folder: Path, recipe: dict[str, Any], version: int) -> None:
    (folder / "recipe.json").write_text(json.dumps(recipe | {"seed": version}))


def _squares(seed: int, count: int = 3, side: int = SIDE) -> Any:
    """Return a mask (side, side) of squares, each of a random class."""
    coarse = np.random.default_rng(seed).integers(0, count, (side // 12, side // 12), np.uint8)
    return coarse.repeat(12, 0).repeat(12, 1)


# --- classify ---------------------------------------------------------------------------------------------


def _labelled(folder: Path, version: int) -> None:
    for number, name in enumerate(("train", "valid", "more")):
        labels = np.arange(18) % 3
        noise = np.random.default_rng(number).normal(0, 20, (18, 16, 16, 3))
        pixels = np.clip(60 + 60 * labels[:, None, None, None] + noise, 1, 255).astype(np.uint8)
        np.savez(folder / f"{name}.npz", pixels=pixels, labels=np.array(NAMES)[labels])
    _recipe(folder, CLASSIFIER, version)


def _train_classifier(folder: Path) -> tuple[object, ...]:
    flags = ("--unlabelled", folder / "more.npz", "--validation", folder / "valid.npz")
    recipe = ("--recipe", folder / "recipe.json", "--out", folder / "trained")
    return ("classify", "train", folder / "train.npz", *flags, *recipe)


def _trained_classifier(folder: Path) -> None:
    _labelled(folder, 0)
    command(*_train_classifier(folder), "--quiet")


# --- segment and labels -----------------------------------------------------------------------------------


def _pairs(folder: Path, version: int) -> None:
    for number in range(3):
        mask = _squares(number + 10 * version)
        noise = np.random.default_rng([number, version]).normal(0, 12, (*mask.shape, 3))
        pixels = np.clip(60 + 60 * mask[..., None] + noise, 1, 255).astype(np.uint8)
        left = CORNER[0] + 2000 * number
        write_tif(folder / "images" / f"{number}.tif", pixels, left)
        write_tif(folder / "masks" / f"{number}.tif", mask[..., None], left, 255)
    (folder / "classes.csv").write_text("\n".join(("name", *NAMES)) + "\n")


def _masks_and_recipe(recipe: dict[str, Any]) -> Any:
    def inputs(folder: Path, version: int) -> None:
        _pairs(folder, version)
        _recipe(folder, recipe, version)

    return inputs


def _train_segmenter(folder: Path, *more: object) -> tuple[object, ...]:
    flags = ("--classes", folder / "classes.csv", "--recipe", folder / "recipe.json")
    return (
        "segment",
        "train",
        folder / "images",
        folder / "masks",
        *flags,
        *more,
        "--out",
        folder / "trained",
    )


def _polygons(folder: Path, version: int) -> None:
    """Write images, masks and a vector file of squares on them."""
    _pairs(folder, version)
    features = []
    for number in range(6):
        x, y = CORNER[0] + 1000 * number + 130 + 10 * version, CORNER[1] - 500
        ring = [[x, y], [x + 200, y], [x + 200, y + 150], [x, y + 150], [x, y]]
        shape = {"type": "Polygon", "coordinates": [ring]}
        kind = {"class": NAMES[number % 3]}
        features.append({"type": "Feature", "properties": kind, "geometry": shape})
    crs = {"type": "name", "properties": {"name": "EPSG:32631"}}
    content = {"type": "FeatureCollection", "crs": crs, "features": features}
    (folder / "labels.geojson").write_text(json.dumps(content))


def _compare(folder: Path) -> tuple[object, ...]:
    labels = ("--classes", folder / "classes.csv", "--attribute", "class")
    outputs = ("--table", folder / "table.geojson", "--tiles", folder / "tiles.csv")
    page = ("--images", folder / "images", "--out", folder / "page.html")
    return ("labels", "compare", folder / "masks", folder / "labels.geojson", *labels, *page, *outputs)


def _rasterize(folder: Path) -> tuple[object, ...]:
    labels = ("--like", folder / "images", "--classes", folder / "classes.csv", "--attribute", "class")
    return ("labels", "rasterize", folder / "labels.geojson", *labels, "--out", folder / "burnt")


def _vectorize(folder: Path) -> tuple[object, ...]:
    flags = ("--classes", folder / "classes.csv", "--out", folder / "areas.geojson")
    return ("labels", "vectorize", folder / "masks", *flags)


def _windows(folder: Path) -> None:
    _pairs(folder, 0)
    flags = ("--window", 32, "--out", folder / "windows.csv", "--quiet")
    command("labels", "cover", folder / "images", *flags)


# --- change -----------------------------------------------------------------------------------------------


def _place(folder: Path, name: str, seed: int) -> None:
    before = ground(seed, 3, SIDE, SIDE)
    after, mask = (before * 0.9 + 50).astype(np.uint16), np.zeros((SIDE, SIDE, 1), np.uint8)
    after[30:60, 20:70] = ground(seed, 4, 30, 50)
    mask[30:60, 20:70] = 1
    for day, pixels in (("2020-01-05", before), ("2021-01-05", after)):
        write_tif(folder / "places" / name / f"{day}.tif", pixels)
    write_tif(folder / "labels" / f"{name}.tif", mask, nodata=255)


def _change_places(recipe: dict[str, Any] | None = None) -> Any:
    def inputs(folder: Path, version: int) -> None:
        for number in range(2):
            _place(folder, f"p{number}", number + 10 * version)
        if recipe:
            _recipe(folder, recipe, version)

    return inputs


def _detect(folder: Path) -> tuple[object, ...]:
    dates = [folder / "places/p0" / f"{day}.tif" for day in ("2020-01-05", "2021-01-05")]
    outputs = ("--probabilities", folder / "p.tif", "--polygons", folder / "change.geojson")
    return ("change", "detect", *dates, *outputs, "--out", folder / "change.tif")


def _train_change(folder: Path, *more: object) -> tuple[object, ...]:
    flags = ("--no-clouds", "--recipe", folder / "recipe.json", "--out", folder / "trained")
    return ("change", "train", folder / "places", folder / "labels", *more, *flags)


TASK_JOBS: dict[str, Job] = {
    "classify train": Job(_labelled, _train_classifier, ("trained",)),
    "classify explore": Job(
        _labelled,
        lambda f: (
            "classify",
            "explore",
            f / "train.npz",
            "--unlabelled",
            f / "more.npz",
            "--out",
            f / "e.html",
        ),
        ("e.html",),
    ),
    "classify evaluate": Job(
        _labelled,
        lambda f: ("classify", "evaluate", f / "valid.npz", "--model", f / "trained", "--out", f / "e.html"),
        ("e.html",),
        _trained_classifier,
    ),
    "segment train": Job(_masks_and_recipe(SEGMENTER), _train_segmenter, ("trained",)),
    "segment train, trees": Job(
        _masks_and_recipe(TREES), lambda f: _train_segmenter(f, "--method", "trees"), ("trained",)
    ),
    "change detect": Job(_change_places(), _detect, ("change.tif", "p.tif", "change.geojson")),
    "segment evaluate": Job(
        _pairs, lambda f: ("segment", "evaluate", f / "masks", f / "masks"), (PRINTED,), prints=True
    ),
    "change evaluate": Job(
        _change_places(),
        lambda f: ("change", "evaluate", f / "places", f / "labels", "--no-clouds"),
        (PRINTED,),
        prints=True,
    ),
    "change train, trees": Job(
        _change_places(TREES), lambda f: _train_change(f, "--method", "trees"), ("trained",)
    ),
    "change train": Job(_change_places(SEGMENTER | {"orientations": 1}), _train_change, ("trained",)),
    "labels cover": Job(
        _pairs,
        lambda f: ("labels", "cover", f / "images", "--window", 32, "--out", f / "cover.csv"),
        ("cover.csv",),
    ),
    "labels check": Job(
        _pairs, lambda f: ("labels", "check", f / "images", f / "masks"), (PRINTED,), prints=True
    ),
    "labels rasterize": Job(_polygons, _rasterize, ("burnt",)),
    "labels vectorize": Job(_pairs, _vectorize, ("areas.geojson",)),
    "labels compare": Job(_polygons, _compare, ("page.html", "table.geojson", "tiles.csv")),
    "labels subset": Job(
        _pairs,
        lambda f: ("labels", "subset", f / "images", "--cover", f / "windows.csv", "--out", f / "cut"),
        ("cut",),
        _windows,
    ),
}
