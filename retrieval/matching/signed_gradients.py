"""Signed gradients at full resolution: the evidence that decides between candidates of uncertain patches.

The structure tensor drops the sign of a gradient and the band, since seasons change both. Where neither
changed, they tell places apart far better. The agreement is the cosine of the derivatives of all shared
bands, over what both show, at the best shift within a pixel. It speaks for a place alone: ground of inverted
contrast has no agreement. Measurements: `docs/decisions/0025-parts-index.md`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.config import TensorConfig
from retrieval.matching.session import Session
from retrieval.matching.sites import Sites
from retrieval.matching.tensors import select_bands, shared_columns
from retrieval.types import RankedCandidates

RADIUS = 1
"""Largest shift, in pixels: the peak of half resolution is that exact."""
BLOCK = 256
"""Patches whose signed gradients are in memory: 36 MB."""
PAIRS = 64
"""Pairs of patch and candidate at a time: 5 MB, so that memory is used again before it is returned."""

Templates = tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]
"""What `retrieval.kernels.gradients.signed_templates` returns."""


def agreement(session: Session, ranked: RankedCandidates) -> NDArray[np.float32]:
    """Return how well the signed gradients of patches and candidates agree.

    Args:
        session: queries and images; queries are NaN where cloud or nodata hides the ground.
        ranked: candidates of each query.

    Returns:
        (n, k) from 0 to 1; 0 where there is no candidate, or no band in common.
    """
    starts = range(0, max(1, len(ranked)), BLOCK)
    blocks = [slice(start, start + BLOCK) for start in starts]
    found = [_agreement_of_block(session.select(rows), ranked.select(rows)) for rows in blocks]
    return np.maximum(np.concatenate(found), 0)


def _agreement_of_block(session: Session, ranked: RankedCandidates) -> NDArray[np.float32]:
    """`agreement` of a block of patches, whose templates are in memory; -1 to 1."""
    out, bands, images = np.zeros(ranked.image_ids.shape, np.float32), session.queries.bands, session.images
    pairs = np.argwhere(ranked.image_ids >= 0)
    pairs = pairs[np.argsort(ranked.image_ids[tuple(pairs.T)], kind="stable")]
    ids = ranked.image_ids[tuple(pairs.T)]
    of_image = {int(i): images.bands(int(i)) for i in np.unique(ids)}
    columns = {i: shared_columns(bands, theirs) for i, theirs in of_image.items() if {*bands} & {*theirs}}
    for kind in sorted({*columns.values()}):
        of_kind = pairs[np.isin(ids, [i for i, one in columns.items() if one == kind])]
        batches = [of_kind[i : i + PAIRS] for i in range(0, len(of_kind), PAIRS)]
        compare = partial(_compare, session, ranked, _templates(session, kind[0]), kind[1])
        for batch, best in zip(batches, session.executor.map(compare, batches), strict=True):
            out[tuple(batch.T)] = best
    return out


def _templates(session: Session, columns: tuple[int, ...]) -> Templates:
    """Signed gradients of all patches in some bands; see `signed_templates`."""
    from retrieval.kernels.gradients import signed_templates

    def make(start: int) -> Templates:
        scaled = np.asarray(session.queries.scaled(slice(start, start + PAIRS)), np.float32)
        return signed_templates(np.ascontiguousarray(select_bands(scaled, columns)), TensorConfig.noise)

    made = session.executor.map(make, range(0, len(session.queries), PAIRS))
    template, visible, squares, ends = (np.concatenate(parts) for parts in zip(*made, strict=True))
    return template, visible, squares, ends


def _compare(
    session: Session,
    ranked: RankedCandidates,
    templates: Templates,
    image_columns: tuple[int, ...],
    batch: NDArray[np.intp],
) -> NDArray[np.float32]:
    """Compare pairs (m, 2) of a patch and its candidate: the best cosine of each, (m,)."""
    from retrieval.kernels.gradients import best_cosines

    image_ids, x, y = (getattr(ranked, name)[tuple(batch.T)] for name in ("image_ids", "x", "y"))
    regions = session.tensors.pixels(Sites(image_ids, np.stack([x, y], -1), image_columns, RADIUS, 0))
    best, owner = np.empty(len(batch), np.float32), np.ascontiguousarray(batch[:, 0])
    best_cosines(*templates, owner, regions, TensorConfig.noise, best)
    return best
