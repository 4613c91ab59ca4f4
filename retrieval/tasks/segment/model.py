"""A trained segmentation model: its folder, and the probabilities that it gives.

The folder holds `model.keras`, which plain Keras opens in safe mode, or `forest.npz`, and `manifest.json`.
The manifest states classes, bands, dates and form of the images, temperature, threshold and licence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.labels.classes import Classes
from retrieval.tasks.classifier import UNSTATED, chosen, oriented
from retrieval.tasks.forest import Forest
from retrieval.tasks.model_folder import Shape, load_model, network_file, network_of, save_model
from retrieval.tasks.segment.network import view_px
from retrieval.tasks.segment.scenes import FULL_SCALE, stacked
from retrieval.tasks.segment.windows import WINDOW_PX, Layout
from tfrecords.errors import MissingInputError

KIND = "segmenter"


@dataclass(frozen=True)
class Description:
    """The classes of a segmentation network, and the images that it takes."""

    classes: tuple[str, ...]
    """Names of the classes in the order of the outputs."""
    colours: tuple[tuple[int, int, int], ...]
    """Red, green and blue of each class."""
    bands: tuple[str, ...]
    """Names of the bands of a date, in their order."""
    dates: int
    """Number of dates; their bands follow each other."""
    form: str
    """"byte" for renderings, "dn" for measurements, "value" for other numbers."""
    unit_px: int
    """Sides of an input are multiples of it."""
    fill: tuple[float, ...]
    """Pixel values that stand for nodata, one for each band of each date: the training mean."""
    temperature: float = 1.0
    """Divisor of the logits, fitted to validation pixels."""
    threshold: float | None = None
    """Of two classes: the probability from which a pixel belongs to the second; None for more classes."""
    orientations: int = 1
    """Flips and rotations whose probabilities are averaged."""
    licence: str = UNSTATED
    """Licence of the weights."""

    @property
    def shapes(self) -> tuple[Shape, Shape]:
        """Shapes of input and output of the network, None for any size."""
        return (None, None, None, self.dates * len(self.bands)), (None, None, None, len(self.classes))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Description:
        """Return the description in a manifest.

        Raises:
            KeyError, TypeError, ValueError: it lacks an entry or has an impossible one.
        """
        threshold = values["threshold"]
        description = cls(
            classes=tuple(str(name) for name in values["classes"]),
            colours=tuple(_colour(colour) for colour in values["colours"]),
            bands=tuple(str(name) for name in values["bands"]),
            dates=int(values["dates"]),
            form=str(values["form"]),
            unit_px=int(values["unit_px"]),
            fill=tuple(float(value) for value in values["fill"]),
            temperature=float(values["temperature"]),
            threshold=None if threshold is None else float(threshold),
            orientations=int(values["orientations"]),
            licence=str(values["licence"]),
        )
        channels = description.dates * len(description.bands)
        counts = len(description.colours), len(description.fill)
        if counts != (len(description.classes), channels) or description.form not in FULL_SCALE:
            raise ValueError(f"{counts[0]} colours, {counts[1]} fills, {description.form!r} pixels")
        if len(description.classes) < 2 or description.unit_px < 1 or not description.temperature > 0:
            raise ValueError("impossible classes, unit or temperature")
        return description

    @property
    def legend(self) -> Classes:
        """Names and colours of the classes."""
        return Classes(self.classes, self.colours)


def _colour(values: Any) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in values)
    return red, green, blue


@dataclass(frozen=True, eq=False)
class Segmenter:
    """A network, or a forest, with its description."""

    network: Any
    """A `keras.Model` or a `Forest`: pixels over the full scale (n, y, x, t * b) -> logits (n, y, x, k)."""
    description: Description
    """Classes, bands and calibration."""
    name: str
    """Name for messages."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle a network as the bytes of a `.keras` file, which a process opens once; a forest as it is."""
        if isinstance(self.network, Forest):
            return Segmenter, (self.network, self.description, self.name)
        return _unpickled, (self._file, self.description, self.name)

    @cached_property
    def _file(self) -> bytes:
        return network_file(self.network)

    @property
    def full_scale(self) -> float:
        """Pixel value that becomes 1 in front of the network."""
        return FULL_SCALE[self.description.form]  # type: ignore[index]

    @cached_property
    def view_px(self) -> int:
        """How far the network sees beyond a pixel."""
        return self.network.view_px if isinstance(self.network, Forest) else view_px(self.network)

    def logits(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """Return the logits (n, y, x, k) of stored pixels (n, y, x, t * b), of sides of any length."""
        height, width = pixels.shape[1:3]
        padded = np.asarray(self._padded(pixels) / np.float32(self.full_scale), np.float32)
        return np.asarray(self._function(padded.shape)(padded), np.float32)[:, :height, :width]

    def _padded(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """Return pixels (n, y, x, t * b) mirrored at the lower and right edge up to whole units."""
        height, width = (-side % self.description.unit_px for side in pixels.shape[1:3])
        pad = ((0, 0), (0, height), (0, width), (0, 0))
        return np.pad(pixels, pad, mode="symmetric") if height or width else pixels

    @cached_property
    def _functions(self) -> dict[tuple[int, ...], Any]:
        """What computes the network for inputs of one shape, by shape."""
        return {}

    def _function(self, shape: tuple[int, ...]) -> Any:
        """Return what computes the network for inputs of a shape; TensorFlow compiles one for each shape."""
        if isinstance(self.network, Forest):
            return self.network
        import keras

        if shape not in self._functions:
            call: Any = partial(self.network, training=False)
            if keras.backend.backend() == "tensorflow":
                import tensorflow as tf

                call = tf.function(call)
            self._functions[shape] = call
        return self._functions[shape]

    def probabilities(self, pixels: NDArray[Any], orientations: int | None = None) -> NDArray[np.float32]:
        """Return the probabilities (n, y, x, k) of stored pixels, averaged over flips and rotations.

        Args:
            pixels: (n, y, x, t * b) as stored, nodata filled.
            orientations: 1 to 8; None takes the model's.
        """
        wanted = orientations or self.description.orientations
        height, width = pixels.shape[1:3]
        square = height == width
        if wanted > 1:  # before a flip, so that units lie on the same pixels in each view
            pixels = self._padded(pixels)
        total: Any = 0.0
        count = 0
        for number, view in enumerate(oriented(pixels, wanted if square else min(wanted, 4))):
            total = total + _restored(self._softmax(self.logits(view)), number)
            count += 1
        return (total / np.float32(count)).astype(np.float32, copy=False)[:, :height, :width]

    def _softmax(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        y = logits / np.float32(self.description.temperature)
        y = np.exp(y - y.max(-1, keepdims=True))
        y /= y.sum(-1, keepdims=True)
        return y

    def map_probabilities(
        self,
        pixels: NDArray[Any],
        known: NDArray[np.bool_] | None = None,
        *,
        orientations: int | None = None,
        window_px: int = WINDOW_PX,
    ) -> NDArray[np.float32]:
        """Return the probabilities (y, x, k) of a whole scene, by overlapping windows.

        Args:
            pixels: (t, y, x, b) or (y, x, t * b) as stored.
            known: (y, x) where there is data; None for everywhere.
            orientations: 1 to 8; None takes the model's.
            window_px: largest side of a window.
        """
        whole = self.filled(stacked(pixels) if pixels.ndim == 4 else pixels, known)
        height, width = whole.shape[:2]
        layout = Layout.of(height, width, window_px, self.description.unit_px, self.view_px)

        def answer(top: int, left: int) -> NDArray[np.float32]:
            window = whole[None, top : top + layout.side, left : left + layout.side]
            return self.probabilities(window, orientations)[0]

        rows = ([answer(top, left) for left in layout.lefts] for top in layout.tops)
        return np.concatenate([strip for _, strip in layout.blended(rows)])

    def filled(self, pixels: NDArray[Any], known: NDArray[np.bool_] | None) -> NDArray[Any]:
        """Return stored pixels (y, x, t * b) whose nodata hold the training mean."""
        if known is None or known.all():
            return pixels
        return np.where(known[..., None], pixels, np.array(self.description.fill).astype(pixels.dtype))

    def choose(self, probabilities: NDArray[Any]) -> NDArray[np.uint8]:
        """Return the class (...,) for probabilities (..., k): the likeliest, or by the threshold of two."""
        return chosen(probabilities, self.description.threshold).astype(np.uint8)

    def calibrated(self, temperature: float, threshold: float | None) -> Segmenter:
        """Return the model with another temperature and threshold."""
        return replace(
            self, description=replace(self.description, temperature=temperature, threshold=threshold)
        )


def _restored(answers: NDArray[Any], number: int) -> NDArray[Any]:
    """Return answers (n, y, x, k) for the view of a number turned back to the image; see `oriented`."""
    y = answers[:, :: -1 if number % 4 in (1, 2) else 1, :: -1 if number % 4 in (1, 3) else 1]
    return y.swapaxes(1, 2) if number >= 4 else y


def save_segmenter(
    segmenter: Segmenter,
    out: Path,
    config: Mapping[str, Any],
    counts: Mapping[str, int],
    *,
    overwrite: bool = False,
) -> None:
    """Write a model folder, whole or not at all.

    Args:
        segmenter: the model.
        out: the folder.
        config: recipe and data that decide the weights.
        counts: numbers of scenes and pixels, for the manifest.
        overwrite: replace a finished model folder.

    Raises:
        OutputExistsError: the folder exists and `overwrite` is false.
    """
    save_model(segmenter.network, segmenter.description, out, KIND, config, counts, overwrite=overwrite)


def load_segmenter(path: str | Path) -> Segmenter:
    """Open a segmentation model; code in its files never runs.

    Raises:
        MissingInputError, ManifestError, FormatVersionError: there is no such model, or it was changed.
        ModelError: the network does not fit the manifest, or is unsafe.
    """
    path = Path(path)
    if not path.is_dir():
        raise MissingInputError(
            f"{path}: no such folder. Expected a model that `retrieve segment train` wrote. Train one."
        )
    network, description = load_model(path, KIND, Description.from_mapping, "segmentation model")
    return Segmenter(network, description, path.name)


@lru_cache(maxsize=4)
def _unpickled(content: bytes, description: Description, name: str) -> Segmenter:
    """Return the model that `Segmenter.__reduce__` packed."""
    return Segmenter(network_of(content), description, name)
