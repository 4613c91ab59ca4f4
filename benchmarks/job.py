"""A command with inputs from a seed, run in this process, and what it wrote."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

BANDS = ("B04", "B03", "B02", "B08")
PRINTED = "printed.json"


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
    """Writes a network of random weights, or an index, into the folder; it computes with the backend."""
    is_long: bool = False
    """Takes long: other bytes stand for a former output."""
    changes: bool = False
    """Changes what `model` wrote, and takes no `--overwrite`."""
    prints: bool = False
    """Writes no file: the output is `PRINTED`, what it prints as JSON without the time that it took."""
    grows: bool = False
    """The output is a folder of places that grows: its GeoTIFFs are always whole, and a rerun goes on."""

    def is_half(
        self, left: list[dict[str, str]], former: list[dict[str, str]], new: list[dict[str, str]]
    ) -> bool:
        """Return whether what a run left is neither the former output nor the new one, by snapshots."""
        if not self.grows:
            return any(one not in pair for one, *pair in zip(left, former, new, strict=True))
        whole = {*former[0].items(), *new[0].items()}
        return any(name.endswith(".tif") and (name, known) not in whole for name, known in left[0].items())

    def prepare(self, folder: Path) -> None:
        """Write the outputs of version 1, and the inputs of version 0."""
        if self.model:
            self.model(folder)
        if self.changes:
            pass  # the model is the former output
        elif self.is_long:
            for name in self.outputs:
                (folder / name).write_bytes(b"former")
        else:
            self.inputs(folder, 1)
            self.run(folder)
        self.inputs(folder, 0)

    def run(self, folder: Path) -> None:
        """Run the command in this process; SystemExit with its output if it fails."""
        if self.prints:
            figures = json.loads(command(*self.arguments(folder), "--json"))
            figures.pop("seconds", None)
            (folder / PRINTED).write_text(json.dumps(figures))
        else:
            command(*self.arguments(folder), *(() if self.changes else ("--overwrite",)), "--quiet")


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


def snapshots(folder: Path, outputs: Iterable[str]) -> list[dict[str, str]]:
    """Return the snapshot of each output of a command."""
    return [snapshot(folder / name) for name in outputs]


def outcome_of(job: Job, folder: Path, said: Path) -> None:
    """Run a job in this child; if it fails, write what it says to a file, and end the child."""
    try:
        job.run(folder)
    except SystemExit as error:
        said.write_text(str(error).partition(": 1: ")[2] or str(error))
        os._exit(1)
    except BaseException as error:
        said.write_text(f"{type(error).__name__}: {error}")
        os._exit(2)


def _digest(path: Path) -> str:
    content = path.read_bytes()
    if path.suffix == ".keras" and zipfile.is_zipfile(path):  # the rest holds times and addresses
        with zipfile.ZipFile(path) as archive:
            content = archive.read("model.weights.h5")
    elif path.name == "manifest.json":  # it has the checksum of the network, and one of itself
        manifest = json.loads(content) | {"checksum": ""}
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


def write_tif(path: Path, pixels: Any, left: float = 5e5, nodata: int = 0, top: float = 5e6) -> None:
    """Write pixels (y, x, b) as a GeoTIFF with a place on the map."""
    import rasterio

    path.parent.mkdir(parents=True, exist_ok=True)
    height, width, count = pixels.shape
    profile = dict(driver="GTiff", height=height, width=width, count=count, dtype=pixels.dtype.name)
    place = dict(crs="EPSG:32631", transform=rasterio.Affine(10, 0, left, 0, -10, top), nodata=nodata)
    with rasterio.open(path, "w", **profile, **place) as dataset:
        dataset.write(np.moveaxis(pixels, -1, 0))
        for band, name in enumerate(BANDS[:count], start=1):
            dataset.set_band_description(band, name)
