"""The visible part of patches: pixels under cloud become nodata.

Patches come without a mask, so the cloud network makes one. Several searches ask for the same patch, with
different thresholds; the network sees each patch once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX, SearchConfig
from retrieval.kernels.compiled import Compiled
from retrieval.kernels.executors import map_batches
from retrieval.models.cloud_mask import shipped_cloud_mask
from retrieval.models.local_descriptors import half_resolution
from retrieval.types import PatchPixels
from tfrecords.schema import Patches

MIN_LOG_GRADIENT = 2.7
"""Log-magnitude of the structure tensor above which a pixel has texture: a gradient of 150 DN."""
SIDE = PATCH_PX // 2
"""Side of a patch at half resolution, in pixels."""
BATCH = 256
"""Patches whose texture is measured at a time."""


class VisiblePatches:
    """Patches without their cloud."""

    def __init__(self, queries: PatchPixels, search: SearchConfig) -> None:
        """Take all patches; cloud over less than `search.min_cloud_share` of a patch counts as ground."""
        self._queries, self._min_share = queries, search.min_cloud_share
        self._log_odds: dict[int, NDArray[np.float32]] = {}

    def select(self, rows: NDArray[np.intp], min_logit: float | None = None) -> Patches:
        """Return patches, NaN where cloud hides the ground.

        Args:
            rows: (n,) the patches.
            min_logit: log-odds above which a pixel counts as cloud; None for the shipped threshold.
        """
        scaled, clouds = np.asarray(self._queries.scaled(rows), np.float32), shipped_cloud_mask()
        new = np.array([row not in self._log_odds for row in rows.tolist()], bool)
        self._log_odds |= zip(rows[new].tolist(), clouds.log_odds(scaled[new]), strict=True)
        log_odds = np.array([self._log_odds[row] for row in rows.tolist()], np.float32)
        cloud = clouds.hidden_by(scaled, log_odds.reshape(len(rows), SIDE, SIDE), min_logit)
        cloud &= (cloud.mean((1, 2)) >= self._min_share)[:, None, None]
        scaled[cloud] = np.nan
        return Patches(np.arange(len(rows)), scaled, "scaled", self._queries.bands, float("nan"))


def hidden_shares(patches: PatchPixels) -> NDArray[np.float64]:
    """Return the share of nodata pixels of each patch, (n,)."""
    return np.asarray(np.isnan(patches.scaled(slice(None))).all(-1).mean((1, 2)))


def texture_shares(patches: PatchPixels) -> NDArray[np.float64]:
    """Return the share of pixels with visible texture of each patch, (n,)."""
    shares = map_batches(_TEXTURE_SHARES, patches.scaled(slice(None)), BATCH)
    return np.concatenate([np.zeros(0), *shares])


def _texture_shares(scaled: Any) -> Any:
    """Share of the pixels of pictures (n, h, w, b), at half resolution, that have texture: (n,)."""
    from keras import ops

    tensor, _ = half_resolution(scaled)
    return ops.mean(ops.cast(tensor[..., 0] > MIN_LOG_GRADIENT, "float32"), (1, 2))


_TEXTURE_SHARES = Compiled(_texture_shares)
