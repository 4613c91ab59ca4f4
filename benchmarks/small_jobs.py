"""Small jobs of the commands, for the campaigns of faults: inputs from a seed, arguments and outputs.

Each takes seconds. Networks have random weights; the code that writes their outputs is the same as for
trained networks. Two versions of the inputs give two outputs, a former and a new one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from download_jobs import DOWNLOAD_JOBS
from job import BANDS, PRINTED, Job, command, ground, write_tif
from task_jobs import TASK_JOBS

CLASSES = ("field", "forest", "water")
COLOURS = ((255, 255, 0), (0, 128, 0), (0, 0, 255))
RECIPE: Mapping[str, Any] = {
    "learned": {"width": 8, "dim": 16},
    "tensor": {"cell_px": 46, "dim": 12},
    "batch": 8,
    "steps": 8,
    "warmup_steps": 2,
    "crops_per_series": 12,
    "shuffle": 32,
    "pool_size": 48,
    "projection_crops": 256,
    "validation_queries": 12,
    "validation_series": 2,
    "validate_every": 4,
    "checkpoint_every": 2,
    "log_every": 2,
    "compile": False,
    "held_out": 0.25,
}
"""A training of some seconds."""


def _images(folder: Path, version: int) -> None:
    np.save(folder / "images.npy", np.stack([ground(n, version) for n in range(3)]))


def _patches(folder: Path, version: int) -> None:
    patches = [ground(n, 0)[7:71, 5 + version : 69 + version] for n in range(3)]
    np.save(folder / "patches.npy", np.stack(patches))


def _index(folder: Path) -> None:
    _images(folder, 0)
    command("index", folder / "images.npy", "--out", folder / "index", "--quiet")


def _scenes_of(folder: Path, numbers: range) -> None:
    for number in numbers:
        write_tif(folder / f"{number}.tif", ground(number, 0), 5e5 + 2e4 * number)


def _index_of_scenes(folder: Path) -> None:
    _scenes_of(folder / "first", range(3))
    command("index", folder / "first", "--out", folder / "index", "--quiet")


def _index_of_dates(folder: Path) -> None:
    for number in range(3):
        path = folder / f"places/p{number}/2020-0{number + 1}-05.tif"
        write_tif(path, ground(number, 0), 5e5 + 2e4 * number)
    command("index", folder / "places", "--out", folder / "index", "--quiet")


def _answers(folder: Path, version: int) -> None:
    patches = [
        ground(n, 0)[y : y + 64, x : x + 64] for n in range(3) for y in (7, 40) for x in range(5, 68, 16)
    ]
    np.save(folder / "patches.npy", np.stack(patches))
    places = (
        f"{n} {x + (30 + version) * (x == 5)} {y}"
        for n in range(3)
        for y in (7, 40)
        for x in range(5, 68, 16)
    )
    rows = (f"{patch},{place}\n" for patch, place in enumerate(places))
    (folder / "answers.csv").write_text("Patch ID,Result\n" + "".join(rows))


def _patch_files(folder: Path, version: int) -> None:
    for number in range(3):
        pixels = ground(number, 0)[7:71, 5 + version : 69 + version]
        write_tif(folder / f"patches/{number}.tif", pixels)


def _submission(folder: Path, version: int) -> None:
    _answers(folder, 0)
    (folder / "answers.csv").rename(folder / "submission.csv")
    _answers(folder, version)


def _matches(folder: Path) -> None:
    _index(folder)
    _answers(folder, 0)
    asked = folder / "patches.npy", "--index", folder / "index", "--out", folder / "submission.csv"
    command("query", *asked, "--details", folder / "matches.parquet", "--quiet")


def _places(folder: Path, version: int) -> None:
    for place in range(2):
        for month in range(1, 4):
            pixels = ground(10 * place + month, version, 140, 200)
            write_tif(folder / f"places/p{place}/2020-0{month}-05.tif", pixels, 5e5 + 2e4 * place)


def _series(folder: Path, version: int) -> None:
    from tfrecords.schema import Series
    from tfrecords.write import write_series

    (folder / "recipe.json").write_text(json.dumps({**RECIPE, "seed": version}))
    if (folder / "series").exists():
        return
    dates = ("2020-01-05", "2020-07-05")
    pixels = (np.stack([(place := ground(n, 9)), 0.8 * place + 100]).astype(np.uint16) for n in range(8))
    series = (
        Series(both, "dn", BANDS, 0.0, dates, f"p{n}", 0, 0, overlap_group=n) for n, both in enumerate(pixels)
    )
    write_series(series, folder / "series")


def _crops(folder: Path, version: int) -> None:
    pixels = np.random.default_rng(version).integers(0, 255, (300, 16, 16, 3), np.uint8)
    np.save(folder / "crops.npy", pixels)


def _classifier(folder: Path) -> None:
    import keras

    from retrieval.tasks.classifier import Classifier, Description, save_classifier

    keras.utils.set_random_seed(4)
    pixels = keras.Input((16, 16, 3))
    y = keras.layers.Conv2D(8, 3, activation="relu")(pixels)
    logits = keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(y))
    described = Description(CLASSES, BANDS[:3], (16, 16), "byte")
    save_classifier(Classifier(keras.Model(pixels, logits), described, "random"), folder / "model", {}, {})


def _scenes(folder: Path, version: int) -> None:
    for number in range(4):
        pixels = (ground(number, version, 96, 104)[..., :3] // 16).astype(np.uint8)
        write_tif(folder / "scenes" / f"{number}.tif", np.maximum(pixels, 1))


def _segmenter(folder: Path) -> None:
    import keras

    from retrieval.tasks.segment.model import Description, Segmenter, save_segmenter

    keras.utils.set_random_seed(3)
    pixels = keras.Input((None, None, 3))
    y = keras.layers.Conv2D(6, 5, padding="same", activation="relu")(pixels)
    network = keras.Model(pixels, keras.layers.Conv2D(3, 3, padding="same")(y))
    described = Description(CLASSES, COLOURS, BANDS[:3], 1, "byte", 4, (90.0,) * 3)
    save_segmenter(Segmenter(network, described, "random"), folder / "model", {}, {})


JOBS: dict[str, Job] = {
    "index": Job(_images, lambda f: ("index", f / "images.npy", "--out", f / "built"), ("built",)),
    "query": Job(
        _patches,
        lambda f: ("query", f / "patches.npy", "--index", f / "index", "--out", f / "submission.csv"),
        ("submission.csv",),
        _index,
    ),
    "query, all outputs": Job(
        _patch_files,
        lambda f: (
            *("query", f / "patches", "--index", f / "index", "--out", f / "submission.csv"),
            *("--details", f / "details.geojson", "--save-windows", f / "windows"),
        ),
        ("submission.csv", "patches.csv", "details.geojson", "windows"),
        _index_of_scenes,
    ),
    "score": Job(
        _submission,
        lambda f: ("score", f / "submission.csv", f / "answers.csv"),
        (PRINTED,),
        prints=True,
    ),
    "index --add": Job(
        lambda f, _: _scenes_of(f / "more", range(3, 5)),
        lambda f: ("index", f / "more", "--out", f / "index", "--add"),
        ("index",),
        _index_of_scenes,
        changes=True,
    ),
    "index --remove": Job(
        lambda *_: None,
        lambda f: ("index", "--out", f / "index", "--remove", "1.tif"),
        ("index",),
        _index_of_scenes,
        changes=True,
    ),
    "calibrate": Job(
        _answers,
        lambda f: (
            *("calibrate", f / "patches.npy", f / "answers.csv"),
            *("--index", f / "index", "--out", f / "index.calibration.json"),
        ),
        ("index", "index.calibration.json"),
        _index,
    ),
    "report": Job(
        _answers,
        lambda f: (
            *("report", f / "patches.npy", "--index", f / "index", "--answers", f / "answers.csv"),
            *("--matches", f / "matches.parquet", "--out", f / "report.html"),
        ),
        ("report.html",),
        _matches,
    ),
    "export": Job(
        lambda *_: None,
        lambda f: ("export", f / "index", "--as", "geoparquet", "--out", f / "vectors.parquet"),
        ("vectors.parquet",),
        _index,
    ),
    "export, stac": Job(
        lambda *_: None,
        lambda f: ("export", f / "index", "--as", "stac", "--out", f / "catalogue"),
        ("catalogue",),
        _index_of_dates,
    ),
    "export, onnx": Job(
        lambda *_: None,
        lambda f: ("export", "--as", "onnx", "--model", f / "model", "--out", f / "model.onnx"),
        ("model.onnx",),
        _segmenter,
    ),
    "ingest": Job(_places, lambda f: ("ingest", f / "places", "--out", f / "made", "--size", 96), ("made",)),
    "ingest, images": Job(
        _places, lambda f: ("ingest", f / "places", "--as", "images", "--out", f / "made"), ("made",)
    ),
    "ingest, challenge": Job(
        _places,
        lambda f: ("ingest", f / "places", "--as", "challenge", "--out", f / "made", "--size", 96),
        ("made",),
    ),
    "train": Job(
        _series,
        lambda f: ("train", f / "series", "--recipe", f / "recipe.json", "--out", f / "encoder.keras"),
        ("encoder.keras",),
        is_long=True,
    ),
    "classify predict": Job(
        _crops,
        lambda f: (
            *("classify", "predict", f / "crops.npy", "--model", f / "model"),
            *("--out", f / "classes.csv", "--probabilities", f / "classes.parquet"),
        ),
        ("classes.csv", "classes.parquet"),
        _classifier,
    ),
    "classify predict, scene": Job(
        _scenes,
        lambda f: (
            *("classify", "predict", f / "scenes/0.tif", "--model", f / "model"),
            *("--out", f / "classes.tif", "--stride", 8),
        ),
        ("classes.tif",),
        _classifier,
    ),
    "segment predict": Job(
        _scenes,
        lambda f: (
            *("segment", "predict", f / "scenes", "--model", f / "model"),
            *("--out", f / "maps", "--probabilities", f / "shares"),
        ),
        ("maps", "shares"),
        _segmenter,
    ),
}
JOBS |= TASK_JOBS | DOWNLOAD_JOBS
"""A small job of each command that writes an output or prints figures."""


MODULES = (
    *("faiss", "keras", "numba", "odc.stac", "pyarrow.parquet", "pydantic", "rasterio", "scipy.ndimage"),
    *("tensorflow", "typer.testing", "retrieval.cli", "retrieval.ingest.run", "retrieval.pipeline"),
    *("retrieval.export.geoparquet", "retrieval.labels", "retrieval.report.page", "retrieval.report.plots"),
    *("retrieval.results.outputs", "retrieval.tasks.change", "retrieval.tasks.classifier"),
    *("retrieval.tasks.outputs", "retrieval.tasks.scene_map", "retrieval.tasks.segment"),
    *("retrieval.training.siamese", "tfrecords.write"),
)
"""What jobs need."""


def import_all() -> None:
    """Import what the jobs need, once and not in each child."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for module in MODULES:
        import_module(module)
