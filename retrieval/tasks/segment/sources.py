"""Images and masks as files: what their bands mean, and windows of their pixels.

Any raster that GDAL reads is an image: GeoTIFF, COG, VRT, PNG, JPEG. Alpha is no band: alpha 0 is nodata. A
pixel is nodata too where all its bands equal the file's nodata tag. Units are decided once for all files.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import LabelsError
from retrieval.labels.classes import Classes, read_classes
from retrieval.labels.dataset import misfit, unnamed_classes
from retrieval.labels.files import find_files, find_pairs
from retrieval.labels.masks import alpha_bands, classes_of, kind_of, open_raster, read_mask, shape_of
from retrieval.tasks.segment.scenes import DTYPE, Form, Scene, SceneSet
from tfrecords.errors import BandsError, UnitsError, listed
from tfrecords.read import Raster, describe_raster
from tfrecords.read.images import units_of_rasters
from tfrecords.schema import band_names, check_finite, check_units, default_nodata, is_nodata, to_dn

_READ_PX = 2**22
"""Pixels of a strip in which a whole file is read."""


@dataclass(frozen=True, eq=False)
class ImageFile:
    """An image: the meaning of its bands and pixels."""

    path: Path
    height: int
    width: int
    bands: tuple[str, ...]
    """Names of the bands without alpha."""
    dtype: np.dtype[Any]
    alpha: int | None
    """Number of the alpha band, from 1; None without."""
    raster: Raster | None
    """Tags of the file; None for one with alpha."""
    units: str
    """Units of the pixels; "value" for other numbers."""

    @property
    def form(self) -> Form:
        """Form of the pixels when they are read."""
        return {"byte": "byte", "value": "value"}.get(self.units, "dn")  # type: ignore[return-value]

    def columns(self, wanted: Sequence[str], owner: str) -> list[int]:
        """Return the places of some bands, from 0.

        Raises:
            BandsError: the file lacks one.
        """
        missing = [band for band in wanted if band not in self.bands]
        if missing:
            raise BandsError(
                f"{self.path}: bands {' '.join(self.bands)}; {owner} also needs {' '.join(missing)}. Name "
                "the bands with --bands, or give images with these bands."
            )
        return [self.bands.index(band) for band in wanted]

    def read(
        self,
        dataset: Any,
        columns: Sequence[int],
        rows: tuple[int, int],
        across: tuple[int, int] | None = None,
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Read rows of the open file.

        Args:
            dataset: the file, opened by `open_raster`.
            columns: bands, from 0.
            rows: first row, and the one after the last.
            across: first column of pixels, and the one after the last; None for whole rows.

        Returns:
            Pixels (y, x, b) in the file's form, and (y, x) where they hold data.

        Raises:
            ArrayError: a value is NaN or infinite, and not the nodata tag.
        """
        window = (rows, across or (0, self.width))
        numbers = [n for n in range(1, dataset.count + 1) if n != self.alpha]
        stored = np.moveaxis(dataset.read(numbers, window=window), 0, -1)
        if self.alpha is not None:
            known = dataset.read(self.alpha, window=window) > 0
            tag = dataset.nodata
        else:
            assert self.raster is not None
            stored, tag = self.raster.values(stored), self.raster.nodata
            known = np.ones(stored.shape[:2], bool)
        tag = default_nodata(self.units) if tag is None and self.units != "value" else tag  # type: ignore[arg-type]
        known &= ~is_nodata(stored, tag)
        check_finite(stored[known], tag, str(self.path))
        chosen = np.where(known[..., None], stored[..., list(columns)], 0)
        return _in_form(chosen, self.units), known


def _in_form(pixels: NDArray[Any], units: str) -> NDArray[Any]:
    """Return pixels of some units as bytes, digital numbers or values."""
    if units == "byte":
        return pixels if pixels.dtype == np.uint8 else np.rint(np.clip(pixels, 0, 255)).astype(np.uint8)
    if units == "value":
        return pixels.astype(np.float32)
    if units == "dn" and pixels.dtype == np.uint16:
        return pixels
    return np.rint(np.clip(to_dn(pixels, units, None), 0, 65535)).astype(np.uint16)  # type: ignore[arg-type]


