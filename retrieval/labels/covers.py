"""The XYZ tiles of an area, or the windows of rasters on it, split into train, val and test.

The split is by blocks of ground, see `splits`. `window_cover` lists the windows.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrieval.errors import LabelsError
from retrieval.geo.request import BoundingBox
from retrieval.labels.files import MAX_ZOOM, RASTER_ENDINGS, find_files, reading_csv, tile_of
from retrieval.labels.masks import open_raster
from retrieval.labels.splits import SPLITS, ancestor, assign, blocks_of, parse_split, share_note
from retrieval.labels.window_cover import (
    SceneWindow,
    SceneWindows,
    covered,
    scene_windows,
    split_windows,
    write_windows,
)
from retrieval.types import Progress, silent
from tfrecords.errors import MissingInputError
from tfrecords.storage import check_free, writing_file

if TYPE_CHECKING:
    from mercantile import Tile
    from shapely import Geometry

HEADER = ("z", "x", "y", "split")
"""Columns of a cover."""
MERCATOR_LIMIT = 85.0511
"""Latitude at which the XYZ tiles end, degrees."""
_FEW = 64
"""A geometry whose bounding box has at most this many tiles is compared with each of them."""
_SHRINK = 1e-6
"""Share of its side by which a tile is smaller in tests, so that it does not touch its neighbours' ground."""


@dataclass(frozen=True)
class CoverReport:
    """Result of `cover`."""

    path: Path
    """The CSV."""
    tiles: int
    """Number of tiles, or of windows."""
    splits: Mapping[str, int]
    """The same by split."""
    block_zoom: int
    """Zoom of the blocks that were split."""
    blocks: int
    notes: tuple[str, ...] = field(default=())


def cover(
    area: str | Path | BoundingBox | None,
    out: str | Path,
    *,
    zoom: int | None = None,
    window: int | None = None,
    like: str | Path | None = None,
    split: str = "70/20/10",
    block_zoom: int | None = None,
    gap: int = 0,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress = silent,
) -> CoverReport:
    """List the XYZ tiles of an area, or the windows of rasters on it, split by blocks of ground.

    Args:
        area: a box; a vector file; a raster with a CRS; a folder of XYZ tiles or of rasters; None for all
            windows of `like`.
        out: the CSV to write, with the columns z, x, y and split; for windows name, col_off, row_off, width,
            height and split.
        zoom: zoom of the tiles, 0 to 30; None keeps the zooms of a folder of XYZ tiles.
        window: list windows of this many pixels a side instead of tiles.
        like: the raster, or folder of rasters, that is cut into windows; None for the area itself.
        split: shares of train, val and test, such as 70/20/10.
        block_zoom: zoom of the blocks; None for the largest blocks that are at least twenty.
        gap: leave out tiles or windows within as many of another split; train gives way to val, val to test.
        seed: decides which block goes to which split.
        overwrite: replace an existing file.
        progress: called while tiles are listed.

    Returns:
        The numbers of tiles and blocks.

    Raises:
        LabelsError: no tile or window, too few blocks, a bad split or zoom, or both zoom and window.
        MissingInputError: no such file.
        OutputExistsError: the CSV exists and `overwrite` is not set.
    """
    check_free(out, overwrite=overwrite)
    how, notes = _Split(parse_split(split), block_zoom, gap, seed), list[str]()
    as_windows = window is not None or like is not None
    if as_windows and (window is None or zoom is not None):
        raise LabelsError(
            f"zoom {zoom}, window {window}, like {like}: not possible together. Expected --zoom for XYZ "
            "tiles, or --window for windows of rasters, perhaps with --like. Leave one out."
        )
    rows: Sequence[tuple[Any, str]]
    if window is not None:
        rows, used_zoom, blocks = how.windows(_windows_of(area, window, like, gap, notes), notes)
    else:
        progress("listing tiles", 0, None)
        rows, used_zoom, blocks = how.tiles(_all_tiles(area, zoom, notes), notes)
    with writing_file(out, overwrite=overwrite) as partial:
        (write_windows if as_windows else write_cover)(partial, rows)
    counts = Counter(name for _, name in rows)
    splits = {name: counts[name] for name in SPLITS}
    notes += share_note(counts, how.shares)
    return CoverReport(Path(out), len(rows), splits, used_zoom, blocks, tuple(notes))


