"""Read query patches as one array."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfrecords.errors import ArrayError, BandsError, DuplicateIdError, UnitsError
from tfrecords.grid import PATCH_PX
from tfrecords.read.images import rasters_note, units_of_rasters, units_of_records
from tfrecords.read.lazy_pixels import File, LazyPixels
from tfrecords.read.orientation import describe_upright, read_upright
from tfrecords.read.rasters import Raster, names_of_bands
from tfrecords.read.records import find_bytes, raw_and_fields, record_offsets
from tfrecords.read.sources import (
    ImageLike,
    Source,
    SourceUnits,
    check_range,
    check_stack,
    decide_units,
    find_source,
    load_npy,
    spread_indices,
)
from tfrecords.schema import (
    PatchBytes,
    Patches,
    band_names,
    check_finite,
    default_nodata,
    patch_bytes,
    patch_of,
)

BLOCK = 2048
"""Patches checked at a time, about 0.1 GB."""
SAMPLES = 512
"""Patches that decide the units, spread over the source."""


def read_patches(
    source: ImageLike, *, bands: Sequence[str] | None = None, units: str | None = None
) -> Patches:
    """Open patches.

    Args:
        source: an array (n, 64, 64, b) or `.npy` file; `test_patches.tfrecords`, the challenge's or ours;
            or GeoTIFF, PNG or JPEG chips: one, a folder or a glob. Pixels of records stay in the file. The
            ids of chips are their ranks, as in `read_images`; in a folder with GeoTIFFs only these count.
        bands: names of the bands; else the file's, else by number of bands.
        units: "dn", "reflectance", "scaled" or "byte"; else the record's, else inferred from dtype and
            range, once for all patches.

    Returns:
        The patches, all checked; `note` states units and bands.

    Raises:
        MissingInputError: there is nothing to read.
        ArrayError: patches are not 64 x 64, have different dtypes, or hold NaN or infinity.
        BandsError: bands have no names, the number of names is wrong, or patches differ in bands.
        UnitsError: the range fits no units or not the stated ones, or patches differ in units.
        RecordError: a TFRecord is truncated, corrupt or malformed; names file and record.
        DuplicateIdError: two records have the same id.
    """
    opened = find_source(source, "patches")
    if opened.kind == "tif":
        rasters = [describe_upright(file) for file in opened.rasters]
        patches = patches_of_rasters(opened, rasters, bands, units_of_rasters(rasters, units))
    elif opened.kind == "tfrecords":
        patches = _from_records(opened, bands, units)
    else:
        array = opened.array if opened.array is not None else load_npy(opened.paths[0])
        patches = _from_array(opened, array, bands, units)
    check_values(patches, opened.name)
    return patches


def _check_size(height: int, width: int, name: str) -> None:
    """Refuse other sizes than a patch's."""
    if (height, width) != (PATCH_PX, PATCH_PX):
        raise ArrayError(
            f"{name} has {height} x {width} pixels (rows x columns); expected {PATCH_PX} x {PATCH_PX}. "
            "Cut it to that size."
        )


def check_values(patches: Patches, name: str) -> None:
    """Refuse NaN, infinity and values that contradict the units, block by block."""
    if patches.pixels.dtype.kind in "ui" and patches.units == "dn":
        return
    for start in range(0, len(patches), BLOCK):
        block = np.asarray(patches.pixels[start : start + BLOCK])
        where = f"{name}: patches {start} to {start + len(block) - 1}"
        check_finite(block, patches.nodata, where)
        check_range(block, patches.units, patches.nodata, f"{name}: patch", start)


def _from_array(
    source: Source, array: NDArray[Any], bands: Sequence[str] | None, units: str | None
) -> Patches:
    """Return the rows of an array as patches."""
    check_stack(array, source.name, "patches")
    _check_size(array.shape[1], array.shape[2], source.name)
    names = band_names(array.shape[-1], bands)
    decided = decide_units((array[i] for i in spread_indices(len(array), SAMPLES)), units, source.name)
    return Patches(
        np.arange(len(array), dtype=np.int64),
        array,
        decided.units,
        names,
        default_nodata(decided.units),
        paths=tuple(map(str, source.paths)),
        note=f"{source.name}: {len(array)} patches, {decided.text()}, {' '.join(names)}",
        clipped=decided.units == "scaled",
    )


