"""Find the files of a source of images or patches, and decide its units."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tfrecords.errors import ArrayError, MissingInputError, UnitsError
from tfrecords.read.band_files import group_band_files
from tfrecords.read.folders import SHARD, list_files, match_files, suffix_of
from tfrecords.read.layers import RasterFile
from tfrecords.remote import list_urls, local_file, raster_path, url_of
from tfrecords.schema import (
    REFLECTANCE_TOP,
    Units,
    UnitsGuess,
    as_comparable,
    check_dtype,
    check_units,
    guess_units,
    min_max,
)

TIF = (".tif", ".tiff")
PICTURE = (".png", ".jpg", ".jpeg")
"""Read as query chips; never as images to search."""
JP2 = (".jp2",)
VRT = (".vrt",)
"""Read where it is named: in a folder a VRT may stand for files next to it."""
TFRECORD = (".tfrecords", ".tfrecord")
PRODUCT_FILE = re.compile(r"MTD_MSIL.*\.xml|SENTINEL2.*_MTD_ALL\.xml|tileInfo\.json")
"""Name of a file that only a Sentinel-2 product has: of ESA, MAJA or AWS."""
SAMPLES = 16
"""Images that decide the units, spread over the source."""
LIMITS = {"scaled": (-1.001, 1.001), "reflectance": (-1.0, 10.0), "byte": (0.0, 255.0)}
"""Values outside this range contradict the units."""
MAX_OUTLIERS = 0.01
"""Largest share of values outside the range: glint, dead pixels, overshoot of a resampling."""

ImageLike = str | os.PathLike[str] | NDArray[Any]
"""A file, a folder, a glob, or an array (n, h, w, b) in memory."""


@dataclass(frozen=True, eq=False)
class Source:
    """An input of the user, with its files."""

    kind: Literal["array", "npy", "tif", "tfrecords"]
    """Kind of input."""
    name: str
    """Its name in messages."""
    paths: tuple[Path, ...] = ()
    """Its files in order of rank; empty for an array."""
    rasters: tuple[RasterFile, ...] = ()
    """The images among its files, in order of rank; several files of one band each can be one image."""
    notes: tuple[str, ...] = ()
    """What was put together or left out, one clause each."""
    array: NDArray[Any] | None = None
    """The array in memory."""


def check_shards(paths: Sequence[Path]) -> None:
    """Check that no shard is missing.

    Args:
        paths: the files of a source, shards or not.

    Raises:
        MissingInputError: a shard is missing; the text names it.
    """
    sets: dict[tuple[Path, str, int], set[int]] = {}
    for path in paths:
        if shard := SHARD.fullmatch(path.name):
            sets.setdefault((path.parent, shard[1], int(shard[3])), set()).add(int(shard[2]))
    for (folder, name, count), numbers in sets.items():
        if missing := sorted(set(range(count)) - numbers):
            first = folder / f"{name}-{missing[0]:05d}-of-{count:05d}"
            raise MissingInputError(
                f"{first}: missing, {len(numbers)} of {count} files are there. Get it too."
            )


def files_below(folder: Path, suffixes: Sequence[str]) -> tuple[Path, ...]:
    """Return the visible files below a folder with one of some suffixes, in any case, each once.

    Args:
        folder: the folder; links are followed.
        suffixes: in lower case.

    Returns:
        The files, sorted by relative POSIX path.

    Raises:
        MissingInputError: a link leads nowhere or in a loop, or a folder cannot be read.
    """
    return list_files(folder).select(suffixes)


def find_source(source: ImageLike, what: str) -> Source:
    """Return kind and files of an input.

    Args:
        source: a file, folder, glob or array.
        what: "images" or "patches", for messages.

    Raises:
        MissingInputError: the input does not exist, holds no readable file or a Sentinel-2 product. Or a
            link in it leads nowhere or in a loop.
    """
    if isinstance(source, np.ndarray):
        return Source("array", f"{what} in memory", array=source)
    if url := url_of(source):
        return _remote_source(url, what)
    path, name = Path(source), str(os.fspath(source))
    if path.is_dir():
        # Pictures in a folder with GeoTIFFs are previews: they would change the ranks, which are the ids.
        below = list_files(path)
        pictures = PICTURE if what == "patches" else ()
        paths = below.select(TIF) or below.select(pictures) or below.select(TFRECORD)
        if not paths and not (hint := _product_hint(path, below.files)):
            paths = below.select(JP2)
        if not paths:
            more = ", .png or .jpg" if what == "patches" else ""
            raise MissingInputError(
                f"{name}: the folder holds no .tif or .tiff{more} file; expected {what} as GeoTIFFs{hint}"
            )
        _refuse_products(path, paths, below.files)
    elif path.exists():
        paths = (path,)
    else:
        paths = match_files(name)
        paths = tuple(p for p in paths if suffix_of(p) in TIF) or paths or _shards_of(path)
        if not paths:
            raise MissingInputError(f"{name}: no such file or folder; expected {what} as {_kinds(what)}")
    if len(paths) > 1:  # one shard alone was named on purpose
        check_shards(paths)
    kind = _kind(paths, name, what)
    rasters, notes = group_band_files(paths) if kind == "tif" else ((), ())
    return Source(kind, name, paths, rasters=rasters, notes=notes)


def _remote_source(url: str, what: str) -> Source:
    """Return the files at a URL: GeoTIFFs under GDAL's paths, other files as local copies."""
    if url.startswith("file://"):
        return find_source(url.removeprefix("file://"), what)
    listed = [u for u in list_urls(url) if not u.rpartition("/")[2].startswith(".")]
    suffixes = [suffix_of(Path(u)) for u in listed]
    chosen = [u for u, suffix in zip(listed, suffixes, strict=True) if suffix in TIF] or [
        u for u, suffix in zip(listed, suffixes, strict=True) if suffix in (*TFRECORD, ".npy")
    ]
    if not chosen:
        raise MissingInputError(f"{url}: it has no file to read; expected {what} as {_kinds(what)}")
    if suffix_of(Path(chosen[0])) in TIF:
        files = tuple(map(raster_path, chosen))
        rasters, notes = group_band_files(files)
        return Source("tif", url, files, rasters=rasters, notes=notes)
    paths = tuple(local_file(u) for u in chosen)
    return Source(_kind(paths, url, what), url, paths)


