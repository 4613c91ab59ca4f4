"""Temporal patch retrieval for Sentinel-2: this patch of Earth, seen on some day, where is it?

    import retrieval
    retrieval.build_index("images/", "index/")
    frame = retrieval.open_index("index/").locate(patches)      # (n, 64, 64, 4) -> pandas.DataFrame

The names below are loaded when they are first used, so that `import retrieval` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retrieval.distributed.shard_changes import add_to_index, remove_from_index
    from retrieval.models.encoder import load_encoder
    from retrieval.models.representation import load_representation
    from retrieval.pipeline import Index, build_index, evaluate, locate, open_index
    from retrieval.results.matches import Matches

_HOME = {
    "Index": "retrieval.pipeline",
    "Matches": "retrieval.results.matches",
    "add_to_index": "retrieval.distributed.shard_changes",
    "build_index": "retrieval.pipeline",
    "evaluate": "retrieval.pipeline",
    "load_encoder": "retrieval.models.encoder",
    "load_representation": "retrieval.models.representation",
    "locate": "retrieval.pipeline",
    "open_executor": "retrieval.distributed.executors",
    "open_index": "retrieval.pipeline",
    "remove_from_index": "retrieval.distributed.shard_changes",
}

__all__ = [
    "Index",
    "Matches",
    "add_to_index",
    "build_index",
    "evaluate",
    "load_encoder",
    "load_representation",
    "locate",
    "open_executor",
    "open_index",
    "remove_from_index",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'retrieval' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)
