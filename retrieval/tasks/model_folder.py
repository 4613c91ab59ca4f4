"""Folders of task models: a network or a forest, and a manifest that describes its inputs and answers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from retrieval.errors import EncoderError, ModelError
from retrieval.models.registry import load_network
from retrieval.tasks.forest import FOREST, Forest, load_forest
from tfrecords.artifacts import read_manifest, writing_folder
from tfrecords.errors import ManifestError

MODEL = "model.keras"
"""File of the network."""
Shape = tuple[int | None, ...]


class Described(Protocol):
    """What the manifest of a model states: a frozen dataclass of plain values."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def shapes(self) -> tuple[Shape, Shape]:
        """Shapes of input and output of the network, None for any size."""


D = TypeVar("D", bound=Described)


def save_model(
    network: Any,
    description: Described,
    out: Path,
    kind: str,
    config: Mapping[str, Any],
    counts: Mapping[str, int],
    *,
    overwrite: bool = False,
) -> None:
    """Write a model folder, whole or not at all.

    Args:
        network: the Keras network, or a forest.
        description: its inputs and answers, for the manifest.
        out: the folder.
        kind: kind of the folder.
        config: recipe and data that decide the weights.
        counts: numbers of examples, for the manifest.
        overwrite: replace a finished model folder.

    Raises:
        OutputExistsError: the folder exists and `overwrite` is false.
    """
    with writing_folder(out, kind=kind, config=config, overwrite=overwrite) as folder:
        with folder.part(FOREST if isinstance(network, Forest) else MODEL) as path:
            network.save(path)
        folder.counts |= counts
        folder.extra |= asdict(description)


def load_model(path: Path, kind: str, parse: Callable[[Mapping[str, Any]], D], noun: str) -> tuple[Any, D]:
    """Open a model folder; code in its files never runs.

    Args:
        path: the folder.
        kind: kind of the folder.
        parse: makes the description from the manifest; KeyError, TypeError or ValueError if it lacks parts.
        noun: the model in messages, such as "classifier".

    Returns:
        The network or forest, and its description.

    Raises:
        MissingInputError, ManifestError, FormatVersionError: there is no such model, or it was changed.
        ModelError: the network does not fit the manifest, or is unsafe.
    """
    manifest = read_manifest(path, kind)
    try:
        description = parse(manifest.extra)
    except (KeyError, TypeError, ValueError) as error:
        raise ManifestError(f"{path}: the manifest describes no {noun} ({error}). Train it again.") from error
    try:
        is_forest = FOREST in manifest.files
        network = load_forest(path / FOREST) if is_forest else load_network(path / MODEL)
    except EncoderError as error:
        raise ModelError(f"{error}. Train the {noun} again.") from error
    found = tuple(network.input_shape), tuple(network.output_shape)
    if found != description.shapes:
        raise ModelError(
            f"{path}: the network maps {found[0]} to {found[1]}; its manifest states "
            f"{description.shapes[0]} to {description.shapes[1]}. Train the {noun} again."
        )
    return network, description


def network_file(network: Any) -> bytes:
    """Return the content of a network's `.keras` file, with which a model travels to another process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MODEL
        network.save(path)
        return path.read_bytes()


def network_of(content: bytes) -> Any:
    """Return the network of `network_file`; code in it never runs.

    Raises:
        EncoderError: it is no network, or unsafe.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MODEL
        path.write_bytes(content)
        return load_network(path)
