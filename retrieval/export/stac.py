"""An index as a self-contained STAC catalogue: one collection, one item an image, vectors beside it.

    DIR/
      catalog.json
      manifest.json
      <collection>/collection.json   encoder.keras   images.csv
      <collection>/<image id>/<image id>.json        <image id>.parquet

Written by the embedding extension 0.0.1, a proposal
(https://github.com/geo-embeddings/embeddings-stac-specification). Its schema builds on STAC 1.0.0,
so that is what is written; readers of 1.1 read it as well. All links are relative: the folder may be
moved, or served as it is.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import numpy as np

from retrieval.config import PATCH_PX
from retrieval.errors import ConfigError
from retrieval.export.geoparquet import Piece, about, by_image, day_of, notes, quantization, write_image
from retrieval.geo.coordinates import pixel_m
from retrieval.geo.footprints import boxes, geojson, rings
from retrieval.index.folder import IndexFolder
from retrieval.types import Progress, StoredImage, silent
from tfrecords.artifacts import PartialFolder, writing_folder
from tfrecords.artifacts.manifest import created_by

VERSION = "1.0.0"
"""Of STAC; the embedding extension's schema asks for it."""
EMBEDDING = "https://stac-extensions.github.io/embeddings/v0.0.1/schema.json"
PROJECTION = "https://stac-extensions.github.io/projection/v2.0.0/schema.json"
PROCESSING = "https://stac-extensions.github.io/processing/v1.2.0/schema.json"
ITEM_ASSETS = "https://stac-extensions.github.io/item-assets/v1.0.0/schema.json"
PARQUET = "application/vnd.apache.parquet"
FIRST_DAY = date(2015, 6, 23)
"""Sentinel-2's first launch: the earliest that an image of unknown date can be of."""
SCALED = {"format": "python", "expression": "numpy.clip(dn, 0, 4095) / 2047.5 - 1"}
UNIT = {"format": "python", "expression": "vector / numpy.linalg.norm(vector)"}


@dataclass(frozen=True)
class StacReport:
    """What `export_stac` wrote."""

    path: Path
    """The folder."""
    items: int
    """Images, one an item."""
    rows: int
    """Windows, one a row of the items' Parquet files."""
    notes: tuple[str, ...] = ()
    """What a user should know: half precision, images without a CRS or a date."""


