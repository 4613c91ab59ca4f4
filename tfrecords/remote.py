"""Files and folders by URL: s3://, gs://, https://, file:// and what else fsspec opens.

What is read as a whole is copied into a local cache first. A folder's copy is complete once its manifest is
there; its files are checked by the manifest's sizes and sha256. A caller may leave files for later: each is
copied when it is read first, by `fetch`. GeoTIFFs are not copied: GDAL reads the parts that are needed, under
a path such as `/vsis3/bucket/scene.tif`.

A folder is published without a rename: all files first, the manifest last. A reader therefore finds a whole
folder or none. Both directions continue after a lost connection.

    RETRIEVE_CACHE        the cache; ~/.cache/patch-retrieval if unset
    RETRIEVE_CACHE_GB     its limit, 50 if unset; folders that were used longest ago are removed first
    AWS_ENDPOINT_URL      another S3 server than Amazon's, for fsspec and GDAL
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock, get_ident
from typing import Any
from urllib.parse import urlsplit

from tfrecords.errors import (
    ManifestError,
    MissingInputError,
    MissingPackageError,
    OutputExistsError,
    RemoteError,
    RetrieveError,
    parse_json,
)

URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]+):/+(?P<rest>[^/].*)", re.DOTALL)
"""A URL; `Path` makes one slash of two. A scheme has two letters or more: `C:/` is a folder."""
VSI = {"s3": "/vsis3/", "gs": "/vsigs/"}
"""GDAL's paths, by scheme; files of other schemes are copied."""
MANIFESTS = ("shards.json", "manifest.json")
"""The file that a folder gets last, by kind of folder."""
CONNECTIONS = 8
"""Files that are copied at the same time."""
CHUNK = 1 << 22
ORIGIN = ".origin"
"""File of a copy that lacks files: the URL that they come from."""
ROOM_STEP = 64 << 20
"""Bytes of later files for which room is made in the cache at a time."""

_in_use: dict[Path, int] = {}
"""Open handles of copies that this process uses; while they are locked, no process removes the copy."""
_reserved: dict[Path, int] = {}
"""Bytes that later files of a copy may still take before the next look at the cache."""
_RESERVING = Lock()


def url_of(path: object) -> str | None:
    """Return the URL that a text or a path stands for, or None for a local path."""
    if not isinstance(path, (str, os.PathLike)):
        return None
    match = URL.fullmatch(os.fspath(path))
    if not match:
        return None
    slashes = ":///" if match["scheme"] == "file" else "://"
    return f"{match['scheme']}{slashes}{match['rest'].rstrip('/')}"


@contextmanager
def naming_connection(url: str) -> Iterator[None]:
    """Turn any library's error on a remote file into one sentence.

    Raises:
        MissingInputError: the URL leads nowhere.
        RemoteError: the server cannot be reached, refuses, or the connection was lost.
    """
    try:
        yield
    except RetrieveError:
        raise
    except FileNotFoundError as error:
        raise MissingInputError(f"{url}: no such file or folder") from error
    except Exception as error:  # of fsspec and of the library of each protocol
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise RemoteError(
            f"{url}: it cannot be reached ({reason}). Check the address, and run the command again."
        ) from error


def filesystem(url: str) -> tuple[Any, str]:
    """Return fsspec's file system of a URL, and the path in it.

    Raises:
        MissingPackageError: fsspec, or its package for the protocol, is not installed.
    """
    try:
        from fsspec.core import url_to_fs

        with naming_connection(url):
            system, path = url_to_fs(url)
    except (ImportError, RemoteError) as error:
        if isinstance(error, RemoteError) and not isinstance(error.__cause__, ImportError):
            raise
        raise MissingPackageError(
            f"{url}: a package for this address is not installed. Run pip install "
            "'patch-retrieval[distributed]', and gcsfs for gs://."
        ) from error
    return system, str(path)


def raster_path(url: str) -> Path:
    """Return GDAL's path of a GeoTIFF, of which it reads the necessary parts, or a copy where it has none."""
    scheme, _, rest = url.partition("://")
    return Path(VSI[scheme] + rest) if scheme in VSI else local_file(url)


