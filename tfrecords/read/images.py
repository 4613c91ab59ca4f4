"""Images to be searched in, one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfrecords.errors import DuplicateIdError, GridError
from tfrecords.grid import PATCH_PX
from tfrecords.read.rasters import RESOLUTION_M, Raster, describe_raster, read_raster, sample_raster
from tfrecords.read.records import count_records, read_fields
from tfrecords.read.sources import (
    SAMPLES,
    TIF,
    ImageLike,
    Source,
    Taken,
    check_range,
    check_stack,
    find,
    load_npy,
    spread,
    take_units,
)
from tfrecords.schema import Fields, Image, band_names, check_finite, default_nodata, image_of


@dataclass(frozen=True, eq=False)
class ImageSource:
    """Images in the order of the source; may be gone through again and again, one in memory at a time."""

    note: str
    """What units and bands were taken, one line for standard error."""
    count: int
    """How many images there are."""
    begin: Callable[[], Iterator[Image]]
    """Starts a new pass."""
    own_ids: bool = False
    """Whether the images bring ids of their own, as records do; others are numbered by their rank."""

    def __iter__(self) -> Iterator[Image]:
        return self.begin()

    def __len__(self) -> int:
        return self.count


def read_images(
    source: ImageLike, *, bands: Sequence[str] | None = None, units: str | None = None
) -> ImageSource:
    """Open images.

    Args:
        source: `test_images.tfrecords`, the challenge's or ours; an `.npy` file or an array
            (n, h, w, b); a GeoTIFF, or a folder or glob of GeoTIFFs, whose ids are their ranks among
            all `.tif` and `.tiff` files (any case, recursive, hidden ones left out) sorted by
            relative POSIX path.
        bands: names of the bands; else the file's, else by their count.
        units: "dn", "reflectance", "scaled" or "byte"; else the record's, else told from dtype and
            range, once for all images of a dtype.

    Returns:
        The images, each checked when its turn comes.

    Raises:
        MissingInputError: there is nothing to read.
        ArrayError: no stack of images; NaN or infinity that is not the nodata tag (when its turn comes).
        GridError: an image has fewer than 64 rows or columns.
        BandsError: bands can't be named, or as many names as bands are needed.
        UnitsError: the range fits no units, or not the stated ones.
        RecordError: a TFRecord is truncated, corrupt or malformed; names file and record.
        DuplicateIdError: two records have one id (when the second's turn comes).
    """
    found = find(source, "images")
    if found.kind == "tif":
        return _from_rasters(found, bands, units)
    if found.kind == "tfrecords":
        return _from_records(found, bands, units)
    array = found.array if found.array is not None else load_npy(found.paths[0])
    return _from_array(found, array, bands, units)


def _check_size(height: int, width: int, name: str) -> None:
    """Refuse images in which no window fits."""
    if min(height, width) < PATCH_PX:
        raise GridError(
            f"{name} has {height} x {width} pixels (rows x columns); expected at least "
            f"{PATCH_PX} x {PATCH_PX}, the size of a patch"
        )


def _checked(image: Image, name: str) -> Image:
    """Refuse an image that is too small, not finite, or not what its source was taken for."""
    _check_size(image.height, image.width, name)
    return checked_pixels(image, name)


def checked_pixels(image: Image, name: str) -> Image:
    """Refuse pixels that are not finite, or not what their source was taken for."""
    check_finite(image.pixels, image.nodata, name)
    check_range(image.pixels, image.units, image.nodata, name)
    return image


def _from_array(
    source: Source, array: NDArray[Any], bands: Sequence[str] | None, units: str | None
) -> ImageSource:
    """Images are the rows of an array."""
    check_stack(array, source.name, "images")
    _check_size(array.shape[1], array.shape[2], source.name)
    names, taken, read = rows_as_images(source, array, bands, units)

    def begin() -> Iterator[Image]:
        for row in range(len(array)):
            yield _checked(read(row), f"{source.name}: image {row}")

    return ImageSource(
        f"{source.name}: {len(array)} images, {taken.text()}, {' '.join(names)}", len(array), begin
    )


def rows_as_images(
    source: Source, array: NDArray[Any], bands: Sequence[str] | None, units: str | None
) -> tuple[tuple[str, ...], Taken, Callable[[int], Image]]:
    """Rows of an array (n, h, w, b): names of the bands, units, and what gives a row, not yet checked."""
    names = band_names(array.shape[-1], bands)
    taken = take_units((array[i, ::4, ::4] for i in spread(len(array))), units, source.name)
    path = str(source.paths[0]) if source.paths else ""

    def read(row: int) -> Image:
        nodata = default_nodata(taken.units)
        return Image(row, np.asarray(array[row]), taken.units, names, nodata, path=path)

    return names, taken, read


def taken_rasters(rasters: Sequence[Raster], units: str | None, name: str) -> dict[np.dtype, Taken]:
    """Units of the files, decided once for each dtype."""
    by_dtype: dict[np.dtype, list[Raster]] = {}
    for raster in rasters:
        by_dtype.setdefault(raster.dtype, []).append(raster)
    return {
        dtype: take_units(
            (sample_raster(group[i].path) for i in spread(len(group))), units, f"{name} ({dtype})"
        )
        for dtype, group in by_dtype.items()
    }


def rasters_note(
    rasters: Sequence[Raster], bands: Sequence[Sequence[str]], taken: dict[np.dtype, Taken], name: str
) -> str:
    """One line on what GeoTIFFs were taken for.

    Args:
        rasters: the files.
        bands: names of the bands of each.
        taken: units by dtype.
        name: how the source is called.

    Returns:
        Counts of files by units and bands, and of those whose pixels are not of 10 m.
    """
    what = "GeoTIFFs" if all(r.path.suffix.lower() in TIF for r in rasters) else "files"
    kinds = Counter(f"{taken[r.dtype].text()}, {' '.join(b)}" for r, b in zip(rasters, bands, strict=True))
    text = f"{name}: {len(rasters)} {what}, " + "; ".join(
        f"{kind} ({count} files)" if len(kinds) > 1 else kind for kind, count in sorted(kinds.items())
    )
    other = [r for r in rasters if r.resolution_m and abs(r.resolution_m / RESOLUTION_M - 1) > 0.05]
    if other:
        text += (
            f"; {len(other)} have pixels of another size than {RESOLUTION_M:g} m, such as {other[0].path} "
            f"with {other[0].resolution_m:g} m: patches of 10 m will not be found in them"
        )
    return text


def _from_rasters(source: Source, bands: Sequence[str] | None, units: str | None) -> ImageSource:
    """Images are files."""
    rasters = [describe_raster(path) for path in source.paths]
    for raster in rasters:
        _check_size(raster.height, raster.width, str(raster.path))
    names = [band_names(r.count, bands, r.descriptions) for r in rasters]
    note, read = rasters_as_images(source, rasters, names, units)

    def begin() -> Iterator[Image]:
        for rank, raster in enumerate(rasters):
            yield _checked(read(rank), str(raster.path))

    return ImageSource(note, len(rasters), begin)


def rasters_as_images(
    source: Source, rasters: Sequence[Raster], names: Sequence[tuple[str, ...]], units: str | None
) -> tuple[str, Callable[[int], Image]]:
    """Files, each with names of its bands: what they were taken for, and what gives one, not yet checked."""
    taken = taken_rasters(rasters, units, source.name)

    def read(rank: int) -> Image:
        path = rasters[rank].path
        pixels, now = read_raster(path)
        used = taken[now.dtype].units
        return Image(
            rank,
            pixels,
            used,
            names[rank],
            nodata=default_nodata(used) if now.nodata is None else now.nodata,
            path=path.as_posix(),
            crs=now.crs,
            transform=now.transform,
            date=now.date,
            provenance=now.provenance,
        )

    return rasters_note(rasters, names, taken, source.name), read


def taken_records(
    paths: Sequence[Path], units: str | None, name: str, pixels_of: Callable[[Fields], Any]
) -> Taken:
    """Units of TFRecord files, decided once for all records that do not say their own.

    Args:
        paths: the files.
        units: what the user says.
        name: how messages call the source.
        pixels_of: gives a record's pixels.

    Returns:
        The units that the user states, else those of the first record, else those that the first
        records' range tells.
    """
    first = list(islice(read_fields(paths[0]), SAMPLES))
    if not units and first[0].units:
        return Taken(first[0].units, True, True)
    return take_units((pixels_of(f) for f in first), units, name)


def _from_records(source: Source, bands: Sequence[str] | None, units: str | None) -> ImageSource:
    """Images are records; those that say their units keep them unless the user says others."""
    count = sum(count_records(path) for path in source.paths)
    names = image_of(next(read_fields(source.paths[0])), None, bands).bands
    taken = taken_records(source.paths, units, source.name, lambda f: image_of(f).pixels[::4, ::4])

    def begin() -> Iterator[Image]:
        seen: dict[int, str] = {}
        for path in source.paths:
            for fields in read_fields(path):
                own = taken.units if units else fields.units or taken.units
                image = image_of(fields, own, bands)
                if image.image_id in seen:
                    raise DuplicateIdError(
                        f"{fields.where}: image id {image.image_id} is that of {seen[image.image_id]} too: "
                        f"an id may occur once"
                    )
                seen[image.image_id] = fields.where
                yield _checked(replace(image, path=image.path or str(path)), fields.where)

    note = f"{source.name}: {count} images, {taken.text()}, {' '.join(names)}"
    return ImageSource(note, count, begin, own_ids=True)
