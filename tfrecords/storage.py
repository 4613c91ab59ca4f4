"""Files that appear whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tfrecords.errors import DiskFullError, OutputExistsError

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What a disk without room, and a user without quota, say."""


def partial_of(path: Path) -> Path:
    """Name under which a file is written: hidden, beside it, with its suffix.

    The suffix stays because `np.save` and GDAL choose or add by it; readers of folders pass over
    hidden files.
    """
    return path.with_name(f".{path.stem}.partial{path.suffix}")


def sync(path: Path) -> None:
    """Bring a file's bytes, or a folder's names, to the disk itself."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as err:
        # Some network file systems can't sync a folder; their rename is all that there is.
        if err.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


@contextmanager
def naming_full_disk(path: Path, kept: str) -> Iterator[None]:
    """Turn "no space left", however a library words it, into `DiskFullError`.

    Args:
        path: what is being written.
        kept: what became of the former output and of the work, one clause.

    Yields:
        Nothing.

    Raises:
        DiskFullError: the disk is full.
    """
    try:
        yield
    except Exception as err:
        # GDAL, Arrow, FAISS and TensorFlow each have an error of their own; the words are the system's.
        said = os.strerror(errno.ENOSPC).lower() in str(err).lower()
        if said or getattr(err, "errno", None) in FULL or isinstance(err, DiskFullError):
            raise DiskFullError(
                f"the disk is full: {path} could not be written; {kept}: free some room"
            ) from err
        raise


def place(partial: Path, path: Path) -> None:
    """Give a finished file its name, so that no crash leaves half of it under that name."""
    sync(partial)
    partial.replace(path)
    sync(path.parent)


def exchange(one: Path, other: Path) -> bool:
    """Let two names of one folder change places, in one step that nothing can stop halfway.

    Args:
        one: a file or a folder.
        other: another.

    Returns:
        False where the system or the file system has no such step (it is Linux's); nothing happened then.
    """
    if sys.platform != "linux":
        return False
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):  # a C library of before 2018
        return False
    return renameat2(here, os.fsencode(one), here, os.fsencode(other), swap) == 0


def check_free(path: str | os.PathLike[str], *, overwrite: bool = False, folder: bool = False) -> None:
    """Refuse an output that exists, before the work starts.

    Args:
        path: the output to write.
        overwrite: accept an existing output, which is then replaced.
        folder: the output is a folder; an empty one counts as free.

    Raises:
        OutputExistsError: the output exists and `overwrite` is false, or a file and a folder are mixed up.
    """
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
        path: where the file shall be; its folder is made if there is none.
        overwrite: replace a file that is there.
        durable: bring it to the disk itself at once; a caller that checks its bytes later may do without.

    Yields:
        A path beside it to write to, with the same suffix. When the block ends well the file is
        synced and renamed; when it raises, it is removed and the former file stays.

    Raises:
        OutputExistsError: a file is there and `overwrite` is not given, or a folder is.
        DiskFullError: the disk is full.
    """
    check_free(path, overwrite=overwrite)
    path = Path(path)
    partial = partial_of(path)
    with naming_full_disk(path, "what was there before is untouched"):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)  # a killed run's
        try:
            yield partial
            if durable:
                place(partial, path)
            else:
                partial.replace(path)
        except BaseException:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise
