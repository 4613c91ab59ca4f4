"""Pixel grids: do the dates of a place share one, warping to one, and which places overlap."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

import numpy as np

from tfrecords.errors import ArrayError, GridError
from tfrecords.geotiff import silent_georeference
from tfrecords.grid import map_to_pixel, pixel_to_map
from tfrecords.read import Raster
from tfrecords.read.rasters import open_raster

SAME_GRID_PX = 0.05
"""Largest distance of the corners of equal grids, pixels: coordinates are rounded."""

OPEN_FILES = 48
"""Largest number of rasters of a place that are open at a time."""

CACHE_BYTES = 256 << 20
"""Largest size of GDAL's block cache, bytes (rasterio counts bytes, GDAL itself megabytes)."""

Bounds = tuple[float, float, float, float]
"""Left, bottom, right, top."""


def corners(raster: Raster) -> np.ndarray:
    """Return the map coordinates of a raster's four corners, (4, 2)."""
    assert raster.transform is not None
    x, y = pixel_to_map(
        raster.transform, [0, raster.width, 0, raster.width], [0, 0, raster.height, raster.height]
    )
    return np.stack([x, y], axis=1)


def needs_warp(first: Raster, other: Raster) -> bool:
    """Return whether a date must be warped onto the first date's grid.

    Args:
        first: the first date.
        other: another date of the place.

    Returns:
        False where the grids are equal, or where the sizes are equal and one has no georeference.

    Raises:
        GridError: the grids differ, and one has no georeference or they do not overlap.
    """
    same_size = (first.height, first.width) == (other.height, other.width)
    known = all(raster.crs and raster.transform for raster in (first, other))
    if not known:
        if same_size and (first.transform is None or other.transform is None or _close(first, other)):
            return False
        raise GridError(
            f"{other.path}: {other.height} x {other.width} px (rows x columns), but {first.path} has "
            f"{first.height} x {first.width}, and one has no georeference. Expected one grid, or a CRS and a "
            "transform in each"
        )
    if same_size and first.crs == other.crs and _close(first, other):
        return False
    _check_overlap(first, other)
    return True


def _close(first: Raster, other: Raster) -> bool:
    """Return whether the corners of two rasters coincide, in pixels of the first."""
    assert first.transform is not None
    points = corners(other)
    x, y = map_to_pixel(first.transform, points[:, 0], points[:, 1])
    gap_x = x - [0, first.width, 0, first.width]
    gap_y = y - [0, 0, first.height, first.height]
    return bool(np.abs(np.stack([gap_x, gap_y])).max() < SAME_GRID_PX)


def bounds_in(raster: Raster, crs: str) -> Bounds:
    """Return the bounds of a raster in a CRS; curved edges are followed.

    Args:
        raster: a raster with a CRS and a transform.
        crs: the CRS of the bounds.

    Returns:
        Left, bottom, right, top.

    Raises:
        GridError: PROJ cannot transform between the two CRS, such as a local one.
    """
    from rasterio.warp import transform_bounds

    points = corners(raster)
    box = (*points.min(axis=0), *points.max(axis=0))
    try:
        left, bottom, right, top = transform_bounds(raster.crs, crs, *box)
    except Exception as error:  # rasterio lets GDAL's own errors through, which have no public names
        raise GridError(
            f"{raster.path}: PROJ cannot transform its CRS ({str(raster.crs)[:60]}) to {crs[:60]} "
            f"({str(error)[:60]}). Use a CRS that PROJ knows"
        ) from error
    return left, bottom, right, top


def _check_overlap(first: Raster, other: Raster) -> None:
    assert first.crs is not None
    expected, found = bounds_in(first, first.crs), bounds_in(other, first.crs)
    if not _overlap(expected, found):
        raise GridError(
            f"{other.path} does not overlap {first.path}, the first date of its place: in {first.crs[:40]} "
            f"their bounds (left, bottom, right, top) are {_format(found)} and {_format(expected)}. Move it "
            "to another folder"
        )


def _format(bounds: Bounds) -> str:
    return ", ".join(f"{value:.10g}" for value in bounds)


def _overlap(a: Bounds, b: Bounds) -> bool:
    return min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])


