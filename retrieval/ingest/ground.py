"""Pixel grids: whether the dates of a place share one, how they are brought to one, which places overlap."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any

import numpy as np

from tfrecords.errors import ArrayError, GridError
from tfrecords.grid import map_to_pixel, pixel_to_map
from tfrecords.read import Raster

SAME_GRID_PX = 0.05
"""Corners that lie within this of each other are one grid: what rounding of coordinates does."""

OPEN_FILES = 48
"""So many rasters of a place are kept open at a time."""

CACHE_BYTES = 256 << 20
"""GDAL may keep so many bytes of decoded blocks; for rasterio these are bytes, for GDAL itself megabytes."""

Bounds = tuple[float, float, float, float]
"""Left, bottom, right, top."""


def corners(raster: Raster) -> np.ndarray:
    """Map coordinates of a raster's four corners, (4, 2)."""
    assert raster.transform is not None
    x, y = pixel_to_map(
        raster.transform, [0, raster.width, 0, raster.width], [0, 0, raster.height, raster.height]
    )
    return np.stack([x, y], axis=1)


def needs_warp(first: Raster, other: Raster) -> bool:
    """Whether a date has to be brought onto the first date's grid.

    Args:
        first: The first date.
        other: Another date of the place.

    Returns:
        False where the grids are one, or where the sizes are and one of them has no georeference.

    Raises:
        GridError: The grids differ, and one has no georeference, or they do not overlap.
    """
    same_size = (first.height, first.width) == (other.height, other.width)
    known = all(raster.crs and raster.transform for raster in (first, other))
    if not known:
        if same_size and (first.transform is None or other.transform is None or _close(first, other)):
            return False
        raise GridError(
            f"{other.path} has {other.height} x {other.width} px (rows x columns), {first.path} "
            f"{first.height} x {first.width}, and not both say where they lie; expected one grid, or a "
            "reference system and a transform in each: cut them alike, or georeference them"
        )
    if same_size and first.crs == other.crs and _close(first, other):
        return False
    _check_overlap(first, other)
    return True


def _close(first: Raster, other: Raster) -> bool:
    """Whether the corners of one lie on the other's, in pixels of the first."""
    assert first.transform is not None
    at = corners(other)
    x, y = map_to_pixel(first.transform, at[:, 0], at[:, 1])
    gap_x = x - [0, first.width, 0, first.width]
    gap_y = y - [0, 0, first.height, first.height]
    return bool(np.abs(np.stack([gap_x, gap_y])).max() < SAME_GRID_PX)


def bounds_in(raster: Raster, crs: str) -> Bounds:
    """Bounds of a raster in a reference system, its edges followed.

    Args:
        raster: A raster with a reference system and a transform.
        crs: The reference system that is wanted.

    Returns:
        Left, bottom, right, top.

    Raises:
        GridError: The one system cannot be related to the other: a local one, or one of another body.
    """
    from rasterio.warp import transform_bounds

    at = corners(raster)
    box = (*at.min(axis=0), *at.max(axis=0))
    try:
        left, bottom, right, top = transform_bounds(raster.crs, crs, *box)
    except Exception as error:  # rasterio lets GDAL's own errors through, which have no public names
        raise GridError(
            f"{raster.path}: its reference system ({str(raster.crs)[:60]}) can't be related to {crs[:60]} "
            f"({str(error)[:60]}): give the files of a place one that is known to PROJ"
        ) from error
    return left, bottom, right, top


def _check_overlap(first: Raster, other: Raster) -> None:
    assert first.crs is not None
    one, two = bounds_in(first, first.crs), bounds_in(other, first.crs)
    if not _meet(one, two):
        raise GridError(
            f"{other.path} does not overlap {first.path}, the first date of its place: in {first.crs[:40]} "
            f"it lies at {_shown(two)}, the first at {_shown(one)} (left, bottom, right, top): put it in a "
            "folder of its own"
        )


def _shown(bounds: Bounds) -> str:
    return ", ".join(f"{value:.10g}" for value in bounds)