def point_gdal() -> None:
    """Point GDAL to the S3 server of AWS_ENDPOINT_URL; settings of GDAL that exist stay."""
    if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
        os.environ.setdefault("AWS_S3_ENDPOINT", urlsplit(endpoint).netloc)
        os.environ.setdefault("AWS_HTTPS", "YES" if endpoint.startswith("https") else "NO")
        os.environ.setdefault("AWS_VIRTUAL_HOSTING", "FALSE")


def list_urls(url: str) -> list[str]:
    """Return the URLs of all files at or below a URL, sorted."""
    if url.startswith("http"):  # servers of the web list nothing
        return [url]
    system, path = filesystem(url)
    with naming_connection(url):
        system.invalidate_cache()
        found = sorted(system.find(path))
    if not found:
        raise MissingInputError(f"{url}: no such file or folder")
    return [url + name[len(path) :] for name in found]


# --- the cache ------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Return the cache; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("RETRIEVE_CACHE") or Path(base) / "patch-retrieval")


def cache_limit() -> int:
    """Return the limit of the cache, in bytes."""
    text = os.environ.get("RETRIEVE_CACHE_GB", "50")
    try:
        return int(float(text) * 1e9)
    except (ValueError, OverflowError):
        raise RemoteError(f"RETRIEVE_CACHE_GB is {text!r}. Expected a number of gigabytes.") from None


def local_file(url: str) -> Path:
    """Return a copy of a file; it is copied again if its size or time of change differs."""
    system, path = filesystem(url)
    with naming_connection(url):
        info = system.info(path)
        stamp = [str(info.get(key, "")) for key in ("size", "ETag", "LastModified", "mtime", "updated")]
        folder = cache_folder() / f"file-{_short(url)}-{_short(' '.join(stamp))}"
        copy = folder / Path(path).name
        size = int(info.get("size") or 0)
        if not copy.is_file():
            make_room(size, url)
            _copy(system, path, copy)
            if size and copy.stat().st_size != size:
                copy.unlink()
                raise RemoteError(f"{url}: the connection was lost. Run the command again.")
    _use(folder)
    return copy


def _none(_: str) -> bool:
    """Leave no file for later."""
    return False


def local_folder(url: str, later: Callable[[str], bool] = _none) -> Path:
    """Return a copy of a folder that has a manifest; files that an interrupted run copied are kept.

    Args:
        url: the folder.
        later: returns whether a file, by its relative POSIX name, is left for `fetch`.

    Raises:
        MissingInputError: there is no manifest.
        ManifestError: a manifest is damaged, or a file does not match it.
        RemoteError: the connection was lost, or the folder is larger than the cache may be.
    """
    name, content = _read_manifest(url)
    folder = _copy_of(url, content)
    folder.mkdir(parents=True, exist_ok=True)
    _use(folder)
    if not (folder / name).is_file() or (later is _none and (folder / ORIGIN).is_file()):
        system, path = filesystem(url)
        with naming_connection(url):
            files = _files_of(url, system, path, content, "")
            wanted = {n: known for n, known in files.items() if not later(n)}
            missing = {n: known for n, known in wanted.items() if not _is_copy(folder / n, known)}
            make_room(sum(int(known["bytes"]) for known in missing.values()), url, folder)
            _copy_all(system, path, folder, missing)
            for extra in _beside(system, path, files, name):
                _copy(system, f"{path}/{extra}", folder / extra)
        if len(wanted) < len(files):
            _write(folder / ORIGIN, url.encode())
        else:
            (folder / ORIGIN).unlink(missing_ok=True)
        _write(folder / name, content)
    return folder


def incomplete_copy(path: Path) -> Path | None:
    """Return the copy in the cache that a path lies in, at most three folders up, if it lacks files."""
    copies = (p for p in path.parents[:3] if p.parent == cache_folder())  # a file elsewhere may be hostile
    return next((copy for copy in copies if (copy / ORIGIN).is_file()), None)


