"""Read queries: patches in one array, or chips of any size, bands and units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfrecords.errors import ArrayError
from tfrecords.grid import PATCH_PX
from tfrecords.read.images import checked_pixels, rasters_as_images, rows_as_images, units_of_rasters
from tfrecords.read.orientation import describe_upright
from tfrecords.read.patches import check_values, patches_of_rasters, read_patches, same_tag
from tfrecords.read.rasters import Raster, names_of_bands
from tfrecords.read.sources import ImageLike, Source, check_stack, find_source, load_npy
from tfrecords.schema import Chips, Patches


def read_queries(
    source: ImageLike, *, bands: Sequence[str] | None = None, units: str | None = None
) -> Patches | Chips:
    """Open query patches or chips.

    Args:
        source: any source of `read_patches`; also an `.npy` file or array (n, h, w, b). GeoTIFF, PNG or
            JPEG chips have any size from 64 x 64 and may differ in bands, dtype and nodata. A PNG or JPEG
            of three bands is B04 B03 B02, of one band `unknown`.
        bands: names of the bands, the same for all; else the file's, else by number of bands.
        units: "dn", "reflectance", "scaled" or "byte"; else inferred from dtype and range, for each
            file by itself.

    Returns:
        Patches if all are 64 x 64 and equal in bands, units, dtype and nodata; else chips, each checked when
        it is read.

    Raises:
        RetrieveError: like `read_patches`; chips may differ, but need at least 64 pixels each way.
    """
    opened = find_source(source, "patches")
    if opened.kind == "tif":
        return _of_rasters(opened, bands, units)
    if opened.kind == "tfrecords":
        return read_patches(source, bands=bands, units=units)
    array = opened.array if opened.array is not None else load_npy(opened.paths[0])
    check_stack(array, opened.name, "patches")
    if array.shape[1:3] == (PATCH_PX, PATCH_PX):
        return read_patches(source, bands=bands, units=units)
    return _of_array(opened, array, bands, units)


def _check_size(height: int, width: int, name: str) -> None:
    """Refuse a chip in which no window fits."""
    if min(height, width) < PATCH_PX:
        raise ArrayError(
            f"{name} has {height} x {width} pixels (rows x columns); expected a chip of at least "
            f"{PATCH_PX} x {PATCH_PX}. Cut a larger chip."
        )


def _of_array(source: Source, array: NDArray[Any], bands: Sequence[str] | None, units: str | None) -> Chips:
    """Return the rows of an array as chips."""
    height, width = array.shape[1:3]
    _check_size(height, width, source.name)
    names, decided, read = rows_as_images(source, array, bands, units)
    return Chips(
        np.arange(len(array), dtype=np.int64),
        np.tile(np.array([height, width], np.int64), (len(array), 1)),
        (names,) * len(array),
        lambda row: checked_pixels(read(row), f"{source.name}: chip {row}"),
        paths=tuple(map(str, source.paths)),
        note=f"{source.name}: {len(array)} chips of {height} x {width}, {decided.text()}, {' '.join(names)}",
    )


def _of_rasters(source: Source, bands: Sequence[str] | None, units: str | None) -> Patches | Chips:
    """Return files as patches or chips."""
    rasters = [describe_upright(file) for file in source.rasters]
    for raster in rasters:
        _check_size(raster.height, raster.width, str(raster.path))
    names = [names_of_bands(r, bands) for r in rasters]
    decided = units_of_rasters(rasters, units)
    alike = len(set(names)) == len({d.units for d in decided}) == 1
    if alike and all(_fits_array(r, rasters[0]) for r in rasters):
        patches = patches_of_rasters(source, rasters, bands, decided)
        check_values(patches, source.name)
        return patches
    note, read = rasters_as_images(source, rasters, names, decided)
    return Chips(
        np.arange(len(rasters), dtype=np.int64),
        np.array([(r.height, r.width) for r in rasters], np.int64),
        tuple(names),
        lambda rank: checked_pixels(read(rank), str(rasters[rank].path)),
        paths=tuple(raster.path.as_posix() for raster in rasters),
        note=note,
        georeferences=tuple(raster.georeference for raster in rasters),
    )


def _fits_array(raster: Raster, first: Raster) -> bool:
    """Return whether a file fits into one array of patches with the first file."""
    size = (raster.height, raster.width) == (PATCH_PX, PATCH_PX)
    return size and raster.dtype == first.dtype and same_tag(raster.nodata, first.nodata)
