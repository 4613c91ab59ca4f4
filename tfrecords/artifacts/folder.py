"""Folders that appear whole or not at all; interrupted runs resume.

A folder is written in `<path>.partial/`, part by part; a journal holds size and sha256 of each finished part.
At the end the manifest is written and the folder renamed. On Linux the old and the new folder are
exchanged in one step, so that a whole folder has the final name at every moment:

    path            path.partial        path.former
    old             new, whole
    new             old                                 <- stopped here: the next run removes the old one
    new                                 old             <- stopped here: the next run removes the old one
    new

On other systems the old folder is renamed first; one whole folder is always on the disk:

    old             new, whole
                    new, whole          old             <- stopped here: the next run restores the old one
    new                                 old             <- stopped here: the next run removes the old one
    new
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
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
from tfrecords.errors import ManifestError, OutputExistsError, UnfinishedOutputError, parse_json
from tfrecords.storage import check_free, exchange, naming_full_disk, partial_of, place, sync, writing_file

JOURNAL = "journal.jsonl"
"""First line: kind, fingerprint and configuration; then one line per finished part."""


def _with_suffix(path: Path, suffix: str) -> Path:
    """Return the folder's path with a suffix added to its name."""
    return path.with_name(path.name + suffix)


class PartialFolder:
    """A folder that is being written."""

    path: Path
    """The unfinished folder; write into it through `part`, or before the block ends."""
    counts: dict[str, int]
    """Counts for the manifest."""
    extra: dict[str, Any]
    """Further entries for the manifest."""
    paused: bool
    """Set it to leave the finished parts for a later run: the folder gets no manifest and no name."""

    def __init__(self, path: Path, journal: IO[str], parts: dict[str, dict[str, Any]]) -> None:
        self.path, self.counts, self.extra, self.paused = path, {}, {}, False
        self._journal, self._parts = journal, parts
        self._used: set[str] = set()
        self._unsynced: set[str] = set()

    def done(self, name: str) -> bool:
        """Return whether this run or an interrupted one finished a part.

        Args:
            name: relative POSIX name of the part.

        Returns:
            True if the part still has the size and sha256 that it was finished with.
        """
        if name not in self._used and name in self._parts:
            with suppress(ManifestError):
                check_file(self.path / name, self._parts[name], content=True)
                self._used.add(name)
        return name in self._used

    @property
    def is_empty(self) -> bool:
        """Whether neither this run nor an interrupted one finished a part."""
        return not self._parts

    def meta(self, name: str) -> dict[str, Any]:
        """Return the `meta` that `part` stored with a finished part."""
        return dict(self._parts[name]["meta"])

    def sha256(self, name: str) -> str:
        """Return the sha256 of a finished part, in hexadecimal."""
        return str(self._parts[name]["sha256"])

    @contextmanager
    def part(self, name: str, meta: Mapping[str, Any] | None = None) -> Iterator[Path]:
        """Write one part whole.

        Args:
            name: relative POSIX name; its folders are created.
            meta: JSON values to store with the part; read when the block ends, so the block may fill it.

        Yields:
            A path to write to, with the same suffix.
        """
        goal = self.path / name
        goal.parent.mkdir(parents=True, exist_ok=True)
        self._used.discard(name)
        # A resumed run checks a part's bytes, so only the final result must be flushed to the disk.
        with writing_file(goal, overwrite=True, durable=False) as partial:
            yield partial
            known = {"bytes": partial.stat().st_size, "sha256": digest(partial)}
        self._parts[name] = known | {"meta": plain(meta or {})}
        _append(self._journal, {"name": name} | self._parts[name])
        self._used.add(name)
        self._unsynced.add(name)

    def adopt(self, source: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
        """Take over finished files of another folder: as hard links if possible, else as copies.

        Args:
            source: a folder of this package, whose files are replaced but never changed.
            files: relative POSIX names, with "bytes" and "sha256".

        Raises:
            ManifestError: a file is missing or was changed.
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

    def discard(self) -> None:
        """Remove all finished parts: no run with these settings can succeed, so none may resume."""
        for entry in [p for p in self.path.iterdir() if p.name != JOURNAL]:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        self._parts.clear()
        self._used.clear()

    def files(self) -> dict[str, dict[str, Any]]:
        """Return size and sha256 of all files of this run, and remove parts that only an earlier run used."""
        files = {}
        for file in sorted(p for p in self.path.rglob("*") if not p.is_dir()):
            name = file.relative_to(self.path).as_posix()
            if name in (JOURNAL, MANIFEST):
                continue
            if name in self._parts and name not in self._used:
                file.unlink()
            elif name in self._used:
                if name in self._unsynced:
                    sync(file)
                files[name] = {k: self._parts[name][k] for k in ("bytes", "sha256")}
            else:
                sync(file)
                files[name] = {"bytes": file.stat().st_size, "sha256": digest(file)}
        for parent in {(self.path / name).parent for name in files}:
            sync(parent)
        return files


def _link(source: Path, goal: Path, known: Mapping[str, Any]) -> None:
    """Make a hard link to a file; its bytes are not read."""
    check_file(source, known, content=False)
    goal.parent.mkdir(parents=True, exist_ok=True)
    goal.unlink(missing_ok=True)
    try:
        goal.hardlink_to(source)
    except OSError:  # the file system has no hard links
        with writing_file(goal, overwrite=True) as partial:
            shutil.copyfile(source, partial)
            check_file(partial, known, content=True)


def _append(journal: IO[str], entry: Mapping[str, Any]) -> None:
    """Add a line to the journal; parts whose lines a crash of the machine loses are written again."""
    journal.write(json.dumps(plain(entry)) + "\n")
    journal.flush()


def _entries(text: str) -> tuple[list[dict[str, Any]], int]:
    """Return the whole lines of a journal and their length; a line cut by a kill is left out."""
    entries: list[dict[str, Any]] = []
    length = 0
    for line in text.splitlines(keepends=True):
        keys = {"name", "bytes", "sha256", "meta"} if entries else {"kind", "fingerprint", "config"}
        with suppress(ValueError):
            entry = parse_json(line)
            if line.endswith("\n") and isinstance(entry, dict) and set(entry) == keys:
                entries.append(entry)
                length += len(line)
                continue
        break
    return entries, length


def recover(path: Path) -> None:
    """Finish the renames of a run that was killed between them."""
    former, trash, partial = (_with_suffix(path, end) for end in (".former", ".trash", ".partial"))
    with _exclusive(path.parent):
        shutil.rmtree(trash, ignore_errors=True)
        if (path / JOURNAL).exists() and (partial / MANIFEST).exists() and not (partial / JOURNAL).exists():
            _discard(partial, trash)  # the old folder, after the exchange
        if former.is_dir() and path.exists():
            _discard(former, trash)
        elif former.is_dir():
            former.rename(path)
            sync(path.parent)


@contextmanager
def _exclusive(parent: Path) -> Iterator[None]:
    """Let one process at a time rename the folders in a folder; a kill ends the lock.

    Without it, a second writer takes the steps of a living writer for steps of a killed one. There is no
    lock where the system or the file system has none.
    """
    try:
        import fcntl

        handle = os.open(parent, os.O_RDONLY)
    except (ImportError, OSError):
        yield
        return
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _discard(former: Path, trash: Path) -> None:
    """Remove a folder; if that is interrupted, the rest has a name that is never restored."""
    former.rename(trash)
    shutil.rmtree(trash)


def _check_goal(path: Path, kind: str, overwrite: bool) -> None:
    """Refuse an existing output, unless `overwrite` is true and it is a folder of the same kind."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if path.is_dir() and overwrite:
        with suppress(OSError, ValueError, AttributeError):
            if parse_json((path / MANIFEST).read_text()).get("kind") == kind:
                return
        raise OutputExistsError(
            f"{path} exists and is not a folder of kind {kind!r} written by this package. --overwrite does "
            f"not replace it: name another output, or remove it yourself."
        )
    check_free(path, folder=True)


def _lock(journal: IO[str], partial: Path) -> None:
    """Lock a folder for one process; the lock ends with the process, even if it is killed."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system: no lock
        return
    try:
        fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UnfinishedOutputError(
            f"{partial} is being written by another process. Wait for it, or name another output."
        ) from None
    except OSError:  # a network file system without locks
        return
    if not (partial / JOURNAL).exists():
        raise UnfinishedOutputError(f"{partial} was just finished by another process. Use its output.")


@contextmanager
def _opened(
    partial: Path, kind: str, config: Mapping[str, Any], overwrite: bool, discard_flag: str
) -> Iterator[PartialFolder]:
    """Open the unfinished folder, new or of an interrupted run."""
    with ExitStack() as stack:
        with _exclusive(partial.parent):
            partial.mkdir(parents=True, exist_ok=True)
            if any(partial.iterdir()) and not (partial / JOURNAL).exists():
                raise UnfinishedOutputError(
                    f"{partial} exists but is not an unfinished output of this package. Remove or rename it."
                )
            journal = stack.enter_context((partial / JOURNAL).open("a+", encoding="ascii", errors="replace"))
            _lock(journal, partial)
        head = {"kind": kind, "fingerprint": identity(kind, config), "config": plain(config)}
        parts = _resumable_parts(partial, journal, head, overwrite, discard_flag)
        try:
            yield PartialFolder(partial, journal, parts)
        except BaseException:
            with suppress(OSError):
                if [p.name for p in partial.iterdir()] == [JOURNAL]:  # nothing to resume
                    shutil.rmtree(partial)
            raise


def _resumable_parts(
    partial: Path, journal: IO[str], head: dict[str, Any], overwrite: bool, discard_flag: str
) -> dict[str, dict[str, Any]]:
    """Return finished parts of an interrupted run with the same settings; remove all other files."""
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
    changes = ", ".join(f"{k} was {old.get(k)!r} and is {new.get(k)!r}" for k in keys[:4])
    return (
        f"{partial} is an unfinished run with different settings "
        f"({changes or 'another kind or format version'}). "
        f"Run with the earlier settings to resume, or pass {discard_flag} to discard it."
    )


def _finish(folder: PartialFolder, path: Path, kind: str, config: Mapping[str, Any]) -> None:
    """Write the manifest and rename the folder to its final name."""
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
    former = _with_suffix(path, ".former")
    with _exclusive(path.parent):
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
            _discard(former, _with_suffix(path, ".trash"))


@contextmanager
def writing_folder(
    path: str | os.PathLike[str],
    *,
    kind: str,
    config: Mapping[str, Any],
    overwrite: bool | Literal["finished"] = False,
    discard_flag: str = "--overwrite",
) -> Iterator[PartialFolder]:
    """Write a folder whole or not at all; an interrupted run resumes.

    Args:
        path: the folder.
        kind: a key of `FORMAT_VERSION`.
        config: all settings and inputs that decide the content. An unfinished folder is resumed if the
            fingerprint of its settings is the same.
        overwrite: replace a finished folder of the same kind, and discard an unfinished one with other
            settings; "finished" does only the first.
        discard_flag: the command's flag that discards an unfinished folder, for the error.

    Yields:
        The unfinished folder. If the block succeeds, the folder gets its manifest and its name. If it
        raises, finished parts stay in `<path>.partial` for the next run, and the former output stays.

    Raises:
        OutputExistsError: a finished folder exists and `overwrite` is false, or another file or folder has
            its name.
        UnfinishedOutputError: an unfinished folder has other settings, or another process writes it.
        DiskFullError: the disk is full.
    """
    path = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow a link and replace its target
    partial = _with_suffix(path, ".partial")
    with naming_full_disk(path, f"finished parts stay in {partial}, and the former output is unchanged"):
        path.parent.mkdir(parents=True, exist_ok=True)
        recover(path)
        _check_goal(path, kind, bool(overwrite))
        with _opened(partial, kind, config, overwrite is True, discard_flag) as folder:
            yield folder
            if folder.paused:
                return
            _check_goal(path, kind, bool(overwrite))
            _finish(folder, path, kind, config)
