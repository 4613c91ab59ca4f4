"""What `manifest.json` says, and how a folder is checked against it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tfrecords.errors import FormatVersionError, ManifestError, MissingInputError

MANIFEST = "manifest.json"
"""Name of the page in every folder that we write."""

FORMAT_VERSION: dict[str, int] = {
    "series": 1,
    "challenge": 1,
    "images": 1,
    "patches": 1,
    "index": 1,
    "checkpoints": 1,
    "demo": 1,
    "stac": 1,
    "cutouts": 1,
}
"""Format that this release writes and reads, by kind of folder."""

CHUNK = 1 << 20


def plain(value: Any) -> Any:
    """The JSON of a configuration: records become maps, paths texts, NumPy's numbers Python's.

    Args:
        value: any nesting of dataclasses, mappings, sequences, numbers, texts, paths and None.

    Returns:
        The same of dict, list, str, int, float, bool and None.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain({f.name: getattr(value, f.name) for f in dataclasses.fields(value)})
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (np.generic, np.ndarray)):
        return plain(value.tolist())
    if isinstance(value, Path):
        return value.as_posix()
    assert value is None or isinstance(value, (str, int, float, bool)), f"no JSON for {type(value)}"
    return value


def canonical(value: Any) -> bytes:
    """The one JSON text of a value: sorted keys, no blanks."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":")).encode()


def fingerprint(config: Mapping[str, Any]) -> str:
    """Identity of a configuration.

    Args:
        config: see `plain` for what it may hold; the order of keys does not matter.

    Returns:
        sha256 in hexadecimal of its canonical JSON.
    """
    return hashlib.sha256(canonical(config)).hexdigest()


def digest(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            total.update(chunk)
    return total.hexdigest()


def created_by() -> str:
    """Name and version of this package."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"patch-retrieval {version('patch-retrieval')}"
    except PackageNotFoundError:
        return "patch-retrieval, not installed"


@dataclass(frozen=True)
class Manifest:
    """What a folder holds; the content of its `manifest.json`."""

    kind: str
    """Kind of folder, a key of `FORMAT_VERSION`."""
    version: int
    """Format version of that kind."""
    config: dict[str, Any]
    """All that decides the content: knobs and inputs."""
    fingerprint: str
    """`fingerprint` of kind, version and config."""
    created_by: str
    """Package and version that wrote it."""
    counts: dict[str, int]
    """How many of what."""
    files: dict[str, dict[str, Any]]
    """Relative POSIX name to {"bytes": size, "sha256": hexadecimal}."""
    extra: dict[str, Any] = field(default_factory=dict)
    """What the kind adds: band order, dtypes, the encoder's fingerprint."""

    def text(self) -> str:
        """The JSON to be written, with a checksum over itself."""
        content = plain(self)
        content["checksum"] = fingerprint(content)
        return json.dumps(content, indent=1, sort_keys=True) + "\n"


def identity(kind: str, config: Mapping[str, Any]) -> str:
    """Fingerprint of a folder: its kind, format version and configuration."""
    return fingerprint({"kind": kind, "version": FORMAT_VERSION[kind], "config": config})


def read_manifest(path: str | Path, kind: str, *, verify: bool | Literal["sizes"] = True) -> Manifest:
    """Read a folder's manifest, and check the folder against it.

    Args:
        path: the folder.
        kind: kind that is expected, a key of `FORMAT_VERSION`.
        verify: True compares sizes and sha256 of all files; "sizes" only sizes, for records that
            carry checksums of their own; False neither.

    Returns:
        The manifest.

    Raises:
        MissingInputError: there is no such folder.
        ManifestError: no manifest, a damaged one, one of another kind, or a file that is missing
            or not what was written.
        FormatVersionError: another format version than this release reads.
    """
    path = Path(path)
    if not path.is_dir():
        raise MissingInputError(f"{path}: no such folder{_remains(path)}")
    manifest = _parsed(path / MANIFEST, kind)
    for name, known in manifest.files.items() if verify else ():
        check_file(path / name, known, content=verify is True)
    return manifest


def _remains(path: Path) -> str:
    """What a stopped run left beside a folder that isn't there."""
    for suffix, advice in (
        (".former", "; {} is the former one, put aside by a run that was stopped: run the command again"),
        (".partial", "; {} is unfinished: run the command that writes it again, and it goes on"),
    ):
        aside = path.with_name(path.name + suffix)
        if aside.is_dir():
            return advice.format(aside)
    return ""


def _parsed(path: Path, kind: str) -> Manifest:
    """Read the page itself; the folder's files are not looked at."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ManifestError(
            f"{path.parent}: no {MANIFEST}; expected a folder of kind {kind!r} written by this package"
            + _remains(path.parent)
        ) from None
    except ValueError as err:
        raise ManifestError(f"{path} is damaged ({err}): make the folder again") from err
    if not isinstance(content, dict) or content.get("kind") != kind:
        found = content.get("kind") if isinstance(content, dict) else type(content).__name__
        raise ManifestError(f"{path.parent} is of kind {found!r}; expected {kind!r}: name the right folder")
    if content.get("version") != FORMAT_VERSION[kind]:
        raise FormatVersionError(
            f"{path.parent} has format version {content.get('version')!r} of kind {kind!r}, written by "
            f"{content.get('created_by')!r}; this release reads version {FORMAT_VERSION[kind]}: make the "
            f"folder again with this release, or use the release that wrote it"
        )
    checksum = content.pop("checksum", None)
    names = {f.name for f in dataclasses.fields(Manifest)}
    if checksum != fingerprint(content) or set(content) != names:
        raise ManifestError(
            f"{path} is damaged: its content does not match its own checksum; make the folder again"
        )
    return Manifest(**content)


def check_file(path: Path, known: Mapping[str, Any], *, content: bool) -> None:
    """Compare a file with what was written.

    Args:
        path: the file.
        known: its "bytes" and "sha256".
        content: compare sha256 too, not only the size.

    Raises:
        ManifestError: the file is missing, of another size or of another content.
    """
    try:
        size = path.stat().st_size
    except OSError as err:
        raise ManifestError(
            f"{path} is missing ({err.strerror}): put it back, or make the folder again"
        ) from err
    if size != known["bytes"]:
        raise ManifestError(f"{path} has {size} bytes, {known['bytes']} were written: make the folder again")
    if content and digest(path) != known["sha256"]:
        raise ManifestError(f"{path} is not what was written (sha256 differs): make the folder again")
