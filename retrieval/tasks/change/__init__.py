"""Change between two dates of a place.

`pairs` reads two dates on one grid, `coregistration` measures and removes the shift between them, `hidden`
marks nodata and cloud. `difference` and `untrained` score change without labels, `learned` with
a network that `training` makes. `mapping` makes the map
strip by strip, `detecting` writes it, and `evaluating` measures it against the labels of `places`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retrieval.tasks.change.detecting import detect
    from retrieval.tasks.change.evaluating import evaluate
    from retrieval.tasks.change.training import train

_HOME = {"detect": "detecting", "evaluate": "evaluating", "train": "training"}

__all__ = ["detect", "evaluate", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'retrieval.tasks.change' has no attribute {name!r}")
    return getattr(import_module(f"retrieval.tasks.change.{_HOME[name]}"), name)
