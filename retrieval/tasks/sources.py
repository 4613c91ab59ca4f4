"""Images with and without labels, from the forms that users have.

Labelled: an `.npz` file, a folder for each class, a CSV of file and class, or points and polygons over
GeoTIFFs (`retrieval.tasks.ground_labels`). Unlabelled: an `.npz` or `.npy`
file, a folder of pictures or GeoTIFFs, or TFRecord series. Larger GeoTIFFs and series are cut into tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ExamplesError
from retrieval.tasks.ground_labels import Ground, cut_labelled
from retrieval.tasks.images import ImageSet, LabelledSet, check_examples, check_same_kind, image_set
from retrieval.tasks.labels import class_rows, read_csv
from tfrecords.errors import ArrayError, BandsError, MissingInputError, UnitsError
from tfrecords.read import read_series
from tfrecords.read.folders import suffix_of, visible
from tfrecords.read.orientation import read_upright
from tfrecords.read.sources import (
    PICTURE,
    TFRECORD,
    TIF,
    check_stack,
    decide_units,
    files_below,
    load_npy,
    spread_indices,
)
from tfrecords.schema import band_names, default_nodata, is_nodata

LABEL_KEYS = ("labels", "label", "y", "classes", "class", "category", "categories", "targets", "target")
"""Names of labels in an `.npz` file, of which one is taken where several keys have the length."""
MAX_TILES = 20_000
"""Most tiles that are cut from GeoTIFFs and series, drawn at random."""
VECTOR = (".geojson", ".json", ".gpkg", ".fgb", ".shp", ".kml", ".gml", ".parquet", ".geoparquet")
"""Endings of vector files; with `ground` any other is tried too."""
Tile = NDArray[Any]
"""(h, w, b) as stored."""


def read_labelled(
    source: str | Path,
    *,
    classes: Sequence[str] | None = None,
    bands: Sequence[str] | None = None,
    units: str | None = None,
    complete: bool = True,
    ground: Ground | None = None,
    note: Callable[[str], None] | None = None,
) -> LabelledSet:
    """Read labelled images.

    Args:
        source: an `.npz` file with images (n, h, w, b) and labels (n,) under any keys; or a folder with a
            folder of pictures for each class. Else a CSV of `Id,Category`, or with `ground` a vector file.
        classes: names of the classes in order; None takes them from the labels, sorted.
        bands: names of the bands; else the file's, else by their number.
        units: units of the pixels; else inferred.
        complete: refuse a class with fewer than two images; validation sets pass False.
        ground: where the labels of a vector file get their images from.
        note: called with remarks on labels that gave no image.

    Raises:
        MissingInputError: the source does not exist or holds no image.
        ExamplesError: a label is missing or unknown, or a class has fewer than two images.
        ArrayError: images differ in size, or hold NaN; an npz holds pickled objects or no images.
        BandsError, UnitsError, DuplicateIdError: see the message.
    """
    path = Path(source)
    if path.is_dir():
        files, labels = _class_folders(path)
        names = [file.relative_to(path).as_posix() for file in files]
        images = _read_files(files, names, str(path), bands, units)
    elif path.suffix.lower() == ".csv":
        files, labels = read_csv(path)
        images = _read_files(files, [file.name for file in files], str(path), bands, units)
    elif path.suffix.lower() == ".npz":
        arrays = read_npz(path)
        images = _of_array(_images_of(arrays, path), str(path), bands, units)
        labels = _labels_of(arrays, len(images), path)
    elif not path.exists():
        raise MissingInputError(f"{path}: no such file or folder. Expected {_LABELLED}.")
    elif ground is not None:
        chips = cut_labelled(path, ground, bands)
        for text in chips.notes if note else ():
            note(text)  # type: ignore[misc]
        labels = chips.labels
        images = _of_array(_stack(chips.pixels, chips.ids, str(path)), str(path), chips.bands, units)
        images = replace(images, ids=tuple(chips.ids))
    elif suffix_of(path) in VECTOR:
        raise ExamplesError(
            f"{path}: vector labels need images. Name the GeoTIFFs with --images, and the class with "
            "--attribute."
        )
    else:
        raise ExamplesError(f"{path}: labels cannot be read from {suffix_of(path)}. Expected {_LABELLED}.")
    rows, known = class_rows(labels, classes, str(path))
    if complete:
        check_examples(rows, known, str(path))
    return LabelledSet(images, rows, known)


_LABELLED = "an .npz file, a folder with one folder for each class, a CSV of Id,Category, or vector labels"


def read_images(
    source: str | Path, *, bands: Sequence[str] | None = None, units: str | None = None
) -> ImageSet:
    """Read images to classify; labels are ignored.

    Args:
        source: an `.npz` or `.npy` file, a folder of pictures or GeoTIFFs of one size, one such file, or a
            CSV of `Id,Category`.
        bands: names of the bands; else the file's, else by their number.
        units: units of the pixels; else inferred.

    Returns:
        The images. Their Ids are the rows of an array; for files the number where all stems are numbers, else
        the stem.

    Raises:
        RetrieveError: like `read_labelled`.
    """
    path = Path(source)
    if path.suffix.lower() == ".npz":
        return _of_array(_images_of(read_npz(path), path), str(path), bands, units)
    if path.suffix.lower() == ".npy" and path.is_file():
        return _of_array(np.asarray(load_npy(path)), str(path), bands, units)
    files = read_csv(path)[0] if path.suffix.lower() == ".csv" else _pictures(path)
    return _read_files(files, file_ids(files), str(path), bands, units)


def read_unlabelled(
    source: str | Path,
    like: ImageSet,
    *,
    bands: Sequence[str] | None = None,
    units: str | None = None,
    seed: int = 0,
) -> ImageSet:
    """Read images without labels, of the same bands, size and form as the labelled ones.

    Args:
        source: any source of `read_images`; also GeoTIFFs of other sizes, and TFRecord series of any dates,
            which are cut into tiles. At most 20,000 tiles are drawn.
        like: the labelled images.
        bands: names of the bands; else the file's, else by their number.
        units: units of the pixels; else inferred.
        seed: of the draw.

    Raises:
        BandsError, ArrayError, UnitsError: the images are of another kind.
    """
    path = Path(source)
    tiles = _tile_source(path, like, bands)
    if tiles is None:
        images = read_images(path, bands=bands, units=units)
    else:
        drawn = _draw(tiles, np.random.default_rng([seed, 11]), MAX_TILES)
        if not drawn:
            size = f"{like.size[0]} x {like.size[1]}"
            raise MissingInputError(f"{path}: no tile of {size} pixels without nodata. Give larger images.")
        pixels = _stack(drawn, [f"tile {row}" for row in range(len(drawn))], str(path))
        images = _of_array(pixels, str(path), like.bands, units)
    check_same_kind(images, like)
    return images


def file_ids(files: Sequence[Path]) -> list[str]:
    """Return the Ids of files: numbers where all stems are numbers, else the stems."""
    stems = [file.stem for file in files]
    return [str(int(stem)) for stem in stems] if all(stem.isdecimal() for stem in stems) else stems


# --- arrays ---------------------------------------------------------------------------------------


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Read the arrays of an `.npz` file; Python objects in it are never loaded.

    Raises:
        MissingInputError: the file does not exist.
        ArrayError: it is damaged, no `.npz`, or holds pickled objects.
    """
    try:
        with path.open("rb") as opened:
            file = np.load(opened, allow_pickle=False)
            if isinstance(file, np.ndarray):
                raise ArrayError(f"{path}: one array. Expected an .npz file: save it with numpy.savez.")
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise MissingInputError(f"{path}: no such file. Expected {_LABELLED}.") from None
    except ArrayError:
        raise
    except Exception as error:
        pickled = "pickle" in str(error) or "Object arrays" in str(error)
        why = "it holds pickled Python objects, which are never loaded" if pickled else f"{error}"
        raise ArrayError(
            f"{path} cannot be read as .npz: {why}. Save numbers and text with numpy.savez."
        ) from error