def fetch(path: Path, known: Mapping[str, Any]) -> bool:
    """Copy a file that `local_folder` left for later.

    Args:
        path: of the file in the copy, or any other path.
        known: its "bytes" and "sha256".

    Returns:
        Whether the path lies in a copy that lacks files; the file is there then.

    Raises:
        ManifestError: it does not match its checksum.
        MissingInputError: it is not at the URL any more.
        RemoteError: the connection was lost, or the cache has no room.
    """
    folder = incomplete_copy(path)
    if folder is None:
        return False
    url, name = (folder / ORIGIN).read_text(encoding="utf-8"), path.relative_to(folder).as_posix()
    size = int(known["bytes"])
    with _RESERVING:
        if _reserved.get(folder, 0) < size:
            make_room(max(size, ROOM_STEP), url, folder)
            _reserved[folder] = max(size, ROOM_STEP)
        _reserved[folder] -= size
    system, root = filesystem(url)
    with naming_connection(f"{url}/{name}"):
        _copy_checked(system, root, folder, name, known)
    return True


def _copy_of(url: str, manifest: bytes) -> Path:
    """Return where the copy of a folder with this manifest lies."""
    return cache_folder() / f"folder-{_short(url)}-{hashlib.sha256(manifest).hexdigest()[:16]}"


def _read_manifest(url: str) -> tuple[str, bytes]:
    """Return name and bytes of a folder's manifest."""
    system, path = filesystem(url)
    with naming_connection(url):
        system.invalidate_cache()
        for name in MANIFESTS:
            with suppress(FileNotFoundError):
                return name, bytes(system.cat_file(f"{path}/{name}"))
    raise MissingInputError(
        f"{url}: no {' or '.join(MANIFESTS)}. Expected a finished folder of this package."
    )


