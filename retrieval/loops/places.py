"""Windows thinned to distinct places."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retrieval.loops.compiling import loop


@loop
def thinned(
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
