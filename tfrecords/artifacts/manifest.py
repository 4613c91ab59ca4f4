"""The content of `manifest.json`, and the check of a folder against it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tfrecords.errors import FormatVersionError, ManifestError, MissingInputError, parse_json

MANIFEST = "manifest.json"
"""Name of the file that describes every folder this package writes."""

FORMAT_VERSION: dict[str, int] = {
    "series": 1,
    "challenge": 1,
    "images": 1,
    "patches": 1,
    "index": 2,
    "shards": 1,
    "checkpoints": 1,
    "demo": 1,
    "stac": 1,
    "cutouts": 1,
    "tiles": 1,
    "masks": 1,
    "classifier": 1,
    "segmenter": 1,
    "probabilities": 1,
}
"""Format version that this release writes, by kind of folder."""
OLDER_VERSIONS: dict[str, tuple[int, ...]] = {"index": (1,)}
"""Older format versions that this release reads too."""

CHUNK = 1 << 20


def plain(value: Any) -> Any:
    """Return a configuration as plain JSON values.

    Args:
        value: any nesting of dataclasses, mappings, sequences, numbers, texts, paths and None.

    Returns:
        The same values as dict, list, str, int, float, bool and None.
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
    """Return the canonical JSON text of a value: sorted keys, no blanks."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":")).encode()


def fingerprint(config: Mapping[str, Any]) -> str:
    """Return the sha256, in hexadecimal, of a configuration's canonical JSON.

    Args:
        config: values that `plain` accepts; the order of keys does not matter.
    """
    return hashlib.sha256(canonical(config)).hexdigest()


def digest(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            total.update(chunk)
    return total.hexdigest()


def created_by() -> str:
    """Return name and version of this package."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"patch-retrieval {version('patch-retrieval')}"
    except PackageNotFoundError:
        return "patch-retrieval, not installed"


@dataclass(frozen=True)
class Manifest:
    """The content of a folder's `manifest.json`."""

    kind: str
    """Kind of folder, a key of `FORMAT_VERSION`."""
    version: int
    """Format version of that kind."""
    config: dict[str, Any]
    """All settings and inputs that decide the content."""
    fingerprint: str
    """`fingerprint` of kind, version and config."""
    created_by: str
    """Package and version that wrote it."""
    counts: dict[str, int]
    """Counts of the content, such as images and windows."""
    files: dict[str, dict[str, Any]]
    """Relative POSIX name to {"bytes": size, "sha256": hexadecimal}."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further entries of this kind: band order, dtypes, the encoder's fingerprint."""

    def text(self) -> str:
        """Return the JSON text to write, with a checksum of itself."""
        content = plain(self)
        content["checksum"] = fingerprint(content)
        return json.dumps(content, indent=1, sort_keys=True) + "\n"


def identity(kind: str, config: Mapping[str, Any]) -> str:
    """Return the fingerprint of a folder: of its kind, format version and configuration."""
    return fingerprint({"kind": kind, "version": FORMAT_VERSION[kind], "config": config})


def read_manifest(path: str | Path, kind: str, *, verify: bool | Literal["sizes"] = True) -> Manifest:
    """Read a folder's manifest, and check the folder against it.

    Args:
        path: the folder.
        kind: the expected kind, a key of `FORMAT_VERSION`.
        verify: True compares sizes and sha256 of all files; "sizes" compares sizes only, for records
            that hold checksums; False compares neither.

    Returns:
        The manifest.

    Raises:
        MissingInputError: the folder does not exist.
        ManifestError: the manifest is missing, damaged or of another kind, or a file is missing or was
            changed.
        FormatVersionError: this release does not read the format version.
    """
    path = Path(path)
    if not path.is_dir():
        raise MissingInputError(f"{path}: no such folder{_leftovers(path)}")
    manifest = parse_manifest(path / MANIFEST, kind)
    for name, known in manifest.files.items() if verify else ():
        check_file(path / name, known, content=verify is True)
    return manifest


def _leftovers(path: Path) -> str:
    """Return a hint on what an interrupted run left of a missing folder."""
    for suffix, advice in (
        (
            ".former",
            "; {} is the former one, renamed by an interrupted run: run the command again to restore it",
        ),
        (".partial", "; {} is unfinished: run the command that writes it again to resume"),
    ):
        leftover = path.with_name(path.name + suffix)
        if leftover.is_dir():
            return advice.format(leftover)
    return ""


def parse_manifest(path: Path, kind: str) -> Manifest:
    """Read a manifest alone, without a look at the folder's files.

    Args:
        path: the file.
        kind: the expected kind, a key of `FORMAT_VERSION`.

    Raises:
        ManifestError: the file is missing, damaged or of another kind.
        FormatVersionError: this release does not read the format version.
    """
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ManifestError(
            f"{path.parent}: no {path.name}; expected a folder of kind {kind!r} written by this package"
            + _leftovers(path.parent)
        ) from None
    except ValueError as err:
        raise ManifestError(f"{path}: the manifest is damaged ({err}). Make the folder again.") from err
    if not isinstance(content, dict) or content.get("kind") != kind:
        found = content.get("kind") if isinstance(content, dict) else type(content).__name__
        raise ManifestError(
            f"{path.parent}: the folder is of kind {found!r}; expected {kind!r}. Name the right folder."
        )
    accepted = (*OLDER_VERSIONS.get(kind, ()), FORMAT_VERSION[kind])
    if content.get("version") not in accepted:
        versions = " and ".join(map(str, accepted))
        raise FormatVersionError(
            f"{path.parent}: format version {content.get('version')!r} of kind {kind!r}, written by "
            f"{content.get('created_by')!r}. This release reads version {versions}: make the "
            f"folder again with this release, or use the release that wrote it."
        )
    checksum = content.pop("checksum", None)
    names = {f.name for f in dataclasses.fields(Manifest)}
    if checksum != fingerprint(content) or set(content) != names:
        raise ManifestError(
            f"{path} is damaged: its content does not match its checksum. Make the folder again."
        )
    if outside := [name for name in content["files"] if not is_inside(name)]:
        raise ManifestError(
            f"{path} names files outside of the folder, such as {outside[0]!r}. It is refused."
        )
    return Manifest(**content)


def is_inside(name: str) -> bool:
    """Return whether a relative POSIX name stays inside its folder."""
    return (
        bool(name) and not name.startswith("/") and not {"..", ""} & set(name.split("/")) and "\\" not in name
    )


def check_file(path: Path, known: Mapping[str, Any], *, content: bool) -> None:
    """Compare a file with its size and checksum in the manifest.

    Args:
        path: the file.
        known: its "bytes" and "sha256".
        content: compare sha256 as well as the size.

    Raises:
        ManifestError: the file is missing, or its size or content was changed.
    """
    try:
        size = path.stat().st_size
    except OSError as err:
        raise ManifestError(
            f"{path} is missing ({err.strerror}). Restore it, or make the folder again."
        ) from err
    if size != known["bytes"]:
        raise ManifestError(f"{path} has {size} bytes; expected {known['bytes']}. Make the folder again.")
    if content and digest(path) != known["sha256"]:
        raise ManifestError(f"{path} was changed: its sha256 differs. Make the folder again.")