def _images_of(arrays: dict[str, NDArray[Any]], path: Path) -> NDArray[Any]:
    """Return the one array of shape (n, h, w, b)."""
    stacks = [name for name, array in arrays.items() if array.ndim == 4]
    if len(stacks) != 1:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "nothing"
        raise ArrayError(
            f"{path}: {len(stacks) or 'no'} arrays of shape (n, height, width, bands) in {shapes}. "
            "Expected exactly one."
        )
    return arrays[stacks[0]]


def _labels_of(arrays: dict[str, NDArray[Any]], count: int, path: Path) -> list[Any]:
    """Return the labels: the one array with an entry for each image."""
    flat = {
        name: array.reshape(-1) for name, array in arrays.items() if array.shape in ((count,), (count, 1))
    }
    names = [name for name in flat if name.lower() in LABEL_KEYS] if len(flat) > 1 else list(flat)
    if len(names) != 1:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ExamplesError(
            f"{path}: {'several' if flat else 'no'} keys could be the labels of {count} images: {shapes}. "
            "Expected one array of that length, named labels."
        )
    labels = flat[names[0]]
    if labels.dtype.kind not in "iufbUS":
        raise ExamplesError(f"{path}: labels of dtype {labels.dtype}. Expected numbers or names.")
    if labels.dtype.kind == "S":
        try:
            labels = np.char.decode(labels, "utf-8")
        except UnicodeDecodeError as error:
            raise ExamplesError(f"{path}: labels are no UTF-8 ({error}). Save them as text.") from error
    values: list[Any] = labels.tolist()
    return values


