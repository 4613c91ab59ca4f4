"""One date of a place as a GeoTIFF: digital numbers, hidden pixels and provenance.

Every source (SAFE, STAC, GeoTIFF) ends in the same files, `<place>/<date>.tif`, which `retrieve index`,
`retrieve ingest` and any GIS can open. Sentinel-2 files hold digital numbers (DN), where reflectance is
DN / 10000 and 0 is nodata.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tfrecords.artifacts import writing_file
from tfrecords.errors import ArrayError
from tfrecords.schema import Provenance
from tfrecords.storage import check_raster

QUANTIFICATION = 10_000
"""Digital number of a reflectance of 1 in the files that are written."""
SCL_HIDDEN = (0, 1, 3, 8, 9, 10)
"""Hidden scene classes: no data, saturated, cloud shadow, cloud (medium, high), thin cirrus."""
SCL_SNOW = 11
"""Scene class of snow and ice."""
CACHE_BYTES = 256 << 20
"""Largest size of GDAL's block cache, bytes."""


def to_dn(
    stored: NDArray[np.generic], offset: float, quantification: float = QUANTIFICATION, nodata: int = 0
) -> NDArray[np.uint16]:
    """Convert stored numbers to digital numbers without an offset.

    Args:
        stored: any shape, as in the product's files.
        offset: added to a stored number: -1000 from baseline 04.00 on, else 0.
        quantification: divides the sum to give a reflectance, from the metadata.
        nodata: the stored number of nodata; 0 at every baseline.

    Returns:
        uint16 of the same shape: 0 where nodata, at least 1 elsewhere.
    """
    numbers = np.rint((stored.astype(np.float64) + offset) * (QUANTIFICATION / quantification))
    return np.where(stored == nodata, 0, np.clip(numbers, 1, np.iinfo(np.uint16).max)).astype(np.uint16)


def hidden_mask(scl: NDArray[np.generic], *, snow: bool = False) -> NDArray[np.bool_]:
    """Return the pixels that a scene classification marks as cloud, shadow or unusable.

    Args:
        scl: classes 0 to 11, any shape.
        snow: mark snow and ice too.

    Returns:
        bool of the same shape.
    """
    return np.isin(scl, (*SCL_HIDDEN, SCL_SNOW) if snow else SCL_HIDDEN)


class DateWriter:
    """An open file of one date: blocks are written in any order, pixels that are not written are nodata."""

    provenance: Provenance
    """Written as tags when the file is closed; may be set until then."""
    has_ground: bool
    """Whether any pixel that was written is not nodata."""

    def __init__(self, dataset: Any) -> None:
        self.provenance, self.has_ground, self._dataset = Provenance(), False, dataset

    def write(self, pixels: NDArray[np.generic], x0: int, y0: int) -> None:
        """Write a block.

        Args:
            pixels: (h, w, b) in the file's dtype.
            x0: first column.
            y0: first row.
        """
        from rasterio.windows import Window

        height, width = pixels.shape[:2]
        nodata = self._dataset.nodata
        self.has_ground = self.has_ground or nodata is None or bool((pixels != nodata).any())
        self._dataset.write(np.moveaxis(pixels, -1, 0), window=Window(x0, y0, width, height))


@contextmanager
def writing_date(
    path: Path,
    shape: tuple[int, int],
    bands: Sequence[str],
    crs: str | None,
    transform: Sequence[float] | None,
    *,
    dtype: str = "uint16",
    nodata: float | None = 0,
    overwrite: bool = False,
) -> Iterator[DateWriter]:
    """Write one date as a Cloud-Optimized GeoTIFF, block by block, whole or not at all.

    Args:
        path: ends in `.tif`; its folder is created.
        shape: rows and columns.
        bands: names, written as descriptions.
        crs: anything that rasterio understands, or None.
        transform: (a, b, c, d, e, f) from pixel corners to map coordinates, or None.
        dtype: of the pixels.
        nodata: the tag, or None.
        overwrite: replace an existing file.

    Yields:
        The writer. It collects blocks in a temporary GeoTIFF on the disk, not in memory. The file is made
        from it when the block ends without an error.

    Raises:
        OutputExistsError: the file exists and `overwrite` is false.
        DiskFullError: the disk is full.
    """
    import rasterio
    from affine import Affine
    from rasterio.shutil import copy

    ground = {"crs": crs, "transform": Affine(*transform)} if crs and transform else {}
    profile = {"height": shape[0], "width": shape[1], "count": len(bands), "dtype": dtype, "nodata": nodata}
    with writing_file(path, overwrite=overwrite) as temporary, rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES):
        blocks = temporary.with_name(f".{path.stem}.blocks.tif")
        try:
            options = {"tiled": True, "sparse_ok": True, "bigtiff": "IF_SAFER", **profile, **ground}
            with rasterio.open(blocks, "w", driver="GTiff", **options) as dataset:
                file = DateWriter(dataset)
                yield file
                dataset.descriptions = tuple(bands)
                dataset.update_tags(**file.provenance.tags())
            check_raster(blocks)
            # The COG driver only copies: it makes overviews from a complete dataset.
            with rasterio.Env(GDAL_NUM_THREADS="ALL_CPUS"):
                copy(blocks, temporary, driver="COG", compress="DEFLATE", predictor="YES", overviews="AUTO")
        finally:
            blocks.unlink(missing_ok=True)


def write_date(
    path: Path,
    pixels: NDArray[np.uint16],
    bands: Sequence[str],
    crs: str | None,
    transform: Sequence[float] | None,
    provenance: Provenance,
    *,
    overwrite: bool = False,
) -> None:
    """Write one date as a Cloud-Optimized GeoTIFF, whole or not at all.

    Args:
        path: ends in `.tif`; its folder is created.
        pixels: (h, w, b) from `to_dn`, 0 = nodata.
        bands: b names, written as descriptions.
        crs: anything that rasterio understands, or None.
        transform: (a, b, c, d, e, f) from pixel corners to map coordinates, or None.
        provenance: written as tags.
        overwrite: replace an existing file.

    Raises:
        ArrayError: the number of bands and of names differ.
        OutputExistsError: the file exists and `overwrite` is false.
        DiskFullError: the disk is full.
    """
    if pixels.ndim != 3 or pixels.shape[-1] != len(bands):
        raise ArrayError(f"{path}: pixels of shape {pixels.shape} do not have {len(bands)} bands ({bands})")
    height, width, _ = pixels.shape
    with writing_date(path, (height, width), bands, crs, transform, overwrite=overwrite) as file:
        file.write(pixels, 0, 0)
        file.provenance = provenance
