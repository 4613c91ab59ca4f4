"""From pixels to places on the map: centres, footprints, and how far an answer is from where a chip says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from retrieval.config import PATCH_PX
from retrieval.types import StoredImage
from tfrecords.errors import GridError
from tfrecords.grid import pixel_to_map
from tfrecords.schema import Georeference

Images = Mapping[int, StoredImage]

DEGREE = np.pi / 180
WGS84_A, WGS84_E2 = 6378137.0, 0.0066943799901413165
"""Half the long axis of the ellipsoid in metres, and its eccentricity squared."""
OTHER_PIXEL = 0.05
"""Share by which pixels of a chip may be larger or smaller than those of the images."""
DECIMALS = 8
"""Of a footprint's degrees: a millimetre."""


def lonlat(
    images: Images,
    image_ids: NDArray,
    x: NDArray,
    y: NDArray,
    width: ArrayLike = PATCH_PX,
    height: ArrayLike = PATCH_PX,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Centre of each patch in degrees, WGS 84.

    Args:
        images: the index's table.
        image_ids: (n,) of the answers; -1 for none.
        x: (n,) columns of the top-left pixels, fractions allowed.
        y: (n,) rows.
        width: columns of each, one number or (n,).
        height: rows, likewise.

    Returns:
        longitude and latitude, (n,) each; NaN where the image has no CRS or there is no answer.
    """
    return _points(images, image_ids, x + np.asarray(width) / 2, y + np.asarray(height) / 2)


def footprints(
    images: Images, image_ids: NDArray, x: NDArray, y: NDArray, width: ArrayLike, height: ArrayLike
) -> NDArray[np.object_]:
    """Outline of each window on the map.

    Args:
        images: as for `lonlat`, and so the rest.
        image_ids: (n,).
        x: (n,).
        y: (n,).
        width: one number or (n,).
        height: likewise.

    Returns:
        (n,) shapely polygons in longitude and latitude, WGS 84, counterclockwise as RFC 7946 has it, cut
        in two where they cross the 180th meridian; None where the image has no CRS.
    """
    import shapely

    width, height = np.asarray(width), np.asarray(height)
    corners = [(0, 0), (0, 1), (1, 1), (1, 0), (0, 0)]
    points = [_points(images, image_ids, x + i * width, y + j * height) for i, j in corners]
    rings = np.round(np.moveaxis(np.array(points), -1, 0), DECIMALS)  # (n, 5, 2)
    shapes = np.full(len(rings), None, object)
    known = np.isfinite(rings).all((1, 2))
    if known.any():
        around = np.ptp(rings[..., 0], axis=1) > 180
        rings[around, :, 0] %= 360
        shapes[known] = shapely.orient_polygons(shapely.polygons(rings[known]))
        for row in np.flatnonzero(known & around):
            shapes[row] = _cut_at_180(shapes[row])
    return shapes


def _cut_at_180(shape: Any) -> Any:
    """A polygon with longitudes of 0 to 360 as two with longitudes of -180 to 180."""
    import shapely

    west = shapely.intersection(shape, shapely.box(0, -90, 180, 90))
    east = shapely.intersection(shape, shapely.box(180, -90, 360, 90))
    east = shapely.transform(east, lambda xy: xy - [360, 0])
    return shapely.orient_polygons(shapely.multipolygons([west, east]))


def offsets_m(
    images: Images,
    image_ids: NDArray,
    x: NDArray,
    y: NDArray,
    chips: Sequence[Georeference | None],
    width: NDArray,
    height: NDArray,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How far each answer lies from where the chip itself says that it lies, centre from centre.

    Args:
        images: the index's table.
        image_ids: (n,) of the answers; -1 for none.
        x: (n,) columns of the top-left pixels, fractions counted.
        y: (n,) rows.
        chips: n times what the chip says.
        width: (n,) columns of each.
        height: (n,) rows.

    Returns:
        metres to the east and to the north, (n,) each, along the axes of the image's projection (along
        the meridian and its normal where it is in degrees); NaN where image or chip has no CRS.
    """
    east, north = np.full(len(x), np.nan), np.full(len(x), np.nan)
    for image, mine in _by_image(images, image_ids):
        for rows, chip in _by_crs(chips, mine):
            half_x, half_y = width[rows] / 2, height[rows] / 2
            transforms = np.array([getattr(chips[row], "transform") for row in rows])  # noqa: B009
            said = _transformed(chip, image.crs, *pixel_to_map(transforms.T, half_x, half_y))  # type: ignore[arg-type]
            found = pixel_to_map(image.transform, x[rows] + half_x, y[rows] + half_y)  # type: ignore[arg-type]
            east[rows], north[rows] = _metres(image.crs, said, found)  # type: ignore[arg-type]
    return east, north


def check_resolution(images: Images, chips: Sequence[Georeference | None], names: Sequence[str]) -> None:
    """Refuse chips whose pixels are of another size than those of every image, before the search.

    Only projected systems say it in metres; of others nothing is known.

    Args:
        images: the index's table.
        chips: where each chip says that it lies.
        names: files of the chips.

    Raises:
        GridError: names the first such chip, and says how to resample it.
    """
    sides = {pixel_m(i.crs, i.transform) for i in images.values() if i.crs and i.transform}
    known = sorted(side for side in sides if side)
    for chip, name in zip(chips, names, strict=False):
        side = pixel_m(chip.crs, chip.transform) if chip else None
        if side and known and all(abs(side / other - 1) > OTHER_PIXEL for other in known):
            goal = min(known, key=lambda other: abs(other - side))
            raise GridError(
                f"{name}: its pixels are of {side:g} m, those of the images of "
                f"{', '.join(f'{k:g}' for k in known)} m; expected the same: resample it, with "
                f"gdalwarp -tr {goal:g} {goal:g} -r average"
            )


def pixel_m(crs: str, transform: Sequence[float]) -> float | None:
    """Side of a pixel in metres; None for a system that is not projected."""
    unit = _metres_of(crs)
    return unit and round(float(np.hypot(transform[0], transform[3])) * unit, 6)


@cache
def _metres_of(crs: str) -> float | None:
    """Length of a system's unit in metres; None where it is not projected."""
    from rasterio.crs import CRS

    system = CRS.from_user_input(crs)
    return float(system.linear_units_factor[1]) if system.is_projected else None


def _by_image(images: Images, image_ids: NDArray) -> Iterator[tuple[StoredImage, NDArray[np.intp]]]:
    """Rows grouped by their image, images without a place on the map left out."""
    for image_id in np.unique(image_ids):
        image = images.get(int(image_id))
        if image is not None and image.crs is not None and image.transform is not None:
            yield image, np.flatnonzero(image_ids == image_id)


def _by_crs(
    chips: Sequence[Georeference | None], rows: NDArray[np.intp]
) -> Iterator[tuple[NDArray[np.intp], str]]:
    """Rows grouped by their chip's CRS, those without one left out."""
    groups: dict[str, list[int]] = {}
    for row in rows.tolist():
        chip = chips[row]
        if chip is not None:
            groups.setdefault(chip.crs, []).append(row)
    for crs, mine in groups.items():
        yield np.array(mine), crs


def _metres(crs: str, said: tuple[NDArray, NDArray], found: tuple[NDArray, NDArray]) -> Any:
    """From one point to another, (east, north) in metres."""
    unit = _metres_of(crs)
    dx, dy = found[0] - said[0], found[1] - said[1]
    if unit:
        return _finite(dx * unit), _finite(dy * unit)
    sin = np.sin(said[1] * DEGREE)
    normal = WGS84_A / np.sqrt(1 - WGS84_E2 * sin**2)
    meridian = normal * (1 - WGS84_E2) / (1 - WGS84_E2 * sin**2)
    dx = (dx + 180) % 360 - 180
    return _finite(dx * DEGREE * normal * np.sqrt(1 - sin**2)), _finite(dy * DEGREE * meridian)


def _finite(values: NDArray) -> NDArray:
    """NaN for what no projection could tell."""
    return np.where(np.isfinite(values), values, np.nan)


def _points(
    images: Images, image_ids: NDArray, x: NDArray, y: NDArray
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Longitude and latitude of points of images, NaN where there are none."""
    longitude, latitude = np.full(len(x), np.nan), np.full(len(x), np.nan)
    for image, mine in _by_image(images, image_ids):
        at = pixel_to_map(image.transform, x[mine], y[mine])  # type: ignore[arg-type]
        longitude[mine], latitude[mine] = _transformed(image.crs, "EPSG:4326", *at)
    beyond = np.abs(longitude) > 180  # an image in degrees that goes on behind the 180th meridian
    longitude[beyond] = (longitude[beyond] + 180) % 360 - 180
    return longitude, latitude


def _transformed(
    source: str | None, goal: str | None, east: NDArray, north: NDArray
) -> tuple[NDArray, NDArray]:
    if source == goal:
        return east, north
    from rasterio.warp import transform

    x, y = transform(source, goal, np.ravel(east).tolist(), np.ravel(north).tolist())
    return np.asarray(x), np.asarray(y)
