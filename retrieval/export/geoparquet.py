"""Vectors of an index as GeoParquet, one row per window; the file is written in row groups.

    image_id  int32      x, y  int32, top-left pixel      path  string      date  date, where it is known
    geometry  footprint in WKB, longitude and latitude    bbox  struct of its west, south, east and north
    vector    fixed_size_list<float32 or float16>, of unit length

Follows GeoParquet 1.1 (https://geoparquet.org/releases/v1.1.0/). Where no image has a CRS, there is
neither geometry nor bbox, and the file is plain Parquet. The key `retrieve` of the file's metadata
describes the encoder and the windows.
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
from retrieval.geo.file_windows import to_file
from retrieval.geo.footprints import GeometryColumn, footprints
from retrieval.index.folder import IndexFolder
from retrieval.types import Progress, StoredImage, silent, unpack_ids
from tfrecords.artifacts import writing_file
from tfrecords.artifacts.manifest import created_by

Floats = Literal["float32", "float16"]
"""Types of the vectors' numbers."""
ROW_GROUP = 32_768
"""Rows of a row group: 40 MB at 256 numbers per vector."""

Block = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Ids (m,) of windows of one image, and their vectors (m, dim)."""


@dataclass(frozen=True)
class VectorsReport:
    """Result of `export_vectors`."""

    path: Path
    """The file."""
    rows: int
    """Number of windows, one per row."""
    geometry: bool
    """Whether rows have a footprint; false where no image has a CRS."""
    notes: tuple[str, ...] = field(default=())
    """Remarks for the user: half precision, images without a CRS."""


def export_vectors(
    index: IndexFolder,
    out: str | Path,
    *,
    floats: Floats = "float32",
    row_group: int = ROW_GROUP,
    overwrite: bool = False,
    progress: Progress = silent,
) -> VectorsReport:
    """Write all vectors of an index to one file, in the order of (image_id, y, x).

    Args:
        index: an open index folder.
        out: the file; ends in `.parquet`.
        floats: type of the vectors' numbers; "float16" halves the file and keeps three digits.
        row_group: rows of a row group, at least; memory grows with it.
        overwrite: replace an existing file.
        progress: called after each block of rows.

    Returns:
        The file, the number of rows, and notes.

    Raises:
        ConfigError: the file has another ending.
        OutputExistsError: the file exists and `overwrite` is not set.
    """
    path = Path(out)
    if path.suffix != ".parquet":
        raise ConfigError(f"{path}: the ending is {path.suffix!r}. Expected .parquet.")
    located = any(image.crs for image in index.images.values())
    rows, total = 0, len(index.vectors)
    with (
        writing_file(path, overwrite=overwrite) as partial,
        _open_file(index, partial, located, floats, row_group) as file,
    ):
        for image, ids, vectors in image_blocks(index, row_group):
            file.write(image, ids, vectors)
            rows += len(ids)
            progress("writing vectors", rows, total)
    return VectorsReport(path, rows, located, notes(index))


def write_image(index: IndexFolder, path: Path, image: StoredImage, blocks: Iterable[Block]) -> int:
    """Write the vectors of one image to a separate file; return the number of rows."""
    rows = 0
    with _open_file(index, path, image.crs is not None, "float32", ROW_GROUP) as file:
        for ids, vectors in blocks:
            file.write(image, ids, vectors)
            rows += len(ids)
    return rows


def image_blocks(
    index: IndexFolder, rows: int
) -> Iterator[tuple[StoredImage, NDArray[np.int64], NDArray[np.float32]]]:
    """Yield all vectors in the order of their ids; each block has one image and at most `rows` rows."""
    for ids, vectors in index.vectors.blocks(rows):
        image_ids = ids >> 32
        for part in np.split(np.arange(len(ids)), np.flatnonzero(np.diff(image_ids)) + 1):
            yield index.images[int(image_ids[part[0]])], ids[part], vectors[part]


def by_image(index: IndexFolder) -> Iterator[tuple[StoredImage, Iterator[Block]]]:
    """Yield the images that have vectors, in the order of their ids, each with its blocks."""
    for image, group in groupby(image_blocks(index, ROW_GROUP), key=lambda block: block[0]):
        yield image, ((ids, vectors) for _, ids, vectors in group)


def describe(index: IndexFolder) -> dict[str, Any]:
    """Describe the vectors for other tools: the key `retrieve` of a file's metadata."""
    return {
        "encoder": index.encoder.name,
        "encoder_fingerprint": index.encoder.fingerprint,
        "dimensions": index.vectors.dim,
        "metric": "inner product of unit vectors",
        "chip_size_px": PATCH_PX,
        "stride_px": index.config.stride_px,
        "min_visible": index.config.min_visible,
        "kind": index.vectors.kind,
        "quantization": quantization(index),
        "created_by": created_by(),
    }


