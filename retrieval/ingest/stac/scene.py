"""One item of a catalogue: its time, place, cloud cover, grid, and the files of its bands."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin, urlsplit

from retrieval.geo.pixel_window import PixelWindow
from retrieval.ingest.redaction import redact_text
from retrieval.ingest.stac.catalogue import Item, cloud_cover
from retrieval.ingest.stac.offset import Offset, baseline_of, offset_of
from tfrecords.errors import BandsError, CatalogueError
from tfrecords.read.rasters import longitude_of
from tfrecords.schema import solar_day
from tfrecords.schema.bands import canonical
from tfrecords.schema.records import Provenance

COMMON = {"B04": "red", "B03": "green", "B02": "blue", "B08": "nir"}
"""The bands that are read, in order, and their common names in STAC."""
SCL = "SCL"
"""The scene classification."""
SCHEMES = ("http", "https", "s3", "gs", "az")
"""Schemes of file addresses. A catalogue must not make the program open local files."""

_TILE = re.compile(r"(?<![0-9A-Z])T?(\d{1,2}[C-HJ-NP-X][A-HJ-NP-Z][A-HJ-NP-V])(?![0-9A-Z])")


@dataclass(frozen=True)
class Grid:
    """The pixel grid of an image."""

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
        """Left, bottom, right and top in map coordinates."""
        a, _, c, _, e, f = self.transform
        return c, f + e * self.height, c + a * self.width, f

    @property
    def longitude(self) -> float | None:
        """Longitude of the centre, degrees; None where PROJ cannot transform it."""
        return longitude_of(self.crs, self.transform, (self.width / 2, self.height / 2))

    def crop(self, window: PixelWindow) -> Grid:
        """Return the grid of a window of these pixels."""
        a, _, c, _, e, f = self.transform
        corner = c + a * window.x0, f + e * window.y0
        return Grid(self.crs, (a, 0.0, corner[0], 0.0, e, corner[1]), window.height, window.width)


@dataclass(frozen=True)
class Source:
    """The file of one band, and the meaning of its numbers."""

    href: str
    """Address of the file, unsigned."""
    number: int = 1
    """Number of the band in the file, from 1."""
    offset: Offset = field(default_factory=lambda: Offset(0.0))
    """Converts its numbers to reflectance."""
    dtype: str = "uint16"
    """Type of its numbers."""
    nodata: float = 0
    """Its nodata value."""


@dataclass(frozen=True)
class Scene:
    """One item."""

    id: str
    """The item's id."""
    when: datetime.datetime
    """Acquisition time, UTC."""
    place: str
    """Name of its place: the MGRS tile, such as 31TCJ, else the CRS, such as epsg-32631; empty where both are
    unknown."""
    bands: Mapping[str, Source]
    """The bands of `COMMON`, and SCL where there is one."""
    grid: Grid | None
    """Grid of the red band; None where the metadata lack it."""
    cloud_cover: float | None
    """Share of the tile under cloud, percent."""
    baseline: str
    """Processing baseline, such as 04.00; empty where unknown."""
    made: str = ""
    """Time of processing; empty where unknown."""

    @property
    def age(self) -> tuple[str, str]:
        """Sort key: baseline, then time of processing."""
        return self.baseline, self.made

    def day(self, longitude: float | None) -> datetime.date:
        """Return the solar day at a longitude in degrees: one pass has one day, even at midnight UTC."""
        return solar_day(self.when, longitude)

    def provenance(self) -> Provenance:
        """Return the tags of the file."""
        when = self.when.strftime("%Y-%m-%dT%H:%M:%SZ")
        return Provenance(self.id, when, self.baseline, self.cloud_cover)


def scene_of(item: Item) -> Scene:
    """Read an item.

    Args:
        item: a STAC item as JSON.

    Returns:
        The scene.

    Raises:
        BandsError: a band is missing; the text names it, and the bands of the item.
        CatalogueError: it has no date, or an address that is not on the network.
    """
    when = _when(item)
    assets = {name: _find_band(item, name, common) for name, common in COMMON.items()}
    missing = [f"{COMMON[name]} ({name})" for name, asset in assets.items() if asset is None]
    if missing:
        present = ", ".join(sorted(item.get("assets", {}))[:20]) or "no files"
        raise BandsError(f"it has no {' and no '.join(missing)}; it has {present}")
    scl = _find_band(item, SCL, "scl")
    sources = {
        name: _source(item, *asset, when.date()) for name, asset in {**assets, SCL: scl}.items() if asset
    }
    assert assets["B04"] is not None
    grid = _grid(item, assets["B04"][0])
    return Scene(
        str(item["id"]),
        when,
        _place(item, grid),
        sources,
        grid,
        cloud_cover(item),
        baseline_of(item),
        _made(item),
    )


def _when(item: Item) -> datetime.datetime:
    properties = item["properties"]
    text = properties.get("datetime") or properties.get("start_datetime")
    try:
        when = datetime.datetime.fromisoformat(str(text))
    except ValueError:
        raise CatalogueError(f"its date {text!r} is not an ISO 8601 time") from None
    return utc_of(when)


def utc_of(when: datetime.datetime) -> datetime.datetime:
    """Return a time in UTC; without a zone it is UTC already."""
    return (when if when.tzinfo else when.replace(tzinfo=datetime.UTC)).astimezone(datetime.UTC)