@dataclass(frozen=True)
class _Split:
    """How ground is split; see `cover`."""

    shares: tuple[float, float, float]
    """Of train, val and test."""
    block_zoom: int | None
    """Zoom of the blocks."""
    gap: int
    """Distance between splits, in tiles or windows."""
    seed: int
    """Decides which block goes to which split."""

    def tiles(self, tiles: list[Tile], notes: list[str]) -> tuple[list[tuple[Tile, str]], int, int]:
        """Split tiles: these with their splits, the zoom of the blocks, and their number."""
        blocks, zoom = blocks_of(tiles, self.shares, self.block_zoom)
        assigned = assign(blocks, self.shares, self.seed)
        rows = [(tile, assigned[block]) for tile, block in zip(tiles, blocks, strict=True)]
        if self.gap:
            rows = _separated(rows, self.gap)
            notes.append(f"{len(tiles) - len(rows)} tiles within {self.gap} of another split are left out")
        return rows, zoom, len(set(blocks))

    def windows(
        self, found: SceneWindows, notes: list[str]
    ) -> tuple[list[tuple[SceneWindow, str]], int, int]:
        """Split windows, as `tiles`."""
        rows, zoom, blocks = split_windows(found, self.shares, self.block_zoom, self.seed)
        if lost := len(found.windows) - len(rows):
            notes.append(f"{lost} windows within {self.gap} of ground of another split are left out")
        return rows, zoom, blocks


def _all_tiles(area: str | Path | BoundingBox | None, zoom: int | None, notes: list[str]) -> list[Tile]:
    """Return the tiles of an area, ascending; see `cover`."""
    if area is None:
        raise LabelsError("no area. Expected a box, a vector file, a raster or a folder.")
    if zoom is not None and not 0 <= zoom <= MAX_ZOOM:
        raise LabelsError(f"zoom {zoom}: out of range. Expected 0 to {MAX_ZOOM}.")
    tiles = sorted(set(_tiles_of(area, zoom, notes)), key=lambda tile: (tile.z, tile.x, tile.y))
    if not tiles:
        raise LabelsError(f"{area}: it covers no tile. Expected an area within 85.05° of the equator.")
    return tiles


def _windows_of(
    area: str | Path | BoundingBox | None, window: int, like: str | Path | None, gap: int, notes: list[str]
) -> SceneWindows:
    """Return the windows of rasters that an area covers; see `cover`."""
    is_cut = area is not None and like is None
    if is_cut and not _is_raster(area):
        raise LabelsError(f"{area}: no pixels to cut into windows. Name a raster or a folder with --like.")
    found = scene_windows(Path(area if is_cut else like), window, gap)  # type: ignore[arg-type]
    if area is not None and not is_cut:
        found = covered(found, _shapes_of(area, notes))
    if not found.windows:
        raise LabelsError(f"{area}: it covers no window of {like}. Expected an area on its ground.")
    return found


def write_cover(path: Path, rows: Iterable[tuple[Tile, str]]) -> None:
    """Write tiles and their splits as a CSV."""
    with path.open("w", encoding="ascii", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER)
        writer.writerows((tile.z, tile.x, tile.y, name) for tile, name in rows)


