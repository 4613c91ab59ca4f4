"""Items sorted into places and days; what can't be used is left out, with the reason."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from retrieval.ingest.stac.catalogue import Item, cloud_cover, under_cloud
from retrieval.ingest.stac.journal import Row
from retrieval.ingest.stac.query import CatalogQuery
from retrieval.ingest.stac.scene import SCL, Grid, Scene, scene_of
from retrieval.ingest.stac.window import crop_to_box, find_repeated
from tfrecords.errors import BandsError, CatalogueError, GridError


@dataclass(frozen=True)
class Day:
    """What there is of one place on one day."""

    place: str
    """Its name."""
    date: datetime.date
    """By the sun."""
    scenes: tuple[Scene, ...]
    """The items, those of the clearest tile first."""
    window: Grid
    """Pixels of the place that are asked for."""

    @property
    def file(self) -> str:
        """What it becomes, in the folder."""
        return f"{self.place}/{self.date}.tif"

    def rows(self, **more: object) -> list[Row]:
        """What the journal says of its items."""
        return [row_of(scene, self.date.isoformat(), **more) for scene in self.scenes]


@dataclass
class Left:
    """What was left out so far, and why."""

    rows: list[Row] = field(default_factory=list)
    """One for each item."""
    notes: list[str] = field(default_factory=list)
    """A sentence for each reason, or each item that is worth one."""

    def out(self, rows: Iterable[Row], note: str = "") -> None:
        """Leave items out."""
        self.rows += rows
        if note:
            self.notes.append(note)


def row_of(scene: Scene, date: str = "", **more: object) -> Row:
    """What the journal says of an item."""
    red = scene.bands["B04"].offset
    known = {"cloud_cover": scene.cloud_cover, "baseline": scene.baseline}
    offset = {"offset": red.dn, "offset_from": red.source}
    return Row(scene.id, scene.place, date, **{**known, **offset, **more})  # type: ignore[arg-type]


def sorted_days(
    items: Sequence[Item], query: CatalogQuery, grounded: Callable[[Scene], Scene], left: Left
) -> list[Day]:
    """Sort items into places and days.

    Args:
        items: From the catalogue.
        query: What is asked for.
        grounded: Fills in where an item lies that doesn't say so itself.
        left: Takes what can't be used.

    Returns:
        The days of all places, in order.

    Raises:
        CatalogueError: There is none.
    """
    clear = _clear_enough(items, query, left)
    scenes = _newest(_readable(clear, grounded, left), left)
    places = _places(scenes, query, left)
    longitude = query.bbox.centre_longitude
    groups: dict[tuple[str, datetime.date], list[Scene]] = {}
    for scene in scenes:
        if scene.place in places:
            groups.setdefault((scene.place, scene.day(longitude)), []).append(scene)
    days = [Day(*key, _in_order(own), places[key[0]]) for key, own in sorted(groups.items())]
    if not days:
        raise CatalogueError(nothing(left.rows))
    return days


def nothing(rows: Sequence[Row]) -> str:
    """Say why nothing could be written."""
    reasons = Counter(row.left_out for row in rows)
    shown = "; ".join(
        f"{count} {'items' if count > 1 else 'item'}: {r}" for r, count in reasons.most_common(3)
    )
    more = f"; and {len(reasons) - 3} other reasons" if len(reasons) > 3 else ""
    return f"nothing was written, all {len(rows)} items were left out. {shown}{more}"


def _in_order(scenes: Sequence[Scene]) -> tuple[Scene, ...]:
    return tuple(
        sorted(scenes, key=lambda one: (100 if one.cloud_cover is None else one.cloud_cover, one.id))
    )


def _clear_enough(items: Sequence[Item], query: CatalogQuery, left: Left) -> list[Item]:
    """Those whose tile is clear enough, or doesn't say."""
    cloudy = [item for item in items if (cloud_cover(item) or 0) > query.max_cloud]
    if items and len(cloudy) == len(items):
        raise CatalogueError(f"{query.api} has nothing {under_cloud(cloudy, query.max_cloud)}")
    rows = [
        Row(str(one["id"]), cloud_cover=cloud_cover(one), left_out=f"more than {query.max_cloud:g} % cloud")
        for one in cloudy
    ]
    if rows:
        left.out(rows, f"{len(rows)} items have more than {query.max_cloud:g} % cloud and were left out")
    out = {row.item for row in rows}
    return [item for item in items if str(item["id"]) not in out]


def _readable(items: Sequence[Item], grounded: Callable[[Scene], Scene], left: Left) -> list[Scene]:
    """Those that say all that is needed."""
    scenes = []
    for item in items:
        try:
            scenes.append(grounded(scene_of(item)))
        except (BandsError, CatalogueError) as error:
            row = Row(str(item["id"]), cloud_cover=cloud_cover(item), left_out=str(error))
            left.out([row], f"{row.item} was left out: {error}")
        except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            why = f"its metadata are not those of an image ({type(error).__name__}: {str(error)[:80]})"
            row = Row(str(item["id"]), left_out=why)
            left.out([row], f"{row.item} was left out: {why}")
    return scenes


def _newest(scenes: Sequence[Scene], left: Left) -> list[Scene]:
    """Of products of one pass over one tile, those of the latest processing baseline."""
    latest: dict[tuple[str, datetime.datetime], str] = {}
    for scene in scenes:
        key = scene.place, scene.when.replace(microsecond=0)
        latest[key] = max(latest.get(key, ""), scene.baseline)
    old = [one for one in scenes if one.baseline < latest[one.place, one.when.replace(microsecond=0)]]
    if old:
        rows = [row_of(scene, left_out="there is a later processing of it") for scene in old]
        left.out(rows, f"{len(old)} items are there in a later processing and were left out")
    out = {id(scene) for scene in old}
    return [scene for scene in scenes if id(scene) not in out]


def _places(scenes: Sequence[Scene], query: CatalogQuery, left: Left) -> dict[str, Grid]:
    """The window of each place that brings ground of its own."""
    groups: dict[str, list[Scene]] = {}
    for scene in scenes:
        groups.setdefault(scene.place, []).append(scene)
    windows: dict[str, Grid] = {}
    for place, own in groups.items():
        try:
            windows[place] = crop_to_box(_one_crs(place, own), query.bbox)
        except GridError as error:
            left.out([row_of(s, left_out=str(error)) for s in own], f"{place} was left out: {error}")
    for place, other in find_repeated(windows, query.bbox).items():
        del windows[place]
        why = f"its ground is in {other} too"
        left.out([row_of(s, left_out=why) for s in groups[place]], f"{place} was left out: {why}")
    return windows


def _one_crs(place: str, scenes: Sequence[Scene]) -> list[Grid]:
    """Grids of a place's items; those in another reference system are warped onto the commonest."""
    grids = [scene.grid for scene in scenes if scene.grid]
    (crs, _), *_ = Counter(grid.crs for grid in grids).most_common(1)
    return [grid for grid in grids if grid.crs == crs]


def guesses(days: Sequence[Day]) -> list[str]:
    """Say what is not known of the items for sure."""
    scenes = [scene for day in days for scene in day.scenes]
    unsure = [one for one in scenes if "guess" in one.bands["B04"].offset.source]
    bare = [one for one in scenes if SCL not in one.bands]
    notes = []
    if unsure:
        notes.append(
            f"{len(unsure)} of {len(scenes)} items tell neither offset nor processing baseline: their offset "
            "was guessed from the date"
        )
    if bare:
        notes.append(
            f"{len(bare)} of {len(scenes)} items have no scene classification: their cloud is not hidden"
        )
    return notes