def _files_of(url: str, system: Any, path: str, content: bytes, below: str) -> dict[str, dict[str, Any]]:
    """Return size and sha256 of all files that a manifest names, and of the files of manifests among them."""
    try:
        listed = parse_json(content)["files"]
        files = {
            below + str(n): {"bytes": int(f["bytes"]), "sha256": str(f["sha256"])} for n, f in listed.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ManifestError(f"{url}: its manifest is damaged. Publish the folder again.") from error
    if any(n.startswith("/") or ".." in n.split("/") for n in files):
        raise ManifestError(f"{url}: its manifest names files outside of the folder. It is refused.")
    for name in [n for n in files if n.rpartition("/")[2] == "manifest.json"]:
        inner = bytes(system.cat_file(f"{path}/{name}"))
        if hashlib.sha256(inner).hexdigest() != files[name]["sha256"]:
            raise ManifestError(f"{url}/{name}: it does not match its checksum. Publish the folder again.")
        files |= _files_of(url, system, path, inner, name.rpartition("/")[0] + "/")
    return files


def _beside(system: Any, path: str, files: Mapping[str, Any], name: str) -> list[str]:
    """Return the calibrations next to a manifest, which it does not name."""
    found = [str(n).rpartition("/")[2] for n in system.ls(path, detail=False)]
    return [n for n in found if n.endswith(".calibration.json") and n not in files]


def _is_copy(path: Path, known: Mapping[str, Any]) -> bool:
    return path.is_file() and path.stat().st_size == known["bytes"] and _sha256(path) == known["sha256"]


def _copy_all(system: Any, path: str, folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Copy files and check them; several at the same time."""
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        copies = [pool.submit(_copy_checked, system, path, folder, name, files[name]) for name in files]
        for done in copies:
            done.result()


def _copy_checked(system: Any, path: str, folder: Path, name: str, known: Mapping[str, Any]) -> None:
    _copy(system, f"{path}/{name}", folder / name)
    if not _is_copy(folder / name, known):
        (folder / name).unlink()
        raise ManifestError(f"{path}/{name}: it does not match its checksum. Publish the folder again.")


def _copy(system: Any, path: str, goal: Path) -> None:
    """Copy a file; it appears whole or not at all."""
    goal.parent.mkdir(parents=True, exist_ok=True)
    partial = goal.with_name(f".{goal.name}.{os.getpid()}-{get_ident()}.partial")
    try:
        system.get_file(path, str(partial))
        partial.replace(goal)
    finally:
        partial.unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        file.write(content)
        os.fsync(file.fileno())
    partial.replace(path)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _use(folder: Path) -> None:
    """Mark a copy as used now, and keep it while this process lives."""
    os.utime(folder)
    if folder in _in_use:
        return
    with suppress(ImportError, OSError):  # no locks there
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_SH)
        _in_use[folder] = handle


def _release(folder: Path) -> None:
    """Allow other processes to remove a copy."""
    if folder in _in_use:
        os.close(_in_use.pop(folder))


def _is_free(folder: Path) -> bool:
    """Return whether no living process uses a copy."""
    if folder in _in_use:
        return False
    with suppress(ImportError):
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        finally:
            os.close(handle)
    return True


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def make_room(wanted: int, url: str, kept: Path | None = None) -> None:
    """Remove copies that were used longest ago until some bytes more fit into the cache.

    Args:
        wanted: bytes.
        url: needs them, for the message.
        kept: a copy that stays.

    Raises:
        RemoteError: they do not fit.
    """
    limit, cache = cache_limit(), cache_folder()
    copies = [e for e in cache.glob("f*-*-*") if e.is_dir()] if cache.is_dir() else []
    copies.sort(key=lambda e: e.stat().st_mtime)
    total = sum(map(_size, copies)) + wanted
    for copy in copies:
        if total > limit and copy != kept and _is_free(copy):
            total -= _size(copy)
            shutil.rmtree(copy, ignore_errors=True)
    if total > limit:
        raise RemoteError(
            f"{url}: its copy needs {wanted / 1e9:.1f} GB more than the cache may hold with what is in use. "
            f"Set RETRIEVE_CACHE_GB to {int(total / 1e9) + 1} or more."
        )


# --- publishing -----------------------------------------------------------------------------------


@contextmanager
def published_folder(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Write a folder to a local path or to a URL.

    Args:
        path: the folder. A URL's folder is written in the cache, where a copy stays, and uploaded at the end.
        overwrite: replace the folder at a URL. Its manifest is replaced last; files of the same name before.

    Yields:
        The local folder to write.

    Raises:
        OutputExistsError: the URL has a folder, and `overwrite` is false.
        RemoteError: the connection was lost; the next run continues.
    """
    url = url_of(path)
    if url is None:
        yield Path(path)
        return
    if not overwrite and remote_exists(url, folder=True):
        raise OutputExistsError(f"{url} exists and is kept. Name another output, or pass --overwrite.")
    staging = cache_folder() / f"upload-{_short(url)}" / url.rpartition("/")[2]
    yield staging
    upload_folder(staging, url)
    name = next(name for name in MANIFESTS if (staging / name).is_file())
    copy = _copy_of(url, (staging / name).read_bytes())
    if not copy.exists():
        staging.rename(copy)
    shutil.rmtree(staging.parent)


def upload_folder(folder: Path, url: str) -> None:
    """Upload a finished folder, its manifest last, and remove what a former folder left there.

    Args:
        folder: has a manifest.
        url: the goal. Files that an interrupted upload finished are not sent again.
    """
    system, path = filesystem(url)
    names = sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file())
    last = next(name for name in MANIFESTS if name in names)
    journal = folder.with_name("uploaded.txt")
    sent = set(journal.read_text(encoding="utf-8").splitlines()) if journal.exists() else set()
    with naming_connection(url), journal.open("a", encoding="utf-8") as log:

        def upload(name: str) -> str:
            line = f"{_sha256(folder / name)} {name}"
            if line not in sent:
                system.put_file(str(folder / name), f"{path}/{name}")
            return line

        with ThreadPoolExecutor(CONNECTIONS) as pool:
            uploads = [pool.submit(upload, name) for name in names if name != last]
            for done in uploads:
                log.write(done.result() + "\n")
                log.flush()
        system.put_file(str(folder / last), f"{path}/{last}")
        system.invalidate_cache()
        known = {f"{path}/{name}" for name in names}
        for stale in [f for f in system.find(path) if f not in known]:
            system.rm_file(stale)


def remote_exists(url: str, *, folder: bool) -> bool:
    """Return whether there is a file, or a folder with a manifest."""
    if folder:
        with suppress(MissingInputError):
            return bool(_read_manifest(url))
        return False
    system, path = filesystem(url)
    with naming_connection(url):
        system.invalidate_cache()
        return bool(system.exists(path))


@contextmanager
def uploading_file(url: str) -> Iterator[Path]:
    """Write a file to a URL, where it appears whole and replaces a former one.

    Yields:
        The local file to write, with the same suffix; it is uploaded if the block succeeds.
    """
    system, goal = filesystem(url)
    with TemporaryDirectory() as folder:
        local = Path(folder) / url.rpartition("/")[2]
        yield local
        with naming_connection(url):
            system.put_file(str(local), goal)
