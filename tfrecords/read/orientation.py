"""Read raster files north-up, however their grid lies, and map windows back to the pixels of the file.

Eight orientations are possible: a grid may be mirrored and turned by quarter turns. Each has its EXIF number:

    1 upright    2 mirrored left to right    3 turned by 180 degrees    4 mirrored top to bottom
    5 to 8: the same four, after rows and columns are swapped (5, 8, 7, 6 in EXIF)

A file becomes upright in two steps: swap rows and columns if the number is 5 to 8, then reverse the columns,
the rows or both. Source: EXIF 2.3, tag 274 (Orientation).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tfrecords.errors import GridError
from tfrecords.read.layers import RasterFile
from tfrecords.read.rasters import Raster, describe_raster, read_raster

UPRIGHT = 1
"""Orientation of a file whose first row is the northernmost and whose first column the westernmost."""
MAX_TURN = np.tan(np.radians(1.0))
"""Largest angle between a grid and north, as its tangent: a patch of 64 pixels then shifts by one pixel."""

_STEPS = {
    1: (False, False, False),
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}
"""Of each orientation: swap rows and columns, reverse the columns, reverse the rows."""
_NUMBER = {steps: number for number, steps in _STEPS.items()}


def orientation_of(raster: Raster) -> int:
    """Return the EXIF number of a file's orientation.

    The transform decides. Without one, the tag Orientation does. A transform that only counts
    pixels from another origin (no CRS, pixels of size 1) says nothing about north.

    Raises:
        GridError: the grid is turned by an angle other than quarter turns, or sheared.
    """
    if raster.transform is None:
        return raster.exif_orientation
    a, b, _, d, e, _ = raster.transform
    if raster.crs is None and (abs(a), b, d, abs(e)) == (1, 0, 0, 1):
        return UPRIGHT
    swap = abs(a) + abs(e) < abs(b) + abs(d)
    east, north = (b, d) if swap else (a, e)  # of a step to the east and to the north, as pixels go
    off_east, off_north = (e, a) if swap else (d, b)
    if not (abs(off_east) <= MAX_TURN * abs(east) and abs(off_north) <= MAX_TURN * abs(north)):
        raise GridError(
            f"{raster.path}: its grid is turned by {np.degrees(np.arctan2(-d, a)):.1f} degrees or sheared. "
            f"Expected rows and columns along the axes of its CRS. Resample it with "
            f"gdalwarp -r cubic {raster.path.name} NEW.tif"
        )
    return _NUMBER[swap, bool(east < 0), bool(north > 0)]


def describe_upright(file: RasterFile) -> Raster:
    """Read the metadata of a raster file as if it were stored north-up.

    Args:
        file: a GeoTIFF, PNG or JPEG, or one file for each band.

    Returns:
        Height, width and transform of the upright pixels; `orientation` states how the file lies.

    Raises:
        RetrieveError: like `describe_raster`.
        GridError: the grid is turned by an angle other than quarter turns, or sheared.
    """
    return _upright(describe_raster(file))


def read_upright(file: RasterFile) -> tuple[NDArray[Any], Raster]:
    """Read a raster file whole and north-up: pixels (h, w, b) and metadata, as `describe_upright`."""
    pixels, raster = read_raster(file)
    upright = _upright(raster)
    return turn_upright(pixels, upright.orientation), upright


def turn_upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Return the pixels (h, w, ...) of a file in upright order."""
    swap, reverse_x, reverse_y = _STEPS[orientation]
    if swap:
        pixels = np.swapaxes(pixels, 0, 1)
    return np.ascontiguousarray(pixels[:: -1 if reverse_y else 1, :: -1 if reverse_x else 1])


def _upright(raster: Raster) -> Raster:
    """Return the metadata of the upright pixels."""
    orientation = orientation_of(raster)
    if orientation == UPRIGHT:
        return raster
    swap, reverse_x, reverse_y = _STEPS[orientation]
    width, height = (raster.height, raster.width) if swap else (raster.width, raster.height)
    transform = raster.transform
    if transform is not None:
        a, b, c, d, e, f = transform
        if swap:
            a, b, d, e = b, a, e, d
        if reverse_x:
            a, c, d, f = -a, c + a * width, -d, f + d * width
        if reverse_y:
            b, c, e, f = -b, c + b * height, -e, f + e * height
        transform = a, b, c, d, e, f
    return replace(raster, width=width, height=height, transform=transform, orientation=orientation)


def file_windows(
    orientation: int,
    size: tuple[int, int],
    x: ArrayLike,
    y: ArrayLike,
    width: ArrayLike,
    height: ArrayLike,
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return windows of upright pixels as windows of the file.

    Args:
        orientation: EXIF number of the file.
        size: height and width of the upright image.
        x: (n,) smallest columns in the upright image; shifts of windows if width, height and size are 0.
        y: (n,) smallest rows.
        width: (n,) columns.
        height: (n,) rows.

    Returns:
        x, y, width and height in the file, (n,) each.
    """
    swap, reverse_x, reverse_y = _STEPS[orientation]
    x, y, width, height = (np.asarray(v) for v in (x, y, width, height))
    x = size[1] - width - x if reverse_x else x
    y = size[0] - height - y if reverse_y else y
    return (y, x, height, width) if swap else (x, y, width, height)


def upright_windows(
    orientation: int,
    size: tuple[int, int],
    x: ArrayLike,
    y: ArrayLike,
    width: ArrayLike,
    height: ArrayLike,
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return windows of the file as windows of upright pixels; undoes `file_windows`."""
    swap, reverse_x, reverse_y = _STEPS[orientation]
    x, y, width, height = (np.asarray(v) for v in (x, y, width, height))
    if swap:
        x, y, width, height = y, x, height, width
    x = size[1] - width - x if reverse_x else x
    y = size[0] - height - y if reverse_y else y
    return x, y, width, height
