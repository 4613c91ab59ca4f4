"""How loops are compiled, and where they are kept."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

_Loop = TypeVar("_Loop", bound=Callable[..., Any])
CHANNELS = 3
"""Of a structure tensor."""


def loop(function: _Loop) -> _Loop:
    """Compile a function when it is first called; sums may be split among the lanes of a vector."""
    options = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}
    try:
        made = numba.njit(cache=True, **options)(function)
    except RuntimeError:  # neither folder may be written to: every process compiles for itself
        made = numba.njit(**options)(function)
    return made  # type: ignore[no-any-return]
