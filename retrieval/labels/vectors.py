"""Vector files of any kind, read in one pass and in batches: repaired, flat, in the requested CRS.

A file without a CRS is refused, because its coordinates mean nothing. GeoJSON without one is WGS 84 (RFC
7946).
GDAL streams the features, so memory does not grow with the file. GeoParquet is read by Arrow, since GDAL's
wheels lack the driver. Invalid geometries are repaired by `make_valid` and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import LabelsError
from retrieval.labels.pointers import OFFLINE, refuse_pointer
from tfrecords.errors import MissingInputError, parse_json

BATCH = 20_000
"""Features that are in memory at one time."""
PARQUET = (".parquet", ".geoparquet")
"""Endings of GeoParquet."""
EXPECTED = "Expected a vector file such as GeoJSON, GeoPackage, FlatGeobuf, Shapefile or GeoParquet"

Shapes = NDArray[np.object_]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Batch:
    """Some features, without those that have no usable geometry."""

    shapes: Shapes
    """(n,) valid shapely geometries, x and y only."""
    values: dict[str, list[Any]]
    """n attribute values by column."""
    rows: NDArray[np.int64]
    """(n,) numbers of the features: GDAL's feature ids, or rows from 0 of GeoParquet."""


@dataclass
class VectorFile:
    """An open layer of a vector file; the counters grow while batches are read."""

    path: Path
    layer: str | None
    """Name of the layer; None for GeoParquet."""
    crs: Any
    """CRS of pyproj."""
    columns: tuple[str, ...]
    """Names of the attributes."""
    read: int = 0
    """Features read."""
    repaired: int = 0
    """Geometries repaired by `make_valid`."""
    empty: int = 0
    """Features without a geometry, or with one that cannot be repaired or projected."""
    reprojected_to: str = ""
    """Name of the CRS that the features were brought to; empty where it is the file's."""
    _remarks: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, path: str | Path, layer: str | None = None) -> Self:
        """Open a layer.

        Args:
            path: the file.
            layer: its name; None for the only layer.

        Returns:
            The layer; no feature is read yet.

        Raises:
            MissingInputError: no such file.
            LabelsError: not a vector file, no CRS, several layers, or no such layer.
        """
        path = Path(path)
        if not path.exists():
            raise MissingInputError(f"{path}: no such file. {EXPECTED}.")
        if path.suffix.lower() in PARQUET:
            crs, columns = _parquet_header(path)
        else:
            layer, crs, columns = _gdal_header(path, layer)
        if crs is None:
            raise LabelsError(
                f"{path}: no CRS. Expected one, because the coordinates have no meaning without. Add it: "
                "ogr2ogr -a_srs EPSG:NUMBER out.gpkg in."
            )
        return cls(path, layer, crs, columns)

    def check_column(self, name: str) -> None:
        """Refuse an attribute that the layer lacks.

        Raises:
            LabelsError: the layer has no such attribute.
        """
        if name not in self.columns:
            raise LabelsError(
                f"{self.path}: no attribute {name!r}. Expected one of {', '.join(self.columns) or 'none'}."
            )

    def batches(
        self, crs: Any, columns: Sequence[str] = (), bbox: Box | None = None, size: int = BATCH
    ) -> Iterator[Batch]:
        """Read the features in the order of the file.

        Args:
            crs: CRS to bring them to, anything that pyproj understands.
            columns: attributes to read.
            bbox: (west, south, east, north) in `crs`; features that lie outside may be left out.
            size: features of a batch.

        Yields:
            Batches with at least one feature.

        Raises:
            LabelsError: the file is damaged.
        """
        move = self._mover(crs)
        if bbox is not None:
            bbox = _moved_box(bbox, crs, self.crs)
        source = self._arrow_batches(list(columns), bbox, size)
        while True:
            try:
                wkb, table, rows = next(source)
            except StopIteration:
                return
            except LabelsError:
                raise
            except Exception as error:  # GDAL, Arrow and pyogrio raise different classes
                raise LabelsError(
                    f"{self.path}: damaged ({_first_line(error)}). Replace the file."
                ) from error
            shapes = self._usable(wkb, move)
            self.read += len(shapes)
            kept = np.flatnonzero([shape is not None for shape in shapes])
            self.empty += len(shapes) - len(kept)
            if len(kept):
                values = {name: [column[i] for i in kept] for name, column in table.items()}
                yield Batch(shapes[kept], values, rows[kept])

    def notes(self) -> list[str]:
        """Return remarks on what was read."""
        found = []
        if self.reprojected_to:
            found.append(f"{self.path.name}: reprojected from {_crs_name(self.crs)} to {self.reprojected_to}")
        if self.repaired:
            found.append(f"{self.path.name}: {self.repaired} invalid geometries repaired")
        if self.empty:
            found.append(f"{self.path.name}: {self.empty} features without a usable geometry left out")
        return found

    def _mover(self, crs: Any) -> Callable[[Shapes], Shapes] | None:
        from pyproj import CRS, Transformer

        goal = CRS.from_user_input(crs)
        if goal.equals(self.crs, ignore_axis_order=True):
            return None
        if not (goal.is_geographic and self.crs.is_geographic):  # CRS 84 and WGS 84 differ in their axes only
            self.reprojected_to = _crs_name(goal)
        return mover(Transformer.from_crs(self.crs, goal, always_xy=True))

    def _usable(self, wkb: list[bytes | None], move: Callable[[Shapes], Shapes] | None) -> Shapes:
        """Return valid geometries in the wanted CRS, None where it is missing."""
        import shapely

        shapes = np.asarray(shapely.force_2d(shapely.from_wkb(wkb, on_invalid="ignore")), object)
        shapes, count = repair(shapes)
        self.repaired += count
        return shapes if move is None else _finite(move(shapes))

    def _arrow_batches(
        self, columns: list[str], bbox: Box | None, size: int
    ) -> Iterator[tuple[list[bytes | None], dict[str, list[Any]], NDArray[np.int64]]]:
        """Yield the geometries, attributes and numbers of the features."""
        if self.path.suffix.lower() in PARQUET:
            import pyarrow.parquet as pq

            name = _geo_metadata(self.path)["primary_column"]
            with pq.ParquetFile(self.path) as file:
                first = 0
                for batch in file.iter_batches(size, columns=[name, *columns]):
                    table = batch.to_pydict()
                    rows = np.arange(first, first + len(batch))
                    yield table[name], {column: table[column] for column in columns}, rows
                    first += len(batch)
            return
        import pyogrio

        options: dict[str, Any] = {"layer": self.layer, "columns": columns, "bbox": bbox, "return_fids": True}
        with pyogrio.open_arrow(self.path, batch_size=size, use_pyarrow=True, **options) as (meta, reader):
            name = meta["geometry_name"] or "wkb_geometry"
            for batch in reader:
                table = batch.to_pydict()
                rows = np.array(table[meta["fid_column"] or "OGC_FID"], np.int64)
                yield table[name], {column: table[column] for column in columns}, rows