def _of_array(array: NDArray[Any], name: str, bands: Sequence[str] | None, units: str | None) -> ImageSet:
    """Return the rows of an array as images."""
    if array.dtype.kind in "iu" and array.dtype.itemsize > 2 and array.size:
        if array.min() < 0 or array.max() > 65535:
            raise ArrayError(f"{name}: values from {array.min()} to {array.max()}. Expected 0 to 65535.")
        array = array.astype(np.uint8 if array.max() <= 255 else np.uint16)
    check_stack(array, name, "images")
    names = band_names(array.shape[-1], bands)
    bad = np.flatnonzero(~np.isfinite(array).all((1, 2, 3)))
    if bad.size:
        raise ArrayError(
            f"{name}: image {bad[0]} holds NaN or infinity, {len(bad)} in all do. Remove these images or "
            "replace the values."
        )
    samples = (array[i] for i in spread_indices(len(array)))
    decided = (
        "byte" if units is None and array.dtype == np.uint8 else decide_units(samples, units, name).units
    )
    return image_set(array, decided, names, map(str, range(len(array))), name)


# --- files ----------------------------------------------------------------------------------------


def _class_folders(path: Path) -> tuple[list[Path], list[str]]:
    """Return the pictures of all class folders with the class of each.

    Raises:
        ExamplesError: a class folder holds no picture.
        MissingInputError: there is no class folder.
    """
    folders = sorted(p for p in path.iterdir() if p.is_dir() and visible(p, path))
    if not folders:
        raise MissingInputError(f"{path}: no folder in it. Expected {_LABELLED}.")
    files: list[Path] = []
    labels: list[str] = []
    for folder in folders:
        found = files_below(folder, (*TIF, *PICTURE))
        if not found:
            raise ExamplesError(
                f"{folder}: no image of class {folder.name}. Add images, or remove the folder."
            )
        files += found
        labels += [folder.name] * len(found)
    return files, labels


def _pictures(path: Path) -> tuple[Path, ...]:
    """Return the GeoTIFFs of a folder, else its PNG and JPEG files, or one such file."""
    if path.is_dir():
        files = files_below(path, TIF) or files_below(path, PICTURE)
        if not files:
            raise MissingInputError(f"{path}: no image in it. Expected .tif, .png or .jpg files.")
        return files
    if not path.exists():
        raise MissingInputError(
            f"{path}: no such file or folder. Expected images as .npz, or a folder of them."
        )
    if suffix_of(path) not in (*TIF, *PICTURE):
        raise ArrayError(f"{path}: {path.suffix} is no image. Expected .npz, .npy, .tif, .png or .jpg.")
    return (path,)


def _read_files(
    files: Sequence[Path], ids: Sequence[str], name: str, bands: Sequence[str] | None, units: str | None
) -> ImageSet:
    """Read files of one size, dtype and set of bands."""
    tiles: list[Tile] = []
    names: tuple[str, ...] = ()
    for file in files:
        pixels, raster = read_upright(file)
        found = band_names(raster.count, bands, raster.descriptions)
        if names and found != names:
            raise BandsError(
                f"{file}: bands {' '.join(found)}; {files[0]} has {' '.join(names)}. Expected the same bands "
                "in all images."
            )
        names = found
        tiles.append(pixels)
    stack = _stack(tiles, [str(file) for file in files], name)
    if stack.dtype.kind == "f":
        for tile, file in zip(stack, files, strict=True):
            if not np.isfinite(tile).all():
                raise ArrayError(f"{file} holds NaN or infinity. Remove this image or replace the values.")
    samples = (stack[i] for i in spread_indices(len(stack)))
    decided = (
        "byte" if units is None and stack.dtype == np.uint8 else decide_units(samples, units, name).units
    )
    return image_set(stack, decided, names, ids, name)


