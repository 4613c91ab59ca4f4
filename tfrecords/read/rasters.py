"""Read metadata and pixels of GeoTIFFs, and of chips as PNG or JPEG."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfrecords.errors import ArrayError, MissingInputError, RemoteError
from tfrecords.geotiff import driver_of, silent_georeference
from tfrecords.grid import pixel_to_map
from tfrecords.read.exif import orientation_tag
from tfrecords.read.layers import (
    BandFiles,
    RasterFile,
    check_alike,
    layer_of,
    pages_as_bands,
    path_of,
    virtual_raster,
)
from tfrecords.remote import point_gdal
from tfrecords.schema import (
    UNKNOWN,
    Georeference,
    Provenance,
    UnitsGuess,
    acquisition_day,
    band_names,
    fitting_units,
    is_nodata,
    sure_date_of,
)

RESOLUTION_M = 10.0
"""Side of a pixel on the ground, of the bands that the product is made for."""
_KINDS = {
    **{".png": "a PNG", ".jpg": "a JPEG", ".jpeg": "a JPEG", ".jp2": "a JPEG 2000 file", ".vrt": "a VRT"},
}
SAMPLE_PX = 96
"""Side of the windows from which units are inferred."""


@dataclass(frozen=True)
class Scaling:
    """The tags SCALE and OFFSET of a file's bands: value = number x scale + offset."""

    scales: tuple[float, ...]
    """Scale of each band."""
    offsets: tuple[float, ...]
    """Offset of each band."""
    nodata: float | None
    """The stored number of nodata pixels: the tag, else 0 for whole numbers; None = nothing is nodata."""

    def apply(self, stored: NDArray[Any]) -> NDArray[np.float32]:
        """Return the values of stored numbers.

        Args:
            stored: (..., y, x, b) numbers of all bands, as in the file.

        Returns:
            (..., y, x, b) float32, NaN where all bands are nodata.
        """
        values = stored.astype(np.float32)
        values *= np.array(self.scales, np.float32)
        values += np.array(self.offsets, np.float32)
        values[is_nodata(stored, self.nodata)] = np.nan
        return values

    def text(self) -> str:
        """Return scale and offset of the first band as a text for the note."""
        return f"scale {self.scales[0]:g}, offset {self.offsets[0]:g}"


