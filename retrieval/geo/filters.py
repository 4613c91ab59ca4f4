"""Search filters: the dates of an image and the area on the map in which a match must lie.

Candidate search is restricted to the windows that can lead to a match inside, so every patch keeps its full
number of candidates. Matches that refinement moves outside are dropped at the end. So no match lies outside,
and no place inside is lost because windows lie on a grid.
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
from retrieval.geo.pixel_window import edge_points, transform_points
from retrieval.geo.request import DateSpan
from retrieval.types import NO_CANDIDATE, RankedCandidates, StoredImage, pack_ids
from tfrecords.errors import GridError, MissingInputError, parse_json
from tfrecords.grid import map_to_pixel, pixel_to_map
from tfrecords.schema import days_of

STEP_DEGREES = 0.02
"""Longest piece of an area's edge, degrees: edges are cut before they are projected, because they bend."""
MARGIN_PX = 2.0
"""Added to the search radius for the bend that remains, pixels."""
_AREA_RULE = "Expected GeoJSON (RFC 7946) with a Polygon or MultiPolygon"


@dataclass(frozen=True, eq=False)
class SearchFilter:
    """The images, and the part of them, in which a match may lie."""

    images: Mapping[int, StoredImage]
    """Images of the index that remain, by id; at least one."""
    area: Any = None
    """Shapely geometry in longitude and latitude, WGS 84; None = everywhere."""
    note: str = ""
    """How many images the filter leaves out, and why; one sentence."""

    def windows(self, stride_px: int, reach_px: float) -> NDArray[np.int64]:
        """Return the index windows that can lead to a match inside.

        Args:
            stride_px: stride of the index.
            reach_px: largest distance between the centre of a match and that of the window leading to it.

        Returns:
            (m,) packed ids, ascending; some may be absent from the index (flat or empty windows).
        """
        ids = [self._windows_of(image, stride_px, reach_px + MARGIN_PX) for image in self.images.values()]
        return np.sort(np.concatenate(ids))

    def _windows_of(self, image: StoredImage, stride_px: int, reach_px: float) -> NDArray[np.int64]:
        import shapely

        starts = _starts(image.height, stride_px), _starts(image.width, stride_px)
        y, x = (v.ravel() for v in np.meshgrid(*starts, indexing="ij"))
        if self.area is not None:
            reachable = shapely.buffer(_area_in_pixels(self.area, image), reach_px * 2**0.5)
            shapely.prepare(reachable)
            inside = shapely.contains_xy(reachable, x + PATCH_PX / 2, y + PATCH_PX / 2)
            x, y = x[inside], y[inside]
        return pack_ids(np.full(len(x), image.image_id), x, y)

    def contains(
        self,
        image_ids: NDArray[Any],
        x: NDArray[Any],
        y: NDArray[Any],
        width: ArrayLike = PATCH_PX,
        height: ArrayLike = PATCH_PX,
    ) -> NDArray[np.bool_]:
        """Return which matches lie inside.

        Args:
            image_ids: (n,); -1 = no match.
            x: (n,) columns of the top-left pixels, fractions allowed.
            y: (n,) rows of the top-left pixels.
            width: columns of each match, one number or (n,).
            height: rows of each match, one number or (n,).

        Returns:
            (n,) bool: the image is one of `images`, and the centre lies in the area or on its edge.
        """
        import shapely

        inside = np.isin(image_ids, list(self.images))
        if self.area is not None:
            longitude, latitude = lonlat(self.images, image_ids, x, y, width, height)
            inside &= shapely.intersects_xy(self.area, longitude, latitude)
        return inside


def read_filter(
    images: Mapping[int, StoredImage], between: str | None = None, within: str | Path | None = None
) -> SearchFilter | None:
    """Read the filters of a query.

    Args:
        images: image table of the index.
        between: FROM/TO, as `DateSpan.parse` reads it; an image remains if its whole date lies in the span.
        within: a GeoJSON file of polygons in longitude and latitude.

    Returns:
        The filter; None where neither is given.

    Raises:
        ConfigError: the dates or the GeoJSON cannot be parsed, or no image remains.
        MissingInputError: there is no such file.
    """
    kept, notes, area = dict(images), [], None
    if between is not None:
        span = DateSpan.parse(between, "--between")
        undated = [i for i, image in kept.items() if not days_of(image.date or "")]
        kept = {i: image for i, image in kept.items() if span.contains(image.date or "")}
        notes.append(f"--between {between}: {len(kept)} of {len(images)} images{_without(undated, 'a date')}")
    if within is not None:
        area, before = read_area(within), len(kept)
        unplaced = [i for i, image in kept.items() if not _extent(image)]
        kept = {i: image for i, image in kept.items() if _overlaps(area, image)}
        notes.append(f"--within {within}: {len(kept)} of {before} images{_without(unplaced, 'a CRS')}")
    note = "; ".join(notes)
    if notes and not kept:
        order = ", and check that the GeoJSON has longitude before latitude" if within else ""
        raise ConfigError(f"{note}: no image is left to search. Widen the filter{order}")
    return SearchFilter(kept, area, note) if notes else None


def _without(image_ids: Sequence[int], what: str) -> str:
    return f" ({len(image_ids)} without {what} left out)" if image_ids else ""


# --- areas ----------------------------------------------------------------------------------------


