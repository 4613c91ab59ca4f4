"""Pixels of one tile of a product: its bands of 10 m as digital numbers without an offset, cloud hidden."""

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
from retrieval.ingest.safe.metadata import BANDS, Granule, Product
from retrieval.ingest.safe.tree import Tree
from tfrecords.errors import GridError, ProductError
from tfrecords.read.rasters import RESOLUTION_M

BLOCK_PX = 1024
"""Side of the blocks that products are stored and read in."""
SIGNATURE = b"\x00\x00\x00\x0cjP  \r\n\x87\n"
"""A JPEG 2000 file begins with it."""
HEAD_BYTES = 1 << 16
"""The boxes before the pixels of a JPEG 2000 file fit into so many."""


@dataclass(frozen=True)
class Tile:
    """An opened tile."""

    name: str
    """How messages call it."""
    crs: str
    """Reference system."""
    transform: tuple[float, ...]
    """(a, b, c, d, e, f) from pixel corners to map coordinates."""
    width: int
    """Columns."""
    height: int
    """Rows."""
    product: Product
    """What it is a part of."""
    bands: tuple[Any, ...]
    """Opened rasters in the order of `BANDS`."""
    scene: Any | None
    """Opened raster of the scene classification, of half the size."""

    @property
    def grid(self) -> tuple[Any, ...]:
        """Equal for tiles whose pixels lie on each other."""
        return self.crs, self.transform, self.width, self.height

    def read(self, part: PixelWindow, *, hide_snow: bool) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
        """Read a part.

        Args:
            part: which.
            hide_snow: hide snow too.

        Returns:
            Digital numbers (h, w, 4), 0 where nothing is known; and where the product has no data (h, w).

        Raises:
            ProductError: an image is damaged.
        """
        stored = [read_part(band, part, self.name) for band in self.bands]
        product = self.product
        pixels = [
            to_dn(own, product.offsets[band], product.quantification)
            for band, own in zip(BANDS, stored, strict=True)
        ]
        # The bands of a detector end at different pixels: what one lacks, none has.
        gone = np.any([own == 0 for own in stored], axis=0)
        out = np.stack(pixels, axis=-1)
        out[gone | self._hidden(part, hide_snow)] = 0
        return out, gone

    def _hidden(self, part: PixelWindow, hide_snow: bool) -> NDArray[np.bool_]:
        """What the scene classification says not to trust, each of its pixels for four."""
        if self.scene is None:
            return np.zeros((part.height, part.width), bool)
        left, top = part.x0 // 2, part.y0 // 2
        columns = np.arange(part.x0, part.x0 + part.width) // 2 - left
        rows = np.arange(part.y0, part.y0 + part.height) // 2 - top
        coarse = PixelWindow(left, top, int(columns[-1]) + 1, int(rows[-1]) + 1)
        return hidden_mask(read_part(self.scene, coarse, self.name), snow=hide_snow)[np.ix_(rows, columns)]


def read_part(dataset: Any, part: PixelWindow, name: str) -> NDArray[np.generic]:
    """Read a part of a raster's first band, (h, w).

    One stored block at a time: where a read spans several, GDAL passes over what it can't decode.

    Raises:
        ProductError: it is damaged.
    """
    from rasterio.errors import RasterioError
    from rasterio.windows import Window

    out = np.empty((part.height, part.width), dataset.dtypes[0])
    for block in part.blocks(*dataset.block_shapes[0]):
        window = Window(block.x0, block.y0, block.width, block.height)
        at = np.s_[block.y0 - part.y0 :, block.x0 - part.x0 :]
        try:
            out[at][: block.height, : block.width] = dataset.read(1, window=window)
        except (RasterioError, OSError) as error:
            raise ProductError(
                f"{name}: {dataset.name.rpartition('/')[2]} can't be decoded: it is damaged; get the product "
                "anew"
            ) from error
    return out


