"""Where an answer may lie: in images of some dates, and with its centre in an area of the map.

Search is restricted to the windows that could lead there, so that a patch still has all its
candidates; what refinement moves out again is dropped at the end. So no answer is ever outside, and
no place inside is missed because windows lie on a grid.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from retrieval.config import PATCH_PX
from retrieval.errors import ConfigError
from retrieval.geo.coordinates import lonlat
from retrieval.types import NO_CANDIDATE, RankedCandidates, StoredImage, pack_ids
from tfrecords.errors import MissingInputError
from tfrecords.grid import map_to_pixel, pixel_to_map
from tfrecords.schema import days_of

EDGE_POINTS = 33
"""Points on each edge of an image that tell its extent in degrees."""
STEP_DEGREES = 0.02
"""Edges of an area are cut into pieces no longer than this before they are projected: they bend."""
MARGIN_PX = 2.0
"""Added to what may be searched for what those pieces still bend."""


@dataclass(frozen=True, eq=False)
class SearchFilter:
    """Which images, and which part of them, may be answered."""

    images: Mapping[int, StoredImage]
    """Those of the index that may be, by id; at least one."""
    area: Any = None
    """Shapely geometry in longitude and latitude, WGS 84; None for everywhere."""
    note: str = ""
    """How many images are left out, and why; one sentence."""

    def windows(self, stride_px: int, reach_px: float) -> NDArray[np.int64]:
        """Windows of the index that may lead to an answer inside.

        Args:
            stride_px: the index's.
            reach_px: how far an answer's centre may lie from the centre of a window that leads to it.

        Returns:
            (m,) packed ids, ascending; some may not be in the index, for want of something to see.
        """
        parts = [self._of_image(image, stride_px, reach_px + MARGIN_PX) for image in self.images.values()]
        return np.sort(np.concatenate(parts))

    def _of_image(self, image: StoredImage, stride_px: int, reach_px: float) -> NDArray[np.int64]:
        import shapely

        starts = _starts(image.height, stride_px), _starts(image.width, stride_px)
        y, x = (v.ravel() for v in np.meshgrid(*starts, indexing="ij"))
        if self.area is not None:
            wide = shapely.buffer(_in_pixels(self.area, image), reach_px * 2**0.5)
            shapely.prepare(wide)
            inside = shapely.contains_xy(wide, x + PATCH_PX / 2, y + PATCH_PX / 2)
            x, y = x[inside], y[inside]
        return pack_ids(np.full(len(x), image.image_id), x, y)

    def contains(
        self,
        image_ids: NDArray,
        x: NDArray,
        y: NDArray,
        width: ArrayLike = PATCH_PX,
        height: ArrayLike = PATCH_PX,
    ) -> NDArray[np.bool_]:
        """Whether answers are inside.

        Args:
            image_ids: (n,); -1 for none.
            x: (n,) columns of the top-left pixels, fractions counted.
            y: (n,) rows.
            width: columns of each, one number or (n,).
            height: rows, likewise.

        Returns:
            (n,) bool: the image is one of `images`, and the centre is in the area.
        """
        import shapely

        inside = np.isin(image_ids, list(self.images))
        if self.area is not None:
            longitude, latitude = lonlat(self.images, image_ids, x, y, width, height)
            # Points of the edge are inside, as GeoJSON's polygons are closed.
            inside &= shapely.intersects_xy(self.area, longitude, latitude)
        return inside


def read_filter(
    images: Mapping[int, StoredImage], between: str | None = None, within: str | Path | None = None
) -> SearchFilter | None:
    """Read what restricts the answers.

    Args:
        images: the index's table.
        between: two dates with a slash, either of them YYYY, YYYY-MM or YYYY-MM-DD, both inclusive; one
            may be missing, or be `..`.
        within: a GeoJSON file of polygons in longitude and latitude.

    Returns:
        What is left, None where nothing restricts.

    Raises:
        ConfigError: dates that are none or the wrong way round, a file that is no GeoJSON, holds no
            polygon or is not in degrees; or no image is left.
        MissingInputError: no such file.
    """
    left, notes, area = dict(images), [], None
    if between is not None:
        first, last = _span(between)
        undated = [i for i, image in left.items() if not days_of(image.date or "")]
        left = {i: image for i, image in left.items() if _is_between(image.date, first, last)}
        notes.append(f"--between {between}: {len(left)} of {len(images)} images{_without(undated, 'a date')}")
    if within is not None:
        area, before = read_area(within), len(left)
        unplaced = [i for i, image in left.items() if image.crs is None or image.transform is None]
        left = {i: image for i, image in left.items() if _reaches(area, image)}
        notes.append(f"--within {within}: {len(left)} of {before} images{_without(unplaced, 'a CRS')}")
    note = "; ".join(notes)
    if notes and not left:
        swapped = ", and of what is meant by the area: GeoJSON has the longitude first" if within else ""
        raise ConfigError(
            f"{note}: no image is left to answer from; expected one at least: ask for more{swapped}"
        )
    return SearchFilter(left, area, note) if notes else None


def _without(left_out: Sequence[int], what: str) -> str:
    return f" ({len(left_out)} without {what} left out)" if left_out else ""


# --- dates ----------------------------------------------------------------------------------------


def _span(between: str) -> tuple[str, str]:
    """First and last day that are asked for."""
    ends = [end.strip() for end in between.split("/")]
    ends = ends * 2 if len(ends) == 1 and ends[0] else ends
    if len(ends) != 2 or all(end in ("", "..") for end in ends):
        raise ConfigError(
            f"--between {between}: expected two dates with a slash, such as 2019-01/2021-12 or 2019/.."
        )
    days = [("0000", "9999") if end in ("", "..") else days_of(end) for end in ends]
    if days[0] is None or days[1] is None:
        wrong = ends[0 if days[0] is None else 1]
        raise ConfigError(f"--between {between}: {wrong!r} is no date; expected YYYY, YYYY-MM or YYYY-MM-DD")
    first, last = days[0][0], days[1][1]
    if first > last:
        raise ConfigError(
            f"--between {between}: the first date is after the last; expected {ends[1]}/{ends[0]}"
        )
    return first, last


def _is_between(date: str | None, first: str, last: str) -> bool:
    """Whether all days that a date may mean lie in a span."""
    days = days_of(date or "")
    return days is not None and first <= days[0] and days[1] <= last


# --- areas ----------------------------------------------------------------------------------------


def read_area(path: str | Path) -> Any:
    """Read the polygons of a GeoJSON file (RFC 7946).

    Args:
        path: holds a FeatureCollection, Feature, GeometryCollection, Polygon or MultiPolygon.

    Returns:
        Their union, a shapely geometry in longitude and latitude.

    Raises:
        MissingInputError: no such file.
        ConfigError: no GeoJSON, no polygon in it, a ring of fewer than three corners, or numbers that are no
            degrees.
    """
    import shapely

    content = _read_json(Path(path))
    _refuse_other_crs(content, path)
    found = list(_polygons(content))
    if not found:
        raise ConfigError(
            f"{path}: there is no polygon in it; expected GeoJSON with a Polygon or MultiPolygon"
        )
    try:
        shapes = [shapely.make_valid(shapely.geometry.shape(one)) for one in found]
    except (
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        shapely.errors.ShapelyError,
    ) as error:
        raise ConfigError(
            f"{path}: a polygon of it can't be read ({error}); expected closed rings of [lon, lat]"
        ) from error
    area = shapely.union_all(shapes)
    west, south, east, north = area.bounds if not area.is_empty else (np.nan,) * 4
    if not (-180 <= west and east <= 180 and -90 <= south and north <= 90):
        raise ConfigError(
            f"{path}: its coordinates span {west:g} to {east:g} and {south:g} to {north:g}; expected "
            "longitude from -180 to 180 and then latitude from -90 to 90, in degrees: put them in this "
            "order, or transform them to EPSG:4326"
        )
    shapely.prepare(area)
    return area


def _read_json(path: Path) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise MissingInputError(f"{path}: {error.strerror}; expected a GeoJSON file of polygons") from error
    except ValueError as error:
        raise ConfigError(
            f"{path} is no GeoJSON ({error}); expected a text such as geojson.io gives"
        ) from error
    if not isinstance(content, dict) or "type" not in content:
        raise ConfigError(
            f"{path} is JSON, but no GeoJSON: it has no type; expected polygons in a FeatureCollection"
        )
    return content


def _refuse_other_crs(content: Mapping[str, Any], path: str | Path) -> None:
    """Refuse the crs member of GeoJSON before RFC 7946, unless it names what the RFC has."""
    named = json.dumps(content.get("crs") or "CRS84")
    if not any(known in named for known in ("CRS84", "EPSG::4326", "EPSG:4326")):
        raise ConfigError(
            f"{path}: its crs is {named}; expected longitude and latitude: transform it to EPSG:4326"
        )


def _polygons(content: Any) -> Iterator[Mapping[str, Any]]:
    """Every polygon below a GeoJSON object."""
    if not isinstance(content, dict):
        return
    if content.get("type") in ("Polygon", "MultiPolygon"):
        yield content
    for name in ("features", "geometries"):
        inner = content.get(name)
        for one in inner if isinstance(inner, list) else ():
            yield from _polygons(one)
    yield from _polygons(content.get("geometry"))


def _reaches(area: Any, image: StoredImage) -> bool:
    """Whether some of an area lies in an image."""
    import shapely

    return bool(shapely.intersects(_in_pixels(area, image), shapely.box(0, 0, image.width, image.height)))


def _in_pixels(area: Any, image: StoredImage) -> Any:
    """The part of an area near an image, in the image's pixels; empty where there is none."""
    import shapely
    from rasterio.warp import transform

    if image.crs is None or image.transform is None:
        return shapely.Polygon()
    near = shapely.intersection(area, shapely.union_all(_extent(image)))
    near = shapely.segmentize(near, STEP_DEGREES)

    def to_pixels(lonlat: NDArray[np.float64]) -> NDArray[np.float64]:
        east, north = transform("EPSG:4326", image.crs, *lonlat.T.tolist())
        return np.stack(map_to_pixel(image.transform, east, north), -1)  # type: ignore[arg-type]

    return shapely.make_valid(shapely.transform(near, to_pixels)) if not near.is_empty else near


