"""Sentinel-2 products to places: one place per tile, one date per day.

Of several products of one tile and day the newest baseline, then the newest processing, comes first. The
others only fill its nodata, never what its scene classification hides. Level-2A is preferred to Level-1C.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from retrieval.geo.pixel_window import PixelWindow, window_of_box
from retrieval.geo.request import ImageFilter
from retrieval.ingest.offset_check import check_files
from retrieval.ingest.places_writer import (
    DateTask,
    Skipped,
    WrittenPlaces,
    check_same_grid,
    holds_patch,
    join_names,
    recipe_of,
    write_dates,
)
from retrieval.ingest.safe.aws import read_aws_tile
from retrieval.ingest.safe.maja import read_maja
from retrieval.ingest.safe.metadata import BANDS, Granule, Product, read_product
from retrieval.ingest.safe.tile import BLOCK_PX, Tile, open_tile
from retrieval.ingest.safe.tree import Tree, find_trees
from retrieval.types import Executor
from tfrecords.challenge import Progress
from tfrecords.errors import StorageError
from tfrecords.read.rasters import longitude_of
from tfrecords.schema.records import Provenance

READERS: Mapping[str, Callable[[Tree], Product]] = {
    "safe": read_product,
    "maja": read_maja,
    "aws": read_aws_tile,
}
"""Reads the metadata of a product, by `Tree.layout`."""


@dataclass(frozen=True)
class _TileImage:
    """One tile of one product, and the window of it to copy."""

    product: Product
    granule: Granule
    window: PixelWindow
    crs: str
    transform: tuple[float, ...]
    grid: tuple[Any, ...]
    date: str

    @property
    def name(self) -> str:
        return self.product.tree.name

    @property
    def priority(self) -> tuple[str, tuple[float, str], str]:
        """Sorts the products of one tile and day; the largest comes first."""
        return self.product.level, self.product.age, self.name


def ingest_products(
    source: Path,
    out: Path,
    image_filter: ImageFilter,
    *,
    overwrite: bool = False,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> WrittenPlaces:
    """Write the products of a folder as places.

    All products are opened before anything is written. A product that cannot be used is skipped, with a note.

    Args:
        source: a product, its zip, or a folder of products.
        out: folder of the places; existing dates made from the same input are kept.
        image_filter: which products, and which part of them.
        overwrite: replace dates that were made from other input.
        executor: writes the dates; None for this thread.
        progress: called with the number of blocks read, and of all blocks.

    Returns:
        The files, `<tile>/<date>.tif`.

    Raises:
        MissingInputError: no product is left; the text says why for each.
        ProductError: `source` is one product, and it cannot be used.
        OutputExistsError: a date exists that was made from other input.
        GridError: an existing place was cut for another box.
        DiskFullError: the disk is full.
    """
    skipped = Skipped()
    notes: list[str] = []
    tiles = _open_products(source, image_filter, skipped)
    groups = _group_by_day(tiles, skipped, notes)
    notes += _describe([tile for group in groups for tile in group])
    tasks = [_task(group, image_filter.hide_snow) for group in groups]
    if not tasks:
        raise skipped.error(source)
    check_same_grid(tasks, out)
    paths = write_dates(tasks, out, skipped, overwrite=overwrite, executor=executor, progress=progress)
    if not paths:
        raise skipped.error(source)
    return WrittenPlaces(paths, (*notes, *skipped.notes(), *check_files(paths)))


def _open_products(source: Path, image_filter: ImageFilter, skipped: Skipped) -> list[_TileImage]:
    """Open all tiles of all products that pass the filter."""
    trees, errors = find_trees(source)
    skipped.errors += errors
    tiles: list[_TileImage] = []
    for tree in trees:
        try:
            product = READERS[tree.layout](tree)
            # The solar day is known when the tile is open; the earliest and the latest day are known now.
            days = product.day(-180), product.day(180)
            reasons = [image_filter.reason_to_skip(day, product.cloud_cover) for day in days]
            if all(reasons):
                skipped.add(reasons[0], tree.name)
                continue
            opened = [_open_tile(product, granule, image_filter, skipped) for granule in product.granules]
        except StorageError as error:
            skipped.errors.append(error)
            continue
        tiles += [tile for tile in opened if tile]
    return tiles


def _describe(tiles: Sequence[_TileImage]) -> list[str]:
    """Return notes on the products that are used."""
    notes = sorted({tile.product.note for tile in tiles} - {""})
    unclassified = sorted({tile.name for tile in tiles if not (tile.granule.scene or tile.granule.clouds)})
    if unclassified:
        notes.append(
            f"no scene classification or cloud mask, so no cloud is hidden: {join_names(unclassified)}"
        )
    return notes


def _open_tile(
    product: Product, granule: Granule, image_filter: ImageFilter, skipped: Skipped
) -> _TileImage | None:
    """Open a tile; None where it lies outside of the box or of the dates."""
    with open_tile(product, granule) as tile:
        window = window_of_box(image_filter.box, tile.crs, tile.transform, tile.width, tile.height, tile.name)
        if not holds_patch(window, tile.name, skipped):
            return None
        assert window is not None
        date = product.day(longitude_of(tile.crs, tile.transform, window.centre))
        if reason := image_filter.reason_to_skip(date, product.cloud_cover):
            skipped.add(reason, tile.name)
            return None
        return _TileImage(product, granule, window, tile.crs, tile.transform, tile.grid, date)


def _group_by_day(tiles: Sequence[_TileImage], skipped: Skipped, notes: list[str]) -> list[list[_TileImage]]:
    """Return the tiles of each place and day, the preferred one first."""
    days: dict[tuple[str, str], list[_TileImage]] = {}
    for tile in tiles:
        days.setdefault((tile.granule.tile, tile.date), []).append(tile)
    groups = []
    for (place, date), candidates in sorted(days.items()):
        candidates.sort(key=lambda tile: tile.priority, reverse=True)
        first = candidates[0]
        group = [
            tile
            for tile in candidates
            if (tile.product.level, tile.grid) == (first.product.level, first.grid)
        ]
        for tile in candidates:
            if tile not in group:
                skipped.add(f"{place} {date} is taken from {first.name}", tile.name)
        if len(group) > 1:
            fillers = join_names([tile.name for tile in group[1:]])
            notes.append(f"{place} {date}: {first.name}, its nodata filled from {fillers}")
        groups.append(group)
    return groups


def _task(group: Sequence[_TileImage], hide_snow: bool) -> DateTask:
    first = group[0]
    names = [tile.name for tile in group]
    recipe = recipe_of(names, first.window, hide_snow=hide_snow)
    return DateTask(
        place=first.granule.tile,
        date=first.date,
        name=names[0],
        window=first.window,
        crs=first.crs,
        transform=first.transform,
        bands=BANDS,
        dtype="uint16",
        nodata=0,
        recipe=recipe,
        block=(BLOCK_PX, BLOCK_PX),
        open=partial(_open_day, tuple(group), hide_snow, recipe),
    )


@contextmanager
def _open_day(group: Sequence[_TileImage], hide_snow: bool, recipe: str) -> Iterator[_DayReader]:
    with ExitStack() as stack:
        tiles = [stack.enter_context(open_tile(tile.product, tile.granule)) for tile in group]
        yield _DayReader(tiles, hide_snow, recipe)


class _DayReader:
    """Reads the tiles of one place and day as one image."""

    def __init__(self, tiles: Sequence[Tile], hide_snow: bool, recipe: str) -> None:
        self._tiles, self._hide_snow, self._recipe = tiles, hide_snow, recipe
        self._used = {0}

    def read(self, window: PixelWindow) -> NDArray[Any]:
        """Return the pixels of the first tile, its nodata filled from the others."""
        pixels, empty = self._tiles[0].read(window, hide_snow=self._hide_snow)
        for number, tile in enumerate(self._tiles[1:], start=1):
            if not empty.any():
                break
            other, other_empty = tile.read(window, hide_snow=self._hide_snow)
            fills = empty & ~other_empty
            pixels[fills] = other[fills]
            empty &= other_empty
            self._used |= {number} if fills.any() else set()
        return pixels

    def provenance(self) -> Provenance:
        """Return the first tile's tags, with the names of all products that gave pixels."""
        names = [self._tiles[number].product.tree.name for number in sorted(self._used)]
        return replace(self._tiles[0].product.provenance(self._recipe), source=" ".join(names))
