"""Blocks of patches: the unit of work of a query where tasks share no memory.

Each block is matched by itself, on a worker that opens the index once. Patches that remain uncertain are
compared with every place here: one budget covers all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from retrieval.config import RefineConfig, SearchConfig
from retrieval.geo.filters import SearchFilter
from retrieval.index.folder import IndexFolder
from retrieval.matching.places import with_places
from retrieval.matching.pyramid import refine_full_resolution
from retrieval.matching.rounds import search_in_rounds
from retrieval.matching.session import Session
from retrieval.matching.tensor_cache import TensorCache
from retrieval.types import Executor, RankedCandidates
from tfrecords.read.lazy_pixels import pixels_in_files
from tfrecords.schema import Patches

MIN_BLOCK, MAX_BLOCK = 256, 4096
"""Patches of a task: 8 to 130 MB of pixels. Each task searches the index and goes through the images once."""
TASKS_PER_SLOT = 4
"""Tasks for each of those that run at the same time, so that all end at about the same time."""


@dataclass(frozen=True, eq=False)
class MatchTask:
    """Patches to match; it can be pickled, and the index travels as its place."""

    index: IndexFolder
    """The index."""
    patches: Patches
    """Some patches, in memory, or in files that the worker sees."""
    search_filter: SearchFilter | None
    """Which images and which area may be answered."""
    search: SearchConfig
    """Settings of the search."""
    refinement: RefineConfig
    """Settings of the refinement."""


def match_task(task: MatchTask) -> RankedCandidates:
    """Search and match the patches of a task, to full resolution."""
    session = Session.open(task.index, task.patches, task.search_filter, task.search, task.refinement)
    return match(replace(session, tensors=tensors_of(task.index)))


@lru_cache(maxsize=1)
def tensors_of(index: IndexFolder) -> TensorCache:
    """Return the tensors that all tasks of one index share in this process."""
    return TensorCache(index)


def match(session: Session) -> RankedCandidates:
    """Search and match all queries of a session to full resolution, and compare the places found."""
    return with_places(session, refine_full_resolution(session, search_in_rounds(session)))


def match_in_blocks(
    session: Session,
    index: IndexFolder,
    patches: Patches,
    executor: Executor | None,
    block: int | None = None,
) -> RankedCandidates:
    """Match patches here, or block by block where the executor's tasks share no memory.

    Args:
        session: index, queries and settings.
        index: the session's index.
        patches: the session's queries.
        executor: runs the blocks; None or one of this process for the session's own.
        block: patches of a task; None decides by their number and the executor.
    """
    if executor is None or executor.in_process:
        return match(session)
    size = block or block_size(len(patches), executor.slots())
    stored: Any = pixels_in_files(patches.pixels)
    in_files = stored is not None and all(executor.sees(file.path) for file in stored.files)
    patches = replace(patches, pixels=stored) if in_files else patches

    def tasks() -> Iterator[MatchTask]:
        for start in range(0, max(1, len(patches)), size):
            part = patches.select(slice(start, start + size))
            pixels = part.pixels if in_files else np.asarray(part.pixels)
            part = replace(part, pixels=pixels, georeferences=(), note="")
            yield MatchTask(index, part, session.search_filter, session.search, session.refinement)

    found: list[RankedCandidates] = []
    session.progress("matching", 0, len(patches))
    for ranked in executor.map(match_task, tasks()):
        found.append(ranked)
        session.progress("matching", min(len(patches), len(found) * size), len(patches))
    return RankedCandidates.concatenate(found)


def block_size(patches: int, slots: int) -> int:
    """Return the number of patches of a task, where `slots` tasks run at the same time."""
    return min(max(-(-patches // (TASKS_PER_SLOT * slots)), MIN_BLOCK), MAX_BLOCK)