@dataclass(frozen=True)
class Raster:
    """Metadata of a raster file."""

    path: Path
    """The file."""
    height: int
    """Rows."""
    width: int
    """Columns."""
    count: int
    """Number of bands."""
    dtype: np.dtype[Any]
    """Dtype of all bands; float32 where `scaling` applies."""
    nodata: float | None
    """The nodata tag, or None; NaN where `scaling` applies."""
    descriptions: tuple[str | None, ...]
    """Description of each band, or None."""
    crs: str | None
    """As rasterio writes it ("EPSG:32631", else WKT), or None."""
    transform: tuple[float, float, float, float, float, float] | None
    """(a, b, c, d, e, f) from pixel corners to map coordinates, or None."""
    resolution_m: float | None
    """Side of a pixel; None unless the reference system is projected."""
    date: str | None = None
    """Acquisition day: the solar day of the tag DATETIME, else the date in the file's name, else None."""
    provenance: Provenance = UNKNOWN
    """Origin of the pixels, from the tags."""
    exif_orientation: int = 1
    """The tag Orientation of a JPEG, PNG or TIFF, 1 to 8; 1 without the tag."""
    orientation: int = 1
    """How the file lies, if these metadata are of its upright pixels; see `tfrecords.read.orientation`."""
    scaling: Scaling | None = None
    """Tags SCALE and OFFSET, which readers apply; None if they change nothing."""
    parts: BandFiles | None = None
    """The files of an image in several files, one band each; else None."""

    @property
    def file(self) -> RasterFile:
        """What holds the image."""
        return self.parts or self.path

    @property
    def stored_nodata(self) -> float | None:
        """The nodata tag of the numbers in the file, or None."""
        return self.scaling.nodata if self.scaling else self.nodata

    def values(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Return the values of numbers as stored (..., y, x, b), with the tags SCALE and OFFSET applied."""
        return self.scaling.apply(stored) if self.scaling else stored

    @property
    def georeference(self) -> Georeference | None:
        """CRS and transform; None if either is missing."""
        return None if self.crs is None or self.transform is None else Georeference(self.crs, self.transform)


@contextmanager
def open_raster(file: RasterFile) -> Iterator[Any]:
    """Open an image: a file with its pages as bands, or one file for each band.

    Args:
        file: what holds the image.

    Yields:
        The opened dataset of rasterio; no warning says that it has no georeference.

    Raises:
        MissingInputError: the file does not exist.
        RemoteError: it lies on a server and cannot be read.
        ArrayError: it is damaged or no raster, or its pages have several bands or differ.
        GridError: its pages or files differ in size or grid.
    """
    import rasterio
    from rasterio.errors import RasterioError

    path = path_of(file)
    remote = str(path).startswith("/vsi")
    if remote:
        point_gdal()
    with ExitStack() as stack:
        try:
            with silent_georeference():
                if isinstance(file, BandFiles):
                    dataset = stack.enter_context(rasterio.open(stack_of_files(file), driver="VRT"))
                else:
                    dataset = stack.enter_context(rasterio.open(path, driver=driver_of(path)))
                if pages := pages_as_bands(str(path), dataset):
                    dataset = stack.enter_context(rasterio.open(pages, driver="VRT"))
            yield dataset
        except (RasterioError, OSError) as err:
            if remote:
                raise RemoteError(
                    f"{path}: it cannot be read ({err}). Check the address, and run the command again."
                ) from err
            if not path.exists():
                raise MissingInputError(f"{path}: no such file; expected {_kind(path)}") from err
            raise ArrayError(
                f"{path} cannot be read as {_kind(path)} ({err}). It is damaged or has another format."
            ) from err


def stack_of_files(file: BandFiles) -> str:
    """Return what GDAL opens for an image in several files: the XML of a virtual raster.

    Args:
        file: the files.

    Raises:
        GridError: the files differ in pixel size or grid; names two of them.
        ArrayError: they differ in dtype or nodata tag, or one is damaged.
    """
    layers = []
    for path, band in zip(file.files, file.bands, strict=True):
        with open_raster(path) as dataset:
            name = f"GTIFF_DIR:1:{path.absolute()}" if dataset.driver == "GTiff" else str(path.absolute())
            layers.append(layer_of(dataset, name, path.name, band))
    remedy = (
        f"Give the bands of one grid by a glob such as '{file.path.parent}/*B0[234]{file.path.suffix}', or "
        "resample the others (gdalwarp -tr)."
    )
    check_alike(layers, str(file.path.parent), remedy)
    return virtual_raster(layers)


def _kind(path: Path) -> str:
    """Return the format that a file's suffix stands for."""
    ending = path.suffix.lower()
    return _KINDS.get(ending, "a GeoTIFF")


def check_png(path: Path) -> None:
    """Check a PNG's checksums: GDAL decodes a truncated PNG into noise without an error.

    Raises:
        ArrayError: it is truncated or damaged.
    """
    data, offset = path.read_bytes(), 8
    while offset + 12 <= len(data):
        length, kind = int.from_bytes(data[offset : offset + 4]), data[offset + 4 : offset + 8]
        end = offset + 8 + length
        if zlib.crc32(data[offset + 4 : end]) != int.from_bytes(data[end : end + 4]):
            break
        if kind == b"IEND":
            return
        offset = end + 4
    raise ArrayError(
        f"{path} cannot be read as a PNG (byte {offset} of {len(data)}). It is truncated or damaged."
    )


def _refuse_transparency(path: Path, dataset: Any) -> None:
    """Refuse a PNG with a palette or an alpha band, which do not measure light."""
    from rasterio.enums import ColorInterp

    if dataset.driver != "PNG":
        return  # elsewhere GDAL calls the fourth of four bands alpha, whatever it is
    check_png(path)
    if ColorInterp.palette in dataset.colorinterp:
        raise ArrayError(
            f"{path}: its pixels are numbers of a palette; expected grey or red, green, blue. Save it "
            "without a palette (in Pillow: image.convert('RGB'))."
        )
    if ColorInterp.alpha in dataset.colorinterp:
        raise ArrayError(
            f"{path}: it has an alpha band; expected grey or red, green, blue. Save it without (in Pillow: "
            "image.convert('RGB')), and give other bands as a GeoTIFF."
        )


def _described(file: RasterFile, dataset: Any) -> Raster:
    """Return the metadata of an opened file."""
    from affine import Affine

    path = path_of(file)

    if len(set(dataset.dtypes)) > 1:
        raise ArrayError(
            f"{path}: its bands have dtypes {dataset.dtypes}; expected one dtype for all. Convert the file."
        )
    _refuse_transparency(path, dataset)
    crs, transform = dataset.crs, dataset.transform
    provenance = Provenance.from_tags(dataset.tags())
    day = acquisition_day(provenance.datetime, lambda: _dataset_longitude(dataset))
    scaling = _scaling(path, dataset)
    metres = crs.linear_units_factor[1] if crs and crs.is_projected else None
    return Raster(
        path=path,
        height=dataset.height,
        width=dataset.width,
        count=dataset.count,
        dtype=np.dtype(np.float32 if scaling else dataset.dtypes[0]),
        nodata=np.nan if scaling else _tag(dataset),
        descriptions=tuple(dataset.descriptions),
        crs=crs.to_string() if crs else None,
        transform=None if transform == Affine.identity() else _six(transform),
        resolution_m=None if metres is None else float(np.hypot(transform.a, transform.d)) * metres,
        date=day or sure_date_of(path.stem),
        provenance=provenance,
        exif_orientation=_exif_orientation(path, dataset),
        scaling=scaling,
        parts=file if isinstance(file, BandFiles) else None,
    )


def _dataset_longitude(dataset: Any) -> float | None:
    crs = dataset.crs.to_string() if dataset.crs else None
    return longitude_of(crs, dataset.transform, (dataset.width / 2, dataset.height / 2))


def longitude_of(
    crs: str | None, transform: Sequence[float] | None, pixel: tuple[float, float]
) -> float | None:
    """Return the longitude of a pixel coordinate, degrees.

    Args:
        crs: the coordinate reference system, or None.
        transform: (a, b, c, d, e, f) from pixel corners to map coordinates, or None.
        pixel: x and y; (w / 2, h / 2) is the centre of an image.

    Returns:
        -180 to 180; None without a georeference, or where PROJ cannot transform it.
    """
    from rasterio.warp import transform as project

    if not crs or transform is None:
        return None
    x, y = pixel_to_map(transform, *pixel)
    try:
        longitude = float(project(crs, "EPSG:4326", [float(x)], [float(y)])[0][0])
    except Exception:  # rasterio lets GDAL's own errors through, which have no public names
        return None
    return (longitude + 180) % 360 - 180 if np.isfinite(longitude) else None


def _exif_orientation(path: Path, dataset: Any) -> int:
    """Return the tag Orientation of a JPEG, PNG or TIFF; 1 without a valid one."""
    if dataset.driver != "JPEG":
        return orientation_tag(path) if dataset.transform.is_identity else 1
    text = str(dataset.tags().get("EXIF_Orientation", "")).strip()
    number = int(text) if text.isdigit() else 1
    return number if 1 <= number <= 8 else 1


def _tag(dataset: Any) -> float | None:
    """Return the nodata tag of an opened file, or None."""
    return None if dataset.nodata is None else float(dataset.nodata)


def _scaling(path: Path, dataset: Any) -> Scaling | None:
    """Return the tags SCALE and OFFSET of an opened file; None if they change nothing."""
    scales, offsets = tuple(map(float, dataset.scales)), tuple(map(float, dataset.offsets))
    if set(scales) == {1.0} and set(offsets) == {0.0}:
        return None
    if 0 in scales or not np.isfinite((*scales, *offsets)).all():
        raise ArrayError(
            f"{path}: its tags are SCALE {scales} and OFFSET {offsets}; expected finite numbers, no "
            "scale of 0. Correct the tags, or remove them."
        )
    whole = np.dtype(dataset.dtypes[0]).kind in "ui"
    return Scaling(scales, offsets, 0.0 if dataset.nodata is None and whole else _tag(dataset))


def _six(transform: Any) -> tuple[float, float, float, float, float, float]:
    """Return the six numbers of an affine transform."""
    a, b, c, d, e, f = (float(v) for v in transform[:6])
    return a, b, c, d, e, f


def describe_raster(file: RasterFile) -> Raster:
    """Read the metadata of a raster file.

    Args:
        file: a GeoTIFF, PNG or JPEG, or one file for each band.

    Raises:
        MissingInputError: the file does not exist.
        ArrayError: the file is damaged or not a raster, its bands differ in dtype, or a PNG has alpha or
            a palette.
    """
    with open_raster(file) as dataset:
        return _described(file, dataset)


def read_raster(file: RasterFile) -> tuple[NDArray[Any], Raster]:
    """Read a raster file whole.

    Args:
        file: a GeoTIFF, or one file for each band.

    Returns:
        Pixels (h, w, b) as stored, with tags SCALE and OFFSET applied, and metadata. Masks and colour tags
        are ignored: only pixels that equal the tag are nodata.

    Raises:
        MissingInputError: the file does not exist.
        ArrayError: the file is damaged or not a raster, its bands differ in dtype, or a PNG has alpha or
            a palette.
    """
    with open_raster(file) as dataset:
        raster = _described(file, dataset)
        return raster.values(np.ascontiguousarray(np.moveaxis(dataset.read(), 0, -1))), raster


def names_of_bands(raster: Raster, given: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of a file's bands.

    Args:
        raster: the file.
        given: the user's names, or None. Where each band has a separate file, names of the same bands in
            another order do not rename them.

    Raises:
        BandsError: bands have no names, or the number of names is wrong.
    """
    given = raster.parts.new_names(given) if raster.parts else given
    return band_names(raster.count, given, raster.descriptions)


def units_of_sample(raster: Raster, sample: NDArray[Any]) -> UnitsGuess:
    """Return the units that fit a file; values of tags SCALE and OFFSET up to 1 are always reflectance.

    Args:
        raster: the file.
        sample: some of its valid pixels, (m, b) values.

    Raises:
        UnitsError: the range fits no units.
    """
    guess = fitting_units(sample, str(raster.path))
    if raster.scaling and guess.fitting[:1] == ("reflectance",):
        return replace(guess, fitting=("reflectance",), sure=True, ambiguous=False)
    return guess


def sample_raster(file: RasterFile) -> NDArray[Any]:
    """Return valid pixels of nine windows spread over a file, or of all of it if these are nodata.

    Args:
        file: a GeoTIFF, or one file for each band.

    Returns:
        (m, b) like `read_raster`; m is 0 if all pixels are nodata.

    Raises:
        MissingInputError: the file does not exist.
        ArrayError: the file is damaged or not a raster.
    """
    from rasterio.windows import Window

    with open_raster(file) as dataset:
        raster = _described(file, dataset)
        height, width = min(SAMPLE_PX, dataset.height), min(SAMPLE_PX, dataset.width)
        rows, cols = (
            sorted({round((length - side) * part) for part in (0.1, 0.5, 0.9)})
            for length, side in ((dataset.height, height), (dataset.width, width))
        )
        spread = [Window(x, y, width, height) for y in rows for x in cols]
        for windows in (spread, [None]):
            blocks = [np.moveaxis(dataset.read(window=window), 0, -1) for window in windows]
            blocks = [raster.values(block) for block in blocks]
            valid = np.concatenate([block[~is_nodata(block, raster.nodata)] for block in blocks])
            if len(valid):
                break
    sample: NDArray[Any] = valid
    return sample
