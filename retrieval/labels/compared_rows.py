"""The table of a comparison in batches of rows on the disk, so that memory does not grow with the table.

A batch is a GeoParquet file in a temporary folder. A table of one batch is that file; a longer GeoParquet
has a group of rows for each batch.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retrieval.labels.vectorizing import write_vectors
from tfrecords.storage import writing_file

if TYPE_CHECKING:
    import pyarrow as pa
    from geopandas import GeoDataFrame

BATCH_ROWS = 10_000


class ComparedRows:
    """Rows of features and areas; the folder lives as long as this object."""

    def __init__(self, frames: Iterable[GeoDataFrame]) -> None:
        """Keep the rows of frames with the same columns and CRS."""
        folder = Path(tempfile.mkdtemp(prefix="retrieve-labels-"))
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._files: list[Path] = []
        self.kinds: Counter[str] = Counter()
        """Number of rows by kind."""
        for frame in _batches(frames):
            self.kinds.update(frame["kind"])
            self._files.append(folder / f"{len(self._files)}.parquet")
            write_vectors(frame, self._files[-1])

    def frame(self) -> GeoDataFrame:
        """Return all rows in memory."""
        import geopandas
        import pandas as pd

        return pd.concat([geopandas.read_parquet(path) for path in self._files], ignore_index=True)

    def write(self, out: Path, *, overwrite: bool = False) -> None:
        """Write the rows whole or not at all, in the format of the ending.

        GeoParquet takes bounded memory; other formats take all rows at once.
        """
        if out.suffix.lower() != ".parquet":
            write_vectors(self.frame(), out, overwrite=overwrite)
            return
        with writing_file(out, overwrite=overwrite) as partial:
            if len(self._files) == 1:
                shutil.copyfile(self._files[0], partial)
            else:
                self._join(partial)

    def _join(self, out: Path) -> None:
        """Write a GeoParquet file with the rows of all batches."""
        import pyarrow.parquet as pq

        schemas = [pq.read_schema(path) for path in self._files]
        schema = schemas[0].with_metadata({**schemas[0].metadata, b"geo": _joined_metadata(schemas)})
        with pq.ParquetWriter(out, schema) as writer:
            for path in self._files:
                writer.write_table(pq.read_table(path).cast(schema))


def _batches(frames: Iterable[GeoDataFrame]) -> Iterator[GeoDataFrame]:
    """Yield frames of at least `BATCH_ROWS` rows, except for the last one."""
    import pandas as pd

    kept: list[GeoDataFrame] = []
    for frame in frames:
        kept.append(frame)
        if sum(map(len, kept)) >= BATCH_ROWS:
            yield pd.concat(kept, ignore_index=True)
            kept = []
    if kept:
        yield pd.concat(kept, ignore_index=True)


def _joined_metadata(schemas: list[pa.Schema]) -> bytes:
    """Return the GeoParquet metadata of all rows: bounds and types of geometry of every batch."""
    geo: list[dict[str, Any]] = [json.loads(schema.metadata[b"geo"]) for schema in schemas]
    columns = [one["columns"][one["primary_column"]] for one in geo]
    west, south, east, north = zip(*(column["bbox"] for column in columns), strict=True)
    columns[0]["bbox"] = [min(west), min(south), max(east), max(north)]
    columns[0]["geometry_types"] = sorted({kind for column in columns for kind in column["geometry_types"]})
    return json.dumps(geo[0]).encode()
