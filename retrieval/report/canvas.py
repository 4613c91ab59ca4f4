"""What pictures are drawn on: the stretch of pixels, the colours, a page, and saving it whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from retrieval.errors import ConfigError
from tfrecords.artifacts import writing_file

STRETCH_PERCENT = (2.0, 98.0)
"""Percentiles of an image that are drawn black and white, as remote sensing shows images by custom."""
DPI = 160
"""Screen pixels to the inch of every picture."""
INK = "#1a1a1a"
"""Colour of what is to be read first."""
QUIET = "#6b6b6b"
"""Colour of what explains it; 5.3 : 1 on white."""
GREEN, AMBER, RED, BLUE = "#007a5a", "#9a5b00", "#c44200", "#0072b2"
"""Colours that the colour-blind tell apart, after https://jfly.uni-koeln.de/color/, darker for text."""

_STAMPS = {".png": "Software", ".svg": "Date", ".pdf": "CreationDate"}  # left out: same input, same file


def stretch(pixels: ArrayLike) -> NDArray[np.float32]:
    """Make pixels fit for the eye: 2 % to black, 98 % to white, in true colour or in grey.

    Each image is stretched by itself, since two dates differ in light. In colour the ends are halfway
    between those of each band and those of all bands together: the ones by themselves turn soil and
    water grey, the others leave the blue of the air over everything.

    Args:
        pixels: (h, w, b) in any units, NaN where there are none. Red, green and blue are the first
            three bands; where there are fewer, or one of the three is empty, the first band that holds
            anything is drawn in grey.

    Returns:
        (h, w, 4) red, green, blue and opacity in [0, 1]; opacity is 0 where there are no pixels.
    """
    bands = np.asarray(pixels, dtype=np.float32)
    filled = np.flatnonzero(np.isfinite(bands).any(axis=(0, 1))).tolist()
    drawn = [0, 1, 2] if filled[:3] == [0, 1, 2] else (filled or [0])[:1] * 3
    colour = bands[..., drawn]
    seen = np.asarray(np.isfinite(colour).all(axis=2))
    if not seen.any():
        return np.zeros((*seen.shape, 4), dtype=np.float32)
    low, high = _ends(colour[seen])
    shown = np.clip((colour - low) / (high - low), 0.0, 1.0)
    return np.dstack([np.where(seen[..., None], shown, 0.0), seen]).astype(np.float32)


def _ends(colour: NDArray[np.float32]) -> NDArray[np.float64]:
    """Give (2, 3): what is drawn black and white in each band of (n, 3) pixels."""
    each = np.percentile(colour, STRETCH_PERCENT, axis=0)
    both = np.percentile(colour, STRETCH_PERCENT)[:, None]
    low, high = (each + both) / 2
    flat = high - low <= 1e-6 * np.maximum(np.abs(high), 1e-6)  # mid-grey, not noise
    return np.where(flat, [low - 0.5, low + 0.5], [low, high])


class Page:
    """A figure measured in screen pixels from its top-left corner."""

    def __init__(self, width_px: int, height_px: int) -> None:
        from matplotlib.figure import Figure

        self.width_px, self.height_px = width_px, height_px
        self.figure = Figure(figsize=(width_px / DPI, height_px / DPI), dpi=DPI, facecolor="white")

    def text(self, x: int, y: int, text: str, size: float, colour: str = INK, weight: str = "normal") -> None:
        """Write from (x, y), the left end of the line that letters stand on; `$` begins no formula."""
        place = (x / self.width_px, 1 - y / self.height_px)
        self.figure.text(*place, text, size=size, color=colour, weight=weight, parse_math=False)

    def image(self, x: int, y: int, side_px: int, pixels: NDArray[Any], frame: dict[str, Any]) -> None:
        """Draw pixels (h, w, b), stretched, in a framed square with its corner at (x, y)."""
        left, foot = x / self.width_px, 1 - (y + side_px) / self.height_px
        axes = self.figure.add_axes((left, foot, side_px / self.width_px, side_px / self.height_px))
        axes.patch.set(facecolor="#f4f4f4", edgecolor="#bbbbbb", hatch="////")  # where there are no pixels
        axes.imshow(stretch(pixels), interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(**frame)


@contextmanager
def drawing() -> Iterator[None]:
    """Draw in matplotlib's own style, whatever the caller's, and leave the caller's as it was."""
    import matplotlib.style

    with matplotlib.style.context(["default", {"svg.hashsalt": "retrieval"}]):
        yield


def save(figure: Any, path: Path, overwrite: bool) -> Path:
    """Write a figure whole or not at all; the same figure gives the same bytes.

    Args:
        figure: a matplotlib figure.
        path: ends in `.png`, `.svg` or `.pdf`.
        overwrite: replace a file that is already there.

    Returns:
        The path.

    Raises:
        ConfigError: the path has another ending.
        OutputExistsError: the file is there and `overwrite` is not set.
    """
    ending = path.suffix.lower()
    if ending not in _STAMPS:
        raise ConfigError(f"{path}: received the ending '{ending}'; expected one of {', '.join(_STAMPS)}")
    with writing_file(path, overwrite=overwrite) as temporary:
        figure.savefig(temporary, format=ending[1:], metadata={_STAMPS[ending]: None})
    return path
