"""Folders that appear whole or not at all, and go on where they were stopped.

Work is done in `<path>.partial/`, part by part; each finished part is entered in a journal with its
size and sha256. At the end the manifest is written and the folder renamed. On Linux old and new change
places in one step, so that a whole one is under its name at every moment:

    path            path.partial        path.former
    old             new, whole
    new             old                                 <- stopped here: the next run removes the old
    new                                 old             <- stopped here: the next run removes the old
    new

Elsewhere the old one goes first; still a whole one is always on the disk:

    old             new, whole
                    new, whole          old             <- stopped here: the next run puts the old back
    new                                 old             <- stopped here: the next run removes the old
    new
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal

from tfrecords.artifacts.manifest import (
    FORMAT_VERSION,
    MANIFEST,
    Manifest,
    check_file,
    created_by,
    digest,
    identity,
    plain,
)
from tfrecords.errors import ManifestError, OutputExistsError, UnfinishedOutputError
from tfrecords.storage import check_free, exchange, naming_full_disk, partial_of, place, sync, writing_file

JOURNAL = "journal.jsonl"
"""First line: kind and fingerprint; then one line for every finished part."""


def _beside(path: Path, suffix: str) -> Path:
    """A name beside a folder's."""
    return path.with_name(path.name + suffix)


