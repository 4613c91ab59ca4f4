"""One item of a catalogue as we need it: when, where, how clear, and where its bands are."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin, urlsplit

from retrieval.geo.pixel_window import PixelWindow
from retrieval.ingest.stac.catalogue import Item, cloud_cover
from retrieval.ingest.stac.offset import Offset, baseline_of, offset_of
from tfrecords.errors import BandsError, CatalogueError
from tfrecords.schema.records import Provenance

COMMON = {"B04": "red", "B03": "green", "B02": "blue", "B08": "nir"}
"""Our bands, in our order, by the name that catalogues share."""
SCL = "SCL"
"""The scene classification."""
SCHEMES = ("http", "https", "s3", "gs", "az")
"""Where files may lie. A catalogue must not make us open files of this machine."""

_TILE = re.compile(r"(?<![0-9A-Z])T?(\d{1,2}[C-HJ-NP-X][A-HJ-NP-Z][A-HJ-NP-V])(?![0-9A-Z])")


@dataclass(frozen=True)
class Grid:
    """Pixels on the ground."""

    crs: str
    """Anything that PROJ understands, such as EPSG:32631."""
    transform: tuple[float, float, float, float, float, float]
    """(a, b, c, d, e, f) from pixel corners to map coordinates; north is up."""
    height: int
    """Rows."""
    width: int
    """Columns."""

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, bottom, right, top in map coordinates."""
        a, _, c, _, e, f = self.transform
        return c, f + e * self.height, c + a * self.width, f

    def crop(self, window: PixelWindow) -> Grid:
        """Return the grid of a window of these pixels."""
        a, _, c, _, e, f = self.transform
        corner = c + a * window.x0, f + e * window.y0
        return Grid(self.crs, (a, 0.0, corner[0], 0.0, e, corner[1]), window.height, window.width)


@dataclass(frozen=True)
class Source:
    """Where one band lies, and what its numbers mean."""

    href: str
    """Address of the file, unsigned."""
    number: int = 1
    """Which band of the file, from 1."""
    offset: Offset = field(default_factory=lambda: Offset(0.0))
    """From its numbers to reflectance."""
    dtype: str = "uint16"
    """Type of its numbers."""
    nodata: float = 0
    """What it holds where nothing is known."""


@dataclass(frozen=True)
class Scene:
    """One item."""

    id: str
    """The item's id."""
    when: datetime.datetime
    """When it was taken, UTC."""
    place: str
    """Name of its place: the MGRS tile, such as 31TCJ, else the reference system, such as epsg-32631; empty
    where neither is told."""
    bands: Mapping[str, Source]
    """Our four bands, and SCL where there is one."""
    grid: Grid | None
    """Pixels of the red band; None where the item doesn't say."""
    cloud_cover: float | None
    """Share of the tile under cloud, percent."""
    baseline: str
    """Processing baseline, such as 04.00; empty where unknown."""

    def day(self, longitude: float) -> datetime.date:
        """Date by the sun at a longitude in degrees: a pass has one, also where it is midnight in UTC."""
        return (self.when + datetime.timedelta(hours=longitude / 15)).date()

    def provenance(self) -> Provenance:
        """What is written into the file."""
        when = self.when.strftime("%Y-%m-%dT%H:%M:%SZ")
        return Provenance(self.id, when, self.baseline, self.cloud_cover)


def scene_of(item: Item) -> Scene:
    """Read an item.

    Args:
        item: A STAC item as JSON.

    Returns:
        What we need of it.

    Raises:
        BandsError: A band is missing; the text names it, and what there is.
        CatalogueError: It has no date, or addresses that are none.
    """
    when = _when(item)
    found = {name: _find(item, name, common) for name, common in COMMON.items()}
    missing = [f"{COMMON[name]} ({name})" for name, place in found.items() if place is None]
    if missing:
        shown = ", ".join(sorted(item.get("assets", {}))[:20]) or "no files at all"
        raise BandsError(f"it has no {' and no '.join(missing)}; it has {shown}")
    scl = _find(item, SCL, "scl")
    sources = {
        name: _source(item, *place, when.date()) for name, place in {**found, SCL: scl}.items() if place
    }
    assert found["B04"] is not None
    grid = _grid(item, found["B04"][0])
    return Scene(
        str(item["id"]),
        when,
        _place(item, grid),
        sources,
        grid,
        cloud_cover(item),
        baseline_of(item),
    )


def _when(item: Item) -> datetime.datetime:
    properties = item["properties"]
    text = properties.get("datetime") or properties.get("start_datetime")
    try:
        when = datetime.datetime.fromisoformat(str(text))
    except ValueError:
        raise CatalogueError(f"its date {text!r} is none") from None
    utc = datetime.UTC
    return (when if when.tzinfo else when.replace(tzinfo=utc)).astimezone(utc)


