"""Real imagery for the tests: the folder that RETRIEVE_DATA names, else `../shared/data`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

CLONE = Path(__file__).parents[1]


def find_data(*parts: str) -> Path | None:
    """Return a folder of real imagery, or None where it is absent.

    Args:
        parts: the folder below `s2/`, `eurosat/` and the others, such as "s2", "val".
    """
    named = os.environ.get("RETRIEVE_DATA")
    folder = (Path(named) if named else CLONE.parent / "shared" / "data").joinpath(*parts)
    return folder if folder.is_dir() else None


def real_data(*parts: str) -> Path:
    """Return a folder of real imagery; skip the test where it is absent."""
    folder = find_data(*parts)
    if folder is None:
        pytest.skip(f"no real imagery: needs {'/'.join(parts)} in the folder that RETRIEVE_DATA names")
    return folder
