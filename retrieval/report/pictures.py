"""Pixels as small pictures inside the page: windows, overviews, and surfaces of correlation."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

NATURAL = ("B04", "B03", "B02")
"""Bands of natural colour: red, green and blue."""
INFRARED = ("B08", "B04", "B03")
"""Bands of false colour: near infrared as red; plants are red, water is black, soil is blue-green."""
EXACT_PX = 96
"""Longest side of a picture that is stored without loss."""
LONGEST_PX = 384
"""Longest side of the picture of a window."""
COLOURS = "viridis"
"""Colour map of correlation surfaces; its steps of lightness are even, so it works without colour vision."""
STRETCH_PERCENT = (2.0, 98.0)
"""Percentiles of an image that become black and white, as is usual in remote sensing."""


@dataclass(frozen=True, eq=False)
class Overview:
    """A small picture of a whole image."""

    uri: str
    """The picture."""
    width: int
    """Columns of the image that it covers; a remainder narrower than one of its pixels is left out."""
    height: int
    """Rows of the image that it covers."""


def stretch(pixels: ArrayLike) -> NDArray[np.float32]:
    """Stretch the contrast of an image for display: 2 % become black, 98 % white.

    Each image is stretched separately, since the light of two dates differs. In colour the limits are
    the mean of per-band and common limits. Per-band limits turn soil and water grey, common limits keep
    the blue haze.

    Args:
        pixels: (h, w, b) in any units, NaN = nodata. The first three bands are red, green and
            blue. If one of them is missing or empty, the first band with data is drawn in grey.

    Returns:
        (h, w, 4) red, green, blue and opacity in [0, 1]; opacity is 0 where nodata.
    """
    bands = np.asarray(pixels, dtype=np.float32)
    filled = np.flatnonzero(np.isfinite(bands).any(axis=(0, 1))).tolist()
    columns = [0, 1, 2] if filled[:3] == [0, 1, 2] else (filled or [0])[:1] * 3
    colour = bands[..., columns]
    valid = np.asarray(np.isfinite(colour).all(axis=2))
    if not valid.any():
        return np.zeros((*valid.shape, 4), dtype=np.float32)
    low, high = _limits(colour[valid])
    scaled = np.clip((colour - low) / (high - low), 0.0, 1.0)
    return np.dstack([np.where(valid[..., None], scaled, 0.0), valid]).astype(np.float32)


def _limits(colour: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return (2, 3): the values of black and white in each band of (n, 3) pixels."""
    each = np.percentile(colour, STRETCH_PERCENT, axis=0)
    both = np.percentile(colour, STRETCH_PERCENT)[:, None]
    low, high = (each + both) / 2
    flat = high - low <= 1e-6 * np.maximum(np.abs(high), 1e-6)  # mid-grey, not noise
    return np.where(flat, [low - 0.5, low + 0.5], [low, high])


def natural(pixels: NDArray[Any], bands: Sequence[str]) -> NDArray[np.float32]:
    """Colour (h, w, b) naturally, or grey without the bands for it: (h, w, 4) in [0, 1]."""
    return stretch(pixels[..., _columns(bands, NATURAL)])


def infrared(pixels: NDArray[Any], bands: Sequence[str]) -> NDArray[np.float32] | None:
    """Colour (h, w, b) with near infrared as red: (h, w, 4) in [0, 1]; None without the bands for it."""
    return stretch(pixels[..., _columns(bands, INFRARED)]) if set(INFRARED) <= set(bands) else None


def patch_uri(colour: NDArray[np.float32]) -> str:
    """Encode a picture (h, w, 4) in [0, 1]: without loss up to 96 px, lossy and reduced above."""
    if max(colour.shape[:2]) <= EXACT_PX:
        return _webp(colour, lossless=True, quality=40, method=2)
    return small_uri(colour)


def small_uri(colour: NDArray[np.float32]) -> str:
    """Encode a picture (h, w, 4) in [0, 1], reduced to at most 384 px, in a third of the bytes."""
    return _webp(_reduce(colour), quality=82, method=3)


def _reduce(colour: NDArray[np.float32]) -> NDArray[np.float32]:
    """Average squares of (h, w, 4), so that no side is longer than `LONGEST_PX`."""
    step = -(-max(colour.shape[:2]) // LONGEST_PX)
    rows, cols = (side // step for side in colour.shape[:2])
    if step == 1 or not rows or not cols:
        return colour
    squares = colour[: rows * step, : cols * step].reshape(rows, step, cols, step, -1)
    return squares.mean(axis=(1, 3)).astype(np.float32)


def heat_uri(surface: NDArray[np.float32], low: float, high: float) -> str:
    """Encode (h, w) values as a picture, one pixel each; NaN is transparent.

    Args:
        surface: the values.
        low: value of the darkest colour.
        high: value of the brightest colour.
    """
    from matplotlib import colormaps

    finite = np.isfinite(surface)
    share = np.clip((np.where(finite, surface, low) - low) / max(high - low, 1e-6), 0, 1)
    colour = colormaps[COLOURS](share).astype(np.float32)
    colour[..., 3] = finite
    return patch_uri(colour)


def overview(scaled: NDArray[np.float32], bands: Sequence[str], side_px: int) -> Overview:
    """Draw a small picture of an image; each of its pixels is the mean of a square.

    Args:
        scaled: (h, w, b), NaN where nodata.
        bands: their names.
        side_px: approximate longest side of the picture.
    """
    height, width = scaled.shape[:2]
    step = max(1, round(max(height, width) / side_px))
    rows, cols = max(1, height // step), max(1, width // step)
    columns = _columns(bands, NATURAL)
    # Row by row of the picture: a Sentinel-2 tile has 120 million pixels.
    means = np.stack(
        [_means(scaled[r * step : (r + 1) * step, : cols * step][..., columns], step) for r in range(rows)]
    )
    return Overview(
        _webp(stretch(means), quality=74, method=3), min(cols * step, width), min(rows * step, height)
    )


def _means(strip: NDArray[np.float32], step: int) -> NDArray[np.float32]:
    """Average the squares of a strip (step, cols * step, b) without nodata: (cols, b)."""
    squares = strip.reshape(strip.shape[0], -1, step, strip.shape[-1])
    valid = np.isfinite(squares)
    count = valid.sum(axis=(0, 2))
    mean = np.where(valid, squares, 0).sum(axis=(0, 2)) / np.maximum(count, 1)
    return np.where(count, mean, np.nan).astype(np.float32)


def _columns(bands: Sequence[str], names: Sequence[str]) -> list[int]:
    """Return the columns of some bands; the first three, or all of fewer, where one is missing."""
    if set(names) <= set(bands):
        return [list(bands).index(name) for name in names]
    return list(range(min(3, len(bands))))


def _webp(colour: NDArray[np.float32], **options: Any) -> str:
    from PIL import Image

    pixels = np.rint(np.clip(colour, 0, 1) * 255).astype(np.uint8)
    if (pixels[..., 3] == 255).all():
        pixels = pixels[..., :3]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="WEBP", **options)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode("ascii")