def _meet(one: Bounds, two: Bounds) -> bool:
    return min(one[2], two[2]) > max(one[0], two[0]) and min(one[3], two[3]) > max(one[1], two[1])


def _meet_on_globe(one: Bounds, two: Bounds) -> bool:
    """Whether boxes of longitude and latitude meet; over the antimeridian, the east is below the west."""
    one, two = ((w, s, e + 360 if e < w else e, n) for w, s, e, n in (one, two))
    return any(_meet(one, (two[0] + turn, two[1], two[2] + turn, two[3])) for turn in (-360, 0, 360))


def overlapping(rasters: Sequence[Raster]) -> list[int]:
    """Number the places so that those that share ground have one number.

    Args:
        rasters: The first date of each place.

    Returns:
        For each place the position of the first place that it is connected to by overlaps; its own where
        it has none or no georeference. Footprints are compared as boxes of longitude and latitude.
    """
    boxes = [_lonlat(raster) for raster in rasters]
    group = list(range(len(rasters)))
    for number, box in enumerate(boxes):
        for earlier in range(number):
            other = boxes[earlier]
            if box and other and group[earlier] != group[number] and _meet_on_globe(box, other):
                low, high = sorted((group[earlier], group[number]))
                group = [low if value == high else value for value in group]
    return group


def _lonlat(raster: Raster) -> Bounds | None:
    """Where a raster lies on the globe, as far as that is known."""
    if not (raster.crs and raster.transform):
        return None
    try:
        return bounds_in(raster, "EPSG:4326")
    except GridError:  # a local system: nobody knows whom it overlaps
        return None


@contextmanager
def quiet_gdal() -> Iterator[None]:
    """Bound GDAL's memory; that a raster may have no georeference is no reason to warn."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    with warnings.catch_warnings(), rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


class OpenDates:
    """Rasters of one place, opened when they are asked for, on the grid of the first; use with `with`."""

    def __init__(self, rasters: Sequence[Raster], warped: Sequence[bool], nodata: float | None) -> None:
        """Name the rasters.

        Args:
            rasters: The dates of the place.
            warped: Which of them have to be brought onto the first one's grid.
            nodata: What the warp puts where a date has no ground.
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
        """Pixels of one date.

        Args:
            number: Which date.
            x0: First column on the first date's grid.
            y0: First row.
            height: Rows.
            width: Columns.

        Returns:
            (height, width, bands) as stored. Where warped: bilinear, nodata outside, and single bands that
            would equal the nodata tag moved off it by one (GDAL's doing).

        Raises:
            ArrayError: The file is damaged.
        """
        from rasterio.errors import RasterioError
        from rasterio.windows import Window

        try:
            pixels = self._dataset(number).read(window=Window(x0, y0, width, height))
        except (RasterioError, OSError) as error:
            path = self._rasters[number].path
            raise ArrayError(f"{path} can't be read ({error}): it is damaged; get it anew") from error
        return np.ascontiguousarray(np.moveaxis(pixels, 0, -1))

    def _dataset(self, number: int) -> Any:
        if number not in self._open:
            while len(self._open) >= OPEN_FILES:
                self._open.popitem(last=False)[1][0].close()
            with ExitStack() as stack:
                dataset = self._opened(stack, number)
                self._open[number] = (stack.pop_all(), dataset)
        self._open.move_to_end(number)
        return self._open[number][1]

    def _opened(self, stack: ExitStack, number: int) -> Any:
        import rasterio
        from affine import Affine
        from rasterio.enums import Resampling
        from rasterio.vrt import WarpedVRT

        own, first = self._rasters[number], self._rasters[0]
        dataset = stack.enter_context(rasterio.open(own.path))
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
                src_nodata=own.nodata,
                nodata=self._nodata if own.nodata is None else own.nodata,
                # A pixel is nodata where all its bands are, not each band by itself.
                UNIFIED_SRC_NODATA="YES",
            )
        )
