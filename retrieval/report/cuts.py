"""What the page shows of images: windows, surroundings and overviews, each image read once.

An image may be a whole Sentinel-2 tile: one is in memory at a time.
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
"""The surface of correlation reaches this far around what was found, in x and in y."""
AROUND_PX = 64
"""Surroundings reach this far beyond a window."""


@dataclass(frozen=True)
class Request:
    """A window of an image, and how much around it."""

    image_id: int
    """Image."""
    x: int
    """Column of the window's top-left pixel."""
    y: int
    """Row."""
    margin: int = 0
    """Pixels beyond the window on each side; NaN where the image ends."""
    width: int = PATCH_PX
    """Columns of the window."""
    height: int = PATCH_PX
    """Rows."""


@dataclass(frozen=True, eq=False)
class Cuts:
    """What was cut out of the images."""

    windows: Mapping[Request, NDArray[np.float32]] = field(default_factory=dict)
    """(height + 2 margin, width + 2 margin, b) scaled, NaN where nothing is known."""
    overviews: Mapping[int, Overview] = field(default_factory=dict)
    """By image id."""


def cut(
    images: Pixels, requests: Iterable[Request], overviews: Mapping[int, int], progress: Progress
) -> Cuts:
    """Read each image that is needed once, and take from it all that is shown.

    Args:
        images: the store of an index.
        requests: windows to cut.
        overviews: image ids, each with the longest side of its picture in pixels.
        progress: told after each image.
    """
    wanted: dict[int, list[Request]] = defaultdict(list)
    for request in dict.fromkeys(requests):
        wanted[request.image_id].append(request)
    ids = sorted({*wanted, *overviews})
    windows: dict[Request, NDArray[np.float32]] = {}
    pictures: dict[int, Overview] = {}
    for done, image_id in enumerate(ids, start=1):
        scaled, bands = images.scaled(image_id), images.bands(image_id)
        windows |= {request: window(scaled, request) for request in wanted[image_id]}
        if image_id in overviews:
            pictures[image_id] = overview(scaled, bands, overviews[image_id])
        progress("drawing images", done, len(ids))
    return Cuts(windows, pictures)


def window(scaled: NDArray[np.float32], request: Request) -> NDArray[np.float32]:
    """Cut one window with its margin, NaN beyond the image."""
    margin = request.margin
    x, y, more = request.x - margin, request.y - margin, 2 * margin
    return padded_window(scaled, x, y, request.width + more, request.height + more)


def correlations(
    patches: NDArray[np.float32], regions: NDArray[np.float32], inside: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Correlate patches with what lies around the places that were found for them.

    Args:
        patches: (n, 64, 64, b) scaled, NaN = not known.
        regions: (n, 64 + 2 shift, 64 + 2 shift, b), the same bands.
        inside: (n, 2 shift + 1, 2 shift + 1) whether the patch lies inside the image at this shift.

    Returns:
        (n, 2 shift + 1, 2 shift + 1) NCC of the structure tensor; [i, shift + dy, shift + dx] where patch i
        is moved by (dx, dy) from what was found; NaN outside of the image.
    """
    from keras import ops

    from retrieval.matching.ncc import ncc
    from retrieval.models.structure_tensor import structure_tensor

    template, seen = structure_tensor(ops.convert_to_tensor(patches), TensorConfig.noise)
    region, _ = structure_tensor(ops.convert_to_tensor(regions), TensorConfig.noise)
    surface = ops.convert_to_numpy(ncc(template, region, seen))
    return np.where(inside, surface, np.float32(np.nan)).astype(np.float32)


def shifts_inside(width: int, height: int, x: int, y: int) -> NDArray[np.bool_]:
    """(2 shift + 1, 2 shift + 1) whether a patch moved from (x, y) still lies in an image."""
    shift = np.arange(-SHIFT_PX, SHIFT_PX + 1)
    across = (x + shift >= 0) & (x + shift <= width - PATCH_PX)
    down = (y + shift >= 0) & (y + shift <= height - PATCH_PX)
    return down[:, None] & across[None, :]