def repair(shapes: Shapes) -> tuple[Shapes, int]:
    """Repair invalid geometries.

    Args:
        shapes: (n,) geometries or None.

    Returns:
        Valid geometries, None where nothing usable is left; and the number of repaired ones. A polygon stays
        a polygon: lines and points that the repair leaves are dropped.
    """
    import shapely

    shapes = _finite(shapes)
    invalid = np.flatnonzero(~shapely.is_valid(shapes) & ~shapely.is_missing(shapes))
    for row in invalid:
        dimension = shapely.get_dimensions(shapes[row])
        parts = shapely.get_parts(shapely.get_parts(shapely.make_valid(shapes[row])))
        parts = parts[shapely.get_dimensions(parts) == dimension]
        shapes[row] = shapely.union_all(parts) if len(parts) else None
    return shapes, len(invalid)


def _finite(shapes: Shapes) -> Shapes:
    """Return geometries with None for empty ones and for those with infinite coordinates."""
    import shapely

    finite = np.isfinite(shapely.bounds(shapes)).all(axis=-1)  # NaN where a geometry is empty or missing
    usable = np.full(len(shapes), None, object)
    usable[finite] = shapes[finite]
    return usable


def mover(transformer: Any) -> Callable[[Shapes], Shapes]:
    """Return a function that transforms geometries by a transformer of pyproj."""
    import shapely

    def move(shapes: Shapes) -> Shapes:
        return shapely.transform(
            shapes, lambda xy: np.column_stack(transformer.transform(xy[:, 0], xy[:, 1])).reshape(-1, 2)
        )

    return move


