"""Pixels to map coordinates: centres of windows, and offsets from the georeference of a chip."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from retrieval.config import PATCH_PX
from retrieval.types import StoredImage
from tfrecords.grid import pixel_to_map
from tfrecords.read.pixel_size import east_north_m
from tfrecords.schema import Georeference

Images = Mapping[int, StoredImage]
Points = tuple[NDArray[np.float64], NDArray[np.float64]]


def lonlat(
    images: Images,
    image_ids: NDArray[Any],
    x: NDArray[Any],
    y: NDArray[Any],
    width: ArrayLike = PATCH_PX,
    height: ArrayLike = PATCH_PX,
) -> Points:
    """Return the centre of each window in degrees, WGS 84.

    Args:
        images: the index's image table.
        image_ids: (n,) image of each window; -1 for none.
        x: (n,) columns of the top-left pixels, fractions allowed.
        y: (n,) rows of the top-left pixels.
        width: columns of each window, one number or (n,).
        height: rows of each window, one number or (n,).

    Returns:
        longitude and latitude, (n,) each; NaN where the image has no CRS or there is no image.
    """
    return to_lonlat(images, image_ids, x + np.asarray(width) / 2, y + np.asarray(height) / 2)


def to_lonlat(images: Images, image_ids: NDArray[Any], x: NDArray[Any], y: NDArray[Any]) -> Points:
    """Return points of images in degrees, WGS 84.

    Args:
        images: the index's image table.
        image_ids: (n,) image of each point; -1 for none.
        x: (n,) columns, fractions allowed; 0 is the left edge of the first pixel.
        y: (n,) rows.

    Returns:
        longitude in [-180, 180] and latitude, (n,) each; NaN without an image or its CRS, and where
        PROJ cannot transform it, as with a local coordinate system.
    """
    longitude, latitude = np.full(len(x), np.nan), np.full(len(x), np.nan)
    for image, rows in _by_image(images, image_ids):
        points = pixel_to_map(image.transform, x[rows], y[rows])  # type: ignore[arg-type]
        longitude[rows], latitude[rows] = _reproject(image.crs, "EPSG:4326", *points)
    beyond = np.abs(longitude) > 180  # an image in degrees that crosses the 180th meridian
    longitude[beyond] = (longitude[beyond] + 180) % 360 - 180
    return longitude, latitude


def offsets_m(
    images: Images,
    image_ids: NDArray[Any],
    x: NDArray[Any],
    y: NDArray[Any],
    chips: Sequence[Georeference | None],
    width: NDArray[Any],
    height: NDArray[Any],
) -> Points:
    """Return the distance of each match from the position in its chip's georeference, centre to centre.

    Args:
        images: the index's image table.
        image_ids: (n,) image of each match; -1 for none.
        x: (n,) columns of the top-left pixels, fractions allowed.
        y: (n,) rows of the top-left pixels.
        chips: n georeferences; None where a chip has none.
        width: (n,) columns of each chip.
        height: (n,) rows of each chip.

    Returns:
        metres to the east and to the north, (n,) each, along the axes of the image's projection. A CRS
        in degrees gives them along the meridian and its normal. NaN where image or chip has no CRS, or
        has one that is neither projected nor in degrees, such as a local coordinate system.
    """
    east, north = np.full(len(x), np.nan), np.full(len(x), np.nan)
    for image, image_rows in _by_image(images, image_ids):
        for rows, crs in _by_crs(chips, image_rows):
            half_x, half_y = width[rows] / 2, height[rows] / 2
            transforms = np.array([getattr(chips[row], "transform") for row in rows])  # noqa: B009
            stated = _reproject(crs, image.crs, *pixel_to_map(transforms.T, half_x, half_y))  # type: ignore[arg-type]
            matched = pixel_to_map(image.transform, x[rows] + half_x, y[rows] + half_y)  # type: ignore[arg-type]
            east[rows], north[rows] = _difference_m(image.crs, stated, matched)  # type: ignore[arg-type]
    return east, north


def stated_sides_m(crs: str, transform: Sequence[float]) -> NDArray[np.float64] | None:
    """Return both sides of a pixel in metres of the map, (2,); None where the CRS is not projected.

    Args:
        crs: the coordinate reference system.
        transform: (a, b, c, d, e, f) from pixel corners to map coordinates.
    """
    unit = _unit_m(crs)
    a, b, _, d, e, _ = transform
    return None if unit is None else np.hypot([a, b], [d, e]) * unit


@cache
def _unit_m(crs: str) -> float | None:
    """Return the length of a CRS's unit in metres; None where it is not projected."""
    from rasterio.crs import CRS

    system = CRS.from_user_input(crs)
    return float(system.linear_units_factor[1]) if system.is_projected else None


@cache
def _is_geographic(crs: str) -> bool:
    """Return whether coordinates of a CRS are longitudes and latitudes."""
    from rasterio.crs import CRS

    return bool(CRS.from_user_input(crs).is_geographic)


def _by_image(images: Images, image_ids: NDArray[Any]) -> Iterator[tuple[StoredImage, NDArray[np.intp]]]:
    """Group rows by image; skip images without a position on the map."""
    for image_id in np.unique(image_ids):
        image = images.get(int(image_id))
        if image is not None and image.crs is not None and image.transform is not None:
            yield image, np.flatnonzero(image_ids == image_id)


def _by_crs(
    chips: Sequence[Georeference | None], rows: NDArray[np.intp]
) -> Iterator[tuple[NDArray[np.intp], str]]:
    """Group rows by the CRS of their chip; skip chips without one."""
    groups: dict[str, list[int]] = {}
    for row in rows.tolist():
        chip = chips[row]
        if chip is not None:
            groups.setdefault(chip.crs, []).append(row)
    for crs, members in groups.items():
        yield np.array(members), crs


def _difference_m(crs: str, start: Points, end: Points) -> Points:
    """Return the way from one point to another in metres, east and north."""
    unit = _unit_m(crs)
    dx, dy = end[0] - start[0], end[1] - start[1]
    if unit:
        return _finite(dx * unit), _finite(dy * unit)
    if not _is_geographic(crs):
        return np.full(len(dx), np.nan), np.full(len(dx), np.nan)
    east, north = east_north_m(start, end)
    return _finite(east), north


def _finite(values: NDArray[Any]) -> NDArray[np.float64]:
    """Replace infinities, which mark points outside a projection, with NaN."""
    return np.where(np.isfinite(values), values, np.nan)


def _reproject(source: str | None, target: str | None, east: NDArray[Any], north: NDArray[Any]) -> Points:
    """Return points in another CRS; NaN where PROJ cannot transform them."""
    if source == target:
        return east, north
    from rasterio.warp import transform

    try:
        x, y = transform(source, target, np.ravel(east).tolist(), np.ravel(north).tolist())
    except Exception:  # rasterio lets GDAL's own errors through, which have no public names
        return np.full(np.size(east), np.nan), np.full(np.size(east), np.nan)
    return _finite(np.asarray(x)), _finite(np.asarray(y))
