"""GeoTIFFs, and chips as PNG or JPEG: what is in a file, and its pixels."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfrecords.errors import ArrayError, MissingInputError
from tfrecords.schema import UNKNOWN, Georeference, Provenance, days_of, is_nodata, sure_date_of

RESOLUTION_M = 10.0
"""Ground size of a pixel of the bands that the product is made for."""
SAMPLE_PX = 256


@dataclass(frozen=True)
class Raster:
    """What a raster file says of itself."""

    path: Path
    """The file."""
    height: int
    """Rows."""
    width: int
    """Columns."""
    count: int
    """Number of bands."""
    dtype: np.dtype
    """Type of all bands."""
    nodata: float | None
    """The nodata tag, None where there is none."""
    descriptions: tuple[str | None, ...]
    """One for each band, None where there is none."""
    crs: str | None
    """As rasterio writes it ("EPSG:32631", else WKT), None where there is none."""
    transform: tuple[float, float, float, float, float, float] | None
    """(a, b, c, d, e, f) from pixel corners to map coordinates, None where there is none."""
    resolution_m: float | None
    """Side of a pixel, for projected reference systems only."""
    date: str | None = None
    """When it was taken: the day of its tag DATETIME, else of its name; None where neither says."""
    provenance: Provenance = UNKNOWN
    """What its tags say that it came from."""

    @property
    def georeference(self) -> Georeference | None:
        """Where it says that it lies; None without a CRS or a transform."""
        return None if self.crs is None or self.transform is None else Georeference(self.crs, self.transform)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a raster; that it may have no georeference is no reason to warn."""
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
                f"{path} can't be read as {_kind(path)} ({err}): it is damaged or something else"
            ) from err


def _kind(path: Path) -> str:
    """What a file's name says that it is."""
    ending = path.suffix.lower()
    return {".png": "a PNG", ".jpg": "a JPEG", ".jpeg": "a JPEG"}.get(ending, "a GeoTIFF")


def _check_png(path: Path) -> None:
    """Check a PNG's own checksums: GDAL decodes a torn one without a word, into noise."""
    data, at = path.read_bytes(), 8
    while at + 12 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        end = at + 8 + length
        if zlib.crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4]):
            break
        if kind == b"IEND":
            return
        at = end + 4
    raise ArrayError(f"{path} can't be read as a PNG (byte {at} of {len(data)}): it is cut short or damaged")


def _refuse_transparency(path: Path, dataset: Any) -> None:
    """Refuse pictures whose numbers are no measurements: a palette's are names, alpha's no light."""
    from rasterio.enums import ColorInterp

    if dataset.driver != "PNG":
        return  # elsewhere GDAL calls the fourth of four bands alpha, whatever it is
    _check_png(path)
    if ColorInterp.palette in dataset.colorinterp:
        raise ArrayError(
            f"{path}: its pixels are numbers of a palette; expected grey or red, green, blue: save it "
            "without a palette (in Pillow: image.convert('RGB'))"
        )
    if ColorInterp.alpha in dataset.colorinterp:
        raise ArrayError(
            f"{path}: it has an alpha band, which measures nothing; expected grey or red, green, blue: "
            "save it without (in Pillow: image.convert('RGB')), and give other bands as a GeoTIFF"
        )


def _described(path: Path, dataset: Any) -> Raster:
    """Metadata of an opened file."""
    from affine import Affine

    if len(set(dataset.dtypes)) > 1:
        raise ArrayError(
            f"{path}: its bands have dtypes {dataset.dtypes}; expected one for all: write it anew"
        )
    _refuse_transparency(path, dataset)
    crs, transform = dataset.crs, dataset.transform
    provenance = Provenance.from_tags(dataset.tags())
    taken = provenance.datetime.replace(" ", "T").split("T")[0]
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
        date=taken if days_of(taken) else sure_date_of(path.stem),
        provenance=provenance,
    )


def _six(transform: Any) -> tuple[float, float, float, float, float, float]:
    """The numbers of an affine transform."""
    a, b, c, d, e, f = (float(v) for v in transform[:6])
    return a, b, c, d, e, f


def describe_raster(path: Path) -> Raster:
    """Read the metadata of a raster file.

    Args:
        path: a GeoTIFF, PNG or JPEG.

    Returns:
        What it says of itself.

    Raises:
        MissingInputError: there is no such file.
        ArrayError: it is damaged, no raster, its bands differ in dtype, or a PNG has alpha or a palette.
    """
    with _opened(path) as dataset:
        return _described(path, dataset)


def read_raster(path: Path) -> tuple[NDArray[Any], Raster]:
    """Read a raster file whole.

    Args:
        path: a GeoTIFF.

    Returns:
        Pixels (h, w, b) as stored, and what the file says of itself. Masks and colour tags are not
        looked at: nodata is what equals the tag.

    Raises:
        MissingInputError: there is no such file.
        ArrayError: it is damaged, no raster, its bands differ in dtype, or a PNG has alpha or a palette.
    """
    with _opened(path) as dataset:
        return np.ascontiguousarray(np.moveaxis(dataset.read(), 0, -1)), _described(path, dataset)


def sample_raster(path: Path) -> NDArray[Any]:
    """Some valid pixels of a file, from its middle; from all of it where the middle is nodata.

    Args:
        path: a GeoTIFF.

    Returns:
        (m, b) as stored; m is 0 where all is nodata.

    Raises:
        MissingInputError: there is no such file.
        ArrayError: it is damaged or no raster.
    """
    from rasterio.windows import Window

    with _opened(path) as dataset:
        x, y = max(0, (dataset.width - SAMPLE_PX) // 2), max(0, (dataset.height - SAMPLE_PX) // 2)
        middle = Window(x, y, min(SAMPLE_PX, dataset.width), min(SAMPLE_PX, dataset.height))
        for window in (middle, None):
            pixels = np.moveaxis(dataset.read(window=window), 0, -1)
            valid = pixels[~is_nodata(pixels, dataset.nodata)]
            if len(valid):
                break
    return valid