def _made(item: Item) -> str:
    """Return the time of processing, ISO 8601 UTC, from the properties or the end of the product's name."""
    properties = item["properties"]
    for key in ("s2:generation_time", "processing:datetime", "created"):
        with suppress(ValueError):
            return utc_of(datetime.datetime.fromisoformat(str(properties.get(key)))).isoformat()
    for key in ("s2:product_uri", "sentinel:product_id"):
        if stamp := re.search(r"_(\d{8}T\d{6})(\.SAFE)?$", str(properties.get(key, ""))):
            return utc_of(datetime.datetime.strptime(stamp[1], "%Y%m%dT%H%M%S")).isoformat()
    return ""


# --- bands --------------------------------------------------------------------------------------


def _find_band(item: Item, name: str, common: str) -> tuple[str, int] | None:
    """Return the asset of a band, and the band's number in it, from 1.

    A band is found by its common name in `bands` (STAC 1.1) or `eo:bands`, else by its own name, else by the
    asset's key. Names can have a prefix (nbart_red). The narrow near infrared B8A (nir08) replaces a missing
    B08. Single bands are preferred to composites, GeoTIFF to JPEG 2000, fine pixels to coarse.
    """
    matchers = [_has_common(common), _has_name(name), _has_name(common), _is_canonical(name)]
    for matches in [*matchers, _has_common("nir08"), _is_canonical("B8A")] if name == "B08" else matchers:
        candidates = [
            (key, number)
            for key, asset in item.get("assets", {}).items()
            if not {"visual", "overview", "thumbnail"} & set(asset.get("roles") or ())
            for number, band in enumerate(_band_metadata(asset) or [{}], start=1)
            if matches(key, band)
        ]
        if candidates:
            return min(candidates, key=lambda place: (_rank(item["assets"][place[0]]), place))
    return None


def _band_metadata(asset: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the metadata of an asset's bands, merged over the versions of the STAC standard."""
    described = [asset.get(key) for key in ("bands", "eo:bands", "raster:bands")]
    lists = [
        [band if isinstance(band, Mapping) else {} for band in bands]
        for bands in described
        if isinstance(bands, list)
    ]
    merged: list[dict[str, Any]] = [{} for _ in range(max(map(len, lists), default=0))]
    for bands in lists:
        for band, values in zip(merged, bands, strict=False):
            band.update(values)
    return merged


def _has_common(common: str) -> Any:
    return lambda key, band: common in (band.get("common_name"), band.get("eo:common_name"))


def _has_name(name: str) -> Any:
    """Match the band's name, or the asset's key with or without its pixel size: B04, B04_10m, red."""
    pattern = re.compile(rf"{name}(_\d+m)?", re.IGNORECASE)
    return lambda key, band: pattern.fullmatch(key) or pattern.fullmatch(str(band.get("name", "")))


def _is_canonical(name: str) -> Any:
    return lambda key, band: name in (canonical(key), canonical(str(band.get("name", ""))))


def _rank(asset: Mapping[str, Any]) -> tuple[int, bool, float]:
    kind = str(asset.get("type", "")).lower() + str(asset.get("href", "")).lower()[-4:]
    size = asset.get("gsd") or (asset.get("proj:transform") or [0])[0]
    bands = _band_metadata(asset)
    for band in bands[:1]:
        size = (
            size or band.get("spatial_resolution") or band.get("gsd") or band.get("raster:spatial_resolution")
        )
    return len(bands), "jp2" in kind, float(size or 0)


def _source(item: Item, key: str, number: int, day: datetime.date) -> Source:
    asset = item["assets"][key]
    bands = _band_metadata(asset)
    band = {**asset, **(bands[number - 1] if bands else {})}
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
    base = next((link["href"] for link in item.get("links", ()) if link.get("rel") == "self"), "")
    address = urljoin(base, href)
    if urlsplit(address).scheme not in SCHEMES:
        raise CatalogueError(
            f"its file {redact_text(href)[:80]!r} has no address on the network ({', '.join(SCHEMES)})"
        )
    return address


# --- ground -------------------------------------------------------------------------------------


def _grid(item: Item, key: str) -> Grid | None:
    """Return the grid of a band, from the projection extension of the asset or the item."""
    asset, properties = item["assets"][key], item["properties"]
    crs, shape, transform = (
        next((values[name] for name in names for values in (asset, properties) if values.get(name)), None)
        for names in (("proj:code", "proj:epsg"), ("proj:shape",), ("proj:transform",))
    )
    if not (crs and shape and transform) or transform[1] or transform[3]:
        return None
    a, b, c, d, e, f = (float(value) for value in transform[:6])
    code = f"EPSG:{crs}" if str(crs).isdigit() else str(crs)
    return Grid(code, (a, b, c, d, e, f), int(shape[0]), int(shape[1]))


def _place(item: Item, grid: Grid | None) -> str:
    """Return the name of the MGRS tile, from any of the properties that hold it, else of the CRS."""
    properties = item["properties"]
    parts = [str(properties.get(f"mgrs:{part}", "")) for part in ("utm_zone", "latitude_band", "grid_square")]
    texts = [properties.get("grid:code", ""), properties.get("s2:mgrs_tile", ""), "".join(parts), item["id"]]
    for text in texts:
        if tile := _TILE.search(str(text).upper().replace("_", " ").replace("MGRS-", "")):
            return f"{tile[1]:0>5}"
    return place_of(grid) if grid else ""


def place_of(grid: Grid) -> str:
    """Return the place of all items in a CRS, for items without a tile."""
    return re.sub(r"[^a-z0-9]+", "-", grid.crs.lower()).strip("-")[:60]
