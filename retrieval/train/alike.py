"""Look-alikes: crops that the training-free encoder takes for much the same.

Crops of one place are hard negatives because they look alike; so do fields of two countries. The first
crops of a round are centres, and every crop is of the centre whose vector is nearest to its own: batches
composed by these instead of by places are of look-alikes from anywhere.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval.embed import embed_patches
from retrieval.encoder import TRAINING_FREE, load_encoder


class LookAlikes:
    """Numbers the clusters of crops; the same crops in the same order get the same numbers."""

    def __init__(self, clusters: int) -> None:
        """So many clusters, 1 or more."""
        self._clusters, self._encoder = clusters, load_encoder(TRAINING_FREE)
        self._centres = np.zeros((0, self._encoder.dim), np.float32)

    def __call__(self, crops: NDArray[np.float32]) -> NDArray[np.int64]:
        """Clusters of the next crops.

        Args:
            crops: (n, 64, 64, b) scaled, NaN = not known.

        Returns:
            (n,) in [0, clusters).
        """
        vectors = embed_patches(self._encoder, crops)
        wanted = self._clusters - len(self._centres)
        self._centres = np.concatenate([self._centres, vectors[:wanted]])
        return (vectors @ self._centres.T).argmax(1)
