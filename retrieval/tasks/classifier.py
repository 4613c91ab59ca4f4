"""A trained classifier: its folder, and the probabilities that it gives.

`load_classifier` opens a folder that a training wrote, or a shipped model by its name. The folder holds
`model.keras`, which plain Keras opens in safe mode, and `manifest.json`. The manifest states classes, bands,
size and form of the images, temperature, threshold and licence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.evaluation.temperature import softmax
from retrieval.kernels.executors import SerialExecutor, stream_map
from retrieval.models.registry import WEIGHTS, task_model_names
from retrieval.tasks.images import FULL_SCALE, ImageSet, check_fits, rendered
from retrieval.tasks.model_folder import Shape, load_model, network_file, network_of, save_model
from retrieval.types import Executor, Progress, silent
from tfrecords.errors import MissingInputError

KIND = "classifier"
_BATCH = 256
UNSTATED = "not stated"
"""Licence of a model whose author states none."""


@dataclass(frozen=True)
class Description:
    """The classes of a classifier, and the images that it takes."""

    classes: tuple[str, ...]
    """Names of the classes in the order of the outputs."""
    bands: tuple[str, ...]
    """Names of the bands in their order."""
    size: tuple[int, int]
    """Rows and columns of an image."""
    form: str
    """"byte" for renderings, "dn" for measurements."""
    temperature: float = 1.0
    """Divisor of the logits, fitted to validation images."""
    threshold: float | None = None
    """Of two classes: the probability from which an image belongs to the second; None for more classes."""
    orientations: int = 4
    """Flips and rotations whose logits are averaged."""
    licence: str = UNSTATED
    """Licence of the weights."""
    dn_range: tuple[float, float] | None = None
    """Digital numbers that became 1 and 255 in the renderings; None where unknown."""

    @property
    def shapes(self) -> tuple[Shape, Shape]:
        """Shapes of input and output of the network, None for any size."""
        return (None, *self.size, len(self.bands)), (None, len(self.classes))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Description:
        """Return the description in a manifest.

        Raises:
            KeyError, TypeError, ValueError: it lacks an entry or has an impossible one.
        """
        rows, columns = (int(side) for side in values["size"])
        description = cls(
            classes=tuple(str(name) for name in values["classes"]),
            bands=tuple(str(name) for name in values["bands"]),
            size=(rows, columns),
            form=str(values["form"]),
            temperature=float(values["temperature"]),
            threshold=None if values["threshold"] is None else float(values["threshold"]),
            orientations=int(values["orientations"]),
            licence=str(values["licence"]),
            dn_range=_pair(values.get("dn_range")),
        )
        if len(description.classes) < 2 or description.form not in FULL_SCALE:
            raise ValueError(f"{len(description.classes)} classes of {description.form!r} pixels")
        return description


def _pair(values: Any) -> tuple[float, float] | None:
    """Return a range of digital numbers.

    Raises:
        TypeError, ValueError: it is no rising pair.
    """
    if values is None:
        return None
    low, high = (float(value) for value in values)
    if not low < high:
        raise ValueError(f"dn_range {low:g} to {high:g}")
    return low, high


@dataclass(frozen=True, eq=False)
class Classifier:
    """A network with its description."""

    network: Any
    """A `keras.Model`: pixels divided by the full scale -> logits (n, k)."""
    description: Description
    """Classes, bands, size and calibration."""
    name: str
    """Name for messages."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the bytes of a `.keras` file; a process opens it once."""
        return _unpickled, (self._file, self.description, self.name)

    @cached_property
    def _file(self) -> bytes:
        return network_file(self.network)

    def fitting(self, images: ImageSet, *, any_size: bool = False) -> ImageSet:
        """Return images in the model's form; digital numbers are rendered where the model states how.

        Args:
            images: the images.
            any_size: accept images of another size.

        Raises:
            BandsError, ArrayError, UnitsError: see `retrieval.tasks.images.check_fits`.
        """
        d = self.description
        if d.dn_range is not None and images.form == "dn" and d.form == "byte":
            images = rendered(images, d.dn_range)
        check_fits(images, d.bands, images.size if any_size else d.size, d.form, f"model {self.name}")
        return images

    def logits(
        self,
        pixels: NDArray[Any],
        orientations: int | None = None,
        progress: Progress = silent,
        executor: Executor | None = None,
    ) -> NDArray[np.float32]:
        """Return the logits of stored pixels, averaged over orientations.

        Args:
            pixels: (n, h, w, b) uint8 or uint16, as in an `ImageSet` of the model's form.
            orientations: 1 to 8; None takes the model's.
            progress: called after each batch.
            executor: runs the batches; None for this thread.

        Returns:
            (n, k) float32.
        """
        total = len(pixels)
        tasks = (
            LogitsTask(self, pixels[start : start + _BATCH], orientations)
            for start in range(0, total, _BATCH)
        )
        parts: list[NDArray[np.float32]] = []
        for part in stream_map(executor or SerialExecutor(), logits_task, tasks):
            parts.append(part)
            progress("classifying", min(len(parts) * _BATCH, total), total)
        return np.concatenate(parts) if parts else np.zeros((0, len(self.description.classes)), np.float32)

    def batch_logits(self, pixels: NDArray[Any], orientations: int | None) -> NDArray[np.float32]:
        """Return the logits (n, k) of at most a batch; see `logits`."""
        scale = np.float32(FULL_SCALE[self.description.form])  # type: ignore[index]
        scaled = pixels.astype(np.float32) / scale
        views = oriented(_padded(scaled), orientations or self.description.orientations)
        answers = [np.asarray(self._call(view))[: len(scaled)] for view in views]
        return np.mean(answers, axis=0, dtype=np.float32)

    def _call(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        answer: NDArray[np.float32] = self.network.predict_on_batch(np.ascontiguousarray(pixels))
        return answer

    def probabilities(
        self,
        images: ImageSet,
        orientations: int | None = None,
        progress: Progress = silent,
        executor: Executor | None = None,
    ) -> NDArray[np.float64]:
        """Return the calibrated probability (n, k) of each class.

        Raises:
            BandsError, ArrayError, UnitsError: the images are of another kind.
        """
        fitting = self.fitting(images)
        return softmax(
            self.logits(fitting.pixels, orientations, progress, executor), self.description.temperature
        )

    def choose(self, probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the class (n,) for probabilities (n, k): the likeliest, or by the threshold of two."""
        return chosen(probabilities, self.description.threshold)

    def calibrated(self, temperature: float, threshold: float | None) -> Classifier:
        """Return the classifier with another temperature and threshold."""
        return replace(
            self, description=replace(self.description, temperature=temperature, threshold=threshold)
        )


@dataclass(frozen=True, eq=False)
class LogitsTask:
    """A batch of images to classify; it can be pickled."""

    classifier: Classifier
    """The model."""
    pixels: NDArray[Any]
    """(n, h, w, b) as in an `ImageSet` of the model's form."""
    orientations: int | None
    """1 to 8; None takes the model's."""


def logits_task(task: LogitsTask) -> NDArray[np.float32]:
    """Return the logits (n, k) of a batch."""
    return task.classifier.batch_logits(task.pixels, task.orientations)


def _padded(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Repeat the last image up to a power of two images, so that few sizes are compiled."""
    missing = (1 << (len(pixels) - 1).bit_length()) - len(pixels)
    return np.concatenate([pixels, np.repeat(pixels[-1:], missing, axis=0)]) if missing else pixels


def chosen(probabilities: NDArray[Any], threshold: float | None) -> NDArray[np.int64]:
    """Return the likeliest class (...,) for probabilities (..., k), or the second of two from a threshold."""
    if threshold is None:
        return probabilities.argmax(-1).astype(np.int64)
    return (probabilities[..., 1] >= threshold).astype(np.int64)


def oriented(pixels: NDArray[Any], count: int) -> Iterator[NDArray[Any]]:
    """Yield the first `count` of the flips and rotations of images (n, h, w, b); four if not square.

    The order alternates: as it is, turned by a half, the other two flips, then the same transposed.
    """
    square = pixels.shape[1] == pixels.shape[2]
    for number in range(min(count, 8 if square else 4)):
        y = pixels.swapaxes(1, 2) if number >= 4 else pixels
        yield y[:, :: -1 if number % 4 in (1, 2) else 1, :: -1 if number % 4 in (1, 3) else 1]


def save_classifier(
    classifier: Classifier,
    out: Path,
    config: Mapping[str, Any],
    counts: Mapping[str, int],
    *,
    overwrite: bool = False,
) -> None:
    """Write a model folder, whole or not at all.

    Args:
        classifier: the model.
        out: the folder.
        config: recipe and data that decide the weights.
        counts: numbers of images, for the manifest.
        overwrite: replace a finished model folder.

    Raises:
        OutputExistsError: the folder exists and `overwrite` is false.
    """
    save_model(classifier.network, classifier.description, out, KIND, config, counts, overwrite=overwrite)


def load_classifier(path: str | Path) -> Classifier:
    """Open a classifier; code in its files never runs.

    Args:
        path: a model folder, or the name of a shipped classifier.

    Raises:
        MissingInputError, ManifestError, FormatVersionError: there is no such model, or it was changed.
        ModelError: the network does not fit the manifest, or is unsafe.
    """
    if str(path) in task_model_names():
        with resources.as_file(WEIGHTS / str(path)) as shipped:
            return _load(shipped)
    if not Path(path).is_dir():
        raise MissingInputError(
            f"{path}: no such folder. Expected a model that `retrieve classify train` wrote, or one of "
            f"{', '.join(task_model_names())}."
        )
    return _load(Path(path))


def _load(path: Path) -> Classifier:
    network, description = load_model(path, KIND, Description.from_mapping, "classifier")
    return Classifier(network, description, path.name)


@lru_cache(maxsize=4)
def _unpickled(content: bytes, description: Description, name: str) -> Classifier:
    """Return the classifier that `Classifier.__reduce__` packed."""
    return Classifier(network_of(content), description, name)
