"""Crops and overviews of the index's images, and the correlation around each match.

An image may be a whole Sentinel-2 tile: each is read once, and one is in memory at a time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX, TensorConfig
from retrieval.report.pictures import Overview, overview
from retrieval.types import Pixels, Progress
from tfrecords.grid import padded_window

SHIFT_PX = 16
"""Largest shift of the correlation surface around a match, in x and in y."""
MARGIN_PX = 64
"""Width of the surroundings shown on each side of a match."""


@dataclass(frozen=True)
class Window:
    """A window of an image, with a margin."""

    image_id: int
    """Image."""
    x: int
    """Column of the window's top-left pixel."""
    y: int
    """Row of the window's top-left pixel."""
    margin: int = 0
    """Pixels beyond the window on each side; NaN outside the image."""
    width: int = PATCH_PX
    """Columns of the window."""
    height: int = PATCH_PX
    """Rows of the window."""


@dataclass(frozen=True, eq=False)
class Crops:
    """Pixels taken from the images."""

    windows: Mapping[Window, NDArray[np.float32]] = field(default_factory=dict)
    """(height + 2 margin, width + 2 margin, b) scaled, NaN where nodata."""
    overviews: Mapping[int, Overview] = field(default_factory=dict)
    """Small pictures of whole images, by image id."""


def crop(
    images: Pixels, windows: Iterable[Window], overviews: Mapping[int, int], progress: Progress
) -> Crops:
    """Read each image once, and take all windows and the overview from it.

    Args:
        images: an index folder.
        windows: windows to crop.
        overviews: image ids, each with the longest side of its overview in pixels.
        progress: called after each image.
    """
    by_image: dict[int, list[Window]] = defaultdict(list)
    for window in dict.fromkeys(windows):
        by_image[window.image_id].append(window)
    ids = sorted({*by_image, *overviews})
    pixels: dict[Window, NDArray[np.float32]] = {}
    pictures: dict[int, Overview] = {}
    for done, image_id in enumerate(ids, start=1):
        scaled, bands = images.scaled(image_id), images.bands(image_id)
        pixels |= {window: crop_window(scaled, window) for window in by_image[image_id]}
        if image_id in overviews:
            pictures[image_id] = overview(scaled, bands, overviews[image_id])
        progress("drawing images", done, len(ids))
    return Crops(pixels, pictures)


def crop_window(scaled: NDArray[np.float32], window: Window) -> NDArray[np.float32]:
    """Crop one window with its margin, NaN outside the image."""
    margin = window.margin
    x, y, both = window.x - margin, window.y - margin, 2 * margin
    return padded_window(scaled, x, y, window.width + both, window.height + both)


def correlations(
    patches: NDArray[np.float32], regions: NDArray[np.float32], inside: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Correlate patches with the surroundings of their matches.

    Args:
        patches: (n, 64, 64, b) scaled, NaN = nodata.
        regions: (n, 64 + 2 shift, 64 + 2 shift, b), the same bands.
        inside: (n, 2 shift + 1, 2 shift + 1) whether the patch lies inside the image at this shift.

    Returns:
        (n, 2 shift + 1, 2 shift + 1) NCC of the structure tensor; [i, shift + dy, shift + dx] is patch i
        moved by (dx, dy) from its match; NaN outside the image.
    """
    from keras import ops

    from retrieval.matching.ncc import ncc
    from retrieval.models.structure_tensor import structure_tensor

    template, visible = structure_tensor(ops.convert_to_tensor(patches), TensorConfig.noise)
    region, _ = structure_tensor(ops.convert_to_tensor(regions), TensorConfig.noise)
    surface = ops.convert_to_numpy(ncc(template, region, visible))
    return np.where(inside, surface, np.float32(np.nan)).astype(np.float32)


def shifts_inside(width: int, height: int, x: int, y: int) -> NDArray[np.bool_]:
    """Return (2 shift + 1, 2 shift + 1): whether a patch moved from (x, y) lies inside the image."""
    shift = np.arange(-SHIFT_PX, SHIFT_PX + 1)
    across = (x + shift >= 0) & (x + shift <= width - PATCH_PX)
    down = (y + shift >= 0) & (y + shift <= height - PATCH_PX)
    return down[:, None] & across[None, :]