# --- bands --------------------------------------------------------------------------------------


def _find(item: Item, name: str, common: str) -> tuple[str, int] | None:
    """Where a band is: asset and number in it, from 1.

    By common name in `bands` (STAC 1.1) or `eo:bands`, else by the band's own name, else by the asset's key.
    Of several, single bands come before composites, GeoTIFF before JPEG 2000, fine pixels before coarse.
    """
    for fits in (_has_common(common), _has_name(name), _has_name(common)):
        found = [
            (key, number)
            for key, asset in item.get("assets", {}).items()
            if not {"visual", "overview", "thumbnail"} & set(asset.get("roles") or ())
            for number, band in enumerate(_described(asset) or [{}], start=1)
            if fits(key, band)
        ]
        if found:
            return min(found, key=lambda place: (_rank(item["assets"][place[0]]), place))
    return None


def _described(asset: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What an asset says of its bands; what the generations of the standard say is put together."""
    lists = [asset.get(key) for key in ("bands", "eo:bands", "raster:bands")]
    known = [[b if isinstance(b, Mapping) else {} for b in one] for one in lists if isinstance(one, list)]
    length = max(map(len, known), default=0)
    return [
        {k: v for one in known for k, v in (one[n] if n < len(one) else {}).items()} for n in range(length)
    ]


def _has_common(common: str) -> Any:
    return lambda key, band: common in (band.get("common_name"), band.get("eo:common_name"))


def _has_name(name: str) -> Any:
    """By the band's name, or the asset's key with or without its pixel size: B04, B04_10m, red."""
    pattern = re.compile(rf"{name}(_\d+m)?", re.IGNORECASE)
    return lambda key, band: pattern.fullmatch(key) or pattern.fullmatch(str(band.get("name", "")))


def _rank(asset: Mapping[str, Any]) -> tuple[int, bool, float]:
    kind = str(asset.get("type", "")).lower() + str(asset.get("href", "")).lower()[-4:]
    size = asset.get("gsd") or (asset.get("proj:transform") or [0])[0]
    bands = _described(asset)
    for band in bands[:1]:
        size = (
            size or band.get("spatial_resolution") or band.get("gsd") or band.get("raster:spatial_resolution")
        )
    return len(bands), "jp2" in kind, float(size or 0)


def _source(item: Item, key: str, number: int, day: datetime.date) -> Source:
    asset = item["assets"][key]
    described = _described(asset)
    band = {**asset, **(described[number - 1] if described else {})}
    raster = {name: band.get(name, band.get(f"raster:{name}")) for name in ("scale", "offset")}
    nodata = band.get("nodata")
    return Source(
        _href(item, str(asset.get("href", ""))),
        number,
        offset_of(item, raster, day),
        str(band.get("data_type") or "uint16"),
        float(nodata) if isinstance(nodata, (int, float)) else 0.0,
    )


def _href(item: Item, href: str) -> str:
    own = next((link["href"] for link in item.get("links", ()) if link.get("rel") == "self"), "")
    whole = urljoin(own, href)
    if urlsplit(whole).scheme not in SCHEMES:
        raise CatalogueError(f"its file {href[:80]!r} has no address on the network ({', '.join(SCHEMES)})")
    return whole


# --- ground -------------------------------------------------------------------------------------


def _grid(item: Item, key: str) -> Grid | None:
    """Pixels of a band, from the projection extension of the asset or the item."""
    asset, properties = item["assets"][key], item["properties"]
    crs, shape, transform = (
        next((one[name] for name in names for one in (asset, properties) if one.get(name)), None)
        for names in (("proj:code", "proj:epsg"), ("proj:shape",), ("proj:transform",))
    )
    if not (crs and shape and transform) or transform[1] or transform[3]:
        return None
    a, b, c, d, e, f = (float(value) for value in transform[:6])
    code = f"EPSG:{crs}" if str(crs).isdigit() else str(crs)
    return Grid(code, (a, b, c, d, e, f), int(shape[0]), int(shape[1]))


def _place(item: Item, grid: Grid | None) -> str:
    """The tile's name in whatever words a catalogue has for it, else the reference system's."""
    properties = item["properties"]
    parts = [str(properties.get(f"mgrs:{part}", "")) for part in ("utm_zone", "latitude_band", "grid_square")]
    texts = [properties.get("grid:code", ""), properties.get("s2:mgrs_tile", ""), "".join(parts), item["id"]]
    for text in texts:
        if found := _TILE.search(str(text).upper().replace("_", " ").replace("MGRS-", "")):
            return f"{found[1]:0>5}"
    return place_of(grid) if grid else ""


def place_of(grid: Grid) -> str:
    """Name of the place of all items of a reference system, where no tiles are told."""
    return re.sub(r"[^a-z0-9]+", "-", grid.crs.lower()).strip("-")[:60]
