"""Small jobs of the commands, for the campaigns of faults: inputs from a seed, arguments and outputs.

Each takes seconds. Networks have random weights; the code that writes their outputs is the same as for
trained networks. Two versions of the inputs give two outputs, a former and a new one.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

BANDS = ("B04", "B03", "B02", "B08")
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


@dataclass(frozen=True)
class Job:
    """A command with its inputs."""

    inputs: Callable[[Path, int], object]
    """Writes the inputs of a version into a folder; it computes nothing with a backend."""
    arguments: Callable[[Path], tuple[object, ...]]
    """Arguments of `retrieve` in that folder."""
    outputs: tuple[str, ...]
    """Names of its outputs in that folder."""
    model: Callable[[Path], object] | None = None
    """Writes a network of random weights into the folder; it computes with the backend."""
    is_long: bool = False
    """Takes long: other bytes stand for a former output."""

    def prepare(self, folder: Path) -> None:
        """Write the outputs of version 1, and the inputs of version 0."""
        if self.model:
            self.model(folder)
        if self.is_long:
            for name in self.outputs:
                (folder / name).write_bytes(b"former")
        else:
            self.inputs(folder, 1)
            self.run(folder)
        self.inputs(folder, 0)

    def run(self, folder: Path) -> None:
        """Run the command in this process; SystemExit with its output if it fails."""
        command(*self.arguments(folder), "--overwrite", "--quiet")


def command(*arguments: object) -> str:
    """Run `retrieve` in this process and return its standard output; SystemExit if it fails."""
    from typer.testing import CliRunner

    from retrieval.cli import app

    done = CliRunner().invoke(app, [str(a) for a in arguments], prog_name="retrieve")
    if done.exit_code:
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        raise SystemExit(f"{' '.join(map(str, arguments[:2]))}: {done.exit_code}: {done.stderr}")
    return done.stdout


def snapshot(output: Path) -> dict[str, str]:
    """Return the sha256 of an output's files by name, of networks the weights; {} where nothing is.

    The journal that a kill may leave is no part of an output.
    """
    files = [output] if output.is_file() else [p for p in output.rglob("*") if p.is_file()]
    return {p.relative_to(output.parent).as_posix(): _digest(p) for p in files if p.suffix != ".jsonl"}


def _digest(path: Path) -> str:
    content = path.read_bytes()
    if path.suffix == ".keras" and zipfile.is_zipfile(path):  # the rest holds times and addresses
        with zipfile.ZipFile(path) as archive:
            content = archive.read("model.weights.h5")
    elif path.name == "manifest.json":  # it has the checksum of the encoder
        manifest = json.loads(content)
        manifest["files"] = {n: v for n, v in manifest["files"].items() if not n.endswith(".keras")}
        content = json.dumps(manifest).encode()
    return hashlib.sha256(content).hexdigest()


# --- inputs -----------------------------------------------------------------------------------------------


def ground(number: int, version: int, height: int = 128, width: int = 136) -> Any:
    """Return (height, width, 4) uint16 of squares and noise, drawn by number and version."""
    rng = np.random.default_rng([number, version])
    coarse = rng.uniform(500, 3500, (-(-height // 8), -(-width // 8), 4))
    pixels = np.kron(coarse, np.ones((8, 8, 1)))[:height, :width]
    return (pixels + rng.normal(0, 40, pixels.shape)).astype(np.uint16)


def write_tif(path: Path, pixels: Any, left: float = 5e5) -> None:
    """Write pixels (y, x, b) as a GeoTIFF with a place on the map."""
    import rasterio

    path.parent.mkdir(parents=True, exist_ok=True)
    height, width, count = pixels.shape
    profile = dict(driver="GTiff", height=height, width=width, count=count, dtype=pixels.dtype.name)
    place = dict(crs="EPSG:32631", transform=rasterio.Affine(10, 0, left, 0, -10, 5e6), nodata=0)
    with rasterio.open(path, "w", **profile, **place) as dataset:
        dataset.write(np.moveaxis(pixels, -1, 0))
        for band, name in enumerate(BANDS[:count], start=1):
            dataset.set_band_description(band, name)


def _images(folder: Path, version: int) -> None:
    np.save(folder / "images.npy", np.stack([ground(n, version) for n in range(3)]))


def _patches(folder: Path, version: int) -> None:
    patches = [ground(n, 0)[7:71, 5 + version : 69 + version] for n in range(3)]
    np.save(folder / "patches.npy", np.stack(patches))


def _index(folder: Path) -> None:
    _images(folder, 0)
    command("index", folder / "images.npy", "--out", folder / "index", "--quiet")


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
    "ingest": Job(_places, lambda f: ("ingest", f / "places", "--out", f / "made", "--size", 96), ("made",)),
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
"""A small job of each command that writes an output."""


def import_all() -> None:
    """Import what the jobs need, once and not in each child."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from importlib import import_module

    for module in (
        *(
            "keras",
            "tensorflow",
            "faiss",
            "numba",
            "pydantic",
            "pyarrow.parquet",
            "rasterio",
            "typer.testing",
            "retrieval.cli",
        ),
        *(
            "retrieval.pipeline",
            "retrieval.ingest.run",
            "retrieval.training.siamese",
            "retrieval.report.plots",
        ),
        *("retrieval.tasks.classifier", "retrieval.tasks.outputs", "retrieval.tasks.segment"),
        *(
            "retrieval.tasks.scene_map",
            "retrieval.results.outputs",
            "tfrecords.write",
            "odc.stac",
            "scipy.ndimage",
        ),
    ):
        import_module(module)
