"""How loops are compiled, and where they are kept."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba

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
