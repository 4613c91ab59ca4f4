"""Pixels as small pictures inside the page: windows, overviews, and surfaces of correlation."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.report.canvas import stretch
from retrieval.report.markup import data_uri

NATURAL = ("B04", "B03", "B02")
"""Red, green and blue as the eye has them."""
INFRARED = ("B08", "B04", "B03")
"""Near infrared as red: plants glow, water is black, soil is blue-green. The custom of the field."""
EXACT_PX = 96
"""Longest side of a picture that is kept pixel by pixel."""
LONGEST_PX = 384
"""Longest side of any picture of a window."""
COLOURS = "viridis"
"""Of surfaces of correlation: even steps of lightness, told apart without seeing colour."""


@dataclass(frozen=True, eq=False)
class Overview:
    """A small picture of a whole image."""

    uri: str
    """The picture."""
    width: int
    """Columns of the image that it covers; a rest too narrow for a pixel of it is left out."""
    height: int
    """Rows, likewise."""


def natural(pixels: NDArray[Any], bands: Sequence[str]) -> NDArray[np.float32]:
    """(h, w, b) in natural colour where there are the bands for it, else in grey: (h, w, 4) in [0, 1]."""
    return stretch(pixels[..., _columns(bands, NATURAL)])


def infrared(pixels: NDArray[Any], bands: Sequence[str]) -> NDArray[np.float32] | None:
    """(h, w, b) in the colours of infrared film, (h, w, 4) in [0, 1]; None without the bands for it."""
    return stretch(pixels[..., _columns(bands, INFRARED)]) if set(INFRARED) <= set(bands) else None


def exact(colour: NDArray[np.float32]) -> str:
    """A picture of (h, w, 4) in [0, 1], pixel by pixel as it is."""
    return _webp(colour, lossless=True, quality=40, method=2)


def light(colour: NDArray[np.float32], quality: int = 82) -> str:
    """A picture of (h, w, 4) in [0, 1] that is a third as long, for small ones and large ones."""
    return _webp(colour, quality=quality, method=3)


def drawn(colour: NDArray[np.float32]) -> str:
    """A picture of (h, w, 4) in [0, 1]: of a patch as it is, of a larger chip lighter."""
    return exact(colour) if max(colour.shape[:2]) <= EXACT_PX else light(smaller(colour))


def smaller(colour: NDArray[np.float32]) -> NDArray[np.float32]:
    """The means of squares of (h, w, 4), so that neither side is longer than can be shown."""
    step = -(-max(colour.shape[:2]) // LONGEST_PX)
    rows, cols = (side // step for side in colour.shape[:2])
    if step == 1 or not rows or not cols:
        return colour
    squares = colour[: rows * step, : cols * step].reshape(rows, step, cols, step, -1)
    return squares.mean(axis=(1, 3)).astype(np.float32)


def heat(surface: NDArray[np.float32], low: float, high: float) -> str:
    """A picture of (h, w) values, one pixel each; NaN is left open.

    Args:
        surface: the values.
        low: is drawn darkest.
        high: is drawn brightest.
    """
    from matplotlib import colormaps

    seen = np.isfinite(surface)
    share = np.clip((np.where(seen, surface, low) - low) / max(high - low, 1e-6), 0, 1)
    colour = colormaps[COLOURS](share).astype(np.float32)
    colour[..., 3] = seen
    return exact(colour)


def overview(scaled: NDArray[np.float32], bands: Sequence[str], side_px: int) -> Overview:
    """A small picture of an image, each of its pixels the mean of a square of the image's.

    Args:
        scaled: (h, w, b), NaN where nodata.
        bands: their names.
        side_px: longest side of the picture, about.
    """
    height, width = scaled.shape[:2]
    step = max(1, round(max(height, width) / side_px))
    rows, cols = max(1, height // step), max(1, width // step)
    chosen = _columns(bands, NATURAL)
    # Row by row of the picture: a Sentinel-2 tile has 120 million pixels.
    means = np.stack(
        [_means(scaled[r * step : (r + 1) * step, : cols * step][..., chosen], step) for r in range(rows)]
    )
    return Overview(light(stretch(means), 74), min(cols * step, width), min(rows * step, height))


def _means(strip: NDArray[np.float32], step: int) -> NDArray[np.float32]:
    """Means over squares of a strip (step, cols * step, b), nodata left out: (cols, b)."""
    squares = strip.reshape(strip.shape[0], -1, step, strip.shape[-1])
    seen = np.isfinite(squares)
    count = seen.sum(axis=(0, 2))
    return np.where(count, np.where(seen, squares, 0).sum(axis=(0, 2)) / np.maximum(count, 1), np.nan).astype(
        np.float32
    )


def _columns(bands: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Where some bands stand; where one is missing, the first three or what there is."""
    if set(wanted) <= set(bands):
        return [list(bands).index(name) for name in wanted]
    return list(range(min(3, len(bands))))


def _webp(colour: NDArray[np.float32], **options: Any) -> str:
    from PIL import Image

    pixels = np.rint(np.clip(colour, 0, 1) * 255).astype(np.uint8)
    if (pixels[..., 3] == 255).all():
        pixels = pixels[..., :3]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="WEBP", **options)
    return data_uri("image/webp", file.getvalue())
