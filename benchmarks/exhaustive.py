"""Exhaustive NCC: every patch against every pixel of every image of a database, by OpenCV.

`cv2.matchTemplate` (TM_CCOEFF_NORMED) runs on the log-magnitude of the gradient over all bands. Turning an
image equals turning the patch the other way. So gradients are computed once per place, and templates are
turned. Flat windows and patches score 0.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from numpy.typing import NDArray
from protocol import TURNS, Database

from retrieval.config import PATCH_PX, TensorConfig
from retrieval.evaluation.submission import Submission
from retrieval.models.structure_tensor import BORDER_PX, structure_tensor
from tfrecords.schema import Patches

FLAT = 1e-4
"""Variance below which a window is flat, as in refinement."""
ROWS = 1024
"""Rows of an image per block of gradients."""


def strength(scaled: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the log-magnitude of the gradient, (h, w, b) -> (h - 2, w - 2)."""
    parts = []
    for top in range(0, scaled.shape[0] - 2, ROWS):
        tensor, _ = structure_tensor(scaled[None, top : top + ROWS + 2], TensorConfig.noise)
        parts.append(np.asarray(tensor)[0, ..., 0])
    return np.concatenate(parts)


def search(database: Database, patches: Patches, threads: int = 2) -> tuple[Submission, float]:
    """Find the best place of every patch.

    Args:
        database: its images and their turned copies are searched.
        patches: patches in the database's bands.
        threads: parallel correlations.

    Returns:
        The answers, and the seconds of the correlations without reading images and taking gradients. x and y
        refer to the upright image; for a turned copy, which is wrong anyway, they have no meaning.
    """
    import cv2

    cv2.setNumThreads(1)
    templates = [untwisted(strength(p)) for p in patches.scaled()]
    score = np.full(len(templates), -2.0)
    best, spent = np.zeros((len(templates), 3), np.int64), 0.0
    with ThreadPoolExecutor(threads) as pool:
        for rank, image in database.upright():
            ground = strength(image.scaled())
            flat = variance(ground) <= FLAT
            start = time.perf_counter()
            for row, (peak, turn, x, y) in enumerate(pool.map(partial(_peak, ground, flat), templates)):
                if peak > score[row]:
                    score[row], best[row] = peak, (TURNS * rank + turn, x, y)
            spent += time.perf_counter() - start
    return Submission(patches.patch_ids, *best.T, source="exhaustive NCC"), spent


def untwisted(template: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Return a template turned back for each copy of an image, in the order of `protocol.turned`."""
    back = [np.rot90(template, -k) for k in range(4)]
    return [np.ascontiguousarray(t) for t in (*back, *(t[:, ::-1] for t in back))]


def variance(ground: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the variance of every window of a template's size."""
    import cv2

    side = PATCH_PX - 2 * BORDER_PX
    wide = ground.astype(np.float64)
    mean, square = (cv2.boxFilter(v, -1, (side, side), anchor=(0, 0)) for v in (wide, wide * wide))
    inside = slice(ground.shape[0] - side + 1), slice(ground.shape[1] - side + 1)
    return np.asarray((square - mean * mean)[inside])


def _peak(
    ground: NDArray[np.float32], flat: NDArray[np.bool_], templates: list[NDArray[np.float32]]
) -> tuple[float, int, int, int]:
    """Return the highest correlation of a patch in an image, the copy, x and y."""
    import cv2

    best = (0.0, 0, 0, 0)
    if templates[0].var() <= FLAT:
        return best
    for turn, template in enumerate(templates):
        surface = cv2.matchTemplate(ground, template, cv2.TM_CCOEFF_NORMED)
        np.copyto(surface, 0, where=flat)
        at = int(surface.argmax())
        y, x = divmod(at, surface.shape[1])
        best = max(best, (float(surface[y, x]), turn, x, y))
    return best