def read_area(path: str | Path) -> Any:
    """Read the polygons of a GeoJSON file (RFC 7946).

    Args:
        path: holds a FeatureCollection, Feature, GeometryCollection, Polygon or MultiPolygon.

    Returns:
        Their union, a shapely geometry in longitude and latitude.

    Raises:
        MissingInputError: there is no such file.
        ConfigError: the file is not GeoJSON, has no polygon, a ring of fewer than three corners, or
            coordinates that are not degrees.
    """
    import shapely

    content = _read_json(Path(path))
    _check_crs(content, path)
    polygons = list(_polygons(content))
    if not polygons:
        raise ConfigError(f"{path}: no polygon. {_AREA_RULE}")
    try:
        shapes = [shapely.make_valid(shapely.geometry.shape(polygon)) for polygon in polygons]
    except (
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        shapely.errors.ShapelyError,
    ) as error:
        raise ConfigError(
            f"{path}: a polygon cannot be read ({error}). Expected closed rings of [lon, lat]"
        ) from error
    area = shapely.union_all(shapes)
    west, south, east, north = area.bounds if not area.is_empty else (np.nan,) * 4
    if not (-180 <= west and east <= 180 and -90 <= south and north <= 90):
        raise ConfigError(
            f"{path}: coordinates from {west:g} to {east:g} and from {south:g} to {north:g} are not degrees. "
            "Expected longitude (-180 to 180) before latitude (-90 to 90): swap them, or transform them to "
            "EPSG:4326"
        )
    shapely.prepare(area)
    return area


def _read_json(path: Path) -> Any:
    try:
        content = parse_json(path.read_bytes())  # UTF-8, -16 or -32, with or without a byte-order mark
    except OSError as error:
        raise MissingInputError(f"{path}: {error.strerror}. Expected a GeoJSON file of polygons") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON ({error}). {_AREA_RULE}") from error
    if not isinstance(content, dict) or "type" not in content:
        raise ConfigError(f"{path}: JSON without a type, so not GeoJSON. {_AREA_RULE}")
    return content


def _check_crs(content: Mapping[str, Any], path: str | Path) -> None:
    """Refuse a crs member (GeoJSON before RFC 7946) that is not longitude and latitude."""
    crs = json.dumps(content.get("crs") or "CRS84")
    if not any(known in crs for known in ("CRS84", "EPSG::4326", "EPSG:4326")):
        raise ConfigError(
            f"{path}: its crs is {crs}. Expected longitude and latitude: transform it to EPSG:4326"
        )


def _polygons(content: Any) -> Iterator[Mapping[str, Any]]:
    """Yield every polygon in a GeoJSON object."""
    if not isinstance(content, dict):
        return
    if content.get("type") in ("Polygon", "MultiPolygon"):
        yield content
    for name in ("features", "geometries"):
        members = content.get(name)
        for member in members if isinstance(members, list) else ():
            yield from _polygons(member)
    yield from _polygons(content.get("geometry"))


def _overlaps(area: Any, image: StoredImage) -> bool:
    import shapely

    frame = shapely.box(0, 0, image.width, image.height)
    return bool(shapely.intersects(_area_in_pixels(area, image), frame))


def _area_in_pixels(area: Any, image: StoredImage) -> Any:
    """Return the part of an area near an image in the image's pixels; it can be empty."""
    import shapely

    near = shapely.intersection(area, shapely.union_all(_extent(image)))
    if near.is_empty:
        return near

    def to_pixels(points: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = transform_points("EPSG:4326", str(image.crs), (points[:, 0], points[:, 1]), _name(image))
        return np.stack(map_to_pixel(image.transform, x, y), -1)  # type: ignore[arg-type]

    return shapely.make_valid(shapely.transform(shapely.segmentize(near, STEP_DEGREES), to_pixels))


def _name(image: StoredImage) -> str:
    return image.path or f"image {image.image_id}"


def _extent(image: StoredImage) -> list[Any]:
    """Return boxes in degrees that hold an image: two across the antimeridian, none without a usable CRS."""
    import shapely

    if image.crs is None or image.transform is None:
        return []
    corners = pixel_to_map(image.transform, *edge_points((0, image.height, image.width, 0)))
    try:
        longitude, latitude = transform_points(image.crs, "EPSG:4326", corners, _name(image))
    except GridError:
        return []
    pad = 0.1 * max(np.ptp(latitude), 1e-3)
    south, north = max(-90.0, latitude.min() - pad), min(90.0, latitude.max() + pad)
    if np.ptp(longitude) <= 180:
        west, east = max(-180.0, longitude.min() - pad), min(180.0, longitude.max() + pad)
        return [shapely.box(west, south, east, north)]
    west, east = longitude[longitude > 0].min() - pad, longitude[longitude < 0].max() + pad
    return [shapely.box(west, south, 180, north), shapely.box(-180, south, east, north)]


def _starts(length_px: int, stride_px: int) -> NDArray[np.int64]:
    """Return where index windows start along an axis: on the stride, and at the last possible pixel."""
    last = length_px - PATCH_PX
    return np.unique(np.append(np.arange(0, last + 1, stride_px), last))


def keep_contained(ranked: RankedCandidates, search_filter: SearchFilter | None) -> RankedCandidates:
    """Drop the candidates that a filter excludes; the others move up. None keeps all."""
    if search_filter is None:
        return ranked
    x, y = (ranked.x + ranked.dx).ravel(), (ranked.y + ranked.dy).ravel()
    contained = search_filter.contains(ranked.image_ids.ravel(), x, y).reshape(ranked.image_ids.shape)
    order = np.argsort(~contained, axis=1, kind="stable")
    ranked, valid = ranked.reorder(order), np.take_along_axis(contained, order, 1)
    return RankedCandidates(
        *(np.where(valid, v, v.dtype.type(NO_CANDIDATE.get(n, 0))) for n, v in vars(ranked).items())
    )