def quantization(index: IndexFolder) -> dict[str, str]:
    """Describe how the index stores its vectors, in the words of the STAC embedding extension."""
    if index.vectors.kind == "exact":
        return {"method": "none", "original_dtype": "float32"}
    return {
        "method": "half precision (FAISS ScalarQuantizer QT_fp16), reconstructed",
        "original_dtype": "float32",
        "quantized_dtype": "float16",
    }


def notes(index: IndexFolder) -> tuple[str, ...]:
    """Return remarks on an export for the user."""
    missing = sum(not image.crs for image in index.images.values())
    remarks = []
    if index.vectors.kind != "exact":
        remarks.append(f"index kind {index.vectors.kind} stores vectors in half precision")
    if missing == len(index.images):
        remarks.append("no image has a CRS: there is no geometry")
    elif missing:
        remarks.append(f"{missing} of {len(index.images)} images have no CRS: their geometry is empty")
    return tuple(remarks)


def day_of(image: StoredImage) -> date | None:
    """Return the day of an image; None where its date is unknown or not an ISO date."""
    try:
        return date.fromisoformat((image.date or "")[:10])
    except ValueError:
        return None


# --- the file -----------------------------------------------------------------------------------


class _VectorFile:
    """A Parquet file that grows row group by row group; its geometry metadata comes last."""

    def __init__(self, index: IndexFolder, path: Path, located: bool, floats: Floats, row_group: int) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._images, self._row_group = index.images, row_group
        self._dtype = np.float32 if floats == "float32" else np.float16
        self._geometry = GeometryColumn("geometry", bbox="bbox") if located else None
        columns = [("image_id", pa.int32()), ("x", pa.int32()), ("y", pa.int32())]
        columns += [("path", pa.string()), ("date", pa.date32())]
        columns += self._geometry.fields() if self._geometry else []
        columns.append(("vector", pa.list_(pa.from_numpy_dtype(self._dtype), index.vectors.dim)))
        self._schema = pa.schema(columns, metadata={"retrieve": json.dumps(describe(index))})
        self._pending: list[Any] = []
        repeated = ["image_id", "path", "date"]
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd", use_dictionary=repeated)

    def write(self, image: StoredImage, ids: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """Add windows of one image, and write a row group once there are enough rows."""
        import pyarrow as pa

        _, x, y = unpack_ids(ids)
        n = len(ids)
        columns: dict[str, Any] = {"image_id": np.full(n, image.image_id, np.int32), "x": x, "y": y}
        columns |= {"path": [image.path or None] * n, "date": [day_of(image)] * n}
        if self._geometry:
            shapes = footprints(self._images, columns["image_id"], x, y, PATCH_PX, PATCH_PX)
            columns |= self._geometry.arrays(shapes)
        columns["x"], columns["y"], _, _ = to_file(
            self._images, columns["image_id"], x, y, PATCH_PX, PATCH_PX
        )
        flat = pa.array(np.ascontiguousarray(vectors, self._dtype).ravel())
        columns["vector"] = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
        arrays = [
            column if isinstance(column := columns[field.name], pa.Array) else pa.array(column, field.type)
            for field in self._schema
        ]
        self._pending.append(pa.Table.from_arrays(arrays, schema=self._schema))
        if sum(map(len, self._pending)) >= self._row_group:
            self._flush()

    def _flush(self) -> None:
        """Write the pending rows as one row group."""
        import pyarrow as pa

        if self._pending:
            self._writer.write_table(pa.concat_tables(self._pending))
            self._pending = []

    def close(self) -> None:
        """Write the pending rows and the metadata, and close the file."""
        self._flush()
        if self._geometry:
            self._writer.add_key_value_metadata({"geo": self._geometry.metadata()})
        self._writer.close()


@contextmanager
def _open_file(
    index: IndexFolder, path: Path, located: bool, floats: Floats, row_group: int
) -> Iterator[_VectorFile]:
    """Open a file and close it after a failure too, so that it can be removed."""
    file = _VectorFile(index, path, located, floats, row_group)
    try:
        yield file
    finally:
        file.close()
