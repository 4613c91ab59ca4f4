"""Keras models as encoders: checked on opening, compiled once, saved as a whole."""

from __future__ import annotations

import hashlib
import json
import tempfile
from functools import cached_property, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX
from retrieval.errors import EncoderError
from retrieval.kernels.compiled import Compiled
from retrieval.models.calibration import Calibration, calibrations_beside
from retrieval.models.registry import WEIGHTS, default_encoder_name, encoder_names, load_network
from retrieval.types import Encoder
from tfrecords.artifacts import writing_file

_INESSENTIAL = ("module", "registered_name", "build_config", "trainable")
_TRAINING_ONLY = ("_initializer", "_regularizer", "_constraint")


def fingerprint(model: Any) -> str:
    """Return the sha256 of a model's graph, constants and weights.

    Names of layers and settings of the training do not count. The same model has the same fingerprint after
    every build, save and load, on every machine and backend.
    """
    config = model.get_config()
    weights = {layer.name: layer.weights for layer in model.layers}
    digests: dict[str, str] = {}
    for layer in config["layers"]:  # producers come before what they feed
        name = layer["config"]["name"]
        plain = {**layer, "name": None, "config": {**layer["config"], "name": None}}
        digest = hashlib.sha256(json.dumps(_essence(plain, digests), sort_keys=True).encode())
        for w in weights.get(name, ()):
            value = np.ascontiguousarray(w.numpy(), dtype="<f4")
            digest.update(json.dumps(value.shape).encode() + value.tobytes())
        digests[name] = digest.hexdigest()
    ends = config.get("output_layers") or list(digests)[-1]
    return hashlib.sha256(json.dumps([digests.get(end, end) for end in _leaves(ends)]).encode()).hexdigest()


def _leaves(value: Any) -> list[Any]:
    """Return the leaves of nested lists."""
    return [leaf for v in value for leaf in _leaves(v)] if isinstance(value, (list, tuple)) else [value]


def _essence(value: Any, digests: dict[str, str]) -> Any:
    """Return a piece of a Keras configuration without settings of the training and without unset keys.

    A newer Keras may add unset keys. A tensor becomes the digest of the layer that makes it.
    """
    if isinstance(value, (list, tuple)):
        return [_essence(v, digests) for v in value]
    if not isinstance(value, dict):
        return value
    if value.get("class_name") == "__keras_tensor__":
        name, *rest = value["config"]["keras_history"]
        return [digests.get(name, name), *rest]
    essential = {
        k: v for k, v in value.items() if v and k not in _INESSENTIAL and not k.endswith(_TRAINING_ONLY)
    }
    return {k: _essence(v, digests) for k, v in essential.items()}


