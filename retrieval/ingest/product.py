"""One date of a Sentinel-2 product as a GeoTIFF: its numbers, what is hidden, where it came from.

Every way in (SAFE, STAC) ends in the same files, `<place>/<date>.tif`, which `retrieve index` and
`retrieve ingest` take, and which open in any GIS: digital numbers with reflectance = DN / 10000,
0 where nothing is known.
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

QUANTIFICATION = 10_000
"""Digital numbers of our files for a reflectance of 1."""
SCL_HIDDEN = (0, 1, 3, 8, 9, 10)
"""Scene classes not to be trusted: no data, saturated, cloud shadow, cloud (medium, high), thin cirrus."""
SCL_SNOW = 11
"""Scene class of snow and ice."""
CACHE_BYTES = 256 << 20
"""GDAL may keep so many bytes of blocks on their way."""


def to_dn(
    stored: NDArray[np.generic], offset: float, quantification: float = QUANTIFICATION
) -> NDArray[np.uint16]:
    """Bring stored numbers to digital numbers without an offset.

    Args:
        stored: any shape, as in the product's files; 0 is no data at every baseline.
        offset: added to a stored number before it is divided: -1000 from baseline 04.00 on, else 0.
        quantification: what it is divided by to be a reflectance, as the metadata say.

    Returns:
        uint16 of the same shape: 0 where there is no data, at least 1 elsewhere.
    """
    numbers = np.rint((stored.astype(np.float64) + offset) * (QUANTIFICATION / quantification))
    return np.where(stored == 0, 0, np.clip(numbers, 1, np.iinfo(np.uint16).max)).astype(np.uint16)


def hidden_by(scl: NDArray[np.generic], *, snow: bool = False) -> NDArray[np.bool_]:
    """Which pixels a scene classification says not to trust.

    Args:
        scl: classes 0 to 11, any shape.
        snow: count snow among them.

    Returns:
        bool of the same shape.
    """
    return np.isin(scl, (*SCL_HIDDEN, SCL_SNOW) if snow else SCL_HIDDEN)


class DateFile:
    """One date in the making: blocks are written in any order, what was not written is no data."""

    provenance: Provenance
    """Written as tags when the file is finished; may be set until then."""
    ground: bool
    """Whether any pixel that was written holds something."""

    def __init__(self, dataset: Any) -> None:
        self.provenance, self.ground, self._dataset = Provenance(), False, dataset

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
        self.ground = self.ground or nodata is None or bool((pixels != nodata).any())
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
) -> Iterator[DateFile]:
    """Write one date of one place as a Cloud-Optimized GeoTIFF block by block, whole or not at all.

    Args:
        path: ends in `.tif`; its folder is made.
        shape: rows and columns.
        bands: names, written as descriptions.
        crs: anything that rasterio understands, or None.
        transform: (a, b, c, d, e, f) from pixel corners to map coordinates, or None.
        dtype: of the pixels.
        nodata: the tag, or None.
        overwrite: replace a file that is there.

    Yields:
        Where the blocks go. They are collected in a plain GeoTIFF beside it, on the disk rather than in
        memory; the file itself is made of it when the block ends well.

    Raises:
        OutputExistsError: the file is there and `overwrite` is false.
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
                file = DateFile(dataset)
                yield file
                dataset.descriptions = tuple(bands)
                dataset.update_tags(**file.provenance.tags())
            # The COG driver only copies: it needs a whole dataset to make overviews from.
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
    """Write one date of one place as a Cloud-Optimized GeoTIFF, whole or not at all.

    Args:
        path: ends in `.tif`; its folder is made.
        pixels: (h, w, b) from `to_dn`, 0 = no data.
        bands: b names, written as descriptions.
        crs: anything that rasterio understands, or None.
        transform: (a, b, c, d, e, f) from pixel corners to map coordinates, or None.
        provenance: written as tags.
        overwrite: replace a file that is there.

    Raises:
        ArrayError: shapes and names do not fit.
        OutputExistsError: the file is there and `overwrite` is false.
        DiskFullError: the disk is full.
    """
    if pixels.ndim != 3 or pixels.shape[-1] != len(bands):
        raise ArrayError(f"{path}: received pixels of shape {pixels.shape} for {len(bands)} bands ({bands})")
    height, width, _ = pixels.shape
    with writing_date(path, (height, width), bands, crs, transform, overwrite=overwrite) as file:
        file.write(pixels, 0, 0)
        file.provenance = provenance
