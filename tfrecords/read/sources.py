"""What a user names as images or patches, and what units it is taken for."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tfrecords.errors import ArrayError, MissingInputError, UnitsError
from tfrecords.schema import Units, check_dtype, check_units, extremes, guess_units, quickly_compared

TIF = (".tif", ".tiff")
PICTURE = (".png", ".jpg", ".jpeg")
"""Read as chips that are asked about; never as images to be searched in."""
TFRECORD = (".tfrecords", ".tfrecord")
SAMPLES = 16
"""Images that are looked at to tell units, spread over the source."""
LIMITS = {"scaled": (-1.001, 1.001), "reflectance": (-1.0, 10.0), "byte": (0.0, 255.0)}
"""Values outside contradict the units, stated or guessed."""

ImageLike = str | os.PathLike[str] | NDArray[Any]
"""A file, a folder, a glob, or an array (n, h, w, b) in memory."""


@dataclass(frozen=True, eq=False)
class Source:
    """What a user named, found."""

    kind: Literal["array", "npy", "tif", "tfrecords"]
    """What it is."""
    name: str
    """How messages call it."""
    paths: tuple[Path, ...] = ()
    """Its files in the order of their ranks; empty for an array."""
    array: NDArray[Any] | None = None
    """The array in memory."""


def visible(path: Path, root: Path) -> bool:
    """Whether no part of the path below `root` is hidden: file managers leave "._x.tif" about."""
    return not any(part.startswith(".") for part in path.relative_to(root).parts)


def files_below(folder: Path, suffixes: Sequence[str]) -> tuple[Path, ...]:
    """Files of a folder with one of the suffixes in any case, recursive, by relative POSIX path."""
    found = (
        p for p in folder.rglob("*") if p.suffix.lower() in suffixes and visible(p, folder) and p.is_file()
    )
    return tuple(sorted(found, key=lambda p: p.relative_to(folder).as_posix()))


def find(source: ImageLike, what: str) -> Source:
    """Find out what a user named.

    Args:
        source: a file, folder, glob or array.
        what: "images" or "patches", for messages.

    Returns:
        Its kind and files.

    Raises:
        MissingInputError: it does not exist, or holds no file of a kind that is read.
    """
    if isinstance(source, np.ndarray):
        return Source("array", f"{what} in memory", array=source)
    path, name = Path(source), str(os.fspath(source))
    if path.is_dir():
        # Pictures beside GeoTIFFs are previews: they would change the ranks, which are the ids.
        pictures = files_below(path, PICTURE) if what == "patches" else ()
        paths = files_below(path, TIF) or pictures or files_below(path, TFRECORD)
        if not paths:
            more = ", .png or .jpg" if what == "patches" else ""
            raise MissingInputError(
                f"{name}: the folder holds no .tif or .tiff{more} file; expected {what} as GeoTIFFs"
            )
    elif path.exists():
        paths = (path,)
    else:
        paths = tuple(sorted(map(Path, glob.glob(name, recursive=True)), key=lambda p: p.as_posix()))  # noqa: PTH207 - a pattern may be absolute
        paths = tuple(p for p in paths if p.suffix.lower() in TIF) or paths
        if not paths:
            raise MissingInputError(f"{name}: no such file or folder; expected {what} as {_kinds(what)}")
    return Source(_kind(paths, name, what), name, paths)


def _kinds(what: str) -> str:
    """The inputs that are read."""
    rasters = "GeoTIFFs, PNGs or JPEGs" if what == "patches" else "GeoTIFFs"
    return f"test_{what}.tfrecords, an .npy array (n, h, w, bands), or a folder or glob of {rasters}"


def _kind(paths: Sequence[Path], name: str, what: str) -> Literal["npy", "tif", "tfrecords"]:
    """Kind of files by their suffix, which all share."""
    suffixes = {p.suffix.lower() for p in paths}
    if suffixes <= set(TIF) or (what == "patches" and suffixes <= set(PICTURE)):
        return "tif"
    if suffixes <= set(TFRECORD):
        return "tfrecords"
    if suffixes == {".npy"} and len(paths) == 1:
        return "npy"
    raise MissingInputError(
        f"{name}: can't read {', '.join(sorted(suffixes))} as {what}; expected {_kinds(what)}"
    )


def load_npy(path: Path) -> NDArray[Any]:
    """Open an `.npy` file without reading it.

    Args:
        path: the file.

    Returns:
        A read-only memory map.

    Raises:
        ArrayError: it is no array file, is truncated, or holds Python objects, which are not loaded.
    """
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as err:
        raise ArrayError(f"{path} can't be opened as an array ({err}): save it with numpy.save") from err


def check_stack(array: NDArray[Any], name: str, what: str) -> None:
    """Refuse arrays that are no stack of images.

    Args:
        array: what was given.
        name: how messages call it.
        what: "images" or "patches".

    Raises:
        ArrayError: not (n, h, w, b), or no dtype of pixels.
        MissingInputError: n is 0.
    """
    check_dtype(array.dtype, name)
    if array.ndim != 4 or 0 in array.shape[1:]:
        raise ArrayError(
            f"{name}: shape is {array.shape}; expected (n, height, width, bands): {_advice(array)}"
        )
    if not len(array):
        raise MissingInputError(f"{name}: shape is {array.shape}: there are no {what} in it")


def _advice(array: NDArray[Any]) -> str:
    """How to give an array the right axes."""
    return {3: "add the missing axis with array[None] (one image) or array[..., None] (one band)"}.get(
        array.ndim, "reshape it"
    )


@dataclass(frozen=True)
class Taken:
    """Units that a source was taken for."""

    units: Units
    """The units."""
    stated: bool
    """Whether the user or the file says so."""
    sure: bool
    """Whether, if not stated, the range leaves no doubt."""

    def text(self) -> str:
        """Words for the note."""
        if self.stated:
            return f"{self.units} (as stated)"
        return self.units if self.sure else f"{self.units} (a guess from the range: --units says otherwise)"


def take_units(samples: Iterable[NDArray[Any]], stated: str | None, name: str) -> Taken:
    """Decide the units of a source, once for all of it.

    Args:
        samples: some of its pixels, nodata left out; not looked at where units are stated.
        stated: what the user says.
        name: how messages call the source.

    Returns:
        The units.

    Raises:
        UnitsError: the range fits none, or the word is none.
    """
    if stated:
        return Taken(check_units(stated), True, True)
    flat = [np.asarray(s).ravel() for s in samples]
    units, sure = guess_units(np.concatenate(flat) if flat else np.zeros(0, np.float32), name)
    return Taken(units, False, sure)


def spread(count: int, samples: int = SAMPLES) -> list[int]:
    """Up to `samples` numbers below `count`, first and last among them, evenly spread."""
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, samples)).round()})


def check_range(pixels: NDArray[Any], units: Units, nodata: float | None, name: str) -> None:
    """Refuse pixels that contradict the units of their source.

    Args:
        pixels: any shape.
        units: what the source was taken for.
        nodata: its tag; these values may be anything.
        name: how messages call them.

    Raises:
        UnitsError: a value is outside of what the units can be.
    """
    if units not in LIMITS or (units == "byte" and pixels.dtype == np.uint8):
        return
    low, high = LIMITS[units]
    if pixels.size:
        smallest, largest = extremes(pixels)
        if low <= smallest and largest <= high:
            return  # nearly always; beside NaN neither comparison holds, and each value is looked at
    values = quickly_compared(pixels) if pixels.dtype.kind == "f" else pixels.astype(np.float64)
    bad = (values < low) | (values > high)
    if nodata is not None and bad.any():
        bad &= pixels != nodata
    if bad.any():
        raise UnitsError(
            f"{name}: {int(bad.sum())} values such as {float(pixels[bad][0]):g} are no {units}, which the "
            f"source was taken for; expected {low:g} to {high:g}: say the right ones with --units"
        )
