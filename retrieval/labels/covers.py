"""The XYZ tiles of an area, and their split into train, val and test by blocks of ground.

A block is an XYZ tile of a coarser zoom. All tiles of a block, of every zoom, go to one split, so no ground
is in two splits. Blocks are shuffled by the seed; each goes to the split that lacks the most tiles.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retrieval.errors import LabelsError
from retrieval.geo.request import BoundingBox
from retrieval.labels.files import MAX_ZOOM, RASTER_ENDINGS, find_files, reading_csv, tile_of
from retrieval.labels.masks import open_raster
from retrieval.types import Progress, silent
from tfrecords.errors import MissingInputError
from tfrecords.storage import check_free, writing_file

if TYPE_CHECKING:
    from mercantile import Tile
    from shapely import Geometry

SPLITS = ("train", "val", "test")
"""Names of the splits, in the order of `--split`."""
HEADER = ("z", "x", "y", "split")
"""Columns of a cover."""
MIN_BLOCKS = 20
"""Blocks that the largest block size must give, unless the user names a zoom."""
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
    splits: Mapping[str, int]
    """Number of tiles by split."""
    block_zoom: int
    """Zoom of the blocks that were split."""
    blocks: int
    notes: tuple[str, ...] = field(default=())


def cover(
    area: str | Path | BoundingBox,
    out: str | Path,
    *,
    zoom: int | None = None,
    split: str = "70/20/10",
    block_zoom: int | None = None,
    gap: int = 0,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress = silent,
) -> CoverReport:
    """List the XYZ tiles of an area, split by blocks of ground.

    Args:
        area: a box; a vector file; a raster with a CRS; a folder of XYZ tiles or of rasters.
        out: the CSV to write, with the columns z, x, y and split.
        zoom: zoom of the tiles, 0 to 30; None keeps the zooms of a folder of XYZ tiles.
        split: shares of train, val and test, such as 70/20/10.
        block_zoom: zoom of the blocks; None for the largest blocks that are at least twenty.
        gap: leave out tiles within this many tiles of another split; train gives way to val, val to test.
        seed: decides which block goes to which split.
        overwrite: replace an existing file.
        progress: called while tiles are listed.

    Returns:
        The numbers of tiles and blocks.

    Raises:
        LabelsError: no tile, too few blocks, or a bad split or zoom.
        MissingInputError: no such file.
        OutputExistsError: the CSV exists and `overwrite` is not set.
    """
    check_free(out, overwrite=overwrite)
    shares = parse_split(split)
    if zoom is not None and not 0 <= zoom <= MAX_ZOOM:
        raise LabelsError(f"zoom {zoom}: out of range. Expected 0 to {MAX_ZOOM}.")
    notes: list[str] = []
    progress("listing tiles", 0, None)
    tiles = sorted(set(_tiles_of(area, zoom, notes)), key=lambda tile: (tile.z, tile.x, tile.y))
    if not tiles:
        raise LabelsError(f"{area}: it covers no tile. Expected an area within 85.05° of the equator.")
    blocks, used_zoom = _blocks(tiles, shares, block_zoom)
    assigned = assign(blocks, shares, seed)
    rows = [(tile, assigned[block]) for tile, block in zip(tiles, blocks, strict=True)]
    if gap:
        rows = _separated(rows, gap)
        notes.append(f"{len(tiles) - len(rows)} tiles within {gap} of another split are left out")
    with writing_file(out, overwrite=overwrite) as partial:
        write_cover(partial, rows)
    counts = Counter(name for _, name in rows)
    notes += _share_note(counts, shares)
    splits = {name: counts[name] for name in SPLITS}
    return CoverReport(Path(out), len(rows), splits, used_zoom, len(set(blocks)), tuple(notes))


def parse_split(text: str) -> tuple[float, float, float]:
    """Return the shares of train, val and test in "70/20/10", each 0 to 1.

    Raises:
        LabelsError: not two or three numbers of 0 or more, or all are 0.
    """
    try:
        numbers = [float(part) for part in text.split("/")]
    except ValueError:
        numbers = []
    if len(numbers) not in (2, 3) or not all(0 <= n < float("inf") for n in numbers) or not sum(numbers):
        raise LabelsError(f"--split {text!r}: not a split. Expected train/val/test, such as 70/20/10.")
    train, val, test = (*numbers, 0.0)[:3]
    total = train + val + test
    return train / total, val / total, test / total


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


def assign(blocks: Sequence[Tile], shares: Sequence[float], seed: int) -> dict[Tile, str]:
    """Assign blocks to splits.

    Args:
        blocks: block of each tile.
        shares: wanted share of the tiles, by split.
        seed: decides the order of the blocks.

    Returns:
        The split of each block. Every split with a share gets a block while there are enough.
    """
    sizes = Counter(blocks)
    order = sorted(sizes)
    np.random.default_rng(seed).shuffle(order)
    # Large blocks first: the small ones then even out the shares.
    order = [order[i] for i in sorted(range(len(order)), key=lambda i: -sizes[order[i]])]
    done, filled = dict[Any, str](), Counter[str]()
    wanted = [(name, share) for name, share in zip(SPLITS, shares, strict=True) if share > 0]
    total = len(blocks)
    for number, block in enumerate(order):
        open_splits = [entry for entry in wanted if not filled[entry[0]]]
        if open_splits and len(order) - number <= len(open_splits):
            wanted_now = open_splits  # the last blocks go to splits that have none
        else:
            wanted_now = wanted
        name = max(wanted_now, key=lambda entry: entry[1] * total - filled[entry[0]])[0]
        done[block] = name
        filled[name] += sizes[block]
    return done


# --- tiles of an area ---------------------------------------------------------------------------


def _tiles_of(area: str | Path | BoundingBox, zoom: int | None, notes: list[str]) -> Iterator[Tile]:
    """Yield the tiles of an area; some may come twice."""
    if isinstance(area, BoundingBox):
        import shapely

        boxes = [shapely.box(*part) for part in area.split()]
        yield from _tiles_of_shapes(boxes, _needed(zoom, area))
        return
    path = Path(area)
    if path.is_dir():
        files = find_files(path)
        named = [tile for name in files if (tile := tile_of(name))]
        if named:
            yield from named if zoom is None else _at_zoom(named, zoom)
            return
        yield from _tiles_of_shapes((_footprint(file) for file in files.values()), _needed(zoom, area))
    elif path.suffix.lower() in RASTER_ENDINGS:
        yield from _tiles_of_shapes([_footprint(path)], _needed(zoom, area))
    else:
        from retrieval.labels.vectors import VectorFile

        vectors = VectorFile.open(path)
        for batch in vectors.batches("OGC:CRS84"):
            yield from _tiles_of_shapes(batch.shapes, _needed(zoom, area))
        notes.extend(vectors.notes())


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
            yield _ancestor(tile, zoom)


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
    yield from _descend(shape, start if start.z <= zoom else _ancestor(start, zoom), zoom, shrink)


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


# --- blocks -------------------------------------------------------------------------------------


def _blocks(tiles: Sequence[Tile], shares: Sequence[float], zoom: int | None) -> tuple[list[Tile], int]:
    """Return the block of each tile, and the zoom of the blocks.

    Raises:
        LabelsError: a block is no larger than a tile, or there are fewer blocks than splits.
    """
    coarsest = tiles[0].z
    splits = sum(share > 0 for share in shares)
    if zoom is not None and not 0 <= zoom <= coarsest:
        raise LabelsError(f"--block-zoom {zoom}: out of range. Expected 0 to {coarsest}, the tiles' zoom.")
    chosen = zoom if zoom is not None else max(0, coarsest - 1)
    if zoom is None:
        parents = {_ancestor(tile, chosen) for tile in tiles}
        while chosen > 0 and splits > 1:
            larger = {_ancestor(tile, chosen - 1) for tile in parents}
            if len(larger) < MIN_BLOCKS:
                break
            parents, chosen = larger, chosen - 1
        chosen = chosen if splits > 1 else 0
        if len(parents) < splits and tiles[-1].z > coarsest:
            chosen = coarsest  # tiles of finer zooms make these tiles blocks
    blocks = [_ancestor(tile, chosen) for tile in tiles]
    if len(set(blocks)) < splits:
        raise LabelsError(
            f"{len(set(blocks))} blocks of zoom {chosen} for {splits} splits: too few. Expected a larger "
            f"area, a finer --zoom, or --block-zoom up to {coarsest}."
        )
    return blocks, chosen


def _ancestor(tile: Tile, zoom: int) -> Tile:
    """Return the tile of a zoom that contains a tile, or is it."""
    import mercantile

    return tile if tile.z == zoom else mercantile.parent(tile, zoom=zoom)


def _separated(rows: Sequence[tuple[Tile, str]], gap: int) -> list[tuple[Tile, str]]:
    """Return the tiles that have no tile of a later split within a distance, in tiles of their zoom."""
    splits = dict(rows)
    steps = [(dx, dy) for dx in range(-gap, gap + 1) for dy in range(-gap, gap + 1)]

    def is_free(tile: Tile, name: str) -> bool:
        near = (splits.get(tile._replace(x=tile.x + dx, y=tile.y + dy), name) for dx, dy in steps)
        return max(map(SPLITS.index, near)) <= SPLITS.index(name)

    return [(tile, name) for tile, name in rows if is_free(tile, name)]


def _share_note(counts: Counter[str], shares: Sequence[float]) -> list[str]:
    """Return a note where a split is more than five points from its share."""
    total = max(1, counts.total())
    off = [
        f"{name} has {counts[name] / total:.0%} instead of {share:.0%}"
        for name, share in zip(SPLITS, shares, strict=True)
        if abs(counts[name] / total - share) > 0.05
    ]
    return [f"{', '.join(off)} of the tiles, because blocks are large"] if off else []
