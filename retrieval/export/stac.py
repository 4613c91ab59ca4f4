"""An index as a self-contained STAC catalogue: one collection, and one item with its vectors per image.

    DIR/
      catalog.json
      manifest.json
      <collection>/collection.json   encoder.keras   images.csv
      <collection>/<image id>/<image id>.json        <image id>.parquet

It follows the embedding extension 0.0.1, a proposal
(https://github.com/geo-embeddings/embeddings-stac-specification), whose schema needs STAC 1.0.0;
readers of 1.1 read it as well. All links are relative: the folder can be moved, or served as it is.
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
from numpy.typing import NDArray

from retrieval.config import PATCH_PX
from retrieval.errors import ConfigError
from retrieval.export.geoparquet import Block, by_image, day_of, describe, notes, quantization, write_image
from retrieval.geo.coordinates import stated_sides_m
from retrieval.geo.footprints import bounding_boxes, footprints
from retrieval.index.folder import IndexFolder
from retrieval.types import Progress, StoredImage, silent
from tfrecords.artifacts import PartialFolder, writing_folder
from tfrecords.artifacts.manifest import created_by
from tfrecords.read.pixel_size import pixel_sides_m
from tfrecords.schema import SCALED_OF_DN, moment_of

VERSION = "1.0.0"
"""STAC version that the embedding extension's schema needs."""
EMBEDDING = "https://stac-extensions.github.io/embeddings/v0.0.1/schema.json"
PROJECTION = "https://stac-extensions.github.io/projection/v2.0.0/schema.json"
PROCESSING = "https://stac-extensions.github.io/processing/v1.2.0/schema.json"
ITEM_ASSETS = "https://stac-extensions.github.io/item-assets/v1.0.0/schema.json"
PARQUET = "application/vnd.apache.parquet"
FIRST_DAY = date(2015, 6, 23)
"""First launch of Sentinel-2: the earliest date of an image whose date is unknown."""
SCALED = {"format": "python", "expression": SCALED_OF_DN}
SLACK = 0.002
"""Largest share by which a map projection stretches a pixel that counts as the size in the CRS."""
UNIT = {"format": "python", "expression": "vector / numpy.linalg.norm(vector)"}


@dataclass(frozen=True)
class StacReport:
    """Result of `export_stac`."""

    path: Path
    """The folder."""
    items: int
    """Number of images, one per item."""
    rows: int
    """Number of windows, one per row of the items' Parquet files."""
    notes: tuple[str, ...] = ()
    """Remarks for the user: half precision, images without a CRS or a date."""