def _overlap_on_globe(a: Bounds, b: Bounds) -> bool:
    """Return whether boxes of longitude and latitude overlap; across the antimeridian east is below west."""
    a, b = ((w, s, e + 360 if e < w else e, n) for w, s, e, n in (a, b))
    return any(_overlap(a, (b[0] + turn, b[1], b[2] + turn, b[3])) for turn in (-360, 0, 360))


def overlapping(rasters: Sequence[Raster]) -> list[int]:
    """Group the places that share ground.

    Args:
        rasters: the first date of each place.

    Returns:
        For each place the position of the first place in its group; groups are connected by overlaps. A
        place without a georeference is a group. Footprints are boxes of longitude and latitude.
    """
    boxes = [_lonlat(raster) for raster in rasters]
    group = list(range(len(rasters)))
    for number, box in enumerate(boxes):
        for earlier in range(number):
            other = boxes[earlier]
            if box and other and group[earlier] != group[number] and _overlap_on_globe(box, other):
                low, high = sorted((group[earlier], group[number]))
                group = [low if value == high else value for value in group]
    return group


def _lonlat(raster: Raster) -> Bounds | None:
    """Return the bounds of a raster in degrees; None where they are unknown."""
    if not (raster.crs and raster.transform):
        return None
    try:
        return bounds_in(raster, "EPSG:4326")
    except GridError:  # a local CRS: its overlaps are unknown
        return None


@contextmanager
def quiet_gdal() -> Iterator[None]:
    """Limit GDAL's memory, and silence its warning of rasters without a georeference."""
    import rasterio

    with silent_georeference(), rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES):
        yield


class OpenDates:
    """The rasters of one place on the grid of the first, opened on demand. Use with `with`."""

    def __init__(self, rasters: Sequence[Raster], warped: Sequence[bool], nodata: float | None) -> None:
        """Create the reader; no file is opened yet.

        Args:
            rasters: the dates of the place.
            warped: whether each date must be warped onto the first one's grid.
            nodata: value that the warp writes outside of a date.
        """
        self._rasters, self._warped, self._nodata = rasters, warped, nodata
        self._open: OrderedDict[int, tuple[ExitStack, Any]] = OrderedDict()

    def __enter__(self) -> OpenDates:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stack, _ in self._open.values():
            stack.close()
        self._open.clear()

    def read(self, number: int, x0: int, y0: int, height: int, width: int) -> np.ndarray:
        """Return the pixels of one date.

        Args:
            number: position of the date.
            x0: first column on the first date's grid.
            y0: first row.
            height: rows.
            width: columns.

        Returns:
            (height, width, bands) as stored, with the tags SCALE and OFFSET applied. Where warped: bilinear,
            nodata outside; GDAL moves single bands that would equal the nodata tag by one.

        Raises:
            ArrayError: the file is damaged.
        """
        from rasterio.errors import RasterioError
        from rasterio.windows import Window

        try:
            pixels = self._dataset(number).read(window=Window(x0, y0, width, height))
        except (RasterioError, OSError) as error:
            path = self._rasters[number].path
            raise ArrayError(f"{path}: damaged, it cannot be read ({error}). Get it again") from error
        return self._rasters[number].values(np.ascontiguousarray(np.moveaxis(pixels, 0, -1)))

    def _dataset(self, number: int) -> Any:
        if number not in self._open:
            while len(self._open) >= OPEN_FILES:
                self._open.popitem(last=False)[1][0].close()
            with ExitStack() as stack:
                dataset = self._open_date(stack, number)
                self._open[number] = (stack.pop_all(), dataset)
        self._open.move_to_end(number)
        return self._open[number][1]

    def _open_date(self, stack: ExitStack, number: int) -> Any:
        from affine import Affine
        from rasterio.enums import Resampling
        from rasterio.vrt import WarpedVRT

        raster, first = self._rasters[number], self._rasters[0]
        dataset = stack.enter_context(open_raster(raster.file))
        if not self._warped[number]:
            return dataset
        assert first.transform is not None
        return stack.enter_context(
            WarpedVRT(
                dataset,
                crs=first.crs,
                transform=Affine(*first.transform),
                width=first.width,
                height=first.height,
                resampling=Resampling.bilinear,
                src_nodata=raster.stored_nodata,
                nodata=self._nodata if raster.stored_nodata is None else raster.stored_nodata,
                # A pixel is nodata where all its bands are, not band by band.
                UNIFIED_SRC_NODATA="YES",
            )
        )