def open_images(
    files: Mapping[str, str | Path], bands: Sequence[str] | None = None, units: str | None = None
) -> dict[str, ImageFile]:
    """Describe images, and decide their units once for all.

    Args:
        files: the images by name.
        bands: names of the bands without alpha; else each file's, else by their number.
        units: units of the pixels; else inferred; "value" where nothing fits.

    Raises:
        BandsError: bands have no names.
        UnitsError: images of several forms.
        LabelsError, ArrayError: a file cannot be read.
    """
    described: dict[str, ImageFile] = {}
    for name, path in ((name, Path(file)) for name, file in files.items()):
        with open_raster(path) as dataset:
            alpha = alpha_bands(dataset)
            size, dtype = (dataset.height, dataset.width), np.dtype(dataset.dtypes[0])
            count = dataset.count - len(alpha)
        raster = None if alpha else describe_raster(path)
        names = band_names(count, bands, (None,) * count if raster is None else raster.descriptions)
        described[name] = ImageFile(path, *size, names, dtype, alpha[0] if alpha else None, raster, "")
    decided = _units(described, units)
    images = {name: replace(image, units=decided[name]) for name, image in described.items()}
    forms = Counter(image.form for image in images.values())
    if len(forms) > 1:
        first = {image.form: image.path for image in images.values()}
        both = " and ".join(f"{path} ({form})" for form, path in list(first.items())[:2])
        raise UnitsError(f"{both}: images of several kinds. Expected one. State them with --units.")
    return images


def _units(images: Mapping[str, ImageFile], units: str | None) -> dict[str, str]:
    """Return the units of each image by name."""
    if units is not None:
        return dict.fromkeys(images, check_units(units))
    decided = {n: "byte" if i.dtype == np.uint8 else "dn" for n, i in images.items() if i.raster is None}
    rasters = {n: i.raster for n, i in images.items() if i.raster is not None}
    if any(raster.dtype.kind == "i" for raster in rasters.values()):
        return decided | dict.fromkeys(rasters, "value")
    try:
        found = units_of_rasters(list(rasters.values()), None) if rasters else []
    except UnitsError:
        if any(raster.dtype.kind != "f" for raster in rasters.values()):
            raise
        return decided | dict.fromkeys(rasters, "value")
    return decided | {name: guess.units for name, guess in zip(rasters, found, strict=True)}


def read_scenes(
    images: str | Path,
    masks: str | Path,
    *,
    classes: str | Path | Classes | None = None,
    zoom: int | None = None,
    bands: Sequence[str] | None = None,
    units: str | None = None,
    weights: str | Path | None = None,
    like: SceneSet | None = None,
) -> SceneSet:
    """Read images with masks of the same names; those without a partner are left out, with a note.

    Args:
        images: folder of images of any size, or one image.
        masks: folder of masks, perhaps the same, or one mask.
        classes: the classes, or their file; None takes the names from the masks, if they have any.
        zoom: only the XYZ tiles of this zoom.
        bands: names of the bands; else the files', else by their number.
        units: units of the pixels; else inferred.
        weights: CSV of `name,weight`: how often an image is drawn, relative to the others.
        like: scenes whose bands are taken; None takes the bands of the first image.

    Raises:
        MissingInputError: no image, no mask, or none of one name.
        LabelsError: masks of another size, grid or kind than expected, or an unknown class.
        BandsError, UnitsError, ArrayError: images of several kinds, or one that cannot be read.
    """
    pairs = find_pairs(images, masks, zoom)
    opened = open_images({name: pairs.images[name] for name in pairs.names}, bands, units)
    first = next(iter(opened.values()))
    wanted = like.bands if like else first.bands
    _check_kinds([pairs.masks[name] for name in pairs.names])
    known = read_classes(classes) if isinstance(classes, str | Path) else classes
    known = known or classes_of(pairs.masks[pairs.names[0]])
    chance = _tile_weights(Path(weights), pairs.names) if weights else {}
    scenes = []
    for name in pairs.names:
        mask = _read_pair_mask(pairs.images[name], pairs.masks[name], known)
        image = opened[name]
        if len(image.bands) != len(first.bands):
            raise BandsError(
                f"{image.path}: {len(image.bands)} bands; {first.path} has {len(first.bands)}, alpha not "
                "counted. Expected the same bands in all images."
            )
        pixels, valid = read_whole(image, wanted, str(first.path))
        scenes.append(Scene(name, pixels[None], mask, None if valid.all() else valid, chance.get(name, 1.0)))
    if known is None:
        total = sum((np.bincount(s.mask.ravel(), minlength=256) for s in scenes), np.zeros(256, np.int64))
        known = unnamed_classes(total)
    notes = [
        f"{what} without {other}, left out: {listed(missing, 4)}"
        for what, other, missing in (
            ("images", "mask", pairs.without_mask),
            ("masks", "image", pairs.without_image),
        )
        if missing
    ]
    return SceneSet(tuple(scenes), first.form, tuple(wanted), known, str(images), tuple(notes))


