"""The pixels of one tile of a product: 10 m bands as digital numbers without an offset, cloud hidden."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.geo.pixel_window import PixelWindow
from retrieval.ingest.dated_image import hidden_mask, to_dn
from retrieval.ingest.grids import quiet_gdal
from retrieval.ingest.safe.clouds import CLASSI_PX, CloudPolygons, read_polygons
from retrieval.ingest.safe.metadata import BANDS, Granule, Product
from retrieval.ingest.safe.tree import Tree
from tfrecords.errors import GridError, ProductError
from tfrecords.read.rasters import RESOLUTION_M

BLOCK_PX = 1024
"""Side of the blocks in which products are stored and read."""
SIGNATURE = b"\x00\x00\x00\x0cjP  \r\n\x87\n"
"""The first bytes of a JPEG 2000 file."""
MAJA_SNOW = 1 << 2
"""Bit of snow in the geophysical mask of MAJA."""
HEAD_BYTES = 1 << 16
"""Largest size of the boxes before the pixels of a JPEG 2000 file."""


@dataclass(frozen=True)
class Tile:
    """An open tile."""

    name: str
    """Its name in messages."""
    crs: str
    """Coordinate reference system."""
    transform: tuple[float, ...]
    """(a, b, c, d, e, f) from pixel corners to map coordinates."""
    width: int
    """Columns."""
    height: int
    """Rows."""
    product: Product
    """Its product."""
    bands: tuple[Any, ...]
    """Open rasters in the order of `BANDS`."""
    scene: Any | None
    """Open raster of the scene classification, half as large; None for Level-1C."""
    clouds: CloudPolygons | CloudRaster | MajaMasks | None = None
    """Cloud mask of Level-1C, or the masks of MAJA; None where the product lacks it."""

    @property
    def grid(self) -> tuple[Any, ...]:
        """Equal for tiles with the same pixels."""
        return self.crs, self.transform, self.width, self.height

    def read(self, window: PixelWindow, *, hide_snow: bool) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
        """Read a window.

        Args:
            window: the window.
            hide_snow: hide snow too.

        Returns:
            Digital numbers (h, w, 4), 0 where nodata or hidden; and where the product has no data (h, w).

        Raises:
            ProductError: an image is damaged.
        """
        stored = [read_window(band, window, self.name) for band in self.bands]
        product = self.product
        pixels = [
            to_dn(numbers, product.offsets[band], product.quantification, product.nodata)
            for band, numbers in zip(BANDS, stored, strict=True)
        ]
        # The bands of a detector end at different pixels: a pixel that one band lacks is nodata in all.
        empty = np.any([numbers == product.nodata for numbers in stored], axis=0)
        if isinstance(self.clouds, MajaMasks):
            empty |= self.clouds.empty(window, self.name)
        out = np.stack(pixels, axis=-1)
        out[empty | self._hidden(window, hide_snow)] = 0
        return out, empty

    def _hidden(self, window: PixelWindow, hide_snow: bool) -> NDArray[np.bool_]:
        """Return what the scene classification or the cloud mask of Level-1C hides."""
        if isinstance(self.clouds, CloudPolygons):
            return self.clouds.hidden(window)
        if isinstance(self.clouds, CloudRaster | MajaMasks):
            return self.clouds.hidden(window, self.name, hide_snow=hide_snow)
        if self.scene is None:
            return np.zeros((window.height, window.width), bool)
        coarse, place = coarse_window(window, 2)
        return hidden_mask(read_window(self.scene, coarse, self.name), snow=hide_snow)[place]


@dataclass(frozen=True)
class CloudRaster:
    """Clouds as a raster of 60 m with the bands opaque cloud, cirrus and snow."""

    dataset: Any
    """The open raster."""

    def hidden(self, window: PixelWindow, name: str, *, hide_snow: bool) -> NDArray[np.bool_]:
        """Return the pixels of a window that it marks, (h, w) bool."""
        coarse, place = coarse_window(window, CLASSI_PX)
        bands = (1, 2, 3) if hide_snow else (1, 2)
        marks = [read_window(self.dataset, coarse, name, band) for band in bands]
        return np.any(marks, axis=0)[place]


@dataclass(frozen=True)
class MajaMasks:
    """The masks of MAJA at 10 m, each an open raster, or None where the product lacks it.

    Source: https://www.cesbio.cnrs.fr/maja/sentinel-2-output-format/
    """

    clouds: Any | None
    """Bits for clouds, thin clouds and shadows: any of them hides a pixel."""
    edge: Any | None
    """1 outside of the image."""
    geophysical: Any | None
    """Bits for water, snow and relief."""

    def hidden(self, window: PixelWindow, name: str, *, hide_snow: bool) -> NDArray[np.bool_]:
        """Return the pixels of a window that the masks mark as cloud, shadow or snow, (h, w) bool."""
        marks = np.zeros((window.height, window.width), bool)
        if self.clouds is not None:
            marks |= read_window(self.clouds, window, name) != 0
        if hide_snow and self.geophysical is not None:
            marks |= (read_window(self.geophysical, window, name).astype(np.uint8) & MAJA_SNOW) != 0
        return marks

    def empty(self, window: PixelWindow, name: str) -> NDArray[np.bool_]:
        """Return the pixels of a window that lie outside of the image, (h, w) bool."""
        if self.edge is None:
            return np.zeros((window.height, window.width), bool)
        return np.asarray(read_window(self.edge, window, name) != 0)


def coarse_window(window: PixelWindow, factor: int) -> tuple[PixelWindow, Any]:
    """Return the window of a coarser raster that covers a window, and an index that enlarges its pixels.

    Args:
        window: pixels of 10 m.
        factor: columns and rows of 10 m in a coarse pixel.
    """
    left, top = window.x0 // factor, window.y0 // factor
    columns = np.arange(window.x0, window.x0 + window.width) // factor - left
    rows = np.arange(window.y0, window.y0 + window.height) // factor - top
    return PixelWindow(left, top, int(columns[-1]) + 1, int(rows[-1]) + 1), np.ix_(rows, columns)


def read_window(dataset: Any, window: PixelWindow, name: str, band: int = 1) -> NDArray[np.generic]:
    """Read a window of one band of a raster, (h, w).

    Each stored block is read by itself: GDAL ignores damaged blocks in a read of several.

    Raises:
        ProductError: the file is damaged.
    """
    from rasterio.errors import RasterioError
    from rasterio.windows import Window

    out = np.empty((window.height, window.width), dataset.dtypes[0])
    for block in window.blocks(*dataset.block_shapes[0]):
        at = Window(block.x0, block.y0, block.width, block.height)
        rest = out[block.y0 - window.y0 :, block.x0 - window.x0 :]
        try:
            rest[: block.height, : block.width] = dataset.read(band, window=at)
        except (RasterioError, OSError) as error:
            raise ProductError(
                f"{name}: {dataset.name.rpartition('/')[2]} is damaged and cannot be decoded. Download the "
                "product again"
            ) from error
    return out


@contextmanager
def open_tile(product: Product, granule: Granule) -> Iterator[Tile]:
    """Open a tile, and check its images.

    Args:
        product: the product.
        granule: one of its tiles.

    Yields:
        The tile; its files are open in the block.

    Raises:
        ProductError: a band is missing, truncated or not JPEG 2000.
        GridError: the images differ in their grid, pixels are not 10 m, or there is no CRS in metres.
    """
    name = product.tree.name
    if granule.tile not in name:  # products with several tiles
        name += f" ({granule.tile})"
    missing = [band for band in BANDS if band not in granule.files]
    if len(missing) == len(BANDS) and granule.coarse:
        raise ProductError(
            f"{name}: its images of {', '.join(missing)} are not of 10 m. Run Sen2Cor with --resolution 10, "
            "or use the product as ESA distributes it"
        )
    if missing and product.tree.layout != "safe":
        raise ProductError(
            f"{name}: no image of {', '.join(missing)} of 10 m next to its metadata. Add it from the archive"
        )
    if missing:
        raise ProductError(
            f"{name}: its metadata name no image of {', '.join(missing)}. Download the product again"
        )
    with quiet_gdal(), ExitStack() as stack:
        bands = tuple(_image(stack, product.tree, granule.files[band], name) for band in BANDS)
        first = bands[0]
        for band, dataset in zip(BANDS, bands, strict=True):
            _check_band(dataset, first, product.dtype, f"{name}: {band}")
        scene = _image(stack, product.tree, granule.scene, name) if granule.scene else None
        if scene is not None:
            _check_coarse(scene, first, 2, f"{name}: its scene classification")
        yield Tile(
            name,
            first.crs.to_string(),
            tuple(float(value) for value in first.transform[:6]),
            first.width,
            first.height,
            product,
            bands,
            scene,
            _open_clouds(stack, product, granule, first, name),
        )


def _open_clouds(
    stack: ExitStack, product: Product, granule: Granule, first: Any, name: str
) -> CloudPolygons | CloudRaster | MajaMasks | None:
    """Open the cloud mask of a tile of Level-1C, or the masks of MAJA, if it has any."""
    if product.tree.layout == "maja":
        files = granule.clouds, granule.edge, granule.snow
        masks = [_image(stack, product.tree, file, name) if file else None for file in files]
        for mask in masks:
            if mask is not None:
                _check_coarse(mask, first, 1, f"{name}: its mask {mask.name.rpartition('/')[2]}")
        return MajaMasks(*masks)
    if granule.clouds is None:
        return None
    if granule.clouds.endswith(".gml"):
        return read_polygons(product.tree, granule.clouds, tuple(first.transform[:6]))
    dataset = _image(stack, product.tree, granule.clouds, name)
    _check_coarse(dataset, first, CLASSI_PX, f"{name}: its cloud mask")
    return CloudRaster(dataset)


def _image(stack: ExitStack, tree: Tree, file: str, name: str) -> Any:
    """Open a JPEG 2000 file, after a check of its boxes, or a GeoTIFF."""
    import rasterio
    from rasterio.errors import RasterioError

    if not tree.has(file):
        raise ProductError(f"{name}: its image {file} is missing. Download the product again")
    # Only the driver of the suffix: a file named .jp2 could be a list of other files.
    driver, kind = ("JP2OpenJPEG", "JPEG 2000") if file.endswith(".jp2") else ("GTiff", "GeoTIFF")
    if file.endswith(".jp2"):
        _check_length(tree, file, name)
    try:
        return stack.enter_context(rasterio.open(tree.gdal(file), driver=driver))
    except (RasterioError, OSError) as error:
        raise ProductError(
            f"{name}: {file} cannot be opened as {kind} ({error}). Download the product again"
        ) from error


def _check_length(tree: Tree, file: str, name: str) -> None:
    """Check that a file is JPEG 2000 and whole: GDAL returns zeros for missing pixels."""
    size, at = tree.size(file), 0
    head = tree.head(file, HEAD_BYTES)
    if not head.startswith(SIGNATURE):
        raise ProductError(f"{name}: {file} is not a JPEG 2000 file. Download the product again")
    while at + 16 <= len(head):
        length, kind, large = struct.unpack_from(">I4sQ", head, at)
        length = large if length == 1 else length or size - at
        if at + length > size:
            raise ProductError(
                f"{name}: {file} is truncated, {size} of {at + length} bytes. Download the product again"
            )
        if kind == b"jp2c" or length < 8:
            return
        at += length


def _check_band(dataset: Any, first: Any, dtype: str, name: str) -> None:
    """Check that an image is a 10 m band on the grid of the first."""
    if dataset.count != 1 or dataset.dtypes[0] != dtype:
        raise ProductError(f"{name}: {dataset.count} bands of {dataset.dtypes[0]}. Expected one of {dtype}")
    if not dataset.crs or not dataset.crs.is_projected:
        raise GridError(f"{name}: no CRS in metres. Download the product again")
    pixel = abs(dataset.transform.a), abs(dataset.transform.e)
    if max(abs(side - RESOLUTION_M) for side in pixel) > 0.01 * RESOLUTION_M:
        raise GridError(f"{name}: pixels of {pixel[0]:g} x {pixel[1]:g} m. Expected {RESOLUTION_M:g} m")
    if (dataset.crs, dataset.transform, dataset.shape) != (first.crs, first.transform, first.shape):
        raise GridError(
            f"{name}: {dataset.height} x {dataset.width} px at {dataset.transform.c:g}, "
            f"{dataset.transform.f:g}. Expected {first.height} x {first.width} at {first.transform.c:g}, "
            f"{first.transform.f:g} like {BANDS[0]}"
        )


def _check_coarse(mask: Any, first: Any, factor: int, name: str) -> None:
    """Check that each pixel of a mask covers `factor` by `factor` pixels of the bands."""
    expected = -(-first.height // factor), -(-first.width // factor)
    corner = mask.transform.c - first.transform.c, mask.transform.f - first.transform.f
    if mask.shape != expected or max(map(abs, corner)) > 0.01 * RESOLUTION_M:
        raise GridError(
            f"{name} has {mask.height} x {mask.width} px. Expected {expected[0]} x {expected[1]} of "
            f"{factor * RESOLUTION_M:g} m with the corner of the bands"
        )