def _shards_of(path: Path) -> tuple[Path, ...]:
    """Return the shards of a name: `x.tfrecords` stands for `x.tfrecords-00000-of-00002` and so on."""
    shards = sorted(path.parent.glob(f"{glob.escape(path.name)}-?????-of-?????"))
    check_shards(shards)
    return tuple(shards)


def _kinds(what: str) -> str:
    """Return the readable kinds of input, for messages."""
    rasters = "GeoTIFFs, PNGs or JPEGs" if what == "patches" else "GeoTIFFs"
    return f"test_{what}.tfrecords, an .npy array (n, h, w, bands), or a folder or glob of {rasters}"


def _kind(paths: Sequence[Path], name: str, what: str) -> Literal["npy", "tif", "tfrecords"]:
    """Return the kind of files by their common suffix."""
    suffixes = {suffix_of(p) for p in paths}
    if suffixes <= {*TIF, *JP2, *VRT} or (what == "patches" and suffixes <= set(PICTURE)):
        return "tif"
    if suffixes <= set(TFRECORD):
        return "tfrecords"
    if suffixes == {".npy"} and len(paths) == 1:
        return "npy"
    raise MissingInputError(
        f"{name}: cannot read {', '.join(sorted(suffixes))} as {what}; expected {_kinds(what)}"
        f"{_product_hint(paths[0])}"
    )


