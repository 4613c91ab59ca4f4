"""How loops are compiled, and where they are kept."""

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
"""Of a structure tensor."""


def loop(function: _Loop) -> _Loop:
    """Compile a function when it is first called; sums may be split among the lanes of a vector."""
    before = numba.config.CACHE_DIR
    kept = (
        before or _folder()
    )  # Numba's own choice is beside the module: what pip does not know of would stay
    numba.config.CACHE_DIR = kept
    try:
        options = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}
        made = numba.njit(cache=bool(kept), **options)(function)
    finally:
        numba.config.CACHE_DIR = before
    return made  # type: ignore[no-any-return]


def _folder() -> str:
    """Where compiled code is kept for the next process; empty where it can't be: each compiles for itself."""
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
    places: int,
    separation: int,
) -> NDArray[np.int64]:
    """Columns of the windows that are kept, going down the list of each patch; -1 behind the last.

    Args:
        image: (n, k) ids, -1 for no window.
        x: (n, k), below 2**30 as y.
        y: (n, k).
        places: kept of a patch, at most.
        separation: a window nearer than this, in both x and y, to one of its image that was kept is dropped.

    Returns:
        (n, places).
    """
    out = np.full((len(image), places), -1, np.int64)
    kept = np.empty((3, places), np.int32)
    for row in range(len(image)):
        count = 0
        for rank in range(image.shape[1]):
            i, px, py = image[row, rank], x[row, rank], y[row, rank]
            if i < 0:
                continue
            near = 0
            for k in range(count):
                same = kept[0, k] == i
                beside = abs(kept[1, k] - px) < separation and abs(kept[2, k] - py) < separation
                near |= same and beside
            if not near:
                kept[0, count], kept[1, count], kept[2, count] = i, px, py
                out[row, count] = rank
                count += 1
                if count == places:
                    break
    return out