def _extent(image: StoredImage) -> list[Any]:
    """Boxes in degrees that hold an image: one, or two where it crosses the 180th meridian."""
    import shapely
    from rasterio.warp import transform

    along = np.linspace(0, 1, EDGE_POINTS)
    x, y = (v.ravel() for v in np.meshgrid(along * image.width, along * image.height))
    east, north = pixel_to_map(image.transform, x, y)  # type: ignore[arg-type]
    lon, lat = (np.asarray(v) for v in transform(image.crs, "EPSG:4326", east.tolist(), north.tolist()))
    pad = 0.1 * max(np.ptp(lat), 1e-3)
    south, north_ = max(-90.0, lat.min() - pad), min(90.0, lat.max() + pad)
    if np.ptp(lon) <= 180:
        return [shapely.box(max(-180.0, lon.min() - pad), south, min(180.0, lon.max() + pad), north_)]
    west = lon[lon > 0].min() - pad
    return [shapely.box(west, south, 180, north_), shapely.box(-180, south, lon[lon < 0].max() + pad, north_)]


def _starts(length_px: int, stride_px: int) -> NDArray[np.int64]:
    """Where windows of the index begin along an axis: on the stride, and at the last place."""
    last = length_px - PATCH_PX
    return np.unique(np.append(np.arange(0, last + 1, stride_px), last))


def keep_contained(found: RankedCandidates, scope: SearchFilter) -> RankedCandidates:
    """Candidates that may be answered, moved up in place of the others."""
    shape = found.image_ids.shape
    inside = scope.contains(
        found.image_ids.ravel(), (found.x + found.dx).ravel(), (found.y + found.dy).ravel()
    ).reshape(shape)
    order = np.argsort(~inside, axis=1, kind="stable")
    found, left = found.reorder(order), np.take_along_axis(inside, order, 1)
    return RankedCandidates(
        *(np.where(left, v, v.dtype.type(NO_CANDIDATE.get(n, 0))) for n, v in vars(found).items())
    )
