"""The index's vectors as GeoParquet, a row a window, written in row groups: memory does not grow with them.

    image_id  int32      x, y  int32, top-left pixel      path  string      date  date, where it is known
    geometry  footprint in WKB, longitude and latitude    bbox  struct of its west, south, east and north
    vector    fixed_size_list<float32 or float16>, of unit length

Follows GeoParquet 1.1 (https://geoparquet.org/releases/v1.1.0/). Where no image has a CRS there is
neither geometry nor bbox, and the file is plain Parquet. The key `retrieve` of the file's metadata
says which encoder made the vectors, and how.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from retrieval.config import PATCH_PX
from retrieval.errors import ConfigError
from retrieval.geo.footprints import boxes, rings, wkb
from retrieval.index.folder import IndexFolder
from retrieval.types import Progress, StoredImage, silent, unpack_ids
from tfrecords.artifacts import writing_file
from tfrecords.artifacts.manifest import created_by

Floats = Literal["float32", "float16"]
"""Types that vectors are written as."""
ROW_GROUP = 32_768
"""Rows of a row group: 40 MB at 256 numbers a vector."""
BOX = ("xmin", "ymin", "xmax", "ymax")
"""Members of the column `bbox`."""

Piece = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Ids (m,) of windows of one image, and their vectors (m, dim)."""


@dataclass(frozen=True)
class VectorsReport:
    """What `export_vectors` wrote."""

    path: Path
    """The file."""
    rows: int
    """Windows, one a row."""
    geometry: bool
    """Whether rows have a footprint; false where no image has a CRS."""
    notes: tuple[str, ...] = field(default=())
    """What a user should know: half precision, images without a CRS."""


def export_vectors(
    store: IndexFolder,
    out: str | Path,
    *,
    floats: Floats = "float32",
    overwrite: bool = False,
    progress: Progress = silent,
) -> VectorsReport:
    """Write all vectors of an index to one file, in the order of (image_id, y, x).

    Args:
        store: an opened index.
        out: the file; ends in `.parquet`.
        floats: type of the vectors' numbers; "float16" halves the file and keeps three digits.
        overwrite: replace a file that is there.
        progress: told after each row group.

    Returns:
        What was written.

    Raises:
        ConfigError: another ending.
        OutputExistsError: the file is there and `overwrite` is not set.
    """
    path = Path(out)
    if path.suffix != ".parquet":
        raise ConfigError(f"{path}: received the ending {path.suffix!r}; expected .parquet")
    located = any(image.crs for image in store.images.values())
    rows, total = 0, len(store.vectors)
    with writing_file(path, overwrite=overwrite) as partial, _opened(store, partial, located, floats) as file:
        for image, ids, vectors in pieces(store):
            file.write(image, ids, vectors)
            rows += len(ids)
            progress("writing vectors", rows, total)
    return VectorsReport(path, rows, located, notes(store))


def write_image(
    store: IndexFolder, path: Path, image: StoredImage, found: Iterable[Piece], floats: Floats = "float32"
) -> int:
    """Write the vectors of one image to a file of their own; returns how many there are."""
    rows = 0
    with _opened(store, path, image.crs is not None, floats) as file:
        for ids, vectors in found:
            file.write(image, ids, vectors)
            rows += len(ids)
    return rows


def pieces(store: IndexFolder) -> Iterator[tuple[StoredImage, NDArray[np.int64], NDArray[np.float32]]]:
    """All vectors of an index in the order of their ids, cut between images and by row groups."""
    for ids, vectors in store.vectors.blocks(ROW_GROUP):
        owner = ids >> 32
        for part in np.split(np.arange(len(ids)), np.flatnonzero(np.diff(owner)) + 1):
            yield store.images[int(owner[part[0]])], ids[part], vectors[part]


def by_image(store: IndexFolder) -> Iterator[tuple[StoredImage, Iterator[Piece]]]:
    """The images that have vectors, in the order of their ids, each with its pieces."""
    for image, group in groupby(pieces(store), key=lambda piece: piece[0]):
        yield image, ((ids, vectors) for _, ids, vectors in group)


def about(store: IndexFolder) -> dict[str, Any]:
    """What a stranger must know of the vectors; the key `retrieve` of a file's metadata."""
    return {
        "encoder": store.encoder.name,
        "encoder_fingerprint": store.encoder.fingerprint,
        "dimensions": store.vectors.dim,
        "metric": "inner product of unit vectors",
        "chip_size_px": PATCH_PX,
        "stride_px": store.config.stride_px,
        "min_visible": store.config.min_visible,
        "kind": store.vectors.kind,
        "quantization": quantization(store),
        "created_by": created_by(),
    }


def quantization(store: IndexFolder) -> dict[str, str]:
    """How the index kept the vectors, in the words of the STAC embedding extension."""
    if store.vectors.kind == "exact":
        return {"method": "none", "original_dtype": "float32"}
    return {
        "method": "half precision (FAISS ScalarQuantizer QT_fp16), reconstructed",
        "original_dtype": "float32",
        "quantized_dtype": "float16",
    }


