"""Whatever is asked about: patches in one array, or chips of any size, bands and units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfrecords.errors import ArrayError
from tfrecords.grid import PATCH_PX
from tfrecords.read.images import checked_pixels, rasters_as_images, rows_as_images
from tfrecords.read.patches import check_values, patches_of_rasters, read_patches, same_tag
from tfrecords.read.rasters import Raster, describe_raster
from tfrecords.read.sources import ImageLike, Source, check_stack, find, load_npy
from tfrecords.schema import Chips, Patches, band_names


def read_queries(
    source: ImageLike, *, bands: Sequence[str] | None = None, units: str | None = None
) -> Patches | Chips:
    """Open what is asked about.

    Args:
        source: what `read_patches` opens; besides, an `.npy` file or array (n, h, w, b) and GeoTIFF,
            PNG or JPEG chips of any size from 64 x 64 up, each with bands, dtype and nodata of its own.
            A PNG or JPEG of three bands is B04 B03 B02, of one band `unknown`.
        bands: names of the bands, the same for all; else the file's, else by their count.
        units: "dn", "reflectance", "scaled" or "byte"; else told from dtype and range, once for all
            chips of a dtype.

    Returns:
        Patches where all are 64 x 64 and alike in bands, dtype and nodata; else chips, each checked when
        its turn comes.

    Raises:
        RetrieveError: as `read_patches`; a chip may differ from the others, but not be under 64 pixels.
    """
    found = find(source, "patches")
    if found.kind == "tif":
        return _of_rasters(found, bands, units)
    if found.kind == "tfrecords":
        return read_patches(source, bands=bands, units=units)
    array = found.array if found.array is not None else load_npy(found.paths[0])
    check_stack(array, found.name, "patches")
    if array.shape[1:3] == (PATCH_PX, PATCH_PX):
        return read_patches(source, bands=bands, units=units)
    return _of_array(found, array, bands, units)


def _check_size(height: int, width: int, name: str) -> None:
    """Refuse what no window fits in."""
    if min(height, width) < PATCH_PX:
        raise ArrayError(
            f"{name} has {height} x {width} pixels (rows x columns); expected a chip of at least "
            f"{PATCH_PX} x {PATCH_PX}: cut a larger one around it"
        )


def _of_array(source: Source, array: NDArray[Any], bands: Sequence[str] | None, units: str | None) -> Chips:
    """Chips are the rows of an array."""
    height, width = array.shape[1:3]
    _check_size(height, width, source.name)
    names, taken, read = rows_as_images(source, array, bands, units)
    return Chips(
        np.arange(len(array), dtype=np.int64),
        np.tile(np.array([height, width], np.int64), (len(array), 1)),
        (names,) * len(array),
        lambda row: checked_pixels(read(row), f"{source.name}: chip {row}"),
        paths=tuple(map(str, source.paths)),
        note=f"{source.name}: {len(array)} chips of {height} x {width}, {taken.text()}, {' '.join(names)}",
    )


def _of_rasters(source: Source, bands: Sequence[str] | None, units: str | None) -> Patches | Chips:
    """Patches or chips that are files."""
    rasters = [describe_raster(path) for path in source.paths]
    for raster in rasters:
        _check_size(raster.height, raster.width, str(raster.path))
    names = [band_names(r.count, bands, r.descriptions) for r in rasters]
    if all(_alike(r, rasters[0]) for r in rasters) and len(set(names)) == 1:
        patches = patches_of_rasters(source, rasters, bands, units)
        check_values(patches, source.name)
        return patches
    note, read = rasters_as_images(source, rasters, names, units)
    return Chips(
        np.arange(len(rasters), dtype=np.int64),
        np.array([(r.height, r.width) for r in rasters], np.int64),
        tuple(names),
        lambda rank: checked_pixels(read(rank), str(rasters[rank].path)),
        paths=tuple(raster.path.as_posix() for raster in rasters),
        note=note,
        georeferences=tuple(raster.georeference for raster in rasters),
    )


def _alike(raster: Raster, first: Raster) -> bool:
    """Whether a file can stand in one array of patches with the first one."""
    size = (raster.height, raster.width) == (PATCH_PX, PATCH_PX)
    return size and raster.dtype == first.dtype and same_tag(raster.nodata, first.nodata)
