"""The cloud network: a small network that finds cloud in patches of any bands by brightness and texture.

Cloud over half of a window spoils its vector and its correlation. Both can leave hidden pixels out, but
patches come without a mask, so this network makes one. Its input, at half resolution, is the mean, the
largest and the smallest band and the strength of the edges. Its field of view is about 64 px. It learned
from pasted clouds (`retrieval.training.cloud_networks`).

Source: F. Yu, V. Koltun, Multi-scale context aggregation by dilated convolutions (2016).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import TensorConfig
from retrieval.kernels.compiled import Compiled, tile
from retrieval.kernels.executors import map_batches
from retrieval.models.registry import CLOUDS, load_shipped, shipped_constants
from retrieval.models.structure_tensor import structure_tensor

DILATIONS = (1, 2, 4, 8)
"""Dilation rates of the convolutions, in order."""
BATCH = 64
"""Patches per call: they fit the cache of a core."""
TILE_PX, MARGIN_PX = 512, 40
"""Side of the tiles of an image, and the pixels around them: more than half of the field of view."""
CLEAR_SHARE = 0.005
"""Share of cloud in every second pixel of a tile below which the tile is clear."""


def cloud_model(width: int = 16) -> Any:
    """Return the untrained network.

    Args:
        width: channels of its convolutions.

    Returns:
        A functional `keras.Model`, (n, h, w, b) scaled, NaN = nodata -> (n, h / 2, w / 2) log-odds of thick
        or thin cloud; h and w even.
    """
    import keras
    from keras import layers, ops

    scaled = keras.Input((None, None, None), name="scaled")
    number = ops.logical_not(ops.isnan(scaled))
    count = ops.maximum(ops.sum(ops.cast(number, "float32"), -1, keepdims=True), 1.0)
    mean = ops.sum(ops.where(number, scaled, 0.0), -1, keepdims=True) / count
    most = ops.max(ops.where(number, scaled, -1.0), -1, keepdims=True)
    least = ops.min(ops.where(number, scaled, 1.0), -1, keepdims=True)
    tensor, _ = structure_tensor(scaled, TensorConfig.noise)
    edges = 0.3 * ops.pad(tensor[..., :1], ((0, 0), (1, 1), (1, 1), (0, 0)))
    x = layers.AveragePooling2D(2)(ops.concatenate([mean, most, least, edges], -1))
    for number_, dilation in enumerate(DILATIONS, 1):
        name = f"conv{number_}"
        x = layers.Conv2D(width, 3, dilation_rate=dilation, padding="same", activation="gelu", name=name)(x)
    x = layers.Conv2D(width, 1, activation="gelu", name="hidden")(x)
    return keras.Model(scaled, layers.Conv2D(1, 1, name="odds")(x)[..., 0], name="clouds")


class CloudMask:
    """A trained cloud network with its threshold."""

    def __init__(self, model: Any, min_logit: float | None = None) -> None:
        """Wrap a model of `cloud_model`.

        Args:
            model: the network.
            min_logit: log-odds above which a pixel counts as cloud; None for the shipped threshold.
        """
        self.model = model
        constants = shipped_constants("clouds.threshold.json")
        self.min_logit = constants["min_logit"] if min_logit is None else min_logit
        self._call = Compiled(lambda scaled: model(scaled, training=False), after=1)

    def __call__(self, scaled: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return the pixels that cloud hides or blurs.

        Args:
            scaled: (n, h, w, b) float32 scaled, NaN = nodata; h and w even.

        Returns:
            (n, h, w) true under cloud; false on nodata.
        """
        return self.hidden_by(scaled, self.log_odds(scaled))

    def log_odds(self, scaled: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the log-odds of thick or thin cloud at half resolution, (n, h / 2, w / 2)."""
        h, w = scaled.shape[1:3]
        # The network was trained on pixels that are clipped at 1.
        parts = map_batches(self._call, np.minimum(scaled, 1), BATCH)
        return np.concatenate([np.zeros((0, h // 2, w // 2), np.float32), *parts])

    def hidden_by(
        self, scaled: NDArray[np.float32], log_odds: NDArray[np.float32], min_logit: float | None = None
    ) -> NDArray[np.bool_]:
        """Return the pixels that count as cloud, (n, h, w).

        Args:
            scaled: the pictures.
            log_odds: their log-odds.
            min_logit: log-odds above which a pixel counts as cloud; None for the threshold of the mask.
        """
        covered = log_odds > (self.min_logit if min_logit is None else min_logit)
        return np.asarray(covered.repeat(2, 1).repeat(2, 2) & ~np.isnan(scaled).all(-1))

    def of_image(self, scaled: NDArray[np.float32], side: int = TILE_PX) -> NDArray[np.bool_]:
        """Return the cloud (h, w) of an image (h, w, b).

        Strategy: tile by tile, so that one compiled shape serves all sizes. Every second pixel tells at a
        quarter of the work that most tiles are clear.

        Args:
            scaled: NaN = nodata.
            side: of a tile, in pixels; a multiple of four.
        """
        h, w = scaled.shape[:2]
        covered = np.zeros((h, w), bool)
        around = ((MARGIN_PX, MARGIN_PX), (MARGIN_PX, MARGIN_PX), (0, 0))
        padded = np.pad(scaled, around, constant_values=np.nan)
        inner = slice(MARGIN_PX, MARGIN_PX + side)
        for y in range(0, h, side):
            for x in range(0, w, side):
                seen = tile(padded[None], y, x, side + 2 * MARGIN_PX, np.nan)
                if self(np.ascontiguousarray(seen[:, ::2, ::2])).mean() < CLEAR_SHARE:
                    continue
                part = self(seen)[0, inner, inner]
                covered[y : y + side, x : x + side] = part[: h - y, : w - x]
        return covered


@lru_cache(maxsize=1)
def shipped_cloud_mask() -> CloudMask:
    """Return the cloud mask in the package."""
    return CloudMask(load_shipped(CLOUDS))
