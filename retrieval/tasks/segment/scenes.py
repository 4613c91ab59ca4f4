"""The records of a segmentation: scenes of any size with a class in each pixel.

Pixels have one of three forms, decided once for a set. `byte` is a rendering, uint8. `dn` is a measurement,
uint16, reflectance times 10000. `value` is any other number, float32, such as heights or radar.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ExamplesError
from retrieval.labels.classes import IGNORED, Classes
from tfrecords.errors import ArrayError, BandsError, UnitsError

Form = Literal["byte", "dn", "value"]
"""Meaning of the pixels."""
FULL_SCALE: dict[Form, float] = {"byte": 255.0, "dn": 10_000.0, "value": 1.0}
"""Pixel value that becomes 1 in front of a network, by form."""
DTYPE: dict[Form, Any] = {"byte": np.uint8, "dn": np.uint16, "value": np.float32}
"""Dtype of stored pixels, by form."""
MIN_SIDE_PX = 16
"""Smallest side of a scene."""


@dataclass(frozen=True, eq=False)
class Scene:
    """One place: its pixels, its mask, and where both are known."""

    name: str
    """Name for messages."""
    pixels: NDArray[Any]
    """(t, y, x, b) as stored; what nodata pixels hold does not matter."""
    mask: NDArray[np.uint8]
    """(y, x) class index, 255 = no data or no label."""
    known: NDArray[np.bool_] | None = None
    """(y, x) where all dates hold data; None for everywhere."""
    weight: float = 1.0
    """How often the scene is drawn, relative to others of its size."""

    @property
    def stacked(self) -> NDArray[Any]:
        """The bands of all dates, date by date: (y, x, t * b)."""
        return stacked(self.pixels)

    @property
    def labels(self) -> NDArray[np.uint8]:
        """The mask, 255 also where there is no data."""
        return self.mask if self.known is None else np.where(self.known, self.mask, np.uint8(IGNORED))


@dataclass(frozen=True, eq=False)
class SceneSet:
    """Scenes of one form, number of dates, set of bands and list of classes."""

    scenes: tuple[Scene, ...]
    """The scenes, of any sizes."""
    form: Form
    """Meaning of the pixels."""
    bands: tuple[str, ...]
    """Names of the b bands of a date."""
    classes: Classes
    """Names and colours of the classes."""
    name: str = "scenes"
    """Name for messages."""
    notes: tuple[str, ...] = field(default=())
    """Files without a partner, for people."""

    def __post_init__(self) -> None:
        if not self.scenes:
            raise ExamplesError(f"{self.name}: no scene. Expected images with masks.")
        first = self.scenes[0]
        for scene in self.scenes:
            _check(scene, first, self)

    def __len__(self) -> int:
        return len(self.scenes)

    @property
    def dates(self) -> int:
        """Number of dates of a scene."""
        return int(self.scenes[0].pixels.shape[0])

    def counts(self) -> NDArray[np.int64]:
        """Return the number of labelled pixels of each class."""
        k = len(self.classes.names)
        total = np.zeros(256, np.int64)
        for scene in self.scenes:
            total += np.bincount(scene.labels.ravel(), minlength=256)
        return total[:k]

    def statistics(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return mean and variance of each band of each date (t * b,) of pixels divided by the full scale."""
        scale, count = FULL_SCALE[self.form], 0
        channels = self.dates * len(self.bands)
        total, square = np.zeros(channels), np.zeros(channels)
        for rows, known in self._strips():
            values = rows[known].astype(np.float64) / scale
            count += len(values)
            total += values.sum(0)
            square += (values**2).sum(0)
        mean = total / max(count, 1)
        variance = np.maximum(square / max(count, 1) - mean**2, 1e-6)
        return mean.astype(np.float32), variance.astype(np.float32)

    def _strips(self, rows: int = 256) -> Iterator[tuple[NDArray[Any], NDArray[np.bool_]]]:
        for scene in self.scenes:
            height = len(scene.mask)
            for top in range(0, height, rows):
                part = stacked(scene.pixels[:, top : top + rows])
                known = (
                    np.ones(part.shape[:2], bool) if scene.known is None else scene.known[top : top + rows]
                )
                yield part, known


