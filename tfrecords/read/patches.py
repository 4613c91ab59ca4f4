"""Patches that are asked about, as one array."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfrecords.errors import ArrayError, BandsError, DuplicateIdError
from tfrecords.grid import PATCH_PX
from tfrecords.read.held import File, HeldPixels
from tfrecords.read.images import rasters_note, taken_rasters, taken_records
from tfrecords.read.rasters import Raster, describe_raster, read_raster
from tfrecords.read.records import raw_and_fields, record_offsets
from tfrecords.read.sources import (
    ImageLike,
    Source,
    check_range,
    check_stack,
    find,
    load_npy,
    spread,
    take_units,
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
"""Patches that are checked at a time: some 0.1 GB."""
SAMPLES = 512
FEW = 64
"""Bytes of a feature that are looked for in a record."""


def read_patches(
    source: ImageLike, *, bands: Sequence[str] | None = None, units: str | None = None
) -> Patches:
    """Open patches.

    Args:
        source: an `.npy` file (opened as a memory map) or an array (n, 64, 64, b);
            `test_patches.tfrecords`, the challenge's or ours, whose pixels stay in the file; a GeoTIFF, PNG
            or JPEG chip, or a folder or glob of them, with their ranks as ids as in `read_images`. Of a
            folder with GeoTIFFs only these count.
        bands: names of the bands; else the file's, else by their count.
        units: "dn", "reflectance", "scaled" or "byte"; else the record's, else told from dtype and
            range, once for all patches.

    Returns:
        The patches, all checked; `note` says what units and bands were taken.

    Raises:
        MissingInputError: there is nothing to read.
        ArrayError: patches are not 64 x 64, of different dtypes, or hold NaN or infinity.
        BandsError: bands can't be named, as many names as bands are needed, or patches differ in them.
        UnitsError: the range fits no units or not the stated ones, or patches differ in them.
        RecordError: a TFRecord is truncated, corrupt or malformed; names file and record.
        DuplicateIdError: two records have one id.
    """
    found = find(source, "patches")
    if found.kind == "tif":
        patches = patches_of_rasters(found, [describe_raster(path) for path in found.paths], bands, units)
    elif found.kind == "tfrecords":
        patches = _from_records(found, bands, units)
    else:
        array = found.array if found.array is not None else load_npy(found.paths[0])
        patches = _from_array(found, array, bands, units)
    check_values(patches, found.name)
    return patches


def _check_size(height: int, width: int, name: str) -> None:
    """Refuse what is no patch."""
    if (height, width) != (PATCH_PX, PATCH_PX):
        raise ArrayError(
            f"{name} has {height} x {width} pixels (rows x columns); a patch has {PATCH_PX} x {PATCH_PX}: "
            f"cut it to that"
        )


def check_values(patches: Patches, name: str) -> None:
    """Refuse NaN, infinity and what contradicts the units, block by block."""
    if patches.pixels.dtype.kind in "ui" and patches.units == "dn":
        return
    for start in range(0, len(patches), BLOCK):
        block = np.asarray(patches.pixels[start : start + BLOCK])
        where = f"{name}: patches {start} to {start + len(block) - 1}"
        check_finite(block, patches.nodata, where)
        check_range(block, patches.units, patches.nodata, where)


def _from_array(
    source: Source, array: NDArray[Any], bands: Sequence[str] | None, units: str | None
) -> Patches:
    """Patches are the rows of an array."""
    check_stack(array, source.name, "patches")
    _check_size(array.shape[1], array.shape[2], source.name)
    names = band_names(array.shape[-1], bands)
    taken = take_units((array[i] for i in spread(len(array), SAMPLES)), units, source.name)
    return Patches(
        np.arange(len(array), dtype=np.int64),
        array,
        taken.units,
        names,
        default_nodata(taken.units),
        paths=tuple(map(str, source.paths)),
        note=f"{source.name}: {len(array)} patches, {taken.text()}, {' '.join(names)}",
    )


def patches_of_rasters(
    source: Source, rasters: Sequence[Raster], bands: Sequence[str] | None, units: str | None
) -> Patches:
    """Patches that are files, values not yet checked; raises as `read_patches`."""
    for raster in rasters:
        _check_size(raster.height, raster.width, str(raster.path))
    names = [band_names(r.count, bands, r.descriptions) for r in rasters]
    first = rasters[0]
    for raster, own in zip(rasters, names, strict=True):
        if own != names[0]:
            raise BandsError(
                f"{raster.path} has {' '.join(own)}, {first.path} {' '.join(names[0])}: ask in two runs"
            )
        if raster.dtype != first.dtype or not same_tag(raster.nodata, first.nodata):
            raise ArrayError(
                f"{raster.path} has dtype {raster.dtype} and nodata {raster.nodata}, {first.path} has "
                f"{first.dtype} and {first.nodata}: ask in two runs"
            )
    taken = taken_rasters(rasters, units, source.name)
    used = taken[first.dtype].units
    return Patches(
        np.arange(len(rasters), dtype=np.int64),
        np.stack([read_raster(raster.path)[0] for raster in rasters]),
        used,
        names[0],
        default_nodata(used) if first.nodata is None else first.nodata,
        paths=tuple(raster.path.as_posix() for raster in rasters),
        note=rasters_note(rasters, names, taken, source.name),
        georeferences=tuple(raster.georeference for raster in rasters),
    )


def same_tag(a: float | None, b: float | None) -> bool:
    """Whether two nodata tags mean the same."""
    return a == b or (a is not None and b is not None and np.isnan(a) and np.isnan(b))


def _from_records(source: Source, bands: Sequence[str] | None, units: str | None) -> Patches:
    """Patches are records; all are parsed and checked, their pixels stay in the files."""
    offsets = [record_offsets(path) for path in source.paths]
    taken = taken_records(source.paths, units, source.name, lambda f: patch_of(f)[1])
    count = sum(map(len, offsets))
    ids, begins, stored = np.zeros(count, np.int64), np.zeros(count, np.int64), np.zeros(count, "U3")
    seen: dict[int, str] = {}
    first: PatchBytes | None = None
    nodata = default_nodata(taken.units)
    records = (pair for path in source.paths for pair in raw_and_fields(path))
    for row, (offset, (raw, fields)) in enumerate(zip(chain(*offsets), records, strict=True)):
        patch = patch_bytes(fields)
        if first is None:
            first = patch
            nodata = fields.number("nodata") if fields.units else nodata
        _check_size(*patch.shape[:2], fields.where)
        if (patch.bands, patch.dtype) != (first.bands, first.dtype):
            raise fields.fault(
                f"{patch.dtype} {' '.join(patch.bands)}, the first is {first.dtype} {' '.join(first.bands)}: "
                f"ask in two runs"
            )
        if not units and (fields.units or taken.units) != taken.units:
            raise fields.fault(f"units are {fields.units}, those of the first {taken.units}: ask in two runs")
        if patch.patch_id in seen:
            raise DuplicateIdError(
                f"{fields.where}: patch id {patch.patch_id} is that of {seen[patch.patch_id]} too: an id may "
                f"occur once"
            )
        seen[patch.patch_id] = fields.where
        ids[row], begins[row], stored[row] = (
            patch.patch_id,
            offset + _place(raw, patch.data),
            patch.stored.str,
        )
    assert first is not None
    names = band_names(len(first.bands), bands) if bands else first.bands
    which = np.repeat(np.arange(len(offsets)), [len(o) for o in offsets])
    files = [File(path) for path in source.paths]
    held: Any = HeldPixels(files, which, begins, stored, first.shape, first.dtype)
    return Patches(
        ids,
        held,
        taken.units,
        names,
        nodata,
        paths=tuple(map(str, source.paths)),
        note=f"{source.name}: {count} patches, {taken.text()}, {' '.join(names)}",
    )


def _place(raw: bytes, data: bytes) -> int:
    """Where the bytes of a feature lie in a record; where the same come twice, either will do."""
    begin = data[:FEW]  # to look for all of them takes ten times as long
    place = raw.index(begin)
    while not raw.startswith(data, place):
        place = raw.index(begin, place + 1)
    return place