def patches_of_rasters(
    source: Source, rasters: Sequence[Raster], bands: Sequence[str] | None, decided: Sequence[SourceUnits]
) -> Patches:
    """Return files of given units as patches, without checking values; raises like `read_patches`."""
    for raster in rasters:
        _check_size(raster.height, raster.width, str(raster.path))
    names = [names_of_bands(r, bands) for r in rasters]
    first = rasters[0]
    for raster, raster_names in zip(rasters, names, strict=True):
        if raster_names != names[0]:
            raise BandsError(
                f"{raster.path} has bands {' '.join(raster_names)}; {first.path} has {' '.join(names[0])}. "
                "Query them in two runs."
            )
        if raster.dtype != first.dtype or not same_tag(raster.nodata, first.nodata):
            raise ArrayError(
                f"{raster.path} has dtype {raster.dtype} and nodata {raster.nodata}; {first.path} has "
                f"{first.dtype} and {first.nodata}. Query them in two runs."
            )
    used = decided[0].units
    for raster, own in zip(rasters, decided, strict=True):
        if own.units != used:
            raise UnitsError(
                f"{raster.path} looks like {own.units}; {first.path} like {used}. Query them in two runs, or "
                "state the units with --units."
            )
    return Patches(
        np.arange(len(rasters), dtype=np.int64),
        np.stack([read_upright(raster.file)[0] for raster in rasters]),
        used,
        names[0],
        default_nodata(used) if first.nodata is None else first.nodata,
        paths=tuple(raster.path.as_posix() for raster in rasters),
        note=rasters_note(rasters, names, decided, source),
        georeferences=tuple(raster.georeference for raster in rasters),
        clipped=used == "scaled",
    )


def same_tag(a: float | None, b: float | None) -> bool:
    """Return whether two nodata tags are equal; NaN equals NaN."""
    return a == b or (a is not None and b is not None and np.isnan(a) and np.isnan(b))


def _from_records(source: Source, bands: Sequence[str] | None, units: str | None) -> Patches:
    """Return records as patches; all are parsed and checked, their pixels stay in the files."""
    files = [File.of(path) for path in source.paths]
    offsets = [record_offsets(path) for path in source.paths]
    decided = units_of_records(source.paths, units, source.name, lambda f: patch_of(f)[1])
    count = sum(map(len, offsets))
    ids, begins, stored = np.zeros(count, np.int64), np.zeros(count, np.int64), np.zeros(count, "U3")
    places: dict[int, str] = {}
    first: PatchBytes | None = None
    nodata = default_nodata(decided.units)
    records = (pair for path in source.paths for pair in raw_and_fields(path))
    for row, (offset, (raw, fields)) in enumerate(zip(chain(*offsets), records, strict=True)):
        patch = patch_bytes(fields)
        if first is None:
            first = patch
            nodata = fields.number("nodata") if fields.units else nodata
        _check_size(*patch.shape[:2], fields.where)
        if (patch.bands, patch.dtype) != (first.bands, first.dtype):
            raise fields.fault(
                f"it has {patch.dtype} {' '.join(patch.bands)}, the first {first.dtype} "
                f"{' '.join(first.bands)}. Query them in two runs."
            )
        if not units and (fields.units or decided.units) != decided.units:
            raise fields.fault(
                f"its units are {fields.units}, the first record's {decided.units}. Query them in two runs."
            )
        if patch.patch_id in places:
            raise DuplicateIdError(
                f"{fields.where}: patch id {patch.patch_id} is also that of {places[patch.patch_id]}; "
                f"expected distinct ids"
            )
        places[patch.patch_id] = fields.where
        ids[row], begins[row], stored[row] = (
            patch.patch_id,
            offset + find_bytes(raw, patch.data),
            patch.stored.str,
        )
    assert first is not None
    names = band_names(len(first.bands), bands) if bands else first.bands
    file_of_row = np.repeat(np.arange(len(offsets)), [len(o) for o in offsets])
    pixels: Any = LazyPixels(files, file_of_row, begins, stored, first.shape, first.dtype)
    return Patches(
        ids,
        pixels,
        decided.units,
        names,
        nodata,
        paths=tuple(map(str, source.paths)),
        note=f"{source.name}: {count} patches, {decided.text()}, {' '.join(names)}",
        clipped=True,
    )
