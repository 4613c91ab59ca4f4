"""Vectors of an index as GeoParquet, one row per window or part; the file is written in row groups.

    image_id  int32      x, y  int32, top-left pixel      path  string      date  date, where it is known
    geometry  footprint in WKB, longitude and latitude    bbox  struct of its west, south, east and north
    vector    fixed_size_list<float32 or float16>; of unit length for windows

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
from retrieval.index.parts import PART_DIM, STEP
from retrieval.models.local_descriptors import STEP_PX, VIEW_PX
from retrieval.types import Progress, StoredImage, pack_ids, silent, unpack_ids
from tfrecords.artifacts import writing_file
from tfrecords.artifacts.manifest import created_by

Floats = Literal["float32", "float16"]
"""Types of the vectors' numbers."""
ROW_GROUP = 32_768
"""Rows of a row group: 40 MB at 256 numbers per vector."""

PART_PX, PART_STEP_PX = VIEW_PX + STEP_PX, STEP * STEP_PX
"""Side of the pixels that a part sees, and the distance between parts: a part joins 2 x 2 descriptors."""

Block = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Ids (m,) of windows of one image, and their vectors (m, dim)."""


@dataclass(frozen=True)
class VectorsReport:
    """Result of `export_vectors`."""

    path: Path
    """The file."""
    rows: int
    """Number of windows or parts, one per row."""
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
    path = _checked_path(out)
    rows, total = 0, len(index.vectors)
    with (
        writing_file(path, overwrite=overwrite) as partial,
        _open_file(index, partial, _located(index), floats, row_group) as file,
    ):
        for image, ids, vectors in image_blocks(index, row_group):
            file.write(image, ids, vectors)
            rows += len(ids)
            progress("writing vectors", rows, total)
    return VectorsReport(path, rows, _located(index), notes(index))


def export_parts(
    index: IndexFolder,
    out: str | Path,
    *,
    floats: Floats = "float32",
    row_group: int = ROW_GROUP,
    overwrite: bool = False,
    progress: Progress = silent,
) -> VectorsReport:
    """Write all parts of an index to one file, in the order of (image_id, y, x).

    A part sees a square of `PART_PX` pixels; there is one every `PART_STEP_PX` pixels. Parts that show
    nothing are left out. The length of a part is the weight that the search gives to it.

    Args:
        index: an open index folder with parts.
        out: the file; ends in `.parquet`.
        floats: type of the numbers, which the index stores in four bits.
        row_group: rows of a row group, at least; memory grows with it.
        overwrite: replace an existing file.
        progress: called after each image.

    Returns:
        The file, the number of rows, and notes.

    Raises:
        ConfigError: the file has another ending, the index holds no parts, or its shards hold parts of
            different projections.
        OutputExistsError: the file exists and `overwrite` is not set.
    """
    path = _checked_path(out)
    parts = index.parts
    if parts is None:
        raise ConfigError(
            f'{index.path}: it holds no parts. Set parts = "always" in [index] of retrieve.toml, and build '
            "it again."
        )
    if len(parts.members) > 1:
        raise ConfigError(
            f"{index.path}: it has {len(parts.members)} shards, whose parts have different projections. "
            "Export each shard."
        )
    about = describe(index) | {"dimensions": PART_DIM, "chip_size_px": PART_PX, "stride_px": PART_STEP_PX}
    about |= {"metric": "inner product", "kind": "parts"}
    about["quantization"] = {"method": "4 bits a number, a scale for each part", "original_dtype": "float32"}
    rows, ids_of_images = 0, sorted(parts.image_ids)
    with (
        writing_file(path, overwrite=overwrite) as partial,
        _open_file(index, partial, _located(index), floats, row_group, about) as file,
    ):
        for done, image_id in enumerate(ids_of_images, start=1):
            numbers = parts.members[0].stored.numbers(image_id)
            y, x = np.nonzero(numbers.any(-1))
            ids = pack_ids(np.full(len(x), image_id), PART_STEP_PX * x, PART_STEP_PX * y)
            file.write(index.images[image_id], ids, numbers[y, x])
            rows += len(ids)
            progress("writing parts", done, len(ids_of_images))
    return VectorsReport(path, rows, _located(index), _without_geometry(index))


def _checked_path(out: str | Path) -> Path:
    path = Path(out)
    if path.suffix != ".parquet":
        raise ConfigError(f"{path}: the ending is {path.suffix!r}. Expected .parquet.")
    return path


def _located(index: IndexFolder) -> bool:
    """Return whether any image has a CRS."""
    return any(image.crs for image in index.images.values())


def write_image(index: IndexFolder, path: Path, image: StoredImage, blocks: Iterable[Block]) -> int:
    """Write the vectors of one image to a separate file, and return the number of rows."""
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
    if index.vectors.kind == "exact":
        return _without_geometry(index)
    return f"index kind {index.vectors.kind} stores vectors in half precision", *_without_geometry(index)


def _without_geometry(index: IndexFolder) -> tuple[str, ...]:
    missing = sum(not image.crs for image in index.images.values())
    if missing == len(index.images):
        return ("no image has a CRS: there is no geometry",)
    return (
        (f"{missing} of {len(index.images)} images have no CRS: their geometry is empty",) if missing else ()
    )


def day_of(image: StoredImage) -> date | None:
    """Return the day of an image; None where its date is unknown or not an ISO date."""
    try:
        return date.fromisoformat((image.date or "")[:10])
    except ValueError:
        return None


# --- the file -----------------------------------------------------------------------------------


class _VectorFile:
    """A Parquet file that grows row group by row group; its geometry metadata comes last."""

    def __init__(
        self,
        index: IndexFolder,
        path: Path,
        located: bool,
        floats: Floats,
        row_group: int,
        about: dict[str, Any],
    ) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._images, self._row_group = index.images, row_group
        self._dtype = np.float32 if floats == "float32" else np.float16
        self._geometry = GeometryColumn("geometry", bbox="bbox") if located else None
        columns = [("image_id", pa.int32()), ("x", pa.int32()), ("y", pa.int32())]
        columns += [("path", pa.string()), ("date", pa.date32())]
        columns += self._geometry.fields() if self._geometry else []
        self._side = int(about["chip_size_px"])
        columns.append(("vector", pa.list_(pa.from_numpy_dtype(self._dtype), about["dimensions"])))
        self._schema = pa.schema(columns, metadata={"retrieve": json.dumps(about)})
        self._pending: list[Any] = []
        repeated = ["image_id", "path", "date"]
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd", use_dictionary=repeated)

    def write(self, image: StoredImage, ids: NDArray[np.int64], vectors: NDArray[np.float32]) -> None:
        """Add windows or parts of one image, and write a row group once there are enough rows."""
        import pyarrow as pa

        _, x, y = unpack_ids(ids)
        n = len(ids)
        columns: dict[str, Any] = {"image_id": np.full(n, image.image_id, np.int32), "x": x, "y": y}
        columns |= {"path": [image.path or None] * n, "date": [day_of(image)] * n}
        if self._geometry:
            shapes = footprints(self._images, columns["image_id"], x, y, self._side, self._side)
            columns |= self._geometry.arrays(shapes)
        columns["x"], columns["y"], _, _ = to_file(
            self._images, columns["image_id"], x, y, self._side, self._side
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
    index: IndexFolder,
    path: Path,
    located: bool,
    floats: Floats,
    row_group: int,
    about: dict[str, Any] | None = None,
) -> Iterator[_VectorFile]:
    """Open a file and close it after a failure too, so that it can be removed."""
    file = _VectorFile(index, path, located, floats, row_group, about or describe(index))
    try:
        yield file
    finally:
        file.close()
