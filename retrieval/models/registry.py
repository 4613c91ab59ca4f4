"""The networks in the package: their names, files and the constants that were fitted with them.

`retrieval/models/weights/` holds a `.keras` file for each network. JSON files hold the constants of their
answers: calibrations of the encoders, threshold of the cloud network, score of the local descriptors.
"""

from __future__ import annotations

import json
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from retrieval.errors import EncoderError

WEIGHTS = resources.files("retrieval.models.weights")
"""Folder of the shipped networks."""
TRAINING_FREE = "structure-tensor"
"""Name of the encoder that no training has touched."""
VERIFIER, CLOUDS, LOCAL = "verifier", "clouds", "local"
"""Names of the networks that are not encoders."""


def encoder_names() -> list[str]:
    """Return the names of the shipped encoders."""
    names = {f.name.removesuffix(".keras") for f in WEIGHTS.iterdir() if f.name.endswith(".keras")}
    return sorted(names - {VERIFIER, CLOUDS, LOCAL})


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