def export_stac(
    index: IndexFolder,
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
        index: an open index folder.
        out: the folder; written as a whole. An interrupted run resumes.
        name: id of the collection: letters, digits, `-`, `_` and `.`.
        title: title of the collection.
        license: SPDX identifier of the vectors' licence; "other" where it is not stated.
        source_url: address of the images. The collection links to it, and each item to its image under it.
        overwrite: replace an existing catalogue.
        progress: called after each image.

    Returns:
        The folder, the numbers of items and rows, and notes.

    Raises:
        ConfigError: the name cannot be that of a folder.
        OutputExistsError: the folder exists and `overwrite` is not set.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ConfigError(f"collection {name!r}: not a valid id. Use letters, digits, '-', '_' and '.'.")
    title = title or f"Windows embedded by {index.encoder.name}"
    catalogue = _Catalogue(index, name, title, license, source_url)
    with writing_folder(out, kind="stac", config=catalogue.settings, overwrite=overwrite) as folder:
        rows = catalogue.write(folder, progress)
        folder.counts = {"items": len(index.images), "rows": rows}
    return StacReport(Path(out), len(index.images), rows, (*notes(index), *_undated(index)))


def _undated(index: IndexFolder) -> tuple[str, ...]:
    undated = sum(day_of(image) is None for image in index.images.values())
    if not undated:
        return ()
    return (f"{undated} of {len(index.images)} images have no date: any since {FIRST_DAY} is stated",)


class _Catalogue:
    """The pages of a catalogue, and the order in which they are written."""

    def __init__(
        self, index: IndexFolder, name: str, title: str, license: str, source_url: str | None
    ) -> None:
        self._index, self._name, self._title, self._license = index, name, title, license
        self._source = source_url.rstrip("/") if source_url else None
        self.settings = {"index": index.manifest.fingerprint, "windows": len(index.vectors), "name": name}
        self.settings |= {"title": title, "license": license, "source_url": source_url}

    def write(self, folder: PartialFolder, progress: Progress) -> int:
        """Write every file that is not there yet; return the number of windows."""
        rows = {image.image_id: 0 for image in self._index.images.values()}
        for done, (image, blocks) in enumerate(by_image(self._index)):
            rows[image.image_id] = self._vectors(folder, image, blocks)
            progress("writing items", done + 1, len(rows))
        for image in self._index.images.values():
            if not rows[image.image_id]:
                self._vectors(folder, image, ())
            _write(folder, f"{self._base(image)}.json", self._item(image, rows[image.image_id]))
        for name in ("images.csv", "encoder.keras"):
            if (self._index.path / name).exists():
                with folder.part(f"{self._name}/{name}") as path:
                    shutil.copyfile(self._index.path / name, path)
        _write(folder, f"{self._name}/collection.json", self._collection())
        _write(folder, "catalog.json", self._root())
        return sum(rows.values())

    def _base(self, image: StoredImage) -> str:
        """Return the path of an item's files without their endings."""
        return f"{self._name}/{image.image_id}/{image.image_id}"

    def _vectors(self, folder: PartialFolder, image: StoredImage, blocks: Iterable[Block]) -> int:
        part = f"{self._base(image)}.parquet"
        if folder.done(part):
            return int(folder.meta(part)["rows"])
        meta: dict[str, int] = {}
        with folder.part(part, meta) as path:
            meta["rows"] = write_image(self._index, path, image, blocks)
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
        images = list(self._index.images.values())
        stride = self._index.config.stride_px
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
            "emb:dimensions": self._index.vectors.dim,
            "data_type": "float32",
            "emb:chip_layout": {
                "layout_type": "regular_grid",
                "chip_size": [PATCH_PX, PATCH_PX],
                "stride": [stride, stride],
            },
            "emb:temporal_resolution": "single_acquisition",
            "emb:fit_for_use": ["retrieval", "similarity_search"],
            "item_assets": {"embeddings": _asset()},
            "summaries": {"emb:type": ["chip"], "emb:dimensions": [self._index.vectors.dim]},
            "links": self._collection_links(images),
        }
        sizes = {_gsd(image) for image in images}
        if len(sizes) == 1 and (gsd := sizes.pop()):
            page["gsd"] = gsd
        return page

    def _collection_links(self, images: list[StoredImage]) -> list[dict[str, Any]]:
        model = "encoder.keras" if "encoder.keras" in self._index.manifest.files else "images.csv"
        encoder = f"Encoder {self._index.encoder.name}, {self._index.encoder.fingerprint}"
        return [
            _link("root", "../catalog.json"),
            _link("parent", "../catalog.json"),
            _link("emb:model", f"./{model}", "application/octet-stream", encoder),
            self._source_link("./images.csv"),
            *(_link("item", f"./{i.image_id}/{i.image_id}.json", "application/geo+json") for i in images),
        ]

    def _source_link(self, table: str, image: StoredImage | None = None) -> dict[str, Any]:
        """Link to the image or images where their address is known, else to the image table."""
        if self._source is None:
            return _link("emb:source-data", table, "text/csv", "Images: file, size, bands, CRS, date")
        path = "" if image is None or not image.path else "/" + quote(PurePosixPath(image.path).as_posix())
        return _link("emb:source-data", self._source + path, None)

    def _item(self, image: StoredImage, rows: int) -> dict[str, Any]:
        (outline,) = _outlines([image])
        page: dict[str, Any] = {
            "type": "Feature",
            "stac_version": VERSION,
            "stac_extensions": [EMBEDDING, PROJECTION, PROCESSING],
            "id": f"{self._name}-{image.image_id}",
            "collection": self._name,
            "geometry": None if outline is None else outline.__geo_interface__,
            "properties": self._properties(image, rows),
            "links": [
                _link("root", "../../catalog.json"),
                _link("parent", "../collection.json"),
                _link("collection", "../collection.json"),
                self._source_link("../images.csv", image),
            ],
            "assets": {"embeddings": {"href": f"./{image.image_id}.parquet", **_asset()}},
        }
        if outline is not None:
            page["bbox"] = bounding_boxes(np.array([outline]))[0].tolist()
        return page

    def _properties(self, image: StoredImage, rows: int) -> dict[str, Any]:
        facts = describe(self._index)
        parameters = {k: facts[k] for k in ("encoder", "encoder_fingerprint", "chip_size_px", "stride_px")}
        parameters |= {"min_visible": facts["min_visible"], "bands": list(image.bands), "windows": rows}
        name, _, version = created_by().replace(",", "").partition(" ")
        return {
            **_times(image),
            "title": image.path or f"image {image.image_id}",
            **({} if (gsd := _gsd(image)) is None else {"gsd": gsd}),
            **_projection(image),
            "processing:software": {name: version},
            "emb:runtime_parameters": parameters,
            "emb:preprocessing": SCALED,
            "emb:postprocessing": UNIT,
            "emb:quantization": quantization(self._index),
        }