def export_stac(
    store: IndexFolder,
    out: str | Path,
    *,
    name: str = "windows",
    title: str | None = None,
    license: str = "other",
    source_url: str | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> StacReport:
    """Write an index as a STAC catalogue.

    Args:
        store: an opened index.
        out: the folder; written whole, resumed if an earlier run was stopped.
        name: id of the collection: letters, digits, `-`, `_` and `.`.
        title: of the collection, for people.
        license: SPDX identifier of the vectors' licence; "other" where it is not stated.
        source_url: where the images are: the collection links to it, and items to it and their path.
        overwrite: replace a catalogue that is there.
        progress: told after each image.

    Returns:
        What was written.

    Raises:
        ConfigError: a name that cannot be a folder's.
        OutputExistsError: the folder is there and `overwrite` is not set.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ConfigError(f"collection {name!r}; expected letters, digits, '-', '_' and '.', such as windows")
    catalogue = _Catalogue(
        store, name, title or f"Windows embedded by {store.encoder.name}", license, source_url
    )
    with writing_folder(out, kind="stac", config=catalogue.settings, overwrite=overwrite) as folder:
        rows = catalogue.write(folder, progress)
        folder.counts = {"items": len(store.images), "rows": rows}
    return StacReport(Path(out), len(store.images), rows, (*notes(store), *_undated(store)))


def _undated(store: IndexFolder) -> tuple[str, ...]:
    without = sum(day_of(image) is None for image in store.images.values())
    if not without:
        return ()
    return (f"{without} of {len(store.images)} images have no date: any since {FIRST_DAY} is stated",)


class _Catalogue:
    """Makes the pages of a catalogue."""

    def __init__(
        self, store: IndexFolder, name: str, title: str, license: str, source_url: str | None
    ) -> None:
        self._store, self._name, self._title, self._license = store, name, title, license
        self._source = source_url.rstrip("/") if source_url else None
        self.settings = {"index": store.manifest.fingerprint, "windows": len(store.vectors), "name": name}
        self.settings |= {"title": title, "license": license, "source_url": source_url}

    def write(self, folder: PartialFolder, progress: Progress) -> int:
        """Write all that is not there yet; returns the number of windows."""
        rows = {image.image_id: 0 for image in self._store.images.values()}
        for done, (image, found) in enumerate(by_image(self._store)):
            rows[image.image_id] = self._vectors(folder, image, found)
            progress("writing items", done + 1, len(rows))
        for image in self._store.images.values():
            if not rows[image.image_id]:
                self._vectors(folder, image, ())
            page = self._item(image, rows[image.image_id])
            _write(folder, f"{self._base(image)}.json", page)
        for source in ("images.csv", "encoder.keras"):
            if (self._store.path / source).exists():
                with folder.part(f"{self._name}/{source}") as path:
                    shutil.copyfile(self._store.path / source, path)
        _write(folder, f"{self._name}/collection.json", self._collection())
        _write(folder, "catalog.json", self._root())
        return sum(rows.values())

    def _base(self, image: StoredImage) -> str:
        """An item's files but for their endings."""
        return f"{self._name}/{image.image_id}/{image.image_id}"

    def _vectors(self, folder: PartialFolder, image: StoredImage, found: Iterable[Piece]) -> int:
        part = f"{self._base(image)}.parquet"
        if folder.done(part):
            return int(folder.meta(part)["rows"])
        meta: dict[str, int] = {}
        with folder.part(part, meta) as path:
            meta["rows"] = write_image(self._store, path, image, found)
        return meta["rows"]

    # --- pages ----------------------------------------------------------------------------------

    def _root(self) -> dict[str, Any]:
        return {
            "type": "Catalog",
            "stac_version": VERSION,
            "id": f"{self._name}-catalog",
            "title": self._title,
            "description": f"Vectors of image windows, written by {created_by()}.",
            "links": [
                _link("root", "./catalog.json"),
                _link("child", f"./{self._name}/collection.json", title=self._title),
            ],
        }

    def _collection(self) -> dict[str, Any]:
        images = list(self._store.images.values())
        stride = self._store.config.stride_px
        page = {
            "type": "Collection",
            "stac_version": VERSION,
            "stac_extensions": [EMBEDDING, ITEM_ASSETS],
            "id": self._name,
            "title": self._title,
            "description": (
                f"One unit vector for each window of {PATCH_PX} x {PATCH_PX} pixels, every {stride} pixels "
                "and along the right and lower edges; similarity is the inner product."
            ),
            "license": self._license,
            "extent": {"spatial": {"bbox": _extents(images)}, "temporal": {"interval": [_interval(images)]}},
            "emb:type": "chip",
            "emb:dimensions": self._store.vectors.dim,
            "data_type": "float32",
            "emb:chip_layout": {
                "layout_type": "regular_grid",
                "chip_size": [PATCH_PX, PATCH_PX],
                "stride": [stride, stride],
            },
            "emb:temporal_resolution": "single_acquisition",
            "emb:fit_for_use": ["retrieval", "similarity_search"],
            "item_assets": {"embeddings": _asset()},
            "summaries": {"emb:type": ["chip"], "emb:dimensions": [self._store.vectors.dim]},
            "links": self._collection_links(images),
        }
        sizes = {_gsd(image) for image in images}
        if len(sizes) == 1 and (gsd := sizes.pop()):
            page["gsd"] = gsd
        return page

    def _collection_links(self, images: list[StoredImage]) -> list[dict[str, Any]]:
        held = "encoder.keras" if "encoder.keras" in self._store.manifest.files else "images.csv"
        encoder = f"Encoder {self._store.encoder.name}, {self._store.encoder.fingerprint}"
        return [
            _link("root", "../catalog.json"),
            _link("parent", "../catalog.json"),
            _link(
                "emb:model",
                f"./{held}",
                "application/octet-stream",
                encoder,
            ),
            self._source_link("./images.csv"),
            *(_link("item", f"./{i.image_id}/{i.image_id}.json", "application/geo+json") for i in images),
        ]

    def _source_link(self, table: str, image: StoredImage | None = None) -> dict[str, Any]:
        """To the images where it is known where they are, else to the table of them."""
        if self._source is None:
            return _link("emb:source-data", table, "text/csv", "Images: file, size, bands, CRS, date")
        path = "" if image is None or not image.path else "/" + quote(PurePosixPath(image.path).as_posix())
        return _link("emb:source-data", self._source + path, None)

    def _item(self, image: StoredImage, rows: int) -> dict[str, Any]:
        outlines = rings(image, np.zeros(1), np.zeros(1), image.width, image.height)
        page: dict[str, Any] = {
            "type": "Feature",
            "stac_version": VERSION,
            "stac_extensions": [EMBEDDING, PROJECTION, PROCESSING],
            "id": f"{self._name}-{image.image_id}",
            "collection": self._name,
            "geometry": None if outlines is None else geojson(outlines[0]),
            "properties": self._properties(image, rows),
            "links": [
                _link("root", "../../catalog.json"),
                _link("parent", "../collection.json"),
                _link("collection", "../collection.json"),
                self._source_link("../images.csv", image),
            ],
            "assets": {"embeddings": {"href": f"./{image.image_id}.parquet", **_asset()}},
        }
        if outlines is not None:
            page["bbox"] = boxes(outlines)[0].round(7).tolist()
        return page

    def _properties(self, image: StoredImage, rows: int) -> dict[str, Any]:
        facts = about(self._store)
        parameters = {k: facts[k] for k in ("encoder", "encoder_fingerprint", "chip_size_px", "stride_px")}
        parameters |= {"min_visible": facts["min_visible"], "bands": list(image.bands), "windows": rows}
        name, _, version = created_by().replace(",", "").partition(" ")
        return {
            **_times(day_of(image)),
            "title": image.path or f"image {image.image_id}",
            **_projection(image),
            "processing:software": {name: version},
            "emb:runtime_parameters": parameters,
            "emb:preprocessing": SCALED,
            "emb:postprocessing": UNIT,
            "emb:quantization": quantization(self._store),
        }


def _write(folder: PartialFolder, name: str, page: dict[str, Any]) -> None:
    with folder.part(name) as path:
        path.write_text(json.dumps(page, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _link(rel: str, href: str, kind: str | None = "application/json", title: str = "") -> dict[str, Any]:
    return {"rel": rel, "href": href} | ({"type": kind} if kind else {}) | ({"title": title} if title else {})


def _asset() -> dict[str, Any]:
    return {"type": PARQUET, "title": "A row a window: x, y, footprint, vector", "roles": ["data"]}


def _times(day: date | None) -> dict[str, Any]:
    """A day as STAC has it: its first moment, and from when to when; of an unknown one only the latter."""
    first, last = (day, day) if day else (FIRST_DAY, datetime.now(UTC).date())
    return {
        "datetime": f"{day}T00:00:00Z" if day else None,
        "start_datetime": f"{first}T00:00:00Z",
        "end_datetime": f"{last}T23:59:59Z",
    }


def _interval(images: list[StoredImage]) -> list[str | None]:
    """First and last day of all images; open where none is known."""
    days = [day for image in images if (day := day_of(image))]
    return [f"{min(days)}T00:00:00Z", f"{max(days)}T23:59:59Z"] if days else [f"{FIRST_DAY}T00:00:00Z", None]


def _extents(images: list[StoredImage]) -> list[list[float]]:
    """One box around all images; the whole Earth where it is not known where they are."""
    found = [
        boxes(outlines)[0]
        for i in images
        if (outlines := rings(i, np.zeros(1), np.zeros(1), i.width, i.height)) is not None
    ]
    if not found:
        return [[-180.0, -90.0, 180.0, 90.0]]
    box = np.array(found)
    crosses = (box[:, 0] > box[:, 2]).any()
    west, east = (-180.0, 180.0) if crosses else (box[:, 0].min(), box[:, 2].max())
    return [[round(float(v), 7) for v in (west, box[:, 1].min(), east, box[:, 3].max())]]


def _projection(image: StoredImage) -> dict[str, Any]:
    """Fields of the projection extension; the code is null where there is no CRS, or one without a code."""
    found: dict[str, Any] = {"proj:code": None, "proj:shape": [image.height, image.width]}
    if image.crs is None or image.transform is None:
        return found
    from rasterio.crs import CRS

    crs = CRS.from_string(image.crs)
    if code := crs.to_authority():
        found["proj:code"] = ":".join(code)
    else:
        found["proj:wkt2"] = crs.to_wkt(version="WKT2_2019")
    return found | {"proj:transform": list(image.transform)}


def _gsd(image: StoredImage) -> float | None:
    """Side of a pixel in metres, where the CRS counts in them."""
    if image.crs is None or image.transform is None:
        return None
    return pixel_m(image.crs, image.transform)
