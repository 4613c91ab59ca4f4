"""Sentinel-2 products -> places: one for each tile, one date for each day.

Of several products of one tile and day the newest baseline, then the newest processing, comes first; the
others only fill where it has no data. What its scene classification hides stays hidden. Level-2A is taken
where both levels are there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from retrieval.geo.pixel_window import PixelWindow, window_of_box
from retrieval.geo.request import ImageFilter
from retrieval.ingest.images import (
    Fetched,
    Job,
    Left,
    check_same_grid,
    large_enough,
    recipe_of,
    some,
    write_jobs,
)
from retrieval.ingest.offset_check import check_files
from retrieval.ingest.safe.metadata import BANDS, Granule, Product, read_product
from retrieval.ingest.safe.tile import BLOCK_PX, Tile, open_tile
from retrieval.ingest.safe.tree import find_trees
from tfrecords.challenge import Progress
from tfrecords.errors import StorageError
from tfrecords.schema.records import Provenance


@dataclass(frozen=True)
class _Seen:
    """One tile of one product that was looked at."""

    product: Product
    granule: Granule
    part: PixelWindow
    crs: str
    transform: tuple[float, ...]
    grid: tuple[Any, ...]


def fetch_products(
    source: Path,
    out: Path,
    image_filter: ImageFilter,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Fetched:
    """Write the products of a folder as places.

    All products are looked at before anything is written; one that can't be used is left out, with a note.

    Args:
        source: a product, its zip, or a folder of some.
        out: folder of the places; dates that are there, made of the same, are kept.
        image_filter: which of them, and which part.
        overwrite: replace dates that were made of something else.
        progress: told how many blocks of how many are read.

    Returns:
        The files, `<tile>/<date>.tif`.

    Raises:
        MissingInputError: nothing of what was asked for is there; says why of each product.
        ProductError: a product was named itself and can't be used.
        OutputExistsError: a date is there that was made of something else.
        GridError: places are there that were cut for another box.
        DiskFullError: the disk is full.
    """
    left = Left()
    notes: list[str] = []
    seen = _look(source, image_filter, left, notes)
    jobs = [_job(group, image_filter) for group in _groups(seen, left, notes)]
    if not jobs:
        raise left.error(source)
    check_same_grid(jobs, out)
    paths = write_jobs(jobs, out, left, overwrite=overwrite, progress=progress)
    if not paths:
        raise left.error(source)
    return Fetched(paths, (*notes, *left.notes(), *check_files(paths)))


def _look(source: Path, image_filter: ImageFilter, left: Left, notes: list[str]) -> list[_Seen]:
    """Look at all tiles of all products that are wanted."""
    trees, strange = find_trees(source)
    left.errors += strange
    seen: list[_Seen] = []
    for tree in trees:
        try:
            product = read_product(tree)
            if reason := image_filter.reason_to_skip(product.date, product.cloud_cover):
                left.add(reason, tree.name)
                continue
            own = [one for granule in product.granules if (one := _see(product, granule, image_filter, left))]
        except StorageError as error:
            left.errors.append(error)
            continue
        seen += own
        notes += [product.note] if own and product.note else []
    plain = sorted({one.product.tree.name for one in seen if one.granule.scene is None})
    if plain:
        notes.append(f"no scene classification, so no cloud is hidden: {some(plain)}")
    return seen


def _see(product: Product, granule: Granule, image_filter: ImageFilter, left: Left) -> _Seen | None:
    """Look at a tile; None where it is not wanted."""
    with open_tile(product, granule) as tile:
        part = window_of_box(image_filter.box, tile.crs, tile.transform, tile.width, tile.height, tile.name)
        if not large_enough(part, tile.name, left):
            return None
        assert part is not None
        return _Seen(product, granule, part, tile.crs, tile.transform, tile.grid)


def _groups(seen: Sequence[_Seen], left: Left, notes: list[str]) -> list[list[_Seen]]:
    """The tiles of each place and day, the one that decides first."""
    days: dict[tuple[str, str], list[_Seen]] = {}
    for one in seen:
        days.setdefault((one.granule.tile, one.product.date), []).append(one)
    groups = []
    for (tile, date), those in sorted(days.items()):
        those.sort(key=lambda one: (one.product.level, one.product.age, one.product.tree.name), reverse=True)
        kept = [
            one for one in those if (one.product.level, one.grid) == (those[0].product.level, those[0].grid)
        ]
        for one in those:
            if one not in kept:
                left.add(f"{tile} {date} is taken from {those[0].product.tree.name}", one.product.tree.name)
        if len(kept) > 1:
            names = [one.product.tree.name for one in kept]
            notes.append(f"{tile} {date}: {names[0]}, and where it has no data {some(names[1:])}")
        groups.append(kept)
    return groups


def _job(group: Sequence[_Seen], image_filter: ImageFilter) -> Job:
    first = group[0]
    names = [one.product.tree.name for one in group]
    recipe = recipe_of(names, first.part, hide_snow=image_filter.hide_snow)

    @contextmanager
    def opened() -> Iterator[_Day]:
        with ExitStack() as stack:
            tiles = [stack.enter_context(open_tile(one.product, one.granule)) for one in group]
            yield _Day(tiles, image_filter.hide_snow, recipe)

    return Job(
        place=first.granule.tile,
        date=first.product.date,
        name=names[0],
        part=first.part,
        crs=first.crs,
        transform=first.transform,
        bands=BANDS,
        dtype="uint16",
        nodata=0,
        recipe=recipe,
        block=(BLOCK_PX, BLOCK_PX),
        opened=opened,
    )


class _Day:
    """The tiles of one place and day, opened."""

    def __init__(self, tiles: Sequence[Tile], hide_snow: bool, recipe: str) -> None:
        self._tiles, self._hide_snow, self._recipe = tiles, hide_snow, recipe
        self._used = {0}

    def read(self, part: PixelWindow) -> NDArray[Any]:
        """Pixels of the first tile, filled from the others where it has none."""
        pixels, gone = self._tiles[0].read(part, hide_snow=self._hide_snow)
        for number, tile in enumerate(self._tiles[1:], start=1):
            if not gone.any():
                break
            other, lacks = tile.read(part, hide_snow=self._hide_snow)
            fills = gone & ~lacks
            pixels[fills] = other[fills]
            gone &= lacks
            self._used |= {number} if fills.any() else set()
        return pixels

    def provenance(self) -> Provenance:
        """Of the tile that comes first, with the names of all that gave pixels."""
        names = [self._tiles[number].product.tree.name for number in sorted(self._used)]
        return replace(self._tiles[0].product.provenance(self._recipe), source=" ".join(names))
