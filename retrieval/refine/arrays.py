"""Images in memory, where refinement otherwise reads those of an index."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Arrays:
    """Pixels of images by id; one of `retrieval.refine.Pixels`."""

    arrays: Mapping[int, NDArray[np.float32]]
    """(h, w, b) scaled, NaN = not known."""
    names: Mapping[int, tuple[str, ...]]
    """Their bands."""

    def bands(self, image_id: int) -> tuple[str, ...]:
        """Names of an image's bands, in their order."""
        return self.names[image_id]

    def size(self, image_id: int) -> tuple[int, int]:
        """Height and width of an image."""
        height, width = self.arrays[image_id].shape[:2]
        return height, width

    def scaled(self, image_id: int, window: tuple[int, int, int, int] | None = None) -> NDArray[np.float32]:
        """An image or a window (x, y, width, height) of it, (h, w, b)."""
        x, y, width, height = window or (0, 0, *self.size(image_id)[::-1])
        return self.arrays[image_id][y : y + height, x : x + width]
