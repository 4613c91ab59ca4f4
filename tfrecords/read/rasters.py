"""Read metadata and pixels of GeoTIFFs, and of chips as PNG or JPEG."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfrecords.errors import ArrayError, MissingInputError
from tfrecords.grid import pixel_to_map
from tfrecords.schema import UNKNOWN, Georeference, Provenance, acquisition_day, is_nodata, sure_date_of

RESOLUTION_M = 10.0
"""Side of a pixel on the ground, of the bands that the product is made for."""
SAMPLE_PX = 96
"""Side of the windows from which units are inferred."""


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
    """Dtype of all bands."""
    nodata: float | None
    """The nodata tag, or None."""
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
    """The tag Orientation of a JPEG, 1 to 8; 1 without the tag."""
    orientation: int = 1
    """How the file lies, if these metadata are of its upright pixels; see `tfrecords.read.orientation`."""

    @property
    def georeference(self) -> Georeference | None:
        """CRS and transform; None if either is missing."""
        return None if self.crs is None or self.transform is None else Georeference(self.crs, self.transform)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a raster, without a warning if it has no georeference."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            with rasterio.open(path) as dataset:
                yield dataset
        except (RasterioError, OSError) as err:
            if not path.exists():
                raise MissingInputError(f"{path}: no such file; expected {_kind(path)}") from err
            raise ArrayError(
                f"{path} cannot be read as {_kind(path)} ({err}). It is damaged or has another format."
            ) from err


def _kind(path: Path) -> str:
    """Return the format that a file's suffix stands for."""
    ending = path.suffix.lower()
    return {".png": "a PNG", ".jpg": "a JPEG", ".jpeg": "a JPEG"}.get(ending, "a GeoTIFF")


def _check_png(path: Path) -> None:
    """Check a PNG's checksums: GDAL decodes a truncated PNG into noise without an error."""
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
    _check_png(path)
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


def _described(path: Path, dataset: Any) -> Raster:
    """Return the metadata of an opened file."""
    from affine import Affine

    if len(set(dataset.dtypes)) > 1:
        raise ArrayError(
            f"{path}: its bands have dtypes {dataset.dtypes}; expected one dtype for all. Convert the file."
        )
    _refuse_transparency(path, dataset)
    crs, transform = dataset.crs, dataset.transform
    provenance = Provenance.from_tags(dataset.tags())
    day = acquisition_day(provenance.datetime, lambda: _dataset_longitude(dataset))
    metres = crs.linear_units_factor[1] if crs and crs.is_projected else None
    return Raster(
        path=path,
        height=dataset.height,
        width=dataset.width,
        count=dataset.count,
        dtype=np.dtype(dataset.dtypes[0]),
        nodata=None if dataset.nodata is None else float(dataset.nodata),
        descriptions=tuple(dataset.descriptions),
        crs=crs.to_string() if crs else None,
        transform=None if transform == Affine.identity() else _six(transform),
        resolution_m=None if metres is None else float(np.hypot(transform.a, transform.d)) * metres,
        date=day or sure_date_of(path.stem),
        provenance=provenance,
        exif_orientation=_exif_orientation(dataset),
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


def _exif_orientation(dataset: Any) -> int:
    """Return the tag Orientation of a JPEG; 1 without a valid one."""
    text = str(dataset.tags().get("EXIF_Orientation", "")).strip()
    number = int(text) if text.isdigit() else 1
    return number if dataset.driver == "JPEG" and 1 <= number <= 8 else 1


def _six(transform: Any) -> tuple[float, float, float, float, float, float]:
    """Return the six numbers of an affine transform."""
    a, b, c, d, e, f = (float(v) for v in transform[:6])
    return a, b, c, d, e, f


def describe_raster(path: Path) -> Raster:
    """Read the metadata of a raster file.

    Args:
        path: a GeoTIFF, PNG or JPEG.

    Raises:
        MissingInputError: the file does not exist.
        ArrayError: the file is damaged or not a raster, its bands differ in dtype, or a PNG has alpha or
            a palette.
    """
    with _opened(path) as dataset:
        return _described(path, dataset)


def read_raster(path: Path) -> tuple[NDArray[Any], Raster]:
    """Read a raster file whole.

    Args:
        path: a GeoTIFF.

    Returns:
        Pixels (h, w, b) as stored, and metadata. Masks and colour tags are ignored: only pixels that equal
        the tag are nodata.

    Raises:
        MissingInputError: the file does not exist.
        ArrayError: the file is damaged or not a raster, its bands differ in dtype, or a PNG has alpha or
            a palette.
    """
    with _opened(path) as dataset:
        return np.ascontiguousarray(np.moveaxis(dataset.read(), 0, -1)), _described(path, dataset)


def sample_raster(path: Path) -> NDArray[Any]:
    """Return valid pixels of nine windows spread over a file, or of all of it if these are nodata.

    Args:
        path: a GeoTIFF.

    Returns:
        (m, b) as stored; m is 0 if all pixels are nodata.

    Raises:
        MissingInputError: the file does not exist.
        ArrayError: the file is damaged or not a raster.
    """
    from rasterio.windows import Window

    with _opened(path) as dataset:
        height, width = min(SAMPLE_PX, dataset.height), min(SAMPLE_PX, dataset.width)
        rows, cols = (
            sorted({round((length - side) * part) for part in (0.1, 0.5, 0.9)})
            for length, side in ((dataset.height, height), (dataset.width, width))
        )
        spread = [Window(x, y, width, height) for y in rows for x in cols]
        for windows in (spread, [None]):
            blocks = [np.moveaxis(dataset.read(window=window), 0, -1) for window in windows]
            valid = np.concatenate([block[~is_nodata(block, dataset.nodata)] for block in blocks])
            if len(valid):
                break
    sample: NDArray[Any] = valid
    return sample
