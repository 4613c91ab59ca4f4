"""Items sorted into places and days, and the dates of a place that are kept."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from retrieval.ingest.redaction import redact
from retrieval.ingest.stac.catalogue import Item, cloud_cover, describe_cloud
from retrieval.ingest.stac.journal import ItemRow
from retrieval.ingest.stac.offset import GUESSED, UNKNOWN_PRODUCT
from retrieval.ingest.stac.query import CatalogQuery
from retrieval.ingest.stac.scene import SCL, Grid, Scene, scene_of
from retrieval.ingest.stac.window import crop_to_box, find_repeated
from tfrecords.errors import BandsError, CatalogueError, GridError

SAME_PASS = datetime.timedelta(milliseconds=5)
"""Two items of a tile whose times differ by no more are one pass: catalogues round its time differently."""


@dataclass(frozen=True)
class Day:
    """The items of one place on one day."""

    place: str
    """Name of the place."""
    date: datetime.date
    """The solar day."""
    scenes: tuple[Scene, ...]
    """The items, the clearest tile first."""
    window: Grid
    """The pixels of the place to fetch."""

    @property
    def file(self) -> str:
        """Path of the file below the folder of all places."""
        return f"{self.place}/{self.date}.tif"

    def rows(self, **values: object) -> list[ItemRow]:
        """Return the journal rows of the items."""
        return [row_of(scene, self.date.isoformat(), **values) for scene in self.scenes]


@dataclass
class SkippedItems:
    """The items that are skipped, with the reasons."""

    rows: list[ItemRow] = field(default_factory=list)
    """One for each item."""
    notes: list[str] = field(default_factory=list)
    """One sentence for each reason, or for each item that needs one."""

    def add(self, rows: Iterable[ItemRow], note: str = "") -> None:
        """Skip items."""
        self.rows += rows
        if note:
            self.notes.append(note)


def row_of(scene: Scene, date: str = "", **values: object) -> ItemRow:
    """Return the journal row of an item."""
    red = scene.bands["B04"].offset
    metadata = {"cloud_cover": scene.cloud_cover, "baseline": scene.baseline}
    offset = {"offset": red.dn, "offset_from": red.source}
    return ItemRow(scene.id, scene.place, date, **{**metadata, **offset, **values})  # type: ignore[arg-type]


# --- items to days ------------------------------------------------------------------------------


def sort_into_days(
    items: Sequence[Item], query: CatalogQuery, locate: Callable[[Scene], Scene], skipped: SkippedItems
) -> list[Day]:
    """Sort items into places and days.

    Args:
        items: items of the catalogue.
        query: the query.
        locate: fills in the grid of an item whose metadata lack it.
        skipped: receives what cannot be used.

    Returns:
        The days of all places, in order.

    Raises:
        CatalogueError: no item can be used.
    """
    clear = _clear_items(items, query, skipped)
    scenes = _latest_processing(_read_scenes(clear, locate, skipped), skipped)
    windows = _windows_of_places(scenes, query, skipped)
    longitudes = {place: window.longitude for place, window in windows.items()}
    groups: dict[tuple[str, datetime.date], list[Scene]] = {}
    for scene in scenes:
        if scene.place not in windows:
            continue
        day = scene.day(longitudes[scene.place])
        if query.first <= day <= query.last:
            groups.setdefault((scene.place, day), []).append(scene)
        else:
            skipped.add([row_of(scene, day.isoformat(), left_out=f"outside of the dates {query.dates}")])
    days = [Day(*key, _clearest_first(group), windows[key[0]]) for key, group in sorted(groups.items())]
    if not days:
        raise CatalogueError(explain_nothing_written(skipped.rows))
    return days


def explain_nothing_written(rows: Sequence[ItemRow]) -> str:
    """Return the most frequent reasons why all items were skipped."""
    reasons = Counter(row.left_out for row in rows)
    listed = "; ".join(
        f"{count} {'items' if count > 1 else 'item'}: {reason}" for reason, count in reasons.most_common(3)
    )
    more = f"; and {len(reasons) - 3} other reasons" if len(reasons) > 3 else ""
    return f"nothing was written, all {len(rows)} items were skipped. {listed}{more}"


def _clearest_first(scenes: Sequence[Scene]) -> tuple[Scene, ...]:
    def key(scene: Scene) -> tuple[float, str]:
        return 100 if scene.cloud_cover is None else scene.cloud_cover, scene.id

    return tuple(sorted(scenes, key=key))


def _clear_items(items: Sequence[Item], query: CatalogQuery, skipped: SkippedItems) -> list[Item]:
    """Return the items whose cloud cover is within the limit or unknown."""
    cloudy = [item for item in items if (cloud_cover(item) or 0) > query.max_cloud]
    if items and len(cloudy) == len(items):
        raise CatalogueError(f"{redact(query.api)}: no item {describe_cloud(cloudy, query.max_cloud)}")
    reason = f"more than {query.max_cloud:g} % cloud"
    rows = [ItemRow(str(item["id"]), cloud_cover=cloud_cover(item), left_out=reason) for item in cloudy]
    if rows:
        skipped.add(rows, f"skipped: {len(rows)} items with {reason}")
    ids = {row.item for row in rows}
    return [item for item in items if str(item["id"]) not in ids]


def _read_scenes(
    items: Sequence[Item], locate: Callable[[Scene], Scene], skipped: SkippedItems
) -> list[Scene]:
    """Return the items with all the metadata that are needed."""
    scenes = []
    for item in items:
        try:
            scenes.append(locate(scene_of(item)))
        except (BandsError, CatalogueError) as error:
            row = ItemRow(str(item["id"]), cloud_cover=cloud_cover(item), left_out=str(error))
            skipped.add([row], f"skipped: {row.item}, {error}")
        except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            reason = f"its metadata do not describe an image ({type(error).__name__}: {str(error)[:80]})"
            row = ItemRow(str(item["id"]), left_out=reason)
            skipped.add([row], f"skipped: {row.item}, {reason}")
    return scenes


def _latest_processing(scenes: Sequence[Scene], skipped: SkippedItems) -> list[Scene]:
    """Return, of the products of one pass over one tile, the latest: by baseline, then by processing time."""
    passes: list[list[Scene]] = []
    for scene in sorted(scenes, key=lambda scene: (scene.place, scene.when)):
        first = passes[-1][0] if passes else None
        if first and first.place == scene.place and scene.when - first.when <= SAME_PASS:
            passes[-1].append(scene)
        else:
            passes.append([scene])
    latest = {id(scene): max(other.age for other in members) for members in passes for scene in members}
    old = [scene for scene in scenes if scene.age < latest[id(scene)]]
    if old:
        rows = [row_of(scene, left_out="a later processing exists") for scene in old]
        skipped.add(rows, f"skipped: {len(old)} items of which a later processing exists")
    return [scene for scene in scenes if scene.age == latest[id(scene)]]


def _windows_of_places(
    scenes: Sequence[Scene], query: CatalogQuery, skipped: SkippedItems
) -> dict[str, Grid]:
    """Return the window of each place."""
    groups: dict[str, list[Scene]] = {}
    for scene in scenes:
        groups.setdefault(scene.place, []).append(scene)
    windows: dict[str, Grid] = {}
    for place, members in groups.items():
        try:
            windows[place] = crop_to_box(_grids_in_one_crs(members), query.bbox)
        except GridError as error:
            skipped.add(
                [row_of(scene, left_out=str(error)) for scene in members], f"skipped: {place}, {error}"
            )
    return windows


def drop_repeated(
    days: Sequence[Day],
    query: CatalogQuery,
    shares: Mapping[str, float],
    existing: Collection[str],
    skipped: SkippedItems,
) -> list[Day]:
    """Return the days of the places whose ground no other place covers with as many usable dates.

    Args:
        days: the days of all places.
        query: the query.
        shares: share of the ground that is hidden, 0 to 1, by day.file.
        existing: places with files of an earlier run; they are kept.
        skipped: receives the other days.
    """
    windows = {day.place: day.window for day in days}
    usable = Counter(day.place for day in days if 100 * shares.get(day.file, 1.01) <= query.max_hidden)
    dates = {place: min(usable[place], query.dates_per_place) for place in windows}
    repeated = find_repeated(windows, query.bbox, dates, existing)
    for place, other in repeated.items():
        reason = f"its ground is also in {other}"
        members = [day for day in days if day.place == place]
        rows = [row for day in members for row in day.rows(left_out=reason)]
        skipped.add(rows, f"skipped: {place}, {reason}")
    return [day for day in days if day.place not in repeated]


def _grids_in_one_crs(scenes: Sequence[Scene]) -> list[Grid]:
    """Return the grids in the most frequent CRS of a place; items in another CRS are warped onto it."""
    grids = [scene.grid for scene in scenes if scene.grid]
    (crs, _), *_ = Counter(grid.crs for grid in grids).most_common(1)
    return [grid for grid in grids if grid.crs == crs]


def note_missing_metadata(days: Sequence[Day]) -> list[str]:
    """Return a note for each kind of metadata that items lack."""
    scenes = [scene for day in days for scene in day.scenes]
    sources = [scene.bands["B04"].offset.source for scene in scenes]
    guessed, unknown = sources.count(GUESSED), sources.count(UNKNOWN_PRODUCT)
    unclassified = [scene for scene in scenes if SCL not in scene.bands]
    notes = []
    if guessed:
        notes.append(
            f"{guessed} of {len(scenes)} items state neither offset nor processing baseline: their "
            "offset was guessed from the date"
        )
    if unknown:
        notes.append(
            f"{unknown} of {len(scenes)} items are neither Level-1C nor Level-2A and state no offset: their "
            "numbers were left unchanged"
        )
    if unclassified:
        notes.append(
            f"{len(unclassified)} of {len(scenes)} items have no scene classification: their cloud is not "
            "hidden"
        )
    return notes


# --- dates of a place ---------------------------------------------------------------------------


def select_dates(
    hidden: Mapping[datetime.date, float],
    first: datetime.date,
    last: datetime.date,
    count: int,
    kept: Collection[datetime.date] = (),
) -> tuple[datetime.date, ...]:
    """Select dates that are spread over time, and the clearest among them.

    1. The span is cut into `count` stretches of equal length. From each the clearest date is taken, of equals
       the earliest.
    2. Where stretches are empty, dates are added one by one: the one farthest from all selected dates, of
       equals the clearest, then the earliest.

    Args:
        hidden: share of the ground that is hidden on each date of the span, 0 to 1.
        first: first day of the span.
        last: last day of the span.
        count: largest number of dates, 1 or more.
        kept: dates of `hidden` that exist already: they are selected, and stand for their stretches.

    Returns:
        `min(count, len(hidden))` dates in order (all of `kept` if they are more). The order of the input does
        not matter.
    """
    if len(hidden) <= count:
        return tuple(sorted(hidden))
    days = (last - first).days + 1
    best: dict[int, datetime.date] = {}
    for date in sorted(hidden, key=lambda date: (date not in kept, hidden[date], date)):
        best.setdefault((date - first).days * count // days, date)
    # Stretches without a kept date, in order: kept dates may leave room for some of them only.
    selected = hidden.keys() & set(kept)
    for date in sorted(set(best.values()) - selected)[: max(0, count - len(selected))]:
        selected.add(date)
    while len(selected) < count:
        others = hidden.keys() - selected
        selected.add(min(others, key=lambda date: (-_gap_days(date, selected), hidden[date], date)))
    return tuple(sorted(selected))


def _gap_days(date: datetime.date, selected: set[datetime.date]) -> int:
    """Return the days to the nearest selected date."""
    return min(abs((date - other).days) for other in selected)
