"""The identity of a file: which spellings of a path name the same scene.

The table of an index keeps paths as the user gave them: relative, absolute, or through links. Two spellings
name one file if they are equal once links, `.` and `..` are resolved; upper and lower case stay as they are.
A relative path of the table starts at the working folder of the run that built the index. The manifest
keeps that folder relative to the folder around the index, so that both can move together.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

PATHS_FROM = "paths_from"
"""Entry of the manifest's `extra`: the folder that relative paths of the table start from."""


def is_relative(path: str) -> bool:
    """Return whether a path of the table depends on a working folder; arrays in memory and URLs do not."""
    return bool(path) and "://" not in path and not Path(path).is_absolute()


def paths_entry(index: Path, paths: Iterable[str]) -> dict[str, str]:
    """Return the entry of a new index's manifest.

    Args:
        index: the index folder, finished or not.
        paths: the paths of its table.

    Returns:
        `{PATHS_FROM: folder}`; empty if no path is relative.
    """
    if not any(map(is_relative, paths)):
        return {}
    try:
        start = Path(os.path.relpath(Path.cwd(), index.parent.resolve()))
    except ValueError:  # on another drive
        start = Path.cwd()
    return {PATHS_FROM: start.as_posix()}


class FilePaths:
    """Resolves the paths of an index's table, and the paths of images to add."""

    def __init__(self, index: Path, paths_from: str | None) -> None:
        """Keep the two folders that relative paths start from.

        Args:
            index: the index folder.
            paths_from: the entry of its manifest; None takes the working folder.
        """
        self._here = Path.cwd()
        self._start = self._here if paths_from is None else (index.parent.resolve() / paths_from).resolve()

    def in_table(self, path: str) -> str:
        """Return the identity of a file that the table names; "" for an array in memory."""
        return _resolved(self._start, path)

    def given(self, path: str) -> str:
        """Return the identity of a file that the user names; "" for an array in memory."""
        return _resolved(self._here, path)

    def for_table(self, path: str) -> str:
        """Return the path that the table gets for a file that the user names."""
        if self._here == self._start or not is_relative(path):
            return path
        return Path(os.path.abspath(path)).as_posix()  # noqa: PTH100 - links stay as the user wrote them


def _resolved(start: Path, path: str) -> str:
    if not path or "://" in path:
        return path
    return str((start / path).resolve())