def _refuse_products(folder: Path, paths: Sequence[Path], files: Sequence[Path]) -> None:
    """Refuse images inside a Sentinel-2 product: `ingest` alone knows its offset, nodata and masks."""
    products = {file.parent for file in files if PRODUCT_FILE.fullmatch(file.name)}
    inside = [path for path in paths if products.intersection(path.parents)] if products else []
    if inside:
        raise MissingInputError(
            f"{folder}: {inside[0].name} is part of a Sentinel-2 product{_product_hint(folder, files)}"
        )


def _product_hint(path: Path, below: Sequence[Path] = ()) -> str:
    """Return how to read the Sentinel-2 products of a path or of the files below it; empty without any."""
    names = [file.name for file in below]
    folder = (path.is_dir() and path.suffix.upper() == ".SAFE") or any(map(PRODUCT_FILE.fullmatch, names))
    zips = path.suffix.lower() == ".zip" or any(name.lower().endswith(".zip") for name in names)
    if not (folder or zips):
        return ""
    return f". For Sentinel-2 products run `retrieve ingest {path} --as images --out places`, then use places"


def load_npy(path: Path) -> NDArray[Any]:
    """Open an `.npy` file without reading it.

    Args:
        path: the file.

    Returns:
        A read-only memory map.

    Raises:
        ArrayError: the file is not an array, is truncated, or holds Python objects, which are not loaded.
    """
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        return array
    except Exception as err:  # a damaged header has many: also OverflowError, SyntaxError, TokenError
        raise ArrayError(f"{path} cannot be opened as an array ({err}). Save it with numpy.save.") from err


def check_stack(array: NDArray[Any], name: str, what: str) -> None:
    """Refuse an array that is not a stack of images.

    Args:
        array: the array.
        name: its name in messages.
        what: "images" or "patches".

    Raises:
        ArrayError: the shape is not (n, h, w, b), or pixels cannot have its dtype.
        MissingInputError: n is 0.
    """
    check_dtype(array.dtype, name)
    if array.ndim != 4 or 0 in array.shape[1:]:
        raise ArrayError(
            f"{name}: shape is {array.shape}; expected (n, height, width, bands). {_advice(array)}"
        )
    if not len(array):
        raise MissingInputError(f"{name}: shape is {array.shape}; it holds no {what}")


def _advice(array: NDArray[Any]) -> str:
    """Return how to give an array the right axes."""
    if array.ndim == 3:
        return "Add the missing axis with array[None] (one image) or array[..., None] (one band)."
    return "Reshape it."


@dataclass(frozen=True)
class SourceUnits:
    """The units of a source, and how they were decided."""

    units: Units
    """The units."""
    stated: bool
    """Whether the user or the file states them."""
    sure: bool
    """Whether the range of values proves them, if they are not stated."""

    def text(self) -> str:
        """Return the units as a text for the note."""
        if self.stated:
            return f"{self.units} (as stated)"
        return self.units if self.sure else f"{self.units} (a guess from the range; --units overrides it)"


def decide_units(samples: Iterable[NDArray[Any]], stated: str | None, name: str) -> SourceUnits:
    """Decide the units of a whole source.

    Args:
        samples: samples of its pixels without nodata; not read if units are stated.
        stated: the user's units, or None.
        name: name of the source for messages.

    Raises:
        UnitsError: the range fits no units, or the stated units are unknown.
    """
    if stated:
        return SourceUnits(check_units(stated), True, True)
    flat = [np.asarray(s).ravel() for s in samples]
    units, sure = guess_units(np.concatenate(flat) if flat else np.zeros(0, np.float32), name)
    return SourceUnits(units, False, sure)


def agree_units(guesses: Sequence[UnitsGuess], names: Sequence[str]) -> list[SourceUnits]:
    """Return the units of each file of a source, by its own sample.

    Other files help where a sample does not decide. A file without known pixels has the units of most files.
    One with fractions up to 255 is `dn` next to other `dn`. A file that may be reflectance or `scaled` is
    reflectance, unless another file is certainly `scaled`.

    Args:
        guesses: one per file.
        names: its name for messages.

    Raises:
        UnitsError: a file fits several units alike; names it.
    """
    known = Counter(g.fitting[0] for g in guesses if g.fitting and not g.ambiguous)
    scaled = next((n for g, n in zip(guesses, names, strict=True) if g.fitting == ("scaled",)), None)
    return [_agreed(g, name, known, scaled) for g, name in zip(guesses, names, strict=True)]


