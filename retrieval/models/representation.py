"""Two codes of a crop: the shared one says which place it shows, the exclusive one in which light of a date.

The *shared* code is a projection of the encoder's vector. It keeps the directions that two dates of a place
have in common and drops the directions that follow the brightness. The *exclusive* code is a projection of
statistics of the light (`retrieval.models.light_statistics`). It keeps what all crops of a date share and
other dates lack.
`retrieval.training.representation` fits both; one `.keras` file holds them.

Source: E. H. Sanchez, M. Serrurier, M. Ortner, Learning disentangled representations via mutual information
estimation (2019), arXiv:1912.03915.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX, RepresentationConfig
from retrieval.errors import EncoderError
from retrieval.kernels.compiled import Compiled
from retrieval.models.light_statistics import light_statistics
from retrieval.models.registry import REPRESENTATION, load_network, load_shipped
from tfrecords.schema import BANDS

SHARED, EXCLUSIVE = "shared", "exclusive"
"""Names of the outputs."""
PLACE, STANDARD, LIGHT = "place", "standard", "light"
"""Names of the layers that a training sets: projection of the vector; scale and projection of the light."""
BATCH = 64
"""Crops per call."""
_MOST = 5.0
"""Largest standardized statistic; clouds and saturated pixels lie beyond."""


@dataclass(frozen=True, eq=False)
class Codes:
    """Both codes of crops."""

    shared: NDArray[np.float32]
    """(n, d) of unit length: the place."""
    exclusive: NDArray[np.float32]
    """(n, e): the light of the date. Numbers that differ more from date to date have a larger spread."""


def placed_bands(pixels: NDArray[np.float32], bands: Sequence[str]) -> NDArray[np.float32]:
    """Put bands where the representation expects them.

    Args:
        pixels: (..., b) scaled.
        bands: names of the b bands.

    Returns:
        (..., 4): B04, B03, B02, B08. Other bands take the free slots in their order; those without one are
        left out. NaN where no band is left.
    """
    placed = np.full((*pixels.shape[:-1], len(BANDS)), np.nan, np.float32)
    free = iter([slot for slot, band in enumerate(BANDS) if band not in bands])
    for number, band in enumerate(bands):
        slot = BANDS.index(band) if band in BANDS else next(free, None)
        if slot is not None:
            placed[..., slot] = pixels[..., number]
    return placed


def representation_model(encoder: Any, config: RepresentationConfig) -> Any:
    """Return an untrained representation.

    Args:
        encoder: a `keras.Model` that maps (n, 64, 64, b) to (n, 1, 1, d); the representation has its weights.
        config: lengths of the codes.

    Returns:
        A functional `keras.Model`, (n, 64, 64, 4) scaled, NaN = nodata or no band -> a dict of "shared"
        (n, shared_dim) and "exclusive" (n, exclusive_dim).
    """
    import keras
    from keras import layers, ops

    scaled = keras.Input((PATCH_PX, PATCH_PX, len(BANDS)), name="scaled")
    frozen = keras.Model(encoder.input, encoder.output, trainable=False, name="encoder")
    vector = frozen(scaled)[:, 0, 0]
    project = layers.Dense(config.shared_dim, use_bias=False, trainable=False, name=PLACE)
    placed = project(vector)
    length = ops.sqrt(ops.maximum(ops.sum(placed * placed, -1, keepdims=True), 1e-12))
    shared = layers.Identity(name=SHARED)(placed / length)
    values, present = light_statistics(scaled, len(BANDS))
    standard = layers.BatchNormalization(
        center=False, scale=False, epsilon=1e-6, trainable=False, name=STANDARD
    )(values)
    known = ops.clip(standard, -_MOST, _MOST) * present  # an absent statistic counts as an average one
    code = layers.Dense(config.exclusive_dim, use_bias=False, trainable=False, name=LIGHT)(known)
    exclusive = layers.Identity(name=EXCLUSIVE)(code)
    return keras.Model(scaled, {SHARED: shared, EXCLUSIVE: exclusive}, name="representation")


class Representation:
    """A trained representation."""

    def __init__(self, model: Any, name: str) -> None:
        """Wrap a model after checking its input and outputs.

        Raises:
            EncoderError: it is no representation.
        """
        outputs = getattr(model, "output", None)
        if (
            not isinstance(outputs, dict)
            or set(outputs) != {SHARED, EXCLUSIVE}
            or tuple(model.input_shape[1:]) != (PATCH_PX, PATCH_PX, len(BANDS))
        ):
            raise EncoderError(
                f"{name}: no representation: its output is {outputs}. Expected the codes {SHARED} and "
                f"{EXCLUSIVE} of crops of {PATCH_PX} x {PATCH_PX} pixels in {len(BANDS)} bands. "
                "Train one with retrieve train --model representation."
            )
        self.model, self.name = model, name
        self._call = Compiled(self._both, fused=False, after=0)
        self.shared_dim, self.exclusive_dim = (int(outputs[key].shape[-1]) for key in (SHARED, EXCLUSIVE))

    def _both(self, crops: Any) -> tuple[Any, Any]:
        found = self.model(crops, training=False)
        return found[SHARED], found[EXCLUSIVE]

    def __call__(self, scaled: NDArray[np.float32], bands: Sequence[str] = BANDS) -> Codes:
        """Return the codes of crops.

        Args:
            scaled: (n, 64, 64, b) float32 scaled, NaN = nodata.
            bands: names of the b bands.

        Raises:
            EncoderError: another size, or another number of bands than names.
        """
        if scaled.ndim != 4 or scaled.shape[1:] != (PATCH_PX, PATCH_PX, len(bands)):
            raise EncoderError(
                f"{self.name}: crops have the shape {scaled.shape}. Expected (n, {PATCH_PX}, {PATCH_PX}, "
                f"{len(bands)}), the bands {' '.join(bands)}. Cut the crops to that, or name their bands."
            )
        crops = placed_bands(scaled, bands)
        codes = Codes(
            np.zeros((len(crops), self.shared_dim), np.float32),
            np.zeros((len(crops), self.exclusive_dim), np.float32),
        )
        for start in range(0, len(crops), BATCH):
            part = slice(start, start + BATCH)
            codes.shared[part], codes.exclusive[part] = self._call(crops[part])
        return codes


def load_representation(source: Path | str | None = None) -> Representation:
    """Open a representation.

    Args:
        source: a `.keras` file; None for the shipped one.

    Raises:
        EncoderError: no such file, damaged, unsafe, or no representation.
    """
    if source is None:
        return _shipped()
    path = Path(source)
    if path.suffix != ".keras" or not path.is_file():
        raise EncoderError(f"{source}: no such representation. Expected a .keras file. Check the path.")
    return Representation(load_network(path), path.stem)


@lru_cache(maxsize=1)
def _shipped() -> Representation:
    return Representation(load_shipped(REPRESENTATION), REPRESENTATION)
