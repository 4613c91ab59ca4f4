"""Files that appear whole or not at all; a file at a URL is written here and uploaded at the end."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tfrecords.errors import DiskFullError, OutputExistsError, RetrieveError, said_by
from tfrecords.geotiff import RASTERS, ends_within_file
from tfrecords.remote import remote_exists, uploading_file, url_of

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a full disk and of an exceeded quota."""
FORMER_FILE = "the former file is unchanged"
"""State of an output that could not be written."""
ROOM_BYTES = 64 << 10
"""A disk with less free space counts as full where a library cannot write and does not say why."""
MEMORY_BYTES = 32 << 20
"""Memory that must be left where a library encodes an output: GDAL's codecs end the process without it."""


def partial_of(path: Path) -> Path:
    """Return the temporary name of a file: hidden, in the same folder, with the same suffix.

    The suffix stays because `np.save` and GDAL choose a format by it. Readers of folders skip hidden files.
    """
    return path.with_name(f".{path.stem}.partial{path.suffix}")


def sync(path: Path) -> None:
    """Flush a file's bytes, or a folder's names, to the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open folders
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as err:
        # Some network file systems cannot sync a folder; a rename is all they offer.
        if err.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def check_memory() -> None:
    """Refuse an output where the process may take little more memory.

    Raises:
        MemoryError: the system refuses `MEMORY_BYTES`.
    """
    try:
        bytes(MEMORY_BYTES)  # zeros that nothing reads: the system gives addresses, and no page
    except MemoryError:
        raise MemoryError(f"less than {MEMORY_BYTES >> 20} MB left") from None


@contextmanager
def naming_full_disk(path: Path, kept: str) -> Iterator[None]:
    """Turn any library's "no space left" error into `DiskFullError`.

    Args:
        path: the output.
        kept: a clause on the state of the former output and of the finished work.

    Yields:
        Nothing.

    Raises:
        DiskFullError: the disk is full.
    """
    try:
        yield
    except Exception as err:
        # GDAL, Arrow, FAISS and TensorFlow raise different classes, but all quote the system's message.
        quoted = os.strerror(errno.ENOSPC).lower() in said_by(err).lower()
        if quoted or getattr(err, "errno", None) in FULL or isinstance(err, DiskFullError):
            raise DiskFullError(
                f"{path}: the disk is full; {kept}. Free some space and run the command again."
            ) from err
        raise


def place(partial: Path, path: Path) -> None:
    """Rename a finished file to its final name; no crash leaves half of it under that name."""
    sync(partial)
    partial.replace(path)
    sync(path.parent)


def exchange(first: Path, second: Path) -> bool:
    """Exchange two names in one atomic step.

    HACK: Python has no call for it, so Linux's `renameat2` is called through ctypes.

    Args:
        first: a file or a folder.
        second: another one in the same folder.

    Returns:
        False if the system or the file system cannot do it (only Linux can); nothing happened then.
    """
    if sys.platform != "linux":
        return False
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):  # a C library of before 2018
        return False
    return bool(renameat2(here, os.fsencode(first), here, os.fsencode(second), swap) == 0)


def check_free(path: str | os.PathLike[str], *, overwrite: bool = False, folder: bool = False) -> None:
    """Refuse an output that exists, before the work starts.

    Args:
        path: the output to write.
        overwrite: accept an existing output, which is then replaced.
        folder: the output is a folder; an empty one counts as free.

    Raises:
        OutputExistsError: the output exists and `overwrite` is false, or a file and a folder are mixed up.
    """
    if url := url_of(path):
        if not overwrite and remote_exists(url, folder=folder):
            raise OutputExistsError(f"{url} exists and is kept. Name another output, or pass --overwrite.")
        return
    path = Path(path)
    if path.is_dir() and not folder:
        raise OutputExistsError(f"{path} is a folder. Name a file to write.")
    if path.is_file() and folder:
        raise OutputExistsError(f"{path} is a file. Name a folder to write.")
    empty = path.is_dir() and not any(path.iterdir())
    if path.exists() and not empty and not overwrite:
        raise OutputExistsError(f"{path} exists and is kept. Name another output, or pass --overwrite.")


@contextmanager
def writing_file(
    path: str | os.PathLike[str], *, overwrite: bool = False, durable: bool = True
) -> Iterator[Path]:
    """Write one file whole or not at all.

    Args:
        path: the file, or its URL; its folder is created if needed.
        overwrite: replace an existing file.
        durable: flush the file to the disk; a caller that checks its bytes later may do without.

    Yields:
        A temporary path in the same folder, with the same suffix. If the block succeeds, the file is
        renamed to `path`; if it raises, the file is removed and the former file stays.

    Raises:
        OutputExistsError: the file exists and `overwrite` is false, or a folder has its name.
        DiskFullError: the disk is full.
        MemoryError: less than `MEMORY_BYTES` are left.
    """
    check_free(path, overwrite=overwrite)
    check_memory()
    if url := url_of(path):
        with uploading_file(url) as local:
            yield local
        return
    path = Path(path)
    partial = partial_of(path)
    with naming_full_disk(path, FORMER_FILE):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.unlink(missing_ok=True)  # left by a killed run
            _check_writable(partial)
            with _telling_full_disk(path):
                yield partial
                if partial.suffix.lower() in RASTERS:
                    check_raster(partial)
            if durable:
                place(partial, path)
            else:
                partial.replace(path)
        except BaseException as error:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            _name_output(error, path)
            raise


@contextmanager
def scratch_beside(path: Path) -> Iterator[Path]:
    """Make a hidden folder for the unfinished files of an output, and remove it at the end.

    Args:
        path: the output; its folder is created if needed. It is not written.

    Yields:
        The folder, empty, on the disk of the output.

    Raises:
        DiskFullError: the disk is full.
        MemoryError: less than `MEMORY_BYTES` are left.
    """
    check_memory()
    folder = path.with_name(f".{path.name}.scratch")
    with naming_full_disk(path, FORMER_FILE):
        try:
            shutil.rmtree(folder, ignore_errors=True)  # left by a killed run
            folder.mkdir(parents=True)
            with _telling_full_disk(path):
                yield folder
        except BaseException as error:
            _name_output(error, path)
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _telling_full_disk(path: Path) -> Iterator[None]:
    """Raise the system's error of a full disk for a library's error that has no number."""
    try:
        yield
    except Exception as error:
        by_system = isinstance(error, OSError) and error.errno is not None
        named = by_system or isinstance(error, (RetrieveError, MemoryError))
        if not named and is_full(path.parent):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


def _check_writable(path: Path) -> None:
    """Create and remove a file, because libraries raise other errors than the system where it refuses one."""
    path.touch()
    path.unlink()


def is_full(folder: Path) -> bool:
    """Return whether the disk of a folder has no room for further blocks of a file, or for a file."""
    no_files = False
    if hasattr(os, "statvfs"):
        state = os.statvfs(folder)
        no_files = state.f_files > 0 and state.f_favail == 0  # a file system without such a limit has 0 of 0
    return no_files or shutil.disk_usage(folder).free < ROOM_BYTES


def check_raster(path: Path) -> None:
    """Refuse a GeoTIFF that was not written whole, which GDAL does not report.

    Args:
        path: a closed GeoTIFF; files of other formats pass.

    Raises:
        OSError: a block is missing, because the disk is full or for another reason.
    """
    if not ends_within_file(path):
        raise unfinished(path)


def unfinished(path: Path) -> OSError:
    """Return the error of a file that a library did not write whole, and did not say why."""
    number = errno.ENOSPC if is_full(path.parent) else errno.EIO
    return OSError(number, os.strerror(number), str(path))


def _name_output(error: BaseException, path: Path) -> None:
    """Replace the names of hidden temporary files by that of the output in an error of the system or GDAL."""
    hidden = re.compile(rf"{re.escape(str(path.parent))}/\.{re.escape(path.stem)}\.[\w.]*(?:/[\w.]+)?")
    with suppress(AttributeError):  # GDAL's own errors cannot be changed
        error.args = tuple(hidden.sub(str(path), arg) if isinstance(arg, str) else arg for arg in error.args)
    if isinstance(error, OSError) and error.filename is not None:
        error.filename = hidden.sub(str(path), os.fspath(error.filename))