def _agreed(guess: UnitsGuess, name: str, known: Counter[Units], scaled: str | None) -> SourceUnits:
    """Return the units of one file, given the number of files by units, and a file that is `scaled`."""
    if not guess.fitting:
        return SourceUnits(known.most_common(1)[0][0] if known else "reflectance", False, False)
    if scaled and guess.fitting == ("reflectance", "scaled"):
        raise UnitsError(
            f"{name}: values from {guess.low:g} to {guess.high:g} fit reflectance and scaled alike, and "
            f"{scaled} is scaled. Give files of one kind at a time, and state their units with --units."
        )
    if guess.ambiguous and known[guess.fitting[0]]:
        return SourceUnits(guess.fitting[0], False, False)
    return SourceUnits(*guess.settle(name)[:1], False, guess.sure)


def spread_indices(count: int, samples: int = SAMPLES) -> list[int]:
    """Return up to `samples` numbers below `count`, evenly spread, with the first and the last."""
    return sorted({int(i) for i in np.linspace(0, count - 1, min(count, samples)).round()})


def check_range(pixels: NDArray[Any], units: Units, nodata: float | None, name: str, first: int = 0) -> None:
    """Refuse pixels that contradict the units of their source; a few outliers, such as glint, do not.

    Args:
        pixels: (..., y, x, b); each image of a stack is checked by itself.
        units: the units of the source.
        nodata: its tag; this value is always accepted.
        name: name of the pixels for messages; the number of an image in a stack follows it.
        first: number of the first image of a stack.

    Raises:
        UnitsError: more than 1 % of an image's values are outside the range of the units.
    """
    if pixels.ndim == 4:
        # Image by image: one that has other units than its stack is a small share of the stack.
        for row, image in enumerate(pixels) if _may_contradict(pixels, units) else ():
            check_range(image, units, nodata, f"{name} {first + row}")
        return
    if not _may_contradict(pixels, units):
        return
    values = as_comparable(pixels) if pixels.dtype.kind == "f" else pixels.astype(np.float64)
    if units == "dn":
        known = values[np.isfinite(values) & (values != 0) & (values != nodata)]
        # Whole numbers this small are dark water.
        if known.size and np.quantile(known, 0.99) <= REFLECTANCE_TOP and (known != np.rint(known)).any():
            raise UnitsError(
                f"{name}: values up to {float(known.max()):g} look like reflectance; expected units 'dn'. "
                f"Give it apart from the others, or state its units with --units."
            )
        return
    low, high = LIMITS[units]
    bad = (values < low) | (values > high)
    if nodata is not None and bad.any():
        bad &= pixels != nodata
    if bad.mean() > MAX_OUTLIERS:
        raise UnitsError(
            f"{name}: {int(bad.sum())} values (e.g. {float(pixels[bad][0]):g}) are outside the range of "
            f"units {units!r}; expected {low:g} to {high:g}. State the right units with --units."
        )


def _may_contradict(pixels: NDArray[Any], units: Units) -> bool:
    """Return whether pixels must be checked value by value; False in the common case, and fast."""
    if not pixels.size or (pixels.dtype.kind in "ui" and units == "dn"):
        return False
    if units == "byte" and pixels.dtype == np.uint8:
        return False
    if units == "dn":
        coarse = as_comparable(pixels[..., ::8, ::8, :])
        middle = np.median(coarse.reshape(len(coarse) if coarse.ndim == 4 else 1, -1), axis=1)
        return not (middle > REFLECTANCE_TOP).all()
    smallest, largest = min_max(pixels)
    low, high = LIMITS[units]
    return not (low <= smallest and largest <= high)  # with a NaN both are false: each value is checked
