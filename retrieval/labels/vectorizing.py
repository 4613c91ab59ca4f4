"""Class maps to polygons, whose common edges stay common.

Each piece is polygonized in the whole pixels of one lattice, so polygons of neighbouring pieces meet exactly
and merge without slivers. All polygons of a lattice are then simplified as one coverage: an edge between two
polygons moves for both (`shapely.coverage_simplify`, after Visvalingam and Whyatt 1993).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import LabelsError
from retrieval.labels.classes import BACKGROUND, IGNORED, Classes, read_classes
from retrieval.labels.files import tile_of
from retrieval.labels.grids import Grid, Piece, open_grid
from retrieval.labels.masks import classes_of, read_mask
from retrieval.labels.metres import areas_m2
from retrieval.labels.vectors import Shapes
from retrieval.types import Progress, silent
from tfrecords.storage import check_free, unfinished, writing_file

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

ENDINGS = (".gpkg", ".parquet", ".geojson", ".fgb")
"""Endings of the vector files that are written."""
WGS84 = "OGC:CRS84"
MISFIT_PX = 0.01
"""Distance from whole pixels up to which two rasters lie on one lattice."""


@dataclass(frozen=True)
class VectorizeReport:
    """Result of `vectorize`."""

    path: Path
    """The vector file."""
    features: int
    """Number of polygons."""
    classes: dict[str, int]
    """Number of polygons by class."""
    left_out: int
    """Number of polygons below the minimum area."""
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True)
class Lattice:
    """Pieces that lie on one grid of pixels."""

    crs: Any
    """CRS of rasterio."""
    transform: Any
    """From pixels of the lattice to map coordinates, an `Affine`."""
    pieces: tuple[Piece, ...]
    corners: tuple[tuple[int, int], ...]
    """Column and row of the first pixel of each piece in the lattice."""

    def to_map(self, shapes: Shapes) -> Shapes:
        """Return geometries in map coordinates."""
        import shapely

        a, b, c, d, e, f = self.transform[:6]
        x_row, y_row = np.array([a, b]), np.array([d, e])
        return shapely.transform(shapes, lambda xy: np.column_stack([xy @ x_row + c, xy @ y_row + f]))

    def boxes(self) -> NDArray[np.int64]:
        """Return first column, first row, last column + 1 and last row + 1 of each piece, (n, 4)."""
        first = np.array(self.corners, np.int64)
        sizes = np.array([(piece.width, piece.height) for piece in self.pieces], np.int64)
        return np.concatenate([first, first + sizes], axis=1)

    def outline(self) -> Any:
        """Return the ground of all pieces, in pixels of the lattice."""
        import shapely

        return shapely.union_all(shapely.box(*self.boxes().T))

    def to_pixels(self, shapes: Shapes) -> Shapes:
        """Return geometries of map coordinates in pixels of the lattice."""
        import shapely

        a, b, c, d, e, f = (~self.transform)[:6]
        x_row, y_row = np.array([a, b]), np.array([d, e])
        return shapely.transform(shapes, lambda xy: np.column_stack([xy @ x_row + c, xy @ y_row + f]))

    def corner_of(self, piece: Piece) -> tuple[int, int] | None:
        """Return the first pixel of a piece in the lattice; None where it lies on another one."""
        return _corner(self.pieces[0], piece)

    def pixel_m(self) -> float:
        """Return the side of a pixel on the ground in the middle of the lattice, metres."""
        import shapely

        column, row = np.mean(self.corners, axis=0)
        pixel = self.to_map(np.array([shapely.box(column, row, column + 1, row + 1)], object))
        return float(np.sqrt(areas_m2(pixel, self.crs)[0]))


def vectorize(
    source: str | Path,
    out: str | Path,
    *,
    classes: str | Path | Classes | None = None,
    min_area_m2: float = 0.0,
    simplify_m: float = 0.0,
    zoom: int | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> VectorizeReport:
    """Turn class maps into polygons, one for each connected area of a class.

    Args:
        source: a class map, or a folder of class maps or XYZ masks.
        out: the vector file: .gpkg, .parquet (GeoParquet), .geojson (WGS 84) or .fgb.
        classes: the classes, or their file; None takes the names from the maps. The background is left out.
        min_area_m2: polygons below this area on the ground are left out, m².
        simplify_m: tolerance of the simplification on the ground, metres; 0 keeps the edges of the pixels.
        zoom: only the XYZ tiles of this zoom.
        overwrite: replace an existing file.
        progress: called after each piece.

    Returns:
        Numbers of polygons, and notes.

    Raises:
        LabelsError: another ending, a map without a CRS, tiles of several zooms, or a bad class value.
        MissingInputError: no such map.
        OutputExistsError: the file exists and `overwrite` is not set.
    """
    out = Path(out)
    check_vector_output(out, overwrite)
    for name, value in (("--min-area", min_area_m2), ("--simplify", simplify_m)):
        if not value >= 0:
            raise LabelsError(f"{name} {value:g}: expected a number of 0 or more.")
    known, parts, left_out = classes_for(source, classes), [], 0
    for lattice in lattices(open_grid(source, zoom, "mask")):
        shapes, values = polygonize(lattice, known, progress)
        areas = areas_m2(lattice.to_map(shapes), lattice.crs)
        large = areas >= min_area_m2
        left_out += int((~large).sum())
        shapes = simplified(shapes[large], simplify_m / lattice.pixel_m() if simplify_m else 0.0)
        parts.append(frame_of(lattice, shapes, values[large], known))
    frame = joined(parts)
    write_vectors(frame, out, overwrite=overwrite)
    counts = {known.names[index]: int((frame["value"] == index).sum()) for index in known.labels}
    return VectorizeReport(out, len(frame), {n: c for n, c in counts.items() if c}, left_out)


def classes_for(source: str | Path, classes: str | Path | Classes | None) -> Classes:
    """Return the classes that the user names, or that the maps name; else unnamed ones, with a background."""
    if isinstance(classes, Classes):
        return classes
    if classes is not None:
        return read_classes(classes)
    first = open_grid(source, None, "mask").pieces[0].path
    named = classes_of(first) if first else None
    return named or Classes((BACKGROUND, *(f"class {index}" for index in range(1, IGNORED))))


def lattices(grid: Grid) -> list[Lattice]:
    """Group the pieces of a grid by the lattice of pixels that they lie on.

    Raises:
        LabelsError: the XYZ tiles have several zooms or sizes, which would overlap.
    """
    groups: list[list[tuple[Piece, tuple[int, int]]]] = []
    for piece in grid.pieces:
        for group in groups:
            corner = _corner(group[0][0], piece)
            if corner is not None:
                group.append((piece, corner))
                break
        else:
            groups.append([(piece, (0, 0))])
    if grid.is_tiled and len(groups) > 1:
        zooms = sorted({tile.z for piece in grid.pieces if (tile := tile_of(piece.name))})
        raise LabelsError(
            f"tiles of zoom {', '.join(map(str, zooms))}: they overlap. Choose one with --zoom."
        )
    return [
        Lattice(group[0][0].crs, group[0][0].transform, *map(tuple, zip(*group, strict=True)))
        for group in groups
    ]


def _corner(start: Piece, piece: Piece) -> tuple[int, int] | None:
    """Return the first pixel of a piece, counted from another one; None where their lattices differ."""
    first, other = start.transform, piece.transform
    size = max(abs(value) for value in (first.a, first.b, first.d, first.e))
    sides = [abs(getattr(first, name) - getattr(other, name)) for name in "abde"]
    if start.crs != piece.crs or max(sides) > 1e-6 * size:
        return None
    column, row = ~first @ (other.c, other.f)
    if max(abs(column - round(column)), abs(row - round(row))) > MISFIT_PX:
        return None
    return round(column), round(row)


def polygonize(
    lattice: Lattice, classes: Classes, progress: Progress = silent
) -> tuple[Shapes, NDArray[np.int64]]:
    """Return the connected areas of each class; pixels that touch at a corner only are not connected.

    Returns:
        (n,) polygons in pixels of the lattice, and (n,) indices of their classes.
    """
    parts = [(np.array([], object), np.array([], np.int64)), *polygons_of(lattice, classes, progress)]
    return np.concatenate([shapes for shapes, _ in parts]), np.concatenate([values for _, values in parts])


def polygons_of(
    lattice: Lattice, classes: Classes, progress: Progress = silent
) -> Iterator[tuple[Shapes, NDArray[np.int64]]]:
    """Yield what `polygonize` returns: the areas within each piece, then those that cross edges, by class."""
    import shapely

    cut: dict[int, list[Any]] = {}
    for done, (piece, corner) in enumerate(zip(lattice.pieces, lattice.corners, strict=True), start=1):
        whole: list[tuple[Any, int]] = []
        for shape, value in _areas(piece, corner, classes):
            if len(lattice.pieces) > 1 and _meets_edge(shape, piece, corner):
                cut.setdefault(value, []).append(shape)
            else:
                whole.append((shape, value))
        found = np.full(len(whole), None, object)
        found[:] = [shape for shape, _ in whole]
        yield found, np.array([value for _, value in whole], np.int64)
        progress("polygonizing", done, len(lattice.pieces))
    for value, shapes in cut.items():
        merged = shapely.get_parts(shapely.union_all(np.array(shapes, object)))
        # Simplification by 0 removes the vertices that the seams leave on straight edges.
        yield np.asarray(shapely.simplify(merged, 0), object), np.full(len(merged), value, np.int64)


def _areas(piece: Piece, corner: tuple[int, int], classes: Classes) -> Iterator[tuple[Any, int]]:
    from rasterio import Affine
    from rasterio.features import shapes as polygons
    from shapely.geometry import shape

    assert piece.path is not None
    mask = read_mask(piece.path, classes, piece.window)
    labelled = mask != IGNORED
    if classes.background is not None:
        labelled &= mask != classes.background
    for geometry, value in polygons(mask, labelled, connectivity=4, transform=Affine.translation(*corner)):
        yield shape(geometry), int(value)


def _meets_edge(shape: Any, piece: Piece, corner: tuple[int, int]) -> bool:
    west, north, east, south = shape.bounds
    x, y = corner
    return bool(west <= x or north <= y or east >= x + piece.width or south >= y + piece.height)


def simplified(shapes: Shapes, tolerance_px: float) -> Shapes:
    """Simplify polygons of one lattice together.

    Args:
        shapes: (n,) polygons along the edges of pixels, without overlap.
        tolerance_px: corners that span less than a triangle of this number squared are removed, pixels.

    Returns:
        (n,) polygons that share their common edges.
    """
    import shapely

    if not tolerance_px or not len(shapes):
        return shapes
    # A vertex at each pixel corner gives both sides of an edge the same ones, also where three areas meet.
    dense = shapely.transform(shapely.segmentize(shapes, 1.0), np.round)
    return np.asarray(shapely.coverage_simplify(dense, tolerance_px), object)


def frame_of(lattice: Lattice, shapes: Shapes, values: NDArray[np.int64], classes: Classes) -> GeoDataFrame:
    """Return polygons of a lattice as a frame with the columns class, value and area_m2."""
    from geopandas import GeoDataFrame

    geometry = lattice.to_map(shapes)
    columns = {
        "class": [classes.names[value] for value in values],
        "value": values,
        "area_m2": np.round(areas_m2(geometry, lattice.crs), 2),
    }
    return GeoDataFrame(columns, geometry=geometry, crs=lattice.crs.to_wkt())


def joined(frames: Sequence[GeoDataFrame]) -> GeoDataFrame:
    """Return frames as one, in WGS 84 where their CRSs differ."""
    import pandas as pd

    if len({frame.crs for frame in frames}) > 1:
        frames = [frame.to_crs(WGS84) for frame in frames]
    return frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)


def check_vector_output(out: Path, overwrite: bool) -> None:
    """Refuse a vector file of another format, or one that exists.

    Raises:
        LabelsError: another ending.
        OutputExistsError: the file exists and `overwrite` is not set.
    """
    if out.suffix.lower() not in ENDINGS:
        raise LabelsError(f"{out}: the ending is {out.suffix!r}. Expected {', '.join(ENDINGS)}.")
    check_free(out, overwrite=overwrite)


def write_vectors(frame: GeoDataFrame, out: Path, *, overwrite: bool = False) -> None:
    """Write a frame of polygons whole or not at all, in the format of the ending; GeoJSON is in WGS 84."""
    with writing_file(out, overwrite=overwrite) as partial:
        if out.suffix.lower() == ".parquet":
            frame.to_parquet(partial, index=False, write_covering_bbox=True)
            return
        options: dict[str, Any] = {"layer": out.stem, "engine": "pyogrio"}
        if out.suffix.lower() == ".geojson":
            frame = frame.to_crs(WGS84)
            options |= {"driver": "GeoJSON", "RFC7946": "YES"}
        if not len(frame):
            options |= {"geometry_type": "Polygon"}
        frame.to_file(partial, **options)
        if not _holds(partial, len(frame)):
            raise unfinished(partial)


def _holds(path: Path, features: int) -> bool:
    """Return whether a vector file can be read and has a number of features: GDAL hides errors at its end."""
    import pyogrio
    from pyogrio.errors import DataLayerError, DataSourceError

    try:
        return int(pyogrio.read_info(path, force_feature_count=True)["features"]) == features
    except (DataLayerError, DataSourceError):
        return False
