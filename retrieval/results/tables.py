"""Tables as files: GeoParquet, CSV and GeoJSON.

A column `footprint` of WKT in longitude and latitude becomes the geometry of GeoParquet and GeoJSON.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.errors import ConfigError
from retrieval.geo.footprints import GeometryColumn
from tfrecords.artifacts import writing_file

ENDINGS = (".parquet", ".csv", ".geojson")
"""Endings of tables."""
FOOTPRINT = "footprint"
"""Column of the geometry."""


def table_ending(path: str | Path) -> str:
    """Return the ending of a table's name.

    Raises:
        ConfigError: the ending is not in `ENDINGS`.
    """
    ending = Path(path).suffix.lower()
    if ending not in ENDINGS:
        raise ConfigError(
            f"{path}: the ending of the table is {ending!r}. Expected .parquet, .csv or .geojson."
        )
    return ending


def write_table(frame: Any, path: str | Path, *, overwrite: bool = False) -> None:
    """Write a pandas frame as a whole.

    Args:
        frame: the table; its index is not written.
        path: ends in `.parquet`, `.csv` or `.geojson`. Parquet is GeoParquet 1.1 where `footprint` holds a
            geometry. CSV keeps it as WKT. GeoJSON (RFC 7946) has one feature per row.
        overwrite: replace an existing file.

    Raises:
        ConfigError: the file has another ending.
        OutputExistsError: the file exists and `overwrite` is not set.
    """
    ending = table_ending(path)
    with writing_file(path, overwrite=overwrite) as temporary:
        if ending == ".parquet":
            _write_parquet(frame, temporary)
        elif ending == ".csv":
            frame.to_csv(temporary, index=False, lineterminator="\n")
        else:
            _write_geojson(frame, temporary)


def _write_parquet(frame: Any, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if FOOTPRINT not in frame:
        frame.to_parquet(path, index=False)
        return
    geometry = GeometryColumn(FOOTPRINT)
    table = pa.Table.from_pandas(frame.drop(columns=FOOTPRINT), preserve_index=False)
    table = table.append_column(FOOTPRINT, geometry.arrays(_shapes(frame))[FOOTPRINT])
    if geometry.types:
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), b"geo": geometry.metadata()})
    pq.write_table(table, path)


def _write_geojson(frame: Any, path: Path) -> None:
    """Write one feature per line, so that line tools can read large files."""
    import shapely

    shapes = _shapes(frame) if FOOTPRINT in frame else [None] * len(frame)
    rows = frame.drop(columns=FOOTPRINT, errors="ignore").astype(object).to_dict("records")
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for number, (shape, row) in enumerate(zip(shapes, rows, strict=True)):
            geometry = None if shape is None else shapely.geometry.mapping(shape)
            feature = {"type": "Feature", "geometry": geometry, "properties": _json_values(row)}
            file.write(("," if number else "") + "\n" + json.dumps(feature, allow_nan=False))
        file.write("\n]}\n")


def _json_values(row: dict[str, Any]) -> dict[str, Any]:
    """Convert values for JSON; missing and infinite ones become null."""
    import pandas as pd

    missing = {k for k, v in row.items() if pd.isna(v) or (isinstance(v, float) and not math.isfinite(v))}
    return {k: None if k in missing else v.item() if hasattr(v, "item") else v for k, v in row.items()}


def _shapes(frame: Any) -> NDArray[np.object_]:
    """Return the geometry of each row, None for a row without one."""
    import shapely

    texts = [text if isinstance(text, str) and text else None for text in frame[FOOTPRINT]]
    return np.asarray(shapely.from_wkt(np.array(texts, object)))