def read_cover(path: str | Path, split: str | None = None) -> list[tuple[Tile, str]]:
    """Read tiles and their splits.

    Args:
        path: a CSV with the columns z, x and y, perhaps split, and perhaps others.
        split: only the tiles of this split.

    Returns:
        Tiles in the order of the file; without a column `split` they are `train`.

    Raises:
        MissingInputError: no such file.
        LabelsError: a column is missing, a row is no tile, or no row is left.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingInputError(f"{path}: no such file. Expected a CSV with the columns z, x and y.")
    rows = []
    with reading_csv(path, "z,x,y,split") as reader:
        missing = [name for name in HEADER[:3] if name not in (reader.fieldnames or ())]
        if missing:
            raise LabelsError(f"{path}: no column {', '.join(missing)}. Expected z,x,y,split.")
        for row in reader:
            tile = tile_of(f"{row['z']}/{row['x']}/{row['y']}")
            name = row.get("split") or "train"
            if tile is None or name not in SPLITS:
                raise LabelsError(f"{path}, line {reader.line_num}: no tile. Expected z,x,y,split.")
            if split in (None, name):
                rows.append((tile, name))
    if not rows:
        raise LabelsError(f"{path}: no tile" + (f" of split {split}." if split else ".") + " Check the file.")
    return rows


# --- tiles of an area ---------------------------------------------------------------------------


def _tiles_of(area: str | Path | BoundingBox, zoom: int | None, notes: list[str]) -> Iterator[Tile]:
    """Yield the tiles of an area; some may come twice."""
    if not isinstance(area, BoundingBox) and Path(area).is_dir():
        named = [tile for name in find_files(area) if (tile := tile_of(name))]
        if named:
            yield from named if zoom is None else _at_zoom(named, zoom)
            return
    for shapes in _shapes_of(area, notes):
        yield from _tiles_of_shapes(shapes, _needed(zoom, area))


def _shapes_of(area: str | Path | BoundingBox, notes: list[str]) -> Iterator[Iterable[Geometry]]:
    """Yield batches of the geometries of an area in longitude and latitude."""
    if isinstance(area, BoundingBox):
        import shapely

        yield [shapely.box(*part) for part in area.split()]
    elif _is_raster(area):
        yield (_footprint(file) for file in find_files(area).values())
    else:
        from retrieval.labels.vectors import VectorFile

        vectors = VectorFile.open(Path(area))
        for batch in vectors.batches("OGC:CRS84"):
            yield batch.shapes
        notes.extend(vectors.notes())


def _is_raster(area: str | Path | BoundingBox | None) -> bool:
    """Return whether an area is a raster, or a folder, which holds rasters."""
    if area is None or isinstance(area, BoundingBox):
        return False
    return Path(area).is_dir() or Path(area).suffix.lower() in RASTER_ENDINGS


def _needed(zoom: int | None, area: object) -> int:
    if zoom is None:
        raise LabelsError(f"{area}: no zoom. Name the zoom of the tiles with --zoom.")
    return zoom


def _at_zoom(tiles: Iterable[Tile], zoom: int) -> Iterator[Tile]:
    """Yield the tiles of one zoom that lie in, or contain, other tiles."""
    import mercantile

    for tile in tiles:
        if tile.z < zoom:
            yield from mercantile.children(tile, zoom=zoom)
        else:
            yield ancestor(tile, zoom)


def _footprint(path: Path) -> Geometry:
    """Return the outline of a raster in longitude and latitude.

    Raises:
        LabelsError: the raster has no CRS.
    """
    import shapely
    from rasterio.errors import CRSError
    from rasterio.warp import transform_geom
    from shapely.affinity import affine_transform

    with open_raster(path) as dataset:
        if not dataset.crs:
            raise LabelsError(f"{path}: no CRS. Expected a raster with a georeference.")
        pixels = shapely.box(0, 0, dataset.width, dataset.height)
        outline = affine_transform(pixels, dataset.transform.to_shapely())
        outline = shapely.segmentize(outline, outline.length / 80)
        try:
            return shapely.geometry.shape(transform_geom(dataset.crs, "OGC:CRS84", outline))
        except CRSError as error:
            raise LabelsError(f"{path}: its CRS has no longitude and latitude ({error}).") from None


def _tiles_of_shapes(shapes: Iterable[Geometry], zoom: int) -> Iterator[Tile]:
    import shapely

    for shape in shapes:
        for part in shapely.get_parts(shape):
            yield from _tiles_of_shape(part, zoom)


def _tiles_of_shape(shape: Geometry, zoom: int) -> Iterator[Tile]:
    """Yield the tiles that a geometry in longitude and latitude covers at least in part."""
    import mercantile
    import shapely

    west, south, east, north = shapely.bounds(shape)
    south, north = max(south, -MERCATOR_LIMIT), min(north, MERCATOR_LIMIT)
    if not (south <= north and west <= east):  # also NaN, for an empty geometry
        return
    west, east = max(west, -180.0), min(east, 180.0)
    first, last = mercantile.tile(west, north, zoom), mercantile.tile(east, south, zoom)
    shapely.prepare(shape)
    shrink = _SHRINK if shapely.get_dimensions(shape) == 2 else 0.0
    if (last.x - first.x + 1) * (last.y - first.y + 1) <= _FEW:
        tiles = mercantile.tiles(west, south, east, north, zooms=zoom, truncate=True)
        yield from (tile for tile in tiles if shape.intersects(_box(tile, shrink)))
        return
    start = mercantile.bounding_tile(west, south, east, north, truncate=True)
    yield from _descend(shape, start if start.z <= zoom else ancestor(start, zoom), zoom, shrink)


def _descend(shape: Geometry, tile: Tile, zoom: int, shrink: float) -> Iterator[Tile]:
    """Yield the tiles of a zoom within one tile, without looking into tiles that lie wholly inside."""
    import mercantile

    box = _box(tile, shrink)
    if not shape.intersects(box):
        return
    if tile.z == zoom:
        yield tile
    elif shape.contains_properly(box):
        yield from mercantile.children(tile, zoom=zoom)
    else:
        for child in mercantile.children(tile):
            yield from _descend(shape, child, zoom, shrink)


def _box(tile: Tile, shrink: float) -> Geometry:
    import mercantile
    import shapely

    west, south, east, north = mercantile.bounds(tile)
    dx, dy = (east - west) * shrink, (north - south) * shrink
    return shapely.box(west + dx, south + dy, east - dx, north - dy)


def _separated(rows: Sequence[tuple[Tile, str]], gap: int) -> list[tuple[Tile, str]]:
    """Return the tiles that have no tile of a later split within a distance, in tiles of their zoom."""
    splits = dict(rows)
    steps = [(dx, dy) for dx in range(-gap, gap + 1) for dy in range(-gap, gap + 1)]

    def is_free(tile: Tile, name: str) -> bool:
        near = (splits.get(tile._replace(x=tile.x + dx, y=tile.y + dy), name) for dx, dy in steps)
        return max(map(SPLITS.index, near)) <= SPLITS.index(name)

    return [(tile, name) for tile, name in rows if is_free(tile, name)]
