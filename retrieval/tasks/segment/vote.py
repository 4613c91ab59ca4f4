"""Segmentation models that vote: the mean of their probabilities decides the class of a pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ModelError
from retrieval.labels.classes import IGNORED, Classes
from retrieval.tasks.classifier import chosen
from retrieval.tasks.segment.model import Segmenter
from retrieval.tasks.segment.sources import ImageFile
from tfrecords.errors import UnitsError


@dataclass(frozen=True, eq=False)
class Vote:
    """Models of the same classes whose probabilities are averaged."""

    models: tuple[Segmenter, ...]
    orientations: int | None
    """Flips and rotations; None takes each model's."""

    @classmethod
    def of(cls, models: Sequence[Segmenter], orientations: int | None = None) -> Vote:
        """Check that models agree.

        Raises:
            ModelError: they have other classes, or take several dates.
        """
        if not models:
            raise ModelError("no model. Expected one or more model folders. Name one with --model.")
        first = models[0].description
        for model in models:
            d = model.description
            if d.classes != first.classes:
                raise ModelError(
                    f"model {model.name}: classes {', '.join(d.classes)}; model {models[0].name} has "
                    f"{', '.join(first.classes)}. Expected models of the same classes."
                )
            if d.dates != 1:
                raise ModelError(
                    f"model {model.name}: it takes {d.dates} dates. Expected a model of one date. Use "
                    "`retrieve change detect` for two."
                )
        return cls(tuple(models), orientations)

    @property
    def legend(self) -> Classes:
        """Names and colours of the classes."""
        return self.models[0].description.legend

    @property
    def unit_px(self) -> int:
        """Windows start at multiples of it."""
        return int(np.lcm.reduce([model.description.unit_px for model in self.models]))

    @property
    def view_px(self) -> int:
        """How far the models see beyond a pixel, at most."""
        return max(model.view_px for model in self.models)

    def check(self, image: ImageFile) -> None:
        """Refuse an image that a model cannot take.

        Raises:
            BandsError, UnitsError: it lacks a band, or is of another form.
        """
        for model in self.models:
            d = model.description
            image.columns(d.bands, f"model {model.name}")
            if image.form != d.form:
                raise UnitsError(
                    f"{image.path}: {image.form} pixels; model {model.name} takes {d.form}. State the units "
                    "with --units, or train a model on such images."
                )

    def probabilities(
        self, pixels: NDArray[Any], known: NDArray[np.bool_], image: ImageFile
    ) -> NDArray[np.float32]:
        """Return the mean probabilities (n, y, x, k) of pixels (n, y, x, b) with all bands of an image."""
        total: Any = 0.0
        for model in self.models:
            columns = image.columns(model.description.bands, model.name)
            shown = pixels if columns == list(range(pixels.shape[-1])) else pixels[..., columns]
            total = total + model.probabilities(model.filled(shown, known), self.orientations)
        return (total / np.float32(len(self.models))).astype(np.float32, copy=False)

    def choose(self, probabilities: NDArray[np.float32], known: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """Return the class of each pixel, 255 where there is no data; of two, by the mean threshold."""
        thresholds = [m.description.threshold for m in self.models]
        stated = [threshold for threshold in thresholds if threshold is not None]
        limit = float(np.mean(stated)) if len(stated) == len(thresholds) else None
        found = chosen(probabilities, limit).astype(np.uint8)
        found[~known] = IGNORED
        return found