@contextmanager
def open_tile(product: Product, granule: Granule) -> Iterator[Tile]:
    """Open a tile and check that its images are what they should be.

    Args:
        product: the product.
        granule: which of its tiles.

    Yields:
        The tile; its files are open while the block lasts.

    Raises:
        ProductError: a band is missing, cut short or no JPEG 2000, or the images do not lie on each other.
        GridError: pixels are not of 10 m, or there is no reference system.
    """
    name = product.tree.name
    if granule.tile not in name:  # of products that hold several
        name += f" ({granule.tile})"
    missing = [band for band in BANDS if band not in granule.files]
    if missing:
        raise ProductError(
            f"{name}: its metadata name no image of {', '.join(missing)}: get the product anew"
        )
    with quiet_gdal(), ExitStack() as stack:
        bands = tuple(_image(stack, product.tree, granule.files[band], name) for band in BANDS)
        first = bands[0]
        for band, dataset in zip(BANDS, bands, strict=True):
            _check_band(dataset, first, f"{name}: {band}")
        scene = _image(stack, product.tree, granule.scene, name) if granule.scene else None
        if scene is not None:
            _check_scene(scene, first, name)
        yield Tile(
            name,
            first.crs.to_string(),
            tuple(float(value) for value in first.transform[:6]),
            first.width,
            first.height,
            product,
            bands,
            scene,
        )


def _image(stack: ExitStack, tree: Tree, file: str, name: str) -> Any:
    """Open a JPEG 2000 file after a look at its boxes."""
    import rasterio
    from rasterio.errors import RasterioError

    if not tree.has(file):
        raise ProductError(f"{name}: its image {file} is missing: get the product anew")
    _check_length(tree, file, name)
    try:
        # By no other driver: what calls itself .jp2 might be a list of other files.
        return stack.enter_context(rasterio.open(tree.gdal(file), driver="JP2OpenJPEG"))
    except (RasterioError, OSError) as error:
        raise ProductError(
            f"{name}: {file} can't be opened as JPEG 2000 ({error}): get the product anew"
        ) from error


def _check_length(tree: Tree, file: str, name: str) -> None:
    """Refuse a file that is none or was cut short: GDAL would give zeros for what is missing."""
    size, at = tree.size(file), 0
    head = tree.head(file, HEAD_BYTES)
    if not head.startswith(SIGNATURE):
        raise ProductError(f"{name}: {file} is no JPEG 2000 file: get the product anew")
    while at + 16 <= len(head):
        length, kind, large = struct.unpack_from(">I4sQ", head, at)
        length = large if length == 1 else length or size - at
        if at + length > size:
            raise ProductError(
                f"{name}: {file} has {size} bytes and should have {at + length}: it was cut short; get the "
                "product anew"
            )
        if kind == b"jp2c" or length < 8:
            return
        at += length


def _check_band(dataset: Any, first: Any, name: str) -> None:
    """Refuse an image that is no band of 10 m on the grid of the first."""
    if dataset.count != 1 or dataset.dtypes[0] != "uint16":
        raise ProductError(f"{name} has {dataset.count} bands of {dataset.dtypes[0]}; expected one of uint16")
    if not dataset.crs or not dataset.crs.is_projected:
        raise GridError(f"{name} has no reference system in metres: get the product anew")
    pixel = abs(dataset.transform.a), abs(dataset.transform.e)
    if max(abs(side - RESOLUTION_M) for side in pixel) > 0.01 * RESOLUTION_M:
        raise GridError(f"{name} has pixels of {pixel[0]:g} x {pixel[1]:g} m; expected {RESOLUTION_M:g} m")
    if (dataset.crs, dataset.transform, dataset.shape) != (first.crs, first.transform, first.shape):
        raise GridError(
            f"{name} has {dataset.height} x {dataset.width} px at {dataset.transform.c:g}, "
            f"{dataset.transform.f:g}; expected {first.height} x {first.width} at {first.transform.c:g}, "
            f"{first.transform.f:g} as {BANDS[0]}"
        )


def _check_scene(scene: Any, first: Any, name: str) -> None:
    """Refuse a scene classification whose pixels are not two by two of the bands'."""
    expected = (first.height + 1) // 2, (first.width + 1) // 2
    corner = scene.transform.c - first.transform.c, scene.transform.f - first.transform.f
    if scene.shape != expected or max(map(abs, corner)) > 0.01 * RESOLUTION_M:
        raise GridError(
            f"{name}: its scene classification has {scene.height} x {scene.width} px; expected "
            f"{expected[0]} x {expected[1]} of 20 m with the same corner as the bands"
        )
