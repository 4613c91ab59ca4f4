"""List the files of folders and globs through links: each file once, and no loop.

Each real folder is read once, so links that multiply each other do not multiply the work. Folders come before
links to folders: a file then has its own path, not that of a link, wherever both lead to it.
"""

from __future__ import annotations

import errno
import glob
import os
import re
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tfrecords.errors import MissingInputError, RetrieveWarning, listed

SHARD = re.compile(r"(.+\.tfrecords?)-(\d{5})-of-(\d{5})", re.IGNORECASE)
"""Name of one of several files of a source, as TensorFlow writes it: name-00000-of-00002."""
NAMED = 3
"""Links that a warning names."""


class RepeatedFileWarning(RetrieveWarning):
    """Links lead to a file or folder that is read already; it counts once."""


Repeats = list[tuple[Path, Path]]
"""Paths of files and folders that are reached once more, each with the path that counts."""


@dataclass(frozen=True)
class Listing:
    """The visible files below a folder."""

    files: tuple[Path, ...]
    """Each file once, sorted by relative POSIX path."""
    broken: tuple[Path, ...]
    """Links that lead to nothing."""

    def select(self, suffixes: Sequence[str]) -> tuple[Path, ...]:
        """Return the files with one of some suffixes, in any case.

        Raises:
            MissingInputError: a link with such a suffix, or with none, leads to nothing.
        """
        for link in self.broken:
            if suffix_of(link) in ("", *suffixes):
                raise _broken(link)
        return tuple(path for path in self.files if suffix_of(path) in suffixes)


def suffix_of(path: Path) -> str:
    """Return the suffix of a file in lower case; that of `x.tfrecords-00000-of-00002` is `.tfrecords`."""
    shard = SHARD.fullmatch(path.name)
    return Path(shard[1] if shard else path.name).suffix.lower()


def visible(path: Path, root: Path) -> bool:
    """Return whether no part of a path below `root` is hidden; file managers leave files like "._x.tif"."""
    return not any(part.startswith(".") for part in path.relative_to(root).parts)


def list_files(folder: Path) -> Listing:
    """List the visible files below a folder, at any depth and through links.

    Args:
        folder: the folder. Names that begin with a dot are left out.

    Raises:
        MissingInputError: a link leads back to a folder that holds it, or a folder cannot be read.
    """
    paths: list[Path] = []
    broken: list[Path] = []
    repeats: Repeats = []
    for below in walk_folders(folder, repeats):
        for path in (below.path / name for name in below.others):
            if path.is_file():
                paths.append(path)
            elif path.is_symlink() and not path.exists():
                broken.append(path)
    files = once(paths, repeats)
    warn_of_repeats(repeats)
    return Listing(tuple(sorted(files, key=lambda p: p.relative_to(folder).as_posix())), tuple(broken))


def match_files(pattern: str) -> tuple[Path, ...]:
    """Return the paths that match a glob, each file once, sorted by POSIX path.

    Args:
        pattern: a glob, relative or absolute; `**` stands for folders at any depth.

    Raises:
        MissingInputError: a link leads nowhere, or back to a folder that holds it.
    """
    parts = Path(pattern).parts
    if "**" in parts:  # a loop would multiply the matches, or not end
        for start in glob.glob(str(Path(*parts[: parts.index("**")]))):  # noqa: PTH207 - may be absolute
            for _ in walk_folders(Path(start), []):
                pass
    paths = [Path(name) for name in glob.glob(pattern, recursive=True)]  # noqa: PTH207 - may be absolute
    for path in paths:
        if path.is_symlink() and not path.exists():
            raise _broken(path)
    repeats: Repeats = []
    files = once(paths, repeats)
    warn_of_repeats(repeats)
    return tuple(sorted(files, key=lambda p: p.as_posix()))


@dataclass(frozen=True)
class Folder:
    """One folder of a walk."""

    path: Path
    """Its path, through links."""
    folders: list[str]
    """Names of the folders in it, sorted; the walk goes on into those that stay in the list."""
    others: list[str]
    """Names of what else it holds, sorted."""


def walk_folders(root: Path, repeats: Repeats) -> Iterator[Folder]:
    """Walk over a folder and all visible folders below it, through links, each real folder once.

    Args:
        root: where to start.
        repeats: receives the folders that are reached once more, and are not walked.

    Yields:
        The folders; links to folders come last.

    Raises:
        MissingInputError: a link leads back to a folder that holds it, or a folder cannot be read.
    """
    walked: dict[str, Path] = {}
    starts: deque[tuple[Path, tuple[str, ...]]] = deque([(root, ())])
    while starts:
        start, above = starts.popleft()
        todo = [start]
        while todo:
            path = todo.pop()
            real = os.path.realpath(path)
            if real in walked:
                repeats.append((path, walked[real]))
                continue
            walked[real] = path
            below = _read_folder(path)
            yield below
            links = [name for name in below.folders if (path / name).is_symlink()]
            todo += [path / name for name in reversed(below.folders) if name not in links]
            holders = (*above, real)
            for link in (path / name for name in links):
                _refuse_loop(link, holders)
                starts.append((link, holders))


def _read_folder(path: Path) -> Folder:
    """Return the visible names in a folder."""
    folders: list[str] = []
    others: list[str] = []
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    (folders if (path / entry.name).is_dir() else others).append(entry.name)
    except OSError as err:
        raise MissingInputError(f"{path} cannot be read: {err.strerror}") from err
    return Folder(path, sorted(folders), sorted(others))


def _refuse_loop(link: Path, holders: Iterable[str]) -> None:
    """Refuse a link to one of the real folders that hold it, or to a folder above these."""
    target = os.path.realpath(link)
    if any(holder == target or holder.startswith(target.rstrip(os.sep) + os.sep) for holder in holders):
        raise MissingInputError(
            f"{link}: this link leads back to {target}, a folder that holds it. Remove the link, or name "
            "the folders to read."
        )


def _broken(link: Path) -> MissingInputError:
    """Return the error of a link that leads to nothing."""
    try:
        link.stat()
    except OSError as err:
        if err.errno == errno.ELOOP:
            return MissingInputError(f"{link}: this link leads back to itself. Remove it.")
    return MissingInputError(
        f"{link}: this link leads to {link.readlink()}, which does not exist. Restore the target or "
        "remove the link."
    )


def once(paths: Iterable[Path], repeats: Repeats) -> list[Path]:
    """Return each real file once, under a path without links if there is one.

    Args:
        paths: paths of files.
        repeats: receives the paths that are left out.
    """
    folders: dict[Path, str] = {}
    reached: dict[str, list[Path]] = {}
    for path in paths:
        if path.parent not in folders:
            folders[path.parent] = os.path.realpath(path.parent)
        real = os.path.realpath(path) if path.is_symlink() else str(Path(folders[path.parent], path.name))
        reached.setdefault(real, []).append(path)
    for real, same in reached.items():
        same.sort(key=lambda p: (str(p.absolute()) != real, p.is_symlink(), p.as_posix()))
        repeats += [(path, same[0]) for path in same[1:]]
    return [same[0] for same in reached.values()]


def warn_of_repeats(repeats: Repeats) -> None:
    """Warn of files and folders that links lead to once more."""
    if not repeats:
        return
    names = listed([f"{path} is {first}" for path, first in repeats], NAMED)
    noun = "link leads" if len(repeats) == 1 else "links lead"
    warnings.warn(
        f"{len(repeats)} {noun} to what is read already; each file counts once ({names})",
        RepeatedFileWarning,
        stacklevel=2,
    )
