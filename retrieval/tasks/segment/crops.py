"""Training crops: where they are cut, and how they are varied.

A batch follows from the seed and its step alone, so a resumed training repeats it. A crop is cut with a
margin around it, and one interpolation flips, turns, rotates and scales it. Beyond the scene's border the
ground is mirrored, with its mask. Some crops lie around a pixel of a class that is drawn evenly, so that the
network sees rare classes often.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import SegmenterConfig
from retrieval.labels.classes import IGNORED
from retrieval.tasks.augmentation import relit
from retrieval.tasks.segment.scenes import SceneSet, stacked

BLOCK_PX = 32
"""Side of the blocks in which the pixels of a class are counted, to find one fast."""
_STREAM = 3
"""Number of the random stream of crops."""


def margin_side(config: SegmenterConfig) -> int:
    """Return the side in pixels of a crop with the margin that rotation and scale need."""
    turned = math.cos(min(config.angle, math.pi / 4)) + math.sin(min(config.angle, math.pi / 4))
    return math.ceil(config.crop * math.exp(config.zoom) * turned) + 2


@dataclass(frozen=True, eq=False)
class _Place:
    """A scene in memory, with the pixels of each class by block."""

    pixels: NDArray[Any]
    labels: NDArray[np.uint8]
    blocks: NDArray[np.int64]
    """(rows of blocks, columns of blocks, k) pixels of each class."""


class CropSource:
    """Draws batches of crops from scenes."""

    def __init__(self, scenes: SceneSet, config: SegmenterConfig, fill: NDArray[Any]) -> None:
        """Index the scenes.

        Args:
            scenes: the training scenes.
            config: the recipe.
            fill: (t * b,) what nodata pixels hold.
        """
        self.config, self.side = config, margin_side(config)
        k = len(scenes.classes.names)
        self._places, chances = [], []
        for scene in scenes.scenes:
            pixels, labels = scene.pixels, scene.labels
            if scene.known is not None and not scene.known.all():
                whole = np.where(scene.known[..., None], stacked(pixels), fill.astype(pixels.dtype))
                pixels = whole[None]
            self._places.append(_Place(pixels, labels, _class_blocks(labels, k)))
            chances.append(scene.weight * self._places[-1].blocks.sum((0, 1)))
        by_class = np.array(chances, np.float64)  # (scenes, k)
        self._scene_chance = by_class.sum(1) / by_class.sum()
        shown = by_class.sum(0)
        self._shown = np.flatnonzero(shown)
        self._chance_of = by_class / np.where(shown > 0, shown, 1)

    def batch(self, step: int) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        """Return the crops of a step with their margin: (n, side, side, t * b) and their masks."""
        rng = np.random.default_rng([self.config.seed, _STREAM, step])
        crops = [self._crop(rng) for _ in range(self.config.batch)]
        return np.stack([pixels for pixels, _ in crops]), np.stack([labels for _, labels in crops])

    def _crop(self, rng: np.random.Generator) -> tuple[NDArray[Any], NDArray[np.uint8]]:
        if rng.random() < self.config.rare:
            index = int(rng.choice(self._shown))
            place = self._places[rng.choice(len(self._places), p=self._chance_of[:, index])]
            weight = place.blocks[..., index]
        else:
            place = self._places[rng.choice(len(self._places), p=self._scene_chance)]
            weight = place.blocks.sum(-1)
        flat = weight.ravel() / weight.sum()
        row, column = divmod(int(rng.choice(len(flat), p=flat)), weight.shape[1])
        top, left = (n * BLOCK_PX + rng.integers(BLOCK_PX) - self.side // 2 for n in (row, column))
        shift = rng.integers(-self.config.crop // 4, self.config.crop // 4 + 1, 2)
        height, width = place.labels.shape
        y, x = mirrored(top + shift[0], self.side, height), mirrored(left + shift[1], self.side, width)
        pixels = stacked(place.pixels[:, y[:, None], x])
        return pixels, place.labels[y[:, None], x]


def mirrored(start: int, count: int, length: int) -> NDArray[np.int64]:
    """Return `count` indices from `start` on, those beyond an axis of `length` pixels mirrored into it."""
    places = np.arange(start, start + count) % (2 * length)
    return np.where(places < length, places, 2 * length - 1 - places)


def _class_blocks(labels: NDArray[np.uint8], k: int) -> NDArray[np.int64]:
    """Return the number of pixels of each class by block."""
    height, width = labels.shape
    rows, columns = -(-height // BLOCK_PX), -(-width // BLOCK_PX)
    padded = np.full((rows * BLOCK_PX, columns * BLOCK_PX), IGNORED, np.uint8)
    padded[:height, :width] = labels
    tiles = padded.reshape(rows, BLOCK_PX, columns, BLOCK_PX)
    return np.stack([(tiles == index).sum((1, 3)) for index in range(k)], axis=-1)


def varied(pixels: Any, labels: Any, seed: Any, config: SegmenterConfig, dates: int) -> tuple[Any, Any]:
    """Return varied crops of the recipe's size.

    Args:
        pixels: (n, side, side, t * b) standardized, with the margin.
        labels: (n, side, side) uint8.
        seed: int32 tensor (2,).
        config: the recipe.
        dates: number of dates; each gets its own light.

    Returns:
        Pixels (n, crop, crop, t * b) and labels (n, crop, crop).
    """
    import tensorflow as tf

    transforms = _transforms(tf.shape(pixels)[0], int(pixels.shape[1]), seed, config)
    shape = (config.crop, config.crop)

    def moved(images: Any, interpolation: str, fill: float) -> Any:
        return tf.raw_ops.ImageProjectiveTransformV3(
            images=images,
            transforms=transforms,
            output_shape=shape,
            interpolation=interpolation,
            fill_mode="CONSTANT",
            fill_value=fill,
        )

    shown = moved(pixels, "BILINEAR", 0.0)
    truth = moved(labels[..., None], "NEAREST", float(IGNORED))[..., 0]
    return relit_dates(shown, seed + 1, config, dates), truth


def relit_dates(pixels: Any, seed: Any, config: SegmenterConfig, dates: int) -> Any:
    """Return standardized pixels (n, y, x, t * b) in another light, each date in its own."""
    import tensorflow as tf

    parts = tf.split(pixels, dates, axis=-1)
    return tf.concat([relit(part, seed + n, config.colour) for n, part in enumerate(parts)], -1)


def _transforms(count: Any, side: int, seed: Any, config: SegmenterConfig) -> Any:
    """Return the matrices (n, 8) from a pixel of a varied crop to one of the crop with its margin."""
    import tensorflow as tf

    draw = tf.random.stateless_uniform((5, count), seed, -1.0, 1.0)
    scale, angle = tf.exp(draw[0] * config.zoom), draw[1] * config.angle
    turn = tf.floor((draw[2] + 1) * 2) * (math.pi / 2)
    flip = tf.where(draw[3] < 0, -1.0, 1.0)
    cosine, sine = tf.cos(angle + turn) * scale, tf.sin(angle + turn) * scale
    a, b, d, e = flip * cosine, -sine, flip * sine, cosine
    middle, centre = (config.crop - 1) / 2, (side - 1) / 2
    c = centre - (a + b) * middle
    f = centre - (d + e) * middle
    zero = tf.zeros_like(a)
    return tf.stack([a, b, c, d, e, f, zero, zero], axis=1)