class PartialFolder:
    """A folder in the making."""

    path: Path
    """Where it is being made; write nothing here but through `part`, or before the block ends."""
    counts: dict[str, int]
    """How many of what; goes into the manifest."""
    extra: dict[str, Any]
    """What the kind adds to the manifest."""

    def __init__(self, path: Path, journal: IO[str], parts: dict[str, dict[str, Any]]) -> None:
        self.path, self.counts, self.extra = path, {}, {}
        self._journal, self._parts = journal, parts
        self._used: set[str] = set()
        self._unsynced: set[str] = set()

    def done(self, name: str) -> bool:
        """Whether a part is finished, in this run or in an earlier one that was stopped.

        Args:
            name: relative POSIX name of the part.

        Returns:
            True if the part is there with the size and sha256 that it was finished with.
        """
        if name not in self._used and name in self._parts:
            with suppress(ManifestError):
                check_file(self.path / name, self._parts[name], content=True)
                self._used.add(name)
        return name in self._used

    def meta(self, name: str) -> dict[str, Any]:
        """What was noted with a finished part: the `meta` of `part`."""
        return dict(self._parts[name]["meta"])

    @contextmanager
    def part(self, name: str, meta: Mapping[str, Any] | None = None) -> Iterator[Path]:
        """Write one part whole.

        Args:
            name: relative POSIX name; folders on the way are made.
            meta: to be noted with it, JSON; read when the block ends, so that it may be filled inside.

        Yields:
            A path to write to, with the same suffix.
        """
        goal = self.path / name
        goal.parent.mkdir(parents=True, exist_ok=True)
        self._used.discard(name)
        # A run that goes on checks a part's bytes: only what is in the result has to be on the disk.
        with writing_file(goal, overwrite=True, durable=False) as partial:
            yield partial
            known = {"bytes": partial.stat().st_size, "sha256": digest(partial)}
        self._parts[name] = known | {"meta": plain(meta or {})}
        _append(self._journal, {"name": name} | self._parts[name])
        self._used.add(name)
        self._unsynced.add(name)

    def adopt(self, source: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
        """Take finished files of another folder over, as they are: a link where there are links, else a copy.

        Args:
            source: a folder whose files are never written to again, but replaced: one of ours.
            files: their relative POSIX names, with "bytes" and "sha256".

        Raises:
            ManifestError: a file is missing or not what was written.
        """
        lines = []
        for name, known in files.items():
            part = {"bytes": known["bytes"], "sha256": known["sha256"], "meta": {}}
            if self._parts.get(name) != part or not (self.path / name).is_file():
                _link(source / name, self.path / name, known)
                lines.append(json.dumps({"name": name} | part) + "\n")
                self._parts[name] = part
            self._used.add(name)
        self._journal.write("".join(lines))
        self._journal.flush()
        os.fsync(self._journal.fileno())

    def files(self) -> dict[str, dict[str, Any]]:
        """Size and sha256 of all that this run made or took over; the rest is removed.

        A part of an earlier run that this one didn't ask for has no place in the result.
        """
        found = {}
        for file in sorted(p for p in self.path.rglob("*") if not p.is_dir()):
            name = file.relative_to(self.path).as_posix()
            if name in (JOURNAL, MANIFEST):
                continue
            if name in self._parts and name not in self._used:
                file.unlink()
            elif name in self._used:
                if name in self._unsynced:
                    sync(file)
                found[name] = {k: self._parts[name][k] for k in ("bytes", "sha256")}
            else:
                sync(file)
                found[name] = {"bytes": file.stat().st_size, "sha256": digest(file)}
        for parent in {(self.path / name).parent for name in found}:
            sync(parent)
        return found


def _link(source: Path, goal: Path, known: Mapping[str, Any]) -> None:
    """Give a file a second name; its bytes are on the disk already and are not read."""
    check_file(source, known, content=False)
    goal.parent.mkdir(parents=True, exist_ok=True)
    goal.unlink(missing_ok=True)
    try:
        goal.hardlink_to(source)
    except OSError:  # a file system without links
        with writing_file(goal, overwrite=True) as partial:
            shutil.copyfile(source, partial)
            check_file(partial, known, content=True)


def _append(journal: IO[str], entry: Mapping[str, Any]) -> None:
    """Add a line to the journal; what a crash of the machine takes of it is done again."""
    journal.write(json.dumps(plain(entry)) + "\n")
    journal.flush()


def _entries(text: str) -> tuple[list[dict[str, Any]], int]:
    """Lines of a journal, and how far they go; what a kill cut short is left out."""
    entries: list[dict[str, Any]] = []
    length = 0
    for line in text.splitlines(keepends=True):
        wanted = {"name", "bytes", "sha256", "meta"} if entries else {"kind", "fingerprint", "config"}
        with suppress(ValueError):
            entry = json.loads(line)
            if line.endswith("\n") and isinstance(entry, dict) and set(entry) == wanted:
                entries.append(entry)
                length += len(line)
                continue
        break
    return entries, length


def recover(path: Path) -> None:
    """Finish what a run that was killed between two renames left behind."""
    former, trash, partial = (_beside(path, end) for end in (".former", ".trash", ".partial"))
    shutil.rmtree(trash, ignore_errors=True)
    if (path / JOURNAL).exists() and (partial / MANIFEST).exists() and not (partial / JOURNAL).exists():
        _discard(partial, trash)  # the old one, after the exchange
    if former.is_dir() and path.exists():
        _discard(former, trash)
    elif former.is_dir():
        former.rename(path)
        sync(path.parent)


def _discard(former: Path, trash: Path) -> None:
    """Remove a folder; a kill midway leaves a name that is never put back."""
    former.rename(trash)
    shutil.rmtree(trash)


def _check_goal(path: Path, kind: str, overwrite: bool) -> None:
    """Refuse to write where something is, unless it is ours, of the same kind, and may be replaced."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if path.is_dir() and overwrite:
        with suppress(OSError, ValueError, AttributeError):
            if json.loads((path / MANIFEST).read_text()).get("kind") == kind:
                return
        raise OutputExistsError(
            f"{path} is not a folder of kind {kind!r} written by this package, so --overwrite does not "
            f"touch it: name another, or remove it yourself"
        )
    check_free(path, folder=True)


def _lock(journal: IO[str], partial: Path) -> None:
    """Let only one process work in a folder; the lock ends with the process, also when it is killed."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system: no lock
        return
    try:
        fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UnfinishedOutputError(
            f"{partial} is being written by another process: wait for it, or name another output"
        ) from None
    except OSError:  # a network file system without locks
        return
    if not (partial / JOURNAL).exists():
        raise UnfinishedOutputError(f"{partial} was finished by another process just now: look at its output")


@contextmanager
def _opened(
    partial: Path, kind: str, config: Mapping[str, Any], overwrite: bool, discard_flag: str
) -> Iterator[PartialFolder]:
    """The folder in the making, begun or taken over from an earlier run."""
    partial.mkdir(parents=True, exist_ok=True)
    if any(partial.iterdir()) and not (partial / JOURNAL).exists():
        raise UnfinishedOutputError(f"{partial} is in the way and was not begun by us: remove or rename it")
    with (partial / JOURNAL).open("a+", encoding="ascii", errors="replace") as journal:
        _lock(journal, partial)
        head = {"kind": kind, "fingerprint": identity(kind, config), "config": plain(config)}
        parts = _taken_over(partial, journal, head, overwrite, discard_flag)
        try:
            yield PartialFolder(partial, journal, parts)
        except BaseException:
            with suppress(OSError):
                if [p.name for p in partial.iterdir()] == [JOURNAL]:  # nothing to go on with
                    shutil.rmtree(partial)
            raise


def _taken_over(
    partial: Path, journal: IO[str], head: dict[str, Any], overwrite: bool, discard_flag: str
) -> dict[str, dict[str, Any]]:
    """Finished parts of an earlier run of the same configuration; all else in the folder is removed."""
    journal.seek(0)
    entries, length = _entries(journal.read())
    if entries and entries[0]["fingerprint"] != head["fingerprint"]:
        if not overwrite:
            raise UnfinishedOutputError(_difference(partial, entries[0], head, discard_flag))
        entries, length = [], 0
    journal.truncate(length)
    if not entries:
        _append(journal, head)
    parts = {e["name"]: {k: e[k] for k in ("bytes", "sha256", "meta")} for e in entries[1:]}
    for file in [p for p in partial.rglob("*") if not p.is_dir()]:
        if file.relative_to(partial).as_posix() not in {JOURNAL, *parts}:
            file.unlink()
    return parts


def _difference(partial: Path, was: Mapping[str, Any], now: Mapping[str, Any], discard_flag: str) -> str:
    """Return why an unfinished folder cannot be resumed."""
    old, new = was.get("config", {}), now["config"]
    keys = [k for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
    what = ", ".join(f"{k} was {old.get(k)!r} and is {new.get(k)!r}" for k in keys[:4])
    return (
        f"{partial} is an unfinished run with different settings "
        f"({what or 'another kind or format version'}). "
        f"Run with the earlier settings to resume, or pass {discard_flag} to discard it."
    )


def _finish(folder: PartialFolder, path: Path, kind: str, config: Mapping[str, Any]) -> None:
    """Write the manifest and put the folder in its place."""
    manifest = Manifest(
        kind=kind,
        version=FORMAT_VERSION[kind],
        config=plain(config),
        fingerprint=identity(kind, config),
        created_by=created_by(),
        counts=plain(folder.counts),
        files=folder.files(),
        extra=plain(folder.extra),
    )
    temporary = partial_of(folder.path / MANIFEST)
    temporary.write_text(manifest.text(), encoding="utf-8")
    place(temporary, folder.path / MANIFEST)
    former = _beside(path, ".former")
    if path.exists() and exchange(folder.path, path):
        sync(path.parent)
        folder.path.rename(former)
    elif path.exists():
        path.rename(former)
        sync(path.parent)
        folder.path.rename(path)
    else:
        folder.path.rename(path)
    sync(path.parent)
    (path / JOURNAL).unlink(missing_ok=True)
    if former.exists():
        _discard(former, _beside(path, ".trash"))


@contextmanager
def writing_folder(
    path: str | os.PathLike[str],
    *,
    kind: str,
    config: Mapping[str, Any],
    overwrite: bool | Literal["finished"] = False,
    discard_flag: str = "--overwrite",
) -> Iterator[PartialFolder]:
    """Write a folder whole or not at all, going on with what an earlier run finished.

    Args:
        path: where the folder shall be.
        kind: a key of `FORMAT_VERSION`.
        config: all that decides the content, knobs and inputs; its fingerprint says whether an
            unfinished folder may be gone on with.
        overwrite: replace a finished folder of the same kind, and begin an unfinished one of
            another configuration anew; with "finished" only the former.
        discard_flag: the command's flag that discards an unfinished folder, for the error.

    Yields:
        The folder in the making. When the block ends well it gets its manifest and its name; when
        it raises, what was finished stays in `<path>.partial` for the next run, and what is at
        `path` stays too.

    Raises:
        OutputExistsError: something is there: a finished folder without `overwrite`, or anything
            else with or without it.
        UnfinishedOutputError: an unfinished folder of another configuration, or of another process.
        DiskFullError: the disk is full.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow a link and replace its target
    partial = _beside(path, ".partial")
    with naming_full_disk(path, f"what was finished waits in {partial}, and the former output is untouched"):
        path.parent.mkdir(parents=True, exist_ok=True)
        recover(path)
        _check_goal(path, kind, bool(overwrite))
        with _opened(partial, kind, config, overwrite is True, discard_flag) as folder:
            yield folder
            _check_goal(path, kind, bool(overwrite))
            _finish(folder, path, kind, config)