def notes(store: IndexFolder) -> tuple[str, ...]:
    """What a user should know of an export."""
    without = sum(not image.crs for image in store.images.values())
    found = []
    if store.vectors.kind != "exact":
        found.append(f"vectors are those of kind {store.vectors.kind}: kept in half precision")
    if without == len(store.images):
        found.append("no image has a CRS: there is no geometry")
    elif without:
        found.append(f"{without} of {len(store.images)} images have no CRS: their geometry is empty")
    return tuple(found)


def day_of(image: StoredImage) -> date | None:
    """The day of an image, where it is known and an ISO date."""
    try:
        return date.fromisoformat((image.date or "")[:10])
    except ValueError:
        return None


# --- the file -----------------------------------------------------------------------------------


class _File:
    """A Parquet file in the making, and what its metadata say in the end."""

    def __init__(self, store: IndexFolder, path: Path, located: bool, floats: Floats) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        number = pa.float32() if floats == "float32" else pa.float16()
        columns = [("image_id", pa.int32()), ("x", pa.int32()), ("y", pa.int32())]
        columns += [("path", pa.string()), ("date", pa.date32())]
        if located:
            columns += [("geometry", pa.binary()), ("bbox", pa.struct([(n, pa.float64()) for n in BOX]))]
        columns.append(("vector", pa.list_(number, store.vectors.dim)))
        self._schema = pa.schema(columns, metadata={"retrieve": json.dumps(about(store))})
        self._located, self._half = located, floats == "float16"
        self._kinds: set[str] = set()
        self._bounds: list[NDArray[np.float64]] = []
        self._waiting: list[Any] = []
        plain = ["image_id", "path", "date"]
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd", use_dictionary=plain)

    def write(self, image: StoredImage, ids: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """Add windows of one image; they are written when there are enough for a row group."""
        import pyarrow as pa

        _, x, y = unpack_ids(ids)
        n = len(ids)
        columns: dict[str, Any] = {"image_id": np.full(n, image.image_id, np.int32), "x": x, "y": y}
        columns |= {"path": [image.path or None] * n, "date": [day_of(image)] * n}
        if self._located:
            columns |= self._where(image, x, y)
        flat = np.ascontiguousarray(vectors, np.float16 if self._half else np.float32).ravel()
        columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(flat), vectors.shape[1])
        arrays = [
            columns[f.name] if f.name == "vector" else pa.array(columns[f.name], f.type) for f in self._schema
        ]
        self._waiting.append(pa.Table.from_arrays(arrays, schema=self._schema))
        if sum(map(len, self._waiting)) >= ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        """Write what waits, as a row group."""
        import pyarrow as pa

        if self._waiting:
            self._writer.write_table(pa.concat_tables(self._waiting))
            self._waiting = []

    def _where(self, image: StoredImage, x: NDArray, y: NDArray) -> dict[str, Any]:
        """The two columns of the place; nulls where the image has no CRS."""
        outlines = rings(image, x, y, PATCH_PX, PATCH_PX)
        if outlines is None:
            return {"geometry": [None] * len(x), "bbox": [None] * len(x)}
        box = boxes(outlines)
        crosses = box[:, 0] > box[:, 2]
        self._kinds |= ({"MultiPolygon"} if crosses.any() else set()) | (
            set() if crosses.all() else {"Polygon"}
        )
        if len(box):
            edge = np.where(crosses[:, None], np.array([-180, 0, 180, 0]), box)
            self._bounds.append(
                np.array([edge[:, 0].min(), box[:, 1].min(), edge[:, 2].max(), box[:, 3].max()])
            )
        return {
            "geometry": wkb(outlines),
            "bbox": [dict(zip(BOX, row, strict=True)) for row in box.tolist()],
        }

    def close(self) -> None:
        """Write what waits, and end the file with its metadata."""
        self._flush()
        if self._located:  # only now it is known which places there are
            self._writer.add_key_value_metadata({"geo": json.dumps(self._geo())})
        self._writer.close()

    def _geo(self) -> dict[str, Any]:
        """GeoParquet's metadata; without a CRS it is longitude and latitude on WGS 84."""
        column: dict[str, Any] = {
            "encoding": "WKB",
            "geometry_types": sorted(self._kinds),
            "orientation": "counterclockwise",
            "covering": {"bbox": {name: ["bbox", name] for name in BOX}},
        }
        if self._bounds:
            all_of = np.array(self._bounds)
            column["bbox"] = [*all_of.min(0)[:2].tolist(), *all_of.max(0)[2:].tolist()]
        return {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}


@contextmanager
def _opened(store: IndexFolder, path: Path, located: bool, floats: Floats) -> Iterator[_File]:
    """A file that is closed also where something goes wrong, so that it can be removed."""
    file = _File(store, path, located, floats)
    try:
        yield file
    finally:
        file.close()