def _stack(tiles: Sequence[Tile], names: Sequence[str], source: str) -> NDArray[Any]:
    """Return tiles as one array.

    Raises:
        ArrayError: they differ in size or number of bands.
        UnitsError: they differ in dtype.
    """
    for tile, name in zip(tiles, names, strict=True):
        if tile.shape != tiles[0].shape:
            raise ArrayError(
                f"{source}: {name} has {_shape(tile)}; {names[0]} has {_shape(tiles[0])}. Expected images "
                "of one size. Cut or resample them."
            )
        if tile.dtype != tiles[0].dtype:
            raise UnitsError(
                f"{source}: {name} holds {tile.dtype}; {names[0]} holds {tiles[0].dtype}. Expected one dtype."
            )
    return np.stack(tiles)


def _shape(tile: Tile) -> str:
    return f"{tile.shape[0]} x {tile.shape[1]} pixels in {tile.shape[2]} bands"


# --- tiles of large images ------------------------------------------------------------------------


def _tile_source(path: Path, like: ImageSet, bands: Sequence[str] | None) -> Iterator[Tile] | None:
    """Return the tiles of GeoTIFFs and series; None where the source holds images of one size."""
    is_folder = path.is_dir()
    tifs = (
        files_below(path, TIF) if is_folder else (path,) if suffix_of(path) in TIF and path.exists() else ()
    )
    if tifs:
        return _tiles_of_rasters(tifs, like, bands)
    if (is_folder and files_below(path, TFRECORD)) or suffix_of(path) in TFRECORD:
        return _tiles_of_series(path, like)
    return None


def _tiles_of_rasters(files: Iterable[Path], like: ImageSet, bands: Sequence[str] | None) -> Iterator[Tile]:
    for file in files:
        pixels, raster = read_upright(file)
        names = band_names(raster.count, bands, raster.descriptions)
        chosen = _chosen(pixels, names, like.bands, str(file))
        yield from _tiles(chosen, like.size, raster.nodata)


def _tiles_of_series(path: Path, like: ImageSet) -> Iterator[Tile]:
    for series in read_series(path):
        for date in series.pixels:
            chosen = _chosen(date, series.bands, like.bands, f"{path}: place {series.place}")
            tag = series.nodata if series.nodata is not None else default_nodata(series.units)
            yield from _tiles(chosen, like.size, tag)


def _chosen(pixels: Tile, names: Sequence[str], wanted: Sequence[str], where: str) -> Tile:
    """Return the wanted bands of an image, in their order."""
    missing = [band for band in wanted if band not in names]
    if missing:
        raise BandsError(
            f"{where}: bands {' '.join(names)}; expected {' '.join(missing)} too. Give images "
            "with these bands, or name the bands with --bands."
        )
    return pixels[..., [list(names).index(band) for band in wanted]]


def _tiles(pixels: Tile, size: tuple[int, int], nodata: float | None) -> Iterator[Tile]:
    """Yield disjoint tiles without nodata."""
    for y in range(0, pixels.shape[0] - size[0] + 1, size[0]):
        for x in range(0, pixels.shape[1] - size[1] + 1, size[1]):
            tile = pixels[y : y + size[0], x : x + size[1]]
            if not is_nodata(tile, nodata).any():
                yield tile


def _draw(tiles: Iterator[Tile], rng: np.random.Generator, limit: int) -> list[Tile]:
    """Draw up to `limit` tiles, each with the same chance, in one pass (reservoir sampling).

    Source: J. S. Vitter, Random sampling with a reservoir, 1985.
    """
    drawn: list[Tile] = []
    for number, tile in enumerate(tiles):
        if number < limit:
            drawn.append(np.array(tile))
        elif (place := int(rng.integers(number + 1))) < limit:
            drawn[place] = np.array(tile)
    return drawn
