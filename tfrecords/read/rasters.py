"""GeoTIFFs: what is in a file, and its pixels."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfrecords.errors import ArrayError, MissingInputError
from tfrecords.schema import is_nodata

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
                raise MissingInputError(f"{path}: no such file; expected a GeoTIFF") from err
            raise ArrayError(
                f"{path} can't be read as a GeoTIFF ({err}): it is damaged or something else"
            ) from err


def _described(path: Path, dataset: Any) -> Raster:
    """Metadata of an opened file."""
    from affine import Affine

    if len(set(dataset.dtypes)) > 1:
        raise ArrayError(
            f"{path}: its bands have dtypes {dataset.dtypes}; expected one for all: write it anew"
        )
    crs, transform = dataset.crs, dataset.transform
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
    )


def _six(transform: Any) -> tuple[float, float, float, float, float, float]:
    """The numbers of an affine transform."""
    a, b, c, d, e, f = (float(v) for v in transform[:6])
    return a, b, c, d, e, f


def describe_raster(path: Path) -> Raster:
    """Read the metadata of a raster file.

    Args:
        path: a GeoTIFF.

    Returns:
        What it says of itself.

    Raises:
        MissingInputError: there is no such file.
        ArrayError: it is damaged, no raster, or its bands have different dtypes.
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
        ArrayError: it is damaged, no raster, or its bands have different dtypes.
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