def _moved_box(box: Box, source: Any, goal: Any) -> Box | None:
    """Return the bounds of a box in another CRS, a little larger; None where it is not defined there."""
    from pyproj import Transformer

    bounds = Transformer.from_crs(source, goal, always_xy=True).transform_bounds(*box, densify_pts=41)
    if not np.isfinite(bounds).all() or bounds[0] > bounds[2]:  # also across the antimeridian
        return None
    dx, dy = (bounds[2] - bounds[0]) * 0.01, (bounds[3] - bounds[1]) * 0.01
    return bounds[0] - dx, bounds[1] - dy, bounds[2] + dx, bounds[3] + dy


def _gdal_header(path: Path, layer: str | None) -> tuple[str, Any, tuple[str, ...]]:
    import pyogrio
    from pyogrio.errors import DataLayerError, DataSourceError

    pyogrio.set_gdal_config_options(OFFLINE)
    refuse_pointer(path)
    try:
        layers = [name for name, kind in pyogrio.list_layers(path) if kind is not None]
        if layer is None and len(layers) == 1:
            layer = layers[0]
        if layer not in layers:
            wanted = "several layers; name one with --layer" if layer is None else f"no layer {layer!r}"
            wanted = wanted if layers else "no geometry"
            raise LabelsError(f"{path}: {wanted}. Expected one of {', '.join(layers) or 'its layers'}.")
        info = pyogrio.read_info(path, layer=layer)
    except (DataSourceError, DataLayerError, UnicodeDecodeError) as error:
        raise LabelsError(f"{path}: not readable ({_first_line(error)}). {EXPECTED}.") from None
    return str(layer), _crs_of(path, info["crs"]) if info["crs"] else None, tuple(info["fields"])


def _crs_of(path: Path, text: Any) -> Any:
    """Return the CRS that a file states.

    Raises:
        LabelsError: there is no such CRS.
    """
    from pyproj import CRS
    from pyproj.exceptions import CRSError

    try:
        return CRS.from_user_input(text)
    except CRSError as error:
        raise LabelsError(
            f"{path}: unknown CRS ({_first_line(error)}). Correct it with ogr2ogr -a_srs."
        ) from None


def _parquet_header(path: Path) -> tuple[Any, tuple[str, ...]]:
    import pyarrow.parquet as pq

    geo = _geo_metadata(path)
    column = geo["columns"][geo["primary_column"]]
    if column.get("encoding") != "WKB":
        raise LabelsError(f"{path}: geometries in {column.get('encoding')}. Expected WKB. Convert the file.")
    crs = column.get("crs", "OGC:CRS84")
    skipped = (*geo["columns"], "bbox")
    columns = tuple(name for name in pq.read_schema(path).names if name not in skipped)
    return None if crs is None else _crs_of(path, crs), columns


def _geo_metadata(path: Path) -> dict[str, Any]:
    """Return the GeoParquet metadata of a file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        geo = parse_json((pq.read_schema(path).metadata or {})[b"geo"])
        geo["columns"][geo["primary_column"]].get("encoding")
    except (pa.ArrowInvalid, OSError, KeyError, ValueError, TypeError, AttributeError):
        raise LabelsError(f"{path}: not GeoParquet. {EXPECTED}.") from None
    return dict(geo)


def _crs_name(crs: Any) -> str:
    code = crs.to_authority()
    return ":".join(code) if code else str(crs.name)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