class FakeEncoder:
    """Zero-mean cell averages in plain NumPy, for tests that need any encoder."""

    name = "fake"
    step_px = 8

    def __init__(self, cells: int = 4) -> None:
        """Make one with `cells` x `cells` cells in a window; cells divides 8."""
        self.cells, self.dim, self.fingerprint = cells, cells * cells, f"fake-{cells}"
        self.calibrations: tuple[Calibration, ...] = ()

    def embed(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Embed as `retrieval.types.Encoder.embed` says."""
        gray = np.nan_to_num(batch).mean(-1)
        windows = np.lib.stride_tricks.sliding_window_view(gray, (PATCH_PX, PATCH_PX), (1, 2))
        windows = windows[:, :: self.step_px, :: self.step_px]  # (n, rows, cols, 64, 64)
        edge = PATCH_PX // self.cells
        shape = (*windows.shape[:3], self.cells, edge, self.cells, edge)
        v = windows.reshape(shape).mean((-1, -3)).reshape(*windows.shape[:3], -1)
        v = v - v.mean(-1, keepdims=True)
        norm = np.linalg.norm(v, axis=-1, keepdims=True)
        return np.where(norm > 1e-6, v / np.maximum(norm, 1e-6), 0).astype(np.float32)


COMPILED_AFTER = 24
"""Images of one size before the model is compiled for it: 1 to 2 s that save a third of each image."""
SAME_VECTOR = 1e-3
"""Largest difference between a window's vector in an image and the vector of its crop."""


class KerasEncoder:
    """A Keras model behind the `Encoder` protocol; see `retrieval.types.Encoder`."""

    def __init__(self, model: Any, name: str) -> None:
        """Wrap a model after checking that it is an encoder.

        Raises:
            EncoderError: wrong rank, receptive field, stride or norm.
        """
        self.model, self.name = model, name
        self.fingerprint = fingerprint(model)
        self.calibrations: tuple[Calibration, ...] = ()
        self.shipped_as = ""
        self._images = 0
        self._bands: int | None = None
        self._call = Compiled(lambda batch: model(batch, training=False), after=COMPILED_AFTER)
        self.dim, self.step_px = self._probe()

    @property
    def compiled_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of batches for which compiled code exists."""
        return self._call.shapes

    def warm_up(self, images: int) -> None:
        """Prepare for a number of images: the model is compiled for the first of many."""
        self._images = images
        self._call.warm_up(images)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the name of a shipped encoder, or as the bytes of a `.keras` file."""
        content = b"" if self.shipped_as else self._keras_file
        return _unpickled, (self.shipped_as, content, self.name, self.calibrations, self._images)

    @cached_property
    def _keras_file(self) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "encoder.keras"
            self.model.save(path)
            return path.read_bytes()

    def embed(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Embed every window of a batch; shapes as in `retrieval.types.Encoder.embed`.

        Raises:
            EncoderError: the model takes another number of bands.
        """
        if self._bands not in (None, batch.shape[-1]):
            raise EncoderError(
                f"{self.name}: the model takes {self._bands} bands, the pixels have {batch.shape[-1]}: use "
                "an encoder for any number of bands, as the shipped ones are"
            )
        return np.asarray(self._call(np.ascontiguousarray(batch, dtype=np.float32)), np.float32)

    def _probe(self) -> tuple[int, int]:
        """Return dimension and stride from a seeded picture; refuse a model that is not an encoder."""
        try:
            self._bands = self.model.input_shape[-1]
            shape = (1, 2 * PATCH_PX, 2 * PATCH_PX, self._bands or 4)
            probe = np.random.default_rng(0).uniform(-1, 1, shape).astype("float32")
            whole, window = self.embed(probe), self.embed(probe[:, :PATCH_PX, :PATCH_PX])
            last = self.embed(probe[:, PATCH_PX:, PATCH_PX:])
            probe[:, : PATCH_PX // 2, : PATCH_PX // 2] = np.nan
            holed = self.embed(probe)
        except Exception as e:
            raise EncoderError(
                f"{self.name}: not an encoder: it cannot embed a 64 x 64 x 4 patch ({e})"
            ) from e
        if (
            window.ndim != 4
            or window.shape[1:3] != (1, 1)
            or whole.shape[1] < 2
            or PATCH_PX % (whole.shape[1] - 1)
        ):
            raise EncoderError(
                f"{self.name}: a 64 x 64 patch gives {window.shape} and 128 x 128 pixels give {whole.shape}; "
                "expected (1, 1, 1, dim) and a stride that divides 64: the model must be fully "
                "convolutional, without padding"
            )
        self._check_vectors(whole, window, last, holed)
        return window.shape[-1], PATCH_PX // (whole.shape[1] - 1)

    def _check_vectors(
        self, whole: NDArray[Any], window: NDArray[Any], last: NDArray[Any], holed: NDArray[Any]
    ) -> None:
        """Refuse vectors without unit length, that depend on pixels outside of the window, or NaN."""
        if not np.allclose(np.linalg.norm(whole, axis=-1), 1, atol=1e-3):
            raise EncoderError(
                f"{self.name}: vectors are not of unit length: end the model with a normalisation"
            )
        off = max(
            np.abs(whole[:, 0, 0] - window[:, 0, 0]).max(), np.abs(whole[:, -1, -1] - last[:, 0, 0]).max()
        )
        if off > SAME_VECTOR:
            raise EncoderError(
                f"{self.name}: a window's vector in an image and the vector of its crop differ by {off:.2g}. "
                f" Expected at most {SAME_VECTOR:g}. Use no padding, no normalisation over the "
                "image, and a stride that divides 64."
            )
        if not np.isfinite(holed).all():
            raise EncoderError(
                f"{self.name}: NaN pixels (nodata) give NaN vectors: replace NaN inside the model, for "
                "instance by keras.ops.where(keras.ops.isnan(x), 0, x)"
            )


def save_encoder(model: Any, path: Path | str, *, overwrite: bool = False) -> None:
    """Write a model to a `.keras` file, whole or not at all.

    Raises:
        EncoderError: the file's name does not end in `.keras`.
        OutputExistsError: it is there and `overwrite` is false.
    """
    path = Path(path)
    if path.suffix != ".keras":
        raise EncoderError(f"{path}: expected a name that ends in .keras")
    with writing_file(path, overwrite=overwrite) as temporary:
        model.save(temporary)


def load_encoder(source: Path | str | Encoder | None = None) -> Encoder:
    """Open an encoder.

    Args:
        source: a `.keras` file, the name of a shipped encoder ("structure-tensor", "siamese"), None for the
            default one, or an encoder, which is returned as it is.

    Raises:
        EncoderError: no such file or name, unsafe or damaged, or not an encoder.
    """
    if source is not None and not isinstance(source, (str, Path)):
        return source
    name = str(source or default_encoder_name())
    if name in encoder_names():
        with resources.as_file(WEIGHTS / f"{name}.keras") as path:
            encoder = _load(path, name)
            encoder.shipped_as = name
            return encoder
    path = Path(name)
    if path.suffix != ".keras" or not path.is_file():
        raise EncoderError(
            f"no encoder {name}: expected a .keras file or one of {', '.join(encoder_names())}"
        )
    return _load(path, path.stem)


def _load(path: Path, name: str) -> KerasEncoder:
    encoder = KerasEncoder(load_network(path), name)
    encoder.calibrations = tuple(calibrations_beside(path))
    return encoder


def _unpickled(
    shipped_as: str, content: bytes, name: str, calibrations: tuple[Calibration, ...], images: int
) -> Encoder:
    """Return the encoder that `KerasEncoder.__reduce__` packed; a process opens it once."""
    encoder = _opened(shipped_as, content, name)
    encoder.calibrations = calibrations
    encoder.warm_up(images)
    return encoder


@lru_cache(maxsize=2)
def _opened(shipped_as: str, content: bytes, name: str) -> KerasEncoder:
    if shipped_as:
        return cast(KerasEncoder, load_encoder(shipped_as))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "encoder.keras"
        path.write_bytes(content)
        return _load(path, name)