def stacked(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return dates (t, y, x, b) as bands (y, x, t * b)."""
    t, y, x, b = pixels.shape
    return pixels[0] if t == 1 else np.moveaxis(pixels, 0, 2).reshape(y, x, t * b)


def digest(scene: Scene) -> str:
    """Return a digest of a scene's pixels; equal scenes have equal digests."""
    content = repr(scene.pixels.shape).encode() + np.ascontiguousarray(scene.pixels).tobytes()
    return hashlib.sha256(content).hexdigest()[:16]


def check_apart(validation: SceneSet, training: SceneSet) -> None:
    """Refuse a validation scene that is also a training scene.

    Raises:
        ExamplesError: names the first such pair.
    """
    known = {digest(scene): scene.name for scene in training.scenes}
    for scene in validation.scenes:
        if (same := known.get(digest(scene))) is not None:
            raise ExamplesError(
                f"{validation.name}: image {scene.name} is image {same} of {training.name}. Validation needs "
                "ground that is not trained on. Remove it from one of them."
            )


def check_alike(scenes: SceneSet, bands: Sequence[str], form: str, dates: int, owner: str) -> None:
    """Refuse scenes of other bands, form or number of dates.

    Raises:
        BandsError, UnitsError, ArrayError: names both.
    """
    if scenes.bands != tuple(bands):
        raise BandsError(
            f"{scenes.name}: bands {' '.join(scenes.bands)}; {owner} has {' '.join(bands)}. Expected the "
            "same bands. Name them with --bands."
        )
    if scenes.form != form:
        raise UnitsError(f"{scenes.name}: {scenes.form} pixels; {owner} has {form}. State them with --units.")
    if scenes.dates != dates:
        raise ArrayError(f"{scenes.name}: {scenes.dates} dates; {owner} has {dates}. Expected as many.")


def _check(scene: Scene, first: Scene, scenes: SceneSet) -> None:
    """Refuse a scene whose arrays do not fit each other or the set."""
    if scene.pixels.ndim != 4 or scene.pixels.shape[1:3] != scene.mask.shape:
        raise ArrayError(
            f"{scene.name}: pixels {scene.pixels.shape} and mask {scene.mask.shape}. Expected (t, y, x, b) "
            "and (y, x)."
        )
    if min(scene.mask.shape) < MIN_SIDE_PX:
        raise ArrayError(
            f"{scene.name}: {scene.mask.shape[0]} x {scene.mask.shape[1]} pixels. Expected at least "
            f"{MIN_SIDE_PX} x {MIN_SIDE_PX}."
        )
    if scene.known is not None and scene.known.shape != scene.mask.shape:
        raise ArrayError(f"{scene.name}: known {scene.known.shape}. Expected {scene.mask.shape}.")
    if scene.pixels.shape[0] != first.pixels.shape[0]:
        raise ArrayError(
            f"{scene.name}: {scene.pixels.shape[0]} dates; {first.name} has {first.pixels.shape[0]}. "
            "Expected the same number."
        )
    if scene.pixels.shape[3] != len(scenes.bands):
        raise BandsError(
            f"{scene.name}: {scene.pixels.shape[3]} bands. Expected {' '.join(scenes.bands)} in all images."
        )
    if scene.pixels.dtype != DTYPE[scenes.form]:
        raise UnitsError(
            f"{scene.name}: {scene.pixels.dtype}. Expected {np.dtype(DTYPE[scenes.form])} for {scenes.form}."
        )
    valid = scene.mask[scene.mask != IGNORED]
    if valid.size and valid.max() >= len(scenes.classes.names):
        raise ExamplesError(
            f"{scene.name}: class value {valid.max()}. Expected 0 to {len(scenes.classes.names) - 1} "
            f"({', '.join(scenes.classes.names)}), or 255 for no label."
        )
