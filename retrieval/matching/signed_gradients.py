"""Signed gradients at full resolution: the evidence that decides between candidates of uncertain patches.

The structure tensor drops the sign of a gradient and the band, since seasons change both. Where neither
changed, they tell places apart far better. The agreement is the cosine of the derivatives of all shared
bands, over what both show, at the best shift within a pixel. It speaks for a place alone: ground of inverted
contrast has no agreement. Measurements: `docs/decisions/0025-parts-index.md`.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX, TensorConfig
from retrieval.matching.session import Session
from retrieval.matching.tensors import select_bands
from retrieval.types import Pixels, RankedCandidates

RADIUS = 1
"""Largest shift, in pixels: the peak of half resolution is that exact."""
PAIRS = 64
"""Pairs of patch and candidate at a time: 5 MB, so that memory is used again before it is returned."""


def agreement(session: Session, ranked: RankedCandidates) -> NDArray[np.float32]:
    """Return how well the signed gradients of patches and candidates agree.

    Args:
        session: queries and images; queries are NaN where cloud or nodata hides the ground.
        ranked: candidates of each query.

    Returns:
        (n, k) from 0 to 1; 0 where there is no candidate, or no band in common.
    """
    out, bands, images = np.zeros(ranked.image_ids.shape, np.float32), session.queries.bands, session.images
    pairs = np.argwhere(ranked.image_ids >= 0)
    pairs = pairs[np.argsort(ranked.image_ids[tuple(pairs.T)], kind="stable")]
    ids = ranked.image_ids[tuple(pairs.T)]
    shared = {int(i): tuple(b for b in bands if b in images.bands(int(i))) for i in np.unique(ids)}
    for common in sorted({*shared.values()} - {()}):
        of_kind = pairs[np.isin(ids, [i for i, of_image in shared.items() if of_image == common])]
        batches = [of_kind[i : i + PAIRS] for i in range(0, len(of_kind), PAIRS)]
        compare = partial(_compare, session, ranked, common)
        for batch, best in zip(batches, session.executor.map(compare, batches), strict=True):
            out[tuple(batch.T)] = best
    return np.maximum(out, 0)


def _compare(
    session: Session, ranked: RankedCandidates, bands: tuple[str, ...], batch: NDArray[np.intp]
) -> NDArray[np.float32]:
    """Compare pairs (m, 2) of a patch and its candidate in some bands: the best cosine of each, (m,)."""
    from retrieval.kernels.gradients import best_cosines, signed_gradients

    rows, owner = np.unique(batch[:, 0], return_inverse=True)
    columns = [session.queries.bands.index(b) for b in bands]
    patches = select_bands(np.asarray(session.queries.scaled(rows), np.float32), columns)
    places = np.stack([getattr(ranked, name)[tuple(batch.T)] for name in ("image_ids", "x", "y")], -1)
    regions = np.full((len(batch), *(PATCH_PX + 2 * RADIUS,) * 2, len(bands)), np.nan, np.float32)
    for region, (image_id, x, y) in zip(regions, places.tolist(), strict=True):
        _read_region(session.images, bands, image_id, x, y, region)
    best = np.empty(len(batch), np.float32)
    template = signed_gradients(np.ascontiguousarray(patches), TensorConfig.noise)
    best_cosines(*template, owner, regions, TensorConfig.noise, best)
    return best


def _read_region(
    images: Pixels, bands: tuple[str, ...], image_id: int, x: int, y: int, out: NDArray[np.float32]
) -> None:
    """Write the pixels of a candidate and `RADIUS` around it; those beyond the image are left as they are."""
    side, (height, width) = len(out), images.size(image_id)
    left, top = x - RADIUS, y - RADIUS
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side, width), min(top + side, height)
    columns = [images.bands(image_id).index(b) for b in bands]
    seen = images.scaled(image_id, (x0, y0, x1 - x0, y1 - y0))
    out[y0 - top : y1 - top, x0 - left : x1 - left] = select_bands(seen, columns)
