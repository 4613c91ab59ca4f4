"""Pixels of a pair that show no ground: nodata, and cloud by the engine's cloud network."""

from __future__ import annotations

import numpy as np

from retrieval.models.cloud_mask import CloudMask, shipped_cloud_mask
from retrieval.tasks.change.pairs import Mask, Pixels

MARGIN_PX = 32
"""Pixels around a pixel that the cloud network sees."""
SQUARE_PX = 192
"""Side of the squares that are masked at a time, without the margin; even."""

MIN_CLOUD_PX = 400
"""Pixels of the smallest cloud: smaller bright spots are roofs, 4 ha at 10 m."""


def unknown_pixels(pixels: Pixels) -> Mask:
    """Return where a band of (h, w, b) has no data, (h, w)."""
    return np.asarray(np.isnan(pixels).any(-1))


def cloud_pixels(pixels: Pixels, mask: CloudMask | None = None) -> Mask:
    """Return the pixels that cloud hides or blurs.

    Args:
        pixels: (h, w, b) scaled, NaN = nodata, with a margin of `MARGIN_PX` pixels on each side.
        mask: the network; None takes the shipped one.

    Returns:
        (h - 64, w - 64) true under cloud; false on nodata.
    """
    mask = mask or shipped_cloud_mask()
    height, width = (length - 2 * MARGIN_PX for length in pixels.shape[:2])
    tops, lefts = range(0, height, SQUARE_PX), range(0, width, SQUARE_PX)
    side = SQUARE_PX + 2 * MARGIN_PX
    out = np.zeros((height, width), bool)
    for y, x in ((y, x) for y in tops for x in lefts):
        piece = pixels[y : y + side, x : x + side]
        if np.isnan(piece).any(-1).all():
            continue
        square = np.full((1, side, side, pixels.shape[-1]), np.nan, np.float32)
        square[0, : piece.shape[0], : piece.shape[1]] = piece
        inner = mask(square)[0, MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX]
        target = out[y : y + SQUARE_PX, x : x + SQUARE_PX]
        target[:] = inner[: target.shape[0], : target.shape[1]]
    return out


def without_small_clouds(cloud: Mask) -> Mask:
    """Return a mask of cloud without clouds of fewer than `MIN_CLOUD_PX` pixels.

    Args:
        cloud: (h, w); pixels that touch at a corner are one cloud.
    """
    from rasterio.features import sieve

    if not cloud.any():
        return cloud
    large = sieve(cloud.astype(np.uint8), MIN_CLOUD_PX, connectivity=8)
    return np.asarray(cloud & large.astype(bool))
