"""Search and matching in rounds: few candidates for all patches, many for the uncertain ones.

The verifier nearly always recognises the right place among the candidates, and knows when it is absent. So
a handful of candidates decides most patches. The uncertain ones get `round2_max_candidates`, and those that
remain uncertain go to `retrieval.matching.exhaustive`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from retrieval.config import RefineConfig, SearchConfig
from retrieval.matching.candidates import find_candidates
from retrieval.matching.places import decided_patches
from retrieval.matching.pyramid import match_and_verify
from retrieval.matching.session import Session
from retrieval.models.embed import embed_patches
from retrieval.types import Candidates, RankedCandidates

BLOCK = 10_240
"""Patches matched at a time: bounds memory at any number of them."""
MORE = 8
"""Factor on the candidates of a patch whose candidates all show one place."""


def search_in_rounds(session: Session, block: int = BLOCK) -> RankedCandidates:
    """Embed the queries, search the index and match the candidates.

    Args:
        session: queries, index and settings.
        block: patches at a time.

    Returns:
        (n, `search.return_k`) candidates, best first, to the pixel of half resolution.
    """
    assert session.encoder is not None
    ranked = []
    for start in range(0, max(1, len(session.queries)), block):
        part = session.select(slice(start, start + block))
        ranked.append(search_vectors(part, embed_patches(session.encoder, part.queries, session.progress)))
    return RankedCandidates.concatenate(ranked)


def search_vectors(session: Session, vectors: NDArray[np.float32]) -> RankedCandidates:
    """Search the index for the vectors of the queries, and again with more effort for the uncertain ones.

    Args:
        session: queries, index and settings.
        vectors: (n, dim) of the queries.

    Returns:
        As `search_in_rounds`.
    """
    assert session.vectors is not None
    search = session.search
    ranked, uncertain = RankedCandidates.empty(len(vectors), search.return_k), np.arange(len(vectors))
    for stage, probe_share, settings in _rounds(search, session.refinement):
        if stage != "searching" and not len(uncertain):
            break
        session.progress(stage, 0, len(uncertain))
        part = session if len(uncertain) == len(vectors) else session.select(uncertain)
        part = part.with_settings(*settings)
        candidates = find_candidates(session.vectors, vectors[uncertain], part.search, probe_share)
        find_more = (
            partial(_find_more, part, vectors[uncertain], probe_share) if stage == "searching" else None
        )
        best = match_and_verify(part, candidates, partial(decided_patches, part), find_more)
        ranked.update(uncertain, best.pad_to(search.return_k))
        uncertain = uncertain[~decided_patches(part, best) & vectors[uncertain].any(1)]
    return ranked


def _find_more(
    session: Session, vectors: NDArray[np.float32], probe_share: float, rows: NDArray[np.intp]
) -> Candidates:
    """Find more candidates of some patches."""
    assert session.vectors is not None
    more = replace(session.search, max_candidates=MORE * session.search.max_candidates)
    return find_candidates(session.vectors, vectors[rows], more, probe_share)


def _rounds(
    search: SearchConfig, refinement: RefineConfig
) -> list[tuple[str, float, tuple[SearchConfig, RefineConfig]]]:
    """Stage, share of the index's cells, and settings of each round."""
    if search.round2_max_candidates <= search.max_candidates:
        return [("searching", 1.0, (search, refinement))]
    more = replace(search, top_k=search.round2_top_k, max_candidates=search.round2_max_candidates)
    finer = replace(refinement, half_res_k=search.round2_half_res_k, verify_k=search.round2_verify_k)
    return [
        ("searching", search.round1_probe_share, (search, refinement)),
        ("searching deeper", 1.0, (more, finer)),
    ]
