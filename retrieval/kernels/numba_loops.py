"""Numba: how loops are compiled and cached; non-maximum suppression; decoding of stored pixels."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

_Loop = TypeVar("_Loop", bound=Callable[..., Any])
CHANNELS = 3
"""Channels of a structure tensor."""


def loop(function: _Loop) -> _Loop:
    """Compile a function at its first call; sums may be split over the lanes of a SIMD register."""
    configured = numba.config.CACHE_DIR
    # HACK: Numba reads its cache folder from a global while it decorates. Its default is beside the module,
    # where files would remain after pip uninstalls the package.
    folder = configured or _cache_folder()
    numba.config.CACHE_DIR = folder
    try:
        options = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}
        compiled = numba.njit(cache=bool(folder), **options)(function)
    finally:
        numba.config.CACHE_DIR = configured
    return compiled


def _cache_folder() -> str:
    """Folder of compiled code for the next process; "" where none is writable, then each process compiles."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "patch-retrieval"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home
        return ""
    return str(folder) if os.access(folder, os.W_OK) else ""


@loop
def suppress_neighbours(
    image: NDArray[np.int32],
    x: NDArray[np.int32],
    y: NDArray[np.int32],
    max_kept: int,
    radius: int,
) -> NDArray[np.int64]:
    """Return the columns of the windows that non-maximum suppression keeps, best first.

    Args:
        image: (n, k) ids, best window first, -1 for no window.
        x: (n, k), below 2**30.
        y: (n, k), below 2**30.
        max_kept: most windows kept of a patch.
        radius: a window closer than this, in both x and y, to a kept window of its image is dropped.

    Returns:
        (n, max_kept), -1 after the last.
    """
    out = np.full((len(image), max_kept), -1, np.int64)
    kept = np.empty((3, max_kept), np.int32)
    for row in range(len(image)):
        count = 0
        for rank in range(image.shape[1]):
            i, px, py = image[row, rank], x[row, rank], y[row, rank]
            if i < 0:
                continue
            suppressed = 0
            for k in range(count):
                close = abs(kept[1, k] - px) < radius and abs(kept[2, k] - py) < radius
                suppressed |= kept[0, k] == i and close
            if not suppressed:
                kept[0, count], kept[1, count], kept[2, count] = i, px, py
                out[row, count] = rank
                count += 1
                if count == max_kept:
                    break
    return out


@loop
def look_up(codes: NDArray[np.uint16], values: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """Write the value of each code.

    Args:
        codes: (n,).
        values: (65536,) value of each code.
        out: (n,); written to.
    """
    for k in range(len(codes)):
        out[k] = values[codes[k]]


@loop
def look_up_squares(
    codes: NDArray[np.uint16],
    corners: NDArray[np.int64],
    values: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Write the values of squares of a picture.

    Args:
        codes: (h, w, b).
        corners: (n, 2) x and y of each square, which lies inside the picture.
        values: (65536,) value of each code.
        out: (n, side, side, b); written to.
    """
    (height, width, bands), (count, side) = codes.shape, out.shape[:2]
    rows, squares = codes.reshape(height, width * bands), out.reshape(count, side, side * bands)
    for n in range(count):
        x, y = corners[n]
        for row in range(side):
            look_up(rows[y + row, x * bands : (x + side) * bands], values, squares[n, row])
