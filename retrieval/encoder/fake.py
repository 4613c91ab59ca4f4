"""The fake beside the seam: an encoder without Keras."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX


class FakeEncoder:
    """Mean-free cell means in plain NumPy: for tests of everything that only needs *an* encoder."""

    name = "fake"
    step_px = 8

    def __init__(self, cells: int = 4) -> None:
        """Make one with `cells` x `cells` cells in a window; cells divides 8."""
        self.cells, self.dim, self.fingerprint = cells, cells * cells, f"fake-{cells}"

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