def _write(folder: PartialFolder, name: str, page: dict[str, Any]) -> None:
    with folder.part(name) as path:
        path.write_text(json.dumps(page, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _link(rel: str, href: str, kind: str | None = "application/json", title: str = "") -> dict[str, Any]:
    return {"rel": rel, "href": href} | ({"type": kind} if kind else {}) | ({"title": title} if title else {})


def _asset() -> dict[str, Any]:
    return {"type": PARQUET, "title": "One row per window: x, y, footprint, vector", "roles": ["data"]}


def _times(image: StoredImage) -> dict[str, Any]:
    """Return STAC's fields of time.

    They are the acquisition time where it is known, else the first moment of the day and the day's span. An
    unknown day has a span only.
    """
    if when := moment_of(image.datetime):
        moment = when.isoformat().replace("+00:00", "Z")
        return {"datetime": moment, "start_datetime": moment, "end_datetime": moment}
    day = day_of(image)
    first, last = (day, day) if day else (FIRST_DAY, datetime.now(UTC).date())
    return {
        "datetime": f"{day}T00:00:00Z" if day else None,
        "start_datetime": f"{first}T00:00:00Z",
        "end_datetime": f"{last}T23:59:59Z",
    }


def _interval(images: list[StoredImage]) -> list[str | None]:
    """Return the first and the last time of all images; an open interval where none is known."""
    known = [times for image in images if (times := _times(image))["datetime"]]
    if not known:
        return [f"{FIRST_DAY}T00:00:00Z", None]
    return [
        min((times["start_datetime"] for times in known), key=datetime.fromisoformat),
        max((times["end_datetime"] for times in known), key=datetime.fromisoformat),
    ]


def _outlines(images: list[StoredImage]) -> NDArray[np.object_]:
    """Return the footprint of each whole image, None where it has no CRS."""
    ids = np.array([image.image_id for image in images])
    width, height = np.array([(image.width, image.height) for image in images]).T
    corner = np.zeros(len(images))
    return footprints({image.image_id: image for image in images}, ids, corner, corner, width, height)


def _extents(images: list[StoredImage]) -> list[list[float]]:
    """Return one box around all images; the whole Earth where no image has a CRS."""
    boxes = bounding_boxes(_outlines(images))
    boxes = boxes[np.isfinite(boxes).all(axis=1)]
    if not len(boxes):
        return [[-180.0, -90.0, 180.0, 90.0]]
    crosses = (boxes[:, 0] > boxes[:, 2]).any()
    west, east = (-180.0, 180.0) if crosses else (boxes[:, 0].min(), boxes[:, 2].max())
    return [[float(west), float(boxes[:, 1].min()), float(east), float(boxes[:, 3].max())]]


def _projection(image: StoredImage) -> dict[str, Any]:
    """Return the projection extension's fields; the code is null without a CRS or for one without a code."""
    fields: dict[str, Any] = {"proj:code": None, "proj:shape": [image.height, image.width]}
    if image.crs is None or image.transform is None:
        return fields
    from rasterio.crs import CRS

    crs = CRS.from_string(image.crs)
    if code := crs.to_authority():
        fields["proj:code"] = ":".join(code)
    else:
        fields["proj:wkt2"] = crs.to_wkt(version="WKT2_2019")
    return fields | {"proj:transform": list(image.transform)}


def _gsd(image: StoredImage) -> float | None:
    """Return the mean of both sides of the middle pixel in metres on the ground; None where it is unknown.

    The size in the CRS counts where it is within 0.2 % of the measured one. A pixel of 10 m in UTM is 9.996
    to 10.01 m long on the ground.
    """
    if image.crs is None or image.transform is None:
        return None
    sides, _ = pixel_sides_m(image.crs, image.transform, image.width / 2, image.height / 2)
    if not np.isfinite(sides).all():
        return None
    stated = stated_sides_m(image.crs, image.transform)
    if stated is not None and (np.abs(sides[0] / stated - 1) <= SLACK).all():
        return round(float(np.mean(stated)), 6)
    return float(f"{sides.mean():.4g}")
