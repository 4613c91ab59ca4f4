"""The networks in the package: their names, files and the constants that were fitted with them.

`retrieval/models/weights/` holds a `.keras` file for each network, and a folder for each model of a task.
JSON files hold the constants of their
answers: calibrations of the encoders, threshold of the cloud network, score of the local descriptors.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from retrieval.errors import EncoderError

WEIGHTS = resources.files("retrieval.models.weights")
"""Folder of the shipped networks."""
TRAINING_FREE = "structure-tensor"
"""Name of the encoder that no training has touched."""
VERIFIER, CLOUDS, LOCAL, REPRESENTATION = "verifier", "clouds", "local", "representation"
"""Names of the networks that are not encoders."""

PURPOSES = {
    VERIFIER: "decides between candidates",
    CLOUDS: "finds cloud in patches",
    LOCAL: "describes points of covered patches",
    REPRESENTATION: "separates place and light",
}
"""What the networks that are not encoders do."""
_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class ShippedModel:
    """A model in the package."""

    name: str
    """Name, as a command takes it."""
    purpose: str
    """What it does."""
    bands: tuple[str, ...]
    """Bands that it needs; empty for any."""
    classes: tuple[str, ...]
    """Classes that it names; empty for none."""
    licence: str
    """Licence of the weights."""
    size_mb: float
    """Size of its files in MB."""


def shipped_models() -> list[ShippedModel]:
    """Return all models in the package, sorted by purpose and name."""
    models = []
    for file in shipped_files(".keras"):
        name = file.name.removesuffix(".keras")
        purpose = PURPOSES.get(name, "encodes patches")
        models.append(ShippedModel(name, purpose, (), (), "Apache-2.0", _megabytes(file)))
    for name in task_model_names():
        folder = WEIGHTS / name
        page = json.loads((folder / _MANIFEST).read_text())["extra"]
        size = round(sum(map(_megabytes, folder.iterdir())), 2)
        bands, classes = tuple(page["bands"]), tuple(page["classes"])
        models.append(ShippedModel(name, "classifies images", bands, classes, page["licence"], size))
    return sorted(models, key=lambda model: (model.purpose, model.name))


def _megabytes(file: Traversable) -> float:
    return round(len(file.read_bytes()) / 1e6, 2)


def task_model_names() -> list[str]:
    """Return the names of the shipped models of tasks: folders with a manifest."""
    return sorted(f.name for f in WEIGHTS.iterdir() if f.is_dir() and (f / _MANIFEST).is_file())


def encoder_names() -> list[str]:
    """Return the names of the shipped encoders."""
    names = {f.name.removesuffix(".keras") for f in WEIGHTS.iterdir() if f.name.endswith(".keras")}
    return sorted(names - set(PURPOSES))


def default_encoder_name() -> str:
    """Return the name of the default encoder: the learned one."""
    return next((name for name in encoder_names() if name != TRAINING_FREE), TRAINING_FREE)


def load_shipped(name: str) -> Any:
    """Return a shipped network as a `keras.Model`."""
    with resources.as_file(WEIGHTS / f"{name}.keras") as path:
        return load_network(path)


def load_network(path: Path) -> Any:
    """Return the `keras.Model` in a file; code in the file never runs.

    Raises:
        EncoderError: the file is damaged, unsafe or not a Keras model.
    """
    import keras

    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:
        raise EncoderError(f"{path}: cannot be opened as a Keras model in safe mode: {error}") from error


def shipped_constants(name: str) -> dict[str, Any]:
    """Return the constants in a JSON file of the shipped weights, such as "clouds.threshold.json"."""
    content: dict[str, Any] = json.loads((WEIGHTS / name).read_text())
    return content


def shipped_files(*endings: str) -> list[Traversable]:
    """Return the shipped files with one of these endings, sorted by name."""
    return sorted((f for f in WEIGHTS.iterdir() if f.name.endswith(endings)), key=lambda f: f.name)