def read_unlabelled(
    images: str | Path,
    like: SceneSet,
    *,
    zoom: int | None = None,
    bands: Sequence[str] | None = None,
    units: str | None = None,
) -> SceneSet:
    """Read images without masks, in the bands of labelled scenes; every mask is 0.

    Args:
        images: folder of images of any size, or one image.
        like: the labelled scenes.
        zoom: only the XYZ tiles of this zoom.
        bands: names of the bands; else the files', else by their number.
        units: units of the pixels; else inferred.

    Raises:
        MissingInputError: no image.
        BandsError, UnitsError, ArrayError: images of another kind, or one that cannot be read.
    """
    opened = open_images(find_files(images, "image", zoom), bands, units)
    scenes = []
    for name, image in opened.items():
        pixels, valid = read_whole(image, like.bands, like.name)
        mask = np.zeros(valid.shape, np.uint8)
        scenes.append(Scene(name, pixels[None], mask, None if valid.all() else valid))
    form = next(iter(opened.values())).form
    return SceneSet(tuple(scenes), form, like.bands, like.classes, str(images))


def read_whole(image: ImageFile, wanted: Sequence[str], owner: str) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Read an image: pixels (y, x, b) in its form, and (y, x) where they hold data."""
    columns = image.columns(wanted, owner)
    pixels = np.empty((image.height, image.width, len(columns)), DTYPE[image.form])
    known = np.empty((image.height, image.width), bool)
    rows = max(1, _READ_PX // image.width)
    with open_raster(image.path) as dataset:
        for top in range(0, image.height, rows):
            bottom = min(top + rows, image.height)
            pixels[top:bottom], known[top:bottom] = image.read(dataset, columns, (top, bottom))
    return pixels, known


def _read_pair_mask(image: Path, mask: Path, classes: Classes | None) -> NDArray[np.uint8]:
    """Read a mask that lies on its image's pixels."""
    if problem := misfit(shape_of(image), shape_of(mask)):
        raise LabelsError(
            f"{mask}: {problem}. Expected a mask on the pixels of {image}. Make it with `retrieve labels "
            "rasterize --like`."
        )
    return read_mask(mask, classes)


def _check_kinds(masks: Sequence[Path]) -> None:
    """Refuse masks of colours next to masks of class indices."""
    first: dict[bool, Path] = {}
    for path in masks:
        with open_raster(path) as dataset:
            first.setdefault(kind_of(dataset) == "colours", path)
    if len(first) > 1:
        raise LabelsError(
            f"{first[True]} holds colours and {first[False]} class indices. Expected masks of one kind. "
            "Convert one kind with `retrieval.labels.recode`."
        )


def _tile_weights(path: Path, names: Sequence[str]) -> dict[str, float]:
    """Read how often each image is drawn, relative to the others.

    Raises:
        LabelsError: no such file, other columns, a weight below 0, or an unknown name.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [(row["name"], float(row["weight"])) for row in csv.DictReader(file)]
    except FileNotFoundError:
        raise LabelsError(f"{path}: no such file. Expected a CSV of name,weight.") from None
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise LabelsError(f"{path}: not a CSV of name,weight ({error}). Correct that line.") from None
    for name, weight in rows:
        if name not in names:
            raise LabelsError(
                f"{path}: name {name!r} is no image with a mask. Expected names such as {names[0]!r}."
            )
        if not 0 <= weight < math.inf:
            raise LabelsError(f"{path}: weight {weight:g} of {name}. Expected a number from 0 on.")
    return dict(rows)
