"""Read images to search, one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfrecords.errors import DuplicateIdError, GridError, listed
from tfrecords.grid import PATCH_PX
from tfrecords.read.orientation import UPRIGHT, describe_upright, read_upright
from tfrecords.read.pixel_size import middle_sides_m, size_text
from tfrecords.read.rasters import RESOLUTION_M, Raster, names_of_bands, sample_raster, units_of_sample
from tfrecords.read.records import count_records, read_fields
from tfrecords.read.sources import (
    SAMPLES,
    TIF,
    ImageLike,
    Source,
    SourceUnits,
    agree_units,
    check_range,
    check_stack,
    decide_units,
    find_source,
    load_npy,
    spread_indices,
)
from tfrecords.schema import (
    Fields,
    Image,
    Units,
    UnitsGuess,
    band_names,
    check_finite,
    check_units,
    default_nodata,
    image_of,
)


@dataclass(frozen=True, eq=False)
class ImageSource:
    """Images in the order of the source; can be iterated repeatedly, one in memory at a time."""

    note: str
    """Units and bands of the source, one line for standard error."""
    count: int
    """Number of images."""
    begin: Callable[[], Iterator[Image]]
    """Starts a new pass."""
    own_ids: bool = False
    """Whether images have stored ids, as records do; others are numbered by rank."""

    def __iter__(self) -> Iterator[Image]:
        return self.begin()

    def __len__(self) -> int:
        return self.count

    @property
    def portable(self) -> bool:
        """Whether parts can be pickled: of opened files and of arrays."""
        return isinstance(self.begin, (_Rows, _Rasters, _Records))

    @property
    def paths(self) -> tuple[Path, ...]:
        """Files of the images, where the source is `portable`; none of an array in memory."""
        return self.begin.paths if isinstance(self.begin, (_Rows, _Rasters, _Records)) else ()

    def part(self, start: int, stop: int) -> ImageSource:
        """Return the source of the images from `start` to before `stop`, in the order of this one.

        A pass over it reads few other images or none where the source is `portable`.
        """
        begin = self.begin
        if isinstance(begin, (_Rows, _Rasters, _Records)):
            own: Callable[[], Iterator[Image]] = begin.part(start, stop)
        else:
            own = lambda: islice(begin(), start, stop)  # noqa: E731
        return replace(self, count=len(range(self.count)[start:stop]), begin=own)


def read_images(
    source: ImageLike, *, bands: Sequence[str] | None = None, units: str | None = None
) -> ImageSource:
    """Open images.

    Args:
        source: `test_images.tfrecords`, the challenge's or ours; an `.npy` file or an array
            (n, h, w, b); a GeoTIFF, or a folder or glob of GeoTIFFs. The ids of GeoTIFFs are their ranks
            among all `.tif` and `.tiff` files, sorted by relative POSIX path. Files count in any case and
            at any depth, hidden files do not.
        bands: names of the bands; else the file's, else by number of bands.
        units: "dn", "reflectance", "scaled" or "byte"; else the record's, else inferred from dtype and
            range: once for an array, for each GeoTIFF by itself.

    Returns:
        The images, each checked when it is read.

    Raises:
        MissingInputError: there is nothing to read.
        ArrayError: the array is not a stack of images, or a value is NaN or infinite (found on reading).
        GridError: an image has fewer than 64 rows or columns.
        BandsError: bands have no names, or the number of names is wrong.
        UnitsError: the range fits no units, or not the stated ones.
        RecordError: a TFRecord is truncated, corrupt or malformed; names file and record.
        DuplicateIdError: two records have the same id (found on reading the second).
    """
    opened = find_source(source, "images")
    if opened.kind == "tif":
        return _from_rasters(opened, bands, units)
    if opened.kind == "tfrecords":
        return _from_records(opened, bands, units)
    array = opened.array if opened.array is not None else load_npy(opened.paths[0])
    return _from_array(opened, array, bands, units)


def _check_size(height: int, width: int, name: str) -> None:
    """Refuse images in which no window fits."""
    if min(height, width) < PATCH_PX:
        raise GridError(
            f"{name} has {height} x {width} pixels (rows x columns); expected at least "
            f"{PATCH_PX} x {PATCH_PX}, the size of a patch"
        )


def _checked(image: Image, name: str) -> Image:
    """Return the image if it is large enough, finite, and fits the units of its source."""
    _check_size(image.height, image.width, name)
    return checked_pixels(image, name)


def checked_pixels(image: Image, name: str) -> Image:
    """Return the image if its pixels are finite and fit the units of its source."""
    check_finite(image.pixels, image.nodata, name)
    check_range(image.pixels, image.units, image.nodata, name)
    return image


def _from_array(
    source: Source, array: NDArray[Any], bands: Sequence[str] | None, units: str | None
) -> ImageSource:
    """Return the rows of an array as images."""
    check_stack(array, source.name, "images")
    _check_size(array.shape[1], array.shape[2], source.name)
    names, decided, _ = rows_as_images(source, array, bands, units)
    path = source.paths[0] if source.paths else None
    begin = _Rows(source.name, path, array, 0, names, decided.units)
    return ImageSource(
        f"{source.name}: {len(array)} images, {decided.text()}, {' '.join(names)}", len(array), begin
    )


@dataclass(frozen=True, eq=False)
class _Rows:
    """A pass over rows of an array; pickled as the path of a mapped file."""

    name: str
    path: Path | None
    array: NDArray[Any]
    first: int
    """Number of the first row."""
    bands: tuple[str, ...]
    units: Units

    def __call__(self) -> Iterator[Image]:
        for row, pixels in enumerate(self.array, self.first):
            image = _row_as_image(row, np.asarray(pixels), self.bands, self.units, self.path)
            yield _checked(image, f"{self.name}: image {row}")

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.path,) if self.path else ()

    def part(self, start: int, stop: int) -> _Rows:
        return replace(self, array=self.array[start:stop], first=self.first + start)

    def __reduce__(self) -> tuple[Any, ...]:
        kept = (self.array, None) if self.path is None else (None, len(self.array))
        return _reopened_rows, (self.name, self.path, *kept, self.first, self.bands, self.units)


def _reopened_rows(
    name: str, path: Path | None, array: NDArray[Any] | None, count: int | None, first: int, *more: Any
) -> _Rows:
    """Unpickle rows: of memory, or of a file that is mapped again."""
    if array is None:
        assert path is not None and count is not None
        array = load_npy(path)[first : first + count]
    return _Rows(name, path, array, first, *more)


def _row_as_image(
    row: int, pixels: NDArray[Any], bands: tuple[str, ...], units: Units, path: Path | None
) -> Image:
    nodata, clipped = default_nodata(units), units == "scaled"
    return Image(row, pixels, units, bands, nodata, path=str(path or ""), clipped=clipped)


def rows_as_images(
    source: Source, array: NDArray[Any], bands: Sequence[str] | None, units: str | None
) -> tuple[tuple[str, ...], SourceUnits, Callable[[int], Image]]:
    """Return band names and units of an array (n, h, w, b), and a function that returns an unchecked row."""
    names = band_names(array.shape[-1], bands)
    decided = decide_units((array[i, ::4, ::4] for i in spread_indices(len(array))), units, source.name)
    path = source.paths[0] if source.paths else None

    def read(row: int) -> Image:
        return _row_as_image(row, np.asarray(array[row]), names, decided.units, path)

    return names, decided, read


def units_of_rasters(rasters: Sequence[Raster], units: str | None) -> list[SourceUnits]:
    """Return the units of each file.

    Args:
        rasters: the files.
        units: the user's units, or None.

    Raises:
        UnitsError: the range of a file fits no units, or several alike; names it.
    """
    if units:
        return [SourceUnits(check_units(units), True, True)] * len(rasters)
    # Dtype alone decides for whole numbers: some of them show whether the guess is certain.
    whole = [rank for rank, raster in enumerate(rasters) if raster.dtype.kind in "ui"]
    read = {rank for rank, raster in enumerate(rasters) if raster.dtype.kind not in "ui"}
    read |= {whole[i] for i in spread_indices(len(whole))}
    guesses = {
        rank: units_of_sample(raster, sample_raster(raster.file))
        for rank, raster in enumerate(rasters)
        if rank in read
    }
    sure = {
        dtype: any(guesses[rank].sure for rank in whole if rank in read and rasters[rank].dtype == dtype)
        for dtype in {rasters[rank].dtype for rank in whole}
    }
    for rank in whole:
        dtype = rasters[rank].dtype
        guesses[rank] = UnitsGuess(("byte" if dtype == np.uint8 else "dn",), sure[dtype], False, 0, 0)
    return agree_units([guesses[rank] for rank in range(len(rasters))], [str(r.path) for r in rasters])


def rasters_note(
    rasters: Sequence[Raster], bands: Sequence[Sequence[str]], decided: Sequence[SourceUnits], source: Source
) -> str:
    """Return one line with the units and bands of files.

    Args:
        rasters: the files.
        bands: names of the bands of each file.
        decided: units of each file.
        source: their source.

    Returns:
        Notes of the source; numbers of files by units and bands, of files not north-up, and of files whose
        pixels are not 10 m. Files are named whose units differ from most.
    """
    noun = "GeoTIFFs" if all(r.path.suffix.lower() in TIF for r in rasters) else "files"
    kinds = Counter(f"{d.text()}, {' '.join(b)}" for d, b in zip(decided, bands, strict=True))
    if source.notes:
        noun = "images"
    text = f"{source.name}: {len(rasters)} {noun}, " + "; ".join(
        f"{kind} ({count} files)" if len(kinds) > 1 else kind for kind, count in sorted(kinds.items())
    )
    usual = Counter(d.units for d in decided).most_common(1)[0][0]
    odd = [f"{r.path} ({d.units})" for r, d in zip(rasters, decided, strict=True) if d.units != usual]
    if odd:
        text += f"; units differ from {usual} in {listed(odd)}"
    text += "".join(f"; {note}" for note in source.notes)
    text += scaling_note(rasters)
    turned = [r for r in rasters if r.orientation != UPRIGHT]
    if turned:
        text += f"; {len(turned)} lie mirrored or turned and are read north-up (e.g. {turned[0].path})"
    sizes = np.array([(r.height, r.width) for r in rasters], np.int64)
    sides, _ = middle_sides_m([r.georeference for r in rasters], sizes)
    other = np.flatnonzero((np.abs(sides / RESOLUTION_M - 1) > 0.05).any(1))
    if len(other):
        text += (
            f"; {len(other)} have pixels of another size than {RESOLUTION_M:g} m (e.g. "
            f"{rasters[other[0]].path}: {size_text(sides[other[0]])})"
        )
    return text


def scaling_note(rasters: Sequence[Raster]) -> str:
    """Return the part of a note on the tags SCALE and OFFSET; empty if no file has them."""
    tagged = [(r.path, r.scaling) for r in rasters if r.scaling]
    if not tagged:
        return ""
    path, scaling = tagged[0]
    return f"; tags SCALE and OFFSET are applied to {len(tagged)} files (e.g. {path}: {scaling.text()})"


def _from_rasters(source: Source, bands: Sequence[str] | None, units: str | None) -> ImageSource:
    """Return files as images."""
    rasters = [describe_upright(file) for file in source.rasters]
    for raster in rasters:
        _check_size(raster.height, raster.width, str(raster.path))
    names = [names_of_bands(r, bands) for r in rasters]
    decided = units_of_rasters(rasters, units)
    note, _ = rasters_as_images(source, rasters, names, decided)
    opened = tuple(zip(rasters, names, (d.units for d in decided), strict=True))
    return ImageSource(note, len(rasters), _Rasters(opened, 0))


@dataclass(frozen=True, eq=False)
class _Rasters:
    """A pass over files of which the bands and units are known; it can be pickled."""

    opened: tuple[tuple[Raster, tuple[str, ...], Units], ...]
    """Files, names of their bands, and units."""
    first: int
    """Rank of the first file."""

    def __call__(self) -> Iterator[Image]:
        for rank, (raster, bands, units) in enumerate(self.opened, self.first):
            yield _checked(_raster_as_image(rank, raster, bands, units), str(raster.path))

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(raster.path for raster, _, _ in self.opened)

    def part(self, start: int, stop: int) -> _Rasters:
        return _Rasters(self.opened[start:stop], self.first + start)


def rasters_as_images(
    source: Source,
    rasters: Sequence[Raster],
    names: Sequence[tuple[str, ...]],
    decided: Sequence[SourceUnits],
) -> tuple[str, Callable[[int], Image]]:
    """Return the note on files of given bands and units, and a function that returns an unchecked file."""

    def read(rank: int) -> Image:
        return _raster_as_image(rank, rasters[rank], names[rank], decided[rank].units)

    return rasters_note(rasters, names, decided, source), read


def _raster_as_image(rank: int, raster: Raster, bands: tuple[str, ...], units: Units) -> Image:
    pixels, read = read_upright(raster.file)
    return Image(
        rank,
        pixels,
        units,
        bands,
        nodata=default_nodata(units) if read.nodata is None else read.nodata,
        path=raster.path.as_posix(),
        crs=read.crs,
        transform=read.transform,
        date=read.date,
        provenance=read.provenance,
        orientation=read.orientation,
        clipped=units == "scaled",
    )


def units_of_records(
    paths: Sequence[Path], units: str | None, name: str, pixels_of: Callable[[Fields], Any]
) -> SourceUnits:
    """Decide the units of TFRecord files, for all records that do not state their units.

    Args:
        paths: the files.
        units: the user's units, or None.
        name: name of the source for messages.
        pixels_of: returns a record's pixels.

    Returns:
        The user's units, else the first record's, else units inferred from the first records.
    """
    first = list(islice(read_fields(paths[0]), SAMPLES))
    if not units and first[0].units:
        return SourceUnits(first[0].units, True, True)
    return decide_units((pixels_of(f) for f in first), units, name)


def _from_records(source: Source, bands: Sequence[str] | None, units: str | None) -> ImageSource:
    """Return records as images; the user's units take precedence over the records'."""
    counts = tuple(count_records(path) for path in source.paths)
    names = image_of(next(read_fields(source.paths[0])), None, bands).bands
    decided = units_of_records(source.paths, units, source.name, lambda f: image_of(f).pixels[::4, ::4])
    count = sum(counts)
    begin = _Records(
        source.paths, counts, range(count), decided.units, bool(units), tuple(bands) if bands else None
    )
    note = f"{source.name}: {count} images, {decided.text()}, {' '.join(names)}"
    return ImageSource(note, count, begin, own_ids=True)


@dataclass(frozen=True, eq=False)
class _Records:
    """A pass over records in their order; it can be pickled."""

    paths: tuple[Path, ...]
    counts: tuple[int, ...]
    """Records of each file."""
    ranks: range
    """Records to yield, counted through all files."""
    units: Units
    """Units of records that do not state theirs."""
    stated: bool
    """Whether the user states the units, of all records then."""
    bands: tuple[str, ...] | None
    """The user's names of bands."""

    def __call__(self) -> Iterator[Image]:
        places: dict[int, str] = {}
        for fields, path in self._fields():
            used = self.units if self.stated else fields.units or self.units
            image = image_of(fields, used, self.bands)
            if image.image_id in places:
                raise DuplicateIdError(
                    f"{fields.where}: image id {image.image_id} is also that of "
                    f"{places[image.image_id]}; expected distinct ids"
                )
            places[image.image_id] = fields.where
            yield _checked(replace(image, path=image.path or str(path)), fields.where)

    def _fields(self) -> Iterator[tuple[Fields, Path]]:
        """Yield the records of the ranks; files without any stay closed."""
        first = 0
        for path, count in zip(self.paths, self.counts, strict=True):
            own = range(max(self.ranks.start - first, 0), min(self.ranks.stop - first, count))
            if len(own):
                for fields in read_fields(path, own.start, own.stop if own.stop < count else None):
                    yield fields, path
            first += count

    def part(self, start: int, stop: int) -> _Records:
        return replace(self, ranks=self.ranks[start:stop])
